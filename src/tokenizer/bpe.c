/* BPE: among all adjacent pairs in the merge table take the lowest rank, the leftmost on ties, join
 * it, until none is left. Three things make it quick without changing the outcome:
 *
 * 1. A word that is a token is looked up whole. For nearly every token, merging its own text gives
 * just that token; whether it does is found out on first use and remembered (`verdicts`).
 * 2. A word is cut where nothing can ever be merged across. Each merge (A, B) joins the last symbol
 * of A with the first symbol of B; a boundary between two symbols that no merge joins so stays a
 * boundary (by induction over the merges). The pairs are kept in a filter of hashed bits: a false
 * positive only means a cut not taken. SPM-style models, whose word is the whole text, live from
 * this.
 * 3. What remains is a unit of a few symbols: a scan for the minimum over an array of ranks. Long
 * units take a linked list and a heap, O(n log n), where stale heap entries are known by their
 * rank.
 *
 * Symbols are the characters of the word (byte-level: its bytes). A character that the vocabulary
 * lacks becomes its <0xHH> tokens, or unk, or nothing, as the model says; the order in which
 * pending unks and fallback bytes come out is that of the reference. */
#include "bpe_pairs.h"

#include "unicode.h"

enum { SMALL_UNIT_MAX = 32 };

enum { VERDICT_UNKNOWN, VERDICT_WHOLE, VERDICT_PARTS };

void bpe_scratch_reset(BpeScratch *scratch)
{
    memory_free(scratch->symbols);
    memory_free(scratch->links);
    memory_free(scratch->heap);
    *scratch = (BpeScratch){0};
}

/* ---- Merging ---- */

static inline bool append_id(TokenList *out, int32_t id, Error *err)
{
    if (out->count == out->capacity)
        return token_list_append(out, id, err);
    out->ids[out->count++] = id;
    return true;
}

/* Merges in place; returns how many symbols are left. */
static size_t merge_small(const Bpe *bpe, int32_t *symbols, size_t count)
{
    BpePairResult pairs[SMALL_UNIT_MAX];
    for (size_t i = 0; i + 1 < count; i++)
        pairs[i] = find_pair(bpe, symbols[i], symbols[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            if (pairs[i].rank < pairs[best].rank)
                best = i;
        }
        if (pairs[best].rank == BPE_NO_RANK)
            break;
        symbols[best] = pairs[best].result;
        count--;
        for (size_t i = best + 1; i < count; i++) {
            symbols[i] = symbols[i + 1];
            pairs[i - 1] = pairs[i];
        }
        if (best > 0)
            pairs[best - 1] = find_pair(bpe, symbols[best - 1], symbols[best]);
        if (best + 1 < count)
            pairs[best] = find_pair(bpe, symbols[best], symbols[best + 1]);
    }
    return count;
}

/* A heap of rank << 32 | position, smallest first. Four children a node: half the depth of two, and
 * the children of a node share a cache line more often than not. */
static void heap_sink(uint64_t *heap, size_t count, size_t at)
{
    uint64_t item = heap[at];
    for (size_t child; (child = 4 * at + 1) < count; at = child) {
        size_t end = child + 4 < count ? child + 4 : count;
        for (size_t other = child + 1; other < end; other++) {
            if (heap[other] < heap[child])
                child = other;
        }
        if (item <= heap[child])
            break;
        heap[at] = heap[child];
    }
    heap[at] = item;
}

static void heap_push(BpeScratch *scratch, uint64_t item)
{
    size_t at = scratch->heap_count++;
    while (at > 0 && scratch->heap[(at - 1) / 4] > item) {
        scratch->heap[at] = scratch->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    scratch->heap[at] = item;
}

static uint64_t heap_pop(BpeScratch *scratch)
{
    uint64_t top = scratch->heap[0];
    scratch->heap[0] = scratch->heap[--scratch->heap_count];
    if (scratch->heap_count > 1)
        heap_sink(scratch->heap, scratch->heap_count, 0);
    return top;
}

/* Each merge takes one entry from the heap and adds at most two: 2n entries are enough. */
static bool reserve_long(BpeScratch *scratch, size_t count, Error *err)
{
    size_t links, heap;
    if (count > UINT32_MAX - 1 || !size_multiply(count, 4, &links) ||
        !size_multiply(count, 2, &heap))
        return error_set(err, ERROR_LIMIT, "a word of %zu symbols is too long", count);
    if (scratch->link_capacity < links) {
        uint32_t *grown = memory_resize_array(scratch->links, links, sizeof(*grown));
        if (!grown)
            return error_no_memory(err, "encoding");
        scratch->links = grown;
        scratch->link_capacity = links;
    }
    if (scratch->heap_capacity < heap) {
        uint64_t *grown = memory_resize_array(scratch->heap, heap, sizeof(*grown));
        if (!grown)
            return error_no_memory(err, "encoding");
        scratch->heap = grown;
        scratch->heap_capacity = heap;
    }
    return true;
}

/* Working arrays over the scratch's links, by position of the symbol. */
typedef struct LongUnit {
    int32_t *symbols;
    uint32_t *next, *previous; /* positions; count is the end, UINT32_MAX the start */
    uint32_t *ranks;           /* of the pair (position, next); BPE_NO_RANK: none, or merged away */
    uint32_t *results;
    uint32_t count;
} LongUnit;

static void rate_pair(const Bpe *bpe, BpeScratch *scratch, LongUnit *unit, uint32_t at)
{
    uint32_t next = unit->next[at];
    BpePairResult pair = {BPE_NO_RANK, -1};
    if (next < unit->count)
        pair = find_pair(bpe, unit->symbols[at], unit->symbols[next]);
    unit->ranks[at] = pair.rank;
    unit->results[at] = (uint32_t)pair.result;
    if (pair.rank != BPE_NO_RANK)
        heap_push(scratch, (uint64_t)pair.rank << 32 | at);
}

static bool merge_long(const Bpe *bpe, BpeScratch *scratch, int32_t *symbols, size_t *count_io,
                       Error *err)
{
    size_t n = *count_io;
    if (!reserve_long(scratch, n, err))
        return false;
    uint32_t *links = scratch->links;
    LongUnit unit = {symbols, links, links + n, links + 2 * n, links + 3 * n, (uint32_t)n};
    scratch->heap_count = 0;
    for (uint32_t i = 0; i < unit.count; i++) {
        unit.next[i] = i + 1;
        unit.previous[i] = i - 1; /* wraps to UINT32_MAX at the start */
        rate_pair(bpe, scratch, &unit, i);
    }
    while (scratch->heap_count > 0) {
        uint64_t top = heap_pop(scratch);
        uint32_t at = (uint32_t)top;
        if (unit.ranks[at] != (uint32_t)(top >> 32))
            continue; /* the pair changed since this entry was made */
        uint32_t right = unit.next[at];
        symbols[at] = (int32_t)unit.results[at];
        unit.ranks[right] = BPE_NO_RANK;
        unit.next[at] = unit.next[right];
        if (unit.next[at] < unit.count)
            unit.previous[unit.next[at]] = at;
        rate_pair(bpe, scratch, &unit, at);
        if (unit.previous[at] != UINT32_MAX)
            rate_pair(bpe, scratch, &unit, unit.previous[at]);
    }
    size_t left = 0;
    for (uint32_t at = 0; at < unit.count; at = unit.next[at])
        symbols[left++] = symbols[at];
    *count_io = left;
    return true;
}

/* ---- Words ---- */

/* Id of the model's token with this text (byte-level: these bytes), or -1. */
static int32_t find_text(const Bpe *bpe, Slice text)
{
    if (text.len > bpe->vocabulary->model_bytes_max)
        return -1;
    if (!bpe->byte_level)
        return vocabulary_find(bpe->vocabulary, text, TOKEN_MODEL);
    char spelt[2 * VOCABULARY_TOKEN_BYTES_MAX];
    size_t len = 0;
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.ptr[i];
        spelt[len] = bpe->spelling[byte][0];
        spelt[len + 1] = bpe->spelling[byte][1];
        len += 1 + (spelt[len + 1] != '\0');
    }
    return vocabulary_find(bpe->vocabulary, (Slice){spelt, len}, TOKEN_MODEL);
}

static uint8_t get_verdict(const Bpe *bpe, int32_t id)
{
    return atomic_load_explicit(&bpe->verdicts[id], memory_order_relaxed);
}

static void set_verdict(const Bpe *bpe, int32_t id, const TokenList *out, size_t before)
{
    bool whole = out->count == before + 1 && out->ids[before] == id;
    atomic_store_explicit(&bpe->verdicts[id], (uint8_t)(whole ? VERDICT_WHOLE : VERDICT_PARTS),
                          memory_order_relaxed);
}

/* A word on its way through: the symbols of the current unit lie in the scratch. */
typedef struct WordWalk {
    const Bpe *bpe;
    BpeScratch *scratch;
    Slice word;
    TokenList *out;
    Error *err;
    size_t unit_start; /* in word */
    bool pure;         /* the unit's symbols are exactly its characters */
    bool has_pending_unk;
} WordWalk;

static bool merge_unit(WordWalk *walk)
{
    BpeScratch *scratch = walk->scratch;
    size_t count = scratch->symbol_count;
    scratch->symbol_count = 0;
    if (count > SMALL_UNIT_MAX) {
        if (!merge_long(walk->bpe, scratch, scratch->symbols, &count, walk->err))
            return false;
    } else {
        count = merge_small(walk->bpe, scratch->symbols, count);
    }
    for (size_t i = 0; i < count; i++) {
        if (!append_id(walk->out, scratch->symbols[i], walk->err))
            return false;
    }
    return true;
}

/* Ends the unit at byte `end` of the word and begins the next one there. */
static bool flush_unit(WordWalk *walk, size_t end)
{
    BpeScratch *scratch = walk->scratch;
    Slice text = {walk->word.ptr + walk->unit_start, end - walk->unit_start};
    bool look_up = walk->pure && scratch->symbol_count > 1 && text.len < walk->word.len;
    walk->unit_start = end;
    walk->pure = true;
    if (scratch->symbol_count == 1) {
        scratch->symbol_count = 0;
        return append_id(walk->out, scratch->symbols[0], walk->err);
    }
    int32_t id = look_up ? find_text(walk->bpe, text) : -1;
    if (id >= 0 && get_verdict(walk->bpe, id) == VERDICT_WHOLE) {
        scratch->symbol_count = 0;
        return append_id(walk->out, id, walk->err);
    }
    size_t before = walk->out->count;
    if (!merge_unit(walk))
        return false;
    if (id >= 0)
        set_verdict(walk->bpe, id, walk->out, before);
    return true;
}

/* Adds a symbol whose text begins at byte `start`. */
static inline bool add_symbol(WordWalk *walk, int32_t id, size_t start)
{
    BpeScratch *scratch = walk->scratch;
    if (scratch->symbol_count > 0 && !walk->bpe->never_cut &&
        !may_join(walk->bpe, scratch->symbols[scratch->symbol_count - 1], id) &&
        !flush_unit(walk, start))
        return false;
    if (scratch->symbol_count == scratch->symbol_capacity &&
        !memory_grow_array((void **)&scratch->symbols, scratch->symbol_count,
                           &scratch->symbol_capacity, sizeof(int32_t)))
        return error_no_memory(walk->err, "encoding");
    scratch->symbols[scratch->symbol_count++] = id;
    return true;
}

/* The tokens of the bytes of a character that the vocabulary lacks; *done false when one is
 * missing. */
static bool add_fallback(WordWalk *walk, Slice character, size_t start, bool *done)
{
    *done = false;
    for (size_t i = 0; i < character.len; i++) {
        if (walk->bpe->fallback_ids[(unsigned char)character.ptr[i]] < 0)
            return true;
    }
    *done = true;
    for (size_t i = 0; i < character.len; i++) {
        if (!add_symbol(walk, walk->bpe->fallback_ids[(unsigned char)character.ptr[i]], start))
            return false;
        walk->pure = false;
    }
    return true;
}

static bool add_pending_unk(WordWalk *walk, size_t start)
{
    if (!add_symbol(walk, walk->bpe->unk_id, start))
        return false;
    walk->pure = false;
    return true;
}

/* A character without a token. An unk stays pending until a known character or the end of the word:
 * fallback bytes in between come out before it, as in the reference. */
static bool add_unknown(WordWalk *walk, Slice character, size_t start)
{
    const Bpe *bpe = walk->bpe;
    bool done = false;
    if (bpe->byte_fallback && !add_fallback(walk, character, start, &done))
        return false;
    if (done)
        return true;
    walk->pure = false;
    if (!bpe->has_unk)
        return true;
    if (bpe->unk_id < 0)
        return error_set(
            walk->err, ERROR_INVALID,
            "the text has a character without a token, and unk_token is not in the vocabulary");
    if (walk->has_pending_unk && !bpe->fuse_unk && !add_pending_unk(walk, start))
        return false;
    walk->has_pending_unk = true;
    return true;
}

static bool add_known(WordWalk *walk, int32_t id, size_t start)
{
    if (walk->has_pending_unk) {
        walk->has_pending_unk = false;
        if (!add_pending_unk(walk, start))
            return false;
    }
    return add_symbol(walk, id, start);
}

static bool walk_bytes(WordWalk *walk)
{
    const Bpe *bpe = walk->bpe;
    for (size_t i = 0; i < walk->word.len; i++) {
        unsigned char byte = (unsigned char)walk->word.ptr[i];
        int32_t id = bpe->byte_ids[byte];
        Slice spelt = {bpe->spelling[byte], 1 + (bpe->spelling[byte][1] != '\0')};
        if (!(id >= 0 ? add_known(walk, id, i) : add_unknown(walk, spelt, i)))
            return false;
    }
    return true;
}

static bool walk_characters(WordWalk *walk)
{
    const Bpe *bpe = walk->bpe;
    for (size_t at = 0, len; at < walk->word.len; at += len) {
        uint32_t c;
        len = unicode_decode(walk->word.ptr + at, &c);
        Slice character = {walk->word.ptr + at, len};
        int32_t id = c < 0x10000 ? bpe->characters[c]
                                 : vocabulary_find(bpe->vocabulary, character, TOKEN_MODEL);
        if (!(id >= 0 ? add_known(walk, id, at) : add_unknown(walk, character, at)))
            return false;
    }
    return true;
}

bool bpe_encode_word(const Bpe *bpe, BpeScratch *scratch, Slice word, TokenList *out, Error *err)
{
    int32_t id = find_text(bpe, word);
    if (id >= 0 && (bpe->ignore_merges || get_verdict(bpe, id) == VERDICT_WHOLE))
        return append_id(out, id, err);
    WordWalk walk = {
        .bpe = bpe, .scratch = scratch, .word = word, .out = out, .err = err, .pure = true};
    size_t before = out->count;
    scratch->symbol_count = 0;
    if (!(bpe->byte_level ? walk_bytes(&walk) : walk_characters(&walk)))
        return false;
    if (walk.has_pending_unk && !add_pending_unk(&walk, word.len))
        return false;
    if (scratch->symbol_count > 0 && !flush_unit(&walk, word.len))
        return false;
    if (id >= 0)
        set_verdict(bpe, id, out, before);
    return true;
}
