/* AVX2 products of quantised weights with few tokens: bound by reading the weights.
 *
 * Every weight is read once and goes straight from memory through the multiply-adds. Several tiles
 * go side by side, each a stream of its own: that gives the hardware's prefetchers more to run
 * ahead on than one stream (a fifth more bandwidth where it was measured; software prefetch added
 * nothing), lets tiles share the broadcasts, and hides the latency of each accumulator's additions
 * behind the others. Registers, with 4 tiles: 4 accumulators, 4 sums of 16 bits (8 when 8-bit codes
 * go as two planes of nibbles), 2 broadcasts, 2 vectors of codes.
 *
 * With more than one token, 2 tiles take 2 tokens at a time, and are read again from the
 * first-level cache for the next 2. Activations of two planes are like two tokens whose dots are
 * added (columns: the planes of the tokens at hand). */
#include "kernels_avx2.h"

enum { LANES_AT_ONCE = 4 /* tiles times columns */ };

/* What is fixed while one kernel is compiled. */
typedef struct Kind {
    PackedFormat format;
    ScaleType type;
    uint32_t code_bits;
    size_t planes;
    size_t n_tokens;  /* at once */
    size_t n_columns; /* n_tokens * planes */
} Kind;

/* Adds the products of one vector of codes to the sums of each column. */
static FORCE_INLINE void add_products(__m256i codes, const __m256i v[LANES_AT_ONCE],
                                      size_t n_columns, __m256i *sums)
{
    UNROLL
    for (size_t t = 0; t < n_columns; t++) {
        sums[t] = _mm256_add_epi16(sums[t], _mm256_maddubs_epi16(codes, v[t]));
        PIN(sums[t]);
    }
}

/* Adds vectors 2 * pair and 2 * pair + 1 of a block to the sums of a tile. */
static FORCE_INLINE void add_pair(const uint8_t *at, int pair, Kind kind,
                                  const __m256i even[LANES_AT_ONCE],
                                  const __m256i odd[LANES_AT_ONCE], __m256i *low, __m256i *high)
{
    __m256i first, second;
    if (kind.format != PACKED_BYTES) {
        unpack_pair(at + pair * 32, kind.format == PACKED_FP4, &first, &second);
        add_products(first, even, kind.n_columns, low);
        add_products(second, odd, kind.n_columns, low);
    } else if (kind.code_bits == 8) {
        unpack_pair(at + pair * 64, false, &first, &second);
        add_products(first, even, kind.n_columns, low);
        add_products(second, even, kind.n_columns, high);
        unpack_pair(at + pair * 64 + 32, false, &first, &second);
        add_products(first, odd, kind.n_columns, low);
        add_products(second, odd, kind.n_columns, high);
    } else {
        add_products(load_bytes(at + pair * 64), even, kind.n_columns, low);
        add_products(load_bytes(at + pair * 64 + 32), odd, kind.n_columns, low);
    }
}

/* Widens the sums of each tile and column, and adds what belongs to one token. */
static FORCE_INLINE void finish_dots(const __m256i *low, const __m256i *high, size_t tiles,
                                     Kind kind, bool is_first, __m256i *dots)
{
    const bool two_planes = kind.format == PACKED_BYTES && kind.code_bits == 8;
    UNROLL
    for (size_t i = 0; i < tiles * kind.n_tokens; i++) {
        __m256i total = _mm256_setzero_si256();
        UNROLL
        for (size_t p = 0; p < kind.planes; p++) {
            /* Widening multiplies by what the activations' plane and the codes' plane count. */
            const int16_t step = p + 1 < kind.planes ? ACTIVATION_PLANE_STEP : 1;
            size_t lane = i * kind.planes + p;
            __m256i wide = _mm256_madd_epi16(low[lane], _mm256_set1_epi16(step));
            total = p == 0 ? wide : _mm256_add_epi32(total, wide);
            if (two_planes) {
                const __m256i steps = _mm256_set1_epi16((int16_t)(16 * step));
                total = _mm256_add_epi32(total, _mm256_madd_epi16(high[lane], steps));
            }
        }
        dots[i] = is_first ? total : _mm256_add_epi32(dots[i], total);
    }
}

/* Dots of one block of `tiles` tiles, tile_bytes apart, with each token: [tile * n_tokens + token].
 */
static FORCE_INLINE void dot_block(const uint8_t *at, size_t tile_bytes, size_t tiles,
                                   const ActivationBlock *x, Kind kind, __m256i dots[LANES_AT_ONCE])
{
    const size_t lanes = tiles * kind.n_columns;
    const int run = sums_in_16_bits(kind.format, kind.code_bits) / 2; /* pairs of vectors */

    UNROLL
    for (int begin = 0; begin < BLOCK_VECTORS / 2; begin += run) {
        __m256i low[LANES_AT_ONCE], high[LANES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < lanes; i++)
            low[i] = high[i] = _mm256_setzero_si256();
        UNROLL
        for (int pair = begin; pair < begin + run; pair++) {
            __m256i even[LANES_AT_ONCE], odd[LANES_AT_ONCE];
            UNROLL
            for (size_t t = 0; t < kind.n_columns; t++) {
                even[t] = broadcast_codes(x[t].codes + 8 * pair);
                odd[t] = broadcast_codes(x[t].codes + 8 * pair + 4);
            }
            UNROLL
            for (size_t i = 0; i < tiles; i++)
                add_pair(at + i * tile_bytes, pair, kind, even, odd, low + i * kind.n_columns,
                         high + i * kind.n_columns);
        }
        finish_dots(low, high, tiles, kind, begin == 0, dots);
    }
}

/* Tokens [token, token + kind.n_tokens) with `tiles` tiles. */
static FORCE_INLINE void multiply_tiles(const KernelJob *job, size_t tile, size_t tiles,
                                        size_t token, Kind kind)
{
    const PackedMatrix *m = job->matrix;
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(kind.type);
    const size_t block_bytes = kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const size_t n_groups = m->n_blocks / m->group_blocks;
    const ActivationBlock *x =
        job->x->blocks + token * kind.planes; /* all tokens are in the first tile of them */
    const uint8_t *group = packed_group(m, tile, 0);
    __m256 acc[LANES_AT_ONCE];

    UNROLL
    for (size_t i = 0; i < tiles * kind.n_tokens; i++)
        acc[i] = _mm256_setzero_ps();
    for (size_t g = 0; g < n_groups; g++) {
        const uint8_t *block = group + 2 * scale_bytes;
        for (size_t b = 0; b < m->group_blocks; b++) {
            __m256i dots[LANES_AT_ONCE];
            dot_block(block, m->tile_bytes, tiles, x, kind, dots);
            UNROLL
            for (size_t i = 0; i < tiles; i++) {
                const uint8_t *at = group + i * m->tile_bytes;
                __m256 scales = load_rows(at, kind.type);
                __m256 biases = load_rows(at + scale_bytes, kind.type);
                UNROLL
                for (size_t t = 0; t < kind.n_tokens; t++) {
                    size_t lane = i * kind.n_tokens + t;
                    acc[lane] =
                        add_block(acc[lane], dots[lane], scales, biases, x + t * kind.planes);
                }
            }
            block += block_bytes;
            x += job->x->n_tokens * kind.planes;
        }
        group += m->group_bytes;
    }
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++)
            store_tile(job, tile + i, token + t, acc[i * kind.n_tokens + t]);
    }
}

/* All tokens, two at a time, with `tiles` tiles. */
static FORCE_INLINE void multiply_pairs(const KernelJob *job, size_t tile, size_t tiles, Kind one,
                                        Kind two)
{
    size_t token = 0;
    for (; token + 2 <= job->x->n_tokens; token += 2)
        multiply_tiles(job, tile, tiles, token, two);
    if (token < job->x->n_tokens)
        multiply_tiles(job, tile, tiles, token, one);
}

/* All tokens, one at a time. */
static FORCE_INLINE void multiply_singly(const KernelJob *job, size_t tile, size_t tiles, Kind kind)
{
    for (size_t token = 0; token < job->x->n_tokens; token++)
        multiply_tiles(job, tile, tiles, token, kind);
}

static FORCE_INLINE void multiply_type(const KernelJob *job, PackedFormat format, ScaleType type,
                                       uint32_t code_bits)
{
    const Kind one = {format, type, code_bits, 1, 1, 1}, two = {format, type, code_bits, 1, 2, 2};
    const Kind fine = {format, type, code_bits, 2, 1, 2};
    size_t tile = job->first_tile, end = job->first_tile + job->n_tiles;

    if (job->x->planes == 2) {
        for (; tile + 2 <= end; tile += 2)
            multiply_singly(job, tile, 2, fine);
        if (tile < end)
            multiply_singly(job, tile, 1, fine);
        return;
    }
    if (job->x->n_tokens == 1) {
        for (; tile + 4 <= end; tile += 4)
            multiply_tiles(job, tile, 4, 0, one);
        for (; tile < end; tile++)
            multiply_tiles(job, tile, 1, 0, one);
        return;
    }
    for (; tile + 2 <= end; tile += 2)
        multiply_pairs(job, tile, 2, one, two);
    if (tile < end)
        multiply_pairs(job, tile, 1, one, two);
}

void avx2_multiply_few(const KernelJob *job)
{
    AVX2_MULTIPLY(multiply_type, job);
}
