/* The sampling chain through generation_step: options, penalties, draws. */
#include "generate_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Greedy and options ---- */

static void argmax_takes_lowest_id_and_ignores_nan(void **state)
{
    (void)state;
    const float values[] = {1, 3, 2, 3};
    assert_int_equal(logits_argmax(values, 4), 1);
    const float some[] = {NAN, -5, NAN, -4};
    assert_int_equal(logits_argmax(some, 4), 3);
    const float all[] = {NAN, NAN};
    assert_int_equal(logits_argmax(all, 2), 0);
    const float low[] = {-INFINITY, -INFINITY};
    assert_int_equal(logits_argmax(low, 2), 0);
}

static void greedy_takes_lowest_of_equals(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    Generation *generation = create(&options);
    float logits[VOCAB];
    flat(logits);
    logits['q'] = logits['b'] = logits[250] = 4;
    assert_int_equal(choose(generation, logits), 'b');
    generation_free(generation);
}

static void nan_is_an_error(void **state)
{
    (void)state;
    for (int at = 0; at < VOCAB; at += 37) {
        GenerationOptions options;
        generation_options_init(&options);
        Generation *generation = create(&options);
        float logits[VOCAB];
        int32_t id;
        Error err = {0};
        Buffer text;
        buffer_init(&text, 100);
        flat(logits);
        logits[at] = NAN;
        assert_false(generation_step(generation, logits, &id, &text, &err));
        assert_int_equal(err.code, ERROR_INTERNAL);
        generation_free(generation);
    }
}

static void end_token_ends_and_is_not_counted(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    Generation *generation = create(&options);
    Buffer text;
    Error err;
    int32_t id;
    buffer_init(&text, 100);
    feed(generation, "ab", 2, &text);
    float logits[VOCAB];
    flat(logits);
    logits[END] = 9;
    assert_true(generation_step(generation, logits, &id, &text, &err));
    assert_int_equal(id, END);
    assert_int_equal(generation_finish_reason(generation), FINISH_STOP);
    assert_int_equal(generation_token_count(generation), 2);
    assert_text(&text, "ab");
    buffer_reset(&text);
    generation_free(generation);
}

static void ignore_eos_never_chooses_it(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.ignore_eos = true;
    options.max_tokens = 50;
    for (int pass = 0; pass < 2; pass++) {
        Generation *generation = create(&options);
        float logits[VOCAB];
        for (int i = 0; i < 50; i++) {
            flat(logits);
            logits[END] = 100;
            assert_int_not_equal(choose(generation, logits), END);
        }
        assert_int_equal(generation_finish_reason(generation), FINISH_LENGTH);
        assert_int_equal(generation_token_count(generation), 50);
        generation_free(generation);
        options.temperature = 1;
    }
}

static void max_tokens_ends_with_length(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.max_tokens = 3;
    Generation *generation = create(&options);
    Buffer text;
    buffer_init(&text, 100);
    assert_int_equal(feed(generation, "abcdef", 6, &text), 3);
    assert_int_equal(generation_finish_reason(generation), FINISH_LENGTH);
    assert_text(&text, "abc");
    buffer_reset(&text);
    generation_free(generation);

    options.max_tokens = 0;
    generation = create(&options);
    assert_int_equal(generation_finish_reason(generation), FINISH_LENGTH);
    generation_free(generation);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    GenerationOptions options;
    Generation *generation;
    Error err;
    const LogitBias outside = {VOCAB, 1}, negative = {-1, 1};
    const Slice broken = SLICE("\xff");
    const Slice many[GENERATE_STOP_STRINGS_MAX + 1] = {{"a", 1}};
    generation_options_init(&options);
    options.logit_bias = &outside;
    options.n_logit_bias = 1;
    assert_false(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_null(generation);
    options.logit_bias = &negative;
    assert_false(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    options.n_logit_bias = 0;
    options.stop = &broken;
    options.n_stop = 1;
    assert_false(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    options.stop = many;
    options.n_stop = ARRAY_COUNT(many);
    assert_false(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    char *text = calloc(1, GENERATE_STOP_BYTES_MAX + 1);
    assert_non_null(text);
    const Slice at_limit = {text, GENERATE_STOP_BYTES_MAX},
                above = {text, GENERATE_STOP_BYTES_MAX + 1};
    options.n_stop = 1;
    options.stop = &at_limit;
    assert_true(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    generation_free(generation);
    options.stop = &above;
    assert_false(generation_create(tokenizer, &options, EOS, 1, NULL, 0, VOCAB, &generation, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    free(text);
}

/* ---- Bias and penalties ---- */

static void logit_bias_bans_selects_and_last_wins(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    const LogitBias bias[] = {{'c', 100}, {'a', -100}, {'c', -100}, {'d', 2}, {'b', 100}};
    options.logit_bias = bias;
    options.n_logit_bias = ARRAY_COUNT(bias);
    Generation *generation = create(&options);
    float logits[VOCAB];
    flat(logits);
    logits['a'] = 1000;
    logits['c'] = 900;
    logits['e'] = 90;
    assert_int_equal(choose(generation, logits), 'b');
    flat(logits);
    logits['b'] = -1000;
    logits['a'] = 1000;
    logits['c'] = 900;
    logits['e'] = 1.5f;
    assert_int_equal(choose(generation, logits), 'd');
    generation_free(generation);
}

static void banning_everything_is_an_error(void **state)
{
    (void)state;
    GenerationOptions options;
    LogitBias bias[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        bias[i] = (LogitBias){i, -100};
    generation_options_init(&options);
    options.logit_bias = bias;
    options.n_logit_bias = VOCAB;
    Generation *generation = create(&options);
    float logits[VOCAB];
    int32_t id;
    Error err = {0};
    Buffer text;
    buffer_init(&text, 100);
    flat(logits);
    assert_false(generation_step(generation, logits, &id, &text, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    generation_free(generation);
}

static void repetition_penalty_looks_at_its_window(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.repetition_penalty = 2;
    options.repetition_context_size = 3;
    const int32_t prompt[] = {'z', 'a', 'b', 'a'}; /* 'z' is outside the window, 'a' pays once */
    Generation *generation;
    Error err;
    assert_true(
        generation_create(tokenizer, &options, EOS, 1, prompt, 4, VOCAB, &generation, &err));
    float logits[VOCAB];
    flat(logits);
    logits['z'] = 4.9f;
    logits['a'] = 9.6f; /* 4.8 */
    logits['b'] = 9.0f;
    assert_int_equal(choose(generation, logits), 'z'); /* window is now b a z */
    for (int i = 0; i < VOCAB; i++)
        logits[i] = -10;
    logits['z'] = -3; /* -6 */
    logits['q'] = -5.5f;
    assert_int_equal(choose(generation, logits), 'q'); /* a z q */
    flat(logits);
    logits['b'] = 5; /* fell out */
    logits['a'] = 9;
    assert_int_equal(choose(generation, logits), 'b');
    generation_free(generation);
}

static void presence_and_frequency_count_the_reply(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.presence_penalty = 1;
    options.frequency_penalty = 0.5f;
    const int32_t prompt[] = {'a', 'a', 'a'}; /* does not count */
    Generation *generation;
    Error err;
    assert_true(
        generation_create(tokenizer, &options, EOS, 1, prompt, 3, VOCAB, &generation, &err));
    const char expected[] = "aabaaab"; /* a: 10, 8.5, 8, 7.5, 7, 6.5; b: 8.2, 6.7 */
    for (size_t i = 0; i < strlen(expected); i++) {
        float logits[VOCAB];
        flat(logits);
        logits['a'] = 10;
        logits['b'] = 8.2f;
        assert_int_equal(choose(generation, logits), expected[i]);
    }
    generation_free(generation);
}

/* ---- Sampling ---- */

/* Log-probabilities of eight tokens; all others impossible. */
static const double PROBABILITIES[] = {0.05, 0.30, 0.10, 0.20, 0.02, 0.25, 0.03, 0.05};

static void set_distribution(float *logits)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = -INFINITY;
    for (size_t i = 0; i < 8; i++)
        logits['a' + i] = (float)log(PROBABILITIES[i]) + 7;
}

/* Draws many and compares frequencies with expected[8] by a chi-square-like bound of 5 deviations.
 */
static void check_frequencies(GenerationOptions *options, const double *expected)
{
    enum { DRAWS = 20000 };
    size_t counts[8] = {0};
    options->max_tokens = DRAWS + 1;
    options->has_seed = true;
    options->seed = 12345;
    Generation *generation = create(options);
    for (int i = 0; i < DRAWS; i++) {
        float logits[VOCAB];
        set_distribution(logits);
        int32_t id = choose(generation, logits);
        assert_in_range(id, 'a', 'h');
        counts[id - 'a']++;
    }
    generation_free(generation);
    for (size_t i = 0; i < 8; i++) {
        double deviation = sqrt(DRAWS * expected[i] * (1 - expected[i]));
        double off = fabs((double)counts[i] - DRAWS * expected[i]);
        if (off > 5 * deviation + 1e-9)
            fail_msg("token %zu: %zu draws, expected %g", i, counts[i], DRAWS * expected[i]);
    }
}

static void temperature_draws_the_distribution(void **state)
{
    (void)state;
    GenerationOptions options;
    generation_options_init(&options);
    options.temperature = 1;
    check_frequencies(&options, PROBABILITIES);
    double squared[8], total = 0;
    for (size_t i = 0; i < 8; i++)
        total += squared[i] = PROBABILITIES[i] * PROBABILITIES[i];
    for (size_t i = 0; i < 8; i++)
        squared[i] /= total;
    options.temperature = 0.5f;
    check_frequencies(&options, squared);
}

static void keep_of(const char *kept, double *out)
{
    double total = 0;
    for (size_t i = 0; i < 8; i++)
        total += out[i] = strchr(kept, (int)('a' + i)) ? PROBABILITIES[i] : 0;
    for (size_t i = 0; i < 8; i++)
        out[i] /= total;
}

static void filters_keep_what_they_should(void **state)
{
    (void)state;
    static const struct {
        int32_t top_k;
        float top_p, min_p;
        const char *kept;
    } cases[] = {
        {3, 1, 0, "bfd"},
        {1, 1, 0, "b"},
        {0, 0.56f, 0, "bfd"},
        {0, 0.5f, 0, "bf"},
        {0, 0, 0, "b"},
        {0, 1, 0.5f, "bfd"},
        {0, 1, 1, "b"},
        {0, 0.8f, 0.7f, "bf"},
        {4, 0.6f, 0, "bf"},
        {5, 0.99f, 0.3f, "bfdc"},
        {8, 1, 0, "abcdefgh"},
        {VOCAB, 1, 0, "abcdefgh"},
        {0, 0.999f, 0, "abcdefgh"},
        {6, 1, 0, "bfdcah"},
        {5, 1, 0, "bfdca"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GenerationOptions options;
        double expected[8];
        generation_options_init(&options);
        options.temperature = 1;
        options.top_k = cases[i].top_k;
        options.top_p = cases[i].top_p;
        options.min_p = cases[i].min_p;
        keep_of(cases[i].kept, expected);
        check_frequencies(&options, expected);
    }
}

static void draws(uint64_t seed, uint32_t choice, int32_t top_k, float top_p, int32_t *ids)
{
    GenerationOptions options;
    generation_options_init(&options);
    options.temperature = 1.5f;
    options.seed = seed;
    options.has_seed = true;
    options.choice = choice;
    options.top_k = top_k;
    options.top_p = top_p;
    options.ignore_eos = true;
    Generation *generation = create(&options);
    for (int i = 0; i < 40; i++) {
        float logits[VOCAB];
        for (int t = 0; t < VOCAB; t++)
            logits[t] = (float)((t * 37 + i * 11) % 101) / 50;
        ids[i] = choose(generation, logits);
    }
    generation_free(generation);
}

static void seeds_repeat_and_differ(void **state)
{
    (void)state;
    static const struct {
        int32_t top_k;
        float top_p;
    } chains[] = {{0, 1}, {20, 1}, {0, 0.9f}};
    for (size_t i = 0; i < ARRAY_COUNT(chains); i++) {
        int32_t a[40], b[40];
        draws(7, 0, chains[i].top_k, chains[i].top_p, a);
        draws(7, 0, chains[i].top_k, chains[i].top_p, b);
        assert_memory_equal(a, b, sizeof(a));
        draws(8, 0, chains[i].top_k, chains[i].top_p, b);
        assert_memory_not_equal(a, b, sizeof(a));
        draws(7, 1, chains[i].top_k, chains[i].top_p, b);
        assert_memory_not_equal(a, b, sizeof(a));
    }
}

static void tiny_temperatures_are_greedy(void **state)
{
    (void)state;
    static const float temperatures[] = {1e-3f, 1e-30f, 1e-42f};
    for (size_t i = 0; i < ARRAY_COUNT(temperatures); i++) {
        for (int32_t top_k = 0; top_k < 10; top_k += 5) {
            GenerationOptions options;
            generation_options_init(&options);
            options.temperature = temperatures[i];
            options.top_k = top_k;
            options.top_p = top_k ? 1 : 0.9f;
            Generation *generation = create(&options);
            float logits[VOCAB];
            flat(logits);
            logits['m'] = 3;
            assert_int_equal(choose(generation, logits), 'm');
            flat(logits);
            logits['m'] = INFINITY;
            assert_int_equal(choose(generation, logits), 'm');
            generation_free(generation);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(argmax_takes_lowest_id_and_ignores_nan),
        cmocka_unit_test(greedy_takes_lowest_of_equals),
        cmocka_unit_test(nan_is_an_error),
        cmocka_unit_test(end_token_ends_and_is_not_counted),
        cmocka_unit_test(ignore_eos_never_chooses_it),
        cmocka_unit_test(max_tokens_ends_with_length),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(logit_bias_bans_selects_and_last_wins),
        cmocka_unit_test(banning_everything_is_an_error),
        cmocka_unit_test(repetition_penalty_looks_at_its_window),
        cmocka_unit_test(presence_and_frequency_count_the_reply),
        cmocka_unit_test(temperature_draws_the_distribution),
        cmocka_unit_test(filters_keep_what_they_should),
        cmocka_unit_test(seeds_repeat_and_differ),
        cmocka_unit_test(tiny_temperatures_are_greedy),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
