/* Private to the AVX2 files of engine/cpu: what they do with vectors alike. */
#ifndef ENGINE_CPU_AVX2_MATH_H
#define ENGINE_CPU_AVX2_MATH_H

#include <immintrin.h>

/* Pins a sum to a register at this point. Left alone, the compiler turns a chain of additions into
 * a tree, which needs more registers than there are and spills most of them. */
#define PIN(vector) __asm__("" : "+x"(vector))

/* exp(x) to about 1e-7 relative. x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by a degree-6 polynomial
 * (1 + r + r^2 p(r), p fitted to 3e-9), times 2^n through the exponent bits. Below -87.3 the result
 * is exactly 0, above 88.3 it stays at exp(88.3); exp(0) is exactly 1; NaN stays NaN. */
static inline __m256 avx2_exp(__m256 x)
{
    const __m256 low = _mm256_set1_ps(-87.3f);
    __m256 clamped = _mm256_min_ps(_mm256_set1_ps(88.3f), _mm256_max_ps(low, x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* ln 2 in two parts: the first has so few bits that n times it is exact. */
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), clamped);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(0.0013814587f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.008368718f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.04166839f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.16666521f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.49999994f));
    __m256 result = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    result = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(result), exponent));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), result);
}

/* 2^x for x <= 0, to about 1e-7 relative: x = n + r, |r| <= 1/2, and a degree-6 polynomial. Exactly 1
 * at 0, and exactly 0 from -127 down: there 2^n takes the whole exponent from a 1. NaN stays NaN. */
static inline __m256 avx2_exp2_negative(__m256 x)
{
    __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
    __m256 n = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_sub_ps(clamped, n);
    __m256 p = _mm256_set1_ps(0.000154531634f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.00133908633f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.00961808302f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0555035695f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.240226507f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.693147182f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

/* tanh(x) = 1 - 2 / (exp(2 x) + 1), to about 1e-7 absolute. */
static inline __m256 avx2_tanh(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f);
    __m256 e = avx2_exp(_mm256_mul_ps(x, two));
    return _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(e, one)));
}

/* Adds the 8 lanes in a fixed tree. */
static inline float avx2_sum(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

static inline float avx2_max(__m256 v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

#endif
