/* AVX-512 VNNI products of quantised weights with many tokens: bound by multiply-adds.
 *
 * A span of two tiles is unpacked into 2 KB of the first-level cache. Then columns of activations
 * pass 8 at a time (8 tokens, or 4 in two planes): per 4 inputs, 2 vectors of weights and 8
 * broadcasts feed 16 vpdpbusd, so loads stay below the multiplications. At the span's end each sum
 * is converted and scaled into its accumulator in memory. Registers: 16 sums, 2 weights, a
 * broadcast.
 *
 * Inputs are cut into chunks whose activations stay in the second-level cache while ROW_TILES tiles
 * use them; accumulators of a token tile stay in the first. */
#include "kernels_avx512.h"

enum {
    ROW_TILES = 4,
    CHUNK_BLOCKS = 64, /* 64 tokens * 2 planes * 2 KiB = 256 KiB; a multiple of any group */
    TILES_AT_ONCE = 2,
    COLUMNS_AT_ONCE = 8,
};

/* A span of `tiles` tiles, unpacked: vector j of tile i at [j][i]. */
typedef struct Span {
    __m512i codes[SPAN_VECTORS][TILES_AT_ONCE];
    __m512 scales[TILES_AT_ONCE], biases[TILES_AT_ONCE];
    const int8_t *x_codes; /* of the first token; inputs from the span's first on */
    const ActivationScale *x;
    const float *x_offsets; /* of the first token, in x */
} Span;

static FORCE_INLINE void unpack_span(const PackedMatrix *m, size_t tile, size_t block, size_t i,
                                     KernelKind kind, Span *span)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(m->scale_type);
    const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
    span->scales[i] = load_rows(at, m->scale_type);
    span->biases[i] = load_rows(at + scale_bytes, m->scale_type);
    at += 2 * scale_bytes + block % m->group_blocks * block_bytes(kind.format);
    for (int b = 0; b < kind.span_blocks; b++) {
        UNROLL
        for (int pair = 0; pair < BLOCK_VECTORS / 2; pair++) {
            __m512i *to = &span->codes[b * BLOCK_VECTORS + 2 * pair][i];
            load_pair(at, pair, kind.format, to, to + TILES_AT_ONCE);
        }
        at += block_bytes(kind.format);
    }
}

/* Adds a span of `tiles` tiles to the accumulators of tokens [t, t + count). */
static FORCE_INLINE void add_tokens(const Span *span, size_t tiles, size_t t, size_t count,
                                    KernelKind kind, __m512 (*acc)[ACTIVATION_TILE])
{
    const size_t columns = count * kind.planes;
    const int8_t *codes = span->x_codes + t * kind.planes * ACTIVATION_BLOCK;
    __m512i sums[TILES_AT_ONCE][COLUMNS_AT_ONCE];

    /* Each pass loads the weights afresh: hoisted out of the loop they would be spilled. */
    __asm__ volatile("" : "+r"(span) : : "memory");
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t c = 0; c < columns; c++)
            sums[i][c] = _mm512_setzero_si512();
    }
    UNROLL
    for (int j = 0; j < kind.span_blocks * BLOCK_VECTORS; j++) {
        UNROLL
        for (size_t c = 0; c < columns; c++) {
            __m512i v = broadcast_codes(codes + c * ACTIVATION_BLOCK + 4 * j);
            UNROLL
            for (size_t i = 0; i < tiles; i++)
                sums[i][c] = _mm512_dpbusd_epi32(sums[i][c], span->codes[j][i], v);
        }
    }
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t k = 0; k < count; k++) {
            __m512i dot =
                kind.planes == 2 ? join_planes(sums[i][2 * k], sums[i][2 * k + 1]) : sums[i][k];
            acc[i][t + k] =
                add_span(acc[i][t + k], dot, span->scales[i], span->biases[i], span->x[t + k].scale,
                         span->x_offsets[(t + k) * FLOATS_PER_SCALE]);
        }
    }
}

/* Adds blocks [first, first + count) of `tiles` tiles to the accumulators of tokens [token, token +
 * width). */
static FORCE_INLINE void add_chunk(const KernelJob *job, size_t tile, size_t tiles, size_t token,
                                   size_t width, size_t first, size_t count,
                                   __m512 (*acc)[ACTIVATION_TILE], KernelKind kind)
{
    const size_t at_once = COLUMNS_AT_ONCE / kind.planes;
    Span span;

    for (size_t block = first; block < first + count; block += (size_t)kind.span_blocks) {
        const size_t x_block = block / 2, half = block % 2;
        span.x = activation_scale(job->x, token, x_block);
        span.x_codes = activation_codes(job->x, token, x_block) + half * WEIGHT_BLOCK;
        span.x_offsets = kind.span_blocks == 1 ? &span.x->half_offsets[half] : &span.x->offset;
        for (size_t i = 0; i < tiles; i++)
            unpack_span(job->matrix, tile + i, block, i, kind, &span);
        size_t t = 0;
        for (; t + at_once <= width; t += at_once)
            add_tokens(&span, tiles, t, at_once, kind, acc);
        for (; t < width; t++)
            add_tokens(&span, tiles, t, 1, kind, acc);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    __m512 acc[ROW_TILES][ACTIVATION_TILE];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t count = m->n_blocks - block;
                count = count < CHUNK_BLOCKS ? count : CHUNK_BLOCKS;
                size_t i = 0;
                for (; i + TILES_AT_ONCE <= tiles; i += TILES_AT_ONCE)
                    add_chunk(job, first_tile + i, TILES_AT_ONCE, token, width, block, count,
                              acc + i, kind);
                if (i < tiles)
                    add_chunk(job, first_tile + i, 1, token, width, block, count, acc + i, kind);
            }
            for (size_t i = 0; i < tiles; i++) {
                for (size_t t = 0; t < width; t++)
                    store_tile(job, first_tile + i, token + t, acc[i][t]);
            }
        }
    }
}

void avx512_multiply_many(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
