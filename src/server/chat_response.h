/* chat_response: the JSON of chat completions, whole and in chunks. Appends to buffers; knows no
 * sockets. */
#ifndef SERVER_CHAT_RESPONSE_H
#define SERVER_CHAT_RESPONSE_H

#include "json.h"
#include "scheduler.h"

/* What every object of one reply repeats. */
typedef struct ChatReply {
    int64_t id;      /* of "chatcmpl-..." */
    int64_t created; /* unix seconds */
    Slice model;
    const char *fingerprint;
    bool include_usage;
} ChatReply;

void chat_response_write(const ChatReply *reply, Slice text, const JobStatus *status, Buffer *out);

/* Server-sent events, each complete with its empty line. */
void chat_stream_begin(const ChatReply *reply, Buffer *out);
void chat_stream_text(const ChatReply *reply, Slice text, Buffer *out);
/* The finish reason, the usage if it is wanted, and the end. */
void chat_stream_end(const ChatReply *reply, const JobStatus *status, Buffer *out);

#endif
