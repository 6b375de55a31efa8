#include "line_reader.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 64 * 1024 };

void line_reader_init(LineReader *reader, int fd)
{
    *reader = (LineReader){.fd = fd};
    buffer_init(&reader->buffer, LINE_BYTES_MAX);
}

void line_reader_reset(LineReader *reader)
{
    buffer_reset(&reader->buffer);
    line_reader_init(reader, reader->fd);
}

/* Reads more bytes behind those in the buffer. */
static bool read_more(LineReader *reader, Error *err)
{
    buffer_remove_front(&reader->buffer, reader->start);
    reader->start = 0;
    size_t before = reader->buffer.len;
    char *to = buffer_extend(&reader->buffer, READ_BYTES);
    if (!buffer_check(&reader->buffer, "a line of input", err))
        return false;
    ssize_t n;
    do {
        n = read(reader->fd, to, READ_BYTES);
    } while (n < 0 && errno == EINTR);
    reader->buffer.len = before + (n > 0 ? (size_t)n : 0);
    if (n < 0)
        return error_set(err, ERROR_IO, "standard input: %s", strerror(errno));
    reader->at_end = n == 0;
    return true;
}

bool line_reader_next(LineReader *reader, Slice *line, bool *has_line, Error *err)
{
    *has_line = false;
    for (;;) {
        const char *from = reader->buffer.ptr ? reader->buffer.ptr + reader->start : "";
        size_t len = reader->buffer.len - reader->start;
        const char *newline = memchr(from + reader->scanned, '\n', len - reader->scanned);
        if (newline || (reader->at_end && len > 0)) {
            *line = (Slice){from, newline ? (size_t)(newline - from) : len};
            reader->start += line->len + (newline ? 1 : 0);
            reader->scanned = 0;
            *has_line = true;
            return true;
        }
        if (reader->at_end)
            return true;
        reader->scanned = len;
        if (!read_more(reader, err))
            return false;
    }
}
