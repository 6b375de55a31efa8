/* fake_engine: an Engine whose logits are a hash of all tokens of the sequence.
 * The reply to a prompt is therefore fixed, and any mixing of sequences, lost or doubled token
 * changes it. */
#ifndef TESTS_FAKE_ENGINE_H
#define TESTS_FAKE_ENGINE_H

#include "engine.h"

#include <stdatomic.h>

enum {
    FAKE_VOCAB = 260,
    FAKE_END = 257,
    FAKE_POISON = 258, /* a row with this token fails */
    FAKE_NAN = 1,      /* a row that ends with this token has a NaN among its logits */
    FAKE_EURO =
        2, /* after this token the reply is the character U+20AC, byte by byte, over and over */
    FAKE_LONG = 3,        /* after this token the reply is token 259, 4096 bytes, over and over */
    FAKE_LATE_POISON = 4, /* a row with this token fails; in a held pass its last part does */
    FAKE_LONG_TOKEN = 259,
    FAKE_LONG_BYTES = 4096,
    FAKE_PARTS = 5, /* of a held pass */
};

typedef struct FakeEngine {
    Engine engine; /* first */
    EngineOps ops;
    ModelConfig config;
    atomic_int delay_microseconds;       /* of one pass */
    atomic_int token_delay_microseconds; /* and for each token in it beyond the first */
    atomic_size_t kv_tokens;             /* capacity of all sequences together; 0: no limit */
    atomic_bool never_ends;              /* no end token of its own accord */
    atomic_bool hold;                    /* passes wait until it is cleared */
    atomic_bool hold_creation;           /* so does making a sequence, */
    atomic_bool is_creating;             /* which has come there */
    atomic_size_t hold_rows;             /* parts of a pass that holds so many wait; 0: none */
    atomic_size_t fail_part;             /* this part of a held pass fails once, counted from 1 */
    atomic_bool always_touches;          /* memory for tokens to come is never there */

    EngineRow held[64]; /* with tokens of their own */
    size_t n_held, parts_done;
    atomic_size_t held_passes;            /* begun */
    atomic_size_t held_rows, held_tokens; /* now */
    atomic_size_t parts, rows_left;       /* parts begun; rows that left a held pass */

    atomic_size_t choosing_passes; /* in which the engine chose the tokens */
    atomic_size_t forks, tokens;   /* sequences forked; tokens given to all passes */
    atomic_size_t reserved, sequences, passes, most_rows, most_tokens, rows_with_decode;
    atomic_size_t largest_chunk_beside_decode, largest_chunk_alone;
    atomic_bool
        misused; /* called from two threads, two rows of one sequence, overflow of a reservation */
    atomic_uintptr_t thread;
} FakeEngine;

void fake_engine_init(FakeEngine *fake, uint32_t max_context);
/* The engine has forward_choose; before a scheduler has it. */
void fake_engine_choose_tokens(FakeEngine *fake);
/* It has forward_begin and forward_continue; likewise. */
void fake_engine_hold_passes(FakeEngine *fake);
/* The greedy reply to a prompt as bytes, computed without an engine; its length. ended tells
 * whether it came to its end token within max. */
size_t fake_reply(const int32_t *prompt, size_t n_prompt, bool never_ends, char *out, size_t max,
                  bool *ended);
/* What the engine answers after these tokens: logits [FAKE_VOCAB]. */
void fake_logits_after(const int32_t *tokens, size_t count, bool never_ends, float *logits);

#endif
