/* Arm products of quantised weights with many tokens: bound by multiply-adds. Compiled once a set
 * (kernels_neon.h).
 *
 * A span of a tile is unpacked into 1 KB of the first-level cache. Then columns of activations (4
 * tokens, or 2 in two planes) pass it. Per 16 inputs, with SDOT 16 registers of weights and 4 of
 * activations feed 64 products of 16; with USMMLA, whose operands are 2 rows and 2 columns of 8
 * inputs, 16 and 4 feed 32 products of 32. At the span's end the sums are converted and scaled
 * into their accumulators in memory. Registers: 16 sums, 4 of activations, 1 or 2 of weights.
 *
 * The last tokens may not all exist: what lies behind them is read (ACTIVATION_SLACK_BYTES),
 * multiplied and dropped. Inputs are cut into chunks whose activations stay in the second-level
 * cache while ROW_TILES tiles use them; accumulators of a token tile stay in the first. */
#include "kernels_neon.h"

enum {
    ROW_TILES = 4,
    CHUNK_BLOCKS = 32, /* 64 tokens * 2 planes * 1 KiB = 128 KiB; a multiple of any group */
    COLUMNS_AT_ONCE = 4,
};

/* A span of a tile, unpacked. Strip s of vector j is at [j][s]; for USMMLA vectors 2i and 2i + 1
 * together, rows 4s and 4s + 1 of 8 inputs at [2i][s], the next two rows at [2i + 1][s]. */
typedef struct Span {
    uint8x16_t codes[SPAN_VECTORS][STRIPS];
    float32x4_t scales[STRIPS], biases[STRIPS];
    const int8_t *x_codes; /* of the first token; inputs from the span's first on */
    const ActivationScale *x;
    const float *x_offsets; /* of the first token, in x */
} Span;

static FORCE_INLINE void unpack_block(const uint8_t *block, KernelKind kind,
                                      uint8x16_t codes[BLOCK_VECTORS][STRIPS])
{
    UNROLL
    for (int pair = 0; pair < BLOCK_VECTORS / 2; pair++) {
        UNROLL
        for (size_t s = 0; s < STRIPS; s++) {
            uint8x16_t first, second;
            load_pair(block, pair, s, kind.format, &first, &second);
#if NEON_I8MM
            uint32x4_t a = vreinterpretq_u32_u8(first), b = vreinterpretq_u32_u8(second);
            codes[2 * pair][s] = vreinterpretq_u8_u32(vzip1q_u32(a, b));
            codes[2 * pair + 1][s] = vreinterpretq_u8_u32(vzip2q_u32(a, b));
#else
            codes[2 * pair][s] = codes_for_products(first, kind.format);
            codes[2 * pair + 1][s] = codes_for_products(second, kind.format);
#endif
        }
    }
}

static FORCE_INLINE void unpack_span(const PackedMatrix *m, size_t tile, size_t block,
                                     KernelKind kind, Span *span)
{
    const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
    load_scales(at, m->scale_type, span->scales, span->biases);
    at += 2 * TILE_ROWS * scale_type_bytes(m->scale_type) +
          block % m->group_blocks * block_bytes(kind.format);
    for (int b = 0; b < kind.span_blocks; b++)
        unpack_block(at + (size_t)b * block_bytes(kind.format), kind,
                     span->codes + b * BLOCK_VECTORS);
}

/* The exact sums of a span with COLUMNS_AT_ONCE columns. x: the first column's codes. */
#if NEON_I8MM
static FORCE_INLINE void dot_columns(const Span *span, const int8_t *x, KernelKind kind,
                                     int32x4_t sums[STRIPS][COLUMNS_AT_ONCE])
{
    enum { PAIRS = COLUMNS_AT_ONCE / 2 };
    int32x4_t squares[STRIPS][2][PAIRS]; /* of 2 rows by 2 columns */

    UNROLL
    for (size_t i = 0; i < STRIPS * 2 * PAIRS; i++)
        squares[i / (2 * PAIRS)][i / PAIRS % 2][i % PAIRS] = vdupq_n_s32(0);
    UNROLL
    for (int step = 0; step < kind.span_blocks * WEIGHT_BLOCK / STEP_INPUTS; step++) {
        int64x2_t v[2][PAIRS];
        UNROLL
        for (int p = 0; p < PAIRS; p++) {
            const int8_t *at = x + 2 * p * ACTIVATION_BLOCK + step * STEP_INPUTS;
            int64x2_t even = vreinterpretq_s64_s8(vld1q_s8(at));
            int64x2_t odd = vreinterpretq_s64_s8(vld1q_s8(at + ACTIVATION_BLOCK));
            v[0][p] = vzip1q_s64(even, odd);
            v[1][p] = vzip2q_s64(even, odd);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            UNROLL
            for (size_t s = 0; s < STRIPS; s++) {
                UNROLL
                for (int p = 0; p < PAIRS; p++)
                    squares[s][i % 2][p] =
                        vusmmlaq_s32(squares[s][i % 2][p], span->codes[4 * step + i][s],
                                     vreinterpretq_s8_s64(v[i / 2][p]));
            }
        }
    }
    UNROLL
    for (size_t s = 0; s < STRIPS; s++) {
        UNROLL
        for (int p = 0; p < PAIRS; p++) {
            sums[s][2 * p] = vuzp1q_s32(squares[s][0][p], squares[s][1][p]);
            sums[s][2 * p + 1] = vuzp2q_s32(squares[s][0][p], squares[s][1][p]);
        }
    }
}
#else
static FORCE_INLINE void dot_columns(const Span *span, const int8_t *x, KernelKind kind,
                                     int32x4_t sums[STRIPS][COLUMNS_AT_ONCE])
{
    UNROLL
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) {
        int32x4_t begin = first_sums(x + c * ACTIVATION_BLOCK, kind.span_blocks, kind.format);
        UNROLL
        for (size_t s = 0; s < STRIPS; s++)
            sums[s][c] = begin;
    }
    UNROLL
    for (int step = 0; step < kind.span_blocks * WEIGHT_BLOCK / STEP_INPUTS; step++) {
        int8x16_t v[COLUMNS_AT_ONCE];
        UNROLL
        for (int c = 0; c < COLUMNS_AT_ONCE; c++)
            v[c] = vld1q_s8(x + c * ACTIVATION_BLOCK + step * STEP_INPUTS);
        UNROLL
        for (int i = 0; i < STEP_INPUTS / 4; i++) {
            UNROLL
            for (size_t s = 0; s < STRIPS; s++) {
                uint8x16_t codes = span->codes[4 * step + i][s];
                UNROLL
                for (int c = 0; c < COLUMNS_AT_ONCE; c++)
                    sums[s][c] = add_products(sums[s][c], codes, v[c], i, kind.format);
            }
        }
    }
}
#endif

/* Adds a span to the accumulators of the COLUMNS_AT_ONCE columns from token t on. */
static FORCE_INLINE void add_tokens(const Span *span, size_t t, KernelKind kind,
                                    float32x4_t (*acc)[STRIPS])
{
    const size_t count = COLUMNS_AT_ONCE / kind.planes;
    int32x4_t sums[STRIPS][COLUMNS_AT_ONCE];

    /* Each pass loads the weights afresh: hoisted out of the loop they would be spilled. */
    __asm__ volatile("" : "+r"(span) : : "memory");
    dot_columns(span, span->x_codes + t * kind.planes * ACTIVATION_BLOCK, kind, sums);
    UNROLL
    for (size_t k = 0; k < count; k++) {
        const float x_scale = span->x[t + k].scale;
        const float x_offset = span->x_offsets[(t + k) * FLOATS_PER_SCALE];
        UNROLL
        for (size_t s = 0; s < STRIPS; s++) {
            int32x4_t dot =
                kind.planes == 2 ? join_planes(sums[s][2 * k], sums[s][2 * k + 1]) : sums[s][k];
            acc[t + k][s] =
                add_span(acc[t + k][s], dot, span->scales[s], span->biases[s], x_scale, x_offset);
        }
    }
}

/* Adds blocks [first, first + count) of a tile to the accumulators of tokens [token, token +
 * width). */
static FORCE_INLINE void add_chunk(const KernelJob *job, size_t tile, size_t token, size_t width,
                                   size_t first, size_t count, KernelKind kind,
                                   float32x4_t (*acc)[STRIPS])
{
    Span span;
    for (size_t block = first; block < first + count; block += (size_t)kind.span_blocks) {
        const size_t x_block = block / 2, half = block % 2;
        span.x = activation_scale(job->x, token, x_block);
        span.x_codes = activation_codes(job->x, token, x_block) + half * WEIGHT_BLOCK;
        span.x_offsets = kind.span_blocks == 1 ? &span.x->half_offsets[half] : &span.x->offset;
        unpack_span(job->matrix, tile, block, kind, &span);
        for (size_t t = 0; t < width; t += COLUMNS_AT_ONCE / kind.planes)
            add_tokens(&span, t, kind, acc);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    float32x4_t acc[ROW_TILES][ACTIVATION_TILE][STRIPS];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            memset(acc, 0, tiles * sizeof(acc[0]));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t count = m->n_blocks - block;
                count = count < CHUNK_BLOCKS ? count : CHUNK_BLOCKS;
                for (size_t i = 0; i < tiles; i++)
                    add_chunk(job, first_tile + i, token, width, block, count, kind, acc[i]);
            }
            for (size_t i = 0; i < tiles * width; i++) {
                for (size_t s = 0; s < STRIPS; s++)
                    store_strip(job, first_tile + i / width, s, token + i % width,
                                acc[i / width][i % width][s]);
            }
        }
    }
}

void NEON_NAME(multiply_many)(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
