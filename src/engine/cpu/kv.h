/* Private to engine/cpu: keys and values, in blocks that sequences share.
 *
 * A KvPool knows the shapes of a model's cache and counts its memory. A KvBlock holds KV_BLOCK
 * positions of all layers of one kind (full attention, or sliding). A KvCache is one sequence: a
 * table of blocks for each kind, by position / KV_BLOCK. In a block, per layer and KV head:
 *
 *   keys    [KV_BLOCK / 16][head_dim][16]   tiles of 16 positions, 16 keys to a vector: a dot
 *                                           product with 16 keys needs no sum across lanes
 *   values  [KV_BLOCK][value_stride]        rows; value_stride is head_dim rounded up to 16
 *
 * in fp16, or float32 for the reference precision. As codes of 16 or of 8 bits (attention_codes.h),
 * those that a product adds up lie together in 32 bits, P = 2 or 4 of them, and scales follow:
 *
 *   keys    [value_stride / P][KV_BLOCK][P]   P dimensions of a key
 *   values  [KV_BLOCK / P][value_stride][P]   P positions of a dimension
 *
 * each followed by its float32 scales: [KV_BLOCK], with 8 bits [dimensions / 64, rounded
 * up][KV_BLOCK].
 *
 * Blocks count their references. A block with more than one is never written: a fork shares the
 * whole blocks of its prefix and copies the one that the prefix ends in.
 *
 * All blocks that a sequence can need are taken when it is created or forked, so that appending
 * never allocates. Sliding layers drop the blocks that lie before the window and use them again: a
 * sequence owns as many as the window and the longest chunk can touch at a time, and keeps those
 * without content as spares. A block that another sequence shares cannot be used again, so sharing
 * brings new spares.
 *
 * Positions are absolute throughout. Threads: rows of different positions or heads may be written
 * at the same time; everything else belongs to the inference thread. */
#ifndef ENGINE_CPU_KV_H
#define ENGINE_CPU_KV_H

#include "base.h"
#include "model.h"

enum {
    KV_BLOCK = 64, /* positions of a block, and those that attention takes at a time */
    KV_KEY_TILE = 16,
    KV_VALUE_UNIT = 16,
    KV_TOKENS_MAX = 1 << 30,
};

/* KV_INT16 is what instruction sets with fast products of 16-bit integers have for KV_F16: faster
 * and, on the whole, more exact. */
typedef enum KvType { KV_F32, KV_F16, KV_INT16, KV_INT8 } KvType;
enum { KV_INT8_ZERO = 128, KV_SCALE_DIMS = 64 };

static inline bool kv_is_codes(KvType type)
{
    return type == KV_INT16 || type == KV_INT8;
}

typedef enum KvKind { KV_FULL, KV_SLIDING, KV_KINDS } KvKind;

typedef struct KvLayer {
    KvKind kind;
    uint32_t sliding_window; /* 0: none */
    size_t offset;           /* of its first head in a block */
} KvLayer;

/* Per model. Blocks are cut from slabs, which are large enough for huge pages; what was never
 * touched takes no memory. Blocks that nobody holds stay with the pool: they are the next to be
 * taken, their pages already there. */
typedef struct KvPool {
    KvLayer *layers; /* [n_layers] */
    KvType type;
    size_t n_layers, n_heads, head_dim, value_stride, element_size;
    size_t key_bytes, head_bytes; /* of one head in a block: its keys; keys and values */
    size_t block_bytes[KV_KINDS]; /* 0: no layer of this kind */
    size_t largest_window;        /* of the sliding layers; 0: none slides */
    size_t ring_blocks;           /* sliding blocks that a sequence can touch at a time */
    size_t limit_bytes;           /* of all blocks; 0: none */
    size_t used_bytes;            /* of the blocks that sequences hold */
    size_t free_bytes;            /* of the free blocks; with used_bytes within the limit */
    struct KvBlock *free_blocks[KV_KINDS];
    struct KvBlock *bare_blocks[KV_KINDS]; /* free ones that have given their pages back */
    struct KvSlab *slabs; /* what blocks are cut from, until the pool is reset; newest first */
    struct KvBlock *unused[KV_KINDS]; /* of the kind's newest slab, the blocks never taken */
    size_t n_unused[KV_KINDS];
} KvPool;

/* Apart from its content, which then is not touched before it is written: what a sequence has
 * reserved and not used takes no memory. */
typedef struct KvBlock {
    size_t references;
    struct KvBlock *next; /* among spares, or free blocks */
    uint8_t *content;     /* [block_bytes], aligned to 64 bytes */
    bool is_touched;      /* its pages are there: kv_cache_touch has seen to it */
} KvBlock;

/* Per sequence. */
typedef struct KvCache {
    KvPool *pool;
    KvBlock **blocks[KV_KINDS]; /* [n_blocks] NULL: dropped, or not begun; unused kinds have none */
    size_t n_blocks;
    KvBlock *spares; /* sliding blocks without content */
    size_t n_spares;
    size_t max_tokens;
    size_t length;    /* tokens held */
    size_t n_coming;  /* tokens that prepare has made room for and advance has not counted */
    size_t kept_from; /* every layer still holds the positions from here to length */
} KvCache;

/* Bytes of keys and values of one token in a layer, and in the full-attention layers together. */
size_t kv_layer_bytes(const ModelConfig *config, KvType type);
size_t kv_bytes_per_token(const ModelConfig *config, KvType type);

/* max_chunk: most tokens that are appended before attention reads. */
bool kv_pool_init(KvPool *pool, const ModelConfig *config, KvType type, size_t max_chunk,
                  size_t limit_bytes, Error *err) WARN_UNUSED;
void kv_pool_reset(KvPool *pool);
/* Most tokens of a sequence that has the whole limit for itself, at most max_tokens. */
size_t kv_pool_fitting_tokens(const KvPool *pool, size_t max_tokens);

/* The bytes that kv_cache_create would take. ERROR_LIMIT as there. */
bool kv_cache_count_bytes(const ModelConfig *config, KvType type, size_t max_tokens,
                          size_t max_chunk, size_t *out, Error *err) WARN_UNUSED;

/* ERROR_LIMIT for a size out of range, ERROR_MEMORY for one that the limit or the system has no
 * room for now. pool outlives the cache. */
bool kv_cache_create(KvPool *pool, size_t max_tokens, KvCache *out, Error *err) WARN_UNUSED;
/* A cache with the first length tokens of from, which keeps them (kv_cache_holds_prefix). */
bool kv_cache_fork(KvCache *from, size_t length, size_t max_tokens, KvCache *out,
                   Error *err) WARN_UNUSED;
void kv_cache_free(KvCache *cache);

/* Where the keys and the values of one head begin in the block of a position. */
uint8_t *kv_cache_keys(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);
uint8_t *kv_cache_values(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);
/* Not with codes: where one head's key of a position starts (its next dimension is KV_KEY_TILE
 * elements on), and its value. */
uint8_t *kv_cache_key(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);
uint8_t *kv_cache_value(const KvCache *cache, const KvLayer *layer, size_t head, size_t position);

/* Makes room for the next n tokens, at most max_chunk: drops what has left the window. */
void kv_cache_prepare(KvCache *cache, size_t n);
/* Writes to the pages of one block that only tokens to come will have, so that the
 * system brings its memory now: where that comes from a virtual machine's host, a large page takes
 * milliseconds. False when no such block is left. */
bool kv_cache_touch(KvCache *cache);
/* The same for the block that follows the last one begun, should it be among those reserved. */
bool kv_cache_touch_ahead(KvCache *cache);
/* Counts n tokens whose rows were written to every layer. Between prepare and this, the cache may
 * be touched, forked and freed, and nothing else. */
void kv_cache_advance(KvCache *cache, size_t n);
/* The tokens that prepare made room for will not come. */
void kv_cache_cancel(KvCache *cache);
/* Do all layers hold what a sequence of this length (<= cache->length) would look at? */
bool kv_cache_holds_prefix(const KvCache *cache, size_t length);
/* holds_prefix must be true. ERROR_MEMORY where shared blocks must be copied; then nothing has
 * changed. */
bool kv_cache_truncate(KvCache *cache, size_t length, Error *err) WARN_UNUSED;
/* No token will follow: gives back what was taken for them. */
void kv_cache_seal(KvCache *cache);

#endif
