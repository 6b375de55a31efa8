#include "body.h"

#include <string.h>

bool body_parse(Slice text, Arena *arena, const JsonValue **out, HttpError *error)
{
    Error err;
    if (!json_parse(text, arena, out, &err)) {
        if (err.code == ERROR_MEMORY)
            return http_error_set(error, FAULT_TOO_LARGE, NULL,
                                  "The body holds more values than the server has memory for.");
        return http_error_from(error, &err, FAULT_INVALID_JSON, FAULT_INVALID_JSON, NULL);
    }
    if ((*out)->kind != JSON_OBJECT)
        return http_error_set(error, FAULT_TYPE, NULL,
                              "The body must be a JSON object, not of type %s.",
                              json_kind_name((*out)->kind));
    return true;
}

static bool is_known(Slice key, const BodyNames *known)
{
    for (size_t i = 0; i < known->count; i++) {
        Slice name = slice_of(known->names[i]);
        if (slice_equal(key, name))
            return true;
        if (slice_ends_with(name, SLICE("*")) &&
            slice_starts_with(key, (Slice){name.ptr, name.len - 1}))
            return true;
    }
    return false;
}

static bool is_listed(Slice key, const BodyIgnored *list)
{
    for (size_t i = 0; i < list->count; i++) {
        if (slice_equal(key, list->names[i]))
            return true;
    }
    return false;
}

void body_collect_ignored(const JsonValue *body, const BodyNames *known, BodyIgnored *out)
{
    out->count = 0;
    for (size_t i = 0; i < body->as.object.count && out->count < BODY_IGNORED_MAX; i++) {
        Slice key = body->as.object.members[i].key;
        if (!is_known(key, known) && !is_listed(key, out))
            out->names[out->count++] = key;
    }
}

void body_tell_ignored(HttpRequest *request, const Slice *names, size_t count)
{
    for (size_t i = 0; i < count && request->n_ignored < BODY_IGNORED_MAX; i++) {
        Slice cut = {names[i].ptr, names[i].len};
        if (cut.len > HTTP_QUOTE_BYTES_MAX)
            cut.len = HTTP_QUOTE_BYTES_MAX;
        http_add_header(request, "x-ignored-fields", cut);
        request->n_ignored++;
    }
}

static bool refuse_unknown(Slice name, Arena *arena, HttpError *error)
{
    Slice cut = {name.ptr, name.len < HTTP_QUOTE_BYTES_MAX ? name.len : HTTP_QUOTE_BYTES_MAX};
    const char *param = arena_copy_string(arena, cut);
    return http_error_set(error, FAULT_UNKNOWN_PARAMETER, param, "The field '%.*s' is not known.",
                          QUOTE_ARG(name));
}

bool body_read(HttpRequest *request, const BodyNames *known, const JsonValue **out,
               HttpError *error)
{
    BodyIgnored ignored;
    if (!body_parse(buffer_view(&request->body), &request->arena, out, error))
        return false;
    body_collect_ignored(*out, known, &ignored);
    if (ignored.count > 0 && request->server->options.strict_fields)
        return refuse_unknown(ignored.names[0], &request->arena, error);
    body_tell_ignored(request, ignored.names, ignored.count);
    return true;
}
