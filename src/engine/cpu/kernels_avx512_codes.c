/* AVX-512 VNNI products of quantised weights, for any number of tokens.
 *
 * vpdpbusd multiplies 64 unsigned bytes with 64 signed ones and adds groups of four to 32-bit sums,
 * which cannot overflow: a vector of weights, 4 inputs of 16 rows, meets the activations' 4 codes
 * broadcast, 8 columns of codes at a time (8 tokens, or 4 in two planes).
 *
 * Where 8 columns are all, memory is the limit: tile after tile in one stream, whose tail is asked
 * for ahead, over the seams where the hardware's prefetcher would start anew. With more, the
 * multiplications are: two tiles pass side by side and share each broadcast (per 4 inputs, 2 loads
 * of weights and 8 broadcasts feed 16 vpdpbusd), and while they meet one piece of tokens after the
 * other from the caches, the next two are asked for. Registers: 16 sums, 4 vectors of weights, 8
 * accumulators (16 with one plane, of which some are spilled), a broadcast, a mask. */
#include "kernels_avx512.h"

enum { TILES_AT_ONCE = 2, COLUMNS_AT_ONCE = 8, PREFETCH_BYTES = 4096 };

/* Tiles side by side, and how far before its use memory is asked for. */
typedef struct Strip {
    const PackedMatrix *matrix;
    size_t tile;
    size_t ahead; /* bytes */
} Strip;

/* Adds the products of a block's codes to the sums: sums[tile][token * planes + plane]. */
static FORCE_INLINE void add_block(const uint8_t *const *blocks, const int8_t *x, size_t tiles,
                                   size_t columns, KernelKind kind,
                                   __m512i (*sums)[COLUMNS_AT_ONCE])
{
    UNROLL
    for (int pair = 0; pair < BLOCK_VECTORS / 2; pair++) {
        __m512i codes[2][TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            load_pair(blocks[i], pair, kind.format, &codes[0][i], &codes[1][i]);
        UNROLL
        for (size_t c = 0; c < columns; c++) {
            UNROLL
            for (int j = 0; j < 2; j++) {
                __m512i v = broadcast_codes(x + c * ACTIVATION_BLOCK + 4 * (2 * pair + j));
                UNROLL
                for (size_t i = 0; i < tiles; i++)
                    sums[i][c] = add_products(sums[i][c], codes[j][i], v);
            }
        }
    }
}

/* A span's sums to the accumulators. group: of the first tile; offset: in *x, for its inputs. */
static FORCE_INLINE void add_sums(const PackedMatrix *m, const uint8_t *group,
                                  const ActivationScale *x, const float *offset, size_t tiles,
                                  size_t count, KernelKind kind, __m512i (*sums)[COLUMNS_AT_ONCE],
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
            __m512i dot =
                kind.planes == 2 ? join_planes(sums[i][2 * t], sums[i][2 * t + 1]) : sums[i][t];
            acc[i][t] =
                add_span(acc[i][t], dot, scales, biases, x[t].scale, offset[t * FLOATS_PER_SCALE]);
        }
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
    const size_t columns = count * kind.planes, ahead = strip->ahead;
    const size_t x_step =
        activation_index(activations, token, 1) - activation_index(activations, token, 0);
    const int8_t *codes = activation_codes(activations, token, 0);
    const ActivationScale *x = activation_scale(activations, token, 0);
    const uint8_t *group = packed_group(m, strip->tile, 0), *end = group + m->tile_bytes;
    size_t half = 0;

    for (; group < end; group += m->group_bytes) {
        const uint8_t *blocks[TILES_AT_ONCE];
        UNROLL
        for (size_t i = 0; i < tiles; i++)
            blocks[i] = group + i * m->tile_bytes + head_bytes;
        while (blocks[0] < group + m->group_bytes) {
            __m512i sums[TILES_AT_ONCE][COLUMNS_AT_ONCE];
            UNROLL
            for (size_t i = 0; i < tiles; i++) {
                UNROLL
                for (size_t c = 0; c < columns; c++)
                    sums[i][c] = _mm512_setzero_si512();
            }
            UNROLL
            for (int b = 0; b < kind.span_blocks; b++) {
                add_block(blocks, codes + (half + (size_t)b) * WEIGHT_BLOCK, tiles, columns, kind,
                          sums);
                UNROLL
                for (size_t i = 0; i < tiles; i++) {
                    UNROLL
                    for (size_t line = 0; line < block_bytes(kind.format); line += 64) {
                        const char *next = (const char *)blocks[i] + ahead + line;
                        if (tiles >
                            1) /* hints are constants of the language, not of the optimiser */
                            _mm_prefetch(next, _MM_HINT_T1);
                        else
                            _mm_prefetch(next, _MM_HINT_T0);
                    }
                    blocks[i] += block_bytes(kind.format);
                }
            }
            add_sums(m, group, x, kind.span_blocks == 1 ? &x->half_offsets[half] : &x->offset,
                     tiles, count, kind, sums, acc);
            if (kind.span_blocks == 1)
                half ^= 1;
            if (half == 0) {
                codes += x_step * kind.planes * ACTIVATION_BLOCK;
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

/* A strip with `count` tokens of a token tile, in pieces of 8, 4, 2 and 1. */
static FORCE_INLINE void multiply_pieces(const KernelJob *job, const Strip *strip,
                                         const size_t tiles, size_t token, size_t count,
                                         KernelKind kind)
{
    const size_t at_once = COLUMNS_AT_ONCE / kind.planes;
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

void avx512_multiply_codes(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
