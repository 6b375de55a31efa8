#include "attention_int8.h"

#include "kernels.h"

#include <math.h>
#include <string.h>

/* Where the code of byte i of four stands. */
static size_t pair_order(size_t i)
{
    static const uint8_t order[4] = {0, 2, 1, 3};
    return i / 4 * 4 + order[i % 4];
}

/* ---- Storing ---- */

/* The scales behind the codes of one head's keys, or values. */
static float *scales_of(uint8_t *head, size_t padded_dim)
{
    return (float *)(void *)(head + KV_BLOCK * padded_dim);
}

/* Quantises up to 64 dimensions of a row; what is beyond them gets the code of zero. */
static float quantize_dims(const float *x, size_t n, int8_t codes[KV_SCALE_DIMS])
{
    ActivationScale scale;
    float padded[KV_SCALE_DIMS] = {0};
    if (n < KV_SCALE_DIMS) {
        memcpy(padded, x, n * sizeof *x);
        x = padded;
    }
    cpu_kernels()->quantize_block(x, codes, &scale);
    return scale.scale;
}

void attention_store_int8(const float *key, const float *value, size_t head_dim, uint8_t *keys,
                          uint8_t *values, size_t slot)
{
    size_t padded_dim = (head_dim + KV_VALUE_UNIT - 1) / KV_VALUE_UNIT * KV_VALUE_UNIT;
    _Alignas(64) int8_t codes[KV_SCALE_DIMS];
    for (size_t d = 0; d < padded_dim; d += KV_SCALE_DIMS) {
        size_t n = padded_dim - d < KV_SCALE_DIMS ? padded_dim - d : KV_SCALE_DIMS;
        size_t real = head_dim - d < n ? head_dim - d : n;
        size_t scale_at = d / KV_SCALE_DIMS * KV_BLOCK + slot;
        scales_of(keys, padded_dim)[scale_at] = quantize_dims(key + d, real, codes);
        for (size_t i = 0; i < n; i++)
            codes[i] = (int8_t)(codes[i] ^ -KV_INT8_ZERO); /* signed to offset: the top bit */
        for (size_t i = 0; i < n; i += 4)
            memcpy(keys + ((d + i) * KV_BLOCK + slot * 4), codes + i, 4);
        scales_of(values, padded_dim)[scale_at] = quantize_dims(value + d, real, codes);
        uint8_t *to = values + slot / 4 * padded_dim * 4 + slot % 4;
        for (size_t i = 0; i < n; i++)
            to[(d + i) * 4] = (uint8_t)(codes[i] + KV_INT8_ZERO);
    }
}

void attention_quantize_queries(const float *queries, size_t n, size_t padded_dim, int16_t *codes,
                                AttentionQueryScale *scales)
{
    _Alignas(64) int8_t planes[2][KV_SCALE_DIMS];
    for (size_t i = 0; i < n; i++) {
        for (size_t d = 0; d < padded_dim; d += KV_SCALE_DIMS) {
            float padded[KV_SCALE_DIMS] = {0};
            const float *x = queries + i * padded_dim + d;
            if (padded_dim - d < KV_SCALE_DIMS)
                x = memcpy(padded, x, (padded_dim - d) * sizeof *x);
            ActivationScale scale;
            cpu_kernels()->quantize_block_int16(x, planes[0], &scale);
            int32_t sum = 0;
            for (size_t j = 0; j < KV_SCALE_DIMS; j += 4) {
                int16_t code[4];
                for (size_t b = 0; b < 4; b++) {
                    code[b] =
                        (int16_t)(planes[0][j + b] * ACTIVATION_PLANE_STEP + planes[1][j + b]);
                    sum += code[b];
                }
                codes[j] = code[0];
                codes[j + 1] = code[2];
                codes[j + 2] = code[1];
                codes[j + 3] = code[3];
            }
            *scales++ = (AttentionQueryScale){scale.scale, sum * KV_INT8_ZERO};
            codes += KV_SCALE_DIMS;
        }
    }
}

/* ---- The formula ---- */

static void score_plain(const Int8Block *b, const int16_t *codes, const AttentionQueryScale *scales,
                        size_t n, float (*scores)[KV_BLOCK])
{
    size_t rows = int8_scale_rows(b->padded_dim);
    for (size_t i = 0; i < n; i++) {
        memset(scores[i], 0, sizeof scores[i]);
        for (size_t row = 0; row < rows; row++) {
            const int16_t *q = codes + (i * rows + row) * KV_SCALE_DIMS;
            size_t first = row * KV_SCALE_DIMS, left = b->padded_dim - first;
            for (size_t key = 0; key < KV_BLOCK; key++) {
                int32_t sum = 0;
                for (size_t d = 0; d < KV_SCALE_DIMS && d < left; d++)
                    sum += q[pair_order(d)] *
                           b->key_codes[(first + d) / 4 * KV_BLOCK * 4 + key * 4 + d % 4];
                float dot =
                    (float)(sum - scales[i * rows + row].zero) * scales[i * rows + row].scale;
                scores[i][key] = fmaf(dot, b->key_scales[row * KV_BLOCK + key], scores[i][key]);
            }
        }
    }
}

static float soften_plain(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap,
                          float *max, float *sum)
{
    float fresh = *max, total = 0.0f;
    for (size_t key = first; key < end; key++) {
        if (soft_cap > 0.0f)
            scores[key] = soft_cap * tanhf(scores[key] / soft_cap);
        fresh = fmaxf(fresh, scores[key]);
    }
    if (isinf(fresh) && fresh < 0.0f) {
        memset(scores, 0, KV_BLOCK * sizeof *scores);
        return 1.0f;
    }
    for (size_t key = 0; key < KV_BLOCK; key++) {
        scores[key] = key >= first && key < end ? expf(scores[key] - fresh) : 0.0f;
        total += scores[key];
    }
    float correction = expf(*max - fresh);
    *sum = fmaf(*sum, correction, total);
    *max = fresh;
    return correction;
}

/* Weights times the values' scales, as codes; returns what a code counts. */
static float quantize_weights(const float weights[KV_BLOCK], const float *scales,
                              int32_t codes[KV_BLOCK])
{
    float scaled[KV_BLOCK], most = 0.0f;
    bool is_nan = false;
    for (size_t key = 0; key < KV_BLOCK; key++) {
        /* A hidden key may have any scale. */
        scaled[key] = weights[key] == 0.0f ? 0.0f : weights[key] * scales[key];
        most = fmaxf(most, scaled[key]);
        is_nan = is_nan || isnan(scaled[key]);
    }
    memset(codes, 0, KV_BLOCK * sizeof *codes);
    if (is_nan || most < INT8_WEIGHT_ZERO_BELOW)
        return is_nan ? NAN : 0.0f;
    for (size_t key = 0; key < KV_BLOCK; key++)
        codes[key] = (int32_t)lrintf(scaled[key] * ((float)INT8_WEIGHT_MAX / most));
    return most / (float)INT8_WEIGHT_MAX;
}

static void weigh_plain(const Int8Block *b, const float (*weights)[KV_BLOCK],
                        const float *corrections, size_t n, float *output)
{
    for (size_t i = 0; i < n; i++) {
        int32_t codes[KV_BLOCK];
        float scale = 0.0f;
        for (size_t d = 0; d < b->padded_dim; d++) {
            if (d % KV_SCALE_DIMS == 0)
                scale = quantize_weights(weights[i], b->value_scales + d / KV_SCALE_DIMS * KV_BLOCK,
                                         codes);
            int32_t sum = 0;
            for (size_t key = 0; key < KV_BLOCK; key++)
                sum += codes[key] *
                       (b->value_codes[(key / 4 * b->padded_dim + d) * 4 + key % 4] - KV_INT8_ZERO);
            float *to = output + i * b->padded_dim + d;
            *to = fmaf((float)sum, scale, *to * corrections[i]);
        }
    }
}

const Int8Loops int8_loops_plain = {score_plain, soften_plain, weigh_plain};

/* ---- Blocks ---- */

/* Queries [at, at + n) of the tile over the block that begins at a position. */
static void group_block(const AttentionTile *t, const Int8Loops *loops, const Int8Block *b,
                        size_t position, size_t at, size_t n)
{
    _Alignas(64) float weights[INT8_GROUP_QUERIES][KV_BLOCK];
    float corrections[INT8_GROUP_QUERIES];
    size_t rows = int8_scale_rows(t->padded_dim);
    size_t first = t->first_key > position ? t->first_key : position;
    if (t->positions[at + n - 1] < first)
        return; /* the whole block lies after these queries */
    loops->score(b, t->query_codes + at * rows * KV_SCALE_DIMS, t->query_scales + at * rows, n,
                 weights);
    for (size_t i = 0; i < n; i++) {
        KeyRange seen = attention_visible(t, position, t->positions[at + i]);
        corrections[i] = loops->soften(weights[i], seen.first, seen.end, t->soft_cap,
                                       &t->maxima[at + i], &t->sums[at + i]);
    }
    loops->weigh(b, (const float(*)[KV_BLOCK])weights, corrections, n,
                 t->output + at * t->padded_dim);
}

void attention_segment_int8(const AttentionTile *t, const Int8Loops *loops)
{
    const size_t code_bytes = KV_BLOCK * t->padded_dim;
    attention_begin(t);
    for (size_t at = t->first_key / KV_BLOCK * KV_BLOCK; at < t->end_key; at += KV_BLOCK) {
        size_t index = at / KV_BLOCK % ATTENTION_SEGMENT_BLOCKS;
        const uint8_t *keys = t->keys[index], *values = t->values[index];
        Int8Block block = {
            .key_codes = keys,
            .value_codes = values,
            .key_scales = (const float *)(const void *)(keys + code_bytes),
            .value_scales = (const float *)(const void *)(values + code_bytes),
            .padded_dim = t->padded_dim,
            .looks_ahead = true,
            .next = at + KV_BLOCK < t->end_key ? t->keys[index + 1] : t->next_keys,
            .next_bytes = (size_t)(values - keys),
        };
        for (size_t i = 0; i < t->n_queries; i += INT8_GROUP_QUERIES) {
            size_t left = t->n_queries - i;
            group_block(t, loops, &block, at, i,
                        left < INT8_GROUP_QUERIES ? left : INT8_GROUP_QUERIES);
            block.looks_ahead = false; /* the first group has asked */
            block.next = NULL;
        }
    }
}
