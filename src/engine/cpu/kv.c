#include "kv.h"

#include <assert.h>
#include <string.h>

enum { KV_ALIGNMENT = 64 };

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

size_t kv_bytes_per_token(const ModelConfig *config, bool is_half)
{
    size_t row = config->head_dim + round_up(config->head_dim, 8);
    size_t per_layer = row * config->num_key_value_heads * (is_half ? 2 : 4);
    size_t n_full = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        n_full += config->layers[i].sliding_window == 0;
    return per_layer * n_full;
}

/* Positions a layer needs: all of them, or the window, a chunk, and what alignment adds at both
 * ends. */
static size_t layer_capacity(const LayerConfig *layer, size_t max_tokens, size_t max_chunk)
{
    size_t all = round_up(max_tokens, KV_BLOCK);
    if (layer->sliding_window == 0)
        return all;
    size_t ring = round_up((size_t)layer->sliding_window + max_chunk, KV_BLOCK) + KV_BLOCK;
    return ring < all ? ring : all;
}

static size_t key_bytes(const KvCache *cache, size_t capacity)
{
    return capacity * cache->head_dim * cache->element_size;
}

static size_t value_bytes(const KvCache *cache, size_t capacity)
{
    return capacity * cache->value_stride * cache->element_size;
}

/* Fills capacities and the total. Every factor is bounded (2^30 positions, 2^20 dims of all heads),
 * so a layer fits 64 bits; only the sum over layers needs a check. */
static bool plan(KvCache *cache, const ModelConfig *config, size_t max_chunk, Error *err)
{
    size_t total = KV_ALIGNMENT;
    cache->least_ring = SIZE_MAX;
    for (size_t i = 0; i < cache->n_layers; i++) {
        KvLayer *layer = &cache->layers[i];
        layer->sliding_window = config->layers[i].sliding_window;
        layer->capacity = layer_capacity(&config->layers[i], cache->max_tokens, max_chunk);
        size_t head = key_bytes(cache, layer->capacity) + value_bytes(cache, layer->capacity);
        size_t bytes;
        if (!size_multiply(head, cache->n_heads, &bytes) || !size_add(total, bytes, &total))
            return error_set(err, ERROR_LIMIT, "KV cache for %zu tokens: size does not fit",
                             cache->max_tokens);
        if (layer->sliding_window == 0)
            continue;
        if (layer->sliding_window > cache->largest_window)
            cache->largest_window = layer->sliding_window;
        if (layer->capacity < cache->least_ring)
            cache->least_ring = layer->capacity;
    }
    cache->bytes = total;
    return true;
}

/* Everything but the memory of keys and values. */
static bool lay_out(const ModelConfig *config, bool is_half, size_t max_tokens, size_t max_chunk,
                    KvCache *out, Error *err)
{
    *out = (KvCache){.n_layers = config->num_hidden_layers,
                     .n_heads = config->num_key_value_heads,
                     .head_dim = config->head_dim,
                     .value_stride = round_up(config->head_dim, 8),
                     .element_size = is_half ? 2 : 4,
                     .max_tokens = max_tokens};
    if (max_tokens == 0 || max_tokens > KV_TOKENS_MAX)
        return error_set(err, ERROR_LIMIT, "a sequence of %zu tokens, expected 1 to %d", max_tokens,
                         KV_TOKENS_MAX);
    out->layers = memory_allocate_array(out->n_layers, sizeof *out->layers);
    if (!out->layers)
        return error_no_memory(err, "KV cache");
    if (plan(out, config, max_chunk, err))
        return true;
    kv_cache_free(out);
    return false;
}

bool kv_cache_count_bytes(const ModelConfig *config, bool is_half, size_t max_tokens,
                          size_t max_chunk, size_t *out, Error *err)
{
    KvCache cache;
    *out = 0;
    if (!lay_out(config, is_half, max_tokens, max_chunk, &cache, err))
        return false;
    *out = cache.bytes;
    kv_cache_free(&cache);
    return true;
}

bool kv_cache_create(const ModelConfig *config, bool is_half, size_t max_tokens, size_t max_chunk,
                     KvCache *out, Error *err)
{
    if (!lay_out(config, is_half, max_tokens, max_chunk, out, err))
        return false;
    out->memory = memory_allocate_aligned(KV_ALIGNMENT, out->bytes);
    if (!out->memory) {
        error_set(err, ERROR_MEMORY, "KV cache for %zu tokens: no memory for %zu bytes", max_tokens,
                  out->bytes);
        kv_cache_free(out);
        return false;
    }
    uint8_t *at = out->memory;
    for (size_t i = 0; i < out->n_layers; i++) {
        KvLayer *layer = &out->layers[i];
        layer->keys = at;
        at += key_bytes(out, layer->capacity) * out->n_heads;
        layer->values = at;
        at += value_bytes(out, layer->capacity) * out->n_heads;
    }
    return true;
}

void kv_cache_free(KvCache *cache)
{
    memory_free(cache->memory);
    memory_free(cache->layers);
    *cache = (KvCache){0};
}

void *kv_cache_key(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    size_t slot = position % layer->capacity;
    size_t lane = slot % KV_KEY_TILE;
    size_t element = (head * layer->capacity + slot - lane) * cache->head_dim + lane;
    return layer->keys + element * cache->element_size;
}

void *kv_cache_value(const KvCache *cache, const KvLayer *layer, size_t head, size_t position)
{
    size_t slot = position % layer->capacity;
    size_t element = (head * layer->capacity + slot) * cache->value_stride;
    return layer->values + element * cache->element_size;
}

void kv_cache_advance(KvCache *cache, size_t n)
{
    cache->length += n;
    assert(cache->length <= cache->max_tokens);
    if (cache->largest_window && cache->length > cache->least_ring &&
        cache->length - cache->least_ring > cache->kept_from)
        cache->kept_from = cache->length - cache->least_ring;
}

/* The next token stands at position length and sees positions above length - window. */
static size_t first_needed(const KvCache *cache, size_t length)
{
    if (cache->largest_window == 0 || length < cache->largest_window)
        return 0;
    return length - cache->largest_window + 1;
}

bool kv_cache_holds_prefix(const KvCache *cache, size_t length)
{
    if (length == cache->length || length == 0)
        return true;
    return length < cache->length && first_needed(cache, length) >= cache->kept_from;
}

void kv_cache_truncate(KvCache *cache, size_t length)
{
    cache->length = length;
    if (length == 0)
        cache->kept_from = 0;
}

/* Whole blocks from the one that holds position `first` on; a block's slots are contiguous in both.
 */
static void copy_layer(KvCache *to, const KvCache *from, size_t index, size_t first, size_t length)
{
    const KvLayer *target = &to->layers[index], *source = &from->layers[index];
    for (size_t head = 0; head < to->n_heads; head++) {
        for (size_t p = first / KV_BLOCK * KV_BLOCK; p < length; p += KV_BLOCK) {
            memcpy(kv_cache_key(to, target, head, p), kv_cache_key(from, source, head, p),
                   key_bytes(to, KV_BLOCK));
            memcpy(kv_cache_value(to, target, head, p), kv_cache_value(from, source, head, p),
                   value_bytes(to, KV_BLOCK));
        }
    }
}

void kv_cache_copy_prefix(KvCache *to, const KvCache *from, size_t length)
{
    assert(length <= to->max_tokens && length <= from->length);
    size_t first = first_needed(from, length);
    for (size_t i = 0; i < to->n_layers; i++)
        copy_layer(to, from, i, to->layers[i].sliding_window ? first : 0, length);
    to->length = length;
    to->kept_from = first;
}
