/* Private to engine/cpu: attention of a batch's queries over their sequences' keys and values.
 *
 * One pass with online softmax (arXiv:2205.14135), no score matrix. Keys are walked in blocks of
 * KV_BLOCK at absolute positions; blocks form segments of ATTENTION_SEGMENT keys, each begun afresh
 * and merged in order. The order of every sum is thus a function of the positions alone: a token
 * has the same bits whatever chunk, batch or thread computed it, and segments may go to different
 * threads.
 *
 * The query heads of a KV head are taken together, and so are neighbouring tokens: a tile. Work is
 * split over (tile, KV head), and over segments too when that alone would leave threads idle. */
#ifndef ENGINE_CPU_ATTENTION_H
#define ENGINE_CPU_ATTENTION_H

#include "kv.h"
#include "ops.h"
#include "pool.h"

enum {
    ATTENTION_SEGMENT = 512, /* keys; a multiple of KV_BLOCK */
    ATTENTION_SEGMENT_BLOCKS = ATTENTION_SEGMENT / KV_BLOCK,
    /* Tokens times heads of a tile, unless one token has more: what a block of keys serves, within
     * the cache that a core has for itself. */
    ATTENTION_TILE_QUERIES = 96,
};

typedef struct AttentionQueryScale AttentionQueryScale;

/* Queries of one KV head, and a run of keys within one segment: the kernel's argument. */
struct AttentionTile {
    size_t n_queries, head_dim, padded_dim; /* padded_dim: to KV_VALUE_UNIT */
    const float *queries;                   /* [n_queries, padded_dim], score scale applied */
    const size_t *positions;                /* [n_queries], ascending */
    uint32_t sliding_window;                /* 0: none */
    float soft_cap;                         /* 0: none */

    /* Of this KV head, as in kv.h, block by block: at attention_block_index of their positions. */
    const void *keys[ATTENTION_SEGMENT_BLOCKS], *values[ATTENTION_SEGMENT_BLOCKS];
    /* Of the block after the last, n_next keys to ask the memory for; NULL: none. */
    const void *next_keys;
    size_t n_next;
    bool is_half; /* fp16, else float32 */
    /* Where keys and values are codes, the queries once more (attention_codes.h). */
    const int16_t *query_codes;
    const AttentionQueryScale *query_scales;
    size_t first_key, end_key; /* positions [first_key, end_key), all of them held */

    float *key_block, *value_block; /* [KV_BLOCK, padded_dim] each: scratch, with fp16 */
    /* The result: maximum of the scores, sum of their exponentials, weighted sum of the values. A
     * query that sees none of the keys gets -inf, 0 and zeros. */
    float *maxima, *sums; /* [n_queries] */
    float *output;        /* [n_queries, padded_dim] */
};

static inline size_t attention_block_index(size_t position)
{
    return position / KV_BLOCK % ATTENTION_SEGMENT_BLOCKS;
}

/* Asks for memory in the second-level cache. */
static inline void attention_ask_for(const uint8_t *base, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(base + i, 0, 2);
}

/* The tile's result before its first key. */
void attention_begin(const AttentionTile *tile);

/* Keys [first, end) of a block, counted from its start; empty when first is not below end. */
typedef struct KeyRange {
    size_t first, end;
} KeyRange;

/* Those of the block at `block` (a position, a multiple of KV_BLOCK) that the query at `position`
 * sees. Both ends may lie before the block for a query that sees none of it. */
static inline KeyRange attention_visible(const AttentionTile *tile, size_t block, size_t position)
{
    size_t from = tile->first_key > block ? tile->first_key : block;
    size_t to = tile->end_key < block + KV_BLOCK ? tile->end_key : block + KV_BLOCK;
    if (tile->sliding_window && position >= tile->sliding_window &&
        from < position - tile->sliding_window + 1)
        from = position - tile->sliding_window + 1;
    to = to < position + 1 ? to : position + 1;
    from = from < to ? from : to;
    return (KeyRange){from > block ? from - block : 0, to > block ? to - block : 0};
}

void attention_segment_plain(const AttentionTile *tile);
void attention_segment_avx2(const AttentionTile *tile);
void attention_segment_avx512(const AttentionTile *tile);
void attention_segment_neon(const AttentionTile *tile);

/* Tokens of one sequence in the batch. Its keys and values are stored already, those tokens' too
 * unless a source stores them. */
typedef struct AttentionSlice {
    const KvCache *cache;
    size_t first_token; /* row of q and out */
    size_t n_tokens;
    size_t first_position; /* of the first token */
} AttentionSlice;

typedef struct AttentionShape {
    size_t n_heads, n_kv_heads, head_dim;
    float scale, soft_cap;
    KvType kv_type;
} AttentionShape;

/* Scratch for batches of max_tokens tokens; owned by the engine. */
typedef struct AttentionScratch AttentionScratch;
bool attention_scratch_create(AttentionShape shape, size_t max_tokens, size_t max_context,
                              size_t threads, AttentionScratch **out, Error *err) WARN_UNUSED;
void attention_scratch_free(AttentionScratch *scratch); /* accepts NULL */
size_t attention_scratch_bytes(const AttentionScratch *scratch);

/* Cuts the batch into tiles; once for all layers. slices is borrowed until the next plan. */
void attention_plan(AttentionScratch *scratch, const AttentionSlice *slices, size_t n_slices);

/* Makes queries, and stores keys and values, in the part that reads them: no section of its own,
 * and what was written is in that thread's caches. */
typedef struct AttentionSource {
    /* KV heads [first, end) of a token: a row of q. */
    void (*prepare)(void *context, size_t token, size_t first, size_t end);
    /* Says shortly before that prepare will be called. */
    void (*expect)(void *context, size_t token, size_t first, size_t end);
    void *context;
} AttentionSource;
/* Whether a run of the planned batch, in this layer, could have one: each sequence has one token in
 * it, and no two parts share a head of one. */
bool attention_takes_source(AttentionScratch *scratch, size_t layer);

/* out[token][head] for every token of the plan, from q (both [tokens, n_heads * head_dim], rows
 * q_stride and out_stride apart), over the keys and values of one layer. source: NULL when q, keys
 * and values are ready. */
void attention_run(AttentionScratch *scratch, const CpuOps *ops, size_t layer, const float *q,
                   size_t q_stride, float *out, size_t out_stride, const AttentionSource *source,
                   CpuPool *pool);

#endif
