#include "attention_codes.h"

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
static float *scales_of(uint8_t *head, size_t padded_dim, KvType type)
{
    size_t code_bytes = type == KV_INT16 ? sizeof(int16_t) : 1;
    return (float *)(void *)(head + KV_BLOCK * padded_dim * code_bytes);
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

static size_t padded(size_t head_dim)
{
    return (head_dim + KV_VALUE_UNIT - 1) / KV_VALUE_UNIT * KV_VALUE_UNIT;
}

static void store_int8(const float *key, const float *value, size_t head_dim, uint8_t *keys,
                       uint8_t *values, size_t slot)
{
    size_t padded_dim = padded(head_dim);
    _Alignas(64) int8_t codes[KV_SCALE_DIMS];
    for (size_t d = 0; d < padded_dim; d += KV_SCALE_DIMS) {
        size_t n = padded_dim - d < KV_SCALE_DIMS ? padded_dim - d : KV_SCALE_DIMS;
        size_t real = head_dim - d < n ? head_dim - d : n;
        size_t scale_at = d / KV_SCALE_DIMS * KV_BLOCK + slot;
        scales_of(keys, padded_dim, KV_INT8)[scale_at] = quantize_dims(key + d, real, codes);
        for (size_t i = 0; i < n; i++)
            codes[i] = (int8_t)(codes[i] ^ -KV_INT8_ZERO); /* signed to offset: the top bit */
        for (size_t i = 0; i < n; i += 4)
            memcpy(keys + ((d + i) * KV_BLOCK + slot * 4), codes + i, 4);
        scales_of(values, padded_dim, KV_INT8)[scale_at] = quantize_dims(value + d, real, codes);
        uint8_t *to = values + slot / 4 * padded_dim * 4 + slot % 4;
        for (size_t i = 0; i < n; i++)
            to[(d + i) * 4] = (uint8_t)(codes[i] + KV_INT8_ZERO);
    }
}

/* Dimensions [d, d + KV_SCALE_DIMS) of a row of n > d as codes, zeros where it has none. */
static void codes_at(const CpuOps *ops, const float *x, size_t n, size_t d, float inverse,
                     int16_t codes[KV_SCALE_DIMS])
{
    size_t left = n - d, count = left < KV_SCALE_DIMS ? left : KV_SCALE_DIMS;
    ops->to_codes(x + d, count, inverse, codes);
    memset(codes + count, 0, (KV_SCALE_DIMS - count) * sizeof *codes);
}

static float inverse_of(float scale)
{
    return scale > 0.0f ? 1.0f / scale : 0.0f; /* NaN: 0 */
}

static void store_int16(const CpuOps *ops, const float *key, const float *value, size_t head_dim,
                        uint8_t *keys, uint8_t *values, size_t slot)
{
    size_t padded_dim = padded(head_dim);
    float key_scale = ops->code_scale(key, head_dim, CODE_NORM_MAX, CODE_MAX);
    float value_scale = ops->code_scale(value, head_dim, INFINITY, CODE_VALUE_MAX);
    int16_t *key_at = (int16_t *)(void *)keys + slot * 2;
    int16_t *value_at = (int16_t *)(void *)values + slot / 2 * padded_dim * 2 + slot % 2;
    _Alignas(64) int16_t codes[KV_SCALE_DIMS];
    scales_of(keys, padded_dim, KV_INT16)[slot] = key_scale;
    scales_of(values, padded_dim, KV_INT16)[slot] = value_scale;
    for (size_t d = 0; d < padded_dim; d += KV_SCALE_DIMS) {
        size_t n = padded_dim - d < KV_SCALE_DIMS ? padded_dim - d : KV_SCALE_DIMS;
        codes_at(ops, key, head_dim, d, inverse_of(key_scale), codes);
        for (size_t i = 0; i < n; i += 2)
            memcpy(key_at + (d + i) * KV_BLOCK, codes + i, 2 * sizeof *codes);
        codes_at(ops, value, head_dim, d, inverse_of(value_scale), codes);
        for (size_t i = 0; i < n; i++)
            value_at[(d + i) * 2] = codes[i];
    }
}

void attention_store_codes(const CpuOps *ops, KvType type, const float *key, const float *value,
                           size_t head_dim, uint8_t *keys, uint8_t *values, size_t slot)
{
    if (type == KV_INT16)
        store_int16(ops, key, value, head_dim, keys, values, slot);
    else
        store_int8(key, value, head_dim, keys, values, slot);
}

static void ask_for_lines(const uint8_t *base, size_t bytes, size_t step)
{
    for (size_t at = 0; at < bytes; at += step)
        __builtin_prefetch(base + at, 1, 3);
}

void attention_ask_for_slots(KvType type, size_t head_dim, const uint8_t *keys,
                             const uint8_t *values, size_t slot, size_t n)
{
    size_t padded_dim = padded(head_dim);
    size_t together = codes_together(type), row_bytes = padded_dim * 4;
    size_t first = slot / together, end = (slot + n - 1) / together + 1;
    ask_for_lines(keys + slot * 4, padded_dim / together * KV_BLOCK * 4, KV_BLOCK * 4);
    ask_for_lines(values + first * row_bytes, (end - first) * row_bytes, 64);
}

/* ---- Queries ---- */

size_t attention_query_codes(KvType type, size_t padded_dim)
{
    return type == KV_INT16 ? padded_dim : int8_scale_rows(padded_dim) * KV_SCALE_DIMS;
}

size_t attention_query_scales(KvType type, size_t padded_dim)
{
    return type == KV_INT16 ? 1 : int8_scale_rows(padded_dim);
}

/* 64 dimensions of a query for keys of 8 bits. */
static AttentionQueryScale quantize_query_dims(const float *x, int16_t codes[KV_SCALE_DIMS])
{
    _Alignas(64) int8_t planes[2][KV_SCALE_DIMS];
    ActivationScale scale;
    int32_t sum = 0;
    cpu_kernels()->quantize_block_int16(x, planes[0], &scale);
    for (size_t j = 0; j < KV_SCALE_DIMS; j++) {
        int16_t code = (int16_t)(planes[0][j] * ACTIVATION_PLANE_STEP + planes[1][j]);
        codes[pair_order(j)] = code;
        sum += code;
    }
    return (AttentionQueryScale){scale.scale, sum * KV_INT8_ZERO};
}

static void quantize_for_int8(const float *query, size_t padded_dim, int16_t *codes,
                              AttentionQueryScale *scales)
{
    for (size_t d = 0; d < padded_dim; d += KV_SCALE_DIMS) {
        float padded[KV_SCALE_DIMS] = {0};
        const float *x = query + d;
        if (padded_dim - d < KV_SCALE_DIMS)
            x = memcpy(padded, x, (padded_dim - d) * sizeof *x);
        *scales++ = quantize_query_dims(x, codes + d);
    }
}

void attention_quantize_queries(const CpuOps *ops, KvType type, const float *queries, size_t n,
                                size_t padded_dim, int16_t *codes, AttentionQueryScale *scales)
{
    for (size_t i = 0; i < n; i++, queries += padded_dim) {
        if (type == KV_INT16) {
            float scale = ops->code_scale(queries, padded_dim, CODE_NORM_MAX, CODE_MAX);
            ops->to_codes(queries, padded_dim, inverse_of(scale), codes);
            *scales = (AttentionQueryScale){.scale = scale};
        } else {
            quantize_for_int8(queries, padded_dim, codes, scales);
        }
        codes += attention_query_codes(type, padded_dim);
        scales += attention_query_scales(type, padded_dim);
    }
}

/* ---- The formula ---- */

/* The code of a key's dimension, or of a value's, without its zero. Hidden keys may hold anything:
 * sums are of 64 bits here, which nothing overflows. */
static int64_t key_code(const CodeBlock *b, KvType type, size_t key, size_t d)
{
    if (type == KV_INT16)
        return (
            (const int16_t *)(const void *)b->key_codes)[d / 2 * 2 * KV_BLOCK + key * 2 + d % 2];
    return b->key_codes[d / 4 * 4 * KV_BLOCK + key * 4 + d % 4] - KV_INT8_ZERO;
}

static int64_t value_code(const CodeBlock *b, KvType type, size_t key, size_t d)
{
    if (type == KV_INT16)
        return ((const int16_t *)(const void *)
                    b->value_codes)[(key / 2 * b->padded_dim + d) * 2 + key % 2];
    return b->value_codes[(key / 4 * b->padded_dim + d) * 4 + key % 4] - KV_INT8_ZERO;
}

static void score_plain(const CodeBlock *b, KvType type, const int16_t *codes,
                        const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    size_t rows = attention_query_scales(type, b->padded_dim);
    size_t row_dims = code_row_dims(type, b->padded_dim);
    for (size_t i = 0; i < n; i++, codes += attention_query_codes(type, b->padded_dim)) {
        memset(scores[i], 0, sizeof scores[i]);
        for (size_t row = 0; row < rows; row++) {
            size_t first = row * row_dims, left = b->padded_dim - first;
            for (size_t key = 0; key < KV_BLOCK; key++) {
                int64_t sum = 0;
                for (size_t d = first; d < first + row_dims && d < first + left; d++)
                    sum += codes[type == KV_INT16 ? d : pair_order(d)] * key_code(b, type, key, d);
                float dot = (float)sum * scales[i * rows + row].scale;
                scores[i][key] = fmaf(dot, b->key_scales[row * KV_BLOCK + key], scores[i][key]);
            }
        }
    }
}

static float soften_row(float scores[KV_BLOCK], KeyRange seen, float soft_cap, float *max,
                        float *sum)
{
    float fresh = *max, total = 0.0f;
    for (size_t key = seen.first; key < seen.end; key++) {
        if (soft_cap > 0.0f)
            scores[key] = soft_cap * tanhf(scores[key] / soft_cap);
        fresh = fmaxf(fresh, scores[key]);
    }
    if (isinf(fresh) && fresh < 0.0f) {
        memset(scores, 0, KV_BLOCK * sizeof *scores);
        return 1.0f;
    }
    for (size_t key = 0; key < KV_BLOCK; key++) {
        scores[key] = key >= seen.first && key < seen.end ? expf(scores[key] - fresh) : 0.0f;
        total += scores[key];
    }
    float correction = expf(*max - fresh);
    *sum = fmaf(*sum, correction, total);
    *max = fresh;
    return correction;
}

static void soften_plain(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n, float soft_cap,
                         float *maxima, float *sums, float *corrections)
{
    for (size_t i = 0; i < n; i++)
        corrections[i] = soften_row(scores[i], seen[i], soft_cap, &maxima[i], &sums[i]);
}

/* Weights times the values' scales, as codes; returns what a code counts. */
static float quantize_weights(const float weights[KV_BLOCK], const float *scales, KvType type,
                              int64_t codes[KV_BLOCK])
{
    float scaled[KV_BLOCK], most = 0.0f, total = 0.0f;
    bool is_nan = false;
    for (size_t key = 0; key < KV_BLOCK; key++) {
        /* A hidden key may have any scale. */
        scaled[key] = weights[key] == 0.0f ? 0.0f : weights[key] * scales[key];
        most = fmaxf(most, scaled[key]);
        total += scaled[key];
        is_nan = is_nan || isnan(scaled[key]);
    }
    memset(codes, 0, KV_BLOCK * sizeof *codes);
    if (is_nan || most < CODE_ZERO_BELOW)
        return is_nan ? NAN : 0.0f;
    float scale = most / (float)CODE_MAX;
    if (type == KV_INT16)
        scale = fmaxf(scale, total / (float)CODE_WEIGHTS_MAX);
    for (size_t key = 0; key < KV_BLOCK; key++)
        codes[key] = lrintf(scaled[key] * (1.0f / scale));
    return scale;
}

static void weigh_plain(const CodeBlock *b, KvType type, const float (*weights)[KV_BLOCK],
                        const float *corrections, size_t n, float *output)
{
    size_t row_dims = code_row_dims(type, b->padded_dim);
    for (size_t i = 0; i < n; i++) {
        int64_t codes[KV_BLOCK];
        float scale = 0.0f;
        for (size_t d = 0; d < b->padded_dim; d++) {
            if (d % row_dims == 0)
                scale = quantize_weights(weights[i], b->value_scales + d / row_dims * KV_BLOCK,
                                         type, codes);
            int64_t sum = 0;
            for (size_t key = 0; key < KV_BLOCK; key++)
                sum += codes[key] * value_code(b, type, key, d);
            float *to = output + i * b->padded_dim + d;
            *to = fmaf((float)sum, scale, *to * corrections[i]);
        }
    }
}

static void score_int8(const CodeBlock *b, const int16_t *codes, const AttentionQueryScale *scales,
                       size_t n, float (*scores)[KV_BLOCK])
{
    score_plain(b, KV_INT8, codes, scales, n, scores);
}

static void score_int16(const CodeBlock *b, const int16_t *codes, const AttentionQueryScale *scales,
                        size_t n, float (*scores)[KV_BLOCK])
{
    score_plain(b, KV_INT16, codes, scales, n, scores);
}

static void weigh_int8(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                       const float *corrections, size_t n, float *output)
{
    weigh_plain(b, KV_INT8, weights, corrections, n, output);
}

static void weigh_int16(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                        const float *corrections, size_t n, float *output)
{
    weigh_plain(b, KV_INT16, weights, corrections, n, output);
}

const CodeLoops int8_loops_plain = {score_int8, soften_plain, weigh_int8};
const CodeLoops int16_loops_plain = {score_int16, soften_plain, weigh_int16};

/* ---- Blocks ---- */

/* Queries [at, at + n) of the tile over the block that begins at a position. */
static void group_block(const AttentionTile *t, KvType type, const CodeLoops *loops, CodeBlock *b,
                        size_t position, size_t at, size_t n)
{
    _Alignas(64) float weights[CODE_GROUP_QUERIES][KV_BLOCK];
    float corrections[CODE_GROUP_QUERIES];
    KeyRange seen[CODE_GROUP_QUERIES];
    size_t first = t->first_key > position ? t->first_key : position;
    if (t->positions[at + n - 1] < first)
        return; /* the whole block lies after these queries */
    b->n_keys = 0;
    for (size_t i = 0; i < n; i++) {
        seen[i] = attention_visible(t, position, t->positions[at + i]);
        b->n_keys = seen[i].end > b->n_keys ? seen[i].end : b->n_keys;
    }
    loops->score(b, t->query_codes + at * attention_query_codes(type, t->padded_dim),
                 t->query_scales + at * attention_query_scales(type, t->padded_dim), n, weights);
    loops->soften(weights, seen, n, t->soft_cap, t->maxima + at, t->sums + at, corrections);
    loops->weigh(b, (const float(*)[KV_BLOCK])weights, corrections, n,
                 t->output + at * t->padded_dim);
}

static const CodeLoops *loops_of(const CpuOps *ops, KvType type)
{
    if (type == KV_INT16)
        return ops->int16_loops ? ops->int16_loops : &int16_loops_plain;
    return ops->int8_loops ? ops->int8_loops : &int8_loops_plain;
}

void attention_segment_codes(const AttentionTile *t, KvType type, const CpuOps *ops)
{
    const CodeLoops *loops = loops_of(ops, type);
    const size_t code_bytes = KV_BLOCK * t->padded_dim * (type == KV_INT16 ? sizeof(int16_t) : 1);
    attention_begin(t);
    for (size_t at = t->first_key / KV_BLOCK * KV_BLOCK; at < t->end_key; at += KV_BLOCK) {
        size_t index = attention_block_index(at);
        const uint8_t *keys = t->keys[index], *values = t->values[index];
        const bool is_last = at + KV_BLOCK >= t->end_key;
        const size_t left = is_last ? 0 : t->end_key - at - KV_BLOCK;
        CodeBlock block = {
            .key_codes = keys,
            .value_codes = values,
            .key_scales = (const float *)(const void *)(keys + code_bytes),
            .value_scales = (const float *)(const void *)(values + code_bytes),
            .padded_dim = t->padded_dim,
            .value_offset = (size_t)(values - keys),
            .next = is_last ? t->next_keys : t->keys[index + 1],
            .n_next = is_last           ? t->n_next
                      : left < KV_BLOCK ? left
                                        : KV_BLOCK,
        };
        for (size_t i = 0; i < t->n_queries; i += CODE_GROUP_QUERIES) {
            size_t n = t->n_queries - i;
            group_block(t, type, loops, &block, at, i,
                        n < CODE_GROUP_QUERIES ? n : CODE_GROUP_QUERIES);
            block.next = NULL; /* the first group has asked */
        }
    }
}
