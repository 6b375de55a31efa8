/* The attention kernel in AVX2, FMA and F16C.
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
 * and a hidden key adds an exact zero: grouping is free to change with the shape of the batch. With
 * many queries fp16 keys and values are widened once to the thread's scratch; with few they are
 * widened in the loop. */
#include "attention_codes.h"

#include "avx2_math.h"
#include "hints.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 8,
    GROUP_QUERIES = 6,
    BLOCK_TILES = KV_BLOCK / LANES,
    DIRECT_QUERIES = 6, /* at most so many queries read fp16 in the loop */
    LINE_BYTES = 64,
};

/* A run of memory that will be read next. */
typedef struct Ahead {
    const uint8_t *base;
    size_t lines; /* of 64 bytes; 0: nothing to ask for */
} Ahead;

/* Asks for one line: called often enough, with rising numbers, this spreads over a loop. */
static FORCE_INLINE void prefetch_line(Ahead ahead, size_t line)
{
    if (line < ahead.lines)
        _mm_prefetch((const char *)ahead.base + line * LINE_BYTES, _MM_HINT_T1);
}

static FORCE_INLINE __m256 load(const void *base, size_t index, bool is_half)
{
    if (is_half)
        return _mm256_cvtph_ps(
            _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)base + index)));
    return _mm256_loadu_ps((const float *)base + index);
}

/* Where dimension d of 8 keys lies, from an even tile on: two tiles of 8 share one of kv.h. */
static FORCE_INLINE size_t key_offset(int tile, size_t d, size_t head_dim)
{
    return ((size_t)(tile / 2) * head_dim + d) * KV_KEY_TILE + (size_t)(tile % 2) * LANES;
}

/* scores[i][tiles of 8 keys] = queries[i] . keys, for key tiles [first, end) of the block; end
 * - first is rounded up to n_tiles: the lanes beyond are masked later. */
static FORCE_INLINE void score_tiles(const float *queries, size_t stride, size_t head_dim,
                                     const void *keys, bool is_half, size_t first, size_t end,
                                     Ahead ahead, float (*scores)[KV_BLOCK], const int n_queries,
                                     const int n_tiles)
{
    size_t line = 0;
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
            if (is_half)
                prefetch_line(ahead, line++);
            if (n_queries < n_tiles) {
                UNROLL for (int i = 0; i < n_queries; i++)
                {
                    held[i] = _mm256_broadcast_ss(queries + (size_t)i * stride + d);
                }
                UNROLL for (int t = 0; t < n_tiles; t++)
                {
                    __m256 key = load(keys, base + key_offset(t, d, head_dim), is_half);
                    UNROLL for (int i = 0; i < n_queries; i++)
                    {
                        sums[i][t] = _mm256_fmadd_ps(held[i], key, sums[i][t]);
                    }
                }
                continue;
            }
            UNROLL for (int t = 0; t < n_tiles; t++)
            {
                held[t] = load(keys, base + key_offset(t, d, head_dim), is_half);
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
                                       const void *values, size_t stride, bool is_half,
                                       size_t first, size_t end, size_t d, Ahead ahead,
                                       float *output, const int n_queries, const int n_vectors)
{
    size_t line = d / ((size_t)n_vectors * LANES) * KV_BLOCK;
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
        if (is_half)
            prefetch_line(ahead, line + key);
        if (n_queries < n_vectors) {
            UNROLL for (int i = 0; i < n_queries; i++)
            {
                held[i] = _mm256_broadcast_ss(&weights[i][key]);
            }
            UNROLL for (int v = 0; v < n_vectors; v++)
            {
                __m256 value = load(values, key * stride + d + (size_t)v * LANES, is_half);
                UNROLL for (int i = 0; i < n_queries; i++)
                {
                    sums[i][v] = _mm256_fmadd_ps(held[i], value, sums[i][v]);
                }
            }
            continue;
        }
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            held[v] = load(values, key * stride + d + (size_t)v * LANES, is_half);
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

static float soften_query(float scores[KV_BLOCK], KeyRange range, float soft_cap, float *max,
                          float *sum)
{
    const __m256 hidden = _mm256_set1_ps(-INFINITY);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_set1_epi32((int)range.first - 1);
    const __m256i high = _mm256_set1_epi32((int)range.end);
    __m256 s[BLOCK_TILES], most = hidden;
    UNROLL for (int t = 0; t < BLOCK_TILES; t++)
    {
        s[t] = _mm256_loadu_ps(scores + t * LANES);
        if (soft_cap > 0.0f)
            s[t] = _mm256_mul_ps(_mm256_set1_ps(soft_cap),
                                 avx2_tanh(_mm256_mul_ps(s[t], _mm256_set1_ps(1.0f / soft_cap))));
        __m256i seen =
            _mm256_and_si256(_mm256_cmpgt_epi32(lane, low), _mm256_cmpgt_epi32(high, lane));
        s[t] = _mm256_blendv_ps(hidden, s[t], _mm256_castsi256_ps(seen));
        most = _mm256_max_ps(most, s[t]);
        lane = _mm256_add_epi32(lane, _mm256_set1_epi32(LANES));
    }
    float found = avx2_max(most);
    float fresh = found > *max ? found : *max;
    if (fresh == -INFINITY) {
        memset(scores, 0, KV_BLOCK * sizeof *scores);
        return 1.0f;
    }
    const __m256 origin = _mm256_set1_ps(fresh);
    __m256 total = _mm256_setzero_ps();
    UNROLL for (int t = 0; t < BLOCK_TILES; t++)
    {
        __m256 weight = avx2_exp(_mm256_sub_ps(s[t], origin));
        _mm256_storeu_ps(scores + t * LANES, weight);
        total = _mm256_add_ps(total, weight);
    }
    float correction = _mm256_cvtss_f32(avx2_exp(_mm256_sub_ps(_mm256_set1_ps(*max), origin)));
    *sum = fmaf(*sum, correction, avx2_sum(total));
    *max = fresh;
    return correction;
}

void attention_soften_avx2(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                           float soft_cap, float *maxima, float *sums, float *corrections)
{
    for (size_t i = 0; i < n; i++)
        corrections[i] = soften_query(scores[i], seen[i], soft_cap, &maxima[i], &sums[i]);
}

/* One block of keys for the scores and values of up to GROUP_QUERIES queries. */
typedef struct Block {
    size_t position;   /* of its first key */
    size_t first, end; /* keys of the block that some query of the tile sees */
    const void *keys, *values;
    bool is_half;
    Ahead values_ahead; /* the block's own, while its keys are read */
    Ahead keys_ahead;   /* of the next block, while the values are */
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
#define SCORE_HALF(n_queries, n_tiles)                                                             \
    score_tiles(queries, t->padded_dim, t->head_dim, b->keys, true, first_tile, end_tile,          \
                b->values_ahead, scores, n_queries, n_tiles)
#define SCORE_FLOAT(n_queries, n_tiles)                                                            \
    score_tiles(queries, t->padded_dim, t->head_dim, b->keys, false, first_tile, end_tile,         \
                b->values_ahead, scores, n_queries, n_tiles)
    if (b->is_half)
        FOR_QUERY_COUNT(n, SCORE_HALF)
    else
        FOR_QUERY_COUNT(n, SCORE_FLOAT)
#undef SCORE_HALF
#undef SCORE_FLOAT
}

static FORCE_INLINE void weigh_rows(const AttentionTile *t, const Block *b, size_t end,
                                    const float (*weights)[KV_BLOCK], const float *corrections,
                                    float *output, bool is_half, const int n_queries,
                                    const int n_vectors)
{
    size_t d = 0, width = (size_t)n_vectors * LANES;
    for (; d + width <= t->padded_dim; d += width)
        weigh_vectors(weights, corrections, b->values, t->padded_dim, is_half, b->first, end, d,
                      b->keys_ahead, output, n_queries, n_vectors);
    for (; d < t->padded_dim; d += LANES)
        weigh_vectors(weights, corrections, b->values, t->padded_dim, is_half, b->first, end, d,
                      b->keys_ahead, output, n_queries, 1);
}

static void weigh_group(const AttentionTile *t, const Block *b, size_t n, size_t end,
                        const float (*weights)[KV_BLOCK], const float *corrections, float *output)
{
#define WEIGH_HALF(n_queries, n_vectors)                                                           \
    weigh_rows(t, b, end, weights, corrections, output, true, n_queries, n_vectors)
#define WEIGH_FLOAT(n_queries, n_vectors)                                                          \
    weigh_rows(t, b, end, weights, corrections, output, false, n_queries, n_vectors)
    if (b->is_half)
        FOR_QUERY_COUNT(n, WEIGH_HALF)
    else
        FOR_QUERY_COUNT(n, WEIGH_FLOAT)
#undef WEIGH_HALF
#undef WEIGH_FLOAT
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

/* Widens what the block's queries will read to the thread's scratch. */
static void widen_block(const AttentionTile *t, Block *b)
{
    const uint16_t *keys = b->keys, *values = b->values;
    size_t from = b->first / LANES / 4 * 4 * LANES * t->head_dim;
    size_t to = (b->end + 4 * LANES - 1) / (4 * LANES) * (4 * LANES) * t->head_dim;
    for (size_t i = from; i < to; i += LANES)
        _mm256_storeu_ps(t->key_block + i, load(keys, i, true));
    for (size_t i = b->first * t->padded_dim; i < b->end * t->padded_dim; i += LANES)
        _mm256_storeu_ps(t->value_block + i, load(values, i, true));
    b->keys = t->key_block;
    b->values = t->value_block;
    b->is_half = false;
}

/* Few queries wait for memory: a block's keys and its values are short runs at far places, so the
 * next run is asked for while this one is worked on. */
static void look_ahead(const AttentionTile *t, size_t index, Block *b)
{
    b->values_ahead = (Ahead){b->values, b->end * t->padded_dim * sizeof(uint16_t) / LINE_BYTES};
    const void *next = b->position + KV_BLOCK < t->end_key ? t->keys[index + 1] : t->next_keys;
    if (next)
        b->keys_ahead = (Ahead){next, KV_BLOCK * t->head_dim * sizeof(uint16_t) / LINE_BYTES};
}

void attention_segment_avx2(const AttentionTile *t)
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
            look_ahead(t, index, &block);
        for (size_t i = 0; i < t->n_queries; i += GROUP_QUERIES) {
            size_t left = t->n_queries - i;
            group_block(t, &block, i, left < GROUP_QUERIES ? left : GROUP_QUERIES);
        }
    }
}
