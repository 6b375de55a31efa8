/* text: characters as bytes, plain or inside a JSON string, and the rules that all JSON shares.
 *
 * Inside a JSON string a character may be spelled in several ways. Where the value is free (any
 * string), every spelling of JSON is accepted. Where the characters matter (names, enum, pattern,
 * format), there is one spelling for ASCII, the one that JSON writers use (raw, or the escape where
 * JSON demands one), so that names stay forced; characters beyond ASCII may also be \uXXXX, which
 * some writers prefer. */
#ifndef GRAMMAR_TEXT_H
#define GRAMMAR_TEXT_H

#include "automaton.h"

enum {
    CODE_POINT_MAX = 0x10ffff,
    JSON_INDENT_SPACES_MAX = 64,
    JSON_INDENT_TABS_MAX = 16,
};

typedef struct CharRange {
    uint32_t low, high;
} CharRange;

typedef enum TextSpelling {
    TEXT_RAW,  /* UTF-8 as it is */
    TEXT_JSON, /* inside the quotes of a JSON string */
} TextSpelling;

typedef enum TextRule {
    TEXT_RULE_BEYOND_ASCII,      /* one character above U+007F, UTF-8 */
    TEXT_RULE_BEYOND_ASCII_JSON, /* the same or as \uXXXX */
    TEXT_RULE_CONTROL_JSON,      /* an escape of U+0000..U+001F */
    TEXT_RULE_CHAR_JSON,         /* one character of a free JSON string, any spelling */
    TEXT_RULE_SPACE,             /* nothing, a space, or a newline with indentation */
    TEXT_RULE_STRING,
    TEXT_RULE_VALUE, /* any JSON value */
    TEXT_RULE_OBJECT,
    TEXT_RULE_ARRAY,
    TEXT_RULE_COUNT
} TextRule;

/* Rules are made when first asked for. */
typedef struct Text {
    Automaton *automaton;
    uint32_t rules[TEXT_RULE_COUNT]; /* id + 1, 0: not made */
} Text;

uint32_t text_get_rule(Text *text, TextRule rule);
/* A call of the rule, then next. */
uint32_t text_add_rule(Text *text, TextRule rule, uint32_t next);

/* One character of the ranges (sorted, apart; surrogates in them are left out), then next. */
uint32_t text_add_ranges(Text *text, TextSpelling spelling, const CharRange *ranges, size_t count,
                         uint32_t next);
/* A literal in quotes. */
uint32_t text_add_json_string(Text *text, Slice s, uint32_t next);

/* One of the strings, byte for byte; strings is sorted here. Prefixes are shared, so that thousands
 * of choices stay few alternatives at a time. */
uint32_t text_add_choice(Text *text, Slice *strings, size_t count, uint32_t next);

/* -?(0|[1-9][0-9]*) and the same with fraction and exponent. */
uint32_t text_add_integer(Text *text, uint32_t next);
uint32_t text_add_number(Text *text, bool may_be_negative, uint32_t next);

#endif
