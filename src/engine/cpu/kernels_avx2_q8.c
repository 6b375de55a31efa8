/* AVX2 products for codes of 5, 6 and 8 bits, one a byte.
 *
 * vpmaddubsw adds pairs of products into 16 bits with saturation: sums of 4 pairs fit for codes up to 31
 * (4 * 2 * 31 * 127 = 31,496), of 2 pairs for codes up to 63 (32,004), and not even one for codes up to
 * 255. So 8-bit codes are cut into two planes of nibbles, code = low + 16 * high, each of which adds 8
 * pairs like a nibble format (kernels_avx2.c); the widening multiply-add of the high plane multiplies by
 * 16 instead of 1. That costs two multiplications a vector, as every exact scheme here does, but only
 * a quarter of a widening.
 *
 * Two planes do not fit in the registers with anything else, so with many tokens 4 of them go past a
 * vector at a time, the weights coming from a small array in the first-level cache. */
#include "kernels_avx2.h"

enum {
    FEW_TOKENS = 4,
    ROW_TILES = 8,
    CHUNK_BLOCKS = 64,
    PREFETCH_BYTES = 1024,
    TOKENS_AT_ONCE = 4,
};

/* Dots of one block with `count` tokens. */
static FORCE_INLINE void dot_planes(const uint8_t *at, const ActivationBlock *x, size_t count,
                                    __m256i dots[TOKENS_AT_ONCE])
{
    const __m256i low_bits = _mm256_set1_epi8(15);
    __m256i low[TOKENS_AT_ONCE], high[TOKENS_AT_ONCE];
    for (size_t t = 0; t < count; t++)
        low[t] = high[t] = _mm256_setzero_si256();
    for (int j = 0; j < BLOCK_VECTORS; j++) {
        __m256i codes = load_bytes(at + j * 32);
        __m256i w_low = _mm256_and_si256(codes, low_bits);
        __m256i w_high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_bits);
        for (size_t t = 0; t < count; t++) {
            __m256i v = broadcast_codes(x[t].codes + 4 * j);
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(w_low, v));
            high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(w_high, v));
        }
    }
    for (size_t t = 0; t < count; t++)
        dots[t] = _mm256_add_epi32(_mm256_madd_epi16(low[t], _mm256_set1_epi16(1)),
                                   _mm256_madd_epi16(high[t], _mm256_set1_epi16(16)));
}

/* The same for codes of 5 and 6 bits, whose sums of `run` pairs fit. */
static FORCE_INLINE void dot_bytes(const uint8_t *at, const ActivationBlock *x, size_t count,
                                   int run, __m256i dots[TOKENS_AT_ONCE])
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t t = 0; t < count; t++)
        dots[t] = _mm256_setzero_si256();
    for (int j = 0; j < BLOCK_VECTORS; j += run) {
        __m256i sums[TOKENS_AT_ONCE];
        for (int k = j; k < j + run; k++) {
            __m256i w = load_bytes(at + k * 32);
            for (size_t t = 0; t < count; t++) {
                __m256i pairs = _mm256_maddubs_epi16(w, broadcast_codes(x[t].codes + 4 * k));
                sums[t] = k == j ? pairs : _mm256_add_epi16(sums[t], pairs);
            }
        }
        for (size_t t = 0; t < count; t++)
            dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(sums[t], ones));
    }
}

static FORCE_INLINE void dot_block(const uint8_t *at, const ActivationBlock *x, size_t count,
                                   uint32_t bits, __m256i dots[TOKENS_AT_ONCE])
{
    if (bits == 8)
        dot_planes(at, x, count, dots);
    else
        dot_bytes(at, x, count, bits == 6 ? 2 : 4, dots);
}

static FORCE_INLINE void multiply_few(const KernelJob *job, size_t n_tokens, ScaleType type,
                                      uint32_t bits)
{
    const PackedMatrix *m = job->matrix;
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(type);
    const size_t n_groups = m->n_blocks / m->group_blocks;
    const uint8_t *at = packed_group(m, job->first_tile, 0);

    for (size_t tile = job->first_tile; tile < job->first_tile + job->n_tiles; tile++) {
        __m256 acc[FEW_TOKENS];
        const ActivationBlock *x = job->x->blocks;
        for (size_t t = 0; t < n_tokens; t++)
            acc[t] = _mm256_setzero_ps();
        for (size_t group = 0; group < n_groups; group++) {
            __m256 scales = load_rows(at, type);
            __m256 biases = load_rows(at + scale_bytes, type);
            at += 2 * scale_bytes;
            for (size_t b = 0; b < m->group_blocks; b++) {
                __m256i dots[TOKENS_AT_ONCE];
                for (int line = 0; line < BYTE_BLOCK_BYTES; line += 64)
                    _mm_prefetch((const char *)at + PREFETCH_BYTES + line, _MM_HINT_T0);
                dot_block(at, x, n_tokens, bits, dots);
                for (size_t t = 0; t < n_tokens; t++)
                    acc[t] = add_block(acc[t], dots[t], scales, biases, x + t);
                at += BYTE_BLOCK_BYTES;
                x += n_tokens;
            }
        }
        for (size_t t = 0; t < n_tokens; t++)
            store_tile(job, tile, t, acc[t]);
    }
}

static FORCE_INLINE void add_tokens(const uint8_t *at, const ActivationBlock *x, size_t count,
                                    __m256 scales, __m256 biases, __m256 *acc, uint32_t bits)
{
    __m256i dots[TOKENS_AT_ONCE];
    dot_block(at, x, count, bits, dots);
    for (size_t t = 0; t < count; t++)
        acc[t] = add_block(acc[t], dots[t], scales, biases, x + t);
}

static FORCE_INLINE void add_chunk(const PackedMatrix *m, size_t tile, const ActivationBlock *x,
                                   size_t width, size_t first, size_t count, __m256 *acc,
                                   ScaleType type, uint32_t bits)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(type);
    for (size_t block = first; block < first + count; block += m->group_blocks) {
        const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
        __m256 scales = load_rows(at, type);
        __m256 biases = load_rows(at + scale_bytes, type);
        at += 2 * scale_bytes;
        for (size_t b = 0; b < m->group_blocks; b++) {
            size_t t = 0;
            for (; t + TOKENS_AT_ONCE <= width; t += TOKENS_AT_ONCE)
                add_tokens(at, x + t, TOKENS_AT_ONCE, scales, biases, acc + t, bits);
            for (; t < width; t++)
                add_tokens(at, x + t, 1, scales, biases, acc + t, bits);
            at += BYTE_BLOCK_BYTES;
            x += width;
        }
    }
}

static FORCE_INLINE void multiply_many(const KernelJob *job, ScaleType type, uint32_t bits)
{
    const PackedMatrix *m = job->matrix;
    __m256 acc[ROW_TILES][ACTIVATION_TILE];

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
                    add_chunk(m, first_tile + i, activation_block(job->x, token, block), width,
                              block, blocks, acc[i], type, bits);
            }
            for (size_t i = 0; i < tiles; i++) {
                for (size_t t = 0; t < width; t++)
                    store_tile(job, first_tile + i, token + t, acc[i][t]);
            }
        }
    }
}

static FORCE_INLINE void multiply_typed(const KernelJob *job, ScaleType type, uint32_t bits)
{
    switch (job->x->n_tokens) {
    case 1:
        multiply_few(job, 1, type, bits);
        break;
    case 2:
        multiply_few(job, 2, type, bits);
        break;
    case 3:
        multiply_few(job, 3, type, bits);
        break;
    case 4:
        multiply_few(job, 4, type, bits);
        break;
    default:
        multiply_many(job, type, bits);
    }
}

static FORCE_INLINE void multiply_bits(const KernelJob *job, uint32_t bits)
{
    switch (job->matrix->scale_type) {
    case SCALE_F32:
        multiply_typed(job, SCALE_F32, bits);
        break;
    case SCALE_F16:
        multiply_typed(job, SCALE_F16, bits);
        break;
    case SCALE_BF16:
        multiply_typed(job, SCALE_BF16, bits);
        break;
    }
}

void avx2_multiply_bytes(const KernelJob *job)
{
    switch (job->matrix->code_bits) {
    case 5:
        multiply_bits(job, 5);
        break;
    case 6:
        multiply_bits(job, 6);
        break;
    default:
        multiply_bits(job, 8);
    }
}
