#include "prefix_cache.h"

#include <string.h>

enum { COMPARED_AT_ONCE = 64 };

size_t tokens_common_prefix(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b)
{
    size_t n = n_a < n_b ? n_a : n_b, i = 0;
    while (n - i >= COMPARED_AT_ONCE && memcmp(a + i, b + i, COMPARED_AT_ONCE * sizeof(*a)) == 0)
        i += COMPARED_AT_ONCE;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

bool prefix_cache_init(PrefixCache *cache, Error *err)
{
    *cache = (PrefixCache){0};
    cache->entries = memory_allocate_zeroed(PREFIX_CACHE_ENTRIES_MAX, sizeof(*cache->entries));
    return cache->entries || error_no_memory(err, "prefix cache");
}

static void free_entry(PrefixEntry *entry, Engine *engine)
{
    engine_sequence_free(engine, entry->sequence);
    memory_free(entry->tokens);
    *entry = (PrefixEntry){0};
}

void prefix_cache_reset(PrefixCache *cache, Engine *engine)
{
    for (size_t i = 0; i < cache->count; i++)
        free_entry(&cache->entries[i], engine);
    memory_free(cache->entries);
    *cache = (PrefixCache){0};
}

void prefix_cache_touch(PrefixCache *cache, PrefixEntry *entry)
{
    entry->used_at = ++cache->clock;
}

/* Entries have no order: the last takes the place. */
static void remove_entry(PrefixCache *cache, Engine *engine, PrefixEntry *entry, PrefixEntry **keep)
{
    PrefixEntry *last = &cache->entries[--cache->count];
    free_entry(entry, engine);
    if (keep && *keep == last)
        *keep = entry;
    if (entry != last) {
        *entry = *last;
        *last = (PrefixEntry){0};
    }
}

bool prefix_cache_evict(PrefixCache *cache, Engine *engine, PrefixEntry **keep)
{
    PrefixEntry *oldest = NULL;
    for (size_t i = 0; i < cache->count; i++) {
        PrefixEntry *entry = &cache->entries[i];
        if ((!keep || entry != *keep) && (!oldest || entry->used_at < oldest->used_at))
            oldest = entry;
    }
    if (!oldest)
        return false;
    remove_entry(cache, engine, oldest, keep);
    cache->evictions_total++;
    return true;
}

/* Can everything that begins with the first n tokens be had from this sequence? */
static bool covers(const Engine *engine, const EngineSequence *sequence, const int32_t *tokens,
                   size_t n_tokens, const int32_t *others, size_t n_others)
{
    return n_others <= n_tokens && memcmp(tokens, others, n_others * sizeof(*tokens)) == 0 &&
           engine->ops->sequence_holds_prefix(sequence, n_others);
}

void prefix_cache_add(PrefixCache *cache, Engine *engine, EngineSequence *sequence, int32_t *tokens,
                      size_t n_tokens)
{
    PrefixEntry fresh = {.sequence = sequence, .tokens = tokens, .n_tokens = n_tokens};
    bool wanted = cache->entries && n_tokens >= PREFIX_CACHE_TOKENS_LEAST;
    for (size_t i = 0; wanted && i < cache->count; i++) {
        PrefixEntry *entry = &cache->entries[i];
        if (covers(engine, entry->sequence, entry->tokens, entry->n_tokens, tokens, n_tokens)) {
            prefix_cache_touch(cache, entry);
            wanted = false;
        }
    }
    if (!wanted) {
        free_entry(&fresh, engine);
        return;
    }
    for (size_t i = cache->count; i-- > 0;) {
        PrefixEntry *entry = &cache->entries[i];
        if (covers(engine, sequence, tokens, n_tokens, entry->tokens, entry->n_tokens))
            remove_entry(cache, engine, entry, NULL);
    }
    if (cache->count == PREFIX_CACHE_ENTRIES_MAX)
        prefix_cache_evict(cache, engine, NULL);
    engine->ops->sequence_seal(engine, sequence);
    int32_t *exact = memory_resize_array(tokens, n_tokens, sizeof(*tokens));
    if (exact)
        fresh.tokens = exact;
    PrefixEntry *entry = &cache->entries[cache->count++];
    *entry = fresh;
    prefix_cache_touch(cache, entry);
}

PrefixEntry *prefix_cache_find(const PrefixCache *cache, const Engine *engine,
                               const int32_t *tokens, size_t n, size_t *length, size_t *longest)
{
    PrefixEntry *best = NULL;
    *length = *longest = 0;
    for (size_t i = 0; i < cache->count; i++) {
        PrefixEntry *entry = &cache->entries[i];
        size_t common = tokens_common_prefix(entry->tokens, entry->n_tokens, tokens, n);
        if (common > *longest)
            *longest = common;
        if (common > *length && engine->ops->sequence_holds_prefix(entry->sequence, common)) {
            best = entry;
            *length = common;
        }
    }
    return best;
}
