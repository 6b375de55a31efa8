/* Hand-written scanners for the regexes that most byte-level models split with. Each takes
 * well-formed text and returns where the match that starts at `at` ends; in these patterns every
 * character belongs to a match, so the next one starts there. */
#ifndef TOKENIZER_SCANNER_H
#define TOKENIZER_SCANNER_H

#include "unicode.h"

typedef enum ScannerKind {
    SCANNER_NONE,
    SCANNER_QWEN,   /* contractions, words with one leading other character, single digits */
    SCANNER_LLAMA3, /* the same with up to three digits */
    SCANNER_QWEN35, /* the same as QWEN, marks belong to words */
    SCANNER_NEMO,   /* words split where lower case ends, single digits */
    SCANNER_GPT2    /* the pattern of ByteLevel */
} ScannerKind;

/* The scanner for exactly this pattern, or SCANNER_NONE. */
ScannerKind scanner_recognise(Slice pattern);
size_t scanner_next(ScannerKind kind, const UnicodeTable *unicode, Slice text, size_t at);

#endif
