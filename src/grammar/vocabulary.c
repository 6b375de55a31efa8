#include "vocabulary.h"

#include <stdlib.h>
#include <string.h>

typedef struct SortedToken {
    Slice bytes;
    int32_t id;
} SortedToken;

static int compare_tokens(const void *a, const void *b)
{
    const SortedToken *x = a, *y = b;
    int order = slice_compare(x->bytes, y->bytes);
    return order ? order : (x->id > y->id) - (x->id < y->id);
}

/* Characters of plain text, or 0 if it is none. */
static size_t count_plain(Slice s)
{
    size_t count = 0;
    for (size_t i = 0; i < s.len; count++) {
        uint8_t b = (uint8_t)s.ptr[i];
        uint32_t c;
        if (b < 0x20 || b == '"' || b == '\\' || b == 0x7f)
            return 0;
        size_t len = b < 0x80 ? 1 : utf8_decode(s.ptr + i, s.len - i, &c);
        if (len == 0)
            return 0;
        i += len;
    }
    return count;
}

static bool push_node(Trie *trie, TrieNode node)
{
    if (!memory_grow_array((void **)&trie->nodes, trie->count, &trie->capacity,
                           sizeof(*trie->nodes)))
        return false;
    trie->nodes[trie->count++] = node;
    return true;
}

/* Sets `skip` of the open nodes deeper than depth. */
static void close_nodes(Trie *trie, const uint32_t *path, size_t from_depth, size_t depth)
{
    for (size_t d = from_depth; d > depth; d--)
        trie->nodes[path[d]].skip = (uint32_t)trie->count;
}

/* Tokens in order of their bytes. path [token_bytes_max + 1]: the node at each depth. */
static bool build_trie(GrammarVocabulary *v, Trie *trie, const SortedToken *sorted, size_t count,
                       uint32_t *path)
{
    Slice last = SLICE_EMPTY;
    for (size_t i = 0; i < count; i++) {
        Slice s = sorted[i].bytes;
        size_t shared = 0;
        while (shared < s.len && shared < last.len && s.ptr[shared] == last.ptr[shared])
            shared++;
        if (shared == s.len && s.len == last.len) {
            if (!memory_grow_array((void **)&v->same, v->n_same, &v->same_capacity,
                                   sizeof(*v->same)))
                return false;
            v->same[v->n_same++] = (SameToken){trie->nodes[path[s.len]].token, sorted[i].id};
            continue;
        }
        close_nodes(trie, path, last.len, shared);
        for (size_t d = shared + 1; d <= s.len; d++) {
            path[d] = (uint32_t)trie->count;
            if (!push_node(trie, (TrieNode){.first = (uint32_t)trie->n_tokens,
                                            .token = VOCABULARY_NO_TOKEN,
                                            .depth = (uint16_t)d,
                                            .byte = (uint8_t)s.ptr[d - 1]}))
                return false;
        }
        trie->nodes[path[s.len]].token = sorted[i].id;
        if (!memory_grow_array((void **)&trie->tokens, trie->n_tokens, &trie->tokens_capacity,
                               sizeof(*trie->tokens)))
            return false;
        trie->tokens[trie->n_tokens++] = sorted[i].id;
        last = s;
    }
    close_nodes(trie, path, last.len, 0);
    return true;
}

static bool copy_tokens(GrammarVocabulary *v, const Slice *tokens, size_t count, Error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (tokens[i].len <= GRAMMAR_TOKEN_BYTES_MAX)
            total += tokens[i].len;
    }
    if (total > GRAMMAR_TOTAL_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "a vocabulary of %zu bytes", total);
    v->bytes = memory_allocate(total);
    v->tokens = memory_allocate_zeroed(count, sizeof(*v->tokens));
    if (!v->bytes || !v->tokens)
        return error_no_memory(err, "vocabulary of the grammar");
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        Slice s = tokens[i];
        if (s.len == 0 || s.len > GRAMMAR_TOKEN_BYTES_MAX)
            continue;
        memcpy(v->bytes + at, s.ptr, s.len);
        v->tokens[i] = (Slice){v->bytes + at, s.len};
        at += s.len;
        if (s.len > v->token_bytes_max)
            v->token_bytes_max = s.len;
        if (s.len == 1)
            v->has_byte[(uint8_t)s.ptr[0]] = true;
    }
    v->has_all_bytes = true;
    for (size_t b = 0; b < 256; b++)
        v->has_all_bytes = v->has_all_bytes && v->has_byte[b];
    return true;
}

static bool add_plain(GrammarVocabulary *v, int32_t id, size_t n_characters)
{
    size_t word = (size_t)id / 64;
    uint64_t bit = (uint64_t)1 << id % 64;
    for (size_t level = n_characters; level <= VOCABULARY_PLAIN_LEVELS; level++)
        v->plain_sets[level * v->n_words + word] |= bit;
    v->plain_sets[(VOCABULARY_PLAIN_LEVELS + 1) * v->n_words + word] |= bit;
    if (n_characters > v->plain_characters_max)
        v->plain_characters_max = n_characters;
    if (n_characters <= VOCABULARY_PLAIN_LEVELS)
        return true;
    if (!memory_grow_array((void **)&v->longs, v->n_longs, &v->longs_capacity, sizeof(*v->longs)))
        return false;
    v->longs[v->n_longs++] = (LongToken){id, (uint32_t)n_characters};
    return true;
}

static bool build_tries(GrammarVocabulary *v, Error *err)
{
    /* Plain ones from the front, others from the back of one array. */
    SortedToken *sorted = memory_allocate_array(v->n_tokens, sizeof(*sorted));
    uint32_t *path = memory_allocate_zeroed(v->token_bytes_max + 1, sizeof(*path));
    size_t n_plain = 0, first_other = v->n_tokens;
    bool ok = sorted && path;
    for (size_t i = 0; ok && i < v->n_tokens; i++) {
        if (v->tokens[i].len == 0)
            continue;
        size_t n_characters = count_plain(v->tokens[i]);
        SortedToken token = {v->tokens[i], (int32_t)i};
        if (n_characters > 0) {
            sorted[n_plain++] = token;
            ok = add_plain(v, (int32_t)i, n_characters);
        } else {
            sorted[--first_other] = token;
        }
    }
    if (ok) {
        size_t n_other = v->n_tokens - first_other;
        qsort(sorted, n_plain, sizeof(*sorted), compare_tokens);
        qsort(sorted + first_other, n_other, sizeof(*sorted), compare_tokens);
        ok = build_trie(v, &v->plain, sorted, n_plain, path) &&
             build_trie(v, &v->other, sorted + first_other, n_other, path);
    }
    memory_free(sorted);
    memory_free(path);
    return ok || error_no_memory(err, "vocabulary of the grammar");
}

bool grammar_vocabulary_create(const Slice *tokens, size_t count, GrammarVocabulary **out,
                               Error *err)
{
    *out = NULL;
    if (count > GRAMMAR_TOKENS_MAX)
        return error_set(err, ERROR_LIMIT, "a vocabulary of %zu tokens, at most %d", count,
                         GRAMMAR_TOKENS_MAX);
    GrammarVocabulary *v = memory_allocate_zeroed(1, sizeof(*v));
    if (!v)
        return error_no_memory(err, "vocabulary of the grammar");
    atomic_init(&v->n_references, 1);
    v->n_tokens = count;
    v->n_words = (count + 63) / 64;
    v->plain_sets =
        memory_allocate_zeroed((VOCABULARY_PLAIN_LEVELS + 2) * v->n_words, sizeof(*v->plain_sets));
    if (!v->plain_sets) {
        error_no_memory(err, "vocabulary of the grammar");
        goto fail;
    }
    if (!copy_tokens(v, tokens, count, err) || !build_tries(v, err))
        goto fail;
    *out = v;
    return true;
fail:
    grammar_vocabulary_release(v);
    return false;
}

void grammar_vocabulary_release(GrammarVocabulary *v)
{
    if (!v || atomic_fetch_sub(&v->n_references, 1) != 1)
        return;
    memory_free(v->tokens);
    memory_free(v->bytes);
    memory_free(v->plain.nodes);
    memory_free(v->plain.tokens);
    memory_free(v->other.nodes);
    memory_free(v->other.tokens);
    memory_free(v->same);
    memory_free(v->plain_sets);
    memory_free(v->longs);
    memory_free(v);
}

size_t grammar_vocabulary_size(const GrammarVocabulary *v)
{
    return v->n_tokens;
}

size_t grammar_vocabulary_bytes(const GrammarVocabulary *v)
{
    return sizeof(*v) + v->n_tokens * (sizeof(*v->tokens) + 8) +
           (v->plain.capacity + v->other.capacity) * sizeof(TrieNode) +
           (v->plain.tokens_capacity + v->other.tokens_capacity) * sizeof(int32_t) +
           (VOCABULARY_PLAIN_LEVELS + 2) * v->n_words * sizeof(*v->plain_sets);
}
