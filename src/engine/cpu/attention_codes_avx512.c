/* Attention over keys and values that are codes, in AVX-512 VNNI: pairs of 16-bit codes times pairs
 * that are broadcast. Codes of 16 bits lie in pairs; of 8-bit ones the even and the odd bytes of a
 * vector are widened. 6 queries times 4 vectors are 24 sums. Integer sums are exact, so nothing
 * depends on how queries are grouped.
 *
 * A block's keys and values are a short run at a far place: the next run is asked for while this
 * one is worked on, in the second-level cache, where that does not hold up the loads at hand. A
 * processor drops such requests when too many are under way, so codes are asked for once more
 * shortly before they are needed. */
#include "attention_codes.h"

#include "avx512_math.h"
#include "hints.h"

#include <math.h>
#include <string.h>

/* GROUP_BYTES: KV_BLOCK times the codes that a product adds up. */
enum { LANES = 16, VECTORS = 4, VECTOR_BYTES = 64, GROUP_BYTES = KV_BLOCK * 4, AGAIN_BYTES = 4096 };

/* A pair of neighbouring 16-bit codes in all lanes. */
static FORCE_INLINE __m512i broadcast_pair(const int16_t *codes)
{
    int32_t pair;
    memcpy(&pair, codes, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* While codes at an offset of the run are multiplied: so many bytes of the next run there, and of
 * this one shortly behind. */
static FORCE_INLINE void look_ahead(const CodeBlock *b, size_t offset, size_t bytes,
                                    size_t next_bytes)
{
    if (!b->next)
        return;
    attention_ask_for(b->next + offset, next_bytes);
    if (offset + AGAIN_BYTES < 2 * b->value_offset)
        attention_ask_for(b->key_codes + offset + AGAIN_BYTES, bytes);
}

/* That hold so many keys. */
static FORCE_INLINE size_t vectors_of(size_t n_keys)
{
    return (n_keys + LANES - 1) / LANES;
}

/* sum += pairs of a times pairs of b. In assembly: GCC 12 copies sums to and fro around the
 * intrinsic, which takes as long as the products. */
static FORCE_INLINE __m512i add_pair_products(__m512i sum, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

/* sums[i][v] += the part-th pair of each lane at base, n_vectors of them, times the pair of each
 * query. */
static FORCE_INLINE void multiply_pairs(const uint8_t *base, const int16_t *codes, size_t stride,
                                        __m512i sums[CODE_GROUP_QUERIES][VECTORS],
                                        const KvType type, const int part, const int n,
                                        const int n_vectors)
{
    __m512i pairs[VECTORS];
    UNROLL
    for (int v = 0; v < n_vectors; v++) {
        pairs[v] = _mm512_loadu_si512(base + (size_t)v * VECTOR_BYTES);
        if (type == KV_INT8)
            pairs[v] = part == 0 ? _mm512_and_si512(pairs[v], _mm512_set1_epi16(0xff))
                                 : _mm512_srli_epi16(pairs[v], 8);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        __m512i query = broadcast_pair(codes + (size_t)i * stride + 2 * part);
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = add_pair_products(sums[i][v], pairs[v], query);
    }
}

static FORCE_INLINE void multiply_group(const uint8_t *base, const int16_t *codes, size_t stride,
                                        __m512i sums[CODE_GROUP_QUERIES][VECTORS],
                                        const KvType type, const int n, const int n_vectors)
{
    multiply_pairs(base, codes, stride, sums, type, 0, n, n_vectors);
    if (type == KV_INT8)
        multiply_pairs(base, codes, stride, sums, type, 1, n, n_vectors);
}

static FORCE_INLINE void clear_sums(__m512i sums[CODE_GROUP_QUERIES][VECTORS], const int n,
                                    const int n_vectors)
{
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = _mm512_setzero_si512();
    }
}

static FORCE_INLINE void score_queries(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       const KvType type, const int n, const int n_vectors)
{
    const size_t together = codes_together(type), dims = code_row_dims(type, b->padded_dim);
    const size_t bytes = (size_t)n_vectors * VECTOR_BYTES;
    const size_t next_bytes = vectors_of(b->n_next) * VECTOR_BYTES;
    const size_t rows = (b->padded_dim + dims - 1) / dims, stride = rows * dims;
    const size_t scales_at = b->padded_dim / together * GROUP_BYTES;
    for (size_t row = 0; row < rows; row++) {
        __m512i sums[CODE_GROUP_QUERIES][VECTORS];
        clear_sums(sums, n, n_vectors);
        size_t first = row * dims;
        size_t end = b->padded_dim - first < dims ? b->padded_dim : first + dims;
        for (size_t d = first; d < end; d += together) {
            const size_t at = d / together * GROUP_BYTES;
            look_ahead(b, at, bytes, next_bytes);
            multiply_group(b->key_codes + at, codes + d, stride, sums, type, n, n_vectors);
        }
        look_ahead(b, scales_at + row * GROUP_BYTES, bytes, next_bytes);
        UNROLL
        for (int i = 0; i < n; i++) {
            const AttentionQueryScale *q = &scales[(size_t)i * rows + row];
            UNROLL
            for (int v = 0; v < n_vectors; v++) {
                __m512 sum =
                    _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][v], _mm512_set1_epi32(q->zero)));
                __m512 dot = _mm512_mul_ps(sum, _mm512_set1_ps(q->scale));
                __m512 before = row ? _mm512_load_ps(scores[i] + v * LANES) : _mm512_setzero_ps();
                __m512 ks = _mm512_loadu_ps(b->key_scales + row * KV_BLOCK + (size_t)v * LANES);
                _mm512_store_ps(scores[i] + v * LANES, _mm512_fmadd_ps(dot, ks, before));
            }
        }
    }
}

/* A query's weights for a row of dimensions. */
typedef struct Weights {
    _Alignas(64) int16_t codes[KV_BLOCK];
    int32_t zero; /* 128 * (sum of the codes); 0 with 16 bits */
    float scale;
} Weights;

static FORCE_INLINE void quantize_weights(const float weights[KV_BLOCK], const float *scales,
                                          const KvType type, Weights *out)
{
    const __m256i pair_order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m512 scaled[VECTORS], most = _mm512_setzero_ps(), total = _mm512_setzero_ps();
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512 w = _mm512_load_ps(weights + v * LANES);
        /* A hidden key may have any scale. */
        __mmask16 counts = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        scaled[v] = _mm512_maskz_mul_ps(counts, w, _mm512_loadu_ps(scales + v * LANES));
        most = _mm512_max_ps(most, scaled[v]);
        total = _mm512_add_ps(total, scaled[v]);
    }
    float peak = _mm512_reduce_max_ps(most), sum = _mm512_reduce_add_ps(total);
    if (!(peak >= CODE_ZERO_BELOW) || sum != sum) {
        memset(out->codes, 0, sizeof out->codes);
        out->zero = 0;
        out->scale = sum != sum ? NAN : 0.0f;
        return;
    }
    out->scale = peak / (float)CODE_MAX;
    if (type == KV_INT16 && out->scale < sum / (float)CODE_WEIGHTS_MAX)
        out->scale = sum / (float)CODE_WEIGHTS_MAX;
    const __m512 inverse = _mm512_set1_ps(1.0f / out->scale);
    __m512i codes = _mm512_setzero_si512();
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(scaled[v], inverse));
        __m256i narrow = _mm512_cvtepi32_epi16(q);
        codes = _mm512_add_epi32(codes, q);
        if (type == KV_INT8)
            narrow = _mm256_shuffle_epi8(narrow, pair_order);
        _mm256_store_si256((__m256i *)(void *)(out->codes + v * LANES), narrow);
    }
    out->zero = type == KV_INT8 ? _mm512_reduce_add_epi32(codes) * KV_INT8_ZERO : 0;
}

/* Dimensions [d, d + 16 n_vectors) of the outputs. */
static FORCE_INLINE void weigh_vectors(const CodeBlock *b, const Weights *weights,
                                       const float *corrections, float *output, size_t d,
                                       bool is_first, const KvType type, const int n,
                                       const int n_vectors)
{
    const size_t together = codes_together(type), row_bytes = b->padded_dim * 4;
    __m512i sums[CODE_GROUP_QUERIES][VECTORS];
    clear_sums(sums, n, n_vectors);
    for (size_t key = 0; key < b->n_keys; key += together) {
        const size_t at = key / together * row_bytes;
        if (is_first)
            look_ahead(b, b->value_offset + at, row_bytes, key < b->n_next ? row_bytes : 0);
        multiply_group(b->value_codes + at + d * 4, weights->codes + key,
                       sizeof *weights / sizeof(int16_t), sums, type, n, n_vectors);
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            float *to = output + (size_t)i * b->padded_dim + d + (size_t)v * LANES;
            __m512 sum = _mm512_cvtepi32_ps(
                _mm512_sub_epi32(sums[i][v], _mm512_set1_epi32(weights[i].zero)));
            __m512 before = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(corrections[i]));
            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_set1_ps(weights[i].scale), before));
        }
    }
}

/* Values of the next block beyond those that are asked for beside values of this one. */
static FORCE_INLINE void ask_for_longer_next(const CodeBlock *b, size_t bytes, size_t next_bytes)
{
    if (b->next && bytes < next_bytes)
        attention_ask_for(b->next + b->value_offset + bytes, next_bytes - bytes);
}

static FORCE_INLINE void weigh_queries(const CodeBlock *b, const float (*weights)[KV_BLOCK],
                                       const float *corrections, float *output, const KvType type,
                                       const int n)
{
    const size_t dims = code_row_dims(type, b->padded_dim);
    const size_t together = codes_together(type), row_bytes = b->padded_dim * 4;
    const size_t scales_at = KV_BLOCK / together * row_bytes;
    Weights codes[CODE_GROUP_QUERIES];
    ask_for_longer_next(b, (b->n_keys + together - 1) / together * row_bytes,
                        (b->n_next + together - 1) / together * row_bytes);
    for (size_t first = 0, row = 0; first < b->padded_dim; first += dims, row++) {
        size_t end = b->padded_dim - first < dims ? b->padded_dim : first + dims, d = first;
        UNROLL
        for (int i = 0; i < n; i++)
            quantize_weights(weights[i], b->value_scales + row * KV_BLOCK, type, &codes[i]);
        for (; d + VECTORS * LANES <= end; d += VECTORS * LANES)
            weigh_vectors(b, codes, corrections, output, d, d == 0, type, n, VECTORS);
        for (; d < end; d += LANES)
            weigh_vectors(b, codes, corrections, output, d, d == 0, type, n, 1);
        look_ahead(b, b->value_offset + scales_at + row * GROUP_BYTES, GROUP_BYTES, GROUP_BYTES);
    }
}

/* Full blocks, and those that end early: the last one of a sequence, and where the queries stand.
 */
static FORCE_INLINE void score_vectors(const CodeBlock *b, const int16_t *codes,
                                       const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                       const KvType type, const int n)
{
    switch (vectors_of(b->n_keys)) {
    case 1:
        score_queries(b, codes, scales, scores, type, n, 1);
        break;
    case 2:
        score_queries(b, codes, scales, scores, type, n, 2);
        break;
    case 3:
        score_queries(b, codes, scales, scores, type, n, 3);
        break;
    default:
        score_queries(b, codes, scales, scores, type, n, VECTORS);
        break;
    }
}

static void score_int8(const CodeBlock *block, const int16_t *codes,
                       const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    BY_QUERY_COUNT(n, score_vectors, block, codes, scales, scores, KV_INT8);
}

static void score_int16(const CodeBlock *block, const int16_t *codes,
                        const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    BY_QUERY_COUNT(n, score_vectors, block, codes, scales, scores, KV_INT16);
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

const CodeLoops int8_loops_avx512 = {score_int8, attention_soften_avx512, weigh_int8};
const CodeLoops int16_loops_avx512 = {score_int16, attention_soften_avx512, weigh_int16};
