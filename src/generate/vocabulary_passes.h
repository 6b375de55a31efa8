/* The passes themselves, for the files that compile them. A block that is not whole is treated as
 * if values of no effect followed; sums are kept in lanes by position and added at the end. */
#ifndef GENERATE_VOCABULARY_PASSES_H
#define GENERATE_VOCABULARY_PASSES_H

#include "exponential.h"
#include "vocabulary.h"

#include <math.h>
#include <string.h>

#ifdef __AVX2__
#define WIDTH 8
#else
#define WIDTH 4
#endif
enum { LANES = 8, HALF = WIDTH / 2, SUMS = LANES / HALF };

/* One register each. They are passed by address: by value would depend on the instruction set. */
typedef float Floats __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef float HalfFloats __attribute__((vector_size(HALF * sizeof(float))));
typedef int32_t HalfIntegers __attribute__((vector_size(HALF * sizeof(int32_t))));
typedef double Doubles __attribute__((vector_size(HALF * sizeof(double))));

static size_t block_length(size_t start, size_t count)
{
    return count - start < VOCABULARY_BLOCK ? count - start : VOCABULARY_BLOCK;
}

/* exp_negative, lane by lane. */
static inline void exp_lanes(Floats *x)
{
    const Integers in_range = *x >= -87.0f;
    const Floats clamped =
        (Floats)(((Integers)*x & in_range) | ((Integers)((Floats){0} - 87.0f) & ~in_range));
    const Integers n = __builtin_convertvector(clamped * 1.44269504f - 0.5f, Integers);
    const Floats whole = __builtin_convertvector(n, Floats);
    const Floats r = EXPONENTIAL_REMAINDER(clamped, whole);
    const Floats scale = (Floats)((n + 127) << 23);
    *x = (Floats)((Integers)(EXPONENTIAL_POLYNOMIAL(r) * scale) & in_range);
}

/* The largest of count values; *nan gathers the lanes that hold one. */
static float block_maximum(const float *logits, size_t count, Integers *nan)
{
    Floats value, most = (Floats){0} - INFINITY;
    size_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        memcpy(&value, logits + i, sizeof(value));
        const Integers larger = value > most;
        most = (Floats)(((Integers)value & larger) | ((Integers)most & ~larger));
        *nan |= value != value;
    }
    float best = most[0];
    for (size_t l = 1; l < WIDTH; l++)
        best = most[l] > best ? most[l] : best;
    for (; i < count; i++) {
        best = logits[i] > best ? logits[i] : best;
        (*nan)[0] |= -(logits[i] != logits[i]);
    }
    return best;
}

static bool find_maxima(const float *logits, size_t count, float *maxima)
{
    Integers nan = {0};
    int32_t any = 0;
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK)
        maxima[start / VOCABULARY_BLOCK] =
            block_maximum(logits + start, block_length(start, count), &nan);
    for (size_t l = 0; l < WIDTH; l++)
        any |= nan[l];
    return any == 0;
}

/* The sum of a block's weights that are at least least: lane l adds those at l, l + LANES... */
static double sum_block_from(const float *weights, size_t count, float least)
{
    Doubles sums[SUMS] = {{0}};
    double lanes[LANES];
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (size_t s = 0; s < SUMS; s++) {
            HalfFloats value;
            memcpy(&value, weights + i + s * HALF, sizeof(value));
            value = (HalfFloats)((HalfIntegers)value & (value >= least));
            sums[s] += __builtin_convertvector(value, Doubles);
        }
    }
    memcpy(lanes, sums, sizeof(lanes));
    for (size_t l = 0; i < count; i++, l++)
        lanes[l] += (double)(weights[i] >= least ? weights[i] : 0.0f);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static void weigh_block(const float *logits, size_t count, float best, float scale, float *out)
{
    size_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        Floats weights;
        memcpy(&weights, logits + i, sizeof(weights));
        weights = (weights - best) * scale;
        exp_lanes(&weights);
        memcpy(out + i, &weights, sizeof(weights));
    }
    for (; i < count; i++)
        out[i] = exp_negative((logits[i] - best) * scale);
}

static void weigh(float *logits, size_t count, float best, float scale, double *sums)
{
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        size_t length = block_length(start, count);
        weigh_block(logits + start, length, best, scale, logits + start);
        sums[start / VOCABULARY_BLOCK] = sum_block_from(logits + start, length, 0);
    }
}

static double sum_weights(const float *logits, size_t count, float best)
{
    float weights[VOCABULARY_BLOCK];
    double sum = 0;
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        size_t length = block_length(start, count);
        weigh_block(logits + start, length, best, 1, weights);
        sum += sum_block_from(weights, length, 0);
    }
    return sum;
}

static void sum_from(const float *weights, size_t count, float least, double *sums)
{
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK)
        sums[start / VOCABULARY_BLOCK] =
            sum_block_from(weights + start, block_length(start, count), least);
}

#endif
