/* http: the plumbing between libmicrohttpd and the dialects. Private to the server.
 *
 * One HttpRequest lives from the end of a request's head to the end of its response. A route's
 * handler sees it once its body is complete and either answers at once (http_reply...) or starts a
 * task: something that produces its answer while a generation runs, driven by advance(). Dialects
 * know requests, replies and tasks; they see no socket, no thread and no libmicrohttpd.
 *
 * Waiting. A task that has nothing to say suspends its connection. Whoever has news (the
 * scheduler's notify callback, the watcher, the stop of the server) sets `news` and resumes it.
 * Both happen under the server's mutex, and advance() runs only after `news` was cleared, so no
 * news is lost and no connection is resumed twice. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include "http_error.h"
#include "json.h"
#include "metrics.h"
#include "server.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
    HTTP_REPLY_HEADERS_MAX = 8,
    HTTP_THREADS =
        4, /* rendering and tokenising a long prompt must not hold up other connections */
    HTTP_STREAM_BYTES_MAX = 16 << 20, /* events written and not yet taken by libmicrohttpd */
};

typedef struct Route Route;
typedef struct HttpConnection HttpConnection;
typedef struct HttpRequest HttpRequest;
typedef struct Watcher Watcher;

typedef struct HttpHeader {
    const char *name;
    const char *value; /* in the request's arena, or constant */
} HttpHeader;

/* What a request cost and brought, for the log and the histograms. A task fills it as it ends. */
typedef struct HttpOutcome {
    bool is_generation, has_ended;
    size_t prompt_tokens, cached_tokens, completion_tokens, choices;
    double queue_seconds, first_token_seconds;
    const char *finish; /* constant text */
} HttpOutcome;

typedef enum HttpProgress {
    HTTP_WAIT, /* nothing new until the next notification */
    HTTP_MORE, /* bytes were appended to request->out */
    HTTP_END   /* the stream, or request->reply, is complete */
} HttpProgress;

/* What a dialect does while its generation runs. All are called on the connection's thread, never
 * at once. */
typedef struct HttpTaskOps {
    /* A streamed task appends events to request->out; another one collects and ends with
     * http_reply. */
    HttpProgress (*advance)(void *task, HttpRequest *request);
    /* Ends a task from outside: a stream writes its error event, another task an error reply. */
    void (*fail)(void *task, HttpRequest *request, const HttpError *error);
    /* Streams: a sign of life after a silence. */
    void (*keep_alive)(void *task, HttpRequest *request);
    void (*free)(void *task); /* cancels what runs; may wait for a notify call */
} HttpTaskOps;

struct HttpRequest {
    Server *server;
    struct MHD_Connection *connection;
    HttpConnection *timed; /* may be NULL */
    double began_at;
    bool started;                  /* the head is complete and was checked */
    char method[16];               /* cut */
    size_t target_size;            /* of the request line, query included */
    char id[24];                   /* "req_" + 16 hex digits */
    Slice path;                    /* in the arena; as sent, without scheme, host and query */
    Slice path_id;                 /* what a route's pattern left open, percent-decoded */
    const char *origin;            /* allowed and to be told so in the response, or NULL */
    const char *preflight_headers; /* Access-Control-Request-Headers, or NULL */
    bool is_get, is_head, is_post, is_options; /* method; none: another one */
    bool has_body;
    const Route *route;

    Arena arena; /* everything of this request, JSON too */
    Buffer body;
    bool refused;   /* error is the answer already: the body is not stored */
    bool raw_reply; /* error was sent past libmicrohttpd */
    HttpError error;

    /* The answer, once has_reply. */
    bool has_reply, close_after, queued;
    unsigned status;
    const char *content_type;
    Buffer reply;
    HttpHeader headers[HTTP_REPLY_HEADERS_MAX];
    size_t n_headers;
    size_t n_ignored; /* names that x-ignored-fields tells */

    /* The task, when the answer takes time. */
    const HttpTaskOps *ops;
    void *task;
    HttpOutcome outcome;
    bool streams;
    Buffer out;    /* events not yet given to libmicrohttpd */
    size_t out_at; /* how much of out was given */
    bool ended;    /* the task is complete */

    /* Any thread sets a reason to go on (the first three, or the server's aborting) and then wakes;
     * the connection's thread sets suspended and then looks for reasons once more. So one of the
     * two sees the other, and who clears suspended resumes the connection. No lock: the inference
     * thread, which wakes all streams after each step, would wait for the threads it has woken. */
    atomic_bool news, hung_up, keep_alive_due, suspended;
    _Atomic double last_progress; /* when the stream last had bytes */

    /* Guarded by the server's mutex. */
    bool registered;
    HttpRequest *next, *previous;
};

typedef struct ConstraintStore {
    pthread_mutex_t lock; /* guards both, which are made once */
    GrammarVocabulary *vocabulary;
    GrammarCache *cache;
} ConstraintStore;

struct Server {
    struct MHD_Daemon *daemon;
    int listen_socket;
    uint16_t port;
    bool loopback; /* bound to a loopback address: Host is checked */
    ServerOptions options;
    ServerModel model; /* valid once is_ready */
    atomic_bool is_ready;
    int64_t started_at; /* unix seconds */
    double started_clock;
    char fingerprint[16];
    uint64_t request_key; /* makes request ids unguessable */
    _Atomic uint64_t request_count;
    _Atomic int64_t last_reply_id;
    _Atomic size_t connection_count;
    Metrics metrics;
    Watcher *watcher;
    ConstraintStore constraints;

    /* mutex guards the lists of running tasks and of connections, the fields that HttpRequest
     * marks, and stopping. While it is held nothing waits: libmicrohttpd's resume, and sends to
     * sockets that do not block. */
    pthread_mutex_t mutex;
    pthread_cond_t idle; /* the list became empty */
    HttpRequest *tasks;
    size_t task_count;
    HttpConnection *connections;
    bool stopping;        /* no new tasks */
    atomic_bool aborting; /* running tasks end now */
};

/* ---- For dialects ---- */

/* Answers with what request->reply holds. */
void http_reply(HttpRequest *request, unsigned status, const char *content_type);
void http_reply_error(HttpRequest *request, const HttpError *error);
/* value is copied; characters that a header cannot hold become '?'. It goes behind the value that
 * the header has already, after a comma. */
void http_add_header(HttpRequest *request, const char *name, Slice value);
/* Makes the answer a task of the request, which owns it now. */
void http_start_task(HttpRequest *request, const HttpTaskOps *ops, void *task, bool streams);
/* Wakes the request's connection: the notify callback of its job. Any thread, while the request has
 * its job or is in the list of tasks. */
void http_notify(void *request);
/* What is served, or NULL with the 503 while it is still loading. */
const ServerModel *http_need_model(HttpRequest *request, HttpError *error);
/* A number for "chatcmpl-...": milliseconds, bumped so that each is unique in the process. */
int64_t http_next_reply_id(Server *server);

/* ---- Between the parts of the plumbing ---- */

/* http_check: head of the request. False with the refusal in request->error. */
bool http_check_head(HttpRequest *request, const char *url, const char *method,
                     const char *version) WARN_UNUSED;

/* http_reply: writes a refusal straight to a socket that is to be closed, past libmicrohttpd; what
 * the socket does not take at once is lost. request: NULL when there is none yet. */
void http_send_refusal(Server *server, int socket, const HttpRequest *request,
                       const HttpError *error);
void http_make_id(Server *server, char id[24]);
/* http_reply: queues request->reply, or the stream, on the connection. */
enum MHD_Result http_queue_reply(HttpRequest *request);
enum MHD_Result http_queue_stream(HttpRequest *request, MHD_ContentReaderCallback reader);

/* http_connection: libmicrohttpd's callbacks; cls is the Server. A request begins with its target.
 */
void *http_request_begin(void *cls, const char *target, struct MHD_Connection *connection);
enum MHD_Result http_handle(void *cls, struct MHD_Connection *connection, const char *url,
                            const char *method, const char *version, const char *upload_data,
                            size_t *upload_data_size, void **con_cls);
void http_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                    enum MHD_RequestTerminationCode code);
void http_connection_changed(void *cls, struct MHD_Connection *connection, void **socket_context,
                             enum MHD_ConnectionNotificationCode code);

#endif
