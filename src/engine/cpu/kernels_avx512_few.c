/* AVX-512 VNNI products of quantised weights with few tokens: bound by reading the weights.
 *
 * vpdpbusd multiplies 64 unsigned bytes with 64 signed ones and adds groups of four to 32-bit sums,
 * which cannot overflow: a vector of weights, 4 inputs of 16 rows, meets the activations' 4 codes
 * broadcast. Every weight is read once and meets all tokens at once, up to 8. Registers, with 8
 * tokens in two planes: 16 sums, 8 accumulators, 2 vectors of codes, scales and biases.
 *
 * A tile follows the other in memory, so a thread reads one stream; its tail is asked for ahead,
 * over the seams where the hardware's prefetcher would start anew. */
#include "kernels_avx512.h"

enum { TOKENS_AT_ONCE = 8, PREFETCH_BYTES = 2048 };

/* Adds the products of a block's codes to the sums: sums[token * planes + plane]. */
static FORCE_INLINE void add_block(const uint8_t *block, const int8_t *x, size_t columns,
                                   KernelKind kind, __m512i *sums)
{
    UNROLL
    for (int pair = 0; pair < BLOCK_VECTORS / 2; pair++) {
        __m512i first, second;
        load_pair(block, pair, kind.format, &first, &second);
        UNROLL
        for (size_t c = 0; c < columns; c++) {
            const int8_t *codes = x + c * ACTIVATION_BLOCK + 8 * pair;
            sums[c] = _mm512_dpbusd_epi32(sums[c], first, broadcast_codes(codes));
            sums[c] = _mm512_dpbusd_epi32(sums[c], second, broadcast_codes(codes + 4));
        }
    }
}

static FORCE_INLINE void prefetch_block(const uint8_t *block, KernelKind kind)
{
    UNROLL
    for (size_t i = 0; i < block_bytes(kind.format); i += 64)
        _mm_prefetch((const char *)block + PREFETCH_BYTES + i, _MM_HINT_T0);
}

/* One tile with tokens [token, token + count), which are all in one token tile. */
static FORCE_INLINE void multiply_tile(const KernelJob *job, size_t tile, size_t token,
                                       const size_t count, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    const ScaleType type = m->scale_type;
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(type);
    const size_t columns = count * kind.planes;
    const size_t x_step = activation_index(job->x, token, 1) - activation_index(job->x, token, 0);
    const int8_t *codes = activation_codes(job->x, token, 0);
    const ActivationScale *x = activation_scale(job->x, token, 0);
    const uint8_t *group = packed_group(m, tile, 0), *end = group + m->tile_bytes;
    size_t half = 0;
    __m512 acc[TOKENS_AT_ONCE];

    UNROLL
    for (size_t t = 0; t < count; t++)
        acc[t] = _mm512_setzero_ps();
    for (; group < end; group += m->group_bytes) {
        const uint8_t *block = group + 2 * scale_bytes;
        const __m512 scales = load_rows(group, type);
        const __m512 biases = load_rows(group + scale_bytes, type);
        for (const uint8_t *group_end = group + m->group_bytes; block < group_end;) {
            __m512i sums[TOKENS_AT_ONCE * 2];
            UNROLL
            for (size_t c = 0; c < columns; c++)
                sums[c] = _mm512_setzero_si512();
            UNROLL
            for (int b = 0; b < kind.span_blocks; b++) {
                add_block(block, codes + (half + (size_t)b) * WEIGHT_BLOCK, columns, kind, sums);
                prefetch_block(block, kind);
                block += block_bytes(kind.format);
            }
            UNROLL
            for (size_t t = 0; t < count; t++) {
                __m512i dot =
                    kind.planes == 2 ? join_planes(sums[2 * t], sums[2 * t + 1]) : sums[t];
                float offset = kind.span_blocks == 1 ? x[t].half_offsets[half] : x[t].offset;
                acc[t] = add_span(acc[t], dot, scales, biases, x[t].scale, offset);
            }
            if (kind.span_blocks == 1)
                half ^= 1;
            if (half == 0) {
                codes += x_step * kind.planes * ACTIVATION_BLOCK;
                x += x_step;
            }
        }
    }
    UNROLL
    for (size_t t = 0; t < count; t++)
        store_tile(job, tile, token + t, acc[t]);
}

/* One tile with `count` tokens of a token tile, in pieces of 8, 4, 2 and 1. */
static FORCE_INLINE void multiply_tokens(const KernelJob *job, size_t tile, size_t token,
                                         size_t count, KernelKind kind)
{
    for (; count >= 8; count -= 8, token += 8)
        multiply_tile(job, tile, token, 8, kind);
    if (count >= 4) {
        multiply_tile(job, tile, token, 4, kind);
        token += 4;
        count -= 4;
    }
    if (count >= 2) {
        multiply_tile(job, tile, token, 2, kind);
        token += 2;
        count -= 2;
    }
    if (count > 0)
        multiply_tile(job, tile, token, 1, kind);
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    for (size_t i = 0; i < job->n_tiles; i++) {
        for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
            size_t left = job->x->n_tokens - token;
            multiply_tokens(job, job->first_tile + i, token,
                            left < ACTIVATION_TILE ? left : ACTIVATION_TILE, kind);
        }
    }
}

void avx512_multiply_few(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
