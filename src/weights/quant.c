/* MLX's quantised layouts: binding a module's tensors, reading them, and the affine quantiser.
 *
 * A row of `cols` codes of `bits` each is one little-endian bit stream, so that 8 codes always take
 * exactly `bits` bytes:
 *
 *     4 bits   |1 0|3 2|5 4|7 6|            8 codes in 4 bytes, low nibble first
 *     3 bits   |22111000|54443332|77766655| 8 codes in 3 bytes, they straddle bytes
 *     6 bits   |11000000|22221111|33333322| 4 codes in 3 bytes
 *
 * cols * bits is a multiple of 32, groups are multiples of 8 codes, hence everything below works on
 * whole 8-code units: one 64-bit load of `bits` bytes, eight shifts. */
#include "weights.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TENSOR_NAME_MAX = 512, CODES_PER_UNIT = 8, READ_GROUP_MAX = 128 };

/* nvfp4 with a global scale g (the largest magnitude): E4M3 reaches 448, E2M1 6; 448 * 6 times the
 * stored unit g / 2688 is g. */
static const float nvfp4_global_unit = 2688.0f;

static bool is_float_dtype(DType dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

/* ---- Binding --------------------------------------------------------------------------------- */

typedef struct Binder {
    const TensorSet *set;
    const char *module;
    size_t n_experts, rows, cols;
    Error *err;
} Binder;

/* module + suffix; *out is NULL when absent. */
static bool find_tensor(const Binder *b, const char *suffix, const TensorView **out)
{
    char name[TENSOR_NAME_MAX];
    int len = snprintf(name, sizeof(name), "%s%s", b->module, suffix);
    if (len < 0 || (size_t)len >= sizeof(name))
        return error_set(b->err, ERROR_LIMIT, "tensor name %.100s... is too long", b->module);
    *out = tensor_set_find(b->set, (Slice){name, (size_t)len});
    return true;
}

/* [rows, cols], or [n_experts, rows, cols]; one expert may come in either form. */
static bool has_shape(const Binder *b, const TensorView *tensor, size_t cols)
{
    uint32_t n = tensor->n_dims;
    if (n != 2 && n != 3)
        return false;
    if (n == 2 ? b->n_experts != 1 : (uint64_t)tensor->shape[0] != b->n_experts)
        return false;
    return (uint64_t)tensor->shape[n - 2] == b->rows && (uint64_t)tensor->shape[n - 1] == cols;
}

static bool fail_shape(const Binder *b, const TensorView *tensor, size_t cols, const char *why)
{
    char found[SHAPE_TEXT_MAX], expected[SHAPE_TEXT_MAX];
    TensorView want = {.n_dims = 2, .shape = {(int64_t)b->rows, (int64_t)cols}};
    if (b->n_experts != 1)
        want = (TensorView){.n_dims = 3,
                            .shape = {(int64_t)b->n_experts, (int64_t)b->rows, (int64_t)cols}};
    return error_set(b->err, ERROR_INVALID, "tensor %.*s: shape %s, expected %s%s",
                     SLICE_ARG(tensor->name), tensor_shape_text(tensor, found),
                     tensor_shape_text(&want, expected), why);
}

static bool fail_dtype(const Binder *b, const TensorView *tensor, const char *expected)
{
    return error_set(b->err, ERROR_INVALID, "tensor %.*s: dtype %s, expected %s",
                     SLICE_ARG(tensor->name), dtype_name(tensor->dtype), expected);
}

static bool bind_dense(const Binder *b, const QuantSpec *spec, WeightMatrix *out)
{
    if (out->weight->dtype == DTYPE_U32 && (!spec || spec->quantized))
        return error_set(b->err, ERROR_NOT_FOUND,
                         "tensor %s.scales: missing, but %s.weight holds quantised codes (U32)",
                         b->module, b->module);
    if (!is_float_dtype(out->weight->dtype))
        return fail_dtype(b, out->weight, "F32, F16 or BF16");
    if (!has_shape(b, out->weight, b->cols))
        return fail_shape(b, out->weight, b->cols, "");
    out->mode = QUANT_NONE;
    return true;
}

/* bits and group size out of the shapes: codes [rows, cols * bits / 32], scales [rows, cols /
 * group]. */
static bool derive_widths(const Binder *b, WeightMatrix *out)
{
    const TensorView *weight = out->weight, *scales = out->scales;
    if (weight->dtype != DTYPE_U32)
        return fail_dtype(b, weight, "U32 (its module has scales)");
    if (weight->n_dims < 2 || scales->n_dims < 2)
        return fail_shape(b, weight->n_dims < 2 ? weight : scales, b->cols, "");
    uint64_t words = (uint64_t)weight->shape[weight->n_dims - 1];
    uint64_t groups = (uint64_t)scales->shape[scales->n_dims - 1];
    /* words <= cols / 4 holds for up to 8 bits and keeps words * 32 from overflowing. */
    if (words == 0 || words > b->cols / 4 || words * 32 % b->cols != 0)
        return fail_shape(b, weight, b->cols, " divided by 32 / bits");
    if (groups == 0 || groups > b->cols || b->cols % groups != 0)
        return fail_shape(b, scales, b->cols, " divided by the group size");
    out->bits = (uint32_t)(words * 32 / b->cols);
    out->group_size = (uint32_t)(b->cols / groups < UINT32_MAX ? b->cols / groups : 0);
    if (!has_shape(b, weight, (size_t)words))
        return fail_shape(b, weight, (size_t)words, "");
    if (!has_shape(b, scales, (size_t)groups))
        return fail_shape(b, scales, (size_t)groups, "");
    return true;
}

static bool is_affine_layout(uint32_t bits, uint32_t group_size)
{
    bool good_bits = (bits >= 2 && bits <= 6) || bits == 8;
    return good_bits && (group_size == 32 || group_size == 64 || group_size == 128);
}

static const char *mode_name(QuantMode mode)
{
    static const char *const names[] = {"none", "affine", "mxfp4", "mxfp8", "nvfp4"};
    return (size_t)mode < ARRAY_COUNT(names) ? names[mode] : "?";
}

/* The mode is what the tensors are: u8 scales are one of the block float formats, which differ in
 * width and group size; float scales are affine. */
static bool derive_mode(const Binder *b, WeightMatrix *out)
{
    uint32_t bits = out->bits, group = out->group_size;
    if (out->scales->dtype == DTYPE_U8) {
        if (bits == 4 && group == 32)
            out->mode = QUANT_MXFP4;
        else if (bits == 8 && group == 32)
            out->mode = QUANT_MXFP8;
        else if (bits == 4 && group == 16)
            out->mode = QUANT_NVFP4;
        else
            return error_set(
                b->err, ERROR_UNSUPPORTED,
                "tensor %s.weight: %u bits in groups of %u with U8 scales is no mode of MLX's",
                b->module, bits, group);
        if (out->biases)
            return error_set(b->err, ERROR_INVALID, "tensor %.*s: %s has no biases",
                             SLICE_ARG(out->biases->name), mode_name(out->mode));
        return true;
    }
    if (!is_float_dtype(out->scales->dtype))
        return fail_dtype(b, out->scales, "F32, F16, BF16 or U8");
    if (!is_affine_layout(bits, group))
        return error_set(b->err, ERROR_UNSUPPORTED,
                         "tensor %s.weight: %u bits in groups of %u: affine has 2, 3, 4, 5, 6 or 8 "
                         "bits in groups of "
                         "32, 64 or 128",
                         b->module, bits, group);
    if (!out->biases)
        return error_set(b->err, ERROR_NOT_FOUND,
                         "tensor %s.biases: missing, but %s.scales is affine", b->module,
                         b->module);
    if (out->biases->dtype != out->scales->dtype)
        return fail_dtype(b, out->biases, dtype_name(out->scales->dtype));
    if (!has_shape(b, out->biases, b->cols / group))
        return fail_shape(b, out->biases, b->cols / group, "");
    out->mode = QUANT_AFFINE;
    return true;
}

/* An optional factor per expert, of nvfp4 only. */
static bool check_global_scale(const Binder *b, const WeightMatrix *out)
{
    const TensorView *scale = out->global_scale;
    if (!scale)
        return true;
    if (out->mode != QUANT_NVFP4)
        return error_set(b->err, ERROR_UNSUPPORTED, "tensor %.*s: %s has no global scale",
                         SLICE_ARG(scale->name), mode_name(out->mode));
    if (scale->dtype != DTYPE_F32)
        return fail_dtype(b, scale, "F32");
    char found[SHAPE_TEXT_MAX];
    bool is_scalar = b->n_experts == 1 && scale->n_dims == 0;
    if (is_scalar || (scale->n_dims == 1 && (uint64_t)scale->shape[0] == b->n_experts))
        return true;
    return error_set(b->err, ERROR_INVALID, "tensor %.*s: shape %s, expected [%zu]",
                     SLICE_ARG(scale->name), tensor_shape_text(scale, found), b->n_experts);
}

static bool agree_with_spec(const Binder *b, const QuantSpec *spec, const WeightMatrix *out)
{
    if (!spec)
        return true;
    if (!spec->quantized)
        return error_set(b->err, ERROR_INVALID,
                         "tensor %s.scales: present, but config.json does not quantise this module",
                         b->module);
    if (spec->mode == out->mode && spec->bits == out->bits && spec->group_size == out->group_size)
        return true;
    return error_set(
        b->err, ERROR_INVALID,
        "tensor %s.weight: %s, %u bits, group_size %u; expected by config.json: %s, %u bits, "
        "group_size %u",
        b->module, mode_name(out->mode), out->bits, out->group_size, mode_name(spec->mode),
        spec->bits, spec->group_size);
}

bool weight_matrix_bind(const TensorSet *set, const char *module, size_t n_experts, size_t rows,
                        size_t cols, const QuantSpec *spec, WeightMatrix *out, Error *err)
{
    *out = (WeightMatrix){0};
    Binder b = {set, module, n_experts, rows, cols, err};
    WeightMatrix matrix = {.n_experts = n_experts, .rows = rows, .cols = cols};
    if (!find_tensor(&b, ".weight", &matrix.weight) ||
        !find_tensor(&b, ".scales", &matrix.scales) ||
        !find_tensor(&b, ".biases", &matrix.biases) ||
        !find_tensor(&b, ".global_scale", &matrix.global_scale))
        return false;
    if (!matrix.weight)
        return error_set(err, ERROR_NOT_FOUND, "tensor %s.weight: missing", module);
    if (rows == 0 || cols == 0 || n_experts == 0)
        return error_set(err, ERROR_INVALID, "%s: a matrix of %zu x %zu x %zu", module, n_experts,
                         rows, cols);
    if (!matrix.scales) {
        matrix.biases = NULL;
        matrix.global_scale = NULL;
        if (!bind_dense(&b, spec, &matrix))
            return false;
    } else if (!derive_widths(&b, &matrix) || !derive_mode(&b, &matrix) ||
               !check_global_scale(&b, &matrix) || !agree_with_spec(&b, spec, &matrix)) {
        return false;
    }
    *out = matrix;
    return true;
}

static const char *module_of(const WeightMatrix *matrix, int *len)
{
    *len = (int)(matrix->weight->name.len - strlen(".weight"));
    return matrix->weight->name.ptr;
}

bool weight_matrix_join_experts(const WeightMatrix *experts, size_t n_experts, WeightMatrix *out,
                                Error *err)
{
    *out = (WeightMatrix){0};
    const WeightMatrix *first = &experts[0];
    for (size_t e = 1; e < n_experts; e++) {
        const WeightMatrix *other = &experts[e];
        if (other->mode == first->mode && other->bits == first->bits &&
            other->group_size == first->group_size && other->rows == first->rows &&
            other->cols == first->cols)
            continue;
        int len, first_len;
        const char *name = module_of(other, &len), *first_name = module_of(first, &first_len);
        return error_set(err, ERROR_INVALID,
                         "%.*s: %s, %u bits, group_size %u; expected that of %.*s: %s, %u bits, "
                         "group_size %u",
                         len, name, mode_name(other->mode), other->bits, other->group_size,
                         first_len, first_name, mode_name(first->mode), first->bits,
                         first->group_size);
    }
    *out = *first;
    out->n_experts = n_experts;
    out->experts = experts;
    return true;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static size_t row_bytes(const TensorView *tensor)
{
    return (size_t)tensor->shape[tensor->n_dims - 1] * dtype_size(tensor->dtype);
}

/* Index of a row within one of the matrix's tensors, all of which have the same leading dimensions.
 */
static size_t tensor_row(const WeightMatrix *matrix, size_t expert, size_t row)
{
    assert(expert < matrix->n_experts && row < matrix->rows);
    size_t rows_per_expert = (size_t)matrix->weight->shape[matrix->weight->n_dims - 2];
    return expert * rows_per_expert + matrix->first_row + row;
}

size_t weight_matrix_bytes(const WeightMatrix *matrix)
{
    if (!matrix->weight)
        return 0;
    if (matrix->experts) {
        size_t total = 0;
        for (size_t e = 0; e < matrix->n_experts; e++)
            total += weight_matrix_bytes(&matrix->experts[e]);
        return total;
    }
    size_t per_row = row_bytes(matrix->weight);
    per_row += matrix->scales ? row_bytes(matrix->scales) : 0;
    per_row += matrix->biases ? row_bytes(matrix->biases) : 0;
    size_t factors = matrix->global_scale ? matrix->global_scale->n_bytes : 0;
    return per_row * matrix->rows * matrix->n_experts + factors;
}

float weight_matrix_expert_factor(const WeightMatrix *matrix, size_t expert)
{
    if (matrix->experts)
        return weight_matrix_expert_factor(&matrix->experts[expert], 0);
    if (!matrix->global_scale)
        return 1.0f;
    float scale;
    tensor_read_floats(matrix->global_scale, expert, 1, &scale);
    return scale / nvfp4_global_unit;
}

WeightMatrix weight_matrix_slice_rows(const WeightMatrix *matrix, size_t first, size_t count)
{
    assert(first <= matrix->rows && count <= matrix->rows - first);
    WeightMatrix slice = *matrix;
    slice.first_row += first;
    slice.rows = count;
    return slice;
}

TensorView weight_matrix_view_rows(const WeightMatrix *matrix, const TensorView *tensor,
                                   size_t expert, size_t first, size_t count)
{
    assert(!matrix->experts && count > 0 && first + count <= matrix->rows);
    size_t bytes = row_bytes(tensor);
    TensorView part = *tensor;
    part.data += tensor_row(matrix, expert, first) * bytes;
    part.n_bytes = count * bytes;
    return part;
}

static void unpack_codes(const uint8_t *from, size_t count, uint32_t bits, uint8_t *out)
{
    if (bits == 8) {
        memcpy(out, from, count);
        return;
    }
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    for (size_t i = 0; i < count; i += CODES_PER_UNIT, from += bits) {
        uint64_t unit = 0;
        for (uint32_t byte = 0; byte < bits; byte++)
            unit |= (uint64_t)from[byte] << (8 * byte);
        for (size_t j = 0; j < CODES_PER_UNIT; j++, unit >>= bits)
            out[i + j] = (uint8_t)(unit & mask);
    }
}

void weight_matrix_read_codes(const WeightMatrix *matrix, size_t expert, size_t row, uint8_t *out)
{
    assert(matrix->mode != QUANT_NONE);
    if (matrix->experts) {
        weight_matrix_read_codes(&matrix->experts[expert], 0, row, out);
        return;
    }
    size_t at = tensor_row(matrix, expert, row) * row_bytes(matrix->weight);
    unpack_codes(matrix->weight->data + at, matrix->cols, matrix->bits, out);
}

static float scale_from_byte(QuantMode mode, uint8_t byte)
{
    return mode == QUANT_NVFP4 ? float_from_e4m3(byte) : float_from_e8m0(byte);
}

void weight_matrix_read_scales(const WeightMatrix *matrix, size_t expert, size_t row, float *scales,
                               float *biases)
{
    assert(matrix->mode != QUANT_NONE);
    if (matrix->experts) {
        weight_matrix_read_scales(&matrix->experts[expert], 0, row, scales, biases);
        return;
    }
    size_t groups = matrix->cols / matrix->group_size;
    size_t first = tensor_row(matrix, expert, row) * groups;
    if (matrix->mode == QUANT_AFFINE) {
        tensor_read_floats(matrix->scales, first, groups, scales);
        tensor_read_floats(matrix->biases, first, groups, biases);
        return;
    }
    for (size_t i = 0; i < groups; i++) {
        scales[i] = scale_from_byte(matrix->mode, matrix->scales->data[first + i]);
        biases[i] = 0;
    }
}

/* One group of at most READ_GROUP_MAX codes to values. */
static void read_group(const WeightMatrix *matrix, const uint8_t *codes, size_t group_index,
                       float *out)
{
    size_t count = matrix->group_size;
    if (matrix->mode == QUANT_AFFINE) {
        float scale, bias;
        tensor_read_floats(matrix->scales, group_index, 1, &scale);
        tensor_read_floats(matrix->biases, group_index, 1, &bias);
        for (size_t i = 0; i < count; i++)
            out[i] = scale * (float)codes[i] + bias;
        return;
    }
    float scale = scale_from_byte(matrix->mode, matrix->scales->data[group_index]);
    for (size_t i = 0; i < count; i++)
        out[i] =
            scale * (matrix->bits == 8 ? float_from_e4m3(codes[i]) : float_from_e2m1(codes[i]));
}

void weight_matrix_read_row(const WeightMatrix *matrix, size_t expert, size_t row, float *out)
{
    if (matrix->experts) {
        weight_matrix_read_row(&matrix->experts[expert], 0, row, out);
        return;
    }
    size_t at = tensor_row(matrix, expert, row);
    if (matrix->mode == QUANT_NONE) {
        tensor_read_floats(matrix->weight, at * matrix->cols, matrix->cols, out);
        return;
    }
    assert(matrix->group_size <= READ_GROUP_MAX);
    uint8_t codes[READ_GROUP_MAX];
    const uint8_t *packed = matrix->weight->data + at * row_bytes(matrix->weight);
    size_t groups = matrix->cols / matrix->group_size;
    size_t group_bytes = (size_t)matrix->group_size * matrix->bits / 8;
    for (size_t g = 0; g < groups; g++) {
        unpack_codes(packed + g * group_bytes, matrix->group_size, matrix->bits, codes);
        read_group(matrix, codes, at * groups + g, out + g * matrix->group_size);
    }
    float factor = weight_matrix_expert_factor(matrix, expert);
    for (size_t i = 0; matrix->global_scale && i < matrix->cols; i++)
        out[i] *= factor;
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* The group's edge of larger magnitude becomes the bias, and the scale is adjusted so that zero is
 * a code exactly where the range holds it; hence scales of either sign. */
void affine_quantize_group(const float *values, size_t count, uint32_t bits, uint8_t *codes,
                           float *scale, float *bias)
{
    float low = values[0], high = values[0];
    for (size_t i = 1; i < count; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    float top = (float)((1u << bits) - 1);
    bool low_is_edge = fabsf(low) > fabsf(high);
    float s = (high - low) / top;
    s = s > 1e-7f ? s : 1e-7f;
    s = low_is_edge ? s : -s;
    float edge = low_is_edge ? low : high;
    float q0 = rintf(edge / s);
    float b = 0;
    if (q0 != 0) {
        s = edge / q0;
        b = edge;
    }
    for (size_t i = 0; i < count; i++) {
        float q = rintf((values[i] - b) / s);
        q = q > 0 ? q : 0; /* also turns NaN into 0 */
        codes[i] = (uint8_t)(q < top ? q : top);
    }
    *scale = s;
    *bias = b;
}

void affine_pack_codes(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *out)
{
    assert(bits >= 1 && bits <= 8 && count * bits % 32 == 0);
    if (bits == 8) {
        memcpy(out, codes, count);
        return;
    }
    /* Below 8 bits, whole words of codes are whole units of 8. */
    for (size_t i = 0; i < count; i += CODES_PER_UNIT, out += bits) {
        uint64_t unit = 0;
        for (uint32_t j = 0; j < CODES_PER_UNIT; j++)
            unit |= (uint64_t)codes[i + j] << (bits * j);
        for (uint32_t byte = 0; byte < bits; byte++)
            out[byte] = (uint8_t)(unit >> (8 * byte));
    }
}
