/* What pre-tokenisers split on and normalisers replace: a literal, a class of single characters,
 * one of the well-known regexes (read by hand-written scanners, scanner.c), or any other regex
 * (PCRE2). Immutable; what a search needs to write lies in a PatternScratch of the calling thread.
 */
#ifndef TOKENIZER_PATTERN_H
#define TOKENIZER_PATTERN_H

#include "scanner.h"
#include "unicode.h"

typedef enum PatternKind {
    PATTERN_LITERAL,
    PATTERN_CLASS, /* one character with any of the bits in `classes` */
    PATTERN_SCANNER,
    PATTERN_REGEX
} PatternKind;

enum {
    PATTERN_BYTES_MAX = 64 << 10,
    PATTERN_MATCH_STEPS_MAX = 10 * 1000 * 1000, /* of the regex engine, in one search */
    PATTERN_HEAP_KIB_MAX = 256 << 10,
    PATTERN_STACK_BYTES_MAX = 8 << 20,
};

typedef struct Pattern {
    PatternKind kind;
    char *literal;
    size_t literal_len;
    unsigned classes;
    ScannerKind scanner;
    void *regex; /* pcre2_code */
} Pattern;

typedef struct PatternScratch {
    void *match_data, *match_context, *jit_stack; /* PCRE2's, made on first use */
} PatternScratch;

typedef struct PatternMatch {
    size_t start, end;
} PatternMatch;

/* State of a walk over all matches, in the manner of the reference: an empty match directly after a
 * match is passed over by one character. */
typedef struct PatternWalk {
    size_t at;
    size_t last_end;
    bool any;
} PatternWalk;

bool pattern_init_literal(Pattern *pattern, Slice text, Error *err) WARN_UNUSED;
void pattern_init_class(Pattern *pattern, unsigned classes);
void pattern_init_scanner(Pattern *pattern, ScannerKind kind);
bool pattern_init_regex(Pattern *pattern, Slice source, Error *err) WARN_UNUSED;
void pattern_reset(Pattern *pattern);

/* regex_dialect.c. Appends to out what Oniguruma's source means, in PCRE2's words. Errors:
 * ERROR_UNSUPPORTED names what has no counterpart. */
bool pattern_translate_regex(Slice source, Buffer *out, Error *err) WARN_UNUSED;

void pattern_scratch_reset(PatternScratch *scratch);

/* Finds the next match of walk in well-formed text. *found false: there is none. Errors:
 * ERROR_LIMIT when the regex engine gives up. */
bool pattern_next(const Pattern *pattern, const UnicodeTable *unicode, PatternScratch *scratch,
                  Slice text, PatternWalk *walk, PatternMatch *match, bool *found,
                  Error *err) WARN_UNUSED;

#endif
