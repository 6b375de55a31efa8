/* POLLRDHUP, which tells that the client has closed its side even while unread bytes lie before
 * that, is a Linux extension; elsewhere an empty peek says the same once the bytes before it were
 * read. */
#define _GNU_SOURCE
#include "watcher.h"

#include "connections.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    WATCHER_PERIOD_MILLISECONDS = 250,
    WATCHER_LINGER_MAX = 128,
    WATCHER_LINGER_READS = 64, /* for one socket and look */
};

static const double WATCHER_LINGER_SILENCE = 2; /* seconds */
static const double WATCHER_LINGER_SECONDS = 30;

typedef struct Linger {
    int socket;
    double started, heard;
} Linger;

struct Watcher {
    Server *server;
    pthread_t thread;

    /* mutex guards the following; changed is signalled when they change. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool stopping, has_work;
    Linger lingers[WATCHER_LINGER_MAX];
    size_t n_lingers;
};

/* ---- Running tasks ---- */

static int socket_of(const HttpRequest *request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

static bool client_is_gone(int socket)
{
#if defined(POLLRDHUP)
    struct pollfd entry = {.fd = socket, .events = POLLRDHUP};
    return poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLERR | POLLHUP | POLLNVAL));
#else
    char byte;
    ssize_t got = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
#endif
}

/* The list's lock is held over the polls, which do not wait: a request leaves the list before its
 * socket is closed, so no descriptor here can be another's. False when there was none to look at.
 */
static bool look_at_tasks(Server *server)
{
    double now = clock_monotonic_seconds();
    pthread_mutex_lock(&server->mutex);
    for (HttpRequest *request = server->tasks; request; request = request->next) {
        int socket = socket_of(request);
        if (!atomic_load(&request->hung_up) && client_is_gone(socket)) {
            atomic_store(&request->hung_up, true);
            shutdown(socket, SHUT_RDWR);
            http_notify(request);
        } else if (request->streams && atomic_load(&request->suspended) &&
                   now - atomic_load(&request->last_progress) >= SERVER_KEEP_ALIVE_SECONDS) {
            atomic_store(&request->keep_alive_due, true);
            http_notify(request);
        }
    }
    bool any = server->tasks != NULL;
    pthread_mutex_unlock(&server->mutex);
    return any;
}

/* ---- Lingering sockets ---- */

/* Discards what has come; true when the client has closed or broken the connection. */
static bool drain_socket(Linger *linger, double now)
{
    char block[16384];
    for (int i = 0; i < WATCHER_LINGER_READS; i++) {
        ssize_t got = recv(linger->socket, block, sizeof(block), MSG_DONTWAIT);
        if (got <= 0)
            return got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
        linger->heard = now;
    }
    return false;
}

/* The watcher's mutex is held. */
static void look_at_lingers(Watcher *watcher, bool close_all)
{
    double now = clock_monotonic_seconds();
    size_t kept = 0;
    for (size_t i = 0; i < watcher->n_lingers; i++) {
        Linger linger = watcher->lingers[i];
        if (close_all || drain_socket(&linger, now) ||
            now - linger.heard >= WATCHER_LINGER_SILENCE ||
            now - linger.started >= WATCHER_LINGER_SECONDS)
            close(linger.socket);
        else
            watcher->lingers[kept++] = linger;
    }
    watcher->n_lingers = kept;
}

void watcher_linger(Watcher *watcher, int socket)
{
    int copy = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return;
    pthread_mutex_lock(&watcher->mutex);
    bool has_room = !watcher->stopping && watcher->n_lingers < WATCHER_LINGER_MAX;
    if (has_room) {
        double now = clock_monotonic_seconds();
        watcher->lingers[watcher->n_lingers++] = (Linger){copy, now, now};
        pthread_cond_signal(&watcher->changed);
    }
    pthread_mutex_unlock(&watcher->mutex);
    if (!has_room)
        close(copy);
}

/* ---- Thread ---- */

/* Waits a period, or until a lingering socket has something to read. The watcher's mutex is held,
 * but not while it waits; only this thread takes lingers away. */
static void wait_period(Watcher *watcher)
{
    struct pollfd entries[WATCHER_LINGER_MAX];
    size_t count = watcher->n_lingers;
    for (size_t i = 0; i < count; i++)
        entries[i] = (struct pollfd){.fd = watcher->lingers[i].socket, .events = POLLIN};
    if (count > 0) {
        pthread_mutex_unlock(&watcher->mutex);
        poll(entries, (nfds_t)count, WATCHER_PERIOD_MILLISECONDS);
        pthread_mutex_lock(&watcher->mutex);
        return;
    }
    /* A change of the wall clock only stretches or cuts one period. */
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_nsec += WATCHER_PERIOD_MILLISECONDS * 1000L * 1000L;
    if (time.tv_nsec >= 1000L * 1000L * 1000L) {
        time.tv_nsec -= 1000L * 1000L * 1000L;
        time.tv_sec++;
    }
    while (!watcher->stopping && watcher->n_lingers == 0 &&
           pthread_cond_timedwait(&watcher->changed, &watcher->mutex, &time) != ETIMEDOUT)
        ;
}

static void *watcher_thread(void *argument)
{
    Watcher *watcher = argument;
    double looked_at = 0;
    pthread_mutex_lock(&watcher->mutex);
    while (!watcher->stopping) {
        if (!watcher->has_work && watcher->n_lingers == 0) {
            pthread_cond_wait(&watcher->changed, &watcher->mutex);
            continue;
        }
        wait_period(watcher);
        look_at_lingers(watcher, false);
        /* Busy lingers do not make the other looks more frequent. */
        double now = clock_monotonic_seconds();
        if (now - looked_at < 1e-3 * WATCHER_PERIOD_MILLISECONDS)
            continue;
        looked_at = now;
        /* Cleared before looking: work that arrives meanwhile sets it again. */
        watcher->has_work = false;
        pthread_mutex_unlock(&watcher->mutex);
        bool any = look_at_tasks(watcher->server);
        any |= connections_check(watcher->server);
        pthread_mutex_lock(&watcher->mutex);
        watcher->has_work = watcher->has_work || any;
    }
    look_at_lingers(watcher, true);
    pthread_mutex_unlock(&watcher->mutex);
    return NULL;
}

bool watcher_start(Server *server, Watcher **out, Error *err)
{
    *out = NULL;
    Watcher *watcher = memory_allocate_zeroed(1, sizeof(*watcher));
    if (!watcher)
        return error_no_memory(err, "watcher");
    watcher->server = server;
    if (pthread_mutex_init(&watcher->mutex, NULL) != 0)
        goto free_watcher;
    if (pthread_cond_init(&watcher->changed, NULL) != 0)
        goto destroy_mutex;
    if (pthread_create(&watcher->thread, NULL, watcher_thread, watcher) != 0)
        goto destroy_condition;
    *out = watcher;
    return true;
destroy_condition:
    pthread_cond_destroy(&watcher->changed);
destroy_mutex:
    pthread_mutex_destroy(&watcher->mutex);
free_watcher:
    memory_free(watcher);
    return error_set(err, ERROR_IO, "the watcher thread cannot be started");
}

void watcher_stop(Watcher *watcher)
{
    if (!watcher)
        return;
    pthread_mutex_lock(&watcher->mutex);
    watcher->stopping = true;
    pthread_cond_signal(&watcher->changed);
    pthread_mutex_unlock(&watcher->mutex);
    pthread_join(watcher->thread, NULL);
    pthread_cond_destroy(&watcher->changed);
    pthread_mutex_destroy(&watcher->mutex);
    memory_free(watcher);
}

void watcher_wake(Watcher *watcher)
{
    pthread_mutex_lock(&watcher->mutex);
    watcher->has_work = true;
    pthread_cond_signal(&watcher->changed);
    pthread_mutex_unlock(&watcher->mutex);
}
