/* Times one step of the sampling chain over a large vocabulary. CSV on stdout: one line for each
 * set of options, microseconds of a token, and their share of a decode step when its length is
 * given. Logits have the shape of a language model's: a few candidates stand out of a normal bulk.
 * Usage: bench_sampler [vocab size [milliseconds of a decode step]]. One thread, median of rounds.
 */
#include "generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 9, TOKENS = 40, VOCAB_DEFAULT = 262144, ROWS = 4 };

typedef struct Case {
    const char *name;
    float temperature, top_p, min_p, repetition, presence;
    int32_t top_k;
    uint32_t top_logprobs;
    bool logprobs;
    float spread; /* of the bulk */
} Case;

static const Case cases[] = {
    {"greedy", 0, 1, 0, 1, 0, 0, 0, false, 2},
    {"temperature 1", 1, 1, 0, 1, 0, 0, 0, false, 2},
    {"top_k 40", 1, 1, 0, 1, 0, 40, 0, false, 2},
    {"top_k 1000", 1, 1, 0, 1, 0, 1000, 0, false, 2},
    {"top_p 0.95", 1, 0.95f, 0, 1, 0, 0, 0, false, 2},
    {"top_p 0.95 of a flat bulk", 1.5f, 0.95f, 0, 1, 0, 0, 0, false, 0.5f},
    {"top_p 0.999 of a flat bulk", 2, 0.999f, 0, 1, 0, 0, 0, false, 0.5f},
    {"min_p 0.05", 1, 1, 0.05f, 1, 0, 0, 0, false, 2},
    {"top_k 40 top_p 0.95 min_p 0.05 penalties", 0.7f, 0.95f, 0.05f, 1.1f, 0.5f, 40, 0, false, 2},
    {"greedy with 20 top_logprobs", 0, 1, 0, 1, 0, 0, 20, true, 2},
};

static double normal(uint64_t *random)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        *random = *random * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(*random >> 11) * 0x1.0p-53;
    }
    return sum - 6;
}

static void fill_logits(float *logits, size_t vocab, float spread, uint64_t seed)
{
    uint64_t random = seed;
    for (size_t i = 0; i < vocab; i++)
        logits[i] = (float)normal(&random) * spread;
    for (int i = 0; i < 20; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        logits[(random >> 20) % vocab] += 12.0f - (float)i * 0.4f;
    }
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of a token: the step alone, without the copy that gives it fresh logits. */
static double time_round(Generation *generation, const float *rows, float *logits, size_t vocab)
{
    double seconds = 0;
    Buffer text;
    buffer_init(&text, 1 << 20);
    for (size_t i = 0; i < TOKENS; i++) {
        Error err;
        int32_t id;
        memcpy(logits, rows + i % ROWS * vocab, vocab * sizeof(*logits));
        double start = clock_monotonic_seconds();
        if (!generation_step(generation, logits, &id, &text, &err)) {
            fprintf(stderr, "bench_sampler: %s\n", err.message);
            exit(1);
        }
        seconds += clock_monotonic_seconds() - start;
        buffer_clear(&text);
    }
    buffer_reset(&text);
    return seconds / TOKENS;
}

static bool run_case(const Case *c, const Tokenizer *tokenizer, size_t vocab, double step_seconds,
                     float *rows, float *logits, Error *err)
{
    GenerationOptions options;
    Generation *generation;
    double seconds[ROUNDS];
    generation_options_init(&options);
    options.temperature = c->temperature;
    options.top_p = c->top_p;
    options.min_p = c->min_p;
    options.top_k = c->top_k;
    options.repetition_penalty = c->repetition;
    options.presence_penalty = c->presence;
    options.logprobs = c->logprobs;
    options.top_logprobs = c->top_logprobs;
    options.seed = 1;
    options.has_seed = true;
    options.max_tokens = SIZE_MAX;
    for (size_t i = 0; i < ROWS; i++)
        fill_logits(rows + i * vocab, vocab, c->spread, i + 1);
    if (!generation_create(tokenizer, &options, NULL, 0, NULL, 0, vocab, &generation, err))
        return false;
    for (size_t i = 0; i < ROUNDS; i++)
        seconds[i] = time_round(generation, rows, logits, vocab);
    qsort(seconds, ROUNDS, sizeof(*seconds), compare_doubles);
    double median = seconds[ROUNDS / 2];
    printf("%s,%zu,%.1f,", c->name, vocab, median * 1e6);
    if (step_seconds > 0)
        printf("%.4f", median / step_seconds);
    printf("\n");
    generation_free(generation);
    return true;
}

int main(int argc, char **argv)
{
    size_t vocab = argc > 1 ? strtoull(argv[1], NULL, 10) : VOCAB_DEFAULT;
    double step_seconds = argc > 2 ? strtod(argv[2], NULL) * 1e-3 : 0;
    Tokenizer *tokenizer = NULL;
    Error err = {0};
    float *rows = memory_allocate_array(ROWS * vocab, sizeof(*rows));
    float *logits = memory_allocate_array(vocab, sizeof(*logits));
    bool ok = rows && logits && vocab > 0 &&
              tokenizer_create(SLICE("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}"), "bench",
                               &tokenizer, &err);
    printf("options,vocab_size,microseconds,share_of_step\n");
    for (size_t i = 0; ok && i < ARRAY_COUNT(cases); i++)
        ok = run_case(&cases[i], tokenizer, vocab, step_seconds, rows, logits, &err);
    if (!ok)
        fprintf(stderr, "bench_sampler: %s\n", err.message[0] ? err.message : "no memory");
    tokenizer_free(tokenizer);
    memory_free(logits);
    memory_free(rows);
    return ok ? 0 : 1;
}
