/* The GGUF reader: truncation at every byte, counts and offsets that lie, every allocation failing.
 */
#include "weights_builder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* cmocka needs what is above */
#include <cmocka.h>

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q8_0 = 8 };

/* One of everything: each kind of value, a vector and a matrix. */
static void build_good(Buffer *image)
{
    static const char *const texts[] = {"", "two"};
    static const int32_t numbers[] = {-1, 2, 3};
    static const uint8_t zeros[128];
    GgufBuilder gguf;
    gguf_init(&gguf);
    gguf_put_text(&gguf, "general.architecture", "llama");
    gguf_put_u32(&gguf, "general.alignment", 32);
    gguf_put_f32(&gguf, "a.float", 1.5f);
    gguf_put_bool(&gguf, "a.bool", true);
    gguf_put_texts(&gguf, "a.texts", texts, 2);
    gguf_put_i32s(&gguf, "a.numbers", numbers, 3);
    gguf_put_key(&gguf, "a.u64", 10);
    put_u64(&gguf.pairs, 7);
    gguf_put_key(&gguf, "a.u16", 2);
    put_u16(&gguf.pairs, 7);
    gguf_put_tensor(&gguf, "vector", F32, 8, 0, zeros, 32);
    gguf_put_tensor(&gguf, "matrix", Q8_0, 32, 2, zeros, 68);
    gguf_put_tensor(&gguf, "last", F16, 16, 1, zeros, 32); /* ends where the file does */
    gguf_finish(&gguf, image);
    gguf_free(&gguf);
}

static void test_good(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 20);
    build_good(&image);
    Error err = {0};
    if (!gguf_check(buffer_view(&image), "good", &err))
        fail_msg("%s", err.message);
    image.ptr[4] = 2; /* version 2 has the same layout */
    assert_true(gguf_check(buffer_view(&image), "good", &err));
    buffer_reset(&image);
}

static void test_truncated(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 20);
    build_good(&image);
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (image.len / page + 2) * page;
    uint8_t *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pages != MAP_FAILED);
    uint8_t *end = pages + size - page;
    assert_int_equal(mprotect(end, page, PROT_NONE), 0);
    for (size_t len = 0; len < image.len; len++) {
        memcpy(end - len, image.ptr, len);
        Error err = {0};
        bool ok = gguf_check((Slice){(const char *)end - len, len}, "cut", &err);
        if (ok || err.code != ERROR_INVALID || strncmp(err.message, "cut: ", 5) != 0)
            fail_msg("%zu of %zu bytes: %d %s", len, image.len, (int)err.code, err.message);
    }
    munmap(pages, size);
    buffer_reset(&image);
}

static void expect_refusal(const GgufBuilder *gguf, ErrorCode code, const char *message)
{
    Buffer image;
    buffer_init(&image, 1 << 20);
    gguf_finish(gguf, &image);
    Error err = {0};
    bool ok = gguf_check(buffer_view(&image), "bad", &err);
    if (ok || err.code != code || !strstr(err.message, message))
        fail_msg("expected %d %s, found %d %s", (int)code, message, (int)err.code, err.message);
    buffer_reset(&image);
}

static void test_hostile_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 63, (uint64_t)1 << 40, 3};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        GgufBuilder gguf;
        ErrorCode large = i < 3 ? ERROR_LIMIT : ERROR_INVALID;
        gguf_init(&gguf);
        gguf.n_pairs = counts[i];
        expect_refusal(&gguf, large, "");
        gguf.n_pairs = 0;
        gguf.n_tensors = counts[i];
        expect_refusal(&gguf, large, "");
        gguf.n_tensors = 0;
        static const uint32_t item_types[] = {0, 4, 8, 10};
        for (size_t t = 0; t < ARRAY_COUNT(item_types); t++) {
            gguf.n_pairs = 0;
            buffer_clear(&gguf.pairs);
            gguf_put_key(&gguf, "k", 9);
            put_u32(&gguf.pairs, item_types[t]);
            put_u64(&gguf.pairs, i == 3 ? 1000 : counts[i]);
            expect_refusal(&gguf, ERROR_INVALID, "the file ends inside an array");
        }
        gguf_free(&gguf);
        gguf_init(&gguf);
        gguf.n_pairs = 1;
        put_u64(&gguf.pairs, i == 3 ? 1000 : counts[i]); /* a key's length */
        expect_refusal(&gguf, ERROR_INVALID, "the file ends inside a key");
        gguf_free(&gguf);
    }
}

static void test_pairs_limit(void **state)
{
    (void)state;
    GgufBuilder gguf;
    gguf_init(&gguf);
    for (uint32_t i = 0; i < 65536; i++) {
        char key[16] = {'k'};
        for (int digit = 0; digit < 8; digit++)
            key[1 + digit] = (char)('a' + (i >> (4 * digit) & 15));
        gguf_put_u32(&gguf, key, i);
    }
    Buffer image;
    buffer_init(&image, 1 << 24);
    gguf_finish(&gguf, &image);
    Error err = {0};
    assert_true(gguf_check(buffer_view(&image), "many", &err));
    buffer_reset(&image);
    gguf_put_u32(&gguf, "one more", 1);
    buffer_init(&image, 1 << 24);
    gguf_finish(&gguf, &image);
    assert_false(gguf_check(buffer_view(&image), "many", &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    buffer_reset(&image);
    gguf_free(&gguf);
}

static void test_bad_pairs(void **state)
{
    (void)state;
    static const struct {
        uint32_t type, value;
        const char *key;
        ErrorCode code;
        const char *message;
    } cases[] = {
        {13, 0, "k", ERROR_INVALID, "value type 13"},
        {UINT32_MAX, 0, "k", ERROR_INVALID, "is not known"},
        {4, 0, "general.alignment", ERROR_INVALID, "power of two"},
        {4, 48, "general.alignment", ERROR_INVALID, "power of two"},
        {4, 1u << 31, "general.alignment", ERROR_INVALID, "expected an integer"},
        {6, 0, "general.alignment", ERROR_INVALID, "expected an integer"},
        {4, 0, "", ERROR_INVALID, "a key of 0 bytes"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GgufBuilder gguf;
        gguf_init(&gguf);
        gguf_put_key(&gguf, cases[i].key, cases[i].type);
        put_u32(&gguf.pairs, cases[i].value);
        expect_refusal(&gguf, cases[i].code, cases[i].message);
        gguf_free(&gguf);
    }
    GgufBuilder gguf;
    gguf_init(&gguf);
    gguf_put_u32(&gguf, "twice", 1);
    gguf_put_bool(&gguf, "between", false);
    gguf_put_u32(&gguf, "twice", 2);
    expect_refusal(&gguf, ERROR_INVALID, "key twice occurs twice");
    gguf_put_key(&gguf, "nested", 9);
    put_u32(&gguf.pairs, 9);
    put_u64(&gguf.pairs, 0);
    expect_refusal(&gguf, ERROR_UNSUPPORTED, "an array of arrays");
    gguf_free(&gguf);
}

/* A tensor's entry with every field given. */
static void put_info(GgufBuilder *gguf, const char *name, uint32_t n_dims, const uint64_t *dims,
                     uint32_t type, uint64_t offset)
{
    put_u64(&gguf->infos, strlen(name));
    buffer_append_text(&gguf->infos, name);
    put_u32(&gguf->infos, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 8; i++)
        put_u64(&gguf->infos, dims[i]);
    put_u32(&gguf->infos, type);
    put_u64(&gguf->infos, offset);
    gguf->n_tensors++;
}

static void test_bad_tensors(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_dims;
        uint64_t dims[5];
        uint32_t type;
        uint64_t offset;
        ErrorCode code;
        const char *message;
    } cases[] = {
        {0, {0}, F32, 0, ERROR_INVALID, "not 1 to 4 dimensions"},
        {5, {1, 1, 1, 1, 1}, F32, 0, ERROR_INVALID, "not 1 to 4 dimensions"},
        {UINT32_MAX, {1}, F32, 0, ERROR_INVALID, "not 1 to 4 dimensions"},
        {2, {8, 0}, F32, 0, ERROR_INVALID, "an empty or oversized dimension"},
        {1, {UINT64_MAX}, F32, 0, ERROR_INVALID, "an empty or oversized dimension"},
        {3, {1, 1u << 31, (uint64_t)1 << 40}, F32, 0, ERROR_INVALID, "does not fit 64 bits"},
        {2, {(uint64_t)1 << 62, 2}, F32, 0, ERROR_INVALID, "does not fit 64 bits"},
        {2, {(uint64_t)1 << 32, (uint64_t)1 << 32}, F32, 0, ERROR_INVALID, "does not fit 64 bits"},
        {2, {33, 1}, Q4_0, 0, ERROR_INVALID, "rows of 33 values, but Q4_0 comes in blocks of 32"},
        {1, {8}, 999, 0, ERROR_UNSUPPORTED, "block type 999"},
        {1, {8}, 4, 0, ERROR_UNSUPPORTED, "block type 4"},
        {1, {8}, F32, 16, ERROR_INVALID, "not aligned"},
        {1, {8}, F32, 64, ERROR_INVALID, "32 bytes at 64"},
        {1, {8}, F32, UINT64_MAX - 31, ERROR_INVALID, "bytes at"},
        {1, {17}, F32, 0, ERROR_INVALID, "68 bytes at 0"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GgufBuilder gguf;
        gguf_init(&gguf);
        put_info(&gguf, "t", cases[i].n_dims, cases[i].dims, cases[i].type, cases[i].offset);
        for (int j = 0; j < 64; j++)
            buffer_append_byte(&gguf.data, 0);
        expect_refusal(&gguf, cases[i].code, cases[i].message);
        gguf_free(&gguf);
    }
}

static void test_tensors_among_themselves(void **state)
{
    (void)state;
    static const uint64_t dims[] = {16};
    GgufBuilder gguf;
    gguf_init(&gguf);
    for (int j = 0; j < 256; j++)
        buffer_append_byte(&gguf.data, 0);
    put_info(&gguf, "c", 1, dims, F32, 128);
    put_info(&gguf, "a", 1, dims, F32, 0);
    put_info(&gguf, "b", 1, dims, F32, 32);
    expect_refusal(&gguf, ERROR_INVALID, "overlaps another tensor");
    gguf_free(&gguf);
    gguf_init(&gguf);
    for (int j = 0; j < 256; j++)
        buffer_append_byte(&gguf.data, 0);
    put_info(&gguf, "a", 1, dims, F32, 0);
    put_info(&gguf, "b", 1, dims, F32, 64);
    put_info(&gguf, "a", 1, dims, F32, 128);
    expect_refusal(&gguf, ERROR_INVALID, "tensor a: occurs twice");
    gguf_free(&gguf);
}

static void test_magic_and_version(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        ErrorCode code;
        const char *message;
    } cases[] = {{"GGML\3\0\0\0", ERROR_INVALID, "not a GGUF file"},
                 {"GGUF\1\0\0\0", ERROR_UNSUPPORTED, "version 1"},
                 {"GGUF\4\0\0\0", ERROR_UNSUPPORTED, "version 4"},
                 {"GGUF\0\0\0\3", ERROR_UNSUPPORTED, "big-endian"}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Error err = {0};
        assert_false(gguf_check((Slice){cases[i].bytes, 8}, "bad", &err));
        assert_int_equal(err.code, cases[i].code);
        assert_non_null(strstr(err.message, cases[i].message));
    }
    assert_false(gguf_check(SLICE_EMPTY, "empty", NULL));
}

static void test_failing_allocations(void **state)
{
    (void)state;
    Buffer image;
    buffer_init(&image, 1 << 20);
    build_good(&image);
    bool ok = false;
    for (uint64_t nth = 1; !ok; nth++) {
        Error err = {0};
        fault_fail_allocation(nth);
        ok = gguf_check(buffer_view(&image), "good", &err);
        bool was_reached = fault_allocation_count() >= nth;
        fault_fail_allocation(0);
        assert_int_equal(ok, !was_reached);
        assert_int_equal(err.code, ok ? ERROR_NONE : ERROR_MEMORY);
    }
    buffer_reset(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_hostile_counts),
        cmocka_unit_test(test_pairs_limit),
        cmocka_unit_test(test_bad_pairs),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_tensors_among_themselves),
        cmocka_unit_test(test_magic_and_version),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
