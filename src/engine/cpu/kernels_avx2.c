/* AVX2: quantising activations, and the tables of this instruction set and of AVX-VNNI, which
 * differ in the quantised products only: both compute the same bits. */
#include "kernels_avx2.h"

#include <math.h>

enum { QUANTIZE_VECTORS = ACTIVATION_BLOCK / 8 };

static FORCE_INLINE int32_t sum_lanes(__m256i v)
{
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

/* Eight vectors of codes of up to +-limit, all zero when the block is or when an input is not
 * finite. */
static FORCE_INLINE void quantize_values(const float *x, float limit, __m256i q[QUANTIZE_VECTORS],
                                         ActivationScale *out)
{
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i largest = _mm256_setzero_si256(), sums[2];
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) {
        /* As integers, magnitudes order like floats, with infinity and then NaN on top. */
        __m256 v = _mm256_loadu_ps(x + 8 * i);
        largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(v, magnitude_bits)));
    }
    __m128i top =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    float peak = _mm_cvtss_f32(_mm_castsi128_ps(top));
    bool finite = _mm_cvtsi128_si32(top) < 0x7f800000;
    if (!finite || peak < ACTIVATION_ZERO_BELOW) {
        float value = finite ? 0 : NAN;
        for (int i = 0; i < QUANTIZE_VECTORS; i++)
            q[i] = _mm256_setzero_si256();
        *out = (ActivationScale){.scale = value, .offset = value, .half_offsets = {value, value}};
        return;
    }
    const __m256 inverse = _mm256_set1_ps(limit / peak);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    for (int h = 0; h < 2; h++)
        sums[h] = _mm256_add_epi32(_mm256_add_epi32(q[4 * h], q[4 * h + 1]),
                                   _mm256_add_epi32(q[4 * h + 2], q[4 * h + 3]));
    float scale = peak / limit;
    out->scale = scale;
    out->offset = scale * (float)sum_lanes(_mm256_add_epi32(sums[0], sums[1]));
    out->half_offsets[0] = scale * (float)sum_lanes(sums[0]);
    out->half_offsets[1] = scale * (float)sum_lanes(sums[1]);
}

static FORCE_INLINE void store_codes(const __m256i q[QUANTIZE_VECTORS], int8_t *codes)
{
    UNROLL
    for (int h = 0; h < 2; h++) {
        /* Packing works in 128-bit halves; the permutation puts the groups of 4 codes back in
         * order. */
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[4 * h], q[4 * h + 1]),
                                            _mm256_packs_epi32(q[4 * h + 2], q[4 * h + 3]));
        packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(void *)(codes + 32 * h), packed);
    }
}

static void quantize_block(const float *x, int8_t *codes, ActivationScale *scale)
{
    __m256i q[QUANTIZE_VECTORS];
    quantize_values(x, 127.0f, q, scale);
    store_codes(q, codes);
}

static void quantize_block_int16(const float *x, int8_t *codes, ActivationScale *scale)
{
    __m256i q[QUANTIZE_VECTORS], high[QUANTIZE_VECTORS];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, scale);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) {
        /* Floor of (code + 128) / 256: what is left for the second plane is -128 .. 127. */
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
        q[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(high[i], 8));
    }
    store_codes(high, codes);
    store_codes(q, codes + ACTIVATION_BLOCK);
}

/* 16-bit codes as kernels_avx2_many.c takes them: inputs 0, 2, 1 and 3 of each 4. */
static void quantize_block_words(const float *x, int8_t *codes, ActivationScale *scale)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i q[QUANTIZE_VECTORS];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, scale);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i += 2) {
        /* Packing works in 128-bit halves; the permutation puts them back in order. */
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[i], q[i + 1]), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(codes + 16 * i), _mm256_shuffle_epi8(words, order));
    }
}

void avx2_store_part(const KernelJob *job, size_t first_row, size_t token, __m256 acc)
{
    float values[HALF_ROWS];
    float *y = job->y + token * job->y_stride + first_row;
    _mm256_storeu_ps(values, acc);
    for (size_t r = 0; r < HALF_ROWS && first_row + r < job->matrix->rows; r++)
        y[r] = job->bias ? values[r] + job->bias[first_row + r] : values[r];
}

#define AVX2_TABLE(set, first_words_of_bytes)                                                      \
    static void set##_multiply_quantized(const KernelJob *job)                                     \
    {                                                                                              \
        if (job->x->n_tokens == 0)                                                                 \
            return;                                                                                \
        if (job->x->n_tokens < AVX2_MANY_TOKENS && !job->x->are_words)                             \
            set##_multiply_few(job);                                                               \
        else                                                                                       \
            set##_multiply_many(job);                                                              \
    }                                                                                              \
    const KernelTable kernels_##set = {                                                            \
        .name = #set,                                                                              \
        .quantize_block = quantize_block,                                                          \
        .quantize_block_int16 = quantize_block_int16,                                              \
        .quantize_block_words = quantize_block_words,                                              \
        .words_from = AVX2_MANY_TOKENS,                                                            \
        .words_from_bytes = first_words_of_bytes,                                                  \
        .multiply = {set##_multiply_quantized, set##_multiply_quantized, set##_multiply_quantized, \
                     avx2_multiply_dense, avx2_multiply_dense, avx2_multiply_dense},               \
        .multiply_f32 = {avx2_multiply_f32, avx2_multiply_f32, avx2_multiply_f32,                  \
                         avx2_multiply_dense, avx2_multiply_dense, avx2_multiply_dense}}

AVX2_TABLE(avx2, AVX2_MANY_TOKENS_OF_BYTES);
AVX2_TABLE(avxvnni, AVX2_MANY_TOKENS);
