/* Arm products of quantised weights with few tokens: bound by reading the weights. Compiled once a
 * set (kernels_neon.h).
 *
 * Every weight is read once and meets up to 4 columns (tokens times planes) on its way. A tile is 4
 * strips of 4 rows; 16 activation codes of a column stay in a register, and a product takes 4 of
 * them by lane, so nothing is broadcast. Registers, with 4 columns: 16 sums, 4 of activations, 2 of
 * codes, and the accumulators of up to 2 tokens.
 *
 * A tile follows the other in memory, so a thread reads one stream; its tail is asked for ahead,
 * over the seams where the hardware's prefetcher would start anew. */
#include "kernels_neon.h"

enum { COLUMNS_AT_ONCE = 4, PREFETCH_BYTES = 1024, PREFETCH_STEP = 64 };

/* Adds the products of a block's codes to the sums: sums[strip][token * planes + plane]. */
static FORCE_INLINE void add_block(const uint8_t *block, const int8_t *x, size_t columns,
                                   KernelKind kind, int32x4_t sums[STRIPS][COLUMNS_AT_ONCE])
{
    UNROLL
    for (int step = 0; step < WEIGHT_BLOCK / STEP_INPUTS; step++) {
        int8x16_t v[COLUMNS_AT_ONCE];
        UNROLL
        for (size_t c = 0; c < columns; c++)
            v[c] = vld1q_s8(x + c * ACTIVATION_BLOCK + step * STEP_INPUTS);
        UNROLL
        for (int pair = 0; pair < 2; pair++) {
            UNROLL
            for (size_t s = 0; s < STRIPS; s++) {
                uint8x16_t first, second;
                load_pair(block, 2 * step + pair, s, kind.format, &first, &second);
                first = codes_for_products(first, kind.format);
                second = codes_for_products(second, kind.format);
                UNROLL
                for (size_t c = 0; c < columns; c++) {
                    sums[s][c] = add_products(sums[s][c], first, v[c], 2 * pair, kind.format);
                    sums[s][c] = add_products(sums[s][c], second, v[c], 2 * pair + 1, kind.format);
                }
            }
        }
    }
}

static FORCE_INLINE void prefetch_block(const uint8_t *block, KernelKind kind)
{
    UNROLL
    for (size_t i = 0; i < block_bytes(kind.format); i += PREFETCH_STEP)
        __builtin_prefetch(block + PREFETCH_BYTES + i, 0, 3);
}

/* Adds a span to the accumulators of `count` tokens. */
static FORCE_INLINE void scale_sums(const float32x4_t scales[STRIPS],
                                    const float32x4_t biases[STRIPS], const ActivationScale *x,
                                    const float *x_offsets, const size_t count, KernelKind kind,
                                    int32x4_t sums[STRIPS][COLUMNS_AT_ONCE],
                                    float32x4_t acc[STRIPS][COLUMNS_AT_ONCE])
{
    UNROLL
    for (size_t s = 0; s < STRIPS; s++) {
        UNROLL
        for (size_t t = 0; t < count; t++) {
            int32x4_t dot =
                kind.planes == 2 ? join_planes(sums[s][2 * t], sums[s][2 * t + 1]) : sums[s][t];
            acc[s][t] = add_span(acc[s][t], dot, scales[s], biases[s], x[t].scale,
                                 x_offsets[t * FLOATS_PER_SCALE]);
        }
    }
}

/* One tile with tokens [token, token + count). */
static FORCE_INLINE void multiply_tile(const KernelJob *job, size_t tile, size_t token,
                                       const size_t count, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    const ScaleType type = m->scale_type;
    const size_t scale_bytes = TILE_ROWS * scale_type_bytes(type);
    const size_t columns = count * kind.planes;
    const size_t x_step = job->x->n_tokens; /* all tokens are in the first tile of them */
    const int8_t *codes = activation_codes(job->x, token, 0);
    const ActivationScale *x = activation_scale(job->x, token, 0);
    const uint8_t *group = packed_group(m, tile, 0), *end = group + m->tile_bytes;
    size_t half = 0;
    float32x4_t acc[STRIPS][COLUMNS_AT_ONCE];

    UNROLL
    for (size_t s = 0; s < STRIPS; s++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            acc[s][t] = vdupq_n_f32(0);
    }
    for (; group < end; group += m->group_bytes) {
        const uint8_t *block = group + 2 * scale_bytes;
        float32x4_t scales[STRIPS], biases[STRIPS];
        load_scales(group, type, scales, biases);
        for (const uint8_t *group_end = group + m->group_bytes; block < group_end;) {
            int32x4_t sums[STRIPS][COLUMNS_AT_ONCE];
            UNROLL
            for (size_t c = 0; c < columns; c++) {
                int32x4_t begin = first_sums(codes + c * ACTIVATION_BLOCK + half * WEIGHT_BLOCK,
                                             kind.span_blocks, kind.format);
                UNROLL
                for (size_t s = 0; s < STRIPS; s++)
                    sums[s][c] = begin;
            }
            UNROLL
            for (int b = 0; b < kind.span_blocks; b++) {
                add_block(block, codes + (half + (size_t)b) * WEIGHT_BLOCK, columns, kind, sums);
                prefetch_block(block, kind);
                block += block_bytes(kind.format);
            }
            scale_sums(scales, biases, x,
                       kind.span_blocks == 1 ? &x->half_offsets[half] : &x->offset, count, kind,
                       sums, acc);
            if (kind.span_blocks == 1)
                half ^= 1;
            if (half == 0) {
                codes += x_step * kind.planes * ACTIVATION_BLOCK;
                x += x_step;
            }
        }
    }
    UNROLL
    for (size_t s = 0; s < STRIPS; s++) {
        UNROLL
        for (size_t t = 0; t < count; t++)
            store_strip(job, tile, s, token + t, acc[s][t]);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const size_t n_tokens = job->x->n_tokens;
    for (size_t tile = job->first_tile; tile < job->first_tile + job->n_tiles; tile++) {
        size_t token = 0;
        if (kind.planes == 1) {
            for (; token + 4 <= n_tokens; token += 4)
                multiply_tile(job, tile, token, 4, kind);
        }
        for (; token + 2 <= n_tokens; token += 2)
            multiply_tile(job, tile, token, 2, kind);
        if (token < n_tokens)
            multiply_tile(job, tile, token, 1, kind);
    }
}

void NEON_NAME(multiply_few)(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
