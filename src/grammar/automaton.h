/* automaton: rules over bytes, as a non-deterministic automaton with calls.
 *
 * Every source (schema, regular expression, GBNF) ends here. A state reads a byte of a range,
 * splits without reading, calls a rule, or returns to the caller:
 *
 *     BYTES low..high -> out        SPLIT -> out | other
 *     CALL rule `other`, then out   RETURN
 *
 * It is built backwards: every builder takes the state that follows and returns the state that
 * starts the piece, so that nothing needs patching but loops (automaton_add_split first, then
 * automaton_set_split). Failures are sticky: after the first one every builder returns
 * AUTOMATON_FAIL and automaton_finish reports it. */
#ifndef GRAMMAR_AUTOMATON_H
#define GRAMMAR_AUTOMATON_H

#include "base.h"

enum {
    AUTOMATON_STATES_MAX = 1 << 20,
    AUTOMATON_RULES_MAX = 1 << 16,
    AUTOMATON_QUOTE_BYTES_MAX = 64, /* of a name in a message: names are a client's text */
};

enum {
    AUTOMATON_RETURN = 0, /* the one state that returns */
    AUTOMATON_FAIL = 1,   /* the one state that nothing leaves */
    AUTOMATON_FIRST = 2
};

typedef enum AutomatonKind {
    AUTOMATON_KIND_RETURN,
    AUTOMATON_KIND_FAIL,
    AUTOMATON_KIND_BYTES,
    AUTOMATON_KIND_SPLIT,
    AUTOMATON_KIND_CALL
} AutomatonKind;

typedef struct AutomatonState {
    uint32_t out, other;
    uint8_t kind, low, high;
    bool is_sole; /* where it reads a byte, states that are not sole do not */
    bool is_live; /* some text leads from here to RETURN (automaton_finish) */
} AutomatonState;

typedef struct AutomatonRule {
    uint32_t start;
    uint32_t rank; /* a rule that calls another before reading a byte has the lower rank */
    bool is_nullable;
    Slice name; /* for messages; borrowed, may be empty */
} AutomatonRule;

typedef struct Automaton {
    AutomatonState *states;
    size_t n_states, states_capacity;
    AutomatonRule *rules;
    size_t n_rules, rules_capacity;
    uint32_t root;          /* rule */
    uint32_t *rule_of_rank; /* [n_rules] */
    uint8_t classes[256];   /* bytes that no state tells apart share a class */
    size_t n_classes;
    Error *err; /* while building */
    bool failed;
} Automaton;

/* err receives the first fault and must outlive the building. */
bool automaton_init(Automaton *a, Error *err) WARN_UNUSED;
void automaton_reset(Automaton *a);

/* A rule without a start yet (it fails until set). */
uint32_t automaton_add_rule(Automaton *a, Slice name);
void automaton_set_rule(Automaton *a, uint32_t rule, uint32_t start);

uint32_t automaton_add_bytes(Automaton *a, uint8_t low, uint8_t high, uint32_t next);
uint32_t automaton_add_split(Automaton *a, uint32_t out, uint32_t other);
void automaton_set_split(Automaton *a, uint32_t split, uint32_t out, uint32_t other);
/* A split, or the one of the two that does not fail. */
uint32_t automaton_add_either(Automaton *a, uint32_t one, uint32_t other);
uint32_t automaton_add_call(Automaton *a, uint32_t rule, uint32_t next);
uint32_t automaton_add_literal(Automaton *a, Slice bytes, uint32_t next);
/* A literal, not empty, that means nothing else: once all of it has been read, alternatives that
 * read the same bytes are given up. */
uint32_t automaton_add_mark(Automaton *a, Slice bytes, uint32_t next);
/* Marks the building as failed with a message of its own; returns AUTOMATON_FAIL. */
uint32_t automaton_fail(Automaton *a, ErrorCode code, const char *message);

/* Cuts what cannot end, ranks the rules, groups the bytes. allowed [256]: bytes that may occur at
 * all (NULL: all). ERROR_INVALID: a rule that calls itself before it reads a byte; *is_empty tells
 * that no text at all is accepted, which is not an error here. */
bool automaton_finish(Automaton *a, const bool *allowed, bool *is_empty, Error *err) WARN_UNUSED;
size_t automaton_bytes(const Automaton *a);

/* A state that goes on to `out` alone, without reading. */
static inline bool automaton_is_jump(const AutomatonState *s)
{
    return s->kind == AUTOMATON_KIND_SPLIT && s->out == s->other;
}

#endif
