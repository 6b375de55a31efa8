/* SentencePiece scores become merges as Hugging Face's converter makes them: every split of every
 * token into two tokens is a merge; they are ordered by the token's score, then by the length of
 * the left and of the right part, all descending, ties in order of ids. User-defined tokens count
 * as score 0, above all learned ones (which are negative), and their spaces, which GGUF's converter
 * has undone, become U+2581 again. */
#include "gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SPM_TOKEN_BYTES_MAX = 4096 /* splitting a token costs its length squared */ };

typedef struct Merge {
    float score;
    uint32_t left_chars, right_chars;
    uint32_t token, left, right; /* ids */
} Merge;

typedef struct MergeList {
    Merge *items;
    size_t count, capacity;
} MergeList;

/* Token text to id, open addressing; slots hold id + 1. */
typedef struct TokenTable {
    const GgufVocabulary *vocabulary;
    uint32_t *slots;
    size_t mask;
} TokenTable;

static bool table_find(const TokenTable *table, Slice text, uint32_t *id)
{
    size_t at = (size_t)slice_hash(text) & table->mask;
    for (; table->slots[at]; at = (at + 1) & table->mask) {
        *id = table->slots[at] - 1;
        if (slice_equal(table->vocabulary->tokens[*id], text))
            return true;
    }
    return false;
}

static bool table_build(TokenTable *table, const GgufVocabulary *v)
{
    size_t size = 16;
    while (size < 2 * v->count)
        size *= 2;
    *table = (TokenTable){v, arena_allocate_array(v->arena, size, sizeof(uint32_t)), size - 1};
    if (!table->slots)
        return error_no_memory(v->err, "the vocabulary");
    memset(table->slots, 0, size * sizeof(uint32_t));
    for (size_t i = 0; i < v->count; i++) {
        uint32_t other;
        if (table_find(table, v->tokens[i], &other)) /* of two equal tokens, the first */
            continue;
        size_t at = (size_t)slice_hash(v->tokens[i]) & table->mask;
        while (table->slots[at])
            at = (at + 1) & table->mask;
        table->slots[at] = (uint32_t)i + 1;
    }
    return true;
}

static int compare_merges(const void *a, const void *b)
{
    const Merge *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->left_chars != y->left_chars)
        return x->left_chars > y->left_chars ? -1 : 1;
    if (x->right_chars != y->right_chars)
        return x->right_chars > y->right_chars ? -1 : 1;
    if (x->token != y->token)
        return x->token < y->token ? -1 : 1;
    if (x->left != y->left)
        return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

static bool is_continuation(char byte)
{
    return ((unsigned char)byte & 0xc0) == 0x80;
}

/* Every split of one token between two characters whose halves are tokens. */
static bool add_splits(const TokenTable *table, uint32_t token, float score, MergeList *list)
{
    const GgufVocabulary *v = table->vocabulary;
    Slice text = v->tokens[token];
    if (text.len > SPM_TOKEN_BYTES_MAX)
        return error_set(v->err, ERROR_LIMIT, "%s: token %u has %zu bytes, at most %d are read",
                         v->file->name, token, text.len, SPM_TOKEN_BYTES_MAX);
    uint32_t chars = 0, before = 1;
    for (size_t i = 0; i < text.len; i++)
        chars += !is_continuation(text.ptr[i]);
    for (size_t at = 1; at < text.len; at++) {
        if (is_continuation(text.ptr[at]))
            continue;
        Merge merge = {.score = score, .left_chars = before, .token = token};
        merge.right_chars = chars - before++;
        if (!table_find(table, (Slice){text.ptr, at}, &merge.left) ||
            !table_find(table, (Slice){text.ptr + at, text.len - at}, &merge.right))
            continue;
        if (!memory_grow_array((void **)&list->items, list->count, &list->capacity, sizeof(merge)))
            return error_no_memory(v->err, "merges");
        list->items[list->count++] = merge;
    }
    return true;
}

static bool collect_merges(const GgufVocabulary *v, MergeList *list)
{
    TokenTable table;
    if (!table_build(&table, v))
        return false;
    for (size_t i = 0; i < v->count; i++) {
        bool is_user_defined = v->types[i] == GGUF_TOKEN_USER_DEFINED;
        if (!is_user_defined && v->types[i] != GGUF_TOKEN_NORMAL)
            continue;
        float score = is_user_defined ? 0 : v->scores[i];
        if (isnan(score))
            return error_set(v->err, ERROR_INVALID, "%s: the score of token %zu is not a number",
                             v->file->name, i);
        if (!add_splits(&table, (uint32_t)i, score, list))
            return false;
    }
    if (list->count > 1)
        qsort(list->items, list->count, sizeof(*list->items), compare_merges);
    return true;
}

bool gguf_write_scored_merges(const GgufVocabulary *v, JsonWriter *w)
{
    MergeList list = {0};
    bool ok = collect_merges(v, &list);
    if (ok) {
        json_write_array_begin(w);
        for (size_t i = 0; i < list.count; i++)
            gguf_write_merge(w, v->tokens[list.items[i].left], v->tokens[list.items[i].right]);
        json_write_array_end(w);
    }
    memory_free(list.items);
    return ok;
}
