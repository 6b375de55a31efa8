/* Tokens that are certain: given to the engine together, without holding up other streams. */
#include "scheduler_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { PROMPT = 20, CERTAIN = 300 };

static char text[CERTAIN + 1];

/* A constraint that leaves one text. */
static Constraint *make_constraint(GrammarVocabulary **vocabulary)
{
    Error err = {0};
    Grammar *grammar = NULL;
    Constraint *constraint = NULL;
    for (size_t i = 0; i < CERTAIN; i++)
        text[i] = (char)('a' + i * 7 % 26);
    const Slice choice = {text, CERTAIN};
    const GrammarSource source = {.kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
    if (!grammar_vocabulary_from_tokenizer(tokenizer, vocabulary, &err) ||
        !grammar_create(&source, *vocabulary, &grammar, &err) ||
        !constraint_from_grammar(grammar, tokenizer, &constraint, &err))
        fail_msg("%s", err.message);
    grammar_release(grammar);
    return constraint;
}

static void check_certain(Job *job)
{
    Buffer out;
    JobStatus status;
    buffer_init(&out, 1 << 20);
    collect(job, &out, &status);
    assert_int_equal(status.finish, FINISH_STOP);
    assert_int_equal(status.completion_tokens, CERTAIN);
    assert_int_equal(out.len, CERTAIN);
    assert_memory_equal(out.ptr, text, CERTAIN);
    job_release(job);
    buffer_reset(&out);
}

static void alone_they_take_few_passes(void **state)
{
    (void)state;
    Fixture fixture;
    GrammarVocabulary *vocabulary;
    Constraint *constraint = make_constraint(&vocabulary);
    int32_t prompt[PROMPT];
    JobRequest request;
    fixture_init(&fixture, 2, 2000);
    make_prompt(1, PROMPT, prompt);
    request_init(&request, prompt, PROMPT, CERTAIN + 50);
    request.generation.constraint = constraint;
    check_certain(submit(&fixture, &request));
    assert_true(atomic_load(&fixture.fake.passes) <= 4);
    assert_int_equal(atomic_load(&fixture.fake.tokens), PROMPT + CERTAIN - 1);
    /* Log-probabilities want a pass for each, and change nothing. */
    size_t before = atomic_load(&fixture.fake.passes);
    request.generation.logprobs = true;
    check_certain(submit(&fixture, &request));
    assert_true(atomic_load(&fixture.fake.passes) - before >= CERTAIN);
    constraint_free(constraint);
    grammar_vocabulary_release(vocabulary);
    fixture_reset(&fixture);
}

/* Streams beside it say what they would alone, and get their tokens as when a prompt enters. */
static void beside_others_they_share_the_budget(void **state)
{
    (void)state;
    Fixture fixture;
    GrammarVocabulary *vocabulary;
    Constraint *constraint = make_constraint(&vocabulary);
    int32_t prompts[3][PROMPT];
    JobRequest requests[3];
    Job *jobs[3];
    fixture_init(&fixture, 3, 2000);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 500);
    atomic_store(&fixture.fake.token_delay_microseconds, 100);
    for (uint32_t i = 0; i < 3; i++) {
        make_prompt(10 + i, PROMPT, prompts[i]);
        request_init(&requests[i], prompts[i], PROMPT, CERTAIN + 50);
    }
    jobs[0] = submit(&fixture, &requests[0]);
    jobs[1] = submit(&fixture, &requests[1]);
    while (atomic_load(&fixture.fake.passes) < 40) /* until costs are known */
        pause_milliseconds(1);
    requests[2].generation.constraint = constraint;
    jobs[2] = submit(&fixture, &requests[2]);
    check_certain(jobs[2]);
    assert_true(atomic_load(&fixture.fake.most_tokens) < CERTAIN / 2);
    for (size_t i = 0; i < 2; i++) {
        Buffer out;
        JobStatus status;
        buffer_init(&out, 1 << 20);
        collect(jobs[i], &out, &status);
        assert_reply(&fixture, prompts[i], PROMPT, CERTAIN + 50, &out, &status);
        job_release(jobs[i]);
        buffer_reset(&out);
    }
    constraint_free(constraint);
    grammar_vocabulary_release(vocabulary);
    fixture_reset(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone_they_take_few_passes),
        cmocka_unit_test(beside_others_they_share_the_budget),
    };
    int failed = cmocka_run_group_tests(tests, scheduler_tests_setup, scheduler_tests_teardown);
    return failed +
           cmocka_run_group_tests(tests, scheduler_tests_setup_holding, scheduler_tests_teardown);
}
