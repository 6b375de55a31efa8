/* The attention kernel for float32 in AVX-512, and the softmax of all.
 *
 * A block of 64 keys is 4 vectors, so up to 6 queries meet the whole block in 24 sums:
 *
 *   scores   a dot product runs down the dimensions in one lane (kv.h)
 *   softmax  all 64 lanes of a query, hidden keys at -inf; the running maximum, the sum and the
 *            output are corrected
 *   values   output[d] += weight[key] * value[key][d], keys in order, 64 dimensions at a time
 *
 * Each sum has one order, down the dimensions or along the keys, however the queries are grouped,
 * and a hidden key adds an exact zero. */
#include "attention_codes.h"

#include "avx512_math.h"
#include "hints.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    LANES = 16,
    VECTORS = KV_BLOCK / LANES, /* of a block's keys; and of dimensions at a time */
    GROUP_QUERIES = CODE_GROUP_QUERIES,
};

/* One block of keys for the scores and values of up to GROUP_QUERIES queries. */
typedef struct Block {
    size_t position;   /* of its first key */
    size_t first, end; /* keys of the block that some query of the tile sees */
    const float *keys, *values;
} Block;

/* scores[i] = queries[i] . keys for the block's first n_vectors vectors: what lies behind them, and
 * the lanes of hidden keys, are masked later. */
static FORCE_INLINE void score_vectors(const AttentionTile *t, const Block *b, const float *queries,
                                       float (*scores)[KV_BLOCK], const int n, int n_vectors)
{
    const size_t head_dim = t->head_dim;
    __m512 sums[GROUP_QUERIES][VECTORS];
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sums[i][v] = _mm512_setzero_ps();
    }
    for (size_t d = 0; d < head_dim; d++) {
        __m512 keys[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            keys[v] = v < n_vectors ? _mm512_loadu_ps(b->keys + ((size_t)v * head_dim + d) * LANES)
                                    : _mm512_setzero_ps();
        }
        UNROLL
        for (int i = 0; i < n; i++) {
            __m512 q = _mm512_set1_ps(queries[(size_t)i * t->padded_dim + d]);
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                if (v < n_vectors)
                    sums[i][v] = _mm512_fmadd_ps(q, keys[v], sums[i][v]);
            }
        }
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            _mm512_store_ps(scores[i] + v * LANES, sums[i][v]);
    }
}

static FORCE_INLINE void score_block(const AttentionTile *t, const Block *b, const float *queries,
                                     float (*scores)[KV_BLOCK], const int n)
{
    if (b->end > (VECTORS - 1) * LANES)
        score_vectors(t, b, queries, scores, n, VECTORS);
    else
        score_vectors(t, b, queries, scores, n, (int)((b->end + LANES - 1) / LANES));
}

/* output[i][d ..] = output * correction + weights . values, n_vectors vectors of dimensions. */
static FORCE_INLINE void weigh_vectors(const AttentionTile *t, const Block *b, size_t end, size_t d,
                                       const float (*weights)[KV_BLOCK], const float *corrections,
                                       float *output, const int n, const int n_vectors)
{
    const size_t stride = t->padded_dim;
    __m512 sums[GROUP_QUERIES][VECTORS];
    UNROLL
    for (int i = 0; i < n; i++) {
        __m512 correction = _mm512_set1_ps(corrections[i]);
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = _mm512_mul_ps(
                correction, _mm512_loadu_ps(output + (size_t)i * stride + d + (size_t)v * LANES));
    }
    for (size_t key = b->first; key < end; key++) {
        __m512 values[VECTORS];
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            values[v] = _mm512_loadu_ps(b->values + key * stride + d + (size_t)v * LANES);
        UNROLL
        for (int i = 0; i < n; i++) {
            __m512 weight = _mm512_set1_ps(weights[i][key]);
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sums[i][v] = _mm512_fmadd_ps(weight, values[v], sums[i][v]);
        }
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            _mm512_storeu_ps(output + (size_t)i * stride + d + (size_t)v * LANES, sums[i][v]);
    }
}

static FORCE_INLINE void weigh_block(const AttentionTile *t, const Block *b, size_t end,
                                     const float (*weights)[KV_BLOCK], const float *corrections,
                                     float *output, const int n)
{
    size_t d = 0;
    for (; d + VECTORS * LANES <= t->padded_dim; d += VECTORS * LANES)
        weigh_vectors(t, b, end, d, weights, corrections, output, n, VECTORS);
    for (; d < t->padded_dim; d += LANES)
        weigh_vectors(t, b, end, d, weights, corrections, output, n, 1);
}

/* Caps the scores of a query and hides what it does not see; the largest. */
static FORCE_INLINE float hide_scores(float scores[KV_BLOCK], KeyRange seen, float soft_cap)
{
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    uint64_t mask = (seen.end < 64 ? ((uint64_t)1 << seen.end) : 0) - 1;
    mask = seen.first < 64 ? mask >> seen.first << seen.first : 0;
    __m512 most = hidden;
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512 s = _mm512_load_ps(scores + v * LANES);
        if (soft_cap > 0.0f)
            s = _mm512_mul_ps(_mm512_set1_ps(soft_cap),
                              avx512_tanh(_mm512_mul_ps(s, _mm512_set1_ps(1.0f / soft_cap))));
        s = _mm512_mask_mov_ps(hidden, (__mmask16)(mask >> (LANES * v)), s);
        _mm512_store_ps(scores + v * LANES, s);
        most = _mm512_max_ps(most, s);
    }
    return _mm512_reduce_max_ps(most);
}

/* e^x, x <= 0. */
static FORCE_INLINE __m512 exp_negative(__m512 x)
{
    return avx512_exp2_negative(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
}

/* Makes weights of a query's scores, by their largest so far; the sum. */
static FORCE_INLINE float weigh_scores(float scores[KV_BLOCK], float largest)
{
    /* Where no key was seen yet, any finite origin leaves the weights at 0. */
    const __m512 origin = _mm512_set1_ps(largest == -INFINITY ? 0.0f : largest);
    __m512 sum = _mm512_setzero_ps();
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512 weight = exp_negative(_mm512_sub_ps(_mm512_load_ps(scores + v * LANES), origin));
        _mm512_store_ps(scores + v * LANES, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

/* The steps of n queries stand side by side: each alone is a chain of waits. */
static FORCE_INLINE void soften_queries(float (*scores)[KV_BLOCK], const KeyRange *seen,
                                        float soft_cap, float *maxima, float *sums,
                                        float *corrections, const int n)
{
    float fresh[GROUP_QUERIES], total[GROUP_QUERIES];
    UNROLL
    for (int i = 0; i < n; i++) {
        float found = hide_scores(scores[i], seen[i], soft_cap);
        fresh[i] = found > maxima[i] ? found : maxima[i];
    }
    UNROLL
    for (int i = 0; i < n; i++)
        total[i] = weigh_scores(scores[i], fresh[i]);
    UNROLL
    for (int i = 0; i < n; i++) {
        corrections[i] = 1.0f;
        if (maxima[i] != fresh[i])
            corrections[i] = _mm512_cvtss_f32(exp_negative(_mm512_set1_ps(maxima[i] - fresh[i])));
        sums[i] = fmaf(sums[i], corrections[i], total[i]);
        maxima[i] = fresh[i];
    }
}

void attention_soften_avx512(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                             float soft_cap, float *maxima, float *sums, float *corrections)
{
    BY_QUERY_COUNT(n, soften_queries, scores, seen, soft_cap, maxima, sums, corrections);
}

/* Queries [at, at + n) of the tile over one block. */
static void group_block(const AttentionTile *t, const Block *b, size_t at, size_t n)
{
    _Alignas(64) float weights[GROUP_QUERIES][KV_BLOCK];
    float corrections[GROUP_QUERIES];
    KeyRange seen[GROUP_QUERIES];
    size_t last = t->positions[at + n - 1];
    if (last < b->position + b->first)
        return; /* the whole block lies after these queries */
    size_t end = last - b->position + 1;
    end = end < b->end ? end : b->end;
    BY_QUERY_COUNT(n, score_block, t, b, t->queries + at * t->padded_dim, weights);
    for (size_t i = 0; i < n; i++)
        seen[i] = attention_visible(t, b->position, t->positions[at + i]);
    attention_soften_avx512(weights, seen, n, t->soft_cap, t->maxima + at, t->sums + at,
                            corrections);
    BY_QUERY_COUNT(n, weigh_block, t, b, end, (const float(*)[KV_BLOCK])weights, corrections,
                   t->output + at * t->padded_dim);
}

void attention_segment_avx512(const AttentionTile *t)
{
    assert(!t->is_half);
    attention_begin(t);
    for (size_t at = t->first_key / KV_BLOCK * KV_BLOCK; at < t->end_key; at += KV_BLOCK) {
        size_t index = attention_block_index(at);
        Block block = {
            .position = at,
            .first = t->first_key > at ? t->first_key - at : 0,
            .end = t->end_key - at < KV_BLOCK ? t->end_key - at : KV_BLOCK,
            .keys = t->keys[index],
            .values = t->values[index],
        };
        for (size_t i = 0; i < t->n_queries; i += GROUP_QUERIES) {
            size_t left = t->n_queries - i;
            group_block(t, &block, i, left < GROUP_QUERIES ? left : GROUP_QUERIES);
        }
    }
}
