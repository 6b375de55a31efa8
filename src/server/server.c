/* Starting and stopping: the listening socket, libmicrohttpd's daemon, the watcher.
 *
 * Stopping, in this order: no new connections and no new tasks; running tasks get their grace; what
 * still runs is told to fail, which also ends every suspension; then libmicrohttpd closes the
 * connections. The order matters: it must not be stopped while a connection is suspended. */
#include "constraint.h"
#include "http.h"
#include "watcher.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SERVER_BACKLOG = 511,
    SERVER_CONNECTIONS_SPARE = 64, /* accepted above the maximum, to tell them so */
    /* A request's head and its parsed fields: the largest allowed header section twice, and more.
     */
    SERVER_CONNECTION_MEMORY = 256 << 10,
    SERVER_CONNECTION_STEP = 16 << 10,
};

/* What clients get to take their last bytes after the grace is over. */
static const double SERVER_FAREWELL_SECONDS = 1;

/* ---- Socket ---- */

typedef union Address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} Address;

static bool parse_address(const char *host, uint16_t port, Address *address, socklen_t *size,
                          bool *loopback, Error *err)
{
    memset(address, 0, sizeof(*address));
    if (strcmp(host, "localhost") == 0)
        host = "127.0.0.1";
    if (inet_pton(AF_INET, host, &address->v4.sin_addr) == 1) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons(port);
        *size = sizeof(address->v4);
        *loopback = (ntohl(address->v4.sin_addr.s_addr) >> 24) == 127;
        return true;
    }
    if (inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(port);
        *size = sizeof(address->v6);
        *loopback = IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr);
        return true;
    }
    return error_set(err, ERROR_USAGE, "%s: expected a numeric address such as 127.0.0.1", host);
}

static bool fail_with_errno(int socket, const char *host, uint16_t port, Error *err)
{
    int code = errno;
    if (socket >= 0)
        close(socket);
    if (code == EADDRINUSE)
        return error_set(err, ERROR_IO, "%s:%u: address already in use", host, port);
    return error_set(err, ERROR_IO, "%s:%u: %s", host, port, strerror(code));
}

static bool open_listener(Server *server, const char *host, uint16_t port, Error *err)
{
    Address address;
    socklen_t size;
    if (!parse_address(host, port, &address, &size, &server->loopback, err))
        return false;
    int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
    int on = 1;
    if (fd < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, O_NONBLOCK) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        bind(fd, &address.any, size) != 0 || listen(fd, SERVER_BACKLOG) != 0 ||
        getsockname(fd, &address.any, &size) != 0)
        return fail_with_errno(fd, host, port, err);
    server->listen_socket = fd;
    server->port =
        ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
    return true;
}

/* ---- Daemon ---- */

/* Paths are compared as they were sent. */
static size_t keep_escapes(void *cls, struct MHD_Connection *connection, char *text)
{
    (void)cls;
    (void)connection;
    return strlen(text);
}

/* poll, not epoll: in a pool of epoll threads MHD_quiesce_daemon and the threads race to take the
 * listening socket out of the same set, and the library ends the process when it comes second. */
static bool start_daemon(Server *server, Error *err)
{
    unsigned flags =
        MHD_USE_POLL | MHD_USE_INTERNAL_POLLING_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC;
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_LISTEN_SOCKET, server->listen_socket, NULL},
        {MHD_OPTION_THREAD_POOL_SIZE, HTTP_THREADS, NULL},
        {MHD_OPTION_CONNECTION_LIMIT, SERVER_CONNECTIONS_MAX + SERVER_CONNECTIONS_SPARE, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, SERVER_IDLE_SECONDS, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, SERVER_CONNECTION_MEMORY, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_INCREMENT, SERVER_CONNECTION_STEP, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, http_handle, server, MHD_OPTION_ARRAY, options,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL, MHD_OPTION_URI_LOG_CALLBACK,
        http_request_begin, server, MHD_OPTION_NOTIFY_COMPLETED, http_completed, server,
        MHD_OPTION_NOTIFY_CONNECTION, http_connection_changed, server, MHD_OPTION_END);
    if (!server->daemon)
        return error_set(err, ERROR_IO, "the HTTP server cannot be started");
    return true;
}

/* ---- Public ---- */

static void describe_server(Server *server)
{
    int64_t now = clock_unix_milliseconds();
    server->started_at = now / 1000;
    server->started_clock = clock_monotonic_seconds();
    atomic_init(&server->last_reply_id, now);
    uint64_t hash =
        slice_hash(SLICE(MLX_SERVE_VERSION)) * 31 + slice_hash(server->options.model_id);
    snprintf(server->fingerprint, sizeof(server->fingerprint), "fp_%08x",
             (unsigned)(hash & UINT32_MAX));
    if (getentropy(&server->request_key, sizeof(server->request_key)) != 0)
        server->request_key = (uint64_t)now; /* ids only tell requests apart */
}

static bool init_locks(Server *server, Error *err)
{
    if (pthread_mutex_init(&server->mutex, NULL) != 0)
        return error_no_memory(err, "server lock");
    if (pthread_cond_init(&server->idle, NULL) != 0) {
        pthread_mutex_destroy(&server->mutex);
        return error_no_memory(err, "server lock");
    }
    if (pthread_mutex_init(&server->constraints.lock, NULL) != 0) {
        pthread_cond_destroy(&server->idle);
        pthread_mutex_destroy(&server->mutex);
        return error_no_memory(err, "server lock");
    }
    return true;
}

static void free_server(Server *server)
{
    watcher_stop(server->watcher);
    if (server->listen_socket >= 0)
        close(server->listen_socket);
    constraint_store_reset(&server->constraints);
    pthread_cond_destroy(&server->idle);
    pthread_mutex_destroy(&server->mutex);
    memory_free(server);
}

bool server_start(const ServerOptions *options, Server **out, Error *err)
{
    *out = NULL;
    Server *server = memory_allocate_zeroed(1, sizeof(*server));
    if (!server)
        return error_no_memory(err, "server");
    server->listen_socket = -1;
    server->options = *options;
    if (options->head_seconds == 0)
        server->options.head_seconds = SERVER_HEAD_SECONDS;
    if (options->body_seconds == 0)
        server->options.body_seconds = SERVER_BODY_SECONDS;
    atomic_init(&server->is_ready, false);
    describe_server(server);
    if (!init_locks(server, err)) {
        memory_free(server);
        return false;
    }
    const char *host = options->host ? options->host : "127.0.0.1";
    if (!open_listener(server, host, options->port, err) ||
        !watcher_start(server, &server->watcher, err) || !start_daemon(server, err)) {
        free_server(server);
        return false;
    }
    *out = server;
    return true;
}

void server_set_model(Server *server, const ServerModel *model)
{
    server->model = *model;
    atomic_store(&server->is_ready, true);
}

/* Waits until no task runs, at most seconds; the server's mutex is held. */
static void wait_until_idle(Server *server, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    double whole = floor(seconds);
    until.tv_sec += (time_t)whole;
    until.tv_nsec += (long)((seconds - whole) * 1e9);
    if (until.tv_nsec >= 1000L * 1000L * 1000L) {
        until.tv_nsec -= 1000L * 1000L * 1000L;
        until.tv_sec++;
    }
    while (server->task_count > 0) {
        if (pthread_cond_timedwait(&server->idle, &server->mutex, &until) == ETIMEDOUT)
            return;
    }
}

void server_stop(Server *server, double grace_seconds)
{
    if (!server)
        return;
    MHD_quiesce_daemon(server->daemon);
    /* Refuses connections from now on. Closing waits for the end: until they have stopped, the
     * library's threads may still take the descriptor out of their sets, and the number could be
     * another's. */
    shutdown(server->listen_socket, SHUT_RDWR);

    pthread_mutex_lock(&server->mutex);
    server->stopping = true;
    wait_until_idle(server, grace_seconds > 0 ? grace_seconds : 0);
    atomic_store(&server->aborting, true);
    for (HttpRequest *request = server->tasks; request; request = request->next)
        http_notify(request);
    wait_until_idle(server, SERVER_FAREWELL_SECONDS);
    pthread_mutex_unlock(&server->mutex);

    MHD_stop_daemon(server->daemon);
    free_server(server);
}

uint16_t server_port(const Server *server)
{
    return server->port;
}
