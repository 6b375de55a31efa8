/* AVX2 products of quantised weights with few tokens: bound by reading the weights.
 *
 * Every weight is read once and goes straight from memory through the multiply-adds; the accumulators
 * of the tokens stay in registers. Several tiles go side by side, each a stream of its own: that gives the
 * prefetchers of the hardware more to run ahead on than one stream (measured: a fifth more bandwidth), and
 * hides the latency of each accumulator's additions behind the other tiles. */
#include "kernels_avx2.h"

enum { TOKENS_MAX = AVX2_FEW_TOKENS, TILES_MAX = 4 };

/* What is fixed while one kernel is compiled. */
typedef struct Kind {
    PackedFormat format;
    ScaleType type;
    uint32_t code_bits;
    size_t n_tokens;
} Kind;

/* The 32 products of each row, from 8 vectors of codes. */
static FORCE_INLINE __m256i dot_vectors(const __m256i w[BLOCK_VECTORS], const int8_t *codes, int run,
                                        __m256i weight)
{
    __m256i total = _mm256_setzero_si256();
    UNROLL
    for (int j = 0; j < BLOCK_VECTORS; j += run) {
        __m256i sum = _mm256_maddubs_epi16(w[j], broadcast_codes(codes + 4 * j));
        UNROLL
        for (int k = j + 1; k < j + run; k++)
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[k], broadcast_codes(codes + 4 * k)));
        sum = _mm256_madd_epi16(sum, weight);
        total = j == 0 ? sum : _mm256_add_epi32(total, sum);
    }
    return total;
}

/* Dots of a block of a tile with the tokens. 8-bit codes go as low + 16 * high. */
static FORCE_INLINE void dot_block(const uint8_t *at, const ActivationBlock *x, Kind kind,
                                   __m256i dots[TOKENS_MAX])
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int run = sums_in_16_bits(kind.format, kind.code_bits);
    __m256i w[BLOCK_VECTORS], high[BLOCK_VECTORS];

    if (kind.format != PACKED_BYTES) {
        UNROLL
        for (int i = 0; i < BLOCK_VECTORS / 2; i++)
            unpack_pair(at + i * 32, kind.format == PACKED_FP4, &w[2 * i], &w[2 * i + 1]);
    } else if (kind.code_bits == 8) {
        UNROLL
        for (int j = 0; j < BLOCK_VECTORS; j++)
            unpack_pair(at + j * 32, false, &w[j], &high[j]);
    } else {
        UNROLL
        for (int j = 0; j < BLOCK_VECTORS; j++)
            w[j] = load_bytes(at + j * 32);
    }
    UNROLL
    for (size_t t = 0; t < kind.n_tokens; t++)
        dots[t] = dot_vectors(w, x[t].codes, run, ones);
    if (kind.format == PACKED_BYTES && kind.code_bits == 8) {
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++)
            dots[t] = _mm256_add_epi32(
                dots[t], dot_vectors(high, x[t].codes, run, _mm256_set1_epi16(16)));
    }
}

static FORCE_INLINE void multiply_tiles(const KernelJob *job, size_t tile, size_t tiles, Kind kind)
{
    const PackedMatrix *m = job->matrix;
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(kind.type);
    const size_t block_bytes =
        kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const size_t n_groups = m->n_blocks / m->group_blocks;
    const ActivationBlock *x = job->x->blocks;
    const uint8_t *at = packed_group(m, tile, 0);
    __m256 acc[TILES_MAX][TOKENS_MAX];

    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++)
            acc[i][t] = _mm256_setzero_ps();
    }
    for (size_t group = 0; group < n_groups; group++) {
        UNROLL
        for (size_t i = 0; i < tiles; i++) {
            const uint8_t *block = at + i * m->tile_bytes;
            __m256 scales = load_rows(block, kind.type);
            __m256 biases = load_rows(block + scale_bytes, kind.type);
            block += 2 * scale_bytes;
            for (size_t b = 0; b < m->group_blocks; b++) {
                const ActivationBlock *blocks = x + b * kind.n_tokens;
                __m256i dots[TOKENS_MAX];
                dot_block(block, blocks, kind, dots);
                UNROLL
                for (size_t t = 0; t < kind.n_tokens; t++)
                    acc[i][t] = add_block(acc[i][t], dots[t], scales, biases, blocks + t);
                block += block_bytes;
            }
        }
        x += m->group_blocks * kind.n_tokens;
        at += m->group_bytes;
    }
    UNROLL
    for (size_t i = 0; i < tiles; i++) {
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++)
            store_tile(job, tile + i, t, acc[i][t]);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, Kind kind)
{
    const size_t at_once = kind.n_tokens == 1 ? TILES_MAX : 2;
    size_t tile = job->first_tile, end = job->first_tile + job->n_tiles;
    for (; tile + at_once <= end; tile += at_once)
        multiply_tiles(job, tile, at_once, kind);
    for (; tile < end; tile++)
        multiply_tiles(job, tile, 1, kind);
}

static FORCE_INLINE void multiply_type(const KernelJob *job, PackedFormat format, ScaleType type,
                                       uint32_t code_bits)
{
    switch (job->x->n_tokens) {
    case 1:
        multiply_kind(job, (Kind){format, type, code_bits, 1});
        break;
    case 2:
        multiply_kind(job, (Kind){format, type, code_bits, 2});
        break;
    case 3:
        multiply_kind(job, (Kind){format, type, code_bits, 3});
        break;
    default:
        multiply_kind(job, (Kind){format, type, code_bits, 4});
    }
}

static FORCE_INLINE void multiply_format(const KernelJob *job, PackedFormat format,
                                         uint32_t code_bits)
{
    switch (job->matrix->scale_type) {
    case SCALE_F32:
        multiply_type(job, format, SCALE_F32, code_bits);
        break;
    case SCALE_F16:
        multiply_type(job, format, SCALE_F16, code_bits);
        break;
    case SCALE_BF16:
        multiply_type(job, format, SCALE_BF16, code_bits);
        break;
    }
}

void avx2_multiply_few(const KernelJob *job)
{
    switch (job->matrix->format) {
    case PACKED_NIBBLES:
        multiply_format(job, PACKED_NIBBLES, 4);
        break;
    case PACKED_FP4:
        multiply_type(job, PACKED_FP4, SCALE_BF16, 4);
        break;
    default:
        if (job->matrix->code_bits == 5)
            multiply_format(job, PACKED_BYTES, 5);
        else if (job->matrix->code_bits == 6)
            multiply_format(job, PACKED_BYTES, 6);
        else
            multiply_format(job, PACKED_BYTES, 8);
    }
}
