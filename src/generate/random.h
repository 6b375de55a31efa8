/* random: the draws of one reply, the same on every platform.
 * Counter-based: draw n is a mixing function of (key, n), so that nothing but a counter is state.
 * The mixing is SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
 * Generators, 2014). */
#ifndef GENERATE_RANDOM_H
#define GENERATE_RANDOM_H

#include "base.h"

typedef struct RandomStream {
    uint64_t key;
    uint64_t counter;
} RandomStream;

/* Streams of different (seed, choice) are independent; choice 0 is the stream of a single reply. */
void random_init(RandomStream *random, uint64_t seed, uint32_t choice);
/* A seed from the system. */
bool random_system_seed(uint64_t *seed, Error *err) WARN_UNUSED;
/* Uniform in [0, 1), 53 bits. */
double random_uniform(RandomStream *random);

#endif
