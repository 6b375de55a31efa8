/* The head of a request, checked in the order of the wire contract: Origin and Host (a page on the
 * web must not drive a server on this machine), size of the head, HTTP/1.1's Host, then, for all
 * but OPTIONS, route, method, framing and declared size. libmicrohttpd has already refused what is
 * not HTTP. */
#include "http.h"
#include "route.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct HeadFacts {
    size_t fields;
    size_t hosts, origins, lengths, codings;
    Slice host, origin, length, coding, encoding, preflight_headers;
    bool lengths_differ;
} HeadFacts;

static bool name_is(Slice name, const char *expected)
{
    return name.len == strlen(expected) && strncasecmp(name.ptr, expected, name.len) == 0;
}

static enum MHD_Result collect_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                      size_t key_size, const char *value, size_t value_size)
{
    (void)kind;
    HeadFacts *facts = cls;
    Slice name = {key, key_size}, text = {value ? value : "", value ? value_size : 0};
    facts->fields++;
    if (name_is(name, "host")) {
        facts->hosts++;
        facts->host = text;
    } else if (name_is(name, "origin")) {
        facts->origins++;
        facts->origin = text;
    } else if (name_is(name, "content-length")) {
        if (facts->lengths++ > 0 && !slice_equal(facts->length, text))
            facts->lengths_differ = true;
        facts->length = text;
    } else if (name_is(name, "transfer-encoding")) {
        facts->codings++;
        facts->coding = text;
    } else if (name_is(name, "content-encoding")) {
        facts->encoding = text;
    } else if (name_is(name, "access-control-request-headers")) {
        facts->preflight_headers = text;
    }
    return MHD_YES;
}

/* ---- Origin and Host ---- */

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

static bool is_allowed_origin(Slice origin)
{
    static const char *const APP_SCHEMES[] = {"app:", "tauri:", "vscode-webview:"};
    for (size_t i = 0; i < ARRAY_COUNT(APP_SCHEMES); i++) {
        if (slice_starts_with(origin, slice_of(APP_SCHEMES[i])))
            return true;
    }
    Slice rest = origin, name;
    if (slice_starts_with(origin, SLICE("http://")))
        rest = (Slice){origin.ptr + 7, origin.len - 7};
    else if (slice_starts_with(origin, SLICE("https://")))
        rest = (Slice){origin.ptr + 8, origin.len - 8};
    else
        return false;
    return split_port(rest, &name) && is_loopback_name(name);
}

static bool check_origin(HttpRequest *request, const HeadFacts *facts)
{
    if (facts->origins == 0)
        return true;
    if (facts->origins > 1 || !is_allowed_origin(facts->origin))
        return http_error_set(&request->error, FAULT_ORIGIN, NULL,
                              "Pages from %.*s may not use this server.", QUOTE_ARG(facts->origin));
    request->origin = arena_copy_string(&request->arena, facts->origin);
    return true;
}

static bool check_host(HttpRequest *request, const HeadFacts *facts, Slice authority)
{
    Slice name;
    if (!request->server->loopback)
        return true;
    /* Both names count: a page may control either. */
    if (facts->hosts > 0 && (!split_port(facts->host, &name) || !is_loopback_name(name)))
        return http_error_set(&request->error, FAULT_HOST, NULL,
                              "This server does not answer to the host %.*s.",
                              QUOTE_ARG(facts->host));
    if (authority.len > 0 && (!split_port(authority, &name) || !is_loopback_name(name)))
        return http_error_set(&request->error, FAULT_HOST, NULL,
                              "This server does not answer to the host %.*s.",
                              QUOTE_ARG(authority));
    return true;
}

/* ---- Target, sizes, framing ---- */

/* Cuts scheme and authority off an absolute-form target. */
static void split_target(Slice target, Slice *authority, Slice *path)
{
    *authority = SLICE_EMPTY;
    *path = target;
    size_t start;
    if (slice_starts_with(target, SLICE("http://")))
        start = 7;
    else if (slice_starts_with(target, SLICE("https://")))
        start = 8;
    else
        return;
    size_t end = slice_find(target, SLICE("/"), start);
    if (end == SIZE_MAX)
        end = target.len;
    *authority = (Slice){target.ptr + start, end - start};
    *path = (Slice){target.ptr + end, target.len - end};
    if (path->len == 0)
        *path = SLICE("/");
}

static bool check_sizes(HttpRequest *request, const HeadFacts *facts)
{
    if (request->target_size > SERVER_REQUEST_LINE_MAX)
        return http_error_set(&request->error, FAULT_URI_TOO_LONG, NULL,
                              "The request line is longer than %d bytes.", SERVER_REQUEST_LINE_MAX);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    if (info && info->header_size > SERVER_HEADER_BYTES_MAX)
        return http_error_set(&request->error, FAULT_HEADERS_TOO_LARGE, NULL,
                              "The header section is larger than %d bytes.",
                              SERVER_HEADER_BYTES_MAX);
    if (facts->fields > SERVER_HEADER_FIELDS_MAX)
        return http_error_set(&request->error, FAULT_HEADERS_TOO_LARGE, NULL,
                              "There are more than %d header fields.", SERVER_HEADER_FIELDS_MAX);
    return true;
}

static bool check_framing(HttpRequest *request, const HeadFacts *facts)
{
    HttpError *error = &request->error;
    if (request->is_post && facts->lengths == 0 && facts->codings == 0)
        return http_error_set(error, FAULT_LENGTH_REQUIRED, NULL,
                              "A POST needs Content-Length or Transfer-Encoding: chunked.");
    if (facts->encoding.len > 0 && !name_is(facts->encoding, "identity"))
        return http_error_set(
            error, FAULT_MEDIA_TYPE, NULL,
            "The Content-Encoding %.*s is not understood; send the body as it is.",
            QUOTE_ARG(facts->encoding));
    if (facts->lengths == 0)
        return true;
    /* libmicrohttpd has refused what is not a decimal number. */
    char digits[32] = "";
    if (facts->length.len < sizeof(digits))
        memcpy(digits, facts->length.ptr, facts->length.len);
    if (digits[0] == '\0' || strtoull(digits, NULL, 10) > SERVER_BODY_BYTES_MAX)
        return http_error_set(error, FAULT_TOO_LARGE, NULL, "The body is larger than %d bytes.",
                              SERVER_BODY_BYTES_MAX);
    return true;
}

/* Ambiguous framing could hide a second request from whoever stands in front of us. */
static bool check_smuggling(HttpRequest *request, const HeadFacts *facts)
{
    if (facts->codings > 1 || (facts->codings == 1 && !name_is(facts->coding, "chunked")))
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "The Transfer-Encoding %.*s is not understood.",
                              QUOTE_ARG(facts->coding));
    if (facts->codings > 0 && facts->lengths > 0)
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "Content-Length and Transfer-Encoding exclude each other.");
    if (facts->lengths_differ)
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "The Content-Length fields differ.");
    return true;
}

static bool check_in_order(HttpRequest *request, const HeadFacts *facts, Slice target,
                           const char *version)
{
    Slice authority, path;
    split_target(target, &authority, &path);
    request->path = path;
    if (!check_origin(request, facts) || !check_host(request, facts, authority) ||
        !check_sizes(request, facts))
        return false;
    bool is_1_1 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    if (facts->hosts > 1 || (is_1_1 && facts->hosts == 0)) {
        request->close_after = true;
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "HTTP/1.1 needs exactly one Host field.");
    }
    if (!check_smuggling(request, facts)) {
        request->close_after = true;
        return false;
    }
    return request->is_options || (route_find(request) && check_framing(request, facts));
}

bool http_check_head(HttpRequest *request, const char *url, const char *method, const char *version)
{
    HeadFacts facts = {0};
    request->is_get = strcmp(method, "GET") == 0;
    request->is_head = strcmp(method, "HEAD") == 0;
    request->is_post = strcmp(method, "POST") == 0;
    request->is_options = strcmp(method, "OPTIONS") == 0;
    MHD_get_connection_values_n(request->connection, MHD_HEADER_KIND, collect_header, &facts);
    request->has_body = facts.codings > 0 || (facts.lengths > 0 && !name_is(facts.length, "0"));
    if (facts.preflight_headers.len > 0)
        request->preflight_headers = arena_copy_string(&request->arena, facts.preflight_headers);
    /* A target of some megabytes cannot occur: the connection's memory is smaller. */
    Slice target;
    if (!arena_copy_slice(&request->arena, slice_of(url), &target))
        return http_error_set(&request->error, FAULT_INTERNAL, NULL, "Out of memory.");
    return check_in_order(request, &facts, target, version);
}
