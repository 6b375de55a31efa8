/* Times matrix products for the shapes of real models beside what the machine can do. CSV on
 * stdout: one line a format and shape; decode in GB/s of packed weights, prefill in GMAC/s, and
 * their shares of the measured read bandwidth and int8 rate. Best of several rounds. Usage:
 * bench_matrix [threads [prefill tokens [substring of a shape's name [int8]]]]. Products of weights
 * and activations count once; with activations in 16 bits, the default, each takes two
 * multiply-adds. */
#include "cpu/matrix.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Shape {
    const char *name;
    size_t rows, cols;
    uint32_t bits, group_size;
    DType dtype;
} Shape;

static const Shape shapes[] = {
    {"smollm2 q 4/32", 576, 576, 4, 32, DTYPE_F16},
    {"smollm2 up 4/32", 1536, 576, 4, 32, DTYPE_F16},
    {"smollm2 down 4/32", 576, 1536, 4, 32, DTYPE_F16},
    {"smollm2 head 8/32", 49152, 576, 8, 32, DTYPE_F16},
    {"qwen3-4b q 4/64", 4096, 2560, 4, 64, DTYPE_BF16},
    {"qwen3-4b up 4/64", 9728, 2560, 4, 64, DTYPE_BF16},
    {"qwen3-4b down 4/64", 2560, 9728, 4, 64, DTYPE_BF16},
    {"qwen3-4b up 4/128", 9728, 2560, 4, 128, DTYPE_BF16},
    {"qwen3-4b up 4/64 f32 scales", 9728, 2560, 4, 64, DTYPE_F32},
    {"qwen3-4b up 8/64", 9728, 2560, 8, 64, DTYPE_BF16},
    {"qwen3-4b up 6/64", 9728, 2560, 6, 64, DTYPE_BF16},
    {"qwen3-4b up 5/64", 9728, 2560, 5, 64, DTYPE_BF16},
    {"qwen3-4b up mxfp4", 9728, 2560, 4, 0, DTYPE_U8},
    {"qwen3-4b up bf16", 9728, 2560, 0, 0, DTYPE_BF16},
    {"qwen3-4b up f16", 9728, 2560, 0, 0, DTYPE_F16},
    {"qwen3-4b up f32", 9728, 2560, 0, 0, DTYPE_F32},
};

enum { ROUNDS = 5, DECODE_BYTES_MIN = 256 << 20 };

static PackedMatrix *make_matrix(const Shape *shape, CpuPool *pool)
{
    size_t n_groups = shape->bits ? shape->cols / (shape->group_size ? shape->group_size : 32) : 0;
    TensorView weight = {.dtype = shape->bits ? DTYPE_U32 : shape->dtype, .n_dims = 2};
    size_t row_bytes =
        shape->bits ? shape->cols * shape->bits / 8 : shape->cols * dtype_size(shape->dtype);
    weight.n_bytes = shape->rows * row_bytes;
    weight.shape[0] = (int64_t)shape->rows;
    weight.shape[1] = (int64_t)(row_bytes / dtype_size(weight.dtype));
    TensorView scales = {.dtype = shape->dtype, .n_dims = 2};
    scales.shape[0] = (int64_t)shape->rows;
    scales.shape[1] = (int64_t)n_groups;
    scales.n_bytes = shape->rows * n_groups * dtype_size(shape->dtype);
    uint8_t *bytes = memory_allocate(weight.n_bytes);
    uint8_t *scale_bytes = memory_allocate_zeroed(scales.n_bytes, 1);
    PackedMatrix *packed = NULL;
    Error err;

    if (bytes && scale_bytes) {
        for (size_t i = 0; i < weight.n_bytes; i++) /* dense: exponents of small values */
            bytes[i] = shape->bits ? (uint8_t)(i * 2654435761u >> 24) : 0x30;
        memset(scale_bytes, 0x30, scales.n_bytes);
        weight.data = bytes;
        scales.data = scale_bytes;
        bool affine = shape->bits && shape->group_size;
        WeightMatrix matrix = {.weight = &weight,
                               .scales = shape->bits ? &scales : NULL,
                               .biases = affine ? &scales : NULL,
                               .mode = affine        ? QUANT_AFFINE
                                       : shape->bits ? QUANT_MXFP4
                                                     : QUANT_NONE,
                               .bits = shape->bits,
                               .group_size = affine        ? shape->group_size
                                             : shape->bits ? 32
                                                           : 0,
                               .n_experts = 1,
                               .rows = shape->rows,
                               .cols = shape->cols};
        if (!packed_matrix_create(&matrix, 0, pool, &packed, &err))
            fprintf(stderr, "%s: %s\n", shape->name, err.message);
    }
    memory_free(scale_bytes);
    memory_free(bytes);
    return packed;
}

/* Enough copies that no pass finds its weights in a cache. */
static double time_decode(const Shape *shape, CpuPool *pool, ActivationPrecision precision,
                          const float *x, float *y, size_t *bytes)
{
    enum { COPIES_MAX = 2048 };
    static PackedMatrix *copies[COPIES_MAX];
    Activations activations;
    Error err;
    size_t count = 0;
    double best = 0;

    *bytes = 0;
    while (*bytes < DECODE_BYTES_MIN && count < COPIES_MAX) {
        copies[count] = make_matrix(shape, pool);
        if (!copies[count])
            break;
        *bytes += packed_matrix_bytes(copies[count++]);
    }
    if (activations_create(1, shape->cols, precision, &activations, &err)) {
        for (int round = 0; round < ROUNDS; round++) {
            double start = clock_monotonic_seconds();
            for (size_t i = 0; i < count; i++) {
                MatrixProduct product = {copies[i], NULL, y, shape->rows};
                activations_prepare(&activations, product.matrix, x, 1, shape->cols, shape->cols,
                                    pool);
                matrix_multiply(&activations, &product, 1, pool);
            }
            double seconds = clock_monotonic_seconds() - start;
            best = round == 0 || seconds < best ? seconds : best;
        }
        activations_free(&activations);
    }
    for (size_t i = 0; i < count; i++)
        packed_matrix_free(copies[i]);
    return best;
}

static double time_prefill(const Shape *shape, CpuPool *pool, size_t tokens,
                           ActivationPrecision precision, const float *x, float *y)
{
    PackedMatrix *matrix = make_matrix(shape, pool);
    Activations activations;
    Error err;
    double best = 0;
    if (matrix && activations_create(tokens, shape->cols, precision, &activations, &err)) {
        MatrixProduct product = {matrix, NULL, y, shape->rows};
        double spent = 0;
        for (int round = 0; round < ROUNDS || spent < 0.3; round++) {
            double start = clock_monotonic_seconds();
            activations_prepare(&activations, product.matrix, x, tokens, shape->cols, shape->cols,
                                pool);
            matrix_multiply(&activations, &product, 1, pool);
            double seconds = clock_monotonic_seconds() - start;
            spent += seconds;
            best = round == 0 || seconds < best ? seconds : best;
        }
        activations_free(&activations);
    }
    packed_matrix_free(matrix);
    return best;
}

static void run_shape(const Shape *shape, CpuPool *pool, size_t tokens,
                      ActivationPrecision precision, const MachineLimits *limits)
{
    float *x = memory_allocate_zeroed(tokens * shape->cols, sizeof(float));
    float *y = memory_allocate_zeroed(tokens * shape->rows, sizeof(float));
    if (x && y) {
        for (size_t i = 0; i < tokens * shape->cols; i++)
            x[i] = (float)(i * 2654435761u % 1000) * 0.001f - 0.5f;
        size_t bytes;
        double decode = time_decode(shape, pool, precision, x, y, &bytes);
        double prefill = time_prefill(shape, pool, tokens, precision, x, y);
        double read = (double)bytes / decode;
        double macs = (double)shape->rows * (double)shape->cols * (double)tokens / prefill;
        printf("%s,%zu,%zu,%.2f,%.3f,%.2f,%.3f\n", shape->name, shape->rows, shape->cols,
               read * 1e-9, read / limits->read_bytes_per_second, macs * 1e-9,
               macs / limits->int8_macs_per_second);
        fflush(stdout);
    }
    memory_free(y);
    memory_free(x);
}

int main(int argc, char **argv)
{
    size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    size_t tokens = argc > 2 ? strtoul(argv[2], NULL, 10) : 512;
    const char *shape = argc > 3 ? argv[3] : "";
    const char *name = argc > 4 ? argv[4] : "int12";
    ActivationPrecision precision = strcmp(name, "int8") == 0    ? ACTIVATIONS_INT8
                                    : strcmp(name, "int16") == 0 ? ACTIVATIONS_INT16
                                                                 : ACTIVATIONS_INT12;
    CpuPool *pool = NULL;
    MachineLimits limits;
    Error err;

    if (threads < 1 || tokens < 1) {
        fprintf(stderr, "usage: bench_matrix [threads [prefill tokens [part of a shape's name "
                        "[int8|int12|int16]]]]\n");
        return 2;
    }
    printf("# %s kernels", instruction_set_name(cpu_kernels_select(INSTRUCTIONS_BEST)));
    if (!engine_measure_machine(threads, &limits, &err) || !cpu_pool_create(threads, &pool, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf(", %zu threads, %zu prefill tokens; limits: %.2f GB/s read, %.2f GMAC/s int8\n", threads,
           tokens, limits.read_bytes_per_second * 1e-9, limits.int8_macs_per_second * 1e-9);
    printf("shape,rows,cols,decode_gbps,decode_share,prefill_gmacs,prefill_share\n");
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        if (strstr(shapes[i].name, shape))
            run_shape(&shapes[i], pool, tokens, precision, &limits);
    }
    cpu_pool_free(pool);
    return 0;
}
