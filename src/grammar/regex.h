/* regex: regular expressions to automata over characters.
 *
 * The regular part of what ECMAScript, PCRE and Python agree on: literals, `.`, classes with ranges
 * and \d \w \s (ASCII, as in ECMAScript) and their negations, groups (capturing, named and not),
 * alternatives, greedy, lazy and possessive-free quantifiers, ^ and $, escapes \t \n \r \f \v \0
 * \xHH \uHHHH \u{H..} \cX. Refused by name: back references, look-around, word borders, inline
 * flags, \p{..}. `.` is any character but \n, \r, U+2028 and U+2029. */
#ifndef GRAMMAR_REGEX_H
#define GRAMMAR_REGEX_H

#include "char_dfa.h"

enum {
    REGEX_BYTES_MAX = 1 << 16,
    REGEX_DEPTH_MAX = 100,      /* groups in groups */
    REGEX_REPEAT_MAX = 1 << 16, /* of {m,n} */
    REGEX_STATES_MAX = 1 << 17, /* of the expression with its repetitions written out */
    REGEX_WORK_MAX = 12 << 20,  /* steps of making it deterministic */
    REGEX_SMALL_STATES_MAX = 2000,
    REGEX_SMALL_WORK_MAX = 1 << 20,
};

typedef enum RegexMode {
    REGEX_WHOLE,  /* the whole string matches */
    REGEX_SEARCH, /* some part matches, as JSON Schema's pattern */
} RegexMode;

/* The strings of source, then next; *out is the start (AUTOMATON_FAIL: none match). A deterministic
 * automaton where that is small, else the expression's own states, of which several are then alive
 * at a time. Errors: as below; the automaton has failed then. */
bool regex_add(Text *text, Slice source, RegexMode mode, TextSpelling spelling, uint32_t next,
               uint32_t *out, Error *err) WARN_UNUSED;

/* The deterministic automaton, to be multiplied with others.
 * ERROR_INVALID and ERROR_UNSUPPORTED name the offset; ERROR_LIMIT. The automaton may be empty. */
bool regex_compile(Slice source, RegexMode mode, CharDfa *out, Error *err) WARN_UNUSED;

#endif
