/* The kernels in plain C: the formulas of kernels.h, and what machines without a faster set run.
 *
 * One block of a tile is unpacked to a small array, codes or values, and every token then takes its
 * part of it; accumulators of a token tile stay in one array. */
#include "kernels.h"

#include <math.h>
#include <string.h>

static const uint8_t fp4_codes[16] = FP4_CODES;

static float scale_at(const uint8_t *scales, ScaleType type, size_t index)
{
    uint16_t half;
    float value;

    if (type == SCALE_F32) {
        memcpy(&value, scales + index * 4, 4);
        return value;
    }
    memcpy(&half, scales + index * 2, 2);
    return type == SCALE_F16 ? float_from_f16(half) : float_from_bf16(half);
}

/* Scales and biases of a tile's group; returns where its codes begin. */
static const uint8_t *read_group(const PackedMatrix *m, size_t tile, size_t group,
                                 float scales[TILE_ROWS], float biases[TILE_ROWS])
{
    const uint8_t *at = packed_group(m, tile, group);
    for (size_t r = 0; r < TILE_ROWS; r++) {
        scales[r] = scale_at(at, m->scale_type, r);
        biases[r] = scale_at(at, m->scale_type, TILE_ROWS + r);
    }
    return at + 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
}

static size_t block_bytes(const PackedMatrix *m)
{
    return m->format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
}

/* Codes of a block, row by row. */
static void unpack_block(const PackedMatrix *m, const uint8_t *block,
                         uint8_t codes[TILE_ROWS][WEIGHT_BLOCK])
{
    for (size_t r = 0; r < TILE_ROWS; r++) {
        for (size_t i = 0; i < WEIGHT_BLOCK; i++) {
            size_t vector = i / 4, lane_byte = r * 4 + i % 4;
            if (m->format == PACKED_BYTES) {
                codes[r][i] = block[vector * VECTOR_BYTES + lane_byte];
                continue;
            }
            unsigned code = block[vector / 2 * VECTOR_BYTES + lane_byte] >> (vector % 2 * 4) & 15;
            codes[r][i] = m->format == PACKED_FP4 ? fp4_codes[code] : (uint8_t)code;
        }
    }
}

static void store_tile(const KernelJob *job, size_t tile, size_t token, const float acc[TILE_ROWS])
{
    size_t first = tile * TILE_ROWS;
    size_t left = job->matrix->rows - first;
    size_t rows = left < TILE_ROWS ? left : TILE_ROWS;
    float *y = job->y + token * job->y_stride + first;
    for (size_t r = 0; r < rows; r++)
        y[r] = job->bias ? acc[r] + job->bias[first + r] : acc[r];
}

/* The codes of a span, and what they are multiplied by. */
typedef struct Span {
    size_t inputs, first_input; /* first_input: within the activations' block */
    uint8_t codes[2][TILE_ROWS][WEIGHT_BLOCK];
    float scales[TILE_ROWS], biases[TILE_ROWS];
} Span;

/* The whole code of input i of a block. */
static int32_t whole_code(const int8_t *codes, ActivationPrecision precision, size_t i)
{
    if (precision == ACTIVATIONS_INT8)
        return codes[i];
    if (precision == ACTIVATIONS_INT16)
        return codes[i] * ACTIVATION_PLANE_STEP + codes[ACTIVATION_BLOCK + i];
    int32_t shared = codes[ACTIVATION_BLOCK + i / 8 * 4 + i % 4];
    return codes[i] * ACTIVATION_PLANE_STEP + (i / 4 % 2 ? shared * ACTIVATION_PAIR_STEP : shared);
}

static int32_t dot_codes(const Span *span, size_t row, const int32_t *x)
{
    int32_t dot = 0;
    for (size_t i = 0; i < span->inputs; i++)
        dot += span->codes[i / WEIGHT_BLOCK][row][i % WEIGHT_BLOCK] * x[i];
    return dot;
}

static float span_offset(const Span *span, const ActivationScale *x)
{
    return span->inputs == ACTIVATION_BLOCK ? x->offset
                                            : x->half_offsets[span->first_input / WEIGHT_BLOCK];
}

/* Adds one span, of the activations' block, to the accumulators of a token tile. */
static void add_span(const Span *span, const Activations *x, size_t first, size_t block,
                     size_t n_tokens, float (*acc)[TILE_ROWS])
{
    const int8_t *codes = activation_codes(x, first, block);
    const ActivationScale *scale = activation_scale(x, first, block);
    for (size_t t = 0; t < n_tokens; t++, codes += x->block_bytes, scale++) {
        int32_t whole[ACTIVATION_BLOCK];
        for (size_t i = 0; i < span->inputs; i++)
            whole[i] = whole_code(codes, x->precision, span->first_input + i);
        for (size_t r = 0; r < TILE_ROWS; r++) {
            acc[t][r] += (float)dot_codes(span, r, whole) * (span->scales[r] * scale->scale);
            acc[t][r] += span->biases[r] * span_offset(span, scale);
        }
    }
}

static void multiply_codes(const KernelJob *job)
{
    const PackedMatrix *m = job->matrix;
    const Activations *x = job->x;
    const size_t span_blocks = packed_span_blocks(m);
    float acc[ACTIVATION_TILE][TILE_ROWS];
    Span span = {.inputs = span_blocks * WEIGHT_BLOCK};

    for (size_t tile = job->first_tile; tile < job->first_tile + job->n_tiles; tile++) {
        for (size_t first = 0; first < x->n_tokens; first += ACTIVATION_TILE) {
            size_t left = x->n_tokens - first;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += span_blocks) {
                const uint8_t *at =
                    read_group(m, tile, block / m->group_blocks, span.scales, span.biases);
                at += block % m->group_blocks * block_bytes(m);
                for (size_t b = 0; b < span_blocks; b++)
                    unpack_block(m, at + b * block_bytes(m), span.codes[b]);
                size_t x_block = block * WEIGHT_BLOCK / ACTIVATION_BLOCK;
                span.first_input = block * WEIGHT_BLOCK % ACTIVATION_BLOCK;
                add_span(&span, x, first, x_block, width, acc);
            }
            for (size_t t = 0; t < width; t++)
                store_tile(job, tile, first + t, acc[t]);
        }
    }
}

static void expand_dense(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS])
{
    size_t first = block * WEIGHT_BLOCK;
    size_t left = m->cols - first;
    size_t count = left < WEIGHT_BLOCK ? left : WEIGHT_BLOCK;
    ScaleType type = m->format == PACKED_F32   ? SCALE_F32
                     : m->format == PACKED_F16 ? SCALE_F16
                                               : SCALE_BF16;
    const uint8_t *at = packed_group(m, tile, block);

    memset(out, 0, WEIGHT_BLOCK * sizeof(out[0]));
    for (size_t i = 0; i < count; i++) {
        for (size_t r = 0; r < TILE_ROWS; r++)
            out[i][r] = scale_at(at, type, i * TILE_ROWS + r);
    }
}

void packed_expand_block(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS])
{
    uint8_t codes[TILE_ROWS][WEIGHT_BLOCK];
    float scales[TILE_ROWS], biases[TILE_ROWS];

    if (!packed_format_is_quantized(m->format)) {
        expand_dense(m, tile, block, out);
        return;
    }
    const uint8_t *at = read_group(m, tile, block / m->group_blocks, scales, biases);
    unpack_block(m, at + block % m->group_blocks * block_bytes(m), codes);
    for (size_t i = 0; i < WEIGHT_BLOCK; i++) {
        for (size_t r = 0; r < TILE_ROWS; r++)
            out[i][r] = scales[r] * (float)codes[r][i] + biases[r];
    }
}

static void multiply_f32(const KernelJob *job)
{
    const PackedMatrix *m = job->matrix;
    const Activations *x = job->x;
    float acc[ACTIVATION_TILE][TILE_ROWS];
    float weights[WEIGHT_BLOCK][TILE_ROWS];

    for (size_t tile = job->first_tile; tile < job->first_tile + job->n_tiles; tile++) {
        for (size_t first = 0; first < x->n_tokens; first += ACTIVATION_TILE) {
            size_t left = x->n_tokens - first;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block++) {
                size_t at = block * WEIGHT_BLOCK;
                size_t inputs = m->cols - at < WEIGHT_BLOCK ? m->cols - at : WEIGHT_BLOCK;
                packed_expand_block(m, tile, block, weights);
                for (size_t t = 0; t < width; t++) {
                    const float *values = x->values + (first + t) * x->value_stride + at;
                    float partial[TILE_ROWS] = {0};
                    for (size_t i = 0; i < inputs; i++) {
                        for (size_t r = 0; r < TILE_ROWS; r++)
                            partial[r] += weights[i][r] * values[i];
                    }
                    for (size_t r = 0; r < TILE_ROWS; r++)
                        acc[t][r] += partial[r];
                }
            }
            for (size_t t = 0; t < width; t++)
                store_tile(job, tile, first + t, acc[t]);
        }
    }
}

/* Sets the scale with which the largest magnitude of a block gets the code `limit`, and what inputs
 * are multiplied by. Without any codes, which is when all inputs are zero or one is not finite:
 * false, and *out is complete. */
static bool set_scale(const float *x, int32_t limit, ActivationScale *out, float *inverse)
{
    float largest = 0;
    bool finite = true;
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++) {
        float magnitude = fabsf(x[i]);
        finite &= magnitude <= 3.402823466e38f; /* false for NaN too */
        largest = magnitude > largest ? magnitude : largest;
    }
    float value = finite ? 0 : NAN;
    *out = (ActivationScale){.scale = value, .offset = value, .half_offsets = {value, value}};
    if (!finite || largest < ACTIVATION_ZERO_BELOW)
        return false;
    *inverse = (float)limit / largest;
    out->scale = largest / (float)limit;
    return true;
}

static void set_offsets(const int32_t codes[ACTIVATION_BLOCK], ActivationScale *out)
{
    int32_t sums[2] = {0};
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
        sums[i / WEIGHT_BLOCK] += codes[i];
    out->offset = out->scale * (float)(sums[0] + sums[1]);
    for (size_t h = 0; h < 2; h++)
        out->half_offsets[h] = out->scale * (float)sums[h];
}

/* Codes of up to +-limit. */
static void quantize_values(const float *x, int32_t limit, int32_t codes[ACTIVATION_BLOCK],
                            ActivationScale *out)
{
    float inverse;
    memset(codes, 0, ACTIVATION_BLOCK * sizeof(codes[0]));
    if (!set_scale(x, limit, out, &inverse))
        return;
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
        codes[i] = (int32_t)lrintf(x[i] * inverse);
    set_offsets(codes, out);
}

static void quantize_block(const float *x, int8_t *codes, ActivationScale *scale)
{
    int32_t whole[ACTIVATION_BLOCK];
    quantize_values(x, 127, whole, scale);
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
        codes[i] = (int8_t)whole[i];
}

/* Floor of (code + 128) / 256: what is left for the second plane is -128 .. 127. */
static int32_t high_plane(int32_t code)
{
    enum { STEP = ACTIVATION_PLANE_STEP };
    return (code + STEP / 2 + STEP * STEP / 2) / STEP - STEP / 2;
}

/* codes: of the first plane. */
static void set_pair_rests(const int8_t codes[ACTIVATION_BLOCK], ActivationScale *out)
{
    for (size_t i = 0; i < ACTIVATION_BLOCK; i += i % 4 == 3 ? 5 : 1) {
        int32_t a = codes[i], b = codes[i + 4];
        int32_t rest = WINOGRAD_SECOND * b - a * (b + WINOGRAD_FIRST);
        out->half_pair_rests[i / WEIGHT_BLOCK] += rest;
        out->pair_rest += rest;
    }
}

static void quantize_block_int16(const float *x, int8_t *codes, ActivationScale *scale)
{
    int32_t whole[ACTIVATION_BLOCK];
    quantize_values(x, ACTIVATION_INT16_MAX, whole, scale);
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++) {
        codes[i] = (int8_t)high_plane(whole[i]);
        codes[ACTIVATION_BLOCK + i] = (int8_t)(whole[i] - codes[i] * ACTIVATION_PLANE_STEP);
    }
}

/* The second of a pair is rounded to steps first. What its steps leave below a multiple of 16 are
 * the low bits of the shared byte; the first lies that much off the steps, and is rounded so. */
static void quantize_block_int12(const float *x, int8_t *codes, ActivationScale *scale)
{
    enum { STEP = ACTIVATION_PAIR_STEP, LIMIT = ACTIVATION_INT12_STEPS * STEP };
    int32_t whole[ACTIVATION_BLOCK];
    float inverse;
    memset(codes, 0, ACTIVATION_INT12_BYTES);
    if (!set_scale(x, LIMIT, scale, &inverse))
        return;
    inverse /= STEP; /* to steps */
    for (size_t a = 0, pair = 0; a < ACTIVATION_BLOCK; a += a % 4 == 3 ? 5 : 1, pair++) {
        const size_t b = a + 4;
        int32_t steps = (int32_t)lrintf(x[b] * inverse),
                low = ((steps + STEP / 2) & (STEP - 1)) - STEP / 2;
        whole[a] = (int32_t)lrintf(x[a] * inverse - (float)low / STEP) * STEP + low;
        whole[b] = steps * STEP;
        codes[a] = (int8_t)high_plane(whole[a]);
        int32_t shared = whole[a] - codes[a] * ACTIVATION_PLANE_STEP;
        codes[b] = (int8_t)((steps - shared) / STEP); /* exact */
        codes[ACTIVATION_BLOCK + pair] = (int8_t)shared;
    }
    set_offsets(whole, scale);
    set_pair_rests(codes, scale);
}

const KernelTable kernels_plain = {
    .name = "plain",
    .quantize_block = quantize_block,
    .quantize_block_int16 = quantize_block_int16,
    .quantize_block_int12 = quantize_block_int12,
    .multiply = {multiply_codes, multiply_codes, multiply_codes, multiply_f32, multiply_f32,
                 multiply_f32},
    .multiply_f32 = {multiply_f32, multiply_f32, multiply_f32, multiply_f32, multiply_f32,
                     multiply_f32},
};
