/* Packing: a row's bytes are the same whether 16 rows went through vectors or it went alone, word
 * by word; what is beyond the last row is zero; and threads pack the rows that they multiply. */
#include "cpu/kernels.h"
#include "matrix_sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 37, COLS_MAX = 384, IMAGE_BYTES = COLS_MAX * 8 };

typedef struct Source {
    TensorView weight, scales, biases;
    WeightMatrix matrix;
} Source;

typedef struct SourceSpec {
    QuantMode mode;
    uint32_t bits, group_size;
    DType scales, biases; /* or the values of a dense matrix */
    size_t cols;
} SourceSpec;

static const SourceSpec specs[] = {
    {QUANT_AFFINE, 4, 64, DTYPE_BF16, DTYPE_BF16, 384},
    {QUANT_AFFINE, 4, 32, DTYPE_F16, DTYPE_F16, 96},
    {QUANT_AFFINE, 4, 128, DTYPE_F32, DTYPE_F32, 384},
    {QUANT_AFFINE, 4, 64, DTYPE_F16, DTYPE_F32, 192},
    {QUANT_AFFINE, 8, 64, DTYPE_BF16, DTYPE_BF16, 320},
    {QUANT_AFFINE, 8, 32, DTYPE_F32, DTYPE_F32, 352},
    {QUANT_AFFINE, 2, 64, DTYPE_F16, DTYPE_F16, 128},
    {QUANT_AFFINE, 3, 32, DTYPE_BF16, DTYPE_BF16, 64},
    {QUANT_AFFINE, 5, 64, DTYPE_F16, DTYPE_F16, 128},
    {QUANT_AFFINE, 6, 128, DTYPE_BF16, DTYPE_BF16, 384},
    {QUANT_MXFP4, 4, 32, DTYPE_U8, DTYPE_U8, 288},
    {QUANT_MXFP8, 8, 32, DTYPE_U8, DTYPE_U8, 64},
    {QUANT_NVFP4, 4, 16, DTYPE_U8, DTYPE_U8, 80},
    {QUANT_NONE, 0, 0, DTYPE_F32, DTYPE_F32, 70},
    {QUANT_NONE, 0, 0, DTYPE_F16, DTYPE_F16, 64},
    {QUANT_NONE, 0, 0, DTYPE_BF16, DTYPE_BF16, 77},
};

/* Any bits: packing must not care whether a scale is a number. One byte off, as in files. */
static TensorView random_tensor(DType dtype, size_t cols)
{
    TensorView view = {.dtype = dtype, .n_dims = 2, .shape = {ROWS, (int64_t)cols}};
    view.n_bytes = ROWS * cols * dtype_size(dtype);
    uint8_t *bytes = memory_allocate(view.n_bytes + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < view.n_bytes + 1; i++)
        bytes[i] = (uint8_t)random_bits();
    view.data = bytes + 1;
    return view;
}

static void source_create(Source *source, const SourceSpec *spec)
{
    *source = (Source){0};
    source->matrix = (WeightMatrix){.weight = &source->weight,
                                    .mode = spec->mode,
                                    .bits = spec->bits,
                                    .group_size = spec->group_size,
                                    .n_experts = 1,
                                    .rows = ROWS,
                                    .cols = spec->cols};
    if (spec->mode == QUANT_NONE) {
        source->weight = random_tensor(spec->scales, spec->cols);
        return;
    }
    source->weight = random_tensor(DTYPE_U32, spec->cols * spec->bits / 32);
    source->scales = random_tensor(spec->scales, spec->cols / spec->group_size);
    source->matrix.scales = &source->scales;
    if (spec->mode != QUANT_AFFINE)
        return;
    source->biases = random_tensor(spec->biases, spec->cols / spec->group_size);
    source->matrix.biases = &source->biases;
}

static void source_free(Source *source)
{
    const TensorView *const views[] = {&source->weight, &source->scales, &source->biases};
    for (size_t i = 0; i < ARRAY_COUNT(views); i++) {
        if (views[i]->data)
            memory_free((void *)(uintptr_t)(views[i]->data - 1));
    }
}

/* A row's bytes in the order of its tile, by the layout in kernels.h. Returns how many. */
static size_t row_image(const PackedMatrix *m, size_t row, uint8_t image[IMAGE_BYTES])
{
    const uint8_t *at = m->data + row / TILE_ROWS * m->tile_bytes, *end = at + m->tile_bytes;
    size_t lane = row % TILE_ROWS, n = 0;
    bool is_quantized = packed_format_is_quantized(m->format);
    size_t scale = scale_type_bytes(m->scale_type);
    while (at < end) {
        const uint8_t *group_end = at + m->group_bytes;
        for (int i = 0; is_quantized && i < 2; i++, at += TILE_ROWS * scale, n += scale)
            memcpy(image + n, at + lane * scale, scale);
        size_t size = is_quantized || m->format == PACKED_F32 ? 4 : 2;
        for (; at < group_end; at += TILE_ROWS * size, n += size)
            memcpy(image + n, at + lane * size, size);
        assert_true(n <= IMAGE_BYTES);
    }
    assert_ptr_equal(at, end);
    return n;
}

static void check_rows(const SourceSpec *spec, CpuPool *pool)
{
    static uint8_t together[IMAGE_BYTES], alone[IMAGE_BYTES];
    Source source;
    PackedMatrix *all, *one;
    Error err = {0};
    source_create(&source, spec);
    assert_true(packed_matrix_create(&source.matrix, 0, pool, &all, &err));
    for (size_t row = 0; row < ROWS; row++) {
        WeightMatrix slice = weight_matrix_slice_rows(&source.matrix, row, 1);
        assert_true(packed_matrix_create(&slice, 0, NULL, &one, &err));
        size_t size = row_image(all, row, together);
        assert_int_equal(row_image(one, 0, alone), size);
        assert_memory_equal(together, alone, size);
        packed_matrix_free(one);
    }
    for (size_t row = ROWS; row < all->n_tiles * TILE_ROWS; row++) {
        size_t size = row_image(all, row, together);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(together[i], 0);
    }
    packed_matrix_free(all);
    source_free(&source);
}

static void test_rows_pack_together_as_alone(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(2, &pool, &err));
    for (size_t i = 0; i < ARRAY_COUNT(specs); i++) {
        check_rows(&specs[i], NULL);
        check_rows(&specs[i], pool);
    }
    cpu_pool_free(pool);
}

/* ---- Shares ---- */

typedef struct Shape {
    size_t rows, cols;
} Shape;

static void plan(const Shape *shapes, size_t count, size_t n_tokens, size_t threads,
                 PackedMatrix *matrices, MatrixParts *parts, size_t *n_parts)
{
    *parts = (MatrixParts){.n_matrices = count};
    for (size_t i = 0; i < count; i++) {
        PackedMatrix *m = &matrices[i];
        *m = (PackedMatrix){.rows = shapes[i].rows, .cols = shapes[i].cols};
        m->n_tiles = (m->rows + TILE_ROWS - 1) / TILE_ROWS;
        m->tile_bytes = m->cols / 64 * (2 * NIBBLE_BLOCK_BYTES + 4 * TILE_ROWS);
        m->bytes = m->n_tiles * m->tile_bytes;
        parts->matrices[i] = m;
    }
    *n_parts = matrix_parts_plan(parts, n_tokens, threads);
}

/* Every tile is in one part; and the tiles of a thread's share are the same for packing (planned as
 * for one token) and for products of one and of many tokens. */
static void test_threads_pack_what_they_multiply(void **state)
{
    (void)state;
    static const Shape groups[][3] = {{{4096, 2560}, {1024, 2560}, {1024, 2560}},
                                      {{9728, 2560}, {9728, 2560}},
                                      {{2560, 9728}},
                                      {{151936, 2560}}};
    static const size_t counts[] = {3, 2, 1, 1}, threads[] = {2, 3, 8, 32}, tokens[] = {1, 2, 64};
    for (size_t g = 0; g < ARRAY_COUNT(groups); g++) {
        for (size_t t = 0; t < ARRAY_COUNT(threads); t++) {
            PackedMatrix matrices[3];
            MatrixParts packing, product;
            size_t n_packing, n_product, tile = 0, matrix = 0;
            plan(groups[g], counts[g], 1, threads[t], matrices, &packing, &n_packing);
            assert_true(n_packing >= threads[t]);
            for (size_t part = 0; part < n_packing; part++) {
                MatrixPart p = matrix_parts_get(&packing, part);
                if (p.matrix != matrix) {
                    assert_int_equal(tile, matrices[matrix].n_tiles);
                    assert_int_equal(p.matrix, ++matrix);
                    tile = 0;
                }
                assert_int_equal(p.first_tile, tile);
                assert_true(p.n_tiles > 0);
                tile += p.n_tiles;
            }
            assert_int_equal(matrix, counts[g] - 1);
            assert_int_equal(tile, matrices[matrix].n_tiles);
            for (size_t k = 0; k < ARRAY_COUNT(tokens); k++) {
                plan(groups[g], counts[g], tokens[k], threads[t], matrices, &product, &n_product);
                assert_int_equal(n_product, n_packing);
                for (size_t share = 0; share < threads[t]; share++) {
                    size_t begin = cpu_pool_share_begin(n_packing, threads[t], share);
                    MatrixPart a = matrix_parts_get(&packing, begin);
                    MatrixPart b = matrix_parts_get(&product, begin);
                    assert_int_equal(a.matrix, b.matrix);
                    assert_int_equal(a.first_tile, b.first_tile);
                }
            }
        }
    }
}

/* ---- Faults ---- */

static void test_groups_fail_as_one(void **state)
{
    (void)state;
    Source sources[2];
    PackedStore store = {0};
    PackedMatrix *a, *b;
    Error err;
    uint64_t nth = 1;
    source_create(&sources[0], &specs[0]);
    source_create(&sources[1], &specs[4]);
    const PackRequest requests[] = {{&sources[0].matrix, 0, &a}, {&sources[1].matrix, 0, &b}};
    for (;; nth++) {
        fault_fail_allocation(nth);
        bool ok = packed_matrices_create(&store, requests, 2, NULL, &err);
        fault_fail_allocation(0);
        if (ok)
            break;
        assert_null(a);
        assert_null(b);
        assert_int_equal(err.code, ERROR_MEMORY);
    }
    assert_true(nth > 3);
    assert_true(a->is_stored && b->is_stored);
    packed_matrix_free(a);
    packed_matrix_free(b);
    packed_store_reset(&store);
    source_free(&sources[0]);
    source_free(&sources[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_pack_together_as_alone),
        cmocka_unit_test(test_threads_pack_what_they_multiply),
        cmocka_unit_test(test_groups_fail_as_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
