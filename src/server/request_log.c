#include "request_log.h"

#include "route.h"

#include <poll.h>
#include <unistd.h>

enum { LOG_LINE_MAX = 1000 }; /* far below PIPE_BUF, so that lines do not mix */

/* A stranger's word: cut, and without what could end the value. */
static void append_quoted(Buffer *line, const char *text)
{
    buffer_append_byte(line, '"');
    for (size_t i = 0; text[i] && i < 64; i++) {
        bool is_plain = text[i] >= 0x20 && text[i] < 0x7f && text[i] != '"' && text[i] != '\\';
        buffer_append_byte(line, is_plain ? text[i] : '?');
    }
    buffer_append_byte(line, '"');
}

static void append_generation(Buffer *line, const HttpOutcome *outcome)
{
    buffer_append_format(line, " choices=%zu prompt_tokens=%zu", outcome->choices,
                         outcome->prompt_tokens);
    if (outcome->has_ended)
        buffer_append_format(line,
                             " cached_tokens=%zu completion_tokens=%zu queue_ms=%.1f ttft_ms=%.1f"
                             " finish=%s",
                             outcome->cached_tokens, outcome->completion_tokens,
                             outcome->queue_seconds * 1e3, outcome->first_token_seconds * 1e3,
                             outcome->finish);
}

/* A pipe that is writable takes at least PIPE_BUF bytes without waiting. */
static bool can_write(int file)
{
    struct pollfd entry = {.fd = file, .events = POLLOUT};
    return poll(&entry, 1, 0) == 1 && (entry.revents & POLLOUT);
}

void request_log_write(const HttpRequest *request, double seconds, bool completed)
{
    int file = request->server->options.log_file;
    char label[ROUTE_LABEL_MAX];
    Buffer line;
    if (file < 0)
        return;
    buffer_init(&line, LOG_LINE_MAX);
    buffer_append_format(&line, "mlx-serve: request id=%s method=", request->id);
    append_quoted(&line, request->method);
    buffer_append_format(&line, " route=%s status=%u ms=%.1f", route_label(request->route, label),
                         request->status, seconds * 1e3);
    if (request->outcome.is_generation)
        append_generation(&line, &request->outcome);
    if (request->error.message[0])
        buffer_append_format(&line, " error=%s", http_fault_code(request->error.fault));
    if (request->error.param[0]) {
        buffer_append_text(&line, " param=");
        append_quoted(&line, request->error.param);
    }
    if (!completed)
        buffer_append_text(&line, " cut=true");
    buffer_append_byte(&line, '\n');
    if (!line.failed && can_write(file)) {
        ssize_t written = write(file, line.ptr, line.len);
        (void)written; /* nobody to tell */
    }
    buffer_reset(&line);
}
