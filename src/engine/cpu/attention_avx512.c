/* The attention kernel in AVX-512.
 *
 * A block of 64 keys is 4 vectors, so up to 6 queries meet the whole block in 24 sums:
 *
 *   scores   a dot product runs down the dimensions in one lane (kv.h)
 *   softmax  all 64 lanes of a query, hidden keys at -inf; the running maximum, the sum and the
 *            output are corrected
 *   values   output[d] += weight[key] * value[key][d], keys in order, 64 dimensions at a time
 *
 * Each sum has one order, down the dimensions or along the keys, however the queries are grouped,
 * and a hidden key adds an exact zero. With many queries fp16 keys and values are widened once to
 * the thread's scratch. With few, as in decoding, they are widened in the loop and come from
 * memory: a block's keys and its values are short runs at far places, so the next run is asked for
 * while this one is worked on. */
#include "attention_int8.h"

#include "avx512_math.h"

#include <math.h>
#include <string.h>

#define UNROLL _Pragma("GCC unroll 8")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    VECTORS = KV_BLOCK / LANES, /* of a block's keys; and of dimensions at a time */
    GROUP_QUERIES = 6,
    DIRECT_QUERIES = 6, /* at most so many queries read fp16 in the loop */
    LINE_BYTES = 64,
};

/* One block of keys for the scores and values of up to GROUP_QUERIES queries. */
typedef struct Block {
    size_t position;   /* of its first key */
    size_t first, end; /* keys of the block that some query of the tile sees */
    const void *keys, *values;
    const uint8_t *next_keys; /* of the block that follows, or NULL */
    bool is_half;             /* fp16 that is read, and asked for, in the loop */
} Block;

ALWAYS_INLINE __m512 load(const void *base, size_t index, bool is_half)
{
    if (is_half)
        return _mm512_cvtph_ps(
            _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)base + index)));
    return _mm512_loadu_ps((const float *)base + index);
}

/* The step-th part of asking for `rows` rows of `bytes` bytes, in as many steps as there are rows.
 */
ALWAYS_INLINE void prefetch_row(const uint8_t *base, size_t step, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE_BYTES)
        _mm_prefetch((const char *)base + step * bytes + i, _MM_HINT_T1);
}

/* scores[i] = queries[i] . keys for the block's first n_vectors vectors: what lies behind them, and
 * the lanes of hidden keys, are masked later. */
ALWAYS_INLINE void score_vectors(const AttentionTile *t, const Block *b, const float *queries,
                                 float (*scores)[KV_BLOCK], bool is_half, const int n,
                                 int n_vectors)
{
    const size_t head_dim = t->head_dim;
    const size_t value_bytes = t->padded_dim * sizeof(uint16_t);
    __m512 sums[GROUP_QUERIES][VECTORS];
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sums[i][v] = _mm512_setzero_ps();
    }
    for (size_t d = 0; d < head_dim; d++) {
        __m512 keys[VECTORS];
        if (is_half && d < b->end)
            prefetch_row(b->values, d, value_bytes);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            keys[v] = v < n_vectors ? load(b->keys, ((size_t)v * head_dim + d) * LANES, is_half)
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

ALWAYS_INLINE void score_block(const AttentionTile *t, const Block *b, const float *queries,
                               float (*scores)[KV_BLOCK], bool is_half, const int n)
{
    if (b->end > (VECTORS - 1) * LANES)
        score_vectors(t, b, queries, scores, is_half, n, VECTORS);
    else
        score_vectors(t, b, queries, scores, is_half, n, (int)((b->end + LANES - 1) / LANES));
}

/* output[i][d ..] = output * correction + weights . values, n_vectors vectors of dimensions. */
ALWAYS_INLINE void weigh_vectors(const AttentionTile *t, const Block *b, size_t end, size_t d,
                                 const float (*weights)[KV_BLOCK], const float *corrections,
                                 float *output, bool is_half, const int n, const int n_vectors)
{
    const size_t stride = t->padded_dim;
    const size_t key_bytes = t->head_dim * sizeof(uint16_t);
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
        if (is_half && b->next_keys && d == 0)
            prefetch_row(b->next_keys, key, key_bytes);
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            values[v] = load(b->values, key * stride + d + (size_t)v * LANES, is_half);
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

ALWAYS_INLINE void weigh_block(const AttentionTile *t, const Block *b, size_t end,
                               const float (*weights)[KV_BLOCK], const float *corrections,
                               float *output, bool is_half, const int n)
{
    size_t d = 0;
    for (; d + VECTORS * LANES <= t->padded_dim; d += VECTORS * LANES)
        weigh_vectors(t, b, end, d, weights, corrections, output, is_half, n, VECTORS);
    for (; d < t->padded_dim; d += LANES)
        weigh_vectors(t, b, end, d, weights, corrections, output, is_half, n, 1);
}

float attention_soften_avx512(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap,
                              float *max, float *sum)
{
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    uint64_t seen = (end < 64 ? ((uint64_t)1 << end) : 0) - 1;
    seen = first < 64 ? seen >> first << first : 0;
    __m512 s[VECTORS], most = hidden;
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        s[v] = _mm512_load_ps(scores + v * LANES);
        if (soft_cap > 0.0f)
            s[v] = _mm512_mul_ps(_mm512_set1_ps(soft_cap),
                                 avx512_tanh(_mm512_mul_ps(s[v], _mm512_set1_ps(1.0f / soft_cap))));
        s[v] = _mm512_mask_mov_ps(hidden, (__mmask16)(seen >> (LANES * v)), s[v]);
        most = _mm512_max_ps(most, s[v]);
    }
    float found = _mm512_reduce_max_ps(most);
    float fresh = found > *max ? found : *max;
    if (fresh == -INFINITY) {
        memset(scores, 0, KV_BLOCK * sizeof *scores);
        return 1.0f;
    }
    const __m512 origin = _mm512_set1_ps(fresh), log2_e = _mm512_set1_ps(1.44269504f);
    __m512 total = _mm512_setzero_ps();
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512 weight = avx512_exp2_negative(_mm512_mul_ps(_mm512_sub_ps(s[v], origin), log2_e));
        _mm512_store_ps(scores + v * LANES, weight);
        total = _mm512_add_ps(total, weight);
    }
    float correction = 1.0f;
    if (*max != fresh)
        correction = _mm512_cvtss_f32(avx512_exp2_negative(
            _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(*max), origin), log2_e)));
    *sum = fmaf(*sum, correction, _mm512_reduce_add_ps(total));
    *max = fresh;
    return correction;
}

/* Calls call(t, b, ..., is_half, n) with constants for the last two. */
#define FOR_QUERY_COUNT(n, is_half, call, ...)                                                     \
    do {                                                                                           \
        switch (n) {                                                                               \
        case 1:                                                                                    \
            call(__VA_ARGS__, is_half, 1);                                                         \
            break;                                                                                 \
        case 2:                                                                                    \
            call(__VA_ARGS__, is_half, 2);                                                         \
            break;                                                                                 \
        case 3:                                                                                    \
            call(__VA_ARGS__, is_half, 3);                                                         \
            break;                                                                                 \
        case 4:                                                                                    \
            call(__VA_ARGS__, is_half, 4);                                                         \
            break;                                                                                 \
        case 5:                                                                                    \
            call(__VA_ARGS__, is_half, 5);                                                         \
            break;                                                                                 \
        default:                                                                                   \
            call(__VA_ARGS__, is_half, 6);                                                         \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

static void score_group(const AttentionTile *t, const Block *b, const float *queries, size_t n,
                        float (*scores)[KV_BLOCK])
{
    if (b->is_half)
        FOR_QUERY_COUNT(n, true, score_block, t, b, queries, scores);
    else
        FOR_QUERY_COUNT(n, false, score_block, t, b, queries, scores);
}

static void weigh_group(const AttentionTile *t, const Block *b, size_t n, size_t end,
                        const float (*weights)[KV_BLOCK], const float *corrections, float *output)
{
    if (b->is_half)
        FOR_QUERY_COUNT(n, true, weigh_block, t, b, end, weights, corrections, output);
    else
        FOR_QUERY_COUNT(n, false, weigh_block, t, b, end, weights, corrections, output);
}

/* Queries [at, at + n) of the tile over one block. */
static void group_block(const AttentionTile *t, const Block *b, size_t at, size_t n)
{
    _Alignas(64) float weights[GROUP_QUERIES][KV_BLOCK];
    float corrections[GROUP_QUERIES];
    size_t last = t->positions[at + n - 1];
    if (last < b->position + b->first)
        return; /* the whole block lies after these queries */
    size_t end = last - b->position + 1;
    end = end < b->end ? end : b->end;
    score_group(t, b, t->queries + at * t->padded_dim, n, weights);
    for (size_t i = 0; i < n; i++) {
        KeyRange seen = attention_visible(t, b->position, t->positions[at + i]);
        corrections[i] = attention_soften_avx512(weights[i], seen.first, seen.end, t->soft_cap,
                                                 &t->maxima[at + i], &t->sums[at + i]);
    }
    weigh_group(t, b, n, end, (const float(*)[KV_BLOCK])weights, corrections,
                t->output + at * t->padded_dim);
}

/* Widens what the block's queries will read to the thread's scratch. */
static void widen_block(const AttentionTile *t, Block *b)
{
    for (size_t i = 0; i < KV_BLOCK * t->head_dim; i += LANES)
        _mm512_storeu_ps(t->key_block + i, load(b->keys, i, true));
    for (size_t i = b->first * t->padded_dim; i < b->end * t->padded_dim; i += LANES)
        _mm512_storeu_ps(t->value_block + i, load(b->values, i, true));
    b->keys = t->key_block;
    b->values = t->value_block;
    b->is_half = false;
}

void attention_segment_avx512(const AttentionTile *t)
{
    attention_begin(t);
    for (size_t at = t->first_key / KV_BLOCK * KV_BLOCK; at < t->end_key; at += KV_BLOCK) {
        size_t index = at / KV_BLOCK % ATTENTION_SEGMENT_BLOCKS;
        Block block = {
            .position = at,
            .first = t->first_key > at ? t->first_key - at : 0,
            .end = t->end_key - at < KV_BLOCK ? t->end_key - at : KV_BLOCK,
            .keys = t->keys[index],
            .values = t->values[index],
            .next_keys = at + KV_BLOCK < t->end_key ? t->keys[index + 1] : t->next_keys,
            .is_half = t->is_half,
        };
        if (t->is_half && t->n_queries > DIRECT_QUERIES)
            widen_block(t, &block);
        for (size_t i = 0; i < t->n_queries; i += GROUP_QUERIES) {
            size_t left = t->n_queries - i;
            group_block(t, &block, i, left < GROUP_QUERIES ? left : GROUP_QUERIES);
        }
    }
}
