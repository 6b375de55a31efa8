/* The KV cache: where positions lie, what a ring keeps, and copies of prefixes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/kv.h"

#include <string.h>

static LayerConfig layers[2] = {{.sliding_window = 0}, {.sliding_window = 100}};
static const ModelConfig CONFIG = {.num_hidden_layers = 2,
                                   .num_attention_heads = 4,
                                   .num_key_value_heads = 2,
                                   .head_dim = 12,
                                   .layers = layers};

static void create(size_t max_tokens, KvCache *cache)
{
    Error err = {0};
    if (!kv_cache_create(&CONFIG, true, max_tokens, 32, cache, &err))
        fail_msg("%s", err.message);
}

/* A value that tells layer, head and position. */
static uint16_t mark(size_t layer, size_t head, size_t position, bool is_value)
{
    return (uint16_t)(layer * 31013 + head * 7919 + position * 13 + is_value);
}

static void write_position(const KvCache *cache, size_t position)
{
    for (size_t layer = 0; layer < 2; layer++) {
        for (size_t head = 0; head < 2; head++) {
            uint16_t *key = kv_cache_key(cache, &cache->layers[layer], head, position);
            uint16_t *value = kv_cache_value(cache, &cache->layers[layer], head, position);
            for (size_t d = 0; d < 12; d++) {
                key[d * KV_KEY_TILE] = mark(layer, head, position, false);
                value[d] = mark(layer, head, position, true);
            }
        }
    }
}

static void check_position(const KvCache *cache, size_t layer, size_t position)
{
    for (size_t head = 0; head < 2; head++) {
        const uint16_t *key = kv_cache_key(cache, &cache->layers[layer], head, position);
        const uint16_t *value = kv_cache_value(cache, &cache->layers[layer], head, position);
        for (size_t d = 0; d < 12; d++) {
            assert_int_equal(key[d * KV_KEY_TILE], mark(layer, head, position, false));
            assert_int_equal(value[d], mark(layer, head, position, true));
        }
    }
}

static void append(KvCache *cache, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        write_position(cache, cache->length);
        kv_cache_advance(cache, 1);
    }
}

static void test_sizes(void **state)
{
    (void)state;
    KvCache cache;
    create(1000, &cache);
    assert_int_equal(cache.layers[0].capacity, 1024);
    assert_int_equal(cache.layers[1].capacity,
                     256); /* 100 + 32, rounded to 192, and a block more */
    assert_int_equal(kv_bytes_per_token(&CONFIG, true), 2 * (12 + 16) * 2);
    assert_int_equal(kv_bytes_per_token(&CONFIG, false), 4 * (12 + 16) * 2);
    size_t bytes;
    Error err = {0};
    assert_true(kv_cache_count_bytes(&CONFIG, true, 1000, 32, &bytes, &err));
    assert_int_equal(bytes, cache.bytes);
    assert_false(kv_cache_count_bytes(&CONFIG, true, 0, 32, &bytes, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    kv_cache_free(&cache);
    create(65, &cache);
    assert_int_equal(cache.layers[1].capacity, 128);
    kv_cache_free(&cache);
}

static void test_window_is_kept(void **state)
{
    (void)state;
    KvCache cache;
    create(1000, &cache);
    append(&cache, 700);
    for (size_t p = 0; p < 700; p++)
        check_position(&cache, 0, p);
    for (size_t p = 700 - 100 - 32; p < 700; p++)
        check_position(&cache, 1, p);
    kv_cache_free(&cache);
}

static void test_truncate(void **state)
{
    (void)state;
    KvCache cache;
    create(1000, &cache);
    append(&cache, 200);
    assert_true(kv_cache_holds_prefix(&cache, 3)); /* nothing was dropped yet */
    append(&cache, 500);
    /* The ring holds [700 - 256, 700): the shortest length is where its window begins there. */
    assert_true(kv_cache_holds_prefix(&cache, 700));
    assert_true(kv_cache_holds_prefix(&cache, 700 - 256 + 99));
    assert_false(kv_cache_holds_prefix(&cache, 700 - 256 + 98));
    assert_false(kv_cache_holds_prefix(&cache, 3));
    assert_true(kv_cache_holds_prefix(&cache, 0));
    assert_false(kv_cache_holds_prefix(&cache, 701));
    kv_cache_truncate(&cache, 600);
    assert_int_equal(cache.length, 600);
    assert_false(kv_cache_holds_prefix(&cache, 500)); /* what was dropped stays dropped */
    append(&cache, 50);
    for (size_t p = 650 - 100; p < 650; p++)
        check_position(&cache, 1, p);
    kv_cache_truncate(&cache, 0);
    append(&cache, 10);
    assert_true(kv_cache_holds_prefix(&cache, 4));
    kv_cache_free(&cache);
}

static void test_copy(void **state)
{
    (void)state;
    KvCache from, to;
    create(1000, &from);
    append(&from, 700);
    create(660, &to);
    kv_cache_copy_prefix(&to, &from, 650);
    assert_int_equal(to.length, 650);
    for (size_t p = 0; p < 650; p++)
        check_position(&to, 0, p);
    for (size_t p = 650 - 99; p < 650; p++)
        check_position(&to, 1, p);
    assert_false(kv_cache_holds_prefix(&to, 640)); /* only the window was copied */
    kv_cache_free(&to);
    kv_cache_free(&from);
}

static void test_refusals(void **state)
{
    (void)state;
    KvCache cache;
    Error err = {0};
    assert_false(kv_cache_create(&CONFIG, true, 0, 32, &cache, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_false(kv_cache_create(&CONFIG, true, (size_t)KV_TOKENS_MAX + 1, 32, &cache, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        err = (Error){0};
        fault_fail_allocation(nth);
        assert_false(kv_cache_create(&CONFIG, true, 100, 32, &cache, &err));
        fault_fail_allocation(0);
        assert_int_equal(err.code, ERROR_MEMORY);
        assert_null(cache.memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),    cmocka_unit_test(test_window_is_kept),
        cmocka_unit_test(test_truncate), cmocka_unit_test(test_copy),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
