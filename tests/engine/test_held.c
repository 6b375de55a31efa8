/* Passes that are held between their parts: sequences that leave one, fork from one, or are refused
 * meanwhile. That parts give the bits of a whole pass is test_golden's business. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine.h"

#include <stdlib.h>
#include <string.h>

#define MODELS TEST_DATA_DIR "/models/"

enum { BATCH = 64, ROWS = 3, PREFIX = 70, CHUNK = 20, LENGTH_MAX = 400, AFTER = 9 };
enum { FORKS_MAX = 16 };

static const char *const NAMES[] = {MODELS "llama3-q4-g64", MODELS "gemma3-text-q4-g64",
                                    MODELS "qwen3-moe-q4-g64"};

typedef struct World {
    Model *model;
    Engine *engine;
    size_t vocab;
    float *whole[ROWS]; /* [LENGTH_MAX, vocab] what a text's tokens give that are never held */
    float *found;       /* [AFTER, vocab] */
    float *logits;      /* [ROWS * CHUNK, vocab] of the held pass */
} World;

static float *allocate_logits(const World *w, size_t tokens)
{
    float *logits = malloc(tokens * w->vocab * sizeof(float));
    assert_non_null(logits);
    return logits;
}

static EngineSequence *create(World *w)
{
    EngineSequence *sequence;
    Error err = {0};
    if (!engine_sequence_create(w->engine, LENGTH_MAX, &sequence, &err))
        fail_msg("%s", err.message);
    return sequence;
}

static size_t length_of(const World *w, const EngineSequence *sequence)
{
    return w->engine->ops->sequence_length(sequence);
}

/* Tokens [first, first + n) of an endless text. */
static const int32_t *text(size_t number, size_t first, size_t n)
{
    static int32_t tokens[ROWS][LENGTH_MAX];
    assert_true(number < ROWS && first + n <= LENGTH_MAX);
    for (size_t i = 0; i < n; i++)
        tokens[number][first + i] = (int32_t)((first + i) * (37 + number * 6) % 500);
    return tokens[number] + first;
}

static void advance(World *w, EngineSequence *sequence, size_t number, size_t n, float *logits)
{
    Error err = {0};
    EngineRow row = {sequence, text(number, length_of(w, sequence), n), n,
                     logits ? ENGINE_LOGITS_ALL : ENGINE_LOGITS_NONE};
    if (!engine_forward(w->engine, &row, 1, logits, &err))
        fail_msg("%s", err.message);
}

static void open_world(const char *directory, World *w)
{
    Error err = {0};
    EngineOptions options = {.threads = 2, .max_batch_tokens = BATCH};
    if (!model_open(directory, &w->model, &err) ||
        !engine_open(w->model, &options, &w->engine, &err))
        fail_msg("%s", err.message);
    w->vocab = w->model->config.vocab_size;
    w->found = allocate_logits(w, AFTER);
    w->logits = allocate_logits(w, ROWS * CHUNK);
    for (size_t i = 0; i < ROWS; i++) {
        EngineSequence *sequence = create(w);
        w->whole[i] = allocate_logits(w, LENGTH_MAX);
        advance(w, sequence, i, LENGTH_MAX, w->whole[i]);
        engine_sequence_free(w->engine, sequence);
    }
}

static void close_world(World *w)
{
    assert_int_equal(w->engine->ops->kv_bytes_used(w->engine), 0);
    for (size_t i = 0; i < ROWS; i++)
        free(w->whole[i]);
    free(w->found);
    free(w->logits);
    engine_close(w->engine);
    model_close(w->model);
}

/* Logits [n, vocab] of the text's tokens from position `first` on: every bit. */
static void check_logits(const World *w, size_t number, size_t first, size_t n, const float *found)
{
    const float *expected = w->whole[number] + first * w->vocab;
    for (size_t i = 0; i < n * w->vocab; i++) {
        if (memcmp(&expected[i], &found[i], sizeof(*found)) != 0)
            fail_msg("text %zu, position %zu, logit %zu: %.9g, expected %.9g", number,
                     first + i / w->vocab, i % w->vocab, (double)found[i], (double)expected[i]);
    }
}

/* The sequence goes on with the bits of one that was never held. */
static void check_sound(World *w, EngineSequence *sequence, size_t number)
{
    size_t length = length_of(w, sequence);
    advance(w, sequence, number, AFTER, w->found);
    check_logits(w, number, length, AFTER, w->found);
}

/* ROWS sequences of PREFIX tokens, CHUNK more of each in a held pass. */
static void begin(World *w, EngineSequence **sequences, EngineLogits logits)
{
    EngineRow rows[ROWS];
    Error err = {0};
    for (size_t i = 0; i < ROWS; i++) {
        sequences[i] = create(w);
        advance(w, sequences[i], i, PREFIX, NULL);
        rows[i] = (EngineRow){sequences[i], text(i, PREFIX, CHUNK), CHUNK, logits};
    }
    if (!engine_forward_begin(w->engine, rows, ROWS, &err))
        fail_msg("%s", err.message);
}

/* At most n parts; how many are left. */
static size_t run_parts(World *w, size_t n)
{
    size_t left = 1;
    for (Error err = {0}; n > 0 && left > 0; n--) {
        if (!engine_forward_continue(w->engine, w->logits, &left, &err))
            fail_msg("%s", err.message);
    }
    return left;
}

typedef enum Leaving { LEAVING_FREED, LEAVING_TRUNCATED, LEAVING_SHORTER, LEAVING_SEALED } Leaving;

static void leave(World *w, EngineSequence **sequence, Leaving how)
{
    Error err = {0};
    if (how == LEAVING_FREED) {
        engine_sequence_free(w->engine, *sequence);
        *sequence = NULL;
    } else if (how == LEAVING_SEALED) {
        w->engine->ops->sequence_seal(w->engine, *sequence);
    } else if (!engine_sequence_truncate(w->engine, *sequence,
                                         how == LEAVING_SHORTER ? PREFIX - 3 : PREFIX, &err)) {
        fail_msg("%s", err.message);
    }
}

static void free_all(World *w, EngineSequence **sequences)
{
    for (size_t i = 0; i < ROWS; i++)
        engine_sequence_free(w->engine, sequences[i]);
}

/* The rows that have stayed: their logits, and how they go on. */
static void check_stayed(World *w, EngineSequence **sequences, size_t left, EngineLogits logits)
{
    const float *found = w->logits;
    size_t n = logits == ENGINE_LOGITS_ALL ? CHUNK : 1;
    for (size_t i = 0; i < ROWS; i++) {
        if (i == left)
            continue;
        assert_int_equal(length_of(w, sequences[i]), PREFIX + CHUNK);
        check_logits(w, i, PREFIX + CHUNK - n, n, found);
        found += n * w->vocab;
        check_sound(w, sequences[i], i);
    }
}

/* One sequence leaves after some parts: the others do not notice. False when the pass has no part
 * left by then. */
static bool check_leaving(World *w, size_t index, size_t parts, Leaving how, EngineLogits logits)
{
    EngineSequence *sequences[ROWS], *fork;
    Error err = {0};
    begin(w, sequences, logits);
    if (run_parts(w, parts) == 0) {
        check_stayed(w, sequences, ROWS, logits);
        free_all(w, sequences);
        return false;
    }
    leave(w, &sequences[index], how);
    assert_int_equal(run_parts(w, SIZE_MAX), 0);
    check_stayed(w, sequences, index, logits);
    if (how == LEAVING_SEALED) {
        assert_true(w->engine->ops->sequence_fork(w->engine, sequences[index], PREFIX, LENGTH_MAX,
                                                  &fork, &err));
        check_sound(w, fork, index);
        engine_sequence_free(w->engine, fork);
    } else if (how != LEAVING_FREED) {
        check_sound(w, sequences[index], index);
    }
    free_all(w, sequences);
    return true;
}

/* Each of the rows, before each part; emulated, which is slow, the rows take turns. */
static void check_leavings(World *w, Leaving how, EngineLogits logits)
{
    size_t parts = 0;
    for (bool was_held = true; was_held; parts++) {
        size_t first = TEST_EMULATED ? (parts + how) % ROWS : 0, n = TEST_EMULATED ? 1 : ROWS;
        for (size_t index = first; index < first + n; index++)
            was_held = check_leaving(w, index, parts, how, logits);
    }
    assert_true(parts > w->model->config.num_hidden_layers); /* and the head is one */
}

static void sequences_may_leave(void **state)
{
    (void)state;
    for (size_t m = 0; m < ARRAY_COUNT(NAMES); m++) {
        World w;
        open_world(NAMES[m], &w);
        for (Leaving how = LEAVING_FREED; how <= LEAVING_SEALED; how++) {
            if (!TEST_EMULATED)
                check_leavings(&w, how, ENGINE_LOGITS_LAST);
            check_leavings(&w, how, ENGINE_LOGITS_ALL);
        }
        close_world(&w);
    }
}

static void a_pass_that_all_have_left_is_gone(void **state)
{
    (void)state;
    World w;
    Error err = {0};
    size_t left;
    EngineSequence *sequences[ROWS];
    open_world(NAMES[1], &w);
    for (size_t round = 0; round < 2; round++) {
        begin(&w, sequences, ENGINE_LOGITS_ALL);
        run_parts(&w, 2);
        free_all(&w, sequences);
        assert_false(engine_forward_continue(w.engine, w.logits, &left, &err));
        assert_int_equal(err.code, ERROR_INVALID);
    }
    close_world(&w);
}

/* Forks see what was there before; what they write is their own, and so is what is held. One is
 * made before each part. */
static void check_forks(World *w)
{
    static const size_t lengths[] = {PREFIX, 64, PREFIX - 1};
    Error err = {0};
    EngineSequence *sequences[ROWS], *forks[FORKS_MAX];
    size_t n_forks = 0;
    begin(w, sequences, ENGINE_LOGITS_ALL);
    do {
        assert_true(n_forks < FORKS_MAX);
        if (!w->engine->ops->sequence_fork(w->engine, sequences[0],
                                           lengths[n_forks % ARRAY_COUNT(lengths)], LENGTH_MAX,
                                           &forks[n_forks], &err))
            fail_msg("%s", err.message);
        check_sound(w, forks[n_forks++], 0);
    } while (run_parts(w, 1) > 0);
    check_stayed(w, sequences, ROWS, ENGINE_LOGITS_ALL);
    for (size_t i = 0; i < ROWS; i++) {
        advance(w, sequences[i], i, 2 * BATCH, NULL); /* the rings turn */
        check_sound(w, sequences[i], i);
    }
    for (size_t i = 0; i < n_forks; i++) {
        check_sound(w, forks[i], 0);
        engine_sequence_free(w->engine, forks[i]);
    }
    free_all(w, sequences);
}

static void sequences_may_be_forked(void **state)
{
    (void)state;
    for (size_t m = 0; m < ARRAY_COUNT(NAMES); m++) {
        World w;
        open_world(NAMES[m], &w);
        check_forks(&w);
        close_world(&w);
    }
}

static void expect_refusal(World *w, const EngineRow *rows, size_t n_rows, ErrorCode code)
{
    Error err = {0};
    assert_false(engine_forward_begin(w->engine, rows, n_rows, &err));
    assert_int_equal(err.code, code);
}

static void refused_calls_change_nothing(void **state)
{
    (void)state;
    static const int32_t beyond[] = {1, 600}, many[BATCH] = {0};
    World w;
    Error err = {0};
    size_t left;
    EngineSequence *sequences[ROWS];
    open_world(NAMES[0], &w);
    EngineSequence *a = create(&w), *b = create(&w);
    const EngineRow good = {a, text(0, 0, 5), 5, ENGINE_LOGITS_LAST};
    const EngineRow bad[] = {good, {b, beyond, 2, ENGINE_LOGITS_LAST}};
    const EngineRow twice[] = {good, good};
    const EngineRow large[] = {good, {b, many, BATCH - 4, ENGINE_LOGITS_NONE}};
    assert_false(engine_forward_continue(w.engine, w.logits, &left, &err));
    expect_refusal(&w, bad, 2, ERROR_INVALID);
    expect_refusal(&w, twice, 2, ERROR_INVALID);
    expect_refusal(&w, large, 2, ERROR_LIMIT);
    check_sound(&w, a, 0);

    begin(&w, sequences, ENGINE_LOGITS_ALL);
    expect_refusal(&w, &good, 1, ERROR_INVALID);
    EngineRow held = {sequences[1], text(1, PREFIX, 1), 1, ENGINE_LOGITS_LAST};
    assert_false(engine_forward(w.engine, &held, 1, w.logits, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    check_sound(&w, b, 0);
    assert_int_equal(run_parts(&w, SIZE_MAX), 0);
    check_stayed(&w, sequences, ROWS, ENGINE_LOGITS_ALL);

    /* A pass that wants logits and gets no room for them is dropped. */
    EngineRow next = {sequences[0], text(0, length_of(&w, sequences[0]), 1), 1, ENGINE_LOGITS_LAST};
    assert_true(engine_forward_begin(w.engine, &next, 1, &err));
    assert_false(engine_forward_continue(w.engine, NULL, &left, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    check_sound(&w, sequences[0], 0);
    free_all(&w, sequences);
    engine_sequence_free(w.engine, a);
    engine_sequence_free(w.engine, b);
    close_world(&w);
}

static void parts_take_no_memory(void **state)
{
    (void)state;
    World w;
    Error err = {0};
    open_world(NAMES[2], &w);
    EngineSequence *sequence = create(&w);
    EngineRow row = {sequence, text(0, 0, 40), 40, ENGINE_LOGITS_LAST};
    fault_fail_allocation(UINT64_MAX);
    assert_true(engine_forward_begin(w.engine, &row, 1, &err));
    assert_int_equal(run_parts(&w, SIZE_MAX), 0);
    assert_int_equal(fault_allocation_count(), 0);
    fault_fail_allocation(0);
    check_logits(&w, 0, 39, 1, w.logits);
    engine_sequence_free(w.engine, sequence);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequences_may_leave),
        cmocka_unit_test(a_pass_that_all_have_left_is_gone),
        cmocka_unit_test(sequences_may_be_forked),
        cmocka_unit_test(refused_calls_change_nothing),
        cmocka_unit_test(parts_take_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
