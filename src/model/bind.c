/* Tensors to named fields, once, by the names of the MLX format.
 *
 *   PREFIX model.embed_tokens, model.norm, lm_head
 *   PREFIX model.layers.N.{input_layernorm, post_attention_layernorm, ...}
 *   PREFIX model.layers.N.self_attn.{q,k,v,o}_proj | qkv_proj, {q,k}_norm
 *   PREFIX model.layers.N.mlp.{gate,up,down}_proj | gate_up_proj
 *   PREFIX model.layers.N.mlp.gate, mlp.switch_mlp.{gate,up,down}_proj          (experts)
 *   PREFIX model.layers.N.mlp.experts.E.{gate,up,down}_proj      (the same, not stacked)
 *          Mixtral: block_sparse_moe instead of mlp, w1, w3 and w2 where not stacked
 *
 * Matrices are views (WeightMatrix); norms and biases are copied to float32, with Gemma's 1 added.
 * A tensor of a layer, of the norm, the embedding or the head that no field takes is refused, as
 * mlx_lm does: a bias that the configuration does not announce, or a layer beyond its count, would
 * otherwise be dropped without a word. Tensors beside those (a vision tower) are skipped and
 * counted, so that a caller can say so. */
#include "model_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODULE_NAME_MAX = 192 };

typedef struct Binder {
    Model *model;
    const ModelDraft *draft;
    char layer[64];          /* "language_model.model.layers.12." */
    const TensorView **used; /* every tensor that a field took */
    size_t n_used;
    QuantSpec defaults;
    bool defaults_fit;         /* a module that config.json does not name has the global layout */
    WeightMatrix first_misfit; /* weight NULL: none yet */
    Error *err;
} Binder;

static void note_used(Binder *b, const TensorView *tensor)
{
    if (!tensor)
        return;
    b->model->weights.bytes += tensor->n_bytes;
    if (!tensor_set_is_random(b->model->tensors))
        b->used[b->n_used++] = tensor;
}

/* Norms and biases that change nothing much: for a model of random weights. */
static bool make_vector(Binder *b, const char *name, size_t length, const float **out)
{
    float *values = arena_allocate_array(&b->model->arena, length, sizeof *values);
    if (!values)
        return error_no_memory(b->err, name);
    for (size_t i = 0; i < length; i++)
        values[i] = 1.0f;
    b->model->weights.parameter_count += length;
    *out = values;
    return true;
}

/* Reads a vector of length floats; adds one to each where that is the norm's rule. */
static bool bind_vector(Binder *b, const char *name, size_t length, bool adds_one,
                        const float **out)
{
    if (tensor_set_is_random(b->model->tensors))
        return make_vector(b, name, length, out);
    const TensorView *tensor = tensor_set_find(b->model->tensors, slice_of(name));
    if (!tensor)
        return error_set(b->err, ERROR_NOT_FOUND, "tensor %s: missing, expected shape [%zu]", name,
                         length);
    if (tensor->n_dims != 1 || (uint64_t)tensor->shape[0] != length) {
        char found[SHAPE_TEXT_MAX];
        return error_set(b->err, ERROR_INVALID, "tensor %s: shape %s, expected [%zu]", name,
                         tensor_shape_text(tensor, found), length);
    }
    if (tensor->dtype != DTYPE_F32 && tensor->dtype != DTYPE_F16 && tensor->dtype != DTYPE_BF16)
        return error_set(b->err, ERROR_INVALID, "tensor %s: dtype %s, expected F32, F16 or BF16",
                         name, dtype_name(tensor->dtype));
    float *values = arena_allocate_array(&b->model->arena, length, sizeof *values);
    if (!values)
        return error_no_memory(b->err, name);
    tensor_read_floats(tensor, 0, length, values);
    if (adds_one) {
        for (size_t i = 0; i < length; i++)
            values[i] += 1.0f;
    }
    note_used(b, tensor);
    b->model->weights.parameter_count += length;
    *out = values;
    return true;
}

static bool layer_name(const Binder *b, const char *suffix, const char *ending,
                       char out[MODULE_NAME_MAX])
{
    int n = snprintf(out, MODULE_NAME_MAX, "%s%s%s", b->layer, suffix, ending);
    return (n > 0 && n < MODULE_NAME_MAX) ||
           error_set(b->err, ERROR_INTERNAL, "tensor name %s is too long", suffix);
}

static bool bind_layer_norm(Binder *b, const char *suffix, size_t length, const float **out)
{
    char name[MODULE_NAME_MAX];
    return layer_name(b, suffix, ".weight", name) &&
           bind_vector(b, name, length, b->model->config.norm_adds_one, out);
}

static void compare_with_defaults(Binder *b, const WeightMatrix *matrix)
{
    if (matrix->mode == QUANT_NONE || !b->defaults.quantized)
        return;
    if (matrix->mode == b->defaults.mode && matrix->bits == b->defaults.bits &&
        matrix->group_size == b->defaults.group_size)
        b->defaults_fit = true;
    else if (!b->first_misfit.weight)
        b->first_misfit = *matrix;
}

/* A module that config.json does not name may differ from the global values, and its tensors
 * decide. But when all of them differ, one of the two files is not this model's. */
static bool check_defaults(const Binder *b)
{
    const WeightMatrix *m = &b->first_misfit;
    if (b->defaults_fit || !m->weight)
        return true;
    return error_set(b->err, ERROR_INVALID,
                     "config.json: quantization says %u bits, group_size %u, but no module is so: "
                     "tensor %.*s has %u bits, group_size %u",
                     b->defaults.bits, b->defaults.group_size, SLICE_ARG(m->weight->name), m->bits,
                     m->group_size);
}

static bool bind_module(Binder *b, const char *module, size_t n_experts, size_t rows, size_t cols,
                        WeightMatrix *out)
{
    QuantSpec spec;
    bool named;
    if (tensor_set_is_random(b->model->tensors)) {
        if (!weight_matrix_create_random(b->model->tensors, n_experts, rows, cols, out, b->err))
            return error_prefix(b->err, "%s", module);
    } else {
        if (!quantization_module(b->draft->quantization, module, &spec, &named, b->err) ||
            !weight_matrix_bind(b->model->tensors, module, n_experts, rows, cols,
                                named ? &spec : NULL, out, b->err))
            return false;
        if (!named)
            compare_with_defaults(b, out);
    }
    note_used(b, out->weight);
    note_used(b, out->scales);
    note_used(b, out->biases);
    note_used(b, out->global_scale);
    b->model->weights.parameter_count += n_experts * rows * cols;
    return true;
}

/* A linear layer of the current layer: the matrix, and its bias when has_bias. */
static bool bind_linear(Binder *b, const char *suffix, size_t rows, size_t cols, bool has_bias,
                        WeightMatrix *out, const float **bias)
{
    char name[MODULE_NAME_MAX];
    if (!layer_name(b, suffix, "", name) || !bind_module(b, name, 1, rows, cols, out))
        return false;
    if (out->global_scale)
        return error_set(b->err, ERROR_UNSUPPORTED, "tensor %.*s: expected on experts only",
                         SLICE_ARG(out->global_scale->name));
    return !has_bias ||
           (layer_name(b, suffix, ".bias", name) && bind_vector(b, name, rows, false, bias));
}

static bool bind_attention(Binder *b, LayerWeights *layer)
{
    const ModelConfig *c = &b->model->config;
    size_t hidden = c->hidden_size;
    size_t q_rows = (size_t)c->num_attention_heads * c->head_dim;
    size_t kv_rows = (size_t)c->num_key_value_heads * c->head_dim;
    if (c->has_fused_qkv) {
        WeightMatrix fused;
        if (!bind_linear(b, "self_attn.qkv_proj", q_rows + 2 * kv_rows, hidden, false, &fused,
                         NULL))
            return false;
        layer->q = weight_matrix_slice_rows(&fused, 0, q_rows);
        layer->k = weight_matrix_slice_rows(&fused, q_rows, kv_rows);
        layer->v = weight_matrix_slice_rows(&fused, q_rows + kv_rows, kv_rows);
    } else if (!bind_linear(b, "self_attn.q_proj", q_rows, hidden, c->has_qkv_bias, &layer->q,
                            &layer->q_bias) ||
               !bind_linear(b, "self_attn.k_proj", kv_rows, hidden, c->has_qkv_bias, &layer->k,
                            &layer->k_bias) ||
               !bind_linear(b, "self_attn.v_proj", kv_rows, hidden, c->has_qkv_bias, &layer->v,
                            &layer->v_bias)) {
        return false;
    }
    if (c->has_qk_norm && (!bind_layer_norm(b, "self_attn.q_norm", c->head_dim, &layer->q_norm) ||
                           !bind_layer_norm(b, "self_attn.k_norm", c->head_dim, &layer->k_norm)))
        return false;
    return bind_linear(b, "self_attn.o_proj", hidden, q_rows, c->has_o_bias, &layer->o,
                       &layer->o_bias);
}

static bool bind_dense_mlp(Binder *b, LayerWeights *layer)
{
    const ModelConfig *c = &b->model->config;
    size_t hidden = c->hidden_size, inner = c->intermediate_size;
    if (c->has_fused_gate_up) {
        WeightMatrix fused;
        if (!bind_linear(b, "mlp.gate_up_proj", 2 * inner, hidden, false, &fused, NULL))
            return false;
        layer->gate = weight_matrix_slice_rows(&fused, 0, inner);
        layer->up = weight_matrix_slice_rows(&fused, inner, inner);
    } else if (!bind_linear(b, "mlp.gate_proj", inner, hidden, c->has_mlp_bias, &layer->gate,
                            &layer->gate_bias) ||
               !bind_linear(b, "mlp.up_proj", inner, hidden, c->has_mlp_bias, &layer->up,
                            &layer->up_bias)) {
        return false;
    }
    return bind_linear(b, "mlp.down_proj", hidden, inner, c->has_mlp_bias, &layer->down,
                       &layer->down_bias);
}

/* The projection's name where experts share a tensor, and where they have one each. */
static bool bind_expert_stack(Binder *b, const char *stacked, const char *separate, size_t rows,
                              size_t cols, WeightMatrix *out)
{
    const char *module = b->draft->architecture.experts->module;
    char suffix[64], name[MODULE_NAME_MAX];
    uint32_t n_experts = b->model->config.num_experts;
    snprintf(suffix, sizeof suffix, "%s.experts.0.%s", module, separate);
    if (!layer_name(b, suffix, ".weight", name))
        return false;
    if (!tensor_set_find(b->model->tensors, slice_of(name))) {
        snprintf(suffix, sizeof suffix, "%s.switch_mlp.%s", module, stacked);
        return layer_name(b, suffix, "", name) && bind_module(b, name, n_experts, rows, cols, out);
    }
    WeightMatrix *experts = arena_allocate_array(&b->model->arena, n_experts, sizeof *experts);
    if (!experts)
        return error_no_memory(b->err, "experts");
    for (uint32_t e = 0; e < n_experts; e++) {
        snprintf(suffix, sizeof suffix, "%s.experts.%u.%s", module, e, separate);
        if (!bind_linear(b, suffix, rows, cols, false, &experts[e], NULL))
            return false;
    }
    return weight_matrix_join_experts(experts, n_experts, out, b->err);
}

static bool bind_experts(Binder *b, LayerWeights *layer)
{
    const ModelConfig *c = &b->model->config;
    const ExpertNames *names = b->draft->architecture.experts;
    size_t hidden = c->hidden_size, inner = c->moe_intermediate_size;
    char router[64];
    snprintf(router, sizeof router, "%s.gate", names->module);
    return bind_linear(b, router, c->num_experts, hidden, false, &layer->router, NULL) &&
           bind_expert_stack(b, "gate_proj", names->gate, inner, hidden, &layer->expert_gate) &&
           bind_expert_stack(b, "up_proj", names->up, inner, hidden, &layer->expert_up) &&
           bind_expert_stack(b, "down_proj", names->down, hidden, inner, &layer->expert_down);
}

static bool bind_norms(Binder *b, LayerWeights *layer)
{
    const ModelConfig *c = &b->model->config;
    size_t hidden = c->hidden_size;
    if (!bind_layer_norm(b, "input_layernorm", hidden, &layer->input_norm))
        return false;
    if (!c->has_post_norms)
        return bind_layer_norm(b, "post_attention_layernorm", hidden, &layer->pre_mlp_norm);
    return bind_layer_norm(b, "post_attention_layernorm", hidden, &layer->post_attention_norm) &&
           bind_layer_norm(b, "pre_feedforward_layernorm", hidden, &layer->pre_mlp_norm) &&
           bind_layer_norm(b, "post_feedforward_layernorm", hidden, &layer->post_mlp_norm);
}

static bool bind_layer(Binder *b, uint32_t index)
{
    snprintf(b->layer, sizeof b->layer, "%smodel.layers.%u.", b->draft->architecture.tensor_prefix,
             index);
    LayerWeights *layer = &b->model->weights.layers[index];
    if (!bind_norms(b, layer) || !bind_attention(b, layer))
        return false;
    return b->model->config.layers[index].is_sparse ? bind_experts(b, layer)
                                                    : bind_dense_mlp(b, layer);
}

/* Gemma-2 multiplies in the activations' dtype, which is that of the embedding's values. */
static void round_embedding_scale(Binder *b)
{
    const WeightMatrix *embedding = &b->model->weights.embedding;
    DType dtype = embedding->scales ? embedding->scales->dtype : embedding->weight->dtype;
    float *scale = &b->model->config.embedding_scale;
    if (dtype == DTYPE_F16)
        *scale = float_from_f16(float_to_f16(*scale));
    else if (dtype != DTYPE_F32)
        *scale = float_from_bf16(float_to_bf16(*scale));
}

static bool bind_embedding(Binder *b)
{
    ModelConfig *c = &b->model->config;
    ModelWeights *w = &b->model->weights;
    const char *prefix = b->draft->architecture.tensor_prefix;
    char name[MODULE_NAME_MAX];
    snprintf(name, sizeof name, "%smodel.embed_tokens.weight", prefix);
    const TensorView *tensor = tensor_set_find(b->model->tensors, slice_of(name));
    if (b->draft->vocab_from_embedding && tensor && tensor->n_dims == 2 && tensor->shape[0] > 0 &&
        tensor->shape[0] <= MODEL_VOCAB_MAX)
        c->vocab_size = (uint32_t)tensor->shape[0];
    snprintf(name, sizeof name, "%smodel.embed_tokens", prefix);
    if (!bind_module(b, name, 1, c->vocab_size, c->hidden_size, &w->embedding))
        return false;
    if (b->draft->architecture.embedding_scale == EMBEDDING_SCALE_WEIGHT_DTYPE)
        round_embedding_scale(b);

    snprintf(name, sizeof name, "%slm_head.weight", prefix);
    bool has_head = tensor_set_find(b->model->tensors, slice_of(name)) != NULL;
    c->tie_word_embeddings = b->draft->tie == TIE_BY_TENSORS ? !has_head : b->draft->is_tied;
    if (c->tie_word_embeddings) {
        w->head = w->embedding;
        return true;
    }
    snprintf(name, sizeof name, "%slm_head", prefix);
    return bind_module(b, name, 1, c->vocab_size, c->hidden_size, &w->head);
}

/* How a tensor that no field took is met. */
typedef enum Unused {
    UNUSED_KNOWN,   /* carried by many files and meant to be dropped: no word about it */
    UNUSED_FOREIGN, /* beside the text model */
    UNUSED_PART     /* of the text model, yet the configuration does not account for it */
} Unused;

static Unused judge_unused(Slice name, const Architecture *architecture, bool tied)
{
    static const char *const PARTS[] = {"model.layers.", "model.norm.", "model.embed_tokens.",
                                        "lm_head."};
    if (slice_ends_with(name, SLICE(".rotary_emb.inv_freq")))
        return UNUSED_KNOWN;
    Slice prefix = slice_of(architecture->tensor_prefix);
    if (!slice_starts_with(name, prefix))
        return UNUSED_FOREIGN;
    Slice rest = {name.ptr + prefix.len, name.len - prefix.len};
    if (tied && slice_starts_with(rest, SLICE("lm_head.")))
        return UNUSED_KNOWN;
    for (size_t i = 0; i < ARRAY_COUNT(PARTS); i++) {
        if (slice_starts_with(rest, slice_of(PARTS[i])))
            return UNUSED_PART;
    }
    return UNUSED_FOREIGN;
}

static int compare_pointers(const void *a, const void *b)
{
    const TensorView *const *left = a;
    const TensorView *const *right = b;
    uintptr_t x = (uintptr_t)*left, y = (uintptr_t)*right;
    return x < y ? -1 : x > y;
}

/* Refuses unused parts of the model and counts the tensors that are skipped. */
static bool account_for_unused(Binder *b)
{
    if (b->n_used > 1)
        qsort(b->used, b->n_used, sizeof(const TensorView *), compare_pointers);
    const TensorSet *set = b->model->tensors;
    ModelWeights *w = &b->model->weights;
    for (size_t i = 0; i < tensor_set_count(set); i++) {
        const TensorView *tensor = tensor_set_at(set, i);
        if (bsearch(&tensor, b->used, b->n_used, sizeof(const TensorView *), compare_pointers))
            continue;
        Unused kind = judge_unused(tensor->name, &b->draft->architecture,
                                   b->model->config.tie_word_embeddings);
        if (kind == UNUSED_PART)
            return error_set(b->err, ERROR_UNSUPPORTED,
                             "tensor %.*s: not part of a %s model with this config.json",
                             SLICE_ARG(tensor->name), b->model->config.model_type);
        if (kind == UNUSED_KNOWN)
            continue;
        w->first_skipped = w->n_skipped ? w->first_skipped : tensor;
        w->n_skipped++;
        w->skipped_bytes += tensor->n_bytes;
    }
    return true;
}

bool weights_bind(Model *model, const ModelDraft *draft, Error *err)
{
    ModelWeights *w = &model->weights;
    size_t n_layers = model->config.num_hidden_layers;
    Binder b = {.model = model, .draft = draft, .err = err};
    bool ok = false;
    /* A field takes each tensor at most once, so the count of the set is enough. */
    b.used = memory_allocate_array(tensor_set_count(model->tensors) + 1, sizeof *b.used);
    w->layers = arena_allocate_array(&model->arena, n_layers, sizeof *w->layers);
    if (!b.used || !w->layers) {
        error_no_memory(err, "weight table");
        goto cleanup;
    }
    memset(w->layers, 0, n_layers * sizeof *w->layers);
    if (!quantization_defaults(draft->quantization, &b.defaults, err) || !bind_embedding(&b))
        goto cleanup;
    char name[MODULE_NAME_MAX];
    snprintf(name, sizeof name, "%smodel.norm.weight", draft->architecture.tensor_prefix);
    if (!bind_vector(&b, name, model->config.hidden_size, model->config.norm_adds_one,
                     &w->final_norm))
        goto cleanup;
    for (uint32_t i = 0; i < n_layers; i++) {
        if (!bind_layer(&b, i))
            goto cleanup;
    }
    ok = check_defaults(&b) && account_for_unused(&b);
cleanup:
    memory_free(b.used);
    return ok;
}
