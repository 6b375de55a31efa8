#include "generate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 260, END = 257 };

static const int32_t EOS[] = {END};
static Tokenizer *tokenizer;

static int setup(void **state)
{
    (void)state;
    Error err;
    return tokenizer_open(TEST_DATA_DIR "/generate/bytes-tokenizer.json", &tokenizer, &err) ? 0
                                                                                            : -1;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

static Generation *create(const GenerationOptions *options)
{
    Generation *generation;
    Error err = {0};
    if (!generation_create(tokenizer, options, EOS, 1, NULL, 0, VOCAB, &generation, &err))
        fail_msg("%s", err.message);
    return generation;
}

static void flat(float *logits)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 0;
}

/* Feeds the ids as certain choices and returns the text; stops at the end. */
static size_t feed(Generation *generation, const char *bytes, size_t count, Buffer *text)
{
    float logits[VOCAB];
    Error err;
    size_t i = 0;
    while (i < count && generation_finish_reason(generation) == FINISH_NONE) {
        int32_t id;
        flat(logits);
        logits[(unsigned char)bytes[i++]] = 50;
        assert_true(generation_step(generation, logits, &id, text, &err));
        assert_true(utf8_is_valid(buffer_view(text)));
    }
    return i;
}

static int32_t choose(Generation *generation, float *logits)
{
    int32_t id;
    Error err = {0};
    Buffer text;
    buffer_init(&text, 1 << 20);
    if (!generation_step(generation, logits, &id, &text, &err))
        fail_msg("%s", err.message);
    buffer_reset(&text);
    return id;
}

static void assert_text(const Buffer *text, const char *expected)
{
    assert_int_equal(text->len, strlen(expected));
    if (text->len > 0)
        assert_memory_equal(text->ptr, expected, text->len);
}

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
