/* The model's tensors as MLX arrays. MLX reads the same packed layout that the files hold, so
 * loading is copying: one matrix after the other, its pages given back as soon as it is copied. */
#include "mlx_engine.h"

#include <string.h>

enum { MLX_GROUP_SIZE_MIN = 32 };

static mlx_dtype type_of(DType dtype)
{
    switch (dtype) {
    case DTYPE_F16:
        return MLX_FLOAT16;
    case DTYPE_BF16:
        return MLX_BFLOAT16;
    case DTYPE_U32:
        return MLX_UINT32;
    case DTYPE_U8:
        return MLX_UINT8;
    default:
        return MLX_FLOAT32;
    }
}

/* Which of a matrix's tensors. */
typedef const TensorView *(*Part)(const WeightMatrix *m);

static const TensorView *weight_of(const WeightMatrix *m)
{
    return m->weight;
}

static const TensorView *scales_of(const WeightMatrix *m)
{
    return m->scales;
}

static const TensorView *biases_of(const WeightMatrix *m)
{
    return m->biases;
}

/* Rows [first_row, first_row + rows) of one tensor: [rows, width], or [experts, rows, width]. */
static mlx_array copy_tensor(Graph *g, const WeightMatrix *m, const TensorView *tensor,
                             bool stacked)
{
    size_t width = (size_t)tensor->shape[tensor->n_dims - 1];
    size_t row_bytes = width * dtype_size(tensor->dtype);
    int shape[3] = {(int)m->n_experts, (int)m->rows, (int)width};
    return graph_data(g, tensor->data + m->first_row * row_bytes, type_of(tensor->dtype),
                      shape + (stacked ? 0 : 1), stacked ? 3 : 2);
}

/* The same of a stack whose experts have tensors of their own, too. */
static mlx_array copy_part(Graph *g, const WeightMatrix *m, Part part, bool stacked)
{
    if (!m->experts)
        return copy_tensor(g, m, part(m), stacked);
    mlx_array *each = memory_allocate_array(m->n_experts, sizeof *each);
    if (!each) {
        g->failed = true;
        return mlx_array_new();
    }
    for (size_t e = 0; e < m->n_experts; e++)
        each[e] = copy_tensor(g, &m->experts[e], part(&m->experts[e]), true);
    mlx_array all = graph_concatenate(g, each, m->n_experts, 0);
    memory_free(each);
    return all;
}

static const char *mode_name(QuantMode mode)
{
    static const char *const names[] = {[QUANT_AFFINE] = "affine",
                                        [QUANT_MXFP4] = "mxfp4",
                                        [QUANT_MXFP8] = "mxfp8",
                                        [QUANT_NVFP4] = "nvfp4"};
    return mode == QUANT_NONE ? NULL : names[mode];
}

/* Evaluates what the matrix's handles stand for and lets go of everything in between. */
static bool settle(MlxEngine *engine, const mlx_array *arrays, size_t count, Error *err)
{
    bool ok = graph_check(&engine->graph, "loading", err);
    graph_release(&engine->graph);
    for (size_t i = 0; ok && i < count; i++) {
        if (arrays[i].ctx) {
            ok = graph_status(mlx_array_eval(arrays[i]), "loading", err);
            engine->weight_bytes += mlx_array_nbytes(arrays[i]);
        }
    }
    return ok;
}

static void release_pages(const MlxEngine *engine, const WeightMatrix *m)
{
    static const Part parts[] = {weight_of, scales_of, biases_of};
    for (size_t e = 0; e < (m->experts ? m->n_experts : 1); e++) {
        for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
            const TensorView *tensor = parts[i](m->experts ? &m->experts[e] : m);
            if (tensor)
                tensor_set_release(engine->model->tensors, tensor);
        }
    }
}

static mlx_array load_vector(MlxEngine *engine, const float *values, size_t count)
{
    Graph *g = &engine->graph;
    int shape[] = {(int)count};
    if (!values)
        return mlx_array_new();
    return graph_keep(g, graph_cast(g, graph_data(g, values, MLX_FLOAT32, shape, 1), engine->type));
}

/* [experts, 1, 1], to multiply the experts' products with; empty when all are 1. */
static mlx_array load_factors(MlxEngine *engine, const WeightMatrix *m)
{
    Graph *g = &engine->graph;
    const int shape[] = {(int)m->n_experts, 1, 1};
    bool any = false;
    for (size_t e = 0; e < m->n_experts; e++)
        any = any || (m->experts ? &m->experts[e] : m)->global_scale;
    if (!any)
        return mlx_array_new();
    float *factors = memory_allocate_array(m->n_experts, sizeof *factors);
    if (!factors) {
        g->failed = true;
        return mlx_array_new();
    }
    for (size_t e = 0; e < m->n_experts; e++)
        factors[e] = weight_matrix_expert_factor(m, e);
    mlx_array result = graph_cast(g, graph_data(g, factors, MLX_FLOAT32, shape, 3), engine->type);
    memory_free(factors);
    return graph_keep(g, result);
}

/* Scales or biases, [.., rows, groups]; halves: each twice, for groups of half the size. */
static mlx_array load_groups(MlxEngine *engine, const WeightMatrix *m, Part part, bool stacked,
                             bool halves)
{
    Graph *g = &engine->graph;
    mlx_array groups = copy_part(g, m, part, stacked);
    if (halves)
        groups = graph_contiguous(g, graph_repeat(g, groups, 2, -1));
    if (m->mode == QUANT_AFFINE)
        groups = graph_cast(g, groups, engine->type);
    return graph_keep(g, groups);
}

/* A row of one group is stored as two of half the size: for rows of one group MLX has a kernel of
 * its own on CUDA (Hopper), which is wrong unless their number is a multiple of eight. */
static bool load(MlxEngine *engine, const WeightMatrix *m, const float *bias, bool stacked,
                 MlxMatrix *out, Error *err)
{
    static const int swapped[] = {1, 0}, swapped_inside[] = {0, 2, 1};
    Graph *g = &engine->graph;
    mlx_array weight = copy_part(g, m, weight_of, stacked);
    out->mode = mode_name(m->mode);
    out->bits = (int)m->bits;
    bool halves =
        m->mode == QUANT_AFFINE && m->cols == m->group_size && m->group_size > MLX_GROUP_SIZE_MIN;
    out->group_size = (int)m->group_size / (halves ? 2 : 1);
    if (!out->mode) {
        /* Gathered dense products exist in float32 alone on MLX's CPU device. */
        bool widened = stacked && !engine->is_gpu;
        weight = graph_cast(g, weight, widened ? MLX_FLOAT32 : engine->type);
        weight = graph_transpose(g, weight, stacked ? swapped_inside : swapped, stacked ? 3 : 2);
    }
    out->weight = graph_keep(g, weight);
    if (m->scales)
        out->scales = load_groups(engine, m, scales_of, stacked, halves);
    if (m->biases)
        out->biases = load_groups(engine, m, biases_of, stacked, halves);
    out->bias = load_vector(engine, bias, m->rows);
    out->factors = load_factors(engine, m);
    const mlx_array all[] = {out->weight, out->scales, out->biases, out->bias, out->factors};
    if (!settle(engine, all, ARRAY_COUNT(all), err))
        return false;
    release_pages(engine, m);
    return true;
}

static bool load_matrix(MlxEngine *engine, const WeightMatrix *m, const float *bias, MlxMatrix *out,
                        Error *err)
{
    return load(engine, m, bias, false, out, err);
}

static bool load_stack(MlxEngine *engine, const WeightMatrix *m, MlxMatrix *out, Error *err)
{
    return load(engine, m, NULL, true, out, err);
}

static bool load_mlp(MlxEngine *engine, const LayerWeights *w, bool is_sparse, MlxLayer *layer,
                     Error *err)
{
    if (is_sparse)
        return load_matrix(engine, &w->router, NULL, &layer->router, err) &&
               load_stack(engine, &w->expert_gate, &layer->gate, err) &&
               load_stack(engine, &w->expert_up, &layer->up, err) &&
               load_stack(engine, &w->expert_down, &layer->down, err);
    return load_matrix(engine, &w->gate, w->gate_bias, &layer->gate, err) &&
           load_matrix(engine, &w->up, w->up_bias, &layer->up, err) &&
           load_matrix(engine, &w->down, w->down_bias, &layer->down, err);
}

static bool load_layer(MlxEngine *engine, size_t index, Error *err)
{
    const ModelConfig *c = &engine->model->config;
    const LayerWeights *w = &engine->model->weights.layers[index];
    MlxLayer *layer = &engine->layers[index];
    layer->input_norm = load_vector(engine, w->input_norm, c->hidden_size);
    layer->post_attention_norm = load_vector(engine, w->post_attention_norm, c->hidden_size);
    layer->pre_mlp_norm = load_vector(engine, w->pre_mlp_norm, c->hidden_size);
    layer->post_mlp_norm = load_vector(engine, w->post_mlp_norm, c->hidden_size);
    layer->q_norm = load_vector(engine, w->q_norm, c->head_dim);
    layer->k_norm = load_vector(engine, w->k_norm, c->head_dim);
    const mlx_array norms[] = {layer->input_norm,   layer->post_attention_norm,
                               layer->pre_mlp_norm, layer->post_mlp_norm,
                               layer->q_norm,       layer->k_norm};
    return settle(engine, norms, ARRAY_COUNT(norms), err) &&
           load_matrix(engine, &w->q, w->q_bias, &layer->q, err) &&
           load_matrix(engine, &w->k, w->k_bias, &layer->k, err) &&
           load_matrix(engine, &w->v, w->v_bias, &layer->v, err) &&
           load_matrix(engine, &w->o, w->o_bias, &layer->o, err) &&
           load_mlp(engine, w, c->layers[index].is_sparse, layer, err);
}

/* MLX's rope takes periods, the inverses of the frequencies, and knows no attention factor. */
static bool load_rope(MlxEngine *engine, size_t table, Error *err)
{
    const ModelConfig *c = &engine->model->config;
    const RopeTable *rope = &c->rope[table];
    size_t half = rope->rotary_dims / 2;
    if (half == 0)
        return true; /* the model has no second table */
    size_t room = half > c->head_dim ? half : c->head_dim;
    float *values = memory_allocate_array(room, sizeof *values);
    if (!values)
        return error_no_memory(err, "rotary table");
    int shape[] = {(int)half};
    for (size_t d = 0; d < half; d++)
        values[d] = (float)(1.0 / rope->inverse_frequencies[d]);
    Graph *g = &engine->graph;
    engine->rope_periods[table] = graph_keep(g, graph_data(g, values, MLX_FLOAT32, shape, 1));
    if (rope->attention_factor != 1.0) {
        for (size_t d = 0; d < c->head_dim; d++)
            values[d] = d < rope->rotary_dims ? (float)rope->attention_factor : 1.0f;
        engine->rope_factors[table] = load_vector(engine, values, c->head_dim);
    }
    memory_free(values);
    const mlx_array all[] = {engine->rope_periods[table], engine->rope_factors[table]};
    return settle(engine, all, ARRAY_COUNT(all), err);
}

/* The type that scales (or dense weights) have, as in mlx_lm; the embedding speaks for all. */
static mlx_dtype activation_type(const MlxEngine *engine)
{
    const WeightMatrix *m = &engine->model->weights.embedding;
    const TensorView *speaks = m->mode == QUANT_AFFINE ? m->scales : m->weight;
    if (engine->is_f32)
        return MLX_FLOAT32;
    return m->mode == QUANT_NONE || m->mode == QUANT_AFFINE ? type_of(speaks->dtype) : MLX_BFLOAT16;
}

bool backend_weights_load(MlxEngine *engine, Error *err)
{
    const ModelConfig *c = &engine->model->config;
    const ModelWeights *w = &engine->model->weights;
    engine->type = activation_type(engine);
    engine->layers = memory_allocate_zeroed(c->num_hidden_layers, sizeof *engine->layers);
    if (!engine->layers)
        return error_no_memory(err, "layers");
    if (!load_matrix(engine, &w->embedding, NULL, &engine->embedding, err))
        return false;
    if (!c->tie_word_embeddings && !load_matrix(engine, &w->head, NULL, &engine->head, err))
        return false;
    engine->final_norm = load_vector(engine, w->final_norm, c->hidden_size);
    if (!settle(engine, &engine->final_norm, 1, err))
        return false;
    for (size_t i = 0; i < MODEL_ROPE_TABLES; i++) {
        if (!load_rope(engine, i, err))
            return false;
    }
    for (size_t i = 0; i < c->num_hidden_layers; i++) {
        if (!load_layer(engine, i, err))
            return false;
    }
    return true;
}

static void free_matrix(const MlxMatrix *m)
{
    mlx_array_free(m->weight);
    mlx_array_free(m->scales);
    mlx_array_free(m->biases);
    mlx_array_free(m->bias);
    mlx_array_free(m->factors);
}

static void free_layer(const MlxLayer *layer)
{
    const MlxMatrix *const matrices[] = {&layer->q,    &layer->k,  &layer->v,    &layer->o,
                                         &layer->gate, &layer->up, &layer->down, &layer->router};
    const mlx_array norms[] = {layer->input_norm,   layer->post_attention_norm,
                               layer->pre_mlp_norm, layer->post_mlp_norm,
                               layer->q_norm,       layer->k_norm};
    for (size_t i = 0; i < ARRAY_COUNT(matrices); i++)
        free_matrix(matrices[i]);
    for (size_t i = 0; i < ARRAY_COUNT(norms); i++)
        mlx_array_free(norms[i]);
}

void backend_weights_free(MlxEngine *engine)
{
    for (size_t i = 0; engine->layers && i < engine->model->config.num_hidden_layers; i++)
        free_layer(&engine->layers[i]);
    memory_free(engine->layers);
    free_matrix(&engine->embedding);
    free_matrix(&engine->head);
    mlx_array_free(engine->final_norm);
    for (size_t i = 0; i < MODEL_ROPE_TABLES; i++) {
        mlx_array_free(engine->rope_periods[i]);
        mlx_array_free(engine->rope_factors[i]);
    }
}
