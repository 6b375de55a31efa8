/* Private to cli: lines from a file descriptor, of bounded length. */
#ifndef LINE_READER_H
#define LINE_READER_H

#include "base.h"

enum { LINE_BYTES_MAX = 256 << 20 };

/* Caller-owned; line_reader_reset frees. */
typedef struct LineReader {
    int fd;
    Buffer buffer;
    size_t start;   /* of the next line in buffer */
    size_t scanned; /* bytes from start that hold no newline */
    bool at_end;
} LineReader;

void line_reader_init(LineReader *reader, int fd);
void line_reader_reset(LineReader *reader);
/* The next line without its newline, valid until the next call. *has_line is false at the end of
 * input. */
bool line_reader_next(LineReader *reader, Slice *line, bool *has_line, Error *err) WARN_UNUSED;

#endif
