/* Prompts that enter beside streams in a pass that is held between its parts. None of these
 * measures time: an order of events is arranged, or looked at afterwards. */
#include "scheduler_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LONG = 3000, SHORT = 30, STREAM = 10, SLOTS = 4, REPLY = 5, TEXT_MAX = 1 << 20 };

/* A scheduler with a stream that decodes without end. */
typedef struct World {
    Fixture fixture;
    Job *stream;
} World;

static void world_open(World *w)
{
    int32_t prompt[STREAM];
    JobRequest request;
    fixture_init(&w->fixture, SLOTS, 90000);
    atomic_store(&w->fixture.fake.never_ends, true);
    atomic_store(&w->fixture.fake.delay_microseconds, 200);
    make_prompt(1, STREAM, prompt);
    request_init(&request, prompt, STREAM, 80000);
    w->stream = submit(&w->fixture, &request);
    assert_true(job_wait(w->stream, 10));
}

static size_t running(World *w)
{
    SchedulerStatistics statistics;
    scheduler_statistics(w->fixture.scheduler, &statistics);
    return statistics.running;
}

static void world_close(World *w)
{
    job_release(w->stream);
    wait_for_idle(&w->fixture);
    assert_int_equal(atomic_load(&w->fixture.fake.held_rows), 0);
    fixture_reset(&w->fixture);
}

/* A prompt of a number, and what is to become of it. */
typedef struct Entry {
    int32_t prompt[LONG];
    size_t n_prompt;
    Job *job;
    atomic_size_t *clock, first_notice; /* when its owner was first told something */
} Entry;

static void note_first(void *context)
{
    Entry *entry = context;
    if (atomic_load(&entry->first_notice) == 0)
        atomic_store(&entry->first_notice, atomic_fetch_add(entry->clock, 1) + 1);
}

static void enter(World *w, Entry *entry, uint32_t number, size_t n_prompt)
{
    static atomic_size_t clock;
    JobRequest request;
    make_prompt(number, n_prompt, entry->prompt);
    entry->n_prompt = n_prompt;
    entry->clock = &clock;
    atomic_store(&entry->first_notice, 0);
    request_init(&request, entry->prompt, n_prompt, REPLY);
    request.notify = note_first;
    request.notify_context = entry;
    entry->job = submit(&w->fixture, &request);
}

/* Its reply is what it would be alone. */
static void check_reply(World *w, Entry *entry)
{
    JobStatus status;
    Buffer text;
    buffer_init(&text, TEXT_MAX);
    collect(entry->job, &text, &status);
    assert_reply(&w->fixture, entry->prompt, entry->n_prompt, REPLY, &text, &status);
    buffer_reset(&text);
    job_release(entry->job);
}

static void wait_for(atomic_size_t *counter, size_t value)
{
    for (int i = 0; i < 30000; i++) {
        if (atomic_load(counter) >= value)
            return;
        pause_milliseconds(1);
    }
    fail_msg("a counter is %zu after half a minute, expected %zu", atomic_load(counter), value);
}

/* Stops the engine in the first part of a held pass that has the entry's prompt. */
static void stop_in_first_part(World *w, Entry *entry, uint32_t number)
{
    atomic_store(&w->fixture.fake.hold_parts, true);
    size_t parts = atomic_load(&w->fixture.fake.parts);
    enter(w, entry, number, LONG);
    wait_for(&w->fixture.fake.parts, parts + 1);
    assert_int_equal(atomic_load(&w->fixture.fake.held_rows), 1);
}

static void go_on(World *w)
{
    atomic_store(&w->fixture.fake.hold_parts, false);
}

static void long_prompts_are_held(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w);
    FakeEngine *fake = &w.fixture.fake;
    enter(&w, &entry, 2, LONG);
    check_reply(&w, &entry);
    size_t passes = atomic_load(&fake->held_passes);
    assert_in_range(passes, LONG / SCHEDULER_PREFILL_CHUNK, LONG / 16 + 1);
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
    world_open(&w);
    atomic_store(&w.fixture.fake.always_touches, true);
    enter(&w, &entry, 2, LONG);
    check_reply(&w, &entry);
    world_close(&w);
}

static void streams_go_on_between_parts(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    world_open(&w);
    FakeEngine *fake = &w.fixture.fake;
    stop_in_first_part(&w, &entry, 2);
    pause_milliseconds(20); /* far beyond what a step may take */
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
    world_open(&w);
    for (uint32_t round = 0; round < 3; round++) {
        size_t left = atomic_load(&w.fixture.fake.rows_left);
        stop_in_first_part(&w, &entry, 2 + round);
        job_release(entry.job);
        if (round == 2) /* waits for the next pass */
            enter(&w, &other, 20, LONG);
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
    world_open(&w);
    FakeEngine *fake = &w.fixture.fake;
    stop_in_first_part(&w, &first, 2);
    enter(&w, &second, 3, LONG / 4);
    enter(&w, &third, 4, LONG / 2);
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
    world_open(&w);
    stop_in_first_part(&w, &entry, 2);
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
    world_open(&w);
    stop_in_first_part(&w, &entry, 2);
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
    world_open(&w);
    stop_in_first_part(&w, &slow, 2);
    enter(&w, &quick, 3, SHORT);
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
    world_open(&w);
    stop_in_first_part(&w, &first, 2);
    enter(&w, &second, 3, LONG);
    go_on(&w);
    check_reply(&w, &second);
    check_reply(&w, &first);
    assert_true(atomic_load(&first.first_notice) < atomic_load(&second.first_notice));
    world_close(&w);
}

static void failing_parts_are_retried(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    for (size_t part = 1; part <= FAKE_PARTS; part++) {
        world_open(&w);
        atomic_store(&w.fixture.fake.fail_part, part);
        enter(&w, &entry, 2, LONG);
        JobStatus status;
        Buffer text;
        buffer_init(&text, TEXT_MAX);
        collect(entry.job, &text, &status); /* alone in its pass: nothing is left to try */
        assert_int_equal(status.finish, FINISH_ERROR);
        assert_string_equal(status.error.message, "a part fails");
        buffer_reset(&text);
        job_release(entry.job);
        enter(&w, &entry, 3, LONG);
        check_reply(&w, &entry);
        world_close(&w);
    }
}

/* Two prompts in a pass that is refused or fails: only the one that causes it ends. */
static void errors_end_only_their_prompt(void **state)
{
    (void)state;
    World w;
    static Entry blocker, good, bad;
    JobStatus status;
    Buffer text;
    JobRequest request;
    world_open(&w);
    buffer_init(&text, TEXT_MAX);
    stop_in_first_part(&w, &blocker, 2);
    enter(&w, &good, 3, LONG / 4);
    make_prompt(4, LONG, bad.prompt);
    bad.prompt[2] = FAKE_POISON;
    request_init(&request, bad.prompt, LONG / 3, REPLY);
    bad.job = submit(&w.fixture, &request);
    go_on(&w);
    collect(bad.job, &text, &status);
    assert_int_equal(status.finish, FINISH_ERROR);
    assert_string_equal(status.error.message, "poisoned token");
    job_release(bad.job);
    buffer_reset(&text);
    check_reply(&w, &good);
    check_reply(&w, &blocker);
    world_close(&w);
}

/* A prompt that begins like one that is held forks what is there. */
static void held_sequences_are_forked(void **state)
{
    (void)state;
    World w;
    static Entry first, second;
    world_open(&w);
    enter(&w, &first, 2, LONG);
    wait_for(&w.fixture.fake.held_passes, 4);
    enter(&w, &second, 2, LONG - 100);
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
        cmocka_unit_test(failing_parts_are_retried),
        cmocka_unit_test(errors_end_only_their_prompt),
        cmocka_unit_test(held_sequences_are_forked),
    };
    return cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
