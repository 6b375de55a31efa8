/* GGUF's block formats: layouts, and what MLX form holds each.
 *
 * Most are affine by nature: 32 codes under one scale and one offset, which MLX's affine mode with
 * groups of 32 states exactly (d and m are f16, low nibbles are values 0..15, high ones 16..31):
 *
 *     Q4_0    d qs[16]            d (q - 8)         4 bits, bias  -8 d
 *     Q4_1    d m qs[16]          d q + m           4 bits
 *     Q5_0    d qh[4] qs[16]      d (q - 16)        5 bits, bias -16 d; qh holds the fifth bits
 *     Q5_1    d m qh[4] qs[16]    d q + m           5 bits
 *     Q8_0    d qs[32]            d q, q signed     8 bits, code q + 128, bias -128 d
 *     IQ4_NL  d qs[16]            d level[q]        8 bits, code level[q] + 127: whole numbers
 *
 * In blocks of 256 each group has its own scale, and where there is one, its own minimum:
 *
 *     Q4_K    d dmin s[12] qs[128]         (d sc) q - dmin mn     4 bits
 *     Q5_K    d dmin s[12] qh[32] qs[128]  (d sc) q - dmin mn     5 bits
 *     IQ4_XS  d sh[2] sl[4] qs[128]        (d sc) level[q]        8 bits
 *
 * Those products are exact in float32 and rounded when stored as f16. Q2_K, Q3_K and Q6_K have a
 * scale for 16 values, which no MLX group is as small as: their values are quantised anew to 8
 * bits. Layouts: ggml's ggml-common.h. */
#include "gguf.h"

#include <math.h>
#include <string.h>

static float half_at(const uint8_t *p)
{
    return float_from_f16((uint16_t)(p[0] | p[1] << 8));
}

static void split_nibbles(const uint8_t *from, size_t count, uint8_t *low, uint8_t *high)
{
    for (size_t i = 0; i < count; i++) {
        low[i] = from[i] & 0xf;
        high[i] = from[i] >> 4;
    }
}

/* w = scale * code + bias over a whole block, for the formats that are affine. */
static void expand(const uint8_t *codes, const float *scales, const float *biases, size_t count,
                   float *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = scales[i / GGUF_GROUP] * (float)codes[i] + biases[i / GGUF_GROUP];
}

/* ---- Blocks of 32 ---------------------------------------------------------------------------- */

static void q4_0_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    scales[0] = half_at(block);
    biases[0] = -8 * scales[0];
    split_nibbles(block + 2, 16, codes, codes + 16);
}

static void q4_1_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    scales[0] = half_at(block);
    biases[0] = half_at(block + 2);
    split_nibbles(block + 4, 16, codes, codes + 16);
}

static void q5_codes(const uint8_t *high_bits, uint8_t *codes)
{
    split_nibbles(high_bits + 4, 16, codes, codes + 16);
    for (size_t i = 0; i < GGUF_GROUP; i++)
        codes[i] = (uint8_t)(codes[i] | (high_bits[i / 8] >> (i % 8) & 1) << 4);
}

static void q5_0_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    scales[0] = half_at(block);
    biases[0] = -16 * scales[0];
    q5_codes(block + 2, codes);
}

static void q5_1_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    scales[0] = half_at(block);
    biases[0] = half_at(block + 2);
    q5_codes(block + 4, codes);
}

static void q8_0_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    scales[0] = half_at(block);
    biases[0] = -128 * scales[0];
    for (size_t i = 0; i < GGUF_GROUP; i++)
        codes[i] = block[2 + i] ^ 0x80; /* two's complement plus 128 */
}

/* IQ4's sixteen levels (-127 .. 113) plus 127. */
static const uint8_t iq4_codes[16] = {0,   23,  44,  62,  78,  92,  105, 117,
                                      128, 140, 152, 165, 180, 196, 216, 240};

static void iq4_group(const uint8_t *packed, float scale, uint8_t *codes, float *scales,
                      float *biases)
{
    *scales = scale;
    *biases = -127 * scale;
    split_nibbles(packed, 16, codes, codes + 16);
    for (size_t i = 0; i < GGUF_GROUP; i++)
        codes[i] = iq4_codes[codes[i]];
}

static void iq4_nl_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    iq4_group(block + 2, half_at(block), codes, scales, biases);
}

/* ---- Blocks of 256 --------------------------------------------------------------------------- */

/* d, scales_h u16, scales_l[4], qs[128]: six bits per scale, less 32. */
static void iq4_xs_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    float d = half_at(block);
    uint32_t high = (uint32_t)(block[2] | block[3] << 8);
    for (uint32_t g = 0; g < 8; g++) {
        uint32_t low = block[4 + g / 2] >> (4 * (g % 2)) & 0xf;
        int scale = (int)(low | (high >> (2 * g) & 3) << 4) - 32;
        iq4_group(block + 8 + 16 * g, d * (float)scale, codes + GGUF_GROUP * g, scales + g,
                  biases + g);
    }
}

/* The 12 bytes of Q4_K and Q5_K: scales and minima of 8 groups, 6 bits each. The first four of both
 * lie in the low six bits of bytes 0-7; the last four take a nibble of bytes 8-11 and the two bits
 * left above. */
static void k_scales(const uint8_t *block, float *scales, float *biases)
{
    float d = half_at(block), d_min = half_at(block + 2);
    const uint8_t *packed = block + 4;
    for (size_t g = 0; g < 8; g++) {
        uint32_t scale, minimum;
        if (g < 4) {
            scale = packed[g] & 63;
            minimum = packed[g + 4] & 63;
        } else {
            scale = (packed[g + 4] & 0xf) | (uint32_t)(packed[g - 4] >> 6) << 4;
            minimum = packed[g + 4] >> 4 | (uint32_t)(packed[g] >> 6) << 4;
        }
        scales[g] = d * (float)scale;
        biases[g] = -(d_min * (float)minimum);
    }
}

static void q4_k_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    k_scales(block, scales, biases);
    for (size_t pair = 0; pair < 4; pair++)
        split_nibbles(block + 16 + 32 * pair, 32, codes + 64 * pair, codes + 64 * pair + 32);
}

static void q5_k_codes(const uint8_t *block, uint8_t *codes, float *scales, float *biases)
{
    k_scales(block, scales, biases);
    const uint8_t *high_bits = block + 16;
    for (size_t pair = 0; pair < 4; pair++)
        split_nibbles(block + 48 + 32 * pair, 32, codes + 64 * pair, codes + 64 * pair + 32);
    for (size_t i = 0; i < 256; i++)
        codes[i] = (uint8_t)(codes[i] | (high_bits[i % 32] >> (i / 32) & 1) << 4);
}

/* scales[16], qs[64], d, dmin: scale in the low nibble, minimum in the high one. */
static void q2_k_values(const uint8_t *block, float *values)
{
    float d = half_at(block + 80), d_min = half_at(block + 82);
    for (size_t i = 0; i < 256; i++) {
        uint8_t scale = block[i / 16];
        uint8_t byte = block[16 + i / 128 * 32 + i % 32];
        uint32_t q = byte >> (i % 128 / 32 * 2) & 3;
        values[i] = d * (float)(scale & 0xf) * (float)q - d_min * (float)(scale >> 4);
    }
}

static int q3_k_scale(const uint8_t *packed, size_t i)
{
    uint32_t low = i < 8 ? packed[i] & 0xf : packed[i - 8] >> 4;
    uint32_t high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
    return (int)(low | high << 4) - 32;
}

/* hmask[32], qs[64], scales[12], d: a clear bit in hmask takes 4 off. */
static void q3_k_values(const uint8_t *block, float *values)
{
    float d = half_at(block + 108);
    for (size_t i = 0; i < 256; i++) {
        uint8_t byte = block[32 + i / 128 * 32 + i % 32];
        int q = byte >> (i % 128 / 32 * 2) & 3;
        int high = block[i % 32] >> (i / 32) & 1;
        values[i] = d * (float)q3_k_scale(block + 96, i / 16) * (float)(q - 4 * !high);
    }
}

/* ql[128], qh[64], scales[16] signed, d: per 128 values, ql holds 32 + 32 low nibbles, then the
 * high ones. */
static void q6_k_values(const uint8_t *block, float *values)
{
    float d = half_at(block + 208);
    for (size_t i = 0; i < 256; i++) {
        size_t half = i / 128, within = i % 128;
        uint32_t low = block[64 * half + within % 64] >> (within / 64 * 4) & 0xf;
        uint32_t high = block[128 + 32 * half + within % 32] >> (within / 32 * 2) & 3;
        float scale = d * (float)(int8_t)block[192 + i / 16];
        values[i] = scale * (float)((int)(low | high << 4) - 32);
    }
}

bool gguf_block_steps(const GgufBlockType *type, const uint8_t *block, float *steps)
{
    bool is_q3 = type->read_values == q3_k_values, is_q6 = type->read_values == q6_k_values;
    if (!is_q3 && !is_q6)
        return false;
    float d = half_at(block + (is_q3 ? 108 : 208));
    for (size_t i = 0; i < 16; i++) {
        int scale = is_q3 ? q3_k_scale(block + 96, i) : (int8_t)block[192 + i];
        steps[i] = fabsf(d * (float)scale);
    }
    return true;
}

/* ---- Requantising ---------------------------------------------------------------------------- */

static double squared_error(const float *values, const uint8_t *codes, float scale, float bias)
{
    double sum = 0;
    for (size_t i = 0; i < GGUF_GROUP; i++) {
        double error = (double)values[i] - (double)(scale * (float)codes[i] + bias);
        sum += error * error;
    }
    return sum;
}

/* A grid around zero whose step divides the coarser half's spacing, so that this half stays exact
 * and the finer one is off by at most half a step. Returns false when the values leave no such
 * grid. */
static bool try_aligned_grid(const float *values, const float *half_steps, uint8_t *codes,
                             float *scale, float *bias)
{
    float spacing = fmaxf(half_steps[0], half_steps[1]), largest = 0;
    for (size_t i = 0; i < GGUF_GROUP; i++)
        largest = fmaxf(largest, fabsf(values[i]));
    if (!(spacing > 0) || !(largest > 0))
        return false;
    float parts = floorf(127.5f / (largest / spacing));
    if (parts < 1)
        return false;
    float step = spacing / fminf(parts, 127);
    for (size_t i = 0; i < GGUF_GROUP; i++) {
        float code = rintf(values[i] / step) + 128;
        codes[i] = (uint8_t)fminf(fmaxf(code, 0), 255);
    }
    *scale = step;
    *bias = -128 * step;
    return true;
}

void gguf_requantize_group(const float *values, const float *half_steps, uint8_t *codes,
                           float *scale, float *bias)
{
    affine_quantize_group(values, GGUF_GROUP, 8, codes, scale, bias);
    uint8_t other_codes[GGUF_GROUP];
    float other_scale, other_bias;
    if (!half_steps ||
        !try_aligned_grid(values, half_steps, other_codes, &other_scale, &other_bias))
        return;
    if (squared_error(values, other_codes, other_scale, other_bias) <
        squared_error(values, codes, *scale, *bias)) {
        memcpy(codes, other_codes, sizeof(other_codes));
        *scale = other_scale;
        *bias = other_bias;
    }
}

/* ---- Table ----------------------------------------------------------------------------------- */

/* read_values of the affine formats: codes first, then the formula. */
#define AFFINE_VALUES(format, count)                                                               \
    static void format##_values(const uint8_t *block, float *values)                               \
    {                                                                                              \
        uint8_t codes[count];                                                                      \
        float scales[(count) / GGUF_GROUP], biases[(count) / GGUF_GROUP];                          \
        format##_codes(block, codes, scales, biases);                                              \
        expand(codes, scales, biases, count, values);                                              \
    }

AFFINE_VALUES(q4_0, 32)
AFFINE_VALUES(q4_1, 32)
AFFINE_VALUES(q5_0, 32)
AFFINE_VALUES(q5_1, 32)
AFFINE_VALUES(q8_0, 32)
AFFINE_VALUES(iq4_nl, 32)
AFFINE_VALUES(q4_k, 256)
AFFINE_VALUES(q5_k, 256)
AFFINE_VALUES(iq4_xs, 256)

#define DENSE(id, name, bytes, dtype)                                                              \
    {                                                                                              \
        id, name, 1, bytes, true, dtype, 0, NULL, NULL                                             \
    }
#define AFFINE(id, name, values, bytes, bits, format)                                              \
    {                                                                                              \
        id, name, values, bytes, true, DTYPE_OTHER, bits, format##_codes, format##_values          \
    }
#define REQUANTIZED(id, name, bytes, format)                                                       \
    {                                                                                              \
        id, name, 256, bytes, true, DTYPE_OTHER, 8, NULL, format##_values                          \
    }
#define KNOWN(id, name, values, bytes)                                                             \
    {                                                                                              \
        id, name, values, bytes, false, DTYPE_OTHER, 0, NULL, NULL                                 \
    }

static const GgufBlockType block_types[] = {
    DENSE(0, "F32", 4, DTYPE_F32),
    DENSE(1, "F16", 2, DTYPE_F16),
    AFFINE(2, "Q4_0", 32, 18, 4, q4_0),
    AFFINE(3, "Q4_1", 32, 20, 4, q4_1),
    AFFINE(6, "Q5_0", 32, 22, 5, q5_0),
    AFFINE(7, "Q5_1", 32, 24, 5, q5_1),
    AFFINE(8, "Q8_0", 32, 34, 8, q8_0),
    KNOWN(9, "Q8_1", 32, 36),
    REQUANTIZED(10, "Q2_K", 84, q2_k),
    REQUANTIZED(11, "Q3_K", 110, q3_k),
    AFFINE(12, "Q4_K", 256, 144, 4, q4_k),
    AFFINE(13, "Q5_K", 256, 176, 5, q5_k),
    REQUANTIZED(14, "Q6_K", 210, q6_k),
    KNOWN(15, "Q8_K", 256, 292),
    KNOWN(16, "IQ2_XXS", 256, 66),
    KNOWN(17, "IQ2_XS", 256, 74),
    KNOWN(18, "IQ3_XXS", 256, 98),
    KNOWN(19, "IQ1_S", 256, 50),
    AFFINE(20, "IQ4_NL", 32, 18, 8, iq4_nl),
    KNOWN(21, "IQ3_S", 256, 110),
    KNOWN(22, "IQ2_S", 256, 82),
    AFFINE(23, "IQ4_XS", 256, 136, 8, iq4_xs),
    KNOWN(24, "I8", 1, 1),
    KNOWN(25, "I16", 1, 2),
    KNOWN(26, "I32", 1, 4),
    KNOWN(27, "I64", 1, 8),
    KNOWN(28, "F64", 1, 8),
    KNOWN(29, "IQ1_M", 256, 56),
    DENSE(30, "BF16", 2, DTYPE_BF16),
    KNOWN(34, "TQ1_0", 256, 54),
    KNOWN(35, "TQ2_0", 256, 66),
    KNOWN(39, "MXFP4", 32, 17),
};

const GgufBlockType *gguf_block_type(uint32_t id)
{
    for (size_t i = 0; i < ARRAY_COUNT(block_types); i++) {
        if (block_types[i].id == id)
            return &block_types[i];
    }
    return NULL;
}
