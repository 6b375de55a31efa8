/* Private to engine/cpu: transpositions in vectors of 16 bytes, which every x86-64 and 64-bit Arm
 * processor has. They are the compilers' own vectors, so that one text serves all instruction
 * sets. */
#ifndef ENGINE_CPU_TRANSPOSE_H
#define ENGINE_CPU_TRANSPOSE_H

#include "hints.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { WORDS_LANES = 4, HALVES_LANES = 8 };

typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));

/* Lanes of a and b; those of b are counted behind those of a. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK_WORDS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define PICK_HALVES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK_WORDS(a, b, ...) __builtin_shuffle(a, b, (Words){__VA_ARGS__})
#define PICK_HALVES(a, b, ...) __builtin_shuffle(a, b, (Halves){__VA_ARGS__})
#endif

/* Four rows of four words: column i goes to to + i * stride bytes. */
static FORCE_INLINE void transpose_words(const Words rows[WORDS_LANES], uint8_t *to, size_t stride)
{
    Words ab_low = PICK_WORDS(rows[0], rows[1], 0, 4, 1, 5);
    Words ab_high = PICK_WORDS(rows[0], rows[1], 2, 6, 3, 7);
    Words cd_low = PICK_WORDS(rows[2], rows[3], 0, 4, 1, 5);
    Words cd_high = PICK_WORDS(rows[2], rows[3], 2, 6, 3, 7);
    const Words columns[] = {
        PICK_WORDS(ab_low, cd_low, 0, 1, 4, 5), PICK_WORDS(ab_low, cd_low, 2, 3, 6, 7),
        PICK_WORDS(ab_high, cd_high, 0, 1, 4, 5), PICK_WORDS(ab_high, cd_high, 2, 3, 6, 7)};
    UNROLL
    for (size_t i = 0; i < WORDS_LANES; i++)
        memcpy(to + i * stride, &columns[i], sizeof columns[i]);
}

/* Eight rows, each a vector of halves by `load`, row_stride bytes apart: column i goes to to + i *
 * stride bytes. Rows two by two make words, which are then transposed, half of the columns after
 * the other: more at a time than there are registers would be slower. */
static FORCE_INLINE void transpose_halves(const void *rows, size_t row_stride,
                                          Halves (*load)(const void *row), uint8_t *to,
                                          size_t stride)
{
    Words low[WORDS_LANES], high[WORDS_LANES];
    UNROLL
    for (size_t i = 0; i < WORDS_LANES; i++) {
        const uint8_t *pair = (const uint8_t *)rows + 2 * i * row_stride;
        Halves even = load(pair), odd = load(pair + row_stride);
        low[i] = (Words)PICK_HALVES(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        high[i] = (Words)PICK_HALVES(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    transpose_words(low, to, stride);
    transpose_words(high, to + WORDS_LANES * stride, stride);
}

/* What CpuOps.store_half_rows does, by what an instruction set makes of HALVES_LANES floats, and by
 * its store_half where there are fewer rows or columns. */
static FORCE_INLINE void
store_transposed(const float *x, size_t row_stride, size_t n_rows, size_t n, uint16_t *out,
                 size_t stride, Halves (*to_halves)(const void *floats),
                 void (*store_half)(const float *x, size_t n, uint16_t *out, size_t stride))
{
    size_t row = 0, whole = n / HALVES_LANES * HALVES_LANES;
    for (; row + HALVES_LANES <= n_rows; row += HALVES_LANES) {
        const float *from = x + row * row_stride;
        for (size_t i = 0; i < whole; i += HALVES_LANES)
            transpose_halves(from + i, row_stride * sizeof *x, to_halves,
                             (uint8_t *)(out + row + i * stride), stride * sizeof *out);
        for (size_t r = 0; r < HALVES_LANES && whole < n; r++)
            store_half(from + r * row_stride + whole, n - whole, out + row + r + whole * stride,
                       stride);
    }
    for (; row < n_rows; row++)
        store_half(x + row * row_stride, n, out + row, stride);
}

#endif
