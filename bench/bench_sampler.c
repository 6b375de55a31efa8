/* Times one step of the sampling chain over a large vocabulary. CSV on stdout: one line for each
 * set of options and each shape of the logits, microseconds of a token, and their share of a decode
 * step when its length is given. Peaked logits are like a trained model's: a normal bulk far below
 * the best, and a few dozen candidates (a nucleus of 0.95 has some 30 tokens). Flat ones are like
 * those of random weights: 0.95 of the weight is most of the vocabulary.
 * Usage: bench_sampler [vocab size [milliseconds of a decode step]]. One thread, median of rounds.
 */
#include "generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 9, TOKENS = 40, VOCAB_DEFAULT = 262144, ROWS = 4, PROMPT = 512 };

typedef struct Case {
    const char *name;
    float temperature, top_p, min_p, repetition, presence;
    int32_t top_k;
    uint32_t top_logprobs;
    bool logprobs;
} Case;

static const Case cases[] = {
    {"greedy", 0, 1, 0, 1, 0, 0, 0, false},
    {"temperature 1", 1, 1, 0, 1, 0, 0, 0, false},
    {"top_p 0.95", 1, 0.95f, 0, 1, 0, 0, 0, false},
    {"top_p 0.5", 1, 0.5f, 0, 1, 0, 0, 0, false},
    {"top_k 64 top_p 0.95", 1, 0.95f, 0, 1, 0, 64, 0, false},
    {"top_k 1000", 1, 1, 0, 1, 0, 1000, 0, false},
    {"min_p 0.05", 1, 1, 0.05f, 1, 0, 0, 0, false},
    {"top_p 0.95 min_p 0.05", 1, 0.95f, 0.05f, 1, 0, 0, 0, false},
    {"top_p 0.95 repetition 1.1", 1, 0.95f, 0, 1.1f, 0, 0, 0, false},
    {"top_k 40 top_p 0.95 min_p 0.05 penalties", 0.7f, 0.95f, 0.05f, 1.1f, 0.5f, 40, 0, false},
    {"greedy with logprobs", 0, 1, 0, 1, 0, 0, 0, true},
    {"greedy with 20 top_logprobs", 0, 1, 0, 1, 0, 0, 20, true},
    {"top_p 0.95 with 20 top_logprobs", 1, 0.95f, 0, 1, 0, 0, 20, true},
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

static void fill_logits(float *logits, size_t vocab, bool is_peaked, uint64_t seed)
{
    uint64_t random = seed;
    for (size_t i = 0; i < vocab; i++)
        logits[i] = (float)normal(&random) * (is_peaked ? 3.5f : 0.5f);
    for (int i = 0; is_peaked && i < 50; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        logits[(random >> 20) % vocab] = 20.0f - 1.8f * logf(1.0f + (float)i);
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

static bool run_case(const Case *c, bool is_peaked, const Tokenizer *tokenizer, size_t vocab,
                     double step_seconds, float *rows, float *logits, Error *err)
{
    GenerationOptions options;
    Generation *generation;
    double seconds[ROUNDS];
    int32_t prompt[PROMPT];
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
    options.repetition_context_size = PROMPT;
    for (size_t i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)(i * 509 % vocab);
    for (size_t i = 0; i < ROWS; i++)
        fill_logits(rows + i * vocab, vocab, is_peaked, i + 1);
    if (!generation_create(tokenizer, &options, NULL, 0, prompt, PROMPT, vocab, &generation, err))
        return false;
    for (size_t i = 0; i < ROUNDS; i++)
        seconds[i] = time_round(generation, rows, logits, vocab);
    qsort(seconds, ROUNDS, sizeof(*seconds), compare_doubles);
    double median = seconds[ROUNDS / 2];
    printf("%s,%s,%zu,%.1f,", c->name, is_peaked ? "peaked" : "flat", vocab, median * 1e6);
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
    printf("options,logits,vocab_size,microseconds,share_of_step\n");
    for (size_t i = 0; ok && i < 2 * ARRAY_COUNT(cases); i++)
        ok =
            run_case(&cases[i / 2], i % 2 == 0, tokenizer, vocab, step_seconds, rows, logits, &err);
    if (!ok)
        fprintf(stderr, "bench_sampler: %s\n", err.message[0] ? err.message : "no memory");
    tokenizer_free(tokenizer);
    memory_free(logits);
    memory_free(rows);
    return ok ? 0 : 1;
}
