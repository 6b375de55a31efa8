/* Reasoning in one reply: counted, bounded, and free of stop strings. The tokenizer's tokens are
 * bytes. */
#include "generate_fixture.h"

#include <string.h>

typedef struct Run {
    Generation *generation;
    Buffer text;
    size_t steps, forced;
} Run;

static void run_init(Run *run, GenerationOptions *options)
{
    Error err = {0};
    *run = (Run){0};
    buffer_init(&run->text, 1 << 16);
    options->markup.think_open = SLICE("<t>");
    options->markup.think_close = SLICE("</t>");
    options->markup.calls.triggers[0].text = SLICE("<c>");
    if (!generation_create(tokenizer, options, EOS, 1, NULL, 0, VOCAB, &run->generation, &err))
        fail_msg("%s", err.message);
}

/* The model would write `wish`; where tokens are certain they are taken instead. */
static void run_text(Run *run, const char *wish)
{
    float logits[VOCAB];
    Error err;
    int32_t id;
    for (size_t i = 0; wish[i] && generation_finish_reason(run->generation) == FINISH_NONE; i++) {
        bool took = true;
        memset(logits, 0, sizeof(logits));
        logits[(unsigned char)wish[i]] = 50;
        assert_true(generation_step(run->generation, logits, &id, &run->text, &err));
        run->steps++;
        while (took && generation_finish_reason(run->generation) == FINISH_NONE) {
            assert_true(generation_take_forced(run->generation, &id, &took, &run->text, &err));
            run->forced += took;
        }
    }
}

static void run_end(Run *run, const char *expected)
{
    Error err;
    assert_true(generation_end(run->generation, FINISH_LENGTH, &run->text, &err));
    buffer_append_byte(&run->text, '\0');
    assert_string_equal(run->text.ptr, expected);
    generation_free(run->generation);
    buffer_reset(&run->text);
}

static void reasoning_is_counted_without_its_marks(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool begins_in_think;
        size_t count;
    } cases[] = {{"abc", false, 0},
                 {"<t>abc", false, 3},
                 {"<t>abc</t>de", false, 3},
                 {"abc</t>de", true, 3},
                 {"a</b</t>de", true, 4},
                 {"a</t", true, 4}, /* no mark yet */
                 {"<t>a</t>b<t>cd</t>", false, 3},
                 {"<c><t>abc", false, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Run run;
        GenerationOptions options;
        generation_options_init(&options);
        options.markup.begins_in_think = cases[i].begins_in_think;
        run_init(&run, &options);
        run_text(&run, cases[i].text);
        assert_int_equal(generation_reasoning_count(run.generation), cases[i].count);
        assert_int_equal(run.forced, 0);
        run_end(&run, cases[i].text);
    }
}

static void a_budget_closes_the_block(void **state)
{
    (void)state;
    Run run;
    GenerationOptions options;
    generation_options_init(&options);
    options.reasoning_budget = 3;
    run_init(&run, &options);
    run_text(&run, "<t>abcxy");
    assert_int_equal(generation_reasoning_count(run.generation), 3);
    assert_int_equal(run.forced, 4);
    assert_int_equal(generation_token_count(run.generation), 12);
    run_end(&run, "<t>abc</t>xy");

    options.reasoning_budget = 0;
    options.markup.begins_in_think = true;
    run_init(&run, &options);
    run_text(&run, "-xy"); /* the first logits were computed before anything was certain */
    assert_int_equal(generation_reasoning_count(run.generation), 0);
    run_end(&run, "</t>xy");
}

/* Log-probabilities want logits, so each certain token takes a step; the text is the same. */
static void a_budget_with_logprobs_takes_steps(void **state)
{
    (void)state;
    Run run;
    LogprobList list;
    GenerationOptions options;
    generation_options_init(&options);
    options.reasoning_budget = 2;
    options.logprobs = true;
    options.markup.begins_in_think = true;
    run_init(&run, &options);
    run_text(&run, "ab----xy");
    assert_int_equal(run.forced, 0);
    assert_int_equal(run.steps, 8);
    logprob_list_init(&list);
    generation_take_logprobs(run.generation, &list);
    assert_int_equal(logprob_list_count(&list), 8);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(logprob_list_get(&list, i)->text_end, i + 1);
    logprob_list_reset(&list);
    run_end(&run, "ab</t>xy");
}

static void a_forced_token_ends_at_the_limit(void **state)
{
    (void)state;
    Run run;
    GenerationOptions options;
    generation_options_init(&options);
    options.reasoning_budget = 2;
    options.max_tokens = 4;
    options.markup.begins_in_think = true;
    run_init(&run, &options);
    run_text(&run, "abc");
    assert_int_equal(generation_finish_reason(run.generation), FINISH_LENGTH);
    assert_int_equal(generation_token_count(run.generation), 4);
    run_end(&run, "ab</");
}

static void stop_strings_are_looked_for_in_content_only(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expected;
        bool stops;
    } cases[] = {
        {"abSTOPc", "ab", true},
        {"<t>STOP</t>aSTOP", "<t>STOP</t>a", true},
        {"ST<t>OP</t>b", "ST<t>OP</t>b", false},
        {"ST<c>OPSTOP", "ST<c>OPSTOP", false},
        {"a<t>x</t>ST", "a<t>x</t>ST", false},
    };
    const Slice stop = SLICE("STOP");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Run run;
        GenerationOptions options;
        generation_options_init(&options);
        options.stop = &stop;
        options.n_stop = 1;
        run_init(&run, &options);
        run_text(&run, cases[i].text);
        assert_int_equal(generation_finish_reason(run.generation) == FINISH_STOP, cases[i].stops);
        run_end(&run, cases[i].expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reasoning_is_counted_without_its_marks),
        cmocka_unit_test(a_budget_closes_the_block),
        cmocka_unit_test(a_budget_with_logprobs_takes_steps),
        cmocka_unit_test(a_forced_token_ends_at_the_limit),
        cmocka_unit_test(stop_strings_are_looked_for_in_content_only),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
