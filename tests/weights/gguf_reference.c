#include "gguf_reference.h"

#include <string.h>

static float half_of(const uint8_t *p)
{
    return float_from_f16((uint16_t)(p[0] | p[1] << 8));
}

static void read_f32(const uint8_t *b, float *y)
{
    memcpy(y, b, sizeof(*y));
}

static void read_f16(const uint8_t *b, float *y)
{
    *y = half_of(b);
}

static void read_bf16(const uint8_t *b, float *y)
{
    *y = float_from_bf16((uint16_t)(b[0] | b[1] << 8));
}

static void read_q4_0(const uint8_t *b, float *y)
{
    for (int j = 0; j < 16; j++) {
        y[j] = half_of(b) * (float)((b[2 + j] & 15) - 8);
        y[j + 16] = half_of(b) * (float)((b[2 + j] >> 4) - 8);
    }
}

static void read_q4_1(const uint8_t *b, float *y)
{
    for (int j = 0; j < 16; j++) {
        y[j] = half_of(b) * (float)(b[4 + j] & 15) + half_of(b + 2);
        y[j + 16] = half_of(b) * (float)(b[4 + j] >> 4) + half_of(b + 2);
    }
}

static uint32_t word(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void read_q5_0(const uint8_t *b, float *y)
{
    uint32_t high = word(b + 2);
    for (int j = 0; j < 16; j++) {
        int first = (b[6 + j] & 15) | (int)((high >> j & 1) * 16);
        int second = (b[6 + j] >> 4) | (int)((high >> (j + 16) & 1) * 16);
        y[j] = half_of(b) * (float)(first - 16);
        y[j + 16] = half_of(b) * (float)(second - 16);
    }
}

static void read_q5_1(const uint8_t *b, float *y)
{
    uint32_t high = word(b + 4);
    for (int j = 0; j < 16; j++) {
        uint32_t first = (b[8 + j] & 15u) | (high >> j & 1) * 16;
        uint32_t second = (b[8 + j] >> 4) | (high >> (j + 16) & 1) * 16;
        y[j] = half_of(b) * (float)first + half_of(b + 2);
        y[j + 16] = half_of(b) * (float)second + half_of(b + 2);
    }
}

static void read_q8_0(const uint8_t *b, float *y)
{
    for (int j = 0; j < 32; j++)
        y[j] = half_of(b) * (float)(int8_t)b[2 + j];
}

static const int iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

static void read_iq4_nl(const uint8_t *b, float *y)
{
    for (int j = 0; j < 16; j++) {
        y[j] = half_of(b) * (float)iq4_levels[b[2 + j] & 15];
        y[j + 16] = half_of(b) * (float)iq4_levels[b[2 + j] >> 4];
    }
}

static void read_iq4_xs(const uint8_t *b, float *y)
{
    uint32_t high = b[2] | (uint32_t)b[3] << 8;
    for (int g = 0; g < 8; g++) {
        uint32_t low = g % 2 ? b[4 + g / 2] >> 4 : b[4 + g / 2] & 15u;
        float scale = half_of(b) * (float)((int)(low + 16 * (high & 3)) - 32);
        high >>= 2;
        for (int j = 0; j < 16; j++) {
            y[32 * g + j] = scale * (float)iq4_levels[b[8 + 16 * g + j] & 15];
            y[32 * g + j + 16] = scale * (float)iq4_levels[b[8 + 16 * g + j] >> 4];
        }
    }
}

static void read_q2_k(const uint8_t *b, float *y)
{
    const uint8_t *scales = b, *q = b + 16;
    float d = half_of(b + 80), min = half_of(b + 82);
    for (int n = 0; n < 2; n++, q += 32) {
        for (int shift = 0; shift < 8; shift += 2) {
            for (int half = 0; half < 32; half += 16) {
                uint8_t s = *scales++;
                for (int l = 0; l < 16; l++)
                    *y++ = d * (float)(s & 15) * (float)(q[half + l] >> shift & 3) -
                           min * (float)(s >> 4);
            }
        }
    }
}

static void read_q3_k(const uint8_t *b, float *y)
{
    /* Sixteen 6-bit scales: four words of four bytes put together from three. */
    const uint8_t *packed = b + 96, *q = b + 32;
    int scales[16];
    for (int i = 0; i < 4; i++) {
        scales[i] = (packed[i] & 15) | (packed[8 + i] & 3) << 4;
        scales[4 + i] = (packed[4 + i] & 15) | (packed[8 + i] >> 2 & 3) << 4;
        scales[8 + i] = packed[i] >> 4 | (packed[8 + i] >> 4 & 3) << 4;
        scales[12 + i] = packed[4 + i] >> 4 | (packed[8 + i] >> 6) << 4;
    }
    int *scale = scales;
    uint8_t mask = 1;
    for (int n = 0; n < 2; n++, q += 32) {
        for (int shift = 0; shift < 8; shift += 2, mask = (uint8_t)(mask << 1)) {
            for (int half = 0; half < 32; half += 16) {
                float d = half_of(b + 108) * (float)(*scale++ - 32);
                for (int l = half; l < half + 16; l++)
                    *y++ = d * (float)((q[l] >> shift & 3) - (b[l] & mask ? 0 : 4));
            }
        }
    }
}

/* Scale and minimum j of the 12 bytes that Q4_K and Q5_K share. */
static void scale_and_minimum(const uint8_t *packed, int j, int *scale, int *minimum)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *minimum = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *minimum = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
    }
}

static void read_q45_k(const uint8_t *b, const uint8_t *high, const uint8_t *q, float *y)
{
    for (int j = 0; j < 8; j++) {
        int scale, minimum;
        scale_and_minimum(b + 4, j, &scale, &minimum);
        float d = half_of(b) * (float)scale, m = half_of(b + 2) * (float)minimum;
        for (int l = 0; l < 32; l++) {
            int code = j % 2 ? q[l] >> 4 : q[l] & 15;
            if (high && high[l] & (1 << j))
                code += 16;
            *y++ = d * (float)code - m;
        }
        q += j % 2 ? 32 : 0;
    }
}

static void read_q4_k(const uint8_t *b, float *y)
{
    read_q45_k(b, NULL, b + 16, y);
}

static void read_q5_k(const uint8_t *b, float *y)
{
    read_q45_k(b, b + 16, b + 48, y);
}

static void read_q6_k(const uint8_t *b, float *y)
{
    const uint8_t *low = b, *high = b + 128;
    const int8_t *scales = (const int8_t *)(b + 192);
    float d = half_of(b + 208);
    for (int n = 0; n < 2; n++, y += 128, low += 64, high += 32, scales += 8) {
        for (int l = 0; l < 32; l++) {
            int q1 = (low[l] & 15) | (high[l] & 3) << 4;
            int q2 = (low[l + 32] & 15) | (high[l] >> 2 & 3) << 4;
            int q3 = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
            int q4 = low[l + 32] >> 4 | (high[l] >> 6) << 4;
            y[l] = d * (float)scales[l / 16] * (float)(q1 - 32);
            y[l + 32] = d * (float)scales[l / 16 + 2] * (float)(q2 - 32);
            y[l + 64] = d * (float)scales[l / 16 + 4] * (float)(q3 - 32);
            y[l + 96] = d * (float)scales[l / 16 + 6] * (float)(q4 - 32);
        }
    }
}

#define NONE 0xffff
const BlockFormat block_formats[] = {
    {0, "F32", 1, 4, true, 0, 0, read_f32, {NONE, NONE}},
    {1, "F16", 1, 2, true, 0, 0, read_f16, {0, NONE}},
    {30, "BF16", 1, 2, true, 0, 0, read_bf16, {NONE, NONE}},
    {2, "Q4_0", 32, 18, true, 0, 4, read_q4_0, {0, NONE}},
    {3, "Q4_1", 32, 20, true, 0, 4, read_q4_1, {0, 2}},
    {6, "Q5_0", 32, 22, true, 0, 5, read_q5_0, {0, NONE}},
    {7, "Q5_1", 32, 24, true, 0, 5, read_q5_1, {0, 2}},
    {8, "Q8_0", 32, 34, true, 0, 8, read_q8_0, {0, NONE}},
    {20, "IQ4_NL", 32, 18, false, 1e-3, 8, read_iq4_nl, {0, NONE}},
    {23, "IQ4_XS", 256, 136, false, 1e-3, 8, read_iq4_xs, {0, NONE}},
    {12, "Q4_K", 256, 144, false, 2e-3, 4, read_q4_k, {0, 2}},
    {13, "Q5_K", 256, 176, false, 2e-3, 5, read_q5_k, {0, 2}},
    {10, "Q2_K", 256, 84, false, 8e-3, 8, read_q2_k, {80, 82}},
    {11, "Q3_K", 256, 110, false, 8e-3, 8, read_q3_k, {108, NONE}},
    {14, "Q6_K", 256, 210, false, 8e-3, 8, read_q6_k, {208, NONE}},
};
const size_t n_block_formats = ARRAY_COUNT(block_formats);

/* A scale between 1/64 and 1/32, its lowest bits set, so that products do not fit f16 by luck. */
static uint16_t random_half(uint32_t *noise)
{
    return (uint16_t)(0x2400 | (noise_next(noise) & 0x3ff) | 1);
}

void put_random_blocks(Buffer *out, const BlockFormat *format, size_t count, uint32_t *noise)
{
    for (size_t i = 0; i < count; i += format->values) {
        size_t at = out->len;
        for (size_t j = 0; j < format->bytes; j++)
            buffer_append_byte(out, (char)(noise_next(noise) & 0xff));
        for (size_t j = 0; j < ARRAY_COUNT(format->halfs); j++) {
            if (format->halfs[j] == NONE)
                continue;
            uint16_t half = random_half(noise);
            out->ptr[at + format->halfs[j]] = (char)(half & 0xff);
            out->ptr[at + format->halfs[j] + 1] = (char)(half >> 8);
        }
        if (format->values == 1 && format->halfs[0] == NONE) { /* F32, BF16 */
            float value = noise_float(noise);
            uint16_t top = float_to_bf16(value);
            char bytes[4];
            memcpy(bytes, format->bytes == 4 ? (const void *)&value : &top, format->bytes);
            memcpy(out->ptr + at, bytes, format->bytes);
        }
    }
}

void read_blocks(const BlockFormat *format, const uint8_t *blocks, size_t count, float *values)
{
    for (size_t i = 0; i < count; i += format->values, blocks += format->bytes)
        format->read(blocks, values + i);
}
