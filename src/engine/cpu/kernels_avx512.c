/* AVX-512: quantising activations, and the tables of this instruction set and of AMX, which differ
 * in the quantised products of many tokens only: both compute the same bits. */
#include "kernels_avx512.h"

#include <math.h>

enum { QUANTIZE_VECTORS = ACTIVATION_BLOCK / 16 };

/* Four vectors of codes of up to +-limit, all zero when the block is or when an input is not
 * finite.
 */
static FORCE_INLINE void quantize_values(const float *x, float limit, __m512i q[QUANTIZE_VECTORS],
                                         ActivationScale *out)
{
    const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
    __m512 v[QUANTIZE_VECTORS];
    __m512i largest = _mm512_setzero_si512();
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) {
        /* As integers, magnitudes order like floats, with infinity and then NaN on top. */
        v[i] = _mm512_loadu_ps(x + 16 * i);
        largest =
            _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude_bits));
    }
    int32_t top = _mm512_reduce_max_epi32(largest);
    float peak;
    memcpy(&peak, &top, 4);
    bool finite = top < 0x7f800000;
    if (!finite || peak < ACTIVATION_ZERO_BELOW) {
        float value = finite ? 0 : NAN;
        UNROLL
        for (int i = 0; i < QUANTIZE_VECTORS; i++)
            q[i] = _mm512_setzero_si512();
        *out = (ActivationScale){value, value, {value, value}};
        return;
    }
    const __m512 inverse = _mm512_set1_ps(limit / peak);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
    int32_t first = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
    int32_t second = _mm512_reduce_add_epi32(_mm512_add_epi32(q[2], q[3]));
    float scale = peak / limit;
    *out = (ActivationScale){
        scale, scale * (float)(first + second), {scale * (float)first, scale * (float)second}};
}

static FORCE_INLINE void store_codes(const __m512i q[QUANTIZE_VECTORS], int8_t *codes)
{
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        _mm_storeu_si128((__m128i *)(void *)(codes + 16 * i), _mm512_cvtepi32_epi8(q[i]));
}

static void quantize_block(const float *x, int8_t *codes, ActivationScale *scale)
{
    __m512i q[QUANTIZE_VECTORS];
    quantize_values(x, 127.0f, q, scale);
    store_codes(q, codes);
}

static void quantize_block_int16(const float *x, int8_t *codes, ActivationScale *scale)
{
    __m512i q[QUANTIZE_VECTORS], high[QUANTIZE_VECTORS];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, scale);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) /* floor of (code + 128) / 256 */
        high[i] = _mm512_srai_epi32(_mm512_add_epi32(q[i], _mm512_set1_epi32(128)), 8);
    store_codes(high, codes);
    store_codes(q, codes + ACTIVATION_BLOCK); /* the low byte is what is left: -128 .. 127 */
}

#define TABLE(set, multiply_codes)                                                                 \
    {                                                                                              \
        .name = set, .quantize_block = quantize_block,                                             \
        .quantize_block_int16 = quantize_block_int16,                                              \
        .multiply = {multiply_codes,        multiply_codes,        multiply_codes,                 \
                     avx512_multiply_dense, avx512_multiply_dense, avx512_multiply_dense},         \
        .multiply_f32 = {                                                                          \
            avx512_multiply_f32,                                                                   \
            avx512_multiply_f32,                                                                   \
            avx512_multiply_f32,                                                                   \
            avx512_multiply_dense,                                                                 \
            avx512_multiply_dense,                                                                 \
            avx512_multiply_dense                                                                  \
        }                                                                                          \
    }

const KernelTable kernels_avx512 = TABLE("avx512", avx512_multiply_codes);
const KernelTable kernels_amx = TABLE("amx", amx_multiply_quantized);
