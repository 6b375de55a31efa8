/* Private to the Arm files of engine/cpu: vector functions that they share. */
#ifndef ENGINE_CPU_NEON_MATH_H
#define ENGINE_CPU_NEON_MATH_H

#include <arm_neon.h>

/* exp(x) to about 1e-7 relative, by the polynomial of avx2_exp. Below -87.3 the result is exactly
 * 0, above 88.3 it stays at exp(88.3); exp(0) is exactly 1; NaN stays NaN. */
static inline float32x4_t neon_exp(float32x4_t x)
{
    const float32x4_t low = vdupq_n_f32(-87.3f);
    float32x4_t clamped = vminq_f32(vdupq_n_f32(88.3f), vmaxq_f32(low, x));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(clamped, 1.44269504f));
    /* ln 2 in two parts: the first has so few bits that n times it is exact. */
    float32x4_t r = vfmsq_f32(clamped, n, vdupq_n_f32(0.693359375f));
    r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
    float32x4_t p = vdupq_n_f32(0.0013814587f);
    p = vfmaq_f32(vdupq_n_f32(0.008368718f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.04166839f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.16666521f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.49999994f), p, r);
    float32x4_t result = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0f)), vmulq_f32(r, r), p);
    int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    result = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(result), exponent));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(result), vcltq_f32(x, low)));
}

/* tanh(x) = 1 - 2 / (exp(2 x) + 1), to about 1e-7 absolute. */
static inline float32x4_t neon_tanh(float32x4_t x)
{
    const float32x4_t one = vdupq_n_f32(1.0f), two = vdupq_n_f32(2.0f);
    float32x4_t e = neon_exp(vmulq_f32(x, two));
    return vsubq_f32(one, vdivq_f32(two, vaddq_f32(e, one)));
}

/* Four fp16 values. */
static inline float32x4_t neon_load_half(const void *at)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)at)));
}

#endif
