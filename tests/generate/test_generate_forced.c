/* Stretches without a choice: the tokenizer's own cut, the same tokens whether or not each takes a
 * step. */
#include "generate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct Setup {
    Tokenizer *tokenizer;
    GrammarVocabulary *vocabulary;
    size_t vocab_size;
} Setup;

static void open_tokenizer(Setup *setup, const char *path)
{
    Error err = {0};
    if (!tokenizer_open(path, &setup->tokenizer, &err) ||
        !grammar_vocabulary_from_tokenizer(setup->tokenizer, &setup->vocabulary, &err))
        fail_msg("%s", err.message);
    setup->vocab_size = tokenizer_vocabulary_size(setup->tokenizer);
}

static void close_tokenizer(Setup *setup)
{
    grammar_vocabulary_release(setup->vocabulary);
    tokenizer_free(setup->tokenizer);
}

/* Logits that depend on the step alone. */
static void fill_logits(const Setup *setup, size_t step, float *logits)
{
    uint64_t state = step * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < setup->vocab_size; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        logits[i] = (float)(state >> 40) * 0x1p-20f;
    }
}

typedef struct Outcome {
    TokenList ids;
    Buffer text;
    size_t steps;
} Outcome;

/* One reply of at most max tokens; with logprobs every token takes a step. */
static void generate(const Setup *setup, const GrammarSource *source, bool logprobs, size_t max,
                     Outcome *out)
{
    Error err = {0};
    Grammar *grammar;
    Constraint *constraint = NULL;
    Generation *generation = NULL;
    GenerationOptions options;
    float *logits = malloc(setup->vocab_size * sizeof(*logits));
    assert_non_null(logits);
    *out = (Outcome){0};
    buffer_init(&out->text, 1 << 20);
    if (!grammar_create(source, setup->vocabulary, &grammar, &err) ||
        !constraint_from_grammar(grammar, setup->tokenizer, &constraint, &err))
        fail_msg("%s", err.message);
    generation_options_init(&options);
    options.constraint = constraint;
    options.logprobs = logprobs;
    options.max_tokens = max;
    if (!generation_create(setup->tokenizer, &options, NULL, 0, NULL, 0, setup->vocab_size,
                           &generation, &err))
        fail_msg("%s", err.message);
    constraint_free(constraint);
    while (generation_finish_reason(generation) == FINISH_NONE) {
        int32_t id;
        bool took = true;
        fill_logits(setup, out->ids.count, logits);
        if (!generation_step(generation, logits, &id, &out->text, &err))
            fail_msg("%s", err.message);
        out->steps++;
        while (took) {
            assert_true(token_list_append(&out->ids, id, &err));
            if (generation_finish_reason(generation) != FINISH_NONE)
                break;
            if (!generation_take_forced(generation, &id, &took, &out->text, &err))
                fail_msg("%s", err.message);
        }
    }
    generation_free(generation);
    grammar_release(grammar);
    free(logits);
}

static void outcome_reset(Outcome *out)
{
    token_list_reset(&out->ids);
    buffer_reset(&out->text);
}

static const char *const TOKENIZERS[] = {
    TEST_DATA_DIR "/models/qwen3-q4-g32/tokenizer.json",
    TEST_DATA_DIR "/models/llama3-q4-g64/tokenizer.json",
    TEST_DATA_DIR "/models/smollm2-bf16/tokenizer.json",
    TEST_DATA_DIR "/models/gemma3-text-q4-g64/tokenizer.json",
    TEST_DATA_DIR "/models/mistral-q8-g64/tokenizer.json",
    TEST_DATA_DIR "/models/phi3-q4-g64/tokenizer.json",
};

#define SCHEMA                                                                                     \
    "{\"type\":\"object\",\"properties\":{\"the_first_name\":{\"type\":\"string\",\"maxLength\":"  \
    "5},"                                                                                          \
    "\"another "                                                                                   \
    "value\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":99},\"k\\u00fcrzel\":{\"enum\":"      \
    "[\"something long\",\"something else\"]}},\"required\":[\"the_first_name\",\"another "        \
    "value\","                                                                                     \
    "\"k\\u00fcrzel\"],\"additionalProperties\":false}"

static void steps_do_not_change_the_tokens(void **state)
{
    (void)state;
    const GrammarSource source = {.kind = GRAMMAR_JSON_SCHEMA, .text = SLICE(SCHEMA)};
    for (size_t t = 0; t < ARRAY_COUNT(TOKENIZERS); t++) {
        Setup setup;
        Outcome fast, slow;
        open_tokenizer(&setup, TOKENIZERS[t]);
        generate(&setup, &source, false, 400, &fast);
        generate(&setup, &source, true, 400, &slow);
        assert_int_equal(slow.steps, slow.ids.count);
        assert_true(fast.steps < fast.ids.count);
        assert_int_equal(fast.ids.count, slow.ids.count);
        assert_memory_equal(fast.ids.ids, slow.ids.ids, fast.ids.count * sizeof(int32_t));
        assert_true(slice_equal(buffer_view(&fast.text), buffer_view(&slow.text)));
        outcome_reset(&fast);
        outcome_reset(&slow);
        close_tokenizer(&setup);
    }
}

enum { BYTE_LEVEL_TOKENIZERS = 3 }; /* the first ones; the others may put a space in front */

/* Where all is forced, the tokens are those of the text: all but the last, which is certain only
 * with its end. */
static void the_cut_is_the_tokenizers(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 12}}",
        "Don't   stop, it's   1234567 o'clock;\n\n\tindent  \xc3\xa9t\xc3\xa9 \xe2\x82\xac 5",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t t = 0; t < ARRAY_COUNT(TOKENIZERS); t++) {
        Setup setup;
        open_tokenizer(&setup, TOKENIZERS[t]);
        for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
            Error err = {0};
            const Slice choice = slice_of(texts[i]);
            const GrammarSource source = {
                .kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
            Outcome out;
            TokenList own = {0};
            generate(&setup, &source, false, 400, &out);
            assert_true(slice_equal(buffer_view(&out.text), choice));
            assert_true(tokenizer_encode(setup.tokenizer, choice, false, &own, &err));
            assert_true(out.steps <= 3);
            if (t < BYTE_LEVEL_TOKENIZERS)
                assert_memory_equal(out.ids.ids, own.ids, (own.count - 1) * sizeof(int32_t));
            token_list_reset(&own);
            outcome_reset(&out);
        }
        close_tokenizer(&setup);
    }
}

/* A text that spells a special token is text: the token itself would end the reply, or fail it. */
static void special_tokens_are_spelt(void **state)
{
    (void)state;
    for (size_t t = 0; t < ARRAY_COUNT(TOKENIZERS); t++) {
        Setup setup;
        size_t n_checked = 0;
        open_tokenizer(&setup, TOKENIZERS[t]);
        for (size_t id = 0; id < setup.vocab_size; id++) {
            char text[128];
            Slice content = tokenizer_token_content(setup.tokenizer, (int32_t)id);
            if (!tokenizer_is_special(setup.tokenizer, (int32_t)id) || content.len > 64)
                continue;
            snprintf(text, sizeof(text), "so %.*s it is", SLICE_ARG(content));
            const Slice choice = slice_of(text);
            const GrammarSource source = {
                .kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
            Outcome out;
            generate(&setup, &source, false, 400, &out);
            assert_true(slice_equal(buffer_view(&out.text), choice));
            n_checked++;
            outcome_reset(&out);
        }
        assert_true(n_checked > 0);
        close_tokenizer(&setup);
    }
}

/* The model has fewer tokens than the tokenizer: what is forced must be among them. */
static void forced_tokens_are_the_models(void **state)
{
    (void)state;
    enum { MODEL_TOKENS = 256 }; /* the single bytes */
    Setup setup;
    Outcome out;
    const Slice choice = SLICE("the quick brown fox jumps over the lazy dog");
    const GrammarSource source = {.kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
    open_tokenizer(&setup, TOKENIZERS[0]);
    assert_true(setup.vocab_size > MODEL_TOKENS);
    setup.vocab_size = MODEL_TOKENS;
    generate(&setup, &source, false, 400, &out);
    assert_true(slice_equal(buffer_view(&out.text), choice));
    for (size_t i = 0; i < out.ids.count; i++)
        assert_in_range(out.ids.ids[i], 0, MODEL_TOKENS - 1);
    outcome_reset(&out);
    close_tokenizer(&setup);
}

static void the_limit_holds_within_a_stretch(void **state)
{
    (void)state;
    Setup setup;
    Outcome out;
    const Slice choice = SLICE("the quick brown fox jumps over the lazy dog and runs away");
    const GrammarSource source = {.kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
    open_tokenizer(&setup, TOKENIZERS[0]);
    for (size_t max = 1; max < 12; max++) {
        generate(&setup, &source, false, max, &out);
        assert_int_equal(out.ids.count, max);
        assert_true(slice_starts_with(choice, buffer_view(&out.text)));
        outcome_reset(&out);
    }
    close_tokenizer(&setup);
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    Setup setup;
    Error err = {0};
    Grammar *grammar;
    Constraint *constraint = NULL;
    const Slice choice = SLICE("the quick brown fox");
    const GrammarSource source = {.kind = GRAMMAR_CHOICE, .choices = &choice, .n_choices = 1};
    open_tokenizer(&setup, TOKENIZERS[0]);
    assert_true(grammar_create(&source, setup.vocabulary, &grammar, &err));
    assert_true(constraint_from_grammar(grammar, setup.tokenizer, &constraint, &err));
    bool done = false;
    uint64_t n = 1;
    for (; !done && n < 1000; n++) {
        TokenList tokens = {0};
        err = (Error){0};
        fault_fail_allocation(n);
        bool ok = constraint->ops->append_forced(constraint, &tokens, &err);
        done = fault_allocation_count() < n;
        fault_fail_allocation(0);
        if (!ok)
            assert_int_equal(err.code, ERROR_MEMORY);
        else
            assert_true(done && tokens.count > 2);
        token_list_reset(&tokens);
    }
    assert_true(done && n > 5);
    constraint_free(constraint);
    grammar_release(grammar);
    close_tokenizer(&setup);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_do_not_change_the_tokens),
        cmocka_unit_test(the_cut_is_the_tokenizers),
        cmocka_unit_test(special_tokens_are_spelt),
        cmocka_unit_test(forced_tokens_are_the_models),
        cmocka_unit_test(the_limit_holds_within_a_stretch),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
