#include "route.h"

#include <string.h>

static const Route ROUTES[] = {
    {"/v1/chat/completions", true, chat_handle}, {"/chat/completions", true, chat_handle},
    {"/v1/models", false, models_handle_list},   {"/models", false, models_handle_list},
    {"/v1/models/", false, models_handle_get},   {"/models/", false, models_handle_get},
    {"/health", false, models_handle_health},    {"/v1/health", false, models_handle_health},
};

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
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
            high = hex_digit(text.ptr[i + 1]);
            low = hex_digit(text.ptr[i + 2]);
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
    if (pattern.ptr[pattern.len - 1] != '/')
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
        if (id.len > 0 && !percent_decode(&request->arena, id, &request->path_id))
            return http_error_set(&request->error, FAULT_INTERNAL, NULL, "Out of memory.");
        request->route = route;
        return true;
    }
    return http_error_set(&request->error, FAULT_UNKNOWN_URL, NULL, "There is nothing at %.*s.",
                          QUOTE_ARG(request->path));
}
