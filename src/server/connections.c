#include "connections.h"

#include "watcher.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#if defined(__linux__)
#include <linux/tcp.h>
#elif defined(__APPLE__)
#include <netinet/tcp.h>
#endif

/* Bytes that the socket has received so far, read or not; 0 where the system does not tell. */
static uint64_t received_bytes(int socket)
{
#if defined(__linux__)
    struct tcp_info info;
    socklen_t size = sizeof(info);
    memset(&info, 0, sizeof(info));
    if (getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0)
        return info.tcpi_bytes_received;
#elif defined(__APPLE__)
    struct tcp_connection_info info;
    socklen_t size = sizeof(info);
    memset(&info, 0, sizeof(info));
    if (getsockopt(socket, IPPROTO_TCP, TCP_CONNECTION_INFO, &info, &size) == 0)
        return info.tcpi_rxbytes;
#else
    (void)socket;
#endif
    return 0;
}

HttpConnection *connections_add(Server *server, int socket, bool is_surplus)
{
    HttpConnection *connection = memory_allocate_zeroed(1, sizeof(*connection));
    if (!connection)
        return NULL;
    connection->socket = socket;
    connection->is_surplus = is_surplus;
    pthread_mutex_lock(&server->mutex);
    connection->next = server->connections;
    if (connection->next)
        connection->next->previous = connection;
    server->connections = connection;
    pthread_mutex_unlock(&server->mutex);
    watcher_wake(server->watcher);
    return connection;
}

/* Closing a socket with unread bytes resets it, and takes what the library has answered to a
 * malformed request away from the client. */
static void let_client_read(Server *server, const HttpConnection *connection)
{
    pthread_mutex_lock(&server->mutex);
    bool is_malformed =
        !connection->timed_out && (connection->phase == CONNECTION_BODY ||
                                   (connection->phase == CONNECTION_IDLE &&
                                    received_bytes(connection->socket) > connection->bytes_before));
    pthread_mutex_unlock(&server->mutex);
    if (!is_malformed)
        return;
    shutdown(connection->socket, SHUT_WR);
    watcher_linger(server->watcher, connection->socket);
}

void connections_remove(Server *server, HttpConnection *connection)
{
    if (!connection)
        return;
    let_client_read(server, connection);
    pthread_mutex_lock(&server->mutex);
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        server->connections = connection->next;
    if (connection->next)
        connection->next->previous = connection->previous;
    pthread_mutex_unlock(&server->mutex);
    memory_free(connection);
}

bool connections_enter(Server *server, HttpConnection *connection, ConnectionPhase phase)
{
    if (!connection)
        return true;
    pthread_mutex_lock(&server->mutex);
    bool ok = !connection->timed_out;
    connection->phase = phase;
    connection->since = phase == CONNECTION_BODY ? clock_monotonic_seconds() : 0;
    pthread_mutex_unlock(&server->mutex);
    return ok;
}

/* What lies behind the request belongs to the next head, whose clock starts when this answer ends.
 * A few bytes more are blank lines that some clients put around their requests. */
void connections_account(Server *server, HttpConnection *connection, uint64_t request_bytes)
{
    enum { BLANK_BYTES = 4 };
    if (!connection)
        return;
    pthread_mutex_lock(&server->mutex);
    uint64_t received = received_bytes(connection->socket);
    uint64_t behind = connection->bytes_before + request_bytes;
    bool more = request_bytes > 0 && received > behind + BLANK_BYTES;
    connection->bytes_before = more ? behind : received;
    pthread_mutex_unlock(&server->mutex);
}

/* The server's mutex is held. */
static const char *find_timeout(const ServerOptions *options, HttpConnection *connection,
                                double now)
{
    if (connection->phase == CONNECTION_BODY)
        return now - connection->since >= options->body_seconds
                   ? "The body did not arrive: nothing came for too long."
                   : NULL;
    if (connection->since <= 0) {
        if (received_bytes(connection->socket) > connection->bytes_before)
            connection->since = now;
        return NULL;
    }
    return now - connection->since >= options->head_seconds
               ? "The head of the request did not arrive in time."
               : NULL;
}

bool connections_check(Server *server)
{
    bool any = false;
    double now = clock_monotonic_seconds();
    pthread_mutex_lock(&server->mutex);
    for (HttpConnection *at = server->connections; at; at = at->next) {
        if (at->phase == CONNECTION_BUSY || at->timed_out)
            continue;
        any = true;
        const char *message = find_timeout(&server->options, at, now);
        if (!message)
            continue;
        HttpError error;
        at->timed_out = true;
        http_error_set(&error, FAULT_TIMEOUT, NULL, "%s", message);
        http_send_refusal(server, at->socket, NULL, &error);
        shutdown(at->socket, SHUT_RDWR);
    }
    pthread_mutex_unlock(&server->mutex);
    return any;
}
