/* A GGUF file to an MLX model directory.
 *
 * First everything that can refuse without touching the weights: architecture, names, shapes,
 * tokenizer, configuration. Then the weights go through in one pass, a few rows at a time: the
 * file's header is reserved at its greatest length (safetensors allows spaces after the JSON), data
 * follow, the header is filled in at the end. Memory is bounded by the row buffers, whatever the
 * model's size; source pages are given back tensor by tensor. All files appear under their names
 * only when complete, config.json last.
 *
 * Scales and biases are stored as f16, which is exact for the plain block formats. Where a value
 * leaves f16's range, or rounding would cost more than f16_error_max, that tensor is written again
 * with float32 ones. Norms and biases (float32 in GGUF) become the model's 16-bit type when that
 * loses nothing. */
#include "gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    CHUNK_BYTES = 1 << 20,     /* of packed rows written at a time */
    LINE_MAX_BYTES = 512,      /* a progress line */
    HEADER_ENTRY_BYTES = 160,  /* of a tensor's JSON without its name */
    HEADER_ALIGNMENT = 64,     /* where tensor data starts, to be kind to other readers */
    JSON_BYTES_MAX = 512 << 20 /* of tokenizer.json, the largest text */
};
static const size_t names_bytes_max = (size_t)256 << 20;
static const double f16_error_max = 1.0 / 512;

/* ---- The plan -------------------------------------------------------------------------------- */

typedef struct PlanItem {
    const GgufTensor *source;
    const char *module;      /* MLX module path, in the arena */
    const char *weight;      /* module + ".weight" or ".bias" */
    uint64_t permuted_heads; /* rows go back from interleaved RoPE order; 0: rows stay */
    bool subtract_one;
} PlanItem;

typedef struct Importer {
    GgufFile file;
    FileMap map;
    const GgufArchitecture *architecture;
    GgufDims dims;
    DType dtype; /* the model's 16-bit (or F32) type */
    Arena arena;
    PlanItem *items;
    size_t n_items, items_capacity;
    GgufOutput output;
    void (*progress)(void *context, const char *line);
    void *context;
    GgufImportReport report;
    Error *err;
} Importer;

static bool fail_name(Importer *im, const GgufTensor *tensor)
{
    return error_set(im->err, ERROR_UNSUPPORTED, "%s: tensor %.*s has no place in architecture %s",
                     im->file.name, SLICE_ARG(tensor->name), im->architecture->name);
}

/* Splits "NAME.weight" or "NAME.bias". */
static bool split_suffix(Slice name, Slice *stem, Slice *suffix)
{
    static const char *const suffixes[] = {".weight", ".bias"};
    for (size_t i = 0; i < ARRAY_COUNT(suffixes); i++) {
        *suffix = slice_of(suffixes[i]);
        if (slice_ends_with(name, *suffix)) {
            *stem = (Slice){name.ptr, name.len - suffix->len};
            return true;
        }
    }
    return false;
}

/* "blk.N.REST": the layer and REST. */
static bool split_layer(Slice stem, uint64_t *layer, Slice *rest)
{
    if (!slice_starts_with(stem, SLICE("blk.")))
        return false;
    size_t at = 4;
    uint64_t value = 0;
    while (at < stem.len && stem.ptr[at] >= '0' && stem.ptr[at] <= '9' && at < 4 + 6)
        value = value * 10 + (uint64_t)(stem.ptr[at++] - '0');
    if (at == 4 || at >= stem.len || stem.ptr[at] != '.')
        return false;
    *layer = value;
    *rest = (Slice){stem.ptr + at + 1, stem.len - at - 1};
    return true;
}

static const GgufNameRule *find_rule(const GgufArchitecture *architecture, Slice name)
{
    const GgufNameRule *rule;
    for (size_t i = 0; (rule = gguf_layer_rule(architecture, i)); i++) {
        if (slice_equal(name, slice_of(rule->gguf)))
            return rule;
    }
    return NULL;
}

/* The MLX module of a GGUF stem into text; false when there is none. */
static bool map_module(const Importer *im, Slice stem, char *text, size_t size)
{
    static const GgufNameRule top[] = {
        {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
    for (size_t i = 0; i < ARRAY_COUNT(top); i++) {
        if (slice_equal(stem, slice_of(top[i].gguf)))
            return snprintf(text, size, "%s", top[i].mlx) > 0;
    }
    uint64_t layer;
    Slice rest;
    if (!split_layer(stem, &layer, &rest) || layer >= im->dims.layers)
        return false;
    const GgufNameRule *rule = find_rule(im->architecture, rest);
    return rule && snprintf(text, size, "model.layers.%u.%s", (unsigned)layer, rule->mlx) > 0;
}

static const char *copy_text(Importer *im, const char *text)
{
    const char *copy = arena_copy_string(&im->arena, slice_of(text));
    if (!copy)
        error_no_memory(im->err, "tensor names");
    return copy;
}

/* Which heads' rows are permuted, and whether their number is right. */
static bool plan_rows(Importer *im, PlanItem *item)
{
    const GgufTensor *source = item->source;
    bool is_vector = source->n_dims == 1;
    uint64_t rows = is_vector ? source->dims[0] : source->rows;
    uint64_t heads = 0;
    Slice module = slice_of(item->module);
    if (slice_ends_with(module, SLICE(".q_proj")))
        heads = im->dims.heads;
    else if (slice_ends_with(module, SLICE(".k_proj")))
        heads = im->dims.kv_heads;
    if (!im->architecture->has_permuted_qk || heads == 0)
        return true;
    if (rows != heads * im->dims.head_dim)
        return error_set(im->err, ERROR_INVALID,
                         "%s: tensor %.*s: %llu rows, expected %llu heads of %llu", im->file.name,
                         SLICE_ARG(source->name), (unsigned long long)rows,
                         (unsigned long long)heads, (unsigned long long)im->dims.head_dim);
    item->permuted_heads = heads;
    return true;
}

static bool plan_tensor(Importer *im, const GgufTensor *source)
{
    char module[128], weight[160];
    Slice stem, suffix;
    if (slice_equal(source->name, SLICE("rope_freqs.weight")))
        return true; /* part of the configuration */
    if (!split_suffix(source->name, &stem, &suffix) ||
        !map_module(im, stem, module, sizeof(module)))
        return fail_name(im, source);
    if (!source->type->is_supported)
        return error_set(im->err, ERROR_UNSUPPORTED,
                         "%s: tensor %.*s: blocks of type %s cannot be "
                         "imported",
                         im->file.name, SLICE_ARG(source->name), source->type->name);
    bool is_norm = slice_ends_with(slice_of(module), SLICE("norm"));
    bool is_vector = is_norm || slice_equal(suffix, SLICE(".bias"));
    if (source->n_dims != (is_vector ? 1 : 2) || (is_vector && source->type->bits > 0))
        return error_set(im->err, ERROR_INVALID, "%s: tensor %.*s: expected %s", im->file.name,
                         SLICE_ARG(source->name), is_vector ? "a vector of floats" : "a matrix");
    snprintf(weight, sizeof(weight), "%s%.*s", module, SLICE_ARG(suffix));
    PlanItem item = {.source = source,
                     .module = copy_text(im, module),
                     .weight = copy_text(im, weight),
                     .subtract_one = is_norm && im->architecture->has_norm_plus_one};
    if (!item.module || !item.weight || !plan_rows(im, &item))
        return false;
    if (!memory_grow_array((void **)&im->items, im->n_items, &im->items_capacity, sizeof(item)))
        return error_no_memory(im->err, "the import plan");
    im->items[im->n_items++] = item;
    return true;
}

static bool require_tensor(Importer *im, const char *name)
{
    if (gguf_find_tensor(&im->file, slice_of(name)))
        return true;
    return error_set(im->err, ERROR_NOT_FOUND, "%s: tensor %s is missing", im->file.name, name);
}

static bool require_tensors(Importer *im)
{
    if (!require_tensor(im, "token_embd.weight") || !require_tensor(im, "output_norm.weight"))
        return false;
    char name[128];
    for (uint64_t layer = 0; layer < im->dims.layers; layer++) {
        const GgufNameRule *rule;
        for (size_t i = 0; (rule = gguf_layer_rule(im->architecture, i)); i++) {
            snprintf(name, sizeof(name), "blk.%u.%s.weight", (unsigned)layer, rule->gguf);
            if (!require_tensor(im, name))
                return false;
        }
    }
    return true;
}

/* bf16 when that is what the file's dense matrices are, f32 when all of it is, else f16. */
static DType choose_dtype(const GgufFile *file)
{
    size_t bf16 = 0, f32 = 0, others = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const GgufTensor *tensor = &file->tensors[i];
        if (tensor->n_dims < 2)
            continue;
        bf16 += tensor->type->dtype == DTYPE_BF16;
        f32 += tensor->type->dtype == DTYPE_F32;
        others += tensor->type->dtype != DTYPE_BF16 && tensor->type->dtype != DTYPE_F32;
    }
    if (others > 0)
        return DTYPE_F16;
    return bf16 > 0 || f32 == 0 ? DTYPE_BF16 : DTYPE_F32;
}

static bool plan_import(Importer *im)
{
    if (!gguf_find_architecture(&im->file, &im->architecture, im->err) ||
        !gguf_read_dims(&im->file, im->architecture, &im->dims, im->err) || !require_tensors(im))
        return false;
    for (size_t i = 0; i < im->file.n_tensors; i++) {
        if (!plan_tensor(im, &im->file.tensors[i]))
            return false;
    }
    im->dtype = choose_dtype(&im->file);
    return true;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* GGUF's converter reorders each head's rows from (half, index) to (index, half), so that RoPE's
 * pairs are neighbours; MLX wants them head_dim / 2 apart. Returns where MLX's row is in the GGUF
 * tensor. */
static uint64_t source_row(const Importer *im, const PlanItem *item, uint64_t row)
{
    if (item->permuted_heads == 0)
        return row;
    uint64_t head_dim = im->dims.head_dim, half = head_dim / 2;
    uint64_t within = row % head_dim;
    return row - within + within % half * 2 + within / half;
}

/* Sums over a tensor, for its relative error. */
typedef struct ErrorSum {
    double error, energy;
    bool is_finite;
    bool is_exact;
} ErrorSum;

static double relative_error(const ErrorSum *sum)
{
    if (sum->error <= 0)
        return 0;
    return sum->energy > 0 ? sqrt(sum->error / sum->energy) : HUGE_VAL;
}

/* One tensor on its way from blocks to packed rows. */
typedef struct Conversion {
    const GgufBlockType *type;
    size_t cols;
    DType scale_dtype;
    ErrorSum sum;
    uint8_t *codes; /* [cols] */
    float *scales;  /* [cols / GGUF_GROUP] */
    float *biases;  /* [cols / GGUF_GROUP] */
} Conversion;

/* A scale as it will be read back. */
static float stored_scale(const Conversion *c, float value)
{
    return c->scale_dtype == DTYPE_F16 ? float_from_f16(float_to_f16(value)) : value;
}

/* Adds a group of the affine formats: the codes are right, only scale and bias are rounded, so that
 * the sums follow from those of the codes. */
static void account_codes(Conversion *c, const uint8_t *codes, float scale, float bias)
{
    uint32_t sum = 0, squares = 0;
    for (size_t i = 0; i < GGUF_GROUP; i++) {
        sum += codes[i];
        squares += (uint32_t)codes[i] * codes[i];
    }
    double s = (double)scale, b = (double)bias;
    double ds = (double)stored_scale(c, scale) - s, db = (double)stored_scale(c, bias) - b;
    c->sum.energy += s * s * squares + 2 * s * b * sum + GGUF_GROUP * b * b;
    if (ds != 0 || db != 0) {
        double error = ds * ds * squares + 2 * ds * db * sum + GGUF_GROUP * db * db;
        c->sum.error += error > 0 ? error : 0;
        c->sum.is_exact = false;
    }
}

static void account_values(Conversion *c, const float *values, const uint8_t *codes, float scale,
                           float bias)
{
    float s = stored_scale(c, scale), b = stored_scale(c, bias);
    for (size_t i = 0; i < GGUF_GROUP; i++) {
        double error = (double)values[i] - (double)(s * (float)codes[i] + b);
        c->sum.error += error * error;
        c->sum.energy += (double)values[i] * (double)values[i];
        c->sum.is_exact = c->sum.is_exact && error == 0;
    }
}

static void convert_block(Conversion *c, const uint8_t *block, size_t at)
{
    size_t groups = c->type->block_values / GGUF_GROUP;
    uint8_t *codes = c->codes + at;
    float *scales = c->scales + at / GGUF_GROUP, *biases = c->biases + at / GGUF_GROUP;
    if (c->type->read_codes) {
        c->type->read_codes(block, codes, scales, biases);
        for (size_t g = 0; g < groups; g++)
            account_codes(c, codes + g * GGUF_GROUP, scales[g], biases[g]);
        return;
    }
    float values[GGUF_BLOCK_VALUES], steps[GGUF_BLOCK_VALUES / 16];
    c->type->read_values(block, values);
    bool has_steps = gguf_block_steps(c->type, block, steps);
    for (size_t g = 0; g < groups; g++) {
        const float *group = values + g * GGUF_GROUP;
        gguf_requantize_group(group, has_steps ? steps + 2 * g : NULL, codes + g * GGUF_GROUP,
                              &scales[g], &biases[g]);
        account_values(c, group, codes + g * GGUF_GROUP, scales[g], biases[g]);
    }
}

static uint8_t *store_floats(const float *values, size_t count, DType dtype, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        if (dtype == DTYPE_F32) {
            memcpy(out, &values[i], 4);
            out += 4;
            continue;
        }
        uint16_t bits = dtype == DTYPE_F16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
        *out++ = (uint8_t)bits;
        *out++ = (uint8_t)(bits >> 8);
    }
    return out;
}

static void check_finite(Conversion *c, size_t groups)
{
    for (size_t g = 0; g < groups; g++) {
        if (!isfinite(stored_scale(c, c->scales[g])) || !isfinite(stored_scale(c, c->biases[g])))
            c->sum.is_finite = false;
    }
}

/* Where a quantised tensor's three parts go in the file, and buffers for some of its rows. */
typedef struct QuantOutput {
    size_t weight_at, scales_at, biases_at;
    size_t weight_row, scales_row; /* bytes of a row */
    size_t chunk_rows;
    uint8_t *weight, *scales, *biases;
} QuantOutput;

static bool write_chunk(const Importer *im, const QuantOutput *q, uint64_t first, size_t rows)
{
    const GgufOutput *o = &im->output;
    return gguf_output_write(o, q->weight, rows * q->weight_row,
                             gguf_output_data_at(o, q->weight_at + first * q->weight_row),
                             im->err) &&
           gguf_output_write(o, q->scales, rows * q->scales_row,
                             gguf_output_data_at(o, q->scales_at + first * q->scales_row),
                             im->err) &&
           gguf_output_write(o, q->biases, rows * q->scales_row,
                             gguf_output_data_at(o, q->biases_at + first * q->scales_row), im->err);
}

static bool convert_rows(Importer *im, const PlanItem *item, Conversion *c, const QuantOutput *q)
{
    const GgufTensor *source = item->source;
    const uint8_t *data = (const uint8_t *)im->file.image.ptr + source->offset;
    size_t blocks = c->cols / c->type->block_values;
    size_t source_bytes = blocks * c->type->block_bytes, groups = c->cols / GGUF_GROUP;
    for (uint64_t first = 0; first < source->rows; first += q->chunk_rows) {
        size_t rows = q->chunk_rows;
        if (rows > source->rows - first)
            rows = (size_t)(source->rows - first);
        for (size_t r = 0; r < rows; r++) {
            const uint8_t *row = data + source_row(im, item, first + r) * source_bytes;
            for (size_t b = 0; b < blocks; b++)
                convert_block(c, row + b * c->type->block_bytes, b * c->type->block_values);
            check_finite(c, groups);
            affine_pack_codes(c->codes, c->cols, c->type->bits, q->weight + r * q->weight_row);
            store_floats(c->scales, groups, c->scale_dtype, q->scales + r * q->scales_row);
            store_floats(c->biases, groups, c->scale_dtype, q->biases + r * q->scales_row);
        }
        if (!write_chunk(im, q, first, rows))
            return false;
    }
    return true;
}

/* Enters weight, scales and biases in the output's table. */
static bool place_quantized(Importer *im, const PlanItem *item, const Conversion *c, QuantOutput *q)
{
    uint64_t rows = item->source->rows, groups = c->cols / GGUF_GROUP;
    char name[192];
    snprintf(name, sizeof(name), "%s.scales", item->module);
    const char *scales = copy_text(im, name);
    snprintf(name, sizeof(name), "%s.biases", item->module);
    const char *biases = copy_text(im, name);
    if (!scales || !biases)
        return false;
    GgufOutputTensor weight_tensor = {
        item->weight, DTYPE_U32, 2, {rows, c->cols * c->type->bits / 32}, 0, 0};
    GgufOutputTensor scales_tensor = {scales, c->scale_dtype, 2, {rows, groups}, 0, 0};
    GgufOutputTensor biases_tensor = {biases, c->scale_dtype, 2, {rows, groups}, 0, 0};
    return gguf_output_add(&im->output, weight_tensor, rows * q->weight_row, &q->weight_at,
                           im->err) &&
           gguf_output_add(&im->output, scales_tensor, rows * q->scales_row, &q->scales_at,
                           im->err) &&
           gguf_output_add(&im->output, biases_tensor, rows * q->scales_row, &q->biases_at,
                           im->err);
}

/* One attempt with scales of c->scale_dtype. */
static bool convert_quantized(Importer *im, const PlanItem *item, Conversion *c)
{
    size_t groups = c->cols / GGUF_GROUP;
    QuantOutput q = {.weight_row = c->cols * c->type->bits / 8,
                     .scales_row = groups * dtype_size(c->scale_dtype)};
    q.chunk_rows = CHUNK_BYTES / q.weight_row;
    if (q.chunk_rows == 0)
        q.chunk_rows = 1;
    if (q.chunk_rows > item->source->rows)
        q.chunk_rows = (size_t)item->source->rows;
    bool ok = false;
    q.weight = memory_allocate_array(q.chunk_rows, q.weight_row);
    q.scales = memory_allocate_array(q.chunk_rows, q.scales_row);
    q.biases = memory_allocate_array(q.chunk_rows, q.scales_row);
    if (!q.weight || !q.scales || !q.biases)
        error_no_memory(im->err, "row buffers");
    else
        ok = place_quantized(im, item, c, &q) && convert_rows(im, item, c, &q);
    memory_free(q.biases);
    memory_free(q.scales);
    memory_free(q.weight);
    return ok;
}

static void report_tensor(Importer *im, const PlanItem *item, const char *form, const ErrorSum *sum)
{
    double error = relative_error(sum);
    GgufImportReport *report = &im->report;
    if (sum->is_exact) {
        report->exact_tensors++;
    } else {
        report->converted_tensors++;
        if (error >= report->worst_relative_error) {
            report->worst_relative_error = error;
            snprintf(report->worst_tensor, sizeof(report->worst_tensor), "%s", item->weight);
        }
    }
    if (!im->progress)
        return;
    char line[LINE_MAX_BYTES], account[64];
    if (sum->is_exact)
        snprintf(account, sizeof(account), "exact");
    else
        snprintf(account, sizeof(account), "relative error %.2e", error);
    snprintf(line, sizeof(line), "%.*s %s -> %s %s: %s", SLICE_ARG(item->source->name),
             item->source->type->name, item->weight, form, account);
    im->progress(im->context, line);
}

static bool import_quantized(Importer *im, const PlanItem *item)
{
    Conversion c = {.type = item->source->type, .cols = (size_t)item->source->dims[0]};
    bool ok = false;
    c.codes = memory_allocate(c.cols);
    c.scales = memory_allocate_array(c.cols / GGUF_GROUP, sizeof(float));
    c.biases = memory_allocate_array(c.cols / GGUF_GROUP, sizeof(float));
    if (!c.codes || !c.scales || !c.biases) {
        error_no_memory(im->err, "row buffers");
        goto cleanup;
    }
    const size_t n_tensors = im->output.n_tensors, data_size = im->output.data_size;
    static const DType dtypes[] = {DTYPE_F16, DTYPE_F32};
    for (size_t i = 0; i < ARRAY_COUNT(dtypes); i++) {
        im->output.n_tensors = n_tensors;
        im->output.data_size = data_size;
        c.scale_dtype = dtypes[i];
        c.sum = (ErrorSum){.is_finite = true, .is_exact = true};
        if (!convert_quantized(im, item, &c))
            goto cleanup;
        bool is_rounding = c.type->read_codes && relative_error(&c.sum) > f16_error_max;
        if (c.sum.is_finite && !is_rounding)
            break;
    }
    if (!c.sum.is_finite) {
        error_set(im->err, ERROR_INVALID, "%s: tensor %.*s: a scale is not finite", im->file.name,
                  SLICE_ARG(item->source->name));
        goto cleanup;
    }
    char form[64];
    snprintf(form, sizeof(form), "affine %u bits group %d%s", c.type->bits, GGUF_GROUP,
             c.scale_dtype == DTYPE_F32 ? " (float32 scales)" : "");
    report_tensor(im, item, form, &c.sum);
    ok = true;
cleanup:
    memory_free(c.biases);
    memory_free(c.scales);
    memory_free(c.codes);
    return ok;
}

/* ---- Dense tensors --------------------------------------------------------------------------- */

static float dense_value(const PlanItem *item, const TensorView *source, size_t index)
{
    float value;
    tensor_read_floats(source, index, 1, &value);
    return item->subtract_one ? value - 1 : value;
}

/* The narrowest type for a vector: the model's if no value changes, else float32. */
static DType vector_dtype(const Importer *im, const PlanItem *item, const TensorView *source)
{
    if (source->dtype != DTYPE_F32 && !item->subtract_one)
        return source->dtype;
    for (size_t i = 0; i < (size_t)item->source->dims[0] && im->dtype != DTYPE_F32; i++) {
        float value = dense_value(item, source, i);
        float back = im->dtype == DTYPE_F16 ? float_from_f16(float_to_f16(value))
                                            : float_from_bf16(float_to_bf16(value));
        if (back != value)
            return DTYPE_F32;
    }
    return im->dtype;
}

static bool import_vector(Importer *im, const PlanItem *item)
{
    const GgufTensor *source = item->source;
    TensorView view = {.dtype = source->type->dtype,
                       .data = (const uint8_t *)im->file.image.ptr + source->offset,
                       .n_bytes = source->n_bytes};
    size_t count = (size_t)source->dims[0], begin;
    DType dtype = vector_dtype(im, item, &view);
    uint8_t *bytes = memory_allocate_array(count, dtype_size(dtype));
    if (!bytes)
        return error_no_memory(im->err, "a vector");
    uint8_t *to = bytes;
    for (size_t i = 0; i < count; i++) {
        /* A vector's rows are its elements: biases of q and k are permuted like their matrices. */
        float value = dense_value(item, &view, (size_t)source_row(im, item, i));
        to = store_floats(&value, 1, dtype, to);
    }
    size_t size = count * dtype_size(dtype);
    GgufOutputTensor tensor = {item->weight, dtype, 1, {count}, 0, 0};
    bool ok = gguf_output_add(&im->output, tensor, size, &begin, im->err) &&
              gguf_output_write(&im->output, bytes, size, gguf_output_data_at(&im->output, begin),
                                im->err);
    memory_free(bytes);
    if (ok)
        report_tensor(im, item, dtype_name(dtype), &(ErrorSum){.is_exact = true});
    return ok;
}

static bool import_dense_matrix(Importer *im, const PlanItem *item)
{
    const GgufTensor *source = item->source;
    const uint8_t *data = (const uint8_t *)im->file.image.ptr + source->offset;
    size_t cols = (size_t)source->dims[0], begin;
    size_t row_bytes = cols * source->type->block_bytes;
    GgufOutputTensor tensor = {item->weight, source->type->dtype, 2, {source->rows, cols}, 0, 0};
    if (!gguf_output_add(&im->output, tensor, source->n_bytes, &begin, im->err))
        return false;
    size_t at = gguf_output_data_at(&im->output, begin);
    if (item->permuted_heads == 0) {
        if (!gguf_output_write(&im->output, data, source->n_bytes, at, im->err))
            return false;
    }
    for (uint64_t r = 0; item->permuted_heads > 0 && r < source->rows; r++) {
        if (!gguf_output_write(&im->output, data + source_row(im, item, r) * row_bytes, row_bytes,
                               at + r * row_bytes, im->err))
            return false;
    }
    report_tensor(im, item, dtype_name(source->type->dtype), &(ErrorSum){.is_exact = true});
    return true;
}

/* ---- The whole ------------------------------------------------------------------------------- */

static bool import_tensor(Importer *im, const PlanItem *item)
{
    bool ok;
    if (item->source->type->bits > 0)
        ok = import_quantized(im, item);
    else if (item->source->n_dims == 1)
        ok = import_vector(im, item);
    else
        ok = import_dense_matrix(im, item);
    file_map_release(&im->map, item->source->offset, item->source->n_bytes);
    return ok;
}

static bool reserve_header(const Importer *im, size_t *out)
{
    size_t size = HEADER_ENTRY_BYTES;
    for (size_t i = 0; i < im->n_items; i++)
        size += 3 * (strlen(im->items[i].weight) + HEADER_ENTRY_BYTES);
    size += HEADER_ALIGNMENT - (8 + size) % HEADER_ALIGNMENT;
    if (size > WEIGHTS_HEADER_BYTES_MAX)
        return error_set(im->err, ERROR_LIMIT, "%s: too many tensors", im->file.name);
    *out = size;
    return true;
}

static bool import_weights(Importer *im, const char *directory)
{
    size_t header_size = 0;
    if (!reserve_header(im, &header_size) ||
        !gguf_output_open(&im->output, directory, header_size, im->err))
        return false;
    for (size_t i = 0; i < im->n_items; i++) {
        if (!import_tensor(im, &im->items[i]))
            return false;
    }
    im->report.bytes_written += gguf_output_data_at(&im->output, im->output.data_size);
    return gguf_output_finish(&im->output, im->err);
}

static bool write_text(Importer *im, const char *directory, const char *name, const Buffer *text)
{
    char path[PATH_BYTES_MAX];
    im->report.bytes_written += text->len;
    return path_join(path, sizeof(path), directory, name, im->err) &&
           file_write(path, buffer_view(text), im->err);
}

/* config.json's text, with each matrix's width. */
static bool make_config(Importer *im, Buffer *out)
{
    GgufModule *modules = memory_allocate_zeroed(im->n_items + 1, sizeof(*modules));
    if (!modules)
        return error_no_memory(im->err, "the list of modules");
    size_t n_modules = 0;
    for (size_t i = 0; i < im->n_items; i++) {
        const PlanItem *item = &im->items[i];
        if (item->source->n_dims == 2)
            modules[n_modules++] = (GgufModule){item->module, item->source->type->bits};
    }
    bool ok = gguf_write_config(&im->file, im->architecture, &im->dims, modules, n_modules,
                                im->dtype, out, im->err);
    memory_free(modules);
    return ok;
}

static bool import_file(Importer *im, const char *directory)
{
    Buffer config, generation, tokenizer, tokenizer_config;
    Buffer *const buffers[] = {&config, &generation, &tokenizer, &tokenizer_config};
    for (size_t i = 0; i < ARRAY_COUNT(buffers); i++)
        buffer_init(buffers[i], JSON_BYTES_MAX);
    bool ok =
        plan_import(im) && make_config(im, &config) &&
        gguf_write_generation_config(&im->file, &generation, im->err) &&
        gguf_write_tokenizer(&im->file, im->architecture, &tokenizer, &tokenizer_config, im->err) &&
        directory_create(directory, im->err) &&
        write_text(im, directory, "tokenizer.json", &tokenizer) &&
        write_text(im, directory, "tokenizer_config.json", &tokenizer_config);
    buffer_reset(&tokenizer);
    ok = ok && import_weights(im, directory) &&
         write_text(im, directory, "generation_config.json", &generation) &&
         write_text(im, directory, "config.json", &config);
    for (size_t i = 0; i < ARRAY_COUNT(buffers); i++)
        buffer_reset(buffers[i]);
    return ok;
}

bool gguf_import(const char *gguf_path, const char *out_directory,
                 void (*progress)(void *context, const char *line), void *context,
                 GgufImportReport *report, Error *err)
{
    Importer im = {.output = {.fd = -1}, .progress = progress, .context = context, .err = err};
    arena_init(&im.arena, names_bytes_max);
    bool ok = false;
    if (!file_map_open(gguf_path, &im.map, err))
        goto cleanup;
    Slice image = {(const char *)im.map.data, im.map.size};
    ok = gguf_parse(image, gguf_path, &im.file, err) && import_file(&im, out_directory);
    if (ok && report)
        *report = im.report;
cleanup:
    gguf_output_abandon(&im.output);
    memory_free(im.items);
    gguf_reset(&im.file);
    arena_reset(&im.arena);
    file_map_close(&im.map);
    return ok;
}
