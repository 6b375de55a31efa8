/* Building and finishing.
 *
 * Finishing is four passes, each linear in states and edges: which states can reach RETURN
 * (backwards, by a list of what waits for a state); which rules can be empty (the same, without
 * reading); the order of rules under "calls before it reads" (depth first; a cycle is left
 * recursion); byte classes. */
#include "automaton.h"

#include <string.h>

bool automaton_init(Automaton *a, Error *err)
{
    *a = (Automaton){.err = err};
    for (size_t i = 0; i < AUTOMATON_FIRST; i++) {
        if (!memory_grow_array((void **)&a->states, a->n_states, &a->states_capacity,
                               sizeof(*a->states))) {
            a->failed = true;
            return error_no_memory(err, "grammar");
        }
        a->states[a->n_states++] = (AutomatonState){
            .kind = i == AUTOMATON_RETURN ? AUTOMATON_KIND_RETURN : AUTOMATON_KIND_FAIL};
    }
    return true;
}

void automaton_reset(Automaton *a)
{
    memory_free(a->states);
    memory_free(a->rules);
    memory_free(a->rule_of_rank);
    *a = (Automaton){0};
}

uint32_t automaton_fail(Automaton *a, ErrorCode code, const char *message)
{
    if (!a->failed)
        error_set(a->err, code, "%s", message);
    a->failed = true;
    return AUTOMATON_FAIL;
}

static uint32_t add_state(Automaton *a, AutomatonState state)
{
    if (a->failed)
        return AUTOMATON_FAIL;
    if (a->n_states >= AUTOMATON_STATES_MAX)
        return automaton_fail(a, ERROR_LIMIT, "the grammar needs too many states");
    if (!memory_grow_array((void **)&a->states, a->n_states, &a->states_capacity,
                           sizeof(*a->states)))
        return automaton_fail(a, ERROR_MEMORY, "out of memory: grammar");
    a->states[a->n_states] = state;
    return (uint32_t)a->n_states++;
}

uint32_t automaton_add_rule(Automaton *a, Slice name)
{
    if (a->failed)
        return 0;
    if (a->n_rules >= AUTOMATON_RULES_MAX) {
        automaton_fail(a, ERROR_LIMIT, "the grammar needs too many rules");
        return 0;
    }
    if (!memory_grow_array((void **)&a->rules, a->n_rules, &a->rules_capacity, sizeof(*a->rules))) {
        automaton_fail(a, ERROR_MEMORY, "out of memory: grammar rules");
        return 0;
    }
    a->rules[a->n_rules] = (AutomatonRule){.start = AUTOMATON_FAIL, .name = name};
    return (uint32_t)a->n_rules++;
}

void automaton_set_rule(Automaton *a, uint32_t rule, uint32_t start)
{
    if (!a->failed)
        a->rules[rule].start = start;
}

uint32_t automaton_add_bytes(Automaton *a, uint8_t low, uint8_t high, uint32_t next)
{
    if (next == AUTOMATON_FAIL || low > high)
        return AUTOMATON_FAIL;
    return add_state(
        a, (AutomatonState){.kind = AUTOMATON_KIND_BYTES, .low = low, .high = high, .out = next});
}

uint32_t automaton_add_split(Automaton *a, uint32_t out, uint32_t other)
{
    return add_state(a, (AutomatonState){.kind = AUTOMATON_KIND_SPLIT, .out = out, .other = other});
}

void automaton_set_split(Automaton *a, uint32_t split, uint32_t out, uint32_t other)
{
    if (a->failed || split == AUTOMATON_FAIL)
        return;
    a->states[split].out = out;
    a->states[split].other = other;
}

uint32_t automaton_add_either(Automaton *a, uint32_t one, uint32_t other)
{
    if (one == AUTOMATON_FAIL || other == AUTOMATON_FAIL)
        return one == AUTOMATON_FAIL ? other : one;
    return automaton_add_split(a, one, other);
}

uint32_t automaton_add_call(Automaton *a, uint32_t rule, uint32_t next)
{
    if (next == AUTOMATON_FAIL)
        return AUTOMATON_FAIL;
    return add_state(a, (AutomatonState){.kind = AUTOMATON_KIND_CALL, .out = next, .other = rule});
}

uint32_t automaton_add_literal(Automaton *a, Slice bytes, uint32_t next)
{
    for (size_t i = bytes.len; i-- > 0;) {
        uint8_t byte = (uint8_t)bytes.ptr[i];
        next = automaton_add_bytes(a, byte, byte, next);
    }
    return next;
}

uint32_t automaton_add_mark(Automaton *a, Slice bytes, uint32_t next)
{
    uint8_t last = (uint8_t)bytes.ptr[bytes.len - 1];
    next = automaton_add_bytes(a, last, last, next);
    if (next != AUTOMATON_FAIL)
        a->states[next].is_sole = true;
    return automaton_add_literal(a, (Slice){bytes.ptr, bytes.len - 1}, next);
}

size_t automaton_bytes(const Automaton *a)
{
    return a->states_capacity * sizeof(*a->states) + a->rules_capacity * sizeof(*a->rules) +
           a->n_rules * sizeof(*a->rule_of_rank);
}

/* ---- Which states can end ---- */

/* For every state and, behind them, every rule: the states that may become true once it is true. */
typedef struct Waiters {
    uint32_t *first; /* [n_states + n_rules + 1] into list */
    uint32_t *list;
    uint32_t *queue; /* [n_states + n_rules] */
} Waiters;

static void waiters_reset(Waiters *w)
{
    memory_free(w->first);
    memory_free(w->list);
    memory_free(w->queue);
}

static bool waiters_init(const Automaton *a, Waiters *w, Error *err)
{
    size_t n = a->n_states + a->n_rules, total = 0;
    *w = (Waiters){.first = memory_allocate_zeroed(n + 2, sizeof(*w->first)),
                   .queue = memory_allocate_array(n + 1, sizeof(*w->queue))};
    if (!w->first || !w->queue)
        goto fail;
    uint32_t *count = w->first + 1; /* shifted by one, so that the sums end in place */
    for (size_t i = 0; i < a->n_states; i++) {
        const AutomatonState *s = &a->states[i];
        if (s->kind < AUTOMATON_KIND_BYTES)
            continue;
        count[s->out]++, total++;
        if (s->kind == AUTOMATON_KIND_SPLIT)
            count[s->other]++, total++;
        else if (s->kind == AUTOMATON_KIND_CALL)
            count[a->n_states + s->other]++, total++;
    }
    for (size_t i = 0; i < a->n_rules; i++)
        count[a->rules[i].start]++, total++;
    w->list = memory_allocate_array(total + 1, sizeof(*w->list));
    if (!w->list)
        goto fail;
    for (size_t i = 1; i <= n; i++)
        w->first[i + 1] += w->first[i];
    /* first[i + 1] is the end of i's list: fill from the end. */
    uint32_t *end = w->first + 1;
    for (size_t i = 0; i < a->n_states; i++) {
        const AutomatonState *s = &a->states[i];
        if (s->kind < AUTOMATON_KIND_BYTES)
            continue;
        w->list[--end[s->out]] = (uint32_t)i;
        if (s->kind == AUTOMATON_KIND_SPLIT)
            w->list[--end[s->other]] = (uint32_t)i;
        else if (s->kind == AUTOMATON_KIND_CALL)
            w->list[--end[a->n_states + s->other]] = (uint32_t)i;
    }
    for (size_t i = 0; i < a->n_rules; i++)
        w->list[--end[a->rules[i].start]] = (uint32_t)(a->n_states + i);
    return true;
fail:
    waiters_reset(w);
    return error_no_memory(err, "grammar analysis");
}

static bool has_allowed_byte(const AutomatonState *s, const bool *allowed)
{
    for (unsigned b = s->low; allowed && b <= s->high; b++) {
        if (allowed[b])
            return true;
    }
    return !allowed;
}

/* Marks all states and rules from which RETURN is reached: without reading a byte, if empty_only.
 */
static void mark_ending(const Automaton *a, const Waiters *w, const bool *allowed, bool empty_only,
                        bool *marked)
{
    size_t head = 0, tail = 0;
    marked[AUTOMATON_RETURN] = true;
    w->queue[tail++] = AUTOMATON_RETURN;
    while (head < tail) {
        uint32_t done = w->queue[head++];
        for (uint32_t i = w->first[done + 1]; i < w->first[done + 2]; i++) {
            uint32_t waiter = w->list[i];
            if (marked[waiter])
                continue;
            if (waiter < a->n_states) {
                const AutomatonState *s = &a->states[waiter];
                if (s->kind == AUTOMATON_KIND_BYTES &&
                    (empty_only || !has_allowed_byte(s, allowed)))
                    continue;
                if (s->kind == AUTOMATON_KIND_CALL &&
                    !(marked[s->out] && marked[a->n_states + s->other]))
                    continue;
            }
            marked[waiter] = true;
            w->queue[tail++] = waiter;
        }
    }
}

static bool find_ends(Automaton *a, const bool *allowed, Error *err)
{
    Waiters waiters;
    if (!waiters_init(a, &waiters, err))
        return false;
    size_t n = a->n_states + a->n_rules;
    bool *marked = memory_allocate_zeroed(n + 1, sizeof(*marked));
    if (!marked) {
        waiters_reset(&waiters);
        return error_no_memory(err, "grammar analysis");
    }
    mark_ending(a, &waiters, allowed, false, marked);
    for (size_t i = 0; i < a->n_states; i++)
        a->states[i].is_live = marked[i];
    memset(marked, 0, n);
    mark_ending(a, &waiters, allowed, true, marked);
    for (size_t i = 0; i < a->n_rules; i++)
        a->rules[i].is_nullable = marked[a->n_states + i];
    for (size_t i = AUTOMATON_FIRST; i < a->n_states; i++) {
        AutomatonState *s = &a->states[i];
        if (s->kind != AUTOMATON_KIND_SPLIT || !s->is_live)
            continue;
        if (!a->states[s->out].is_live)
            s->out = s->other;
        else if (!a->states[s->other].is_live)
            s->other = s->out;
    }
    memory_free(marked);
    waiters_reset(&waiters);
    return true;
}

/* ---- Order of rules ---- */

typedef struct Ranking {
    Automaton *a;
    uint32_t *seen;  /* [n_states] rule + 1 that last walked over the state */
    uint8_t *colour; /* [n_rules] 0 new, 1 on the path, 2 done */
    Buffer edges;    /* uint32_t: rules called before reading, those of the path's rules */
    Buffer path;     /* RankFrame[] */
    Buffer work;     /* uint32_t states */
    size_t left;     /* ranks not given yet; handed out from the end */
} Ranking;

typedef struct RankFrame {
    uint32_t rule;
    size_t edges_begin, edges_at; /* elements of edges */
} RankFrame;

static void push_u32(Buffer *buffer, uint32_t value)
{
    buffer_append(buffer, &value, sizeof(value));
}

/* Appends the rules that `rule` can call before it reads a byte. */
static void collect_left_calls(Ranking *r, uint32_t rule)
{
    const Automaton *a = r->a;
    buffer_clear(&r->work);
    push_u32(&r->work, a->rules[rule].start);
    while (r->work.len > 0 && !r->work.failed) {
        uint32_t at;
        r->work.len -= sizeof(at);
        memcpy(&at, r->work.ptr + r->work.len, sizeof(at));
        const AutomatonState *s = &a->states[at];
        if (!s->is_live || r->seen[at] == rule + 1)
            continue;
        r->seen[at] = rule + 1;
        if (s->kind == AUTOMATON_KIND_SPLIT) {
            push_u32(&r->work, s->out);
            push_u32(&r->work, s->other);
        } else if (s->kind == AUTOMATON_KIND_CALL) {
            push_u32(&r->edges, s->other);
            if (a->rules[s->other].is_nullable)
                push_u32(&r->work, s->out);
        }
    }
}

static void enter_rule(Ranking *r, uint32_t rule)
{
    RankFrame frame = {.rule = rule,
                       .edges_begin = r->edges.len / sizeof(uint32_t),
                       .edges_at = r->edges.len / sizeof(uint32_t)};
    r->colour[rule] = 1;
    collect_left_calls(r, rule);
    buffer_append(&r->path, &frame, sizeof(frame));
}

static bool left_recursion(const Automaton *a, uint32_t rule, Error *err)
{
    Slice name = a->rules[rule].name;
    if (name.len > AUTOMATON_QUOTE_BYTES_MAX)
        name.len = AUTOMATON_QUOTE_BYTES_MAX;
    if (name.len > 0)
        return error_set(err, ERROR_INVALID,
                         "rule %.*s is left-recursive: it calls itself before it reads anything",
                         SLICE_ARG(name));
    return error_set(err, ERROR_INVALID, "a rule calls itself before it reads anything");
}

static bool rank_from(Ranking *r, uint32_t root, Error *err)
{
    enter_rule(r, root);
    while (r->path.len > 0) {
        if (r->path.failed || r->edges.failed || r->work.failed)
            return error_no_memory(err, "grammar analysis");
        RankFrame *top = (RankFrame *)(void *)(r->path.ptr + r->path.len - sizeof(*top));
        if (top->edges_at * sizeof(uint32_t) == r->edges.len) {
            r->colour[top->rule] = 2;
            r->left--;
            r->a->rules[top->rule].rank = (uint32_t)r->left;
            r->a->rule_of_rank[r->left] = top->rule;
            r->edges.len = top->edges_begin * sizeof(uint32_t);
            r->path.len -= sizeof(*top);
            continue;
        }
        uint32_t callee;
        memcpy(&callee, r->edges.ptr + top->edges_at++ * sizeof(callee), sizeof(callee));
        if (r->colour[callee] == 1)
            return left_recursion(r->a, callee, err);
        if (r->colour[callee] == 0)
            enter_rule(r, callee); /* its edges lie on top of the caller's */
    }
    return true;
}

static bool rank_rules(Automaton *a, Error *err)
{
    Ranking r = {.a = a, .left = a->n_rules};
    bool ok = false;
    buffer_init(&r.edges, SIZE_MAX);
    buffer_init(&r.path, SIZE_MAX);
    buffer_init(&r.work, SIZE_MAX);
    r.seen = memory_allocate_zeroed(a->n_states, sizeof(*r.seen));
    r.colour = memory_allocate_zeroed(a->n_rules, sizeof(*r.colour));
    a->rule_of_rank = memory_allocate_zeroed(a->n_rules, sizeof(*a->rule_of_rank));
    if (!r.seen || !r.colour || !a->rule_of_rank) {
        error_no_memory(err, "grammar analysis");
        goto cleanup;
    }
    for (uint32_t rule = 0; rule < a->n_rules; rule++) {
        if (r.colour[rule] == 0 && !rank_from(&r, rule, err))
            goto cleanup;
    }
    ok = true;
cleanup:
    memory_free(r.seen);
    memory_free(r.colour);
    buffer_reset(&r.edges);
    buffer_reset(&r.path);
    buffer_reset(&r.work);
    return ok;
}

/* ---- Classes of bytes ---- */

static void group_bytes(Automaton *a)
{
    bool starts[257] = {true};
    for (size_t i = 0; i < a->n_states; i++) {
        const AutomatonState *s = &a->states[i];
        if (s->kind == AUTOMATON_KIND_BYTES && s->is_live) {
            starts[s->low] = true;
            starts[s->high + 1] = true;
        }
    }
    /* Where characters of several bytes begin and go on: vocabulary slices look at these. */
    static const uint8_t utf8_borders[] = {0x80, 0x90, 0xa0, 0xc0, 0xc2, 0xe0, 0xe1,
                                           0xed, 0xee, 0xf0, 0xf1, 0xf4, 0xf5};
    for (size_t i = 0; i < ARRAY_COUNT(utf8_borders); i++)
        starts[utf8_borders[i]] = true;
    a->n_classes = 0;
    for (size_t b = 0; b < 256; b++) {
        a->n_classes += starts[b];
        a->classes[b] = (uint8_t)(a->n_classes - 1);
    }
}

bool automaton_finish(Automaton *a, const bool *allowed, bool *is_empty, Error *err)
{
    if (a->failed)
        return false;
    if (!find_ends(a, allowed, err) || !rank_rules(a, err))
        return false;
    group_bytes(a);
    *is_empty = !a->states[a->rules[a->root].start].is_live;
    return true;
}
