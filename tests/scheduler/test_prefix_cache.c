/* The prefix cache: what is found, what is left out, what goes first. */
#include "fake_engine.h"
#include "prefix_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { LENGTH = 200 };

static FakeEngine fake;

static void make_tokens(int32_t seed, size_t same, int32_t *out)
{
    for (size_t i = 0; i < LENGTH; i++)
        out[i] = i < same ? (int32_t)('A' + i % 26) : 'a' + (seed + (int32_t)i * 7) % 26;
}

static void add(PrefixCache *cache, const int32_t *tokens, size_t n)
{
    EngineSequence *sequence;
    Error err = {0};
    int32_t *copy = memory_allocate_array(n + 50, sizeof(*copy));
    assert_non_null(copy);
    memcpy(copy, tokens, n * sizeof(*copy));
    assert_true(engine_sequence_create(&fake.engine, n + 50, &sequence, &err));
    EngineRow row = {sequence, tokens, n, ENGINE_LOGITS_NONE};
    assert_true(engine_forward(&fake.engine, &row, 1, NULL, &err));
    prefix_cache_add(cache, &fake.engine, sequence, copy, n);
}

static size_t found(const PrefixCache *cache, const int32_t *tokens, size_t n)
{
    size_t length, longest;
    PrefixEntry *entry = prefix_cache_find(cache, &fake.engine, tokens, n, &length, &longest);
    assert_int_equal(length, longest); /* this engine forgets nothing */
    assert_int_equal(entry != NULL, length > 0);
    return length;
}

static void begin(PrefixCache *cache)
{
    Error err;
    fake_engine_init(&fake, 10000);
    assert_true(prefix_cache_init(cache, &err));
}

static void end(PrefixCache *cache)
{
    prefix_cache_reset(cache, &fake.engine);
    assert_int_equal(atomic_load(&fake.sequences), 0);
    assert_int_equal(atomic_load(&fake.reserved), 0);
    assert_false(atomic_load(&fake.misused));
}

static void common_prefixes_are_exact(void **state)
{
    (void)state;
    int32_t a[LENGTH], b[LENGTH];
    make_tokens(1, LENGTH, a);
    assert_int_equal(tokens_common_prefix(a, LENGTH, a, LENGTH), LENGTH);
    assert_int_equal(tokens_common_prefix(a, LENGTH, a, 7), 7);
    assert_int_equal(tokens_common_prefix(a, 0, a, LENGTH), 0);
    for (size_t at = 0; at < LENGTH; at++) {
        memcpy(b, a, sizeof(a));
        b[at]++;
        assert_int_equal(tokens_common_prefix(a, LENGTH, b, LENGTH), at);
    }
}

static void the_longest_prefix_is_found(void **state)
{
    (void)state;
    PrefixCache cache;
    int32_t a[LENGTH], b[LENGTH], c[LENGTH], stranger[LENGTH];
    begin(&cache);
    make_tokens(1, 100, a);
    make_tokens(2, 100, b);
    memcpy(c, b, sizeof(b));
    c[150] = 'Z';
    make_tokens(3, 0, stranger);
    assert_int_equal(found(&cache, a, LENGTH), 0);
    add(&cache, a, LENGTH);
    assert_int_equal(found(&cache, b, LENGTH), 100);
    add(&cache, b, LENGTH);
    assert_int_equal(cache.count, 2);
    assert_int_equal(found(&cache, c, LENGTH), 150);
    assert_int_equal(found(&cache, c, 30), 30);
    assert_int_equal(found(&cache, stranger, LENGTH), 0);
    end(&cache);
}

/* What another entry begins with is not kept twice, whichever comes first; nor what is too short.
 */
static void beginnings_of_others_are_left_out(void **state)
{
    (void)state;
    PrefixCache cache;
    int32_t a[LENGTH];
    begin(&cache);
    make_tokens(1, 100, a);
    add(&cache, a, 120);
    add(&cache, a, 150);
    assert_int_equal(cache.count, 1);
    assert_int_equal(found(&cache, a, LENGTH), 150);
    add(&cache, a, 120);
    add(&cache, a, 150);
    assert_int_equal(cache.count, 1);
    a[0]++;
    add(&cache, a, PREFIX_CACHE_TOKENS_LEAST - 1);
    assert_int_equal(cache.count, 1);
    assert_int_equal(atomic_load(&fake.sequences), 1);
    assert_int_equal(atomic_load(&fake.reserved), 150); /* sealed */
    end(&cache);
}

static void the_least_recently_used_goes_first(void **state)
{
    (void)state;
    enum { COUNT = 4 };
    PrefixCache cache;
    int32_t tokens[COUNT][LENGTH];
    size_t length, longest;
    begin(&cache);
    for (int32_t i = 0; i < COUNT; i++) {
        make_tokens(i, 0, tokens[i]);
        add(&cache, tokens[i], LENGTH);
    }
    PrefixEntry *first =
        prefix_cache_find(&cache, &fake.engine, tokens[0], LENGTH, &length, &longest);
    prefix_cache_touch(&cache, first);
    /* The last in the table is held on to while those before it go. */
    PrefixEntry *keep =
        prefix_cache_find(&cache, &fake.engine, tokens[3], LENGTH, &length, &longest);
    assert_true(prefix_cache_evict(&cache, &fake.engine, &keep));
    assert_int_equal(found(&cache, tokens[1], LENGTH), 0);
    assert_int_equal(found(&cache, tokens[0], LENGTH), LENGTH);
    assert_memory_equal(keep->tokens, tokens[3], sizeof(tokens[3]));
    assert_true(prefix_cache_evict(&cache, &fake.engine, &keep));
    assert_true(prefix_cache_evict(&cache, &fake.engine, &keep));
    assert_memory_equal(keep->tokens, tokens[3], sizeof(tokens[3]));
    assert_false(prefix_cache_evict(&cache, &fake.engine, &keep));
    assert_int_equal(cache.count, 1);
    assert_true(prefix_cache_evict(&cache, &fake.engine, NULL));
    assert_int_equal(cache.evictions_total, 4);
    end(&cache);
}

static void the_table_is_bounded(void **state)
{
    (void)state;
    PrefixCache cache;
    int32_t tokens[LENGTH];
    begin(&cache);
    for (int32_t i = 0; i < PREFIX_CACHE_ENTRIES_MAX + 20; i++) {
        make_tokens(1, 0, tokens);
        tokens[0] = 'A' + i % 100;
        tokens[1] = 'A' + i / 100;
        add(&cache, tokens, 20);
    }
    assert_int_equal(cache.count, PREFIX_CACHE_ENTRIES_MAX);
    tokens[0] = tokens[1] = 'A';
    /* Itself is gone; others share its first token alone. */
    assert_int_equal(found(&cache, tokens, 20), 1);
    end(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(common_prefixes_are_exact),
        cmocka_unit_test(the_longest_prefix_is_found),
        cmocka_unit_test(beginnings_of_others_are_left_out),
        cmocka_unit_test(the_least_recently_used_goes_first),
        cmocka_unit_test(the_table_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
