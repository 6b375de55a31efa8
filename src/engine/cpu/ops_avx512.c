/* The operations in AVX-512. Tails shorter than a vector are masked, so that a value's bits do not
 * depend on where in a row it stands. */
#include "ops.h"

#include "attention_codes.h"
#include "avx512_math.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

/* The lanes of a vector that begins at i of n values. */
static inline __mmask16 lanes_left(size_t n, size_t i)
{
    return (__mmask16)(n - i < LANES ? (1u << (n - i)) - 1 : 0xffffu);
}

/* A whole vector without the mask: what masked stores write cannot be forwarded to loads. */
static inline void store_lanes(float *to, __mmask16 mask, __m512 v)
{
    if (mask == 0xffff)
        _mm512_storeu_ps(to, v);
    else
        _mm512_mask_storeu_ps(to, mask, v);
}

static void rms_norm_avx512(const float *x, const float *weight, size_t n, float eps, float *out)
{
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 2 * LANES) {
        __m512 a = _mm512_maskz_loadu_ps(lanes_left(n, i), x + i);
        even = _mm512_fmadd_ps(a, a, even);
        if (i + LANES >= n)
            break;
        __m512 b = _mm512_maskz_loadu_ps(lanes_left(n, i + LANES), x + i + LANES);
        odd = _mm512_fmadd_ps(b, b, odd);
    }
    float sum = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
    __m512 scale = _mm512_set1_ps(1.0f / sqrtf(sum / (float)n + eps));
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
        store_lanes(out + i, mask, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, weight + i)));
    }
}

static void add_avx512(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 sum =
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i));
        store_lanes(x + i, mask, sum);
    }
}

static void add_scaled_avx512(float *x, const float *y, size_t n, float scale)
{
    const __m512 wide = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, y + i), wide,
                                     _mm512_maskz_loadu_ps(mask, x + i));
        store_lanes(x + i, mask, sum);
    }
}

static void scale_avx512(const float *x, size_t n, float scale, float *out)
{
    const __m512 wide = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        store_lanes(out + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), wide));
    }
}

/* x sigmoid(z) y. The reciprocal is a 14-bit one and a step of Newton's: the division would take as
 * long as all the rest. */
static inline __m512 gated(__m512 x, __m512 z, __m512 y)
{
    const __m512 one = _mm512_set1_ps(1.0f), minus_log2_e = _mm512_set1_ps(-1.44269504f);
    __m512 power = _mm512_min_ps(_mm512_set1_ps(125.0f), _mm512_mul_ps(z, minus_log2_e));
    __m512 sum = _mm512_add_ps(one, avx512_exp2_where(0xffff, power));
    __m512 inverse = _mm512_rcp14_ps(sum);
    inverse = _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(sum, inverse, one), inverse);
    return _mm512_mul_ps(_mm512_mul_ps(x, inverse), y);
}

static void silu_multiply_avx512(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
        store_lanes(gate + i, mask, gated(g, g, _mm512_maskz_loadu_ps(mask, up + i)));
    }
}

static void gelu_tanh_multiply_avx512(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(g, g), g);
        __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), g);
        __m512 z = _mm512_mul_ps(u, _mm512_set1_ps(1.5957691216057308f)); /* 2 sqrt(2 / pi) */
        store_lanes(gate + i, mask, gated(g, z, _mm512_maskz_loadu_ps(mask, up + i)));
    }
}

static void soft_cap_avx512(float *x, size_t n, float cap)
{
    const __m512 wide = _mm512_set1_ps(cap), inverse = _mm512_set1_ps(1.0f / cap);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 t = avx512_tanh(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inverse));
        store_lanes(x + i, mask, _mm512_mul_ps(t, wide));
    }
}

static void rotate_avx512(float *x, const float *cosines, const float *sines, size_t half)
{
    for (size_t d = 0; d < half; d += LANES) {
        __mmask16 mask = lanes_left(half, d);
        __m512 a = _mm512_maskz_loadu_ps(mask, x + d);
        __m512 b = _mm512_maskz_loadu_ps(mask, x + half + d);
        __m512 c = _mm512_maskz_loadu_ps(mask, cosines + d);
        __m512 s = _mm512_maskz_loadu_ps(mask, sines + d);
        store_lanes(x + d, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        store_lanes(x + half + d, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

static float code_scale_avx512(const float *x, size_t n, float norm_max, float code_max)
{
    __m512 squares = _mm512_setzero_ps(), most = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += LANES) {
        __m512 v = _mm512_maskz_loadu_ps(lanes_left(n, i), x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
    }
    return code_scale_of((double)_mm512_reduce_add_ps(squares), _mm512_reduce_max_ps(most), n,
                         norm_max, code_max);
}

static void to_codes_avx512(const float *x, size_t n, float inverse, int16_t *codes)
{
    if (inverse == 0.0f) {
        memset(codes, 0, n * sizeof *codes);
        return;
    }
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_left(n, i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(inverse));
        _mm256_mask_storeu_epi16(codes + i, mask, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
    }
}

const CpuOps ops_avx512 = {
    .name = "avx512",
    .rms_norm = rms_norm_avx512,
    .add = add_avx512,
    .add_scaled = add_scaled_avx512,
    .scale = scale_avx512,
    .silu_multiply = silu_multiply_avx512,
    .gelu_tanh_multiply = gelu_tanh_multiply_avx512,
    .soft_cap = soft_cap_avx512,
    .rotate = rotate_avx512,
    .code_scale = code_scale_avx512,
    .to_codes = to_codes_avx512,
    .kv16 = KV_INT16,
    .attention_segment = attention_segment_avx512,
    .int8_loops = &int8_loops_avx512,
    .int16_loops = &int16_loops_avx512,
};
