/* One step: from the items that read the byte (the kernel) to all items that follow without
 * reading.
 *
 * Two phases. First the kernel's own items are followed through splits and returns; calls are only
 * noted, each with where it returns to. Then the called rules are entered in order of rank, callers
 * first, so that all calls of a rule at this byte are known when its one stack node is made. A rule
 * that was entered here and returns without reading needs no return: whoever calls a rule that can
 * be empty goes on behind the call at once. A call in last position passes its caller's returns on
 * instead of stacking another one, so lists by right recursion need no stack. */
#include "machine.h"

#include <stdlib.h>
#include <string.h>

/* ---- Arrays and indexes ---- */

static bool array_push(MachineArray *array, uint64_t value)
{
    if (!memory_grow_array((void **)&array->ptr, array->count, &array->capacity, sizeof(value)))
        return false;
    array->ptr[array->count++] = value;
    return true;
}

static uint64_t pair(uint32_t state, uint32_t node)
{
    return (uint64_t)state << 32 | node;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static void sort_u64(uint64_t *values, size_t count)
{
    if (count > 24) {
        qsort(values, count, sizeof(*values), compare_u64);
        return;
    }
    for (size_t i = 1; i < count; i++) {
        uint64_t value = values[i];
        size_t at = i;
        for (; at > 0 && values[at - 1] > value; at--)
            values[at] = values[at - 1];
        values[at] = value;
    }
}

static size_t sort_unique(uint64_t *values, size_t count)
{
    sort_u64(values, count);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 || values[kept - 1] != values[i])
            values[kept++] = values[i];
    }
    return kept;
}

static uint64_t mix(uint64_t h)
{
    h *= UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

static uint32_t hash_u64(const uint64_t *values, size_t count, uint64_t seed)
{
    uint64_t h = seed + count;
    for (size_t i = 0; i < count; i++)
        h = mix(h ^ values[i]);
    return (uint32_t)(h ^ h >> 32);
}

/* Puts id with its hash into the index; ids are unique there. */
static void index_place(MachineIndex *index, uint32_t hash, uint32_t id)
{
    size_t at = hash & (index->n_slots - 1);
    while (index->slots[at])
        at = (at + 1) & (index->n_slots - 1);
    index->slots[at] = id + 1;
    index->used++;
}

static bool index_reserve(MachineIndex *index, size_t n_slots)
{
    uint32_t *slots = memory_allocate_zeroed(n_slots, sizeof(*slots));
    if (!slots)
        return false;
    memory_free(index->slots);
    *index = (MachineIndex){.slots = slots, .n_slots = n_slots};
    return true;
}

static bool grow_node_index(Machine *m)
{
    if (m->node_index.used * 2 < m->node_index.n_slots)
        return true;
    if (!index_reserve(&m->node_index, m->node_index.n_slots * 2))
        return false;
    for (size_t i = 0; i < m->n_nodes; i++)
        index_place(&m->node_index, m->nodes[i].hash, (uint32_t)i);
    return true;
}

static bool grow_state_index(Machine *m)
{
    if (m->state_index.used * 2 < m->state_index.n_slots)
        return true;
    if (!index_reserve(&m->state_index, m->state_index.n_slots * 2))
        return false;
    for (size_t i = 0; i < m->n_states; i++)
        index_place(&m->state_index, m->states[i].hash, (uint32_t)i);
    return true;
}

/* ---- Unique nodes and states ---- */

static bool append_all(MachineArray *array, const uint64_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!array_push(array, values[i]))
            return false;
    }
    return true;
}

/* The node of these frames (sorted here); MACHINE_FAILED without memory. */
static uint32_t intern_node(Machine *m, uint64_t *frames, size_t count)
{
    count = sort_unique(frames, count);
    uint32_t hash = hash_u64(frames, count, 1);
    MachineIndex *index = &m->node_index;
    for (size_t at = hash & (index->n_slots - 1); index->slots[at];
         at = (at + 1) & (index->n_slots - 1)) {
        const MachineNode *node = &m->nodes[index->slots[at] - 1];
        if (node->hash == hash && node->n_frames == count &&
            memcmp(m->frames.ptr + node->first_frame, frames, count * sizeof(*frames)) == 0)
            return index->slots[at] - 1;
    }
    size_t first = m->frames.count;
    if (m->n_nodes >= MACHINE_NONE || first > UINT32_MAX - count || !grow_node_index(m) ||
        !memory_grow_array((void **)&m->nodes, m->n_nodes, &m->nodes_capacity, sizeof(*m->nodes)))
        return MACHINE_FAILED;
    if (!append_all(&m->frames, frames, count)) {
        m->frames.count = first;
        return MACHINE_FAILED;
    }
    m->nodes[m->n_nodes] =
        (MachineNode){.first_frame = (uint32_t)first, .n_frames = (uint32_t)count, .hash = hash};
    index_place(&m->node_index, hash, (uint32_t)m->n_nodes);
    return (uint32_t)m->n_nodes++;
}

/* The state of these items (sorted here); MACHINE_FAILED without memory. */
static uint32_t intern_state(Machine *m, uint64_t *items, size_t count, bool accepts)
{
    sort_u64(items, count);
    uint32_t hash = hash_u64(items, count, 2 + accepts);
    MachineIndex *index = &m->state_index;
    for (size_t at = hash & (index->n_slots - 1); index->slots[at];
         at = (at + 1) & (index->n_slots - 1)) {
        const MachineState *s = &m->states[index->slots[at] - 1];
        if (s->hash == hash && s->n_items == count && s->accepts == accepts &&
            (count == 0 ||
             memcmp(m->items.ptr + s->first_item, items, count * sizeof(*items)) == 0))
            return index->slots[at] - 1;
    }
    size_t first = m->items.count;
    if (m->n_states >= MACHINE_NONE || first > UINT32_MAX - count || !grow_state_index(m) ||
        !memory_grow_array((void **)&m->states, m->n_states, &m->states_capacity,
                           sizeof(*m->states)))
        return MACHINE_FAILED;
    if (!append_all(&m->items, items, count)) {
        m->items.count = first;
        return MACHINE_FAILED;
    }
    m->states[m->n_states] = (MachineState){.first_item = (uint32_t)first,
                                            .n_items = (uint32_t)count,
                                            .plain_next = MACHINE_UNKNOWN,
                                            .hash = hash,
                                            .accepts = accepts};
    index_place(&m->state_index, hash, (uint32_t)m->n_states);
    return (uint32_t)m->n_states++;
}

/* ---- Closure ---- */

static bool visited_reserve(Machine *m, size_t n_slots)
{
    uint64_t *slots = memory_allocate_array(n_slots, sizeof(*slots));
    if (!slots)
        return false;
    memset(slots, 0xff, n_slots * sizeof(*slots));
    uint64_t *old = m->visited;
    size_t n_old = m->n_visited_slots;
    m->visited = slots;
    m->n_visited_slots = n_slots;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i] == UINT64_MAX)
            continue;
        size_t at = (size_t)mix(old[i]) & (n_slots - 1);
        while (slots[at] != UINT64_MAX)
            at = (at + 1) & (n_slots - 1);
        slots[at] = old[i];
    }
    memory_free(old);
    return true;
}

/* Notes the item; *is_new tells whether it was not there yet. false without memory. */
static bool visit(Machine *m, uint64_t item, bool *is_new)
{
    if (m->n_visited * 2 >= m->n_visited_slots && !visited_reserve(m, m->n_visited_slots * 2))
        return false;
    size_t at = (size_t)mix(item) & (m->n_visited_slots - 1);
    while (m->visited[at] != UINT64_MAX) {
        if (m->visited[at] == item) {
            *is_new = false;
            return true;
        }
        at = (at + 1) & (m->n_visited_slots - 1);
    }
    m->visited[at] = item;
    m->n_visited++;
    *is_new = true;
    return true;
}

static void visited_clear(Machine *m)
{
    if (m->n_visited * 8 < m->n_visited_slots && m->n_visited_slots > 4096) {
        /* It grew for one step; sweeping it at every other would be dear. */
        memory_free(m->visited);
        m->visited = NULL;
        m->n_visited_slots = 0;
        m->n_visited = 0;
        return;
    }
    if (m->n_visited > 0)
        memset(m->visited, 0xff, m->n_visited_slots * sizeof(*m->visited));
    m->n_visited = 0;
}

static void queue_rank(Machine *m, uint32_t rank)
{
    size_t at = m->n_queue++;
    while (at > 0 && m->queue[(at - 1) / 2] > rank) {
        m->queue[at] = m->queue[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    m->queue[at] = rank;
}

static uint32_t unqueue_lowest(Machine *m)
{
    uint32_t lowest = m->queue[0], last = m->queue[--m->n_queue];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= m->n_queue)
            break;
        if (child + 1 < m->n_queue && m->queue[child + 1] < m->queue[child])
            child++;
        if (m->queue[child] >= last)
            break;
        m->queue[at] = m->queue[child];
        at = child;
    }
    m->queue[at] = last;
    return lowest;
}

/* Is there nothing left to do at `state` but return? */
static bool only_returns(const Automaton *a, uint32_t state)
{
    for (unsigned hops = 0; hops < 8 && automaton_is_jump(&a->states[state]); hops++)
        state = a->states[state].out;
    return state == AUTOMATON_RETURN;
}

static bool note_call(Machine *m, const AutomatonState *call, uint32_t node)
{
    const Automaton *a = m->automaton;
    uint32_t rank = a->rules[call->other].rank;
    MachinePending *pending = &m->pending[rank];
    if (!pending->is_queued) {
        pending->is_queued = true;
        queue_rank(m, rank);
    }
    if (node == 0 || !only_returns(a, call->out))
        return array_push(&pending->frames, pair(call->out, node));
    const MachineNode *caller = &m->nodes[node];
    m->work += caller->n_frames;
    return append_all(&pending->frames, m->frames.ptr + caller->first_frame, caller->n_frames);
}

static bool follow_returns(Machine *m, uint32_t node)
{
    if (node == 0) {
        m->accepts = true;
        return true;
    }
    const MachineNode *n = &m->nodes[node];
    m->work += n->n_frames;
    return append_all(&m->work_list, m->frames.ptr + n->first_frame, n->n_frames);
}

/* Follows all items of work_list. is_fresh: they started at this byte, so their returns are done.
 */
static bool follow_items(Machine *m, bool is_fresh)
{
    const Automaton *a = m->automaton;
    while (m->work_list.count > 0) {
        uint64_t item = m->work_list.ptr[--m->work_list.count];
        uint32_t node = (uint32_t)item;
        const AutomatonState *s = &a->states[item >> 32];
        if (!s->is_live)
            continue;
        bool is_new;
        if (!visit(m, item, &is_new))
            return false;
        if (!is_new)
            continue;
        m->work++;
        bool ok = true;
        switch ((AutomatonKind)s->kind) {
        case AUTOMATON_KIND_BYTES:
            ok = array_push(&m->found, item);
            break;
        case AUTOMATON_KIND_SPLIT:
            ok = array_push(&m->work_list, pair(s->out, node)) &&
                 (s->out == s->other || array_push(&m->work_list, pair(s->other, node)));
            break;
        case AUTOMATON_KIND_CALL:
            ok = note_call(m, s, node) &&
                 (!a->rules[s->other].is_nullable || array_push(&m->work_list, pair(s->out, node)));
            break;
        case AUTOMATON_KIND_RETURN:
            ok = is_fresh || follow_returns(m, node);
            break;
        case AUTOMATON_KIND_FAIL:
            break;
        }
        if (!ok)
            return false;
        if (m->work > MACHINE_WORK_MAX)
            return false;
    }
    return true;
}

static bool enter_called_rules(Machine *m)
{
    const Automaton *a = m->automaton;
    while (m->n_queue > 0) {
        uint32_t rank = unqueue_lowest(m);
        MachinePending *pending = &m->pending[rank];
        pending->is_queued = false;
        uint32_t node = intern_node(m, pending->frames.ptr, pending->frames.count);
        pending->frames.count = 0;
        if (node == MACHINE_FAILED ||
            !array_push(&m->work_list, pair(a->rules[a->rule_of_rank[rank]].start, node)) ||
            !follow_items(m, true))
            return false;
    }
    return true;
}

static void scratch_clear(Machine *m)
{
    m->work_list.count = m->found.count = 0;
    while (m->n_queue > 0) {
        MachinePending *pending = &m->pending[m->queue[--m->n_queue]];
        pending->is_queued = false;
        pending->frames.count = 0;
    }
    visited_clear(m);
}

static uint32_t fail_step(Machine *m, Error *err)
{
    if (m->work > MACHINE_WORK_MAX)
        error_set(err, ERROR_LIMIT, "the grammar is too ambiguous here");
    else
        error_no_memory(err, "grammar states");
    scratch_clear(m);
    return MACHINE_FAILED;
}

/* The state of m->work_list's items and all that follows. */
static uint32_t close_items(Machine *m, Error *err)
{
    m->accepts = false;
    if (!m->visited && !visited_reserve(m, 256))
        return fail_step(m, err);
    if (!follow_items(m, false) || !enter_called_rules(m))
        return fail_step(m, err);
    uint32_t state = m->found.count == 0 && !m->accepts
                         ? MACHINE_DEAD
                         : intern_state(m, m->found.ptr, m->found.count, m->accepts);
    if (state == MACHINE_FAILED)
        return fail_step(m, err);
    scratch_clear(m);
    return state;
}

/* Puts what follows the items that read the byte on the work list. false without memory. */
static bool read_byte(Machine *m, const MachineState *s, uint8_t byte)
{
    bool is_sole = false;
    for (size_t i = 0; i < s->n_items; i++) {
        uint64_t item = m->items.ptr[s->first_item + i];
        const AutomatonState *at = &m->automaton->states[item >> 32];
        if (byte < at->low || byte > at->high || (is_sole && !at->is_sole))
            continue;
        if (at->is_sole && !is_sole)
            m->work_list.count = 0;
        is_sole = at->is_sole;
        if (!array_push(&m->work_list, pair(at->out, (uint32_t)item)))
            return false;
    }
    return true;
}

uint32_t machine_step_slowly(Machine *m, uint32_t state, uint8_t byte, Error *err)
{
    if (state == MACHINE_DEAD)
        return MACHINE_DEAD;
    const Automaton *a = m->automaton;
    size_t n_classes = a->n_classes;
    if (!m->states[state].next) {
        uint32_t *next = memory_allocate_array(n_classes, sizeof(*next));
        if (!next)
            return fail_step(m, err);
        memset(next, 0xff, n_classes * sizeof(*next));
        m->states[state].next = next;
        m->n_tables++;
    }
    const MachineState *s = &m->states[state];
    m->work += s->n_items;
    uint32_t to = MACHINE_DEAD;
    if (!m->allowed || m->allowed[byte]) {
        if (!read_byte(m, s, byte))
            return fail_step(m, err);
        if (m->work_list.count > 0)
            to = close_items(m, err);
    }
    if (to != MACHINE_FAILED)
        m->states[state].next[a->classes[byte]] = to;
    return to;
}

/* ---- Lifetime ---- */

bool machine_init(Machine *m, const Automaton *automaton, const bool *allowed, Error *err)
{
    *m = (Machine){.automaton = automaton, .allowed = allowed};
    m->roots.next = m->roots.previous = &m->roots;
    m->pending = memory_allocate_zeroed(automaton->n_rules, sizeof(*m->pending));
    m->queue = memory_allocate_array(automaton->n_rules + 1, sizeof(*m->queue));
    if (!m->pending || !m->queue || !index_reserve(&m->state_index, 256) ||
        !index_reserve(&m->node_index, 256)) {
        error_no_memory(err, "grammar states");
        goto fail;
    }
    /* Node 0 is the bottom of every stack, state 0 the dead one. */
    uint64_t bottom = pair(AUTOMATON_RETURN, 0);
    if (intern_node(m, &bottom, 1) != 0 || intern_state(m, NULL, 0, false) != MACHINE_DEAD ||
        !array_push(&m->work_list, pair(automaton->rules[automaton->root].start, 0))) {
        error_no_memory(err, "grammar states");
        goto fail;
    }
    m->start = close_items(m, err);
    if (m->start == MACHINE_FAILED)
        goto fail;
    return true;
fail:
    machine_reset(m);
    return false;
}

void machine_reset(Machine *m)
{
    for (size_t i = 0; i < m->n_states; i++)
        memory_free(m->states[i].next);
    for (size_t i = 0; m->pending && i < m->automaton->n_rules; i++)
        memory_free(m->pending[i].frames.ptr);
    memory_free(m->states);
    memory_free(m->nodes);
    memory_free(m->items.ptr);
    memory_free(m->frames.ptr);
    memory_free(m->state_index.slots);
    memory_free(m->node_index.slots);
    memory_free(m->work_list.ptr);
    memory_free(m->found.ptr);
    memory_free(m->visited);
    memory_free(m->pending);
    memory_free(m->queue);
    *m = (Machine){0};
}

void machine_add_root(Machine *m, MachineRoot *root, uint32_t state)
{
    *root = (MachineRoot){.state = state, .next = m->roots.next, .previous = &m->roots};
    root->next->previous = root;
    m->roots.next = root;
}

void machine_remove_root(MachineRoot *root)
{
    if (!root->next)
        return;
    root->previous->next = root->next;
    root->next->previous = root->previous;
    root->next = root->previous = NULL;
}

size_t machine_bytes(const Machine *m)
{
    return (m->items.capacity + m->frames.capacity + m->work_list.capacity + m->found.capacity +
            m->n_visited_slots) *
               sizeof(uint64_t) +
           m->states_capacity * sizeof(*m->states) + m->nodes_capacity * sizeof(*m->nodes) +
           (m->state_index.n_slots + m->node_index.n_slots) * sizeof(uint32_t) +
           m->n_tables * m->automaton->n_classes * sizeof(uint32_t) +
           m->automaton->n_rules * (sizeof(*m->pending) + sizeof(uint32_t));
}

/* ---- Collection ---- */

/* Nodes were made after the nodes their frames name, so one pass downwards marks all that is held
 * and one upwards moves it. Old ids map through `moved`. */
static void compact_nodes(Machine *m, uint32_t *moved)
{
    moved[0] = 0;
    for (size_t i = 0; i < m->n_states; i++) {
        const MachineState *s = &m->states[i];
        for (size_t k = 0; s->is_held && k < s->n_items; k++)
            moved[(uint32_t)m->items.ptr[s->first_item + k]] = 0;
    }
    for (size_t i = m->n_nodes; i-- > 1;) {
        const MachineNode *node = &m->nodes[i];
        for (size_t k = 0; moved[i] != MACHINE_NONE && k < node->n_frames; k++)
            moved[(uint32_t)m->frames.ptr[node->first_frame + k]] = 0;
    }
    size_t n_kept = 0, n_frames = 0;
    for (size_t i = 0; i < m->n_nodes; i++) {
        if (moved[i] == MACHINE_NONE)
            continue;
        MachineNode node = m->nodes[i];
        uint64_t *to = m->frames.ptr + n_frames;
        for (size_t k = 0; k < node.n_frames; k++) {
            uint64_t frame = m->frames.ptr[node.first_frame + k];
            to[k] = (frame & ~(uint64_t)UINT32_MAX) | (i == 0 ? 0 : moved[(uint32_t)frame]);
        }
        node.first_frame = (uint32_t)n_frames;
        n_frames += node.n_frames;
        /* Order of frames of one return state may change with the ids; keep them sorted. */
        sort_u64(to, node.n_frames);
        node.hash = hash_u64(to, node.n_frames, 1);
        moved[i] = (uint32_t)n_kept;
        m->nodes[n_kept++] = node;
    }
    m->n_nodes = n_kept;
    m->frames.count = n_frames;
}

static void compact_states(Machine *m, const uint32_t *moved_nodes, uint32_t *moved)
{
    size_t n_kept = 0, n_items = 0;
    for (size_t i = 0; i < m->n_states; i++) {
        MachineState s = m->states[i];
        memory_free(s.next);
        s.next = NULL;
        s.mask = 0;
        if (!s.is_held)
            continue;
        uint64_t *to = m->items.ptr + n_items;
        for (size_t k = 0; k < s.n_items; k++) {
            uint64_t item = m->items.ptr[s.first_item + k];
            to[k] = (item & ~(uint64_t)UINT32_MAX) | moved_nodes[(uint32_t)item];
        }
        sort_u64(to, s.n_items);
        s.hash = hash_u64(to, s.n_items, 2 + s.accepts);
        s.first_item = (uint32_t)n_items;
        s.plain_next = MACHINE_UNKNOWN;
        s.is_held = false;
        n_items += s.n_items;
        moved[i] = (uint32_t)n_kept;
        m->states[n_kept++] = s;
    }
    m->n_states = n_kept;
    m->items.count = n_items;
    m->n_tables = 0;
}

static void hold_roots(Machine *m)
{
    m->states[MACHINE_DEAD].is_held = true;
    m->states[m->start].is_held = true;
    for (MachineRoot *root = m->roots.next; root != &m->roots; root = root->next)
        m->states[root->state].is_held = true;
    for (size_t i = 0; i < m->n_walk; i++)
        m->states[m->walk[i]].is_held = true;
}

static void move_roots(Machine *m, const uint32_t *moved)
{
    m->start = moved[m->start];
    for (MachineRoot *root = m->roots.next; root != &m->roots; root = root->next)
        root->state = moved[root->state];
    for (size_t i = 0; i < m->n_walk; i++)
        m->walk[i] = moved[m->walk[i]];
}

static void index_again(Machine *m)
{
    MachineIndex *states = &m->state_index, *nodes = &m->node_index;
    memset(states->slots, 0, states->n_slots * sizeof(*states->slots));
    memset(nodes->slots, 0, nodes->n_slots * sizeof(*nodes->slots));
    states->used = nodes->used = 0;
    for (size_t i = 0; i < m->n_nodes; i++)
        index_place(nodes, m->nodes[i].hash, (uint32_t)i);
    for (size_t i = 0; i < m->n_states; i++)
        index_place(states, m->states[i].hash, (uint32_t)i);
}

bool machine_collect(Machine *m, Error *err)
{
    uint32_t *moved_nodes = memory_allocate_array(m->n_nodes, sizeof(*moved_nodes));
    uint32_t *moved = memory_allocate_array(m->n_states, sizeof(*moved));
    if (!moved_nodes || !moved) {
        memory_free(moved_nodes);
        memory_free(moved);
        return error_no_memory(err, "grammar states");
    }
    for (size_t i = 0; i < m->n_nodes; i++)
        moved_nodes[i] = MACHINE_NONE;
    if (m->drop_masks)
        m->drop_masks(m->drop_context);
    hold_roots(m);
    compact_nodes(m, moved_nodes);
    compact_states(m, moved_nodes, moved);
    move_roots(m, moved);
    index_again(m);
    memory_free(moved_nodes);
    memory_free(moved);
    if ((m->items.count + m->frames.count) * sizeof(uint64_t) > MACHINE_LIVE_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "the grammar's open alternatives need too much memory");
    return true;
}
