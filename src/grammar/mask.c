/* A mask is built from two parts. Plain tokens: if any plain character leads from the state to one
 * and the same state, and from there again, for d characters, then the plain tokens of up to d
 * characters are allowed, which is a set that stands ready; where plain characters part ways, the
 * plain trie is walked. Other tokens: their trie is walked. A walk steps the machine along the
 * trie, skips the subtree behind a dead state, and takes the whole subtree behind a state that
 * plain characters leave as it is. */
#include "mask.h"

#include <string.h>

bool masks_init(Masks *masks, const GrammarVocabulary *vocabulary, Error *err)
{
    *masks = (Masks){.vocabulary = vocabulary};
    masks->walk = memory_allocate_zeroed(vocabulary->token_bytes_max + 1, sizeof(*masks->walk));
    return masks->walk || error_no_memory(err, "token masks");
}

void masks_reset(Masks *masks)
{
    for (size_t i = 0; i < MASKS_MAX; i++)
        memory_free(masks->slots[i].words);
    memory_free(masks->walk);
    *masks = (Masks){0};
}

void masks_drop(void *context)
{
    Masks *masks = context;
    for (size_t i = 0; i < MASKS_MAX; i++)
        masks->slots[i].is_used = false;
}

size_t masks_bytes(const Masks *masks)
{
    size_t count = 0;
    for (size_t i = 0; i < MASKS_MAX; i++)
        count += masks->slots[i].words != NULL;
    return count * masks->vocabulary->n_words * sizeof(uint64_t);
}

/* ---- Plain characters ---- */

/* Well-formed sequences of two to four bytes by their first two; the others are 80..BF. */
static const struct Sequence {
    uint8_t low, high, second_low, second_high, length;
} SEQUENCES[] = {{0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                 {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
                 {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
                 {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};

/* What all bytes low..high lead to: one state, or MACHINE_NONE (they part), or MACHINE_FAILED. */
static uint32_t step_range(Machine *m, uint32_t state, uint8_t low, uint8_t high, Error *err)
{
    uint32_t target = MACHINE_NONE;
    for (unsigned b = low; b <= high; b++) {
        if (b > low && m->automaton->classes[b] == m->automaton->classes[b - 1])
            continue;
        uint32_t to = machine_step(m, state, (uint8_t)b, err);
        if (to == MACHINE_FAILED)
            return to;
        if (b > low && to != target)
            return MACHINE_NONE;
        target = to;
    }
    return target;
}

static uint32_t step_sequence(Machine *m, uint32_t state, const struct Sequence *s, Error *err)
{
    uint32_t at = step_range(m, state, s->low, s->high, err);
    for (unsigned i = 1; i < s->length && at < MACHINE_NONE; i++)
        at = step_range(m, at, i == 1 ? s->second_low : 0x80, i == 1 ? s->second_high : 0xbf, err);
    return at;
}

/* The state behind any plain character: one and the same (MACHINE_DEAD too), or MACHINE_NONE. */
static uint32_t find_plain_next(Machine *m, uint32_t state, Error *err)
{
    static const uint8_t ascii[][2] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x7e}};
    uint32_t target = MACHINE_NONE;
    for (size_t i = 0; i < ARRAY_COUNT(ascii); i++) {
        uint32_t to = step_range(m, state, ascii[i][0], ascii[i][1], err);
        if (to >= MACHINE_NONE || (i > 0 && to != target))
            return to == MACHINE_FAILED ? to : MACHINE_NONE;
        target = to;
    }
    for (size_t i = 0; i < ARRAY_COUNT(SEQUENCES); i++) {
        uint32_t to = step_sequence(m, state, &SEQUENCES[i], err);
        if (to != target)
            return to == MACHINE_FAILED ? to : MACHINE_NONE;
    }
    return target;
}

static uint32_t plain_next(Machine *m, uint32_t state, Error *err)
{
    if (m->states[state].plain_next == MACHINE_UNKNOWN) {
        uint32_t next = find_plain_next(m, state, err);
        if (next == MACHINE_FAILED)
            return next;
        m->states[state].plain_next = next;
    }
    return m->states[state].plain_next;
}

typedef enum PlainAnswer { PLAIN_FAILED, PLAIN_COUNTED, PLAIN_PARTS } PlainAnswer;

/* PLAIN_COUNTED: plain tokens are allowed up to *depth characters (SIZE_MAX: all) and no others.
 * PLAIN_PARTS: characters part ways; walk. */
static PlainAnswer count_plain(const Masks *masks, Machine *m, uint32_t state, size_t *depth,
                               Error *err)
{
    uint32_t at = state;
    for (size_t d = 0; d < masks->vocabulary->plain_characters_max; d++) {
        uint32_t next = plain_next(m, at, err);
        if (next == MACHINE_FAILED)
            return PLAIN_FAILED;
        if (next == MACHINE_NONE)
            return PLAIN_PARTS;
        *depth = d;
        if (next == MACHINE_DEAD)
            return PLAIN_COUNTED;
        if (next == at)
            break;
        at = next;
    }
    *depth = SIZE_MAX;
    return PLAIN_COUNTED;
}

/* ---- Building ---- */

static void set_bit(uint64_t *words, int32_t id)
{
    words[(size_t)id / 64] |= (uint64_t)1 << id % 64;
}

static void start_from_plain(const GrammarVocabulary *v, size_t depth, uint64_t *words)
{
    size_t level = depth == SIZE_MAX                  ? VOCABULARY_PLAIN_LEVELS + 1
                   : depth <= VOCABULARY_PLAIN_LEVELS ? depth
                                                      : VOCABULARY_PLAIN_LEVELS;
    memcpy(words, vocabulary_plain_set(v, level), v->n_words * sizeof(*words));
    if (depth == SIZE_MAX || depth <= VOCABULARY_PLAIN_LEVELS)
        return;
    for (size_t i = 0; i < v->n_longs; i++) {
        if (v->longs[i].n_characters <= depth)
            set_bit(words, v->longs[i].id);
    }
}

enum { SUBTREE_NODES_MIN = 32 }; /* from which on it pays to ask about all of it */

/* Does the state take any plain character and stay as it is? All below it is allowed then. */
static bool stays_for_plain(Machine *m, uint32_t state, Error *err, bool *ok)
{
    uint32_t next = plain_next(m, state, err);
    *ok = next != MACHINE_FAILED;
    return next == state;
}

static void set_subtree(const Trie *trie, const TrieNode *node, uint64_t *words)
{
    size_t end = node->skip < trie->count ? trie->nodes[node->skip].first : trie->n_tokens;
    for (size_t i = node->first; i < end; i++)
        set_bit(words, trie->tokens[i]);
}

/* Walks the trie from masks->walk[0], which follows its state through collections. */
static bool walk_trie(Masks *masks, Machine *m, const Trie *trie, bool is_plain, uint64_t *words,
                      Error *err)
{
    const uint8_t *classes = m->automaton->classes;
    uint32_t *walk = masks->walk;
    m->walk = walk;
    for (size_t i = 0; i < trie->count;) {
        const TrieNode *node = &trie->nodes[i];
        const MachineState *from = &m->states[walk[node->depth - 1]];
        uint32_t to = from->next ? from->next[classes[node->byte]] : MACHINE_UNKNOWN;
        if (to == MACHINE_UNKNOWN) {
            m->n_walk = node->depth;
            if (machine_is_full(m) && !machine_collect(m, err))
                return false;
            to = machine_step_slowly(m, walk[node->depth - 1], node->byte, err);
            if (to == MACHINE_FAILED)
                return false;
        }
        if (to == MACHINE_DEAD) {
            i = node->skip;
            continue;
        }
        if (is_plain && node->skip - i >= SUBTREE_NODES_MIN) {
            bool ok;
            if (stays_for_plain(m, to, err, &ok)) {
                set_subtree(trie, node, words);
                i = node->skip;
                continue;
            }
            if (!ok)
                return false;
        }
        walk[node->depth] = to;
        if (node->token >= 0)
            set_bit(words, node->token);
        i++;
    }
    return true;
}

static bool build(Masks *masks, Machine *m, uint32_t state, uint64_t *words, Error *err)
{
    const GrammarVocabulary *v = masks->vocabulary;
    size_t depth;
    PlainAnswer plain = count_plain(masks, m, state, &depth, err);
    if (plain == PLAIN_FAILED)
        return false;
    masks->walk[0] = state;
    if (plain == PLAIN_COUNTED)
        start_from_plain(v, depth, words);
    else
        memset(words, 0, v->n_words * sizeof(*words));
    bool ok = (plain == PLAIN_COUNTED || walk_trie(masks, m, &v->plain, true, words, err)) &&
              walk_trie(masks, m, &v->other, false, words, err);
    m->n_walk = 0;
    for (size_t i = 0; ok && i < v->n_same; i++) {
        size_t first = (size_t)v->same[i].first;
        if (words[first / 64] >> first % 64 & 1)
            set_bit(words, v->same[i].other);
    }
    return ok;
}

/* A slot to fill: a free one, or the least recently used. */
static size_t take_slot(Masks *masks, Machine *m)
{
    size_t oldest = 0;
    for (size_t i = 0; i < MASKS_MAX; i++) {
        if (!masks->slots[i].is_used)
            return i;
        if (masks->slots[i].used_at < masks->slots[oldest].used_at)
            oldest = i;
    }
    m->states[masks->slots[oldest].state].mask = 0;
    masks->slots[oldest].is_used = false;
    return oldest;
}

bool masks_get(Masks *masks, Machine *m, const MachineRoot *root, const uint64_t **words,
               Error *err)
{
    if (m->states[root->state].mask == 0) {
        MaskSlot *slot = &masks->slots[take_slot(masks, m)];
        if (!slot->words)
            slot->words = memory_allocate_array(masks->vocabulary->n_words, sizeof(*slot->words));
        if (!slot->words)
            return error_no_memory(err, "token masks");
        if (!build(masks, m, root->state, slot->words, err))
            return false;
        /* A collection during the walk moves the root, and frees all slots: this one is taken now.
         */
        slot->state = root->state;
        slot->is_used = true;
        m->states[root->state].mask = (uint32_t)(slot - masks->slots) + 1;
    }
    MaskSlot *slot = &masks->slots[m->states[root->state].mask - 1];
    slot->used_at = ++masks->clock;
    *words = slot->words;
    return true;
}
