/* Each vector operation against its plain sibling and the formula in double, on odd sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/ops.h"
#include "weights.h"

#include <math.h>
#include <string.h>

enum { LONGEST = 131 };

static const CpuOps *tables[INSTRUCTION_SETS];
static size_t n_tables;

static int choose_tables(void **state)
{
    (void)state;
    for (int set = 0; set < INSTRUCTION_SETS; set++) {
        if (!cpu_has_instructions((InstructionSet)set))
            continue;
        const CpuOps *ops = cpu_ops((InstructionSet)set);
        if (n_tables == 0 || ops != tables[n_tables - 1])
            tables[n_tables++] = ops;
    }
    return 0;
}

static uint32_t random_bits(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void fill(float *x, size_t n, float range, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = ((float)random_bits(&seed) / (float)(1 << 23) - 1.0f) * range;
}

/* Relative to the larger of |expected| and `unit`. */
static void assert_close(float found, double expected, double unit, double tolerance,
                         const char *what)
{
    double scale = fmax(fabs(expected), unit);
    if (!(fabs((double)found - expected) <= tolerance * scale))
        fail_msg("%s: %.9g, expected %.9g", what, (double)found, expected);
}

static void test_rms_norm(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t n = 1; n <= LONGEST; n += 13) {
            float x[LONGEST], w[LONGEST], out[LONGEST];
            fill(x, n, 3.0f, 1);
            fill(w, n, 2.0f, 2);
            double sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += (double)x[i] * (double)x[i];
            double scale = 1 / sqrt(sum / (double)n + 1e-5);
            tables[k]->rms_norm(x, w, n, 1e-5f, out);
            for (size_t i = 0; i < n; i++)
                assert_close(out[i], (double)x[i] * scale * (double)w[i], 1e-3, 2e-6, "rms_norm");
        }
    }
}

static void test_gates(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t n = 1; n <= LONGEST; n += 10) {
            float gate[LONGEST], silu[LONGEST], gelu[LONGEST], up[LONGEST];
            fill(gate, n, 12.0f, 3);
            fill(up, n, 2.0f, 4);
            memcpy(silu, gate, sizeof gate);
            memcpy(gelu, gate, sizeof gate);
            tables[k]->silu_multiply(silu, up, n);
            tables[k]->gelu_tanh_multiply(gelu, up, n);
            for (size_t i = 0; i < n; i++) {
                double x = (double)gate[i], u = (double)up[i];
                assert_close(silu[i], x / (1 + exp(-x)) * u, 1e-4, 1e-6, "silu");
                double t = tanh(sqrt(2 / 3.141592653589793) * (x + 0.044715 * x * x * x));
                assert_close(gelu[i], 0.5 * x * (1 + t) * u, 1e-2, 3e-6, "gelu_tanh");
            }
        }
    }
}

static void test_gates_at_extremes(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        float gate[8] = {-1e30f, -200.0f, -90.0f, 0.0f, 90.0f, 200.0f, 1e4f, NAN};
        float up[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        tables[k]->silu_multiply(gate, up, 8);
        for (int i = 0; i < 4; i++)
            assert_close(gate[i], 0.0, 1.0, 1e-6, "silu of a very negative number");
        assert_close(gate[6], 1e4, 1.0, 1e-6, "silu of a large number");
        assert_true(isnan(gate[7]));
    }
}

static void test_soft_cap(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t n = 1; n <= 40; n += 3) {
            float x[40], y[40];
            fill(x, n, 200.0f, 5);
            memcpy(y, x, sizeof x);
            tables[k]->soft_cap(y, n, 30.0f);
            for (size_t i = 0; i < n; i++)
                assert_close(y[i], 30 * tanh((double)x[i] / 30), 30.0, 5e-7, "soft_cap");
        }
    }
}

static void test_rotate(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t half = 1; half <= 33; half += 4) {
            float x[70], y[70], c[33], s[33];
            fill(x, 2 * half + 2, 2.0f, 6);
            memcpy(y, x, sizeof x);
            for (size_t d = 0; d < half; d++) {
                c[d] = (float)cos((double)d * 0.7);
                s[d] = (float)sin((double)d * 0.7);
            }
            tables[k]->rotate(y, c, s, half);
            for (size_t d = 0; d < half; d++) {
                double a = (double)x[d], b = (double)x[d + half], co = (double)c[d],
                       si = (double)s[d];
                assert_close(y[d], a * co - b * si, 1.0, 1e-6, "rotate");
                assert_close(y[d + half], b * co + a * si, 1.0, 1e-6, "rotate");
            }
            assert_true(y[2 * half] == x[2 * half]); /* dimensions beyond pass through */
        }
    }
}

static void test_adds(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t n = 1; n <= 40; n += 3) {
            float x[40], y[40], sum[40], scaled[40];
            fill(x, n, 2.0f, 7);
            fill(y, n, 2.0f, 8);
            memcpy(sum, x, sizeof x);
            memcpy(scaled, x, sizeof x);
            tables[k]->add(sum, y, n);
            tables[k]->add_scaled(scaled, y, n, 0.3f);
            for (size_t i = 0; i < n; i++) {
                assert_true(sum[i] == x[i] + y[i]);
                assert_true(scaled[i] == fmaf(y[i], 0.3f, x[i]));
            }
            scaled[n - 1] = 7.0f;
            tables[k]->scale(x, n - 1, 0.3f, scaled);
            for (size_t i = 0; i + 1 < n; i++)
                assert_true(scaled[i] == x[i] * 0.3f);
            assert_true(scaled[n - 1] == 7.0f);
        }
    }
}

static void test_store_half(void **state)
{
    (void)state;
    static const float extremes[] = {0.0f,   -0.0f,    65504.0f,  65519.0f, 65520.0f, 1e30f,
                                     -1e30f, 1e-8f,    6e-8f,     5.96e-8f, 6.1e-5f,  1.0f,
                                     -2.5f,  INFINITY, -INFINITY, 2049.0f,  2051.0f};
    for (size_t k = 0; k < n_tables; k++) {
        if (tables[k]->kv16 != KV_F16)
            continue;
        for (size_t stride = 1; stride <= 8; stride += 7) {
            uint16_t out[ARRAY_COUNT(extremes) * 8];
            memset(out, 0xAB, sizeof out);
            tables[k]->store_half(extremes, ARRAY_COUNT(extremes), out, stride);
            for (size_t i = 0; i < ARRAY_COUNT(extremes); i++) {
                float kept = fmaxf(-65504.0f, fminf(65504.0f, extremes[i]));
                assert_int_equal(out[i * stride], float_to_f16(kept));
                if (stride > 1)
                    assert_int_equal(out[i * stride + 1], 0xABAB);
            }
        }
    }
}

/* Rows side by side are what they are one by one, whatever their number and length. */
static void test_store_half_rows(void **state)
{
    (void)state;
    enum { ROWS = 16, COLUMNS = 37, ROW_STRIDE = 41, STRIDE = 16 };
    static float x[ROWS * ROW_STRIDE];
    fill(x, ROWS * ROW_STRIDE, 1e5f, 9);
    for (size_t k = 0; k < n_tables; k++) {
        if (tables[k]->kv16 != KV_F16)
            continue;
        for (size_t rows = 1; rows <= ROWS; rows++) {
            for (size_t n = 1; n <= COLUMNS; n += 3) {
                uint16_t out[COLUMNS * STRIDE], expected[COLUMNS * STRIDE];
                memset(out, 0xAB, sizeof out);
                memset(expected, 0xAB, sizeof expected);
                tables[k]->store_half_rows(x, ROW_STRIDE, rows, n, out, STRIDE);
                for (size_t r = 0; r < rows; r++)
                    tables[k]->store_half(x + r * ROW_STRIDE, n, expected + r, STRIDE);
                assert_memory_equal(out, expected, sizeof out);
            }
        }
    }
}

/* Neither bound is passed, one is met, and codes are the nearest. */
static void test_codes(void **state)
{
    (void)state;
    const float ranges[] = {1.0f, 1e-25f, 1e25f, 8e36f};
    for (size_t k = 0; k < n_tables; k++) {
        for (size_t n = 1; n <= 80; n += 7) {
            for (size_t r = 0; r < ARRAY_COUNT(ranges); r++) {
                float x[80];
                int16_t codes[80];
                fill(x, n, 1.0f, 10);
                x[n / 2] *= n % 2 ? 40.0f : 1.0f; /* one far above the others */
                for (size_t i = 0; i < n; i++)
                    x[i] *= ranges[r];
                float scale = tables[k]->code_scale(x, n, 30000.0f, 20000.0f);
                double norm = 0.0, peak = 0.0;
                tables[k]->to_codes(x, n, 1.0f / scale, codes);
                for (size_t i = 0; i < n; i++) {
                    double exact = (double)x[i] / (double)scale;
                    assert_true(fabs((double)codes[i] - exact) <= 0.51);
                    norm += exact * exact;
                    peak = fmax(peak, fabs(exact));
                }
                norm = sqrt(norm);
                assert_true(norm <= 30000.1 && peak <= 20000.1);
                /* Where squares leave the range of float32 the bound on the norm is a loose one. */
                assert_true(r > 0 || norm >= 29999.0 || peak >= 19999.0);
            }
        }
    }
}

static void test_codes_of_extremes(void **state)
{
    (void)state;
    for (size_t k = 0; k < n_tables; k++) {
        float x[19] = {0};
        int16_t codes[19];
        assert_true(tables[k]->code_scale(x, 19, 1e4f, 1e4f) == 0.0f);
        tables[k]->to_codes(x, 19, 0.0f, codes);
        for (size_t i = 0; i < 19; i++)
            assert_int_equal(codes[i], 0);
        for (size_t i = 0; i < 19; i++) {
            x[i] = NAN;
            assert_true(isnan(tables[k]->code_scale(x, 19, 1e4f, 1e4f)));
            x[i] = -INFINITY;
            assert_true(isnan(tables[k]->code_scale(x, 19, 1e4f, 1e4f)));
            x[i] = 0.0f;
        }
    }
}

static void test_softmax(void **state)
{
    (void)state;
    float x[5] = {1.0f, 3.0f, -2.0f, 3.0f, 100.0f}, sum = 0;
    ops_softmax(x, 4);
    for (int i = 0; i < 4; i++)
        sum += x[i];
    assert_close(sum, 1.0, 1.0, 1e-6, "softmax");
    assert_true(x[1] == x[3] && x[4] == 100.0f);
    assert_close(x[0] / x[1], exp(-2), 1.0, 1e-6, "softmax");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_gates_at_extremes),
        cmocka_unit_test(test_soft_cap),
        cmocka_unit_test(test_rotate),
        cmocka_unit_test(test_adds),
        cmocka_unit_test(test_store_half),
        cmocka_unit_test(test_store_half_rows),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_codes_of_extremes),
        cmocka_unit_test(test_softmax),
    };
    return cmocka_run_group_tests(tests, choose_tables, NULL);
}
