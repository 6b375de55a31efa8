/* AVX2 products in float32: dense matrices, and every format when products are wanted in float32.
 *
 * Each block of 32 inputs gets a partial sum that starts at zero, and partial sums are added up:
 * the rounding error then grows with the number of blocks and not of inputs, and blocks overlap in
 * the pipeline. For few tokens, dense weights go from their packed type straight into the
 * multiply-adds, several tiles at once to hide their latency. Otherwise a block is first expanded
 * to float32 in a small array, and 8 tokens at a time go past it. */
#include "kernels_avx2.h"

enum {
    FEW_TOKENS = 7,
    FEW_AT_ONCE = 2,
    STRIPS_AT_ONCE = 4, /* a strip: 8 rows, half a tile */
    TOKENS_AT_ONCE = 8,
    ROW_TILES = 4,
    TOKEN_TILE = 32,
    CHUNK_BLOCKS = 32, /* 32 tokens * 32 blocks * 128 bytes = 128 KiB */
};

static FORCE_INLINE ScaleType dense_type(PackedFormat format)
{
    return format == PACKED_F32 ? SCALE_F32 : format == PACKED_F16 ? SCALE_F16 : SCALE_BF16;
}

static FORCE_INLINE size_t block_inputs(const PackedMatrix *m, size_t block)
{
    size_t left = m->cols - block * WEIGHT_BLOCK;
    return left < WEIGHT_BLOCK ? left : WEIGHT_BLOCK;
}

/* ---- Few tokens, dense ---- */

/* `strips` strips from a tile's first on, with tokens [token, token + count). */
static FORCE_INLINE void multiply_strips(const KernelJob *job, size_t tile, size_t strips,
                                         size_t token, size_t count, ScaleType type)
{
    const PackedMatrix *m = job->matrix;
    const Activations *x = job->x;
    const size_t half_bytes = HALF_ROWS * scale_type_bytes(type);
    const uint8_t *at = packed_group(m, tile, 0);
    __m256 acc[STRIPS_AT_ONCE][FEW_AT_ONCE];

    UNROLL
    for (size_t i = 0; i < strips; i++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            acc[i][t] = _mm256_setzero_ps();
    }
    for (size_t block = 0; block < m->n_blocks; block++) {
        const float *values = x->values + token * x->value_stride + block * WEIGHT_BLOCK;
        size_t inputs = block_inputs(m, block);
        __m256 partial[STRIPS_AT_ONCE][FEW_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < strips; i++) {
            UNROLL
            for (size_t t = 0; t < count; t++)
                partial[i][t] = _mm256_setzero_ps();
        }
        for (size_t k = 0; k < inputs; k++) {
            UNROLL
            for (size_t i = 0; i < strips; i++) {
                __m256 w = load_rows(
                    at + i / HALVES * m->tile_bytes + (HALVES * k + i % HALVES) * half_bytes, type);
                UNROLL
                for (size_t t = 0; t < count; t++)
                    partial[i][t] = _mm256_fmadd_ps(
                        w, _mm256_broadcast_ss(values + t * x->value_stride + k), partial[i][t]);
            }
        }
        UNROLL
        for (size_t i = 0; i < strips; i++) {
            UNROLL
            for (size_t t = 0; t < count; t++)
                acc[i][t] = _mm256_add_ps(acc[i][t], partial[i][t]);
        }
        at += WEIGHT_BLOCK * HALVES * half_bytes;
    }
    UNROLL
    for (size_t i = 0; i < strips; i++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            store_half(job, tile + i / HALVES, i % HALVES, token + t, acc[i][t]);
    }
}

/* All tokens, two at a time: the tiles come from the second-level cache after the first two. */
static FORCE_INLINE void multiply_pairs(const KernelJob *job, size_t tile, size_t strips,
                                        ScaleType type)
{
    size_t token = 0;
    for (; token + 2 <= job->x->n_tokens; token += 2)
        multiply_strips(job, tile, strips, token, 2, type);
    if (token < job->x->n_tokens)
        multiply_strips(job, tile, strips, token, 1, type);
}

static FORCE_INLINE void multiply_few(const KernelJob *job, ScaleType type)
{
    size_t tile = job->first_tile, end = job->first_tile + job->n_tiles;
    for (; tile + STRIPS_AT_ONCE / HALVES <= end; tile += STRIPS_AT_ONCE / HALVES)
        multiply_pairs(job, tile, STRIPS_AT_ONCE, type);
    for (; tile < end; tile++)
        multiply_pairs(job, tile, HALVES, type);
}

/* ---- Expanding a block ---- */

/* Eight rows' codes of 4 inputs to values. */
static FORCE_INLINE void expand_codes(__m256i codes, __m256 scales, __m256 biases, size_t half,
                                      float out[4][TILE_ROWS])
{
    const __m256i low = _mm256_set1_epi32(255);
    UNROLL
    for (int b = 0; b < 4; b++) {
        __m256i code = _mm256_and_si256(codes, low);
        codes = _mm256_srli_epi32(codes, 8);
        _mm256_store_ps(out[b] + half * HALF_ROWS,
                        _mm256_add_ps(_mm256_mul_ps(scales, _mm256_cvtepi32_ps(code)), biases));
    }
}

static void expand_quantized(const PackedMatrix *m, size_t tile, size_t block,
                             float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *group = packed_group(m, tile, block / m->group_blocks);
    const size_t half_bytes = HALF_ROWS * scale_type_bytes(m->scale_type);
    const size_t block_bytes = m->format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const uint8_t *codes = group + 2 * HALVES * half_bytes + block % m->group_blocks * block_bytes;

    for (size_t h = 0; h < HALVES; h++) {
        __m256 scales = load_rows(group + h * half_bytes, m->scale_type);
        __m256 biases = load_rows(group + (HALVES + h) * half_bytes, m->scale_type);
        const uint8_t *at = codes + h * HALF_BYTES;
        if (m->format == PACKED_BYTES) {
            for (int j = 0; j < BLOCK_VECTORS; j++)
                expand_codes(load_bytes(at + j * VECTOR_BYTES), scales, biases, h, out + 4 * j);
            continue;
        }
        for (int i = 0; i < BLOCK_VECTORS / 2; i++) {
            __m256i first, second;
            unpack_pair(at + i * VECTOR_BYTES, m->format == PACKED_FP4, &first, &second);
            expand_codes(first, scales, biases, h, out + 8 * i);
            expand_codes(second, scales, biases, h, out + 8 * i + 4);
        }
    }
}

static FORCE_INLINE void expand_dense(const PackedMatrix *m, size_t tile, size_t block,
                                      ScaleType type, float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *at = packed_group(m, tile, block);
    for (size_t i = 0; i < WEIGHT_BLOCK * HALVES; i++)
        _mm256_store_ps(out[i / HALVES] + i % HALVES * HALF_ROWS,
                        load_rows(at + i * HALF_ROWS * scale_type_bytes(type), type));
}

static void expand_block(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS])
{
    switch (m->format) {
    case PACKED_F32:
        expand_dense(m, tile, block, SCALE_F32, out);
        break;
    case PACKED_F16:
        expand_dense(m, tile, block, SCALE_F16, out);
        break;
    case PACKED_BF16:
        expand_dense(m, tile, block, SCALE_BF16, out);
        break;
    default:
        expand_quantized(m, tile, block, out);
    }
}

/* ---- Many tokens ---- */

/* w: the first of 8 rows. */
static FORCE_INLINE void add_tokens(const float *w, const float *values, size_t stride,
                                    size_t inputs, size_t count, __m256 *acc)
{
    __m256 partial[TOKENS_AT_ONCE];
    UNROLL
    for (size_t t = 0; t < count; t++)
        partial[t] = _mm256_setzero_ps();
    for (size_t k = 0; k < inputs; k++) {
        __m256 weights = _mm256_load_ps(w + k * TILE_ROWS);
        UNROLL
        for (size_t t = 0; t < count; t++)
            partial[t] =
                _mm256_fmadd_ps(weights, _mm256_broadcast_ss(values + t * stride + k), partial[t]);
    }
    UNROLL
    for (size_t t = 0; t < count; t++)
        acc[t] = _mm256_add_ps(acc[t], partial[t]);
}

static void add_block(const float *w, const float *values, size_t stride, size_t inputs,
                      size_t width, __m256 *acc)
{
    size_t t = 0;
    for (; t + TOKENS_AT_ONCE <= width; t += TOKENS_AT_ONCE)
        add_tokens(w, values + t * stride, stride, inputs, TOKENS_AT_ONCE, acc + t);
    for (; t + TOKENS_AT_ONCE / 2 <= width; t += TOKENS_AT_ONCE / 2)
        add_tokens(w, values + t * stride, stride, inputs, TOKENS_AT_ONCE / 2, acc + t);
    for (; t < width; t++)
        add_tokens(w, values + t * stride, 0, inputs, 1, acc + t);
}

static void add_chunk(const KernelJob *job, size_t tile, size_t token, size_t width, size_t first,
                      size_t count, __m256 (*acc)[TOKEN_TILE])
{
    const Activations *x = job->x;
    _Alignas(32) float w[WEIGHT_BLOCK][TILE_ROWS];

    for (size_t block = first; block < first + count; block++) {
        const float *values = x->values + token * x->value_stride + block * WEIGHT_BLOCK;
        size_t inputs = block_inputs(job->matrix, block);
        expand_block(job->matrix, tile, block, w);
        for (size_t h = 0; h < HALVES; h++)
            add_block(w[0] + h * HALF_ROWS, values, x->value_stride, inputs, width, acc[h]);
    }
}

void avx2_multiply_f32(const KernelJob *job)
{
    const PackedMatrix *m = job->matrix;
    __m256 acc[ROW_TILES][HALVES][TOKEN_TILE];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += TOKEN_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < TOKEN_TILE ? left : TOKEN_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t blocks = m->n_blocks - block;
                blocks = blocks < CHUNK_BLOCKS ? blocks : CHUNK_BLOCKS;
                for (size_t i = 0; i < tiles; i++)
                    add_chunk(job, first_tile + i, token, width, block, blocks, acc[i]);
            }
            for (size_t i = 0; i < tiles * HALVES; i++) {
                for (size_t t = 0; t < width; t++)
                    store_half(job, first_tile + i / HALVES, i % HALVES, token + t,
                               acc[i / HALVES][i % HALVES][t]);
            }
        }
    }
}

void avx2_multiply_dense(const KernelJob *job)
{
    if (job->x->n_tokens > FEW_TOKENS || job->x->n_tokens == 0) {
        avx2_multiply_f32(job);
        return;
    }
    switch (dense_type(job->matrix->format)) {
    case SCALE_F32:
        multiply_few(job, SCALE_F32);
        break;
    case SCALE_F16:
        multiply_few(job, SCALE_F16);
        break;
    case SCALE_BF16:
        multiply_few(job, SCALE_BF16);
        break;
    }
}
