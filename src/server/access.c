#include "access.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

static bool name_is(Slice name, const char *expected)
{
    return name.len == strlen(expected) && strncasecmp(name.ptr, expected, name.len) == 0;
}

static bool is_listed(Slice name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (name_is(name, names[i]))
            return true;
    }
    return false;
}

/* "localhost", 127.0.0.0/8 or ::1 (in brackets or not). */
static bool is_loopback_name(Slice name)
{
    char text[64];
    if (name_is(name, "localhost"))
        return true;
    if (name.len >= 2 && name.ptr[0] == '[' && name.ptr[name.len - 1] == ']') {
        name.ptr++;
        name.len -= 2;
    }
    if (name.len == 0 || name.len >= sizeof(text) || memchr(name.ptr, 0, name.len))
        return false;
    memcpy(text, name.ptr, name.len);
    text[name.len] = '\0';
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, text, &v4) == 1)
        return (ntohl(v4.s_addr) >> 24) == 127;
    return inet_pton(AF_INET6, text, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* Cuts ":port" off an authority; false when what follows the name is no port. */
static bool split_port(Slice authority, Slice *name)
{
    size_t end = 0;
    if (authority.len > 0 && authority.ptr[0] == '[') {
        end = slice_find(authority, SLICE("]"), 0);
        if (end == SIZE_MAX)
            return false;
        end++;
    } else {
        while (end < authority.len && authority.ptr[end] != ':')
            end++;
    }
    *name = (Slice){authority.ptr, end};
    if (end == authority.len)
        return true;
    if (authority.ptr[end] != ':')
        return false;
    for (size_t i = end + 1; i < authority.len; i++) {
        if (authority.ptr[i] < '0' || authority.ptr[i] > '9')
            return false;
    }
    return true;
}

/* ---- Origin ---- */

static bool is_allowed_origin(const Server *server, Slice origin)
{
    static const char *const APP_SCHEMES[] = {"app:", "tauri:", "vscode-webview:"};
    for (size_t i = 0; i < ARRAY_COUNT(APP_SCHEMES); i++) {
        if (slice_starts_with(origin, slice_of(APP_SCHEMES[i])))
            return true;
    }
    const ServerOptions *options = &server->options;
    if (is_listed(SLICE("*"), options->cors_origins, options->n_cors_origins) ||
        is_listed(origin, options->cors_origins, options->n_cors_origins))
        return true;
    Slice rest = origin, name;
    if (slice_starts_with(origin, SLICE("http://")))
        rest = (Slice){origin.ptr + 7, origin.len - 7};
    else if (slice_starts_with(origin, SLICE("https://")))
        rest = (Slice){origin.ptr + 8, origin.len - 8};
    else
        return false;
    return split_port(rest, &name) && is_loopback_name(name);
}

bool access_check_origin(HttpRequest *request, Slice origin, size_t origins)
{
    if (origins == 0)
        return true;
    if (origins > 1 || !is_allowed_origin(request->server, origin))
        return http_error_set(&request->error, FAULT_ORIGIN, NULL,
                              "Pages from '%.*s' may not use this server.", QUOTE_ARG(origin));
    request->origin = arena_copy_string(&request->arena, origin);
    return true;
}

/* ---- Host ---- */

static bool is_allowed_host(const Server *server, Slice authority)
{
    Slice name;
    return split_port(authority, &name) &&
           (is_loopback_name(name) ||
            is_listed(name, server->options.allowed_hosts, server->options.n_allowed_hosts));
}

bool access_check_host(HttpRequest *request, Slice host, Slice authority)
{
    const Slice names[] = {host, authority};
    if (!request->server->loopback)
        return true;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (names[i].ptr && !is_allowed_host(request->server, names[i]))
            return http_error_set(&request->error, FAULT_HOST, NULL,
                                  "This server does not answer to the host '%.*s'.",
                                  QUOTE_ARG(names[i]));
    }
    return true;
}

/* ---- Keys ---- */

/* The time depends on the length of what was given, not on where it differs. */
static bool is_same_key(Slice given, const char *key)
{
    size_t length = strlen(key);
    size_t difference = given.len ^ length;
    for (size_t i = 0; i < given.len; i++)
        difference |= (size_t)((unsigned char)given.ptr[i] ^ (unsigned char)key[i % (length + 1)]);
    return difference == 0;
}

static bool is_valid_key(const Server *server, Slice given)
{
    const ServerOptions *options = &server->options;
    bool valid = false;
    if (given.len == 0 || given.len > SERVER_API_KEY_BYTES_MAX)
        return false;
    /* All of them, so that the time does not tell which one it was. */
    for (size_t i = 0; i < options->n_api_keys; i++)
        valid |= is_same_key(given, options->api_keys[i]);
    return valid;
}

static Slice bearer_token(Slice authorization)
{
    static const char SCHEME[] = "bearer ";
    size_t length = sizeof(SCHEME) - 1;
    if (authorization.len < length || strncasecmp(authorization.ptr, SCHEME, length) != 0)
        return SLICE_EMPTY;
    while (length < authorization.len && authorization.ptr[length] == ' ')
        length++;
    return (Slice){authorization.ptr + length, authorization.len - length};
}

bool access_check_key(HttpRequest *request, Slice authorization, Slice api_key)
{
    static const char *const OPEN_PATHS[] = {"/", "/health", "/v1/health"};
    if (request->server->options.n_api_keys == 0)
        return true;
    for (size_t i = 0; i < ARRAY_COUNT(OPEN_PATHS); i++) {
        if (slice_equal(request->path, slice_of(OPEN_PATHS[i])))
            return true;
    }
    bool valid = is_valid_key(request->server, bearer_token(authorization));
    valid |= is_valid_key(request->server, api_key);
    if (valid)
        return true;
    http_add_header(request, "WWW-Authenticate", SLICE("Bearer"));
    return http_error_set(&request->error, FAULT_API_KEY, NULL,
                          authorization.len > 0 || api_key.len > 0
                              ? "The API key is not valid here."
                              : "An API key is needed: Authorization: Bearer KEY.");
}
