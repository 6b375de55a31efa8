/* The chain against a plain one that sorts everything: the same token for the same draw, whatever
 * the shape of the distribution. And the passes compiled for different machines: the same bits. */
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
static Candidate sorted[VOCAB_MAX];

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

/* Which prefix of the sorted tokens is kept; 0 when rounding may decide either way. */
static size_t kept_prefix(const Sampler *s, size_t vocab)
{
    size_t count = s->top_k > 0 && (size_t)s->top_k < vocab ? (size_t)s->top_k : vocab, kept = 0;
    double total = 0, sum = 0;
    for (size_t i = 0; i < count; i++)
        total += (double)sorted[i].weight;
    while (kept < count) {
        double missing = (double)s->top_p * total - sum;
        if (kept > 0 && (sorted[kept].weight < s->min_p || sorted[kept].weight <= 0))
            break;
        if (kept > 0 && s->top_p < 1 && fabs(missing) < 1e-12 * total)
            return 0;
        if (kept > 0 && s->top_p < 1 && missing <= 0)
            break;
        sum += (double)sorted[kept++].weight;
    }
    return kept;
}

static int by_id(const void *a, const void *b)
{
    return ((const Candidate *)a)->id - ((const Candidate *)b)->id;
}

/* The token of the plain chain; -1 when rounding may decide either way. */
static int32_t expected_token(const Sampler *s, size_t vocab, double draw)
{
    float best = -INFINITY;
    for (size_t i = 0; i < vocab; i++)
        best = logits[i] > best ? logits[i] : best;
    for (size_t i = 0; i < vocab; i++)
        sorted[i] =
            (Candidate){logits[i], (int32_t)i}; /* weights may be equal where these are not */
    qsort(sorted, vocab, sizeof(*sorted), descending);
    for (size_t i = 0; i < vocab; i++)
        sorted[i].weight = exp_negative((sorted[i].weight - best) * s->scale);
    if (s->top_k <= 0 || (size_t)s->top_k >= vocab)
        qsort(sorted, vocab, sizeof(*sorted), descending);
    size_t kept = kept_prefix(s, vocab);
    if (kept == 0)
        return -1;
    if (s->top_k <= 0 || (size_t)s->top_k >= vocab)
        qsort(sorted, kept, sizeof(*sorted), by_id);
    double total = 0;
    for (size_t i = 0; i < kept; i++)
        total += (double)sorted[i].weight;
    double target = draw * total, margin = 1e-12 * total;
    for (size_t i = 0; i < kept; i++) {
        target -= (double)sorted[i].weight;
        if (fabs(target) < margin)
            return -1;
        if (target < 0)
            return sorted[i].id;
    }
    return -1;
}

static size_t check_chain(GenerationOptions *options, Shape shape, size_t vocab, uint64_t *state)
{
    Sampler sampler;
    Error err = {0};
    size_t compared = 0;
    assert_true(sampler_init(&sampler, options, NULL, 0, NULL, 0, vocab, &err));
    for (size_t round = 0; round < 3; round++) {
        fill(shape, vocab, state);
        RandomStream draws = sampler.random;
        int32_t id, expected = expected_token(&sampler, vocab, random_uniform(&draws));
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

static void chain_equals_the_plain_one(void **state)
{
    (void)state;
    static const size_t vocabs[] = {1, 7, 255, 256, 257, 3000, VOCAB_MAX};
    static const float top_ps[] = {1, 0.999f, 0.95f, 0.5f, 0.01f}, min_ps[] = {0, 0.05f, 1e-6f};
    static const int32_t top_ks[] = {0, 1, 40, 1000};
    uint64_t random = 7;
    size_t compared = 0;
    for (size_t round = 0; round < ROUNDS; round++) {
        for (int shape = 0; shape < SHAPES; shape++) {
            GenerationOptions options;
            generation_options_init(&options);
            options.has_seed = true;
            options.seed = round;
            options.max_tokens = 100;
            options.temperature = 0.5f + (float)(round % 4) * 0.5f;
            options.top_p = top_ps[(size_t)(uniform(&random) * 5)];
            options.min_p = min_ps[(size_t)(uniform(&random) * 3)];
            options.top_k = top_ks[(size_t)(uniform(&random) * 4)];
            compared += check_chain(&options, (Shape)shape, vocabs[(size_t)(uniform(&random) * 7)],
                                    &random);
        }
    }
    assert_true(compared > ROUNDS * SHAPES * 2);
}

static void passes_agree_to_the_bit(void **state)
{
    (void)state;
    const VocabularyPasses *plain = &vocabulary_passes_plain, *other = vocabulary_passes();
    static const size_t counts[] = {1, 5, 8, 250, 256, 1000, VOCAB_MAX};
    static float again[VOCAB_MAX], maxima[2][VOCAB_MAX / VOCABULARY_BLOCK + 1];
    static double sums[2][VOCAB_MAX / VOCABULARY_BLOCK + 1];
    uint64_t random = 3;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        size_t n = counts[i], blocks = vocabulary_blocks(n);
        fill(HEAVY_TAIL, n, &random);
        memcpy(scratch, logits, n * sizeof(*logits));
        memcpy(again, logits, n * sizeof(*logits));
        assert_true(plain->find_maxima(scratch, n, maxima[0]));
        assert_true(other->find_maxima(again, n, maxima[1]));
        assert_memory_equal(maxima[0], maxima[1], blocks * sizeof(float));
        double a = plain->sum_weights(scratch, n, 9), b = other->sum_weights(again, n, 9);
        assert_memory_equal(&a, &b, sizeof(a));
        plain->weigh(scratch, n, 14, 0.7f, sums[0]);
        other->weigh(again, n, 14, 0.7f, sums[1]);
        assert_memory_equal(scratch, again, n * sizeof(float));
        assert_memory_equal(sums[0], sums[1], blocks * sizeof(double));
        for (size_t j = 0; j < n; j++) {
            float one = exp_negative((logits[j] - 14) * 0.7f);
            assert_memory_equal(&one, &again[j], sizeof(one));
        }
        plain->sum_from(scratch, n, 1e-4f, sums[0]);
        other->sum_from(again, n, 1e-4f, sums[1]);
        assert_memory_equal(sums[0], sums[1], blocks * sizeof(double));
        again[n / 2] = NAN;
        assert_false(other->find_maxima(again, n, maxima[1]));
        assert_false(plain->find_maxima(again, n, maxima[0]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_equals_the_plain_one),
        cmocka_unit_test(passes_agree_to_the_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
