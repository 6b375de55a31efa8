#include "kv.h"

#include <assert.h>
#include <string.h>

enum {
    KV_SLAB_BYTES = 32 << 20, /* at most, unless one block is larger */
    KV_SLAB_BLOCKS = 16,
    KV_PAGE_BYTES = 4 << 10, /* no system's are smaller */
};

typedef struct KvSlab {
    struct KvSlab *next;
    void *memory;
    KvBlock blocks[];
} KvSlab;

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static size_t blocks_of(size_t tokens)
{
    return (tokens + KV_BLOCK - 1) / KV_BLOCK;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- Pool ---- */

/* One head's keys in a block, and its values. */
static size_t key_bytes(const ModelConfig *config, KvType type)
{
    size_t head_dim = config->head_dim, padded = round_up(head_dim, KV_VALUE_UNIT);
    if (type == KV_INT16)
        return KV_BLOCK * (2 * padded + 4);
    if (type == KV_INT8)
        return KV_BLOCK * (padded + round_up(head_dim, KV_SCALE_DIMS) / KV_SCALE_DIMS * 4);
    return KV_BLOCK * head_dim * (type == KV_F16 ? 2 : 4);
}

static size_t value_bytes(const ModelConfig *config, KvType type)
{
    size_t padded = round_up(config->head_dim, KV_VALUE_UNIT);
    if (kv_is_codes(type))
        return key_bytes(config, type);
    return KV_BLOCK * padded * (type == KV_F16 ? 2 : 4);
}

size_t kv_layer_bytes(const ModelConfig *config, KvType type)
{
    size_t head = (key_bytes(config, type) + value_bytes(config, type)) / KV_BLOCK;
    return head * config->num_key_value_heads;
}

size_t kv_bytes_per_token(const ModelConfig *config, KvType type)
{
    size_t n_full = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        n_full += config->layers[i].sliding_window == 0;
    return kv_layer_bytes(config, type) * n_full;
}

/* A layer's part of a block is bounded (64 positions, 2^20 dimensions of all heads); their sum fits
 * 64 bits. */
bool kv_pool_init(KvPool *pool, const ModelConfig *config, KvType type, size_t max_chunk,
                  size_t limit_bytes, Error *err)
{
    *pool = (KvPool){.type = type,
                     .n_layers = config->num_hidden_layers,
                     .n_heads = config->num_key_value_heads,
                     .head_dim = config->head_dim,
                     .value_stride = round_up(config->head_dim, KV_VALUE_UNIT),
                     .element_size = type == KV_F32    ? 4
                                     : type == KV_INT8 ? 1
                                                       : 2,
                     .limit_bytes = limit_bytes};
    pool->layers = memory_allocate_zeroed(pool->n_layers, sizeof *pool->layers);
    if (!pool->layers)
        return error_no_memory(err, "KV cache");
    pool->key_bytes = key_bytes(config, type);
    pool->head_bytes = pool->key_bytes + value_bytes(config, type);
    size_t content[KV_KINDS] = {0};
    for (size_t i = 0; i < pool->n_layers; i++) {
        KvLayer *layer = &pool->layers[i];
        layer->sliding_window = config->layers[i].sliding_window;
        layer->kind = layer->sliding_window ? KV_SLIDING : KV_FULL;
        layer->offset = content[layer->kind];
        content[layer->kind] += pool->head_bytes * pool->n_heads;
        if (layer->sliding_window > pool->largest_window)
            pool->largest_window = layer->sliding_window;
    }
    for (KvKind kind = KV_FULL; kind < KV_KINDS; kind++)
        pool->block_bytes[kind] = content[kind];
    /* The span from the oldest key of the window to the last token of the chunk, anywhere. */
    pool->ring_blocks = blocks_of(pool->largest_window + max_chunk) + 1;
    return true;
}

void kv_pool_reset(KvPool *pool)
{
    assert(pool->used_bytes == 0);
    while (pool->slabs) {
        KvSlab *slab = pool->slabs;
        pool->slabs = slab->next;
        memory_free(slab->memory);
        memory_free(slab);
    }
    memory_free(pool->layers);
    *pool = (KvPool){0};
}

/* Bytes of full and sliding blocks; false when they do not fit a size. */
static bool count_bytes(const KvPool *pool, size_t n_full, size_t n_sliding, size_t *bytes)
{
    size_t full, sliding;
    return size_multiply(n_full, pool->block_bytes[KV_FULL], &full) &&
           size_multiply(n_sliding, pool->block_bytes[KV_SLIDING], &sliding) &&
           size_add(full, sliding, bytes);
}

static bool fits_limit(const KvPool *pool, size_t tokens)
{
    size_t bytes, n = blocks_of(tokens);
    return count_bytes(pool, n, smaller(n, pool->ring_blocks), &bytes) &&
           (pool->limit_bytes == 0 || bytes <= pool->limit_bytes);
}

size_t kv_pool_fitting_tokens(const KvPool *pool, size_t max_tokens)
{
    size_t low = 0, high = max_tokens; /* low fits, what is above high does not */
    while (low < high) {
        size_t middle = high - (high - low) / 2;
        if (fits_limit(pool, middle))
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static bool check_room(const KvPool *pool, size_t n_full, size_t n_sliding, size_t tokens,
                       Error *err)
{
    size_t bytes;
    if (!count_bytes(pool, n_full, n_sliding, &bytes))
        return error_set(err, ERROR_LIMIT, "KV cache for %zu tokens: size does not fit", tokens);
    if (pool->limit_bytes == 0 ||
        (pool->used_bytes <= pool->limit_bytes && bytes <= pool->limit_bytes - pool->used_bytes))
        return true;
    return error_set(err, ERROR_MEMORY,
                     "KV cache for %zu tokens: %zu bytes more with %zu of %zu in use", tokens,
                     bytes, pool->used_bytes, pool->limit_bytes);
}

/* ---- Blocks ---- */

static KvBlock *pop_block(KvBlock **list)
{
    KvBlock *block = *list;
    if (block)
        *list = block->next;
    return block;
}

static KvBlock *take_free(KvPool *pool, KvKind kind)
{
    KvBlock *block = pop_block(&pool->free_blocks[kind]);
    if (block)
        pool->free_bytes -= pool->block_bytes[kind];
    return block;
}

/* Free blocks of one kind must not keep the other from its share of the limit. */
static void make_room(KvPool *pool, KvKind kind)
{
    KvKind other = kind == KV_FULL ? KV_SLIDING : KV_FULL;
    size_t bytes = pool->block_bytes[kind];
    while (pool->limit_bytes > 0 && pool->free_blocks[other] &&
           pool->used_bytes + pool->free_bytes + bytes > pool->limit_bytes) {
        KvBlock *block = take_free(pool, other);
        memory_release_pages(block->content, pool->block_bytes[other]);
        block->is_touched = false;
        block->next = pool->bare_blocks[other];
        pool->bare_blocks[other] = block;
    }
}

static bool begin_slab(KvPool *pool, KvKind kind)
{
    size_t size = pool->block_bytes[kind], count = KV_SLAB_BYTES / size;
    count = count < 1 ? 1 : smaller(count, KV_SLAB_BLOCKS);
    KvSlab *slab = memory_allocate(sizeof *slab + count * sizeof *slab->blocks);
    if (!slab)
        return false;
    slab->memory = memory_allocate_huge(count * size); /* one block, or at most KV_SLAB_BYTES */
    if (!slab->memory) {
        memory_free(slab);
        return false;
    }
    for (size_t i = 0; i < count; i++)
        slab->blocks[i] = (KvBlock){.content = (uint8_t *)slab->memory + i * size};
    slab->next = pool->slabs;
    pool->slabs = slab;
    pool->unused[kind] = slab->blocks;
    pool->n_unused[kind] = count;
    return true;
}

static KvBlock *allocate_block(KvPool *pool, KvKind kind)
{
    make_room(pool, kind);
    KvBlock *block = pop_block(&pool->bare_blocks[kind]);
    if (block || (pool->n_unused[kind] == 0 && !begin_slab(pool, kind)))
        return block;
    pool->n_unused[kind]--;
    return pool->unused[kind]++;
}

static KvBlock *block_create(KvPool *pool, KvKind kind, Error *err)
{
    size_t bytes = pool->block_bytes[kind];
    KvBlock *block = take_free(pool, kind);
    if (!block)
        block = allocate_block(pool, kind);
    if (!block) {
        error_set(err, ERROR_MEMORY, "KV cache: no memory for %zu bytes", bytes);
        return NULL;
    }
    block->references = 1;
    block->next = NULL;
    pool->used_bytes += bytes;
    return block;
}

static void block_drop(KvPool *pool, KvKind kind, KvBlock *block)
{
    if (!block || --block->references > 0)
        return;
    pool->used_bytes -= pool->block_bytes[kind];
    pool->free_bytes += pool->block_bytes[kind];
    block->next = pool->free_blocks[kind];
    pool->free_blocks[kind] = block;
}

static void copy_content(const KvPool *pool, KvKind kind, KvBlock *to, KvBlock *from)
{
    memcpy(to->content, from->content, pool->block_bytes[kind]);
}

static void add_spare(KvCache *cache, KvBlock *block)
{
    block->next = cache->spares;
    cache->spares = block;
    cache->n_spares++;
}

static KvBlock *take_spare(KvCache *cache)
{
    KvBlock *block = cache->spares;
    assert(block);
    cache->spares = block->next;
    cache->n_spares--;
    return block;
}

/* Spares that are enough for ever, when n_private blocks of the window are the sequence's alone and
 * n_future blocks are still to be begun. */
static size_t spares_needed(const KvPool *pool, size_t n_private, size_t n_future)
{
    size_t ring = pool->ring_blocks > n_private ? pool->ring_blocks - n_private : 0;
    return smaller(ring, n_future);
}

static bool fill_spares(KvCache *cache, size_t wanted, Error *err)
{
    while (cache->n_spares < wanted) {
        KvBlock *block = block_create(cache->pool, KV_SLIDING, err);
        if (!block)
            return false;
        add_spare(cache, block);
    }
    return true;
}

/* Sliding blocks in [first, end) of the table that nobody else has. */
static size_t count_private(const KvCache *cache, size_t first, size_t end)
{
    size_t count = 0;
    for (size_t i = first; i < end; i++) {
        const KvBlock *block = cache->blocks[KV_SLIDING][i];
        count += block && block->references == 1;
    }
    return count;
}

static bool has_kind(const KvCache *cache, KvKind kind)
{
    return cache->pool->block_bytes[kind] > 0;
}

/* The next token stands at position length and sees positions above length - window. */
static size_t first_needed(const KvPool *pool, size_t length)
{
    if (pool->largest_window == 0 || length < pool->largest_window)
        return 0;
    return length - pool->largest_window + 1;
}

/* ---- Sequences ---- */

static bool check_length(size_t max_tokens, Error *err)
{
    if (max_tokens == 0 || max_tokens > KV_TOKENS_MAX)
        return error_set(err, ERROR_LIMIT, "a sequence of %zu tokens, expected 1 to %d", max_tokens,
                         KV_TOKENS_MAX);
    return true;
}

bool kv_cache_count_bytes(const ModelConfig *config, KvType type, size_t max_tokens,
                          size_t max_chunk, size_t *out, Error *err)
{
    KvPool pool;
    size_t n = blocks_of(max_tokens);
    *out = 0;
    if (!check_length(max_tokens, err) || !kv_pool_init(&pool, config, type, max_chunk, 0, err))
        return false;
    bool fits = count_bytes(&pool, n, spares_needed(&pool, 0, n), out);
    kv_pool_reset(&pool);
    return fits ||
           error_set(err, ERROR_LIMIT, "KV cache for %zu tokens: size does not fit", max_tokens);
}

static bool make_tables(KvPool *pool, size_t max_tokens, KvCache *out, Error *err)
{
    *out = (KvCache){.pool = pool, .max_tokens = max_tokens};
    if (!check_length(max_tokens, err))
        return false;
    size_t n_blocks = blocks_of(max_tokens);
    for (KvKind kind = KV_FULL; kind < KV_KINDS; kind++) {
        if (pool->block_bytes[kind] == 0)
            continue;
        out->blocks[kind] = memory_allocate_zeroed(n_blocks, sizeof(KvBlock *));
        if (!out->blocks[kind])
            return error_no_memory(err, "KV cache");
    }
    out->n_blocks = n_blocks;
    return true;
}

/* Full blocks from index first on, and spares. */
static bool take_blocks(KvCache *cache, size_t first, size_t n_spares, Error *err)
{
    KvPool *pool = cache->pool;
    size_t n_full = has_kind(cache, KV_FULL) ? cache->n_blocks - first : 0;
    if (!has_kind(cache, KV_SLIDING))
        n_spares = 0;
    if (!check_room(pool, n_full, n_spares, cache->max_tokens, err))
        return false;
    for (size_t i = 0; i < n_full; i++) {
        KvBlock *block = block_create(pool, KV_FULL, err);
        if (!block)
            return false;
        cache->blocks[KV_FULL][first + i] = block;
    }
    return fill_spares(cache, n_spares, err);
}

bool kv_cache_create(KvPool *pool, size_t max_tokens, KvCache *out, Error *err)
{
    if (make_tables(pool, max_tokens, out, err) &&
        take_blocks(out, 0, spares_needed(pool, 0, out->n_blocks), err))
        return true;
    kv_cache_free(out);
    return false;
}

void kv_cache_free(KvCache *cache)
{
    for (KvKind kind = KV_FULL; kind < KV_KINDS; kind++) {
        if (!cache->blocks[kind])
            continue;
        /* From the end, so that the first to be taken again are the ones that were written. */
        for (size_t i = cache->n_blocks; i > 0; i--)
            block_drop(cache->pool, kind, cache->blocks[kind][i - 1]);
        memory_free(cache->blocks[kind]);
    }
    while (cache->n_spares > 0)
        block_drop(cache->pool, KV_SLIDING, take_spare(cache));
    *cache = (KvCache){0};
}

/* Shares whole blocks [first, end) of one kind. */
static void share_blocks(KvCache *to, KvCache *from, KvKind kind, size_t first, size_t end)
{
    for (size_t i = first; i < end; i++) {
        from->blocks[kind][i]->references++;
        to->blocks[kind][i] = from->blocks[kind][i];
    }
}

/* The block that the prefix ends in: to will write the rest of it. */
static void copy_last_block(KvCache *to, const KvCache *from, size_t index)
{
    if (has_kind(to, KV_SLIDING))
        to->blocks[KV_SLIDING][index] = take_spare(to);
    for (KvKind kind = KV_FULL; kind < KV_KINDS; kind++) {
        if (has_kind(to, kind))
            copy_content(to->pool, kind, to->blocks[kind][index], from->blocks[kind][index]);
    }
}

/* Of from's sliding blocks, [first, end) will be lost to its ring: brings spares instead. */
static bool prepare_sharing(KvCache *from, size_t first, size_t end, Error *err)
{
    size_t begun = blocks_of(from->length + from->n_coming);
    if (!has_kind(from, KV_SLIDING))
        return true;
    size_t left = count_private(from, 0, begun);
    if (first < end)
        left -= count_private(from, first, end);
    size_t wanted = spares_needed(from->pool, left, from->n_blocks - begun);
    size_t more = wanted > from->n_spares ? wanted - from->n_spares : 0;
    return check_room(from->pool, 0, more, from->max_tokens, err) && fill_spares(from, wanted, err);
}

bool kv_cache_fork(KvCache *from, size_t length, size_t max_tokens, KvCache *out, Error *err)
{
    KvPool *pool = from->pool;
    assert(length <= from->length && length <= max_tokens);
    if (!make_tables(pool, max_tokens, out, err))
        goto fail;
    size_t whole = length / KV_BLOCK, begun = blocks_of(length), is_partial = begun - whole;
    size_t first = first_needed(pool, length) / KV_BLOCK;
    size_t n_spares = spares_needed(pool, is_partial, out->n_blocks - begun);
    if (!prepare_sharing(from, first, whole, err) ||
        !take_blocks(out, whole, n_spares + is_partial, err))
        goto fail;
    if (has_kind(out, KV_FULL))
        share_blocks(out, from, KV_FULL, 0, whole);
    if (has_kind(out, KV_SLIDING) && first < whole)
        share_blocks(out, from, KV_SLIDING, first, whole);
    if (is_partial)
        copy_last_block(out, from, whole);
    out->length = length;
    out->kept_from = first * KV_BLOCK;
    return true;
fail:
    kv_cache_free(out);
    return false;
}

uint8_t *kv_cache_keys(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    KvBlock *block = cache->blocks[layer->kind][position / KV_BLOCK];
    return block->content + layer->offset + head * cache->pool->head_bytes;
}

uint8_t *kv_cache_values(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    return kv_cache_keys(cache, layer, head, position) + cache->pool->key_bytes;
}

uint8_t *kv_cache_key(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    size_t slot = position % KV_BLOCK, lane = slot % KV_KEY_TILE;
    size_t element = (slot - lane) * cache->pool->head_dim + lane;
    return kv_cache_keys(cache, layer, head, position) + element * cache->pool->element_size;
}

uint8_t *kv_cache_value(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    const KvPool *pool = cache->pool;
    size_t element = position % KV_BLOCK * pool->value_stride;
    return kv_cache_values(cache, layer, head, position) + element * pool->element_size;
}

/* ---- Moving on ---- */

/* Takes a sliding block out of the table: a spare, if nobody else has it and one may be needed. */
static void retire_block(KvCache *cache, size_t index, size_t n_future)
{
    KvBlock *block = cache->blocks[KV_SLIDING][index];
    cache->blocks[KV_SLIDING][index] = NULL;
    if (!block)
        return;
    if (block->references == 1 && cache->n_spares < spares_needed(cache->pool, 0, n_future))
        add_spare(cache, block);
    else
        block_drop(cache->pool, KV_SLIDING, block);
}

void kv_cache_prepare(KvCache *cache, size_t n)
{
    assert(cache->n_coming == 0);
    cache->n_coming = n;
    if (!has_kind(cache, KV_SLIDING))
        return;
    size_t begun = blocks_of(cache->length), end = blocks_of(cache->length + n);
    size_t first = first_needed(cache->pool, cache->length) / KV_BLOCK;
    for (size_t i = cache->kept_from / KV_BLOCK; i < first && i < begun; i++)
        retire_block(cache, i, cache->n_blocks - begun);
    if (first * KV_BLOCK > cache->kept_from)
        cache->kept_from = first * KV_BLOCK;
    for (size_t i = begun; i < end; i++)
        cache->blocks[KV_SLIDING][i] = take_spare(cache);
}

/* False when it has been done before. */
static bool touch_block(const KvPool *pool, KvKind kind, KvBlock *block)
{
    volatile uint8_t *content = block->content;
    if (block->is_touched)
        return false;
    assert(block->references == 1);
    for (size_t at = 0; at < pool->block_bytes[kind]; at += KV_PAGE_BYTES)
        content[at] = 0;
    return block->is_touched = true;
}

bool kv_cache_touch_ahead(KvCache *cache)
{
    size_t next = blocks_of(cache->length);
    bool has_next = has_kind(cache, KV_FULL) && next < cache->n_blocks && cache->n_coming == 0;
    return has_next && cache->blocks[KV_FULL][next] &&
           touch_block(cache->pool, KV_FULL, cache->blocks[KV_FULL][next]);
}

bool kv_cache_touch(KvCache *cache)
{
    size_t begun = blocks_of(cache->length), end = blocks_of(cache->length + cache->n_coming);
    for (KvKind kind = KV_FULL; kind < KV_KINDS; kind++) {
        for (size_t i = begun; has_kind(cache, kind) && i < end; i++) {
            if (touch_block(cache->pool, kind, cache->blocks[kind][i]))
                return true;
        }
    }
    return false;
}

void kv_cache_advance(KvCache *cache, size_t n)
{
    cache->length += n;
    cache->n_coming = 0;
    assert(cache->length <= cache->max_tokens);
}

void kv_cache_cancel(KvCache *cache)
{
    size_t begun = blocks_of(cache->length), end = blocks_of(cache->length + cache->n_coming);
    for (size_t i = begun; has_kind(cache, KV_SLIDING) && i < end; i++) {
        add_spare(cache, cache->blocks[KV_SLIDING][i]);
        cache->blocks[KV_SLIDING][i] = NULL;
    }
    cache->n_coming = 0;
}

bool kv_cache_holds_prefix(const KvCache *cache, size_t length)
{
    if (length == cache->length || length == 0)
        return true;
    return length < cache->length && first_needed(cache->pool, length) >= cache->kept_from;
}

/* Puts a copy of the block in its place if somebody else holds it too. */
static bool unshare_block(KvCache *cache, KvKind kind, size_t index, Error *err)
{
    KvBlock *block = cache->blocks[kind][index];
    if (!block || block->references == 1)
        return true;
    if (!check_room(cache->pool, kind == KV_FULL, kind == KV_SLIDING, cache->max_tokens, err))
        return false;
    KvBlock *copy = block_create(cache->pool, kind, err);
    if (!copy)
        return false;
    copy_content(cache->pool, kind, copy, block);
    block->references--;
    cache->blocks[kind][index] = copy;
    return true;
}

bool kv_cache_truncate(KvCache *cache, size_t length, Error *err)
{
    size_t begun = blocks_of(cache->length), left = blocks_of(length), whole = length / KV_BLOCK;
    for (size_t i = whole; has_kind(cache, KV_FULL) && i < begun; i++) {
        if (!unshare_block(cache, KV_FULL, i, err))
            return false;
    }
    if (has_kind(cache, KV_SLIDING)) {
        if (whole < left && !unshare_block(cache, KV_SLIDING, whole, err))
            return false;
        size_t n_future = cache->n_blocks - left;
        size_t wanted = spares_needed(cache->pool, count_private(cache, 0, left), n_future);
        size_t have = cache->n_spares + count_private(cache, left, begun);
        size_t more = wanted > have ? wanted - have : 0;
        if (!check_room(cache->pool, 0, more, cache->max_tokens, err) ||
            !fill_spares(cache, cache->n_spares + more, err))
            return false;
        for (size_t i = left; i < begun; i++)
            retire_block(cache, i, n_future);
    }
    cache->length = length;
    if (length == 0)
        cache->kept_from = 0;
    return true;
}

void kv_cache_seal(KvCache *cache)
{
    size_t begun = blocks_of(cache->length);
    for (size_t i = begun; has_kind(cache, KV_FULL) && i < cache->n_blocks; i++) {
        block_drop(cache->pool, KV_FULL, cache->blocks[KV_FULL][i]);
        cache->blocks[KV_FULL][i] = NULL;
    }
    while (cache->n_spares > 0)
        block_drop(cache->pool, KV_SLIDING, take_spare(cache));
    cache->n_blocks = begun;
    cache->max_tokens = cache->length;
}
