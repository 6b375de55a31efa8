/* Attention over 8-bit keys and values in AVX2: even and odd bytes of a vector, as 16 bits, times
 * pairs of 16-bit codes that are broadcast. 3 queries times 4 vectors, or 6 times 2, are 12 sums;
 * integer sums are exact, so nothing depends on the grouping. */
#include "attention_codes.h"

#include "avx2_math.h"
#include "hints.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 8,
    VECTORS = 4, /* at most, taken together */
    VECTOR_BYTES = 32,
    QUAD_BYTES = KV_BLOCK * 4,
};

/* Vectors that n queries take together: 12 sums. */
static FORCE_INLINE int vectors_beside(const int n)
{
    return n <= 3 ? VECTORS : VECTORS / 2;
}

static FORCE_INLINE __m256i broadcast_pair(const int16_t *codes)
{
    int32_t pair;
    memcpy(&pair, codes, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* sums[i][v] += four bytes a lane at base, n_vectors of them, times the 4 codes of each query. */
static FORCE_INLINE void multiply_quads(const uint8_t *base, const int16_t *codes, size_t stride,
                                        __m256i sums[CODE_GROUP_QUERIES][VECTORS], const int n,
                                        const int n_vectors)
{
    const __m256i low = _mm256_set1_epi16(0xff);
    UNROLL
    for (int v = 0; v < n_vectors; v++) {
        __m256i bytes =
            _mm256_loadu_si256((const __m256i *)(const void *)(base + (size_t)v * VECTOR_BYTES));
        __m256i even = _mm256_and_si256(bytes, low), odd = _mm256_srli_epi16(bytes, 8);
        UNROLL
        for (int i = 0; i < n; i++) {
            const int16_t *pairs = codes + (size_t)i * stride;
            __m256i two = _mm256_add_epi32(_mm256_madd_epi16(even, broadcast_pair(pairs)),
                                           _mm256_madd_epi16(odd, broadcast_pair(pairs + 2)));
            sums[i][v] = _mm256_add_epi32(sums[i][v], two);
        }
    }
}

static FORCE_INLINE void clear_sums(__m256i sums[CODE_GROUP_QUERIES][VECTORS], const int n,
                                    const int n_vectors)
{
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = _mm256_setzero_si256();
    }
}

static FORCE_INLINE __m256 widen_sum(__m256i sum, int32_t zero)
{
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(zero)));
}

/* Keys [LANES * first, LANES * (first + n_vectors)) of the block, dimensions of one row. */
static FORCE_INLINE void score_vectors(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       size_t row, size_t first, const int n, const int n_vectors)
{
    const size_t rows = int8_scale_rows(b->padded_dim), stride = rows * KV_SCALE_DIMS;
    __m256i sums[CODE_GROUP_QUERIES][VECTORS];
    clear_sums(sums, n, n_vectors);
    size_t d = row * KV_SCALE_DIMS;
    size_t end = b->padded_dim - d < KV_SCALE_DIMS ? b->padded_dim : d + KV_SCALE_DIMS;
    for (; d < end; d += 4) {
        if (b->next && first == 0)
            attention_ask_for(b->next + d * KV_BLOCK, QUAD_BYTES);
        multiply_quads(b->key_codes + d * KV_BLOCK + first * VECTOR_BYTES, codes + d, stride, sums,
                       n, n_vectors);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        const AttentionQueryScale *q = &scales[(size_t)i * rows + row];
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            size_t key = (first + (size_t)v) * LANES;
            __m256 dot = _mm256_mul_ps(widen_sum(sums[i][v], q->zero), _mm256_set1_ps(q->scale));
            __m256 before = row ? _mm256_loadu_ps(scores[i] + key) : _mm256_setzero_ps();
            __m256 ks = _mm256_loadu_ps(b->key_scales + row * KV_BLOCK + key);
            _mm256_storeu_ps(scores[i] + key, _mm256_fmadd_ps(dot, ks, before));
        }
    }
}

static FORCE_INLINE void score_queries(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       const int n)
{
    const int n_vectors = vectors_beside(n);
    for (size_t row = 0; row < int8_scale_rows(b->padded_dim); row++) {
        for (size_t first = 0; first < KV_BLOCK / LANES; first += (size_t)n_vectors)
            score_vectors(b, codes, scales, scores, row, first, n, n_vectors);
        if (b->next)
            attention_ask_for(b->next + KV_BLOCK * b->padded_dim + row * QUAD_BYTES, QUAD_BYTES);
    }
}

/* A query's weights for 64 dimensions. */
typedef struct Weights {
    _Alignas(32) int16_t codes[KV_BLOCK];
    int32_t zero; /* 128 * (sum of the codes) */
    float scale;
} Weights;

/* 8 codes a vector to 16 bits, each four of them in the order 0, 2, 1, 3. */
static FORCE_INLINE void store_codes(__m256i q, int16_t *out)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_store_si128((__m128i *)(void *)out, _mm_shuffle_epi8(narrow, order));
}

static FORCE_INLINE int32_t sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

static void quantize_weights(const float weights[KV_BLOCK], const float *scales, Weights *out)
{
    __m256 scaled[KV_BLOCK / LANES], most = _mm256_setzero_ps(), nan = _mm256_setzero_ps();
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v++) {
        __m256 w = _mm256_loadu_ps(weights + v * LANES);
        /* A hidden key may have any scale. */
        __m256 counts = _mm256_cmp_ps(w, _mm256_setzero_ps(), _CMP_NEQ_UQ);
        scaled[v] = _mm256_and_ps(counts, _mm256_mul_ps(w, _mm256_loadu_ps(scales + v * LANES)));
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(scaled[v], scaled[v], _CMP_UNORD_Q));
        most = _mm256_max_ps(most, scaled[v]);
    }
    float peak = avx2_max(most);
    bool is_nan = _mm256_movemask_ps(nan) != 0;
    if (is_nan || !(peak >= CODE_ZERO_BELOW)) {
        memset(out->codes, 0, sizeof out->codes);
        out->zero = 0;
        out->scale = is_nan ? NAN : 0.0f;
        return;
    }
    const __m256 inverse = _mm256_set1_ps((float)CODE_MAX / peak);
    __m256i total = _mm256_setzero_si256();
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v++) {
        __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(scaled[v], inverse));
        total = _mm256_add_epi32(total, q);
        store_codes(q, out->codes + v * LANES);
    }
    out->zero = sum_lanes(total) * KV_INT8_ZERO;
    out->scale = peak / (float)CODE_MAX;
}

/* Dimensions [d, d + 8 n_vectors) of the outputs. */
static FORCE_INLINE void weigh_vectors(const CodeBlock *b, const Weights *weights,
                                       const float *corrections, float *output, size_t d,
                                       const int n, const int n_vectors)
{
    __m256i sums[CODE_GROUP_QUERIES][VECTORS];
    clear_sums(sums, n, n_vectors);
    for (size_t key = 0; key < KV_BLOCK; key += 4) {
        if (d == 0 && b->next)
            attention_ask_for(b->next + b->value_offset + key * b->padded_dim, b->padded_dim * 4);
        multiply_quads(b->value_codes + (key * b->padded_dim + d * 4), weights->codes + key,
                       sizeof *weights / sizeof(int16_t), sums, n, n_vectors);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            float *to = output + (size_t)i * b->padded_dim + d + (size_t)v * LANES;
            __m256 before = _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_set1_ps(corrections[i]));
            __m256 sum = widen_sum(sums[i][v], weights[i].zero);
            _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, _mm256_set1_ps(weights[i].scale), before));
        }
    }
}

static FORCE_INLINE void weigh_queries(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                                       const float *corrections, float *output, const int n)
{
    const int n_vectors = vectors_beside(n);
    Weights codes[CODE_GROUP_QUERIES];
    const size_t width = (size_t)n_vectors * LANES;
    for (size_t first = 0; first < b->padded_dim; first += KV_SCALE_DIMS) {
        size_t left = b->padded_dim - first, d = first;
        size_t end = left < KV_SCALE_DIMS ? b->padded_dim : first + KV_SCALE_DIMS;
        for (int i = 0; i < n; i++) /* a row of scales is as long as its dimensions are many */
            quantize_weights(weights[i], b->value_scales + first, &codes[i]);
        for (; d + width <= end; d += width)
            weigh_vectors(b, codes, corrections, output, d, n, n_vectors);
        for (; d < end; d += LANES)
            weigh_vectors(b, codes, corrections, output, d, n, 1);
        if (b->next)
            attention_ask_for(b->next + b->value_offset + KV_BLOCK * (b->padded_dim + first / 16),
                              QUAD_BYTES);
    }
}

static void score_avx2(const CodeBlock *block, const int16_t *codes,
                       const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    BY_QUERY_COUNT(n, score_queries, block, codes, scales, scores);
}

static void weigh_avx2(const CodeBlock *block, const float (*weights)[KV_BLOCK],
                       const float *corrections, size_t n, float *output)
{
    BY_QUERY_COUNT(n, weigh_queries, block, weights, corrections, output);
}

const CodeLoops int8_loops_avx2 = {score_avx2, attention_soften_avx2, weigh_avx2};
