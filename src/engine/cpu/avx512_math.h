/* Private to the AVX-512 files of engine/cpu: vector functions that they share. */
#ifndef ENGINE_CPU_AVX512_MATH_H
#define ENGINE_CPU_AVX512_MATH_H

#include <immintrin.h>

/* exp(x) to about 1e-7 relative, as avx2_exp: x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by a degree-6
 * polynomial, times 2^n. Below -87.3 the result is exactly 0, above 88.3 it stays at exp(88.3);
 * exp(0) is exactly 1; NaN stays NaN. */
static inline __m512 avx512_exp(__m512 x)
{
    const __m512 low = _mm512_set1_ps(-87.3f);
    __m512 clamped = _mm512_min_ps(_mm512_set1_ps(88.3f), _mm512_max_ps(low, x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* ln 2 in two parts: the first has so few bits that n times it is exact. */
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(0.0013814587f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.008368718f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.04166839f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.16666521f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.49999994f));
    __m512 result = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    __mmask16 counts = _mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(counts, result, n);
}

/* 2^x where counts, elsewhere 0, to about 1e-7 relative: x = n + r, |r| <= 1/2, and a degree-6
 * polynomial. Exactly 1 at 0; NaN stays NaN. */
static inline __m512 avx512_exp2_where(__mmask16 counts, __m512 x)
{
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0.000154531634f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00133908633f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00961808302f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0555035695f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240226507f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147182f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(counts, p, _mm512_sub_ps(x, r));
}

/* The same for x <= 0: exactly 0 below -126, where numbers are no longer normal. */
static inline __m512 avx512_exp2_negative(__m512 x)
{
    return avx512_exp2_where(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), x);
}

/* tanh(x) = 1 - 2 / (exp(2 x) + 1), to about 1e-7 absolute. */
static inline __m512 avx512_tanh(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
    __m512 e = avx512_exp(_mm512_mul_ps(x, two));
    return _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
}

#endif
