/* The head of a request, checked in the order of the wire contract: Origin and Host, version and
 * size of the head, its fields, then, for all but OPTIONS, key, route, method, framing and declared
 * size. libmicrohttpd has already refused what is not HTTP at all. */
#include "access.h"
#include "http.h"
#include "route.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct HeadFacts {
    size_t fields;
    size_t hosts, origins, lengths, codings;
    Slice length, coding; /* exactly what libmicrohttpd sees: it frames the body by them */
    Slice host, origin, encoding, preflight_headers, authorization, api_key;
    bool lengths_differ, malformed;
} HeadFacts;

static bool name_is(Slice name, const char *expected)
{
    return name.len == strlen(expected) && strncasecmp(name.ptr, expected, name.len) == 0;
}

/* A name is a token (RFC 9110, 5.6.2): a blank in it is one before the colon. */
static bool is_token(Slice name)
{
    static const char MARKS[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        bool is_word = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (!is_word && (c == '\0' || !strchr(MARKS, c)))
            return false;
    }
    return name.len > 0;
}

static bool has_control(Slice text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return true;
    }
    return false;
}

/* Blanks around a value are no part of it (RFC 9110, 5.5); libmicrohttpd leaves those behind it. */
static Slice trim_end(Slice value)
{
    while (value.len > 0 && (value.ptr[value.len - 1] == ' ' || value.ptr[value.len - 1] == '\t'))
        value.len--;
    return value;
}

static bool is_identity(Slice coding)
{
    return coding.len == 0 || name_is(coding, "identity");
}

static enum MHD_Result collect_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                      size_t key_size, const char *value, size_t value_size)
{
    (void)kind;
    HeadFacts *facts = cls;
    Slice name = {key, key_size}, raw = {value ? value : "", value ? value_size : 0};
    Slice text = trim_end(raw);
    facts->fields++;
    facts->malformed |= !is_token(name) || has_control(text);
    if (name_is(name, "host")) {
        facts->hosts++;
        facts->host = text;
    } else if (name_is(name, "origin")) {
        facts->origins++;
        facts->origin = text;
    } else if (name_is(name, "content-length")) {
        if (facts->lengths++ > 0 && !slice_equal(facts->length, raw))
            facts->lengths_differ = true;
        facts->length = raw;
    } else if (name_is(name, "transfer-encoding")) {
        facts->codings++;
        facts->coding = raw;
    } else if (name_is(name, "content-encoding")) {
        if (is_identity(facts->encoding))
            facts->encoding = text;
    } else if (name_is(name, "access-control-request-headers")) {
        facts->preflight_headers = text;
    } else if (name_is(name, "authorization")) {
        facts->authorization = text;
    } else if (name_is(name, "x-api-key")) {
        facts->api_key = text;
    }
    return MHD_YES;
}

/* ---- Target, sizes, framing ---- */

static bool has_scheme(Slice target, Slice scheme)
{
    return target.len >= scheme.len && strncasecmp(target.ptr, scheme.ptr, scheme.len) == 0;
}

/* Cuts scheme and authority off an absolute-form target. */
static void split_target(Slice target, Slice *authority, Slice *path)
{
    *authority = SLICE_EMPTY;
    *path = target;
    size_t start;
    if (has_scheme(target, SLICE("http://")))
        start = 7;
    else if (has_scheme(target, SLICE("https://")))
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
    request->close_after = true;
    if (request->is_post && facts->lengths == 0 && facts->codings == 0)
        return http_error_set(error, FAULT_LENGTH_REQUIRED, NULL,
                              "A POST needs Content-Length or Transfer-Encoding: chunked.");
    if (!is_identity(facts->encoding))
        return http_error_set(
            error, FAULT_MEDIA_TYPE, NULL,
            "The Content-Encoding %.*s is not understood; send the body as it is.",
            QUOTE_ARG(facts->encoding));
    /* libmicrohttpd has refused what is not a decimal number. */
    char digits[32] = "";
    if (facts->length.len > 0 && facts->length.len < sizeof(digits))
        memcpy(digits, facts->length.ptr, facts->length.len);
    if (facts->lengths > 0 &&
        (digits[0] == '\0' || strtoull(digits, NULL, 10) > SERVER_BODY_BYTES_MAX))
        return http_error_set(error, FAULT_TOO_LARGE, NULL, "The body is larger than %d bytes.",
                              SERVER_BODY_BYTES_MAX);
    request->close_after = false;
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

/* What libmicrohttpd lets pass although it is malformed. */
static bool check_syntax(HttpRequest *request, const HeadFacts *facts, Slice target,
                         const char *version)
{
    bool is_1_1 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    if (!is_1_1 && strcmp(version, MHD_HTTP_VERSION_1_0) != 0)
        return http_error_set(&request->error, FAULT_VERSION, NULL,
                              "Only HTTP/1.1 and HTTP/1.0 are spoken here.");
    if (has_control(target) || memchr(target.ptr, ' ', target.len) ||
        memchr(target.ptr, '\t', target.len))
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "The request line is malformed.");
    if (facts->malformed)
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "A header field is malformed.");
    if (facts->hosts > 1 || (is_1_1 && facts->hosts == 0))
        return http_error_set(&request->error, FAULT_INVALID_REQUEST, NULL,
                              "HTTP/1.1 needs exactly one Host field.");
    return true;
}

static bool check_in_order(HttpRequest *request, const HeadFacts *facts, Slice target,
                           const char *version)
{
    Slice authority, path;
    split_target(target, &authority, &path);
    request->path = path;
    if (!access_check_origin(request, facts->origin, facts->origins) ||
        !access_check_host(request, facts->host, authority))
        return false;
    request->close_after = true; /* after a malformed head nothing can be trusted to follow */
    if (!check_sizes(request, facts) || !check_syntax(request, facts, target, version) ||
        !check_smuggling(request, facts))
        return false;
    request->close_after = false;
    if (request->is_options)
        return true;
    return access_check_key(request, facts->authorization, facts->api_key) && route_find(request) &&
           check_framing(request, facts);
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
