/* Products of quantised weights with many tokens by Winograd's inner product, for processors that
 * add vectors beside multiplying them.
 *
 * With qa, qb the weights and a, b the codes of two inputs,
 *     qa a + qb b = (qa + b) (qb + a) - qa qb - a b:
 * one product instead of two, since qa qb is the same for all tokens and a b for all rows (S.
 * Winograd, "A new algorithm for inner product", IEEE Trans. Computers C-17, 1968). What is too
 * much is kept for the row in Chunk, for the token in ActivationScale's pair_rest. It is integer
 * arithmetic throughout, so the bits are those of the other kernels.
 *   pairs  4-bit weights, 12-bit codes: for those of the first plane, which are within
 *          WINOGRAD_CODE_MAX, (qa + 120 + b) (qb - 8 + a), of which one is an unsigned byte and the
 *          other a signed one
 *   words  16-bit codes, weights of every format: (qa + b) (qb + a)
 * Codes of 8 bits would have to be coarser, +-120 instead of +-127: SmolLM2's perplexity then
 * leaves that of float32 by up to 0.55%.
 *
 * A Zen 4 multiplies one vector a cycle and adds two, in four units of which two multiply. 8 inputs
 * of 16 rows take two products and two additions as pairs, 2 cycles where three products take 3; as
 * words two and four, 3 where four products take 4. Processors that multiply and add in the same
 * two units gain nothing.
 *
 * A chunk of a weight tile is prepared in the first-level cache and meets up to TOKENS_TOGETHER
 * tokens there, 8 at a time; unpacking for each 8 of them anew would take a sixth of the time. */
#include "kernels_avx512.h"

enum {
    TOKENS = 8,         /* at a time: with pairs 16 sums, 8 accumulators */
    CHUNK_VECTORS = 96, /* 12 KiB of terms */
    CHUNK_SPANS = CHUNK_VECTORS * 8 / WEIGHT_BLOCK, /* at most */
    GROUP_BLOCKS_MAX = 4,
    TOKENS_TOGETHER = 2 * ACTIVATION_TILE, /* whose codes of a chunk stay in the second-level */
    ROW_TILES = 4,                         /* cache while this many tiles meet them */
};

/* A chunk of a weight tile. A span is a run of `terms` vectors. */
typedef struct Chunk {
    size_t n_spans;
    const uint8_t *packed[CHUNK_SPANS]; /* of each span: its weights as they lie in memory */
    __m512 scales[CHUNK_SPANS], biases[CHUNK_SPANS];
    __m512i rows[CHUNK_SPANS];       /* minus what is too much for the rows; as low counts */
    __m512i terms[CHUNK_VECTORS][2]; /* what b and a are added to, for 2 or 4 of each */
} Chunk;

/* Of a block: kinds without pairs have words. */
static FORCE_INLINE size_t block_vectors(KernelKind kind)
{
    return WEIGHT_BLOCK / (kind.has_pairs ? 8 : 4);
}

static FORCE_INLINE __m512i add_terms(__m512i term, __m512i codes, KernelKind kind)
{
    __m512i sum; /* in assembly for the reason of add_products */
    if (kind.has_pairs)
        __asm__("vpaddb %2, %1, %0" : "=v"(sum) : "v"(term), "v"(codes));
    else
        __asm__("vpaddw %2, %1, %0" : "=v"(sum) : "v"(term), "v"(codes));
    return sum;
}

static FORCE_INLINE __m512i multiply_terms(__m512i sum, __m512i first, __m512i second,
                                           KernelKind kind)
{
    if (kind.has_pairs)
        return add_products(sum, first, second);
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(first), "v"(second));
    return sum;
}

/* ---- Weights ---- */

static FORCE_INLINE void pair_terms(const uint8_t *packed, size_t v, __m512i terms[2])
{
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i codes = _mm512_loadu_si512(packed + v * VECTOR_BYTES);
    const __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    terms[0] = _mm512_add_epi8(_mm512_and_si512(codes, mask), _mm512_set1_epi8(WINOGRAD_FIRST));
    terms[1] = _mm512_sub_epi8(second, _mm512_set1_epi8(WINOGRAD_SECOND));
}

static FORCE_INLINE void word_terms(const uint8_t *packed, size_t v, PackedFormat format,
                                    __m512i terms[2])
{
    const uint8_t *block = packed + v / BLOCK_VECTORS * block_bytes(format);
    const __m512i codes = load_codes(block, v % BLOCK_VECTORS, format);
    terms[0] = _mm512_and_si512(codes, _mm512_set1_epi16(255));
    terms[1] = _mm512_srli_epi16(codes, 8);
}

/* The terms of a span. Returns its rows. */
static FORCE_INLINE __m512i prepare_span(const uint8_t *packed, PackedFormat format,
                                         KernelKind kind, __m512i (*terms)[2])
{
    __m512i rows = _mm512_setzero_si512();
    for (size_t v = 0; v < (size_t)kind.span_blocks * block_vectors(kind); v++) {
        if (kind.has_pairs)
            pair_terms(packed, v, terms[v]);
        else if (format == PACKED_NIBBLES)
            word_terms(packed, v, PACKED_NIBBLES, terms[v]);
        else if (format == PACKED_FP4)
            word_terms(packed, v, PACKED_FP4, terms[v]);
        else
            word_terms(packed, v, PACKED_BYTES, terms[v]);
        rows = multiply_terms(rows, terms[v][0], terms[v][1], kind);
    }
    if (kind.has_pairs)
        rows = _mm512_slli_epi32(rows, 8);
    return _mm512_sub_epi32(_mm512_setzero_si512(), rows);
}

/* Blocks [first, first + count) of a tile; asks for those of the next one. */
static FORCE_INLINE void prepare_chunk(const PackedMatrix *m, size_t tile, size_t first,
                                       size_t count, KernelKind kind, Chunk *chunk)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(m->scale_type);
    const size_t span_bytes = (size_t)kind.span_blocks * block_bytes(m->format);
    const size_t n_vectors = (size_t)kind.span_blocks * block_vectors(kind);
    const uint8_t *group = packed_group(m, tile, first / m->group_blocks);
    size_t span = 0;
    for (size_t block = 0; block < count; block += m->group_blocks, group += m->group_bytes) {
        const __m512 scales = load_rows(group, m->scale_type);
        const __m512 biases = load_rows(group + scale_bytes, m->scale_type);
        const uint8_t *packed = group + 2 * scale_bytes;
        for (; packed < group + m->group_bytes; packed += span_bytes, span++) {
            chunk->scales[span] = scales;
            chunk->biases[span] = biases;
            chunk->packed[span] = packed;
            chunk->rows[span] =
                prepare_span(packed, m->format, kind, chunk->terms + span * n_vectors);
        }
        for (size_t line = 0; line < m->group_bytes; line += 64)
            _mm_prefetch((const char *)group + m->tile_bytes + line, _MM_HINT_T1);
    }
    chunk->n_spans = span;
}

/* ---- Tokens ---- */

/* The span of tokens' inputs that meets one of weights. */
typedef struct TokenSpan {
    const int8_t *codes, *shared; /* of the first token; of bytes that pairs share */
    const ActivationScale *scale; /* of its block */
    const int32_t *rest;          /* in *scale: its span's */
    const float *offset;
} TokenSpan;

static FORCE_INLINE TokenSpan token_span(const int8_t *codes, const ActivationScale *scale,
                                         size_t half, KernelKind kind)
{
    const size_t half_bytes = kind.has_pairs ? WEIGHT_BLOCK : 2 * WEIGHT_BLOCK;
    const bool is_half = kind.span_blocks == 1;
    return (TokenSpan){codes + half * half_bytes,
                       codes + ACTIVATION_BLOCK + half * (WEIGHT_BLOCK / 2), scale,
                       is_half ? &scale->half_pair_rests[half] : &scale->pair_rest,
                       is_half ? &scale->half_offsets[half] : &scale->offset};
}

/* Adds a span's products with `count` tokens to the accumulators. */
static FORCE_INLINE void multiply_span(const Chunk *chunk, size_t span, TokenSpan x, size_t count,
                                       KernelKind kind, __m512 *acc)
{
    const size_t step = block_code_bytes(kind);
    const size_t n_vectors = (size_t)kind.span_blocks * block_vectors(kind);
    const __m512i(*terms)[2] = chunk->terms + span * n_vectors;
    __m512i high[TOKENS], low[TOKENS];
    UNROLL
    for (size_t t = 0; t < count; t++) {
        high[t] = _mm512_set1_epi32(x.rest[t * FLOATS_PER_SCALE]);
        if (kind.has_pairs)
            low[t] = chunk->rows[span];
        else
            high[t] = _mm512_add_epi32(high[t], chunk->rows[span]);
    }
    /* Unrolled, since the end of so short a loop is not foreseen: a fifth of the time. */
    UNROLL
    for (size_t v = 0; v < n_vectors; v++) {
        const __m512i first = terms[v][0], second = terms[v][1];
        const __m512i packed =
            kind.has_pairs ? _mm512_loadu_si512(chunk->packed[span] + v * VECTOR_BYTES) : first;
        UNROLL
        for (size_t t = 0; t < count; t++) {
            const int8_t *own = x.codes + t * step + 8 * v;
            const __m512i a = broadcast_codes(own), b = broadcast_codes(own + 4);
            high[t] = multiply_terms(high[t], add_terms(first, b, kind), add_terms(second, a, kind),
                                     kind);
            if (kind.has_pairs)
                low[t] = add_products(low[t], packed, broadcast_codes(x.shared + t * step + 4 * v));
        }
    }
    UNROLL
    for (size_t t = 0; t < count; t++) {
        if (kind.has_pairs)
            high[t] = join_planes(high[t], low[t]);
        acc[t] = add_span(acc[t], high[t], chunk->scales[span], chunk->biases[span],
                          x.scale[t].scale, x.offset[t * FLOATS_PER_SCALE]);
    }
}

/* Adds a chunk that begins at block `first` to the accumulators of `count` tokens. */
static FORCE_INLINE void add_chunk(const KernelJob *job, const Chunk *chunk, size_t first,
                                   size_t token, size_t count, KernelKind kind, __m512 *to)
{
    const size_t step = activation_index(job->x, token, 1) - activation_index(job->x, token, 0);
    const size_t x_block = first * WEIGHT_BLOCK / ACTIVATION_BLOCK;
    const int8_t *codes = activation_codes(job->x, token, x_block);
    const ActivationScale *scale = activation_scale(job->x, token, x_block);
    __m512 acc[TOKENS];
    size_t half = 0;

    UNROLL
    for (size_t t = 0; t < count; t++)
        acc[t] = to[t];
    for (size_t span = 0; span < chunk->n_spans; span++) {
        multiply_span(chunk, span, token_span(codes, scale, half, kind), count, kind, acc);
        half ^= kind.span_blocks == 1;
        if (half == 0) {
            codes += step * block_code_bytes(kind);
            scale += step;
        }
    }
    UNROLL
    for (size_t t = 0; t < count; t++)
        to[t] = acc[t];
}

/* ---- Tiles ---- */

/* `tiles` tiles with tokens [token, token + width), token being the first of a token tile. What
 * lies behind the last of them is read (ACTIVATION_SLACK_TOKENS), multiplied and dropped. */
static FORCE_INLINE void multiply_tiles(const KernelJob *job, size_t first_tile, size_t tiles,
                                        size_t token, size_t width, size_t chunk_blocks,
                                        KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    __m512 acc[ROW_TILES][TOKENS_TOGETHER];
    Chunk chunk;

    for (size_t i = 0; i < tiles; i++) {
        for (size_t t = 0; t < width + width % 2; t++)
            acc[i][t] = _mm512_setzero_ps();
    }
    for (size_t block = 0; block < m->n_blocks; block += chunk_blocks) {
        size_t left = m->n_blocks - block, count = left < chunk_blocks ? left : chunk_blocks;
        for (size_t i = 0; i < tiles; i++) {
            size_t t = 0;
            prepare_chunk(m, first_tile + i, block, count, kind, &chunk);
            /* In pieces of 8, 4 and 2, the last of which may be one too large. */
            for (; t + 6 < width; t += 8)
                add_chunk(job, &chunk, block, token + t, 8, kind, acc[i] + t);
            for (; t + 2 < width; t += 4)
                add_chunk(job, &chunk, block, token + t, 4, kind, acc[i] + t);
            if (t < width)
                add_chunk(job, &chunk, block, token + t, 2, kind, acc[i] + t);
        }
    }
    for (size_t i = 0; i < tiles; i++) {
        for (size_t t = 0; t < width; t++)
            store_tile(job, first_tile + i, token + t, acc[i][t]);
    }
}

/* How many blocks of a tile make a chunk, so that all are of about the same size. */
static FORCE_INLINE size_t chunk_size(const PackedMatrix *m, KernelKind kind)
{
    const size_t most = CHUNK_VECTORS / block_vectors(kind);
    const size_t n_chunks = (m->n_blocks + most - 1) / most;
    const size_t size = (m->n_blocks + n_chunks - 1) / n_chunks;
    return (size + GROUP_BLOCKS_MAX - 1) / GROUP_BLOCKS_MAX * GROUP_BLOCKS_MAX;
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const size_t chunk_blocks = chunk_size(job->matrix, kind), n_tokens = job->x->n_tokens;
    for (size_t token = 0; token < n_tokens; token += TOKENS_TOGETHER) {
        size_t left = n_tokens - token;
        for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
            size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
            multiply_tiles(job, job->first_tile + done, tiles, token,
                           left < TOKENS_TOGETHER ? left : TOKENS_TOGETHER, chunk_blocks, kind);
        }
    }
}

void avx512_multiply_winograd(const KernelJob *job)
{
    const bool are_pairs =
        job->x->precision == ACTIVATIONS_INT12 && job->matrix->format == PACKED_NIBBLES;
    if (job->x->are_words) /* whatever the format */
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_BYTES, 8, 2, false);
    else if (are_pairs && job->x->n_tokens >= WINOGRAD_FROM_TOKENS)
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_NIBBLES, 4, 2, true);
    else
        avx512_multiply_codes(job);
}
