/* AVX2 and AVX-VNNI products of quantised weights with few tokens: bound by reading the weights.
 *
 * Every weight is read once and goes straight from memory through the multiply-adds, one tile after
 * the other, so that a thread reads one stream. The two halves of a tile share the broadcasts. A
 * tile goes with 2 columns at a time (2 tokens, or the planes of one) and is read again from the
 * first-level cache for the next 2. Registers: 4 accumulators, 4 sums of 16 bits (8 when 8-bit
 * codes go as two planes of nibbles), 2 broadcasts, 2 vectors of codes. */
#include "kernels_avx2.h"

enum { LANES_AT_ONCE = 4 /* halves times columns */ };

/* What is fixed while one kernel is compiled. */
typedef struct Kind {
    KernelKind kind;
    size_t n_tokens;  /* at once */
    size_t n_columns; /* n_tokens * planes */
} Kind;

/* Adds the products of one vector of codes to the sums of each column. */
static FORCE_INLINE void add_columns(__m256i codes, const __m256i v[LANES_AT_ONCE],
                                     size_t n_columns, __m256i *sums)
{
    UNROLL
    for (size_t t = 0; t < n_columns; t++) {
        sums[t] = add_products(sums[t], codes, v[t]);
        PIN(sums[t]);
    }
}

/* Adds vectors 2 * pair and 2 * pair + 1 of a block to the sums of a half. */
static FORCE_INLINE void add_pair(const uint8_t *at, int pair, Kind kind,
                                  const __m256i even[LANES_AT_ONCE],
                                  const __m256i odd[LANES_AT_ONCE], __m256i *low, __m256i *high)
{
    __m256i first, second;
    if (kind.kind.format != PACKED_BYTES) {
        unpack_pair(at + pair * VECTOR_BYTES, kind.kind.format == PACKED_FP4, &first, &second);
        add_columns(first, even, kind.n_columns, low);
        add_columns(second, odd, kind.n_columns, low);
    } else if (has_nibble_planes(kind.kind)) {
        unpack_pair(at + 2 * pair * VECTOR_BYTES, false, &first, &second);
        add_columns(first, even, kind.n_columns, low);
        add_columns(second, even, kind.n_columns, high);
        unpack_pair(at + (2 * pair + 1) * VECTOR_BYTES, false, &first, &second);
        add_columns(first, odd, kind.n_columns, low);
        add_columns(second, odd, kind.n_columns, high);
    } else {
        add_columns(load_bytes(at + 2 * pair * VECTOR_BYTES), even, kind.n_columns, low);
        add_columns(load_bytes(at + (2 * pair + 1) * VECTOR_BYTES), odd, kind.n_columns, low);
    }
}

/* Widens the sums of each half and column, and adds what belongs to one token. */
static FORCE_INLINE void finish_dots(const __m256i *low, const __m256i *high, Kind kind,
                                     bool is_first, __m256i *dots)
{
    const bool two_planes = has_nibble_planes(kind.kind);
    UNROLL
    for (size_t i = 0; i < HALVES * kind.n_tokens; i++) {
        __m256i total = _mm256_setzero_si256();
        UNROLL
        for (size_t p = 0; p < kind.kind.planes; p++) {
            /* Widening multiplies by what the activations' plane and the codes' plane count. */
            const int step = p + 1 < kind.kind.planes ? ACTIVATION_PLANE_STEP : 1;
            size_t lane = i * kind.kind.planes + p;
            __m256i wide = widen_sums(low[lane], step);
            total = p == 0 ? wide : _mm256_add_epi32(total, wide);
            if (two_planes)
                total = _mm256_add_epi32(total, widen_sums(high[lane], 16 * step));
        }
        dots[i] = is_first ? total : _mm256_add_epi32(dots[i], total);
    }
}

/* Adds the dots of one block, or begins them: dots[half * n_tokens + token]. x: the columns'
 * codes. */
static FORCE_INLINE void dot_block(const uint8_t *at, const int8_t *x, Kind kind, bool is_first,
                                   __m256i dots[LANES_AT_ONCE])
{
    const size_t lanes = HALVES * kind.n_columns;
    const int most = vectors_in_sums(kind.kind);
    const int run = (most < BLOCK_VECTORS ? most : BLOCK_VECTORS) / 2; /* pairs of vectors */

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
                even[t] = broadcast_codes(x + t * ACTIVATION_BLOCK + 8 * pair);
                odd[t] = broadcast_codes(x + t * ACTIVATION_BLOCK + 8 * pair + 4);
            }
            UNROLL
            for (size_t h = 0; h < HALVES; h++)
                add_pair(at + h * HALF_BYTES, pair, kind, even, odd, low + h * kind.n_columns,
                         high + h * kind.n_columns);
        }
        finish_dots(low, high, kind, is_first && begin == 0, dots);
    }
}

/* Adds a span to the accumulators: its dots are there, its scales at `group`. */
static FORCE_INLINE void add_dots(const uint8_t *group, const __m256i dots[LANES_AT_ONCE],
                                  const ActivationScale *x, const float *x_offset, ScaleType type,
                                  Kind kind, __m256 *acc)
{
    const size_t half_bytes = HALF_ROWS * scale_type_bytes(type);
    UNROLL
    for (size_t h = 0; h < HALVES; h++) {
        const uint8_t *at = group + h * half_bytes;
        __m256 scales = load_rows(at, type);
        __m256 biases = load_rows(at + HALVES * half_bytes, type);
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++) {
            size_t lane = h * kind.n_tokens + t;
            const float *offset = x_offset + t * (sizeof(*x) / sizeof(float));
            acc[lane] = add_span(acc[lane], dots[lane], scales, biases,
                                 _mm256_broadcast_ss(&x[t].scale), _mm256_broadcast_ss(offset));
        }
    }
}

static FORCE_INLINE size_t block_bytes(Kind kind)
{
    return kind.kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
}

/* Where the groups of a tile and the activations of its tokens are read. */
typedef struct Source {
    const uint8_t *group;
    const int8_t *codes;
    const ActivationScale *x;
    size_t x_step; /* all tokens are in the first tile of them */
} Source;

static FORCE_INLINE void next_activations(Source *at, size_t n_blocks, Kind kind)
{
    at->codes += n_blocks * at->x_step * kind.kind.planes * ACTIVATION_BLOCK;
    at->x += n_blocks * at->x_step;
}

/* Adds a tile whose groups are single blocks: half a block of activations each. */
static FORCE_INLINE void add_single_blocks(const PackedMatrix *m, Source at, Kind kind, __m256 *acc)
{
    const ScaleType type = m->scale_type;
    const size_t scale_bytes = 2 * TILE_ROWS * scale_type_bytes(type);
    __m256i dots[LANES_AT_ONCE];
    for (size_t block = 0; block < m->n_blocks; block++) {
        const size_t half = block % 2;
        prefetch_codes(at.group, block_bytes(kind));
        dot_block(at.group + scale_bytes, at.codes + half * WEIGHT_BLOCK, kind, true, dots);
        add_dots(at.group, dots, at.x, &at.x->half_offsets[half], type, kind, acc);
        next_activations(&at, half, kind);
        at.group += m->group_bytes;
    }
}

/* Adds a tile whose groups are pairs of blocks. */
static FORCE_INLINE void add_paired_blocks(const PackedMatrix *m, Source at, Kind kind, __m256 *acc)
{
    const ScaleType type = m->scale_type;
    const size_t scale_bytes = 2 * TILE_ROWS * scale_type_bytes(type);
    const uint8_t *end = at.group + m->tile_bytes;
    __m256i dots[LANES_AT_ONCE];
    for (; at.group < end; at.group += m->group_bytes) {
        const uint8_t *block = at.group + scale_bytes;
        for (size_t b = 0; b < m->group_blocks; b += 2) {
            prefetch_codes(block, 2 * block_bytes(kind));
            dot_block(block, at.codes, kind, true, dots);
            dot_block(block + block_bytes(kind), at.codes + WEIGHT_BLOCK, kind, false, dots);
            add_dots(at.group, dots, at.x, &at.x->offset, type, kind, acc);
            block += 2 * block_bytes(kind);
            next_activations(&at, 1, kind);
        }
    }
}

/* Tokens [token, token + kind.n_tokens) with one tile. */
static FORCE_INLINE void multiply_tile(const KernelJob *job, size_t tile, size_t token, Kind kind)
{
    const Source at = {packed_group(job->matrix, tile, 0), activation_codes(job->x, token, 0),
                       activation_scale(job->x, token, 0), job->x->n_tokens};
    __m256 acc[LANES_AT_ONCE];
    UNROLL
    for (size_t i = 0; i < HALVES * kind.n_tokens; i++)
        acc[i] = _mm256_setzero_ps();
    if (kind.kind.span_blocks == 1)
        add_single_blocks(job->matrix, at, kind, acc);
    else
        add_paired_blocks(job->matrix, at, kind, acc);
    UNROLL
    for (size_t h = 0; h < HALVES; h++) {
        UNROLL
        for (size_t t = 0; t < kind.n_tokens; t++)
            store_half(job, tile, h, token + t, acc[h * kind.n_tokens + t]);
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const Kind one = {kind, 1, kind.planes}, two = {kind, 2, 2 * kind.planes};

    for (size_t i = 0; i < job->n_tiles; i++) {
        size_t token = 0;
        if (kind.planes == 1) {
            for (; token + 2 <= job->x->n_tokens; token += 2)
                multiply_tile(job, job->first_tile + i, token, two);
        }
        for (; token < job->x->n_tokens; token++)
            multiply_tile(job, job->first_tile + i, token, one);
    }
}

void AVX2_NAME(multiply_few)(const KernelJob *job)
{
    AVX2_BY_FORMAT(multiply_kind, job);
}
