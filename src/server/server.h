/* server: the OpenAI-compatible HTTP interface over a scheduler.
 *
 * Parses and checks requests, renders the chat, tokenises, submits, and drains each job's bounded
 * buffer to its socket as JSON or server-sent events. All sockets belong to libmicrohttpd's thread;
 * a connection that waits for tokens is suspended and resumed by the job's notify callback. It
 * never touches an engine. Threads: start and stop on the main thread. */
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
    SERVER_STOP_STRINGS_MAX = 4,   /* of one chat request */
    SERVER_BODY_SECONDS = 30,      /* silence within a body */
    SERVER_IDLE_SECONDS = 75,      /* a connection without a request */
    SERVER_STALLED_SECONDS = 300,  /* a client that takes no byte of its response */
    SERVER_KEEP_ALIVE_SECONDS = 5, /* silence of a stream before a comment is sent */
};

typedef struct ServerOptions {
    const char *host; /* numeric address to bind, "127.0.0.1" by default */
    uint16_t port;
    Slice model_id;    /* served id: the model's model_type */
    float temperature; /* default of requests that bring none */
    size_t max_context;
} ServerOptions;

typedef struct Server Server;

/* Binds and serves at once. Everything given outlives the server. A port in use is one clear
 * ERROR_IO. */
bool server_start(const ServerOptions *options, Scheduler *scheduler, const Tokenizer *tokenizer,
                  const ChatTemplate *chat, Server **out, Error *err) WARN_UNUSED;
/* No new connections; running requests get grace_seconds; then everything is closed and freed. */
void server_stop(Server *server, double grace_seconds);
uint16_t server_port(const Server *server); /* the bound port, for port 0 */

#endif
