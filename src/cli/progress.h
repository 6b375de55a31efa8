/* Private to cli: one line of progress on a terminal, rewritten in place.
 *
 * It is for people: when standard error is not a terminal, nothing is printed. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include "base.h"

typedef struct Progress {
    bool is_terminal;
} Progress;

void progress_init(Progress *progress);
/* Replaces the line's text. */
void progress_show(const Progress *progress, const char *format, ...) PRINTF_LIKE(2, 3);
void progress_clear(const Progress *progress); /* before anything else is printed, and at the end */

#endif
