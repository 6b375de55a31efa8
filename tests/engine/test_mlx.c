/* The MLX engine, through the shared object's export, on MLX's CPU device (or the GPU where there
 * is one): every fixture model against its golden numbers in float32, and batches, chunks, forks
 * and steps begun ahead against the plain way. MLX promises no equal bits across shapes of a
 * product, so these comparisons have the tolerance of the golden ones. Skipped, saying so, in
 * builds without it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine.h"
#include "golden.h"
#include "mlx/plugin.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 256, DECODE_STEPS = 6 };
static const double DIFFERENCE_MAX = 1e-4; /* in units of the golden vector's std */

static const MlxPlugin *plugin;

typedef struct Fixture {
    Golden golden;
    Model *model;
    Engine *engine;
    float *logits; /* [longest prompt + 1, vocab] */
} Fixture;

static void open_fixture(Fixture *f, const char *name, EnginePrecision precision, size_t batch)
{
    Error err = {0};
    size_t longest = 0;
    golden_open(name, &f->golden);
    if (!model_open(f->golden.directory, &f->model, &err))
        fail_msg("%s: %s", name, err.message);
    EngineOptions options = {.precision = precision, .max_batch_tokens = batch};
    if (!plugin->open(f->model, &options, &f->engine, &err))
        fail_msg("%s: %s", name, err.message);
    for (size_t i = 0; i < f->golden.n_prompts; i++) {
        size_t n = f->golden.prompts[i].n_tokens;
        longest = n > longest ? n : longest;
    }
    f->logits = malloc((longest + 1) * f->golden.vocab_size * sizeof *f->logits);
    assert_non_null(f->logits);
}

static void close_fixture(Fixture *f)
{
    free(f->logits);
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
        fail_msg("%s: %s", f->golden.directory, err.message);
}

static void check_position(const Fixture *f, const GoldenPosition *p, const float *found,
                           const char *what)
{
    size_t vocab = f->golden.vocab_size;
    double difference = golden_largest_difference(p->logits, found, vocab) / p->std;
    if (!(difference <= DIFFERENCE_MAX))
        fail_msg("%s, %s, pos %zu: difference %g std (at most %g)", f->golden.directory, what,
                 p->pos, difference, DIFFERENCE_MAX);
}

static void check_all_positions(const Fixture *f, const GoldenPrompt *prompt, const char *what)
{
    for (size_t i = 0; i < prompt->n_positions; i++) {
        const GoldenPosition *p = &prompt->positions[i];
        check_position(f, p, f->logits + p->pos * f->golden.vocab_size, what);
    }
}

/* The golden greedy text by forward_choose, whose steps are begun ahead. */
static void check_greedy(Fixture *f, const GoldenPrompt *prompt)
{
    Error err = {0};
    EngineSequence *sequence = create_sequence(f);
    const int32_t *tokens = prompt->tokens;
    size_t n = prompt->n_tokens;
    for (size_t step = 0; step < prompt->n_greedy; step++) {
        int32_t id = -1;
        EngineRow row = {sequence, tokens, n, ENGINE_LOGITS_LAST};
        if (!engine_forward_choose(f->engine, &row, 1, NULL, &id, &err))
            fail_msg("%s: %s", f->golden.directory, err.message);
        if (id != prompt->greedy[step])
            fail_msg("%s prompt %.*s step %zu: token %d, expected %d", f->golden.directory,
                     SLICE_ARG(prompt->name), step, id, prompt->greedy[step]);
        tokens = &prompt->greedy[step];
        n = 1;
    }
    engine_sequence_free(f->engine, sequence);
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t m = 0; m < GOLDEN_MODEL_COUNT; m++) {
        Fixture f;
        open_fixture(&f, GOLDEN_MODELS[m], ENGINE_PRECISION_F32, 0);
        for (size_t i = 0; i < f.golden.n_prompts; i++) {
            const GoldenPrompt *prompt = &f.golden.prompts[i];
            EngineSequence *sequence = create_sequence(&f);
            forward(&f, sequence, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_ALL, f.logits);
            check_all_positions(&f, prompt, "whole");
            engine_sequence_free(f.engine, sequence);
            check_greedy(&f, prompt);
        }
        close_fixture(&f);
    }
}

/* Prompts longer than windows and passes, cut by the caller and by the engine. */
static void test_chunks(void **state)
{
    (void)state;
    static const size_t chunks[] = {1, 7, 40};
    static const char *const models[] = {"gemma3-text-q4-g64", "gemma2-q4-g64", "phi3-q4-g64"};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        Fixture f;
        open_fixture(&f, models[m], ENGINE_PRECISION_F32, 24);
        const GoldenPrompt *prompt = &f.golden.prompts[f.golden.n_prompts - 1];
        for (size_t c = 0; c < ARRAY_COUNT(chunks); c++) {
            EngineSequence *sequence = create_sequence(&f);
            for (size_t at = 0; at < prompt->n_tokens; at += chunks[c]) {
                size_t left = prompt->n_tokens - at;
                forward(&f, sequence, prompt->tokens + at, left < chunks[c] ? left : chunks[c],
                        ENGINE_LOGITS_ALL, f.logits + at * f.golden.vocab_size);
            }
            check_all_positions(&f, prompt, "in chunks");
            engine_sequence_free(f.engine, sequence);
        }
        close_fixture(&f);
    }
}

/* All prompts in one call, rows of different lengths, some of them with a past. */
static void test_batch(void **state)
{
    (void)state;
    static const char *const models[] = {"gemma3-text-q4-g64", "qwen3-moe-q4-g64", "llama3-q4-g64"};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        Fixture f;
        Error err = {0};
        EngineRow rows[8];
        open_fixture(&f, models[m], ENGINE_PRECISION_F32, 0);
        size_t n = f.golden.n_prompts;
        assert_true(n <= ARRAY_COUNT(rows));
        for (size_t i = 0; i < n; i++) {
            const GoldenPrompt *prompt = &f.golden.prompts[i];
            size_t past = prompt->n_tokens / 2;
            rows[i] = (EngineRow){create_sequence(&f), prompt->tokens + past,
                                  prompt->n_tokens - past, ENGINE_LOGITS_LAST};
            if (past > 0)
                forward(&f, rows[i].sequence, prompt->tokens, past, ENGINE_LOGITS_NONE, NULL);
        }
        assert_true(engine_forward(f.engine, rows, n, f.logits, &err));
        for (size_t i = 0; i < n; i++) {
            const GoldenPrompt *prompt = &f.golden.prompts[i];
            const GoldenPosition *last = &prompt->positions[prompt->n_positions - 1];
            assert_int_equal(last->pos, prompt->n_tokens - 1);
            check_position(&f, last, f.logits + i * f.golden.vocab_size, "batched");
            engine_sequence_free(f.engine, rows[i].sequence);
        }
        close_fixture(&f);
    }
}

/* Greedy steps of two sequences, `tokens` going in; ids come out. */
static void greedy_step(Fixture *f, EngineSequence *const *sequences, int32_t *ids)
{
    Error err = {0};
    const int32_t in[2] = {ids[0], ids[1]};
    EngineRow rows[2] = {{sequences[0], &in[0], 1, ENGINE_LOGITS_LAST},
                         {sequences[1], &in[1], 1, ENGINE_LOGITS_LAST}};
    if (!engine_forward_choose(f->engine, rows, 2, NULL, ids, &err))
        fail_msg("%s: %s", f->golden.directory, err.message);
}

/* The id that a draw stands for, in double; *margin: how far the draw is from the id's borders. */
static int32_t draw_exactly(const float *logits, size_t count, const EngineChoice *choice,
                            double *margin)
{
    double all = 0, sum = 0, best = (double)logits[0];
    for (size_t i = 0; i < count; i++)
        best = (double)logits[i] > best ? (double)logits[i] : best;
    for (size_t i = 0; i < count; i++)
        all += exp(((double)logits[i] - best) / (double)choice->temperature);
    for (size_t i = 0; i < count; i++) {
        double weight = exp(((double)logits[i] - best) / (double)choice->temperature) / all;
        sum += weight;
        if (sum > choice->draws[0]) {
            double before = choice->draws[0] - (sum - weight), after = sum - choice->draws[0];
            *margin = before < after ? before : after;
            return (int32_t)i;
        }
    }
    return -1;
}

/* Drawn tokens are those of the logits, with steps begun ahead and when the announced draw was not
 * kept; a greedy row beside them stays greedy. */
static void test_draws(void **state)
{
    (void)state;
    enum { STEPS = 24 };
    Fixture f;
    Error err = {0};
    open_fixture(&f, "llama3-q4-g64", ENGINE_PRECISION_F32, 0);
    const GoldenPrompt *prompt = &f.golden.prompts[f.golden.n_prompts - 1];
    size_t vocab = f.golden.vocab_size, checked = 0;
    EngineSequence *drawn = create_sequence(&f), *greedy = create_sequence(&f);
    EngineSequence *shadow = create_sequence(&f);
    forward(&f, drawn, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_NONE, NULL);
    forward(&f, greedy, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_NONE, NULL);
    forward(&f, shadow, prompt->tokens, prompt->n_tokens, ENGINE_LOGITS_NONE, NULL);
    int32_t ids[2] = {prompt->greedy[0], prompt->greedy[0]};
    float *logits = calloc(vocab, sizeof *logits);
    for (size_t step = 1; step <= STEPS; step++) {
        double draw = (double)(step * 61 % 97) / 97.0, next = (double)((step + 1) * 61 % 97) / 97.0;
        const EngineChoice choices[2] = {{1.3f, {draw, step % 8 == 7 ? 0.5 : next}}, {0, {0, 0}}};
        const int32_t in[2] = {ids[0], ids[1]};
        const EngineRow rows[2] = {{drawn, &in[0], 1, ENGINE_LOGITS_LAST},
                                   {greedy, &in[1], 1, ENGINE_LOGITS_LAST}};
        double margin = 0;
        assert_true(engine_forward_choose(f.engine, rows, 2, choices, ids, &err));
        forward(&f, shadow, &in[0], 1, ENGINE_LOGITS_LAST, logits);
        int32_t expected = draw_exactly(logits, vocab, &choices[0], &margin);
        if (margin > 1e-5) {
            assert_int_equal(ids[0], expected);
            checked++;
        }
        ids[0] = expected;
        if (step < prompt->n_greedy)
            assert_int_equal(ids[1], prompt->greedy[step]);
    }
    assert_true(checked > STEPS / 2);
    free(logits);
    engine_sequence_free(f.engine, drawn);
    engine_sequence_free(f.engine, greedy);
    engine_sequence_free(f.engine, shadow);
    close_fixture(&f);
}

/* A step that was begun ahead and then not taken leaves no trace: another token, a truncation, a
 * fork, and the golden text all the same. */
static void test_ahead_is_dropped(void **state)
{
    (void)state;
    static const char *const models[] = {"gemma3-text-q4-g64", "llama3-q4-g64"};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        Fixture f;
        Error err = {0};
        open_fixture(&f, models[m], ENGINE_PRECISION_F32, 0);
        const GoldenPrompt *prompt = &f.golden.prompts[f.golden.n_prompts - 1];
        size_t n = prompt->n_tokens;
        EngineSequence *sequences[2] = {create_sequence(&f), create_sequence(&f)};
        EngineSequence *fork;
        for (size_t i = 0; i < 2; i++)
            forward(&f, sequences[i], prompt->tokens, n, ENGINE_LOGITS_NONE, NULL);
        int32_t ids[2] = {prompt->greedy[0], prompt->greedy[0]};
        for (size_t step = 1; step <= DECODE_STEPS; step++) {
            greedy_step(&f, sequences, ids);
            assert_int_equal(ids[0], prompt->greedy[step]);
            assert_int_equal(ids[1], prompt->greedy[step]);
        }
        /* Not the token that was expected; then back, and on with the right ones. */
        ids[0] = ids[0] == 5 ? 6 : 5;
        greedy_step(&f, sequences, ids);
        assert_int_equal(ids[1], prompt->greedy[DECODE_STEPS + 1]);
        assert_true(f.engine->ops->sequence_fork(f.engine, sequences[1], n + DECODE_STEPS + 1,
                                                 CONTEXT, &fork, &err));
        assert_true(engine_sequence_truncate(f.engine, sequences[0], n + DECODE_STEPS, &err));
        forward(&f, sequences[0], &prompt->greedy[DECODE_STEPS], 1, ENGINE_LOGITS_NONE, NULL);
        ids[0] = ids[1];
        EngineSequence *pair[2] = {sequences[0], fork};
        for (size_t step = DECODE_STEPS + 2; step < DECODE_STEPS + 8; step++) {
            greedy_step(&f, pair, ids);
            assert_int_equal(ids[0], prompt->greedy[step]);
            assert_int_equal(ids[1], prompt->greedy[step]);
        }
        assert_int_equal(f.engine->ops->sequence_length(sequences[1]), n + DECODE_STEPS + 1);
        engine_sequence_free(f.engine, fork);
        engine_sequence_free(f.engine, sequences[0]);
        engine_sequence_free(f.engine, sequences[1]);
        close_fixture(&f);
    }
}

/* KV memory is counted as it is reserved, bounded, and given back. */
static void test_kv_memory(void **state)
{
    (void)state;
    Fixture f;
    Error err = {0};
    EngineDescription description;
    EngineSequence *first, *second;
    open_fixture(&f, "gemma3-text-q4-g64", ENGINE_PRECISION_F32, 64);
    const EngineOps *ops = f.engine->ops;
    assert_int_equal(ops->kv_bytes_used(f.engine), 0);
    assert_true(engine_sequence_create(f.engine, 4096, &first, &err));
    size_t one = ops->kv_bytes_used(f.engine);
    engine_sequence_free(f.engine, first);
    engine_close(f.engine);
    EngineOptions options = {
        .precision = ENGINE_PRECISION_F32, .max_batch_tokens = 64, .kv_bytes_max = one + one / 2};
    assert_true(plugin->open(f.model, &options, &f.engine, &err));
    engine_describe(f.engine, &description);
    assert_true(description.kv_slides);
    assert_true(description.max_sequence_tokens > 4096);
    assert_true(engine_sequence_create(f.engine, 4096, &first, &err));
    assert_false(engine_sequence_create(f.engine, 4096, &second, &err));
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_false(engine_sequence_create(f.engine, 100000, &second, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    const int32_t token = 3;
    forward(&f, first, &token, 1, ENGINE_LOGITS_LAST, f.logits);
    ops->sequence_seal(f.engine, first);
    assert_true(ops->kv_bytes_used(f.engine) < one / 2);
    assert_true(engine_sequence_create(f.engine, 4096, &second, &err));
    engine_sequence_free(f.engine, first);
    engine_sequence_free(f.engine, second);
    assert_int_equal(ops->kv_bytes_used(f.engine), 0);
    close_fixture(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    Fixture f;
    Error err = {0};
    open_fixture(&f, "llama3-q4-g64", ENGINE_PRECISION_INT12, 0);
    EngineSequence *sequence = create_sequence(&f);
    const int32_t wrong = (int32_t)f.golden.vocab_size, right = 3;
    EngineRow rows[2] = {{sequence, &wrong, 1, ENGINE_LOGITS_NONE},
                         {sequence, &right, 1, ENGINE_LOGITS_NONE}};
    assert_false(engine_forward(f.engine, rows, 1, NULL, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    rows[0].tokens = &right;
    assert_false(engine_forward(f.engine, rows, 2, NULL, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_int_equal(f.engine->ops->sequence_length(sequence), 0);
    assert_false(engine_sequence_truncate(f.engine, sequence, 1, &err));
    assert_true(engine_forward(f.engine, rows, 1, NULL, &err));
    assert_int_equal(f.engine->ops->sequence_length(sequence), 1);
    engine_sequence_free(f.engine, sequence);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),   cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_batch),    cmocka_unit_test(test_ahead_is_dropped),
        cmocka_unit_test(test_draws),    cmocka_unit_test(test_kv_memory),
        cmocka_unit_test(test_refusals),
    };
    void *object = dlopen(MLX_PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
    MlxPluginEntry entry = NULL;
    void *symbol = object ? dlsym(object, MLX_PLUGIN_SYMBOL) : NULL;
    if (!symbol) {
        fprintf(stderr, "the MLX engine cannot be loaded: %s\n", dlerror());
        return 1;
    }
    memcpy(&entry, &symbol, sizeof entry);
    plugin = entry();
    char device[128];
    bool gpu = plugin->has_gpu(device, sizeof device);
    printf("MLX on %s%s\n", gpu ? "" : "its CPU device; GPU tests are skipped: ", device);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
