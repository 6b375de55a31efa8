/* AVX2 products of quantised weights with many tokens: bound by multiply-adds.
 *
 * A block of two tiles (or the two nibble planes of one tile of 8-bit codes) is unpacked into an
 * array of 512 bytes in the first-level cache. Then columns of activations pass 4 at a time (4
 * tokens, or 2 in two planes): per 4 inputs, 2 vectors of weights and 4 broadcasts feed 8
 * vpmaddubsw into 8 sums of 16 bits, so loads stay below the multiplications. At the block's end
 * each sum is widened, converted and scaled into its accumulator in memory, in 5 vector operations.
 * Registers: 8 sums, 2 weights, a broadcast and a product.
 *
 * Inputs are cut into chunks whose activations stay in the second-level cache while ROW_TILES tiles
 * use them; accumulators of a token tile stay in the first. */
#include "kernels_avx2.h"

enum {
    ROW_TILES = 8,
    CHUNK_BLOCKS = 64, /* 64 tokens * 64 blocks * 40 bytes = 160 KiB; a multiple of any group */
    PLANES = 2,        /* of codes */
    COLUMNS_AT_ONCE = 4,
};

/* What is fixed while one kernel is compiled. */
typedef struct Kind {
    PackedFormat format;
    ScaleType type;
    uint32_t code_bits;
    size_t planes; /* of the activations */
} Kind;

/* The unpacked block: vector j of plane p at [j][p]. */
typedef struct Planes {
    __m256i codes[BLOCK_VECTORS][PLANES];
} Planes;

static FORCE_INLINE void unpack_block(const uint8_t *at, size_t plane, Kind kind, Planes *out)
{
    if (kind.format == PACKED_BYTES) {
        UNROLL
        for (int j = 0; j < BLOCK_VECTORS; j++) {
            if (kind.code_bits == 8) {
                unpack_pair(at + j * 32, false, &out->codes[j][0], &out->codes[j][1]);
            } else {
                out->codes[j][plane] = load_bytes(at + j * 32);
            }
        }
        return;
    }
    UNROLL
    for (int i = 0; i < BLOCK_VECTORS / 2; i++)
        unpack_pair(at + i * 32, kind.format == PACKED_FP4, &out->codes[2 * i][plane],
                    &out->codes[2 * i + 1][plane]);
}

/* Widens the sums of plane p of the codes with `count` tokens, and adds a token's planes. step:
 * what a code in plane p counts. */
static FORCE_INLINE void widen_sums(const __m256i sums[COLUMNS_AT_ONCE], size_t count,
                                    size_t planes, int16_t step, bool is_first,
                                    __m256i dots[COLUMNS_AT_ONCE])
{
    UNROLL
    for (size_t t = 0; t < count; t++) {
        __m256i last = _mm256_madd_epi16(sums[t * planes + planes - 1], _mm256_set1_epi16(step));
        if (planes == 2) {
            const __m256i steps = _mm256_set1_epi16((int16_t)(step * ACTIVATION_PLANE_STEP));
            last = _mm256_add_epi32(last, _mm256_madd_epi16(sums[t * planes], steps));
        }
        dots[t] = is_first ? last : _mm256_add_epi32(dots[t], last);
    }
}

/* The exact sums of both planes of codes with `count` tokens, 32 bits a row; plane_1: what a code
 * in plane 1 counts. */
static FORCE_INLINE void dot_planes(const Planes *w, const ActivationBlock *x, size_t count,
                                    size_t planes, int16_t plane_1, int run,
                                    __m256i dots[PLANES][COLUMNS_AT_ONCE])
{
    const size_t columns = count * planes;

    UNROLL
    for (int first = 0; first < BLOCK_VECTORS; first += run) {
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
                __m256i v = broadcast_codes(x[t].codes + 4 * j);
                sums[0][t] = _mm256_add_epi16(sums[0][t], _mm256_maddubs_epi16(first_plane, v));
                sums[1][t] = _mm256_add_epi16(sums[1][t], _mm256_maddubs_epi16(second_plane, v));
                PIN(sums[0][t]);
                PIN(sums[1][t]);
            }
        }
        widen_sums(sums[0], count, planes, 1, first == 0, dots[0]);
        widen_sums(sums[1], count, planes, plane_1, first == 0, dots[1]);
    }
}

/* Adds a block to the accumulators of `count` tokens: of two tiles, or of one in two planes. */
static FORCE_INLINE void add_tokens(const Planes *w, const ActivationBlock *x, size_t count,
                                    Kind kind, const __m256 scales[PLANES],
                                    const __m256 biases[PLANES], __m256 *const acc[PLANES])
{
    __m256i dots[PLANES][COLUMNS_AT_ONCE];
    int run = sums_in_16_bits(kind.format, kind.code_bits);
    bool one_tile = kind.format == PACKED_BYTES && kind.code_bits == 8;

    /* Each pass loads the weights afresh: hoisted out of the loop, 16 vectors would be copied to
     * the stack, and loaded from there once a use. */
    __asm__ volatile("" : "+r"(w) : : "memory");
    dot_planes(w, x, count, kind.planes, one_tile ? 16 : 1, run, dots);
    UNROLL
    for (size_t t = 0; t < count; t++) {
        if (one_tile) {
            acc[0][t] = add_block(acc[0][t], _mm256_add_epi32(dots[0][t], dots[1][t]), scales[0],
                                  biases[0], x + t * kind.planes);
            continue;
        }
        UNROLL
        for (int p = 0; p < PLANES; p++)
            acc[p][t] = add_block(acc[p][t], dots[p][t], scales[p], biases[p], x + t * kind.planes);
    }
}

/* Adds blocks [first, first + count) of `tiles` tiles (1 or 2) to the accumulators of `width`
 * tokens. acc has a row of accumulators for a second tile even when there is none. */
static FORCE_INLINE void add_chunk(const PackedMatrix *m, size_t tile, size_t tiles,
                                   const ActivationBlock *x, size_t width, size_t first,
                                   size_t count, __m256 (*acc)[ACTIVATION_TILE], Kind kind)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(kind.type);
    const size_t block_bytes = kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const size_t at_once = COLUMNS_AT_ONCE / kind.planes;
    Planes w = {0};
    __m256 scales[PLANES] = {0}, biases[PLANES] = {0};

    for (size_t block = first; block < first + count; block++) {
        size_t in_group = block % m->group_blocks;
        for (size_t i = 0; i < tiles; i++) {
            const uint8_t *at = packed_group(m, tile + i, block / m->group_blocks);
            scales[i] = load_rows(at, kind.type);
            biases[i] = load_rows(at + scale_bytes, kind.type);
            unpack_block(at + 2 * scale_bytes + in_group * block_bytes, i, kind, &w);
        }
        size_t t = 0;
        for (; t + at_once <= width; t += at_once) {
            __m256 *const at[PLANES] = {acc[0] + t, acc[1] + t};
            add_tokens(&w, x + t * kind.planes, at_once, kind, scales, biases, at);
        }
        for (; t < width; t++) {
            __m256 *const at[PLANES] = {acc[0] + t, acc[1] + t};
            add_tokens(&w, x + t * kind.planes, 1, kind, scales, biases, at);
        }
        x += width * kind.planes;
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, Kind kind)
{
    const PackedMatrix *m = job->matrix;
    const size_t step = kind.format == PACKED_BYTES && kind.code_bits == 8 ? 1 : 2;
    __m256 acc[ROW_TILES + 1][ACTIVATION_TILE];

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
                for (size_t i = 0; i < tiles; i += step)
                    add_chunk(m, first_tile + i, tiles - i < step ? 1 : step,
                              activation_block(job->x, token, block), width, block, blocks, acc + i,
                              kind);
            }
            for (size_t i = 0; i < tiles; i++) {
                for (size_t t = 0; t < width; t++)
                    store_tile(job, first_tile + i, token + t, acc[i][t]);
            }
        }
    }
}

static FORCE_INLINE void multiply_type(const KernelJob *job, PackedFormat format, ScaleType type,
                                       uint32_t code_bits)
{
    if (job->x->planes == 2)
        multiply_kind(job, (Kind){format, type, code_bits, 2});
    else
        multiply_kind(job, (Kind){format, type, code_bits, 1});
}

void avx2_multiply_many(const KernelJob *job)
{
    AVX2_MULTIPLY(multiply_type, job);
}
