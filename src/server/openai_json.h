/* openai_json: what the objects of both OpenAI generation routes have in common. */
#ifndef SERVER_OPENAI_JSON_H
#define SERVER_OPENAI_JSON_H

#include "reply.h"

/* How a route calls its replies. */
typedef struct OpenaiNames {
    const char *id_prefix;
    const char *whole, *chunk; /* `object` */
} OpenaiNames;

/* A whole reply: its object up to the first choice, and from the last choice on. */
void openai_begin_whole(const Reply *reply, const OpenaiNames *names, JsonWriter *writer,
                        Buffer *out);
void openai_end_whole(const Reply *reply, JsonWriter *writer);
/* An event: the same of a chunk. */
void openai_begin_chunk(const Reply *reply, const OpenaiNames *names, JsonWriter *writer,
                        Buffer *out);
void openai_end_chunk(const Reply *reply, JsonWriter *writer, Buffer *out);
/* The end of a stream, behind the chunk of usage if that is wanted. */
void openai_end_stream(const Reply *reply, const OpenaiNames *names, Buffer *out);
/* The member of a choice; finish: NULL while it runs. */
void openai_write_finish(const char *finish, JsonWriter *writer);
/* JSON has no infinity: -inf is written as -9999.0. */
void openai_write_logprob(float logprob, JsonWriter *writer);
/* The error event and the end of the stream. */
void openai_write_error_event(const HttpError *error, Buffer *out);
void openai_write_keep_alive(Buffer *out);

#endif
