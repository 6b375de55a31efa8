/* The passes themselves, for the files that compile them. A block that is not whole is treated as
 * if values of no effect followed; sums are kept in lanes by position and added at the end. */
#ifndef GENERATE_VOCABULARY_PASSES_H
#define GENERATE_VOCABULARY_PASSES_H

#include "exponential.h"
#include "vocabulary.h"

#include <math.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
enum {
    LANES = 16,
    HALF = WIDTH / 2,
    SUMS = LANES / HALF,
    CHAINS = 4,
    NARROW = WIDTH < 8 ? WIDTH : 8
};

/* One register each. They are passed by address: by value would depend on the instruction set. */
typedef float Floats __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(WIDTH * sizeof(uint32_t))));
typedef float HalfFloats __attribute__((vector_size(HALF * sizeof(float))));
typedef int32_t HalfIntegers __attribute__((vector_size(HALF * sizeof(int32_t))));
typedef double Doubles __attribute__((vector_size(HALF * sizeof(double))));

/* What only compares: AVX-512 does that into registers of their own, which are slow to combine. */
typedef float NarrowFloats __attribute__((vector_size(NARROW * sizeof(float))));
typedef int32_t NarrowIntegers __attribute__((vector_size(NARROW * sizeof(int32_t))));

static size_t block_length(size_t start, size_t count)
{
    return count - start < VOCABULARY_BLOCK ? count - start : VOCABULARY_BLOCK;
}

/* exp2_negative, lane by lane. */
static inline void exp2_lanes(Floats *x)
{
    const Integers in_range = *x >= EXPONENTIAL_LEAST;
    const Floats sum = *x + EXPONENTIAL_ROUND, f = *x - (sum - EXPONENTIAL_ROUND);
    const Floats power = EXPONENTIAL_POLYNOMIAL(f);
    *x = (Floats)(((Bits)power + ((Bits)sum << 23)) & (Bits)in_range);
}

/* Lane by lane the larger of two; most, where value is a NaN. */
static inline void take_larger(NarrowFloats *most, const NarrowFloats *value)
{
    const NarrowIntegers larger = *value > *most;
    *most = (NarrowFloats)(((NarrowIntegers)*value & larger) | ((NarrowIntegers)*most & ~larger));
}

/* The largest of count values; *nan gathers the lanes that hold one. Several chains, as each
 * comparison waits for the one before it. */
static float block_maximum(const float *logits, size_t count, NarrowIntegers *nan)
{
    NarrowFloats value, most[CHAINS];
    size_t i = 0;
    for (size_t c = 0; c < CHAINS; c++)
        most[c] = (NarrowFloats){0} - INFINITY;
    for (; i + CHAINS * NARROW <= count; i += CHAINS * NARROW) {
        for (size_t c = 0; c < CHAINS; c++) {
            memcpy(&value, logits + i + c * NARROW, sizeof(value));
            take_larger(&most[c], &value);
            *nan |= value != value;
        }
    }
    for (size_t c = 1; c < CHAINS; c++)
        take_larger(&most[0], &most[c]);
    float best = most[0][0];
    for (size_t l = 1; l < NARROW; l++)
        best = most[0][l] > best ? most[0][l] : best;
    for (; i < count; i++) {
        best = logits[i] > best ? logits[i] : best;
        (*nan)[0] |= -(logits[i] != logits[i]);
    }
    return best;
}

static bool find_maxima(const float *logits, size_t count, float *maxima)
{
    NarrowIntegers nan = {0};
    int32_t any = 0;
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK)
        maxima[start / VOCABULARY_BLOCK] =
            block_maximum(logits + start, block_length(start, count), &nan);
    for (size_t l = 0; l < NARROW; l++)
        any |= nan[l];
    return any == 0;
}

/* The sum of a block's weights, of all or of those that are at least least: lane l adds those at l,
 * l + LANES... */
static inline double sum_lanes(const float *weights, size_t count, bool all, float least)
{
    Doubles sums[SUMS] = {{0}};
    double lanes[LANES];
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (size_t s = 0; s < SUMS; s++) {
            HalfFloats value;
            memcpy(&value, weights + i + s * HALF, sizeof(value));
            if (!all)
                value = (HalfFloats)((HalfIntegers)value & (value >= least));
            sums[s] += __builtin_convertvector(value, Doubles);
        }
    }
    memcpy(lanes, sums, sizeof(lanes));
    for (size_t l = 0; i < count; i++, l++)
        lanes[l] += (double)(all || weights[i] >= least ? weights[i] : 0.0f);
    for (size_t width = LANES / 2; width > 0; width /= 2) {
        for (size_t l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    }
    return lanes[0];
}

static double sum_block(const float *weights, size_t count)
{
    return sum_lanes(weights, count, true, 0);
}

static void weigh_block(const float *logits, size_t count, float best, float scale, float *out)
{
    size_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        Floats weights;
        memcpy(&weights, logits + i, sizeof(weights));
        weights = (weights - best) * scale;
        exp2_lanes(&weights);
        memcpy(out + i, &weights, sizeof(weights));
    }
    for (; i < count; i++)
        out[i] = exp2_negative((logits[i] - best) * scale);
}

static void weigh(float *logits, size_t count, float best, float scale, double *sums)
{
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        size_t length = block_length(start, count);
        weigh_block(logits + start, length, best, scale, logits + start);
        sums[start / VOCABULARY_BLOCK] = sum_block(logits + start, length);
    }
}

/* The bits of LANES logits that are at least least: each lane keeps its own bit, and all are put
 * together. */
static inline uint32_t bits_from(const float *logits, float least)
{
    static const int32_t lane_bits[LANES] = {1 << 0,  1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                             1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                             1 << 12, 1 << 13, 1 << 14, 1 << 15};
    NarrowIntegers found = {0}, bits;
    uint64_t pairs[NARROW / 2], all = 0;
    for (size_t l = 0; l < LANES; l += NARROW) {
        NarrowFloats value;
        memcpy(&value, logits + l, sizeof(value));
        memcpy(&bits, lane_bits + l, sizeof(bits));
        found |= (value >= least) & bits;
    }
    memcpy(pairs, &found, sizeof(pairs));
    for (size_t i = 0; i < NARROW / 2; i++)
        all |= pairs[i];
    return (uint32_t)(all | all >> 32);
}

static void find_from(const float *logits, size_t count, float least, uint64_t *bits)
{
    size_t i = 0;
    memset(bits, 0, VOCABULARY_WORDS * sizeof(*bits));
    for (; i + LANES <= count; i += LANES)
        bits[i / 64] |= (uint64_t)bits_from(logits + i, least) << (i % 64);
    for (; i < count; i++)
        bits[i / 64] |= (uint64_t)(logits[i] >= least) << (i % 64);
}

static double sum_exponentials(const float *logits, size_t count, float best)
{
    float weights[VOCABULARY_BLOCK];
    double sum = 0;
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        size_t length = block_length(start, count);
        weigh_block(logits + start, length, best, EXPONENTIAL_PER_NATURAL, weights);
        sum += sum_block(weights, length);
    }
    return sum;
}

static void sum_from(const float *weights, size_t count, float least, double *sums)
{
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        double *sum = &sums[start / VOCABULARY_BLOCK];
        if (*sum < (double)least)
            *sum = 0;
        else
            *sum = sum_lanes(weights + start, block_length(start, count), false, least);
    }
}

#endif
