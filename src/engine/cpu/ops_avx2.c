/* The operations in AVX2 with FMA. Tails shorter than a vector go through a padded copy,
 * so that a value's bits do not depend on where in a row it stands. */
#include "ops.h"

#include "attention_codes.h"

#include "avx2_math.h"

#include <math.h>
#include <string.h>

enum { LANES = 8 };

static void rms_norm_avx2(const float *x, const float *weight, size_t n, float eps, float *out)
{
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + LANES);
        even = _mm256_fmadd_ps(a, a, even);
        odd = _mm256_fmadd_ps(b, b, odd);
    }
    float sum = avx2_sum(_mm256_add_ps(even, odd));
    for (; i < n; i++)
        sum = fmaf(x[i], x[i], sum);
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    __m256 wide = _mm256_set1_ps(scale);
    for (i = 0; i + LANES <= n; i += LANES) {
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), wide);
        _mm256_storeu_ps(out + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
    }
    for (; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void add_avx2(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++)
        x[i] += y[i];
}

static void add_scaled_avx2(float *x, const float *y, size_t n, float scale)
{
    __m256 wide = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(x + i,
                         _mm256_fmadd_ps(_mm256_loadu_ps(y + i), wide, _mm256_loadu_ps(x + i)));
    for (; i < n; i++)
        x[i] = fmaf(y[i], scale, x[i]);
}

static void scale_avx2(const float *x, size_t n, float scale, float *out)
{
    __m256 wide = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), wide));
    for (; i < n; i++)
        out[i] = x[i] * scale;
}

/* x sigmoid(z) y */
static inline __m256 gated(__m256 x, __m256 z, __m256 y)
{
    __m256 e = avx2_exp(_mm256_sub_ps(_mm256_setzero_ps(), z));
    return _mm256_mul_ps(_mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), y);
}

static inline __m256 silu_vector(__m256 gate, __m256 up)
{
    return gated(gate, gate, up);
}

static inline __m256 gelu_vector(__m256 gate, __m256 up)
{
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(gate, gate), gate);
    __m256 u = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), gate);
    return gated(gate, _mm256_mul_ps(u, _mm256_set1_ps(1.5957691216057308f)), up);
}

static void silu_multiply_avx2(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(gate + i, silu_vector(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == n)
        return;
    float g[LANES] = {0}, u[LANES] = {0};
    memcpy(g, gate + i, (n - i) * sizeof *g);
    memcpy(u, up + i, (n - i) * sizeof *u);
    _mm256_storeu_ps(g, silu_vector(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(gate + i, g, (n - i) * sizeof *g);
}

static void gelu_tanh_multiply_avx2(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(gate + i, gelu_vector(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == n)
        return;
    float g[LANES] = {0}, u[LANES] = {0};
    memcpy(g, gate + i, (n - i) * sizeof *g);
    memcpy(u, up + i, (n - i) * sizeof *u);
    _mm256_storeu_ps(g, gelu_vector(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(gate + i, g, (n - i) * sizeof *g);
}

static void soft_cap_avx2(float *x, size_t n, float cap)
{
    __m256 wide = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1.0f / cap);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256 t = avx2_tanh(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(t, wide));
    }
    if (i == n)
        return;
    float tail[LANES] = {0};
    memcpy(tail, x + i, (n - i) * sizeof *tail);
    __m256 t = avx2_tanh(_mm256_mul_ps(_mm256_loadu_ps(tail), inverse));
    _mm256_storeu_ps(tail, _mm256_mul_ps(t, wide));
    memcpy(x + i, tail, (n - i) * sizeof *tail);
}

static void rotate_avx2(float *x, const float *cosines, const float *sines, size_t half)
{
    size_t d = 0;
    for (; d + LANES <= half; d += LANES) {
        __m256 a = _mm256_loadu_ps(x + d), b = _mm256_loadu_ps(x + half + d);
        __m256 c = _mm256_loadu_ps(cosines + d), s = _mm256_loadu_ps(sines + d);
        _mm256_storeu_ps(x + d, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + half + d, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
    for (; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = fmaf(a, cosines[d], -(b * sines[d]));
        x[d + half] = fmaf(b, cosines[d], a * sines[d]);
    }
}

/* The vector at x + i of a row of n, zeros behind its end. */
static inline __m256 load_padded(const float *x, size_t n, size_t i)
{
    float tail[LANES] = {0};
    if (n - i >= LANES)
        return _mm256_loadu_ps(x + i);
    memcpy(tail, x + i, (n - i) * sizeof *tail);
    return _mm256_loadu_ps(tail);
}

static float code_scale_avx2(const float *x, size_t n, float norm_max, float code_max)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 squares = _mm256_setzero_ps(), most = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += LANES) {
        __m256 v = load_padded(x, n, i);
        squares = _mm256_fmadd_ps(v, v, squares);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
    }
    return code_scale_of((double)avx2_sum(squares), avx2_max(most), n, norm_max, code_max);
}

static void to_codes_avx2(const float *x, size_t n, float inverse, int16_t *codes)
{
    if (inverse == 0.0f) {
        memset(codes, 0, n * sizeof *codes);
        return;
    }
    for (size_t i = 0; i < n; i += LANES) {
        __m256 v = _mm256_mul_ps(load_padded(x, n, i), _mm256_set1_ps(inverse));
        __m256i wide = _mm256_cvtps_epi32(v);
        __m128i narrow =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        size_t count = n - i < LANES ? n - i : LANES;
        if (count == LANES)
            _mm_storeu_si128((__m128i *)(void *)(codes + i), narrow);
        else
            memcpy(codes + i, &narrow, count * sizeof *codes);
    }
}

const CpuOps ops_avx2 = {
    .name = "avx2",
    .rms_norm = rms_norm_avx2,
    .add = add_avx2,
    .add_scaled = add_scaled_avx2,
    .scale = scale_avx2,
    .silu_multiply = silu_multiply_avx2,
    .gelu_tanh_multiply = gelu_tanh_multiply_avx2,
    .soft_cap = soft_cap_avx2,
    .rotate = rotate_avx2,
    .code_scale = code_scale_avx2,
    .to_codes = to_codes_avx2,
    .kv16 = KV_INT16,
    .attention_segment = attention_segment_avx2,
    .int8_loops = &int8_loops_avx2,
    .int16_loops = &int16_loops_avx2,
};
