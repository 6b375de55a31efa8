/* Private to the AVX-512 and AMX kernel files, which are compiled with the flags of AVX-512 F, BW,
 * VL, DQ and VNNI: loads and stores of the packed layout, whose vectors are registers here. */
#ifndef ENGINE_CPU_KERNELS_AVX512_H
#define ENGINE_CPU_KERNELS_AVX512_H

#include "kernels.h"

#include <immintrin.h>
#include <string.h>

enum {
    FLOATS_PER_SCALE = sizeof(ActivationScale) / 4,
    WINOGRAD_FROM_TOKENS = 15 /* where it is faster; codes of 16 bits are words then */
};

void amx_multiply_quantized(const KernelJob *job);
void avx512_multiply_winograd(const KernelJob *job); /* quantised formats; many tokens itself */
void avx512_multiply_codes(const KernelJob *job);    /* quantised formats */
void avx512_multiply_int8(const KernelJob *job);     /* ... with activations of one precision */
void avx512_multiply_int12(const KernelJob *job);
void avx512_multiply_int16(const KernelJob *job);
void avx512_multiply_dense(const KernelJob *job); /* dense formats */
void avx512_multiply_f32(const KernelJob *job);   /* every format, float32 products */

/* Sixteen values of a type, one a row. */
static FORCE_INLINE __m512 load_rows(const uint8_t *at, ScaleType type)
{
    if (type == SCALE_F32)
        return _mm512_loadu_ps(at);
    __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)at);
    if (type == SCALE_F16)
        return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static FORCE_INLINE size_t block_bytes(PackedFormat format)
{
    return format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
}

/* Of activations. */
static FORCE_INLINE size_t block_code_bytes(KernelKind kind)
{
    return kind.has_pairs ? ACTIVATION_INT12_BYTES : kind.planes * ACTIVATION_BLOCK;
}

/* Four consecutive activation codes to every lane. */
static FORCE_INLINE __m512i broadcast_codes(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

/* Code vector j of a block. */
static FORCE_INLINE __m512i load_codes(const uint8_t *block, size_t j, PackedFormat format)
{
    if (format == PACKED_BYTES)
        return _mm512_loadu_si512(block + j * VECTOR_BYTES);
    __m512i codes = _mm512_loadu_si512(block + j / 2 * VECTOR_BYTES);
    if (j % 2)
        codes = _mm512_srli_epi16(codes, 4);
    codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    if (format == PACKED_FP4) {
        static const uint8_t fp4_codes[16] = FP4_CODES;
        const __m512i table =
            _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)fp4_codes));
        codes = _mm512_shuffle_epi8(table, codes);
    }
    return codes;
}

/* sum += four products of unsigned and signed bytes a lane. In assembly: GCC 12 copies sums to and
 * fro around the intrinsic, at 8 bits 4% of the time. */
static FORCE_INLINE __m512i add_products(__m512i sum, __m512i codes, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
    return sum;
}

/* The dot of both planes. */
static FORCE_INLINE __m512i join_planes(__m512i high, __m512i low)
{
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

/* What the bytes that pairs share add to the dot: with the first inputs' weights, and the second's.
 */
static FORCE_INLINE __m512i join_pairs(__m512i first, __m512i second)
{
    return _mm512_add_epi32(_mm512_slli_epi32(second, 4), first);
}

/* acc + dot * (scale * x.scale) + bias * x.offset, in the order that kernels.h fixes. */
static FORCE_INLINE __m512 add_span(__m512 acc, __m512i dot, __m512 scales, __m512 biases,
                                    float x_scale, float x_offset)
{
    __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scale));
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, acc);
    return _mm512_fmadd_ps(biases, _mm512_set1_ps(x_offset), acc);
}

/* Writes the rows of a tile that exist. */
static FORCE_INLINE void store_tile(const KernelJob *job, size_t tile, size_t token, __m512 acc)
{
    size_t first = tile * TILE_ROWS, left = job->matrix->rows - first;
    __mmask16 mask = (__mmask16)(left < TILE_ROWS ? (1u << left) - 1 : 0xffffu);
    if (job->bias)
        acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(mask, job->bias + first));
    _mm512_mask_storeu_ps(job->y + token * job->y_stride + first, mask, acc);
}

#endif
