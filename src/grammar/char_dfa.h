/* char_dfa: a deterministic automaton over characters (code points).
 *
 * Where several conditions hold for one string (pattern, length, format, names that are taken),
 * each becomes a CharDfa, they are multiplied, and the product is spelled as bytes. Characters that
 * no state tells apart share a class. */
#ifndef GRAMMAR_CHAR_DFA_H
#define GRAMMAR_CHAR_DFA_H

#include "text.h"

enum {
    CHAR_DFA_STATES_MAX = 1 << 16,
    CHAR_DFA_STEPS_MAX = 1 << 21, /* states * classes */
    CHAR_DFA_WORK_MAX = 32 << 20, /* ranges looked at while spelling */
};

enum { CHAR_DFA_DEAD = -1 };

typedef struct CharDfa {
    uint32_t *lows;     /* [n_ranges] ascending, lows[0] = 0; range i ends before lows[i + 1] */
    uint32_t *class_of; /* [n_ranges] */
    size_t n_ranges, n_classes;
    int32_t *steps; /* [n_states][n_classes] a state or CHAR_DFA_DEAD */
    bool *accepts;  /* [n_states]; state 0 starts */
    size_t n_states, capacity;
} CharDfa;

/* Takes over what is in lows and class_of (memory_allocate'd). */
void char_dfa_reset(CharDfa *dfa);
/* A new state without steps; its number, or -1 with err set. */
int32_t char_dfa_add_state(CharDfa *dfa, bool accepts, Error *err);

/* Any string of min..max characters (SIZE_MAX: no end). ERROR_LIMIT beyond CHAR_DFA_STATES_MAX. */
bool char_dfa_of_length(size_t min, size_t max, CharDfa *out, Error *err) WARN_UNUSED;
/* Any string but these (UTF-8). */
bool char_dfa_of_others(const Slice *names, size_t count, CharDfa *out, Error *err) WARN_UNUSED;
/* Strings in both. */
bool char_dfa_multiply(const CharDfa *a, const CharDfa *b, CharDfa *out, Error *err) WARN_UNUSED;
/* Drops the steps from which nothing is accepted; *is_empty: all of them. */
bool char_dfa_trim(CharDfa *dfa, bool *is_empty, Error *err) WARN_UNUSED;
bool char_dfa_accepts(const CharDfa *dfa, Slice s);

/* The (trimmed) automaton's strings, then next. */
uint32_t char_dfa_add(Text *text, const CharDfa *dfa, TextSpelling spelling, uint32_t next);

#endif
