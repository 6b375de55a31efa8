/* prefix_cache: sequences that have ended, kept for prompts that begin like them.
 *
 * An entry is a sealed sequence and its tokens. A new sequence forks the entry that shares the
 * longest prefix with its prompt; the engine lets both use the same memory. The least recently used
 * entry goes first when memory or the table is full. An entry that begins another one is left out.
 * Search compares tokens, entry by entry: a few hundred entries of a few thousand tokens are less
 * than a millisecond, and nothing has to be kept in step. Threads: the inference thread. */
#ifndef SCHEDULER_PREFIX_CACHE_H
#define SCHEDULER_PREFIX_CACHE_H

#include "engine.h"

enum {
    PREFIX_CACHE_ENTRIES_MAX = 256,
    PREFIX_CACHE_TOKENS_LEAST = 8, /* shorter sequences are not worth an entry */
};

typedef struct PrefixEntry {
    EngineSequence *sequence; /* sealed */
    int32_t *tokens;
    size_t n_tokens;
    uint64_t used_at;
} PrefixEntry;

typedef struct PrefixCache {
    PrefixEntry *entries; /* [PREFIX_CACHE_ENTRIES_MAX] NULL: switched off */
    size_t count;
    uint64_t clock;
    uint64_t evictions_total;
} PrefixCache;

/* Length of the common beginning of two lists of tokens. */
size_t tokens_common_prefix(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b);

bool prefix_cache_init(PrefixCache *cache, Error *err) WARN_UNUSED;
void prefix_cache_reset(PrefixCache *cache, Engine *engine);
/* Takes a sequence and its n tokens (both are the cache's from now on, and may be gone at once). */
void prefix_cache_add(PrefixCache *cache, Engine *engine, EngineSequence *sequence, int32_t *tokens,
                      size_t n_tokens);
/* The entry from which most of tokens [n] can be forked, or NULL; *length says how many. *longest
 * gets the length of the longest common prefix, also where a window has moved past it. */
PrefixEntry *prefix_cache_find(const PrefixCache *cache, const Engine *engine,
                               const int32_t *tokens, size_t n, size_t *length, size_t *longest);
/* Marks an entry as used now. */
void prefix_cache_touch(PrefixCache *cache, PrefixEntry *entry);
/* Frees the least recently used entry; *keep, which may be NULL, stays and follows its entry when
 * that moves. False when there is none to free. */
bool prefix_cache_evict(PrefixCache *cache, Engine *engine, PrefixEntry **keep);

#endif
