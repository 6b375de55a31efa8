/* scheduler_fixture: a scheduler before a fake engine, and what most of its tests do with jobs.
 * Whatever is not as expected ends the test. */
#ifndef TESTS_SCHEDULER_FIXTURE_H
#define TESTS_SCHEDULER_FIXTURE_H

#include "fake_engine.h"
#include "scheduler.h"

typedef struct Fixture {
    FakeEngine fake;
    Scheduler *scheduler;
} Fixture;

extern Tokenizer *tokenizer; /* token i is byte i; set by the group's setup */
int scheduler_tests_setup(void **state);
int scheduler_tests_teardown(void **state);
/* The same, and the group's engines can hold passes: what holds for one kind holds for both. */
int scheduler_tests_setup_holding(void **state);

void fixture_init(Fixture *fixture, size_t slots, size_t max_context);
/* Without a prefix cache. */
void fixture_init_uncached(Fixture *fixture, size_t slots, size_t max_context);
/* With an engine that chooses greedy tokens itself. */
void fixture_init_choosing(Fixture *fixture, size_t slots, size_t max_context);
/* Stops the scheduler and checks that the engine has lost nothing. */
void fixture_reset(Fixture *fixture);

/* Letters that depend on number alone. */
void make_prompt(uint32_t number, size_t length, int32_t *out);
void request_init(JobRequest *request, const int32_t *prompt, size_t n_prompt, size_t max_tokens);
Job *submit(Fixture *fixture, const JobRequest *request);
/* Reads to the end. */
void collect(Job *job, Buffer *text, JobStatus *status);
void assert_reply(Fixture *fixture, const int32_t *prompt, size_t n_prompt, size_t max_tokens,
                  const Buffer *text, const JobStatus *status);
/* A whole job, checked. */
void run_and_check(Fixture *fixture, uint32_t number, size_t n_prompt, size_t max_tokens);
void pause_milliseconds(long milliseconds);
/* Statistics are published between steps: waits until they say so. */
void wait_for_idle(Fixture *fixture);

#endif
