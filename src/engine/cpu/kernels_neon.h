/* Private to the Arm kernel files: loads and stores of the packed layout, and what the instruction
 * sets differ in.
 *
 * kernels_neon_few.c, kernels_neon_many.c and machine_limits_neon.c are compiled once for each set,
 * with its flags and with NEON_DOTPROD and NEON_I8MM telling which it is:
 *
 *   neon     signed products of bytes, widened and added in pairs
 *   dotprod  SDOT: four signed products a lane, and one of four activations' words broadcast
 *   i8mm     USDOT, the same with unsigned weights; for many tokens USMMLA, 2 rows of 8 weights
 *            by 2 columns of 8 activations
 *
 * Dots are exact and everything in float32 is the same code: all three give the same bits. */
#ifndef ENGINE_CPU_KERNELS_NEON_H
#define ENGINE_CPU_KERNELS_NEON_H

#include "kernels.h"

#include "neon_math.h"

#include <string.h>

/* A tile's vectors are four registers of four rows. */
enum {
    STRIP_ROWS = 4,
    STRIPS = TILE_ROWS / STRIP_ROWS,
    STRIP_BYTES = 4 * STRIP_ROWS,
    STEP_INPUTS = 16, /* activation codes of a register */
    SPAN_VECTORS = 2 * BLOCK_VECTORS,
    FLOATS_PER_SCALE = sizeof(ActivationScale) / 4,
};

/* Quantised formats, few and many tokens. */
void neon_multiply_few(const KernelJob *job);
void neon_multiply_many(const KernelJob *job);
void dotprod_multiply_few(const KernelJob *job);
void dotprod_multiply_many(const KernelJob *job);
void i8mm_multiply_few(const KernelJob *job);
void i8mm_multiply_many(const KernelJob *job);
void neon_multiply_dense(const KernelJob *job); /* dense formats */
void neon_multiply_f32(const KernelJob *job);   /* every format, float32 products */
/* Writes those of 4 rows that exist; a function, to keep it out of every kernel. */
void neon_store_part(const KernelJob *job, size_t first_row, size_t token, float32x4_t acc);

#if !defined(NEON_I8MM)
/* A file that is the same for all sets. */
#elif NEON_I8MM
#define NEON_NAME(function) i8mm_##function
#elif NEON_DOTPROD
#define NEON_NAME(function) dotprod_##function
#else
#define NEON_NAME(function) neon_##function
#endif

/* Four values of a type, one a row. */
static FORCE_INLINE float32x4_t load_rows(const uint8_t *at, ScaleType type)
{
    switch (type) {
    case SCALE_F16:
        return neon_load_half(at);
    case SCALE_BF16:
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)(const void *)at), 16));
    default:
        return vld1q_f32((const float *)(const void *)at);
    }
}

static FORCE_INLINE void load_scales_of(const uint8_t *group, ScaleType type,
                                        float32x4_t scales[STRIPS], float32x4_t biases[STRIPS])
{
    const size_t strip_bytes = STRIP_ROWS * scale_type_bytes(type);
    UNROLL
    for (size_t s = 0; s < STRIPS; s++) {
        scales[s] = load_rows(group + s * strip_bytes, type);
        biases[s] = load_rows(group + (STRIPS + s) * strip_bytes, type);
    }
}

/* A group's scales and biases, with one branch on their type: branches between the products make
 * the compiler spill them. */
static FORCE_INLINE void load_scales(const uint8_t *group, ScaleType type,
                                     float32x4_t scales[STRIPS], float32x4_t biases[STRIPS])
{
    if (type == SCALE_F16)
        load_scales_of(group, SCALE_F16, scales, biases);
    else if (type == SCALE_BF16)
        load_scales_of(group, SCALE_BF16, scales, biases);
    else
        load_scales_of(group, SCALE_F32, scales, biases);
}

static FORCE_INLINE size_t block_bytes(PackedFormat format)
{
    return format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
}

/* One strip of code vectors 2 * pair and 2 * pair + 1 of a block. */
static FORCE_INLINE void load_pair(const uint8_t *block, int pair, size_t strip,
                                   PackedFormat format, uint8x16_t *first, uint8x16_t *second)
{
    const uint8_t *at = block + strip * STRIP_BYTES;
    if (format == PACKED_BYTES) {
        *first = vld1q_u8(at + 2 * pair * VECTOR_BYTES);
        *second = vld1q_u8(at + (2 * pair + 1) * VECTOR_BYTES);
        return;
    }
    uint8x16_t codes = vld1q_u8(at + pair * VECTOR_BYTES);
    *first = vandq_u8(codes, vdupq_n_u8(15));
    *second = vshrq_n_u8(codes, 4);
    if (format == PACKED_FP4) {
        static const uint8_t fp4_codes[16] = FP4_CODES;
        const uint8x16_t table = vld1q_u8(fp4_codes);
        *first = vqtbl1q_u8(table, *first);
        *second = vqtbl1q_u8(table, *second);
    }
}

/* acc + dot * (scale * x.scale) + bias * x.offset, in the order that kernels.h fixes. */
static FORCE_INLINE float32x4_t add_span(float32x4_t acc, int32x4_t dot, float32x4_t scales,
                                         float32x4_t biases, float x_scale, float x_offset)
{
    acc = vfmaq_f32(acc, vcvtq_f32_s32(dot), vmulq_n_f32(scales, x_scale));
    return vfmaq_n_f32(acc, biases, x_offset);
}

/* The dot of both planes. */
static FORCE_INLINE int32x4_t join_planes(int32x4_t high, int32x4_t low)
{
    return vaddq_s32(vshlq_n_s32(high, 8), low);
}

/* Writes the rows of a strip that exist. */
static FORCE_INLINE void store_strip(const KernelJob *job, size_t tile, size_t strip, size_t token,
                                     float32x4_t acc)
{
    size_t first = tile * TILE_ROWS + strip * STRIP_ROWS;
    if (job->matrix->rows < first + STRIP_ROWS) {
        neon_store_part(job, first, token, acc);
        return;
    }
    if (job->bias)
        acc = vaddq_f32(acc, vld1q_f32(job->bias + first));
    vst1q_f32(job->y + token * job->y_stride + first, acc);
}

#if defined(NEON_NAME)
/* Without USDOT, codes of 8 bits are taken as signed numbers, 128 less than they are, and sums
 * begin with what that leaves out: 128 times the sum of the activation codes. */
static FORCE_INLINE bool has_signed_codes(PackedFormat format)
{
    return format == PACKED_BYTES && !NEON_I8MM;
}

static FORCE_INLINE uint8x16_t codes_for_products(uint8x16_t codes, PackedFormat format)
{
    return has_signed_codes(format) ? veorq_u8(codes, vdupq_n_u8(128)) : codes;
}

/* Where the sums of a column begin, for a span of codes. */
static FORCE_INLINE int32x4_t first_sums(const int8_t *x, int span_blocks, PackedFormat format)
{
    if (!has_signed_codes(format))
        return vdupq_n_s32(0);
    int32_t sum = 0;
    UNROLL
    for (int i = 0; i < span_blocks * WEIGHT_BLOCK / STEP_INPUTS; i++)
        sum += vaddlvq_s8(vld1q_s8(x + i * STEP_INPUTS));
    return vdupq_n_s32(128 * sum);
}

#if NEON_I8MM
#define ADD_PRODUCTS(lane) vusdotq_laneq_s32(sums, codes, x, lane)
#elif NEON_DOTPROD
#define ADD_PRODUCTS(lane) vdotq_laneq_s32(sums, vreinterpretq_s8_u8(codes), x, lane)
#else
#define ADD_PRODUCTS(lane) add_widened(sums, codes, vdupq_laneq_s32(x_words, lane), format)

static FORCE_INLINE int32x4_t add_widened(int32x4_t sums, uint8x16_t codes, int32x4_t word,
                                          PackedFormat format)
{
    int8x16_t w = vreinterpretq_s8_u8(codes), x = vreinterpretq_s8_s32(word);
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    if (format == PACKED_BYTES) /* -128 * -128 twice leaves 16 bits */
        return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}
#endif

/* Adds the products of 4 rows' codes of 4 inputs with the 4 activation codes of a lane of x. */
static FORCE_INLINE int32x4_t add_products(int32x4_t sums, uint8x16_t codes, int8x16_t x,
                                           const int lane, PackedFormat format)
{
#if !NEON_DOTPROD
    const int32x4_t x_words = vreinterpretq_s32_s8(x);
#endif
    (void)format;
    switch (lane) {
    case 0:
        return ADD_PRODUCTS(0);
    case 1:
        return ADD_PRODUCTS(1);
    case 2:
        return ADD_PRODUCTS(2);
    default:
        return ADD_PRODUCTS(3);
    }
}
#endif

#endif
