/* Attention over a tile's keys in plain C: the formula that the instruction sets' kernels follow.
 *
 *   score = q k, capped: c tanh(score / c);   m' = max(m, scores)
 *   sum = sum e^(m - m') + sum of e^(score - m')
 *   out = out e^(m - m') + sum of e^(score - m') v
 *
 * block by block; what a query does not see has no weight. */
#include "attention.h"
#include "weights.h"

#include <math.h>
#include <string.h>

static float element(const void *base, size_t index, bool is_half)
{
    if (is_half)
        return float_from_f16(((const uint16_t *)base)[index]);
    return ((const float *)base)[index];
}

static float score_plain(const AttentionTile *t, const float *query, size_t key)
{
    const void *keys = t->keys[attention_block_index(key)];
    size_t slot = key % KV_BLOCK;
    size_t lane = slot % KV_KEY_TILE;
    float sum = 0.0f;
    for (size_t d = 0; d < t->head_dim; d++) {
        size_t index = (slot - lane) * t->head_dim + d * KV_KEY_TILE + lane;
        sum = fmaf(query[d], element(keys, index, t->is_half), sum);
    }
    return t->soft_cap > 0.0f ? t->soft_cap * tanhf(sum / t->soft_cap) : sum;
}

static bool is_visible(const AttentionTile *t, size_t position, size_t key)
{
    return key <= position && (t->sliding_window == 0 || position - key < t->sliding_window);
}

/* Keys [first, end) of one block for query i. */
static void query_block_plain(const AttentionTile *t, size_t i, size_t first, size_t end)
{
    const float *query = t->queries + i * t->padded_dim;
    float *output = t->output + i * t->padded_dim;
    float scores[KV_BLOCK], max = t->maxima[i];
    for (size_t key = first; key < end; key++) {
        bool visible = is_visible(t, t->positions[i], key);
        scores[key - first] = visible ? score_plain(t, query, key) : -INFINITY;
        max = fmaxf(max, scores[key - first]);
    }
    if (isinf(max) && max < 0.0f)
        return;
    float correction = expf(t->maxima[i] - max), sum = 0.0f;
    for (size_t d = 0; d < t->padded_dim; d++)
        output[d] *= correction;
    for (size_t key = first; key < end; key++) {
        if (!is_visible(t, t->positions[i], key))
            continue;
        float weight = expf(scores[key - first] - max);
        size_t row = key % KV_BLOCK * t->padded_dim;
        const void *values = t->values[attention_block_index(key)];
        sum += weight;
        for (size_t d = 0; d < t->head_dim; d++)
            output[d] = fmaf(weight, element(values, row + d, t->is_half), output[d]);
    }
    t->sums[i] = t->sums[i] * correction + sum;
    t->maxima[i] = max;
}

void attention_begin(const AttentionTile *t)
{
    for (size_t i = 0; i < t->n_queries; i++) {
        t->maxima[i] = -INFINITY;
        t->sums[i] = 0.0f;
    }
    memset(t->output, 0, t->n_queries * t->padded_dim * sizeof(float));
}

void attention_segment_plain(const AttentionTile *t)
{
    attention_begin(t);
    for (size_t i = 0; i < t->n_queries; i++) {
        for (size_t first = t->first_key; first < t->end_key;) {
            size_t end = (first / KV_BLOCK + 1) * KV_BLOCK;
            end = end < t->end_key ? end : t->end_key;
            query_block_plain(t, i, first, end);
            first = end;
        }
    }
}
