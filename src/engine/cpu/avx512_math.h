/* Private to the AVX-512 files of engine/cpu: vector functions that they share. */
#ifndef ENGINE_CPU_AVX512_MATH_H
#define ENGINE_CPU_AVX512_MATH_H

#include <immintrin.h>

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
    const __m512 two_log2_e = _mm512_set1_ps(2.88539008f);
    __m512 power = _mm512_min_ps(_mm512_set1_ps(125.0f), _mm512_mul_ps(x, two_log2_e));
    __m512 e = avx512_exp2_where(0xffff, power);
    return _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
}

#endif
