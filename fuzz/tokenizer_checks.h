/* What the tokenizer's fuzz targets hold against each other: a decoder's pieces and the whole. */
#ifndef FUZZ_TOKENIZER_CHECKS_H
#define FUZZ_TOKENIZER_CHECKS_H

#include "tokenizer.h"

void check(bool holds);
void decode_both_ways(const Tokenizer *tokenizer, const TokenList *ids);
/* The same of ids that may not be the tokenizer's at all. */
void decode_any_ids(const Tokenizer *tokenizer);

#endif
