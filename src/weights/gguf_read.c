/* GGUF, versions 2 and 3, little-endian:
 *
 *     "GGUF" u32 version  u64 n_tensors  u64 n_pairs
 *     n_pairs   x  string key, u32 type, value         string: u64 length, bytes
 *     n_tensors x  string name, u32 n_dims, u64 dims[], u32 block type, u64 offset
 *     padding to `general.alignment` (32), then the data that offsets count from
 *
 * A cursor walks the image; every length is compared with what is left before it is used, counts
 * never size an allocation by themselves (arrays of our own grow as items are found). Arrays of
 * arrays exist in the format but in no model; they are refused. Values stay encoded and are decoded
 * when asked for. */
#include "gguf.h"
#include "safetensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION_MIN = 2, VERSION_MAX = 3, NAME_BYTES_MAX = 256, KEY_BYTES_MAX = 65535 };

typedef struct Cursor {
    const uint8_t *start, *at, *end;
    const char *name;
    Error *err;
} Cursor;

static size_t left(const Cursor *c)
{
    return (size_t)(c->end - c->at);
}

static bool fail_short(const Cursor *c, const char *what)
{
    return error_set(c->err, ERROR_INVALID, "%s: byte %zu: the file ends inside %s", c->name,
                     (size_t)(c->at - c->start), what);
}

static uint32_t decode_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static bool take_u32(Cursor *c, const char *what, uint32_t *out)
{
    if (left(c) < 4)
        return fail_short(c, what);
    *out = decode_u32(c->at);
    c->at += 4;
    return true;
}

static bool take_u64(Cursor *c, const char *what, uint64_t *out)
{
    if (left(c) < 8)
        return fail_short(c, what);
    *out = safetensors_read_u64(c->at);
    c->at += 8;
    return true;
}

static bool take_string(Cursor *c, const char *what, Slice *out)
{
    uint64_t len = 0;
    if (!take_u64(c, what, &len))
        return false;
    if (len > left(c))
        return fail_short(c, what);
    *out = (Slice){(const char *)c->at, (size_t)len};
    c->at += len;
    return true;
}

/* Bytes of a scalar; 0 for strings, arrays and unknown types. */
static size_t scalar_size(uint32_t type)
{
    switch (type) {
    case GGUF_U8:
    case GGUF_I8:
    case GGUF_BOOL:
        return 1;
    case GGUF_U16:
    case GGUF_I16:
        return 2;
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_F32:
        return 4;
    case GGUF_U64:
    case GGUF_I64:
    case GGUF_F64:
        return 8;
    default:
        return 0;
    }
}

static bool fail_type(const Cursor *c, Slice key, uint32_t type)
{
    return error_set(c->err, ERROR_INVALID, "%s: key %.*s: value type %u is not known", c->name,
                     SLICE_ARG(key), type);
}

/* Steps over count items of one type. */
static bool take_items(Cursor *c, Slice key, uint32_t type, uint64_t count)
{
    size_t size = scalar_size(type);
    if (size != 0) {
        if (count > left(c) / size)
            return fail_short(c, "an array");
        c->at += (size_t)count * size;
        return true;
    }
    if (type != GGUF_STRING)
        return fail_type(c, key, type);
    Slice item;
    for (uint64_t i = 0; i < count; i++) {
        if (!take_string(c, "an array of strings", &item))
            return false;
    }
    return true;
}

static bool take_value(Cursor *c, Slice key, GgufValue *out)
{
    uint32_t type = 0;
    if (!take_u32(c, "a value's type", &type))
        return false;
    uint32_t item_type = type;
    uint64_t count = 1;
    if (type == GGUF_ARRAY) {
        if (!take_u32(c, "an array's type", &item_type) ||
            !take_u64(c, "an array's length", &count))
            return false;
        if (item_type == GGUF_ARRAY)
            return error_set(c->err, ERROR_UNSUPPORTED, "%s: key %.*s: an array of arrays", c->name,
                             SLICE_ARG(key));
    }
    const uint8_t *begin = c->at;
    if (!take_items(c, key, item_type, count))
        return false;
    *out = (GgufValue){.type = (GgufValueType)type,
                       .item_type = (GgufValueType)item_type,
                       .count = count,
                       .bytes = {(const char *)begin, (size_t)(c->at - begin)}};
    return true;
}

static int compare_pairs(const void *a, const void *b)
{
    return slice_compare(((const GgufPair *)a)->key, ((const GgufPair *)b)->key);
}

static bool read_pairs(Cursor *c, uint64_t count, GgufFile *file)
{
    if (count > GGUF_PAIRS_MAX)
        return error_set(c->err, ERROR_LIMIT, "%s: %llu metadata keys, at most %d are read",
                         c->name, (unsigned long long)count, GGUF_PAIRS_MAX);
    for (uint64_t i = 0; i < count; i++) {
        GgufPair pair;
        if (!take_string(c, "a key", &pair.key))
            return false;
        if (pair.key.len == 0 || pair.key.len > KEY_BYTES_MAX)
            return error_set(c->err, ERROR_INVALID, "%s: a key of %zu bytes", c->name,
                             pair.key.len);
        if (!take_value(c, pair.key, &pair.value))
            return false;
        if (!memory_grow_array((void **)&file->pairs, file->n_pairs, &file->pairs_capacity,
                               sizeof(pair)))
            return error_no_memory(c->err, "GGUF metadata");
        file->pairs[file->n_pairs++] = pair;
    }
    if (file->n_pairs > 1)
        qsort(file->pairs, file->n_pairs, sizeof(*file->pairs), compare_pairs);
    for (size_t i = 1; i < file->n_pairs; i++) {
        if (slice_equal(file->pairs[i].key, file->pairs[i - 1].key))
            return error_set(c->err, ERROR_INVALID, "%s: key %.*s occurs twice", c->name,
                             SLICE_ARG(file->pairs[i].key));
    }
    return true;
}

/* ---- Tensor table ---------------------------------------------------------------------------- */

static bool fail_tensor(const Cursor *c, Slice name, const char *what)
{
    return error_set(c->err, ERROR_INVALID, "%s: tensor %.*s: %s", c->name, SLICE_ARG(name), what);
}

/* Dimensions, and from them rows and bytes. */
static bool read_dims(Cursor *c, GgufTensor *tensor)
{
    if (!take_u32(c, "a tensor's rank", &tensor->n_dims))
        return false;
    if (tensor->n_dims == 0 || tensor->n_dims > GGUF_DIMS_MAX)
        return fail_tensor(c, tensor->name, "not 1 to 4 dimensions");
    size_t rows = 1;
    for (uint32_t i = 0; i < tensor->n_dims; i++) {
        if (!take_u64(c, "a tensor's dimensions", &tensor->dims[i]))
            return false;
        if (tensor->dims[i] == 0 || tensor->dims[i] > INT64_MAX)
            return fail_tensor(c, tensor->name, "an empty or oversized dimension");
        if (i > 0 && !size_multiply(rows, (size_t)tensor->dims[i], &rows))
            return fail_tensor(c, tensor->name, "its size does not fit 64 bits");
    }
    tensor->rows = rows;
    return true;
}

static bool read_tensor(Cursor *c, GgufTensor *tensor)
{
    uint32_t type_id = 0;
    uint64_t offset = 0;
    if (!take_string(c, "a tensor's name", &tensor->name))
        return false;
    if (tensor->name.len == 0 || tensor->name.len > NAME_BYTES_MAX)
        return error_set(c->err, ERROR_INVALID, "%s: a tensor name of %zu bytes", c->name,
                         tensor->name.len);
    if (!read_dims(c, tensor) || !take_u32(c, "a tensor's type", &type_id) ||
        !take_u64(c, "a tensor's offset", &offset))
        return false;
    const GgufBlockType *type = gguf_block_type(type_id);
    if (!type)
        return error_set(c->err, ERROR_UNSUPPORTED, "%s: tensor %.*s: block type %u is not known",
                         c->name, SLICE_ARG(tensor->name), type_id);
    if (tensor->dims[0] % type->block_values != 0)
        return error_set(c->err, ERROR_INVALID,
                         "%s: tensor %.*s: rows of %llu values, but %s comes in blocks of %u",
                         c->name, SLICE_ARG(tensor->name), (unsigned long long)tensor->dims[0],
                         type->name, type->block_values);
    size_t blocks = (size_t)tensor->dims[0] / type->block_values;
    if (!size_multiply(blocks, type->block_bytes, &tensor->n_bytes) ||
        !size_multiply(tensor->n_bytes, (size_t)tensor->rows, &tensor->n_bytes))
        return fail_tensor(c, tensor->name, "its size does not fit 64 bits");
    if (offset > SIZE_MAX)
        return fail_tensor(c, tensor->name, "its offset does not fit");
    tensor->type = type;
    tensor->offset = (size_t)offset;
    return true;
}

static int compare_tensor_names(const void *a, const void *b)
{
    return slice_compare((*(const GgufTensor *const *)a)->name,
                         (*(const GgufTensor *const *)b)->name);
}

static int compare_tensor_offsets(const void *a, const void *b)
{
    const GgufTensor *x = *(const GgufTensor *const *)a, *y = *(const GgufTensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* No name twice, no byte in two tensors. */
static bool check_tensors(const Cursor *c, const GgufFile *file)
{
    size_t n = file->n_tensors;
    if (n < 2)
        return true;
    const GgufTensor **order = memory_allocate_array(n, sizeof(const GgufTensor *));
    if (!order)
        return error_no_memory(c->err, "the tensor table");
    for (size_t i = 0; i < n; i++)
        order[i] = &file->tensors[i];
    bool ok = true;
    qsort(order, n, sizeof(*order), compare_tensor_names);
    for (size_t i = 1; ok && i < n; i++) {
        if (slice_equal(order[i]->name, order[i - 1]->name))
            ok = fail_tensor(c, order[i]->name, "occurs twice");
    }
    qsort(order, n, sizeof(*order), compare_tensor_offsets);
    for (size_t i = 1; ok && i < n; i++) {
        if (order[i]->offset - order[i - 1]->offset < order[i - 1]->n_bytes)
            ok = fail_tensor(c, order[i]->name, "overlaps another tensor");
    }
    memory_free(order);
    return ok;
}

static bool read_tensors(Cursor *c, uint64_t count, GgufFile *file)
{
    if (count > WEIGHTS_TENSORS_MAX)
        return error_set(c->err, ERROR_LIMIT, "%s: %llu tensors, at most %d are read", c->name,
                         (unsigned long long)count, WEIGHTS_TENSORS_MAX);
    for (uint64_t i = 0; i < count; i++) {
        GgufTensor tensor = {.n_dims = 0};
        if (!read_tensor(c, &tensor))
            return false;
        if (!memory_grow_array((void **)&file->tensors, file->n_tensors, &file->tensors_capacity,
                               sizeof(tensor)))
            return error_no_memory(c->err, "the tensor table");
        file->tensors[file->n_tensors++] = tensor;
    }
    return true;
}

/* Turns offsets within the data into offsets within the image. */
static bool place_tensors(const Cursor *c, GgufFile *file)
{
    size_t header = (size_t)(c->at - c->start);
    size_t padding = (file->alignment - header % file->alignment) % file->alignment;
    /* A file without tensors may end without padding. */
    file->data_offset = padding > left(c) ? file->image.len : header + padding;
    size_t data_size = file->image.len - file->data_offset;
    for (size_t i = 0; i < file->n_tensors; i++) {
        GgufTensor *tensor = &file->tensors[i];
        if (tensor->offset % file->alignment != 0)
            return fail_tensor(c, tensor->name, "its offset is not aligned");
        if (tensor->offset > data_size || tensor->n_bytes > data_size - tensor->offset)
            return error_set(
                c->err, ERROR_INVALID,
                "%s: tensor %.*s: %zu bytes at %zu, but the file holds %zu bytes of data", c->name,
                SLICE_ARG(tensor->name), tensor->n_bytes, tensor->offset, data_size);
        tensor->offset += file->data_offset;
    }
    return true;
}

static bool parse_image(Cursor *c, GgufFile *file)
{
    uint32_t magic = 0, version = 0;
    uint64_t n_tensors = 0, n_pairs = 0;
    if (!take_u32(c, "the magic", &magic))
        return false;
    if (magic != 0x46554747)
        return error_set(c->err, ERROR_INVALID, "%s: not a GGUF file", c->name);
    if (!take_u32(c, "the version", &version))
        return false;
    if (version < VERSION_MIN || version > VERSION_MAX)
        return error_set(c->err, ERROR_UNSUPPORTED, "%s: GGUF version %u%s, expected %d or %d",
                         c->name, version,
                         version && version % 65536 == 0 ? " (a big-endian file)" : "", VERSION_MIN,
                         VERSION_MAX);
    if (!take_u64(c, "the number of tensors", &n_tensors) ||
        !take_u64(c, "the number of keys", &n_pairs) || !read_pairs(c, n_pairs, file))
        return false;
    uint64_t alignment = 32;
    if (!gguf_read_uint(file, "general.alignment", GGUF_OPTIONAL, GGUF_ALIGNMENT_MAX, &alignment,
                        c->err))
        return false;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        return error_set(c->err, ERROR_INVALID, "%s: general.alignment is not a power of two",
                         c->name);
    file->alignment = (size_t)alignment;
    return read_tensors(c, n_tensors, file) && place_tensors(c, file) && check_tensors(c, file);
}

bool gguf_parse(Slice image, const char *name, GgufFile *out, Error *err)
{
    *out = (GgufFile){.image = image, .name = name};
    const uint8_t *start = (const uint8_t *)image.ptr;
    Cursor c = {start, start, start ? start + image.len : start, name, err};
    if (parse_image(&c, out))
        return true;
    gguf_reset(out);
    return false;
}

void gguf_reset(GgufFile *file)
{
    memory_free(file->pairs);
    memory_free(file->tensors);
    *file = (GgufFile){.name = ""};
}

bool gguf_check(Slice image, const char *name, Error *err)
{
    GgufFile file;
    if (!gguf_parse(image, name, &file, err))
        return false;
    gguf_reset(&file);
    return true;
}

/* ---- Look-ups -------------------------------------------------------------------------------- */

const GgufValue *gguf_find(const GgufFile *file, Slice key)
{
    size_t low = 0, high = file->n_pairs;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = slice_compare(file->pairs[middle].key, key);
        if (order == 0)
            return &file->pairs[middle].value;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const GgufTensor *gguf_find_tensor(const GgufFile *file, Slice name)
{
    for (size_t i = 0; i < file->n_tensors; i++) {
        if (slice_equal(file->tensors[i].name, name))
            return &file->tensors[i];
    }
    return NULL;
}

/* Any scalar number as a double and, where it is an integer of at most 63 bits, exactly. */
static bool decode_scalar(GgufValueType type, const uint8_t *p, int64_t *integer, double *number)
{
    uint64_t raw = 0;
    size_t size = scalar_size(type);
    for (size_t i = size; i-- > 0;)
        raw = raw << 8 | p[i];
    if (type == GGUF_F32) {
        uint32_t bits = (uint32_t)raw;
        float value;
        memcpy(&value, &bits, sizeof(value));
        *number = (double)value;
        return false;
    }
    if (type == GGUF_F64) {
        memcpy(number, &raw, sizeof(*number));
        return false;
    }
    bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    if (is_signed && size < 8 && raw >> (8 * size - 1))
        raw |= UINT64_MAX << (8 * size);
    if (!is_signed && raw > INT64_MAX) {
        *number = (double)raw;
        return false;
    }
    *integer = (int64_t)raw;
    *number = (double)*integer;
    return true;
}

static bool fail_key(const GgufFile *file, const char *key, const char *expected, Error *err)
{
    return error_set(err, ERROR_INVALID, "%s: key %s: expected %s", file->name, key, expected);
}

static bool absent(const GgufFile *file, const char *key, GgufNeed need, Error *err)
{
    if (need == GGUF_OPTIONAL)
        return true;
    return error_set(err, ERROR_NOT_FOUND, "%s: key %s is missing", file->name, key);
}

bool gguf_read_uint(const GgufFile *file, const char *key, GgufNeed need, uint64_t max,
                    uint64_t *out, Error *err)
{
    const GgufValue *value = gguf_find(file, slice_of(key));
    if (!value)
        return absent(file, key, need, err);
    int64_t integer;
    double number;
    if (scalar_size(value->type) == 0 || value->type == GGUF_BOOL ||
        !decode_scalar(value->type, (const uint8_t *)value->bytes.ptr, &integer, &number) ||
        integer < 0 || (uint64_t)integer > max)
        return error_set(err, ERROR_INVALID, "%s: key %s: expected an integer from 0 to %llu",
                         file->name, key, (unsigned long long)max);
    *out = (uint64_t)integer;
    return true;
}

bool gguf_read_double(const GgufFile *file, const char *key, GgufNeed need, double *out, Error *err)
{
    const GgufValue *value = gguf_find(file, slice_of(key));
    if (!value)
        return absent(file, key, need, err);
    int64_t integer;
    double number = 0;
    if (scalar_size(value->type) != 0)
        (void)decode_scalar(value->type, (const uint8_t *)value->bytes.ptr, &integer, &number);
    if (scalar_size(value->type) == 0 || value->type == GGUF_BOOL || !isfinite(number))
        return fail_key(file, key, "a finite number", err);
    *out = number;
    return true;
}

bool gguf_read_bool(const GgufFile *file, const char *key, bool *out, Error *err)
{
    const GgufValue *value = gguf_find(file, slice_of(key));
    if (!value)
        return true;
    if (value->type != GGUF_BOOL)
        return fail_key(file, key, "a boolean", err);
    *out = value->bytes.ptr[0] != 0;
    return true;
}

static Slice decode_string(const uint8_t *p)
{
    return (Slice){(const char *)p + 8, (size_t)safetensors_read_u64(p)};
}

bool gguf_read_string(const GgufFile *file, const char *key, GgufNeed need, Slice *out, Error *err)
{
    const GgufValue *value = gguf_find(file, slice_of(key));
    if (!value)
        return absent(file, key, need, err);
    if (value->type != GGUF_STRING)
        return fail_key(file, key, "a string", err);
    *out = decode_string((const uint8_t *)value->bytes.ptr);
    if (!utf8_is_valid(*out))
        return fail_key(file, key, "valid UTF-8", err);
    return true;
}

bool gguf_read_strings(const GgufFile *file, const char *key, Arena *arena, const Slice **out,
                       size_t *count, Error *err)
{
    *out = NULL;
    *count = 0;
    const GgufValue *value = gguf_find(file, slice_of(key));
    if (!value)
        return true;
    if (value->type != GGUF_ARRAY || value->item_type != GGUF_STRING)
        return fail_key(file, key, "an array of strings", err);
    Slice *items = arena_allocate_array(arena, (size_t)value->count + 1, sizeof(*items));
    if (!items)
        return error_no_memory(err, key);
    const uint8_t *at = (const uint8_t *)value->bytes.ptr;
    for (uint64_t i = 0; i < value->count; i++) {
        items[i] = decode_string(at);
        at += 8 + items[i].len;
        if (!utf8_is_valid(items[i]))
            return fail_key(file, key, "valid UTF-8 in every item", err);
    }
    *out = items;
    *count = (size_t)value->count;
    return true;
}

/* A number array's value, or NULL with *ok telling whether absence or a wrong type is the reason.
 */
static const GgufValue *find_numbers(const GgufFile *file, const char *key, bool *ok, Error *err)
{
    const GgufValue *value = gguf_find(file, slice_of(key));
    *ok = true;
    if (value && (value->type != GGUF_ARRAY || scalar_size(value->item_type) == 0)) {
        *ok = fail_key(file, key, "an array of numbers", err);
        return NULL;
    }
    return value;
}

bool gguf_read_int_array(const GgufFile *file, const char *key, Arena *arena, const int64_t **out,
                         size_t *count, Error *err)
{
    *out = NULL;
    *count = 0;
    bool ok;
    const GgufValue *value = find_numbers(file, key, &ok, err);
    if (!value)
        return ok;
    int64_t *items = arena_allocate_array(arena, (size_t)value->count + 1, sizeof(*items));
    if (!items)
        return error_no_memory(err, key);
    size_t size = scalar_size(value->item_type);
    const uint8_t *at = (const uint8_t *)value->bytes.ptr;
    for (uint64_t i = 0; i < value->count; i++, at += size) {
        double number;
        if (!decode_scalar(value->item_type, at, &items[i], &number))
            return fail_key(file, key, "an array of integers", err);
    }
    *out = items;
    *count = (size_t)value->count;
    return true;
}

bool gguf_read_float_array(const GgufFile *file, const char *key, Arena *arena, const float **out,
                           size_t *count, Error *err)
{
    *out = NULL;
    *count = 0;
    bool ok;
    const GgufValue *value = find_numbers(file, key, &ok, err);
    if (!value)
        return ok;
    float *items = arena_allocate_array(arena, (size_t)value->count + 1, sizeof(*items));
    if (!items)
        return error_no_memory(err, key);
    size_t size = scalar_size(value->item_type);
    const uint8_t *at = (const uint8_t *)value->bytes.ptr;
    for (uint64_t i = 0; i < value->count; i++, at += size) {
        int64_t integer;
        double number = 0;
        (void)decode_scalar(value->item_type, at, &integer, &number);
        items[i] = (float)number;
    }
    *out = items;
    *count = (size_t)value->count;
    return true;
}
