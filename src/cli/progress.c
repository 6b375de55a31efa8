#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

/* Back to the start of the line, and erase what is there. */
#define CLEAR_LINE "\r\033[K"

enum { LINE_BYTES_MAX = 79 }; /* a longer line would wrap, and could not be cleared */

void progress_init(Progress *progress)
{
    progress->is_terminal = isatty(STDERR_FILENO) == 1;
}

void progress_show(const Progress *progress, const char *format, ...)
{
    if (!progress->is_terminal)
        return;
    char line[LINE_BYTES_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    fprintf(stderr, CLEAR_LINE "%s", line);
    fflush(stderr);
}

void progress_clear(const Progress *progress)
{
    if (progress->is_terminal)
        fputs(CLEAR_LINE, stderr);
}
