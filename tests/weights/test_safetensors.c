/* What a safetensors file may and may not be, directories of them, and every allocation failing
 * once. */
#include "weights_builder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* cmocka needs what is above */
#include <cmocka.h>

static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"mlx\"},"
    "\"b.weight\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[5,11]},"
    "\"a\\u002eweight\":{\"shape\":[5],\"extra\":[{}],\"data_offsets\":[0,5],\"dtype\":\"U8\"},"
    "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[11,15]},"
    "\"empty\":{\"dtype\":\"I64\",\"shape\":[4,0],\"data_offsets\":[11,11]},"
    "\"half\":{\"dtype\":\"F4\",\"shape\":[2,1],\"data_offsets\":[15,16]}}  \n";
static const uint8_t good_data[16] = {1,    2, 3,    4, 5, 0x80, 0x3f, 0,
                                      0x40, 0, 0xc0, 0, 0, 0x20, 0x41, 9};

static void test_accepts(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 16);
    safetensors_image(&image, good_header, good_data, sizeof(good_data));
    Error err = {0};
    TensorSet *set;
    if (!tensor_set_create(buffer_view(&image), "good", &set, &err))
        fail_msg("%s", err.message);
    assert_int_equal(tensor_set_count(set), 5);
    assert_int_equal(tensor_set_bytes(set), sizeof(good_data));
    const TensorView *a = tensor_set_at(set, 0);
    assert_true(slice_equal(a->name, SLICE("a.weight")));
    assert_ptr_equal(tensor_set_find(set, SLICE("a.weight")), a);
    assert_null(tensor_set_find(set, SLICE("a.weigh")));
    assert_null(tensor_set_at(set, 5));
    assert_int_equal(a->dtype, DTYPE_U8);
    assert_memory_equal(a->data, good_data, 5);
    float values[3];
    tensor_read_floats(tensor_set_find(set, SLICE("b.weight")), 0, 3, values);
    assert_true(values[0] == 1.0f && values[1] == 2.0f && values[2] == -2.0f);
    tensor_read_floats(tensor_set_find(set, SLICE("scalar")), 0, 1, values);
    assert_true(values[0] == 10.0f);
    char shape[SHAPE_TEXT_MAX];
    assert_string_equal(tensor_shape_text(tensor_set_find(set, SLICE("empty")), shape), "[4, 0]");
    assert_string_equal(tensor_shape_text(tensor_set_find(set, SLICE("scalar")), shape), "[]");
    assert_int_equal(tensor_set_find(set, SLICE("half"))->dtype, DTYPE_OTHER);
    tensor_set_release(set, a); /* not mapped: nothing happens */
    tensor_set_close(set);
    buffer_reset(&image);
}

/* A copy of bytes that ends at an unreadable page. */
typedef struct Fence {
    uint8_t *pages;
    size_t size;
} Fence;

static Slice fence_copy(Fence *fence, const void *bytes, size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fence->size = (len / page + 2) * page;
    fence->pages =
        mmap(NULL, fence->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(fence->pages != MAP_FAILED);
    uint8_t *end = fence->pages + fence->size - page;
    assert_int_equal(mprotect(end, page, PROT_NONE), 0);
    if (len > 0)
        memcpy(end - len, bytes, len);
    return (Slice){(const char *)end - len, len};
}

static void fence_free(Fence *fence)
{
    munmap(fence->pages, fence->size);
}

static void test_truncated(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 16);
    safetensors_image(&image, good_header, good_data, sizeof(good_data));
    for (size_t len = 0; len < image.len; len++) {
        Fence fence;
        Slice cut = fence_copy(&fence, image.ptr, len);
        Error err = {0};
        TensorSet *set;
        assert_false(tensor_set_create(cut, "cut", &set, &err));
        assert_null(set);
        assert_int_equal(err.code, ERROR_INVALID);
        assert_true(strncmp(err.message, "cut: ", 5) == 0);
        fence_free(&fence);
    }
    /* A byte too many is no tensor's. */
    buffer_append_byte(&image, 0);
    Error err = {0};
    TensorSet *set;
    assert_false(tensor_set_create(buffer_view(&image), "long", &set, &err));
    assert_non_null(strstr(err.message, "the tensors end at byte 16"));
    buffer_reset(&image);
}

typedef struct Refusal {
    const char *header;
    size_t data;
    ErrorCode code;
    const char *message;
} Refusal;

static const Refusal refusals[] = {
    {"{", 0, ERROR_INVALID, "safetensors header"},
    {" {}", 0, ERROR_INVALID, "does not begin with {"},
    {"[]", 0, ERROR_INVALID, "does not begin with {"},
    {"{}x", 0, ERROR_INVALID, "safetensors header"},
    {"{}", 1, ERROR_INVALID, "no tensors"},
    {"{\"t\":1}", 0, ERROR_INVALID, "expected an object"},
    {"{\"t\":{}}", 0, ERROR_INVALID, "tensor t: dtype, shape or data_offsets is missing"},
    {"{\"__metadata__\":{\"a\":1}}", 0, ERROR_INVALID, "a string in __metadata__"},
    {"{\"__metadata__\":[]}", 0, ERROR_INVALID, "__metadata__ to be an object"},
    {"{\"t\":{\"dtype\":\"F17\",\"shape\":[],\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "tensor t: unknown dtype F17"},
    {"{\"t\":{\"dtype\":16,\"shape\":[],\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "a string for dtype"},
    {"{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
     ERROR_INVALID, "a field occurs twice"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "fits 64 bits"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "fits 64 bits"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,2]}}", 2,
     ERROR_INVALID, "fits 64 bits"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     ERROR_INVALID, "product of its shape"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
     ERROR_INVALID, "product of its shape"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
     ERROR_LIMIT, "more than 8 dimensions"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "an array for shape"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", 2, ERROR_INVALID,
     "expected a number"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,3]}}", 2, ERROR_INVALID,
     "two data_offsets"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}", 2, ERROR_INVALID,
     "data_offsets [2, 0]"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 2, ERROR_INVALID,
     "holds 2 bytes"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, ERROR_INVALID,
     "2 bytes, expected 3"},
    {"{\"t\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, ERROR_INVALID,
     "1 bytes, expected 2"},
    {"{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, ERROR_INVALID,
     "4 bits each"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, ERROR_INVALID,
     "leaving a hole"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 2, ERROR_INVALID,
     "end at byte 1 of the data, the file has 2"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"u\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, ERROR_INVALID, "overlapping"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"u\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     2, ERROR_INVALID, "overlapping"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"\\u0074\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, ERROR_INVALID, "tensor t: occurs twice"},
};

static void test_refusals(void **state)
{
    (void)state;
    static const uint8_t zeros[8];
    for (size_t i = 0; i < ARRAY_COUNT(refusals); i++) {
        Buffer image;
        buffer_init(&image, 1 << 16);
        safetensors_image(&image, refusals[i].header, zeros, refusals[i].data);
        Error err = {0};
        TensorSet *set;
        bool ok = tensor_set_create(buffer_view(&image), "bad", &set, &err);
        if (ok || set || err.code != refusals[i].code || !strstr(err.message, refusals[i].message))
            fail_msg("%s: %d %s", refusals[i].header, (int)err.code, err.message);
        buffer_reset(&image);
    }
}

static void test_header_size(void **state)
{
    (void)state;
    static const struct {
        uint64_t size;
        ErrorCode code;
    } cases[] = {{UINT64_MAX, ERROR_LIMIT},
                 {UINT64_MAX - 7, ERROR_LIMIT},
                 {WEIGHTS_HEADER_BYTES_MAX + 1, ERROR_LIMIT},
                 {WEIGHTS_HEADER_BYTES_MAX, ERROR_INVALID}, /* at the limit, but not there */
                 {3, ERROR_INVALID},
                 {0, ERROR_INVALID}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Buffer image;
        buffer_init(&image, 64);
        put_u64(&image, cases[i].size);
        buffer_append_text(&image, "{}");
        Error err = {0};
        TensorSet *set;
        assert_false(tensor_set_create(buffer_view(&image), "size", &set, &err));
        assert_int_equal(err.code, cases[i].code);
        buffer_reset(&image);
    }
}

/* ---- Directories ----------------------------------------------------------------------------- */

typedef struct Directory {
    char path[64];
} Directory;

static void directory_make(Directory *directory)
{
    snprintf(directory->path, sizeof(directory->path), "/tmp/mlx-serve-test-XXXXXX");
    assert_non_null(mkdtemp(directory->path));
}

static void directory_remove(const Directory *directory, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", directory->path, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(directory->path), 0);
}

static void put_file(const Directory *directory, const char *name, Slice content)
{
    char path[256];
    Error err = {0};
    snprintf(path, sizeof(path), "%s/%s", directory->path, name);
    if (!file_write(path, content, &err))
        fail_msg("%s", err.message);
}

/* A file with one tensor of two bytes. */
static void put_shard(const Directory *directory, const char *name, const char *tensor)
{
    char header[256];
    snprintf(header, sizeof(header),
             "{\"%s\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]}}", tensor);
    Buffer image;
    buffer_init(&image, 1 << 16);
    safetensors_image(&image, header, "\0\x3c", 2);
    put_file(directory, name, buffer_view(&image));
    buffer_reset(&image);
}

static const char *const shard_names[] = {"model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors",
                                          "adapters.safetensors", "model.safetensors.index.json"};

static void test_shards(void **state)
{
    (void)state;
    Directory directory;
    directory_make(&directory);
    Error err = {0};
    TensorSet *set;
    assert_false(tensor_set_open(directory.path, &set, &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    assert_non_null(strstr(err.message, "config.json"));
    put_shard(&directory, shard_names[0], "z");
    put_shard(&directory, shard_names[1], "a");
    put_shard(&directory, shard_names[2], "ignored");
    err = (Error){0};
    if (!tensor_set_open(directory.path, &set, &err))
        fail_msg("%s", err.message);
    assert_int_equal(tensor_set_count(set), 2);
    assert_int_equal(tensor_set_bytes(set), 4);
    const TensorView *a = tensor_set_at(set, 0), *z = tensor_set_at(set, 1);
    assert_true(slice_equal(a->name, SLICE("a")) && a->file == 1 && z->file == 0);
    tensor_set_release(set, a);
    float value;
    tensor_read_floats(a, 0, 1, &value); /* released pages come back */
    assert_true(value == 1.0f);
    tensor_set_close(set);
    put_shard(&directory, shard_names[1], "z");
    assert_false(tensor_set_open(directory.path, &set, &err));
    assert_non_null(strstr(err.message, "tensor z: occurs twice"));
    assert_non_null(strstr(err.message, shard_names[0]));
    directory_remove(&directory, shard_names, ARRAY_COUNT(shard_names));
    assert_false(tensor_set_open(directory.path, &set, &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
}

static const struct {
    const char *index;
    ErrorCode code;
    const char *message;
} index_cases[] = {
    {"{\"metadata\":{\"total_size\":2},\"weight_map\":{\"t\":\"model.safetensors\"}}", ERROR_NONE,
     ""},
    {"{}", ERROR_NONE, ""},
    {"{\"weight_map\":{\"t\":\"model-2.safetensors\"}}", ERROR_NOT_FOUND,
     "names file model-2.safetensors"},
    {"{\"weight_map\":{\"t\":\"../model.safetensors\"}}", ERROR_NOT_FOUND, "names file ../model"},
    {"{\"weight_map\":{\"t\":\"/etc/passwd\"}}", ERROR_NOT_FOUND, "names file /etc/passwd"},
    {"{\"weight_map\":{\"u\":\"model.safetensors\"}}", ERROR_NOT_FOUND, "names tensor u"},
    {"{\"weight_map\":{\"t\":3}}", ERROR_INVALID, "not a string"},
    {"{\"weight_map\":[]}", ERROR_INVALID, "weight_map is not an object"},
    {"[]", ERROR_INVALID, "not an object"},
    {"{\"weight_map\":{\"t\":\"model.safetensors\"}", ERROR_INVALID, "index.json"},
    {"{\"weight_map\":{}} x", ERROR_INVALID, "index.json"},
    {"{\"weight_map\":{},}", ERROR_INVALID, "index.json"},
};

static void test_index(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    Directory directory;
    directory_make(&directory);
    put_shard(&directory, names[0], "t");
    for (size_t i = 0; i < ARRAY_COUNT(index_cases); i++) {
        put_file(&directory, names[1], slice_of(index_cases[i].index));
        Error err = {0};
        TensorSet *set;
        bool ok = tensor_set_open(directory.path, &set, &err);
        if (ok != (index_cases[i].code == ERROR_NONE) || ok != (set != NULL) ||
            err.code != index_cases[i].code || !strstr(err.message, index_cases[i].message))
            fail_msg("%s: %d %s", index_cases[i].index, (int)err.code, err.message);
        tensor_set_close(set);
    }
    directory_remove(&directory, names, ARRAY_COUNT(names));
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static void test_failing_allocations(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 16);
    safetensors_image(&image, good_header, good_data, sizeof(good_data));
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    Directory directory;
    directory_make(&directory);
    put_file(&directory, names[0], buffer_view(&image));
    put_file(&directory, names[1], SLICE("{\"weight_map\":{\"b.weight\":\"model.safetensors\"}}"));
    for (int is_directory = 0; is_directory < 2; is_directory++) {
        bool ok = false;
        for (uint64_t nth = 1; !ok; nth++) {
            Error err = {0};
            TensorSet *set;
            fault_fail_allocation(nth);
            ok = is_directory ? tensor_set_open(directory.path, &set, &err)
                              : tensor_set_create(buffer_view(&image), "good", &set, &err);
            bool was_reached = fault_allocation_count() >= nth;
            fault_fail_allocation(0);
            assert_int_equal(ok, !was_reached);
            assert_int_equal(err.code, ok ? ERROR_NONE : ERROR_MEMORY);
            assert_int_equal(ok, set != NULL);
            tensor_set_close(set);
        }
    }
    directory_remove(&directory, names, ARRAY_COUNT(names));
    buffer_reset(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_header_size),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
