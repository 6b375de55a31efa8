/* Packed matrices and their products: every format and size against weight_matrix_read_row in
 * double, every instruction set against plain C, and the same bits whatever the batch. A set that
 * this processor lacks is named and skipped. */
#include "cpu/kernels.h"
#include "matrix_sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS_MAX = 150 };

static PackedMatrix *pack(const WeightMatrix *matrix, size_t expert, CpuPool *pool)
{
    PackedMatrix *packed;
    Error err = {0};
    if (!packed_matrix_create(matrix, expert, pool, &packed, &err))
        fail_msg("%s", err.message);
    return packed;
}

static float *random_rows(size_t n, size_t stride)
{
    float *x = memory_allocate_array(n * stride, sizeof(float));
    assert_non_null(x);
    for (size_t i = 0; i < n * stride; i++)
        x[i] = random_float() * (random_bits() % 16 ? 1.0f : 8.0f);
    return x;
}

static float *float_array(size_t count)
{
    float *values = memory_allocate_zeroed(count, sizeof(float));
    assert_non_null(values);
    return values;
}

/* ---- Against the source in double ---- */

/* What a product may be off by. Float32 products: each of the n = cols terms is rounded when
 * multiplied (not with FMA) and when added, at most 32 + n / 32 additions deep, so the error is at
 * most (34 + n / 32) * 2^-24 * sum |w x|, plus the dequantisation's rounding, 2 * 2^-24. Quantised
 * products round an activation by half a step, max|x| / 254 of its block; that is added to the
 * bound. */
typedef struct Reference {
    double value, bound;
} Reference;

/* Steps from zero to a precision's largest code; 0 for float32. INT12 may have more. */
static double code_limit(ActivationPrecision precision)
{
    switch (precision) {
    case ACTIVATIONS_INT8:
        return 127;
    case ACTIVATIONS_INT12:
        return 1792;
    case ACTIVATIONS_INT16:
        return 127 * ACTIVATION_PLANE_STEP;
    case ACTIVATIONS_F32:
        break;
    }
    return 0;
}

static Reference reference_product(const float *w, const float *x, size_t cols, double limit)
{
    Reference r = {0, 0};
    double magnitude = 0, steps = 0;
    for (size_t first = 0; first < cols; first += ACTIVATION_BLOCK) {
        double largest = 0, row = 0;
        for (size_t i = first; i < cols && i < first + ACTIVATION_BLOCK; i++) {
            r.value += (double)w[i] * (double)x[i];
            magnitude += fabs((double)w[i] * (double)x[i]);
            row += fabs((double)w[i]);
            largest = fmax(largest, fabs((double)x[i]));
        }
        steps += limit > 0 ? row * largest * (0.5 / limit + 1e-6) : 0;
    }
    r.bound = magnitude * (40.0 + (double)cols / 32) * 0x1p-24 + 1e-30;
    if (limit > 0) /* code sums are larger than the products they cancel to: another factor of 4 */
        r.bound = r.bound * 4 + steps;
    return r;
}

static void multiply(const PackedMatrix *m, const float *x, size_t n_tokens, size_t x_stride,
                     ActivationPrecision precision, const float *bias, float *y, size_t y_stride,
                     CpuPool *pool)
{
    Activations activations;
    Error err;
    size_t cols = packed_matrix_cols(m);
    assert_true(activations_create(n_tokens, cols, precision, &activations, &err));
    activations_prepare(&activations, NULL, x, n_tokens, cols, x_stride, pool);
    MatrixProduct product = {m, bias, y, y_stride};
    matrix_multiply(&activations, &product, 1, pool);
    activations_free(&activations);
}

static void check_against_source(SampleSpec spec, size_t rows, size_t cols, size_t n_tokens,
                                 ActivationPrecision precision, CpuPool *pool)
{
    Sample sample;
    sample_create(&sample, spec, 0, rows, cols);
    PackedMatrix *m = pack(&sample.matrix, 0, pool);
    size_t x_stride = cols + 3, y_stride = rows + 5;
    float *x = random_rows(n_tokens, x_stride), *w = float_array(cols);
    float *bias = random_rows(1, rows), *y = float_array(n_tokens * y_stride);
    bool quantized = spec.mode == QUANT_AFFINE || spec.mode == QUANT_MXFP4;

    multiply(m, x, n_tokens, x_stride, precision, bias, y, y_stride, pool);
    for (size_t row = 0; row < rows; row++) {
        weight_matrix_read_row(&sample.matrix, 0, row, w);
        for (size_t t = 0; t < n_tokens; t++) {
            Reference r =
                reference_product(w, x + t * x_stride, cols, quantized ? code_limit(precision) : 0);
            double expected = r.value + (double)bias[row];
            double found = (double)y[t * y_stride + row];
            double bound = r.bound + fabs(expected) * 0x1p-23;
            if (!(fabs(found - expected) <= bound))
                fail_msg("mode %d bits %u group %u dtype %d [%zu, %zu] token %zu of %zu row %zu: "
                         "%.9g, expected %.9g within %.3g",
                         (int)spec.mode, spec.bits, spec.group_size, (int)spec.dtype, rows, cols, t,
                         n_tokens, row, found, expected, bound);
        }
    }
    for (size_t t = 0; t < n_tokens; t++) { /* nothing written beyond the rows */
        for (size_t i = rows; i < y_stride; i++)
            assert_true(y[t * y_stride + i] == 0);
    }
    memory_free(y);
    memory_free(bias);
    memory_free(w);
    memory_free(x);
    packed_matrix_free(m);
    sample_free(&sample);
}

/* Makes a set the one in use; skips the test where it is not available. */
static void select_or_skip(InstructionSet set)
{
    if (cpu_has_instructions(set)) {
        assert_int_equal(cpu_kernels_select(set), set);
        return;
    }
    print_message("skipped: no %s here\n", instruction_set_name(set));
    skip();
}

static InstructionSet state_set(void **state)
{
    return *(const InstructionSet *)*state;
}

static void test_matches_source(void **state)
{
    static const size_t row_counts[] = {1, 7, 16, 13, 40, 75};
    static const size_t token_counts[] = {1, 2, 3, 4, 5, 9, 30, 67};
    select_or_skip(state_set(state));
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        SampleSpec spec = sample_specs[s];
        size_t unit = spec.mode == QUANT_NONE ? 1 : spec.group_size;
        for (size_t i = 0; i < ARRAY_COUNT(token_counts); i++) {
            size_t rows = row_counts[(i + s) % ARRAY_COUNT(row_counts)];
            size_t cols = spec.mode == QUANT_NONE ? 1 + random_bits() % 200
                                                  : unit * (1 + random_bits() % (640 / unit));
            if (TEST_EMULATED && token_counts[i] > 30)
                continue;
            for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_F32; p++)
                check_against_source(spec, rows, cols, token_counts[i], (ActivationPrecision)p,
                                     NULL);
        }
        /* Longer than a chunk of inputs, more tiles than one group of them. */
        check_against_source(spec, 75, 4224 + (unit == 1 ? 5 : 0), 6, ACTIVATIONS_INT8, NULL);
        check_against_source(spec, 23, 2176 + (unit == 1 ? 5 : 0), 13, ACTIVATIONS_INT12, NULL);
        check_against_source(spec, 41, 2176 + (unit == 1 ? 5 : 0), 11, ACTIVATIONS_INT16, NULL);
        check_against_source(spec, 20, 2176 + (unit == 1 ? 5 : 0), 35, ACTIVATIONS_F32, NULL);
    }
}

static void test_packed_rows_read_back_exactly(void **state)
{
    (void)state;
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        Sample sample;
        enum { ROWS = 11, COLS = 256 };
        float expected[COLS], found[COLS];
        sample_create(&sample, sample_specs[s], 3, ROWS, COLS);
        for (size_t expert = 0; expert < 3; expert++) {
            WeightMatrix part = sample.matrix;
            part.first_row = 2;
            part.rows = ROWS - 2;
            PackedMatrix *m = pack(&part, expert, NULL);
            assert_int_equal(packed_matrix_rows(m), ROWS - 2);
            assert_int_equal(packed_matrix_cols(m), COLS);
            for (size_t row = 0; row < ROWS - 2; row++) {
                weight_matrix_read_row(&part, expert, row, expected);
                packed_matrix_read_row(m, row, found);
                for (size_t i = 0; i < COLS; i++) {
                    if (found[i] != expected[i])
                        fail_msg("spec %zu expert %zu row %zu column %zu: %.9g, expected %.9g", s,
                                 expert, row, i, (double)found[i], (double)expected[i]);
                }
            }
            packed_matrix_free(m);
        }
        sample_free(&sample);
    }
}

/* ---- Instruction sets against each other, and batches against single tokens ---- */

/* Plain C's products with the codes that a set has made, or with its own where those are words. */
static void multiply_plain(const PackedMatrix *m, Activations *x, float *y)
{
    const MatrixProduct product = {m, NULL, y, packed_matrix_rows(m)};
    cpu_kernels_select(INSTRUCTIONS_PLAIN);
    if (x->are_words) {
        x->are_words = false;
        for (size_t t = 0; t < x->n_tokens; t++)
            activations_quantize_row(x, t);
    }
    matrix_multiply(x, &product, 1, NULL);
}

/* All sets compute the same formula on the same codes: only float rounding differs. */
static void test_agrees_with_plain(void **state)
{
    select_or_skip(state_set(state));
    enum { ROWS = 19, COLS = 384, TOKENS = 35 };
    Activations activations;
    Error err;
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        Sample sample;
        sample_create(&sample, sample_specs[s], 0, ROWS, COLS);
        PackedMatrix *m = pack(&sample.matrix, 0, NULL);
        float *x = random_rows(TOKENS, COLS), *w = float_array(COLS);
        float *plain = float_array(TOKENS * ROWS), *fast = float_array(TOKENS * ROWS);
        for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_F32; p++) {
            const MatrixProduct product = {m, NULL, fast, ROWS};
            cpu_kernels_select(state_set(state));
            assert_true(
                activations_create(TOKENS, COLS, (ActivationPrecision)p, &activations, &err));
            activations_prepare(&activations, m, x, TOKENS, COLS, COLS, NULL);
            matrix_multiply(&activations, &product, 1, NULL);
            multiply_plain(m, &activations, plain);
            activations_free(&activations);
            for (size_t i = 0; i < TOKENS * ROWS; i++) {
                weight_matrix_read_row(&sample.matrix, 0, i % ROWS, w);
                Reference r = reference_product(w, x + i / ROWS * COLS, COLS, 0);
                /* The quantised sums cancel scale * dot against bias * sum: see reference_product.
                 */
                assert_true(fabs((double)plain[i] - (double)fast[i]) <= 8 * r.bound);
            }
        }
        memory_free(fast);
        memory_free(plain);
        memory_free(w);
        memory_free(x);
        packed_matrix_free(m);
        sample_free(&sample);
    }
}

static void check_batches(SampleSpec spec, size_t cols, ActivationPrecision precision,
                          CpuPool *pool)
{
    enum { ROWS = 21 };
    Sample sample;
    sample_create(&sample, spec, 0, ROWS, cols);
    PackedMatrix *m = pack(&sample.matrix, 0, pool);
    float *x = random_rows(TOKENS_MAX, cols);
    float *alone = float_array(TOKENS_MAX * ROWS), *together = float_array(TOKENS_MAX * ROWS);

    for (size_t t = 0; t < TOKENS_MAX; t++)
        multiply(m, x + t * cols, 1, cols, precision, NULL, alone + t * ROWS, ROWS, NULL);
    const size_t step = TEST_EMULATED ? 11 : 1;
    for (size_t n = 1; n <= TOKENS_MAX; n += n < 6 ? 1 : n < 71 ? step : 26) {
        memset(together, 0, TOKENS_MAX * ROWS * sizeof(float));
        multiply(m, x, n, cols, precision, NULL, together, ROWS, pool);
        if (memcmp(alone, together, n * ROWS * sizeof(float)) != 0)
            fail_msg("mode %d bits %u group %u dtype %d cols %zu precision %d: %zu tokens together "
                     "differ "
                     "from each alone",
                     (int)spec.mode, spec.bits, spec.group_size, (int)spec.dtype, cols,
                     (int)precision, n);
    }
    memory_free(together);
    memory_free(alone);
    memory_free(x);
    packed_matrix_free(m);
    sample_free(&sample);
}

static void test_batch_does_not_change_bits(void **state)
{
    CpuPool *pool;
    Error err;
    select_or_skip(state_set(state));
    assert_true(cpu_pool_create(3, &pool, &err));
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        const SampleSpec *spec = &sample_specs[s];
        /* With groups of 32, an odd number of them: half a block of activations is left. */
        size_t cols = spec->mode == QUANT_NONE ? 133 : spec->group_size < 64 ? 224 : 256;
        for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_F32; p++)
            check_batches(*spec, cols, (ActivationPrecision)p, pool);
    }
    SampleSpec long_inputs = {QUANT_AFFINE, 4, 64, DTYPE_BF16};
    check_batches(long_inputs, 2176, ACTIVATIONS_INT8, pool); /* more than one chunk */
    check_batches(long_inputs, 2176, ACTIVATIONS_INT12, pool);
    check_batches(long_inputs, 2176, ACTIVATIONS_INT16, pool);
    cpu_pool_free(pool);
}

/* Sets that are promised to give the same bits. */
static const InstructionSet EQUAL_SETS[][2] = {
#if CPU_HAS_X86_KERNELS
    {INSTRUCTIONS_AVXVNNI, INSTRUCTIONS_AVX2},
    {INSTRUCTIONS_ZEN4, INSTRUCTIONS_AVX512},
    {INSTRUCTIONS_AMX, INSTRUCTIONS_AVX512},
#elif CPU_HAS_ARM_KERNELS
    {INSTRUCTIONS_DOTPROD, INSTRUCTIONS_NEON},
    {INSTRUCTIONS_I8MM, INSTRUCTIONS_NEON},
#else
    {INSTRUCTIONS_PLAIN, INSTRUCTIONS_PLAIN},
#endif
};

static void check_equal_sets(InstructionSet set, InstructionSet other)
{
    enum { ROWS = 37, COLS = 1152, TOKENS = 41 };
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        Sample sample;
        sample_create(&sample, sample_specs[s], 0, ROWS, COLS);
        PackedMatrix *m = pack(&sample.matrix, 0, NULL);
        float *x = random_rows(TOKENS, COLS);
        float *first = float_array(TOKENS * ROWS), *second = float_array(TOKENS * ROWS);
        for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_F32; p++) {
            cpu_kernels_select(set);
            multiply(m, x, TOKENS, COLS, (ActivationPrecision)p, NULL, first, ROWS, NULL);
            cpu_kernels_select(other);
            multiply(m, x, TOKENS, COLS, (ActivationPrecision)p, NULL, second, ROWS, NULL);
            assert_memory_equal(first, second, TOKENS * ROWS * sizeof(float));
        }
        memory_free(second);
        memory_free(first);
        memory_free(x);
        packed_matrix_free(m);
        sample_free(&sample);
    }
}

static void test_equal_sets(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(EQUAL_SETS); i++) {
        if (cpu_has_instructions(EQUAL_SETS[i][0]) && cpu_has_instructions(EQUAL_SETS[i][1]))
            check_equal_sets(EQUAL_SETS[i][0], EQUAL_SETS[i][1]);
        else
            print_message("skipped: %s or %s is not here\n", instruction_set_name(EQUAL_SETS[i][0]),
                          instruction_set_name(EQUAL_SETS[i][1]));
    }
}

/* Several matrices of different formats in one section, with and without a pool; codes that suit
 * only some of the formats. */
static void test_products_share_a_section(void **state)
{
    (void)state;
    enum { COUNT = 70, COLS = 128, TOKENS = 6 };
    CpuPool *pool;
    Error err;
    Activations x;
    Sample samples[COUNT];
    PackedMatrix *packed[COUNT];
    MatrixProduct products[COUNT];
    float *y[2][COUNT];

    cpu_kernels_select(INSTRUCTIONS_BEST);
    assert_true(cpu_pool_create(2, &pool, &err));
    float *values = random_rows(TOKENS, COLS);
    assert_true(activations_create(TOKENS, COLS, ACTIVATIONS_INT12, &x, &err));
    for (size_t p = 0; p < COUNT; p++) {
        size_t rows = 1 + p * 3;
        sample_create(&samples[p], sample_specs[p % SAMPLE_SPECS], 0, rows, COLS);
        packed[p] = pack(&samples[p].matrix, 0, pool);
        y[0][p] = float_array(TOKENS * rows);
        y[1][p] = float_array(TOKENS * rows);
        products[p] = (MatrixProduct){packed[p], NULL, y[0][p], rows};
    }
    activations_prepare(&x, NULL, values, TOKENS, COLS, COLS, pool);
    matrix_multiply(&x, products, COUNT, pool);
    for (size_t p = 0; p < COUNT; p++) {
        products[p].y = y[1][p];
        matrix_multiply(&x, &products[p], 1, NULL);
        assert_memory_equal(y[0][p], y[1][p], TOKENS * (1 + p * 3) * sizeof(float));
        memory_free(y[0][p]);
        memory_free(y[1][p]);
        packed_matrix_free(packed[p]);
        sample_free(&samples[p]);
    }
    activations_free(&x);
    memory_free(values);
    cpu_pool_free(pool);
}

/* ---- Activations ---- */

/* Input i of a block, from its planes. */
static int32_t whole_code(const int8_t *codes, ActivationPrecision precision, size_t i)
{
    if (precision == ACTIVATIONS_INT8)
        return codes[i];
    if (precision == ACTIVATIONS_INT16)
        return 256 * codes[i] + codes[64 + i];
    size_t pair = i / 8 * 4 + i % 4;
    return 256 * codes[i] + codes[64 + pair] * (i % 8 < 4 ? 1 : 16);
}

/* One block of one or two planes: codes within half a step of the inputs, and their sums. */
static void check_quantized_block(const float *x, const Activations *activations, size_t token,
                                  size_t block)
{
    const int8_t *codes = activation_codes(activations, token, block);
    const ActivationScale *scale = activation_scale(activations, token, block);
    double largest = 0, limit = code_limit(activations->precision);
    int32_t sums[2] = {0};
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
        largest = fabs((double)x[i]) > largest ? fabs((double)x[i]) : largest;
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++) {
        int32_t code = whole_code(codes, activations->precision, i);
        assert_true(codes[i] >= -127);
        double error = fabs((double)scale->scale * code - (double)x[i]);
        assert_true(error <= largest * (0.5 / limit + 1e-6 / 8) + 1e-30);
        sums[i / 32] += code;
    }
    assert_true(scale->offset == scale->scale * (float)(sums[0] + sums[1]));
    assert_true(scale->half_offsets[0] == scale->scale * (float)sums[0]);
    assert_true(scale->half_offsets[1] == scale->scale * (float)sums[1]);
}

static void test_activations_are_quantized(void **state)
{
    enum { COLS = 203, TOKENS = 3 };
    select_or_skip(state_set(state));
    for (int p = ACTIVATIONS_INT8; p <= ACTIVATIONS_INT16; p++) {
        Activations x;
        Error err;
        float values[TOKENS * COLS], padded[ACTIVATION_BLOCK] = {0};
        for (size_t i = 0; i < TOKENS * COLS; i++)
            values[i] = random_float() * ldexpf(1, (int)(random_bits() % 100) - 50);
        for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
            values[i] = 0; /* an all-zero block */
        values[64] = 3.4e38f;
        assert_true(activations_create(TOKENS, 300, (ActivationPrecision)p, &x, &err));
        activations_prepare(&x, NULL, values, TOKENS, COLS, COLS, NULL);
        assert_int_equal(x.n_blocks, 4);
        for (size_t t = 0; t < TOKENS; t++) {
            for (size_t b = 0; b < 3; b++)
                check_quantized_block(values + t * COLS + 64 * b, &x, t, b);
            memcpy(padded, values + t * COLS + 192, 11 * sizeof(float));
            check_quantized_block(padded, &x, t, 3);
        }
        assert_true(activation_scale(&x, 0, 0)->scale == 0);
        activations_free(&x);
    }
}

/* A quantiser that plain C and a set both have: the same codes and scales, bit by bit. size: of
 * what is set of a scale. */
static void check_same_codes(QuantizeBlock plain, QuantizeBlock fast, size_t size,
                             const float *values, size_t n_blocks)
{
    if (!plain || !fast)
        return;
    for (size_t b = 0; b < n_blocks; b++) {
        int8_t codes[2][2 * ACTIVATION_BLOCK] = {{0}};
        ActivationScale scales[2];
        plain(values + b * ACTIVATION_BLOCK, codes[0], &scales[0]);
        fast(values + b * ACTIVATION_BLOCK, codes[1], &scales[1]);
        assert_memory_equal(codes[0], codes[1], sizeof(codes[0]));
        assert_memory_equal(&scales[0], &scales[1], size);
    }
}

/* Words are the codes of two planes in another order; the rest of a span is minus the sum of its
 * pairs' products, modulo 2^32. */
static void check_words(const KernelTable *kernels, const float *values, size_t n_blocks)
{
    for (size_t b = 0; kernels->quantize_block_words && b < n_blocks; b++) {
        static const size_t order[4] = {0, 2, 1, 3};
        int8_t planes[2 * ACTIVATION_BLOCK], bytes[2 * ACTIVATION_BLOCK];
        int16_t words[ACTIVATION_BLOCK];
        ActivationScale scale, words_scale;
        kernels->quantize_block_int16(values + b * ACTIVATION_BLOCK, planes, &scale);
        kernels->quantize_block_words(values + b * ACTIVATION_BLOCK, bytes, &words_scale);
        memcpy(words, bytes, sizeof(words));
        uint32_t rests[2] = {0};
        for (size_t i = 0; i < ACTIVATION_BLOCK; i++) {
            int32_t code = words[i / 4 * 4 + order[i % 4]];
            assert_int_equal(code, ACTIVATION_PLANE_STEP * planes[i] + planes[64 + i]);
            if (i % 2 == 0) /* inputs i and i + 1 */
                rests[i / 32] -= (uint32_t)code * (uint32_t)words[i / 4 * 4 + order[i % 4] + 2];
        }
        assert_memory_equal(&scale, &words_scale, offsetof(ActivationScale, pair_rest));
        if (kernels->quantize_block_int12) { /* a family with Winograd's products */
            assert_int_equal((uint32_t)words_scale.pair_rest, rests[0] + rests[1]);
            assert_int_equal((uint32_t)words_scale.half_pair_rests[0], rests[0]);
            assert_int_equal((uint32_t)words_scale.half_pair_rests[1], rests[1]);
        }
    }
}

/* Codes are the same in all instruction sets, ties to even, and tiny or huge blocks stay defined.
 */
static void test_quantization_is_the_same_everywhere(void **state)
{
    enum { COLS = 6400, BLOCKS = COLS / ACTIVATION_BLOCK };
    int8_t codes[ACTIVATION_BLOCK];
    ActivationScale scale;
    select_or_skip(state_set(state)); /* before anything is taken: it may leave */
    float *values = float_array(COLS);
    for (size_t i = 0; i < COLS; i++)
        values[i] = random_float() * ldexpf(1, (int)(i / 64 % 60) * 4 - 130);
    for (size_t i = 0; i < ACTIVATION_BLOCK; i++)
        values[i] = (float)i + 0.5f; /* times 127 / 127: ties */
    values[63] = 127;
    const KernelTable *fast = cpu_kernels(), *plain = &kernels_plain;
    const size_t without_rests = offsetof(ActivationScale, pair_rest);
    check_same_codes(plain->quantize_block, fast->quantize_block, without_rests, values, BLOCKS);
    check_same_codes(plain->quantize_block_int16, fast->quantize_block_int16, without_rests, values,
                     BLOCKS);
    check_same_codes(plain->quantize_block_int12, fast->quantize_block_int12, sizeof(scale), values,
                     BLOCKS);
    check_words(fast, values, BLOCKS);
    fast->quantize_block(values, codes, &scale);
    assert_int_equal(codes[2], 2);
    assert_int_equal(codes[3], 4);
    memory_free(values);
}

/* Inputs that are not finite give NaN results of their token, and leave the others alone. */
static void test_not_finite_inputs(void **state)
{
    enum { ROWS = 17, COLS = 128, TOKENS = 18 };
    Sample sample;
    SampleSpec spec = {QUANT_AFFINE, 4, 32, DTYPE_F16};
    select_or_skip(state_set(state));
    sample_create(&sample, spec, 0, ROWS, COLS);
    PackedMatrix *m = pack(&sample.matrix, 0, NULL);
    for (int i = 0; i < 6; i++) { /* few tokens and many */
        ActivationPrecision precision = (ActivationPrecision)(ACTIVATIONS_INT8 + i / 2);
        size_t n = i % 2 ? TOKENS : 5;
        float *x = random_rows(TOKENS, COLS), y[TOKENS * ROWS], clean[TOKENS * ROWS];
        multiply(m, x, n, COLS, precision, NULL, clean, ROWS, NULL);
        x[1 * COLS + 7] = NAN;
        x[2 * COLS + 40] = INFINITY;
        x[3 * COLS + 127] = -INFINITY;
        multiply(m, x, n, COLS, precision, NULL, y, ROWS, NULL);
        for (size_t k = 0; k < n * ROWS; k++) {
            if (k / ROWS >= 1 && k / ROWS <= 3)
                assert_true(isnan(y[k]));
            else
                assert_true(y[k] == clean[k]);
        }
        memory_free(x);
    }
    packed_matrix_free(m);
    sample_free(&sample);
}

/* The largest sums that a code width allows: 16-bit sums must not saturate. */
static void test_extremes_do_not_saturate(void **state)
{
    enum { ROWS = 8, COLS = 128, TOKENS = 18 };
    select_or_skip(state_set(state));
    for (size_t s = 0; s < 3 * SAMPLE_SPECS; s++) {
        SampleSpec spec = sample_specs[s / 3];
        ActivationPrecision precision = (ActivationPrecision)(ACTIVATIONS_INT8 + s % 3);
        if (spec.mode != QUANT_AFFINE && spec.mode != QUANT_MXFP4)
            continue;
        Sample sample;
        sample_create(&sample, spec, 0, ROWS, COLS);
        /* mxfp4: 0x77 is 6, the largest code after the shift. */
        memset(sample.storage[0] + 1, spec.mode == QUANT_MXFP4 ? 0x77 : 0xff,
               sample.weight.n_bytes);
        PackedMatrix *m = pack(&sample.matrix, 0, NULL);
        float x[TOKENS * COLS], y[TOKENS * ROWS], w[COLS];
        for (size_t i = 0; i < TOKENS * COLS; i++)
            x[i] = i / COLS % 2 ? 1.0f : -1.0f; /* the largest codes: exact */
        for (size_t i = 0; i < COLS; i += 5)    /* and -128 in the second plane */
            x[i] = -128.0f / ACTIVATION_INT16_MAX;
        for (size_t i = 0; precision == ACTIVATIONS_INT12 && i < 4; i++) { /* w 120, u -128 */
            x[64 + i] = -128.0f / (1792 * 16);
            x[68 + i] = 1;
        }
        multiply(m, x, TOKENS, COLS, precision, NULL, y, ROWS, NULL);
        for (size_t i = 0; i < TOKENS * ROWS; i++) {
            weight_matrix_read_row(&sample.matrix, 0, i % ROWS, w);
            Reference r = reference_product(w, x + i / ROWS * COLS, COLS, code_limit(precision));
            assert_true(fabs((double)y[i] - r.value) <= 16 * r.bound);
        }
        packed_matrix_free(m);
        sample_free(&sample);
    }
}

/* ---- Limits ---- */

static void test_memory_stays_near_the_source(void **state)
{
    (void)state;
    for (size_t s = 0; s < SAMPLE_SPECS; s++) {
        Sample sample;
        SampleSpec spec = sample_specs[s];
        sample_create(&sample, spec, 0, 64, 512);
        PackedMatrix *m = pack(&sample.matrix, 0, NULL);
        size_t source = sample.weight.n_bytes + sample.scales.n_bytes + sample.biases.n_bytes;
        bool same_width = spec.mode == QUANT_NONE || spec.bits == 4 || spec.bits == 8;
        if (same_width && spec.mode <= QUANT_AFFINE)
            assert_true(packed_matrix_bytes(m) <= source + 256);
        packed_matrix_free(m);
        sample_free(&sample);
    }
}

static void test_refusals_and_faults(void **state)
{
    (void)state;
    Sample sample;
    SampleSpec spec = {QUANT_AFFINE, 5, 64, DTYPE_F16};
    PackedMatrix *m;
    Activations x;
    Error err;
    sample_create(&sample, spec, 0, 20, 128);
    WeightMatrix wrong = sample.matrix;
    wrong.group_size = 48;
    assert_false(packed_matrix_create(&wrong, 0, NULL, &m, &err));
    assert_null(m);
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    wrong = sample.matrix;
    wrong.rows = SIZE_MAX / 2;
    assert_false(packed_matrix_create(&wrong, 0, NULL, &m, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    uint64_t nth = 1;
    for (;; nth++) {
        fault_fail_allocation(nth);
        bool ok = packed_matrix_create(&sample.matrix, 0, NULL, &m, &err);
        fault_fail_allocation(0);
        if (ok)
            break;
        assert_null(m);
        assert_int_equal(err.code, ERROR_MEMORY);
    }
    assert_true(nth > 2);
    packed_matrix_free(m);
    packed_matrix_free(NULL);
    fault_fail_allocation(1);
    assert_false(activations_create(4, 64, ACTIVATIONS_INT8, &x, &err));
    fault_fail_allocation(0);
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_false(activations_create(SIZE_MAX / 2, SIZE_MAX / 2, ACTIVATIONS_INT8, &x, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    activations_free(&x);
    sample_free(&sample);
}

int main(void)
{
    static InstructionSet sets[INSTRUCTION_SETS];
    for (int i = 0; i < INSTRUCTION_SETS; i++)
        sets[i] = (InstructionSet)i;
#define WITH_SET(test, set)                                                                        \
    {                                                                                              \
#test " " #set, test, NULL, NULL, &sets[set]                                               \
    }
#if TEST_EMULATED /* slow: plain C is tested where it runs natively */
#define FOR_EACH_SET(test)                                                                         \
    WITH_SET(test, INSTRUCTIONS_NEON), WITH_SET(test, INSTRUCTIONS_DOTPROD),                       \
        WITH_SET(test, INSTRUCTIONS_I8MM)
#elif CPU_HAS_X86_KERNELS
#define FOR_EACH_SET(test)                                                                         \
    WITH_SET(test, INSTRUCTIONS_PLAIN), WITH_SET(test, INSTRUCTIONS_AVX2),                         \
        WITH_SET(test, INSTRUCTIONS_AVXVNNI), WITH_SET(test, INSTRUCTIONS_AVX512),                 \
        WITH_SET(test, INSTRUCTIONS_ZEN4), WITH_SET(test, INSTRUCTIONS_AMX)
#elif CPU_HAS_ARM_KERNELS
#define FOR_EACH_SET(test)                                                                         \
    WITH_SET(test, INSTRUCTIONS_PLAIN), WITH_SET(test, INSTRUCTIONS_NEON),                         \
        WITH_SET(test, INSTRUCTIONS_DOTPROD), WITH_SET(test, INSTRUCTIONS_I8MM)
#else
#define FOR_EACH_SET(test) WITH_SET(test, INSTRUCTIONS_PLAIN)
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_rows_read_back_exactly),
        FOR_EACH_SET(test_matches_source),
        FOR_EACH_SET(test_agrees_with_plain),
        FOR_EACH_SET(test_batch_does_not_change_bits),
        cmocka_unit_test(test_equal_sets),
        cmocka_unit_test(test_products_share_a_section),
        FOR_EACH_SET(test_activations_are_quantized),
        FOR_EACH_SET(test_quantization_is_the_same_everywhere),
        FOR_EACH_SET(test_not_finite_inputs),
        FOR_EACH_SET(test_extremes_do_not_saturate),
        cmocka_unit_test(test_memory_stays_near_the_source),
        cmocka_unit_test(test_refusals_and_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
