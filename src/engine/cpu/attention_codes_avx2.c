/* Attention over keys and values that are codes, in AVX2: pairs of 16-bit codes times pairs that
 * are broadcast, vpmaddwd and an addition for what a float32 multiply-add does with half as many.
 * Codes of 16 bits lie in pairs; of 8-bit ones the even and the odd bytes of a vector are widened.
 * Integer sums are exact, so nothing depends on how queries are grouped.
 *
 * 4 to 6 queries meet 2 vectors at a time, fewer meet 4: up to 12 sums in registers, beside them
 * the vectors, a broadcast and a product.
 *
 * A block is read in several passes, and each skips what the others read: memory is asked for in
 * its own order, the values while keys are read and the next block's keys while values are, and in
 * the first pass once more shortly before it is needed. */
#include "attention_codes.h"

#include "avx2_math.h"
#include "hints.h"

#include <math.h>
#include <string.h>

/* GROUP_BYTES: KV_BLOCK times the codes that a product adds up. */
enum { LANES = 8, VECTORS = 4, VECTOR_BYTES = 32, GROUP_BYTES = KV_BLOCK * 4, AGAIN_BYTES = 2048 };

/* Vectors that n queries take together. */
static FORCE_INLINE int vectors_beside(const int n)
{
    return n <= 3 ? VECTORS : VECTORS / 2;
}

/* A pair of neighbouring 16-bit codes in all lanes. */
static FORCE_INLINE __m256i broadcast_pair(const int16_t *codes)
{
    int32_t pair;
    memcpy(&pair, codes, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* A block's keys or values: n_steps groups of codes that a product adds up. */
typedef struct Run {
    const uint8_t *own, *next; /* next: what is read after them; NULL: nothing is to be asked for */
    size_t n_steps, step_bytes;
} Run;

/* While n_vectors of a step are multiplied. */
static FORCE_INLINE void look_ahead(const Run *run, size_t step, size_t pass, const int n_vectors)
{
    const size_t bytes = (size_t)n_vectors * VECTOR_BYTES, at = step * run->step_bytes;
    if (!run->next)
        return;
    attention_ask_for(run->next + (pass * run->n_steps + step) * bytes, bytes);
    if (pass == 0 && at + AGAIN_BYTES < run->n_steps * run->step_bytes)
        attention_ask_for(run->own + at + AGAIN_BYTES, run->step_bytes);
}

/* The part-th pair of each lane of a vector. */
static FORCE_INLINE __m256i load_pairs(const uint8_t *at, const KvType type, const int part)
{
    __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)at);
    if (type == KV_INT8)
        pairs = part == 0 ? _mm256_and_si256(pairs, _mm256_set1_epi16(0xff))
                          : _mm256_srli_epi16(pairs, 8);
    PIN(pairs);
    return pairs;
}

/* In assembly: GCC 12 adds to the product and copies the sum back. */
static FORCE_INLINE __m256i add_pair_products(__m256i sum, __m256i a, __m256i b)
{
    __m256i products = _mm256_madd_epi16(a, b);
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
    return sum;
}

/* sums[i][v] += the part-th pair of each lane at base, n_vectors of them, times the pair of each
 * query. Of queries and vectors the fewer are held in registers. */
static FORCE_INLINE void multiply_pairs(const uint8_t *base, const int16_t *codes, size_t stride,
                                        __m256i sums[CODE_GROUP_QUERIES][VECTORS],
                                        const KvType type, const int part, const int n,
                                        const int n_vectors)
{
    __m256i held[VECTORS];
    codes += 2 * part;
    if (n < n_vectors) {
        UNROLL
        for (int i = 0; i < n; i++)
            held[i] = broadcast_pair(codes + (size_t)i * stride);
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            __m256i pairs = load_pairs(base + (size_t)v * VECTOR_BYTES, type, part);
            UNROLL
            for (int i = 0; i < n; i++)
                sums[i][v] = add_pair_products(sums[i][v], pairs, held[i]);
        }
        return;
    }
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        held[v] = load_pairs(base + (size_t)v * VECTOR_BYTES, type, part);
    UNROLL
    for (int i = 0; i < n; i++) {
        __m256i query = broadcast_pair(codes + (size_t)i * stride);
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = add_pair_products(sums[i][v], held[v], query);
    }
}

static FORCE_INLINE void multiply_group(const uint8_t *base, const int16_t *codes, size_t stride,
                                        __m256i sums[CODE_GROUP_QUERIES][VECTORS],
                                        const KvType type, const int n, const int n_vectors)
{
    multiply_pairs(base, codes, stride, sums, type, 0, n, n_vectors);
    if (type == KV_INT8)
        multiply_pairs(base, codes, stride, sums, type, 1, n, n_vectors);
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

static FORCE_INLINE __m256 widen_sum(__m256i sum, int32_t zero, const KvType type)
{
    if (type == KV_INT8)
        sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(zero));
    return _mm256_cvtepi32_ps(sum);
}

/* Keys [LANES * first, LANES * (first + n_vectors)) of the block, dimensions of one row. */
static FORCE_INLINE void score_vectors(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       size_t row, size_t first, const KvType type, const int n,
                                       const int n_vectors)
{
    const size_t together = codes_together(type), dims = code_row_dims(type, b->padded_dim);
    const size_t rows = (b->padded_dim + dims - 1) / dims, stride = rows * dims;
    const Run keys = {b->key_codes, b->next ? b->value_codes : NULL, b->padded_dim / together,
                      GROUP_BYTES};
    __m256i sums[CODE_GROUP_QUERIES][VECTORS];
    clear_sums(sums, n, n_vectors);
    size_t d = row * dims, end = b->padded_dim - d < dims ? b->padded_dim : d + dims;
    for (; d < end; d += together) {
        const size_t at = d / together * GROUP_BYTES;
        look_ahead(&keys, d / together, first / (size_t)n_vectors, n_vectors);
        multiply_group(b->key_codes + at + first * VECTOR_BYTES, codes + d, stride, sums, type, n,
                       n_vectors);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        const AttentionQueryScale *q = &scales[(size_t)i * rows + row];
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            size_t key = (first + (size_t)v) * LANES;
            __m256 dot =
                _mm256_mul_ps(widen_sum(sums[i][v], q->zero, type), _mm256_set1_ps(q->scale));
            __m256 before = row ? _mm256_loadu_ps(scores[i] + key) : _mm256_setzero_ps();
            __m256 ks = _mm256_loadu_ps(b->key_scales + row * KV_BLOCK + key);
            _mm256_storeu_ps(scores[i] + key, _mm256_fmadd_ps(dot, ks, before));
        }
    }
}

static FORCE_INLINE void score_queries(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       const KvType type, const int n)
{
    const size_t dims = code_row_dims(type, b->padded_dim);
    const int n_vectors = vectors_beside(n);
    const size_t scales_at = b->padded_dim / codes_together(type) * GROUP_BYTES;
    for (size_t row = 0; row * dims < b->padded_dim; row++) {
        for (size_t first = 0; first * LANES < b->n_keys; first += (size_t)n_vectors)
            score_vectors(b, codes, scales, scores, row, first, type, n, n_vectors);
        if (b->next)
            attention_ask_for(b->next + scales_at + row * GROUP_BYTES, GROUP_BYTES);
    }
}

/* A query's weights for a row of dimensions. */
typedef struct Weights {
    _Alignas(32) int16_t codes[KV_BLOCK];
    int32_t zero; /* 128 * (sum of the codes); 0 with 16 bits */
    float scale;
} Weights;

/* 8 codes to 16 bits; those for bytes each four in the order 0, 2, 1, 3. */
static FORCE_INLINE void store_codes(__m256i q, const KvType type, int16_t *out)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    if (type == KV_INT8)
        narrow = _mm_shuffle_epi8(narrow, order);
    _mm_store_si128((__m128i *)(void *)out, narrow);
}

static FORCE_INLINE int32_t sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

static FORCE_INLINE void quantize_weights(const float weights[KV_BLOCK], const float *scales,
                                          const KvType type, Weights *out)
{
    __m256 scaled[KV_BLOCK / LANES], most = _mm256_setzero_ps(), total = _mm256_setzero_ps();
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v++) {
        __m256 w = _mm256_loadu_ps(weights + v * LANES);
        /* A hidden key may have any scale. */
        __m256 counts = _mm256_cmp_ps(w, _mm256_setzero_ps(), _CMP_NEQ_UQ);
        scaled[v] = _mm256_and_ps(counts, _mm256_mul_ps(w, _mm256_loadu_ps(scales + v * LANES)));
        most = _mm256_max_ps(most, scaled[v]);
        total = _mm256_add_ps(total, scaled[v]);
    }
    float peak = avx2_max(most), sum = avx2_sum(total);
    if (!(peak >= CODE_ZERO_BELOW) || sum != sum) {
        memset(out->codes, 0, sizeof out->codes);
        out->zero = 0;
        out->scale = sum != sum ? NAN : 0.0f;
        return;
    }
    out->scale = peak / (float)CODE_MAX;
    if (type == KV_INT16 && out->scale < sum / (float)CODE_WEIGHTS_MAX)
        out->scale = sum / (float)CODE_WEIGHTS_MAX;
    const __m256 inverse = _mm256_set1_ps(1.0f / out->scale);
    __m256i codes = _mm256_setzero_si256();
    UNROLL
    for (int v = 0; v < KV_BLOCK / LANES; v++) {
        __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(scaled[v], inverse));
        codes = _mm256_add_epi32(codes, q);
        store_codes(q, type, out->codes + v * LANES);
    }
    out->zero = type == KV_INT8 ? sum_lanes(codes) * KV_INT8_ZERO : 0;
}

/* Dimensions [d, d + 8 n_vectors) of the outputs. */
static FORCE_INLINE void weigh_vectors(const CodeBlock *b, const Weights *weights,
                                       const float *corrections, float *output, size_t d,
                                       const KvType type, const int n, const int n_vectors)
{
    const size_t together = codes_together(type), row_bytes = b->padded_dim * 4;
    const Run values = {b->value_codes, b->next, KV_BLOCK / together, row_bytes};
    __m256i sums[CODE_GROUP_QUERIES][VECTORS];
    clear_sums(sums, n, n_vectors);
    for (size_t key = 0; key < b->n_keys; key += together) {
        const size_t at = key / together * row_bytes + d * 4;
        look_ahead(&values, key / together, d / ((size_t)n_vectors * LANES), n_vectors);
        multiply_group(b->value_codes + at, weights->codes + key, sizeof *weights / sizeof(int16_t),
                       sums, type, n, n_vectors);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            float *to = output + (size_t)i * b->padded_dim + d + (size_t)v * LANES;
            __m256 before = _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_set1_ps(corrections[i]));
            __m256 sum = widen_sum(sums[i][v], weights[i].zero, type);
            _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, _mm256_set1_ps(weights[i].scale), before));
        }
    }
}

static FORCE_INLINE void weigh_queries(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                                       const float *corrections, float *output, const KvType type,
                                       const int n)
{
    const size_t dims = code_row_dims(type, b->padded_dim);
    const int n_vectors = vectors_beside(n);
    const size_t width = (size_t)n_vectors * LANES;
    const size_t scales_at = KV_BLOCK / codes_together(type) * b->padded_dim * 4;
    Weights codes[CODE_GROUP_QUERIES];
    for (size_t first = 0, row = 0; first < b->padded_dim; first += dims, row++) {
        size_t end = b->padded_dim - first < dims ? b->padded_dim : first + dims, d = first;
        for (int i = 0; i < n; i++)
            quantize_weights(weights[i], b->value_scales + row * KV_BLOCK, type, &codes[i]);
        for (; d + width <= end; d += width)
            weigh_vectors(b, codes, corrections, output, d, type, n, n_vectors);
        for (; d < end; d += LANES)
            weigh_vectors(b, codes, corrections, output, d, type, n, 1);
        if (b->next)
            attention_ask_for(b->next + b->value_offset + scales_at + row * GROUP_BYTES,
                              GROUP_BYTES);
    }
}

static void score_int8(const CodeBlock *block, const int16_t *codes,
                       const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    BY_QUERY_COUNT(n, score_queries, block, codes, scales, scores, KV_INT8);
}

static void score_int16(const CodeBlock *block, const int16_t *codes,
                        const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    BY_QUERY_COUNT(n, score_queries, block, codes, scales, scores, KV_INT16);
}

static void weigh_int8(const CodeBlock *block, const float (*weights)[KV_BLOCK],
                       const float *corrections, size_t n, float *output)
{
    BY_QUERY_COUNT(n, weigh_queries, block, weights, corrections, output, KV_INT8);
}

static void weigh_int16(const CodeBlock *block, const float (*weights)[KV_BLOCK],
                        const float *corrections, size_t n, float *output)
{
    BY_QUERY_COUNT(n, weigh_queries, block, weights, corrections, output, KV_INT16);
}

const CodeLoops int8_loops_avx2 = {score_int8, attention_soften_avx2, weigh_int8};
const CodeLoops int16_loops_avx2 = {score_int16, attention_soften_avx2, weigh_int16};
