/* AVX-512 VNNI products of quantised weights, for any number of tokens. Compiled once for each
 * precision of the activations, which AVX512_PLANES and AVX512_PAIRS say (KernelKind's), as
 * AVX512_MULTIPLY: together they would take a compiler that also sanitises ten minutes.
 *
 * vpdpbusd multiplies 64 unsigned bytes with 64 signed ones and adds groups of four to 32-bit sums,
 * which cannot overflow: a vector of weights, 4 inputs of 16 rows, meets the activations' 4 codes
 * broadcast, 8 columns of codes at a time (8 tokens, or 4 in two planes). Where pairs of inputs
 * share a byte of the second plane, weights of 4 bits meet it two at a time, as they are packed.
 *
 * Where 8 columns are all, memory is the limit: tile after tile in one stream, whose tail is asked
 * for ahead, over the seams where the hardware's prefetcher would start anew. With more, the
 * multiplications are: two tiles pass side by side and share each broadcast (per 4 inputs, 2 loads
 * of weights and 8 broadcasts feed 16 vpdpbusd), and while they meet one piece of tokens after the
 * other from the caches, the next two are asked for. Registers: 16 sums, 2 vectors of weights, 8
 * accumulators (16 with one plane, of which some are spilled), a broadcast, a mask; where tokens
 * have three sums, 24 and 8 of which some are spilled.
 *
 * Processors with AMX multiply two vectors a cycle, so that loads and unpacking count. There 8
 * tokens in two planes pass together, with one sum each: a span's codes that count most are
 * multiplied first, and the sum is shifted before it takes those that count less. Up to 27% faster
 * there; on a Zen 4, which multiplies one vector a cycle, up to 9% slower. */
#include "kernels_avx512.h"

enum {
    TILES_AT_ONCE = 2,
    COLUMNS_AT_ONCE = 8, /* tokens times planes */
    SUMS_AT_ONCE = 12,   /* of a tile: three for each of 4 tokens at most */
    TOKENS_WIDE = 8,
    PREFETCH_BYTES = 4096
};

/* Tiles side by side, and how far before its use memory is asked for. */
typedef struct Strip {
    const PackedMatrix *matrix;
    size_t tile;
    size_t ahead; /* bytes */
} Strip;

/* Sums of a token: one a plane, and one more where the byte that a pair shares has to meet each of
 * the pair's weights, since its products count differently. */
static FORCE_INLINE size_t token_sums(KernelKind kind)
{
    return kind.planes + (kind.has_pairs && kind.format != PACKED_NIBBLES);
}

/* sums[tile][n * sum_step] += codes[tile] * the four codes at x + n * x_step, for n < count. */
static FORCE_INLINE void add_columns(const __m512i *codes, const int8_t *x, size_t x_step,
                                     size_t tiles, size_t count, size_t sum_step,
                                     __m512i (*sums)[SUMS_AT_ONCE], size_t sum)
{
    UNROLL
    for (size_t n = 0; n < count; n++) {
        __m512i four = broadcast_codes(x + n * x_step);
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            sums[i][sum + n * sum_step] = add_products(sums[i][sum + n * sum_step], codes[i], four);
    }
}

/* Adds the products of a block to the sums: sums[tile][token * token_sums + plane]. x: the token's
 * block of codes, of which this is half `half`. */
static FORCE_INLINE void add_block(const uint8_t *const *blocks, const int8_t *x, size_t half,
                                   size_t tiles, size_t count, KernelKind kind,
                                   __m512i (*sums)[SUMS_AT_ONCE])
{
    const int8_t *own = x + half * WEIGHT_BLOCK;
    const int8_t *shared = x + ACTIVATION_BLOCK + half * (WEIGHT_BLOCK / 2);
    const size_t step = block_code_bytes(kind), n_sums = token_sums(kind);
    const bool meets_packed = kind.has_pairs && kind.format == PACKED_NIBBLES;
    UNROLL
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        __m512i codes[TILES_AT_ONCE];
        if (meets_packed && j % 2 == 0) {
            UNROLL
            for (size_t i = 0; i < tiles; i++)
                codes[i] = _mm512_loadu_si512(blocks[i] + j / 2 * VECTOR_BYTES);
            add_columns(codes, shared + j / 2 * 4, step, tiles, count, n_sums, sums, 1);
        }
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            codes[i] = load_codes(blocks[i], j, kind.format);
        if (!kind.has_pairs) { /* planes as if they were tokens */
            add_columns(codes, own + 4 * j, ACTIVATION_BLOCK, tiles, count * n_sums, 1, sums, 0);
            continue;
        }
        add_columns(codes, own + 4 * j, step, tiles, count, n_sums, sums, 0);
        if (!meets_packed)
            add_columns(codes, shared + j / 2 * 4, step, tiles, count, n_sums, sums, 1 + j % 2);
    }
}

/* ---- Wide pieces: a plane after the other ---- */

/* Code vectors first, first + step, ... of a block; is_packed: two at a time, as they lie there. */
typedef struct Pass {
    size_t first, step;
    bool is_packed;
} Pass;

/* sums[tile][token] = sums * step + the products of a pass over a span; step: a power of two; x:
 * the first token's codes for it, four for each vector. */
static FORCE_INLINE void add_pass(const uint8_t *const *blocks, const int8_t *x, Pass pass,
                                  unsigned step, size_t tiles, KernelKind kind,
                                  __m512i (*sums)[SUMS_AT_ONCE])
{
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < TOKENS_WIDE; t++)
            sums[i][t] = _mm512_slli_epi32(sums[i][t], (unsigned)__builtin_ctz(step));
    }
    UNROLL
    for (size_t b = 0; b < (size_t)kind.span_blocks; b++) {
        UNROLL
        for (size_t j = pass.first; j < BLOCK_VECTORS; j += pass.step, x += 4) {
            __m512i codes[TILES_AT_ONCE];
            UNROLL
            for (size_t i = 0; i < tiles; i++) {
                const uint8_t *block = blocks[i] + b * block_bytes(kind.format);
                codes[i] = pass.is_packed ? _mm512_loadu_si512(block + j / 2 * VECTOR_BYTES)
                                          : load_codes(block, j, kind.format);
            }
            add_columns(codes, x, block_code_bytes(kind), tiles, TOKENS_WIDE, 1, sums, 0);
        }
    }
}

/* Adds a span's dot products to the sums, which are 0. x: the first token's block of codes, of
 * which this is half `half`, or all. */
static FORCE_INLINE void add_span_wide(const uint8_t *const *blocks, const int8_t *x, size_t half,
                                       size_t tiles, KernelKind kind, __m512i (*sums)[SUMS_AT_ONCE])
{
    const Pass all = {0, 1, false}, packed = {0, 2, true};
    const Pass pairs_first = {0, 2, false}, pairs_second = {1, 2, false};
    const int8_t *low = x + ACTIVATION_BLOCK;
    low += half * (kind.has_pairs ? WEIGHT_BLOCK / 2 : WEIGHT_BLOCK);
    add_pass(blocks, x + half * WEIGHT_BLOCK, all, 1, tiles, kind, sums);
    if (!kind.has_pairs) {
        add_pass(blocks, low, all, ACTIVATION_PLANE_STEP, tiles, kind, sums);
    } else if (kind.format == PACKED_NIBBLES) {
        add_pass(blocks, low, packed, ACTIVATION_PLANE_STEP, tiles, kind, sums);
    } else {
        add_pass(blocks, low, pairs_second, ACTIVATION_PLANE_STEP / ACTIVATION_PAIR_STEP, tiles,
                 kind, sums);
        add_pass(blocks, low, pairs_first, ACTIVATION_PAIR_STEP, tiles, kind, sums);
    }
}

/* ---- Strips ---- */

/* The dot product that a token's sums make. */
static FORCE_INLINE __m512i join_sums(const __m512i *sums, KernelKind kind)
{
    if (kind.planes == 1)
        return sums[0];
    if (token_sums(kind) == 2)
        return join_planes(sums[0], sums[1]);
    return join_planes(sums[0], join_pairs(sums[1], sums[2]));
}

/* A span's sums to the accumulators. group: of the first tile; offset: in *x, for its inputs. */
static FORCE_INLINE void add_sums(const PackedMatrix *m, const uint8_t *group,
                                  const ActivationScale *x, const float *offset, size_t tiles,
                                  size_t count, KernelKind kind, __m512i (*sums)[SUMS_AT_ONCE],
                                  __m512 (*acc)[COLUMNS_AT_ONCE])
{
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        const uint8_t *head = group + i * m->tile_bytes;
        const __m512 scales = load_rows(head, m->scale_type);
        const __m512 biases =
            load_rows(head + TILE_ROWS * scale_type_bytes(m->scale_type), m->scale_type);
        UNROLL
        for (size_t t = 0; t < count; t++) {
            __m512i dot = join_sums(&sums[i][t * token_sums(kind)], kind);
            acc[i][t] =
                add_span(acc[i][t], dot, scales, biases, x[t].scale, offset[t * FLOATS_PER_SCALE]);
        }
    }
}

/* Weights of a later strip; several tiles are not met before other tokens met the strip before. */
static FORCE_INLINE void ask_for_block(const uint8_t *block, PackedFormat format, size_t tiles)
{
    UNROLL
    for (size_t line = 0; line < block_bytes(format); line += 64) {
        const char *at = (const char *)block + line;
        if (tiles > 1) /* hints are constants of the language, not of the optimiser */
            _mm_prefetch(at, _MM_HINT_T1);
        else
            _mm_prefetch(at, _MM_HINT_T0);
    }
}

/* Whether tokens in two planes have one sum: more than the columns at once have room for. */
static FORCE_INLINE bool is_wide(size_t count, KernelKind kind)
{
    return count * kind.planes > COLUMNS_AT_ONCE;
}

/* Sums of `count` tokens with a span of `tiles` tiles, whose blocks of codes begin at `blocks`;
 * asks for the memory `ahead` bytes behind them. x: the first token's block of codes, of which the
 * span is half `half`, or all. */
static FORCE_INLINE void multiply_span(const uint8_t *const *blocks, size_t ahead, const int8_t *x,
                                       size_t half, size_t tiles, size_t count, KernelKind kind,
                                       __m512i (*sums)[SUMS_AT_ONCE])
{
    const bool wide = is_wide(count, kind);
    const size_t n_sums = wide ? count : count * token_sums(kind);
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t c = 0; c < n_sums; c++)
            sums[i][c] = _mm512_setzero_si512();
    }
    if (wide)
        add_span_wide(blocks, x, half, tiles, kind, sums);
    UNROLL
    for (size_t b = 0; b < (size_t)kind.span_blocks; b++) {
        const uint8_t *at[TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            at[i] = blocks[i] + b * block_bytes(kind.format);
        if (!wide)
            add_block(at, x, half + b, tiles, count, kind, sums);
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            ask_for_block(at[i] + ahead, kind.format, tiles);
    }
}

/* `tiles` tiles with tokens [token, token + count), which are all in one token tile. */
static FORCE_INLINE void multiply_strip(const Strip *strip, const size_t tiles,
                                        const Activations *activations, size_t token,
                                        const size_t count, KernelKind kind,
                                        __m512 (*acc)[COLUMNS_AT_ONCE])
{
    const PackedMatrix *m = strip->matrix;
    const size_t head_bytes = 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
    const size_t x_step =
        activation_index(activations, token, 1) - activation_index(activations, token, 0);
    const int8_t *codes = activation_codes(activations, token, 0);
    const ActivationScale *x = activation_scale(activations, token, 0);
    const uint8_t *group = packed_group(m, strip->tile, 0), *end = group + m->tile_bytes;
    KernelKind sums_kind = kind;
    size_t half = 0;

    if (is_wide(count, kind)) /* planes are joined already */
        sums_kind = (KernelKind){kind.format, kind.code_bits, kind.span_blocks, 1, false};
    for (; group < end; group += m->group_bytes) {
        const uint8_t *blocks[TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            blocks[i] = group + i * m->tile_bytes + head_bytes;
        while (blocks[0] < group + m->group_bytes) {
            __m512i sums[TILES_AT_ONCE][SUMS_AT_ONCE];
            multiply_span(blocks, strip->ahead, codes, half, tiles, count, kind, sums);
            add_sums(m, group, x, kind.span_blocks == 1 ? &x->half_offsets[half] : &x->offset,
                     tiles, count, sums_kind, sums, acc);
            UNROLL
            for (size_t i = 0; i < tiles; i++)
                blocks[i] += (size_t)kind.span_blocks * block_bytes(kind.format);
            if (kind.span_blocks == 1)
                half ^= 1;
            if (half == 0) {
                codes += x_step * block_code_bytes(kind);
                x += x_step;
            }
        }
    }
}

static FORCE_INLINE void multiply_tokens(const KernelJob *job, const Strip *strip,
                                         const size_t tiles, size_t token, const size_t count,
                                         KernelKind kind)
{
    __m512 acc[TILES_AT_ONCE][COLUMNS_AT_ONCE];
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            acc[i][t] = _mm512_setzero_ps();
    }
    multiply_strip(strip, tiles, job->x, token, count, kind, acc);
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            store_tile(job, strip->tile + i, token + t, acc[i][t]);
    }
}

/* A strip with `count` tokens of a token tile, in pieces of 8, 4, 2 and 1; of 8 in two planes where
 * pieces are wide. */
static FORCE_INLINE void multiply_pieces(const KernelJob *job, const Strip *strip,
                                         const size_t tiles, size_t token, size_t count,
                                         KernelKind kind)
{
    const size_t at_once = COLUMNS_AT_ONCE / kind.planes;
    if (kind.planes == 2 && cpu_kernels() == &kernels_amx) {
        for (; count >= TOKENS_WIDE; count -= TOKENS_WIDE, token += TOKENS_WIDE)
            multiply_tokens(job, strip, tiles, token, TOKENS_WIDE, kind);
    }
    for (; count >= at_once; count -= at_once, token += at_once)
        multiply_tokens(job, strip, tiles, token, at_once, kind);
    if (at_once > 4 && count >= 4) {
        multiply_tokens(job, strip, tiles, token, 4, kind);
        token += 4;
        count -= 4;
    }
    if (count >= 2) {
        multiply_tokens(job, strip, tiles, token, 2, kind);
        token += 2;
        count -= 2;
    }
    if (count > 0)
        multiply_tokens(job, strip, tiles, token, 1, kind);
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
        size_t left = job->x->n_tokens - token, done = 0;
        size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
        if (job->x->n_tokens * kind.planes > COLUMNS_AT_ONCE) {
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

void AVX512_MULTIPLY(const KernelJob *job)
{
    const PackedFormat format = job->matrix->format;
    if (format == PACKED_NIBBLES)
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_NIBBLES, 4, AVX512_PLANES, AVX512_PAIRS);
    else if (format == PACKED_FP4)
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_FP4, 4, AVX512_PLANES, AVX512_PAIRS);
    else
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_BYTES, 8, AVX512_PLANES, AVX512_PAIRS);
}
