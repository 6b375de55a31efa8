/* Attention over 8-bit keys and values in AVX-512 VNNI: even and odd bytes of a vector, as 16 bits,
 * times pairs of 16-bit codes that are broadcast. 6 queries times 4 vectors are 24 sums. Integer
 * sums are exact, so nothing depends on how queries are grouped. A block's keys and its values are
 * short runs at far places: the next run is asked for while this one is worked on. */
#include "attention_int8.h"

#include "avx512_math.h"

#include <math.h>
#include <string.h>

#define UNROLL _Pragma("GCC unroll 8")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { LANES = 16, VECTORS = 4, VECTOR_BYTES = 64, QUAD_BYTES = KV_BLOCK * 4 };

/* A pair of neighbouring 16-bit codes in all lanes. */
ALWAYS_INLINE __m512i broadcast_pair(const int16_t *codes)
{
    int32_t pair;
    memcpy(&pair, codes, sizeof pair);
    return _mm512_set1_epi32(pair);
}

ALWAYS_INLINE void prefetch(const uint8_t *base, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += VECTOR_BYTES)
        _mm_prefetch((const char *)base + i, _MM_HINT_T1);
}

/* sums[i][v] += four bytes a lane at base, n_vectors of them, times the 4 codes of each query. */
ALWAYS_INLINE void multiply_quads(const uint8_t *base, const int16_t *codes, size_t stride,
                                  __m512i sums[INT8_GROUP_QUERIES][VECTORS], const int n,
                                  const int n_vectors)
{
    const __m512i low = _mm512_set1_epi16(0xff);
    UNROLL
    for (int v = 0; v < n_vectors; v++) {
        __m512i bytes = _mm512_loadu_si512(base + (size_t)v * VECTOR_BYTES);
        __m512i even = _mm512_and_si512(bytes, low), odd = _mm512_srli_epi16(bytes, 8);
        UNROLL
        for (int i = 0; i < n; i++) {
            const int16_t *pairs = codes + (size_t)i * stride;
            sums[i][v] = _mm512_dpwssd_epi32(sums[i][v], even, broadcast_pair(pairs));
            sums[i][v] = _mm512_dpwssd_epi32(sums[i][v], odd, broadcast_pair(pairs + 2));
        }
    }
}

ALWAYS_INLINE void score_queries(const Int8Block *b, const int16_t *codes,
                                 const AttentionQueryScale *scales, float (*scores)[KV_BLOCK],
                                 const int n)
{
    const size_t rows = int8_scale_rows(b->padded_dim), stride = rows * KV_SCALE_DIMS;
    for (size_t row = 0; row < rows; row++) {
        __m512i sums[INT8_GROUP_QUERIES][VECTORS];
        UNROLL
        for (int i = 0; i < n; i++) {
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                sums[i][v] = _mm512_setzero_si512();
        }
        size_t first = row * KV_SCALE_DIMS;
        size_t end = b->padded_dim - first < KV_SCALE_DIMS ? b->padded_dim : first + KV_SCALE_DIMS;
        for (size_t d = first; d < end; d += 4) {
            if (b->looks_ahead)
                prefetch(b->value_codes + d * KV_BLOCK, QUAD_BYTES);
            multiply_quads(b->key_codes + d * KV_BLOCK, codes + d, stride, sums, n, VECTORS);
        }
        if (b->looks_ahead)
            prefetch((const uint8_t *)(b->value_scales + row * KV_BLOCK), QUAD_BYTES);
        UNROLL
        for (int i = 0; i < n; i++) {
            const AttentionQueryScale *q = &scales[(size_t)i * rows + row];
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
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

/* A query's weights for 64 dimensions. */
typedef struct Weights {
    _Alignas(64) int16_t codes[KV_BLOCK];
    int32_t zero; /* 128 * (sum of the codes) */
    float scale;
} Weights;

ALWAYS_INLINE void quantize_weights(const float weights[KV_BLOCK], const float *scales,
                                    Weights *out)
{
    const __m256i pair_order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m512 scaled[VECTORS], most = _mm512_setzero_ps();
    __mmask16 is_nan = 0;
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512 w = _mm512_load_ps(weights + v * LANES);
        /* A hidden key may have any scale. */
        __mmask16 counts = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        scaled[v] = _mm512_maskz_mul_ps(counts, w, _mm512_loadu_ps(scales + v * LANES));
        is_nan |= _mm512_cmp_ps_mask(scaled[v], scaled[v], _CMP_UNORD_Q);
        most = _mm512_max_ps(most, scaled[v]);
    }
    float peak = _mm512_reduce_max_ps(most);
    if (is_nan || !(peak >= INT8_WEIGHT_ZERO_BELOW)) {
        memset(out->codes, 0, sizeof out->codes);
        out->zero = 0;
        out->scale = is_nan ? NAN : 0.0f;
        return;
    }
    const __m512 inverse = _mm512_set1_ps((float)INT8_WEIGHT_MAX / peak);
    __m512i total = _mm512_setzero_si512();
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(scaled[v], inverse));
        total = _mm512_add_epi32(total, q);
        _mm256_store_si256((__m256i *)(void *)(out->codes + v * LANES),
                           _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(q), pair_order));
    }
    out->zero = _mm512_reduce_add_epi32(total) * KV_INT8_ZERO;
    out->scale = peak / (float)INT8_WEIGHT_MAX;
}

/* Dimensions [d, d + 16 n_vectors) of the outputs. */
ALWAYS_INLINE void weigh_vectors(const Int8Block *b, const Weights *weights,
                                 const float *corrections, float *output, size_t d, bool is_first,
                                 const int n, const int n_vectors)
{
    __m512i sums[INT8_GROUP_QUERIES][VECTORS];
    UNROLL
    for (int i = 0; i < n; i++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sums[i][v] = _mm512_setzero_si512();
    }
    for (size_t key = 0; key < KV_BLOCK; key += 4) {
        if (is_first && b->next)
            prefetch(b->next + key * b->padded_dim, b->padded_dim * 4);
        multiply_quads(b->value_codes + (key * b->padded_dim + d * 4), weights->codes + key,
                       sizeof *weights / sizeof(int16_t), sums, n, n_vectors);
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

ALWAYS_INLINE void weigh_queries(const Int8Block *b, const float (*weights)[KV_BLOCK],
                                 const float *corrections, float *output, const int n)
{
    Weights codes[INT8_GROUP_QUERIES];
    for (size_t first = 0; first < b->padded_dim; first += KV_SCALE_DIMS) {
        const float *scales = b->value_scales + first; /* KV_BLOCK for KV_SCALE_DIMS dimensions */
        size_t left = b->padded_dim - first, d = first;
        UNROLL
        for (int i = 0; i < n; i++)
            quantize_weights(weights[i], scales, &codes[i]);
        if (left >= KV_SCALE_DIMS) {
            weigh_vectors(b, codes, corrections, output, d, first == 0, n, VECTORS);
            continue;
        }
        for (; d < b->padded_dim; d += LANES)
            weigh_vectors(b, codes, corrections, output, d, d == 0, n, 1);
    }
    if (b->next)
        prefetch(b->next + KV_BLOCK * b->padded_dim, b->next_bytes - KV_BLOCK * b->padded_dim);
}

/* Calls call(..., n) with a constant for n. */
#define FOR_QUERY_COUNT(n, call, ...)                                                              \
    do {                                                                                           \
        switch (n) {                                                                               \
        case 1:                                                                                    \
            call(__VA_ARGS__, 1);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            call(__VA_ARGS__, 2);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            call(__VA_ARGS__, 3);                                                                  \
            break;                                                                                 \
        case 4:                                                                                    \
            call(__VA_ARGS__, 4);                                                                  \
            break;                                                                                 \
        case 5:                                                                                    \
            call(__VA_ARGS__, 5);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            call(__VA_ARGS__, 6);                                                                  \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

static void score_avx512(const Int8Block *block, const int16_t *codes,
                         const AttentionQueryScale *scales, size_t n, float (*scores)[KV_BLOCK])
{
    FOR_QUERY_COUNT(n, score_queries, block, codes, scales, scores);
}

static void weigh_avx512(const Int8Block *block, const float (*weights)[KV_BLOCK],
                         const float *corrections, size_t n, float *output)
{
    FOR_QUERY_COUNT(n, weigh_queries, block, weights, corrections, output);
}

const Int8Loops int8_loops_avx512 = {score_avx512, attention_soften_avx512, weigh_avx512};
