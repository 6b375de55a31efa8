/* Private to the AVX2 kernel files, which are compiled with -mavx2 -mfma -mf16c: loads and stores of the
 * packed layout, and the loops over tokens that the quantised formats share. */
#ifndef ENGINE_CPU_KERNELS_AVX2_H
#define ENGINE_CPU_KERNELS_AVX2_H

#include "kernels.h"

#include <immintrin.h>
#include <string.h>

static FORCE_INLINE __m256 load_f16(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

static FORCE_INLINE __m256 load_bf16(const uint8_t *at)
{
    __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

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

/* acc + dot * (scale * x.scale) + bias * x.offset, in the order that kernels.h fixes. */
static FORCE_INLINE __m256 add_block(__m256 acc, __m256i dot, __m256 scales, __m256 biases,
                                     const ActivationBlock *x)
{
    __m256 scale = _mm256_mul_ps(scales, _mm256_broadcast_ss(&x->scale));
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
    return _mm256_fmadd_ps(biases, _mm256_broadcast_ss(&x->offset), acc);
}

/* Writes the rows of a tile that exist. */
static FORCE_INLINE void store_tile(const KernelJob *job, size_t tile, size_t token, __m256 acc)
{
    size_t first = tile * TILE_ROWS;
    size_t rows = job->matrix->rows - first;
    float *y = job->y + token * job->y_stride + first;
    if (rows >= TILE_ROWS) {
        if (job->bias)
            acc = _mm256_add_ps(acc, _mm256_loadu_ps(job->bias + first));
        _mm256_storeu_ps(y, acc);
        return;
    }
    float values[TILE_ROWS];
    _mm256_storeu_ps(values, acc);
    for (size_t r = 0; r < rows; r++)
        y[r] = job->bias ? values[r] + job->bias[first + r] : values[r];
}

#endif
