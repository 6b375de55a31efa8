/* Many jobs at a time: the queue, how owners go and are told, and what shares a batch. */
#include "scheduler_fixture.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* ---- Queue, cancellation, end ---- */

/* Each job of 20 prompt tokens replies with 2, and is released. */
static void finish_jobs(Fixture *fixture, const int32_t *prompt, Job **jobs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        Buffer text;
        JobStatus status;
        buffer_init(&text, 100);
        collect(jobs[i], &text, &status);
        assert_reply(fixture, prompt, 20, 2, &text, &status);
        buffer_reset(&text);
        job_release(jobs[i]);
    }
}

static void queue_is_bounded(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[20];
    JobRequest request;
    Job *jobs[SCHEDULER_QUEUE_MAX + 1], *job;
    Error err = {0};
    SchedulerStatistics statistics;
    fixture_init(&fixture, 1, 1000);
    atomic_store(&fixture.fake.hold, true);
    make_prompt(1, 20, prompt);
    request_init(&request, prompt, 20, 2);
    jobs[0] = submit(&fixture, &request);
    do { /* until the first has left the queue */
        pause_milliseconds(1);
        scheduler_statistics(fixture.scheduler, &statistics);
    } while (statistics.waiting > 0);
    for (size_t i = 1; i <= SCHEDULER_QUEUE_MAX; i++)
        jobs[i] = submit(&fixture, &request);
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_BUSY);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.waiting, SCHEDULER_QUEUE_MAX);
    assert_int_equal(statistics.running, 1);
    /* A waiting job whose owner goes makes room at once. */
    job_release(jobs[100]);
    jobs[100] = submit(&fixture, &request);
    atomic_store(&fixture.fake.hold, false);
    finish_jobs(&fixture, prompt, jobs, SCHEDULER_QUEUE_MAX + 1);
    wait_for_idle(&fixture);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.cancelled_total, 1);
    assert_int_equal(statistics.prompt_tokens_total, 20 * (SCHEDULER_QUEUE_MAX + 1));
    fixture_reset(&fixture);
}

/* Its owner goes while the inference thread is making the job's sequence, and another thread looks
 * for room in the full queue: the job must last until the inference thread is done with it. */
static void a_job_lasts_while_it_is_admitted(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[20];
    JobRequest request;
    Job *jobs[SCHEDULER_QUEUE_MAX], *last;
    fixture_init(&fixture, 1, 1000);
    atomic_store(&fixture.fake.hold_creation, true);
    make_prompt(1, 20, prompt);
    request_init(&request, prompt, 20, 2);
    jobs[0] = submit(&fixture, &request);
    while (!atomic_load(&fixture.fake.is_creating))
        pause_milliseconds(1);
    for (size_t i = 1; i < SCHEDULER_QUEUE_MAX; i++)
        jobs[i] = submit(&fixture, &request);
    job_release(jobs[0]);
    job_release(jobs[1]);
    last = submit(&fixture, &request);
    atomic_store(&fixture.fake.hold_creation, false);
    jobs[1] = last;
    finish_jobs(&fixture, prompt, jobs + 1, SCHEDULER_QUEUE_MAX - 1);
    wait_for_idle(&fixture);
    SchedulerStatistics statistics;
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.cancelled_total, 2);
    fixture_reset(&fixture);
}

/* A pass takes 2 ms and 0.1 ms for each further token, so some 30 prompt tokens make it 2.5 times
 * as long. The bound is wide, since a busy machine sleeps longer than it was told. */
static void decoding_goes_on_beside_prefill(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[3000], small[10];
    JobRequest request;
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 2, 10000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 2000);
    atomic_store(&fixture.fake.token_delay_microseconds, 100);
    make_prompt(1, 10, small);
    make_prompt(2, 3000, prompt);
    buffer_init(&text, 10000);
    request_init(&request, small, 10, 5000);
    Job *first = submit(&fixture, &request);
    assert_true(job_wait(first, 10));
    request_init(&request, prompt, 3000, 3);
    Job *second = submit(&fixture, &request);
    collect(second, &text, &status);
    assert_reply(&fixture, prompt, 3000, 3, &text, &status);
    /* 30 where sleeps are exact; a busy machine stretches the short ones more than the long. With
     * an engine that can hold passes only the prompt's end may go along. */
    size_t least = engine_can_hold(&fixture.fake.engine) ? 1 : 8;
    assert_in_range(atomic_load(&fixture.fake.largest_chunk_beside_decode), least,
                    SCHEDULER_PREFILL_CHUNK - 1);
    atomic_store(&fixture.fake.delay_microseconds, 0);
    atomic_store(&fixture.fake.token_delay_microseconds, 0);
    buffer_clear(&text);
    collect(first, &text, &status);
    assert_reply(&fixture, small, 10, 5000, &text, &status);
    job_release(first);
    job_release(second);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void count_notify(void *context)
{
    atomic_fetch_add((atomic_int *)context, 1);
}

static void released_jobs_are_cancelled_and_silent(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[10];
    JobRequest request;
    SchedulerStatistics statistics;
    atomic_int notified = 0;
    fixture_init(&fixture, 1, 90000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 200);
    make_prompt(1, 10, prompt);
    request_init(&request, prompt, 10, 80000);
    request.notify = count_notify;
    request.notify_context = &notified;
    Job *job = submit(&fixture, &request);
    Job *waiting = submit(&fixture, &request);
    assert_true(job_wait(job, 10));
    assert_false(job_wait(waiting, 0.01));
    job_release(waiting);
    job_release(job);
    int after = atomic_load(&notified);
    assert_true(after > 0);
    wait_for_idle(&fixture);
    assert_int_equal(atomic_load(&notified), after);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.cancelled_total, 2);
    fixture_reset(&fixture);
}

static void notifications_can_be_rare(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[10];
    JobRequest request;
    JobStatus status;
    Buffer text;
    atomic_int notified = 0;
    fixture_init(&fixture, 1, 9000);
    atomic_store(&fixture.fake.never_ends, true);
    make_prompt(1, 10, prompt);
    request_init(&request, prompt, 10, 500);
    request.notify = count_notify;
    request.notify_context = &notified;
    request.notify_bytes = 1 << 20;
    buffer_init(&text, 1000);
    Job *job = submit(&fixture, &request);
    do {
        pause_milliseconds(1);
        status.finish = FINISH_NONE;
        if (atomic_load(&notified) > 0)
            job_read(job, &text, &status);
    } while (status.finish == FINISH_NONE);
    assert_int_equal(text.len, 500);
    assert_int_equal(atomic_load(&notified), 1);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

/* However many choices a step gave a token: one call, and one for each choice's end. */
static void owners_are_told_once_a_step(void **state)
{
    (void)state;
    enum { CHOICES = 4, TOKENS = 100 };
    Fixture fixture;
    int32_t prompt[10];
    JobRequest request;
    SchedulerStatistics statistics;
    atomic_int notified = 0;
    fixture_init(&fixture, CHOICES, 9000);
    atomic_store(&fixture.fake.never_ends, true);
    make_prompt(1, 10, prompt);
    request_init(&request, prompt, 10, TOKENS);
    request.n = CHOICES;
    request.notify = count_notify;
    request.notify_context = &notified;
    Job *job = submit(&fixture, &request);
    wait_for_idle(&fixture);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.generated_tokens_total, CHOICES * TOKENS);
    assert_true(atomic_load(&notified) >= TOKENS);
    assert_true((uint64_t)atomic_load(&notified) <= statistics.steps_total + CHOICES);
    assert_true(statistics.steps_total < CHOICES * TOKENS);
    job_release(job);
    fixture_reset(&fixture);
}

static void jobs_outlive_the_scheduler(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[10];
    JobRequest request;
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 1, 90000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 500);
    make_prompt(1, 10, prompt);
    request_init(&request, prompt, 10, 80000);
    Job *running = submit(&fixture, &request), *waiting = submit(&fixture, &request);
    assert_true(job_wait(running, 10));
    fixture_reset(&fixture);
    buffer_init(&text, 1 << 20);
    assert_true(job_wait(waiting, 0));
    job_read(waiting, &text, &status);
    assert_int_equal(status.finish, FINISH_CANCELLED);
    assert_int_equal(text.len, 0);
    job_read(running, &text, &status);
    assert_int_equal(status.finish, FINISH_CANCELLED);
    assert_true(text.len > 0);
    job_release(running);
    job_release(waiting);
    buffer_reset(&text);
}

/* ---- Many threads ---- */

typedef struct Caller {
    Fixture *fixture;
    uint32_t number;
    size_t completed, cancelled, wrong;
} Caller;

static bool reply_is_right(const Caller *caller, const int32_t *prompt, size_t n_prompt, size_t max,
                           const Buffer *text)
{
    char expected[400];
    bool ended;
    size_t length = fake_reply(prompt, n_prompt, atomic_load(&caller->fixture->fake.never_ends),
                               expected, max, &ended);
    return length == text->len && (length == 0 || memcmp(expected, text->ptr, length) == 0);
}

/* Assertions belong to the main thread: this one counts. */
static void *call_many(void *argument)
{
    Caller *caller = argument;
    uint32_t random = caller->number * 7919 + 1;
    for (int i = 0; i < 60; i++) {
        int32_t prompt[700];
        JobRequest request;
        JobStatus status = {0};
        Job *job;
        Error err;
        Buffer text;
        random = random * 1664525u + 1013904223u;
        size_t n_prompt = 1 + (random >> 8) % 699, max = 1 + (random >> 18) % 300;
        bool cancels = (random >> 4) % 3 == 0;
        make_prompt(random, n_prompt, prompt);
        request_init(&request, prompt, n_prompt, max);
        if (!scheduler_submit(caller->fixture->scheduler, &request, &job, &err)) {
            caller->wrong++;
            continue;
        }
        buffer_init(&text, 1000);
        if (cancels) {
            job_wait(job, (double)(random % 5) / 1000);
            caller->cancelled++;
        } else {
            while (status.finish == FINISH_NONE && job_wait(job, 60))
                job_read(job, &text, &status);
            caller->wrong += !reply_is_right(caller, prompt, n_prompt, max, &text);
            caller->completed++;
        }
        job_release(job);
        buffer_reset(&text);
    }
    return NULL;
}

static void many_callers_get_their_own_replies(void **state)
{
    (void)state;
    enum { CALLERS = 8 };
    Fixture fixture;
    pthread_t threads[CALLERS];
    Caller callers[CALLERS];
    size_t completed = 0;
    SchedulerStatistics statistics;
    fixture_init(&fixture, 5, 2000);
    for (uint32_t i = 0; i < CALLERS; i++) {
        callers[i] = (Caller){.fixture = &fixture, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, call_many, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].wrong, 0);
        completed += callers[i].completed;
    }
    assert_true(completed > 200);
    assert_true(atomic_load(&fixture.fake.most_rows) >= 2); /* they did share batches */
    assert_true(atomic_load(&fixture.fake.most_rows) <= 5);
    wait_for_idle(&fixture);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_true(statistics.cancelled_total <= 60 * CALLERS - completed);
    assert_int_equal(statistics.slots, 5);
    fixture_reset(&fixture);
}

static void sampled_replies_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[30];
    JobRequest request;
    JobStatus status;
    Buffer alone, text;
    Job *jobs[12];
    buffer_init(&alone, 1 << 16);
    buffer_init(&text, 1 << 16);
    fixture_init(&fixture, 4, 2000);
    make_prompt(8, 30, prompt);
    request_init(&request, prompt, 30, 100);
    request.generation.temperature = 1.9f;
    request.generation.has_seed = true;
    request.generation.seed = 4711;
    request.generation.ignore_eos = true;
    Job *job = submit(&fixture, &request);
    collect(job, &alone, &status);
    job_release(job);
    assert_int_equal(status.completion_tokens, 100);
    for (size_t i = 0; i < ARRAY_COUNT(jobs); i++) {
        JobRequest other = request;
        other.generation.seed = i % 3 == 0 ? 4711 : i;
        jobs[i] = submit(&fixture, &other);
    }
    for (size_t i = 0; i < ARRAY_COUNT(jobs); i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        bool same = slice_equal(buffer_view(&text), buffer_view(&alone));
        assert_int_equal(same, i % 3 == 0);
        job_release(jobs[i]);
    }
    buffer_reset(&alone);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_is_bounded),
        cmocka_unit_test(a_job_lasts_while_it_is_admitted),
        cmocka_unit_test(decoding_goes_on_beside_prefill),
        cmocka_unit_test(released_jobs_are_cancelled_and_silent),
        cmocka_unit_test(notifications_can_be_rare),
        cmocka_unit_test(owners_are_told_once_a_step),
        cmocka_unit_test(jobs_outlive_the_scheduler),
        cmocka_unit_test(many_callers_get_their_own_replies),
        cmocka_unit_test(sampled_replies_do_not_depend_on_the_batch),
    };
    int failed = cmocka_run_group_tests(tests, scheduler_tests_setup, scheduler_tests_teardown);
    return failed +
           cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
