/* Several choices of one job, and the log-probabilities of replies and prompts. */
#include "scheduler_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CHOICES = 5, REPLY = 40 };

/* Reads all choices to their ends. */
static void collect_choices(Job *job, Buffer *texts, JobStatus *status)
{
    size_t ended = 0, count = job_choice_count(job);
    for (size_t i = 0; i < count; i++) {
        buffer_init(&texts[i], 1 << 20);
        status[i].finish = FINISH_NONE;
    }
    while (ended < count) {
        if (!job_wait(job, 30))
            fail_msg("nothing new for 30 seconds");
        ended = 0;
        for (size_t i = 0; i < count; i++) {
            job_read_choice(job, i, &texts[i], NULL, &status[i]);
            ended += status[i].finish != FINISH_NONE;
        }
    }
}

static void sampled_request(JobRequest *request, const int32_t *prompt, size_t n_prompt)
{
    request_init(request, prompt, n_prompt, REPLY);
    request->generation.temperature = 1.7f;
    request->generation.has_seed = true;
    request->generation.seed = 99;
    request->generation.ignore_eos = true;
}

/* Whether there are slots for all choices or for one at a time, choice i is what a job of its own
 * with that choice's stream says; the prompt is computed once. */
static void choices_are_streams_over_one_prompt(void **state)
{
    (void)state;
    static const size_t slot_counts[] = {CHOICES + 1, 2, 1};
    for (size_t s = 0; s < ARRAY_COUNT(slot_counts); s++) {
        Fixture fixture;
        int32_t prompt[900];
        JobRequest request;
        JobStatus status[CHOICES], alone;
        Buffer texts[CHOICES], text;
        fixture_init(&fixture, slot_counts[s], 2000);
        make_prompt(8, 900, prompt);
        sampled_request(&request, prompt, 900);
        request.n = CHOICES;
        Job *job = submit(&fixture, &request);
        collect_choices(job, texts, status);
        job_release(job);
        if (slot_counts[s] > 1) {
            size_t expected = 900 + CHOICES * (REPLY - 1) + CHOICES - 1;
            assert_int_equal(atomic_load(&fixture.fake.tokens), expected);
        }
        request.n = 1;
        buffer_init(&text, 1 << 20);
        for (uint32_t i = 0; i < CHOICES; i++) {
            request.generation.choice = i;
            buffer_clear(&text);
            job = submit(&fixture, &request);
            collect(job, &text, &alone);
            job_release(job);
            assert_int_equal(status[i].finish, FINISH_LENGTH);
            assert_int_equal(status[i].completion_tokens, REPLY);
            assert_int_equal(status[i].cached_tokens, 0);
            assert_true(slice_equal(buffer_view(&text), buffer_view(&texts[i])));
            assert_true(i == 0 || !slice_equal(buffer_view(&texts[0]), buffer_view(&texts[i])));
            buffer_reset(&texts[i]);
        }
        buffer_reset(&text);
        fixture_reset(&fixture);
    }
}

/* A prefix that another sequence holds is not computed again, and one that is being computed is
 * waited for. */
static void running_prompts_are_shared(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompts[3][600];
    JobRequest request;
    Job *jobs[3];
    JobStatus status;
    Buffer text;
    fixture_init(&fixture, 3, 2000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.hold, true);
    for (uint32_t i = 0; i < 3; i++) {
        make_prompt(5, 600, prompts[i]);
        prompts[i][550] = (int32_t)i;
        prompts[i][550] += '0';
        request_init(&request, prompts[i], 600, 100);
        jobs[i] = submit(&fixture, &request);
    }
    atomic_store(&fixture.fake.hold, false);
    buffer_init(&text, 1000);
    for (uint32_t i = 0; i < 3; i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        assert_reply(&fixture, prompts[i], 600, 100, &text, &status);
        assert_int_equal(status.cached_tokens, i == 0 ? 0 : 550);
        job_release(jobs[i]);
    }
    assert_int_equal(atomic_load(&fixture.fake.tokens), 600 + 2 * 50 + 3 * 99);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void without_a_cache_nothing_is_shared(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[600];
    JobRequest request;
    Job *jobs[3];
    JobStatus status;
    Buffer text;
    fixture_init_uncached(&fixture, 3, 2000);
    make_prompt(5, 600, prompt);
    request_init(&request, prompt, 600, 100);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.hold, true);
    for (size_t i = 0; i < 3; i++)
        jobs[i] = submit(&fixture, &request);
    atomic_store(&fixture.fake.hold, false);
    buffer_init(&text, 1000);
    for (size_t i = 0; i < 3; i++) {
        buffer_clear(&text);
        collect(jobs[i], &text, &status);
        assert_reply(&fixture, prompt, 600, 100, &text, &status);
        assert_int_equal(status.cached_tokens, 0);
        job_release(jobs[i]);
    }
    assert_int_equal(atomic_load(&fixture.fake.forks), 0);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

static void released_choices_are_cancelled(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t prompt[20];
    JobRequest request;
    SchedulerStatistics statistics;
    fixture_init(&fixture, 2, 90000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 200);
    make_prompt(1, 20, prompt);
    request_init(&request, prompt, 20, 80000);
    request.n = CHOICES; /* two run, three wait */
    Job *job = submit(&fixture, &request);
    assert_true(job_wait(job, 10));
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.running, 1);
    assert_int_equal(statistics.waiting, 0);
    job_release(job);
    wait_for_idle(&fixture);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.cancelled_total, 1);
    request.n = SCHEDULER_CHOICES_MAX + 1;
    Error err = {0};
    assert_false(scheduler_submit(fixture.scheduler, &request, &job, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    fixture_reset(&fixture);
}

/* Ten passes are needed for the prompt; not many more than one is made after its owner has gone. */
static void prefill_is_cancelled_within_a_step(void **state)
{
    (void)state;
    enum { PROMPT = 10 * SCHEDULER_PREFILL_CHUNK_ALONE };
    Fixture fixture;
    static int32_t prompt[PROMPT];
    JobRequest request;
    SchedulerStatistics statistics;
    fixture_init(&fixture, 1, 2 * PROMPT);
    atomic_store(&fixture.fake.delay_microseconds, 20000);
    make_prompt(1, PROMPT, prompt);
    request_init(&request, prompt, PROMPT, 10);
    Job *job = submit(&fixture, &request);
    while (atomic_load(&fixture.fake.passes) < 2)
        pause_milliseconds(1);
    size_t before = atomic_load(&fixture.fake.passes);
    job_release(job);
    wait_for_idle(&fixture);
    assert_true(atomic_load(&fixture.fake.passes) <= before + 2);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_int_equal(statistics.cancelled_total, 1);
    /* What was computed is not lost. */
    JobStatus status;
    Buffer text;
    buffer_init(&text, 1000);
    atomic_store(&fixture.fake.delay_microseconds, 0);
    job = submit(&fixture, &request);
    collect(job, &text, &status);
    assert_in_range(status.cached_tokens, 2 * SCHEDULER_PREFILL_CHUNK_ALONE, PROMPT - 1);
    assert_reply(&fixture, prompt, PROMPT, 10, &text, &status);
    job_release(job);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

/* ---- Log-probabilities ---- */

/* The formula, in double. */
static double expected_logprob(const int32_t *tokens, size_t count, int32_t id)
{
    float logits[FAKE_VOCAB];
    double sum = 0;
    fake_logits_after(tokens, count, true, logits);
    for (size_t i = 0; i < FAKE_VOCAB; i++)
        sum += exp((double)logits[i]);
    return (double)logits[id] - log(sum);
}

static void check_entry(const LogprobEntry *entry, const int32_t *tokens, size_t count, int32_t id)
{
    assert_int_equal(entry->id, id);
    assert_true(fabs((double)entry->logprob - expected_logprob(tokens, count, id)) < 1e-5);
    assert_int_equal(entry->n_top, 4);
    for (size_t i = 0; i < 4; i++) {
        double expected = expected_logprob(tokens, count, entry->top[i].id);
        assert_true(fabs((double)entry->top[i].logprob - expected) < 1e-5);
        assert_true(i == 0 || entry->top[i].logprob <= entry->top[i - 1].logprob);
    }
}

/* Bias and temperature do not show in them; stop strings take theirs along. */
static void log_probabilities_are_those_of_raw_logits(void **state)
{
    (void)state;
    Fixture fixture;
    int32_t tokens[30 + REPLY];
    const LogitBias bias = {'q', 3};
    JobRequest request;
    JobStatus status = {0};
    Buffer text;
    LogprobList list;
    fixture_init(&fixture, 2, 2000);
    atomic_store(&fixture.fake.never_ends, true);
    make_prompt(8, 30, tokens);
    sampled_request(&request, tokens, 30);
    request.generation.logit_bias = &bias;
    request.generation.n_logit_bias = 1;
    request.generation.logprobs = true;
    request.generation.top_logprobs = 4;
    buffer_init(&text, 1 << 20);
    logprob_list_init(&list);
    Job *job = submit(&fixture, &request);
    while (status.finish == FINISH_NONE && job_wait(job, 30))
        job_read_choice(job, 0, &text, &list, &status);
    assert_int_equal(status.finish, FINISH_LENGTH);
    assert_int_equal(logprob_list_count(&list), REPLY);
    for (size_t i = 0; i < REPLY; i++) {
        const LogprobEntry *entry = logprob_list_get(&list, i);
        check_entry(entry, tokens, 30 + i, entry->id);
        assert_int_equal(logprob_list_bytes(&list, entry).len, 1);
        tokens[30 + i] = entry->id;
    }
    job_release(job);
    logprob_list_reset(&list);
    buffer_reset(&text);
    fixture_reset(&fixture);
}

/* A prompt longer than a chunk, with a reply and without. */
static void prompts_have_log_probabilities(void **state)
{
    (void)state;
    enum { PROMPT = 3 * SCHEDULER_ECHO_CHUNK + 5 };
    for (size_t max_tokens = 0; max_tokens <= 3; max_tokens += 3) {
        Fixture fixture;
        int32_t prompt[PROMPT];
        JobRequest request;
        JobStatus status[2];
        Buffer texts[2];
        LogprobList list;
        fixture_init(&fixture, 2, 2000);
        atomic_store(&fixture.fake.never_ends, true);
        make_prompt(7, PROMPT, prompt);
        run_and_check(&fixture, 7, PROMPT, 5); /* would be a source, were no logits wanted */
        request_init(&request, prompt, PROMPT, max_tokens);
        request.generation.logprobs = true;
        request.generation.top_logprobs = 4;
        request.prompt_logprobs = true;
        request.n = 2;
        logprob_list_init(&list);
        Job *job = submit(&fixture, &request);
        collect_choices(job, texts, status);
        assert_true(job_read_prompt_logprobs(job, &list));
        assert_int_equal(logprob_list_count(&list), PROMPT);
        assert_true(isnan(logprob_list_get(&list, 0)->logprob));
        assert_int_equal(logprob_list_get(&list, 0)->id, prompt[0]);
        for (size_t i = 1; i < PROMPT; i++) {
            const LogprobEntry *entry = logprob_list_get(&list, i);
            check_entry(entry, prompt, i, prompt[i]);
            assert_int_equal(logprob_list_bytes(&list, entry).ptr[0], prompt[i]);
        }
        for (size_t i = 0; i < 2; i++) {
            assert_int_equal(status[i].finish, FINISH_LENGTH);
            assert_int_equal(texts[i].len, max_tokens);
            assert_int_equal(status[i].cached_tokens, 0);
            buffer_reset(&texts[i]);
        }
        job_release(job);
        logprob_list_reset(&list);
        fixture_reset(&fixture);
    }
}

/* ---- Statistics ---- */

static void statistics_tell_what_happened(void **state)
{
    (void)state;
    Fixture fixture;
    SchedulerStatistics statistics;
    SchedulerSlot slots[4];
    fixture_init(&fixture, 3, 2000);
    atomic_store(&fixture.fake.never_ends, true);
    run_and_check(&fixture, 1, 50, 11);
    run_and_check(&fixture, 2, 60, 11);
    wait_for_idle(&fixture);
    scheduler_statistics(fixture.scheduler, &statistics);
    assert_true(statistics.thread_alive);
    assert_true(statistics.step_age_seconds == 0);
    assert_int_equal(statistics.prompt_tokens_total, 110);
    assert_int_equal(statistics.generated_tokens_total, 22);
    assert_int_equal(statistics.first_token.count, 2);
    assert_int_equal(statistics.inter_token.count, 20);
    assert_true(statistics.steps_total >= 22);
    uint64_t sum = 0;
    for (size_t i = 0; i <= SCHEDULER_HISTOGRAM_BUCKETS; i++)
        sum += statistics.inter_token.counts[i];
    assert_int_equal(sum, 20);
    assert_true(statistics.first_token.sum > 0);
    assert_int_equal(scheduler_slots(fixture.scheduler, slots, 4), 3);
    assert_false(slots[0].is_processing);
    /* A pass that hangs shows in the age of the step. */
    int32_t prompt[10];
    JobRequest request;
    make_prompt(3, 10, prompt);
    request_init(&request, prompt, 10, 5);
    atomic_store(&fixture.fake.hold, true);
    Job *job = submit(&fixture, &request);
    for (int i = 0; i < 5000 && statistics.step_age_seconds < 0.02; i++) {
        pause_milliseconds(2);
        scheduler_statistics(fixture.scheduler, &statistics);
    }
    assert_true(statistics.step_age_seconds >= 0.02);
    atomic_store(&fixture.fake.hold, false);
    job_release(job);
    fixture_reset(&fixture);
}

/* ---- Memory ---- */

/* A reply that ended well has all of its prompt's entries, unless the reader finds no memory. */
static void assert_prompt_is_complete(Job *job, size_t n_prompt)
{
    LogprobList list;
    Error err;
    logprob_list_init(&list);
    assert_true(job_read_prompt_logprobs(job, &list));
    if (logprob_list_check(&list, &err))
        assert_int_equal(logprob_list_count(&list), n_prompt);
    logprob_list_reset(&list);
}

static void failing_allocations_end_cleanly(void **state)
{
    (void)state;
    int32_t prompt[70];
    size_t clean = 0;
    make_prompt(1, 70, prompt);
    for (uint64_t nth = 1; nth < 2000 && clean < 5; nth++) {
        FakeEngine fake;
        Scheduler *scheduler = NULL;
        SchedulerOptions options = {.slots = 2, .max_context = 200};
        JobRequest request;
        Job *job = NULL;
        Error err = {0};
        fake_engine_init(&fake, 1000);
        sampled_request(&request, prompt, 70);
        request.generation.logprobs = request.prompt_logprobs = true;
        request.generation.top_logprobs = 2;
        request.generation.presence_penalty = 0.5f;
        request.n = 3;
        fault_fail_allocation(nth);
        if (scheduler_create(&fake.engine, tokenizer, &fake.config, &options, &scheduler, &err) &&
            scheduler_submit(scheduler, &request, &job, &err)) {
            Buffer texts[3];
            JobStatus status[3];
            collect_choices(job, texts, status);
            bool all = true;
            for (size_t i = 0; i < 3; i++) {
                assert_true(status[i].finish == FINISH_LENGTH || status[i].finish == FINISH_ERROR);
                if (status[i].finish == FINISH_ERROR)
                    assert_int_equal(status[i].error.code, ERROR_MEMORY);
                all &= status[i].finish == FINISH_LENGTH && texts[i].len >= REPLY;
                buffer_reset(&texts[i]);
            }
            clean += all;
            if (all)
                assert_prompt_is_complete(job, 70);
            job_release(job);
        } else {
            assert_int_equal(err.code, ERROR_MEMORY);
            assert_null(job);
        }
        scheduler_free(scheduler);
        fault_fail_allocation(0);
        assert_int_equal(atomic_load(&fake.sequences), 0);
        assert_false(atomic_load(&fake.misused));
    }
    assert_true(clean > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_streams_over_one_prompt),
        cmocka_unit_test(running_prompts_are_shared),
        cmocka_unit_test(without_a_cache_nothing_is_shared),
        cmocka_unit_test(released_choices_are_cancelled),
        cmocka_unit_test(prefill_is_cancelled_within_a_step),
        cmocka_unit_test(log_probabilities_are_those_of_raw_logits),
        cmocka_unit_test(prompts_have_log_probabilities),
        cmocka_unit_test(statistics_tell_what_happened),
        cmocka_unit_test(failing_allocations_end_cleanly),
    };
    int failed = cmocka_run_group_tests(tests, scheduler_tests_setup, scheduler_tests_teardown);
    return failed +
           cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
