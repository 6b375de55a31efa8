#include "char_dfa.h"

#include <stdlib.h>
#include <string.h>

void char_dfa_reset(CharDfa *dfa)
{
    memory_free(dfa->lows);
    memory_free(dfa->class_of);
    memory_free(dfa->steps);
    memory_free(dfa->accepts);
    *dfa = (CharDfa){0};
}

int32_t char_dfa_add_state(CharDfa *dfa, bool accepts, Error *err)
{
    if (dfa->n_states >= CHAR_DFA_STATES_MAX ||
        (dfa->n_states + 1) * dfa->n_classes > CHAR_DFA_STEPS_MAX) {
        error_set(err, ERROR_LIMIT, "needs more than %zu states", dfa->n_states);
        return -1;
    }
    if (dfa->n_states == dfa->capacity) {
        size_t capacity = dfa->capacity ? dfa->capacity * 2 : 16;
        int32_t *steps = memory_resize_array(dfa->steps, capacity, dfa->n_classes * sizeof(*steps));
        if (steps)
            dfa->steps = steps;
        bool *flags = steps ? memory_resize_array(dfa->accepts, capacity, sizeof(*flags)) : NULL;
        if (!flags) {
            error_no_memory(err, "automaton of characters");
            return -1;
        }
        dfa->accepts = flags;
        dfa->capacity = capacity;
    }
    int32_t *row = dfa->steps + dfa->n_states * dfa->n_classes;
    for (size_t i = 0; i < dfa->n_classes; i++)
        row[i] = CHAR_DFA_DEAD;
    dfa->accepts[dfa->n_states] = accepts;
    return (int32_t)dfa->n_states++;
}

static bool set_ranges(CharDfa *dfa, size_t n_ranges, Error *err)
{
    *dfa = (CharDfa){.n_ranges = n_ranges,
                     .lows = memory_allocate_zeroed(n_ranges, sizeof(*dfa->lows)),
                     .class_of = memory_allocate_zeroed(n_ranges, sizeof(*dfa->class_of))};
    if (dfa->lows && dfa->class_of)
        return true;
    char_dfa_reset(dfa);
    return error_no_memory(err, "automaton of characters");
}

static size_t find_class(const CharDfa *dfa, uint32_t c)
{
    size_t low = 0, high = dfa->n_ranges;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (dfa->lows[mid] <= c)
            low = mid;
        else
            high = mid;
    }
    return dfa->class_of[low];
}

bool char_dfa_accepts(const CharDfa *dfa, Slice s)
{
    int32_t at = 0;
    for (size_t i = 0; i < s.len && at >= 0;) {
        uint32_t c;
        size_t len = utf8_decode(s.ptr + i, s.len - i, &c);
        if (len == 0)
            return false;
        i += len;
        at = dfa->steps[(size_t)at * dfa->n_classes + find_class(dfa, c)];
    }
    return at >= 0 && dfa->accepts[at];
}

bool char_dfa_of_length(size_t min, size_t max, CharDfa *out, Error *err)
{
    size_t last = max == SIZE_MAX ? min : max;
    if (!set_ranges(out, 1, err))
        return false;
    out->n_classes = 1;
    for (size_t i = 0; i <= last; i++) {
        int32_t state = char_dfa_add_state(out, i >= min && i <= max, err);
        if (state < 0) {
            char_dfa_reset(out);
            return false;
        }
        if (i < last)
            out->steps[state] = state + 1;
        else if (max == SIZE_MAX)
            out->steps[state] = state;
    }
    return true;
}

/* ---- All names but some ---- */

static int compare_u32(const void *a, const void *b)
{
    uint32_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

/* Classes: each character that occurs in a name by itself, all others together (class 0). */
static bool set_name_classes(const Slice *names, size_t count, CharDfa *out, Error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += names[i].len;
    uint32_t *chars = memory_allocate_array(total, sizeof(*chars));
    if (!chars)
        return error_no_memory(err, "names");
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t c;
        for (size_t at = 0, len; at < names[i].len; at += len) {
            len = utf8_decode(names[i].ptr + at, names[i].len - at, &c);
            if (len == 0) {
                memory_free(chars);
                return error_set(err, ERROR_INVALID, "a name is not UTF-8");
            }
            chars[n++] = c;
        }
    }
    qsort(chars, n, sizeof(*chars), compare_u32);
    if (!set_ranges(out, 2 * n + 1, err)) {
        memory_free(chars);
        return false;
    }
    out->n_ranges = 1;
    out->n_classes = 1;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && chars[i] == chars[i - 1])
            continue;
        if (out->lows[out->n_ranges - 1] == chars[i])
            out->n_ranges--; /* the range of others in front is empty */
        out->lows[out->n_ranges] = chars[i];
        out->class_of[out->n_ranges++] = (uint32_t)out->n_classes++;
        out->lows[out->n_ranges] = chars[i] + 1;
        out->class_of[out->n_ranges++] = 0;
    }
    memory_free(chars);
    return true;
}

bool char_dfa_of_others(const Slice *names, size_t count, CharDfa *out, Error *err)
{
    *out = (CharDfa){0};
    if (!set_name_classes(names, count, out, err))
        return false;
    if (char_dfa_add_state(out, true, err) < 0 || char_dfa_add_state(out, true, err) < 0)
        goto fail;
    enum { START = 0, OTHER = 1 };
    for (size_t i = 0; i < out->n_classes; i++) {
        out->steps[START * out->n_classes + i] = OTHER;
        out->steps[OTHER * out->n_classes + i] = OTHER;
    }
    for (size_t i = 0; i < count; i++) {
        int32_t at = START;
        uint32_t c;
        for (size_t k = 0, len; k < names[i].len; k += len) {
            len = utf8_decode(names[i].ptr + k, names[i].len - k, &c);
            size_t step = (size_t)at * out->n_classes + find_class(out, c);
            if (out->steps[step] == OTHER) {
                int32_t fresh = char_dfa_add_state(out, true, err);
                if (fresh < 0)
                    goto fail;
                for (size_t m = 0; m < out->n_classes; m++)
                    out->steps[(size_t)fresh * out->n_classes + m] = OTHER;
                out->steps[step] = fresh;
            }
            at = out->steps[step];
        }
        out->accepts[at] = false;
    }
    return true;
fail:
    char_dfa_reset(out);
    return false;
}

/* ---- Product ---- */

typedef struct Product {
    const CharDfa *a, *b;
    CharDfa *out;
    uint32_t *class_a, *class_b; /* [out->n_classes] */
    Buffer pairs;                /* uint64_t a << 32 | b, by state of out */
    uint64_t *slots;             /* pair + 1 by hash */
    uint32_t *slot_states;
    size_t n_slots;
} Product;

/* Cuts both sides' ranges by each other; a class of the product is a pair of classes. */
static bool merge_ranges(Product *p, Error *err)
{
    const CharDfa *a = p->a, *b = p->b;
    size_t max = a->n_ranges + b->n_ranges;
    if (!set_ranges(p->out, max, err))
        return false;
    p->class_a = memory_allocate_array(max, sizeof(*p->class_a));
    p->class_b = memory_allocate_array(max, sizeof(*p->class_b));
    if (!p->class_a || !p->class_b)
        return error_no_memory(err, "product of automata");
    size_t i = 0, k = 0, n = 0, n_classes = 0;
    while (i < a->n_ranges && k < b->n_ranges) {
        uint32_t low = a->lows[i] > b->lows[k] ? a->lows[i] : b->lows[k];
        size_t c = 0;
        while (c < n_classes &&
               (p->class_a[c] != a->class_of[i] || p->class_b[c] != b->class_of[k]))
            c++;
        if (c == n_classes) {
            p->class_a[c] = a->class_of[i];
            p->class_b[c] = b->class_of[k];
            n_classes++;
        }
        p->out->lows[n] = low;
        p->out->class_of[n++] = (uint32_t)c;
        uint64_t end_a = i + 1 < a->n_ranges ? a->lows[i + 1] : UINT64_MAX;
        uint64_t end_b = k + 1 < b->n_ranges ? b->lows[k + 1] : UINT64_MAX;
        i += end_a <= end_b;
        k += end_b <= end_a;
    }
    p->out->n_ranges = n;
    p->out->n_classes = n_classes;
    return true;
}

static bool grow_slots(Product *p)
{
    size_t n_states = p->out->n_states;
    if (n_states * 2 < p->n_slots)
        return true;
    size_t n_slots = p->n_slots ? p->n_slots * 2 : 64;
    memory_free(p->slots);
    memory_free(p->slot_states);
    p->slots = memory_allocate_zeroed(n_slots, sizeof(*p->slots));
    p->slot_states = memory_allocate_array(n_slots, sizeof(*p->slot_states));
    p->n_slots = n_slots;
    if (!p->slots || !p->slot_states)
        return false;
    for (size_t i = 0; i < n_states; i++) {
        uint64_t key;
        memcpy(&key, p->pairs.ptr + i * sizeof(key), sizeof(key));
        size_t at = (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (n_slots - 1);
        while (p->slots[at])
            at = (at + 1) & (n_slots - 1);
        p->slots[at] = key + 1;
        p->slot_states[at] = (uint32_t)i;
    }
    return true;
}

static int32_t product_state(Product *p, int32_t a, int32_t b, Error *err)
{
    if (a < 0 || b < 0)
        return CHAR_DFA_DEAD;
    if (!grow_slots(p)) {
        error_no_memory(err, "product of automata");
        return -2;
    }
    uint64_t key = (uint64_t)a << 32 | (uint32_t)b;
    size_t at = (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (p->n_slots - 1);
    for (; p->slots[at]; at = (at + 1) & (p->n_slots - 1)) {
        if (p->slots[at] == key + 1)
            return (int32_t)p->slot_states[at];
    }
    int32_t state = char_dfa_add_state(p->out, p->a->accepts[a] && p->b->accepts[b], err);
    if (state < 0)
        return -2;
    p->slots[at] = key + 1;
    p->slot_states[at] = (uint32_t)state;
    buffer_append(&p->pairs, &key, sizeof(key));
    if (p->pairs.failed) {
        error_no_memory(err, "product of automata");
        return -2;
    }
    return state;
}

bool char_dfa_multiply(const CharDfa *a, const CharDfa *b, CharDfa *out, Error *err)
{
    *out = (CharDfa){0};
    Product p = {.a = a, .b = b, .out = out};
    buffer_init(&p.pairs, SIZE_MAX);
    bool ok = merge_ranges(&p, err) && product_state(&p, 0, 0, err) == 0;
    for (size_t i = 0; ok && i < out->n_states; i++) {
        uint64_t key;
        memcpy(&key, p.pairs.ptr + i * sizeof(key), sizeof(key));
        const int32_t *row_a = a->steps + (size_t)(key >> 32) * a->n_classes;
        const int32_t *row_b = b->steps + (size_t)(uint32_t)key * b->n_classes;
        for (size_t c = 0; ok && c < out->n_classes; c++) {
            int32_t to = product_state(&p, row_a[p.class_a[c]], row_b[p.class_b[c]], err);
            ok = to >= CHAR_DFA_DEAD;
            if (ok)
                out->steps[i * out->n_classes + c] = to;
        }
    }
    memory_free(p.class_a);
    memory_free(p.class_b);
    memory_free(p.slots);
    memory_free(p.slot_states);
    buffer_reset(&p.pairs);
    if (!ok)
        char_dfa_reset(out);
    return ok;
}

/* ---- Trimming ---- */

bool char_dfa_trim(CharDfa *dfa, bool *is_empty, Error *err)
{
    size_t n = dfa->n_states, k = dfa->n_classes;
    bool *is_live = memory_allocate_zeroed(n, sizeof(*is_live));
    uint32_t *first = memory_allocate_zeroed(n + 2, sizeof(*first));
    uint32_t *from = memory_allocate_array(n * k + 1, sizeof(*from));
    uint32_t *queue = memory_allocate_array(n + 1, sizeof(*queue));
    bool ok = is_live && first && from && queue;
    if (!ok) {
        error_no_memory(err, "automaton of characters");
        goto cleanup;
    }
    for (size_t i = 0; i < n * k; i++) {
        if (dfa->steps[i] >= 0)
            first[dfa->steps[i] + 1]++;
    }
    for (size_t i = 0; i < n; i++)
        first[i + 1] += first[i];
    for (size_t i = 0; i < n * k; i++) {
        if (dfa->steps[i] >= 0)
            from[--first[dfa->steps[i] + 1]] = (uint32_t)(i / k);
    }
    /* now first[t + 1] is where the list of t begins, first[t + 2] where it ends */
    size_t total = 0;
    for (size_t i = 0; i < n * k; i++)
        total += dfa->steps[i] >= 0;
    first[n + 1] = (uint32_t)total;
    size_t head = 0, tail = 0;
    for (size_t i = 0; i < n; i++) {
        is_live[i] = dfa->accepts[i];
        if (is_live[i])
            queue[tail++] = (uint32_t)i;
    }
    while (head < tail) {
        uint32_t t = queue[head++];
        for (uint32_t i = first[t + 1]; i < first[t + 2]; i++) {
            if (!is_live[from[i]]) {
                is_live[from[i]] = true;
                queue[tail++] = from[i];
            }
        }
    }
    for (size_t i = 0; i < n * k; i++) {
        if (dfa->steps[i] >= 0 && !is_live[dfa->steps[i]])
            dfa->steps[i] = CHAR_DFA_DEAD;
    }
    *is_empty = !is_live[0];
cleanup:
    memory_free(is_live);
    memory_free(first);
    memory_free(from);
    memory_free(queue);
    return ok;
}

/* ---- As bytes ---- */

/* Appends the characters of all classes of `state` that lead to `to`, as ranges that do not touch.
 */
static size_t ranges_to(const CharDfa *dfa, size_t state, int32_t to, CharRange *ranges)
{
    size_t count = 0;
    for (size_t i = 0; i < dfa->n_ranges; i++) {
        if (dfa->steps[state * dfa->n_classes + dfa->class_of[i]] != to)
            continue;
        uint32_t low = dfa->lows[i];
        uint32_t high = i + 1 < dfa->n_ranges ? dfa->lows[i + 1] - 1 : CODE_POINT_MAX;
        if (low > CODE_POINT_MAX || low > high)
            continue;
        if (count > 0 && ranges[count - 1].high + 1 == low)
            ranges[count - 1].high = high;
        else
            ranges[count++] = (CharRange){low, high};
    }
    return count;
}

typedef struct Spelling {
    Text *text;
    const CharDfa *dfa;
    TextSpelling spelling;
    uint32_t *starts;  /* [n_states] */
    uint32_t *done_in; /* [n_states] state + 1 whose steps to this one are spelled */
    CharRange *ranges; /* [n_ranges] */
    size_t work;
} Spelling;

static uint32_t add_steps(Spelling *sp, size_t state, uint32_t next)
{
    const CharDfa *dfa = sp->dfa;
    Automaton *a = sp->text->automaton;
    uint32_t at = dfa->accepts[state] ? next : AUTOMATON_FAIL;
    const int32_t *row = dfa->steps + state * dfa->n_classes;
    for (size_t c = 0; c < dfa->n_classes; c++) {
        if (row[c] < 0 || sp->done_in[row[c]] == state + 1)
            continue;
        sp->done_in[row[c]] = (uint32_t)state + 1;
        sp->work += dfa->n_ranges;
        if (sp->work > CHAR_DFA_WORK_MAX)
            return automaton_fail(a, ERROR_LIMIT, "a pattern needs too many steps");
        size_t count = ranges_to(dfa, state, row[c], sp->ranges);
        uint32_t step =
            text_add_ranges(sp->text, sp->spelling, sp->ranges, count, sp->starts[row[c]]);
        if (step != AUTOMATON_FAIL)
            at = at == AUTOMATON_FAIL ? step : automaton_add_split(a, step, at);
    }
    return at;
}

uint32_t char_dfa_add(Text *text, const CharDfa *dfa, TextSpelling spelling, uint32_t next)
{
    Automaton *a = text->automaton;
    size_t n = dfa->n_states;
    Spelling sp = {.text = text,
                   .dfa = dfa,
                   .spelling = spelling,
                   .starts = memory_allocate_array(n, sizeof(*sp.starts)),
                   .done_in = memory_allocate_zeroed(n, sizeof(*sp.done_in)),
                   .ranges = memory_allocate_array(dfa->n_ranges, sizeof(*sp.ranges))};
    uint32_t result = AUTOMATON_FAIL;
    if (!sp.starts || !sp.done_in || !sp.ranges) {
        automaton_fail(a, ERROR_MEMORY, "out of memory: automaton of characters");
        goto cleanup;
    }
    for (size_t i = 0; i < n; i++)
        sp.starts[i] = automaton_add_split(a, AUTOMATON_FAIL, AUTOMATON_FAIL);
    for (size_t i = 0; i < n && !a->failed; i++) {
        uint32_t at = add_steps(&sp, i, next);
        automaton_set_split(a, sp.starts[i], at, at);
    }
    result = sp.starts[0];
cleanup:
    memory_free(sp.starts);
    memory_free(sp.done_in);
    memory_free(sp.ranges);
    return result;
}
