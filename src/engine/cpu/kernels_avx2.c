/* AVX2 products for nibble codes, activation quantisation, and the table of this instruction set.
 *
 * A block of a tile is 8 code vectors of 32 unsigned bytes. vpmaddubsw multiplies one with 4 broadcast
 * activation codes and adds pairs into 16 bits; 8 of those sums stay within 16 bits for codes up to 15
 * (8 * 2 * 15 * 127 = 30,480), 4 of them for codes up to 31 (31,496). One widening multiply-add by ones
 * then adds the two halves of each lane.
 *
 * Two loops. For few tokens the weights are the traffic: blocks outermost, the accumulators of the
 * tokens in registers, everything read once. For many, the multiply-adds are: a block's 8 vectors are
 * unpacked into registers and every token of a tile passes by them, its accumulator in memory. A token
 * then costs 8 broadcasts, 8 multiply-adds and 12 other vector operations per 256 products; registers: 8
 * weights, scales, biases, ones, and 5 temporaries. Inputs are cut into chunks whose activations stay in
 * the second-level cache while ROW_TILES tiles of rows use them. */
#include "kernels_avx2.h"

#include <math.h>

enum {
    FEW_TOKENS = 4,
    ROW_TILES = 8,
    CHUNK_BLOCKS = 64, /* 64 tokens * 64 blocks * 40 bytes = 160 KiB; a multiple of any group */
    PREFETCH_BYTES = 1024,
};

static FORCE_INLINE void unpack_nibbles(const uint8_t *at, bool is_fp4, __m256i w[BLOCK_VECTORS])
{
    static const uint8_t fp4_codes[16] = FP4_CODES;
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_loadu_si128((const __m128i *)(const void *)fp4_codes));

    for (int i = 0; i < BLOCK_VECTORS / 2; i++) {
        __m256i pair = load_bytes(at + i * 32);
        w[2 * i] = _mm256_and_si256(pair, low);
        w[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        if (is_fp4) {
            w[2 * i] = _mm256_shuffle_epi8(table, w[2 * i]);
            w[2 * i + 1] = _mm256_shuffle_epi8(table, w[2 * i + 1]);
        }
    }
}

/* The 32 products of each row. run: how many 16-bit sums fit before widening. */
static FORCE_INLINE __m256i dot_block(const __m256i w[BLOCK_VECTORS], const int8_t *codes, int run)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    for (int j = 0; j < BLOCK_VECTORS; j += run) {
        __m256i sum = _mm256_maddubs_epi16(w[j], broadcast_codes(codes + 4 * j));
        for (int k = j + 1; k < j + run; k++)
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[k], broadcast_codes(codes + 4 * k)));
        sum = _mm256_madd_epi16(sum, ones);
        total = j == 0 ? sum : _mm256_add_epi32(total, sum);
    }
    return total;
}

static FORCE_INLINE void multiply_few(const KernelJob *job, size_t n_tokens, ScaleType type,
                                      bool is_fp4)
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
                __m256i w[BLOCK_VECTORS];
                _mm_prefetch((const char *)at + PREFETCH_BYTES, _MM_HINT_T0);
                _mm_prefetch((const char *)at + PREFETCH_BYTES + 64, _MM_HINT_T0);
                unpack_nibbles(at, is_fp4, w);
                for (size_t t = 0; t < n_tokens; t++)
                    acc[t] = add_block(acc[t], dot_block(w, x[t].codes, is_fp4 ? 4 : 8), scales,
                                       biases, x + t);
                at += NIBBLE_BLOCK_BYTES;
                x += n_tokens;
            }
        }
        for (size_t t = 0; t < n_tokens; t++)
            store_tile(job, tile, t, acc[t]);
    }
}

/* Adds blocks [first, first + count) of a tile to the accumulators of `width` tokens. */
static FORCE_INLINE void add_chunk(const PackedMatrix *m, size_t tile, const ActivationBlock *x,
                                   size_t width, size_t first, size_t count, __m256 *acc,
                                   ScaleType type, bool is_fp4)
{
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(type);
    for (size_t block = first; block < first + count; block += m->group_blocks) {
        const uint8_t *at = packed_group(m, tile, block / m->group_blocks);
        __m256 scales = load_rows(at, type);
        __m256 biases = load_rows(at + scale_bytes, type);
        at += 2 * scale_bytes;
        for (size_t b = 0; b < m->group_blocks; b++) {
            __m256i w[BLOCK_VECTORS];
            unpack_nibbles(at, is_fp4, w);
            for (size_t t = 0; t < width; t++)
                acc[t] = add_block(acc[t], dot_block(w, x[t].codes, is_fp4 ? 4 : 8), scales, biases,
                                   x + t);
            at += NIBBLE_BLOCK_BYTES;
            x += width;
        }
    }
}

static FORCE_INLINE void multiply_many(const KernelJob *job, ScaleType type, bool is_fp4)
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
                              block, blocks, acc[i], type, is_fp4);
            }
            for (size_t i = 0; i < tiles; i++) {
                for (size_t t = 0; t < width; t++)
                    store_tile(job, first_tile + i, token + t, acc[i][t]);
            }
        }
    }
}

static FORCE_INLINE void multiply_typed(const KernelJob *job, ScaleType type, bool is_fp4)
{
    switch (job->x->n_tokens) {
    case 1:
        multiply_few(job, 1, type, is_fp4);
        break;
    case 2:
        multiply_few(job, 2, type, is_fp4);
        break;
    case 3:
        multiply_few(job, 3, type, is_fp4);
        break;
    case 4:
        multiply_few(job, 4, type, is_fp4);
        break;
    default:
        multiply_many(job, type, is_fp4);
    }
}

static void multiply_nibbles(const KernelJob *job)
{
    switch (job->matrix->scale_type) {
    case SCALE_F32:
        multiply_typed(job, SCALE_F32, false);
        break;
    case SCALE_F16:
        multiply_typed(job, SCALE_F16, false);
        break;
    case SCALE_BF16:
        multiply_typed(job, SCALE_BF16, false);
        break;
    }
}

static void multiply_fp4(const KernelJob *job)
{
    multiply_typed(job, SCALE_BF16, true);
}

static void quantize_block(const float *x, ActivationBlock *out)
{
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4], largest = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        /* As integers, magnitudes order like floats, with infinity and then NaN on top. */
        largest = _mm256_castsi256_ps(
            _mm256_max_epi32(_mm256_castps_si256(largest),
                             _mm256_castps_si256(_mm256_and_ps(v[i], magnitude_bits))));
    }
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(_mm256_castps_si256(largest)),
                                _mm256_extracti128_si256(_mm256_castps_si256(largest), 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    float peak = _mm_cvtss_f32(_mm_castsi128_ps(top));
    bool finite = _mm_cvtsi128_si32(top) < 0x7f800000;
    if (!finite || peak < ACTIVATION_ZERO_BELOW) {
        memset(out->codes, 0, sizeof(out->codes));
        out->scale = finite ? 0 : NAN;
        out->offset = out->scale;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / peak);
    __m256i q[4];
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    /* Packing works in 128-bit halves; the permutation puts the groups of 4 codes back in order. */
    __m256i codes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)out->codes, codes);
    __m256i sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    out->scale = peak / 127.0f;
    out->offset = out->scale * (float)_mm_cvtsi128_si32(sum);
}

const KernelTable kernels_avx2 = {
    .name = "avx2",
    .quantize_block = quantize_block,
    .multiply = {multiply_nibbles, multiply_fp4, avx2_multiply_bytes, avx2_multiply_dense,
                 avx2_multiply_dense, avx2_multiply_dense},
    .multiply_f32 = {avx2_multiply_f32, avx2_multiply_f32, avx2_multiply_f32, avx2_multiply_dense,
                     avx2_multiply_dense, avx2_multiply_dense},
};
