/* server: the HTTP interface over a scheduler, in the dialects of the wire contract.
 *
 * Parses and checks requests, renders the chat, tokenises, submits, and drains each job's bounded
 * buffer to its socket as JSON or server-sent events. All sockets belong to libmicrohttpd's
 * threads; a connection that waits for tokens is suspended and resumed by the job's notify
 * callback. It never touches an engine. It can listen before there is a model: until
 * server_set_model everything that needs one is answered with 503. Threads: start, set_model and
 * stop on the main thread. */
#ifndef SERVER_H
#define SERVER_H

#include "base.h"
#include "chat.h"
#include "scheduler.h"
#include "tokenizer.h"

enum {
    SERVER_BODY_BYTES_MAX = 32 << 20,
    SERVER_REQUEST_LINE_MAX = 16 << 10,
    SERVER_HEADER_BYTES_MAX = 64 << 10,
    SERVER_HEADER_FIELDS_MAX = 128,
    SERVER_JSON_BYTES_MAX = 256 << 20, /* memory of one request's JSON values */
    SERVER_CONNECTIONS_MAX = 512,
    SERVER_REPLY_BYTES_MAX = 64 << 20, /* of one response that is not streamed */
    SERVER_MESSAGES_MAX = 1 << 16,
    SERVER_STOP_STRINGS_MAX = 4, /* of one chat request */
    SERVER_CHOICES_MAX = 16,     /* `n` */
    SERVER_PROMPTS_MAX = 64,     /* of one completions request */
    SERVER_TOP_LOGPROBS_MAX = 20,
    SERVER_API_KEY_BYTES_MAX = 1024,
    SERVER_HEAD_SECONDS = 10,      /* from a request's first byte to the end of its head */
    SERVER_BODY_SECONDS = 30,      /* silence within a body */
    SERVER_IDLE_SECONDS = 75,      /* a connection without a request */
    SERVER_STALLED_SECONDS = 300,  /* a client that takes no byte of its response */
    SERVER_KEEP_ALIVE_SECONDS = 5, /* silence of a stream before a comment is sent */
    SERVER_STUCK_SECONDS =
        120, /* one step of the inference thread beyond which it is not healthy */
};

/* Everything given outlives the server. */
typedef struct ServerOptions {
    const char *host; /* numeric address to bind, "127.0.0.1" by default */
    uint16_t port;
    Slice model_id;     /* served id */
    Slice model_name;   /* base name of the model's directory, which selects the model too */
    float temperature;  /* default of requests that bring none */
    bool strict_model;  /* an unknown model name is refused, not served */
    bool strict_fields; /* so is an unknown field */
    const char *const *api_keys; /* none: no request needs a key */
    size_t n_api_keys;
    const char *const *cors_origins; /* allowed beside the local ones; "*": any */
    size_t n_cors_origins;
    const char *const *allowed_hosts; /* names that Host may have beside the local ones */
    size_t n_allowed_hosts;
    unsigned head_seconds, body_seconds; /* 0: SERVER_HEAD_SECONDS, SERVER_BODY_SECONDS */
    int log_file;                        /* descriptor that gets one line a request; -1: none */
} ServerOptions;

/* What is served; all of it outlives the server. */
typedef struct ServerModel {
    Scheduler *scheduler;
    const Tokenizer *tokenizer;
    const ChatTemplate *chat;
    size_t max_context;
    size_t vocab_size; /* of the model: token ids of requests are below it */
} ServerModel;

typedef struct Server Server;

/* Binds and listens. A port in use is one clear ERROR_IO. */
bool server_start(const ServerOptions *options, Server **out, Error *err) WARN_UNUSED;
/* From now on requests are served. Once. */
void server_set_model(Server *server, const ServerModel *model);
/* No new connections; running requests get grace_seconds; then everything is closed and freed. */
void server_stop(Server *server, double grace_seconds);
uint16_t server_port(const Server *server); /* the bound port, for port 0 */

#endif
