/* AVX2 and AVX-VNNI products of quantised weights with many tokens: bound by multiply-adds.
 *
 * A vector of weights, the inputs in a 32-bit lane for 8 rows, meets the activations' codes of the
 * same inputs, broadcast. A lane holds 4 inputs in bytes, or 2 in words:
 *   words  where activations have 16 bits: vpmaddwd and an addition, or vpdpwssd, to 32 bits. As
 *          many instructions as two planes of bytes take, and nothing to widen or to join. AVX2
 *          also takes 8-bit codes so, whose sums of bytes would not fit 16 bits
 *   bytes  else: vpmaddubsw and an addition to 16 bits, widened before they could overflow, or
 *          vpdpbusd to 32 bits
 *
 * Tokens pass in pieces of up to 4, which share the loads and unpacking of both halves of a tile: a
 * vector of each and 4 broadcasts feed 8 multiply-adds into 8 sums. Registers: 8 sums, 2 packed
 * vectors, 2 vectors of weights, a broadcast, a product, a mask. Accumulators are in memory.
 *
 * Up to DIRECT_TOKENS take weights as they are packed. More would unpack them again for each piece:
 * a span of a tile is unpacked once, to an array in the first-level cache.
 *
 * Inputs are cut into chunks whose activations stay in the second-level cache while ROW_TILES tiles
 * use them; accumulators of a token tile stay in the first. */
#include "kernels_avx2.h"

enum {
    ROW_TILES = 4,
    CHUNK_BLOCKS = 64,  /* 64 tokens * 2 planes * 2 KiB = 256 KiB; a multiple of any group */
    WIDENED_BLOCKS = 8, /* at once, bytes to words: 32 KiB; a multiple of any group */
    SPAN_VECTORS = 4 * BLOCK_VECTORS,
    VECTORS_MAX = 4, /* of a packed register */
    TOKENS_AT_ONCE = 4,
    DIRECT_TOKENS = AVX2_VNNI ? 8 : 4, /* VNNI leaves registers' units free to unpack */
    FLOATS_PER_SCALE = sizeof(ActivationScale) / 4,
};

/* ---- What differs by kind ---- */

static FORCE_INLINE bool has_words(KernelKind kind)
{
    return kind.planes == 2 || (!AVX2_VNNI && kind.format == PACKED_BYTES);
}

/* Whether activations come in bytes where words are wanted. */
static FORCE_INLINE bool needs_words(KernelKind kind)
{
    return has_words(kind) && kind.planes == 1;
}

/* Bytes of an input. */
static FORCE_INLINE size_t input_bytes(KernelKind kind)
{
    return has_words(kind) ? 2 : 1;
}

/* Inputs and vectors in a packed register. */
static FORCE_INLINE size_t packed_inputs(KernelKind kind)
{
    return kind.format == PACKED_BYTES ? 4 : 8;
}

static FORCE_INLINE size_t packed_vectors(KernelKind kind)
{
    return packed_inputs(kind) * input_bytes(kind) / 4;
}

static FORCE_INLINE size_t span_registers(KernelKind kind)
{
    return (size_t)kind.span_blocks * WEIGHT_BLOCK / packed_inputs(kind);
}

/* How many packed registers may be added up in sums of 16 bits: each sum of vpmaddubsw adds two
 * products of a code and -128. 0: sums have 32 bits. */
static FORCE_INLINE size_t registers_in_sums(KernelKind kind)
{
    if (AVX2_VNNI || has_words(kind))
        return 0;
    return kind.format == PACKED_FP4 ? 2  /* 2 * 2 * 2 * 24 * 128 = 24,576 */
                                     : 4; /* 4 * 2 * 2 * 15 * 128 = 30,720 */
}

/* Vector k of a packed register: bytes of inputs 0 .. 3, then 4 .. 7; or words of inputs 0 and 2,
 * 1 and 3, then 4 and 6, 5 and 7. */
static FORCE_INLINE __m256i take_codes(__m256i packed, size_t k, KernelKind kind)
{
    const int word = has_words(kind) ? (int)(k % 2) : 0, four = (int)(has_words(kind) ? k / 2 : k);
    if (kind.format == PACKED_NIBBLES) {
        __m256i codes = _mm256_srli_epi16(packed, 8 * word + 4 * four);
        if (has_words(kind) && k == 3)
            return codes;
        return _mm256_and_si256(codes,
                                has_words(kind) ? _mm256_set1_epi16(15) : _mm256_set1_epi8(15));
    }
    if (kind.format == PACKED_FP4) {
        static const uint8_t fp4_codes[16] = FP4_CODES;
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)fp4_codes));
        packed = _mm256_and_si256(_mm256_srli_epi16(packed, 4 * four), _mm256_set1_epi8(15));
        packed = _mm256_shuffle_epi8(table, packed);
    }
    if (!has_words(kind))
        return packed;
    return word ? _mm256_srli_epi16(packed, 8) : _mm256_and_si256(packed, _mm256_set1_epi16(255));
}

/* VNNI not as intrinsics: around those GCC 12 copies the sums from register to register. */
static FORCE_INLINE __m256i multiply_add(__m256i sums, __m256i codes, __m256i x, KernelKind kind)
{
#if AVX2_VNNI
    if (has_words(kind))
        __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
    else
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
#else
    sums = has_words(kind) ? _mm256_add_epi32(sums, _mm256_madd_epi16(codes, x))
                           : _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x));
    PIN(sums);
#endif
    return sums;
}

/* What multiply_add adds, to begin a sum with. */
static FORCE_INLINE __m256i multiply(__m256i codes, __m256i x, KernelKind kind)
{
#if AVX2_VNNI
    return multiply_add(_mm256_setzero_si256(), codes, x, kind);
#else
    return has_words(kind) ? _mm256_madd_epi16(codes, x) : _mm256_maddubs_epi16(codes, x);
#endif
}

static FORCE_INLINE __m256i add_sums(__m256i a, __m256i b, KernelKind kind)
{
    return registers_in_sums(kind) ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
}

/* ---- A span ---- */

/* What a span's dots are multiplied by, and where its codes are, packed and unpacked. */
typedef struct Span {
    const uint8_t *packed;
    const __m256i (*unpacked)[HALVES]; /* NULL: to be taken as they are packed */
    __m256 scales[HALVES], biases[HALVES];
    const int8_t *x; /* codes of the first token; inputs from the span's first on */
    const ActivationScale *x_scales;
    const float *x_offsets; /* of the first token, in x_scales */
} Span;

/* One load of each half, not one for each use. */
static FORCE_INLINE void load_packed(const uint8_t *at, __m256i packed[HALVES])
{
    UNROLL
    for (int h = 0; h < HALVES; h++) {
        packed[h] = load_bytes(at + h * HALF_BYTES);
        PIN(packed[h]);
    }
}

static FORCE_INLINE void unpack_span(const uint8_t *packed, KernelKind kind,
                                     __m256i (*codes)[HALVES])
{
    for (size_t r = 0; r < span_registers(kind); r++, codes += packed_vectors(kind)) {
        __m256i v[HALVES];
        load_packed(packed + r * VECTOR_BYTES, v);
        UNROLL
        for (size_t k = 0; k < packed_vectors(kind); k++) {
            UNROLL
            for (int h = 0; h < HALVES; h++)
                codes[k][h] = take_codes(v[h], k, kind);
        }
    }
}

/* Blocks of inputs, bytes to words in the order of take_codes. */
static void widen_inputs(const int8_t *x, size_t n_blocks, int16_t (*words)[ACTIVATION_BLOCK])
{
    for (size_t i = 0; i < 2 * n_blocks; i++, x += WEIGHT_BLOCK) {
        __m256i bytes = load_bytes((const uint8_t *)x);
        __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
        __m256i odd = _mm256_srai_epi16(bytes, 8);
        __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
        __m256i *out = (__m256i *)(void *)(words[i / 2] + i % 2 * WEIGHT_BLOCK);
        _mm256_storeu_si256(out, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

/* Adds packed register r of a span to the sums of `count` tokens, or begins them where one token
 * has one sum a row. One token alone has two side by side, which hide the latency of their
 * additions. */
static FORCE_INLINE void add_register(const Span *span, size_t r, const int8_t *x, size_t count,
                                      bool is_first, KernelKind kind,
                                      __m256i sums[HALVES][TOKENS_AT_ONCE])
{
    const size_t n_vectors = packed_vectors(kind);
    const size_t side_by_side = count == 1 && n_vectors > 1 ? 2 : 1;
    const size_t token_bytes = ACTIVATION_BLOCK * input_bytes(kind);
    __m256i packed[HALVES], codes[HALVES];

    x += r * packed_inputs(kind) * input_bytes(kind);
    if (!span->unpacked)
        load_packed(span->packed + r * VECTOR_BYTES, packed);
    UNROLL
    for (size_t k = 0; k < n_vectors; k++) {
        UNROLL
        for (int h = 0; h < HALVES; h++) {
            codes[h] = span->unpacked ? span->unpacked[r * n_vectors + k][h]
                                      : take_codes(packed[h], k, kind);
            PIN(codes[h]);
        }
        UNROLL
        for (size_t t = 0; t < count; t++) {
            size_t s = side_by_side > 1 ? k % side_by_side : t;
            __m256i v = broadcast_codes(x + t * token_bytes + 4 * k);
            UNROLL
            for (int h = 0; h < HALVES; h++)
                sums[h][s] = is_first && k == 0 ? multiply(codes[h], v, kind)
                                                : multiply_add(sums[h][s], codes[h], v, kind);
        }
    }
}

/* Sums of a span's packed registers [first, first + n_registers) with `count` tokens. */
static FORCE_INLINE void sum_registers(const Span *span, size_t first, size_t n_registers,
                                       const int8_t *x, size_t count, KernelKind kind,
                                       __m256i out[HALVES][TOKENS_AT_ONCE])
{
    const size_t side_by_side = count == 1 && packed_vectors(kind) > 1 ? 2 : 1;
    __m256i sums[HALVES][TOKENS_AT_ONCE]; /* of its own: it lives in registers */

    if (count == TOKENS_AT_ONCE && registers_in_sums(kind)) {
        UNROLL
        for (size_t r = first; r < first + n_registers; r++)
            add_register(span, r, x, count, r == first, kind, sums);
    } else {
        UNROLL
        for (size_t s = 0; s < count * side_by_side; s++)
            sums[0][s] = sums[1][s] = _mm256_setzero_si256();
        KEEP_ROLLED
        for (size_t r = first; r < first + n_registers; r++)
            add_register(span, r, x, count, false, kind, sums);
    }
    if (side_by_side > 1) {
        sums[0][0] = add_sums(sums[0][0], sums[0][1], kind);
        sums[1][0] = add_sums(sums[1][0], sums[1][1], kind);
    }
    UNROLL
    for (size_t t = 0; t < count; t++) {
        out[0][t] = sums[0][t];
        out[1][t] = sums[1][t];
    }
}

/* The exact dots of a span with `count` tokens, 32 bits a row. */
static FORCE_INLINE void dot_span(const Span *span, const int8_t *x, size_t count, KernelKind kind,
                                  __m256i dots[HALVES][TOKENS_AT_ONCE])
{
    const size_t run = registers_in_sums(kind);
    if (run == 0) {
        sum_registers(span, 0, span_registers(kind), x, count, kind, dots);
        return;
    }
    UNROLL
    for (size_t first = 0; first < span_registers(kind); first += run) {
        __m256i sums[HALVES][TOKENS_AT_ONCE];
        sum_registers(span, first, run, x, count, kind, sums);
        UNROLL
        for (size_t t = 0; t < count; t++) {
            __m256i low = _mm256_madd_epi16(sums[0][t], _mm256_set1_epi16(1));
            __m256i high = _mm256_madd_epi16(sums[1][t], _mm256_set1_epi16(1));
            dots[0][t] = first == 0 ? low : _mm256_add_epi32(dots[0][t], low);
            dots[1][t] = first == 0 ? high : _mm256_add_epi32(dots[1][t], high);
        }
    }
}

/* Adds a span to the accumulators of tokens [t, t + count). */
static FORCE_INLINE void add_piece(const Span *span, size_t t, size_t count, KernelKind kind,
                                   __m256 (*acc)[ACTIVATION_TILE])
{
    __m256i dots[HALVES][TOKENS_AT_ONCE];

    dot_span(span, span->x + t * ACTIVATION_BLOCK * input_bytes(kind), count, kind, dots);
    UNROLL
    for (size_t i = 0; i < count; i++) {
        const __m256 x_scale = _mm256_broadcast_ss(&span->x_scales[t + i].scale);
        const __m256 x_offset = _mm256_broadcast_ss(span->x_offsets + (t + i) * FLOATS_PER_SCALE);
        UNROLL
        for (int h = 0; h < HALVES; h++)
            acc[h][t + i] = add_span(acc[h][t + i], dots[h][i], span->scales[h], span->biases[h],
                                     x_scale, x_offset);
    }
}

static FORCE_INLINE void add_pieces(const Span *span, size_t width, KernelKind kind,
                                    __m256 (*acc)[ACTIVATION_TILE])
{
    size_t t = 0;
    for (; t + TOKENS_AT_ONCE <= width; t += TOKENS_AT_ONCE)
        add_piece(span, t, TOKENS_AT_ONCE, kind, acc);
    if (width - t == 3)
        add_piece(span, t, 3, kind, acc);
    else if (width - t == 2)
        add_piece(span, t, 2, kind, acc);
    else if (width - t == 1)
        add_piece(span, t, 1, kind, acc);
}

/* Adds a span to the accumulators of all tokens: few take it as it is packed. */
static FORCE_INLINE void add_span_to_all(Span *span, size_t width, KernelKind kind,
                                         __m256 (*acc)[ACTIVATION_TILE])
{
    __m256i unpacked[SPAN_VECTORS][HALVES];
    if (width <= DIRECT_TOKENS) {
        span->unpacked = NULL;
        add_pieces(span, width, kind, acc);
    } else {
        unpack_span(span->packed, kind, unpacked);
        span->unpacked = (const __m256i(*)[HALVES])unpacked;
        add_pieces(span, width, kind, acc);
    }
}

/* ---- Tiles ---- */

/* Adds blocks [first, first + count) of a tile to the accumulators of tokens [token, token +
 * width), whose codes for them begin at `codes`. */
static FORCE_INLINE void add_chunk(const KernelJob *job, size_t tile, size_t token, size_t width,
                                   size_t first, size_t count, const int8_t *codes, KernelKind kind,
                                   __m256 (*acc)[ACTIVATION_TILE])
{
    const PackedMatrix *m = job->matrix;
    const size_t half_bytes = HALF_ROWS * scale_type_bytes(m->scale_type);
    const size_t block_bytes = kind.format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    const size_t span_bytes = (size_t)kind.span_blocks * block_bytes;
    const uint8_t *group = packed_group(m, tile, first / m->group_blocks);
    const uint8_t *end = group + count / m->group_blocks * m->group_bytes;
    const ActivationScale *x = activation_scale(job->x, token, first / 2);
    size_t x_half = 0;

    for (; group < end; group += m->group_bytes) {
        Span span = {.packed = group + 2 * HALVES * half_bytes};
        UNROLL
        for (size_t h = 0; h < HALVES; h++) {
            span.scales[h] = load_rows(group + h * half_bytes, m->scale_type);
            span.biases[h] = load_rows(group + (HALVES + h) * half_bytes, m->scale_type);
        }
        for (; span.packed < group + m->group_bytes; span.packed += span_bytes) {
            span.x = codes + x_half * WEIGHT_BLOCK * input_bytes(kind);
            span.x_scales = x;
            span.x_offsets = kind.span_blocks == 1 ? &x->half_offsets[x_half] : &x->offset;
            prefetch_codes(span.packed, span_bytes);
            add_span_to_all(&span, width, kind, acc);
            if (kind.span_blocks == 1)
                x_half ^= 1;
            if (x_half == 0) {
                codes += width * input_bytes(kind) * ACTIVATION_BLOCK;
                x += width;
            }
        }
    }
}

static FORCE_INLINE void multiply_kind(const KernelJob *job, KernelKind kind)
{
    const PackedMatrix *m = job->matrix;
    __m256 acc[ROW_TILES][HALVES][ACTIVATION_TILE];
    int16_t words[WIDENED_BLOCKS / 2 * ACTIVATION_TILE][ACTIVATION_BLOCK];

    for (size_t done = 0; done < job->n_tiles; done += ROW_TILES) {
        size_t first_tile = job->first_tile + done;
        size_t tiles = job->n_tiles - done < ROW_TILES ? job->n_tiles - done : ROW_TILES;
        for (size_t token = 0; token < job->x->n_tokens; token += ACTIVATION_TILE) {
            size_t left = job->x->n_tokens - token;
            size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
            size_t chunk =
                (needs_words(kind) ? WIDENED_BLOCKS : CHUNK_BLOCKS) * (ACTIVATION_TILE / width);
            memset(acc, 0, sizeof(acc));
            for (size_t block = 0; block < m->n_blocks; block += chunk) {
                size_t blocks = m->n_blocks - block;
                blocks = blocks < chunk ? blocks : chunk;
                const int8_t *codes = activation_codes(job->x, token, block / 2);
                if (needs_words(kind)) {
                    widen_inputs(codes, (blocks + 1) / 2 * width, words);
                    codes = (const int8_t *)words;
                }
                for (size_t i = 0; i < tiles; i++)
                    add_chunk(job, first_tile + i, token, width, block, blocks, codes, kind,
                              acc[i]);
            }
            for (size_t i = 0; i < tiles * HALVES; i++) {
                for (size_t t = 0; t < width; t++)
                    store_half(job, first_tile + i / HALVES, i % HALVES, token + t,
                               acc[i / HALVES][i % HALVES][t]);
            }
        }
    }
}

void AVX2_NAME(multiply_many)(const KernelJob *job)
{
    KERNEL_BY_FORMAT(multiply_kind, job);
}
