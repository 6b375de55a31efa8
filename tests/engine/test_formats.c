/* Every storage format through the engine's products, against values that mlx made: it quantised
 * the matrices, saved them and says what they mean (tests/data/weights/make_formats.py). */
#include "cpu/matrix.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 10, COLS = 256, TOKENS = 3, FORMATS = 6 * 3 * 3 + 3 + 3 };

/* Errors in units of sum |x w| ("magnitude"). float32: sums of 256 products in some order, a few
 * units in the last place. Codes of 8 bits are off by half of 1/127 of a block's largest input,
 * which is 2 to 4 times a typical one, with random signs over 256 terms; 12 bits by 1/15, 16 bits
 * by 1/255 of that.
 */
static const double limits[] = {[ACTIVATIONS_INT8] = 4e-3,
                                [ACTIVATIONS_INT12] = 3e-4,
                                [ACTIVATIONS_INT16] = 2e-5,
                                [ACTIVATIONS_F32] = 1e-6};

typedef struct Formats {
    Buffer image;
    TensorSet *set;
    float x[TOKENS * COLS];
} Formats;

static void read_values(const Formats *f, const char *name, const char *field, size_t count,
                        float *out)
{
    char full[96];
    snprintf(full, sizeof full, "%s%s", name, field);
    const TensorView *tensor = tensor_set_find(f->set, slice_of(full));
    assert_non_null(tensor);
    assert_int_equal(tensor->n_bytes, count * sizeof(float));
    tensor_read_floats(tensor, 0, count, out);
}

static int setup(void **state)
{
    static Formats f;
    Error err = {0};
    buffer_init(&f.image, 1 << 20);
    if (!file_read(TEST_DATA_DIR "/weights/formats.safetensors", 1 << 20, &f.image, &err) ||
        !tensor_set_create(buffer_view(&f.image), "formats.safetensors", &f.set, &err))
        fail_msg("%s", err.message);
    read_values(&f, "x", "", TOKENS * COLS, f.x);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    Formats *f = *state;
    tensor_set_close(f->set);
    buffer_reset(&f->image);
    return 0;
}

static void check_product(const Formats *f, const char *name, const WeightMatrix *matrix,
                          ActivationPrecision precision)
{
    float expected[TOKENS * ROWS], magnitude[TOKENS * ROWS], found[TOKENS * ROWS];
    Error err = {0};
    PackedMatrix *packed;
    Activations x;
    read_values(f, name, ".expected", TOKENS * ROWS, expected);
    read_values(f, name, ".magnitude", TOKENS * ROWS, magnitude);
    if (!packed_matrix_create(matrix, 0, NULL, &packed, &err) ||
        !activations_create(TOKENS, COLS, precision, &x, &err))
        fail_msg("%s: %s", name, err.message);
    activations_prepare(&x, packed, f->x, TOKENS, COLS, COLS, NULL);
    MatrixProduct product = {packed, NULL, found, ROWS};
    matrix_multiply(&x, &product, 1, NULL);
    for (size_t i = 0; i < TOKENS * ROWS; i++) {
        double error = fabs((double)found[i] - (double)expected[i]) / (double)magnitude[i];
        if (!(error <= limits[precision]))
            fail_msg("%s, precision %d, value %zu: %g, expected %g (off by %g of sum |x w|)", name,
                     precision, i, (double)found[i], (double)expected[i], error);
    }
    activations_free(&x);
    packed_matrix_free(packed);
}

/* "affine-4-64-bf16": the layout that the name promises is the one that is found. */
static void check_format(const Formats *f, const char *name)
{
    static const char *const modes[] = {"none", "affine", "mxfp4", "mxfp8", "nvfp4"};
    WeightMatrix matrix;
    Error err = {0};
    if (!weight_matrix_bind(f->set, name, 1, ROWS, COLS, NULL, &matrix, &err))
        fail_msg("%s: %s", name, err.message);
    char layout[64];
    snprintf(layout, sizeof layout, "%s-%u-%u-", modes[matrix.mode], matrix.bits,
             matrix.group_size);
    assert_memory_equal(layout, name, strlen(layout));
    for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_F32; p++)
        check_product(f, name, &matrix, (ActivationPrecision)p);
}

static void check_all(const Formats *f)
{
    size_t count = 0;
    for (size_t i = 0; i < tensor_set_count(f->set); i++) {
        Slice name = tensor_set_at(f->set, i)->name;
        if (!slice_ends_with(name, SLICE(".weight")))
            continue;
        char module[64];
        snprintf(module, sizeof module, "%.*s", (int)(name.len - strlen(".weight")), name.ptr);
        check_format(f, module);
        count++;
    }
    assert_int_equal(count, FORMATS);
}

static void test_formats(void **state)
{
    cpu_kernels_select(INSTRUCTIONS_BEST);
    check_all(*state);
}

static void test_formats_plain(void **state)
{
    cpu_kernels_select(INSTRUCTIONS_PLAIN);
    check_all(*state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_formats_plain),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
