/* Every fixture model against its golden numbers, in both precisions; and each way of cutting the
 * same tokens into calls against the others, bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/cpu_engine.h"
#include "engine.h"
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 256 };

typedef struct Numbers {
    EnginePrecision precision;
    unsigned kv_bits;
} Numbers;

static const Numbers WITH_F32 = {ENGINE_PRECISION_F32, 0};
static const Numbers WITH_INT12 = {ENGINE_PRECISION_INT12, 0};
static const Numbers WITH_INT16 = {ENGINE_PRECISION_INT16, 0};
static const Numbers WITH_INT8 = {ENGINE_PRECISION_INT8, 0};
static const Numbers WITH_KV8 = {ENGINE_PRECISION_INT16, 8};
static const Numbers WITH_F32_KV8 = {ENGINE_PRECISION_F32, 8};

typedef struct Fixture {
    Golden golden;
    Model *model;
    Engine *engine;
} Fixture;

static void open_fixture(Fixture *f, const char *name, Numbers numbers, size_t batch,
                         InstructionSet best_set)
{
    Error err = {0};
    golden_open(name, &f->golden);
    if (!model_open(f->golden.directory, &f->model, &err))
        fail_msg("%s: %s", name, err.message);
    EngineOptions options = {.precision = numbers.precision,
                             .threads = 2,
                             .max_batch_tokens = batch,
                             .kv_bits = numbers.kv_bits};
    if (!cpu_engine_open(f->model, &options, best_set, &f->engine, &err))
        fail_msg("%s: %s", name, err.message);
}

static void close_fixture(Fixture *f)
{
    engine_close(f->engine);
    model_close(f->model);
    golden_close(&f->golden);
}

static EngineSequence *create_sequence(Fixture *f)
{
    Error err = {0};
    EngineSequence *sequence;
    if (!engine_sequence_create(f->engine, CONTEXT, &sequence, &err))
        fail_msg("%s", err.message);
    return sequence;
}

static void forward(Fixture *f, EngineSequence *sequence, const int32_t *tokens, size_t n,
                    EngineLogits wanted, float *logits)
{
    Error err = {0};
    EngineRow row = {sequence, tokens, n, wanted};
    if (!engine_forward(f->engine, &row, 1, logits, &err))
        fail_msg("%s", err.message);
}

static float *allocate_logits(const Fixture *f, size_t rows)
{
    float *logits = malloc(rows * f->golden.vocab_size * sizeof *logits);
    assert_non_null(logits);
    return logits;
}

/* Limits of the comparison, as the fixtures' rules state them. */
typedef struct Tolerance {
    double difference; /* in units of the golden vector's std; 0: not checked */
    double divergence;
    bool exact_greedy;
} Tolerance;

static void check_positions(Fixture *f, const GoldenPrompt *prompt, const float *logits,
                            Tolerance tolerance, double worst[2])
{
    size_t vocab = f->golden.vocab_size;
    for (size_t i = 0; i < prompt->n_positions; i++) {
        const GoldenPosition *p = &prompt->positions[i];
        const float *found = logits + p->pos * vocab;
        double divergence = golden_divergence(p->logits, found, vocab);
        double difference = golden_largest_difference(p->logits, found, vocab) / p->std;
        if (!(divergence <= tolerance.divergence) ||
            (tolerance.difference > 0 && !(difference <= tolerance.difference)))
            fail_msg("%s prompt %.*s pos %zu: KL %g (at most %g), difference %g std (at most %g)",
                     f->golden.directory, SLICE_ARG(prompt->name), p->pos, divergence,
                     tolerance.divergence, difference, tolerance.difference);
        size_t best = golden_argmax(found, vocab), expected = golden_argmax(p->logits, vocab);
        double gap = (double)p->logits[expected] - (double)p->logits[best];
        assert_true(gap <= (tolerance.exact_greedy ? 0.0 : 0.05 * p->std));
        worst[0] = divergence > worst[0] ? divergence : worst[0];
        worst[1] = difference > worst[1] ? difference : worst[1];
    }
}

/* After an excused step the golden ids are followed. */
static void check_greedy(Fixture *f, const GoldenPrompt *prompt, bool exact)
{
    size_t vocab = f->golden.vocab_size;
    float *logits = allocate_logits(f, 1);
    EngineSequence *sequence = create_sequence(f);
    forward(f, sequence, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_LAST, logits);
    for (size_t step = 0; step < prompt->n_greedy; step++) {
        int32_t id = (int32_t)golden_argmax(logits, vocab);
        if (exact ? id != prompt->greedy[step] : !golden_excuses(prompt, step, id))
            fail_msg("%s prompt %.*s step %zu: token %d, expected %d", f->golden.directory,
                     SLICE_ARG(prompt->name), step, id, prompt->greedy[step]);
        forward(f, sequence, &prompt->greedy[step], 1, ENGINE_LOGITS_LAST, logits);
    }
    engine_sequence_free(f->engine, sequence);
    free(logits);
}

static void check_model(const char *name, Numbers numbers, InstructionSet best_set,
                        Tolerance tolerance)
{
    Fixture f;
    open_fixture(&f, name, numbers, 0, best_set);
    double worst[2] = {0};
    assert_int_equal(f.golden.vocab_size, f.model->config.vocab_size);
    for (size_t i = 0; i < f.golden.n_prompts; i++) {
        const GoldenPrompt *prompt = &f.golden.prompts[i];
        float *logits = allocate_logits(&f, prompt->n_tokens);
        EngineSequence *sequence = create_sequence(&f);
        forward(&f, sequence, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_ALL, logits);
        check_positions(&f, prompt, logits, tolerance, worst);
        engine_sequence_free(f.engine, sequence);
        free(logits);
        check_greedy(&f, prompt, tolerance.exact_greedy);
    }
    print_message("%s: worst KL %.2g, worst difference %.2g std\n", name, worst[0], worst[1]);
    close_fixture(&f);
}

static const Tolerance FLOAT32 = {.difference = 1e-4, .divergence = 1e-8, .exact_greedy = true};
static const Tolerance INT12 = {.divergence = 1e-5};
static const Tolerance INT16 = {.divergence = 1e-6};
static const Tolerance KV8 = {.divergence = 2e-4};
static const Tolerance INT8 = {.divergence = 1e-3};

/* The plain kernels are slow, above all under sanitizers. With quantised activations they take the
 * models that differ in formats and layer kinds; test_formats.c holds every format to them. */
static const char *const PLAIN_MODELS[] = {"llama2-mixed-sharded", "llama-fpmodes", "smollm2-bf16",
                                           "gemma3-mm-q4-g64", "qwen3-moe-nvfp4-global"};

/* An emulated processor takes a minute for each of these. */
static void skip_if_emulated(void)
{
    if (!TEST_EMULATED)
        return;
    print_message("skipped: slow on an emulated processor\n");
    skip();
}

/* Models for tests that compute a prompt in many ways. */
static size_t same_bits_models(void)
{
    return TEST_EMULATED ? 1 : GOLDEN_MODEL_COUNT;
}

static void test_float32(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_F32, INSTRUCTIONS_BEST, FLOAT32);
}

static void test_float32_plain(void **state)
{
    (void)state;
    skip_if_emulated();
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_F32, INSTRUCTIONS_PLAIN, FLOAT32);
}

static void test_int12(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_INT12, INSTRUCTIONS_BEST, INT12);
}

static void test_int12_plain(void **state)
{
    (void)state;
    skip_if_emulated();
    for (size_t i = 0; i < ARRAY_COUNT(PLAIN_MODELS); i++)
        check_model(PLAIN_MODELS[i], WITH_INT12, INSTRUCTIONS_PLAIN, INT12);
}

static void test_int16(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_INT16, INSTRUCTIONS_BEST, INT16);
}

static void test_int8(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_INT8, INSTRUCTIONS_BEST, INT8);
}

static void test_int8_plain(void **state)
{
    (void)state;
    skip_if_emulated();
    for (size_t i = 0; i < ARRAY_COUNT(PLAIN_MODELS); i++)
        check_model(PLAIN_MODELS[i], WITH_INT8, INSTRUCTIONS_PLAIN, INT8);
}

static void test_kv8(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOLDEN_MODEL_COUNT; i++)
        check_model(GOLDEN_MODELS[i], WITH_KV8, INSTRUCTIONS_BEST, KV8);
}

static void test_kv8_plain(void **state)
{
    (void)state;
    skip_if_emulated();
    for (size_t i = 0; i < ARRAY_COUNT(PLAIN_MODELS); i++)
        check_model(PLAIN_MODELS[i], WITH_F32_KV8, INSTRUCTIONS_PLAIN, KV8);
}

/* ---- The same bits, however the tokens are cut ---- */

static void assert_same_bits(const float *a, const float *b, size_t n, const char *what,
                             size_t detail)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s %zu: value %zu is %.9g, expected %.9g", what, detail, i, (double)b[i],
                     (double)a[i]);
    }
}

static void check_chunks(Fixture *f, const GoldenPrompt *prompt, const float *whole, size_t chunk)
{
    size_t vocab = f->golden.vocab_size;
    float *logits = allocate_logits(f, prompt->n_tokens);
    EngineSequence *sequence = create_sequence(f);
    for (size_t at = 0; at < prompt->n_tokens; at += chunk) {
        size_t left = prompt->n_tokens - at;
        forward(f, sequence, prompt->tokens + at, left < chunk ? left : chunk, ENGINE_LOGITS_ALL,
                logits + at * vocab);
    }
    assert_same_bits(whole, logits, prompt->n_tokens * vocab, "chunks of", chunk);
    engine_sequence_free(f->engine, sequence);
    free(logits);
}

/* All prompts in one call, behind a first half or behind all but one token, with the long one among
 * them. */
static void check_batch(Fixture *f, float *const *whole, bool last_tokens)
{
    size_t vocab = f->golden.vocab_size, n = f->golden.n_prompts, total = 0;
    EngineRow rows[8];
    EngineSequence *sequences[8];
    assert_true(n <= ARRAY_COUNT(rows));
    for (size_t i = 0; i < n; i++)
        total += f->golden.prompts[i].n_tokens;
    float *logits = allocate_logits(f, total);
    for (size_t i = 0; i < n; i++) {
        const GoldenPrompt *prompt = &f->golden.prompts[i];
        size_t half = last_tokens ? prompt->n_tokens - 1 : prompt->n_tokens / 2;
        sequences[i] = create_sequence(f);
        if (half > 0)
            forward(f, sequences[i], prompt->tokens, half, ENGINE_LOGITS_NONE, NULL);
        rows[i] = (EngineRow){sequences[i], prompt->tokens + half, prompt->n_tokens - half,
                              i % 2 ? ENGINE_LOGITS_ALL : ENGINE_LOGITS_LAST};
    }
    Error err = {0};
    assert_true(engine_forward(f->engine, rows, n, logits, &err));
    const float *at = logits;
    for (size_t i = 0; i < n; i++) {
        size_t all = f->golden.prompts[i].n_tokens, half = last_tokens ? all - 1 : all / 2;
        size_t first = i % 2 ? half : all - 1;
        assert_same_bits(whole[i] + first * vocab, at, (all - first) * vocab, "batched prompt", i);
        at += (all - first) * vocab;
        engine_sequence_free(f->engine, sequences[i]);
    }
    free(logits);
}

/* Sequences that have each prompt's tokens up to some point, and one that decodes beside them. */
typedef struct Held {
    EngineSequence *sequences[8], *other;
    size_t done[8], other_done;
} Held;

/* The next token of the first prompt, over and over. */
static void decode_beside(Fixture *f, Held *held, float *const *whole, float *logits)
{
    const GoldenPrompt *prompt = &f->golden.prompts[0];
    size_t vocab = f->golden.vocab_size;
    if (held->other_done == prompt->n_tokens) {
        engine_sequence_free(f->engine, held->other);
        held->other = create_sequence(f);
        held->other_done = 0;
    }
    forward(f, held->other, prompt->tokens + held->other_done, 1, ENGINE_LOGITS_LAST, logits);
    assert_same_bits(whole[0] + held->other_done * vocab, logits, vocab, "beside a held pass",
                     held->other_done);
    held->other_done++;
}

/* A held pass with the next tokens of all prompts, at most chunk of each; false when there are
 * none. */
static bool run_held(Fixture *f, Held *held, float *const *whole, size_t chunk)
{
    EngineDescription engine;
    EngineRow rows[8];
    size_t vocab = f->golden.vocab_size, from[8], n_rows = 0, total = 0, left = 1;
    engine_describe(f->engine, &engine);
    for (size_t i = 0; i < f->golden.n_prompts; i++) {
        const GoldenPrompt *prompt = &f->golden.prompts[i];
        size_t count = prompt->n_tokens - held->done[i], room = engine.max_batch_tokens - total;
        count = count < chunk ? count : chunk;
        count = count < room ? count : room;
        if (count == 0)
            continue;
        from[n_rows] = i;
        rows[n_rows++] = (EngineRow){held->sequences[i], prompt->tokens + held->done[i], count,
                                     ENGINE_LOGITS_ALL};
        total += count;
    }
    if (n_rows == 0)
        return false;
    Error err = {0};
    float *logits = allocate_logits(f, total), *beside = allocate_logits(f, 1);
    assert_true(engine_forward_begin(f->engine, rows, n_rows, &err));
    while (left > 0) {
        decode_beside(f, held, whole, beside);
        assert_true(engine_forward_continue(f->engine, logits, &left, &err));
    }
    const float *at = logits;
    for (size_t i = 0; i < n_rows; i++) {
        assert_same_bits(whole[from[i]] + held->done[from[i]] * vocab, at, rows[i].n_tokens * vocab,
                         "held prompt", from[i]);
        at += rows[i].n_tokens * vocab;
        held->done[from[i]] += rows[i].n_tokens;
    }
    free(beside);
    free(logits);
    return true;
}

/* All prompts in held passes, with a decoding pass between every two parts. */
static void check_held(Fixture *f, float *const *whole, size_t chunk)
{
    Held held = {.other = create_sequence(f)};
    for (size_t i = 0; i < f->golden.n_prompts; i++)
        held.sequences[i] = create_sequence(f);
    while (run_held(f, &held, whole, chunk))
        ;
    for (size_t i = 0; i < f->golden.n_prompts; i++)
        engine_sequence_free(f->engine, held.sequences[i]);
    engine_sequence_free(f->engine, held.other);
}

static void check_same_bits(const char *name, Numbers numbers, size_t batch,
                            InstructionSet best_set)
{
    Fixture f;
    open_fixture(&f, name, numbers, batch, best_set);
    float *whole[8];
    assert_true(f.golden.n_prompts <= ARRAY_COUNT(whole));
    for (size_t i = 0; i < f.golden.n_prompts; i++) {
        const GoldenPrompt *prompt = &f.golden.prompts[i];
        whole[i] = allocate_logits(&f, prompt->n_tokens);
        EngineSequence *sequence = create_sequence(&f);
        forward(&f, sequence, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_ALL, whole[i]);
        engine_sequence_free(f.engine, sequence);
        static const size_t chunks[] = {1, 2, 3, 7, 16, 40};
        for (size_t c = 0; c < ARRAY_COUNT(chunks); c++)
            check_chunks(&f, prompt, whole[i], chunks[c]);
    }
    check_batch(&f, whole, false);
    check_batch(&f, whole, true);
    check_held(&f, whole, 3);
    check_held(&f, whole, 40);
    for (size_t i = 0; i < f.golden.n_prompts; i++)
        free(whole[i]);
    close_fixture(&f);
}

static void test_same_bits_int12(void **state)
{
    (void)state;
    for (size_t i = 0; i < same_bits_models(); i++) {
        check_same_bits(GOLDEN_MODELS[i], WITH_INT12, 0, INSTRUCTIONS_BEST);
        check_same_bits(GOLDEN_MODELS[i], WITH_INT12, 5, INSTRUCTIONS_BEST);
    }
}

static void test_same_bits_int8(void **state)
{
    (void)state;
    for (size_t i = 0; i < same_bits_models(); i++)
        check_same_bits(GOLDEN_MODELS[i], WITH_INT8, 70, INSTRUCTIONS_BEST);
}

static void test_same_bits_kv8(void **state)
{
    (void)state;
    for (size_t i = 0; i < same_bits_models(); i++)
        check_same_bits(GOLDEN_MODELS[i], WITH_KV8, 70, INSTRUCTIONS_BEST);
}

static void test_same_bits_float32(void **state)
{
    (void)state;
    for (size_t i = 0; i < same_bits_models(); i++)
        check_same_bits(GOLDEN_MODELS[i], WITH_F32, 24, INSTRUCTIONS_BEST);
}

static void test_same_bits_of_each_set(void **state)
{
    (void)state;
    skip_if_emulated();
    for (int i = 0; i < INSTRUCTION_SETS; i++) {
        const InstructionSet set = (InstructionSet)i;
        if (!cpu_has_instructions(set))
            continue;
        check_same_bits("llama3-q4-g64", WITH_INT12, 0, set);
        check_same_bits("gemma3-text-q4-g64", WITH_KV8, 9, set);
    }
    check_same_bits("gemma3-text-q4-g64", WITH_INT8, 9, INSTRUCTIONS_PLAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),
        cmocka_unit_test(test_float32_plain),
        cmocka_unit_test(test_int12),
        cmocka_unit_test(test_int12_plain),
        cmocka_unit_test(test_int16),
        cmocka_unit_test(test_int8),
        cmocka_unit_test(test_int8_plain),
        cmocka_unit_test(test_kv8),
        cmocka_unit_test(test_kv8_plain),
        cmocka_unit_test(test_same_bits_int12),
        cmocka_unit_test(test_same_bits_int8),
        cmocka_unit_test(test_same_bits_kv8),
        cmocka_unit_test(test_same_bits_float32),
        cmocka_unit_test(test_same_bits_of_each_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
