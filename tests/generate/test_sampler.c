/* The chain against a plain one that sorts everything: the same token for the same draws, whatever
 * the shape of the distribution. The passes compiled for different machines: the same bits. And
 * what certain seeds draw, here as everywhere. */
#include "sampler.h"

#include "exponential.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB_MAX = 20000, ROUNDS = 40 };

static float logits[VOCAB_MAX], scratch[VOCAB_MAX];
static Candidate sorted[VOCAB_MAX], by_ids[VOCAB_MAX];

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) * 0x1.0p-53;
}

typedef enum Shape { PEAKED, FLAT, HEAVY_TAIL, EQUAL, STEPS, MOSTLY_BANNED, SHAPES } Shape;

static void fill(Shape shape, size_t vocab, uint64_t *state)
{
    for (size_t i = 0; i < vocab; i++) {
        double u = uniform(state) + uniform(state) + uniform(state) - 1.5;
        logits[i] = (float)(shape == FLAT ? u * 0.3 : u * 4);
        if (shape == HEAVY_TAIL)
            logits[i] = (float)(u * 9);
        if (shape == EQUAL)
            logits[i] = 1.5f;
        if (shape == STEPS)
            logits[i] = (float)(int)(u * 3);
        if (shape == MOSTLY_BANNED && uniform(state) < 0.999)
            logits[i] = -INFINITY;
    }
    for (size_t i = 0; shape == PEAKED && i < 10; i++)
        logits[(size_t)(uniform(state) * (double)vocab)] += 12.0f - (float)i;
    logits[vocab / 3] = logits[vocab / 3] > 0 ? logits[vocab / 3] : 0.5f; /* never all banned */
}

static int descending(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int by_id(const void *a, const void *b)
{
    return ((const Candidate *)a)->id - ((const Candidate *)b)->id;
}

/* Weights of what top_k leaves to sorted, in descending order; how many. */
static size_t sort_weights(const Sampler *s, size_t vocab)
{
    for (size_t i = 0; i < vocab; i++)
        sorted[i] = (Candidate){logits[i], (int32_t)i};
    qsort(sorted, vocab, sizeof(*sorted), descending);
    float best = sorted[0].weight;
    size_t count = s->top_k > 0 && (size_t)s->top_k < vocab ? (size_t)s->top_k : vocab;
    for (size_t i = 0; i < count; i++)
        sorted[i].weight = exp2_negative((sorted[i].weight - best) * s->scale);
    /* Weights may be equal where logits are not. */
    qsort(sorted, count, sizeof(*sorted), descending);
    return count;
}

static double sum_of(const Candidate *list, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)list[i].weight;
    return sum;
}

/* Draws from the first count of sorted, in ascending order of ids: its rank, or -1 when rounding
 * may decide either way. */
static int draw_rank(size_t count, double draw)
{
    double sum = sum_of(sorted, count), target = draw * sum;
    memcpy(by_ids, sorted, count * sizeof(*sorted));
    qsort(by_ids, count, sizeof(*by_ids), by_id);
    for (size_t i = 0; i < count; i++) {
        target -= (double)by_ids[i].weight;
        if (fabs(target) < 1e-12 * sum)
            return -1;
        if (target < 0)
            return (
                int)((Candidate *)bsearch(&by_ids[i], sorted, count, sizeof(*sorted), descending) -
                     sorted);
    }
    return -1;
}

/* The token of the plain chain; -1 when rounding may decide either way. */
static int32_t expected_token(const Sampler *s, size_t vocab)
{
    RandomStream draws = s->random;
    size_t count = sort_weights(s, vocab), kept = 0;
    double total = sum_of(sorted, count);
    while (kept < count && sorted[kept].weight >= s->min_p && sorted[kept].weight > 0)
        kept++;
    for (;;) {
        int rank = draw_rank(kept, random_uniform(&draws));
        double missing = rank < 0 ? 0 : (double)s->top_p * total - sum_of(sorted, (size_t)rank);
        if (rank < 0 || (s->top_p < 1 && rank > 0 && fabs(missing) < 1e-12 * total))
            return -1;
        if (s->top_p >= 1 || rank == 0 || missing > 0)
            return sorted[rank].id;
        kept = (size_t)rank;
    }
}

static size_t check_chain(GenerationOptions *options, Shape shape, size_t vocab, uint64_t *state)
{
    Sampler sampler;
    Error err = {0};
    size_t compared = 0;
    assert_true(sampler_init(&sampler, options, NULL, 0, NULL, 0, vocab, &err));
    for (size_t round = 0; round < 3; round++) {
        fill(shape, vocab, state);
        int32_t id, expected = expected_token(&sampler, vocab);
        memcpy(scratch, logits, vocab * sizeof(*logits));
        assert_true(sampler_choose(&sampler, scratch, &id, &err));
        if (expected < 0)
            continue;
        if (id != expected)
            print_error("shape %d, vocabulary %zu, T %g, top_k %d, top_p %g, min_p %g\n",
                        (int)shape, vocab, (double)options->temperature, options->top_k,
                        (double)options->top_p, (double)options->min_p);
        assert_int_equal(id, expected);
        compared++;
    }
    sampler_reset(&sampler);
    return compared;
}

static void random_options(GenerationOptions *options, size_t round, uint64_t *random)
{
    static const float top_ps[] = {1, 0.999f, 0.95f, 0.5f, 0.01f}, min_ps[] = {0, 0.05f, 1e-6f};
    static const int32_t top_ks[] = {0, 1, 40, 1000};
    generation_options_init(options);
    options->has_seed = true;
    options->seed = round;
    options->max_tokens = 100;
    options->temperature = 0.5f + (float)(round % 4) * 0.5f;
    options->top_p = top_ps[(size_t)(uniform(random) * 5)];
    options->min_p = min_ps[(size_t)(uniform(random) * 3)];
    options->top_k = top_ks[(size_t)(uniform(random) * 4)];
}

static void chain_equals_the_plain_one(void **state)
{
    (void)state;
    static const size_t vocabs[] = {1, 7, 255, 256, 257, 3000, VOCAB_MAX};
    uint64_t random = 7;
    size_t compared = 0;
    for (size_t round = 0; round < ROUNDS; round++) {
        for (int shape = 0; shape < SHAPES; shape++) {
            GenerationOptions options;
            random_options(&options, round, &random);
            compared += check_chain(&options, (Shape)shape, vocabs[(size_t)(uniform(&random) * 7)],
                                    &random);
        }
    }
    assert_true(compared > ROUNDS * SHAPES * 2);
}

static void weights_are_powers_of_two(void **state)
{
    (void)state;
    static const float nothing[] = {-125.00001f, -126, -3e38f, -INFINITY, NAN};
    for (float x = 0; x >= EXPONENTIAL_LEAST; x -= 0.00137f) {
        float weight = exp2_negative(x);
        assert_true(weight <= 1 && fabs((double)weight / exp2((double)x) - 1) < 2e-7);
    }
    assert_true(exp2_negative(0) == 1 && exp2_negative(-0.0f) == 1 && exp2_negative(-1) == 0.5f);
    assert_true(exp2_negative(EXPONENTIAL_LEAST) == 0x1p-125f);
    for (size_t i = 0; i < ARRAY_COUNT(nothing); i++)
        assert_true(exp2_negative(nothing[i]) == 0);
}

/* ---- Every machine ---- */

/* Logits of all kinds, from far below what weighs anything to infinity, and limits among them. */
static void fill_odd(size_t count, uint64_t *state)
{
    static const float odd[] = {-INFINITY, -0.0f, 0x1p-140f, -3e38f, 14, 13.999999f, -72.6f, -73};
    fill(HEAVY_TAIL, count, state);
    for (size_t i = 0; i < count; i++) {
        double u = uniform(state);
        if (u < 0.1)
            logits[i] = odd[(size_t)(u * 80)];
        else if (u < 0.2)
            logits[i] *= 12;
        logits[i] = logits[i] > 14 ? 14 : logits[i];
    }
}

static void check_passes(const VocabularyPasses *other, size_t n)
{
    enum { BLOCKS = VOCAB_MAX / VOCABULARY_BLOCK + 1 };
    const VocabularyPasses *plain = &vocabulary_passes_plain;
    static float again[VOCAB_MAX], maxima[2][BLOCKS];
    static double sums[2][BLOCKS];
    size_t blocks = vocabulary_blocks(n);
    memcpy(scratch, logits, n * sizeof(*logits));
    memcpy(again, logits, n * sizeof(*logits));
    assert_true(plain->find_maxima(scratch, n, maxima[0]));
    assert_true(other->find_maxima(again, n, maxima[1]));
    assert_memory_equal(maxima[0], maxima[1], blocks * sizeof(float));
    for (size_t start = 0; start < n; start += VOCABULARY_BLOCK) {
        size_t length = vocabulary_block_end(n, start / VOCABULARY_BLOCK) - start;
        uint64_t bits[VOCABULARY_WORDS];
        other->find_from(logits + start, length, 4, bits);
        for (size_t j = 0; j < VOCABULARY_BLOCK; j++)
            assert_int_equal(bits[j / 64] >> (j % 64) & 1, j < length && logits[start + j] >= 4);
    }
    double a = plain->sum_exponentials(scratch, n, 14), b = other->sum_exponentials(again, n, 14);
    assert_memory_equal(&a, &b, sizeof(a));
    plain->weigh(scratch, n, 14, 1.7f, sums[0]);
    other->weigh(again, n, 14, 1.7f, sums[1]);
    assert_memory_equal(scratch, again, n * sizeof(float));
    assert_memory_equal(sums[0], sums[1], blocks * sizeof(double));
    for (size_t j = 0; j < n; j++) {
        float one = exp2_negative((logits[j] - 14) * 1.7f);
        assert_memory_equal(&one, &again[j], sizeof(one));
    }
    plain->sum_from(scratch, n, 1e-4f, sums[0]);
    other->sum_from(again, n, 1e-4f, sums[1]);
    assert_memory_equal(sums[0], sums[1], blocks * sizeof(double));
    again[n - 1] = NAN;
    assert_false(other->find_maxima(again, n, maxima[1]));
    again[n - 1] = 0;
    again[n / 2] = -NAN;
    assert_false(other->find_maxima(again, n, maxima[1]));
}

static void passes_agree_to_the_bit(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 5, 8, 17, 250, 256, 1000, VOCAB_MAX};
    uint64_t random = 3;
    assert_ptr_equal(vocabulary_passes_at(0), vocabulary_passes());
    for (size_t round = 0; round < 5; round++) {
        for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
            fill_odd(counts[i], &random);
            for (size_t p = 0; vocabulary_passes_at(p); p++)
                check_passes(vocabulary_passes_at(p), counts[i]);
        }
    }
}

static void chains_agree_on_all_passes(void **state)
{
    (void)state;
    enum { VOCAB = 3001 };
    uint64_t random = 5;
    Error err = {0};
    for (size_t round = 0; round < ROUNDS * SHAPES; round++) {
        GenerationOptions options;
        int32_t first = -1, id;
        random_options(&options, round, &random);
        fill((Shape)(round % SHAPES), VOCAB, &random);
        for (size_t p = 0; vocabulary_passes_at(p); p++) {
            Sampler sampler;
            assert_true(sampler_init(&sampler, &options, NULL, 0, NULL, 0, VOCAB, &err));
            sampler.passes = vocabulary_passes_at(p);
            memcpy(scratch, logits, VOCAB * sizeof(*logits));
            assert_true(sampler_choose(&sampler, scratch, &id, &err));
            first = p == 0 ? id : first;
            assert_int_equal(id, first);
            sampler_reset(&sampler);
        }
    }
}

/* A promise: a seed gives the same text with every processor and compiler. */
static void seeds_draw_what_they_drew(void **state)
{
    (void)state;
    enum { VOCAB = 3001, DRAWS = 8 };
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
        Shape shape;
        int32_t ids[DRAWS];
    } cases[] = {
        {1, 1, 0, 0, PEAKED, {1493, 1326, 1493, 1493, 71, 1493, 1493, 1326}},
        {0.7f, 1, 0, 0, FLAT, {2320, 1139, 2118, 1805, 52, 2715, 1563, 523}},
        {1, 0.95f, 0, 0, PEAKED, {2187, 1188, 2187, 1821, 353, 2187, 1188, 724}},
        {1.3f, 0.95f, 0, 0, FLAT, {2319, 1142, 2123, 1809, 52, 2717, 1565, 2849}},
        {1, 0.5f, 0, 0, STEPS, {2355, 1872, 79, 1470, 2935, 663, 989, 286}},
        {1, 0.95f, 0, 64, HEAVY_TAIL, {1852, 2282, 2164, 265, 2912, 1974, 697, 2912}},
        {2, 1, 0.05f, 0, HEAVY_TAIL, {2488, 1403, 2329, 2048, 72, 2774, 1725, 791}},
        {1, 0.9f, 0.01f, 0, PEAKED, {94, 5, 94, 94, 5, 94, 94, 5}},
    };
    Error err = {0};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        GenerationOptions options;
        Sampler sampler;
        uint64_t random = i + 1;
        generation_options_init(&options);
        options.has_seed = true;
        options.seed = 42;
        options.max_tokens = DRAWS;
        options.temperature = cases[i].temperature;
        options.top_p = cases[i].top_p;
        options.min_p = cases[i].min_p;
        options.top_k = cases[i].top_k;
        fill(cases[i].shape, VOCAB, &random);
        assert_true(sampler_init(&sampler, &options, NULL, 0, NULL, 0, VOCAB, &err));
        for (size_t n = 0; n < DRAWS; n++) {
            int32_t id;
            memcpy(scratch, logits, VOCAB * sizeof(*logits));
            assert_true(sampler_choose(&sampler, scratch, &id, &err));
            assert_int_equal(id, cases[i].ids[n]);
        }
        sampler_reset(&sampler);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_equals_the_plain_one), cmocka_unit_test(weights_are_powers_of_two),
        cmocka_unit_test(passes_agree_to_the_bit),    cmocka_unit_test(chains_agree_on_all_passes),
        cmocka_unit_test(seeds_draw_what_they_drew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
