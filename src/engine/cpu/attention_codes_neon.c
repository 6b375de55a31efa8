/* Attention over 8-bit keys and values for Arm. 64 bytes are 4 dimensions of 16 keys (or 4 keys of
 * 16 dimensions), which LD4 takes apart: a register for each of the 4, whose bytes are widened to
 * 16 bits and multiplied by one 16-bit code. Up to 4 queries are 16 sums in registers. Integer sums
 * are exact, so nothing depends on how queries are grouped. */
#include "attention_codes.h"

#include "hints.h"
#include "neon_math.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 4,
    VECTORS = 4, /* of sums: 16 keys or dimensions */
    WIDTH = LANES * VECTORS,
    QUERIES = 4,
    LINE_BYTES = 64,
    QUAD_BYTES = KV_BLOCK * 4,
};

static FORCE_INLINE void prefetch(const uint8_t *base, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE_BYTES)
        __builtin_prefetch(base + i, 0, 3);
}

/* Adds 16 bytes times one code of each query; lane: where it stands among the four. */
#define MULTIPLY_BYTES(bytes, lane)                                                                \
    do {                                                                                           \
        const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));                 \
        const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(bytes));                        \
        UNROLL                                                                                     \
        for (int i = 0; i < n; i++) {                                                              \
            sums[i][0] = vmlal_lane_s16(sums[i][0], vget_low_s16(low), four[i], lane);             \
            sums[i][1] = vmlal_high_lane_s16(sums[i][1], low, four[i], lane);                      \
            sums[i][2] = vmlal_lane_s16(sums[i][2], vget_low_s16(high), four[i], lane);            \
            sums[i][3] = vmlal_high_lane_s16(sums[i][3], high, four[i], lane);                     \
        }                                                                                          \
    } while (0)

/* sums[i] += four bytes a lane at base, 16 lanes, times the 4 codes of each query, which stand in
 * the order 0, 2, 1, 3. */
static FORCE_INLINE void multiply_quads(const uint8_t *base, const int16_t *codes, size_t stride,
                                        int32x4_t sums[QUERIES][VECTORS], const int n)
{
    const uint8x16x4_t bytes = vld4q_u8(base);
    int16x4_t four[QUERIES];
    UNROLL
    for (int i = 0; i < n; i++)
        four[i] = vld1_s16(codes + (size_t)i * stride);
    MULTIPLY_BYTES(bytes.val[0], 0);
    MULTIPLY_BYTES(bytes.val[1], 2);
    MULTIPLY_BYTES(bytes.val[2], 1);
    MULTIPLY_BYTES(bytes.val[3], 3);
}

static FORCE_INLINE void clear_sums(int32x4_t sums[QUERIES][VECTORS], const int n)
{
    UNROLL
    for (int i = 0; i < n * VECTORS; i++)
        sums[i / VECTORS][i % VECTORS] = vdupq_n_s32(0);
}

static FORCE_INLINE float32x4_t widen_sum(int32x4_t sum, int32_t zero)
{
    return vcvtq_f32_s32(vsubq_s32(sum, vdupq_n_s32(zero)));
}

/* Keys [first, first + 16) of the block, dimensions of one row of scales. */
static FORCE_INLINE void score_keys(const CodeBlock *b, const int16_t *codes,
                                    const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                    size_t row, size_t first, const uint8_t *next, const int n)
{
    const size_t rows = int8_scale_rows(b->padded_dim);
    int32x4_t sums[QUERIES][VECTORS];
    size_t d = row * KV_SCALE_DIMS;
    size_t end = b->padded_dim - d < KV_SCALE_DIMS ? b->padded_dim : d + KV_SCALE_DIMS;

    clear_sums(sums, n);
    for (; d < end; d += 4) {
        if (next)
            prefetch(next + d * KV_BLOCK, QUAD_BYTES);
        multiply_quads(b->key_codes + d * KV_BLOCK + first * 4, codes + d, rows * KV_SCALE_DIMS,
                       sums, n);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        const AttentionQueryScale *q = &scales[(size_t)i * rows + row];
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            size_t key = first + (size_t)v * LANES;
            float32x4_t dot = vmulq_n_f32(widen_sum(sums[i][v], q->zero), q->scale);
            float32x4_t before = row ? vld1q_f32(scores[i] + key) : vdupq_n_f32(0);
            vst1q_f32(scores[i] + key,
                      vfmaq_f32(before, dot, vld1q_f32(b->key_scales + row * KV_BLOCK + key)));
        }
    }
}

static FORCE_INLINE void score_queries(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       const uint8_t *next, const int n)
{
    for (size_t row = 0; row < int8_scale_rows(b->padded_dim); row++) {
        for (size_t first = 0; first < KV_BLOCK; first += WIDTH)
            score_keys(b, codes, scales, scores, row, first, first == 0 ? next : NULL, n);
        if (next)
            prefetch(next + KV_BLOCK * b->padded_dim + row * QUAD_BYTES, QUAD_BYTES);
    }
}

/* A query's weights for 64 dimensions. */
typedef struct Weights {
    int16_t codes[KV_BLOCK];
    int32_t zero; /* 128 * (sum of the codes) */
    float scale;
} Weights;

/* 8 codes to 16 bits, each four of them in the order 0, 2, 1, 3. */
static FORCE_INLINE void store_codes(int32x4_t first, int32x4_t second, int16_t *out)
{
    static const uint8_t order[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    int16x8_t narrow = vcombine_s16(vmovn_s32(first), vmovn_s32(second));
    vst1q_s16(out, vreinterpretq_s16_u8(vqtbl1q_u8(vreinterpretq_u8_s16(narrow), vld1q_u8(order))));
}

static void quantize_weights(const float weights[KV_BLOCK], const float *scales, Weights *out)
{
    float32x4_t scaled[KV_BLOCK / LANES], most = vdupq_n_f32(0);
    uint32x4_t is_number = vdupq_n_u32(UINT32_MAX);
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v++) {
        float32x4_t w = vld1q_f32(weights + v * LANES);
        float32x4_t product = vmulq_f32(w, vld1q_f32(scales + v * LANES));
        /* A hidden key may have any scale. */
        scaled[v] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(product), vceqzq_f32(w)));
        is_number = vandq_u32(is_number, vceqq_f32(scaled[v], scaled[v]));
        most = vmaxnmq_f32(most, scaled[v]);
    }
    float peak = vmaxnmvq_f32(most);
    bool is_nan = vminvq_u32(is_number) == 0;
    if (is_nan || peak < CODE_ZERO_BELOW) {
        memset(out->codes, 0, sizeof out->codes);
        out->zero = 0;
        out->scale = is_nan ? NAN : 0.0f;
        return;
    }
    const float inverse = (float)CODE_MAX / peak;
    int32x4_t total = vdupq_n_s32(0);
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v += 2) {
        int32x4_t first = vcvtnq_s32_f32(vmulq_n_f32(scaled[v], inverse));
        int32x4_t second = vcvtnq_s32_f32(vmulq_n_f32(scaled[v + 1], inverse));
        total = vaddq_s32(total, vaddq_s32(first, second));
        store_codes(first, second, out->codes + v * LANES);
    }
    out->zero = vaddvq_s32(total) * KV_INT8_ZERO;
    out->scale = peak / (float)CODE_MAX;
}

/* Dimensions [d, d + 16) of the outputs. */
static FORCE_INLINE void weigh_dims(const CodeBlock *b, const Weights *weights,
                                    const float *corrections, float *output, size_t d,
                                    const uint8_t *next, const int n)
{
    int32x4_t sums[QUERIES][VECTORS];
    clear_sums(sums, n);
    for (size_t key = 0; key < KV_BLOCK; key += 4) {
        if (next)
            prefetch(next + b->value_offset + key * b->padded_dim, b->padded_dim * 4);
        multiply_quads(b->value_codes + (key * b->padded_dim + d * 4), weights->codes + key,
                       sizeof *weights / sizeof(int16_t), sums, n);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            float *to = output + (size_t)i * b->padded_dim + d + (size_t)v * LANES;
            float32x4_t before = vmulq_n_f32(vld1q_f32(to), corrections[i]);
            vst1q_f32(
                to, vfmaq_n_f32(before, widen_sum(sums[i][v], weights[i].zero), weights[i].scale));
        }
    }
}

static FORCE_INLINE void weigh_queries(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                                       const float *corrections, float *output, const uint8_t *next,
                                       const int n)
{
    Weights codes[QUERIES];
    for (size_t first = 0; first < b->padded_dim; first += KV_SCALE_DIMS) {
        size_t left = b->padded_dim - first;
        size_t end = left < KV_SCALE_DIMS ? b->padded_dim : first + KV_SCALE_DIMS;
        for (int i = 0; i < n; i++) /* a row of scales is as long as its dimensions are many */
            quantize_weights(weights[i], b->value_scales + first, &codes[i]);
        for (size_t d = first; d < end; d += WIDTH)
            weigh_dims(b, codes, corrections, output, d, d == 0 ? next : NULL, n);
        if (next)
            prefetch(next + b->value_offset + KV_BLOCK * (b->padded_dim + first / 16), QUAD_BYTES);
    }
}

static void score_neon(const CodeBlock *block, const int16_t *codes,
                       const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    const size_t rows = int8_scale_rows(block->padded_dim);
    for (size_t i = 0; i < n; i += QUERIES)
        BY_QUERY_COUNT_TO_4(n - i, score_queries, block, codes + i * rows * KV_SCALE_DIMS,
                            scales + i * rows, scores + i, i == 0 ? block->next : NULL);
}

static void weigh_neon(const CodeBlock *block, const float (*weights)[KV_BLOCK],
                       const float *corrections, size_t n, float *output)
{
    for (size_t i = 0; i < n; i += QUERIES)
        BY_QUERY_COUNT_TO_4(n - i, weigh_queries, block, weights + i, corrections + i,
                            output + i * block->padded_dim, i == 0 ? block->next : NULL);
}

const CodeLoops int8_loops_neon = {score_neon, attention_soften_neon, weigh_neon};
