/* AMX products of quantised weights with many tokens.
 *
 * One tdpbsud multiplies 16 tokens' codes of 64 inputs with 16 rows' codes of them: a span of a
 * tile of weights, unpacked, is the second operand as it stands in memory, 8-bit codes even without
 * unpacking. The sums of a span come out exact, a row of 16 lanes for each token, and are scaled
 * into the accumulators just as the VNNI kernels do it, in the same order: the same bits.
 *
 * The scaling, not the tiles, is what takes the time: per span and token, 6 vector operations for 2
 * * 1024 products, which alone would take the tiles 2 cycles. So the 16 tokens' accumulators stay
 * in registers through a chunk of inputs, and tiles are issued two spans before the one that
 * is scaled.
 *
 * A chunk of a weight tile is unpacked to the first-level cache for up to TOKENS tokens, whose
 * codes of the chunk stay in the second. The last 16 tokens may not all exist: what lies behind
 * them is read (ACTIVATION_SLACK_BYTES), multiplied and dropped. */
#include "kernels_avx512.h"

enum {
    TOKENS = 128,      /* at a time; a multiple of ACTIVATION_TILE */
    ROW_TILES = 8,     /* accumulators: 8 * 128 * 64 bytes = 64 KiB */
    CHUNK_BLOCKS = 32, /* 128 tokens * 2 planes * 1 KiB = 256 KiB; a multiple of any group */
    AMX_TOKENS = 16,   /* rows of a tile */
    SPANS_AHEAD = 2,   /* tile sums take long to arrive; 4 are no faster */
    /* Up to which the VNNI kernel is faster: tokens times planes; tokens where groups are of 32,
     * which double the scaling. */
    FEW_COLUMNS = 31,
    FEW_TOKENS_OF_NARROW = 63,
};

/* Tile registers; names for the preprocessor, since the intrinsics print them. */
#define SUM_HIGH 0
#define SUM_LOW 1
#define CODES_HIGH 2
#define CODES_LOW 3
#define WEIGHTS 4
#define WEIGHTS_PACKED 5 /* two codes a byte, for the plane that pairs of inputs share */
enum { TILES_USED = 6 };

/* What ldtilecfg reads. */
typedef struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* A chunk of one weight tile: its spans' codes, vector after vector, and what they count. */
typedef struct Chunk {
    size_t n_spans;
    const uint8_t *codes[CHUNK_BLOCKS], *packed[CHUNK_BLOCKS];
    __m512 scales[CHUNK_BLOCKS], biases[CHUNK_BLOCKS];
    _Alignas(64) uint8_t unpacked[CHUNK_BLOCKS * BYTE_BLOCK_BYTES];
} Chunk;

/* Sums of a span with 16 tokens, a plane each. */
typedef struct Sums {
    _Alignas(64) int32_t plane[2][AMX_TOKENS][TILE_ROWS];
} Sums;

static void load_config(KernelKind kind)
{
    const int inputs = kind.span_blocks * WEIGHT_BLOCK;
    TileConfig config = {.palette = 1};
    for (int i = 0; i < TILES_USED; i++) {
        config.rows[i] = AMX_TOKENS;
        config.row_bytes[i] = 64;
    }
    config.row_bytes[CODES_HIGH] = (uint16_t)inputs;
    config.row_bytes[CODES_LOW] = (uint16_t)(kind.has_pairs ? inputs / 2 : inputs);
    config.rows[WEIGHTS] = (uint8_t)(inputs / 4);
    config.rows[WEIGHTS_PACKED] = (uint8_t)(inputs / 8);
    _tile_loadconfig(&config);
}

/* Blocks [first, first + count) of a tile. */
static FORCE_INLINE void unpack_chunk(const PackedMatrix *m, size_t tile, size_t first,
                                      size_t count, KernelKind kind, Chunk *chunk)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(m->scale_type);
    uint8_t *to = chunk->unpacked;
    chunk->n_spans = 0;
    for (size_t block = first; block < first + count; block += (size_t)kind.span_blocks) {
        const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
        const size_t span = chunk->n_spans++;
        chunk->scales[span] = load_rows(at, m->scale_type);
        chunk->biases[span] = load_rows(at + scale_bytes, m->scale_type);
        at += 2 * scale_bytes + block % m->group_blocks * block_bytes(kind.format);
        chunk->packed[span] = at;
        chunk->codes[span] = kind.format == PACKED_BYTES ? at : to;
        if (kind.format == PACKED_BYTES)
            continue;
        for (int b = 0; b < kind.span_blocks; b++) {
            UNROLL
            for (size_t j = 0; j < BLOCK_VECTORS; j++, to += VECTOR_BYTES)
                _mm512_store_si512(to, load_codes(at, j, kind.format));
            at += block_bytes(kind.format);
        }
    }
    /* The tile loads that follow do not tell the compiler that they read memory. */
    __asm__ volatile("" : : : "memory");
}

/* x: the block of codes of the first of 16 tokens; half: which half the span is, if it is one. */
static FORCE_INLINE void multiply_span(const Chunk *chunk, size_t span, const int8_t *x,
                                       size_t half, KernelKind kind, Sums *sums)
{
    const size_t stride = block_code_bytes(kind);
    _tile_loadd(WEIGHTS, chunk->codes[span], VECTOR_BYTES);
    _tile_loadd(CODES_HIGH, x + half * WEIGHT_BLOCK, stride);
    _tile_zero(SUM_HIGH);
    _tile_dpbsud(SUM_HIGH, CODES_HIGH, WEIGHTS);
    if (kind.planes == 2) {
        const size_t inputs_a_byte = kind.has_pairs ? 2 : 1;
        const int8_t *low = x + ACTIVATION_BLOCK + half * WEIGHT_BLOCK / inputs_a_byte;
        _tile_loadd(CODES_LOW, low, stride);
        _tile_zero(SUM_LOW);
        if (kind.has_pairs) {
            _tile_loadd(WEIGHTS_PACKED, chunk->packed[span], VECTOR_BYTES);
            _tile_dpbsud(SUM_LOW, CODES_LOW, WEIGHTS_PACKED);
        } else {
            _tile_dpbsud(SUM_LOW, CODES_LOW, WEIGHTS);
        }
        _tile_stored(SUM_LOW, sums->plane[1], sizeof(sums->plane[1][0]));
    }
    _tile_stored(SUM_HIGH, sums->plane[0], sizeof(sums->plane[0][0]));
}

static FORCE_INLINE void scale_sums(const Sums *sums, __m512 scales, __m512 biases,
                                    const ActivationScale *x, const float *x_offsets, size_t planes,
                                    __m512 acc[AMX_TOKENS])
{
    UNROLL
    for (size_t t = 0; t < AMX_TOKENS; t++) {
        __m512i dot = _mm512_load_si512(sums->plane[0][t]);
        if (planes == 2)
            dot = join_planes(dot, _mm512_load_si512(sums->plane[1][t]));
        acc[t] = add_span(acc[t], dot, scales, biases, x[t].scale, x_offsets[t * FLOATS_PER_SCALE]);
    }
}

/* Adds a chunk that begins at block `first` to the accumulators of 16 tokens. */
static FORCE_INLINE void add_chunk(const KernelJob *job, const Chunk *chunk, size_t first,
                                   size_t token, KernelKind kind, __m512 *to)
{
    const size_t step = activation_index(job->x, token, 1) - activation_index(job->x, token, 0);
    const size_t x_block = first * WEIGHT_BLOCK / ACTIVATION_BLOCK;
    const int8_t *codes = activation_codes(job->x, token, x_block);
    const ActivationScale *x = activation_scale(job->x, token, x_block);
    const size_t spans_per_block = 2 / (size_t)kind.span_blocks;
    Sums sums[SPANS_AHEAD * 2];
    __m512 acc[AMX_TOKENS];

    UNROLL
    for (size_t t = 0; t < AMX_TOKENS; t++)
        acc[t] = to[t];
    for (size_t next = 0; next < chunk->n_spans + SPANS_AHEAD; next++) {
        if (next < chunk->n_spans)
            multiply_span(chunk, next,
                          codes + next / spans_per_block * step * block_code_bytes(kind),
                          next % spans_per_block, kind, &sums[next % (SPANS_AHEAD * 2)]);
        if (next < SPANS_AHEAD)
            continue;
        size_t span = next - SPANS_AHEAD, half = span % spans_per_block;
        const ActivationScale *at = x + span / spans_per_block * step;
        scale_sums(&sums[span % (SPANS_AHEAD * 2)], chunk->scales[span], chunk->biases[span], at,
                   kind.span_blocks == 1 ? &at->half_offsets[half] : &at->offset, kind.planes, acc);
    }
    UNROLL
    for (size_t t = 0; t < AMX_TOKENS; t++)
        to[t] = acc[t];
}

/* `tiles` tiles with tokens [token, token + width). */
static FORCE_INLINE void multiply_tiles(const KernelJob *job, size_t tile, size_t tiles,
                                        size_t token, size_t width, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    __m512 acc[ROW_TILES][TOKENS];
    Chunk chunk;

    memset(acc, 0, tiles * sizeof(acc[0]));
    for (size_t block = 0; block < m->n_blocks; block += CHUNK_BLOCKS) {
        size_t count = m->n_blocks - block;
        count = count < CHUNK_BLOCKS ? count : CHUNK_BLOCKS;
        for (size_t i = 0; i < tiles; i++) {
            unpack_chunk(m, tile + i, block, count, kind, &chunk);
            for (size_t t = 0; t < width; t += AMX_TOKENS)
                add_chunk(job, &chunk, block, token + t, kind, acc[i] + t);
        }
    }
    for (size_t i = 0; i < tiles; i++) {
        for (size_t t = 0; t < width; t++)
            store_tile(job, tile + i, token + t, acc[i][t]);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const size_t n_tokens = job->x->n_tokens;
    load_config(kind);
    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < n_tokens; token += TOKENS) {
            size_t width = n_tokens - token < TOKENS ? n_tokens - token : TOKENS;
            multiply_tiles(job, job->first_tile + done, tiles, token, width, kind);
        }
    }
    _tile_release();
}

static bool are_few(const KernelJob *job)
{
    const Activations *x = job->x;
    if (packed_span_blocks(job->matrix) == 1)
        return x->n_tokens <= FEW_TOKENS_OF_NARROW;
    return x->n_tokens * x->planes <= FEW_COLUMNS;
}

void amx_multiply_quantized(const KernelJob *job)
{
    const bool has_pairs = job->x->precision == ACTIVATIONS_INT12;
    if (are_few(job) || (has_pairs && job->matrix->format != PACKED_NIBBLES))
        avx512_multiply_codes(job);
    else if (has_pairs)
        KERNEL_BY_SPAN(multiply_kind, job, PACKED_NIBBLES, 4, 2, true);
    else
        KERNEL_BY_FORMAT(multiply_kind, job);
}
