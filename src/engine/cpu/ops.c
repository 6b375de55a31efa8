/* The operations in plain C: the formulas, and the siblings that the vector files are tested
 * against. */
#include "ops.h"

#include "attention.h"
#include "weights.h"

#include <math.h>

static const float FP16_LARGEST = 65504.0f;

static void rms_norm_plain(const float *x, const float *weight, size_t n, float eps, float *out)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    float scale = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void add_plain(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void add_scaled_plain(float *x, const float *y, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = fmaf(y[i], scale, x[i]);
}

static void scale_plain(const float *x, size_t n, float scale, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale;
}

static void silu_multiply_plain(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* 0.5 x (1 + tanh u) is x sigmoid(2 u). */
static void gelu_tanh_multiply_plain(float *gate, const float *up, size_t n)
{
    const float twice_root = 1.5957691216057308f; /* 2 sqrt(2 / pi) */
    for (size_t i = 0; i < n; i++) {
        float x = gate[i];
        float twice_u = twice_root * (x + 0.044715f * x * x * x);
        gate[i] = x / (1.0f + expf(-twice_u)) * up[i];
    }
}

static void soft_cap_plain(float *x, size_t n, float cap)
{
    for (size_t i = 0; i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

static void rotate_plain(float *x, const float *cosines, const float *sines, size_t half)
{
    for (size_t d = 0; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = a * cosines[d] - b * sines[d];
        x[d + half] = b * cosines[d] + a * sines[d];
    }
}

static void store_half_plain(const float *x, size_t n, uint16_t *out, size_t stride)
{
    for (size_t i = 0; i < n; i++) {
        float value = x[i];
        value = value > FP16_LARGEST ? FP16_LARGEST : value < -FP16_LARGEST ? -FP16_LARGEST : value;
        out[i * stride] = float_to_f16(value);
    }
}

static void store_half_rows_plain(const float *x, size_t row_stride, size_t n_rows, size_t n,
                                  uint16_t *out, size_t stride)
{
    for (size_t r = 0; r < n_rows; r++)
        store_half_plain(x + r * row_stride, n, out + r, stride);
}

float code_scale_of(double squares, float peak, size_t n, float norm_max, float code_max)
{
    if (!isfinite(peak) || isnan(squares))
        return NAN;
    if (peak < CODE_ZERO_BELOW)
        return 0.0f;
    /* Where squares have left float32's range, what bounds them. */
    bool in_range = squares > 1e-30 && squares < 1e30;
    float by_norm = in_range ? sqrtf((float)squares) / norm_max : peak / norm_max * sqrtf((float)n);
    return fmaxf(by_norm, peak / code_max);
}

float code_scale_plain(const float *x, size_t n, float norm_max, float code_max)
{
    double squares = 0.0;
    float peak = 0.0f;
    for (size_t i = 0; i < n; i++) {
        squares += (double)x[i] * (double)x[i];
        peak = fmaxf(peak, fabsf(x[i]));
    }
    return code_scale_of(squares, peak, n, norm_max, code_max);
}

void to_codes_plain(const float *x, size_t n, float inverse, int16_t *codes)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = inverse == 0.0f ? 0 : (int16_t)lrintf(x[i] * inverse);
}

const CpuOps ops_plain = {
    .name = "plain",
    .rms_norm = rms_norm_plain,
    .add = add_plain,
    .add_scaled = add_scaled_plain,
    .scale = scale_plain,
    .silu_multiply = silu_multiply_plain,
    .gelu_tanh_multiply = gelu_tanh_multiply_plain,
    .soft_cap = soft_cap_plain,
    .rotate = rotate_plain,
    .code_scale = code_scale_plain,
    .to_codes = to_codes_plain,
    .kv16 = KV_F16,
    .store_half = store_half_plain,
    .store_half_rows = store_half_rows_plain,
    .attention_segment = attention_segment_plain,
};

const CpuOps *cpu_ops(InstructionSet set)
{
    static const CpuOps *const tables[INSTRUCTION_SETS] = {
        [INSTRUCTIONS_PLAIN] = &ops_plain,
#if CPU_HAS_X86_KERNELS
        [INSTRUCTIONS_AVX2] = &ops_avx2,
        [INSTRUCTIONS_AVXVNNI] = &ops_avx2,
        [INSTRUCTIONS_AVX512] = &ops_avx512,
        [INSTRUCTIONS_ZEN4] = &ops_avx512,
        [INSTRUCTIONS_AMX] = &ops_avx512,
#elif CPU_HAS_ARM_KERNELS
        [INSTRUCTIONS_NEON] = &ops_neon,
        [INSTRUCTIONS_DOTPROD] = &ops_neon,
        [INSTRUCTIONS_I8MM] = &ops_neon,
#endif
    };
    return tables[set];
}

void ops_softmax(float *x, size_t n)
{
    float max = -INFINITY;
    for (size_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += (double)x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] / sum);
}
