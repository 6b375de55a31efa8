/* vocabulary: passes over a row of logits or weights, block by block.
 *
 * A row has a few hundred thousand values, of which a step looks at few one by one: what is known
 * of each block (its largest logit, its sum of weights) tells which blocks to open. The passes are
 * compiled for wider registers as well where those exist; they add in one order whatever the width,
 * so every machine computes the same bits. Threads: any. Private to the room. */
#ifndef GENERATE_VOCABULARY_H
#define GENERATE_VOCABULARY_H

#include "base.h"

enum { VOCABULARY_BLOCK = 256, VOCABULARY_WORDS = VOCABULARY_BLOCK / 64 };

static inline size_t vocabulary_blocks(size_t count)
{
    return (count + VOCABULARY_BLOCK - 1) / VOCABULARY_BLOCK;
}

static inline size_t vocabulary_block_end(size_t vocab_size, size_t block)
{
    size_t end = (block + 1) * VOCABULARY_BLOCK;
    return end < vocab_size ? end : vocab_size;
}

typedef struct VocabularyPasses {
    /* The largest logit of each block to maxima [blocks]. false: there is a NaN. */
    bool (*find_maxima)(const float *logits, size_t count, float *maxima);
    /* Each logit becomes 2^((logit - best) * scale), in place; scale is above 0 and finite. The sum
     * of each block to sums [blocks]. */
    void (*weigh)(float *logits, size_t count, float best, float scale, double *sums);
    /* sums [blocks] become the sums of the weights that are at least least, which is above 0.
     * Before, each is no less than any such weight of its block: one below least is not looked
     * at. */
    void (*sum_from)(const float *weights, size_t count, float least, double *sums);
    /* Which logits of one block (count <= VOCABULARY_BLOCK) are at least least: a bit for each. */
    void (*find_from)(const float *logits, size_t count, float least,
                      uint64_t bits[VOCABULARY_WORDS]);
    /* The sum of e^(logit - best) of all. */
    double (*sum_exponentials)(const float *logits, size_t count, float best);
} VocabularyPasses;

/* The fastest that this machine can run. */
const VocabularyPasses *vocabulary_passes(void);
/* All that it can run, the fastest first; NULL after the last. */
const VocabularyPasses *vocabulary_passes_at(size_t index);

extern const VocabularyPasses vocabulary_passes_plain, vocabulary_passes_avx2,
    vocabulary_passes_avx512;

#endif
