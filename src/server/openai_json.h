/* openai_json: what the objects of both OpenAI generation routes have in common. */
#ifndef SERVER_OPENAI_JSON_H
#define SERVER_OPENAI_JSON_H

#include "reply.h"

/* id (prefix and number), object, created, model, system_fingerprint of an open object. */
void openai_write_head(const Reply *reply, const char *prefix, const char *object,
                       JsonWriter *writer);
/* `usage`: prompts counted once, completions over all choices. */
void openai_write_usage(const Reply *reply, JsonWriter *writer);
void openai_write_timings(const Reply *reply, JsonWriter *writer);
/* JSON has no infinity: -inf is written as -9999.0. */
void openai_write_logprob(float logprob, JsonWriter *writer);
/* "data: {" and "}\n\n" of one event whose object is open in between. */
void openai_begin_event(JsonWriter *writer, Buffer *out);
void openai_end_event(JsonWriter *writer, Buffer *out);
/* The error event and the end of the stream. */
void openai_write_error_event(const HttpError *error, Buffer *out);
void openai_write_keep_alive(Buffer *out);

#endif
