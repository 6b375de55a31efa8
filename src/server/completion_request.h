/* completion_request: the body of POST /v1/completions, checked field by field. */
#ifndef SERVER_COMPLETION_REQUEST_H
#define SERVER_COMPLETION_REQUEST_H

#include "body.h"
#include "fields.h"

enum { COMPLETION_MAX_TOKENS_DEFAULT = 16 };

/* One prompt: text, or an array of token ids. */
typedef struct CompletionPrompt {
    Slice text;
    const JsonValue *ids; /* NULL: it is text */
} CompletionPrompt;

typedef struct CompletionCall {
    CompletionPrompt prompts[SERVER_PROMPTS_MAX];
    size_t n_prompts;
    Slice model;
    GenerationOptions generation;
    ConstraintFields constraint;
    size_t n; /* choices a prompt */
    bool stream, include_usage, echo;
} CompletionCall;

extern const BodyNames COMPLETION_REQUEST_NAMES;

/* body: an object. What out points at lives in arena or in body. Token ids are not checked yet. */
bool completion_request_read(const JsonValue *body, float temperature, size_t vocab_size,
                             Arena *arena, CompletionCall *out, HttpError *error) WARN_UNUSED;

#endif
