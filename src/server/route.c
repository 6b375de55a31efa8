#include "route.h"

#include <stdio.h>
#include <string.h>

static const Route ROUTES[] = {
    {"/v1/chat/completions", true, chat_handle},
    {"/chat/completions", true, chat_handle},
    {"/v1/completions", true, completion_handle},
    {"/completions", true, completion_handle},
    {"/v1/models", false, models_handle_list},
    {"/models", false, models_handle_list},
    {"/v1/models/", false, models_handle_get},
    {"/models/", false, models_handle_get},
    {"/health", false, status_handle_health},
    {"/v1/health", false, status_handle_health},
    {"/", false, status_handle_root},
    {"/version", false, status_handle_version},
    {"/api/version", false, status_handle_version},
    {"/props", false, status_handle_props},
    {"/slots", false, status_handle_slots},
    {"/metrics", false, metrics_handle},
    {"/tokenize", true, text_handle_tokenize},
    {"/detokenize", true, text_handle_detokenize},
    {"/apply-template", true, text_handle_apply_template},
};
_Static_assert(ARRAY_COUNT(ROUTES) < METRICS_ROUTES_MAX, "every route has counters");

size_t route_count(void)
{
    return ARRAY_COUNT(ROUTES);
}

size_t route_index(const Route *route)
{
    return route ? (size_t)(route - ROUTES) : ARRAY_COUNT(ROUTES);
}

const Route *route_at(size_t index)
{
    return index < ARRAY_COUNT(ROUTES) ? &ROUTES[index] : NULL;
}

const char *route_label(const Route *route, char label[ROUTE_LABEL_MAX])
{
    if (!route) {
        snprintf(label, ROUTE_LABEL_MAX, "other");
        return label;
    }
    size_t length = strlen(route->path);
    bool is_open = length > 1 && route->path[length - 1] == '/';
    snprintf(label, ROUTE_LABEL_MAX, "%s%s", route->path, is_open ? "{id}" : "");
    return label;
}

/* Once; a '%' that begins no escape stays as it is. */
static bool percent_decode(Arena *arena, Slice text, Slice *out)
{
    char *to = arena_allocate(arena, text.len + 1);
    if (!to)
        return false;
    size_t len = 0;
    for (size_t i = 0; i < text.len; i++) {
        int high = -1, low = -1;
        if (text.ptr[i] == '%' && i + 2 < text.len) {
            high = hex_digit_value(text.ptr[i + 1]);
            low = hex_digit_value(text.ptr[i + 2]);
        }
        if (high >= 0 && low >= 0) {
            to[len++] = (char)(high * 16 + low);
            i += 2;
        } else {
            to[len++] = text.ptr[i];
        }
    }
    to[len] = '\0';
    *out = (Slice){to, len};
    return true;
}

static bool route_matches(const Route *route, Slice path)
{
    Slice pattern = slice_of(route->path);
    if (pattern.len == 1 || pattern.ptr[pattern.len - 1] != '/')
        return slice_equal(pattern, path);
    return path.len > pattern.len && slice_starts_with(path, pattern);
}

bool route_find(HttpRequest *request)
{
    for (size_t i = 0; i < ARRAY_COUNT(ROUTES); i++) {
        const Route *route = &ROUTES[i];
        if (!route_matches(route, request->path))
            continue;
        if (route->is_post ? !request->is_post : !request->is_get && !request->is_head) {
            http_add_header(request, "Allow",
                            route->is_post ? SLICE("POST, OPTIONS") : SLICE("GET, HEAD, OPTIONS"));
            return http_error_set(&request->error, FAULT_METHOD, NULL,
                                  "%.*s does not answer this method; it answers %s.",
                                  QUOTE_ARG(request->path),
                                  route->is_post ? "POST" : "GET and HEAD");
        }
        size_t fixed = strlen(route->path);
        Slice id = {request->path.ptr + fixed, request->path.len - fixed};
        request->route = route;
        if (id.len > 0 && !percent_decode(&request->arena, id, &request->path_id))
            return http_error_set(&request->error, FAULT_INTERNAL, NULL, "Out of memory.");
        return true;
    }
    return http_error_set(&request->error, FAULT_UNKNOWN_URL, NULL, "There is nothing at %.*s.",
                          QUOTE_ARG(request->path));
}
