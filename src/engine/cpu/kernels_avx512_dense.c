/* AVX-512 products in float32: dense matrices, and every format when products are wanted in
 * float32.
 *
 * Each block of 32 inputs gets a partial sum that starts at zero, and partial sums are added up:
 * the rounding error then grows with the number of blocks and not of inputs. For few tokens, dense
 * weights go from their packed type straight into the multiply-adds, two tiles at once. Otherwise a
 * block of two tiles is first expanded to float32 in a small array, and 8 tokens at a time go past
 * it: 16 sums, 2 weights and a broadcast. */
#include "kernels_avx512.h"

enum {
    FEW_TOKENS = 4,
    TILES_AT_ONCE = 2,
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

/* `tiles` tiles with tokens [0, count). */
static FORCE_INLINE void multiply_tiles(const KernelJob *job, size_t tile, size_t tiles,
                                        size_t count, ScaleType type)
{
    const PackedMatrix *m = job->matrix;
    const Activations *x = job->x;
    const size_t row_bytes = TILE_ROWS * scale_type_bytes(type);
    const uint8_t *at = packed_group(m, tile, 0);
    __m512 acc[TILES_AT_ONCE][FEW_TOKENS];

    UNROLL
    for (size_t i = 0; i < tiles * count; i++)
        acc[i / count][i % count] = _mm512_setzero_ps();
    for (size_t block = 0; block < m->n_blocks; block++) {
        const float *values = x->values + block * WEIGHT_BLOCK;
        size_t inputs = block_inputs(m, block);
        __m512 partial[TILES_AT_ONCE][FEW_TOKENS];
        UNROLL
        for (size_t i = 0; i < tiles * count; i++)
            partial[i / count][i % count] = _mm512_setzero_ps();
        for (size_t k = 0; k < inputs; k++) {
            UNROLL
            for (size_t i = 0; i < tiles; i++) {
                __m512 w = load_rows(at + i * m->tile_bytes + k * row_bytes, type);
                UNROLL
                for (size_t t = 0; t < count; t++)
                    partial[i][t] = _mm512_fmadd_ps(
                        w, _mm512_set1_ps(values[t * x->value_stride + k]), partial[i][t]);
            }
        }
        UNROLL
        for (size_t i = 0; i < tiles * count; i++)
            acc[i / count][i % count] =
                _mm512_add_ps(acc[i / count][i % count], partial[i / count][i % count]);
        at += WEIGHT_BLOCK * row_bytes;
    }
    UNROLL
    for (size_t i = 0; i < tiles * count; i++)
        store_tile(job, tile + i / count, i % count, acc[i / count][i % count]);
}

static FORCE_INLINE void multiply_count(const KernelJob *job, size_t count, ScaleType type)
{
    size_t tile = job->first_tile, end = job->first_tile + job->n_tiles;
    for (; tile + TILES_AT_ONCE <= end; tile += TILES_AT_ONCE)
        multiply_tiles(job, tile, TILES_AT_ONCE, count, type);
    if (tile < end)
        multiply_tiles(job, tile, 1, count, type);
}

static FORCE_INLINE void multiply_few(const KernelJob *job, ScaleType type)
{
    switch (job->x->n_tokens) {
    case 1:
        multiply_count(job, 1, type);
        break;
    case 2:
        multiply_count(job, 2, type);
        break;
    case 3:
        multiply_count(job, 3, type);
        break;
    default:
        multiply_count(job, 4, type);
    }
}

/* ---- Expanding a block ---- */

/* Sixteen rows' codes of 4 inputs to values. */
static FORCE_INLINE void expand_codes(__m512i codes, __m512 scales, __m512 biases,
                                      float out[4][TILE_ROWS])
{
    const __m512i low = _mm512_set1_epi32(255);
    UNROLL
    for (int b = 0; b < 4; b++) {
        __m512i code = _mm512_and_si512(codes, low);
        codes = _mm512_srli_epi32(codes, 8);
        _mm512_store_ps(out[b],
                        _mm512_add_ps(_mm512_mul_ps(scales, _mm512_cvtepi32_ps(code)), biases));
    }
}

static FORCE_INLINE void expand_quantized(const PackedMatrix *m, size_t tile, size_t block,
                                          PackedFormat format, float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(m->scale_type);
    __m512 scales = load_rows(at, m->scale_type);
    __m512 biases = load_rows(at + scale_bytes, m->scale_type);

    at += 2 * scale_bytes + block % m->group_blocks * block_bytes(format);
    UNROLL
    for (size_t j = 0; j < BLOCK_VECTORS; j++)
        expand_codes(load_codes(at, j, format), scales, biases, out + 4 * j);
}

static FORCE_INLINE void expand_dense(const PackedMatrix *m, size_t tile, size_t block,
                                      ScaleType type, float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *at = packed_group(m, tile, block);
    for (size_t k = 0; k < WEIGHT_BLOCK; k++)
        _mm512_store_ps(out[k], load_rows(at + k * TILE_ROWS * scale_type_bytes(type), type));
}

static void expand_block(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS])
{
    switch (m->format) {
    case PACKED_NIBBLES:
        expand_quantized(m, tile, block, PACKED_NIBBLES, out);
        break;
    case PACKED_FP4:
        expand_quantized(m, tile, block, PACKED_FP4, out);
        break;
    case PACKED_BYTES:
        expand_quantized(m, tile, block, PACKED_BYTES, out);
        break;
    default:
        expand_dense(m, tile, block, dense_type(m->format), out);
    }
}

/* ---- Many tokens ---- */

/* A block of up to two tiles, as values. */
typedef struct Expanded {
    _Alignas(64) float rows[TILES_AT_ONCE][WEIGHT_BLOCK][TILE_ROWS];
} Expanded;

static FORCE_INLINE void add_tokens(const Expanded *w, size_t tiles, const float *values,
                                    size_t stride, size_t inputs, size_t count, size_t t,
                                    __m512 (*acc)[TOKEN_TILE])
{
    __m512 partial[TILES_AT_ONCE][TOKENS_AT_ONCE];
    values += t * stride;
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t c = 0; c < count; c++)
            partial[i][c] = _mm512_setzero_ps();
    }
    for (size_t k = 0; k < inputs; k++) {
        __m512 weights[TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            weights[i] = _mm512_load_ps(w->rows[i][k]);
        UNROLL
        for (size_t c = 0; c < count; c++) {
            __m512 v = _mm512_set1_ps(values[c * stride + k]);
            UNROLL
            for (size_t i = 0; i < tiles; i++)
                partial[i][c] = _mm512_fmadd_ps(weights[i], v, partial[i][c]);
        }
    }
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t c = 0; c < count; c++)
            acc[i][t + c] = _mm512_add_ps(acc[i][t + c], partial[i][c]);
    }
}

static FORCE_INLINE void add_chunk(const KernelJob *job, size_t tile, size_t tiles, size_t token,
                                   size_t width, size_t first, size_t count,
                                   __m512 (*acc)[TOKEN_TILE])
{
    const size_t stride = job->x->value_stride;
    Expanded w;

    for (size_t block = first; block < first + count; block++) {
        const float *values = job->x->values + token * stride + block * WEIGHT_BLOCK;
        size_t inputs = block_inputs(job->matrix, block), t = 0;
        for (size_t i = 0; i < tiles; i++)
            expand_block(job->matrix, tile + i, block, w.rows[i]);
        for (; t + TOKENS_AT_ONCE <= width; t += TOKENS_AT_ONCE)
            add_tokens(&w, tiles, values, stride, inputs, TOKENS_AT_ONCE, t, acc);
        for (; t + 2 <= width; t += 2)
            add_tokens(&w, tiles, values, stride, inputs, 2, t, acc);
        if (t < width)
            add_tokens(&w, tiles, values, stride, inputs, 1, t, acc);
    }
}

void avx512_multiply_f32(const KernelJob *job)
{
    const PackedMatrix *m = job->matrix;
    __m512 acc[ROW_TILES][TOKEN_TILE];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += TOKEN_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < TOKEN_TILE ? left : TOKEN_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t count = m->n_blocks - block;
                count = count < CHUNK_BLOCKS ? count : CHUNK_BLOCKS;
                size_t i = 0;
                for (; i + TILES_AT_ONCE <= tiles; i += TILES_AT_ONCE)
                    add_chunk(job, first_tile + i, TILES_AT_ONCE, token, width, block, count,
                              acc + i);
                if (i < tiles)
                    add_chunk(job, first_tile + i, 1, token, width, block, count, acc + i);
            }
            for (size_t i = 0; i < tiles; i++) {
                for (size_t t = 0; t < width; t++)
                    store_tile(job, first_tile + i, token + t, acc[i][t]);
            }
        }
    }
}

void avx512_multiply_dense(const KernelJob *job)
{
    if (job->x->n_tokens > FEW_TOKENS || job->x->n_tokens == 0) {
        avx512_multiply_f32(job);
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
