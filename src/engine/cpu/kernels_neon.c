/* Arm: quantising activations, and the tables of the three instruction sets, which differ in the
 * quantised products only (kernels_neon.h). */
#include "kernels_neon.h"

#include <math.h>

/* Up to this many columns (tokens times planes) the weights are streamed past the tokens: as many
 * as one pass takes. Not a measured cross-over. */
enum { FEW_COLUMNS = 4 };

enum { QUANTIZE_VECTORS = ACTIVATION_BLOCK / 4 };

static FORCE_INLINE int32_t sum_vectors(const int32x4_t *q, int n)
{
    int32x4_t sum = q[0];
    UNROLL
    for (int i = 1; i < n; i++)
        sum = vaddq_s32(sum, q[i]);
    return vaddvq_s32(sum);
}

/* Sixteen vectors of codes of up to +-limit, all zero when the block is or when an input is not
 * finite. */
static FORCE_INLINE void quantize_values(const float *x, float limit, int32x4_t q[QUANTIZE_VECTORS],
                                         ActivationScale *out)
{
    uint32x4_t largest = vdupq_n_u32(0);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++) {
        /* As integers, magnitudes order like floats, with infinity and then NaN on top. */
        float32x4_t magnitude = vabsq_f32(vld1q_f32(x + 4 * i));
        largest = vmaxq_u32(largest, vreinterpretq_u32_f32(magnitude));
    }
    uint32_t top = vmaxvq_u32(largest);
    float peak;
    memcpy(&peak, &top, 4);
    bool finite = top < 0x7f800000;
    if (!finite || peak < ACTIVATION_ZERO_BELOW) {
        float value = finite ? 0 : NAN;
        UNROLL
        for (int i = 0; i < QUANTIZE_VECTORS; i++)
            q[i] = vdupq_n_s32(0);
        *out = (ActivationScale){.scale = value, .offset = value, .half_offsets = {value, value}};
        return;
    }
    const float inverse = limit / peak;
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        q[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
    int32_t first = sum_vectors(q, QUANTIZE_VECTORS / 2);
    int32_t second = sum_vectors(q + QUANTIZE_VECTORS / 2, QUANTIZE_VECTORS / 2);
    float scale = peak / limit;
    *out = (ActivationScale){.scale = scale,
                             .offset = scale * (float)(first + second),
                             .half_offsets = {scale * (float)first, scale * (float)second}};
}

/* The low bytes. */
static FORCE_INLINE void store_codes(const int32x4_t q[QUANTIZE_VECTORS], int8_t *codes)
{
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i += 4) {
        int16x8_t low = vcombine_s16(vmovn_s32(q[i]), vmovn_s32(q[i + 1]));
        int16x8_t high = vcombine_s16(vmovn_s32(q[i + 2]), vmovn_s32(q[i + 3]));
        vst1q_s8(codes + 4 * i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
}

static void quantize_block(const float *x, int8_t *codes, ActivationScale *scale)
{
    int32x4_t q[QUANTIZE_VECTORS];
    quantize_values(x, 127.0f, q, scale);
    store_codes(q, codes);
}

static void quantize_block_int16(const float *x, int8_t *codes, ActivationScale *scale)
{
    int32x4_t q[QUANTIZE_VECTORS], high[QUANTIZE_VECTORS];
    quantize_values(x, (float)ACTIVATION_INT16_MAX, q, scale);
    UNROLL
    for (int i = 0; i < QUANTIZE_VECTORS; i++)
        high[i] = vrshrq_n_s32(q[i], 8); /* floor of (code + 128) / 256 */
    store_codes(high, codes);
    store_codes(q, codes + ACTIVATION_BLOCK); /* the low byte is what is left: -128 .. 127 */
}

void neon_store_part(const KernelJob *job, size_t first_row, size_t token, float32x4_t acc)
{
    float values[STRIP_ROWS];
    float *y = job->y + token * job->y_stride + first_row;
    vst1q_f32(values, acc);
    for (size_t r = 0; r < STRIP_ROWS && first_row + r < job->matrix->rows; r++)
        y[r] = job->bias ? values[r] + job->bias[first_row + r] : values[r];
}

#define ARM_TABLE(set)                                                                             \
    static void set##_multiply_quantized(const KernelJob *job)                                     \
    {                                                                                              \
        if (job->x->n_tokens * job->x->planes <= FEW_COLUMNS)                                      \
            set##_multiply_few(job);                                                               \
        else                                                                                       \
            set##_multiply_many(job);                                                              \
    }                                                                                              \
    const KernelTable kernels_##set = {                                                            \
        .name = #set,                                                                              \
        .quantize_block = quantize_block,                                                          \
        .quantize_block_int16 = quantize_block_int16,                                              \
        .multiply = {set##_multiply_quantized, set##_multiply_quantized, set##_multiply_quantized, \
                     neon_multiply_dense, neon_multiply_dense, neon_multiply_dense},               \
        .multiply_f32 = {neon_multiply_f32, neon_multiply_f32, neon_multiply_f32,                  \
                         neon_multiply_dense, neon_multiply_dense, neon_multiply_dense}}

ARM_TABLE(neon);
ARM_TABLE(dotprod);
ARM_TABLE(i8mm);
