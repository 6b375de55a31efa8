/* The attention kernel for float32 in AVX2 and FMA, and the softmax of all.
 *
 * A block of 64 keys is taken by groups of up to 6 queries. For each group:
 *
 *   scores   keys lie 16 to a vector (kv.h), so a dot product runs down the dimensions in one
 *            lane: 6 queries times 2 key vectors, or up to 3 times 4, are 12 sums in registers
 *   softmax  all 64 lanes of a query, hidden keys at -inf; the running maximum, the sum and
 *            the output are corrected
 *   values   output[d] += weight[key] * value[key][d], keys in order: again 12 sums
 *
 * Of queries and keys (or values) the fewer are held in registers: 12 sums, 3 held and 1 passing
 * by are all 16.
 *
 * Each sum has one order, down the dimensions or along the keys, however the queries are grouped,
 * and a hidden key adds an exact zero: grouping is free to change with the shape of the batch. */
#include "attention_codes.h"

#include "avx2_math.h"
#include "hints.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { LANES = 8, GROUP_QUERIES = CODE_GROUP_QUERIES, BLOCK_TILES = KV_BLOCK / LANES };

/* Where dimension d of 8 keys lies, from an even tile on: two tiles of 8 share one of kv.h. */
static FORCE_INLINE size_t key_offset(int tile, size_t d, size_t head_dim)
{
    return ((size_t)(tile / 2) * head_dim + d) * KV_KEY_TILE + (size_t)(tile % 2) * LANES;
}

/* scores[i][tiles of 8 keys] = queries[i] . keys, for key tiles [first, end) of the block; end
 * - first is rounded up to n_tiles: the lanes beyond are masked later. */
static FORCE_INLINE void score_tiles(const float *queries, size_t stride, size_t head_dim,
                                     const float *keys, size_t first, size_t end,
                                     float (*scores)[KV_BLOCK], const int n_queries,
                                     const int n_tiles)
{
    for (size_t tile = first; tile < end; tile += (size_t)n_tiles) {
        __m256 sums[GROUP_QUERIES][4];
        UNROLL for (int i = 0; i < n_queries; i++)
        {
            UNROLL for (int t = 0; t < n_tiles; t++)
            {
                sums[i][t] = _mm256_setzero_ps();
            }
        }
        size_t base = tile * head_dim * LANES;
        for (size_t d = 0; d < head_dim; d++) {
            __m256 held[4];
            if (n_queries < n_tiles) {
                UNROLL for (int i = 0; i < n_queries; i++)
                {
                    held[i] = _mm256_broadcast_ss(queries + (size_t)i * stride + d);
                }
                UNROLL for (int t = 0; t < n_tiles; t++)
                {
                    __m256 key = _mm256_loadu_ps(keys + base + key_offset(t, d, head_dim));
                    UNROLL for (int i = 0; i < n_queries; i++)
                    {
                        sums[i][t] = _mm256_fmadd_ps(held[i], key, sums[i][t]);
                    }
                }
                continue;
            }
            UNROLL for (int t = 0; t < n_tiles; t++)
            {
                held[t] = _mm256_loadu_ps(keys + base + key_offset(t, d, head_dim));
            }
            UNROLL for (int i = 0; i < n_queries; i++)
            {
                __m256 q = _mm256_broadcast_ss(queries + (size_t)i * stride + d);
                UNROLL for (int t = 0; t < n_tiles; t++)
                {
                    sums[i][t] = _mm256_fmadd_ps(q, held[t], sums[i][t]);
                }
            }
        }
        UNROLL for (int i = 0; i < n_queries; i++)
        {
            UNROLL for (int t = 0; t < n_tiles; t++)
                _mm256_storeu_ps(scores[i] + (tile + (size_t)t) * LANES, sums[i][t]);
        }
    }
}

/* output[i][d ..] = output * correction + weights . values, n_vectors vectors of dimensions from d
 * on. */
static FORCE_INLINE void weigh_vectors(const float (*weights)[KV_BLOCK], const float *corrections,
                                       const float *values, size_t stride, size_t first, size_t end,
                                       size_t d, float *output, const int n_queries,
                                       const int n_vectors)
{
    __m256 sums[GROUP_QUERIES][4];
    UNROLL for (int i = 0; i < n_queries; i++)
    {
        __m256 correction = _mm256_set1_ps(corrections[i]);
        const float *row = output + (size_t)i * stride + d;
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            sums[i][v] = _mm256_mul_ps(correction, _mm256_loadu_ps(row + v * LANES));
        }
    }
    for (size_t key = first; key < end; key++) {
        __m256 held[4];
        if (n_queries < n_vectors) {
            UNROLL for (int i = 0; i < n_queries; i++)
            {
                held[i] = _mm256_broadcast_ss(&weights[i][key]);
            }
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                __m256 value = _mm256_loadu_ps(values + key * stride + d + (size_t)v * LANES);
                UNROLL for (int i = 0; i < n_queries; i++)
                {
                    sums[i][v] = _mm256_fmadd_ps(held[i], value, sums[i][v]);
                }
            }
            continue;
        }
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            held[v] = _mm256_loadu_ps(values + key * stride + d + (size_t)v * LANES);
        }
        UNROLL for (int i = 0; i < n_queries; i++)
        {
            __m256 weight = _mm256_broadcast_ss(&weights[i][key]);
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                sums[i][v] = _mm256_fmadd_ps(weight, held[v], sums[i][v]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_queries; i++)
    {
        UNROLL for (int v = 0; v < n_vectors; v++)
            _mm256_storeu_ps(output + (size_t)i * stride + d + (size_t)v * LANES, sums[i][v]);
    }
}

/* Caps the scores of a query and hides what it does not see; the largest. */
static FORCE_INLINE float hide_scores(float scores[KV_BLOCK], KeyRange seen, float soft_cap)
{
    const bool sees_all = seen.first == 0 && seen.end >= KV_BLOCK;
    const __m256 hidden = _mm256_set1_ps(-INFINITY);
    const __m256i low = _mm256_set1_epi32((int)seen.first - 1);
    const __m256i high = _mm256_set1_epi32((int)seen.end);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 most = hidden;
    for (int t = 0; t < BLOCK_TILES; t++) {
        __m256 s = _mm256_loadu_ps(scores + t * LANES);
        if (soft_cap > 0.0f)
            s = _mm256_mul_ps(_mm256_set1_ps(soft_cap),
                              avx2_tanh(_mm256_mul_ps(s, _mm256_set1_ps(1.0f / soft_cap))));
        if (!sees_all) {
            __m256i shown =
                _mm256_and_si256(_mm256_cmpgt_epi32(lane, low), _mm256_cmpgt_epi32(high, lane));
            s = _mm256_blendv_ps(hidden, s, _mm256_castsi256_ps(shown));
            lane = _mm256_add_epi32(lane, _mm256_set1_epi32(LANES));
        }
        if (!sees_all || soft_cap > 0.0f)
            _mm256_storeu_ps(scores + t * LANES, s);
        most = _mm256_max_ps(most, s);
    }
    return avx2_max(most);
}

static const float LOG2_E = 1.44269504f;

/* Makes weights of a query's scores, by their largest so far; the sum. */
static FORCE_INLINE float weigh_scores(float scores[KV_BLOCK], float largest)
{
    /* Where no key was seen yet, any finite origin leaves the weights at 0. */
    const __m256 origin = _mm256_set1_ps(largest == -INFINITY ? 0.0f : largest);
    __m256 total = _mm256_setzero_ps();
    UNROLL
    for (int t = 0; t < BLOCK_TILES; t++) {
        __m256 below = _mm256_sub_ps(_mm256_loadu_ps(scores + t * LANES), origin);
        __m256 weight = avx2_exp2_negative(_mm256_mul_ps(below, _mm256_set1_ps(LOG2_E)));
        _mm256_storeu_ps(scores + t * LANES, weight);
        total = _mm256_add_ps(total, weight);
    }
    return avx2_sum(total);
}

/* The steps of the queries stand side by side: each alone is a chain of waits. */
void attention_soften_avx2(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                           float soft_cap, float *maxima, float *sums, float *corrections)
{
    float fresh[GROUP_QUERIES], total[GROUP_QUERIES];
    assert(n <= GROUP_QUERIES);
    for (size_t i = 0; i < n; i++) {
        float found = hide_scores(scores[i], seen[i], soft_cap);
        fresh[i] = found > maxima[i] ? found : maxima[i];
    }
    for (size_t i = 0; i < n; i++)
        total[i] = weigh_scores(scores[i], fresh[i]);
    for (size_t i = 0; i < n; i++) {
        corrections[i] = 1.0f;
        if (maxima[i] != fresh[i]) {
            __m256 change = _mm256_set1_ps((maxima[i] - fresh[i]) * LOG2_E);
            corrections[i] = _mm256_cvtss_f32(avx2_exp2_negative(change));
        }
        sums[i] = fmaf(sums[i], corrections[i], total[i]);
        maxima[i] = fresh[i];
    }
}

/* One block of keys for the scores and values of up to GROUP_QUERIES queries. */
typedef struct Block {
    size_t position;   /* of its first key */
    size_t first, end; /* keys of the block that some query of the tile sees */
    const float *keys, *values;
} Block;

#define FOR_QUERY_COUNT(n, call)                                                                   \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        call(1, 4);                                                                                \
        break;                                                                                     \
    case 2:                                                                                        \
        call(2, 4);                                                                                \
        break;                                                                                     \
    case 3:                                                                                        \
        call(3, 4);                                                                                \
        break;                                                                                     \
    case 4:                                                                                        \
        call(4, 2);                                                                                \
        break;                                                                                     \
    case 5:                                                                                        \
        call(5, 2);                                                                                \
        break;                                                                                     \
    default:                                                                                       \
        call(6, 2);                                                                                \
        break;                                                                                     \
    }

static void score_group(const AttentionTile *t, const Block *b, const float *queries, size_t n,
                        size_t end, float (*scores)[KV_BLOCK])
{
    size_t first_tile = b->first / LANES / 4 * 4, end_tile = (end + LANES - 1) / LANES;
#define SCORE_TILES(n_queries, n_tiles)                                                            \
    score_tiles(queries, t->padded_dim, t->head_dim, b->keys, first_tile, end_tile, scores,        \
                n_queries, n_tiles)
    FOR_QUERY_COUNT(n, SCORE_TILES)
#undef SCORE_TILES
}

static FORCE_INLINE void weigh_rows(const AttentionTile *t, const Block *b, size_t end,
                                    const float (*weights)[KV_BLOCK], const float *corrections,
                                    float *output, const int n_queries, const int n_vectors)
{
    size_t d = 0, width = (size_t)n_vectors * LANES;
    for (; d + width <= t->padded_dim; d += width)
        weigh_vectors(weights, corrections, b->values, t->padded_dim, b->first, end, d, output,
                      n_queries, n_vectors);
    for (; d < t->padded_dim; d += LANES)
        weigh_vectors(weights, corrections, b->values, t->padded_dim, b->first, end, d, output,
                      n_queries, 1);
}

static void weigh_group(const AttentionTile *t, const Block *b, size_t n, size_t end,
                        const float (*weights)[KV_BLOCK], const float *corrections, float *output)
{
#define WEIGH_ROWS(n_queries, n_vectors)                                                           \
    weigh_rows(t, b, end, weights, corrections, output, n_queries, n_vectors)
    FOR_QUERY_COUNT(n, WEIGH_ROWS)
#undef WEIGH_ROWS
}

/* Queries [at, at + n) of the tile over one block. */
static void group_block(const AttentionTile *t, const Block *b, size_t at, size_t n)
{
    _Alignas(32) float weights[GROUP_QUERIES][KV_BLOCK];
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
    attention_soften_avx2(weights, seen, n, t->soft_cap, t->maxima + at, t->sums + at, corrections);
    weigh_group(t, b, n, end, (const float(*)[KV_BLOCK])weights, corrections,
                t->output + at * t->padded_dim);
}

void attention_segment_avx2(const AttentionTile *t)
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
