/* machine: an automaton run over bytes, its states made as they are met.
 *
 * A MachineState is everything that can be going on at one point of the text: a set of items, each
 * an automaton state that reads a byte together with the stack of callers behind it. Stacks share
 * their tails and their tops: a stack node is the set of places to return to, each a (state, node)
 * pair, so that alternatives that read the same text cost one node and not one stack each (a
 * graph-structured stack, as in generalised LR parsing; Earley's algorithm does the same with
 * origins). Nodes and states are unique by content: two texts that leave the same possibilities
 * lead to the same state, whose steps are remembered. For a grammar without recursion that is a
 * deterministic automaton, built lazily; with recursion, states differ by depth.
 *
 * Memory is bounded: machine_collect keeps what the roots (runs, a walk) hold and drops the rest;
 * ids change then, so it is called only where all ids in use are roots. Threads: one at a time. */
#ifndef GRAMMAR_MACHINE_H
#define GRAMMAR_MACHINE_H

#include "automaton.h"

enum {
    MACHINE_BYTES_MAX = 8 << 20,       /* beyond it, states nobody holds are dropped */
    MACHINE_LIVE_BYTES_MAX = 16 << 20, /* beyond it after that, an error */
    MACHINE_WORK_MAX = 20 << 20,       /* items looked at between two machine_begin_work */
};

/* Numbers of states that are none; no enum, whose values are ints. */
#define MACHINE_DEAD UINT32_C(0)   /* nothing is accepted from here */
#define MACHINE_UNKNOWN UINT32_MAX /* a step not made yet */
#define MACHINE_FAILED (UINT32_MAX - 1)
#define MACHINE_NONE (UINT32_MAX - 2)

typedef struct MachineState {
    uint32_t first_item, n_items; /* of items */
    uint32_t *next;               /* [n_classes], NULL until a step is made */
    uint32_t plain_next; /* the state after any character of plain text (vocabulary.h), if it is one
                            and the same: else MACHINE_NONE; MACHINE_UNKNOWN before asked */
    uint32_t mask;       /* slot + 1 of the token mask, 0: none */
    uint32_t hash;
    bool accepts; /* the text may end here */
    bool is_held; /* scratch of machine_collect */
} MachineState;

typedef struct MachineNode {
    uint32_t first_frame, n_frames; /* of frames */
    uint32_t hash;
} MachineNode;

typedef struct MachineIndex { /* open addressing; 0: free, else id + 1 */
    uint32_t *slots;
    size_t n_slots, used;
} MachineIndex;

typedef struct MachineArray { /* of uint64_t: (automaton state << 32 | node) */
    uint64_t *ptr;
    size_t count, capacity;
} MachineArray;

typedef struct MachineRoot { /* an id that is followed through machine_collect */
    uint32_t state;
    struct MachineRoot *next, *previous;
} MachineRoot;

typedef struct MachinePending { /* a rule called at the current byte */
    MachineArray frames;
    bool is_queued;
} MachinePending;

typedef struct Machine {
    const Automaton *automaton;
    const bool *allowed; /* [256] or NULL */
    MachineState *states;
    size_t n_states, states_capacity;
    MachineNode *nodes;
    size_t n_nodes, nodes_capacity;
    MachineArray items, frames;
    MachineIndex state_index, node_index;
    size_t n_tables; /* states with `next` */
    size_t work;
    uint32_t start;    /* a root */
    MachineRoot roots; /* ring head */
    uint32_t *walk;    /* further roots: ids of a walk under way */
    size_t n_walk;
    void (*drop_masks)(void *context); /* optional: states lose their masks in machine_collect */
    void *drop_context;

    /* Scratch of one step */
    MachineArray work_list, found;
    uint64_t *visited;
    size_t n_visited_slots, n_visited;
    MachinePending *pending; /* [n_rules], by rank */
    uint32_t *queue;         /* heap of ranks */
    size_t n_queue;
    bool accepts;
} Machine;

/* Borrows the finished automaton and allowed. */
bool machine_init(Machine *m, const Automaton *automaton, const bool *allowed,
                  Error *err) WARN_UNUSED;
void machine_reset(Machine *m);

void machine_add_root(Machine *m, MachineRoot *root, uint32_t state);
void machine_remove_root(MachineRoot *root);

static inline void machine_begin_work(Machine *m)
{
    m->work = 0;
}

size_t machine_bytes(const Machine *m);
static inline bool machine_is_full(const Machine *m)
{
    return m->items.count * sizeof(uint64_t) + m->frames.count * sizeof(uint64_t) +
               m->n_states * (sizeof(MachineState) + 8) + m->n_nodes * (sizeof(MachineNode) + 8) +
               m->n_tables * m->automaton->n_classes * sizeof(uint32_t) >
           MACHINE_BYTES_MAX;
}
/* Drops all states but the roots'. ERROR_LIMIT when even those are too many. */
bool machine_collect(Machine *m, Error *err) WARN_UNUSED;

uint32_t machine_step_slowly(Machine *m, uint32_t state, uint8_t byte, Error *err);

/* The state after byte: MACHINE_DEAD when it cannot come, MACHINE_FAILED with err set when memory
 * or work ran out. */
static inline uint32_t machine_step(Machine *m, uint32_t state, uint8_t byte, Error *err)
{
    const MachineState *s = &m->states[state];
    if (s->next) {
        uint32_t next = s->next[m->automaton->classes[byte]];
        if (next != MACHINE_UNKNOWN)
            return next;
    }
    return machine_step_slowly(m, state, byte, err);
}

#endif
