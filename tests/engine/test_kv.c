/* The KV cache: where positions lie, what a window keeps, and blocks that sequences share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu/kv.h"

#include <string.h>

enum { CHUNK = 32, WINDOW = 100, LAYERS = 2 };

static LayerConfig layers[LAYERS] = {{.sliding_window = 0}, {.sliding_window = WINDOW}};
static const ModelConfig CONFIG = {.num_hidden_layers = LAYERS,
                                   .num_attention_heads = 4,
                                   .num_key_value_heads = 2,
                                   .head_dim = 12,
                                   .layers = layers};

/* A cache, and what it should hold: text[p] is the name of the token at position p. */
typedef struct Sequence {
    KvCache cache;
    uint16_t text[1200];
} Sequence;

static void pool_init(KvPool *pool, size_t limit)
{
    Error err = {0};
    if (!kv_pool_init(pool, &CONFIG, KV_F16, CHUNK, limit, &err))
        fail_msg("%s", err.message);
}

static void create(KvPool *pool, size_t max_tokens, Sequence *s)
{
    Error err = {0};
    if (!kv_cache_create(pool, max_tokens, &s->cache, &err))
        fail_msg("%s", err.message);
}

/* A value that tells layer, head and token. */
static uint16_t mark(size_t layer, size_t head, uint16_t token, bool is_value)
{
    return (uint16_t)(layer * 31013 + head * 7919 + token * 13U + is_value);
}

static void write_position(const Sequence *s, size_t position)
{
    for (size_t layer = 0; layer < LAYERS; layer++) {
        const KvLayer *where = &s->cache.pool->layers[layer];
        for (size_t head = 0; head < 2; head++) {
            uint16_t *key = (void *)kv_cache_key(&s->cache, where, head, position);
            uint16_t *value = (void *)kv_cache_value(&s->cache, where, head, position);
            for (size_t d = 0; d < 12; d++) {
                key[d * KV_KEY_TILE] = mark(layer, head, s->text[position], false);
                value[d] = mark(layer, head, s->text[position], true);
            }
        }
    }
}

static void check_position(const Sequence *s, size_t layer, size_t position)
{
    const KvLayer *where = &s->cache.pool->layers[layer];
    for (size_t head = 0; head < 2; head++) {
        const uint16_t *key = (const void *)kv_cache_key(&s->cache, where, head, position);
        const uint16_t *value = (const void *)kv_cache_value(&s->cache, where, head, position);
        for (size_t d = 0; d < 12; d++) {
            assert_int_equal(key[d * KV_KEY_TILE], mark(layer, head, s->text[position], false));
            assert_int_equal(value[d], mark(layer, head, s->text[position], true));
        }
    }
}

/* Everything that attention of the next token would look at. */
static void check_all(const Sequence *s)
{
    size_t length = s->cache.length, first = length < WINDOW ? 0 : length - WINDOW + 1;
    for (size_t p = 0; p < length; p++)
        check_position(s, 0, p);
    for (size_t p = first; p < length; p++)
        check_position(s, 1, p);
}

/* Appends n tokens named name, name + 1, ... in chunks. */
static void append(Sequence *s, size_t n, uint16_t name)
{
    while (n > 0) {
        size_t count = n < CHUNK ? n : CHUNK, at = s->cache.length;
        kv_cache_prepare(&s->cache, count);
        for (size_t i = 0; i < count; i++) {
            s->text[at + i] = name++;
            write_position(s, at + i);
        }
        kv_cache_advance(&s->cache, count);
        n -= count;
    }
}

static void fork_sequence(Sequence *from, size_t length, size_t max_tokens, Sequence *out)
{
    Error err = {0};
    if (!kv_cache_fork(&from->cache, length, max_tokens, &out->cache, &err))
        fail_msg("%s", err.message);
    memcpy(out->text, from->text, sizeof out->text);
}

static void test_sizes(void **state)
{
    (void)state;
    KvPool pool;
    Sequence s;
    enum { HEAD = KV_BLOCK * (12 + 16) * 2, BLOCK = 2 * HEAD };
    pool_init(&pool, 0);
    assert_int_equal(pool.ring_blocks, 4); /* 132 positions touch at most three, and one more */
    assert_int_equal(pool.block_bytes[KV_FULL], BLOCK);
    create(&pool, 1000, &s);
    assert_int_equal(pool.used_bytes, (16 + 4) * BLOCK);
    size_t bytes;
    Error err = {0};
    assert_true(kv_cache_count_bytes(&CONFIG, KV_F16, 1000, CHUNK, &bytes, &err));
    assert_int_equal(bytes, pool.used_bytes);
    assert_false(kv_cache_count_bytes(&CONFIG, KV_F16, 0, CHUNK, &bytes, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    kv_cache_free(&s.cache);
    create(&pool, 65, &s);
    assert_int_equal(pool.used_bytes, (2 + 2) * BLOCK);
    append(&s, 10, 0);
    kv_cache_seal(&s.cache);
    assert_int_equal(pool.used_bytes, 2 * BLOCK);
    kv_cache_free(&s.cache);
    assert_int_equal(pool.used_bytes, 0);
    assert_int_equal(kv_bytes_per_token(&CONFIG, KV_F16), 2 * (12 + 16) * 2);
    assert_int_equal(kv_bytes_per_token(&CONFIG, KV_F32), 4 * (12 + 16) * 2);
    assert_int_equal(kv_bytes_per_token(&CONFIG, KV_INT16), 2 * (16 * 2 + 4) * 2);
    assert_int_equal(kv_bytes_per_token(&CONFIG, KV_INT8), (16 + 16 + 2 * 4) * 2);
    assert_int_equal(kv_pool_fitting_tokens(&pool, 500), 500);
    kv_pool_reset(&pool);
    pool_init(&pool, 10 * BLOCK);
    assert_int_equal(kv_pool_fitting_tokens(&pool, 500), 6 * KV_BLOCK);
    assert_int_equal(kv_pool_fitting_tokens(&pool, 200), 200);
    kv_pool_reset(&pool);
    pool_init(&pool, BLOCK);
    assert_int_equal(kv_pool_fitting_tokens(&pool, 500), 0);
    kv_pool_reset(&pool);
}

static void test_window_is_kept(void **state)
{
    (void)state;
    KvPool pool;
    Sequence s;
    pool_init(&pool, 0);
    create(&pool, 1000, &s);
    size_t bytes = pool.used_bytes;
    append(&s, 700, 1);
    check_all(&s);
    assert_int_equal(pool.used_bytes, bytes); /* nothing was taken on the way */
    kv_cache_free(&s.cache);
    kv_pool_reset(&pool);
}

static void test_truncate(void **state)
{
    (void)state;
    KvPool pool;
    Sequence s;
    Error err = {0};
    pool_init(&pool, 0);
    create(&pool, 1000, &s);
    append(&s, 90, 0);
    assert_true(kv_cache_holds_prefix(&s.cache, 3)); /* nothing was dropped yet */
    append(&s, 610, 90);
    /* The last chunk began at 698: its window starts in the block at 576. */
    assert_true(kv_cache_holds_prefix(&s.cache, 700));
    assert_true(kv_cache_holds_prefix(&s.cache, 576 + WINDOW - 1));
    assert_false(kv_cache_holds_prefix(&s.cache, 576 + WINDOW - 2));
    assert_false(kv_cache_holds_prefix(&s.cache, 3));
    assert_true(kv_cache_holds_prefix(&s.cache, 0));
    assert_false(kv_cache_holds_prefix(&s.cache, 701));
    assert_true(kv_cache_truncate(&s.cache, 680, &err));
    check_all(&s);
    append(&s, 50, 5000);
    check_all(&s);
    assert_true(kv_cache_truncate(&s.cache, 0, &err));
    append(&s, 10, 7000);
    check_all(&s);
    assert_true(kv_cache_holds_prefix(&s.cache, 4));
    kv_cache_free(&s.cache);
    kv_pool_reset(&pool);
}

static void test_forks_share_whole_blocks(void **state)
{
    (void)state;
    static Sequence from, fork, other;
    KvPool pool;
    pool_init(&pool, 0);
    create(&pool, 1000, &from);
    append(&from, 700, 0);
    size_t block = pool.block_bytes[KV_FULL], before = pool.used_bytes;
    fork_sequence(&from, 690, 700, &fork);
    /* Of 690 tokens ten full blocks are shared and one is copied. In the window one is shared,
     * which costs its owner a spare, and one copied. */
    assert_int_equal(pool.used_bytes - before, (1 + 1 + 1) * block);
    assert_ptr_equal(fork.cache.blocks[KV_FULL][9], from.cache.blocks[KV_FULL][9]);
    assert_ptr_not_equal(fork.cache.blocks[KV_FULL][10], from.cache.blocks[KV_FULL][10]);
    append(&fork, 10, 9000);
    append(&from, 200, 700);
    fork_sequence(&fork, 700, 1000, &other);
    append(&other, 100, 20000);
    check_all(&from);
    check_all(&fork);
    check_all(&other);
    kv_cache_free(&from.cache);
    append(&other, 200, 30000);
    check_all(&fork);
    check_all(&other);
    kv_cache_free(&fork.cache);
    check_all(&other);
    kv_cache_free(&other.cache);
    kv_pool_reset(&pool);
}

/* A shared block that is truncated into is copied before it is written. */
static void test_truncate_of_shared_blocks(void **state)
{
    (void)state;
    static Sequence from, fork;
    KvPool pool;
    Error err = {0};
    pool_init(&pool, 0);
    create(&pool, 400, &from);
    append(&from, 90, 0);
    fork_sequence(&from, 80, 400, &fork);
    assert_true(kv_cache_truncate(&from.cache, 10, &err));
    append(&from, 300, 5000);
    check_all(&from);
    check_all(&fork);
    assert_true(kv_cache_truncate(&fork.cache, 30, &err));
    append(&fork, 300, 6000);
    check_all(&from);
    check_all(&fork);
    kv_cache_free(&from.cache);
    kv_cache_free(&fork.cache);
    kv_pool_reset(&pool);
}

/* Any order of forks, appends, truncations, seals and frees keeps every sequence's text, loses no
 * block and never lacks a spare. */
static void test_random_histories(void **state)
{
    (void)state;
    enum { SEQUENCES = 6 };
    static Sequence s[SEQUENCES];
    bool alive[SEQUENCES] = {false}, sealed[SEQUENCES] = {false};
    KvPool pool;
    uint32_t random = 1;
    pool_init(&pool, 0);
    for (int step = 0; step < 6000; step++) {
        Error err = {0};
        random = random * 1664525u + 1013904223u;
        size_t i = (random >> 8) % SEQUENCES, k = (random >> 12) % SEQUENCES;
        size_t amount = (random >> 16) % 150, action = (random >> 28) % 8;
        Sequence *one = &s[i];
        if (!alive[i]) {
            size_t length = alive[k] ? s[k].cache.length - amount % (s[k].cache.length + 1) : 0;
            if (alive[k] && kv_cache_holds_prefix(&s[k].cache, length))
                fork_sequence(&s[k], length, length + 1 + amount * 4, one);
            else
                create(&pool, 1 + amount * 6, one);
            alive[i] = true;
            sealed[i] = false;
        } else if (action == 0) {
            kv_cache_free(&one->cache);
            alive[i] = false;
        } else if (action == 1 && one->cache.length > 0) {
            kv_cache_seal(&one->cache);
            sealed[i] = true;
        } else if (action == 2 && !sealed[i]) {
            size_t length = one->cache.length - amount % (one->cache.length + 1);
            if (kv_cache_holds_prefix(&one->cache, length))
                assert_true(kv_cache_truncate(&one->cache, length, &err));
        } else if (!sealed[i]) {
            size_t room = one->cache.max_tokens - one->cache.length;
            append(one, amount < room ? amount : room, (uint16_t)(random >> 3));
        }
        if (step % 16 == 0) {
            for (size_t j = 0; j < SEQUENCES; j++) {
                if (alive[j])
                    check_all(&s[j]);
            }
        }
    }
    for (size_t i = 0; i < SEQUENCES; i++) {
        if (alive[i])
            kv_cache_free(&s[i].cache);
    }
    assert_int_equal(pool.used_bytes, 0);
    kv_pool_reset(&pool);
}

static void test_refusals(void **state)
{
    (void)state;
    static Sequence from;
    KvPool pool;
    KvCache cache;
    Error err = {0};
    pool_init(&pool, 0);
    assert_false(kv_cache_create(&pool, 0, &cache, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_false(kv_cache_create(&pool, (size_t)KV_TOKENS_MAX + 1, &cache, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    size_t block = pool.block_bytes[KV_FULL];
    kv_pool_reset(&pool);

    pool_init(&pool, 16 * block);
    create(&pool, 500, &from); /* 8 full blocks and the ring of 4 */
    append(&from, 300, 0);
    assert_false(kv_cache_create(&pool, 200, &cache, &err));
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_false(kv_cache_fork(&from.cache, 290, 500, &cache, &err));
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_true(kv_cache_fork(&from.cache, 290, 300, &cache, &err)); /* one block of each kind */
    kv_cache_free(&cache);
    size_t before = pool.used_bytes;
    for (uint64_t nth = 1;; nth++) {
        fault_fail_allocation(nth);
        bool ok = kv_cache_fork(&from.cache, 290, 300, &cache, &err);
        fault_fail_allocation(0);
        if (ok)
            break;
        assert_int_equal(err.code, ERROR_MEMORY);
        assert_int_equal(pool.used_bytes, before);
        assert_true(nth < 20);
    }
    kv_cache_free(&cache);
    check_all(&from);
    kv_cache_free(&from.cache);
    kv_pool_reset(&pool);
    for (uint64_t nth = 1; nth <= 6; nth++) { /* two tables, two slabs in two parts */
        pool_init(&pool, 16 * block);         /* without free blocks */
        fault_fail_allocation(nth);
        assert_false(kv_cache_create(&pool, 100, &cache, &err));
        fault_fail_allocation(0);
        assert_int_equal(err.code, ERROR_MEMORY);
        assert_int_equal(pool.used_bytes, 0);
        kv_pool_reset(&pool);
    }
    fault_fail_allocation(1);
    assert_false(kv_pool_init(&pool, &CONFIG, KV_F16, CHUNK, 0, &err));
    fault_fail_allocation(0);
}

static void test_free_blocks_stay_within_the_limit(void **state)
{
    (void)state;
    enum { SHORT_SEQUENCES = 7 };
    KvPool pool;
    KvCache cache, few[SHORT_SEQUENCES];
    Error err = {0};
    pool_init(&pool, 0);
    size_t full = pool.block_bytes[KV_FULL], sliding = pool.block_bytes[KV_SLIDING];
    assert_int_equal(full, sliding);
    kv_pool_reset(&pool);
    pool_init(&pool, 14 * full);
    assert_true(kv_cache_create(&pool, 10 * KV_BLOCK, &cache, &err)); /* the ring has 4 */
    kv_cache_free(&cache);
    assert_int_equal(pool.used_bytes, 0);
    assert_int_equal(pool.free_bytes, 14 * full);
    for (size_t i = 0; i < SHORT_SEQUENCES; i++) { /* three free full blocks make way for sliding */
        assert_true(kv_cache_create(&pool, KV_BLOCK, &few[i], &err));
        assert_int_equal(pool.used_bytes + pool.free_bytes, 14 * full);
    }
    assert_int_equal(pool.free_bytes, 0);
    for (size_t i = 0; i < SHORT_SEQUENCES; i++)
        kv_cache_free(&few[i]);
    assert_true(kv_cache_create(&pool, 10 * KV_BLOCK, &cache, &err)); /* and the other way round */
    assert_int_equal(pool.used_bytes, 14 * full);
    assert_int_equal(pool.free_bytes, 0);
    kv_cache_free(&cache);
    kv_pool_reset(&pool);
}

/* Going back, a sequence may need blocks of its own for those that it shares. */
static void test_truncate_heeds_the_limit(void **state)
{
    (void)state;
    KvPool pool;
    Sequence s;
    KvCache fork;
    Error err = {0};
    pool_init(&pool, 0);
    create(&pool, 2 * KV_BLOCK, &s);
    append(&s, KV_BLOCK + KV_BLOCK / 2, 0);
    assert_true(kv_cache_fork(&s.cache, KV_BLOCK, KV_BLOCK, &fork, &err));
    pool.limit_bytes = pool.used_bytes + pool.block_bytes[KV_FULL]; /* and none that slides */
    assert_false(kv_cache_truncate(&s.cache, 0, &err));
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_in_range(pool.used_bytes, 1, pool.limit_bytes);
    assert_int_equal(s.cache.length, KV_BLOCK + KV_BLOCK / 2);
    pool.limit_bytes += pool.block_bytes[KV_SLIDING];
    assert_true(kv_cache_truncate(&s.cache, 0, &err));
    assert_int_equal(pool.used_bytes, pool.limit_bytes);
    kv_cache_free(&fork);
    kv_cache_free(&s.cache);
    kv_pool_reset(&pool);
}

#if defined(__linux__)
static bool is_resident(const KvCache *cache, size_t block)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *middle =
        cache->blocks[KV_FULL][block]->content + cache->pool->block_bytes[KV_FULL] / 2;
    unsigned char resident = 1;
    assert_int_equal(mincore(middle - (uintptr_t)middle % page, page, &resident), 0);
    return resident & 1;
}

/* A whole context may be reserved for a short reply. */
static void test_reserved_memory_is_not_touched(void **state)
{
    (void)state;
    LayerConfig many[32] = {0};
    ModelConfig config = {.num_hidden_layers = 32,
                          .num_attention_heads = 8,
                          .num_key_value_heads = 8,
                          .head_dim = 128,
                          .layers = many};
    KvPool pool;
    KvCache cache;
    Error err = {0};
    assert_true(kv_pool_init(&pool, &config, KV_F16, CHUNK, 0, &err));
    assert_true(kv_cache_create(&pool, 5 * KV_BLOCK, &cache, &err));
    for (size_t i = 0; i < 5; i++)
        assert_false(is_resident(&cache, i));
    /* ... before somebody asks for it: the block that follows, then those of the tokens to come. */
    assert_true(kv_cache_touch_ahead(&cache));
    assert_false(kv_cache_touch_ahead(&cache));
    assert_true(is_resident(&cache, 0));
    kv_cache_prepare(&cache, 3 * KV_BLOCK);
    assert_true(kv_cache_touch(&cache));
    assert_true(kv_cache_touch(&cache));
    assert_false(kv_cache_touch(&cache));
    assert_true(is_resident(&cache, 1) && is_resident(&cache, 2));
    assert_false(is_resident(&cache, 4)); /* 3 may share a huge page */
    kv_cache_cancel(&cache);
    kv_cache_free(&cache);
    kv_pool_reset(&pool);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_window_is_kept),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_forks_share_whole_blocks),
        cmocka_unit_test(test_truncate_of_shared_blocks),
        cmocka_unit_test(test_random_histories),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_free_blocks_stay_within_the_limit),
        cmocka_unit_test(test_truncate_heeds_the_limit),
#if defined(__linux__)
        cmocka_unit_test(test_reserved_memory_is_not_touched),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
