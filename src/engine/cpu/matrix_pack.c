/* Making packed matrices of WeightMatrices: formats, memory, the cutting into parts; and reading a
 * row back. What a tile's bytes are stands in pack_tile.c.
 *
 * Matrices that are multiplied in one section are packed in one section, cut and shared out in the
 * same way: a page of weights is first touched by the thread that will read it, as far as threads
 * keep to their shares. */
#include "kernels.h"

#include <assert.h>
#include <string.h>

enum {
    STORE_ALIGNMENT = 64,
    STORE_SLAB_BYTES = 128 << 20,
    STORE_MATRIX_BYTES = STORE_SLAB_BYTES / 2, /* larger ones have memory of their own */
};

typedef struct PackJob {
    const PackRequest *requests;
    MatrixParts parts;
    float *scratch; /* scratch_floats for each worker */
    size_t scratch_floats;
} PackJob;

static const uint8_t fp4_codes[16] = FP4_CODES;

static size_t block_offset(const PackedMatrix *m, size_t block)
{
    size_t scales = 2 * TILE_ROWS * scale_type_bytes(m->scale_type);
    size_t bytes = m->format == PACKED_BYTES ? BYTE_BLOCK_BYTES : NIBBLE_BLOCK_BYTES;
    return block / m->group_blocks * m->group_bytes + scales + block % m->group_blocks * bytes;
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

/* An empty matrix with memory for its tiles. */
static bool create_empty(PackedStore *store, const WeightMatrix *source, PackedMatrix **out,
                         Error *err)
{
    PackedMatrix *m = memory_allocate_zeroed(1, sizeof(*m));
    if (!m)
        return error_no_memory(err, "packed matrix");
    m->rows = source->rows;
    m->cols = source->cols;
    if (!choose_format(source, m, err))
        goto failed;
    if (!compute_sizes(m)) {
        error_set(err, ERROR_LIMIT, "matrix [%zu, %zu] is too large", m->rows, m->cols);
        goto failed;
    }
    m->is_stored = store && m->bytes <= STORE_MATRIX_BYTES;
    m->data = m->is_stored ? take_from_store(store, m->bytes) : memory_allocate_huge(m->bytes);
    if (!m->data) {
        error_no_memory(err, "packed matrix");
        goto failed;
    }
    *out = m;
    return true;
failed:
    packed_matrix_free(m);
    return false;
}

static void pack_part(void *context, size_t part, size_t n_parts)
{
    const PackJob *job = context;
    MatrixPart tiles = matrix_parts_get(&job->parts, part);
    const PackRequest *request = &job->requests[tiles.matrix];
    float *scratch = job->scratch + cpu_pool_worker_index() * job->scratch_floats;
    (void)n_parts;
    for (size_t i = 0; i < tiles.n_tiles; i++)
        packed_tile_write(*request->out, request->source, request->expert, tiles.first_tile + i,
                          scratch);
}

bool packed_matrices_create(PackedStore *store, const PackRequest *requests, size_t count,
                            CpuPool *pool, Error *err)
{
    PackJob job = {.requests = requests, .parts.n_matrices = count};
    assert(count <= MATRIX_PARTS_MATRICES);
    for (size_t i = 0; i < count; i++)
        *requests[i].out = NULL;
    for (size_t i = 0; i < count; i++) {
        assert(requests[i].expert < requests[i].source->n_experts);
        if (!create_empty(store, requests[i].source, requests[i].out, err))
            goto failed;
        const PackedMatrix *m = *requests[i].out;
        job.parts.matrices[i] = m;
        /* A row's values, or its codes, or its scales and biases: at most 2 floats a column. */
        size_t floats = 2 * m->cols + 16;
        job.scratch_floats = floats > job.scratch_floats ? floats : job.scratch_floats;
    }
    size_t threads = cpu_pool_threads(pool);
    job.scratch = memory_allocate_array(threads, job.scratch_floats * sizeof(float));
    if (!job.scratch) {
        error_no_memory(err, "packed matrix");
        goto failed;
    }
    cpu_pool_run_shares(pool, pack_part, &job, matrix_parts_plan(&job.parts, 1, threads));
    memory_free(job.scratch);
    return true;

failed:
    for (size_t i = 0; i < count; i++) {
        packed_matrix_free(*requests[i].out);
        *requests[i].out = NULL;
    }
    return false;
}

bool packed_matrix_create(const WeightMatrix *source, size_t expert, CpuPool *pool,
                          PackedMatrix **out, Error *err)
{
    const PackRequest request = {source, expert, out};
    return packed_matrices_create(NULL, &request, 1, pool, err);
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
