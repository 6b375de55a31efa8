/* Packing a WeightMatrix into tiles of 16 rows (layout: kernels.h), and reading a row back.
 *
 * Rows are scattered one after the other into their tile: a row owns one 32-bit lane of every
 * vector. A tile is some kilobytes, so its sixteen passes stay in the first-level cache. */
#include "kernels.h"

#include <assert.h>
#include <string.h>

enum {
    PACK_PART_BYTES = 256 << 10,
    STORE_ALIGNMENT = 64,
    STORE_SLAB_BYTES = 32 << 20,
};

typedef struct PackJob {
    const WeightMatrix *source;
    size_t expert;
    PackedMatrix *matrix;
    float *scratch; /* scratch_floats for each worker */
    size_t scratch_floats;
    size_t tiles_per_part;
} PackJob;

static const uint8_t fp4_codes[16] = FP4_CODES;

/* ---- Writing a tile ---- */

static const uint8_t *source_row(const WeightMatrix *source, size_t expert, size_t row)
{
    const TensorView *weight = source->weight;
    size_t tensor_rows = (size_t)weight->shape[weight->n_dims - 2];
    size_t row_bytes = source->mode == QUANT_NONE ? source->cols * dtype_size(weight->dtype)
                                                  : source->cols * source->bits / 8;
    return weight->data + (expert * tensor_rows + source->first_row + row) * row_bytes;
}

/* Spreads the four nibbles of the low half over the bytes of a word. */
static uint32_t spread_nibbles(uint32_t half)
{
    half = (half | half << 8) & 0x00ff00ffu;
    return (half | half << 4) & 0x0f0f0f0fu;
}

static size_t block_offset(const PackedMatrix *m, size_t block)
{
    size_t scales = 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
    size_t bytes = m->format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    return block / m->group_blocks * m->group_bytes + scales + block % m->group_blocks * bytes;
}

/* 4-bit rows are already nibbles: 8 consecutive inputs are one little-endian word. */
static void scatter_nibble_words(const PackedMatrix *m, uint8_t *tile, size_t lane,
                                 const uint8_t *words)
{
    for (size_t block = 0; block < m->n_blocks; block++) {
        uint8_t *to = tile + block_offset(m, block) + lane * 4;
        for (size_t i = 0; i < 4; i++) {
            const uint8_t *from = words + (block * 4 + i) * 4;
            uint32_t word = (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
                            (uint32_t)from[3] << 24;
            uint32_t packed = spread_nibbles(word & 0xffff) | spread_nibbles(word >> 16) << 4;
            for (size_t b = 0; b < 4; b++)
                to[i * VECTOR_BYTES + b] = (uint8_t)(packed >> (8 * b));
        }
    }
}

static void scatter_nibbles(const PackedMatrix *m, uint8_t *tile, size_t lane, const uint8_t *codes)
{
    for (size_t block = 0; block < m->n_blocks; block++) {
        uint8_t *to = tile + block_offset(m, block) + lane * 4;
        const uint8_t *from = codes + block * WEIGHT_BLOCK;
        for (size_t i = 0; i < 4; i++) {
            for (size_t b = 0; b < 4; b++)
                to[i * VECTOR_BYTES + b] = (uint8_t)(from[i * 8 + b] | from[i * 8 + 4 + b] << 4);
        }
    }
}

static void scatter_bytes(const PackedMatrix *m, uint8_t *tile, size_t lane, const uint8_t *codes)
{
    for (size_t block = 0; block < m->n_blocks; block++) {
        uint8_t *to = tile + block_offset(m, block) + lane * 4;
        for (size_t j = 0; j < BLOCK_VECTORS; j++)
            memcpy(to + j * VECTOR_BYTES, codes + block * WEIGHT_BLOCK + j * 4, 4);
    }
}

static void write_scale(uint8_t *at, ScaleType type, float value)
{
    if (type == SCALE_F32) {
        memcpy(at, &value, 4);
        return;
    }
    uint16_t half = type == SCALE_F16 ? float_to_f16(value) : float_to_bf16(value);
    memcpy(at, &half, 2);
}

static void scatter_scales(const PackedMatrix *m, uint8_t *tile, size_t lane, const float *scales,
                           const float *biases)
{
    size_t size = scale_type_bytes(m->scale_type);
    size_t n_groups = m->n_blocks / m->group_blocks;
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

static void pack_quantized_row(const PackJob *job, size_t row, uint8_t *tile, float *scratch)
{
    const PackedMatrix *m = job->matrix;
    const WeightMatrix *source = job->source;
    size_t n_groups = m->n_blocks / m->group_blocks;
    size_t lane = row % TILE_ROWS;
    float *scales = scratch, *biases = scratch + n_groups;
    uint8_t *codes = (uint8_t *)(scratch + 2 * n_groups);

    weight_matrix_read_scales(source, job->expert, row, scales, biases);
    scatter_scales(m, tile, lane, scales, biases);
    if (source->bits == 4) {
        scatter_nibble_words(m, tile, lane, source_row(source, job->expert, row));
    } else if (source->bits == 8) {
        scatter_bytes(m, tile, lane, source_row(source, job->expert, row));
    } else {
        weight_matrix_read_codes(source, job->expert, row, codes);
        if (m->format == PACKED_NIBBLES)
            scatter_nibbles(m, tile, lane, codes);
        else
            scatter_bytes(m, tile, lane, codes);
    }
}

static void pack_dense_row(const PackJob *job, size_t row, uint8_t *tile, float *scratch)
{
    const WeightMatrix *source = job->source;
    size_t cols = source->cols, lane = row % TILE_ROWS;
    if (source->mode != QUANT_NONE) {
        weight_matrix_read_row(source, job->expert, row, scratch);
        for (size_t i = 0; i < cols; i++) {
            uint16_t half = float_to_bf16(scratch[i]);
            memcpy(tile + (i * TILE_ROWS + lane) * 2, &half, 2);
        }
        return;
    }
    const uint8_t *from = source_row(source, job->expert, row);
    if (job->matrix->format == PACKED_F32) {
        for (size_t i = 0; i < cols; i++)
            memcpy(tile + (i * TILE_ROWS + lane) * 4, from + i * 4, 4);
    } else {
        for (size_t i = 0; i < cols; i++)
            memcpy(tile + (i * TILE_ROWS + lane) * 2, from + i * 2, 2);
    }
}

static void pack_part(void *context, size_t part, size_t n_parts)
{
    const PackJob *job = context;
    PackedMatrix *m = job->matrix;
    float *scratch = job->scratch + cpu_pool_worker_index() * job->scratch_floats;
    size_t first = part * job->tiles_per_part;
    size_t end = first + job->tiles_per_part;
    (void)n_parts;

    for (size_t tile = first; tile < end && tile < m->n_tiles; tile++) {
        uint8_t *at = m->data + tile * m->tile_bytes;
        memset(at, 0, m->tile_bytes);
        for (size_t row = tile * TILE_ROWS; row < m->rows && row < (tile + 1) * TILE_ROWS; row++) {
            if (packed_format_is_quantized(m->format))
                pack_quantized_row(job, row, at, scratch);
            else
                pack_dense_row(job, row, at, scratch);
        }
    }
}

/* ---- Creating ---- */

static ScaleType scale_type_of(const WeightMatrix *source)
{
    if (source->mode != QUANT_AFFINE)
        return SCALE_BF16; /* powers of two and 3 * 2^n are exact in it */
    if (source->scales->dtype != source->biases->dtype)
        return SCALE_F32;
    switch (source->scales->dtype) {
    case DTYPE_F16:
        return SCALE_F16;
    case DTYPE_BF16:
        return SCALE_BF16;
    default:
        return SCALE_F32;
    }
}

static bool choose_format(const WeightMatrix *source, PackedMatrix *m, Error *err)
{
    m->group_blocks = 1;
    switch (source->mode) {
    case QUANT_NONE:
        m->format = source->weight->dtype == DTYPE_F32   ? PACKED_F32
                    : source->weight->dtype == DTYPE_F16 ? PACKED_F16
                                                         : PACKED_BF16;
        return true;
    case QUANT_MXFP8:
    case QUANT_NVFP4:
        m->format = PACKED_BF16;
        return true;
    case QUANT_MXFP4:
        m->format = PACKED_FP4;
        break;
    case QUANT_AFFINE:
        m->format = source->bits <= 4 ? PACKED_NIBBLES : PACKED_BYTES;
        m->code_bits = source->bits;
        break;
    }
    m->scale_type = scale_type_of(source);
    m->group_blocks = source->group_size / WEIGHT_BLOCK;
    bool group_fits =
        source->group_size == 32 || source->group_size == 64 || source->group_size == 128;
    if (!group_fits || source->cols % source->group_size != 0 || source->bits < 1 ||
        source->bits > 8 || source->bits == 7)
        return error_set(err, ERROR_UNSUPPORTED,
                         "matrix of %zu columns with %u bits and group_size %u: expected 1 to 6 or "
                         "8 bits and a group_size of 32, 64 or 128 that divides the columns",
                         source->cols, (unsigned)source->bits, (unsigned)source->group_size);
    return true;
}

static bool compute_sizes(PackedMatrix *m)
{
    if (m->rows > SIZE_MAX - TILE_ROWS || m->cols > SIZE_MAX / 256)
        return false;
    m->n_tiles = (m->rows + TILE_ROWS - 1) / TILE_ROWS;
    m->n_blocks = (m->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
    if (packed_format_is_quantized(m->format)) {
        size_t block = m->format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
        m->group_bytes = 2 * TILE_ROWS * scale_type_bytes(m->scale_type) + m->group_blocks * block;
    } else {
        m->group_bytes = (m->format == PACKED_F32 ? 4u : 2u) * TILE_ROWS * WEIGHT_BLOCK;
    }
    return size_multiply(m->n_blocks / m->group_blocks, m->group_bytes, &m->tile_bytes) &&
           size_multiply(m->n_tiles, m->tile_bytes, &m->bytes);
}

typedef struct PackedSlab {
    _Alignas(STORE_ALIGNMENT) struct PackedSlab *next;
} PackedSlab;

static void *take_from_store(PackedStore *store, size_t bytes)
{
    bytes = (bytes + STORE_ALIGNMENT - 1) / STORE_ALIGNMENT * STORE_ALIGNMENT;
    if (bytes > store->left) { /* what is left of the old slab was never touched */
        PackedSlab *slab = memory_allocate_huge(STORE_SLAB_BYTES);
        if (!slab)
            return NULL;
        slab->next = store->slabs;
        *store = (PackedStore){slab, (uint8_t *)(slab + 1), STORE_SLAB_BYTES - sizeof *slab};
    }
    void *taken = store->next;
    store->next += bytes;
    store->left -= bytes;
    return taken;
}

void packed_store_reset(PackedStore *store)
{
    while (store->slabs) {
        PackedSlab *slab = store->slabs;
        store->slabs = slab->next;
        memory_free(slab);
    }
    *store = (PackedStore){0};
}

bool packed_matrix_create(const WeightMatrix *source, size_t expert, CpuPool *pool,
                          PackedMatrix **out, Error *err)
{
    return packed_matrix_create_in(NULL, source, expert, pool, out, err);
}

bool packed_matrix_create_in(PackedStore *store, const WeightMatrix *source, size_t expert,
                             CpuPool *pool, PackedMatrix **out, Error *err)
{
    PackedMatrix *m = NULL;
    float *scratch = NULL;
    bool ok = false;

    *out = NULL;
    assert(expert < source->n_experts);
    m = memory_allocate_zeroed(1, sizeof(*m));
    if (!m) {
        error_no_memory(err, "packed matrix");
        goto cleanup;
    }
    m->rows = source->rows;
    m->cols = source->cols;
    if (!choose_format(source, m, err))
        goto cleanup;
    if (!compute_sizes(m)) {
        error_set(err, ERROR_LIMIT, "matrix [%zu, %zu] is too large", m->rows, m->cols);
        goto cleanup;
    }
    /* A row's values, or its codes with scales and biases: never more than 2 floats a column. */
    size_t scratch_floats = 2 * m->cols + 16;
    scratch = memory_allocate_array(cpu_pool_threads(pool), scratch_floats * sizeof(float));
    m->is_stored = store && m->bytes < MEMORY_HUGE_PAYS_BYTES;
    m->data = m->is_stored ? take_from_store(store, m->bytes) : memory_allocate_huge(m->bytes);
    if (!scratch || !m->data) {
        error_no_memory(err, "packed matrix");
        goto cleanup;
    }
    PackJob job = {source, expert, m, scratch, scratch_floats, 1};
    if (m->tile_bytes > 0 && m->tile_bytes < PACK_PART_BYTES)
        job.tiles_per_part = PACK_PART_BYTES / m->tile_bytes;
    cpu_pool_run(pool, pack_part, &job, (m->n_tiles + job.tiles_per_part - 1) / job.tiles_per_part);
    *out = m;
    ok = true;

cleanup:
    memory_free(scratch);
    if (!ok)
        packed_matrix_free(m);
    return ok;
}

void packed_matrix_free(PackedMatrix *matrix)
{
    if (!matrix)
        return;
    if (!matrix->is_stored)
        memory_free(matrix->data);
    memory_free(matrix);
}

size_t packed_matrix_bytes(const PackedMatrix *matrix)
{
    return matrix->bytes + sizeof(*matrix);
}

size_t packed_matrix_rows(const PackedMatrix *matrix)
{
    return matrix->rows;
}

size_t packed_matrix_cols(const PackedMatrix *matrix)
{
    return matrix->cols;
}

/* ---- Reading back ---- */

static float read_half(const uint8_t *at, bool is_f16)
{
    uint16_t half;
    memcpy(&half, at, 2);
    return is_f16 ? float_from_f16(half) : float_from_bf16(half);
}

static float read_scale(const uint8_t *at, ScaleType type)
{
    float value;
    if (type != SCALE_F32)
        return read_half(at, type == SCALE_F16);
    memcpy(&value, at, 4);
    return value;
}

static void read_dense_row(const PackedMatrix *m, const uint8_t *tile, size_t lane, float *out)
{
    for (size_t i = 0; i < m->cols; i++) {
        size_t element = i * TILE_ROWS + lane;
        if (m->format == PACKED_F32)
            memcpy(&out[i], tile + element * 4, 4);
        else
            out[i] = read_half(tile + element * 2, m->format == PACKED_F16);
    }
}

void packed_matrix_read_row(const PackedMatrix *matrix, size_t row, float *out)
{
    const PackedMatrix *m = matrix;
    assert(row < m->rows);
    const uint8_t *tile = m->data + row / TILE_ROWS * m->tile_bytes;
    size_t lane = row % TILE_ROWS;
    size_t size = scale_type_bytes(m->scale_type);

    if (!packed_format_is_quantized(m->format)) {
        read_dense_row(m, tile, lane, out);
        return;
    }
    for (size_t block = 0; block < m->n_blocks; block++) {
        const uint8_t *group = tile + block / m->group_blocks * m->group_bytes;
        const uint8_t *codes = tile + block_offset(m, block) + lane * 4;
        float scale = read_scale(group + lane * size, m->scale_type);
        float bias = read_scale(group + (TILE_ROWS + lane) * size, m->scale_type);
        for (size_t i = 0; i < WEIGHT_BLOCK; i++) {
            unsigned code;
            if (m->format == PACKED_BYTES) {
                code = codes[i / 4 * VECTOR_BYTES + i % 4];
            } else {
                code = codes[i / 8 * VECTOR_BYTES + i % 4] >> (i / 4 % 2 * 4) & 15;
                if (m->format == PACKED_FP4)
                    code = fp4_codes[code];
            }
            out[block * WEIGHT_BLOCK + i] = scale * (float)code + bias;
        }
    }
}
