/* Writing one tile of a PackedMatrix (layout: kernels.h).
 *
 * What lies behind each other in the source, 16 rows, lies side by side in the tile: packing is a
 * transposition, of 32-bit words for codes (a row's 4 bytes or 8 nibbles) and float32 values, of
 * 16-bit halves for scales and 16-bit values.
 *
 * Sixteen rows go in vectors of 16 bytes, which every x86-64 and 64-bit Arm processor has; the
 * compiler's vector types say it once for both. Fewer rows (a matrix's last tile, or one row that
 * was unpacked into scratch) go word by word: the same bytes, and the formula. */
#include "kernels.h"

#include "transpose.h"

#include <assert.h>
#include <string.h>

#if defined(__has_builtin) && defined(__BYTE_ORDER__)
#if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define PACK_HAS_VECTORS 1
#endif
#endif
#ifndef PACK_HAS_VECTORS
#define PACK_HAS_VECTORS 0
#endif

enum { CACHE_LINE = 64 };

/* Source rows of a tile: the first one's bytes, how far the next is, and how many there are. */
typedef struct Rows {
    const uint8_t *first;
    size_t stride, count;
} Rows;

/* Where they go: row r's element i to at + i * stride + r * (size of an element). */
typedef struct Lanes {
    uint8_t *at;
    size_t stride;
} Lanes;

/* ---- Transpositions ---- */

/* Nibbles 0 1 2 3 4 5 6 7 of a little-endian word (or of each in a vector) to 0 4 1 5 2 6 3 7, the
 * order of a tile's nibbles: the middle bytes change places, then each half's middle nibbles. */
#define ORDER_NIBBLES(word)                                                                        \
    do {                                                                                           \
        (word) = EXCHANGE(word, 8, 0x0000ff00u);                                                   \
        (word) = EXCHANGE(word, 4, 0x00f000f0u);                                                   \
    } while (0)
/* The bits of mask change places with those that are `by` bits above them. */
#define EXCHANGE(x, by, mask) ((x) ^ EXCHANGED(x, by, mask) ^ EXCHANGED(x, by, mask) << (by))
#define EXCHANGED(x, by, mask) (((x) ^ (x) >> (by)) & (mask))

static void move_word(const uint8_t *from, bool are_nibbles, uint8_t *to)
{
    uint32_t word = (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
                    (uint32_t)from[3] << 24;
    if (are_nibbles)
        ORDER_NIBBLES(word);
    for (size_t b = 0; b < 4; b++)
        to[b] = (uint8_t)(word >> (8 * b));
}

#if PACK_HAS_VECTORS

/* Four words of four rows. */
static FORCE_INLINE void scatter_4_words(const uint8_t *from, size_t row_stride, bool are_nibbles,
                                         Lanes to)
{
    Words rows[WORDS_LANES];
    for (size_t r = 0; r < WORDS_LANES; r++) {
        memcpy(&rows[r], from + r * row_stride, sizeof rows[r]);
        if (are_nibbles)
            ORDER_NIBBLES(rows[r]);
    }
    transpose_words(rows, to.at, to.stride);
}

static FORCE_INLINE Halves load_halves(const void *from)
{
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return halves;
}

/* Eight halves of eight rows. */
static FORCE_INLINE void scatter_8_halves(const uint8_t *from, size_t row_stride, Lanes to)
{
    transpose_halves(from, row_stride, load_halves, to.at, to.stride);
}

#endif

static FORCE_INLINE void scatter_words(Rows rows, size_t n_words, bool are_nibbles, Lanes to)
{
    size_t done = 0;
#if PACK_HAS_VECTORS
    const uint8_t *from = rows.first;
    uint8_t *at = to.at;
    for (; rows.count == TILE_ROWS && done + 4 <= n_words; done += 4) {
        /* Not a loop: a row has a load of its own, whose even steps the processor can foresee. */
        scatter_4_words(from, rows.stride, are_nibbles, (Lanes){at, to.stride});
        scatter_4_words(from + 4 * rows.stride, rows.stride, are_nibbles,
                        (Lanes){at + 16, to.stride});
        scatter_4_words(from + 8 * rows.stride, rows.stride, are_nibbles,
                        (Lanes){at + 32, to.stride});
        scatter_4_words(from + 12 * rows.stride, rows.stride, are_nibbles,
                        (Lanes){at + 48, to.stride});
        from += 16;
        at += 4 * to.stride;
    }
#endif
    for (size_t r = 0; r < rows.count; r++) {
        for (size_t i = done; i < n_words; i++)
            move_word(rows.first + r * rows.stride + i * 4, are_nibbles,
                      to.at + i * to.stride + r * 4);
    }
}

static void scatter_halves(Rows rows, size_t n_halves, Lanes to)
{
    size_t done = 0;
#if PACK_HAS_VECTORS
    const uint8_t *from = rows.first;
    for (; rows.count == TILE_ROWS && done + 8 <= n_halves; done += 8, from += 16) {
        Lanes at = {to.at + done * to.stride, to.stride};
        scatter_8_halves(from, rows.stride, at);
        scatter_8_halves(from + 8 * rows.stride, rows.stride, (Lanes){at.at + 16, at.stride});
    }
#endif
    for (size_t r = 0; r < rows.count; r++) {
        for (size_t i = done; i < n_halves; i++)
            memcpy(to.at + i * to.stride + r * 2, rows.first + r * rows.stride + i * 2, 2);
    }
}

/* ---- Codes ---- */

/* Rows of words that are a block's vectors in order. `tile` is already at the first row's lane.
 * Rows are too short, and too many at once, for the processor to foresee the next tile's: its lines
 * are fetched as many ahead as this one reads. */
static FORCE_INLINE void scatter_blocks(const PackedMatrix *m, Rows rows, size_t block_words,
                                        bool are_nibbles, uint8_t *tile)
{
    size_t n_groups = m->n_blocks / m->group_blocks;
    size_t scale_bytes = 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
    const uint8_t *ahead = rows.first + TILE_ROWS * rows.stride;
    size_t n_ahead = rows.count == TILE_ROWS ? block_words * 4 * TILE_ROWS / CACHE_LINE : 0;
    for (size_t g = 0; g < n_groups; g++) {
        Lanes to = {tile + g * m->group_bytes + scale_bytes, VECTOR_BYTES};
        for (size_t b = 0; b < m->group_blocks; b++) {
            for (size_t i = 0; i < n_ahead; i++, ahead += CACHE_LINE)
                __builtin_prefetch(ahead);
            scatter_words(rows, block_words, are_nibbles, to);
            rows.first += block_words * 4;
            to.at += block_words * VECTOR_BYTES;
        }
    }
}

/* Codes of a byte each to a tile's nibbles: the order that ORDER_NIBBLES makes. In place. */
static void fold_codes(uint8_t *codes, size_t count)
{
    for (size_t i = 0; i < count; i += 8) {
        for (size_t b = 0; b < 4; b++)
            codes[i / 2 + b] = (uint8_t)(codes[i + b] | codes[i + 4 + b] << 4);
    }
}

/* Widths that no layout has: one row after the other by way of scratch. */
static void write_unpacked_codes(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                                 size_t first_row, size_t n_rows, uint8_t *tile, uint8_t *codes)
{
    for (size_t r = 0; r < n_rows; r++) {
        weight_matrix_read_codes(source, expert, first_row + r, codes);
        Rows row = {codes, 0, 1};
        if (m->format == PACKED_NIBBLES) {
            fold_codes(codes, m->cols);
            scatter_blocks(m, row, BLOCK_VECTORS / 2, false, tile + r * 4);
        } else {
            scatter_blocks(m, row, BLOCK_VECTORS, false, tile + r * 4);
        }
    }
}

/* ---- Scales ---- */

static void write_scale(uint8_t *at, ScaleType type, float value)
{
    if (type == SCALE_F32) {
        memcpy(at, &value, 4);
        return;
    }
    uint16_t half = type == SCALE_F16 ? float_to_f16(value) : float_to_bf16(value);
    memcpy(at, &half, 2);
}

static void write_converted_scales(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                                   size_t row, uint8_t *tile, float *scales)
{
    size_t size = scale_type_bytes(m->scale_type), lane = row % TILE_ROWS;
    size_t n_groups = m->n_blocks / m->group_blocks;
    float *biases = scales + n_groups;
    weight_matrix_read_scales(source, expert, row, scales, biases);
    for (size_t g = 0; g < n_groups; g++) {
        uint8_t *group = tile + g * m->group_bytes;
        float scale = scales[g], bias = biases[g];
        if (m->format == PACKED_FP4) {
            scale *= 0.5f;
            bias = -(float)FP4_CODE_OF_ZERO * scale;
        }
        write_scale(group + lane * size, m->scale_type, scale);
        write_scale(group + (TILE_ROWS + lane) * size, m->scale_type, bias);
    }
}

static Rows rows_of(const WeightMatrix *source, const TensorView *tensor, size_t expert,
                    size_t first_row, size_t n_rows)
{
    TensorView view = weight_matrix_view_rows(source, tensor, expert, first_row, n_rows);
    return (Rows){view.data, view.n_bytes / n_rows, n_rows};
}

static void write_scales(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                         size_t first_row, size_t n_rows, uint8_t *tile, float *scratch)
{
    size_t size = scale_type_bytes(m->scale_type);
    bool same_types = source->mode == QUANT_AFFINE && dtype_size(source->scales->dtype) == size &&
                      dtype_size(source->biases->dtype) == size;
    if (!same_types) {
        for (size_t r = 0; r < n_rows; r++)
            write_converted_scales(m, source, expert, first_row + r, tile, scratch);
        return;
    }
    const TensorView *const tensors[] = {source->scales, source->biases};
    size_t n_groups = m->n_blocks / m->group_blocks;
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        Rows rows = rows_of(source, tensors[i], expert, first_row, n_rows);
        Lanes to = {tile + i * TILE_ROWS * size, m->group_bytes};
        if (size == 4)
            scatter_words(rows, n_groups, false, to);
        else
            scatter_halves(rows, n_groups, to);
    }
}

/* ---- Tiles ---- */

static void write_quantized_tile(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                                 size_t first_row, size_t n_rows, uint8_t *tile, float *scratch)
{
    Rows rows = rows_of(source, source->weight, expert, first_row, n_rows);
    write_scales(m, source, expert, first_row, n_rows, tile, scratch);
    if (source->bits == 4)
        scatter_blocks(m, rows, BLOCK_VECTORS / 2, true, tile);
    else if (source->bits == 8)
        scatter_blocks(m, rows, BLOCK_VECTORS, false, tile);
    else
        write_unpacked_codes(m, source, expert, first_row, n_rows, tile, (uint8_t *)scratch);
}

/* Formats without a layout of their own become bfloat16. */
static void write_widened_tile(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                               size_t first_row, size_t n_rows, uint8_t *tile, float *scratch)
{
    uint8_t *halves = (uint8_t *)(scratch + m->cols);
    for (size_t r = 0; r < n_rows; r++) {
        weight_matrix_read_row(source, expert, first_row + r, scratch);
        for (size_t i = 0; i < m->cols; i++) {
            uint16_t half = float_to_bf16(scratch[i]);
            memcpy(halves + i * 2, &half, 2);
        }
        scatter_halves((Rows){halves, 0, 1}, m->cols, (Lanes){tile + r * 2, 2 * TILE_ROWS});
    }
}

void packed_tile_write(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                       size_t tile_index, float *scratch)
{
    assert(!source->experts);
    uint8_t *tile = m->data + tile_index * m->tile_bytes;
    size_t first_row = tile_index * TILE_ROWS, left = m->rows - first_row;
    size_t n_rows = left < TILE_ROWS ? left : TILE_ROWS;
    if (n_rows < TILE_ROWS || m->cols % WEIGHT_BLOCK != 0)
        memset(tile, 0, m->tile_bytes); /* else every byte is written */
    if (packed_format_is_quantized(m->format)) {
        write_quantized_tile(m, source, expert, first_row, n_rows, tile, scratch);
        return;
    }
    if (source->mode != QUANT_NONE) {
        write_widened_tile(m, source, expert, first_row, n_rows, tile, scratch);
        return;
    }
    Rows rows = rows_of(source, source->weight, expert, first_row, n_rows);
    if (m->format == PACKED_F32)
        scatter_words(rows, m->cols, false, (Lanes){tile, 4 * TILE_ROWS});
    else
        scatter_halves(rows, m->cols, (Lanes){tile, 2 * TILE_ROWS});
}
