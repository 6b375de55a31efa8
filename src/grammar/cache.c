/* A short list, searched from front to back: what was used last stands first. */
#include "grammar.h"

#include <pthread.h>
#include <string.h>

enum { CACHE_ENTRIES_MAX = 32, CACHE_BYTES_MAX = 96 << 20 };

typedef struct CacheEntry {
    Grammar *grammar;
    uint64_t hash;
    char *key;
    size_t key_len;
} CacheEntry;

struct GrammarCache {
    GrammarVocabulary *vocabulary; /* its creator's reference; outlives the cache */
    pthread_mutex_t lock;          /* guards the entries */
    CacheEntry entries[CACHE_ENTRIES_MAX];
    size_t count;
};

bool grammar_cache_create(GrammarVocabulary *vocabulary, GrammarCache **out, Error *err)
{
    *out = memory_allocate_zeroed(1, sizeof(**out));
    if (!*out)
        return error_no_memory(err, "grammar cache");
    (*out)->vocabulary = vocabulary;
    if (pthread_mutex_init(&(*out)->lock, NULL) == 0)
        return true;
    memory_free(*out);
    *out = NULL;
    return error_set(err, ERROR_MEMORY, "cannot make a lock");
}

static void drop_last(GrammarCache *cache)
{
    CacheEntry *entry = &cache->entries[--cache->count];
    grammar_release(entry->grammar);
    memory_free(entry->key);
}

void grammar_cache_free(GrammarCache *cache)
{
    if (!cache)
        return;
    while (cache->count > 0)
        drop_last(cache);
    pthread_mutex_destroy(&cache->lock);
    memory_free(cache);
}

static void write_slice(Slice slice, Buffer *out)
{
    buffer_append_format(out, "%zu:", slice.len);
    buffer_append_slice(out, slice);
}

static void write_markup(const Markup *markup, Buffer *out)
{
    const MarkupCalls *calls = &markup->calls;
    Slice texts[MARKUP_TEXTS];
    markup_texts(markup, texts);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        write_slice(texts[i], out);
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++) {
        buffer_append_format(out, "%d %zu ", calls->triggers[i].at_start,
                             calls->triggers[i].name_bytes);
    }
    buffer_append_format(out, "%d %d ", markup->begins_in_think, markup->only_at_start);
}

/* The source as bytes: equal for equal sources only. */
static void write_key(const GrammarSource *source, Buffer *out)
{
    buffer_append_format(out, "%d %d ", (int)source->kind, source->ignores_unknown);
    if (source->kind == GRAMMAR_CHOICE) {
        buffer_append_format(out, "%zu ", source->n_choices);
        for (size_t i = 0; i < source->n_choices; i++)
            write_slice(source->choices[i], out);
    } else {
        write_slice(source->text, out);
    }
}

static void write_reply_key(const GrammarReply *reply, Buffer *out)
{
    buffer_append_format(out, "reply %d %d %zu ", reply->needs_call, reply->one_call,
                         reply->n_tools);
    write_markup(reply->markup, out);
    for (size_t i = 0; i < reply->n_tools; i++) {
        write_slice(reply->tools[i].name, out);
        write_key(&reply->tools[i].arguments, out);
    }
    if (reply->content)
        write_key(reply->content, out);
}

/* Moves entry i to the front. */
static void use_entry(GrammarCache *cache, size_t i)
{
    CacheEntry entry = cache->entries[i];
    memmove(cache->entries + 1, cache->entries, i * sizeof(entry));
    cache->entries[0] = entry;
}

static Grammar *find(GrammarCache *cache, Slice key, uint64_t hash)
{
    Grammar *found = NULL;
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < cache->count && !found; i++) {
        const CacheEntry *entry = &cache->entries[i];
        if (entry->hash != hash || !slice_equal((Slice){entry->key, entry->key_len}, key))
            continue;
        found = entry->grammar;
        grammar_retain(found);
        use_entry(cache, i);
    }
    pthread_mutex_unlock(&cache->lock);
    return found;
}

/* Takes the key's bytes. Another thread may have added the same meanwhile; the older goes in time.
 */
static void add(GrammarCache *cache, Grammar *grammar, uint64_t hash, Buffer *key)
{
    size_t len;
    char *bytes = buffer_take(key, &len);
    pthread_mutex_lock(&cache->lock);
    if (cache->count == CACHE_ENTRIES_MAX)
        drop_last(cache);
    grammar_retain(grammar);
    cache->entries[cache->count++] = (CacheEntry){grammar, hash, bytes, len};
    use_entry(cache, cache->count - 1);
    size_t total = 0, kept = 0;
    while (kept < cache->count) {
        total += grammar_bytes(cache->entries[kept].grammar) + cache->entries[kept].key_len;
        if (kept > 0 && total > CACHE_BYTES_MAX)
            break;
        kept++;
    }
    while (cache->count > kept)
        drop_last(cache);
    pthread_mutex_unlock(&cache->lock);
}

bool grammar_cache_get(GrammarCache *cache, const GrammarSource *source, Grammar **out, Error *err)
{
    Buffer key;
    *out = NULL;
    buffer_init(&key, GRAMMAR_SOURCE_BYTES_MAX * 2);
    if (source->kind == GRAMMAR_REPLY)
        write_reply_key(source->reply, &key);
    else
        write_key(source, &key);
    if (!buffer_check(&key, "the grammar", err)) {
        buffer_reset(&key);
        return false;
    }
    uint64_t hash = slice_hash(buffer_view(&key));
    *out = find(cache, buffer_view(&key), hash);
    if (!*out && grammar_create(source, cache->vocabulary, out, err))
        add(cache, *out, hash, &key);
    buffer_reset(&key);
    return *out != NULL;
}
