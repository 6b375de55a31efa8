/* case_file: test cases from the text files of tests/data/json. */
#ifndef CASE_FILE_H
#define CASE_FILE_H

#include "base.h"

/* Calls visit for every line of the file that is neither empty nor a comment (#). The line has no
 * line break. Fails the running test if the file cannot be read; returns the number of lines
 * visited. */
size_t case_file_visit(const char *name, void (*visit)(Slice line));

/* Splits s at the first separator; fails the running test if there is none. */
void case_file_split(Slice s, Slice separator, Slice *left, Slice *right);

/* Replaces out with s, every <HH> turned into that byte. */
void case_file_decode(Slice s, Buffer *out);

#endif
