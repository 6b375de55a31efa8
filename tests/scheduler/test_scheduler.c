/* One job from submission to its end, and what ends it early. */
#include "scheduler_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* ---- One job ---- */

static void replies_are_those_of_the_engine(void **state)
{
    (void)state;
    Fixture fixture;
    fixture_init(&fixture, 2, 4000);
    for (uint32_t i = 0; i < 20; i++)
        run_and_check(&fixture, i, 1 + i * 7, 1 + i * 13 % 200);
    run_and_check(&fixture, 99, 1500, 20);
    assert_int_equal(atomic_load(&fixture.fake.largest_chunk_alone), SCHEDULER_PREFILL_CHUNK_ALONE);
    fixture_reset(&fixture);
}

/* The text of a reply at a temperature, with a seed. */
static void sampled_text(Fixture *fixture, uint64_t seed, Buffer *text)
{
    int32_t prompt[30];
    JobRequest request;
    JobStatus status;
    make_prompt((uint32_t)seed, 30, prompt);
    request_init(&request, prompt, 30, 60);
    request.generation.temperature = 1.5f;
    request.generation.seed = seed;
    request.generation.has_seed = true;
    Job *job = submit(fixture, &request);
    collect(job, text, &status);
    job_release(job);
}

static void engines_may_draw_tokens(void **state)
{
    (void)state;
    Fixture choosing, sampling;
    Buffer by_engine, by_logits;
    size_t total = 0;
    buffer_init(&by_engine, 1 << 16);
    buffer_init(&by_logits, 1 << 16);
    fixture_init_choosing(&choosing, 2, 4000);
    fixture_init(&sampling, 2, 4000);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        buffer_clear(&by_engine);
        buffer_clear(&by_logits);
        sampled_text(&choosing, seed, &by_engine);
        sampled_text(&sampling, seed, &by_logits);
        total += by_engine.len;
        assert_true(slice_equal(buffer_view(&by_engine), buffer_view(&by_logits)));
    }
    assert_true(total > 200);
    assert_int_equal(atomic_load(&choosing.fake.choosing_passes),
                     atomic_load(&choosing.fake.passes));
    buffer_reset(&by_engine);
    buffer_reset(&by_logits);
    fixture_reset(&choosing);
    fixture_reset(&sampling);
}

static void engines_may_choose_greedy_tokens(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[30];
    JobRequest request;
    JobStatus status;
    Buffer text;
    fixture_init_choosing(&fixture, 2, 4000);
    for (uint32_t i = 0; i < 20; i++)
        run_and_check(&fixture, i, 1 + i * 7, 1 + i * 13 % 200);
    assert_int_equal(atomic_load(&fixture.fake.choosing_passes), atomic_load(&fixture.fake.passes));
    /* What is more than a temperature is still sampled from logits. */
    buffer_init(&text, 1 << 16);
    make_prompt(8, 30, prompt);
    request_init(&request, prompt, 30, 5);
    request.generation.frequency_penalty = 1;
    size_t chosen = atomic_load(&fixture.fake.choosing_passes);
    Job *job = submit(&fixture, &request);
    collect(job, &text, &status);
    assert_int_equal(atomic_load(&fixture.fake.choosing_passes), chosen);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void context_bounds_prompt_and_reply(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[120];
    JobRequest request;
    Job *job;
    Error err = {0};
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 1, 100);
    atomic_store(&fixture.fake.never_ends, true);
    make_prompt(5, 120, prompt);
    request_init(&request, prompt, 120, 10);
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_null(job);
    assert_non_null(strstr(err.message, "this model's maximum context length is 100 tokens"));
    assert_non_null(strstr(err.message, "the prompt has 120 tokens"));
    request.n_prompt = 100;
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    request.n_prompt = 99;
    buffer_init(&text, 1000);
    job = submit(&fixture, &request);
    collect(job, &text, &status);
    assert_int_equal(status.finish, FINISH_LENGTH);
    assert_int_equal(text.len, 1);
    job_release(job);
    buffer_clear(&text);
    request.n_prompt = 60;
    request.generation.max_tokens = SIZE_MAX;
    job = submit(&fixture, &request);
    collect(job, &text, &status);
    assert_int_equal(status.completion_tokens, 40);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    Fixture fixture;
    JobRequest request;
    Job *job;
    Error err = {0};
    const int32_t outside[] = {65, FAKE_VOCAB}, negative[] = {-1};
    const LogitBias bias = {FAKE_VOCAB, 1};
    fixture_init(&fixture, 1, 100);
    request_init(&request, outside, 0, 10);
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    request_init(&request, outside, 2, 10);
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    request_init(&request, negative, 1, 10);
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    request_init(&request, outside, 1, 10);
    request.generation.logit_bias = &bias;
    request.generation.n_logit_bias = 1;
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_null(job);
    request_init(&request, outside, 1, 0);
    job = submit(&fixture, &request);
    JobStatus status;
    Buffer text;
    buffer_init(&text, 10);
    collect(job, &text, &status);
    assert_int_equal(status.finish, FINISH_LENGTH);
    assert_int_equal(text.len, 0);
    job_release(job);
    fixture_reset(&fixture);
}

static void stop_strings_cut_the_reply(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[8];
    char reply[100];
    bool ended;
    JobRequest request;
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 1, 1000);
    atomic_store(&fixture.fake.never_ends, true);
    make_prompt(3, 8, prompt);
    fake_reply(prompt, 8, true, reply, 100, &ended);
    const Slice stop = {reply + 40, 5};
    request_init(&request, prompt, 8, 100);
    request.generation.stop = &stop;
    request.generation.n_stop = 1;
    buffer_init(&text, 1000);
    Job *job = submit(&fixture, &request);
    collect(job, &text, &status);
    assert_int_equal(status.finish, FINISH_STOP);
    assert_int_equal(text.len, 40);
    assert_int_equal(status.completion_tokens, 45);
    assert_memory_equal(text.ptr, reply, 40);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void timings_add_up(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[600];
    JobRequest request;
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 1, 4000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 10000);
    make_prompt(3, 600, prompt);
    request_init(&request, prompt, 600, 11);
    buffer_init(&text, 1000);
    double start = clock_monotonic_seconds();
    Job *job = submit(&fixture, &request);
    collect(job, &text, &status);
    double total = clock_monotonic_seconds() - start;
    assert_true(status.prompt_seconds >= 0.019); /* two chunks */
    assert_true(status.decode_seconds >= 0.095); /* ten further tokens */
    assert_true(status.queue_seconds >= 0);
    assert_true(status.queue_seconds + status.prompt_seconds + status.decode_seconds <= total);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

/* ---- Errors ---- */

static void errors_end_only_their_job(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t good[3][50], poisoned[50], nan_prompt[] = {65, FAKE_NAN};
    JobRequest request;
    Job *jobs[5];
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 5, 1000);
    atomic_store(&fixture.fake.hold, true); /* so that all are in one batch */
    for (uint32_t i = 0; i < 3; i++) {
        make_prompt(i, 50, good[i]);
        request_init(&request, good[i], 50, 60);
        jobs[i] = submit(&fixture, &request);
    }
    make_prompt(9, 50, poisoned);
    poisoned[30] = FAKE_POISON;
    request_init(&request, poisoned, 50, 60);
    jobs[3] = submit(&fixture, &request);
    request_init(&request, nan_prompt, 2, 60);
    jobs[4] = submit(&fixture, &request);
    atomic_store(&fixture.fake.hold, false);
    buffer_init(&text, 1000);
    for (uint32_t i = 0; i < 3; i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        assert_reply(&fixture, good[i], 50, 60, &text, &status);
    }
    for (uint32_t i = 3; i < 5; i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        assert_int_equal(status.finish, FINISH_ERROR);
        assert_int_equal(status.error.code, ERROR_INTERNAL);
        assert_int_equal(text.len, 0);
    }
    for (uint32_t i = 0; i < 5; i++)
        job_release(jobs[i]);
    buffer_reset(&text);
    run_and_check(&fixture, 77, 20, 50);
    fixture_reset(&fixture);
}

static void kv_memory_has_a_limit(void **state)
{
    (void)state;
    const size_t gib = (size_t)1 << 30, least = SCHEDULER_KV_BYTES_LEAST;
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, 0), 4 * gib);
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, 32 * gib), 4 * gib);
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, 8 * gib), 3 * gib);
    assert_int_equal(scheduler_kv_bytes(SIZE_MAX / 2, 4, 2 * gib, 8 * gib), 3 * gib);
    /* The weights take everything. */
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, 2 * gib + 1000), least);
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, 2 * gib), least);
    assert_int_equal(scheduler_kv_bytes(gib, 4, 2 * gib, gib), least);
    assert_int_equal(scheduler_kv_bytes(1000, 4, 2 * gib, gib), 4000);
}

static void jobs_wait_for_kv_memory(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[50];
    JobRequest request;
    Job *jobs[6];
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 6, 1000);
    atomic_store(&fixture.fake.kv_tokens, 250); /* two jobs of 100 at a time */
    make_prompt(4, 50, prompt);
    request_init(&request, prompt, 50, 50);
    for (int i = 0; i < 6; i++)
        jobs[i] = submit(&fixture, &request);
    buffer_init(&text, 1000);
    for (int i = 0; i < 6; i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        assert_reply(&fixture, prompt, 50, 50, &text, &status);
        job_release(jobs[i]);
    }
    request.generation.max_tokens = 300; /* never fits */
    Job *job = submit(&fixture, &request);
    buffer_clear(&text);
    collect(job, &text, &status);
    assert_int_equal(status.finish, FINISH_ERROR);
    assert_int_equal(status.error.code, ERROR_MEMORY);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

/* The first in the queue is too large for what memory is left, and its owner goes: those behind it
 * do not wait for a running job to end. */
static void who_has_gone_blocks_nobody(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[10];
    JobRequest request;
    JobStatus status;
    Buffer text;
    SchedulerStatistics statistics;
    fixture_init(&fixture, 3, 30000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 1000);
    atomic_store(&fixture.fake.kv_tokens, 30000);
    make_prompt(4, 10, prompt);
    request_init(&request, prompt, 10, 20000);
    Job *running = submit(&fixture, &request);
    assert_true(job_wait(running, 30));
    Job *large = submit(&fixture, &request);
    scheduler_statistics(fixture.scheduler, &statistics);
    for (uint64_t steps = statistics.steps_total; statistics.steps_total < steps + 3;) {
        pause_milliseconds(1);
        scheduler_statistics(fixture.scheduler, &statistics);
    }
    assert_int_equal(statistics.waiting, 1);
    request_init(&request, prompt, 10, 20);
    Job *small = submit(&fixture, &request);
    job_release(large);
    buffer_init(&text, 1 << 20);
    collect(small, &text, &status);
    assert_reply(&fixture, prompt, 10, 20, &text, &status);
    job_read(running, &text, &status);
    assert_int_equal(status.finish, FINISH_NONE);
    job_release(small);
    job_release(running);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void unread_text_is_bounded(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[] = {'a', FAKE_LONG};
    JobRequest request;
    JobStatus status;
    Buffer text;
    SchedulerStatistics statistics;
    enum { TOKENS = SCHEDULER_JOB_TEXT_BYTES_MAX / FAKE_LONG_BYTES + 100 };
    Error err = {0};
    fake_engine_init(&fixture.fake, TOKENS * 2);
    SchedulerOptions options = {.slots = 1};
    assert_true(scheduler_create(&fixture.fake.engine, tokenizer, &fixture.fake.config, &options,
                                 &fixture.scheduler, &err));
    request_init(&request, prompt, 2, TOKENS);
    Job *job = submit(&fixture, &request);
    for (int i = 0; i < 1000; i++) {
        scheduler_statistics(fixture.scheduler, &statistics);
        if (statistics.cancelled_total > 0)
            break;
        pause_milliseconds(10);
    }
    assert_int_equal(statistics.cancelled_total, 1);
    buffer_init(&text, 1 << 24);
    job_read(job, &text, &status);
    assert_int_equal(status.finish, FINISH_CANCELLED);
    assert_non_null(strstr(status.error.message, "8388608 bytes"));
    assert_int_equal(text.len, SCHEDULER_JOB_TEXT_BYTES_MAX);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void failing_allocations_end_cleanly(void **state)
{
    (void)state;
    int32_t prompt[10];
    make_prompt(1, 10, prompt);
    for (uint64_t nth = 1; nth < 60; nth++) {
        FakeEngine fake;
        Scheduler *scheduler = NULL;
        SchedulerOptions options = {.slots = 2, .max_context = 100};
        JobRequest request;
        Job *job = NULL;
        Error err = {0};
        fake_engine_init(&fake, 1000);
        request_init(&request, prompt, 10, 20);
        fault_fail_allocation(nth);
        if (scheduler_create(&fake.engine, tokenizer, &fake.config, &options, &scheduler, &err) &&
            scheduler_submit(scheduler, &request, &job, &err)) {
            Buffer text;
            JobStatus status = {0};
            buffer_init(&text, 1000);
            while (status.finish == FINISH_NONE && job_wait(job, 30))
                job_read(job, &text, &status);
            assert_int_not_equal(status.finish, FINISH_NONE);
            assert_int_not_equal(status.finish, FINISH_CANCELLED);
            if (status.finish == FINISH_ERROR)
                assert_int_equal(status.error.code, ERROR_MEMORY);
            job_release(job);
            buffer_reset(&text);
        } else {
            assert_int_equal(err.code, ERROR_MEMORY);
            assert_null(job);
        }
        scheduler_free(scheduler);
        fault_fail_allocation(0);
        assert_int_equal(atomic_load(&fake.sequences), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_are_those_of_the_engine),
        cmocka_unit_test(engines_may_choose_greedy_tokens),
        cmocka_unit_test(engines_may_draw_tokens),
        cmocka_unit_test(context_bounds_prompt_and_reply),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(stop_strings_cut_the_reply),
        cmocka_unit_test(timings_add_up),
        cmocka_unit_test(errors_end_only_their_job),
        cmocka_unit_test(kv_memory_has_a_limit),
        cmocka_unit_test(jobs_wait_for_kv_memory),
        cmocka_unit_test(who_has_gone_blocks_nobody),
        cmocka_unit_test(unread_text_is_bounded),
        cmocka_unit_test(failing_allocations_end_cleanly),
    };
    int failed = cmocka_run_group_tests(tests, scheduler_tests_setup, scheduler_tests_teardown);
    return failed +
           cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
