#include "scheduler_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

Tokenizer *tokenizer;
static bool engines_hold;

int scheduler_tests_setup(void **state)
{
    (void)state;
    Error err;
    return tokenizer_open(TEST_DATA_DIR "/generate/bytes-tokenizer.json", &tokenizer, &err) ? 0
                                                                                            : -1;
}

int scheduler_tests_setup_holding(void **state)
{
    engines_hold = true;
    return scheduler_tests_setup(state);
}

int scheduler_tests_teardown(void **state)
{
    (void)state;
    engines_hold = false;
    tokenizer_free(tokenizer);
    return 0;
}

static void init(Fixture *fixture, const SchedulerOptions *options, bool engine_chooses)
{
    Error err = {0};
    fake_engine_init(&fixture->fake, 100000);
    if (engine_chooses)
        fake_engine_choose_tokens(&fixture->fake);
    if (engines_hold)
        fake_engine_hold_passes(&fixture->fake);
    if (!scheduler_create(&fixture->fake.engine, tokenizer, &fixture->fake.config, options,
                          &fixture->scheduler, &err))
        fail_msg("%s", err.message);
}

void fixture_init(Fixture *fixture, size_t slots, size_t max_context)
{
    const SchedulerOptions options = {.slots = slots, .max_context = max_context};
    init(fixture, &options, false);
}

void fixture_init_uncached(Fixture *fixture, size_t slots, size_t max_context)
{
    const SchedulerOptions options = {
        .slots = slots, .max_context = max_context, .no_prefix_cache = true};
    init(fixture, &options, false);
}

void fixture_init_choosing(Fixture *fixture, size_t slots, size_t max_context)
{
    const SchedulerOptions options = {.slots = slots, .max_context = max_context};
    init(fixture, &options, true);
}

void fixture_reset(Fixture *fixture)
{
    scheduler_free(fixture->scheduler);
    assert_int_equal(atomic_load(&fixture->fake.sequences), 0);
    assert_int_equal(atomic_load(&fixture->fake.reserved), 0);
    assert_false(atomic_load(&fixture->fake.misused));
}

void make_prompt(uint32_t number, size_t length, int32_t *out)
{
    for (size_t i = 0; i < length; i++) {
        number = number * 1664525u + 1013904223u;
        out[i] = (int32_t)('A' + (number >> 16) % 26);
    }
}

void request_init(JobRequest *request, const int32_t *prompt, size_t n_prompt, size_t max_tokens)
{
    *request = (JobRequest){.prompt = prompt, .n_prompt = n_prompt};
    generation_options_init(&request->generation);
    request->generation.max_tokens = max_tokens;
}

Job *submit(Fixture *fixture, const JobRequest *request)
{
    Job *job;
    Error err = {0};
    if (!scheduler_submit(fixture->scheduler, request, &job, &err))
        fail_msg("%s", err.message);
    return job;
}

void collect(Job *job, Buffer *text, JobStatus *status)
{
    do {
        if (!job_wait(job, 30))
            fail_msg("nothing new for 30 seconds");
        job_read(job, text, status);
    } while (status->finish == FINISH_NONE);
    assert_false(text->failed);
}

void assert_reply(Fixture *fixture, const int32_t *prompt, size_t n_prompt, size_t max_tokens,
                  const Buffer *text, const JobStatus *status)
{
    char *expected = malloc(max_tokens + 1);
    bool ended;
    assert_non_null(expected);
    size_t length = fake_reply(prompt, n_prompt, atomic_load(&fixture->fake.never_ends), expected,
                               max_tokens, &ended);
    assert_int_equal(text->len, length);
    if (length > 0)
        assert_memory_equal(text->ptr, expected, length);
    assert_int_equal(status->finish, ended ? FINISH_STOP : FINISH_LENGTH);
    assert_int_equal(status->prompt_tokens, n_prompt);
    assert_int_equal(status->completion_tokens, length);
    free(expected);
}

void run_and_check(Fixture *fixture, uint32_t number, size_t n_prompt, size_t max_tokens)
{
    int32_t *prompt = calloc(n_prompt, sizeof(*prompt));
    JobRequest request;
    JobStatus status;
    Buffer text;
    assert_non_null(prompt);
    buffer_init(&text, 1 << 24);
    make_prompt(number, n_prompt, prompt);
    request_init(&request, prompt, n_prompt, max_tokens);
    Job *job = submit(fixture, &request);
    collect(job, &text, &status);
    assert_reply(fixture, prompt, n_prompt, max_tokens, &text, &status);
    job_release(job);
    buffer_reset(&text);
    free(prompt);
}

void pause_milliseconds(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

void wait_for_idle(Fixture *fixture)
{
    for (int i = 0; i < 5000; i++) {
        SchedulerStatistics statistics;
        scheduler_statistics(fixture->scheduler, &statistics);
        if (statistics.running == 0 && statistics.waiting == 0)
            return;
        pause_milliseconds(2);
    }
    fail_msg("jobs are still running after ten seconds");
}
