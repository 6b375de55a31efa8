/* Private to the AVX2 kernel files, which are compiled with -mavx2 -mfma -mf16c: loads and stores
 * of the packed layout, and the loops over tokens that the quantised formats share. */
#ifndef ENGINE_CPU_KERNELS_AVX2_H
#define ENGINE_CPU_KERNELS_AVX2_H

#include "kernels.h"

#include <immintrin.h>
#include <string.h>

/* Kernels count on loops over registers being unrolled: an array in a rolled loop lives in memory.
 */
#define UNROLL _Pragma("GCC unroll 8")

/* Pins a sum to a register at this point. Left alone, the compiler turns a chain of additions into
 * a tree, which needs more registers than there are and spills most of them. */
#define PIN(vector) __asm__("" : "+x"(vector))

/* Up to this many columns (tokens times planes) the weights are streamed past the tokens; the
 * measured cross-over. */
enum { AVX2_FEW_TOKENS = 7 };

void avx2_multiply_few(const KernelJob *job); /* 1 .. AVX2_FEW_TOKENS tokens, quantised formats */
void avx2_multiply_many(const KernelJob *job);
void avx2_multiply_dense(const KernelJob *job); /* dense formats */
void avx2_multiply_f32(const KernelJob *job);   /* every format, float32 products */
/* Writes those of 8 rows that exist; a function, to keep it out of every kernel. */
void avx2_store_part(const KernelJob *job, size_t first_row, size_t token, __m256 acc);

static FORCE_INLINE __m256 load_f16(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

static FORCE_INLINE __m256 load_bf16(const uint8_t *at)
{
    __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* A tile has the rows of two registers: half 0 and half 1 of each of its vectors. */
enum { HALF_ROWS = 8, HALVES = TILE_ROWS / HALF_ROWS, HALF_BYTES = 4 * HALF_ROWS };

/* Eight values of a type, one a row. */
static FORCE_INLINE __m256 load_rows(const uint8_t *at, ScaleType type)
{
    switch (type) {
    case SCALE_F16:
        return load_f16(at);
    case SCALE_BF16:
        return load_bf16(at);
    default:
        return _mm256_loadu_ps((const float *)(const void *)at);
    }
}

static FORCE_INLINE __m256i load_bytes(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

/* Four consecutive activation codes to every lane. */
static FORCE_INLINE __m256i broadcast_codes(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
}

/* One half of a nibble block's vector to the two code vectors in it. is_fp4: E2M1 to FP4_CODES. */
static FORCE_INLINE void unpack_pair(const uint8_t *at, bool is_fp4, __m256i *first,
                                     __m256i *second)
{
    static const uint8_t fp4_codes[16] = FP4_CODES;
    const __m256i low = _mm256_set1_epi8(15);
    __m256i pair = load_bytes(at);
    PIN(pair); /* one load, not one for each use */
    *first = _mm256_and_si256(pair, low);
    *second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
    if (is_fp4) {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)fp4_codes));
        *first = _mm256_shuffle_epi8(table, *first);
        *second = _mm256_shuffle_epi8(table, *second);
    }
}

/* How many sums of vpmaddubsw stay within 16 bits: each adds two products of a code and -128. */
static FORCE_INLINE int sums_in_16_bits(PackedFormat format, uint32_t code_bits)
{
    if (format == PACKED_FP4)
        return 4; /* 4 * 2 * 24 * 128 = 24,576 */
    switch (format == PACKED_BYTES ? code_bits : 4) {
    case 5:
        return 4; /* 4 * 2 * 31 * 128 = 31,744 */
    case 6:
        return 2; /* 2 * 2 * 63 * 128 = 32,256 */
    default:
        return 8; /* 8 * 2 * 15 * 128 = 30,720; 8 bits go as two planes of nibbles */
    }
}

/* acc + dot * (scale * x.scale) + bias * x.offset, in the order that kernels.h fixes. */
static FORCE_INLINE __m256 add_span(__m256 acc, __m256i dot, __m256 scales, __m256 biases,
                                    const float *x_scale, const float *x_offset)
{
    __m256 scale = _mm256_mul_ps(scales, _mm256_broadcast_ss(x_scale));
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
    return _mm256_fmadd_ps(biases, _mm256_broadcast_ss(x_offset), acc);
}

/* Calls multiply(job, format, scale type, code bits) with what fits the job's matrix. A macro,
 * since each call must have constants to be compiled for: a function would pass them at run time.
 * The scale type is left to branches, which go one way throughout a matrix: a third of the kernels.
 */
#define AVX2_MULTIPLY(multiply, job)                                                               \
    do {                                                                                           \
        const ScaleType type = (job)->matrix->scale_type;                                          \
        if ((job)->matrix->format == PACKED_NIBBLES)                                               \
            multiply(job, PACKED_NIBBLES, type, 4);                                                \
        else if ((job)->matrix->format == PACKED_FP4)                                              \
            multiply(job, PACKED_FP4, SCALE_BF16, 4);                                              \
        else if ((job)->matrix->code_bits == 5)                                                    \
            multiply(job, PACKED_BYTES, type, 5);                                                  \
        else if ((job)->matrix->code_bits == 6)                                                    \
            multiply(job, PACKED_BYTES, type, 6);                                                  \
        else                                                                                       \
            multiply(job, PACKED_BYTES, type, 8);                                                  \
    } while (0)

/* Writes the rows of half a tile that exist. */
static FORCE_INLINE void store_half(const KernelJob *job, size_t tile, size_t half, size_t token,
                                    __m256 acc)
{
    size_t first = tile * TILE_ROWS + half * HALF_ROWS;
    if (job->matrix->rows < first + HALF_ROWS) {
        avx2_store_part(job, first, token, acc);
        return;
    }
    if (job->bias)
        acc = _mm256_add_ps(acc, _mm256_loadu_ps(job->bias + first));
    _mm256_storeu_ps(job->y + token * job->y_stride + first, acc);
}

#endif
