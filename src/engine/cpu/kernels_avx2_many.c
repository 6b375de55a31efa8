/* AVX2 and AVX-VNNI products of quantised weights with many tokens: bound by multiply-adds.
 *
 * A span of a tile (both its halves; of 8-bit codes one half at a time, in two planes of nibbles)
 * is unpacked into an array of 1 KB in the first-level cache. Then columns of activations pass 4 at
 * a time (4 tokens, or 2 in two planes): per 4 inputs, 2 registers of weights and 4 broadcasts feed
 * 8 vpmaddubsw into 8 sums of 16 bits, or 8 vpdpbusd into 8 sums of 32, so loads stay below the
 * multiplications. Sums of 16 bits are widened every 32 inputs, and all at the span's end converted
 * and scaled into their accumulator in memory. Registers: 8 sums, 2 weights, a broadcast and a
 * product.
 *
 * Inputs are cut into chunks whose activations stay in the second-level cache while ROW_TILES tiles
 * use them; accumulators of a token tile stay in the first. */
#include "kernels_avx2.h"

enum {
    ROW_TILES = 4,
    CHUNK_BLOCKS = 64, /* 64 tokens * 2 planes * 2 KiB = 256 KiB; a multiple of any group */
    SPAN_VECTORS = 2 * BLOCK_VECTORS,
    PLANES = 2, /* of codes: the halves of a tile, or the low and high nibbles of one half */
    COLUMNS_AT_ONCE = 4,
};

/* The unpacked span: vector j of plane p at [j][p]. */
typedef struct Planes {
    __m256i codes[SPAN_VECTORS][PLANES];
} Planes;

/* Unpacks one half of a block of a tile. */
static FORCE_INLINE void unpack_half(const uint8_t *at, size_t half, KernelKind kind,
                                     __m256i codes[BLOCK_VECTORS][PLANES])
{
    at += half * HALF_BYTES;
    if (kind.format == PACKED_BYTES) {
        UNROLL
        for (int j = 0; j < BLOCK_VECTORS; j++) {
            if (has_nibble_planes(kind))
                unpack_pair(at + j * VECTOR_BYTES, false, &codes[j][0], &codes[j][1]);
            else
                codes[j][half] = load_bytes(at + j * VECTOR_BYTES);
        }
        return;
    }
    UNROLL
    for (int i = 0; i < BLOCK_VECTORS / 2; i++)
        unpack_pair(at + i * VECTOR_BYTES, kind.format == PACKED_FP4, &codes[2 * i][half],
                    &codes[2 * i + 1][half]);
}

/* Widens the sums of plane p of the codes with `count` tokens, and adds a token's planes. step:
 * what a code in plane p counts. */
static FORCE_INLINE void finish_dots(const __m256i sums[COLUMNS_AT_ONCE], size_t count,
                                     size_t planes, int step, bool is_first,
                                     __m256i dots[COLUMNS_AT_ONCE])
{
    UNROLL
    for (size_t t = 0; t < count; t++) {
        __m256i last = widen_sums(sums[t * planes + planes - 1], step);
        if (planes == 2)
            last =
                _mm256_add_epi32(last, widen_sums(sums[t * planes], step * ACTIVATION_PLANE_STEP));
        dots[t] = is_first ? last : _mm256_add_epi32(dots[t], last);
    }
}

/* The exact sums of both planes of codes with `count` tokens, 32 bits a row; plane_1: what a code
 * in plane 1 counts. */
static FORCE_INLINE void dot_planes(const Planes *w, const int8_t *x, size_t count, size_t planes,
                                    int plane_1, int n_vectors, int run,
                                    __m256i dots[PLANES][COLUMNS_AT_ONCE])
{
    const size_t columns = count * planes;

    UNROLL
    for (int first = 0; first < n_vectors; first += run) {
        __m256i sums[PLANES][COLUMNS_AT_ONCE];
        UNROLL
        for (size_t t = 0; t < columns; t++)
            sums[0][t] = sums[1][t] = _mm256_setzero_si256();
        UNROLL
        for (int j = first; j < first + run; j++) {
            __m256i first_plane = w->codes[j][0], second_plane = w->codes[j][1];
            PIN(first_plane);
            PIN(second_plane);
            UNROLL
            for (size_t t = 0; t < columns; t++) {
                __m256i v = broadcast_codes(x + t * ACTIVATION_BLOCK + 4 * j);
                sums[0][t] = add_products(sums[0][t], first_plane, v);
                sums[1][t] = add_products(sums[1][t], second_plane, v);
                PIN(sums[0][t]);
                PIN(sums[1][t]);
            }
        }
        finish_dots(sums[0], count, planes, 1, first == 0, dots[0]);
        finish_dots(sums[1], count, planes, plane_1, first == 0, dots[1]);
    }
}

/* What a span's dots are multiplied by, and the codes it meets. */
typedef struct Span {
    __m256 scales[HALVES], biases[HALVES];
    const int8_t *codes; /* of the first token; inputs from the span's first on */
    const ActivationScale *x;
    const float *x_offsets; /* of the first token, in x */
} Span;

/* Adds a span to the accumulators of tokens [t, t + count): of both halves, or of half `half` in
 * two planes. */
static FORCE_INLINE void add_tokens(const Planes *w, const Span *span, size_t t, size_t count,
                                    int n_vectors, size_t half, KernelKind kind,
                                    __m256 (*acc)[ACTIVATION_TILE])
{
    __m256i dots[PLANES][COLUMNS_AT_ONCE];
    const int8_t *codes = span->codes + t * kind.planes * ACTIVATION_BLOCK;
    int run = vectors_in_sums(kind);

    /* Each pass loads the weights afresh: hoisted out of the loop, 16 vectors would be copied to
     * the stack, and loaded from there once a use. */
    __asm__ volatile("" : "+r"(w) : : "memory");
    dot_planes(w, codes, count, kind.planes, has_nibble_planes(kind) ? 16 : 1, n_vectors, run,
               dots);
    UNROLL
    for (size_t i = 0; i < count; i++) {
        const float *scale = &span->x[t + i].scale;
        const float *offset = span->x_offsets + (t + i) * (sizeof(*span->x) / sizeof(float));
        if (has_nibble_planes(kind)) {
            __m256i dot = _mm256_add_epi32(dots[0][i], dots[1][i]);
            acc[half][t + i] = add_span(acc[half][t + i], dot, span->scales[half],
                                        span->biases[half], scale, offset);
            continue;
        }
        UNROLL
        for (int p = 0; p < HALVES; p++)
            acc[p][t + i] = add_span(acc[p][t + i], dots[p][i], span->scales[p], span->biases[p],
                                     scale, offset);
    }
}

static FORCE_INLINE void add_all_tokens(const Planes *w, const Span *span, size_t width,
                                        int n_vectors, size_t half, KernelKind kind,
                                        __m256 (*acc)[ACTIVATION_TILE])
{
    const size_t at_once = COLUMNS_AT_ONCE / kind.planes;
    size_t t = 0;
    for (; t + at_once <= width; t += at_once)
        add_tokens(w, span, t, at_once, n_vectors, half, kind, acc);
    for (; t < width; t++)
        add_tokens(w, span, t, 1, n_vectors, half, kind, acc);
}

/* Adds blocks [first, first + count) of a tile to the accumulators of tokens [token, token +
 * width).
 */
static FORCE_INLINE void add_chunk(const KernelJob *job, size_t tile, size_t token, size_t width,
                                   size_t first, size_t count, __m256 (*acc)[ACTIVATION_TILE],
                                   KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    const size_t half_bytes = HALF_ROWS * scale_type_bytes(m->scale_type);
    const size_t block_bytes = kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const size_t passes = has_nibble_planes(kind) ? HALVES : 1;
    Planes w;

    for (size_t block = first; block < first + count; block += (size_t)kind.span_blocks) {
        const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
        const size_t x_block = block / 2, half_block = block % 2;
        const ActivationScale *x = activation_scale(job->x, token, x_block);
        Span span = {.codes = activation_codes(job->x, token, x_block) + half_block * WEIGHT_BLOCK,
                     .x = x,
                     .x_offsets =
                         kind.span_blocks == 1 ? &x->half_offsets[half_block] : &x->offset};
        UNROLL
        for (size_t h = 0; h < HALVES; h++) {
            span.scales[h] = load_rows(at + h * half_bytes, m->scale_type);
            span.biases[h] = load_rows(at + (HALVES + h) * half_bytes, m->scale_type);
        }
        at += 2 * HALVES * half_bytes + block % m->group_blocks * block_bytes;
        for (size_t pass = 0; pass < passes; pass++) {
            for (int b = 0; b < kind.span_blocks; b++) {
                unpack_half(at + (size_t)b * block_bytes, pass, kind, w.codes + b * BLOCK_VECTORS);
                if (passes == 1)
                    unpack_half(at + (size_t)b * block_bytes, 1, kind, w.codes + b * BLOCK_VECTORS);
            }
            add_all_tokens(&w, &span, width, kind.span_blocks * BLOCK_VECTORS, pass, kind, acc);
        }
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    __m256 acc[ROW_TILES][HALVES][ACTIVATION_TILE];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
                size_t blocks = m->n_blocks - block;
                blocks = blocks < CHUNK_BLOCKS ? blocks : CHUNK_BLOCKS;
                for (size_t i = 0; i < tiles; i++)
                    add_chunk(job, first_tile + i, token, width, block, blocks, acc[i], kind);
            }
            for (size_t i = 0; i < tiles * HALVES; i++) {
                for (size_t t = 0; t < width; t++)
                    store_half(job, first_tile + i / HALVES, i % HALVES, token + t,
                               acc[i / HALVES][i % HALVES][t]);
            }
        }
    }
}

void AVX2_NAME(multiply_many)(const KernelJob *job)
{
    AVX2_BY_FORMAT(multiply_kind, job);
}
