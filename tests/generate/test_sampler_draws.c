/* Draws against a reference in double precision with the libm's exponential: how often each token
 * comes, which never do, and the corners of the chain. Seeds are fixed, and draws the same on every
 * machine, so what passes once passes always. */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 700, DRAWS = 20000 };

static float logits[VOCAB], scratch[VOCAB];

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) * 0x1.0p-53;
}

typedef enum Shape { PEAKED, FLAT, EQUAL, STEPS, BANNED, SHAPES } Shape;

static void fill(Shape shape)
{
    uint64_t random = 11;
    for (size_t i = 0; i < VOCAB; i++) {
        double u = uniform(&random) + uniform(&random) + uniform(&random) - 1.5;
        logits[i] = (float)(shape == PEAKED ? u * 9 : u);
        if (shape == EQUAL)
            logits[i] = -3;
        if (shape == STEPS)
            logits[i] = (float)(int)(u * 4);
        if (shape == BANNED && i % 3 != 0)
            logits[i] = -INFINITY;
    }
}

static void set_options(GenerationOptions *options, float temperature, int32_t top_k, float top_p,
                        float min_p)
{
    generation_options_init(options);
    options->has_seed = true;
    options->seed = 1;
    options->max_tokens = SIZE_MAX;
    options->temperature = temperature;
    options->top_k = top_k;
    options->top_p = top_p;
    options->min_p = min_p;
}

/* ---- The reference ---- */

typedef struct Reference {
    double weight; /* before the cuts */
    double share;  /* of what is kept */
    bool is_edge;  /* float weights may put it on either side of a cut */
    int32_t id;
} Reference;

static int descending(const void *a, const void *b)
{
    const Reference *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id - y->id;
}

static bool is_close(double a, double b)
{
    return fabs(a - b) < 1e-5 * fabs(b);
}

/* In descending order. Logits are equal or far enough apart that top_k is never in doubt. */
static void make_reference(const GenerationOptions *options, Reference *tokens)
{
    double best = (double)-INFINITY, total = 0, before = 0, kept = 0;
    size_t count = options->top_k > 0 ? (size_t)options->top_k : VOCAB;
    for (size_t i = 0; i < VOCAB; i++)
        best = (double)logits[i] > best ? (double)logits[i] : best;
    for (size_t i = 0; i < VOCAB; i++)
        tokens[i] =
            (Reference){.weight = exp(((double)logits[i] - best) / (double)options->temperature),
                        .id = (int32_t)i};
    qsort(tokens, VOCAB, sizeof(*tokens), descending);
    for (size_t i = 0; i < count; i++)
        total += tokens[i].weight;
    double nucleus = (double)options->top_p * total;
    for (size_t i = 0; i < count; i++) {
        Reference *t = &tokens[i];
        bool in_nucleus = i == 0 || options->top_p >= 1 || before < nucleus;
        t->is_edge = i > 0 && options->top_p < 1 && is_close(before, nucleus);
        t->is_edge |= i > 0 && is_close(t->weight, (double)options->min_p);
        if (in_nucleus && t->weight >= (double)options->min_p)
            kept += t->share = t->weight;
        before += t->weight;
    }
    for (size_t i = 0; i < count; i++)
        tokens[i].share /= kept;
}

static void count_draws(const GenerationOptions *options, uint32_t *counts)
{
    Sampler sampler;
    Error err = {0};
    assert_true(sampler_init(&sampler, options, NULL, 0, NULL, 0, VOCAB, &err));
    for (size_t i = 0; i < DRAWS; i++) {
        int32_t id;
        memcpy(scratch, logits, sizeof(logits));
        assert_true(sampler_choose(&sampler, scratch, &id, &err));
        assert_in_range(id, 0, VOCAB - 1);
        counts[id]++;
    }
    sampler_reset(&sampler);
}

/* How many were seen of each token; those that only a cut decides about may come or not. */
static void compare_counts(const Reference *tokens, const uint32_t *counts, size_t *members,
                           size_t *strangers)
{
    double distance = 0, cells = 0;
    for (size_t i = 0; i < VOCAB; i++) {
        uint32_t seen = counts[tokens[i].id];
        double expected = DRAWS * tokens[i].share, off = seen - expected;
        if (tokens[i].is_edge)
            continue;
        if (expected <= 0) {
            assert_int_equal(seen, 0);
            (*strangers)++;
            continue;
        }
        (*members)++;
        assert_true(fabs(off) < 5.5 * sqrt(expected) + 6);
        if (expected >= 8) {
            distance += off * off / expected;
            cells += 1;
        }
    }
    /* Chi-square of so many cells: its mean is their number, its variance twice that. */
    assert_true(distance < cells + 5 * sqrt(2 * cells) + 5);
}

static void draws_follow_the_reference(void **state)
{
    (void)state;
    static const struct {
        float temperature;
        int32_t top_k;
        float top_p, min_p;
    } chains[] = {
        {1, 0, 1, 0},     {0.7f, 0, 0.95f, 0}, {1, 64, 0.95f, 0},
        {1, 0, 1, 0.05f}, {1.5f, 0, 0.3f, 0},  {1, 0, 0.9f, 0.2f},
        {2, 300, 1, 0},   {1, 40, 0.8f, 0.1f}, {0.3f, 0, 0.05f, 0},
    };
    static Reference tokens[VOCAB];
    size_t members = 0, strangers = 0;
    for (size_t c = 0; c < ARRAY_COUNT(chains) * SHAPES; c++) {
        GenerationOptions options;
        uint32_t counts[VOCAB] = {0};
        set_options(&options, chains[c / SHAPES].temperature, chains[c / SHAPES].top_k,
                    chains[c / SHAPES].top_p, chains[c / SHAPES].min_p);
        fill((Shape)(c % SHAPES));
        make_reference(&options, tokens);
        count_draws(&options, counts);
        compare_counts(tokens, counts, &members, &strangers);
    }
    assert_true(members > 5000 && strangers > 5000);
}

/* ---- Corners ---- */

static int32_t choose(Sampler *sampler)
{
    Error err = {0};
    int32_t id;
    memcpy(scratch, logits, sizeof(logits));
    assert_true(sampler_choose(sampler, scratch, &id, &err));
    return id;
}

/* Draws often; the ids lie in [low, high], and both are drawn. */
static void check_range(const GenerationOptions *options, int32_t low, int32_t high)
{
    Sampler sampler;
    Error err = {0};
    bool saw_low = false, saw_high = false;
    assert_true(sampler_init(&sampler, options, NULL, 0, NULL, 0, VOCAB, &err));
    for (size_t i = 0; i < DRAWS; i++) {
        int32_t id = choose(&sampler);
        assert_in_range(id, low, high);
        saw_low |= id == low;
        saw_high |= id == high;
    }
    assert_true(saw_low && saw_high);
    sampler_reset(&sampler);
}

static void equal_logits_are_kept_by_id(void **state)
{
    (void)state;
    GenerationOptions options;
    fill(EQUAL);
    set_options(&options, 1, 0, 0.5f, 0);
    check_range(&options, 0, VOCAB / 2 - 1);
    set_options(&options, 1, 300, 1, 0);
    check_range(&options, 0, 299);
    set_options(&options, 1, 300, 0.25f, 0);
    check_range(&options, 0, 74);
    set_options(&options, 1, 0, 1, 1);
    check_range(&options, 0, VOCAB - 1);
    for (size_t i = 0; i < VOCAB; i++) /* ties across blocks, below one that is better */
        logits[i] = i == 400 ? 0 : i % 2 == 0 && i >= 100 && i < 600 ? -1 : -INFINITY;
    set_options(&options, 1, 3, 1, 0);
    check_range(&options, 100, 400);
}

static void a_nucleus_may_be_one_token(void **state)
{
    (void)state;
    GenerationOptions options;
    fill(FLAT);
    logits[699] = 30;
    set_options(&options, 1, 0, 0.95f, 0);
    check_range(&options, 699, 699);
    fill(STEPS);
    logits[301] = logits[650] = 9;
    set_options(&options, 1, 0, 1e-9f, 0);
    check_range(&options, 301, 301);
    options.top_k = 50;
    check_range(&options, 301, 301);
    options.top_p = 0;
    check_range(&options, 301, 301);
    set_options(&options, 1e-40f, 0, 1, 0); /* its reciprocal is infinite */
    check_range(&options, 301, 650);
    options.top_p = 0.5f;
    check_range(&options, 301, 301);
}

static void the_hottest_draw_is_uniform_but_for_bans(void **state)
{
    (void)state;
    GenerationOptions options;
    uint32_t counts[VOCAB] = {0};
    fill(BANNED);
    set_options(&options, FLT_MAX, 0, 0.999f, 0);
    count_draws(&options, counts);
    for (size_t i = 0; i < VOCAB; i++) {
        if (i % 3 != 0)
            assert_int_equal(counts[i], 0);
        else if (i < 690)
            assert_true(counts[i] > 30); /* of 86 */
    }
}

static void infinities_and_nans(void **state)
{
    (void)state;
    static const size_t places[] = {0, 255, 256, 511, 512, VOCAB - 1};
    static const int32_t top_ks[] = {0, 40};
    for (size_t i = 0; i < 2 * ARRAY_COUNT(places); i++) {
        GenerationOptions options;
        Sampler sampler;
        Error err = {0};
        int32_t id;
        fill(FLAT);
        set_options(&options, 1, top_ks[i % 2], 0.95f, 0);
        assert_true(sampler_init(&sampler, &options, NULL, 0, NULL, 0, VOCAB, &err));
        logits[places[i / 2]] = INFINITY;
        assert_int_equal(choose(&sampler), places[i / 2]);
        logits[places[i / 2]] = NAN;
        memcpy(scratch, logits, sizeof(logits));
        assert_false(sampler_choose(&sampler, scratch, &id, &err));
        assert_int_equal(err.code, ERROR_INTERNAL);
        for (size_t j = 0; j < VOCAB; j++)
            logits[j] = j == places[i / 2] ? -3e38f : -INFINITY;
        assert_int_equal(choose(&sampler), places[i / 2]);
        sampler_reset(&sampler);
    }
}

/* ---- Log-probabilities ---- */

static int by_logit(const void *a, const void *b)
{
    const TokenLogprob *x = a, *y = b;
    if (x->logprob != y->logprob)
        return x->logprob > y->logprob ? -1 : 1;
    return x->id - y->id;
}

/* Sizes of one value, of no whole blocks, and of more blocks than are looked at at a time. */
static void logprobs_equal_the_reference(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 19, 300, 5003, 600000};
    uint64_t random = 9;
    for (size_t c = 0; c < 2 * ARRAY_COUNT(counts); c++) {
        size_t count = counts[c / 2], n_top = count < 20 ? count : 20;
        float *row = memory_allocate_array(count, sizeof(*row));
        TokenLogprob *sorted = memory_allocate_array(count, sizeof(*sorted));
        double sum = 0;
        LogprobEntry entry;
        assert_non_null(row);
        assert_non_null(sorted);
        for (size_t i = 0; i < count; i++) {
            double u = uniform(&random) + uniform(&random) + uniform(&random) - 1.5;
            row[i] = (float)(c % 2 ? (double)(int)(u * 9) : u * 9); /* ties, or hardly any */
            sorted[i] = (TokenLogprob){(int32_t)i, row[i]};
            sum += exp((double)row[i]);
        }
        qsort(sorted, count, sizeof(*sorted), by_logit);
        logprob_measure(row, count, (int32_t)(count / 2), 20, &entry);
        assert_int_equal(entry.n_top, n_top);
        assert_true(fabs((double)entry.logprob - ((double)row[count / 2] - log(sum))) < 2e-6);
        for (size_t i = 0; i < n_top; i++) {
            assert_int_equal(entry.top[i].id, sorted[i].id);
            assert_true(
                fabs((double)entry.top[i].logprob - ((double)sorted[i].logprob - log(sum))) < 2e-6);
        }
        memory_free(sorted);
        memory_free(row);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_reference),
        cmocka_unit_test(equal_logits_are_kept_by_id),
        cmocka_unit_test(a_nucleus_may_be_one_token),
        cmocka_unit_test(the_hottest_draw_is_uniform_but_for_bans),
        cmocka_unit_test(infinities_and_nans),
        cmocka_unit_test(logprobs_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
