/* The engine through its seam: sequences (truncate, fork, limits), refused calls, and failing
 * memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/ops.h"
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MODELS TEST_DATA_DIR "/models/"

typedef struct World {
    Model *model;
    Engine *engine;
    size_t vocab;
} World;

static void open_kv_world(const char *directory, size_t batch, unsigned kv_bits, World *w)
{
    Error err = {0};
    EngineOptions options = {.threads = 2, .max_batch_tokens = batch, .kv_bits = kv_bits};
    if (!model_open(directory, &w->model, &err) ||
        !engine_open(w->model, &options, &w->engine, &err))
        fail_msg("%s", err.message);
    w->vocab = w->model->config.vocab_size;
}

static void open_world(const char *directory, size_t batch, World *w)
{
    open_kv_world(directory, batch, 0, w);
}

static void close_world(World *w)
{
    engine_close(w->engine);
    model_close(w->model);
}

static EngineSequence *create(World *w, size_t max_tokens)
{
    EngineSequence *sequence;
    Error err = {0};
    if (!engine_sequence_create(w->engine, max_tokens, &sequence, &err))
        fail_msg("%s", err.message);
    return sequence;
}

static int32_t token_at(size_t i)
{
    return (int32_t)(i * 37 % 500);
}

/* Appends tokens [first, first + n) of the endless text; logits of the last. */
static void advance(World *w, EngineSequence *sequence, size_t first, size_t n, float *logits)
{
    int32_t tokens[512];
    Error err = {0};
    assert_true(n <= ARRAY_COUNT(tokens));
    for (size_t i = 0; i < n; i++)
        tokens[i] = token_at(first + i);
    EngineRow row = {sequence, tokens, n, logits ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE};
    if (!engine_forward(w->engine, &row, 1, logits, &err))
        fail_msg("%s", err.message);
}

static void test_describe(void **state)
{
    (void)state;
    World w;
    open_world(MODELS "llama3-q4-g64", 0, &w);
    EngineDescription d;
    engine_describe(w.engine, &d);
    assert_string_equal(d.backend, "cpu");
    assert_int_equal(d.threads, 2);
    assert_int_equal(d.vocab_size, 600);
    assert_int_equal(d.max_context, 2048);
    /* With scales where 16 bits are codes. */
    bool has_scales = cpu_ops(cpu_best_instructions(INSTRUCTIONS_BEST))->kv16 == KV_INT16;
    assert_int_equal(d.kv_bytes_per_token, 4 * 2 * 2 * (16 * 2 + (has_scales ? 4 : 0)));
    assert_true(d.weight_bytes > 0 && d.scratch_bytes > 0 && d.max_batch_tokens > 0);
    close_world(&w);
}

static void test_mlx_is_refused(void **state)
{
    (void)state;
    Model *model;
    Engine *engine;
    Error err = {0};
    assert_true(model_open(MODELS "smollm2-bf16", &model, &err));
    EngineOptions options = {.backend = ENGINE_BACKEND_MLX};
    assert_false(engine_open(model, &options, &engine, &err));
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    assert_null(engine);
    options = (EngineOptions){.kv_bits = 4};
    assert_false(engine_open(model, &options, &engine, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    options = (EngineOptions){.threads = 100000};
    assert_false(engine_open(model, &options, &engine, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    model_close(model);
}

static void test_refused_calls(void **state)
{
    (void)state;
    World w;
    open_world(MODELS "llama3-q4-g64", 0, &w);
    float *logits = malloc(2 * w.vocab * sizeof *logits), *again = malloc(w.vocab * sizeof *again);
    EngineSequence *a = create(&w, 20), *b = create(&w, 20);
    advance(&w, a, 0, 10, NULL);

    static const int32_t good[] = {1, 2}, beyond[] = {1, 600}, negative[] = {-1};
    const EngineRow cases[][2] = {
        {{b, good, 2, ENGINE_LOGITS_LAST}, {a, beyond, 2, ENGINE_LOGITS_LAST}},
        {{b, good, 2, ENGINE_LOGITS_LAST}, {a, negative, 1, ENGINE_LOGITS_LAST}},
        {{b, good, 2, ENGINE_LOGITS_LAST}, {b, good, 2, ENGINE_LOGITS_LAST}},
        {{b, good, 2, ENGINE_LOGITS_LAST}, {a, good, 0, ENGINE_LOGITS_LAST}},
        {{b, good, 2, ENGINE_LOGITS_LAST}, {NULL, good, 1, ENGINE_LOGITS_LAST}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Error err = {0};
        assert_false(engine_forward(w.engine, cases[i], 2, logits, &err));
        assert_int_equal(err.code, ERROR_INVALID);
        assert_int_equal(w.engine->ops->sequence_length(a), 10);
        assert_int_equal(w.engine->ops->sequence_length(b), 0);
    }
    Error err = {0};
    int32_t many[11] = {0};
    EngineRow full = {a, many, 11, ENGINE_LOGITS_NONE};
    assert_false(engine_forward(w.engine, &full, 1, NULL, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    EngineRow nowhere = {a, many, 1, ENGINE_LOGITS_LAST};
    assert_false(engine_forward(w.engine, &nowhere, 1, NULL, &err));
    assert_true(engine_forward(w.engine, NULL, 0, NULL, &err));

    /* The refused calls left no trace in a. */
    advance(&w, a, 10, 10, logits);
    EngineSequence *fresh = create(&w, 20);
    advance(&w, fresh, 0, 20, again);
    assert_memory_equal(logits, again, w.vocab * sizeof *logits);
    engine_sequence_free(w.engine, fresh);
    engine_sequence_free(w.engine, a);
    engine_sequence_free(w.engine, b);
    engine_sequence_free(w.engine, NULL);
    free(logits);
    free(again);
    close_world(&w);
}

/* Truncated and forked sequences continue with the bits of a fresh one. */
static void check_truncate_and_fork(const char *directory, size_t length, size_t cut, size_t batch,
                                    unsigned kv_bits)
{
    World w;
    Error err = {0};
    open_kv_world(directory, batch, kv_bits, &w);
    size_t bytes = w.vocab * sizeof(float);
    float *expected = malloc(bytes), *found = malloc(bytes);
    EngineSequence *fresh = create(&w, 1000), *changed = create(&w, 1000), *fork;
    advance(&w, fresh, 0, cut, NULL);
    advance(&w, fresh, 300, 9, expected);

    advance(&w, changed, 0, length, NULL);
    assert_true(w.engine->ops->sequence_fork(w.engine, changed, cut, 400, &fork, &err));
    assert_int_equal(w.engine->ops->sequence_length(fork), cut);
    advance(&w, fork, 300, 9, found);
    assert_memory_equal(expected, found, bytes);
    engine_sequence_free(w.engine, fork);

    assert_true(engine_sequence_truncate(w.engine, changed, cut, &err));
    advance(&w, changed, 300, 9, found);
    assert_memory_equal(expected, found, bytes);

    assert_false(engine_sequence_truncate(w.engine, changed, cut + 10, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_false(w.engine->ops->sequence_fork(w.engine, changed, cut, cut - 1, &fork, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_null(fork);
    engine_sequence_free(w.engine, changed);
    engine_sequence_free(w.engine, fresh);
    free(expected);
    free(found);
    close_world(&w);
}

static void test_truncate_and_fork(void **state)
{
    (void)state;
    static const unsigned bits[] = {0, 8};
    for (size_t i = 0; i < ARRAY_COUNT(bits); i++) {
        check_truncate_and_fork(MODELS "llama3-q4-g64", 290, 33, 0, bits[i]);
        check_truncate_and_fork(MODELS "gemma3-text-q4-g64", 90, 70, 0, bits[i]);
        check_truncate_and_fork(MODELS "gemma3-text-q4-g64", 290, 280, 16, bits[i]);
    }
}

/* The fork frees nothing of its source, and a window that is gone is not made up. */
static void test_dropped_window(void **state)
{
    (void)state;
    World w;
    Error err = {0};
    EngineSequence *fork;
    open_world(MODELS "gemma3-text-q4-g64", 16, &w);
    EngineSequence *sequence = create(&w, 1000);
    advance(&w, sequence, 0, 400, NULL);
    assert_false(engine_sequence_truncate(w.engine, sequence, 100, &err));
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    assert_int_equal(w.engine->ops->sequence_length(sequence), 400);
    assert_false(w.engine->ops->sequence_fork(w.engine, sequence, 100, 400, &fork, &err));
    assert_null(fork);
    assert_true(engine_sequence_truncate(w.engine, sequence, 0, &err));
    engine_sequence_free(w.engine, sequence);
    close_world(&w);
}

/* 400 tokens cross a segment of attention and wrap a ring; split over threads or not, the same
 * bits. */
static void test_long_context_bits(void **state)
{
    (void)state;
    static const char *const models[] = {MODELS "llama3-q4-g64", MODELS "gemma3-text-q4-g64"};
    for (size_t i = 0; i < 2 * ARRAY_COUNT(models); i++) {
        World w, small;
        unsigned bits = i < ARRAY_COUNT(models) ? 16 : 8;
        open_kv_world(models[i % ARRAY_COUNT(models)], 0, bits, &w);
        open_kv_world(models[i % ARRAY_COUNT(models)], 48, bits, &small);
        size_t bytes = w.vocab * sizeof(float);
        float *expected = malloc(bytes), *found = malloc(bytes);
        EngineSequence *whole = create(&w, 600), *steps = create(&small, 500);
        advance(&w, whole, 0, 410, expected);
        advance(&small, steps, 0, 395, NULL);
        for (size_t t = 395; t < 410; t++)
            advance(&small, steps, t, 1, found);
        assert_memory_equal(expected, found, bytes);
        engine_sequence_free(w.engine, whole);
        engine_sequence_free(small.engine, steps);
        free(expected);
        free(found);
        close_world(&small);
        close_world(&w);
    }
}

/* Rotated keys and queries know how far apart they are and not where, and a layer that slides sees
 * no further than its window. So where a text repeats, its logits do too, however late: but for the
 * rounding of sines and cosines. An angle in float32 is off by a thousandth long before the end. */
static void test_late_positions(void **state)
{
    (void)state;
    enum { PERIOD = 100, FIRST = 199, LATE = 59999 };
    static const char CONFIG[] =
        "{\"model_type\":\"gemma3_text\",\"hidden_size\":32,\"num_hidden_layers\":2,"
        "\"intermediate_size\":32,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
        "\"head_dim\":16,\"query_pre_attn_scalar\":2,\"vocab_size\":64,\"sliding_window\":24,"
        "\"max_position_embeddings\":65536,"
        "\"layer_types\":[\"sliding_attention\",\"sliding_attention\"]}";
    World w;
    Error err = {0};
    EngineOptions options = {.precision = ENGINE_PRECISION_F32, .threads = 2};
    if (!model_create_random(slice_of(CONFIG), 16, 0, &w.model, &err) ||
        !engine_open(w.model, &options, &w.engine, &err))
        fail_msg("%s", err.message);
    w.vocab = w.model->config.vocab_size;
    EngineSequence *sequence = create(&w, LATE + 1);
    float early[64], late[64], largest = 0;
    int32_t tokens[PERIOD];
    for (size_t i = 0; i < PERIOD; i++)
        tokens[i] = token_at(i) % 64;
    for (size_t at = 0; at <= LATE; at += PERIOD) {
        EngineRow row = {sequence, tokens, PERIOD, ENGINE_LOGITS_LAST};
        float *logits = at + PERIOD == FIRST + 1 ? early : late;
        if (!engine_forward(w.engine, &row, 1, logits, &err))
            fail_msg("%s", err.message);
    }
    for (size_t i = 0; i < w.vocab; i++) {
        largest = fmaxf(largest, fabsf(early[i]));
        if (!(fabsf(late[i] - early[i]) <= 1e-5f * largest))
            fail_msg("logit %zu is %.9g, expected %.9g", i, (double)late[i], (double)early[i]);
    }
    engine_sequence_free(w.engine, sequence);
    close_world(&w);
}

static void test_no_memory(void **state)
{
    (void)state;
    static const char *const models[] = {MODELS "llama3-q4-g64", MODELS "qwen3-moe-q4-g64"};
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        Model *model;
        Error err = {0};
        assert_true(model_open(models[i], &model, &err));
        EngineOptions options = {.threads = 2, .max_batch_tokens = 16};
        Engine *engine = NULL;
        for (uint64_t nth = 1; !engine; nth++) {
            err = (Error){0};
            fault_fail_allocation(nth);
            bool opened = engine_open(model, &options, &engine, &err);
            fault_fail_allocation(0);
            assert_int_equal(opened, engine != NULL);
            if (!opened)
                assert_int_equal(err.code, ERROR_MEMORY);
            assert_true(nth < 10000);
        }
        engine_close(engine);
        model_close(model);
    }
}

/* Sequences fail cleanly, and a forward pass asks for no memory at all. */
static void test_sequence_memory(void **state)
{
    (void)state;
    World w;
    open_world(MODELS "qwen3-moe-q4-g64", 16, &w);
    EngineSequence *sequence = NULL, *fork = NULL;
    for (uint64_t nth = 1; !sequence; nth++) {
        Error err = {0};
        fault_fail_allocation(nth);
        bool ok = engine_sequence_create(w.engine, 100, &sequence, &err);
        fault_fail_allocation(0);
        assert_int_equal(ok, sequence != NULL);
        assert_true(nth < 20);
    }
    float *logits = malloc(w.vocab * sizeof *logits);
    fault_fail_allocation(UINT64_MAX);
    advance(&w, sequence, 0, 40, logits);
    advance(&w, sequence, 40, 1, logits);
    assert_int_equal(fault_allocation_count(), 0);
    fault_fail_allocation(0);
    for (uint64_t nth = 1; !fork; nth++) {
        Error err = {0};
        fault_fail_allocation(nth);
        bool ok = w.engine->ops->sequence_fork(w.engine, sequence, 20, 50, &fork, &err);
        fault_fail_allocation(0);
        assert_int_equal(ok, fork != NULL);
        assert_true(nth < 20);
    }
    engine_sequence_free(w.engine, fork);
    engine_sequence_free(w.engine, sequence);
    free(logits);
    close_world(&w);
}

/* A norm that a damaged file has made NaN leaves the router nothing to choose by: results are no
 * numbers, but each token still goes to different experts, for which there is room. */
static void test_router_without_numbers(void **state)
{
    (void)state;
    enum { BATCH = 512 };
    World w;
    open_world(MODELS "qwen3-moe-q4-g64", BATCH, &w);
    for (uint32_t i = 0; i < w.model->config.num_hidden_layers; i++)
        *(float *)(uintptr_t)w.model->weights.layers[i].pre_mlp_norm = NAN;
    EngineSequence *sequence = create(&w, BATCH);
    float *logits = malloc(w.vocab * sizeof *logits);
    advance(&w, sequence, 0, BATCH, logits);
    assert_true(isnan(logits[0]));
    engine_sequence_free(w.engine, sequence);
    free(logits);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_describe),        cmocka_unit_test(test_mlx_is_refused),
        cmocka_unit_test(test_refused_calls),   cmocka_unit_test(test_truncate_and_fork),
        cmocka_unit_test(test_dropped_window),  cmocka_unit_test(test_long_context_bits),
        cmocka_unit_test(test_late_positions),  cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_sequence_memory), cmocka_unit_test(test_router_without_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
