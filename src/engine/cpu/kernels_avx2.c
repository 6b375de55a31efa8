/* AVX2: quantising activations, and the table of this instruction set.
 *
 * The products rest on vpmaddubsw, which multiplies 32 unsigned bytes with 32 signed ones and adds
 * pairs of products into 16 bits. A vector of weights holds 4 inputs of 8 rows, the activations' 4
 * codes are broadcast, and sums are widened to 32 bits before they could overflow
 * (sums_in_16_bits); so every dot is exact, and the kernels for few and for many tokens may sum it
 * in any order. What is in float32 follows the order that kernels.h fixes. */
#include "kernels_avx2.h"

#include <math.h>

static void multiply_quantized(const KernelJob *job)
{
    if (job->x->n_tokens == 0)
        return;
    /* Two planes keep a token in the registers of two. */
    if (job->x->n_tokens * job->x->planes <= AVX2_FEW_TOKENS)
        avx2_multiply_few(job);
    else
        avx2_multiply_many(job);
}

/* Four vectors of 8 codes of up to +-limit; zero when the block has none. */
static FORCE_INLINE void quantize_values(const float *x, float limit, __m256i q[4],
                                         ActivationBlock *out)
{
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4], largest = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        /* As integers, magnitudes order like floats, with infinity and then NaN on top. */
        largest = _mm256_castsi256_ps(
            _mm256_max_epi32(_mm256_castps_si256(largest),
                             _mm256_castps_si256(_mm256_and_ps(v[i], magnitude_bits))));
    }
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(_mm256_castps_si256(largest)),
                                _mm256_extracti128_si256(_mm256_castps_si256(largest), 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    float peak = _mm_cvtss_f32(_mm_castsi128_ps(top));
    bool finite = _mm_cvtsi128_si32(top) < 0x7f800000;
    if (!finite || peak < ACTIVATION_ZERO_BELOW) {
        for (int i = 0; i < 4; i++)
            q[i] = _mm256_setzero_si256();
        out->scale = out->offset = finite ? 0 : NAN;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(limit / peak);
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    out->scale = peak / limit;
    out->offset = out->scale * (float)_mm_cvtsi128_si32(sum);
}

static FORCE_INLINE void store_codes(const __m256i q[4], ActivationBlock *out)
{
    /* Packing works in 128-bit halves; the permutation puts the groups of 4 codes back in order. */
    __m256i codes =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)out->codes, codes);
}

static void quantize_block(const float *x, ActivationBlock *out)
{
    __m256i q[4];
    quantize_values(x, 127.0f, q, out);
    store_codes(q, out);
}

static void quantize_block_int16(const float *x, ActivationBlock *out)
{
    const __m256 inverse_step = _mm256_set1_ps(1.0f / ACTIVATION_PLANE_STEP);
    const __m256i step = _mm256_set1_epi32(ACTIVATION_PLANE_STEP);
    __m256i q[4], high[4];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, out);
    for (int i = 0; i < 4; i++) {
        /* The step is odd, so nothing lies half way and the rest stays within +-127. */
        high[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(q[i]), inverse_step));
        q[i] = _mm256_sub_epi32(q[i], _mm256_mullo_epi32(high[i], step));
    }
    store_codes(high, out);
    store_codes(q, out + 1);
}

void avx2_store_part(const KernelJob *job, size_t tile, size_t token, __m256 acc)
{
    size_t first = tile * TILE_ROWS;
    float values[TILE_ROWS];
    float *y = job->y + token * job->y_stride + first;
    _mm256_storeu_ps(values, acc);
    for (size_t r = 0; first + r < job->matrix->rows; r++)
        y[r] = job->bias ? values[r] + job->bias[first + r] : values[r];
}

const KernelTable kernels_avx2 = {
    .name = "avx2",
    .quantize_block = quantize_block,
    .quantize_block_int16 = quantize_block_int16,
    .multiply = {multiply_quantized, multiply_quantized, multiply_quantized, avx2_multiply_dense,
                 avx2_multiply_dense, avx2_multiply_dense},
    .multiply_f32 = {avx2_multiply_f32, avx2_multiply_f32, avx2_multiply_f32, avx2_multiply_dense,
                     avx2_multiply_dense, avx2_multiply_dense},
};
