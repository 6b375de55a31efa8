#include "fake_engine.h"

#include "generate.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* What a token changes. */
typedef struct State {
    uint64_t hash;
    size_t length;
    int32_t last;
    bool euro, is_long;
    size_t euro_at;
} State;

struct EngineSequence {
    State now;
    size_t reserved;
    State *before; /* [now.length] the state before each token: what a fork begins with */
    size_t capacity;
};

static void state_push(State *sequence, int32_t token)
{
    sequence->hash = (sequence->hash ^ (uint64_t)token) * 0x9e3779b97f4a7c15u;
    sequence->hash ^= sequence->hash >> 29;
    sequence->length++;
    sequence->last = token;
    if (token == FAKE_LONG)
        sequence->is_long = true;
    if (token == FAKE_EURO) {
        sequence->euro = true;
        sequence->euro_at = 0;
    } else if (sequence->euro) {
        sequence->euro_at++;
    }
}

static int32_t next_token(const State *sequence, bool never_ends)
{
    static const unsigned char euro[] = {0xe2, 0x82, 0xac};
    if (sequence->is_long)
        return FAKE_LONG_TOKEN;
    if (sequence->euro)
        return euro[sequence->euro_at % 3];
    if (!never_ends && sequence->hash % 41 == 0)
        return FAKE_END;
    return 'a' + (int32_t)(sequence->hash % 26);
}

static void fake_logits(const State *state, bool never_ends, float *logits)
{
    for (size_t v = 0; v < FAKE_VOCAB; v++)
        logits[v] = (float)((state->hash >> (v % 48)) % 64) / 32;
    logits[FAKE_END] = logits[FAKE_POISON] = logits[FAKE_LONG_TOKEN] = -30;
    logits[next_token(state, never_ends)] = 12;
    if (state->last == FAKE_NAN)
        logits[17] = NAN;
}

size_t fake_reply(const int32_t *prompt, size_t n_prompt, bool never_ends, char *out, size_t max,
                  bool *ended)
{
    State sequence = {0};
    for (size_t i = 0; i < n_prompt; i++)
        state_push(&sequence, prompt[i]);
    *ended = false;
    size_t count = 0;
    while (count < max) {
        int32_t token = next_token(&sequence, never_ends);
        if (token == FAKE_END) {
            *ended = true;
            break;
        }
        out[count++] = (char)token;
        state_push(&sequence, token);
    }
    return count;
}

/* ---- Operations ---- */

static FakeEngine *fake_of(Engine *engine)
{
    FakeEngine *fake = (FakeEngine *)engine;
    uintptr_t self = (uintptr_t)pthread_self(), none = 0;
    if (!atomic_compare_exchange_strong(&fake->thread, &none, self) && none != self)
        atomic_store(&fake->misused, true);
    return fake;
}

static void pause_microseconds(int microseconds)
{
    struct timespec time = {microseconds / 1000000, (microseconds % 1000000) * 1000L};
    nanosleep(&time, NULL);
}

static void raise_to(atomic_size_t *most, size_t value)
{
    if (value > atomic_load(most))
        atomic_store(most, value);
}

static bool fake_sequence_create(Engine *engine, size_t max_tokens, EngineSequence **out,
                                 Error *err)
{
    FakeEngine *fake = fake_of(engine);
    size_t capacity = atomic_load(&fake->kv_tokens);
    *out = NULL;
    while (atomic_load(&fake->hold_creation)) {
        atomic_store(&fake->is_creating, true);
        pause_microseconds(500);
    }
    if (capacity > 0 && atomic_load(&fake->reserved) + max_tokens > capacity)
        return error_set(err, ERROR_MEMORY, "no KV memory for %zu tokens", max_tokens);
    *out = memory_allocate_zeroed(1, sizeof(**out));
    if (!*out)
        return error_no_memory(err, "sequence");
    (*out)->reserved = max_tokens;
    atomic_fetch_add(&fake->reserved, max_tokens);
    atomic_fetch_add(&fake->sequences, 1);
    return true;
}

static void leave_held_pass(FakeEngine *fake, const EngineSequence *sequence)
{
    for (size_t i = 0; i < fake->n_held; i++) {
        if (fake->held[i].sequence != sequence)
            continue;
        free((void *)(uintptr_t)fake->held[i].tokens);
        atomic_fetch_sub(&fake->held_rows, 1);
        atomic_fetch_sub(&fake->held_tokens, fake->held[i].n_tokens);
        fake->n_held--;
        memmove(fake->held + i, fake->held + i + 1, (fake->n_held - i) * sizeof(*fake->held));
        atomic_fetch_add(&fake->rows_left, 1);
        return;
    }
}

static void fake_sequence_free(Engine *engine, EngineSequence *sequence)
{
    FakeEngine *fake = fake_of(engine);
    if (!sequence)
        return;
    leave_held_pass(fake, sequence);
    atomic_fetch_sub(&fake->reserved, sequence->reserved);
    atomic_fetch_sub(&fake->sequences, 1);
    free(sequence->before);
    memory_free(sequence);
}

/* Plain malloc: tests that fail allocations mean those of the scheduler. */
static void sequence_push(EngineSequence *sequence, int32_t token)
{
    if (sequence->now.length == sequence->capacity) {
        sequence->capacity = sequence->capacity ? sequence->capacity * 2 : 64;
        sequence->before = realloc(sequence->before, sequence->capacity * sizeof(State));
        assert_non_null(sequence->before);
    }
    sequence->before[sequence->now.length] = sequence->now;
    state_push(&sequence->now, token);
}

static bool fake_sequence_holds_prefix(const EngineSequence *sequence, size_t length)
{
    return length <= sequence->now.length;
}

static bool fake_sequence_fork(Engine *engine, EngineSequence *from, size_t length,
                               size_t max_tokens, EngineSequence **out, Error *err)
{
    FakeEngine *fake = fake_of(engine);
    if (length > from->now.length || length > max_tokens)
        atomic_store(&fake->misused, true);
    if (!fake_sequence_create(engine, max_tokens, out, err))
        return false;
    EngineSequence *fork = *out;
    fork->capacity = length + 1;
    fork->before = calloc(fork->capacity, sizeof(State));
    assert_non_null(fork->before);
    memcpy(fork->before, from->before, length * sizeof(State));
    fork->now = length < from->now.length ? from->before[length] : from->now;
    atomic_fetch_add(&fake->forks, 1);
    return true;
}

static bool check_rows(FakeEngine *fake, const EngineRow *rows, size_t n_rows, Error *err)
{
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t k = 0; k < i; k++) {
            if (rows[k].sequence == rows[i].sequence)
                atomic_store(&fake->misused, true);
        }
        for (size_t k = 0; k < fake->n_held; k++) {
            if (fake->held[k].sequence == rows[i].sequence)
                atomic_store(&fake->misused, true);
        }
        if (rows[i].n_tokens == 0 ||
            rows[i].sequence->now.length + rows[i].n_tokens > rows[i].sequence->reserved)
            atomic_store(&fake->misused, true);
        for (size_t t = 0; t < rows[i].n_tokens; t++) {
            if (rows[i].tokens[t] < 0 || rows[i].tokens[t] >= FAKE_VOCAB)
                atomic_store(&fake->misused, true);
            if (rows[i].tokens[t] == FAKE_POISON)
                return error_set(err, ERROR_INTERNAL, "poisoned token");
        }
    }
    return true;
}

static bool check_late_poison(const EngineRow *rows, size_t n_rows, Error *err)
{
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t t = 0; t < rows[i].n_tokens; t++) {
            if (rows[i].tokens[t] == FAKE_LATE_POISON)
                return error_set(err, ERROR_INTERNAL, "poison that shows late");
        }
    }
    return true;
}

static void count_rows(FakeEngine *fake, const EngineRow *rows, size_t n_rows)
{
    size_t tokens = 0, decoding = 0;
    for (size_t i = 0; i < n_rows; i++) {
        tokens += rows[i].n_tokens;
        decoding += rows[i].n_tokens == 1 && rows[i].sequence->now.length > 0;
    }
    atomic_fetch_add(&fake->passes, 1);
    atomic_fetch_add(&fake->tokens, tokens);
    raise_to(&fake->most_rows, n_rows);
    raise_to(&fake->most_tokens, tokens);
    raise_to(&fake->rows_with_decode, decoding);
    for (size_t i = 0; i < n_rows; i++)
        raise_to(decoding > 0 ? &fake->largest_chunk_beside_decode : &fake->largest_chunk_alone,
                 rows[i].n_tokens);
}

void fake_logits_after(const int32_t *tokens, size_t count, bool never_ends, float *logits)
{
    State state = {0};
    for (size_t i = 0; i < count; i++)
        state_push(&state, tokens[i]);
    fake_logits(&state, never_ends, logits);
}

static void push_rows(const FakeEngine *fake, const EngineRow *rows, size_t n_rows, float *logits)
{
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t t = 0; t < rows[i].n_tokens; t++) {
            sequence_push(rows[i].sequence, rows[i].tokens[t]);
            if (rows[i].logits == ENGINE_LOGITS_NONE ||
                (rows[i].logits == ENGINE_LOGITS_LAST && t + 1 < rows[i].n_tokens))
                continue;
            fake_logits(&rows[i].sequence->now, atomic_load(&fake->never_ends), logits);
            logits += FAKE_VOCAB;
        }
    }
}

static bool fake_forward(Engine *engine, const EngineRow *rows, size_t n_rows, float *logits,
                         Error *err)
{
    FakeEngine *fake = fake_of(engine);
    while (atomic_load(&fake->hold))
        pause_microseconds(500);
    int delay = atomic_load(&fake->delay_microseconds);
    size_t n_tokens = 0;
    for (size_t i = 0; i < n_rows; i++)
        n_tokens += rows[i].n_tokens;
    delay += atomic_load(&fake->token_delay_microseconds) * (int)(n_tokens - 1);
    if (delay > 0)
        pause_microseconds(delay);
    if (!check_rows(fake, rows, n_rows, err) || !check_late_poison(rows, n_rows, err))
        return false;
    count_rows(fake, rows, n_rows);
    push_rows(fake, rows, n_rows, logits);
    return true;
}

static bool fake_sequence_touch(Engine *engine, EngineSequence *sequence)
{
    (void)sequence;
    return atomic_load(&((FakeEngine *)(void *)engine)->always_touches);
}

static bool fake_forward_begin(Engine *engine, const EngineRow *rows, size_t n_rows, Error *err)
{
    FakeEngine *fake = fake_of(engine);
    if (fake->n_held > 0 || n_rows == 0 || n_rows > ARRAY_COUNT(fake->held))
        atomic_store(&fake->misused, true);
    if (!check_rows(fake, rows, n_rows, err))
        return false;
    size_t n_tokens = 0;
    for (size_t i = 0; i < n_rows; i++) {
        size_t bytes = rows[i].n_tokens * sizeof(*rows[i].tokens);
        int32_t *tokens = malloc(bytes);
        assert_non_null(tokens);
        memcpy(tokens, rows[i].tokens, bytes);
        fake->held[i] = rows[i];
        fake->held[i].tokens = tokens;
        n_tokens += rows[i].n_tokens;
    }
    fake->n_held = n_rows;
    fake->parts_done = 0;
    atomic_fetch_add(&fake->tokens, n_tokens);
    atomic_fetch_add(&fake->held_passes, 1);
    atomic_store(&fake->held_tokens, n_tokens);
    atomic_store(&fake->held_rows, n_rows);
    return true;
}

static void drop_held_pass(FakeEngine *fake)
{
    for (size_t i = 0; i < fake->n_held; i++)
        free((void *)(uintptr_t)fake->held[i].tokens);
    fake->n_held = 0;
    atomic_store(&fake->held_rows, 0);
    atomic_store(&fake->held_tokens, 0);
}

static bool parts_wait(FakeEngine *fake)
{
    size_t rows = atomic_load(&fake->hold_rows);
    return rows > 0 && fake->n_held >= rows;
}

/* The error of the part that is next, if it is to have one. */
static bool check_part(FakeEngine *fake, Error *err)
{
    size_t part = fake->parts_done + 1;
    if (atomic_compare_exchange_strong(&fake->fail_part, &part, 0))
        return error_set(err, ERROR_INTERNAL, "a part fails");
    return fake->parts_done + 1 < FAKE_PARTS || check_late_poison(fake->held, fake->n_held, err);
}

static bool fake_forward_continue(Engine *engine, float *logits, size_t *left, Error *err)
{
    FakeEngine *fake = fake_of(engine);
    if (fake->n_held == 0)
        atomic_store(&fake->misused, true);
    atomic_fetch_add(&fake->parts, 1);
    while (parts_wait(fake))
        pause_microseconds(500);
    if (!check_part(fake, err)) {
        drop_held_pass(fake);
        return false;
    }
    int delay = atomic_load(&fake->delay_microseconds) +
                atomic_load(&fake->token_delay_microseconds) * (int)atomic_load(&fake->held_tokens);
    if (delay > 0)
        pause_microseconds(delay / FAKE_PARTS);
    *left = FAKE_PARTS - ++fake->parts_done;
    if (*left > 0)
        return true;
    push_rows(fake, fake->held, fake->n_held, logits);
    drop_held_pass(fake);
    return true;
}

static int32_t choose(const float *logits, const EngineChoice *choice)
{
    float best = logits[logits_argmax(logits, FAKE_VOCAB)];
    double all = 0, sum = 0;
    if (choice->temperature <= 0)
        return logits_argmax(logits, FAKE_VOCAB);
    for (int32_t i = 0; i < FAKE_VOCAB; i++)
        all += exp((double)((logits[i] - best) / choice->temperature));
    for (int32_t i = 0; i < FAKE_VOCAB; i++) {
        sum += exp((double)((logits[i] - best) / choice->temperature));
        if (sum > choice->draws[0] * all)
            return i;
    }
    return FAKE_VOCAB - 1;
}

static bool fake_forward_choose(Engine *engine, const EngineRow *rows, size_t n_rows,
                                const EngineChoice *choices, int32_t *ids, Error *err)
{
    size_t wanted = 0;
    float *logits = calloc(n_rows, FAKE_VOCAB * sizeof(*logits));
    assert_non_null(logits);
    bool ok = fake_forward(engine, rows, n_rows, logits, err);
    for (size_t i = 0; i < n_rows && ok; i++) {
        if (rows[i].logits == ENGINE_LOGITS_ALL)
            atomic_store(&fake_of(engine)->misused, true);
        if (rows[i].logits == ENGINE_LOGITS_LAST) {
            ids[wanted] = choose(logits + wanted * FAKE_VOCAB, &choices[wanted]);
            wanted++;
        }
    }
    atomic_fetch_add(&fake_of(engine)->choosing_passes, 1);
    free(logits);
    return ok;
}

static size_t fake_sequence_length(const EngineSequence *sequence)
{
    return sequence->now.length;
}

static bool fake_sequence_truncate(Engine *engine, EngineSequence *sequence, size_t length,
                                   Error *err)
{
    (void)engine;
    (void)sequence;
    return error_set(err, ERROR_UNSUPPORTED, "cannot truncate to %zu", length);
}

static void fake_sequence_seal(Engine *engine, EngineSequence *sequence)
{
    FakeEngine *fake = fake_of(engine);
    leave_held_pass(fake, sequence);
    atomic_fetch_sub(&fake->reserved, sequence->reserved - sequence->now.length);
    sequence->reserved = sequence->now.length;
}

static size_t fake_kv_bytes_used(const Engine *engine)
{
    return atomic_load(&((const FakeEngine *)engine)->reserved);
}

static void fake_describe(const Engine *engine, EngineDescription *out)
{
    const FakeEngine *fake = (const FakeEngine *)engine;
    size_t kv_tokens = atomic_load(&fake->kv_tokens),
           context = fake->config.max_position_embeddings;
    *out = (EngineDescription){.backend = "fake",
                               .kv_bytes_max = atomic_load(&fake->kv_tokens),
                               .max_batch_tokens = 1 << 16,
                               .vocab_size = FAKE_VOCAB,
                               .max_sequence_tokens =
                                   kv_tokens && kv_tokens < context ? kv_tokens : context,
                               .max_context = context};
}

static void fake_close(Engine *engine)
{
    (void)engine;
}

static void fake_set_operations(FakeEngine *fake)
{
    fake->ops = (EngineOps){
        .close = fake_close,
        .describe = fake_describe,
        .sequence_create = fake_sequence_create,
        .sequence_free = fake_sequence_free,
        .sequence_truncate = fake_sequence_truncate,
        .sequence_fork = fake_sequence_fork,
        .sequence_seal = fake_sequence_seal,
        .kv_bytes_used = fake_kv_bytes_used,
        .sequence_holds_prefix = fake_sequence_holds_prefix,
        .sequence_length = fake_sequence_length,
        .forward = fake_forward,
    };
    fake->engine.ops = &fake->ops;
}

void fake_engine_choose_tokens(FakeEngine *fake)
{
    fake->ops.forward_choose = fake_forward_choose;
}

void fake_engine_hold_passes(FakeEngine *fake)
{
    fake->ops.sequence_touch = fake_sequence_touch;
    fake->ops.forward_begin = fake_forward_begin;
    fake->ops.forward_continue = fake_forward_continue;
}

void fake_engine_init(FakeEngine *fake, uint32_t max_context)
{
    memset(fake, 0, sizeof(*fake));
    fake_set_operations(fake);
    fake->config.vocab_size = FAKE_VOCAB;
    fake->config.max_position_embeddings = max_context;
    fake->config.eos_token_ids[0] = FAKE_END;
    fake->config.n_eos_token_ids = 1;
}
