/* Private to the AVX2 kernel files, which are compiled with -mavx2 -mfma -mf16c: loads and stores
 * of the packed layout, and the products of codes.
 *
 * kernels_avx2_few.c, kernels_avx2_many.c and machine_limits_avx2.c are compiled for AVX2 and again
 * for AVX-VNNI, with AVX2_VNNI telling which: where AVX2 multiplies and adds in pairs to 16 bits,
 * whose sums must be widened before they overflow, VNNI's vpdpbusd adds fours to 32 bits. Dots are
 * exact either way, so both give the same bits. */
#ifndef ENGINE_CPU_KERNELS_AVX2_H
#define ENGINE_CPU_KERNELS_AVX2_H

#include "avx2_math.h"
#include "kernels.h"

#include <string.h>

/* Fewer tokens than this stream past the weights; the measured cross-over. From it on activations
 * of 16 bits are words, and with AVX2 from the second where weights have 8 bits: four products
 * of nibbles would take the place of two of words. */
enum { AVX2_MANY_TOKENS = 4, AVX2_MANY_TOKENS_OF_BYTES = 2 };

void avx2_multiply_few(const KernelJob *job); /* quantised formats */
void avx2_multiply_many(const KernelJob *job);
void avxvnni_multiply_few(const KernelJob *job);
void avxvnni_multiply_many(const KernelJob *job);
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

enum { PREFETCH_BYTES = 2048 };

/* Asks for what stands PREFETCH_BYTES behind these codes, over the seams between tiles, where the
 * hardware's prefetcher would start anew. */
static FORCE_INLINE void prefetch_codes(const uint8_t *codes, size_t bytes)
{
    UNROLL
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)codes + PREFETCH_BYTES + at, _MM_HINT_T0);
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

#if defined(AVX2_VNNI)
#if AVX2_VNNI
#define AVX2_NAME(function) avxvnni_##function

/* Adds the products of unsigned and signed bytes to sums that stand for 32-bit lanes. */
static FORCE_INLINE __m256i add_products(__m256i sums, __m256i codes, __m256i x)
{
    return _mm256_dpbusd_avx_epi32(sums, codes, x);
}

/* The lanes of sums, times a power of two. */
static FORCE_INLINE __m256i widen_sums(__m256i sums, int step)
{
    return step == 1 ? sums : _mm256_slli_epi32(sums, __builtin_ctz((unsigned)step));
}

/* How many vectors of codes may be added up before the sums are widened. */
static FORCE_INLINE int vectors_in_sums(KernelKind kind)
{
    return kind.span_blocks * BLOCK_VECTORS;
}

/* Whether codes are multiplied as two planes of nibbles. */
static FORCE_INLINE bool has_nibble_planes(KernelKind kind)
{
    (void)kind;
    return false;
}

#define AVX2_BY_FORMAT KERNEL_BY_FORMAT
#else
#define AVX2_NAME(function) avx2_##function

static FORCE_INLINE __m256i add_products(__m256i sums, __m256i codes, __m256i x)
{
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x));
}

static FORCE_INLINE __m256i widen_sums(__m256i sums, int step)
{
    return _mm256_madd_epi16(sums, _mm256_set1_epi16((int16_t)step));
}

/* Each sum of vpmaddubsw adds two products of a code and -128; all must stay within 16 bits. */
static FORCE_INLINE int vectors_in_sums(KernelKind kind)
{
    if (kind.format == PACKED_FP4)
        return 4; /* 4 * 2 * 24 * 128 = 24,576 */
    switch (kind.code_bits) {
    case 5:
        return 4; /* 4 * 2 * 31 * 128 = 31,744 */
    case 6:
        return 2; /* 2 * 2 * 63 * 128 = 32,256 */
    default:
        return 8; /* 8 * 2 * 15 * 128 = 30,720; 8 bits go as two planes of nibbles */
    }
}

static FORCE_INLINE bool has_nibble_planes(KernelKind kind)
{
    return kind.format == PACKED_BYTES && kind.code_bits == 8;
}

/* KERNEL_BY_FORMAT, with the widths of codes apart. */
#define AVX2_BY_FORMAT(multiply, job)                                                              \
    do {                                                                                           \
        if ((job)->matrix->format != PACKED_BYTES || (job)->matrix->code_bits == 8)                \
            KERNEL_BY_FORMAT(multiply, job);                                                       \
        else if ((job)->matrix->code_bits == 5)                                                    \
            KERNEL_BY_PLANES(multiply, job, PACKED_BYTES, 5);                                      \
        else                                                                                       \
            KERNEL_BY_PLANES(multiply, job, PACKED_BYTES, 6);                                      \
    } while (0)
#endif
#endif

/* acc + dot * (scale * x.scale) + bias * x.offset, in the order that kernels.h fixes. */
static FORCE_INLINE __m256 add_span(__m256 acc, __m256i dot, __m256 scales, __m256 biases,
                                    __m256 x_scale, __m256 x_offset)
{
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scales, x_scale), acc);
    return _mm256_fmadd_ps(biases, x_offset, acc);
}

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
