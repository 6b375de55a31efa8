/* Building answers: the headers that every response has, and handing bytes to libmicrohttpd. */
#include "http.h"

#include <stdio.h>
#include <string.h>

enum { HTTP_STREAM_BLOCK = 32 << 10 };

void http_add_header(HttpRequest *request, const char *name, Slice value)
{
    if (request->n_headers >= HTTP_REPLY_HEADERS_MAX)
        return;
    char *copy = arena_copy_string(&request->arena, value);
    if (!copy)
        return;
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)copy[i];
        if (c < 0x20 || c >= 0x7f)
            copy[i] = '?';
    }
    request->headers[request->n_headers++] = (HttpHeader){name, copy};
}

void http_reply(HttpRequest *request, unsigned status, const char *content_type)
{
    request->has_reply = true;
    request->status = status;
    request->content_type = content_type;
}

void http_reply_error(HttpRequest *request, const HttpError *error)
{
    buffer_clear(&request->reply);
    http_error_write(error, &request->reply);
    if (error->fault == FAULT_OVERLOADED)
        http_add_header(request, "Retry-After", SLICE("1"));
    if (error->fault == FAULT_SHUTTING_DOWN)
        request->close_after = true;
    http_reply(request, http_fault_status(error->fault), "application/json");
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
        MHD_add_response_header(response, "Access-Control-Expose-Headers",
                                "x-request-id, request-id, retry-after");
    }
    if (request->content_type)
        MHD_add_response_header(response, "Content-Type", request->content_type);
    for (size_t i = 0; i < request->n_headers; i++)
        MHD_add_response_header(response, request->headers[i].name, request->headers[i].value);
    if (request->close_after)
        MHD_add_response_header(response, "Connection", "close");
}

static enum MHD_Result queue_and_forget(HttpRequest *request, struct MHD_Response *response)
{
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
