/* The public face: a compiled automaton, its machine and masks under one lock, and runs in it. */
#include "grammar.h"

#include "mask.h"
#include "source.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

struct Grammar {
    atomic_size_t n_references;
    atomic_size_t bytes;
    Automaton automaton;
    GrammarVocabulary *vocabulary;      /* a reference; NULL: no masks */
    Slice ignored[GRAMMAR_IGNORED_MAX]; /* in the arena */
    size_t n_ignored;
    Arena ignored_arena;
    bool has_lock;
    pthread_mutex_t lock; /* guards machine, masks and the place of every run */
    Machine machine;
    Masks masks;
};

struct GrammarRun {
    Grammar *grammar;
    MachineRoot root;
};

/* ---- Compilation ---- */

static bool compile(Grammar *g, const GrammarSource *source, Error *err)
{
    const GrammarVocabulary *v = g->vocabulary;
    const bool *allowed = v && !v->has_all_bytes ? v->has_byte : NULL;
    Text text = {.automaton = &g->automaton};
    SourceCompiler compiler = {.text = &text, .ignored_arena = &g->ignored_arena};
    if (!automaton_init(&g->automaton, err) || !source_compile(&compiler, source, allowed, err))
        return false;
    g->n_ignored = compiler.n_ignored;
    memcpy(g->ignored, compiler.ignored, sizeof(g->ignored));
    return true;
}

static void note_bytes(Grammar *g)
{
    size_t bytes = sizeof(*g) + automaton_bytes(&g->automaton) + machine_bytes(&g->machine);
    if (g->vocabulary)
        bytes += masks_bytes(&g->masks);
    atomic_store_explicit(&g->bytes, bytes, memory_order_relaxed);
}

static void destroy(Grammar *g)
{
    if (g->masks.vocabulary)
        masks_reset(&g->masks);
    if (g->machine.automaton)
        machine_reset(&g->machine);
    if (g->has_lock)
        pthread_mutex_destroy(&g->lock);
    automaton_reset(&g->automaton);
    grammar_vocabulary_release(g->vocabulary);
    arena_reset(&g->ignored_arena);
    memory_free(g);
}

bool grammar_create(const GrammarSource *source, GrammarVocabulary *vocabulary, Grammar **out,
                    Error *err)
{
    *out = NULL;
    Grammar *g = memory_allocate_zeroed(1, sizeof(*g));
    if (!g)
        return error_no_memory(err, "grammar");
    atomic_init(&g->n_references, 1);
    arena_init(&g->ignored_arena, SOURCE_IGNORED_BYTES_MAX);
    g->vocabulary = vocabulary;
    if (vocabulary)
        atomic_fetch_add(&vocabulary->n_references, 1);
    g->has_lock = pthread_mutex_init(&g->lock, NULL) == 0;
    if (!g->has_lock) {
        error_set(err, ERROR_MEMORY, "cannot make a lock");
        goto fail;
    }
    if (!compile(g, source, err))
        goto fail;
    const bool *allowed = vocabulary && !vocabulary->has_all_bytes ? vocabulary->has_byte : NULL;
    if (!machine_init(&g->machine, &g->automaton, allowed, err) ||
        (vocabulary && !masks_init(&g->masks, vocabulary, err)))
        goto fail;
    g->machine.drop_masks = vocabulary ? masks_drop : NULL;
    g->machine.drop_context = &g->masks;
    note_bytes(g);
    *out = g;
    return true;
fail:
    destroy(g);
    return false;
}

void grammar_retain(Grammar *g)
{
    atomic_fetch_add(&g->n_references, 1);
}

void grammar_release(Grammar *g)
{
    if (g && atomic_fetch_sub(&g->n_references, 1) == 1)
        destroy(g);
}

const Slice *grammar_ignored(const Grammar *g, size_t *count)
{
    *count = g->n_ignored;
    return g->ignored;
}

size_t grammar_bytes(const Grammar *g)
{
    return atomic_load_explicit(&((Grammar *)(uintptr_t)g)->bytes, memory_order_relaxed);
}

/* ---- Runs ---- */

static void lock(Grammar *g)
{
    pthread_mutex_lock(&g->lock);
    machine_begin_work(&g->machine);
}

static void unlock(Grammar *g)
{
    note_bytes(g);
    pthread_mutex_unlock(&g->lock);
}

static bool add_run(Grammar *g, const GrammarRun *at, GrammarRun **out, Error *err)
{
    *out = NULL;
    GrammarRun *run = memory_allocate_zeroed(1, sizeof(*run));
    if (!run)
        return error_no_memory(err, "grammar run");
    run->grammar = g;
    grammar_retain(g);
    lock(g);
    machine_add_root(&g->machine, &run->root, at ? at->root.state : g->machine.start);
    unlock(g);
    *out = run;
    return true;
}

bool grammar_run_create(Grammar *grammar, GrammarRun **out, Error *err)
{
    return add_run(grammar, NULL, out, err);
}

bool grammar_run_copy(const GrammarRun *run, GrammarRun **out, Error *err)
{
    return add_run(run->grammar, run, out, err);
}

void grammar_run_free(GrammarRun *run)
{
    if (!run)
        return;
    lock(run->grammar);
    machine_remove_root(&run->root);
    unlock(run->grammar);
    grammar_release(run->grammar);
    memory_free(run);
}

/* Steps over bytes from the run's place, as far as they can come; *state is where that ends, and is
 * a root of its own meanwhile. */
static bool step_over(Grammar *g, MachineRoot *at, Slice bytes, size_t *count, Error *err)
{
    Machine *m = &g->machine;
    for (*count = 0; *count < bytes.len; ++*count) {
        if (machine_is_full(m) && !machine_collect(m, err))
            return false;
        uint32_t to = machine_step(m, at->state, (uint8_t)bytes.ptr[*count], err);
        if (to == MACHINE_FAILED)
            return false;
        if (to == MACHINE_DEAD)
            break;
        at->state = to;
    }
    return true;
}

static bool advance(GrammarRun *run, Slice bytes, bool moves, size_t *count, Error *err)
{
    Grammar *g = run->grammar;
    MachineRoot at;
    lock(g);
    machine_add_root(&g->machine, &at, run->root.state);
    bool ok = step_over(g, &at, bytes, count, err);
    if (ok && moves && *count == bytes.len)
        run->root.state = at.state;
    machine_remove_root(&at);
    unlock(g);
    return ok;
}

bool grammar_run_accept_bytes(GrammarRun *run, Slice bytes, Error *err)
{
    size_t count;
    if (!advance(run, bytes, true, &count, err))
        return false;
    return count == bytes.len || error_set(err, ERROR_INVALID, "byte %zu cannot come here", count);
}

bool grammar_run_accept_token(GrammarRun *run, int32_t id, Error *err)
{
    const GrammarVocabulary *v = run->grammar->vocabulary;
    if (!v || id < 0 || (size_t)id >= v->n_tokens || v->tokens[id].len == 0)
        return error_set(err, ERROR_INVALID, "token %d is no text", id);
    return grammar_run_accept_bytes(run, v->tokens[id], err) || error_prefix(err, "token %d", id);
}

bool grammar_run_count_bytes(GrammarRun *run, Slice bytes, size_t *count, Error *err)
{
    return advance(run, bytes, false, count, err);
}

static MachineState view_state(const GrammarRun *run)
{
    Grammar *g = run->grammar;
    lock(g);
    MachineState state = g->machine.states[run->root.state];
    unlock(g);
    return state;
}

bool grammar_run_can_end(const GrammarRun *run)
{
    return view_state(run).accepts;
}

bool grammar_run_is_finished(const GrammarRun *run)
{
    MachineState state = view_state(run);
    return state.accepts && state.n_items == 0;
}

/* The one byte that can follow, or -1; -2 on failure. */
static int only_byte(Machine *m, uint32_t state, Error *err)
{
    const Automaton *a = m->automaton;
    int found = -1;
    if (m->states[state].accepts)
        return -1;
    for (unsigned b = 0; b < 256; b++) {
        bool is_first = b == 0 || a->classes[b] != a->classes[b - 1];
        if (m->allowed && !m->allowed[b])
            continue;
        uint32_t to = machine_step(m, state, (uint8_t)b, err);
        if (to == MACHINE_FAILED)
            return -2;
        if (to == MACHINE_DEAD)
            continue;
        if (found >= 0 || !is_first)
            return -1;
        found = (int)b;
    }
    return found;
}

bool grammar_run_forced_bytes(GrammarRun *run, char *out, size_t size, size_t *len, Error *err)
{
    Grammar *g = run->grammar;
    Machine *m = &g->machine;
    MachineRoot at;
    bool ok = true;
    lock(g);
    machine_add_root(m, &at, run->root.state);
    for (*len = 0; ok && *len < size; ++*len) {
        ok = !machine_is_full(m) || machine_collect(m, err);
        int byte = ok ? only_byte(m, at.state, err) : -2;
        ok = byte != -2;
        if (byte < 0)
            break;
        at.state = machine_step(m, at.state, (uint8_t)byte, err); /* made by only_byte */
        out[*len] = (char)byte;
    }
    machine_remove_root(&at);
    unlock(g);
    return ok;
}

static bool view_mask_locked(GrammarRun *run, const uint64_t **words, Error *err)
{
    Grammar *g = run->grammar;
    Machine *m = &g->machine;
    if (!g->vocabulary)
        return error_set(err, ERROR_INTERNAL, "a grammar without a vocabulary has no masks");
    return (!machine_is_full(m) || machine_collect(m, err)) &&
           masks_get(&g->masks, m, &run->root, words, err);
}

bool grammar_run_view_mask(GrammarRun *run, const uint64_t **words, Error *err)
{
    *words = NULL;
    lock(run->grammar);
    bool ok = view_mask_locked(run, words, err);
    unlock(run->grammar);
    return ok;
}

bool grammar_run_mask_logits(GrammarRun *run, float *logits, size_t count, Error *err)
{
    const uint64_t *words;
    lock(run->grammar);
    bool ok = view_mask_locked(run, &words, err);
    size_t n = ok ? run->grammar->vocabulary->n_tokens : 0;
    for (size_t i = 0; ok && i < count; i += 64) {
        uint64_t word = i < n ? words[i / 64] : 0;
        size_t end = count - i < 64 ? count - i : 64;
        for (size_t k = 0; word != UINT64_MAX && k < end; k++)
            logits[i + k] = word >> k & 1 ? logits[i + k] : -INFINITY;
    }
    unlock(run->grammar);
    return ok;
}

bool grammar_run_allows_token(GrammarRun *run, int32_t id)
{
    const GrammarVocabulary *v = run->grammar->vocabulary;
    size_t count;
    Error ignored = {0};
    return v && id >= 0 && (size_t)id < v->n_tokens && v->tokens[id].len > 0 &&
           grammar_run_count_bytes(run, v->tokens[id], &count, &ignored) &&
           count == v->tokens[id].len;
}
