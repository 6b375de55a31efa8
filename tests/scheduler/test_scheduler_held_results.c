/* What comes of prompts in a held pass when a part fails, a row leaves, memory is short, or the
 * logits of all their tokens are wanted. */
#include "held_fixture.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* ---- Errors ---- */

/* Alone in its pass: nothing is left to try. */
static void a_failing_part_ends_a_lone_prompt(void **state)
{
    (void)state;
    World w;
    static Entry entry;
    for (size_t part = 1; part <= FAKE_PARTS; part++) {
        world_open(&w, HELD_STREAM);
        atomic_store(&w.fixture.fake.fail_part, part);
        enter(&w, &entry, 2, HELD_LONG);
        check_error(&entry, "a part fails");
        enter(&w, &entry, 3, HELD_LONG);
        check_reply(&w, &entry);
        world_close(&w);
    }
}

/* Each of two prompts is tried alone, and nothing is lost or computed twice. */
static void failing_parts_are_retried(void **state)
{
    (void)state;
    World w;
    static Entry first, second;
    for (size_t part = 1; part <= FAKE_PARTS; part++) {
        world_open(&w, HELD_STREAM);
        entry_init(&first, 2, HELD_LONG);
        entry_init(&second, 3, HELD_LONG / 4);
        stop_in_shared_pass(&w, &first, &second);
        atomic_store(&w.fixture.fake.fail_part, part);
        go_on(&w);
        check_reply(&w, &second);
        check_reply(&w, &first);
        assert_int_equal(atomic_load(&w.fixture.fake.fail_part), 0);
        world_close(&w);
    }
}

/* One leaves a pass of two whose next part fails: the other is alone by then. */
static void parts_may_fail_after_a_row_has_left(void **state)
{
    (void)state;
    World w;
    static Entry entries[2], next;
    for (size_t leaver = 0; leaver < 2; leaver++) {
        world_open(&w, HELD_STREAM);
        FakeEngine *fake = &w.fixture.fake;
        entry_init(&entries[0], 2, HELD_LONG);
        entry_init(&entries[1], 3, HELD_LONG / 4);
        stop_in_shared_pass(&w, &entries[0], &entries[1]);
        job_release(entries[leaver].job);
        outlast_step();
        atomic_store(&fake->fail_part, 2);
        go_on(&w);
        check_error(&entries[1 - leaver], "a part fails");
        assert_int_equal(atomic_load(&fake->rows_left), 1);
        enter(&w, &next, 4, HELD_LONG);
        check_reply(&w, &next);
        world_close(&w);
    }
}

/* Two prompts in a pass that is refused, or whose last part fails: only the one that causes it
 * ends. */
static void errors_end_only_their_prompt(void **state)
{
    (void)state;
    World w;
    static Entry good, bad;
    world_open(&w, HELD_STREAM);
    entry_init(&good, 2, HELD_LONG);
    entry_init(&bad, 3, HELD_LONG / 4);
    bad.prompt[2] = FAKE_POISON;
    stop_in_first_part(&w, &good);
    entry_enter(&w.fixture, &bad);
    go_on(&w);
    check_error(&bad, "poisoned token");
    check_reply(&w, &good);

    entry_init(&good, 4, HELD_LONG);
    entry_init(&bad, 5, HELD_LONG / 4);
    bad.prompt[2] = FAKE_LATE_POISON;
    stop_in_shared_pass(&w, &good, &bad);
    go_on(&w);
    check_error(&bad, "poison that shows late");
    check_reply(&w, &good);
    world_close(&w);
}

/* ---- Log-probabilities of prompts ---- */

typedef struct Echo {
    LogprobList prompt, reply;
} Echo;

/* The entry's reply is right; what it echoes. */
static void collect_echo(Fixture *fixture, Entry *entry, Echo *echo)
{
    JobStatus status = {0};
    Buffer text;
    buffer_init(&text, HELD_TEXT_MAX);
    logprob_list_init(&echo->prompt);
    logprob_list_init(&echo->reply);
    while (status.finish == FINISH_NONE && job_wait(entry->job, 30))
        job_read_choice(entry->job, 0, &text, &echo->reply, &status);
    assert_reply(fixture, entry->prompt, entry->n_prompt, HELD_REPLY, &text, &status);
    assert_true(job_read_prompt_logprobs(entry->job, &echo->prompt));
    assert_int_equal(logprob_list_count(&echo->prompt), entry->n_prompt);
    buffer_reset(&text);
    job_release(entry->job);
}

static void reset_echo(Echo *echo)
{
    logprob_list_reset(&echo->prompt);
    logprob_list_reset(&echo->reply);
}

/* To the bit. */
static void assert_same_entries(const LogprobList *a, const LogprobList *b)
{
    assert_int_equal(logprob_list_count(a), logprob_list_count(b));
    for (size_t i = 0; i < logprob_list_count(a); i++) {
        const LogprobEntry *x = logprob_list_get(a, i), *y = logprob_list_get(b, i);
        assert_int_equal(x->id, y->id);
        assert_memory_equal(&x->logprob, &y->logprob, sizeof(x->logprob));
        assert_int_equal(x->n_top, y->n_top);
        assert_memory_equal(x->top, y->top, x->n_top * sizeof(*x->top));
        assert_true(slice_equal(logprob_list_bytes(a, x), logprob_list_bytes(b, y)));
    }
}

static void check_echo(World *w, Entry *entry, const Echo *expected)
{
    Echo found;
    collect_echo(&w->fixture, entry, &found);
    assert_same_entries(&found.prompt, &expected->prompt);
    assert_same_entries(&found.reply, &expected->reply);
    reset_echo(&found);
}

/* What entries echo where no pass is held, since nothing decodes beside them. */
static void echo_alone(Entry *entries, size_t count, Echo *echoes)
{
    Fixture fixture;
    fixture_init(&fixture, HELD_SLOTS, 90000);
    atomic_store(&fixture.fake.never_ends, true);
    for (size_t i = 0; i < count; i++) {
        entry_enter(&fixture, &entries[i]);
        collect_echo(&fixture, &entries[i], &echoes[i]);
    }
    assert_int_equal(atomic_load(&fixture.fake.held_passes), 0);
    fixture_reset(&fixture);
}

/* Both prompts' logits in passes that are held, fail in any part and are tried again, or lose a row
 * (the longer one has the last row, the shorter one the first). */
static void prompts_echo_in_held_passes(void **state)
{
    (void)state;
    World w;
    static Entry entries[2];
    Echo expected[2];
    for (size_t i = 0; i < 2; i++) {
        entry_init(&entries[i], 2 + (uint32_t)i, i == 0 ? HELD_LONG : HELD_LONG / 4);
        entries[i].echoes = true;
    }
    echo_alone(entries, 2, expected);
    for (size_t echoing = 0; echoing < 2; echoing++) {
        entries[echoing].echoes = true;
        entries[1 - echoing].echoes = false;
        for (size_t part = 0; part <= FAKE_PARTS; part++) {
            world_open(&w, HELD_STREAM);
            stop_in_shared_pass(&w, &entries[0], &entries[1]);
            atomic_store(&w.fixture.fake.fail_part, part);
            go_on(&w);
            check_reply(&w, &entries[1 - echoing]);
            check_echo(&w, &entries[echoing], &expected[echoing]);
            assert_int_equal(atomic_load(&w.fixture.fake.fail_part), 0);
            world_close(&w);
        }
        world_open(&w, HELD_STREAM);
        stop_in_shared_pass(&w, &entries[0], &entries[1]);
        job_release(entries[1 - echoing].job);
        outlast_step();
        go_on(&w);
        check_echo(&w, &entries[echoing], &expected[echoing]);
        assert_int_equal(atomic_load(&w.fixture.fake.rows_left), 1);
        world_close(&w);
    }
    for (size_t i = 0; i < 2; i++)
        reset_echo(&expected[i]);
}

/* There is room for the logits of one such prompt in a pass: they take turns. */
static void several_prompts_echo(void **state)
{
    (void)state;
    World w;
    enum { ECHOES = HELD_SLOTS - 1 };
    static Entry entries[ECHOES];
    Echo expected[ECHOES];
    for (size_t i = 0; i < ECHOES; i++) {
        entry_init(&entries[i], 2 + (uint32_t)i, HELD_LONG / (i + 4));
        entries[i].echoes = true;
    }
    echo_alone(entries, ECHOES, expected);
    world_open(&w, HELD_STREAM);
    stop_in_first_part(&w, &entries[0]);
    for (size_t i = 1; i < ECHOES; i++)
        entry_enter(&w.fixture, &entries[i]);
    go_on(&w);
    for (size_t i = 0; i < ECHOES; i++) {
        check_echo(&w, &entries[i], &expected[i]);
        reset_echo(&expected[i]);
    }
    world_close(&w);
}

/* ---- Memory ---- */

/* Submits while allocations may fail; false when this one's did. */
static bool try_to_enter(World *w, Entry *entry)
{
    JobRequest request;
    Error err = {0};
    entry_request(entry, &request);
    if (scheduler_submit(w->fixture.scheduler, &request, &entry->job, &err))
        return true;
    assert_int_equal(err.code, ERROR_MEMORY);
    return false;
}

static void assert_want_of_memory(const JobStatus *status)
{
    assert_int_equal(status->finish, FINISH_ERROR);
    assert_int_equal(status->error.code, ERROR_MEMORY);
}

/* It ends rightly, or for want of memory; true where rightly. text has room for the reply, so that
 * reading takes no memory. */
static bool ends_rightly(World *w, Entry *entry, Buffer *text)
{
    JobStatus status;
    collect(entry->job, text, &status);
    if (status.finish == FINISH_ERROR) {
        assert_want_of_memory(&status);
        return false;
    }
    assert_reply(&w->fixture, entry->prompt, entry->n_prompt, HELD_REPLY, text, &status);
    return true;
}

static void check_stream(World *w)
{
    JobStatus status;
    Buffer text;
    buffer_init(&text, HELD_TEXT_MAX);
    job_read(w->stream, &text, &status);
    if (status.finish != FINISH_NONE && status.finish != FINISH_LENGTH)
        assert_want_of_memory(&status);
    buffer_reset(&text);
}

/* The nth allocation from when two prompts enter fails, perhaps the stream's; true when both
 * replies are right. A prompt that gets no memory for its keys waits until the stream has ended.
 * Adds the held passes there were. */
static bool enter_short_of_memory(uint64_t nth, size_t *held_passes)
{
    enum { TOKENS = 150 }; /* of the stream */
    World w;
    static Entry entries[2];
    Buffer texts[2];
    size_t right = 0;
    world_open(&w, TOKENS);
    for (size_t i = 0; i < 2; i++) {
        buffer_init(&texts[i], HELD_TEXT_MAX);
        assert_non_null(buffer_extend(&texts[i], HELD_REPLY));
        buffer_clear(&texts[i]);
        entry_init(&entries[i], 2 + (uint32_t)i, i == 0 ? 150 : 70);
        entries[i].echoes = i > 0;
    }
    atomic_store(&w.fixture.fake.hold, true); /* so that both enter in one step */
    fault_fail_allocation(nth);
    bool entered[] = {try_to_enter(&w, &entries[0]), try_to_enter(&w, &entries[1])};
    atomic_store(&w.fixture.fake.hold, false);
    for (size_t i = 0; i < 2; i++)
        right += entered[i] && ends_rightly(&w, &entries[i], &texts[i]);
    fault_fail_allocation(0);
    check_stream(&w);
    for (size_t i = 0; i < 2; i++) {
        job_release(entries[i].job);
        buffer_reset(&texts[i]);
    }
    *held_passes += atomic_load(&w.fixture.fake.held_passes);
    world_close(&w);
    return right == 2;
}

static void failing_allocations_end_cleanly(void **state)
{
    (void)state;
    enum { ENOUGH = 10 }; /* right ones in a row: no allocation is left that is theirs */
    size_t in_a_row = 0, held_passes = 0;
    uint64_t nth;
    for (nth = 1; nth < 2000 && in_a_row < ENOUGH; nth++)
        in_a_row = enter_short_of_memory(nth, &held_passes) ? in_a_row + 1 : 0;
    assert_int_equal(in_a_row, ENOUGH);
    assert_true(held_passes > nth); /* several a time, unless the stream was struck */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failing_part_ends_a_lone_prompt),
        cmocka_unit_test(failing_parts_are_retried),
        cmocka_unit_test(parts_may_fail_after_a_row_has_left),
        cmocka_unit_test(errors_end_only_their_prompt),
        cmocka_unit_test(prompts_echo_in_held_passes),
        cmocka_unit_test(several_prompts_echo),
        cmocka_unit_test(failing_allocations_end_cleanly),
    };
    return cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
