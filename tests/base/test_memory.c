/* Checked sizes, the allocation fault hook, arena and buffer. */
#include "base.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

/* ---- Sizes ---- */

static void test_size_add(void **state)
{
    (void)state;
    size_t out = 7;
    assert_true(size_add(SIZE_MAX - 1, 1, &out));
    assert_int_equal(out, SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_false(size_add(1, SIZE_MAX, &out));
    assert_int_equal(out, SIZE_MAX);
    assert_true(size_add(0, 0, &out) && out == 0);
}

static void test_size_multiply(void **state)
{
    (void)state;
    size_t out = 7;
    assert_false(size_multiply(SIZE_MAX, 2, &out));
    assert_false(size_multiply(2, SIZE_MAX, &out));
    assert_false(size_multiply(SIZE_MAX / 2 + 1, 2, &out));
    assert_int_equal(out, 7);
    assert_true(size_multiply(SIZE_MAX / 2, 2, &out) && out == SIZE_MAX - 1);
    assert_true(size_multiply(0, SIZE_MAX, &out) && out == 0);
    assert_true(size_multiply(SIZE_MAX, 0, &out) && out == 0);
}

static void test_size_product(void **state)
{
    (void)state;
    size_t out = 7;
    const int64_t small[] = {2, 3, 4}, huge[] = {INT64_MAX, 3}, negative[] = {2, -1};
    const int64_t zero_first[] = {0, INT64_MAX, INT64_MAX}, zero_last[] = {INT64_MAX, INT64_MAX, 0};
    const int64_t zero_negative[] = {0, -1};
    assert_false(size_product(huge, 2, &out));
    assert_false(size_product(negative, 2, &out));
    assert_false(size_product(zero_negative, 2, &out));
    assert_int_equal(out, 7);
    assert_true(size_product(small, 3, &out) && out == 24);
    assert_true(size_product(zero_first, 3, &out) && out == 0);
    out = 7;
    assert_true(size_product(zero_last, 3, &out) && out == 0);
    assert_true(size_product(NULL, 0, &out) && out == 1); /* a scalar */
}

/* ---- Allocation ---- */

static void test_fault_hook(void **state)
{
    (void)state;
    fault_fail_allocation(3);
    void *a = memory_allocate(1), *b = memory_allocate_zeroed(2, 2);
    void *c = memory_allocate_array(3, 3), *d = memory_allocate_aligned(64, 4);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(c);
    assert_non_null(d); /* once only */
    assert_int_equal(fault_allocation_count(), 4);
    fault_fail_allocation(1);
    assert_null(memory_resize_array(a, 100, 1)); /* a is still ours */
    fault_fail_allocation(1);
    assert_null(memory_allocate(1));
    fault_fail_allocation(0);
    assert_int_equal(fault_allocation_count(), 0);
    void *e = memory_allocate(1);
    assert_non_null(e);
    assert_int_equal(fault_allocation_count(), 0);
    memory_free(a);
    memory_free(b);
    memory_free(d);
    memory_free(e);
    memory_free(NULL);
}

static void test_allocation_edges(void **state)
{
    (void)state;
    void *none[] = {memory_allocate(0), memory_allocate_zeroed(0, 8), memory_allocate_array(8, 0),
                    memory_resize_array(NULL, 0, 0), memory_allocate_aligned(64, 0)};
    for (size_t i = 0; i < ARRAY_COUNT(none); i++) {
        assert_non_null(none[i]);
        memory_free(none[i]);
    }
    assert_null(memory_allocate_array(SIZE_MAX, 2));
    assert_null(memory_allocate_zeroed(SIZE_MAX, 2));
    assert_null(memory_resize_array(NULL, SIZE_MAX / 2, 3));
    unsigned char *zeroed = memory_allocate_zeroed(100, 10);
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(zeroed[i], 0);
    memory_free(zeroed);
    void *aligned = memory_allocate_aligned(4096, 10);
    assert_int_equal((uintptr_t)aligned % 4096, 0);
    memory_free(aligned);
}

static void test_grow_array(void **state)
{
    (void)state;
    void *items = NULL;
    size_t capacity = 0;
    for (size_t count = 0; count < 1000; count++) {
        fault_fail_allocation(1);
        size_t before = capacity;
        bool grew = memory_grow_array(&items, count, &capacity, sizeof(size_t));
        assert_int_equal(grew, count < before); /* only a full array needs memory */
        assert_int_equal(capacity, before);
        fault_fail_allocation(0);
        assert_true(memory_grow_array(&items, count, &capacity, sizeof(size_t)));
        assert_true(capacity > count);
        ((size_t *)items)[count] = count;
    }
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(((size_t *)items)[i], i);
    memory_free(items);
    size_t full = SIZE_MAX / 2 + 1;
    items = NULL;
    assert_false(memory_grow_array(&items, full, &full, 1));
    assert_null(items);
}

/* ---- Arena ---- */

static void test_arena_alignment_and_content(void **state)
{
    (void)state;
    Arena arena;
    arena_init(&arena, 64 << 20);
    enum { COUNT = 3000 };
    static unsigned char *parts[COUNT];
    size_t sum = 0;
    for (size_t i = 0; i < COUNT; i++) {
        size_t size = i % 97 == 0 ? 300 * 1024 : i % 113;
        parts[i] = arena_allocate(&arena, size);
        assert_non_null(parts[i]);
        assert_int_equal((uintptr_t)parts[i] % 16, 0);
        memset(parts[i], (int)(i & 255), size);
        sum += size;
    }
    for (size_t i = 0; i < COUNT; i++) {
        size_t size = i % 97 == 0 ? 300 * 1024 : i % 113;
        for (size_t j = 0; j < size; j++)
            assert_int_equal(parts[i][j], i & 255);
    }
    assert_true(arena.total >= sum && arena.total <= arena.max);
    arena_reset(&arena);
    assert_int_equal(arena.total, 0);
    assert_non_null(arena_allocate(&arena, 10));
    arena_reset(&arena);
    arena_reset(&arena);
}

static void test_arena_maximum(void **state)
{
    (void)state;
    static const size_t maxima[] = {0, 1, 15, 16, 100, 4096, 10000, 300000, 3 << 20};
    static const size_t sizes[] = {1, 16, 100, 5000, 400000};
    for (size_t m = 0; m < ARRAY_COUNT(maxima); m++) {
        for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
            Arena arena;
            arena_init(&arena, maxima[m]);
            size_t given = 0, rounded = (sizes[s] + 15) / 16 * 16;
            while (arena_allocate(&arena, sizes[s]))
                given += rounded;
            assert_true(given <= maxima[m]);
            assert_true(arena.total <= maxima[m]);
            /* One that fits into an empty arena is not refused. */
            assert_int_equal(given > 0, rounded <= maxima[m]);
            arena_reset(&arena);
        }
    }
    Arena arena;
    arena_init(&arena, SIZE_MAX);
    assert_null(arena_allocate(&arena, SIZE_MAX));
    assert_null(arena_allocate(&arena, SIZE_MAX - 15));
    assert_null(arena_allocate_array(&arena, SIZE_MAX / 2, 4));
    assert_int_equal(arena.total, 0);
    arena_reset(&arena);
}

static void test_arena_failure_keeps_it_usable(void **state)
{
    (void)state;
    Arena arena;
    arena_init(&arena, 1 << 20);
    fault_fail_allocation(1);
    assert_null(arena_allocate(&arena, 8));
    fault_fail_allocation(0);
    char *small = arena_allocate(&arena, 8);
    assert_non_null(small);
    fault_fail_allocation(1);
    assert_null(arena_allocate(&arena, 500000));
    Slice out = SLICE("kept");
    assert_true(arena_copy_slice(&arena, SLICE("fits the block"), &out));
    fault_fail_allocation(0);
    assert_true(slice_equal(out, SLICE("fits the block")));
    assert_non_null(arena_allocate(&arena, 500000));
    arena_reset(&arena);
}

static void test_arena_copies(void **state)
{
    (void)state;
    Arena arena;
    arena_init(&arena, 1000);
    char *copy = arena_copy_string(&arena, (Slice){"a\0b", 3});
    assert_memory_equal(copy, "a\0b", 4);
    assert_string_equal(arena_copy_string(&arena, SLICE_EMPTY), "");
    Slice out = SLICE("kept");
    static const char big[2000];
    assert_false(arena_copy_slice(&arena, (Slice){big, sizeof(big)}, &out));
    assert_true(slice_equal(out, SLICE("kept")));
    assert_null(arena_copy_string(&arena, (Slice){big, SIZE_MAX}));
    arena_reset(&arena);
}

/* ---- Buffer ---- */

static void test_buffer_appends(void **state)
{
    (void)state;
    Buffer buffer;
    buffer_init(&buffer, 1000);
    buffer_append(&buffer, "ab", 2);
    buffer_append_slice(&buffer, SLICE("cd"));
    buffer_append_slice(&buffer, SLICE_EMPTY);
    buffer_append_text(&buffer, "ef");
    buffer_append_byte(&buffer, 'g');
    buffer_append_format(&buffer, "%d%s", 42, "h");
    assert_true(slice_equal(buffer_view(&buffer), SLICE("abcdefg42h")));
    buffer_remove_front(&buffer, 3);
    buffer_remove_front(&buffer, 0);
    assert_true(slice_equal(buffer_view(&buffer), SLICE("defg42h")));
    buffer_remove_front(&buffer, 7);
    assert_int_equal(buffer.len, 0);
    buffer_append_format(&buffer, "%0500d", 1);
    assert_int_equal(buffer.len, 500);
    assert_int_equal(buffer.ptr[499], '1');
    size_t len;
    char *taken = buffer_take(&buffer, &len);
    assert_int_equal(len, 500);
    assert_int_equal(buffer.len, 0);
    assert_null(buffer.ptr);
    memory_free(taken);
    buffer_reset(&buffer);
}

static void test_buffer_maximum(void **state)
{
    (void)state;
    Buffer buffer;
    Error err = {0};
    for (size_t max = 0; max < 700; max += 7) {
        buffer_init(&buffer, max);
        for (size_t i = 0; i < max; i++)
            buffer_append_byte(&buffer, 'x');
        assert_true(buffer_check(&buffer, "text", &err));
        buffer_append_byte(&buffer, 'y');
        assert_false(buffer_check(&buffer, "text", &err));
        assert_int_equal(err.code, ERROR_LIMIT);
        buffer_append_slice(&buffer, SLICE_EMPTY);
        assert_null(buffer_extend(&buffer, 0)); /* sticky */
        assert_int_equal(buffer.len, max);
        assert_true(buffer.capacity <= max);
        buffer_clear(&buffer);
        assert_true(buffer_check(&buffer, "text", &err));
        /* A formatted text of just the maximum fits, short or long; one more does not. */
        buffer_append_format(&buffer, "%*s", (int)max, "");
        assert_int_equal(buffer.len, max);
        assert_false(buffer.failed);
        buffer_clear(&buffer);
        buffer_append_format(&buffer, "%*s", (int)max + 1, "");
        assert_true(buffer.failed && buffer.over_limit);
        assert_int_equal(buffer.len, 0);
        buffer_reset(&buffer);
        assert_false(buffer.failed);
    }
    buffer_init(&buffer, SIZE_MAX);
    buffer_append_byte(&buffer, 'x');
    assert_null(buffer_extend(&buffer, SIZE_MAX));
    assert_true(buffer.over_limit);
    buffer_reset(&buffer);
}

static void test_buffer_out_of_memory(void **state)
{
    (void)state;
    for (uint64_t nth = 1; nth <= 4; nth++) {
        Buffer buffer;
        Error err = {0};
        buffer_init(&buffer, 1 << 20);
        fault_fail_allocation(nth);
        for (int i = 0; i < 1000; i++)
            buffer_append_byte(&buffer, 'x');
        buffer_append_format(&buffer, "%01000d", 1);
        fault_fail_allocation(0);
        assert_false(buffer_check(&buffer, "a reply", &err));
        assert_int_equal(err.code, ERROR_MEMORY);
        assert_string_equal(err.message, "out of memory for a reply");
        size_t len = buffer.len;
        buffer_append_byte(&buffer, 'x'); /* memory is back, the failure stays */
        assert_int_equal(buffer.len, len);
        buffer_reset(&buffer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size_add),
        cmocka_unit_test(test_size_multiply),
        cmocka_unit_test(test_size_product),
        cmocka_unit_test(test_fault_hook),
        cmocka_unit_test(test_allocation_edges),
        cmocka_unit_test(test_grow_array),
        cmocka_unit_test(test_arena_alignment_and_content),
        cmocka_unit_test(test_arena_maximum),
        cmocka_unit_test(test_arena_failure_keeps_it_usable),
        cmocka_unit_test(test_arena_copies),
        cmocka_unit_test(test_buffer_appends),
        cmocka_unit_test(test_buffer_maximum),
        cmocka_unit_test(test_buffer_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
