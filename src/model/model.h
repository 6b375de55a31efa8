/* model: what a model directory says, as one description that engines read.
 *
 * ModelConfig is config.json reduced to the facts of a transformer of this family; the architecture
 * table says per model_type how the keys map to those facts. ModelWeights binds every tensor once,
 * with shape checks, to named fields, so that a forward pass never looks up a string. A new
 * architecture is a table entry and a name mapping, not a new forward pass. It knows nothing of
 * engines or text. Threads: a Model is immutable after model_open, any thread. Field names keep the
 * keys of config.json. */
#ifndef MODEL_H
#define MODEL_H

#include "base.h"
#include "weights.h"

#include <math.h>

enum {
    MODEL_LAYERS_MAX = 1024,
    MODEL_DIM_MAX = 1 << 20, /* of any single dimension but the vocabulary */
    MODEL_VOCAB_MAX = 1 << 22,
    MODEL_HEADS_MAX = 1024,
    MODEL_EXPERTS_MAX = 1024,
    MODEL_EOS_MAX = 16,
};

typedef enum Activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH } Activation;

typedef enum RopeScaling {
    ROPE_SCALING_NONE,
    ROPE_SCALING_LINEAR,
    ROPE_SCALING_LLAMA3,
    ROPE_SCALING_YARN,
    ROPE_SCALING_LONGROPE
} RopeScaling;

/* One rotary table: inv[d] for each of rotary_dims / 2 pairs (d, d + rotary_dims / 2), scaling
 * applied; cos and sin are multiplied by attention_factor. Computed by model_open in double. */
typedef struct RopeTable {
    uint32_t rotary_dims;
    double attention_factor;
    double *inverse_frequencies; /* [rotary_dims / 2]; double: positions reach 2^20 */
    RopeScaling scaling;
    double rope_theta, factor; /* as configured, for `info` */
} RopeTable;

enum { MODEL_ROPE_TABLES = 2, MODEL_ROPE_NONE = MODEL_ROPE_TABLES };

typedef struct LayerConfig {
    uint32_t sliding_window; /* 0: every earlier key is seen; W: keys j with i - W < j <= i */
    uint8_t rope;            /* index into ModelConfig.rope; MODEL_ROPE_NONE: not rotated */
    bool is_sparse;          /* experts instead of a dense MLP */
} LayerConfig;

typedef struct ModelConfig {
    char model_type[64];
    uint32_t hidden_size, intermediate_size, num_hidden_layers;
    uint32_t num_attention_heads, num_key_value_heads, head_dim;
    uint32_t vocab_size; /* rows of the embedding and length of a logits vector */
    uint32_t max_position_embeddings;
    float rms_norm_eps;

    bool norm_adds_one;  /* Gemma: the weight of a norm is 1 + w (already added in ModelWeights) */
    bool has_post_norms; /* Gemma: norms after attention and MLP too */
    bool has_qk_norm;    /* per head, before RoPE */
    bool has_qkv_bias, has_o_bias, has_mlp_bias;
    bool has_fused_qkv, has_fused_gate_up; /* phi3's tensors; ModelWeights holds the parts */
    bool tie_word_embeddings;
    Activation activation;
    float attention_scale;         /* multiplies q.k */
    float attn_logit_softcapping;  /* 0: none */
    float final_logit_softcapping; /* 0: none */
    float embedding_scale;         /* 1: none */
    /* Ministral-3: q at position p times 1 + beta ln(1 + floor(p / length)); length 0: as it is. */
    double query_scaling_beta;
    uint32_t query_scaling_length;

    LayerConfig *layers;               /* [num_hidden_layers] */
    RopeTable rope[MODEL_ROPE_TABLES]; /* 0: global; 1: local (Gemma-3's sliding layers) */

    uint32_t num_experts, num_experts_per_tok, moe_intermediate_size; /* 0: dense */
    bool norm_topk_prob;

    int32_t eos_token_ids[MODEL_EOS_MAX]; /* generation_config.json's, else config.json's */
    size_t n_eos_token_ids;
} ModelConfig;

/* float32 copies of the small tensors (norms, biases) live in the model's arena; NULL where absent.
 */
typedef struct LayerWeights {
    const float *input_norm;          /* [hidden_size] before attention */
    const float *post_attention_norm; /* [hidden_size] Gemma: after attention; else NULL */
    const float *pre_mlp_norm;        /* [hidden_size] before the MLP */
    const float *post_mlp_norm;       /* [hidden_size] Gemma: after the MLP; else NULL */
    const float *q_norm, *k_norm;     /* [head_dim] */
    WeightMatrix q, k, v, o; /* [heads * head_dim, hidden] ... o [hidden, heads * head_dim] */
    const float *q_bias, *k_bias, *v_bias, *o_bias;
    WeightMatrix gate, up, down; /* dense MLP: [intermediate, hidden] x2, [hidden, intermediate] */
    const float *gate_bias, *up_bias, *down_bias;
    WeightMatrix router;                              /* sparse: [experts, hidden] */
    WeightMatrix expert_gate, expert_up, expert_down; /* sparse: [experts, ...] */
} LayerWeights;

typedef struct ModelWeights {
    WeightMatrix embedding;  /* [vocab, hidden] */
    WeightMatrix head;       /* [vocab, hidden]; the embedding's tensors when tied */
    const float *final_norm; /* [hidden] */
    LayerWeights *layers;    /* [num_hidden_layers] */
    size_t parameter_count;
    size_t bytes; /* of the tensors that are used, as stored */
    /* Tensors beside the text model (a vision tower) that nothing uses; NULL and 0 without any. */
    const TensorView *first_skipped;
    size_t n_skipped, skipped_bytes;
} ModelWeights;

typedef struct Model {
    ModelConfig config;
    ModelWeights weights;
    TensorSet *tensors;
    Arena arena; /* owns the config's and weights' arrays */
} Model;

/* Reads config.json, generation_config.json and the safetensors of a directory. An unknown
 * model_type is ERROR_UNSUPPORTED listing what is supported. */
bool model_open(const char *directory, Model **out, Error *err) WARN_UNUSED;
void model_close(Model *model);
/* A model with the shape that a config.json's text describes and random weights (layout:
 * tensor_set_create_random), made in memory to measure speed: its logits are finite and mean
 * nothing. */
bool model_create_random(Slice config_json, uint32_t bits, uint32_t group_size, Model **out,
                         Error *err) WARN_UNUSED;
/* config.json's text alone to a config, for tests and fuzzing; arrays live in arena. */
bool model_config_parse(Slice config_json, Slice generation_config_json, Arena *arena,
                        ModelConfig *out, Error *err) WARN_UNUSED;
/* "llama, mistral, ..." */
const char *model_supported_types(void);
/* What q of a token at this position is multiplied by, beside attention_scale. */
static inline double model_query_scale(const ModelConfig *config, size_t position)
{
    if (config->query_scaling_length == 0)
        return 1.0;
    size_t lengths = position / config->query_scaling_length;
    return 1.0 + config->query_scaling_beta * log1p((double)lengths);
}
bool model_is_eos(const ModelConfig *config, int32_t id);
/* Adds the tokenizer's own end of text to the ids that end a text (it knows no text itself); a
 * negative or known id changes nothing. Before other threads see the model. */
bool model_add_eos(Model *model, int32_t id, Error *err) WARN_UNUSED;

#endif
