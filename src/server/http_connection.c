/* libmicrohttpd's callbacks: one request from its target to the end of its response.
 *
 *   begin -> head checked -> body collected -> handler -> reply queued
 *                                              \-> task: advance ... suspended ... advance -> end
 *
 * A refusal of a request whose body is still to come is queued at once, and the socket lingers.
 * Everything else is answered once the body is in. When a reply is queued early, libmicrohttpd
 * closes the connection after it. */
#include "connections.h"
#include "http.h"
#include "request_log.h"
#include "route.h"
#include "watcher.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* ---- Beginning and end ---- */

static int socket_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

static HttpConnection *timed_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

void *http_request_begin(void *cls, const char *target, struct MHD_Connection *connection)
{
    Server *server = cls;
    HttpRequest *request = memory_allocate_zeroed(1, sizeof(*request));
    if (!request)
        return NULL; /* the handler closes the connection */
    request->server = server;
    request->connection = connection;
    request->timed = timed_of(connection);
    request->began_at = clock_monotonic_seconds();
    request->target_size = strlen(target);
    http_make_id(server, request->id);
    arena_init(&request->arena, SERVER_JSON_BYTES_MAX);
    buffer_init(&request->body, SERVER_BODY_BYTES_MAX);
    buffer_init(&request->reply, SERVER_REPLY_BYTES_MAX);
    buffer_init(&request->out, HTTP_STREAM_BYTES_MAX);
    return request;
}

/* What became of a request, told to the log and, where no answer was queued or sent, which counted
 * it, to the counters: a client that went before the answer counts as 499. */
static void account_for(HttpRequest *request, bool timed_out, bool completed)
{
    Server *server = request->server;
    double seconds = clock_monotonic_seconds() - request->began_at;
    if (timed_out)
        request->status = http_fault_status(FAULT_TIMEOUT);
    else if (request->raw_reply)
        request->status = http_fault_status(request->error.fault);
    else if (!request->queued)
        request->status = METRICS_CLIENT_GONE;
    if (!timed_out && !request->raw_reply && !request->queued)
        metrics_count_reply(&server->metrics, request->route, request->status);
    if (request->outcome.is_generation)
        metrics_observe_seconds(&server->metrics, seconds);
    request_log_write(request, seconds, completed);
}

static void unregister_task(HttpRequest *request)
{
    Server *server = request->server;
    pthread_mutex_lock(&server->mutex);
    if (request->registered) {
        if (request->previous)
            request->previous->next = request->next;
        else
            server->tasks = request->next;
        if (request->next)
            request->next->previous = request->previous;
        request->registered = false;
        if (--server->task_count == 0)
            pthread_cond_broadcast(&server->idle);
    }
    pthread_mutex_unlock(&server->mutex);
}

void http_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                    enum MHD_RequestTerminationCode code)
{
    (void)cls;
    HttpRequest *request = *con_cls;
    if (!request)
        return;
    /* The task goes first: freeing it waits for a notify call, which needs the request. */
    if (request->task)
        request->ops->free(request->task);
    unregister_task(request);
    bool timed_out = !connections_enter(request->server, request->timed, CONNECTION_IDLE);
    if (request->started)
        account_for(request, timed_out, code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT,
                              (unsigned)SERVER_IDLE_SECONDS);
    buffer_reset(&request->out);
    buffer_reset(&request->reply);
    buffer_reset(&request->body);
    arena_reset(&request->arena);
    memory_free(request);
    *con_cls = NULL;
}

void http_connection_changed(void *cls, struct MHD_Connection *connection, void **socket_context,
                             enum MHD_ConnectionNotificationCode code)
{
    Server *server = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        size_t before = atomic_fetch_add(&server->connection_count, 1);
        *socket_context =
            connections_add(server, socket_of(connection), before >= SERVER_CONNECTIONS_MAX);
    } else {
        atomic_fetch_sub(&server->connection_count, 1);
        connections_remove(server, *socket_context);
        *socket_context = NULL;
    }
}

/* ---- Waking and waiting ---- */

static void resume(HttpRequest *request)
{
    if (atomic_exchange(&request->suspended, false))
        MHD_resume_connection(request->connection);
}

void http_notify(void *context)
{
    HttpRequest *request = context;
    atomic_store(&request->news, true);
    resume(request);
}

void http_start_task(HttpRequest *request, const HttpTaskOps *ops, void *task, bool streams)
{
    request->ops = ops;
    request->task = task;
    request->streams = streams;
}

static void register_task(HttpRequest *request)
{
    Server *server = request->server;
    pthread_mutex_lock(&server->mutex);
    request->next = server->tasks;
    request->previous = NULL;
    if (request->next)
        request->next->previous = request;
    server->tasks = request;
    server->task_count++;
    request->registered = true;
    atomic_store(&request->last_progress, clock_monotonic_seconds());
    pthread_mutex_unlock(&server->mutex);
    watcher_wake(server->watcher);
}

typedef enum WaitResult {
    WAIT_NONE,
    WAIT_NEWS,
    WAIT_HUNG_UP,
    WAIT_ABORTED,
    WAIT_SILENT
} WaitResult;

/* A reason to go on, which is consumed, or WAIT_NONE. */
static WaitResult look_for_news(HttpRequest *request)
{
    bool silent = atomic_exchange(&request->keep_alive_due, false);
    bool news = atomic_exchange(&request->news, false);
    if (atomic_load(&request->hung_up))
        return WAIT_HUNG_UP;
    if (atomic_load(&request->server->aborting))
        return WAIT_ABORTED;
    if (silent)
        return WAIT_SILENT;
    return news ? WAIT_NEWS : WAIT_NONE;
}

static bool has_news(const HttpRequest *request)
{
    return atomic_load(&request->news) || atomic_load(&request->hung_up) ||
           atomic_load(&request->keep_alive_due) || atomic_load(&request->server->aborting);
}

/* Suspends the connection unless there is a reason to go on. A reason that comes meanwhile resumes
 * it, here or where it comes from. */
static bool suspend_without_news(HttpRequest *request)
{
    if (has_news(request))
        return false;
    MHD_suspend_connection(request->connection);
    atomic_store(&request->suspended, true);
    if (has_news(request))
        resume(request);
    return true;
}

static void fail_task(HttpRequest *request)
{
    HttpError error;
    http_error_set(&error, FAULT_SHUTTING_DOWN, NULL, "The server is shutting down.");
    request->ops->fail(request->task, request, &error);
    request->ended = true;
}

typedef enum DriveResult { DRIVE_SUSPENDED, DRIVE_MORE, DRIVE_ENDED, DRIVE_HUNG_UP } DriveResult;

/* Advances the task until it has something to send, has ended, or the connection is suspended. */
static DriveResult drive_task(HttpRequest *request)
{
    while (!request->ended) {
        /* First take what there is; the second look happens with the news flag known to be clear.
         */
        WaitResult wait = look_for_news(request);
        if (wait == WAIT_HUNG_UP)
            return DRIVE_HUNG_UP;
        if (wait == WAIT_ABORTED) {
            fail_task(request);
            break;
        }
        HttpProgress progress = request->ops->advance(request->task, request);
        if (progress == HTTP_WAIT && wait == WAIT_SILENT && request->ops->keep_alive) {
            request->ops->keep_alive(request->task, request);
            progress = HTTP_MORE;
        }
        if (progress == HTTP_END)
            request->ended = true;
        else if (progress == HTTP_MORE)
            return DRIVE_MORE;
        else if (suspend_without_news(request))
            return DRIVE_SUSPENDED;
    }
    return DRIVE_ENDED;
}

/* ---- Streams ---- */

static size_t take_out(HttpRequest *request, char *to, size_t max)
{
    size_t left = request->out.len - request->out_at;
    size_t count = left < max ? left : max;
    memcpy(to, request->out.ptr + request->out_at, count);
    request->out_at += count;
    if (request->out_at == request->out.len) {
        buffer_clear(&request->out);
        request->out_at = 0;
    }
    return count;
}

/* The events of one step did not fit. None of them was sent yet: an error takes their place. */
static void fail_stream(HttpRequest *request)
{
    HttpError error;
    http_error_set(&error, FAULT_INTERNAL, NULL, "%s",
                   request->out.over_limit ? "The reply is larger than the server's limit."
                                           : "Out of memory for the reply.");
    buffer_reset(&request->out);
    request->ops->fail(request->task, request, &error);
    request->ended = true;
}

static ssize_t read_stream(void *cls, uint64_t position, char *to, size_t max)
{
    (void)position;
    HttpRequest *request = cls;
    if (request->out.len == 0) {
        if (request->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        DriveResult result = drive_task(request);
        if (result == DRIVE_SUSPENDED)
            return 0;
        if (result != DRIVE_HUNG_UP && request->out.failed)
            fail_stream(request);
        if (result == DRIVE_HUNG_UP || request->out.failed)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (request->out.len == 0)
            return MHD_CONTENT_READER_END_OF_STREAM;
        atomic_store(&request->last_progress, clock_monotonic_seconds());
    }
    return (ssize_t)take_out(request, to, max);
}

/* ---- Requests ---- */

static void set_timeout(HttpRequest *request, unsigned seconds)
{
    MHD_set_connection_option(request->connection, MHD_CONNECTION_OPTION_TIMEOUT, seconds);
}

static enum MHD_Result queue_refusal(HttpRequest *request)
{
    http_reply_error(request, &request->error);
    return http_queue_reply(request);
}

static bool check_load(HttpRequest *request)
{
    Server *server = request->server;
    pthread_mutex_lock(&server->mutex);
    bool stopping = server->stopping;
    pthread_mutex_unlock(&server->mutex);
    if (stopping)
        return http_error_set(&request->error, FAULT_SHUTTING_DOWN, NULL,
                              "The server is shutting down.");
    /* Those that were there first go on, however many came behind them. */
    bool is_surplus = request->timed && request->timed->is_surplus;
    if (is_surplus && atomic_load(&server->connection_count) > SERVER_CONNECTIONS_MAX) {
        request->close_after = true;
        return http_error_set(&request->error, FAULT_OVERLOADED, NULL,
                              "%d connections are open already.", SERVER_CONNECTIONS_MAX);
    }
    return true;
}

/* The head is complete. */
static enum MHD_Result start_request(HttpRequest *request, const char *url, const char *method,
                                     const char *version)
{
    request->started = true;
    snprintf(request->method, sizeof(request->method), "%s", method);
    request->refused = !http_check_head(request, url, method, version) || !check_load(request);
    bool waits = request->has_body && !request->refused;
    if (!connections_enter(request->server, request->timed,
                           waits ? CONNECTION_BODY : CONNECTION_BUSY))
        return MHD_NO;
    if (!request->refused || !request->has_body)
        return MHD_YES;
    enum MHD_Result result = queue_refusal(request);
    if (result == MHD_YES)
        watcher_linger(request->server->watcher, socket_of(request->connection));
    return result;
}

/* Refuses in the middle of a body, where libmicrohttpd takes no response. */
static enum MHD_Result refuse_body(HttpRequest *request)
{
    int socket = socket_of(request->connection);
    buffer_reset(&request->body);
    http_send_refusal(request->server, socket, request, &request->error);
    request->raw_reply = true;
    watcher_linger(request->server->watcher, socket);
    return MHD_NO;
}

/* Bytes of the request as sent; 0 with a body whose framing is not known. */
static uint64_t request_bytes(const HttpRequest *request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    bool chunked = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
                                               "Transfer-Encoding") != NULL;
    return info && !chunked ? info->header_size + request->body.len : 0;
}

static enum MHD_Result store_body(HttpRequest *request, const char *data, size_t size)
{
    if (request->refused)
        return MHD_YES;
    if (!connections_enter(request->server, request->timed, CONNECTION_BODY))
        return MHD_NO;
    buffer_append(&request->body, data, size);
    if (!request->body.failed)
        return MHD_YES;
    if (request->body.over_limit)
        http_error_set(&request->error, FAULT_TOO_LARGE, NULL, "The body is larger than %d bytes.",
                       SERVER_BODY_BYTES_MAX);
    else
        http_error_set(&request->error, FAULT_INTERNAL, NULL, "Out of memory for the body.");
    return refuse_body(request);
}

/* The request is complete: its answer, or its task. */
static enum MHD_Result handle_request(HttpRequest *request)
{
    if (request->refused)
        return queue_refusal(request);
    if (request->is_options) {
        http_reply(request, MHD_HTTP_NO_CONTENT, NULL);
        return http_queue_reply(request);
    }
    request->route->handle(request);
    if (request->has_reply)
        return http_queue_reply(request);
    assert(request->task);
    /* The client may think for long; what it does not read is bounded by the job's buffer. */
    set_timeout(request, SERVER_STALLED_SECONDS);
    register_task(request);
    return MHD_YES;
}

static enum MHD_Result continue_task(HttpRequest *request)
{
    if (request->streams)
        return http_queue_stream(request, read_stream);
    switch (drive_task(request)) {
    case DRIVE_SUSPENDED:
    case DRIVE_MORE:
        return MHD_YES;
    case DRIVE_ENDED:
        return http_queue_reply(request);
    case DRIVE_HUNG_UP:
        break;
    }
    return MHD_NO;
}

enum MHD_Result http_handle(void *cls, struct MHD_Connection *connection, const char *url,
                            const char *method, const char *version, const char *upload_data,
                            size_t *upload_data_size, void **con_cls)
{
    (void)cls;
    (void)connection;
    HttpRequest *request = *con_cls;
    if (!request)
        return MHD_NO;
    if (!request->started)
        return start_request(request, url, method, version);
    if (*upload_data_size > 0) {
        size_t size = *upload_data_size;
        *upload_data_size = 0;
        return store_body(request, upload_data, size);
    }
    if (!request->task) {
        if (!connections_enter(request->server, request->timed, CONNECTION_BUSY))
            return MHD_NO;
        connections_account(request->server, request->timed, request_bytes(request));
        enum MHD_Result result = handle_request(request);
        if (result != MHD_YES || request->queued)
            return result;
    }
    return continue_task(request);
}
