/* nucleus: which tokens the best ones are that weigh a given sum together, without sorting.
 *
 * Tokens are ordered by weight, equal ones by id. The answer is a place in that order, not a list:
 * everything above it is kept. Weights are floats in [0, 1], whose bits order like their values;
 * the place is found as digits of a number are, by sums of the weights in ever narrower ranges of
 * bits. Private to the room. Threads: any. */
#ifndef GENERATE_NUCLEUS_H
#define GENERATE_NUCLEUS_H

#include "vocabulary.h"

#include <string.h>

typedef struct Candidate {
    float weight; /* not normalised probability, the best token's is 1 */
    int32_t id;
} Candidate;

/* The last token that is kept. */
typedef struct NucleusCut {
    uint32_t bits; /* of its weight */
    int32_t id;    /* its id: of equal weights, those up to it are kept */
} NucleusCut;

static inline uint32_t nucleus_bits(float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, sizeof(bits));
    return bits;
}

static inline bool nucleus_keeps(const NucleusCut *cut, float weight, int32_t id)
{
    uint32_t bits = nucleus_bits(weight);
    return bits > cut->bits || (bits == cut->bits && id <= cut->id);
}

/* Where the best tokens of list reach target, of which `above` lies outside of the list in better
 * tokens. list [count]: ascending ids, all weights with bits in [low, high). When all of it is not
 * enough, the cut keeps all. */
NucleusCut nucleus_find(const Candidate *list, size_t count, uint32_t low, uint32_t high,
                        double above, double target);

/* The range of bits, a sixteenth of a power of two, in which the cut for target lies. Not below
 * least: when all down to there is not enough, the range begins at least. */
void nucleus_narrow(const float *weights, size_t count, double target, uint32_t least,
                    uint32_t *low, uint32_t *high);

#endif
