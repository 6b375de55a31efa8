/* Matrices of random weights that take no memory, for measuring speed without a model's files.
 *
 * Every tensor is a mapping of one of three patterns, repeated to the tensor's size: codes (or
 * dense values), scales, biases. Scales vary within a factor of 2, and a bias is -(largest code) /
 * 2 times the scale at the same place, so that weights spread evenly around zero and no result
 * overflows. Dense values are bfloat16 of either sign within a factor of 2. */
#include "tensor_set.h"

#include <string.h>

enum {
    PATTERN_BYTES = 4 << 20, /* whole pages on every system; larger than a second-level cache */
    DENSE_BITS = 16,
};

/* Weights of about 0.02, as trained models have. */
static const float SCALE = 0x1p-7f;
static const float DENSE_SCALE = 0x1p-6f;

typedef struct Random {
    uint64_t state;
} Random;

static uint32_t random_next(Random *random)
{
    random->state = random->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random->state >> 32);
}

/* From 1 to 2, exact in bfloat16. */
static float random_mantissa(Random *random)
{
    return 1.0f + (float)(random_next(random) >> 25) / 128.0f;
}

static void write_bf16(char *pattern, size_t index, float value)
{
    uint16_t half = float_to_bf16(value);
    memcpy(pattern + 2 * index, &half, 2);
}

static void fill_codes(char *pattern)
{
    Random random = {1};
    for (size_t i = 0; i < PATTERN_BYTES / 4; i++) {
        uint32_t word = random_next(&random);
        memcpy(pattern + 4 * i, &word, 4);
    }
}

static void fill_dense(char *pattern)
{
    Random random = {2};
    for (size_t i = 0; i < PATTERN_BYTES / 2; i++) {
        float sign = random_next(&random) >> 31 ? -1.0f : 1.0f;
        write_bf16(pattern, i, sign * DENSE_SCALE * random_mantissa(&random));
    }
}

static void fill_scales(char *pattern, float factor)
{
    Random random = {3}; /* the same for scales and biases */
    for (size_t i = 0; i < PATTERN_BYTES / 2; i++)
        write_bf16(pattern, i, factor * random_mantissa(&random));
}

static bool open_patterns(TensorSet *set, char *pattern, Error *err)
{
    const Slice content = {pattern, PATTERN_BYTES};
    if (set->random_bits == DENSE_BITS) {
        fill_dense(pattern);
        return file_pattern_open(content, &set->patterns[RANDOM_WEIGHT], err);
    }
    fill_codes(pattern);
    if (!file_pattern_open(content, &set->patterns[RANDOM_WEIGHT], err))
        return false;
    float scale = SCALE * 15.0f / (float)((1u << set->random_bits) - 1);
    fill_scales(pattern, scale);
    if (!file_pattern_open(content, &set->patterns[RANDOM_SCALE], err))
        return false;
    fill_scales(pattern, -scale * (float)((1u << set->random_bits) - 1) / 2.0f);
    return file_pattern_open(content, &set->patterns[RANDOM_BIAS], err);
}

bool tensor_set_create_random(uint32_t bits, uint32_t group_size, TensorSet **out, Error *err)
{
    *out = NULL;
    bool affine = (bits >= 2 && bits <= 6) || bits == 8;
    bool grouped = group_size == 32 || group_size == 64 || group_size == 128;
    if (bits != DENSE_BITS && !(affine && grouped))
        return error_set(err, ERROR_UNSUPPORTED,
                         "%u bits in groups of %u, expected 2, 3, 4, 5, 6 or 8 bits in groups of "
                         "32, 64 or 128, or 16 bits",
                         (unsigned)bits, (unsigned)group_size);
    TensorSet *set = tensor_set_allocate(err);
    char *pattern = memory_allocate(PATTERN_BYTES);
    bool ok = set && (pattern || error_no_memory(err, "random weights"));
    if (ok) {
        set->is_random = true;
        set->random_bits = bits;
        set->random_group_size = group_size;
        ok = open_patterns(set, pattern, err);
    }
    memory_free(pattern);
    if (!ok) {
        tensor_set_close(set);
        return false;
    }
    *out = set;
    return true;
}

bool tensor_set_is_random(const TensorSet *set)
{
    return set->is_random;
}

/* A tensor [n_experts,] rows, cols over the pattern, or NULL with the error set. */
static const TensorView *add_tensor(TensorSet *set, RandomPattern pattern, DType dtype,
                                    size_t n_experts, size_t rows, size_t cols, Error *err)
{
    TensorView *view = arena_allocate(&set->arena, sizeof(*view));
    if (!view || !memory_grow_array((void **)&set->files, set->n_files, &set->files_capacity,
                                    sizeof(*set->files))) {
        error_no_memory(err, "a random tensor");
        return NULL;
    }
    *view = (TensorView){.name = SLICE("random"), .dtype = dtype, .file = (uint32_t)set->n_files};
    if (n_experts > 1)
        view->shape[view->n_dims++] = (int64_t)n_experts;
    view->shape[view->n_dims++] = (int64_t)rows;
    view->shape[view->n_dims++] = (int64_t)cols;
    FileMap map;
    if (!size_product(view->shape, view->n_dims, &view->n_bytes) ||
        !size_multiply(view->n_bytes, dtype_size(dtype), &view->n_bytes) ||
        !size_add(set->n_bytes, view->n_bytes, &set->n_bytes)) {
        error_set(err, ERROR_LIMIT, "a random tensor [%zu, %zu, %zu] is too large", n_experts, rows,
                  cols);
        return NULL;
    }
    if (!file_pattern_map(&set->patterns[pattern], view->n_bytes, &map, err))
        return NULL;
    set->files[set->n_files++] = (TensorFile){.map = map};
    view->data = map.data;
    return view;
}

bool weight_matrix_create_random(TensorSet *set, size_t n_experts, size_t rows, size_t cols,
                                 WeightMatrix *out, Error *err)
{
    uint32_t bits = set->random_bits, group_size = set->random_group_size;
    *out = (WeightMatrix){.n_experts = n_experts, .rows = rows, .cols = cols};
    if (bits == DENSE_BITS) {
        out->weight = add_tensor(set, RANDOM_WEIGHT, DTYPE_BF16, n_experts, rows, cols, err);
        return out->weight != NULL;
    }
    if (cols % group_size != 0)
        return error_set(err, ERROR_UNSUPPORTED, "a matrix of %zu columns cannot have groups of %u",
                         cols, (unsigned)group_size);
    out->mode = QUANT_AFFINE;
    out->bits = bits;
    out->group_size = group_size;
    /* A group of 32 is a whole number of words, whatever the bits. */
    out->weight = add_tensor(set, RANDOM_WEIGHT, DTYPE_U32, n_experts, rows, cols / 32 * bits, err);
    out->scales = out->weight ? add_tensor(set, RANDOM_SCALE, DTYPE_BF16, n_experts, rows,
                                           cols / group_size, err)
                              : NULL;
    out->biases = out->scales ? add_tensor(set, RANDOM_BIAS, DTYPE_BF16, n_experts, rows,
                                           cols / group_size, err)
                              : NULL;
    return out->biases != NULL;
}
