/* AVX-512: quantising activations, and the tables of this instruction set, of Zen 4 and of AMX,
 * which differ in the quantised products of many tokens only: all compute the same bits. */
#include "kernels_avx512.h"

#include <math.h>

enum { QUANTIZE_VECTORS = ACTIVATION_BLOCK / 16 };

/* Loads a block and sets the scale with which its largest magnitude gets the code `limit`, and what
 * inputs are multiplied by. Without any codes, which is when all inputs are zero or one is not
 * finite: false, and *out is complete. */
static FORCE_INLINE bool set_scale(const float *x, float limit, __m512 v[QUANTIZE_VECTORS],
                                   ActivationScale *out, float *inverse)
{
    const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
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
    float value = finite ? 0 : NAN;
    *out = (ActivationScale){.scale = value, .offset = value, .half_offsets = {value, value}};
    if (!finite || peak < ACTIVATION_ZERO_BELOW)
        return false;
    *inverse = limit / peak;
    out->scale = peak / limit;
    return true;
}

/* sums: of the codes of each half of the block, lane by lane. */
static FORCE_INLINE void set_offsets(const __m512i sums[2], ActivationScale *out)
{
    int32_t first = _mm512_reduce_add_epi32(sums[0]), second = _mm512_reduce_add_epi32(sums[1]);
    out->offset = out->scale * (float)(first + second);
    out->half_offsets[0] = out->scale * (float)first;
    out->half_offsets[1] = out->scale * (float)second;
}

/* Four vectors of codes of up to +-limit. */
static FORCE_INLINE void quantize_values(const float *x, float limit, __m512i q[QUANTIZE_VECTORS],
                                         ActivationScale *out)
{
    __m512 v[QUANTIZE_VECTORS];
    float inverse;
    if (!set_scale(x, limit, v, out, &inverse)) {
        UNROLL
        for (int i = 0; i < QUANTIZE_VECTORS; i++)
            q[i] = _mm512_setzero_si512();
        return;
    }
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], _mm512_set1_ps(inverse)));
    const __m512i sums[2] = {_mm512_add_epi32(q[0], q[1]), _mm512_add_epi32(q[2], q[3])};
    set_offsets(sums, out);
}

/* Of half a block: its pairs' first inputs and their second ones. */
static FORCE_INLINE int32_t pair_rest(__m512i a, __m512i b)
{
    const __m512i terms =
        _mm512_mullo_epi32(a, _mm512_add_epi32(b, _mm512_set1_epi32(WINOGRAD_FIRST)));
    return _mm512_reduce_add_epi32(
        _mm512_sub_epi32(_mm512_mullo_epi32(b, _mm512_set1_epi32(WINOGRAD_SECOND)), terms));
}

static FORCE_INLINE void set_pair_rests(const int32_t rests[2], ActivationScale *out)
{
    out->pair_rest = (int32_t)((uint32_t)rests[0] + (uint32_t)rests[1]);
    out->half_pair_rests[0] = rests[0];
    out->half_pair_rests[1] = rests[1];
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

/* As words; pairs are neighbours, and their first inputs come first of each 4. */
static void quantize_block_words(const float *x, int8_t *codes, ActivationScale *scale)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m512i q[QUANTIZE_VECTORS];
    int32_t rests[2];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, scale);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) {
        __m256i words =
            _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(q[i]), _mm256_broadcastsi128_si256(order));
        _mm256_storeu_si256((__m256i *)(void *)(codes + 32 * i), words);
        q[i] = _mm512_mul_epi32(q[i], _mm512_srli_epi64(q[i], 32)); /* a b, in 64 bits */
    }
    UNROLL
    for (int half = 0; half < 2; half++) /* modulo 2^32, as products are added */
        rests[half] = (int32_t)(uint32_t)-_mm512_reduce_add_epi64(
            _mm512_add_epi64(q[2 * half], q[2 * half + 1]));
    set_pair_rests(rests, scale);
}

/* The low bits of each lane, signed. */
static FORCE_INLINE __m512i low_bits(__m512i v, unsigned bits)
{
    return _mm512_srai_epi32(_mm512_slli_epi32(v, 32 - bits), 32 - bits);
}

/* Half a block, as kernels_plain.c says it: the first inputs of pairs and the second ones, fours of
 * them in the order of the block. Returns the sum of their codes, lane by lane. *rest: the pairs'
 * own. */
static FORCE_INLINE __m512i quantize_pairs(__m512 first, __m512 second, float inverse, int8_t *own,
                                           int8_t *shared, int32_t *rest)
{
    enum { STEP = ACTIVATION_PAIR_STEP, STEP_BITS = 4 };
    const __m512 to_steps = _mm512_set1_ps(inverse / STEP);
    const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(second, to_steps));
    const __m512i low = low_bits(steps, STEP_BITS);
    const __m512 off = _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_set1_ps(1.0f / STEP));
    __m512i code = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_mul_ps(first, to_steps), off));
    code = _mm512_add_epi32(_mm512_slli_epi32(code, STEP_BITS), low);

    const __m512i u = low_bits(code, 8);
    const __m512i v = _mm512_srai_epi32(_mm512_sub_epi32(code, u), 8);
    const __m512i w = _mm512_srai_epi32(_mm512_sub_epi32(steps, u), STEP_BITS);
    const __m128i v_bytes = _mm512_cvtepi32_epi8(v), w_bytes = _mm512_cvtepi32_epi8(w);
    _mm_storeu_si128((__m128i *)(void *)own, _mm_unpacklo_epi32(v_bytes, w_bytes));
    _mm_storeu_si128((__m128i *)(void *)(own + 16), _mm_unpackhi_epi32(v_bytes, w_bytes));
    _mm_storeu_si128((__m128i *)(void *)shared, _mm512_cvtepi32_epi8(u));
    *rest = pair_rest(v, w);
    return _mm512_add_epi32(code, _mm512_slli_epi32(steps, STEP_BITS));
}

static void quantize_block_int12(const float *x, int8_t *codes, ActivationScale *scale)
{
    enum { LIMIT = ACTIVATION_INT12_STEPS * ACTIVATION_PAIR_STEP };
    __m512 v[QUANTIZE_VECTORS];
    __m512i sums[2];
    int32_t rests[2];
    float inverse;
    if (!set_scale(x, LIMIT, v, scale, &inverse)) {
        memset(codes, 0, ACTIVATION_INT12_BYTES);
        return;
    }
    UNROLL
    for (int half = 0; half < 2; half++)
        sums[half] =
            quantize_pairs(_mm512_shuffle_f32x4(v[2 * half], v[2 * half + 1], 0x88),
                           _mm512_shuffle_f32x4(v[2 * half], v[2 * half + 1], 0xdd), inverse,
                           codes + half * WEIGHT_BLOCK,
                           codes + ACTIVATION_BLOCK + half * (WEIGHT_BLOCK / 2), &rests[half]);
    set_offsets(sums, scale);
    set_pair_rests(rests, scale);
}

void avx512_multiply_codes(const KernelJob *job)
{
    if (job->x->precision == ACTIVATIONS_INT12)
        avx512_multiply_int12(job);
    else if (job->x->planes == 2)
        avx512_multiply_int16(job);
    else
        avx512_multiply_int8(job);
}

#define TABLE_OF(set, multiply_codes)                                                              \
    .name = set, .quantize_block = quantize_block, .quantize_block_int16 = quantize_block_int16,   \
    .quantize_block_int12 = quantize_block_int12,                                                  \
    .multiply = {multiply_codes,        multiply_codes,        multiply_codes,                     \
                 avx512_multiply_dense, avx512_multiply_dense, avx512_multiply_dense},             \
    .multiply_f32 = {avx512_multiply_f32,   avx512_multiply_f32,   avx512_multiply_f32,            \
                     avx512_multiply_dense, avx512_multiply_dense, avx512_multiply_dense}

const KernelTable kernels_avx512 = {TABLE_OF("avx512", avx512_multiply_codes)};
const KernelTable kernels_amx = {TABLE_OF("amx", amx_multiply_quantized)};
const KernelTable kernels_zen4 = {
    TABLE_OF("zen4", avx512_multiply_winograd), .quantize_block_words = quantize_block_words,
    .words_from = WINOGRAD_FROM_TOKENS, .words_from_bytes = WINOGRAD_FROM_TOKENS};
