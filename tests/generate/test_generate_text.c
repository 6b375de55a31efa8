/* From ids to text that is certain: stop strings, log-probabilities, constraints. */
#include "generate_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Text ---- */

typedef struct StopCase {
    const char *stop[4];
    const char *tokens, *text;
    bool stopped;
} StopCase;

static void stop_strings_are_found_across_tokens(void **state)
{
    (void)state;
    static const StopCase cases[] = {
        {{"end"}, "say end now", "say ", true},
        {{"end"}, "say en", "say en", false},
        {{"aab"}, "aaaab", "aa", true},
        {{"abcde", "bcd"}, "xabcdef", "xa", true},
        {{"cd", "abcd"}, "xabcd", "x", true},
        {{"", "b"}, "abc", "a", true},
        {{"\n\n"}, "one\ntwo\n\nthree", "one\ntwo", true},
        {{"ü"}, "fünf", "f", true},
        {{"üb"}, "fünf", "fünf", false},
        {{"abab", "zz"}, "abacababab", "abac", true},
        {{"€uro"}, "5 €ur", "5 €ur", false},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GenerationOptions options;
        Slice stop[4];
        size_t n_stop = 0;
        while (n_stop < 4 && cases[i].stop[n_stop]) {
            stop[n_stop] = slice_of(cases[i].stop[n_stop]);
            n_stop++;
        }
        generation_options_init(&options);
        options.stop = stop;
        options.n_stop = n_stop;
        Generation *generation = create(&options);
        Buffer text;
        Error err;
        buffer_init(&text, 1000);
        feed(generation, cases[i].tokens, strlen(cases[i].tokens), &text);
        assert_int_equal(generation_finish_reason(generation),
                         cases[i].stopped ? FINISH_STOP : FINISH_NONE);
        assert_true(generation_end(generation, FINISH_LENGTH, &text, &err));
        assert_text(&text, cases[i].text);
        buffer_reset(&text);
        generation_free(generation);
    }
}

static void only_possible_beginnings_are_held_back(void **state)
{
    (void)state;
    GenerationOptions options;
    const Slice stop = SLICE("STOP");
    generation_options_init(&options);
    options.stop = &stop;
    options.n_stop = 1;
    Generation *generation = create(&options);
    Buffer text;
    buffer_init(&text, 1000);
    feed(generation, "abc", 3, &text);
    assert_text(&text, "abc");
    feed(generation, "ST", 2, &text);
    assert_text(&text, "abc");
    feed(generation, "A", 1, &text);
    assert_text(&text, "abcSTA");
    feed(generation, "S", 1, &text);
    assert_text(&text, "abcSTA");
    feed(generation, "STO", 3, &text);
    assert_text(&text, "abcSTAS");
    assert_int_equal(generation_token_count(generation), 10);
    buffer_reset(&text);
    generation_free(generation);
}

static void text_is_whole_characters(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.max_tokens = 6;
    Generation *generation = create(&options);
    Buffer text;
    buffer_init(&text, 1000);
    feed(generation, "a\xe2\x82", 3, &text);
    assert_text(&text, "a");
    feed(generation, "\xac", 1, &text);
    assert_text(&text, "a\xe2\x82\xac");
    feed(generation, "\xe2\x82", 2, &text); /* the limit cuts a character: it is given up */
    assert_int_equal(generation_finish_reason(generation), FINISH_LENGTH);
    assert_text(&text, "a\xe2\x82\xac\xef\xbf\xbd");
    buffer_reset(&text);
    generation_free(generation);
}

/* ---- Log-probabilities ---- */

/* Steps through bytes and keeps what comes out; the list's bytes must never run ahead of the text.
 */
static void feed_with_logprobs(const GenerationOptions *options, const char *bytes, size_t count,
                               Buffer *text, LogprobList *list)
{
    Generation *generation = create(options);
    buffer_init(text, 1000);
    logprob_list_init(list);
    for (size_t i = 0; i < count && generation_finish_reason(generation) == FINISH_NONE; i++) {
        feed(generation, bytes + i, 1, text);
        generation_take_logprobs(generation, list);
        assert_true(list->bytes.len <= text->len);
    }
    Error err;
    assert_true(generation_end(generation, FINISH_LENGTH, text, &err));
    generation_take_logprobs(generation, list);
    generation_free(generation);
}

static void logprobs_follow_their_text(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *stop, *text;
        size_t entries;
    } cases[] = {
        {"abc", NULL, "abc", 3},
        {"a\xe2\x82\xac", NULL, "a\xe2\x82\xac", 4},
        {"abXcd", "Xc", "ab", 2},
        {"abXX", "XXX", "abXX", 4}, /* held back, then let go by the end */
        {"\xe2\x82\xacXY", "XY", "\xe2\x82\xac", 3},
        {"XY", "XY", "", 0},
        {"a\xe2\x82", NULL, "a\xef\xbf\xbd", 3}, /* bytes are exact, the text is repaired */
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GenerationOptions options;
        Buffer text;
        LogprobList list;
        Slice stop = slice_of(cases[i].stop ? cases[i].stop : "");
        generation_options_init(&options);
        options.logprobs = true;
        options.top_logprobs = 3;
        options.stop = &stop;
        options.n_stop = 1;
        feed_with_logprobs(&options, cases[i].bytes, strlen(cases[i].bytes), &text, &list);
        assert_text(&text, cases[i].text);
        assert_int_equal(logprob_list_count(&list), cases[i].entries);
        for (size_t k = 0; k < cases[i].entries; k++) {
            const LogprobEntry *entry = logprob_list_get(&list, k);
            assert_int_equal(entry->id, (unsigned char)cases[i].bytes[k]);
            assert_int_equal(logprob_list_bytes(&list, entry).len, 1);
            assert_int_equal((unsigned char)logprob_list_bytes(&list, entry).ptr[0], entry->id);
            assert_int_equal(entry->n_top, 3);
            assert_int_equal(entry->top[0].id, entry->id);
            assert_true(entry->logprob <= 0 && entry->logprob > -1e-6f);
            assert_true(entry->top[1].id < entry->top[2].id); /* equal, so by id */
        }
        logprob_list_reset(&list);
        buffer_reset(&text);
    }
}

static void logprobs_of_odd_logits(void **state)
{
    (void)state;
    LogprobEntry entry;
    const float logits[] = {1, -INFINITY, 2, 2, -1000};
    double sum = exp(1.0) + 2 * exp(2.0);
    logprob_measure(logits, 5, 4, 5, &entry);
    assert_true(fabs((double)entry.logprob - (-1000 - log(sum))) < 1e-3);
    assert_int_equal(entry.n_top, 5);
    static const int32_t order[] = {2, 3, 0, 4, 1};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(entry.top[i].id, order[i]);
    assert_true(fabs((double)entry.top[0].logprob - (2 - log(sum))) < 1e-6);
    assert_true(isinf(entry.top[4].logprob));
    const float infinite[] = {1, INFINITY};
    logprob_measure(infinite, 2, 1, 20, &entry);
    assert_int_equal(entry.n_top, 2);
    assert_true(entry.logprob == 0);
    assert_true(isinf(entry.top[1].logprob));
}

static void the_stop_string_is_named(void **state)
{
    (void)state;
    GenerationOptions options;
    Buffer text;
    const Slice stops[] = {SLICE("nope"), SLICE(""), SLICE("cd")};
    generation_options_init(&options);
    options.stop = stops;
    options.n_stop = 3;
    Generation *generation = create(&options);
    buffer_init(&text, 100);
    assert_int_equal(generation_stop_index(generation), -1);
    feed(generation, "abcd", 4, &text);
    assert_int_equal(generation_stop_index(generation), 2);
    generation_free(generation);
    buffer_reset(&text);
}

/* ---- Constraint ---- */

/* "a" an even number of times, then "b". */
typedef struct Even {
    Constraint base;
    size_t count, asked;
    bool done;
} Even;

static bool even_allows(Constraint *constraint, int32_t id)
{
    Even *even = (Even *)(void *)constraint;
    even->asked++;
    return !even->done && (id == 'a' || (id == 'b' && even->count % 2 == 0));
}

static bool even_mask(Constraint *constraint, float *logits, size_t vocab_size, Error *err)
{
    (void)err;
    for (size_t i = 0; i < vocab_size; i++) {
        if (!even_allows(constraint, (int32_t)i))
            logits[i] = -INFINITY;
    }
    return true;
}

static bool even_accept(Constraint *constraint, int32_t id, Error *err)
{
    Even *even = (Even *)(void *)constraint;
    if (!even_allows(constraint, id))
        return error_set(err, ERROR_INTERNAL, "token %d was not allowed", id);
    even->done = id == 'b';
    even->count++;
    return true;
}

static bool even_can_end(const Constraint *constraint)
{
    const Even *even = (const Even *)(const void *)constraint;
    return even->done || even->count % 2 == 0;
}

static bool even_is_finished(const Constraint *constraint)
{
    return ((const Even *)(const void *)constraint)->done;
}

static bool even_copy(const Constraint *constraint, Constraint **out, Error *err)
{
    Even *copy = memory_allocate(sizeof(*copy));
    *out = NULL;
    if (!copy)
        return error_no_memory(err, "constraint");
    *copy = *(const Even *)(const void *)constraint;
    *out = &copy->base;
    return true;
}

static void even_free(Constraint *constraint)
{
    memory_free(constraint);
}

static const ConstraintOps EVEN_OPS = {even_mask,        even_allows, even_accept, even_can_end,
                                       even_is_finished, NULL,        even_copy,   even_free};

/* Logits want END, then "b", then "a": what comes is the best that the constraint allows. */
static void check_constrained(GenerationOptions *options, const char *expected, int preferred)
{
    Even even = {.base = {&EVEN_OPS}};
    Buffer text;
    options->constraint = &even.base;
    Generation *generation = create(options);
    buffer_init(&text, 100);
    while (generation_finish_reason(generation) == FINISH_NONE) {
        float logits[VOCAB];
        int32_t id;
        Error err = {0};
        flat(logits);
        logits['x'] = 90;
        logits['b'] = generation_token_count(generation) < 3 ? 20 : 60;
        logits['a'] = 40;
        logits[END] = preferred == END && generation_token_count(generation) > 0 ? 99 : 0;
        if (!generation_step(generation, logits, &id, &text, &err))
            fail_msg("%s", err.message);
    }
    assert_text(&text, expected);
    assert_int_equal(generation_finish_reason(generation), FINISH_STOP);
    assert_int_equal(even.count, 0); /* the generation has a copy */
    generation_free(generation);
    buffer_reset(&text);
}

static void constraints_decide_what_can_come(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    check_constrained(&options, "aaaab", 'b'); /* ends by itself after b */
    check_constrained(&options, "aa", END);    /* the end is banned after one a */
    options.temperature = 0.5f;
    options.has_seed = true;
    check_constrained(&options, "aaaab", 'b');
    options.temperature = 0;
    options.presence_penalty = 0.1f; /* no short cut past the mask */
    check_constrained(&options, "aaaab", 'b');
    options.ignore_eos = true;
    check_constrained(&options, "aaaab", END);
}

static void a_constraint_without_a_token_is_an_error(void **state)
{
    (void)state;
    GenerationOptions options;
    Even even = {.base = {&EVEN_OPS}, .count = 1};
    const LogitBias bias = {'a', -100};
    float logits[VOCAB];
    int32_t id;
    Error err = {0};
    Buffer text;
    generation_options_init(&options);
    options.constraint = &even.base;
    options.logit_bias = &bias;
    options.n_logit_bias = 1;
    Generation *generation = create(&options);
    buffer_init(&text, 100);
    flat(logits);
    assert_false(generation_step(generation, logits, &id, &text, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    generation_free(generation);
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    const Slice stop[] = {SLICE("ab"), SLICE("xyz")};
    const LogitBias bias[] = {{3, 1}, {4, 1}};
    const int32_t prompt[] = {1, 2, 3};
    for (uint64_t nth = 1; nth < 100; nth++) {
        GenerationOptions options;
        generation_options_init(&options);
        options.stop = stop;
        options.n_stop = 2;
        options.logit_bias = bias;
        options.n_logit_bias = 2;
        options.temperature = 1;
        options.top_p = 0.5f;
        options.repetition_penalty = 1.5f;
        options.presence_penalty = 1;
        options.logprobs = true;
        options.top_logprobs = 2;
        Even even = {.base = {&EVEN_OPS}};
        options.constraint = &even.base;
        float logits[VOCAB];
        int32_t id;
        Error err;
        Buffer text;
        Generation *generation;
        flat(logits);
        buffer_init(&text, 1000);
        fault_fail_allocation(nth);
        bool ok =
            generation_create(tokenizer, &options, EOS, 1, prompt, 3, VOCAB, &generation, &err);
        if (!ok)
            assert_null(generation);
        bool stepped = ok && generation_step(generation, logits, &id, &text, &err);
        bool done = fault_allocation_count() < nth;
        fault_fail_allocation(0);
        generation_free(generation);
        buffer_reset(&text);
        if (!ok || !stepped)
            assert_int_equal(err.code, ERROR_MEMORY);
        if (done) {
            assert_true(nth > 5);
            return;
        }
    }
    fail();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_strings_are_found_across_tokens),
        cmocka_unit_test(only_possible_beginnings_are_held_back),
        cmocka_unit_test(text_is_whole_characters),
        cmocka_unit_test(logprobs_follow_their_text),
        cmocka_unit_test(logprobs_of_odd_logits),
        cmocka_unit_test(the_stop_string_is_named),
        cmocka_unit_test(constraints_decide_what_can_come),
        cmocka_unit_test(a_constraint_without_a_token_is_an_error),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
