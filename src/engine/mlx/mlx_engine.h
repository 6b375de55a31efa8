/* Private to engine/mlx: what its files share.
 *
 * A call of forward is cut into passes of at most max_batch_tokens tokens. A pass is one lazy graph
 * over the tokens of all its slices (a slice is a run of one sequence's tokens): products and norms
 * take all tokens together, attention goes slice by slice against that sequence's cache.
 * Activations have the type that the model's scales have (float32 with --precision f32). */
#ifndef ENGINE_MLX_ENGINE_H
#define ENGINE_MLX_ENGINE_H

#include "engine.h"
#include "graph.h"
#include "runner.h"

enum {
    MLX_BATCH_TOKENS_GPU = 2048,
    MLX_BATCH_TOKENS_CPU = 512,
    MLX_BATCH_TOKENS_MAX = 1 << 16,
    MLX_CACHE_BYTES_MAX = 1 << 30, /* freed memory that MLX keeps */
    MLX_CACHE_STEP = 256,          /* tokens by which caches grow */
};

/* One linear layer's matrix, or a stack of experts; all handles owned. */
typedef struct MlxMatrix {
    mlx_array weight; /* quantised: [rows, words] codes; dense: [cols, rows], transposed */
    mlx_array scales, biases;
    mlx_array bias;    /* [rows], added to the product; empty when there is none */
    mlx_array factors; /* stacks: [experts, 1, 1], what products are multiplied by; or empty */
    const char *mode;  /* MLX's name of the quantisation; NULL when dense */
    int bits, group_size;
} MlxMatrix;

typedef struct MlxLayer {
    mlx_array input_norm, post_attention_norm, pre_mlp_norm, post_mlp_norm, q_norm, k_norm;
    MlxMatrix q, k, v, o;
    MlxMatrix gate, up, down; /* dense MLP, or the experts' */
    MlxMatrix router;
} MlxLayer;

/* One layer's keys and values of one sequence: [1, kv_heads, capacity, head_dim]; row i holds
 * position first + i. Layers with a sliding window drop what no later query sees, in steps. Arrays
 * are values: forks share them until one of the two writes. */
typedef struct MlxLayerCache {
    mlx_array keys, values;
    size_t first, capacity;
} MlxLayerCache;

typedef struct MlxEngine MlxEngine;

struct EngineSequence {
    MlxEngine *engine;
    MlxLayerCache *layers; /* [num_hidden_layers] */
    size_t length, max_tokens;
    size_t kv_bytes; /* reserved, and counted in the engine's kv_bytes_used */
    uint64_t last_call;
    bool is_broken; /* an evaluation failed after its caches had changed */
};

/* A run of one sequence's tokens in a pass. */
typedef struct MlxSlice {
    EngineSequence *sequence;
    size_t first_token, n_tokens;
    /* Masks of this pass by kind of layer, made when first asked for; borrowed from the graph. */
    mlx_array window_mask, causal_mask;
} MlxSlice;

/* The decoding step that was begun ahead: what came before it, and its result. */
typedef struct MlxAhead {
    EngineSequence **sequences; /* [max_batch_tokens] of the last step, in order */
    int32_t *tokens;            /* [max_batch_tokens] that they are expected to go on with */
    EngineChoice *choices;      /* [max_batch_tokens] of the last step */
    size_t count;               /* 0: the last step was none that could be continued */
    mlx_array ids;              /* of the step begun; empty when none is */
} MlxAhead;

struct MlxEngine {
    Engine base;
    const Model *model;
    Runner *runner;
    bool is_gpu, is_f32;
    mlx_device device;
    mlx_stream stream;
    mlx_dtype type;
    size_t max_batch_tokens, weight_bytes;
    size_t kv_bytes_max, kv_bytes_used; /* 0: no limit */
    char device_name[64];

    MlxMatrix embedding, head; /* head has empty handles when tied */
    mlx_array final_norm;
    MlxLayer *layers;
    mlx_array rope_periods[MODEL_ROPE_TABLES]; /* [rotary_dims / 2] float32 */
    mlx_array rope_factors[MODEL_ROPE_TABLES]; /* [head_dim]; empty when the factor is 1 */

    Graph graph;
    MlxSlice *slices; /* [max_batch_tokens] */
    int32_t *tokens;  /* [max_batch_tokens] */
    int32_t *wanted;  /* [max_batch_tokens] tokens whose logits are wanted, ascending */
    size_t n_slices, n_tokens, n_wanted;
    const EngineChoice *choices; /* [n_wanted] of the pass; NULL: the argmax everywhere */
    MlxAhead ahead;
    uint64_t call;
};

/* All of these on the runner's thread. */

/* mlx_weights.c: copies the model's tensors into MLX's memory, giving the files' pages back. */
bool backend_weights_load(MlxEngine *engine, Error *err) WARN_UNUSED;
void backend_weights_free(MlxEngine *engine);

/* mlx_cache.c */
bool backend_sequence_create(MlxEngine *engine, size_t max_tokens, EngineSequence **out,
                             Error *err) WARN_UNUSED;
void backend_sequence_free(MlxEngine *engine, EngineSequence *sequence);
/* Bytes that caches of max_tokens tokens come to take. */
size_t backend_kv_bytes(const MlxEngine *engine, size_t max_tokens);
/* Reserves for max_tokens from now on, whatever was reserved before. */
bool backend_sequence_reserve(MlxEngine *engine, EngineSequence *sequence, size_t max_tokens,
                              Error *err) WARN_UNUSED;
/* Can the sequence go on from its first `length` tokens? */
bool backend_sequence_holds(const MlxEngine *engine, const EngineSequence *sequence, size_t length);
bool backend_sequence_share(MlxEngine *engine, const EngineSequence *from, EngineSequence *to,
                            Error *err) WARN_UNUSED;
/* Appends k, v [1, kv_heads, n, head_dim] to the layer's cache; *keys and *values are what the n
 * queries may see, borrowed from the graph, the last row being the last query's own. */
void backend_cache_append(MlxEngine *engine, MlxSlice *slice, size_t layer, mlx_array k,
                          mlx_array v, mlx_array *keys, mlx_array *values);

/* mlx_forward.c: runs the engine's pass: ids [n_wanted] if given, else logits [n_wanted, vocab]. */
bool backend_forward_pass(MlxEngine *engine, float *logits, int32_t *ids, Error *err) WARN_UNUSED;
/* Its parts: the graph from tokens [n_tokens] to logits; to ids; ids to memory. */
mlx_array backend_build_pass(MlxEngine *engine, mlx_array tokens);

bool backend_fetch_ids(mlx_array ids, size_t count, int32_t *out, Error *err) WARN_UNUSED;

/* And the layers' operations. tokens [n] to [n, hidden]. */
mlx_array backend_embed(MlxEngine *engine, mlx_array tokens);
/* Rotates x [batch, heads, n, head_dim] by a table of the model's: positions offset .. offset + n -
 * 1, or, when offsets is given (n is 1 then), offsets[batch]. */
mlx_array backend_rotate(MlxEngine *engine, size_t table, mlx_array x, size_t offset,
                         mlx_array offsets);
/* q [1, heads, n, head_dim], rotated, against the slice's cache after k and v were appended to it:
 * the same shape. */
mlx_array backend_attend(MlxEngine *engine, MlxSlice *slice, size_t layer, mlx_array q, mlx_array k,
                         mlx_array v);

/* mlx_choose.c: logits [n_wanted, vocab] to ids by the pass's choices. draw 1: by the draws that
 * were announced for the step after it. */
mlx_array backend_choose(MlxEngine *engine, mlx_array logits, size_t draw);

/* mlx_ahead.c: a decoding step of the pass that chooses its tokens, with the step after it begun
 * meanwhile. */
bool backend_decode_ahead(MlxEngine *engine, int32_t *ids, Error *err) WARN_UNUSED;
/* Forgets what was begun; before anything else touches the sequences. */
void backend_ahead_forget(MlxEngine *engine);

/* mlx_experts.c: the sparse MLP of a layer, x [n, hidden]. */
mlx_array backend_experts(MlxEngine *engine, const MlxLayer *layer, mlx_array x);
/* act(gate) * up */
mlx_array backend_gated(MlxEngine *engine, mlx_array gate, mlx_array up);
/* x W^T + bias, x [n, cols]. */
mlx_array backend_product(MlxEngine *engine, const MlxMatrix *matrix, mlx_array x);

#endif
