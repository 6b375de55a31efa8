/* Tree to states that read a set or split, built backwards; then the subset construction over
 * classes of characters. ^ is followed only from the start, $ only when asked whether the string
 * may end. */
#include "regex.h"

#include "regex_tree.h"

#include <stdlib.h>
#include <string.h>

typedef enum NfaKind { NFA_ACCEPT, NFA_FAIL, NFA_SET, NFA_SPLIT, NFA_BEGIN, NFA_END } NfaKind;

typedef struct NfaState {
    uint8_t kind;
    uint32_t set;
    uint32_t out, other;
} NfaState;

enum { ACCEPT = 0, FAIL = 1 };
enum { FIND_FAILED = CHAR_DFA_DEAD - 1 };

typedef struct Compiler {
    const RegexTree *tree;
    NfaState *states;
    size_t n_states, capacity;
    bool failed;
    Error *err;

    /* Subset construction */
    size_t states_max, work_max;
    bool *in_set; /* [n_classes][n_sets] */
    CharDfa *dfa;
    uint32_t everything; /* a state that accepts whatever follows (search), or FAIL */
    Buffer members;      /* uint32_t: NFA states of DFA states, one after the other */
    size_t *first;       /* [capacity] where a DFA state's members begin; one more than states */
    size_t first_capacity;
    uint32_t *slots;
    size_t n_slots;
    uint32_t *stamp; /* [n_states] */
    uint32_t round;
    Buffer work, found, key; /* uint32_t: NFA states */
    size_t n_work;
} Compiler;

static uint32_t add_state(Compiler *c, NfaState state)
{
    if (c->failed)
        return FAIL;
    if (c->n_states >= REGEX_STATES_MAX) {
        error_set(c->err, ERROR_LIMIT, "the repetitions need more than %d states",
                  REGEX_STATES_MAX);
        c->failed = true;
        return FAIL;
    }
    if (!memory_grow_array((void **)&c->states, c->n_states, &c->capacity, sizeof(*c->states))) {
        error_no_memory(c->err, "regular expression");
        c->failed = true;
        return FAIL;
    }
    c->states[c->n_states] = state;
    return (uint32_t)c->n_states++;
}

static uint32_t add_split(Compiler *c, uint32_t out, uint32_t other)
{
    return add_state(c, (NfaState){.kind = NFA_SPLIT, .out = out, .other = other});
}

static uint32_t build(Compiler *c, const RegexNode *node, uint32_t next);

/* Backwards over a list: the last child first, by recursion cut into a loop over an array. */
static uint32_t build_sequence(Compiler *c, const RegexNode *first, uint32_t next)
{
    size_t count = 0;
    for (const RegexNode *child = first; child; child = child->sibling)
        count++;
    const RegexNode **children = memory_allocate_array(count, sizeof(const RegexNode *));
    if (!children) {
        c->failed = true;
        error_no_memory(c->err, "regular expression");
        return FAIL;
    }
    size_t i = 0;
    for (const RegexNode *child = first; child; child = child->sibling)
        children[i++] = child;
    while (i-- > 0)
        next = build(c, children[i], next);
    memory_free(children);
    return next;
}

static uint32_t build_repeat(Compiler *c, const RegexNode *node, uint32_t next)
{
    uint32_t at = next;
    if (node->max == REGEX_NO_END) {
        uint32_t loop = add_split(c, next, next);
        uint32_t body = build(c, node->children, loop);
        if (!c->failed)
            c->states[loop].out = body;
        at = loop;
    } else {
        for (uint32_t i = node->min; i < node->max && !c->failed; i++)
            at = add_split(c, build(c, node->children, at), next);
    }
    for (uint32_t i = 0; i < node->min && !c->failed; i++) {
        uint32_t start = build(c, node->children, at);
        if (start == at)
            break; /* an empty body, however often */
        at = start;
    }
    return at;
}

/* Depth is bounded by the parser: a group is two levels. */
static uint32_t build(Compiler *c, const RegexNode *node, uint32_t next)
{
    uint32_t at = FAIL;
    switch (node->kind) {
    case REGEX_EMPTY:
        return next;
    case REGEX_SET:
        return add_state(c, (NfaState){.kind = NFA_SET, .set = node->set, .out = next});
    case REGEX_BEGIN:
        return add_state(c, (NfaState){.kind = NFA_BEGIN, .out = next});
    case REGEX_END:
        return add_state(c, (NfaState){.kind = NFA_END, .out = next});
    case REGEX_ALL_OF:
        return build_sequence(c, node->children, next);
    case REGEX_ONE_OF:
        for (const RegexNode *child = node->children; child; child = child->sibling) {
            uint32_t one = build(c, child, next);
            at = at == FAIL ? one : add_split(c, at, one);
        }
        return at;
    case REGEX_REPEAT:
        return build_repeat(c, node, next);
    }
    return FAIL;
}

/* ---- Classes of characters ---- */

static int compare_u32(const void *a, const void *b)
{
    uint32_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static bool set_has(const RegexSet *set, uint32_t c)
{
    size_t low = 0, high = set->count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (set->ranges[mid].high < c)
            low = mid + 1;
        else
            high = mid;
    }
    return low < set->count && set->ranges[low].low <= c;
}

/* Ranges cut wherever a set begins or ends; those that are in the same sets share a class. */
static bool find_classes(Compiler *c)
{
    const RegexTree *tree = c->tree;
    size_t n_borders = 1, n_sets = tree->n_sets;
    for (size_t i = 0; i < n_sets; i++)
        n_borders += 2 * tree->sets[i].count;
    CharDfa *dfa = c->dfa;
    *dfa = (CharDfa){.lows = memory_allocate_zeroed(n_borders, sizeof(*dfa->lows)),
                     .class_of = memory_allocate_zeroed(n_borders, sizeof(*dfa->class_of))};
    if (!dfa->lows || !dfa->class_of)
        return error_no_memory(c->err, "regular expression");
    size_t n = 1;
    for (size_t i = 0; i < n_sets; i++) {
        for (size_t k = 0; k < tree->sets[i].count; k++) {
            dfa->lows[n++] = tree->sets[i].ranges[k].low;
            dfa->lows[n++] = tree->sets[i].ranges[k].high + 1;
        }
    }
    qsort(dfa->lows, n, sizeof(*dfa->lows), compare_u32);
    size_t kept = 1;
    for (size_t i = 1; i < n; i++) {
        if (dfa->lows[i] != dfa->lows[kept - 1] && dfa->lows[i] <= CODE_POINT_MAX)
            dfa->lows[kept++] = dfa->lows[i];
    }
    dfa->n_ranges = kept;
    c->n_work += kept * n_sets;
    if (c->n_work > c->work_max)
        return error_set(c->err, ERROR_LIMIT, "too many different characters");
    c->in_set = memory_allocate_zeroed(kept * n_sets + 1, sizeof(*c->in_set));
    bool *row = memory_allocate_zeroed(n_sets + 1, sizeof(*row));
    if (!c->in_set || !row) {
        memory_free(row);
        return error_no_memory(c->err, "regular expression");
    }
    for (size_t i = 0; i < kept; i++) {
        for (size_t k = 0; k < n_sets; k++)
            row[k] = set_has(&tree->sets[k], dfa->lows[i]);
        size_t class = 0;
        while (class < dfa->n_classes && memcmp(c->in_set + class * n_sets, row, n_sets) != 0)
            class ++;
        if (class == dfa->n_classes) {
            memcpy(c->in_set + class * n_sets, row, n_sets);
            dfa->n_classes++;
        }
        c->n_work += class;
        dfa->class_of[i] = (uint32_t) class;
    }
    memory_free(row);
    return true;
}

/* ---- Subset construction ---- */

/* Clearing a buffer clears its failure, so that is kept apart. */
static void push_u32(Compiler *c, Buffer *buffer, uint32_t value)
{
    buffer_append(buffer, &value, sizeof(value));
    c->failed = c->failed || buffer->failed;
}

static uint32_t *view_u32(const Buffer *buffer)
{
    return (uint32_t *)(void *)buffer->ptr;
}

/* Follows the states in work. Set states and, in a search, the end go to found; *accepts tells
 * whether ACCEPT was reached. */
static void follow(Compiler *c, bool at_begin, bool at_end, bool *accepts)
{
    c->round++;
    buffer_clear(&c->found);
    *accepts = false;
    while (c->work.len > 0 && !c->failed) {
        c->work.len -= sizeof(uint32_t);
        uint32_t at = view_u32(&c->work)[c->work.len / sizeof(uint32_t)];
        if (c->stamp[at] == c->round)
            continue;
        c->stamp[at] = c->round;
        c->n_work++;
        const NfaState *s = &c->states[at];
        switch ((NfaKind)s->kind) {
        case NFA_ACCEPT:
            *accepts = true;
            break;
        case NFA_FAIL:
            break;
        case NFA_SET:
            push_u32(c, &c->found, at);
            break;
        case NFA_SPLIT:
            push_u32(c, &c->work, s->other);
            push_u32(c, &c->work, s->out);
            break;
        case NFA_BEGIN:
            if (at_begin)
                push_u32(c, &c->work, s->out);
            break;
        case NFA_END:
            push_u32(c, &c->found, at);
            if (at_end)
                push_u32(c, &c->work, s->out);
            break;
        }
    }
    buffer_clear(&c->work);
}

static uint32_t hash_u32(const uint32_t *values, size_t count)
{
    uint64_t h = count;
    for (size_t i = 0; i < count; i++) {
        h = (h ^ values[i]) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    return (uint32_t)(h ^ h >> 32);
}

static bool grow_tables(Compiler *c)
{
    size_t n = c->dfa->n_states;
    if (n + 2 > c->first_capacity) {
        size_t capacity = c->first_capacity ? c->first_capacity * 2 : 64;
        size_t *first = memory_resize_array(c->first, capacity, sizeof(*first));
        if (!first)
            return false;
        c->first = first;
        c->first_capacity = capacity;
    }
    if (n * 2 < c->n_slots)
        return true;
    size_t n_slots = c->n_slots ? c->n_slots * 2 : 128;
    memory_free(c->slots);
    c->slots = memory_allocate_zeroed(n_slots, sizeof(*c->slots));
    c->n_slots = n_slots;
    if (!c->slots)
        return false;
    for (size_t i = 0; i < n; i++) {
        size_t at = hash_u32(view_u32(&c->members) + c->first[i], c->first[i + 1] - c->first[i]) &
                    (n_slots - 1);
        while (c->slots[at])
            at = (at + 1) & (n_slots - 1);
        c->slots[at] = (uint32_t)i + 1;
    }
    return true;
}

/* May the string end at key? Only $ can still be followed. */
static bool may_end(Compiler *c, bool at_begin)
{
    bool accepts = false;
    const uint32_t *members = view_u32(&c->key);
    for (size_t i = 0; i < c->key.len / sizeof(*members); i++) {
        if (c->states[members[i]].kind == NFA_END)
            push_u32(c, &c->work, members[i]);
    }
    if (c->work.len > 0)
        follow(c, at_begin, true, &accepts);
    return accepts;
}

/* The DFA state of what follows from work: its set and end states, and whether the string may end.
 */
static int32_t find_state(Compiler *c, bool at_begin)
{
    bool accepts;
    follow(c, at_begin, false, &accepts);
    if (c->everything != FAIL && c->stamp[c->everything] == c->round) {
        buffer_clear(&c->found); /* nothing else matters any more */
        push_u32(c, &c->found, c->everything);
    }
    buffer_clear(&c->key);
    buffer_append_slice(&c->key, buffer_view(&c->found));
    accepts = accepts || may_end(c, at_begin);
    if (c->key.failed || c->failed || !grow_tables(c)) {
        error_no_memory(c->err, "regular expression");
        return FIND_FAILED;
    }
    size_t count = c->key.len / sizeof(uint32_t);
    if (count == 0 && !accepts)
        return CHAR_DFA_DEAD;
    uint32_t *members = view_u32(&c->key);
    if (count > 1)
        qsort(members, count, sizeof(*members), compare_u32);
    size_t at = hash_u32(members, count) & (c->n_slots - 1);
    for (; c->slots[at]; at = (at + 1) & (c->n_slots - 1)) {
        size_t i = c->slots[at] - 1;
        if (c->dfa->accepts[i] == accepts && c->first[i + 1] - c->first[i] == count &&
            (count == 0 ||
             memcmp(view_u32(&c->members) + c->first[i], members, count * sizeof(*members)) == 0))
            return (int32_t)i;
    }
    size_t from = c->members.len / sizeof(uint32_t);
    buffer_append_slice(&c->members, buffer_view(&c->key));
    if (c->members.failed) {
        error_no_memory(c->err, "regular expression");
        return FIND_FAILED;
    }
    if (c->dfa->n_states >= c->states_max) {
        error_set(c->err, ERROR_LIMIT, "deterministic, it has more than %zu states", c->states_max);
        return FIND_FAILED;
    }
    int32_t state = char_dfa_add_state(c->dfa, accepts, c->err);
    if (state < 0)
        return FIND_FAILED;
    c->slots[at] = (uint32_t)state + 1;
    c->first[state] = from;
    c->first[state + 1] = from + count;
    return state;
}

static bool determinise(Compiler *c, uint32_t start)
{
    CharDfa *dfa = c->dfa;
    push_u32(c, &c->work, start);
    int32_t first = find_state(c, true);
    if (first == CHAR_DFA_DEAD)
        return char_dfa_add_state(dfa, false, c->err) == 0; /* nothing matches */
    if (first < 0)
        return false;
    size_t n_sets = c->tree->n_sets;
    for (size_t i = 0; i < dfa->n_states; i++) {
        for (size_t class = 0; class < dfa->n_classes; class ++) {
            for (size_t k = c->first[i]; k < c->first[i + 1]; k++) {
                const NfaState *s = &c->states[view_u32(&c->members)[k]];
                c->n_work++;
                if (s->kind == NFA_SET && c->in_set[class * n_sets + s->set])
                    push_u32(c, &c->work, s->out);
            }
            int32_t to = c->work.len > 0 || c->failed ? find_state(c, false) : CHAR_DFA_DEAD;
            if (to < CHAR_DFA_DEAD)
                return false;
            if (c->n_work > c->work_max)
                return error_set(c->err, ERROR_LIMIT, "too complex to be made deterministic");
            dfa->steps[i * dfa->n_classes + class] = to;
        }
    }
    return true;
}

/* A set of all characters, for what a search passes over. */
static bool add_any_set(RegexTree *tree, uint32_t *out, Error *err)
{
    if (!memory_grow_array((void **)&tree->sets, tree->n_sets, &tree->sets_capacity,
                           sizeof(*tree->sets)))
        return error_no_memory(err, "regular expression");
    CharRange *range = arena_allocate(&tree->arena, sizeof(*range));
    if (!range)
        return error_no_memory(err, "regular expression");
    *range = (CharRange){0, CODE_POINT_MAX};
    *out = (uint32_t)tree->n_sets;
    tree->sets[tree->n_sets++] = (RegexSet){range, 1};
    return true;
}

static uint32_t build_search(Compiler *c, uint32_t any)
{
    uint32_t tail = add_split(c, ACCEPT, ACCEPT);
    uint32_t rest = add_state(c, (NfaState){.kind = NFA_SET, .set = any, .out = tail});
    if (!c->failed)
        c->states[tail].other = rest;
    c->everything = rest;
    uint32_t head = add_split(c, FAIL, FAIL);
    uint32_t skipped = add_state(c, (NfaState){.kind = NFA_SET, .set = any, .out = head});
    uint32_t body = build(c, c->tree->root, tail);
    if (c->failed)
        return FAIL;
    c->states[head].out = body;
    c->states[head].other = skipped;
    return head;
}

static void compiler_reset(Compiler *c)
{
    memory_free(c->states);
    memory_free(c->in_set);
    memory_free(c->first);
    memory_free(c->slots);
    memory_free(c->stamp);
    buffer_reset(&c->members);
    buffer_reset(&c->work);
    buffer_reset(&c->found);
    buffer_reset(&c->key);
}

/* Tree and states of source; *start is where matching starts. */
static bool prepare(Compiler *c, RegexTree *tree, Slice source, RegexMode mode, uint32_t *start,
                    Error *err)
{
    uint32_t any = 0;
    *c = (Compiler){.tree = tree, .err = err, .everything = FAIL};
    buffer_init(&c->members, SIZE_MAX);
    buffer_init(&c->work, SIZE_MAX);
    buffer_init(&c->found, SIZE_MAX);
    buffer_init(&c->key, SIZE_MAX);
    if (!regex_parse(source, tree, err) || !add_any_set(tree, &any, err))
        return false;
    add_state(c, (NfaState){.kind = NFA_ACCEPT});
    add_state(c, (NfaState){.kind = NFA_FAIL});
    *start = mode == REGEX_SEARCH ? build_search(c, any) : build(c, tree->root, ACCEPT);
    return !c->failed;
}

static bool make_dfa(Compiler *c, uint32_t start, CharDfa *out)
{
    c->dfa = out;
    c->stamp = memory_allocate_zeroed(c->n_states, sizeof(*c->stamp));
    bool ok = c->stamp ? find_classes(c) && determinise(c, start)
                       : error_no_memory(c->err, "regular expression");
    if (!ok)
        char_dfa_reset(out);
    return ok;
}

bool regex_compile(Slice source, RegexMode mode, CharDfa *out, Error *err)
{
    RegexTree tree;
    Compiler c;
    uint32_t start;
    *out = (CharDfa){0};
    bool ok = prepare(&c, &tree, source, mode, &start, err);
    c.states_max = CHAR_DFA_STATES_MAX;
    c.work_max = REGEX_WORK_MAX;
    ok = ok && make_dfa(&c, start, out);
    compiler_reset(&c);
    regex_tree_reset(&tree);
    return ok;
}

/* ---- Without determinism ---- */

/* Three copies of the states, side by side: at the start of the string (^ holds), behind it, and at
 * its end ($ was passed: nothing more is read). */
enum { COPY_BEGIN, COPY_LATER, COPY_END, COPY_COUNT };

static uint32_t copied(const uint32_t *starts, uint32_t state, unsigned copy)
{
    return starts[(size_t)state * COPY_COUNT + copy];
}

static void spell_state(Compiler *c, Text *text, TextSpelling spelling, const uint32_t *starts,
                        uint32_t state, unsigned copy, uint32_t next)
{
    const NfaState *s = &c->states[state];
    uint32_t one = AUTOMATON_FAIL, other = AUTOMATON_FAIL;
    switch ((NfaKind)s->kind) {
    case NFA_ACCEPT:
        one = next;
        break;
    case NFA_FAIL:
        break;
    case NFA_SET:
        if (copy != COPY_END)
            one = text_add_ranges(text, spelling, c->tree->sets[s->set].ranges,
                                  c->tree->sets[s->set].count, copied(starts, s->out, COPY_LATER));
        break;
    case NFA_SPLIT:
        one = copied(starts, s->out, copy);
        other = copied(starts, s->other, copy);
        break;
    case NFA_BEGIN:
        if (copy == COPY_BEGIN)
            one = copied(starts, s->out, copy);
        break;
    case NFA_END: /* of an empty string, ^ may still follow */
        one = copied(starts, s->out, COPY_END);
        break;
    }
    automaton_set_split(text->automaton, copied(starts, state, copy), one,
                        other == AUTOMATON_FAIL ? one : other);
}

static bool spell(Compiler *c, uint32_t start, Text *text, TextSpelling spelling, uint32_t next,
                  uint32_t *out)
{
    Automaton *a = text->automaton;
    size_t n = c->n_states * COPY_COUNT;
    uint32_t *starts = memory_allocate_array(n, sizeof(*starts));
    if (!starts)
        return error_no_memory(c->err, "regular expression");
    for (size_t i = 0; i < n; i++)
        starts[i] = automaton_add_split(a, AUTOMATON_FAIL, AUTOMATON_FAIL);
    for (size_t i = 0; i < n && !a->failed; i++)
        spell_state(c, text, spelling, starts, (uint32_t)(i / COPY_COUNT),
                    (unsigned)(i % COPY_COUNT), next);
    *out = copied(starts, start, COPY_BEGIN);
    memory_free(starts);
    return !a->failed;
}

bool regex_add(Text *text, Slice source, RegexMode mode, TextSpelling spelling, uint32_t next,
               uint32_t *out, Error *err)
{
    RegexTree tree;
    Compiler c;
    CharDfa dfa = {0};
    uint32_t start;
    bool is_empty;
    *out = AUTOMATON_FAIL;
    bool ok = prepare(&c, &tree, source, mode, &start, err);
    if (ok) {
        Error attempt = {0};
        c.err = &attempt;
        c.states_max = REGEX_SMALL_STATES_MAX;
        c.work_max = REGEX_SMALL_WORK_MAX;
        ok = make_dfa(&c, start, &dfa) && char_dfa_trim(&dfa, &is_empty, &attempt);
        c.err = err;
        if (ok) {
            *out = char_dfa_add(text, &dfa, spelling, next);
            ok = !text->automaton->failed;
        } else if (attempt.code == ERROR_LIMIT) {
            ok = spell(&c, start, text, spelling, next, out);
        } else {
            error_set(err, attempt.code, "%s", attempt.message);
        }
    }
    char_dfa_reset(&dfa);
    compiler_reset(&c);
    regex_tree_reset(&tree);
    return ok;
}
