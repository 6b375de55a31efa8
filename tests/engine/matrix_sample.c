#include "matrix_sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

const SampleSpec sample_specs[SAMPLE_SPECS] = {
    {QUANT_AFFINE, 4, 32, DTYPE_F16},   {QUANT_AFFINE, 4, 64, DTYPE_F16},
    {QUANT_AFFINE, 4, 128, DTYPE_F16},  {QUANT_AFFINE, 4, 32, DTYPE_BF16},
    {QUANT_AFFINE, 4, 64, DTYPE_BF16},  {QUANT_AFFINE, 4, 128, DTYPE_BF16},
    {QUANT_AFFINE, 4, 32, DTYPE_F32},   {QUANT_AFFINE, 4, 64, DTYPE_F32},
    {QUANT_AFFINE, 4, 128, DTYPE_F32},  {QUANT_AFFINE, 8, 32, DTYPE_F16},
    {QUANT_AFFINE, 8, 64, DTYPE_BF16},  {QUANT_AFFINE, 8, 128, DTYPE_F32},
    {QUANT_AFFINE, 8, 32, DTYPE_BF16},  {QUANT_AFFINE, 8, 64, DTYPE_F32},
    {QUANT_AFFINE, 8, 128, DTYPE_F16},  {QUANT_AFFINE, 8, 32, DTYPE_F32},
    {QUANT_AFFINE, 8, 64, DTYPE_F16},   {QUANT_AFFINE, 8, 128, DTYPE_BF16},
    {QUANT_AFFINE, 2, 32, DTYPE_F16},   {QUANT_AFFINE, 2, 64, DTYPE_BF16},
    {QUANT_AFFINE, 2, 128, DTYPE_F32},  {QUANT_AFFINE, 3, 32, DTYPE_BF16},
    {QUANT_AFFINE, 3, 64, DTYPE_F16},   {QUANT_AFFINE, 3, 128, DTYPE_F32},
    {QUANT_AFFINE, 5, 32, DTYPE_F32},   {QUANT_AFFINE, 5, 64, DTYPE_F16},
    {QUANT_AFFINE, 5, 128, DTYPE_BF16}, {QUANT_AFFINE, 6, 32, DTYPE_F16},
    {QUANT_AFFINE, 6, 64, DTYPE_BF16},  {QUANT_AFFINE, 6, 128, DTYPE_F32},
    {QUANT_MXFP4, 4, 32, DTYPE_U8},     {QUANT_MXFP8, 8, 32, DTYPE_U8},
    {QUANT_NVFP4, 4, 16, DTYPE_U8},     {QUANT_NONE, 0, 0, DTYPE_F32},
    {QUANT_NONE, 0, 0, DTYPE_F16},      {QUANT_NONE, 0, 0, DTYPE_BF16},
};

static uint64_t random_state = 88172645463325252u;

uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

float random_float(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(random_bits() >> 8) / 8388608.0f - 1.0f;
    return sum;
}

static void write_float(uint8_t *at, DType dtype, float value)
{
    uint16_t half = dtype == DTYPE_F16 ? float_to_f16(value) : float_to_bf16(value);
    if (dtype == DTYPE_F32)
        memcpy(at, &value, 4);
    else
        memcpy(at, &half, 2);
}

static TensorView make_view(Sample *sample, size_t which, DType dtype, size_t experts, size_t rows,
                            size_t cols)
{
    TensorView view = {.name = SLICE("m"), .dtype = dtype, .n_dims = experts ? 3 : 2};
    size_t count = rows * cols * (experts ? experts : 1);
    int64_t *shape = view.shape;
    if (experts)
        *shape++ = (int64_t)experts;
    shape[0] = (int64_t)rows;
    shape[1] = (int64_t)cols;
    view.n_bytes = count * dtype_size(dtype);
    sample->storage[which] = memory_allocate(view.n_bytes + 1);
    assert_non_null(sample->storage[which]);
    view.data = sample->storage[which] + 1;
    return view;
}

void sample_create(Sample *sample, SampleSpec spec, size_t experts, size_t rows, size_t cols)
{
    memset(sample, 0, sizeof(*sample));
    size_t all_rows = rows * (experts ? experts : 1);
    sample->matrix = (WeightMatrix){.weight = &sample->weight,
                                    .mode = spec.mode,
                                    .bits = spec.bits,
                                    .group_size = spec.group_size,
                                    .n_experts = experts ? experts : 1,
                                    .rows = rows,
                                    .cols = cols};
    if (spec.mode == QUANT_NONE) {
        sample->weight = make_view(sample, 0, spec.dtype, experts, rows, cols);
        for (size_t i = 0; i < all_rows * cols; i++)
            write_float(sample->storage[0] + 1 + i * dtype_size(spec.dtype), spec.dtype,
                        random_float());
        return;
    }
    sample->weight = make_view(sample, 0, DTYPE_U32, experts, rows, cols * spec.bits / 32);
    for (size_t i = 0; i < sample->weight.n_bytes; i++) {
        uint8_t byte = (uint8_t)random_bits();
        /* Extremes must be frequent, or saturation would not show; 0x7f and 0xff are fp8's NaN. */
        if (spec.mode == QUANT_AFFINE && random_bits() % 4 == 0)
            byte = random_bits() % 2 ? 0xff : 0;
        if (spec.mode == QUANT_MXFP8 && (byte & 0x7f) == 0x7f)
            byte ^= 1;
        sample->storage[0][1 + i] = byte;
    }
    size_t groups = cols / spec.group_size;
    sample->scales = make_view(sample, 1, spec.dtype, experts, rows, groups);
    sample->matrix.scales = &sample->scales;
    if (spec.mode != QUANT_AFFINE) {
        for (size_t i = 0; i < all_rows * groups; i++)
            sample->storage[1][1 + i] =
                (uint8_t)(spec.mode == QUANT_NVFP4 ? 20 + random_bits() % 60
                                                   : 120 + random_bits() % 10);
        return;
    }
    sample->biases = make_view(sample, 2, spec.dtype, experts, rows, groups);
    sample->matrix.biases = &sample->biases;
    float top = (float)((1u << spec.bits) - 1);
    for (size_t i = 0; i < all_rows * groups; i++) {
        float scale = (random_float() + 2.5f) / top * (random_bits() % 2 ? 1 : -1);
        size_t size = dtype_size(spec.dtype);
        write_float(sample->storage[1] + 1 + i * size, spec.dtype, scale);
        write_float(sample->storage[2] + 1 + i * size, spec.dtype,
                    -scale * top / 2 + random_float() * 0.1f);
    }
}

void sample_free(Sample *sample)
{
    for (size_t i = 0; i < ARRAY_COUNT(sample->storage); i++)
        memory_free(sample->storage[i]);
}
