/* Safetensors, one file:
 *
 *     u64 LE n | n bytes of JSON | data
 *     {"__metadata__": {string: string},
 *      NAME: {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ...}
 *
 * Offsets count from the end of the header. The tensors, sorted by offset, must tile the data
 * exactly: the first starts at 0, each starts where the previous ends, the last ends with the file.
 * That rule (the reference implementation's) makes overlap, holes and truncation one check. The
 * header is read with the pull reader, since it may hold a million tensors; duplicate names are
 * found later, by sorting. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

typedef struct DTypeInfo {
    const char *name;
    DType dtype;
    uint32_t bits;
} DTypeInfo;

static const DTypeInfo dtype_infos[] = {
    {"F32", DTYPE_F32, 32},   {"F16", DTYPE_F16, 16},      {"BF16", DTYPE_BF16, 16},
    {"U32", DTYPE_U32, 32},   {"U8", DTYPE_U8, 8},         {"BOOL", DTYPE_OTHER, 8},
    {"I8", DTYPE_OTHER, 8},   {"F8_E5M2", DTYPE_OTHER, 8}, {"F8_E4M3", DTYPE_OTHER, 8},
    {"I16", DTYPE_OTHER, 16}, {"F8_E8M0", DTYPE_OTHER, 8}, {"U16", DTYPE_OTHER, 16},
    {"I32", DTYPE_OTHER, 32}, {"F6_E2M3", DTYPE_OTHER, 6}, {"F64", DTYPE_OTHER, 64},
    {"I64", DTYPE_OTHER, 64}, {"F6_E3M2", DTYPE_OTHER, 6}, {"U64", DTYPE_OTHER, 64},
    {"C64", DTYPE_OTHER, 64}, {"F4", DTYPE_OTHER, 4},
};

const char *dtype_name(DType dtype)
{
    static const char *const names[] = {"F32", "F16", "BF16", "U32", "U8", "another dtype"};
    return (size_t)dtype < ARRAY_COUNT(names) ? names[dtype] : "?";
}

size_t dtype_size(DType dtype)
{
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_U32:
        return 4;
    case DTYPE_F16:
    case DTYPE_BF16:
        return 2;
    case DTYPE_U8:
        return 1;
    default:
        return 0;
    }
}

uint64_t safetensors_read_u64(const uint8_t *from)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | from[i];
    return value;
}

typedef struct HeaderParser {
    JsonReader reader;
    const char *path;
    uint32_t file;
    const uint8_t *data; /* first byte after the header */
    size_t data_size;
    Arena *arena;
    TensorList *list;
    Error *err;
} HeaderParser;

static bool fail_in_tensor(const HeaderParser *p, Slice name, const char *what)
{
    return error_set(p->err, ERROR_INVALID, "%s: tensor %.*s: %s", p->path, SLICE_ARG(name), what);
}

/* A token that has no place here: the reader's own error, or a complaint about structure. */
static bool fail_structure(HeaderParser *p, JsonToken token, const char *expected)
{
    if (token == JSON_TOKEN_ERROR)
        return error_prefix(p->err, "%s: safetensors header", p->path);
    return error_set(p->err, ERROR_INVALID, "%s: safetensors header: byte %zu: expected %s",
                     p->path, json_reader_offset(&p->reader), expected);
}

static bool read_metadata(HeaderParser *p)
{
    JsonToken token = json_reader_next(&p->reader);
    if (token == JSON_TOKEN_NULL) /* mlx.core.save_safetensors writes that when it is given none */
        return true;
    if (token != JSON_TOKEN_OBJECT_BEGIN)
        return fail_structure(p, token, "__metadata__ to be an object");
    while ((token = json_reader_next(&p->reader)) == JSON_TOKEN_KEY) {
        token = json_reader_next(&p->reader);
        if (token != JSON_TOKEN_STRING)
            return fail_structure(p, token, "a string in __metadata__");
    }
    return token == JSON_TOKEN_OBJECT_END || fail_structure(p, token, "a key");
}

/* A number token as a non-negative integer that fits int64 and size_t. */
static bool read_count(HeaderParser *p, JsonToken token, int64_t *out)
{
    if (token != JSON_TOKEN_NUMBER)
        return fail_structure(p, token, "a number");
    JsonValue value = json_reader_number(&p->reader);
    if (value.kind != JSON_INT || value.as.integer < 0 || (uint64_t)value.as.integer > SIZE_MAX)
        return fail_structure(p, token, "a size that fits 64 bits");
    *out = value.as.integer;
    return true;
}

static bool read_shape(HeaderParser *p, Slice name, TensorView *tensor)
{
    JsonToken token = json_reader_next(&p->reader);
    if (token != JSON_TOKEN_ARRAY_BEGIN)
        return fail_structure(p, token, "an array for shape");
    tensor->n_dims = 0;
    while ((token = json_reader_next(&p->reader)) != JSON_TOKEN_ARRAY_END) {
        int64_t dim = 0;
        if (!read_count(p, token, &dim))
            return false;
        if (tensor->n_dims == WEIGHTS_DIMS_MAX)
            return error_set(p->err, ERROR_LIMIT, "%s: tensor %.*s: more than %d dimensions",
                             p->path, SLICE_ARG(name), WEIGHTS_DIMS_MAX);
        tensor->shape[tensor->n_dims++] = dim;
    }
    return true;
}

static bool read_offsets(HeaderParser *p, Slice name, TensorView *tensor)
{
    JsonToken token = json_reader_next(&p->reader);
    if (token != JSON_TOKEN_ARRAY_BEGIN)
        return fail_structure(p, token, "an array for data_offsets");
    int64_t begin = 0, end = 0;
    if (!read_count(p, json_reader_next(&p->reader), &begin) ||
        !read_count(p, json_reader_next(&p->reader), &end))
        return false;
    token = json_reader_next(&p->reader);
    if (token != JSON_TOKEN_ARRAY_END)
        return fail_structure(p, token, "two data_offsets");
    if (begin > end || (uint64_t)end > p->data_size)
        return error_set(p->err, ERROR_INVALID,
                         "%s: tensor %.*s: data_offsets [%lld, %lld], but the file holds %zu bytes "
                         "of data",
                         p->path, SLICE_ARG(name), (long long)begin, (long long)end, p->data_size);
    tensor->data = p->data + begin;
    tensor->n_bytes = (size_t)(end - begin);
    return true;
}

static bool read_dtype(HeaderParser *p, Slice name, TensorView *tensor, uint32_t *bits)
{
    JsonToken token = json_reader_next(&p->reader);
    if (token != JSON_TOKEN_STRING)
        return fail_structure(p, token, "a string for dtype");
    for (size_t i = 0; i < ARRAY_COUNT(dtype_infos); i++) {
        if (slice_equal(p->reader.raw, slice_of(dtype_infos[i].name))) {
            tensor->dtype = dtype_infos[i].dtype;
            *bits = dtype_infos[i].bits;
            return true;
        }
    }
    return error_set(p->err, ERROR_INVALID, "%s: tensor %.*s: unknown dtype %.*s", p->path,
                     SLICE_ARG(name), SLICE_ARG(p->reader.raw));
}

/* The last STRING or KEY, decoded, in the arena. */
static bool copy_name(HeaderParser *p, Slice *out)
{
    size_t room = p->reader.raw.len;
    char *copy = arena_allocate(p->arena, room + 1);
    if (!copy)
        return error_no_memory(p->err, "tensor names");
    size_t len = json_reader_copy_string(&p->reader, copy);
    copy[len] = '\0';
    *out = (Slice){copy, len};
    return true;
}

/* A tensor's description, after its KEY: fills everything but the name. */
static bool read_fields(HeaderParser *p, Slice name, TensorView *tensor, uint32_t *bits)
{
    enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4, HAS_ALL = 7 };
    unsigned seen = 0, field = 0;
    JsonToken token = json_reader_next(&p->reader);
    if (token != JSON_TOKEN_OBJECT_BEGIN)
        return fail_structure(p, token, "an object for each tensor");
    while ((token = json_reader_next(&p->reader)) == JSON_TOKEN_KEY) {
        bool ok;
        Slice key = p->reader.raw;
        if (slice_equal(key, SLICE("dtype"))) {
            field = HAS_DTYPE;
            ok = read_dtype(p, name, tensor, bits);
        } else if (slice_equal(key, SLICE("shape"))) {
            field = HAS_SHAPE;
            ok = read_shape(p, name, tensor);
        } else if (slice_equal(key, SLICE("data_offsets"))) {
            field = HAS_OFFSETS;
            ok = read_offsets(p, name, tensor);
        } else {
            field = 0;
            ok = json_reader_skip_value(&p->reader) ||
                 fail_structure(p, JSON_TOKEN_ERROR, "a value");
        }
        if (!ok)
            return false;
        if (seen & field)
            return fail_in_tensor(p, name, "a field occurs twice");
        seen |= field;
    }
    if (token != JSON_TOKEN_OBJECT_END)
        return fail_structure(p, token, "a key");
    if (seen != HAS_ALL)
        return fail_in_tensor(p, name, "dtype, shape or data_offsets is missing");
    return true;
}

static bool check_size(const HeaderParser *p, const TensorView *tensor, uint32_t bits)
{
    size_t elements, total_bits;
    if (!size_product(tensor->shape, tensor->n_dims, &elements) ||
        !size_multiply(elements, bits, &total_bits))
        return fail_in_tensor(p, tensor->name, "the product of its shape does not fit 64 bits");
    if (total_bits % 8 != 0 || total_bits / 8 != tensor->n_bytes) {
        char shape[SHAPE_TEXT_MAX];
        return error_set(p->err, ERROR_INVALID,
                         "%s: tensor %.*s: %zu bytes, expected %zu (shape %s, %u bits each)",
                         p->path, SLICE_ARG(tensor->name), tensor->n_bytes, total_bits / 8,
                         tensor_shape_text(tensor, shape), bits);
    }
    return true;
}

static bool read_tensor(HeaderParser *p)
{
    TensorView tensor = {.file = p->file};
    uint32_t bits = 0;
    if (!copy_name(p, &tensor.name) || !read_fields(p, tensor.name, &tensor, &bits) ||
        !check_size(p, &tensor, bits))
        return false;
    TensorList *list = p->list;
    if (list->count == WEIGHTS_TENSORS_MAX)
        return error_set(p->err, ERROR_LIMIT, "%s: more than %d tensors", p->path,
                         WEIGHTS_TENSORS_MAX);
    if (!memory_grow_array((void **)&list->items, list->count, &list->capacity, sizeof(tensor)))
        return error_no_memory(p->err, "the tensor table");
    list->items[list->count++] = tensor;
    return true;
}

static int compare_ranges(const void *a, const void *b)
{
    const TensorView *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    if (x->n_bytes != y->n_bytes)
        return x->n_bytes < y->n_bytes ? -1 : 1;
    return 0;
}

/* The tensors of this file, sorted in place by offset, must tile its data. */
static bool check_tiling(const HeaderParser *p, TensorView *tensors, size_t count)
{
    if (count > 1)
        qsort(tensors, count, sizeof(*tensors), compare_ranges);
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t begin = (size_t)(tensors[i].data - p->data);
        if (begin != at)
            return error_set(p->err, ERROR_INVALID, "%s: tensor %.*s: starts at byte %zu, %s %zu",
                             p->path, SLICE_ARG(tensors[i].name), begin,
                             begin < at ? "overlapping the previous one, which ends at"
                                        : "leaving a hole after",
                             at);
        at += tensors[i].n_bytes;
    }
    if (at != p->data_size)
        return error_set(p->err, ERROR_INVALID,
                         "%s: the tensors end at byte %zu of the data, the file has %zu", p->path,
                         at, p->data_size);
    return true;
}

/* The JSON's length, checked against what is there. */
static bool read_header_size(Slice image, const char *path, size_t *out, Error *err)
{
    const uint8_t *bytes = (const uint8_t *)image.ptr;
    if (image.len < 8)
        return error_set(err, ERROR_INVALID, "%s: %zu bytes, too short for safetensors", path,
                         image.len);
    uint64_t size = safetensors_read_u64(bytes);
    if (size > WEIGHTS_HEADER_BYTES_MAX)
        return error_set(err, ERROR_LIMIT,
                         "%s: safetensors header of %llu bytes, at most %d are read", path,
                         (unsigned long long)size, WEIGHTS_HEADER_BYTES_MAX);
    if (size > image.len - 8)
        return error_set(err, ERROR_INVALID,
                         "%s: safetensors header of %llu bytes, but only %zu follow", path,
                         (unsigned long long)size, image.len - 8);
    if (size == 0 || bytes[8] != '{')
        return error_set(err, ERROR_INVALID, "%s: the safetensors header does not begin with {",
                         path);
    *out = (size_t)size;
    return true;
}

bool safetensors_parse(Slice image, const char *path, uint32_t file, Arena *arena, TensorList *list,
                       Error *err)
{
    size_t header_len = 0;
    if (!read_header_size(image, path, &header_len, err))
        return false;
    Error inner = {0};
    HeaderParser p = {.path = path,
                      .file = file,
                      .data = (const uint8_t *)image.ptr + 8 + header_len,
                      .data_size = image.len - 8 - header_len,
                      .arena = arena,
                      .list = list,
                      .err = err ? err : &inner};
    size_t first = list->count;
    json_reader_init(&p.reader, (Slice){image.ptr + 8, header_len}, p.err);
    JsonToken token = json_reader_next(&p.reader);
    if (token != JSON_TOKEN_OBJECT_BEGIN)
        return fail_structure(&p, token, "an object");
    while ((token = json_reader_next(&p.reader)) == JSON_TOKEN_KEY) {
        bool is_metadata = slice_equal(p.reader.raw, SLICE("__metadata__"));
        if (!(is_metadata ? read_metadata(&p) : read_tensor(&p)))
            return false;
    }
    if (token != JSON_TOKEN_OBJECT_END)
        return fail_structure(&p, token, "a tensor's name");
    token = json_reader_next(&p.reader);
    if (token != JSON_TOKEN_END)
        return fail_structure(&p, token, "the end of the header");
    if (list->count == first)
        return p.data_size == 0 ||
               error_set(err, ERROR_INVALID, "%s: %zu bytes of data, no tensors", path,
                         p.data_size);
    return check_tiling(&p, list->items + first, list->count - first);
}
