/* Random matrices of every format, for the tests of packing and of products. */
#ifndef TESTS_ENGINE_MATRIX_SAMPLE_H
#define TESTS_ENGINE_MATRIX_SAMPLE_H

#include "weights.h"

typedef struct Sample {
    TensorView weight, scales, biases;
    WeightMatrix matrix;
    uint8_t *storage[3];
} Sample;

typedef struct SampleSpec {
    QuantMode mode;
    uint32_t bits, group_size;
    DType dtype; /* of scales and biases, or of the dense values */
} SampleSpec;

enum { SAMPLE_SPECS = 36 };
extern const SampleSpec
    sample_specs[SAMPLE_SPECS]; /* every format, group size and type of scales */

/* The same sequence in every run. */
uint32_t random_bits(void);
float random_float(void); /* roughly normal, by the sum of uniforms */

/* Random codes over the whole range, scales of both signs. experts 0: a two-dimensional tensor.
 * Tensors begin one byte off, since those in files are not aligned. */
void sample_create(Sample *sample, SampleSpec spec, size_t experts, size_t rows, size_t cols);
void sample_free(Sample *sample);

#endif
