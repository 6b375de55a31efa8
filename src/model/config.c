/* config.json to ModelConfig, key by key, by the architecture's table entry.
 *
 * Nothing is believed: every number has a range, every quotient must divide, every product of two
 * keys must fit. A message names the key, what was found and what was expected. Multimodal
 * models keep the text model's keys in text_config; a key that is not there has the entry's
 * default. */
#include "model_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool config_read_dimension(const JsonValue *object, const char *key, uint32_t max, uint32_t def,
                           uint32_t *out, Error *err)
{
    int64_t value = def;
    if (!json_read_int(object, key, 1, (int64_t)max, &value, err))
        return false;
    if (value == 0)
        return error_set(err, ERROR_INVALID, "key %s is missing, expected an integer from 1 to %u",
                         key, max);
    *out = (uint32_t)value;
    return true;
}

bool config_read_positive(const JsonValue *object, const char *key, double def, double *out,
                          Error *err)
{
    double value = def;
    if (!json_read_double(object, key, &value, err))
        return false;
    if (!(value > 0.0) && !json_get_present(object, key))
        return error_set(err, ERROR_INVALID, "key %s is missing, expected a number above 0", key);
    if (!(value > 0.0) || !isfinite(value))
        return error_set(err, ERROR_INVALID, "%s is %g, expected a finite number above 0", key,
                         value);
    *out = value;
    return true;
}

static bool read_positive_float(const JsonValue *object, const char *key, double def, float *out,
                                Error *err)
{
    double value = 0;
    if (!config_read_positive(object, key, def, &value, err))
        return false;
    if (!(value >= 1e-30 && value <= 1e30))
        return error_set(err, ERROR_INVALID, "%s is %g, expected from 1e-30 to 1e30", key, value);
    *out = (float)value;
    return true;
}

static bool find_architecture(const JsonValue *root, Architecture *out, Error *err)
{
    Slice type = SLICE_EMPTY;
    if (!json_read_string(root, "model_type", &type, err))
        return false;
    if (!type.ptr)
        return error_set(err, ERROR_INVALID, "key model_type is missing, expected one of %s",
                         model_supported_types());
    const JsonValue *text = json_get_present(root, "text_config");
    Slice text_type = SLICE_EMPTY;
    if (json_is(text, JSON_OBJECT) && !json_read_string(text, "model_type", &text_type, err))
        return error_prefix(err, "text_config");
    if (architecture_find(type, text_type, out))
        return true;
    if (architecture_is_wrapper(type))
        return error_set(err, ERROR_UNSUPPORTED,
                         "text_config: model_type \"%.*s\" is not supported within %.*s",
                         SLICE_ARG(text_type), SLICE_ARG(type));
    return error_set(err, ERROR_UNSUPPORTED,
                     "model_type \"%.*s\" is not supported, expected one of %s", SLICE_ARG(type),
                     model_supported_types());
}

static bool read_head_shape(const JsonValue *text, const Architecture *architecture,
                            ModelConfig *config, Error *err)
{
    uint32_t heads = 1, kv_heads = 1;
    if (!config_read_dimension(text, "num_attention_heads", MODEL_HEADS_MAX,
                               architecture->num_attention_heads, &heads, err))
        return false;
    uint32_t kv_default =
        architecture->num_key_value_heads ? architecture->num_key_value_heads : heads;
    if (!config_read_dimension(text, "num_key_value_heads", MODEL_HEADS_MAX, kv_default, &kv_heads,
                               err))
        return false;
    if (heads % kv_heads != 0)
        return error_set(err, ERROR_INVALID,
                         "num_key_value_heads is %u, expected a divisor of num_attention_heads %u",
                         kv_heads, heads);
    bool has_key = !architecture->head_dim_is_quotient && json_get_present(text, "head_dim");
    if (!has_key && architecture->head_dim == 0 && config->hidden_size % heads != 0)
        return error_set(err, ERROR_INVALID,
                         "hidden_size is %u, expected a multiple of num_attention_heads %u",
                         config->hidden_size, heads);
    uint32_t dim_default =
        architecture->head_dim ? architecture->head_dim : config->hidden_size / heads;
    config->head_dim = dim_default;
    if (has_key &&
        !config_read_dimension(text, "head_dim", MODEL_DIM_MAX, 0, &config->head_dim, err))
        return false;
    if (config->head_dim < 2 || config->head_dim % 2 != 0)
        return error_set(err, ERROR_INVALID, "head_dim is %u, expected an even number",
                         config->head_dim);
    if ((uint64_t)heads * config->head_dim > MODEL_DIM_MAX)
        return error_set(err, ERROR_LIMIT,
                         "num_attention_heads %u times head_dim %u, expected at most %d", heads,
                         config->head_dim, MODEL_DIM_MAX);
    config->num_attention_heads = heads;
    config->num_key_value_heads = kv_heads;
    return true;
}

static bool read_shape(const JsonValue *root, const JsonValue *text,
                       const Architecture *architecture, ModelConfig *config, Error *err)
{
    uint32_t inner_vocab = architecture->vocab_size;
    if (text != root && json_get_present(text, "vocab_size") &&
        !config_read_dimension(text, "vocab_size", MODEL_VOCAB_MAX, 0, &inner_vocab, err))
        return false;
    return config_read_dimension(text, "hidden_size", MODEL_DIM_MAX, architecture->hidden_size,
                                 &config->hidden_size, err) &&
           config_read_dimension(text, "intermediate_size", MODEL_DIM_MAX,
                                 architecture->intermediate_size, &config->intermediate_size,
                                 err) &&
           config_read_dimension(text, "num_hidden_layers", MODEL_LAYERS_MAX,
                                 architecture->num_hidden_layers, &config->num_hidden_layers,
                                 err) &&
           config_read_dimension(root, "vocab_size", MODEL_VOCAB_MAX, inner_vocab,
                                 &config->vocab_size, err) &&
           config_read_dimension(text, "max_position_embeddings", 1u << 30,
                                 architecture->max_position_embeddings,
                                 &config->max_position_embeddings, err) &&
           read_positive_float(text, "rms_norm_eps", architecture->rms_norm_eps,
                               &config->rms_norm_eps, err) &&
           read_head_shape(text, architecture, config, err);
}

static bool check_activation(const JsonValue *text, Activation activation, Error *err)
{
    static const char *const KEYS[] = {"hidden_act", "hidden_activation"};
    static const char *const NAMES[2][4] = {
        [ACTIVATION_SILU] = {"silu", "swish"},
        [ACTIVATION_GELU_TANH] = {"gelu_pytorch_tanh", "gelu_tanh", "gelu_new", "gelu"},
    };
    for (size_t k = 0; k < ARRAY_COUNT(KEYS); k++) {
        Slice name = SLICE_EMPTY;
        if (!json_read_string(text, KEYS[k], &name, err))
            return false;
        bool known = !name.ptr;
        for (size_t i = 0; i < 4 && !known; i++)
            known = NAMES[activation][i] && slice_equal(slice_of(NAMES[activation][i]), name);
        if (!known)
            return error_set(err, ERROR_UNSUPPORTED, "%s is \"%.*s\", expected \"%s\"", KEYS[k],
                             SLICE_ARG(name), NAMES[activation][0]);
    }
    return true;
}

static bool read_biases(const JsonValue *text, const Architecture *architecture,
                        ModelConfig *config, Error *err)
{
    bool attention = false, mlp = false;
    if (!json_read_bool(text, "attention_bias", &attention, err) ||
        !json_read_bool(text, "mlp_bias", &mlp, err))
        return false;
    if (!architecture->reads_bias_keys && (attention || mlp))
        return error_set(err, ERROR_UNSUPPORTED, "%s is true, expected false for model_type %s",
                         attention ? "attention_bias" : "mlp_bias", architecture->model_type);
    config->has_qkv_bias = attention || architecture->always_qkv_bias;
    config->has_o_bias = attention;
    config->has_mlp_bias = mlp;
    return true;
}

/* An absent key has its default, but null means no cap. */
static bool read_softcap(const JsonValue *text, const char *key, double def, float *out, Error *err)
{
    const JsonValue *value = json_get(text, slice_of(key));
    *out = 0;
    return json_is(value, JSON_NULL) || read_positive_float(text, key, def, out, err);
}

static bool read_scales(const JsonValue *text, const Architecture *architecture,
                        ModelConfig *config, Error *err)
{
    double score = (double)config->head_dim;
    if (architecture->score_scale == SCORE_SCALE_QUERY_PRE_ATTN &&
        !config_read_positive(text, "query_pre_attn_scalar", architecture->query_pre_attn_scalar,
                              &score, err))
        return false;
    config->attention_scale = (float)(1.0 / sqrt(score));
    double embedding = sqrt((double)config->hidden_size);
    config->embedding_scale = 1.0f;
    if (architecture->embedding_scale == EMBEDDING_SCALE_BFLOAT16)
        config->embedding_scale = float_from_bf16(float_to_bf16((float)embedding));
    else if (architecture->embedding_scale == EMBEDDING_SCALE_WEIGHT_DTYPE)
        config->embedding_scale = (float)embedding;
    if (!architecture->has_softcaps)
        return true;
    return read_softcap(text, "attn_logit_softcapping", architecture->attn_logit_softcapping,
                        &config->attn_logit_softcapping, err) &&
           read_softcap(text, "final_logit_softcapping", architecture->final_logit_softcapping,
                        &config->final_logit_softcapping, err);
}

/* layer_types: an array of one name per layer. */
static bool read_layer_types(const JsonValue *types, uint32_t window, ModelConfig *config,
                             Error *err)
{
    uint32_t n_layers = config->num_hidden_layers;
    if (types->kind != JSON_ARRAY || types->as.array.count != n_layers)
        return error_set(err, ERROR_INVALID, "layer_types has %zu items, expected %u",
                         types->kind == JSON_ARRAY ? types->as.array.count : 0, n_layers);
    for (uint32_t i = 0; i < n_layers; i++) {
        const JsonValue *item = &types->as.array.items[i];
        Slice name = item->kind == JSON_STRING ? item->as.string : SLICE_EMPTY;
        bool slides = slice_equal(name, SLICE("sliding_attention"));
        if (!slides && !slice_equal(name, SLICE("full_attention")))
            return error_set(
                err, ERROR_UNSUPPORTED,
                "layer_types[%u] is \"%.*s\", expected full_attention or sliding_attention", i,
                SLICE_ARG(name));
        if (slides && window == 0)
            return error_set(
                err, ERROR_INVALID,
                "key sliding_window is missing, but layer_types[%u] is sliding_attention", i);
        config->layers[i].sliding_window = slides ? window : 0;
    }
    return true;
}

static bool read_pattern(const JsonValue *text, uint32_t window, ModelConfig *config, Error *err)
{
    uint32_t pattern = 1, older = 6;
    if (!config_read_dimension(text, "_sliding_window_pattern", 1u << 30, 6, &older, err) ||
        !config_read_dimension(text, "sliding_window_pattern", 1u << 30, older, &pattern, err))
        return false;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        config->layers[i].sliding_window = (i + 1) % pattern == 0 ? 0 : window;
    return true;
}

static bool read_windows(const JsonValue *text, const Architecture *architecture,
                         ModelConfig *config, Error *err)
{
    const JsonValue *types =
        architecture->reads_layer_types ? json_get_present(text, "layer_types") : NULL;
    if (!types && !architecture->has_sliding_pattern)
        return true;
    int64_t window = architecture->sliding_window;
    if (!json_read_int(text, "sliding_window", 1, 1 << 30, &window, err))
        return false;
    bool ok = types ? read_layer_types(types, (uint32_t)window, config, err)
                    : read_pattern(text, (uint32_t)window, config, err);
    if (!ok)
        return false;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        config->layers[i].rope = architecture->has_local_rope && config->layers[i].sliding_window;
    return true;
}

/* no_rope_layers: 0 for each layer that is not rotated; where it is absent, every nth is not. */
static bool read_unrotated_layers(const JsonValue *text, const Architecture *architecture,
                                  ModelConfig *config, Error *err)
{
    uint32_t interval = 0, n_layers = config->num_hidden_layers;
    if (!architecture->has_unrotated_layers)
        return true;
    if (!config_read_dimension(text, "no_rope_layer_interval", 1u << 30, 4, &interval, err))
        return false;
    const JsonValue *list = json_get_present(text, "no_rope_layers");
    if (list && (list->kind != JSON_ARRAY || list->as.array.count != n_layers))
        return error_set(err, ERROR_INVALID, "no_rope_layers has %zu items, expected %u",
                         list->kind == JSON_ARRAY ? list->as.array.count : 0, n_layers);
    for (uint32_t i = 0; i < n_layers; i++) {
        int64_t rotated = (i + 1) % interval != 0;
        if (list && !json_to_int64(&list->as.array.items[i], &rotated))
            return error_set(err, ERROR_INVALID, "no_rope_layers[%u] is a %s, expected 0 or 1", i,
                             json_kind_name(list->as.array.items[i].kind));
        if (!rotated)
            config->layers[i].rope = MODEL_ROPE_NONE;
    }
    return true;
}

/* Among rope_parameters, as mlx_lm has it. */
static bool read_query_scaling(const JsonValue *text, const Architecture *architecture,
                               ModelConfig *config, Error *err)
{
    const JsonValue *parameters = json_get_present(text, "rope_parameters");
    if (!architecture->has_query_scaling || !json_get_present(parameters, "llama_4_scaling_beta"))
        return true;
    if (!json_read_double(parameters, "llama_4_scaling_beta", &config->query_scaling_beta, err) ||
        !config_read_dimension(parameters, "original_max_position_embeddings", 1u << 30, 0,
                               &config->query_scaling_length, err))
        return error_prefix(err, "rope_parameters");
    if (!(config->query_scaling_beta >= 0.0 && config->query_scaling_beta <= 1e6))
        return error_set(err, ERROR_INVALID,
                         "rope_parameters: llama_4_scaling_beta is %g, expected from 0 to 1e6",
                         config->query_scaling_beta);
    return true;
}

static bool mark_dense_layers(const JsonValue *text, ModelConfig *config, Error *err)
{
    const JsonValue *dense = json_get_present(text, "mlp_only_layers");
    if (!dense)
        return true;
    if (dense->kind != JSON_ARRAY)
        return error_set(err, ERROR_INVALID, "mlp_only_layers is a %s, expected an array",
                         json_kind_name(dense->kind));
    for (size_t i = 0; i < dense->as.array.count; i++) {
        int64_t layer;
        if (!json_to_int64(&dense->as.array.items[i], &layer))
            return error_set(err, ERROR_INVALID,
                             "mlp_only_layers[%zu] is a %s, expected an integer", i,
                             json_kind_name(dense->as.array.items[i].kind));
        if (layer >= 0 && layer < (int64_t)config->num_hidden_layers)
            config->layers[layer].is_sparse = false;
    }
    return true;
}

static bool read_experts(const JsonValue *text, const Architecture *architecture,
                         ModelConfig *config, Error *err)
{
    const ExpertNames *names = architecture->experts;
    if (!names)
        return true;
    uint32_t step = 1;
    config->norm_topk_prob = names->are_normalized;
    if (!config_read_dimension(text, names->count_key, MODEL_EXPERTS_MAX, 0, &config->num_experts,
                               err) ||
        !config_read_dimension(text, "num_experts_per_tok", config->num_experts, 0,
                               &config->num_experts_per_tok, err) ||
        !config_read_dimension(text, names->width_key, MODEL_DIM_MAX, 0,
                               &config->moe_intermediate_size, err) ||
        !config_read_dimension(text, "decoder_sparse_step", 1u << 30, 1, &step, err) ||
        !json_read_bool(text, "norm_topk_prob", &config->norm_topk_prob, err))
        return false;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        config->layers[i].is_sparse = (i + 1) % step == 0;
    return mark_dense_layers(text, config, err);
}

static bool read_tie(const JsonValue *root, const JsonValue *text, const Architecture *architecture,
                     ModelDraft *draft, Error *err)
{
    bool tied = false;
    if (!json_read_bool(root, "tie_word_embeddings", &tied, err) ||
        !json_read_bool(text, "tie_word_embeddings", &tied, err))
        return false;
    draft->tie = architecture->tie;
    draft->is_tied = tied || architecture->tie == TIE_ALWAYS;
    if (architecture->tie == TIE_BY_KEY_OR_TENSORS &&
        !json_get_present(root, "tie_word_embeddings") &&
        !json_get_present(text, "tie_word_embeddings"))
        draft->tie = TIE_BY_TENSORS;
    return true;
}

static bool add_eos(const JsonValue *value, ModelConfig *config, Error *err)
{
    int64_t id;
    if (!json_to_int64(value, &id) || id < 0 || id > INT32_MAX)
        return error_set(err, ERROR_INVALID, "eos_token_id: a %s, expected token ids from 0 to %d",
                         json_kind_name(value->kind), INT32_MAX);
    if (config->n_eos_token_ids == MODEL_EOS_MAX)
        return error_set(err, ERROR_LIMIT, "eos_token_id has more than %d ids", MODEL_EOS_MAX);
    config->eos_token_ids[config->n_eos_token_ids++] = (int32_t)id;
    return true;
}

static bool read_eos(const JsonValue *object, ModelConfig *config, Error *err)
{
    const JsonValue *value = json_get_present(object, "eos_token_id");
    if (!value || config->n_eos_token_ids > 0)
        return true;
    if (value->kind != JSON_ARRAY)
        return add_eos(value, config, err);
    for (size_t i = 0; i < value->as.array.count; i++) {
        if (!add_eos(&value->as.array.items[i], config, err))
            return false;
    }
    return true;
}

/* generation_config.json's ids replace config.json's when truthy: neither 0 nor an empty list. */
static bool read_all_eos(const JsonValue *root, const JsonValue *text, const JsonValue *generation,
                         ModelConfig *config, Error *err)
{
    const JsonValue *value = json_get_present(generation, "eos_token_id");
    int64_t id;
    bool truthy = value && !(json_to_int64(value, &id) && id == 0);
    if (truthy && !read_eos(generation, config, err))
        return error_prefix(err, "generation_config.json");
    return (read_eos(root, config, err) && read_eos(text, config, err)) ||
           error_prefix(err, "config.json");
}

static bool build_from_text(const JsonValue *root, const JsonValue *text,
                            const Architecture *architecture, Arena *arena, ModelConfig *config,
                            ModelDraft *draft, Error *err)
{
    if (!read_shape(root, text, architecture, config, err) ||
        !check_activation(text, architecture->activation, err) ||
        !read_biases(text, architecture, config, err) ||
        !read_scales(text, architecture, config, err) ||
        !read_tie(root, text, architecture, draft, err) ||
        !quantization_find(root, &draft->quantization, err))
        return false;
    size_t n_layers = config->num_hidden_layers;
    config->layers = arena_allocate_array(arena, n_layers, sizeof *config->layers);
    if (!config->layers)
        return error_no_memory(err, "layer descriptions");
    memset(config->layers, 0, n_layers * sizeof *config->layers);
    return read_windows(text, architecture, config, err) &&
           read_unrotated_layers(text, architecture, config, err) &&
           read_query_scaling(text, architecture, config, err) &&
           read_experts(text, architecture, config, err) &&
           rope_tables_build(text, architecture, arena, config, err);
}

bool config_build(const JsonValue *root, const JsonValue *generation, Arena *arena,
                  ModelConfig *config, ModelDraft *draft, Error *err)
{
    *config = (ModelConfig){0};
    *draft = (ModelDraft){0};
    if (!json_is(root, JSON_OBJECT))
        return error_set(err, ERROR_INVALID, "config.json: is a %s, expected an object",
                         json_kind_name(root->kind));
    if (!find_architecture(root, &draft->architecture, err))
        return error_prefix(err, "config.json");
    const Architecture *architecture = &draft->architecture;
    const JsonValue *text = root;
    if (architecture->text_key) {
        text = json_get_present(root, architecture->text_key);
        if (!json_is(text, JSON_OBJECT))
            return error_set(err, ERROR_INVALID, "config.json: key %s is %s, expected an object",
                             architecture->text_key, text ? json_kind_name(text->kind) : "missing");
    }
    snprintf(config->model_type, sizeof config->model_type, "%s", architecture->model_type);
    config->activation = architecture->activation;
    config->norm_adds_one = architecture->norm_adds_one;
    config->has_post_norms = architecture->has_post_norms;
    config->has_qk_norm = architecture->has_qk_norm;
    config->has_fused_qkv = config->has_fused_gate_up = architecture->has_fused_projections;
    draft->vocab_from_embedding = architecture->text_key != NULL;
    if (!build_from_text(root, text, architecture, arena, config, draft, err))
        return error_prefix(err, "config.json");
    config->tie_word_embeddings = draft->is_tied;
    return read_all_eos(root, text, generation, config, err);
}

bool model_config_parse(Slice config_json, Slice generation_config_json, Arena *arena,
                        ModelConfig *out, Error *err)
{
    Arena trees;
    arena_init(&trees, JSON_FILE_TREES_BYTES_MAX);
    const JsonValue *root = NULL, *generation = NULL;
    ModelDraft draft;
    bool ok = false;
    *out = (ModelConfig){0};
    if (!json_parse(config_json, &trees, &root, err)) {
        error_prefix(err, "config.json");
        goto cleanup;
    }
    if (generation_config_json.len > 0 &&
        !json_parse(generation_config_json, &trees, &generation, err)) {
        error_prefix(err, "generation_config.json");
        goto cleanup;
    }
    ok = config_build(root, generation, arena, out, &draft, err);
cleanup:
    if (!ok)
        *out = (ModelConfig){0};
    arena_reset(&trees);
    return ok;
}

bool model_is_eos(const ModelConfig *config, int32_t id)
{
    for (size_t i = 0; i < config->n_eos_token_ids; i++) {
        if (config->eos_token_ids[i] == id)
            return true;
    }
    return false;
}

bool model_add_eos(Model *model, int32_t id, Error *err)
{
    const JsonValue value = {.kind = JSON_INT, .as.integer = id};
    if (id < 0 || model_is_eos(&model->config, id))
        return true;
    return add_eos(&value, &model->config, err);
}
