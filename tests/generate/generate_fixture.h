/* What the tests of generate share: a tokenizer whose tokens are bytes, an end token, and ways to
 * feed a generation. */
#ifndef TESTS_GENERATE_FIXTURE_H
#define TESTS_GENERATE_FIXTURE_H

#include "generate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { VOCAB = 260, END = 257 };

extern const int32_t EOS[1]; /* {END} */
extern Tokenizer *tokenizer; /* between set-up and teardown */

int setup(void **state);
int teardown(void **state);

Generation *create(const GenerationOptions *options);
/* All logits 0. */
void flat(float *logits);
/* Feeds the bytes as certain choices and appends their text; how many until the end. */
size_t feed(Generation *generation, const char *bytes, size_t count, Buffer *text);
/* One step; its id. */
int32_t choose(Generation *generation, float *logits);
void assert_text(const Buffer *text, const char *expected);

#endif
