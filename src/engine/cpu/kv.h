/* Private to engine/cpu: keys and values of one sequence.
 *
 * One allocation, sized when the sequence is created. Per layer and KV head:
 *
 *   keys    [capacity / 8][head_dim][8]   tiles of 8 positions, 8 keys to a vector: a dot product
 *                                         with 8 keys needs no sum across lanes
 *   values  [capacity][value_stride]      rows; value_stride is head_dim rounded up to 8
 *
 * in fp16, or float32 for the reference precision. Position p lives in slot p % capacity. capacity
 * is a multiple of KV_BLOCK, so a block of KV_BLOCK positions that starts at a multiple of KV_BLOCK
 * is contiguous. A full-attention layer has room for max_tokens; a sliding one keeps its window and
 * the longest chunk, never more. Positions are absolute throughout. Threads: rows of different
 * positions may be written at the same time; everything else belongs to the inference thread. */
#ifndef ENGINE_CPU_KV_H
#define ENGINE_CPU_KV_H

#include "base.h"
#include "model.h"

enum {
    KV_BLOCK = 64, /* positions that attention takes at a time */
    KV_KEY_TILE = 8,
    KV_TOKENS_MAX = 1 << 30,
};

typedef struct KvLayer {
    uint8_t *keys, *values;
    size_t capacity;         /* positions, a multiple of KV_BLOCK */
    uint32_t sliding_window; /* 0: none */
} KvLayer;

typedef struct KvCache {
    KvLayer *layers; /* [n_layers] */
    uint8_t *memory;
    size_t n_layers, n_heads, head_dim, value_stride, element_size;
    size_t bytes;
    size_t max_tokens;
    size_t length;         /* tokens held */
    size_t kept_from;      /* every layer still holds the positions from here to length */
    size_t largest_window; /* of the sliding layers; 0: none slides */
    size_t least_ring;     /* least capacity of a sliding layer */
} KvCache;

/* Bytes of keys and values of one token in the full-attention layers. */
size_t kv_bytes_per_token(const ModelConfig *config, bool is_half);

/* max_chunk: most tokens that are appended before attention reads. Errors: ERROR_LIMIT for a size
 * that does not fit, ERROR_MEMORY, both with the number of bytes. */
bool kv_cache_create(const ModelConfig *config, bool is_half, size_t max_tokens, size_t max_chunk,
                     KvCache *out, Error *err) WARN_UNUSED;
/* The bytes that kv_cache_create would take. */
bool kv_cache_count_bytes(const ModelConfig *config, bool is_half, size_t max_tokens,
                          size_t max_chunk, size_t *out, Error *err) WARN_UNUSED;
void kv_cache_free(KvCache *cache);

/* Where one head's key of a position starts (its next dimension is KV_KEY_TILE elements on), and
 * its value. */
void *kv_cache_key(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);
void *kv_cache_value(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);

/* Counts n tokens whose rows were written to every layer. */
void kv_cache_advance(KvCache *cache, size_t n);
/* Do all layers hold what a sequence of this length (<= cache->length) would look at? */
bool kv_cache_holds_prefix(const KvCache *cache, size_t length);
void kv_cache_truncate(KvCache *cache, size_t length); /* holds_prefix must be true */
/* Copies the first length tokens into a fresh cache of the same model (holds_prefix must be true).
 */
void kv_cache_copy_prefix(KvCache *to, const KvCache *from, size_t length);

#endif
