/* AVX-512 VNNI products of quantised weights, for any number of tokens.
 *
 * vpdpbusd multiplies 64 unsigned bytes with 64 signed ones and adds groups of four to 32-bit sums,
 * which cannot overflow: a vector of weights, 4 inputs of 16 rows, meets the activations' 4 codes
 * broadcast, of up to 8 tokens. A token has one sum, whatever its planes: what counts most is
 * multiplied first, and the sum is shifted before it takes what counts less. Where pairs of inputs
 * share a byte of the second plane, weights of 4 bits meet it two at a time, as they are packed.
 *
 * With few tokens memory is the limit: tile after tile in one stream, whose tail is asked for
 * ahead, over the seams where the hardware's prefetcher would start anew. With more, the
 * multiplications are: two tiles pass side by side and share each broadcast (per 4 inputs, 2 loads
 * of weights and 8 broadcasts feed 16 vpdpbusd), and while they meet one piece of tokens after the
 * other from the caches, the next two are asked for. Registers: 16 sums, 2 vectors of weights, a
 * broadcast, a mask; of 16 accumulators, needed once a span, some are in memory. */
#include "kernels_avx512.h"

enum {
    TILES_AT_ONCE = 2,
    TOKENS_AT_ONCE = 8,
    MEMORY_BOUND_COLUMNS = 8, /* tokens times planes */
    PREFETCH_BYTES = 4096
};

/* Tiles side by side, and how far before its use memory is asked for. */
typedef struct Strip {
    const PackedMatrix *matrix;
    size_t tile;
    size_t ahead; /* bytes */
} Strip;

/* What is fixed while the product of a strip and some tokens is compiled. */
typedef struct Piece {
    size_t tiles, tokens;
    KernelKind kind;
} Piece;

/* Vectors of a block that meet activations one after the other: first, first + step, ...;
 * is_packed: two at a time, as they lie in memory. */
typedef struct Pass {
    size_t first, step;
    bool is_packed;
} Pass;

/* step: a power of two. */
static FORCE_INLINE void multiply_sums(unsigned step, Piece piece, __m512i (*sums)[TOKENS_AT_ONCE])
{
    UNROLL
    for (size_t i = 0; i < piece.tiles; i++) {
        UNROLL
        for (size_t t = 0; t < piece.tokens; t++)
            sums[i][t] = _mm512_slli_epi32(sums[i][t], (unsigned)__builtin_ctz(step));
    }
}

/* sums[tile][token] += products of a pass over a span's blocks; x: the first token's codes for it,
 * four for each vector. */
static FORCE_INLINE void add_pass(const uint8_t *const *blocks, const int8_t *x, Pass pass,
                                  Piece piece, __m512i (*sums)[TOKENS_AT_ONCE])
{
    const PackedFormat format = piece.kind.format;
    UNROLL
    for (size_t b = 0; b < (size_t)piece.kind.span_blocks; b++) {
        UNROLL
        for (size_t j = pass.first; j < BLOCK_VECTORS; j += pass.step, x += 4) {
            __m512i codes[TILES_AT_ONCE];
            UNROLL
            for (size_t i = 0; i < piece.tiles; i++) {
                const uint8_t *block = blocks[i] + b * block_bytes(format);
                codes[i] = pass.is_packed ? _mm512_loadu_si512(block + j / 2 * VECTOR_BYTES)
                                          : load_codes(block, j, format);
            }
            UNROLL
            for (size_t t = 0; t < piece.tokens; t++) {
                __m512i four = broadcast_codes(x + t * block_code_bytes(piece.kind));
                UNROLL
                for (size_t i = 0; i < piece.tiles; i++)
                    sums[i][t] = add_products(sums[i][t], codes[i], four);
            }
        }
    }
}

/* The dot products of a span. x: the first token's block of codes, of which this is half `half`,
 * or all. */
static FORCE_INLINE void dot_span(const uint8_t *const *blocks, const int8_t *x, size_t half,
                                  Piece piece, __m512i (*sums)[TOKENS_AT_ONCE])
{
    const Pass all = {0, 1, false}, packed = {0, 2, true};
    const Pass pairs_first = {0, 2, false}, pairs_second = {1, 2, false};
    const int8_t *own = x + half * WEIGHT_BLOCK, *low = x + ACTIVATION_BLOCK;
    UNROLL
    for (size_t i = 0; i < piece.tiles; i++) {
        UNROLL
        for (size_t t = 0; t < piece.tokens; t++)
            sums[i][t] = _mm512_setzero_si512();
    }
    add_pass(blocks, own, all, piece, sums);
    if (piece.kind.planes == 1)
        return;
    low += half * (piece.kind.has_pairs ? WEIGHT_BLOCK / 2 : WEIGHT_BLOCK);
    if (!piece.kind.has_pairs || piece.kind.format == PACKED_NIBBLES) {
        multiply_sums(ACTIVATION_PLANE_STEP, piece, sums);
        add_pass(blocks, low, piece.kind.has_pairs ? packed : all, piece, sums);
    } else { /* a shared byte counts more for the second input of its pair */
        multiply_sums(ACTIVATION_PLANE_STEP / ACTIVATION_PAIR_STEP, piece, sums);
        add_pass(blocks, low, pairs_second, piece, sums);
        multiply_sums(ACTIVATION_PAIR_STEP, piece, sums);
        add_pass(blocks, low, pairs_first, piece, sums);
    }
}

/* A span's sums to the accumulators. group: of the first tile; offset: in *x, for its inputs. */
static FORCE_INLINE void add_sums(const PackedMatrix *m, const uint8_t *group,
                                  const ActivationScale *x, const float *offset, Piece piece,
                                  __m512i (*sums)[TOKENS_AT_ONCE], __m512 (*acc)[TOKENS_AT_ONCE])
{
    UNROLL
    for (size_t i = 0; i < piece.tiles; i++) {
        const uint8_t *head = group + i * m->tile_bytes;
        const __m512 scales = load_rows(head, m->scale_type);
        const __m512 biases =
            load_rows(head + TILE_ROWS * scale_type_bytes(m->scale_type), m->scale_type);
        UNROLL
        for (size_t t = 0; t < piece.tokens; t++)
            acc[i][t] = add_span(acc[i][t], sums[i][t], scales, biases, x[t].scale,
                                 offset[t * FLOATS_PER_SCALE]);
    }
}

/* Weights of a later strip; several tiles are not met before other tokens met the strip before. */
static FORCE_INLINE void ask_for_span(const uint8_t *span, size_t bytes, size_t tiles)
{
    UNROLL
    for (size_t line = 0; line < bytes; line += 64) {
        const char *at = (const char *)span + line;
        if (tiles > 1) /* hints are constants of the language, not of the optimiser */
            _mm_prefetch(at, _MM_HINT_T1);
        else
            _mm_prefetch(at, _MM_HINT_T0);
    }
}

/* A strip with tokens [token, token + piece.tokens), which are all in one token tile. */
static FORCE_INLINE void multiply_strip(const Strip *strip, const Activations *activations,
                                        size_t token, Piece piece, __m512 (*acc)[TOKENS_AT_ONCE])
{
    const PackedMatrix *m = strip->matrix;
    const size_t head_bytes = 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
    const bool is_half = piece.kind.span_blocks == 1;
    const size_t span_bytes = (is_half ? 1 : 2) * block_bytes(piece.kind.format);
    const size_t x_step =
        activation_index(activations, token, 1) - activation_index(activations, token, 0);
    const int8_t *codes = activation_codes(activations, token, 0);
    const ActivationScale *x = activation_scale(activations, token, 0);
    const uint8_t *group = packed_group(m, strip->tile, 0), *end = group + m->tile_bytes;
    size_t half = 0;

    for (; group < end; group += m->group_bytes) {
        const uint8_t *blocks[TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < piece.tiles; i++)
            blocks[i] = group + i * m->tile_bytes + head_bytes;
        while (blocks[0] < group + m->group_bytes) {
            __m512i sums[TILES_AT_ONCE][TOKENS_AT_ONCE];
            dot_span(blocks, codes, half, piece, sums);
            add_sums(m, group, x, is_half ? &x->half_offsets[half] : &x->offset, piece, sums, acc);
            UNROLL
            for (size_t i = 0; i < piece.tiles; i++) {
                ask_for_span(blocks[i] + strip->ahead, span_bytes, piece.tiles);
                blocks[i] += span_bytes;
            }
            if (is_half)
                half ^= 1;
            if (half == 0) {
                codes += x_step * block_code_bytes(piece.kind);
                x += x_step;
            }
        }
    }
}

static FORCE_INLINE void multiply_tokens(const KernelJob *job, const Strip *strip, size_t token,
                                         Piece piece)
{
    __m512 acc[TILES_AT_ONCE][TOKENS_AT_ONCE];
    UNROLL
    for (size_t i = 0; i < piece.tiles; i++) {
        UNROLL
        for (size_t t = 0; t < piece.tokens; t++)
            acc[i][t] = _mm512_setzero_ps();
    }
    multiply_strip(strip, job->x, token, piece, acc);
    UNROLL
    for (size_t i = 0; i < piece.tiles; i++) {
        UNROLL
        for (size_t t = 0; t < piece.tokens; t++)
            store_tile(job, strip->tile + i, token + t, acc[i][t]);
    }
}

/* A strip with `count` tokens of a token tile, in pieces of 8, 4, 2 and 1. */
static FORCE_INLINE void multiply_pieces(const KernelJob *job, const Strip *strip, size_t tiles,
                                         size_t token, size_t count, KernelKind kind)
{
    for (; count >= TOKENS_AT_ONCE; count -= TOKENS_AT_ONCE, token += TOKENS_AT_ONCE)
        multiply_tokens(job, strip, token, (Piece){tiles, TOKENS_AT_ONCE, kind});
    if (count >= 4) {
        multiply_tokens(job, strip, token, (Piece){tiles, 4, kind});
        token += 4;
        count -= 4;
    }
    if (count >= 2) {
        multiply_tokens(job, strip, token, (Piece){tiles, 2, kind});
        token += 2;
        count -= 2;
    }
    if (count > 0)
        multiply_tokens(job, strip, token, (Piece){tiles, 1, kind});
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
        size_t left = job->x->n_tokens - token, done = 0;
        size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
        if (job->x->n_tokens * kind.planes > MEMORY_BOUND_COLUMNS) {
            for (; done + TILES_AT_ONCE <= job->n_tiles; done += TILES_AT_ONCE) {
                bool more = done + 2 * TILES_AT_ONCE <= job->n_tiles;
                Strip strip = {m, job->first_tile + done,
                               more ? TILES_AT_ONCE * m->tile_bytes : PREFETCH_BYTES};
                multiply_pieces(job, &strip, TILES_AT_ONCE, token, width, kind);
            }
        }
        for (; done < job->n_tiles; done++) {
            Strip strip = {m, job->first_tile + done, PREFETCH_BYTES};
            multiply_pieces(job, &strip, 1, token, width, kind);
        }
    }
}

void avx512_multiply_codes(const KernelJob *job)
{
    if (job->x->precision != ACTIVATIONS_INT12)
        KERNEL_BY_FORMAT(multiply_kind, job);
    else if (job->matrix->format == PACKED_NIBBLES)
        PAIRS_BY_SPAN(multiply_kind, job, PACKED_NIBBLES, 4);
    else if (job->matrix->format == PACKED_FP4)
        PAIRS_BY_SPAN(multiply_kind, job, PACKED_FP4, 4);
    else
        PAIRS_BY_SPAN(multiply_kind, job, PACKED_BYTES, 8);
}
