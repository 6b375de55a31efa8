/* sampler: from a row of logits to one token id.
 *
 * Holds the options of the chain and what it remembers of a reply: the token history for the
 * penalties and the random stream. Scratch memory is made at the first step, so that a request that
 * waits in a queue costs little. Greedy steps need none. */
#ifndef GENERATE_SAMPLER_H
#define GENERATE_SAMPLER_H

#include "generate.h"
#include "random.h"
#include "vocabulary.h"

typedef struct Candidate {
    float weight; /* not normalised probability, the best token's is 1; or a logit */
    int32_t id;
} Candidate;

typedef struct Sampler {
    float temperature, top_p, min_p;
    float scale; /* log2(e) / temperature: weights are powers of two */
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    size_t vocab_size;
    RandomStream random;

    LogitBias *bias; /* one entry an id */
    size_t n_bias;
    int32_t *banned; /* ids that are never chosen */
    size_t n_banned;
    Constraint *constraint; /* own copy, or NULL */
    int32_t *ends;          /* end tokens that are banned where the constraint cannot end */
    size_t n_ends;

    /* Repetition: the last window_size tokens of prompt and reply, as a ring. */
    int32_t *window;
    size_t window_size, window_count, window_at;
    uint64_t *marks; /* [vocab_size] step at which an id of the window was last penalised */
    uint64_t step;
    /* Presence and frequency: how often an id was chosen, and which ids were. */
    uint32_t *counts; /* [vocab_size] */
    int32_t *chosen;
    size_t n_chosen, chosen_capacity;

    const VocabularyPasses *passes;
    Candidate *candidates; /* with top_k: what is kept, and room to find it */
    double *block_sums;    /* [blocks], as maxima: weights that may still be drawn */
    float *maxima;         /* largest logit of each block at this step */
} Sampler;

/* eos: end tokens (copied); with options.ignore_eos they are never chosen. prompt: for the
 * repetition window. */
bool sampler_init(Sampler *sampler, const GenerationOptions *options, const int32_t *eos,
                  size_t n_eos, const int32_t *prompt, size_t n_prompt, size_t vocab_size,
                  Error *err) WARN_UNUSED;
void sampler_reset(Sampler *sampler);
/* Is the chain the temperature alone, and does it remember nothing? */
bool sampler_is_plain(const Sampler *sampler);
/* Runs the chain on logits [vocab_size] (clobbered), remembers the chosen id and tells the
 * constraint unless it is an end token. */
bool sampler_choose(Sampler *sampler, float *logits, int32_t *id, Error *err) WARN_UNUSED;
/* What the constraint is certain about; nothing beside logit_bias, which might ban it. */
bool sampler_append_forced(Sampler *sampler, TokenList *out, Error *err) WARN_UNUSED;
/* Remembers an id that was not chosen here, and tells the constraint. */
bool sampler_force(Sampler *sampler, int32_t id, Error *err) WARN_UNUSED;

/* sampler_draw.c: the chain from temperature on. logits are weights or worse afterwards; best is
 * the largest of them, and that of each block stands in maxima. */
bool sampler_draw(Sampler *sampler, float *logits, float best, int32_t *id, Error *err) WARN_UNUSED;
/* Do top_k, top_p and min_p have no effect? */
bool sampler_keeps_all(const Sampler *sampler);

#endif
