/* Building answers: the headers that every response has, and handing bytes to libmicrohttpd. */
#include "http.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { HTTP_STREAM_BLOCK = 32 << 10 };

#define EXPOSED_HEADERS "x-request-id, request-id, retry-after"
#define EXPOSED_HEADERS_LINE "Access-Control-Expose-Headers: " EXPOSED_HEADERS "\r\n"

/* The header of that name, or a new one whose value is still NULL; NULL when there is no room. */
static HttpHeader *need_header(HttpRequest *request, const char *name)
{
    for (size_t i = 0; i < request->n_headers; i++) {
        if (strcmp(request->headers[i].name, name) == 0)
            return &request->headers[i];
    }
    if (request->n_headers >= HTTP_REPLY_HEADERS_MAX)
        return NULL;
    request->headers[request->n_headers] = (HttpHeader){.name = name};
    return &request->headers[request->n_headers];
}

void http_add_header(HttpRequest *request, const char *name, Slice value)
{
    HttpHeader *header = need_header(request, name);
    Slice before = header && header->value ? slice_of(header->value) : SLICE_EMPTY;
    size_t start = before.len > 0 ? before.len + 2 : 0;
    char *copy = header ? arena_allocate(&request->arena, start + value.len + 1) : NULL;
    if (!copy)
        return;
    if (start > 0) {
        memcpy(copy, before.ptr, before.len);
        memcpy(copy + before.len, ", ", 2);
    }
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        copy[start + i] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    copy[start + value.len] = '\0';
    if (!header->value)
        request->n_headers++;
    header->value = copy;
}

void http_reply(HttpRequest *request, unsigned status, const char *content_type)
{
    request->has_reply = true;
    request->status = status;
    request->content_type = content_type;
}

void http_reply_error(HttpRequest *request, const HttpError *error)
{
    if (error != &request->error)
        request->error = *error;
    buffer_clear(&request->reply);
    http_error_write(error, &request->reply);
    if (error->fault == FAULT_OVERLOADED)
        http_add_header(request, "Retry-After", SLICE("1"));
    if (error->fault == FAULT_SHUTTING_DOWN)
        request->close_after = true;
    http_reply(request, http_fault_status(error->fault), "application/json");
}

const ServerModel *http_need_model(HttpRequest *request, HttpError *error)
{
    if (atomic_load(&request->server->is_ready))
        return &request->server->model;
    http_error_set(error, FAULT_LOADING, NULL, "The model is still loading.");
    return NULL;
}

/* ---- Ids ---- */

static uint64_t mix_bits(uint64_t x)
{
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

void http_make_id(Server *server, char id[24])
{
    uint64_t number = atomic_fetch_add(&server->request_count, 1) ^ server->request_key;
    snprintf(id, 24, "req_%016llx", (unsigned long long)mix_bits(number));
}

int64_t http_next_reply_id(Server *server)
{
    int64_t now = clock_unix_milliseconds();
    int64_t last = atomic_load(&server->last_reply_id);
    int64_t next;
    do {
        next = now > last ? now : last + 1;
    } while (!atomic_compare_exchange_weak(&server->last_reply_id, &last, next));
    return next;
}

/* ---- Past libmicrohttpd ---- */

enum { DATE_BYTES_MAX = 96 }; /* more than any int's digits need */

/* RFC 9110, 5.6.7; the names are not those of the locale. */
static void format_date(char out[DATE_BYTES_MAX])
{
    static const char DAYS[] = "SunMonTueWedThuFriSat";
    static const char MONTHS[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = time(NULL);
    struct tm utc;
    out[0] = '\0';
    if (gmtime_r(&now, &utc))
        snprintf(out, DATE_BYTES_MAX, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT",
                 DAYS + 3 * utc.tm_wday, utc.tm_mday, MONTHS + 3 * utc.tm_mon, utc.tm_year + 1900,
                 utc.tm_hour, utc.tm_min, utc.tm_sec);
}

void http_send_refusal(Server *server, int socket, const HttpRequest *request,
                       const HttpError *error)
{
    Buffer body, reply;
    char id[24], date[DATE_BYTES_MAX];
    buffer_init(&body, 4096);
    buffer_init(&reply, 16384);
    http_error_write(error, &body);
    format_date(date);
    if (request)
        snprintf(id, sizeof(id), "%s", request->id);
    else
        http_make_id(server, id);
    buffer_append_format(&reply,
                         "HTTP/1.1 %u %s\r\nDate: %s\r\nx-request-id: %s\r\nrequest-id: %s\r\n"
                         "Connection: close\r\nContent-Type: application/json\r\n"
                         "Content-Length: %zu\r\n",
                         http_fault_status(error->fault),
                         MHD_get_reason_phrase_for(http_fault_status(error->fault)), date, id, id,
                         body.len);
    if (request && request->origin)
        buffer_append_format(&reply, "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n%s",
                             request->origin, EXPOSED_HEADERS_LINE);
    buffer_append_text(&reply, "\r\n");
    buffer_append_slice(&reply, buffer_view(&body));
    if (!reply.failed && !body.failed) {
        ssize_t sent = send(socket, reply.ptr, reply.len, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent; /* the client may be gone, or not read: it is given up anyway */
        metrics_count_reply(&server->metrics, request ? request->route : NULL,
                            http_fault_status(error->fault));
    }
    buffer_reset(&body);
    buffer_reset(&reply);
}

/* ---- Through libmicrohttpd ---- */

static void add_preflight_headers(const HttpRequest *request, struct MHD_Response *response)
{
    const char *wanted = request->preflight_headers ? request->preflight_headers : "*";
    MHD_add_response_header(response, "Access-Control-Allow-Methods",
                            "GET, POST, DELETE, OPTIONS, HEAD");
    if (MHD_add_response_header(response, "Access-Control-Allow-Headers", wanted) != MHD_YES)
        MHD_add_response_header(response, "Access-Control-Allow-Headers", "*");
    MHD_add_response_header(response, "Access-Control-Max-Age", "86400");
}

static void add_common_headers(const HttpRequest *request, struct MHD_Response *response)
{
    MHD_add_response_header(response, "x-request-id", request->id);
    MHD_add_response_header(response, "request-id", request->id);
    if (request->origin) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", request->origin);
        MHD_add_response_header(response, "Vary", "Origin");
        MHD_add_response_header(response, "Access-Control-Expose-Headers", EXPOSED_HEADERS);
    }
    if (request->content_type)
        MHD_add_response_header(response, "Content-Type", request->content_type);
    for (size_t i = 0; i < request->n_headers; i++)
        MHD_add_response_header(response, request->headers[i].name, request->headers[i].value);
    if (request->close_after)
        MHD_add_response_header(response, "Connection", "close");
}

/* Counted before it can be read: who has the answer finds it in the next metrics. */
static enum MHD_Result queue_and_forget(HttpRequest *request, struct MHD_Response *response)
{
    metrics_count_reply(&request->server->metrics, request->route, request->status);
    enum MHD_Result result = MHD_queue_response(request->connection, request->status, response);
    MHD_destroy_response(response);
    request->queued = result == MHD_YES;
    return result;
}

enum MHD_Result http_queue_reply(HttpRequest *request)
{
    if (request->reply.failed) {
        HttpError error;
        http_error_set(&error, FAULT_INTERNAL, NULL, "%s",
                       request->reply.over_limit ? "The reply is larger than the server's limit."
                                                 : "Out of memory for the reply.");
        buffer_reset(&request->reply);
        http_reply_error(request, &error);
        if (request->reply.failed)
            return MHD_NO; /* not even for that: half of it would be no JSON */
    }
    struct MHD_Response *response;
    size_t len;
    char *bytes = buffer_take(&request->reply, &len);
    if (bytes)
        response = MHD_create_response_from_buffer_with_free_callback(len, bytes, memory_free);
    else
        response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!response) {
        memory_free(bytes);
        return MHD_NO;
    }
    add_common_headers(request, response);
    if (request->is_options && request->status == 204)
        add_preflight_headers(request, response);
    return queue_and_forget(request, response);
}

enum MHD_Result http_queue_stream(HttpRequest *request, MHD_ContentReaderCallback reader)
{
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, HTTP_STREAM_BLOCK, reader, request, NULL);
    if (!response)
        return MHD_NO;
    request->status = 200;
    request->content_type = "text/event-stream";
    add_common_headers(request, response);
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    return queue_and_forget(request, response);
}
