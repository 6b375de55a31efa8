/* chat_request: the body of POST /v1/chat/completions, checked field by field.
 * Every field is honoured, refused, or known to have no effect here; unknown ones are collected by
 * name. */
#ifndef SERVER_CHAT_REQUEST_H
#define SERVER_CHAT_REQUEST_H

#include "fields.h"

enum { CHAT_IGNORED_FIELDS_MAX = 20 };

typedef struct ChatCall {
    const JsonValue *messages; /* normalised: roles and contents are strings */
    const JsonValue *kwargs;   /* further variables of the template, or NULL */
    GenerationOptions generation;
    bool stream, include_usage;
    Slice ignored[CHAT_IGNORED_FIELDS_MAX];
    size_t n_ignored;
} ChatCall;

typedef struct ChatDefaults {
    float temperature;
    size_t vocab_size;
} ChatDefaults;

/* body: any JSON. What out points at lives in arena or in body. */
bool chat_request_read(const JsonValue *body, const ChatDefaults *defaults, Arena *arena,
                       ChatCall *out, HttpError *error) WARN_UNUSED;

/* chat_messages: checks messages and makes the array that templates get: `developer` becomes
 * `system`, the parts of a content one string, absent members are left out. */
bool chat_messages_read(const JsonValue *value, Arena *arena, const JsonValue **out,
                        HttpError *error) WARN_UNUSED;

#endif
