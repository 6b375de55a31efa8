/* The operations for Arm. Tails shorter than a vector go through a padded copy, so that a value's
 * bits do not depend on where in a row it stands. */
#include "ops.h"

#include "attention_codes.h"

#include "neon_math.h"
#include "transpose.h"

#include <math.h>
#include <string.h>

enum { LANES = 4 };

static void rms_norm_neon(const float *x, const float *weight, size_t n, float eps, float *out)
{
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (size_t k = 0; k < 4; k++) {
            float32x4_t v = vld1q_f32(x + i + k * LANES);
            sums[k] = vfmaq_f32(sums[k], v, v);
        }
    }
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
    for (; i < n; i++)
        sum = fmaf(x[i], x[i], sum);
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i + LANES <= n; i += LANES)
        vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i)));
    for (; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void add_neon(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vst1q_f32(x + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
    for (; i < n; i++)
        x[i] += y[i];
}

static void add_scaled_neon(float *x, const float *y, size_t n, float scale)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vst1q_f32(x + i, vfmaq_n_f32(vld1q_f32(x + i), vld1q_f32(y + i), scale));
    for (; i < n; i++)
        x[i] = fmaf(y[i], scale, x[i]);
}

static void scale_neon(const float *x, size_t n, float scale, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vst1q_f32(out + i, vmulq_n_f32(vld1q_f32(x + i), scale));
    for (; i < n; i++)
        out[i] = x[i] * scale;
}

/* x sigmoid(z) y */
static inline float32x4_t gated(float32x4_t x, float32x4_t z, float32x4_t y)
{
    float32x4_t e = neon_exp(vnegq_f32(z));
    return vmulq_f32(vdivq_f32(x, vaddq_f32(e, vdupq_n_f32(1.0f))), y);
}

static inline float32x4_t silu_vector(float32x4_t gate, float32x4_t up)
{
    return gated(gate, gate, up);
}

static inline float32x4_t gelu_vector(float32x4_t gate, float32x4_t up)
{
    float32x4_t cube = vmulq_f32(vmulq_f32(gate, gate), gate);
    float32x4_t u = vfmaq_n_f32(gate, cube, 0.044715f);
    return gated(gate, vmulq_n_f32(u, 1.5957691216057308f), up);
}

static inline void apply_gate(float *gate, const float *up, size_t n,
                              float32x4_t (*vector)(float32x4_t, float32x4_t))
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vst1q_f32(gate + i, vector(vld1q_f32(gate + i), vld1q_f32(up + i)));
    if (i == n)
        return;
    float g[LANES] = {0}, u[LANES] = {0};
    memcpy(g, gate + i, (n - i) * sizeof *g);
    memcpy(u, up + i, (n - i) * sizeof *u);
    vst1q_f32(g, vector(vld1q_f32(g), vld1q_f32(u)));
    memcpy(gate + i, g, (n - i) * sizeof *g);
}

static void silu_multiply_neon(float *gate, const float *up, size_t n)
{
    apply_gate(gate, up, n, silu_vector);
}

static void gelu_tanh_multiply_neon(float *gate, const float *up, size_t n)
{
    apply_gate(gate, up, n, gelu_vector);
}

static void soft_cap_neon(float *x, size_t n, float cap)
{
    const float inverse = 1.0f / cap;
    for (size_t i = 0; i < n; i += LANES) {
        size_t count = n - i < LANES ? n - i : LANES;
        float values[LANES] = {0};
        memcpy(values, x + i, count * sizeof *values);
        float32x4_t t = neon_tanh(vmulq_n_f32(vld1q_f32(values), inverse));
        vst1q_f32(values, vmulq_n_f32(t, cap));
        memcpy(x + i, values, count * sizeof *values);
    }
}

static void rotate_neon(float *x, const float *cosines, const float *sines, size_t half)
{
    size_t d = 0;
    for (; d + LANES <= half; d += LANES) {
        float32x4_t a = vld1q_f32(x + d), b = vld1q_f32(x + half + d);
        float32x4_t c = vld1q_f32(cosines + d), s = vld1q_f32(sines + d);
        vst1q_f32(x + d, vfmaq_f32(vnegq_f32(vmulq_f32(b, s)), a, c));
        vst1q_f32(x + half + d, vfmaq_f32(vmulq_f32(a, s), b, c));
    }
    for (; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = fmaf(a, cosines[d], -(b * sines[d]));
        x[d + half] = fmaf(b, cosines[d], a * sines[d]);
    }
}

static void store_half_neon(const float *x, size_t n, uint16_t *out, size_t stride)
{
    const float32x4_t largest = vdupq_n_f32(65504.0f);
    for (size_t i = 0; i < n; i += LANES) {
        size_t count = n - i < LANES ? n - i : LANES;
        float values[LANES] = {0};
        uint16_t halves[LANES];
        memcpy(values, x + i, count * sizeof *values);
        float32x4_t kept = vminq_f32(largest, vmaxq_f32(vnegq_f32(largest), vld1q_f32(values)));
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(kept)));
        for (size_t j = 0; j < count; j++)
            out[(i + j) * stride] = halves[j];
    }
}

static FORCE_INLINE Halves to_halves(const void *floats)
{
    const float *x = floats;
    const float32x4_t largest = vdupq_n_f32(65504.0f), least = vnegq_f32(largest);
    float32x4_t low = vminq_f32(largest, vmaxq_f32(least, vld1q_f32(x)));
    float32x4_t high = vminq_f32(largest, vmaxq_f32(least, vld1q_f32(x + LANES)));
    return (Halves)vcombine_u16(vreinterpret_u16_f16(vcvt_f16_f32(low)),
                                vreinterpret_u16_f16(vcvt_f16_f32(high)));
}

static void store_half_rows_neon(const float *x, size_t row_stride, size_t n_rows, size_t n,
                                 uint16_t *out, size_t stride)
{
    store_transposed(x, row_stride, n_rows, n, out, stride, to_halves, store_half_neon);
}

const CpuOps ops_neon = {
    .name = "neon",
    .rms_norm = rms_norm_neon,
    .add = add_neon,
    .add_scaled = add_scaled_neon,
    .scale = scale_neon,
    .silu_multiply = silu_multiply_neon,
    .gelu_tanh_multiply = gelu_tanh_multiply_neon,
    .soft_cap = soft_cap_neon,
    .rotate = rotate_neon,
    .code_scale = code_scale_plain,
    .to_codes = to_codes_plain,
    .kv16 = KV_F16,
    .store_half = store_half_neon,
    .store_half_rows = store_half_rows_neon,
    .attention_segment = attention_segment_neon,
    .int8_loops = &int8_loops_neon,
};
