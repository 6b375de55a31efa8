/* The attention kernel for Arm, built like attention_avx2.c with registers of 4 lanes, of which
 * there are 32. A block of 64 keys is taken by groups of up to 4 queries:
 *
 *   scores   16 keys lie together (kv.h), so a dot product runs down the dimensions in one lane: 3
 *            or 4 queries times 16 keys, or up to 2 times 32, are 16 sums in registers
 *   softmax  all 64 lanes of a query, hidden keys at -inf; the running maximum, the sum and the
 *            output are corrected
 *   values   output[d] += weight[key] * value[key][d], keys in order: again 16 sums
 *
 * Each sum has one order, down the dimensions or along the keys, however the queries are grouped,
 * and a hidden key adds an exact zero: grouping is free to change with the shape of the batch. With
 * many queries fp16 keys and values are widened once to the thread's scratch; with few they are
 * widened in the loop. */
#include "attention_codes.h"

#include "hints.h"
#include "neon_math.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 4,
    GROUP_QUERIES = 4,
    VECTORS = 8, /* at most, of keys or of dimensions, at a time */
    TILE_VECTORS = KV_KEY_TILE / LANES,
    BLOCK_VECTORS = KV_BLOCK / LANES,
    DIRECT_QUERIES = 4, /* at most so many queries read fp16 in the loop */
    LINE_BYTES = 64,
};

/* One block of keys for the scores and values of a tile's queries. */
typedef struct Block {
    size_t position;   /* of its first key */
    size_t first, end; /* keys of the block that some query of the tile sees */
    const void *keys, *values;
    bool is_half;
} Block;

static FORCE_INLINE float32x4_t load(const void *base, size_t index, bool is_half)
{
    return is_half ? neon_load_half((const uint16_t *)base + index)
                   : vld1q_f32((const float *)base + index);
}

/* scores[i][keys] = queries[i] . keys, n_vectors of 4 keys at a time from key tile `first` to the
 * one before `end`, and beyond it to a whole step: those lanes are masked later. */
static FORCE_INLINE void score_keys(const AttentionTile *t, const Block *b, const float *queries,
                                    size_t first, size_t end, bool is_half,
                                    float (*scores)[KV_BLOCK], const int n_queries,
                                    const int n_vectors)
{
    for (size_t tile = first; tile < end; tile += (size_t)(n_vectors / TILE_VECTORS)) {
        float32x4_t sums[GROUP_QUERIES][VECTORS];
        UNROLL for (int i = 0; i < n_queries; i++)
        {
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                sums[i][v] = vdupq_n_f32(0);
            }
        }
        for (size_t d = 0; d < t->head_dim; d++) {
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                size_t row = (tile + (size_t)(v / TILE_VECTORS)) * t->head_dim + d;
                float32x4_t keys =
                    load(b->keys, row * KV_KEY_TILE + (size_t)(v % TILE_VECTORS) * LANES, is_half);
                UNROLL for (int i = 0; i < n_queries; i++)
                {
                    sums[i][v] =
                        vfmaq_n_f32(sums[i][v], keys, queries[(size_t)i * t->padded_dim + d]);
                }
            }
        }
        UNROLL for (int i = 0; i < n_queries; i++)
        {
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                vst1q_f32(scores[i] + tile * KV_KEY_TILE + v * LANES, sums[i][v]);
            }
        }
    }
}

/* output[i][d ..] = output * correction + weights . values, n_vectors vectors of dimensions from d
 * on. */
static FORCE_INLINE void weigh_vectors(const AttentionTile *t, const Block *b, size_t end, size_t d,
                                       const float (*weights)[KV_BLOCK], const float *corrections,
                                       float *output, bool is_half, const int n_queries,
                                       const int n_vectors)
{
    float32x4_t sums[GROUP_QUERIES][VECTORS];
    UNROLL for (int i = 0; i < n_queries; i++)
    {
        const float *row = output + (size_t)i * t->padded_dim + d;
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            sums[i][v] = vmulq_n_f32(vld1q_f32(row + v * LANES), corrections[i]);
        }
    }
    for (size_t key = b->first; key < end; key++) {
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            float32x4_t value =
                load(b->values, key * t->padded_dim + d + (size_t)v * LANES, is_half);
            UNROLL for (int i = 0; i < n_queries; i++)
            {
                sums[i][v] = vfmaq_n_f32(sums[i][v], value, weights[i][key]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_queries; i++)
    {
        float *row = output + (size_t)i * t->padded_dim + d;
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            vst1q_f32(row + v * LANES, sums[i][v]);
        }
    }
}

static FORCE_INLINE void weigh_values(const AttentionTile *t, const Block *b, size_t end,
                                      const float (*weights)[KV_BLOCK], const float *corrections,
                                      float *output, bool is_half, const int n_queries,
                                      const int n_vectors)
{
    size_t d = 0, width = (size_t)n_vectors * LANES;
    for (; d + width <= t->padded_dim; d += width)
        weigh_vectors(t, b, end, d, weights, corrections, output, is_half, n_queries, n_vectors);
    for (; d < t->padded_dim; d += LANES)
        weigh_vectors(t, b, end, d, weights, corrections, output, is_half, n_queries, 1);
}

/* Calls call(queries, vectors) so that 16 sums, or 8 of one query, are in flight. */
#define FOR_QUERY_COUNT(n, call)                                                                   \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        call(1, 8);                                                                                \
        break;                                                                                     \
    case 2:                                                                                        \
        call(2, 8);                                                                                \
        break;                                                                                     \
    case 3:                                                                                        \
        call(3, 4);                                                                                \
        break;                                                                                     \
    default:                                                                                       \
        call(4, 4);                                                                                \
        break;                                                                                     \
    }

static void score_group(const AttentionTile *t, const Block *b, const float *queries, size_t n,
                        size_t end, float (*scores)[KV_BLOCK])
{
    /* From an even tile on, so that two at a time stay within the block. */
    size_t first_tile = b->first / KV_KEY_TILE / 2 * 2;
    size_t end_tile = (end + KV_KEY_TILE - 1) / KV_KEY_TILE;
#define SCORE_HALF(n_queries, n_vectors)                                                           \
    score_keys(t, b, queries, first_tile, end_tile, true, scores, n_queries, n_vectors)
#define SCORE_FLOAT(n_queries, n_vectors)                                                          \
    score_keys(t, b, queries, first_tile, end_tile, false, scores, n_queries, n_vectors)
    if (b->is_half)
        FOR_QUERY_COUNT(n, SCORE_HALF)
    else
        FOR_QUERY_COUNT(n, SCORE_FLOAT)
#undef SCORE_HALF
#undef SCORE_FLOAT
}

static void weigh_group(const AttentionTile *t, const Block *b, size_t n, size_t end,
                        const float (*weights)[KV_BLOCK], const float *corrections, float *output)
{
#define WEIGH_HALF(n_queries, n_vectors)                                                           \
    weigh_values(t, b, end, weights, corrections, output, true, n_queries, n_vectors)
#define WEIGH_FLOAT(n_queries, n_vectors)                                                          \
    weigh_values(t, b, end, weights, corrections, output, false, n_queries, n_vectors)
    if (b->is_half)
        FOR_QUERY_COUNT(n, WEIGH_HALF)
    else
        FOR_QUERY_COUNT(n, WEIGH_FLOAT)
#undef WEIGH_HALF
#undef WEIGH_FLOAT
}

static float soften_query(float scores[KV_BLOCK], KeyRange seen, float soft_cap, float *max,
                          float *sum)
{
    static const int32_t lanes[LANES] = {0, 1, 2, 3};
    const float32x4_t hidden = vdupq_n_f32(-INFINITY);
    const int32x4_t low = vdupq_n_s32((int32_t)seen.first);
    const int32x4_t high = vdupq_n_s32((int32_t)seen.end);
    int32x4_t lane = vld1q_s32(lanes);
    float32x4_t most = hidden, total = vdupq_n_f32(0);
    for (size_t i = 0; i < KV_BLOCK; i += LANES) {
        float32x4_t s = vld1q_f32(scores + i);
        if (soft_cap > 0.0f)
            s = vmulq_n_f32(neon_tanh(vmulq_n_f32(s, 1.0f / soft_cap)), soft_cap);
        s = vbslq_f32(vandq_u32(vcgeq_s32(lane, low), vcltq_s32(lane, high)), s, hidden);
        vst1q_f32(scores + i, s);
        most = vmaxnmq_f32(most, s); /* NaN shows in its weight */
        lane = vaddq_s32(lane, vdupq_n_s32(LANES));
    }
    float found = vmaxnmvq_f32(most);
    float fresh = found > *max ? found : *max;
    if (fresh == -INFINITY) {
        memset(scores, 0, KV_BLOCK * sizeof *scores);
        return 1.0f;
    }
    const float32x4_t origin = vdupq_n_f32(fresh);
    for (size_t i = 0; i < KV_BLOCK; i += LANES) {
        float32x4_t weight = neon_exp(vsubq_f32(vld1q_f32(scores + i), origin));
        vst1q_f32(scores + i, weight);
        total = vaddq_f32(total, weight);
    }
    float correction = vgetq_lane_f32(neon_exp(vsubq_f32(vdupq_n_f32(*max), origin)), 0);
    *sum = fmaf(*sum, correction, vaddvq_f32(total));
    *max = fresh;
    return correction;
}

void attention_soften_neon(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                           float soft_cap, float *maxima, float *sums, float *corrections)
{
    for (size_t i = 0; i < n; i++)
        corrections[i] = soften_query(scores[i], seen[i], soft_cap, &maxima[i], &sums[i]);
}

/* Queries [at, at + n) of the tile over one block. */
static void group_block(const AttentionTile *t, const Block *b, size_t at, size_t n)
{
    float weights[GROUP_QUERIES][KV_BLOCK];
    float corrections[GROUP_QUERIES];
    KeyRange seen[GROUP_QUERIES];
    size_t last = t->positions[at + n - 1];
    if (last < b->position + b->first)
        return; /* the whole block lies after these queries */
    size_t end = last - b->position + 1;
    end = end < b->end ? end : b->end;
    score_group(t, b, t->queries + at * t->padded_dim, n, end, weights);
    for (size_t i = 0; i < n; i++)
        seen[i] = attention_visible(t, b->position, t->positions[at + i]);
    attention_soften_neon(weights, seen, n, t->soft_cap, t->maxima + at, t->sums + at, corrections);
    weigh_group(t, b, n, end, (const float(*)[KV_BLOCK])weights, corrections,
                t->output + at * t->padded_dim);
}

/* Widens what the block's queries will read to the thread's scratch. */
static void widen_block(const AttentionTile *t, Block *b)
{
    const size_t tiles = 2 * KV_KEY_TILE; /* what score_group may read beyond the ends */
    size_t from = b->first / tiles * tiles * t->head_dim;
    size_t to = (b->end + tiles - 1) / tiles * tiles * t->head_dim;
    for (size_t i = from; i < to; i += LANES)
        vst1q_f32(t->key_block + i, load(b->keys, i, true));
    for (size_t i = b->first * t->padded_dim; i < b->end * t->padded_dim; i += LANES)
        vst1q_f32(t->value_block + i, load(b->values, i, true));
    b->keys = t->key_block;
    b->values = t->value_block;
    b->is_half = false;
}

/* Few queries wait for memory: a block's values are asked for before its keys are read. */
static void look_ahead(const AttentionTile *t, const Block *b)
{
    const uint8_t *values = b->values;
    for (size_t i = 0; i < b->end * t->padded_dim * sizeof(uint16_t); i += LINE_BYTES)
        __builtin_prefetch(values + i, 0, 3);
}

void attention_segment_neon(const AttentionTile *t)
{
    attention_begin(t);
    for (size_t at = t->first_key / KV_BLOCK * KV_BLOCK; at < t->end_key; at += KV_BLOCK) {
        size_t index = attention_block_index(at);
        Block block = {
            .position = at,
            .first = t->first_key > at ? t->first_key - at : 0,
            .end = t->end_key - at < KV_BLOCK ? t->end_key - at : KV_BLOCK,
            .keys = t->keys[index],
            .values = t->values[index],
            .is_half = t->is_half,
        };
        if (t->is_half && t->n_queries > DIRECT_QUERIES)
            widen_block(t, &block);
        else if (t->is_half)
            look_ahead(t, &block);
        for (size_t i = 0; i < t->n_queries; i += GROUP_QUERIES) {
            size_t left = t->n_queries - i;
            group_block(t, &block, i, left < GROUP_QUERIES ? left : GROUP_QUERIES);
        }
    }
}
