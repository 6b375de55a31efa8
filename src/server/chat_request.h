/* chat_request: the body of POST /v1/chat/completions, checked field by field.
 * Every field is honoured, refused, or known to have no effect here. */
#ifndef SERVER_CHAT_REQUEST_H
#define SERVER_CHAT_REQUEST_H

#include "body.h"
#include "fields.h"

typedef struct ChatCall {
    const JsonValue *messages; /* normalised: roles and contents are strings */
    const JsonValue *kwargs;   /* further variables of the template, or NULL */
    Slice model;
    GenerationOptions generation;
    ConstraintFields constraint;
    ToolFields tools;
    size_t n; /* choices */
    bool stream, include_usage;
} ChatCall;

typedef struct ChatDefaults {
    float temperature;
    size_t vocab_size; /* SIZE_MAX while no model is loaded: any token id may be one */
} ChatDefaults;

extern const BodyNames CHAT_REQUEST_NAMES;

/* body: an object. What out points at lives in arena or in body. */
bool chat_request_read(const JsonValue *body, const ChatDefaults *defaults, Arena *arena,
                       ChatCall *out, HttpError *error) WARN_UNUSED;

/* chat_template_kwargs with enable_thinking and reasoning_effort; *out is NULL when there are none.
 */
bool chat_kwargs_read(const JsonValue *body, Arena *arena, const JsonValue **out,
                      HttpError *error) WARN_UNUSED;

/* chat_messages: checks messages and makes the array that templates get: `developer` becomes
 * `system`, the parts of a content one string, absent members are left out. */
bool chat_messages_read(const JsonValue *value, Arena *arena, const JsonValue **out,
                        HttpError *error) WARN_UNUSED;

#endif
