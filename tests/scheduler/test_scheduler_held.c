/* Prompts that enter beside streams in a pass that is held between its parts: what comes when. */
#include "held_fixture.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static size_t running(World *w)
{
    SchedulerStatistics statistics;
    scheduler_statistics(w->fixture.scheduler, &statistics);
    return statistics.running;
}

static void stop_numbered(World *w, Entry *entry, uint32_t number)
{
    entry_init(entry, number, HELD_LONG);
    stop_in_first_part(w, entry);
}

static void long_prompts_are_held(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w, HELD_STREAM);
    FakeEngine *fake = &w.fixture.fake;
    enter(&w, &entry, 2, HELD_LONG);
    check_reply(&w, &entry);
    size_t passes = atomic_load(&fake->held_passes);
    assert_in_range(passes, HELD_LONG / SCHEDULER_PREFILL_CHUNK, HELD_LONG / 16 + 1);
    assert_int_equal(atomic_load(&fake->parts), passes * FAKE_PARTS);
    assert_true(atomic_load(&fake->largest_chunk_beside_decode) < SCHEDULER_PREFILL_CHUNK);
    world_close(&w);
}

/* However often memory has to be brought for the streams, the prompt has its turn. */
static void memory_for_streams_does_not_starve(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w, HELD_STREAM);
    atomic_store(&w.fixture.fake.always_touches, true);
    enter(&w, &entry, 2, HELD_LONG);
    check_reply(&w, &entry);
    world_close(&w);
}

static void streams_go_on_between_parts(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w, HELD_STREAM);
    FakeEngine *fake = &w.fixture.fake;
    stop_numbered(&w, &entry, 2);
    outlast_step();
    size_t passes = atomic_load(&fake->passes), parts = atomic_load(&fake->parts);
    go_on(&w);
    wait_for(&fake->parts, parts + 1);
    assert_true(atomic_load(&fake->passes) > passes);
    check_reply(&w, &entry);
    world_close(&w);
}

static void cancelled_prompts_leave(void **state)
{
    (void)state;
    World w;
    static Entry entry, other;
    world_open(&w, HELD_STREAM);
    for (uint32_t round = 0; round < 3; round++) {
        size_t left = atomic_load(&w.fixture.fake.rows_left);
        stop_numbered(&w, &entry, 2 + round);
        outlast_step(); /* else this step might take the prompt to its end */
        job_release(entry.job);
        if (round == 2) /* waits for the next pass */
            enter(&w, &other, 20, HELD_LONG);
        go_on(&w);
        wait_for(&w.fixture.fake.rows_left, left + 1);
    }
    check_reply(&w, &other);
    world_close(&w);
}

/* Two prompts share a pass; one goes. */
static void the_others_stay(void **state)
{
    (void)state;
    World w;
    static Entry first, second, third;
    world_open(&w, HELD_STREAM);
    FakeEngine *fake = &w.fixture.fake;
    stop_numbered(&w, &first, 2);
    enter(&w, &second, 3, HELD_LONG / 4);
    enter(&w, &third, 4, HELD_LONG / 2);
    size_t passes = atomic_load(&fake->held_passes);
    go_on(&w);
    wait_for(&fake->held_passes, passes + 1); /* which has the second too */
    job_release(second.job);
    check_reply(&w, &first);
    check_reply(&w, &third);
    while (running(&w) > 1)
        pause_milliseconds(1);
    world_close(&w);
}

static void schedulers_end_with_a_held_pass(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w, HELD_STREAM);
    stop_numbered(&w, &entry, 2);
    job_release(entry.job);
    job_release(w.stream);
    go_on(&w);
    fixture_reset(&w.fixture);
    assert_int_equal(atomic_load(&w.fixture.fake.held_rows), 0);
}

/* The held pass is computed to its end when nothing decodes any more. */
static void prompts_outlive_the_stream(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w, HELD_STREAM);
    stop_numbered(&w, &entry, 2);
    job_release(w.stream);
    w.stream = NULL;
    go_on(&w);
    check_reply(&w, &entry);
    assert_int_equal(atomic_load(&w.fixture.fake.rows_left), 0);
    world_close(&w);
}

static void short_prompts_overtake(void **state)
{
    (void)state;
    World w;
    static Entry slow, quick;
    world_open(&w, HELD_STREAM);
    stop_numbered(&w, &slow, 2);
    enter(&w, &quick, 3, HELD_SHORT);
    go_on(&w);
    check_reply(&w, &quick);
    check_reply(&w, &slow);
    assert_true(atomic_load(&quick.first_notice) < atomic_load(&slow.first_notice));
    world_close(&w);
}

/* Prompts of one length are served in the order in which they came. */
static void equals_do_not_overtake(void **state)
{
    (void)state;
    World w;
    static Entry first, second;
    world_open(&w, HELD_STREAM);
    stop_numbered(&w, &first, 2);
    enter(&w, &second, 3, HELD_LONG);
    go_on(&w);
    check_reply(&w, &second);
    check_reply(&w, &first);
    assert_true(atomic_load(&first.first_notice) < atomic_load(&second.first_notice));
    world_close(&w);
}

/* A prompt that begins like one that is held forks what is there. */
static void held_sequences_are_forked(void **state)
{
    (void)state;
    World w;
    static Entry first, second;
    world_open(&w, HELD_STREAM);
    enter(&w, &first, 2, HELD_LONG);
    wait_for(&w.fixture.fake.held_passes, 4);
    enter(&w, &second, 2, HELD_LONG - 100);
    check_reply(&w, &first);
    check_reply(&w, &second);
    assert_true(atomic_load(&w.fixture.fake.forks) > 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_prompts_are_held),
        cmocka_unit_test(memory_for_streams_does_not_starve),
        cmocka_unit_test(streams_go_on_between_parts),
        cmocka_unit_test(cancelled_prompts_leave),
        cmocka_unit_test(the_others_stay),
        cmocka_unit_test(schedulers_end_with_a_held_pass),
        cmocka_unit_test(prompts_outlive_the_stream),
        cmocka_unit_test(short_prompts_overtake),
        cmocka_unit_test(equals_do_not_overtake),
        cmocka_unit_test(held_sequences_are_forked),
    };
    return cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
