/* The table of model types.
 *
 * Attention windows follow mlx_lm, because a directory has to give the same tokens here: mistral's,
 * phi3's, gemma2's and qwen's `sliding_window` is not applied unless the architecture reads
 * `layer_types` and those name sliding layers; Gemma-3 slides on every layer but each sixth (or as
 * its keys say). Defaults are those that mlx_lm or transformers take for a key that config.json
 * leaves out. */
#include "model_parts.h"

static const ExpertNames QWEN_EXPERTS = {
    .module = "mlp",
    .gate = "gate_proj",
    .up = "up_proj",
    .down = "down_proj",
    .count_key = "num_experts",
    .width_key = "moe_intermediate_size",
};

static const ExpertNames MIXTRAL_EXPERTS = {
    .module = "block_sparse_moe",
    .gate = "w1",
    .up = "w3",
    .down = "w2",
    .count_key = "num_local_experts",
    .width_key = "intermediate_size",
    .are_normalized = true,
};

static const Architecture ARCHITECTURES[] = {
    {
        .model_type = "llama",
        .reads_bias_keys = true,
        .reads_layer_types = true,
        .max_position_embeddings = 2048,
        .rope_theta = 10000.0,
    },
    {
        .model_type = "mistral",
        .reads_bias_keys = true,
        .reads_layer_types = true,
        .max_position_embeddings = 131072,
        .rope_theta = 10000.0,
    },
    {
        .model_type = "ministral3",
        .reads_layer_types = true,
        .has_query_scaling = true,
        .max_position_embeddings = 262144,
        .rope_theta = 1000000.0,
    },
    {
        .model_type = "mixtral",
        .head_dim_is_quotient = true,
        .experts = &MIXTRAL_EXPERTS,
        .vocab_size = 32000,
        .max_position_embeddings = 32768,
        .rms_norm_eps = 1e-5,
        .rope_theta = 1000000.0,
    },
    {
        .model_type = "smollm3",
        .reads_bias_keys = true,
        .reads_layer_types = true,
        .has_unrotated_layers = true,
        .max_position_embeddings = 32768,
        .rope_theta = 10000.0,
    },
    {
        .model_type = "qwen2",
        .always_qkv_bias = true,
        .head_dim_is_quotient = true,
        .max_position_embeddings = 32768,
        .rope_theta = 1000000.0,
    },
    {
        .model_type = "qwen3",
        .has_qk_norm = true,
        .head_dim = 128,
        .max_position_embeddings = 32768,
    },
    {
        .model_type = "qwen3_moe",
        .has_qk_norm = true,
        .experts = &QWEN_EXPERTS,
        .ignores_rope_scaling = true,
        .max_position_embeddings = 32768,
    },
    {
        .model_type = "gemma2",
        .activation = ACTIVATION_GELU_TANH,
        .tie = TIE_ALWAYS,
        .score_scale = SCORE_SCALE_QUERY_PRE_ATTN,
        .embedding_scale = EMBEDDING_SCALE_WEIGHT_DTYPE,
        .norm_adds_one = true,
        .has_post_norms = true,
        .has_softcaps = true,
        .ignores_rope_scaling = true,
        .head_dim = 256,
        .max_position_embeddings = 8192,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000.0,
        .query_pre_attn_scalar = 144.0,
        .attn_logit_softcapping = 50.0,
        .final_logit_softcapping = 30.0,
    },
    {
        .model_type = "gemma3_text",
        .activation = ACTIVATION_GELU_TANH,
        .tie = TIE_BY_TENSORS,
        .score_scale = SCORE_SCALE_QUERY_PRE_ATTN,
        .embedding_scale = EMBEDDING_SCALE_BFLOAT16,
        .norm_adds_one = true,
        .has_post_norms = true,
        .has_qk_norm = true,
        .has_sliding_pattern = true,
        .has_local_rope = true,
        .reads_layer_types = true,
        .hidden_size = 1152,
        .num_hidden_layers = 26,
        .intermediate_size = 6912,
        .num_attention_heads = 4,
        .num_key_value_heads = 1,
        .head_dim = 256,
        .vocab_size = 262144,
        .max_position_embeddings = 32768,
        .sliding_window = 512,
        .rms_norm_eps = 1e-6,
        .rope_theta = 1000000.0,
        .rope_local_base_freq = 10000.0,
        .query_pre_attn_scalar = 256.0,
    },
    {
        .model_type = "phi3",
        .tie = TIE_BY_KEY,
        .has_fused_projections = true,
        .head_dim_is_quotient = true,
        .has_partial_rotary = true,
        .max_position_embeddings = 131072,
        .rope_theta = 10000.0,
    },
};

/* Multimodal models around a text model that has an entry of its own. Numbers are defaults in place
 * of the entry's; 0: as there. */
static const struct Wrapper {
    const char *model_type;
    const char *text_type; /* text_config's model_type; NULL: whatever it says */
    const char *entry;
    uint32_t num_attention_heads, num_key_value_heads, vocab_size, max_position_embeddings;
    double rope_theta;
} WRAPPERS[] = {
    {.model_type = "mistral3", .text_type = "mistral", .entry = "mistral"},
    {.model_type = "mistral3", .text_type = "ministral3", .entry = "ministral3"},
    {
        .model_type = "qwen3_vl",
        .entry = "qwen3",
        .max_position_embeddings = 128000,
        .rope_theta = 5000000.0,
    },
    {
        .model_type = "qwen3_vl_moe",
        .entry = "qwen3_moe",
        .max_position_embeddings = 128000,
        .rope_theta = 5000000.0,
    },
    {
        .model_type = "gemma3",
        .entry = "gemma3_text",
        .num_attention_heads = 8,
        .num_key_value_heads = 4,
        .vocab_size = 262208,
        .max_position_embeddings = 131072,
    },
};

static bool find_entry(Slice model_type, Architecture *out)
{
    for (size_t i = 0; i < ARRAY_COUNT(ARCHITECTURES); i++) {
        if (slice_equal(slice_of(ARCHITECTURES[i].model_type), model_type)) {
            *out = ARCHITECTURES[i];
            out->tensor_prefix = "";
            return true;
        }
    }
    return false;
}

static void set_default(uint32_t value, uint32_t *out)
{
    if (value > 0)
        *out = value;
}

bool architecture_find(Slice model_type, Slice text_type, Architecture *out)
{
    if (text_type.len == 0)
        text_type = SLICE("mistral"); /* mistral3's, where it is absent */
    for (size_t i = 0; i < ARRAY_COUNT(WRAPPERS); i++) {
        const struct Wrapper *w = &WRAPPERS[i];
        if (!slice_equal(slice_of(w->model_type), model_type) ||
            (w->text_type && !slice_equal(slice_of(w->text_type), text_type)))
            continue;
        bool found = find_entry(slice_of(w->entry), out);
        out->model_type = w->model_type;
        out->text_key = "text_config";
        out->tensor_prefix = "language_model.";
        set_default(w->num_attention_heads, &out->num_attention_heads);
        set_default(w->num_key_value_heads, &out->num_key_value_heads);
        set_default(w->vocab_size, &out->vocab_size);
        set_default(w->max_position_embeddings, &out->max_position_embeddings);
        if (w->rope_theta > 0)
            out->rope_theta = w->rope_theta;
        return found;
    }
    return find_entry(model_type, out);
}

bool architecture_is_wrapper(Slice model_type)
{
    for (size_t i = 0; i < ARRAY_COUNT(WRAPPERS); i++) {
        if (slice_equal(slice_of(WRAPPERS[i].model_type), model_type))
            return true;
    }
    return false;
}

const char *model_supported_types(void)
{
    return "llama, mistral, mistral3, ministral3, mixtral, smollm3, qwen2, qwen3, qwen3_moe, "
           "qwen3_vl, qwen3_vl_moe, gemma2, gemma3_text, gemma3, phi3";
}
