#include "held_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { STREAM = 10, TOP_LOGPROBS = 3 };

void world_open(World *w, size_t stream_tokens)
{
    int32_t prompt[STREAM];
    JobRequest request;
    fixture_init(&w->fixture, HELD_SLOTS, 90000);
    atomic_store(&w->fixture.fake.never_ends, true);
    atomic_store(&w->fixture.fake.delay_microseconds, 200);
    make_prompt(1, STREAM, prompt);
    request_init(&request, prompt, STREAM, stream_tokens);
    w->stream = submit(&w->fixture, &request);
    assert_true(job_wait(w->stream, 10));
}

void world_close(World *w)
{
    job_release(w->stream);
    wait_for_idle(&w->fixture);
    assert_int_equal(atomic_load(&w->fixture.fake.held_rows), 0);
    fixture_reset(&w->fixture);
}

static void note_first(void *context)
{
    Entry *entry = context;
    if (atomic_load(&entry->first_notice) == 0)
        atomic_store(&entry->first_notice, atomic_fetch_add(entry->clock, 1) + 1);
}

void entry_init(Entry *entry, uint32_t number, size_t n_prompt)
{
    memset(entry, 0, sizeof(*entry));
    make_prompt(number, n_prompt, entry->prompt);
    entry->n_prompt = n_prompt;
}

void entry_request(Entry *entry, JobRequest *request)
{
    static atomic_size_t clock;
    entry->clock = &clock;
    atomic_store(&entry->first_notice, 0);
    request_init(request, entry->prompt, entry->n_prompt, HELD_REPLY);
    request->notify = note_first;
    request->notify_context = entry;
    request->prompt_logprobs = request->generation.logprobs = entry->echoes;
    request->generation.top_logprobs = entry->echoes ? TOP_LOGPROBS : 0;
}

void entry_enter(Fixture *fixture, Entry *entry)
{
    JobRequest request;
    entry_request(entry, &request);
    entry->job = submit(fixture, &request);
}

void enter(World *w, Entry *entry, uint32_t number, size_t n_prompt)
{
    entry_init(entry, number, n_prompt);
    entry_enter(&w->fixture, entry);
}

void check_error(Entry *entry, const char *message)
{
    JobStatus status;
    Buffer text;
    buffer_init(&text, HELD_TEXT_MAX);
    collect(entry->job, &text, &status);
    assert_int_equal(status.finish, FINISH_ERROR);
    assert_string_equal(status.error.message, message);
    assert_int_equal(text.len, 0);
    buffer_reset(&text);
    job_release(entry->job);
}

void check_reply(World *w, Entry *entry)
{
    JobStatus status;
    Buffer text;
    buffer_init(&text, HELD_TEXT_MAX);
    collect(entry->job, &text, &status);
    assert_reply(&w->fixture, entry->prompt, entry->n_prompt, HELD_REPLY, &text, &status);
    buffer_reset(&text);
    job_release(entry->job);
}

void wait_for(atomic_size_t *counter, size_t value)
{
    for (int i = 0; i < 30000; i++) {
        if (atomic_load(counter) >= value)
            return;
        pause_milliseconds(1);
    }
    fail_msg("a counter is %zu after half a minute, expected %zu", atomic_load(counter), value);
}

void stop_in_first_part(World *w, Entry *entry)
{
    FakeEngine *fake = &w->fixture.fake;
    atomic_store(&fake->hold_rows, 1);
    size_t parts = atomic_load(&fake->parts);
    entry_enter(&w->fixture, entry);
    wait_for(&fake->parts, parts + 1);
    assert_int_equal(atomic_load(&fake->held_rows), 1);
}

void stop_in_shared_pass(World *w, Entry *first, Entry *second)
{
    FakeEngine *fake = &w->fixture.fake;
    size_t parts = atomic_load(&fake->parts);
    assert_true(second->n_prompt <= HELD_LONG / 4); /* which is why it goes ahead */
    stop_in_first_part(w, first);
    entry_enter(&w->fixture, second);
    atomic_store(&fake->hold_rows, 2);
    wait_for(&fake->parts, parts + FAKE_PARTS + 1);
    assert_int_equal(atomic_load(&fake->held_rows), 2);
}

void go_on(World *w)
{
    atomic_store(&w->fixture.fake.hold_rows, 0);
}

void outlast_step(void)
{
    pause_milliseconds(20);
}
