/* body: a request's JSON body, parsed and held against the names that its route knows. A field that
 * no one knows does not fail the request (unless the server is strict), but is told to the client
 * in the header x-ignored-fields. */
#ifndef SERVER_BODY_H
#define SERVER_BODY_H

#include "http.h"

enum { BODY_IGNORED_MAX = 20 /* names told */ };

typedef struct BodyNames {
    const char *const *names; /* with an effect or without; "prefix_*" stands for many */
    size_t count;
} BodyNames;

typedef struct BodyIgnored {
    Slice names[BODY_IGNORED_MAX];
    size_t count;
} BodyIgnored;

/* Strict JSON whose top level is an object; the values live in arena. */
bool body_parse(Slice text, Arena *arena, const JsonValue **out, HttpError *error) WARN_UNUSED;
void body_collect_ignored(const JsonValue *body, const BodyNames *known, BodyIgnored *out);
/* Names the header, which tells at most BODY_IGNORED_MAX of one request, wherever they come from.
 */
void body_tell_ignored(HttpRequest *request, const Slice *names, size_t count);
/* All of it for a request, with the header or, on a strict server, the refusal. */
bool body_read(HttpRequest *request, const BodyNames *known, const JsonValue **out,
               HttpError *error) WARN_UNUSED;

#endif
