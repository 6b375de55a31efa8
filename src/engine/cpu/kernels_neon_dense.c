/* Arm products in float32: dense matrices, and every format when products are wanted in float32.
 *
 * Each block of 32 inputs gets a partial sum that starts at zero, and partial sums are added up:
 * the rounding error then grows with the number of blocks and not of inputs, and blocks overlap in
 * the pipeline. For few tokens, dense weights go from their packed type straight into the
 * multiply-adds. Otherwise a block is first expanded to float32 in a small array, and 4 tokens at a
 * time go past it: 16 sums in registers either way. */
#include "kernels_neon.h"

enum {
    FEW_TOKENS = 4,
    STRIPS_AT_ONCE = 8, /* two tiles */
    SUMS_AT_ONCE = 16,
    TOKENS_AT_ONCE = 4,
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

/* Adds a block's inputs: partial[strip * count + token]. */
static FORCE_INLINE void add_inputs(const uint8_t *at, size_t tile_bytes, size_t strips,
                                    const float *values, size_t stride, size_t inputs,
                                    const size_t count, ScaleType type,
                                    float32x4_t partial[SUMS_AT_ONCE])
{
    const size_t strip_bytes = STRIP_ROWS * scale_type_bytes(type);
    UNROLL
    for (size_t i = 0; i < strips * count; i++)
        partial[i] = vdupq_n_f32(0);
    for (size_t k = 0; k < inputs; k++) {
        UNROLL
        for (size_t s = 0; s < strips; s++) {
            float32x4_t w = load_rows(
                at + s / STRIPS * tile_bytes + (STRIPS * k + s % STRIPS) * strip_bytes, type);
            UNROLL
            for (size_t t = 0; t < count; t++)
                partial[s * count + t] =
                    vfmaq_n_f32(partial[s * count + t], w, values[t * stride + k]);
        }
    }
}

/* `strips` strips from a tile's first on, with tokens [token, token + count). */
static FORCE_INLINE void multiply_strips(const KernelJob *job, size_t tile, size_t strips,
                                         size_t token, const size_t count, ScaleType type)
{
    const PackedMatrix *m = job->matrix;
    const Activations *x = job->x;
    const uint8_t *at = packed_group(m, tile, 0);
    float32x4_t acc[SUMS_AT_ONCE], partial[SUMS_AT_ONCE];

    UNROLL
    for (size_t i = 0; i < strips * count; i++)
        acc[i] = vdupq_n_f32(0);
    for (size_t block = 0; block < m->n_blocks; block++) {
        add_inputs(at, m->tile_bytes, strips,
                   x->values + token * x->value_stride + block * WEIGHT_BLOCK, x->value_stride,
                   block_inputs(m, block), count, type, partial);
        UNROLL
        for (size_t i = 0; i < strips * count; i++)
            acc[i] = vaddq_f32(acc[i], partial[i]);
        at += WEIGHT_BLOCK * TILE_ROWS * scale_type_bytes(type);
    }
    UNROLL
    for (size_t i = 0; i < strips * count; i++)
        store_strip(job, tile + i / count / STRIPS, i / count % STRIPS, token + i % count, acc[i]);
}

static FORCE_INLINE void multiply_few(const KernelJob *job, ScaleType type)
{
    const size_t n_tokens = job->x->n_tokens;
    const size_t end = job->first_tile + job->n_tiles;
    for (size_t tile = job->first_tile; tile < end; tile++) {
        if (n_tokens == 1 && tile + 2 <= end) {
            multiply_strips(job, tile++, STRIPS_AT_ONCE, 0, 1, type);
            continue;
        }
        size_t token = 0;
        for (; token + 2 <= n_tokens; token += 2)
            multiply_strips(job, tile, STRIPS, token, 2, type);
        if (token < n_tokens)
            multiply_strips(job, tile, STRIPS, token, 1, type);
    }
}

/* ---- Expanding a block ---- */

/* Four rows' codes of 4 inputs to values. */
static FORCE_INLINE void expand_codes(uint8x16_t codes, float32x4_t scales, float32x4_t biases,
                                      size_t strip, float out[4][TILE_ROWS])
{
    uint32x4_t words = vreinterpretq_u32_u8(codes);
    UNROLL
    for (int b = 0; b < 4; b++) {
        float32x4_t code = vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32(255)));
        words = vshrq_n_u32(words, 8);
        vst1q_f32(out[b] + strip * STRIP_ROWS, vaddq_f32(vmulq_f32(scales, code), biases));
    }
}

static FORCE_INLINE void expand_format(const PackedMatrix *m, size_t tile, size_t block,
                                       PackedFormat format, float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *group = packed_group(m, tile, block / m->group_blocks);
    const size_t strip_bytes = STRIP_ROWS * scale_type_bytes(m->scale_type);
    const uint8_t *codes =
        group + 2 * STRIPS * strip_bytes + block % m->group_blocks * block_bytes(format);

    for (size_t s = 0; s < STRIPS; s++) {
        float32x4_t scales = load_rows(group + s * strip_bytes, m->scale_type);
        float32x4_t biases = load_rows(group + (STRIPS + s) * strip_bytes, m->scale_type);
        for (int pair = 0; pair < BLOCK_VECTORS / 2; pair++) {
            uint8x16_t first, second;
            load_pair(codes, pair, s, format, &first, &second);
            expand_codes(first, scales, biases, s, out + 8 * pair);
            expand_codes(second, scales, biases, s, out + 8 * pair + 4);
        }
    }
}

static FORCE_INLINE void expand_dense(const PackedMatrix *m, size_t tile, size_t block,
                                      ScaleType type, float out[WEIGHT_BLOCK][TILE_ROWS])
{
    const uint8_t *at = packed_group(m, tile, block);
    for (size_t i = 0; i < WEIGHT_BLOCK * STRIPS; i++)
        vst1q_f32(out[i / STRIPS] + i % STRIPS * STRIP_ROWS,
                  load_rows(at + i * STRIP_ROWS * scale_type_bytes(type), type));
}

static void expand_block(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS])
{
    switch (m->format) {
    case PACKED_NIBBLES:
        expand_format(m, tile, block, PACKED_NIBBLES, out);
        break;
    case PACKED_FP4:
        expand_format(m, tile, block, PACKED_FP4, out);
        break;
    case PACKED_BYTES:
        expand_format(m, tile, block, PACKED_BYTES, out);
        break;
    case PACKED_F32:
        expand_dense(m, tile, block, SCALE_F32, out);
        break;
    case PACKED_F16:
        expand_dense(m, tile, block, SCALE_F16, out);
        break;
    default:
        expand_dense(m, tile, block, SCALE_BF16, out);
    }
}

/* ---- Many tokens ---- */

/* A block's inputs with `count` tokens, to their accumulators. */
static FORCE_INLINE void add_tokens(const float (*w)[TILE_ROWS], const float *values, size_t stride,
                                    size_t inputs, const size_t count, float32x4_t (*acc)[STRIPS])
{
    float32x4_t partial[TOKENS_AT_ONCE][STRIPS];
    UNROLL
    for (size_t i = 0; i < count * STRIPS; i++)
        partial[i / STRIPS][i % STRIPS] = vdupq_n_f32(0);
    for (size_t k = 0; k < inputs; k++) {
        float32x4_t weights[STRIPS];
        UNROLL
        for (size_t s = 0; s < STRIPS; s++)
            weights[s] = vld1q_f32(w[k] + s * STRIP_ROWS);
        UNROLL
        for (size_t i = 0; i < count * STRIPS; i++)
            partial[i / STRIPS][i % STRIPS] =
                vfmaq_n_f32(partial[i / STRIPS][i % STRIPS], weights[i % STRIPS],
                            values[i / STRIPS * stride + k]);
    }
    UNROLL
    for (size_t i = 0; i < count * STRIPS; i++)
        acc[i / STRIPS][i % STRIPS] =
            vaddq_f32(acc[i / STRIPS][i % STRIPS], partial[i / STRIPS][i % STRIPS]);
}

static void add_chunk(const KernelJob *job, size_t tile, size_t token, size_t width, size_t first,
                      size_t count, float32x4_t (*acc)[STRIPS])
{
    const Activations *x = job->x;
    float w[WEIGHT_BLOCK][TILE_ROWS];

    for (size_t block = first; block < first + count; block++) {
        const float *values = x->values + token * x->value_stride + block * WEIGHT_BLOCK;
        size_t inputs = block_inputs(job->matrix, block), t = 0;
        expand_block(job->matrix, tile, block, w);
        for (; t + TOKENS_AT_ONCE <= width; t += TOKENS_AT_ONCE)
            add_tokens((const float(*)[TILE_ROWS])w, values + t * x->value_stride, x->value_stride,
                       inputs, TOKENS_AT_ONCE, acc + t);
        for (; t < width; t++)
            add_tokens((const float(*)[TILE_ROWS])w, values + t * x->value_stride, 0, inputs, 1,
                       acc + t);
    }
}

void neon_multiply_f32(const KernelJob *job)
{
    const PackedMatrix *m = job->matrix;
    float32x4_t acc[ROW_TILES][TOKEN_TILE][STRIPS];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += TOKEN_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < TOKEN_TILE ? left : TOKEN_TILE;
            memset(acc, 0, tiles * sizeof(acc[0]));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t blocks = m->n_blocks - block;
                blocks = blocks < CHUNK_BLOCKS ? blocks : CHUNK_BLOCKS;
                for (size_t i = 0; i < tiles; i++)
                    add_chunk(job, first_tile + i, token, width, block, blocks, acc[i]);
            }
            for (size_t i = 0; i < tiles * width; i++) {
                for (size_t s = 0; s < STRIPS; s++)
                    store_strip(job, first_tile + i / width, s, token + i % width,
                                acc[i / width][i % width][s]);
            }
        }
    }
}

void neon_multiply_dense(const KernelJob *job)
{
    if (job->x->n_tokens > FEW_TOKENS) {
        neon_multiply_f32(job);
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
