/* Private to model: what the files of this room hand each other while a model is opened.
 *
 * config.c turns config.json into a ModelConfig and a ModelDraft; the draft holds what only tensor
 * binding can settle (is there a separate head, which dtype rounds the embedding scale) and lives
 * as long as the JSON tree that it points into. */
#ifndef MODEL_PARTS_H
#define MODEL_PARTS_H

#include "json.h"
#include "model.h"

/* How a separate output head is told from a tied one. */
typedef enum TieRule {
    TIE_BY_KEY_OR_TENSORS, /* tie_word_embeddings; where that is absent, the tensors decide */
    TIE_BY_KEY,            /* where it is absent, the head is separate */
    TIE_BY_TENSORS,        /* tied unless lm_head tensors exist */
    TIE_ALWAYS
} TieRule;

typedef enum ScoreScale {
    SCORE_SCALE_HEAD_DIM,      /* head_dim^-1/2 */
    SCORE_SCALE_QUERY_PRE_ATTN /* query_pre_attn_scalar^-1/2 */
} ScoreScale;

typedef enum EmbeddingScale {
    EMBEDDING_SCALE_NONE,
    EMBEDDING_SCALE_BFLOAT16, /* sqrt(hidden_size) rounded to bfloat16, whatever the weights are */
    EMBEDDING_SCALE_WEIGHT_DTYPE /* rounded to the dtype of the embedding's values */
} EmbeddingScale;

/* What a kind of experts is called. */
typedef struct ExpertNames {
    const char *module;           /* in a layer */
    const char *gate, *up, *down; /* of an expert, where they are not stacked */
    const char *count_key, *width_key;
    bool are_normalized; /* their shares, where norm_topk_prob is absent */
} ExpertNames;

/* One model_type. Numbers are defaults for absent keys; 0 means that the key is required. */
typedef struct Architecture {
    const char *model_type;
    /* Set by architecture_find: */
    const char *text_key;      /* key of the object that holds the text model's keys, or NULL */
    const char *tensor_prefix; /* in front of "model." and "lm_head" */
    Activation activation;
    TieRule tie;
    ScoreScale score_scale;
    EmbeddingScale embedding_scale;
    bool norm_adds_one, has_post_norms, has_qk_norm;
    bool has_fused_projections; /* qkv_proj and gate_up_proj */
    bool always_qkv_bias;
    bool reads_bias_keys;      /* attention_bias and mlp_bias */
    bool head_dim_is_quotient; /* hidden_size / heads even where a head_dim key exists */
    bool reads_layer_types;    /* layer_types may name sliding layers */
    bool has_sliding_pattern;  /* every nth layer is global, the others slide */
    bool has_local_rope;       /* sliding layers have their own rotary base, never scaled */
    bool has_unrotated_layers; /* no_rope_layers, or every nth layer */
    bool has_query_scaling;    /* llama_4_scaling_beta */
    bool has_softcaps;
    bool has_partial_rotary;
    bool ignores_rope_scaling;
    const ExpertNames *experts; /* NULL: none */
    uint32_t hidden_size, num_hidden_layers, intermediate_size;
    uint32_t num_attention_heads,
        num_key_value_heads; /* key/value heads: 0 means as many as heads */
    uint32_t head_dim;       /* 0: hidden_size / heads */
    uint32_t vocab_size, max_position_embeddings, sliding_window;
    double rms_norm_eps, rope_theta, rope_local_base_freq, query_pre_attn_scalar;
    double attn_logit_softcapping, final_logit_softcapping;
} Architecture;

typedef struct ModelDraft {
    Architecture architecture;
    const JsonValue *quantization; /* config.json's object, or NULL */
    TieRule tie;                   /* after the keys were read: BY_TENSORS or what follows */
    bool is_tied;                  /* meaningful unless tie is TIE_BY_TENSORS */
    bool vocab_from_embedding;     /* the embedding's rows overrule vocab_size */
} ModelDraft;

/* text_type: the model_type within text_config, or empty. False: there is none. architecture.c */
bool architecture_find(Slice model_type, Slice text_type, Architecture *out);
/* Whether what text_config holds decides. architecture.c */
bool architecture_is_wrapper(Slice model_type);

/* Both trees were parsed already; generation may be NULL. Arrays of config go to arena. config.c */
bool config_build(const JsonValue *root, const JsonValue *generation, Arena *arena,
                  ModelConfig *config, ModelDraft *draft, Error *err) WARN_UNUSED;

/* A positive integer key: def when absent, which is an error when def is 0. config.c */
bool config_read_dimension(const JsonValue *object, const char *key, uint32_t max, uint32_t def,
                           uint32_t *out, Error *err) WARN_UNUSED;
/* A finite number above 0: def when absent, which is an error when def is 0. config.c */
bool config_read_positive(const JsonValue *object, const char *key, double def, double *out,
                          Error *err) WARN_UNUSED;

/* Fills config->rope from rope_theta, rope_scaling and rope_parameters of the text object. rope.c
 */
bool rope_tables_build(const JsonValue *text, const Architecture *architecture, Arena *arena,
                       ModelConfig *config, Error *err) WARN_UNUSED;

/* config.json's quantisation object (NULL when there is none); other formats are refused.
 * quantization.c */
bool quantization_find(const JsonValue *root, const JsonValue **out, Error *err) WARN_UNUSED;
/* The object's global values; not quantised when there is no object. */
bool quantization_defaults(const JsonValue *quantization, QuantSpec *out, Error *err) WARN_UNUSED;
/* What the object says about one module: *named tells whether it names the module at all. */
bool quantization_module(const JsonValue *quantization, const char *module, QuantSpec *out,
                         bool *named, Error *err) WARN_UNUSED;

/* Binds every tensor; settles the draft's open questions in model->config. bind.c */
bool weights_bind(Model *model, const ModelDraft *draft, Error *err) WARN_UNUSED;

#endif
