/* One pass through the transformer that ModelConfig describes, as one MLX graph.
 *
 *   x = embedding * scale                                            [n, hidden]
 *   per layer:  q, k, v = norm(x) Wqkv      [norm q, k]  rotate q, k
 *               per slice: append k, v to its cache; attention over what the cache holds
 *               x += [norm](attention Wo)
 *               x += [norm](Wdown(act(norm(x) Wgate) * norm(x) Wup)), or experts
 *   logits = cap(norm(x) Whead), for the wanted tokens only, in float32
 *
 * Attention is MLX's fused kernel; with a soft-cap (Gemma-2), which that lacks, plain products. */
#include "mlx_engine.h"

#include <math.h>
#include <string.h>

/* ---- Products ---- */

static mlx_optional_int some(int value)
{
    return (mlx_optional_int){value, true};
}

mlx_array backend_product(MlxEngine *engine, const MlxMatrix *m, mlx_array x)
{
    Graph *g = &engine->graph;
    mlx_array y;
    if (m->mode) {
        mlx_array r = mlx_array_new();
        int status = g->failed ? 1
                               : mlx_quantized_matmul(&r, x, m->weight, m->scales, m->biases, true,
                                                      some(m->group_size), some(m->bits), m->mode,
                                                      g->stream);
        y = graph_take_result(g, status, r);
    } else {
        y = graph_matmul(g, x, m->weight);
    }
    return m->bias.ctx ? graph_add(g, y, m->bias) : y;
}

mlx_array backend_gated(MlxEngine *engine, mlx_array gate, mlx_array up)
{
    Graph *g = &engine->graph;
    if (engine->model->config.activation == ACTIVATION_SILU)
        return graph_multiply(g, graph_multiply(g, gate, graph_sigmoid(g, gate)), up);
    /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    mlx_array square = graph_multiply(g, gate, gate);
    mlx_array one = graph_scalar(g, 1.0f, engine->type);
    mlx_array cubic =
        graph_add(g, graph_multiply(g, square, graph_scalar(g, 0.044715f, engine->type)), one);
    mlx_array inner = graph_multiply(g, graph_multiply(g, gate, cubic),
                                     graph_scalar(g, 0.7978845608f, engine->type));
    mlx_array curve = graph_add(g, graph_tanh(g, inner), one);
    mlx_array half = graph_multiply(g, gate, graph_scalar(g, 0.5f, engine->type));
    return graph_multiply(g, graph_multiply(g, half, curve), up);
}

mlx_array backend_embed(MlxEngine *engine, mlx_array tokens)
{
    Graph *g = &engine->graph;
    const MlxMatrix *m = &engine->embedding;
    float scale = engine->model->config.embedding_scale;
    mlx_array x;
    if (m->mode) {
        mlx_array none = mlx_array_new(), r = mlx_array_new();
        mlx_array codes = graph_take(g, m->weight, tokens, 0);
        mlx_array scales = graph_take(g, m->scales, tokens, 0);
        mlx_array biases = m->biases.ctx ? graph_take(g, m->biases, tokens, 0) : none;
        int status = g->failed
                         ? 1
                         : mlx_dequantize(&r, codes, scales, biases, some(m->group_size),
                                          some(m->bits), m->mode, none,
                                          (mlx_optional_dtype){engine->type, true}, g->stream);
        x = graph_take_result(g, status, r);
    } else {
        x = graph_take(g, m->weight, tokens, 1); /* stored transposed */
        x = graph_transpose(g, x, (const int[]){1, 0}, 2);
    }
    return scale == 1.0f ? x : graph_multiply(g, x, graph_scalar(g, scale, engine->type));
}

/* ---- Attention ---- */

mlx_array backend_rotate(MlxEngine *engine, size_t table, mlx_array x, size_t offset,
                         mlx_array offsets)
{
    Graph *g = &engine->graph;
    if (table == MODEL_ROPE_NONE)
        return x;
    const RopeTable *rope = &engine->model->config.rope[table];
    mlx_optional_float no_base = {0};
    mlx_array r = mlx_array_new(), periods = engine->rope_periods[table];
    if (engine->rope_factors[table].ctx)
        x = graph_multiply(g, x, engine->rope_factors[table]);
    int status = 1;
    if (!g->failed)
        status = offsets.ctx ? mlx_fast_rope_dynamic(&r, x, (int)rope->rotary_dims, false, no_base,
                                                     1.0f, offsets, periods, g->stream)
                             : mlx_fast_rope(&r, x, (int)rope->rotary_dims, false, no_base, 1.0f,
                                             (int)offset, periods, g->stream);
    return graph_take_result(g, status, r);
}

/* True where query i (a row) may see key j: first_key + j <= i, and > i - window if there is one.
 */
static mlx_array make_mask(MlxEngine *engine, const MlxSlice *slice, size_t window, size_t n_keys)
{
    Graph *g = &engine->graph;
    size_t end = slice->sequence->length + slice->n_tokens;
    const int column[] = {(int)slice->n_tokens, 1};
    mlx_array queries = graph_reshape(g, graph_range(g, slice->sequence->length, end), column, 2);
    mlx_array keys = graph_range(g, end - n_keys, end);
    mlx_array mask = graph_greater_equal(g, queries, keys);
    if (window == 0)
        return mask;
    const int32_t width = (int32_t)window;
    mlx_array limit = graph_add(g, keys, graph_data(g, &width, MLX_INT32, NULL, 0));
    return graph_and(g, mask, graph_less(g, queries, limit));
}

/* softmax(cap * tanh(q k^T scale / cap) + mask) v. Key heads are repeated for their query heads. */
static mlx_array capped_attention(MlxEngine *engine, mlx_array q, mlx_array k, mlx_array v,
                                  mlx_array mask)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    int repeats = (int)(c->num_attention_heads / c->num_key_value_heads);
    float cap = c->attn_logit_softcapping;
    k = graph_repeat(g, k, repeats, 1);
    v = graph_repeat(g, v, repeats, 1);
    mlx_array scores = graph_matmul(g, q, graph_transpose(g, k, (const int[]){0, 1, 3, 2}, 4));
    scores = graph_multiply(g, scores, graph_scalar(g, c->attention_scale / cap, engine->type));
    scores = graph_multiply(g, graph_tanh(g, scores), graph_scalar(g, cap, engine->type));
    if (mask.ctx)
        scores = graph_add(g, scores,
                           graph_where(g, mask, graph_scalar(g, 0.0f, engine->type),
                                       graph_scalar(g, -INFINITY, engine->type)));
    return graph_matmul(g, graph_softmax(g, scores, -1), v);
}

static mlx_array fused_attention(MlxEngine *engine, mlx_array q, mlx_array k, mlx_array v,
                                 const char *mode, mlx_array mask)
{
    Graph *g = &engine->graph;
    mlx_array r = mlx_array_new(), none = mlx_array_new();
    int status = g->failed
                     ? 1
                     : mlx_fast_scaled_dot_product_attention(&r, q, k, v,
                                                             engine->model->config.attention_scale,
                                                             mode, mask, none, false, g->stream);
    return graph_take_result(g, status, r);
}

mlx_array backend_attend(MlxEngine *engine, MlxSlice *slice, size_t layer, mlx_array q, mlx_array k,
                         mlx_array v)
{
    const ModelConfig *c = &engine->model->config;
    Graph *g = &engine->graph;
    mlx_array keys, values, none = mlx_array_new();
    backend_cache_append(engine, slice, layer, k, v, &keys, &values);
    if (g->failed)
        return none;
    size_t n_keys = (size_t)mlx_array_dim(keys, 2), window = c->layers[layer].sliding_window;
    bool windowed = window > 0 && n_keys > window && slice->n_tokens > 1;
    bool capped = c->attn_logit_softcapping > 0.0f;
    mlx_array *mask = windowed ? &slice->window_mask : &slice->causal_mask;
    if (slice->n_tokens > 1 && (windowed || capped) && !mask->ctx)
        *mask = make_mask(engine, slice, windowed ? window : 0, n_keys);
    if (capped)
        return capped_attention(engine, q, keys, values, slice->n_tokens > 1 ? *mask : none);
    if (slice->n_tokens == 1)
        return fused_attention(engine, q, keys, values, "", none);
    return windowed ? fused_attention(engine, q, keys, values, "array", *mask)
                    : fused_attention(engine, q, keys, values, "causal", none);
}

/* [n, heads, dim] to [1, heads, n, dim]. */
static mlx_array heads_first(Graph *g, mlx_array x, size_t n, size_t heads, size_t dim)
{
    const int shape[] = {1, (int)n, (int)heads, (int)dim};
    return graph_transpose(g, graph_reshape(g, x, shape, 4), (const int[]){0, 2, 1, 3}, 4);
}

static mlx_array tokens_first(Graph *g, mlx_array x, size_t n, size_t width)
{
    const int shape[] = {(int)n, (int)width};
    return graph_reshape(g, graph_transpose(g, x, (const int[]){0, 2, 1, 3}, 4), shape, 2);
}

/* Each token's position, for passes of several slices. */
static mlx_array token_positions(MlxEngine *engine)
{
    Graph *g = &engine->graph;
    int32_t *positions = memory_allocate_array(engine->n_tokens, sizeof *positions);
    int shape[] = {(int)engine->n_tokens};
    if (!positions) {
        g->failed = true;
        return mlx_array_new();
    }
    for (size_t i = 0; i < engine->n_slices; i++) {
        const MlxSlice *slice = &engine->slices[i];
        for (size_t t = 0; t < slice->n_tokens; t++)
            positions[slice->first_token + t] = (int32_t)(slice->sequence->length + t);
    }
    mlx_array result = graph_data(g, positions, MLX_INT32, shape, 1);
    memory_free(positions);
    return result;
}

typedef struct Heads {
    mlx_array q, k, v; /* [n, heads, dim] */
} Heads;

/* What q [n, heads, dim] is multiplied by; empty where all positions have 1. */
static mlx_array query_scales(MlxEngine *engine)
{
    Graph *g = &engine->graph;
    const int shape[] = {(int)engine->n_tokens, 1, 1};
    if (engine->model->config.query_scaling_length == 0)
        return mlx_array_new();
    float *scales = memory_allocate_array(engine->n_tokens, sizeof *scales);
    if (!scales) {
        g->failed = true;
        return mlx_array_new();
    }
    for (size_t i = 0; i < engine->n_slices; i++) {
        const MlxSlice *slice = &engine->slices[i];
        for (size_t t = 0; t < slice->n_tokens; t++)
            scales[slice->first_token + t] =
                (float)model_query_scale(&engine->model->config, slice->sequence->length + t);
    }
    mlx_array result = graph_data(g, scales, MLX_FLOAT32, shape, 3);
    memory_free(scales);
    return graph_cast(g, result, engine->type);
}

static Heads project(MlxEngine *engine, const MlxLayer *layer, mlx_array x)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    const int q_shape[] = {(int)engine->n_tokens, (int)c->num_attention_heads, (int)c->head_dim};
    const int k_shape[] = {(int)engine->n_tokens, (int)c->num_key_value_heads, (int)c->head_dim};
    Heads h = {graph_reshape(g, backend_product(engine, &layer->q, x), q_shape, 3),
               graph_reshape(g, backend_product(engine, &layer->k, x), k_shape, 3),
               graph_reshape(g, backend_product(engine, &layer->v, x), k_shape, 3)};
    if (c->has_qk_norm) {
        h.q = graph_rms_norm(g, h.q, layer->q_norm, c->rms_norm_eps);
        h.k = graph_rms_norm(g, h.k, layer->k_norm, c->rms_norm_eps);
    }
    return h;
}

static mlx_array attend_alone(MlxEngine *engine, size_t layer, const Heads *h)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    MlxSlice *slice = &engine->slices[0];
    size_t n = slice->n_tokens, dim = c->head_dim, heads = c->num_attention_heads;
    size_t groups = c->num_key_value_heads, table = c->layers[layer].rope;
    size_t at = slice->sequence->length;
    mlx_array none = mlx_array_new();
    mlx_array q = backend_rotate(engine, table, heads_first(g, h->q, n, heads, dim), at, none);
    mlx_array k = backend_rotate(engine, table, heads_first(g, h->k, n, groups, dim), at, none);
    mlx_array v = heads_first(g, h->v, n, groups, dim);
    return tokens_first(g, backend_attend(engine, slice, layer, q, k, v), n, heads * dim);
}

/* Rotates x [n, heads, dim] with a position for each token. */
static mlx_array rotate_tokens(MlxEngine *engine, size_t table, mlx_array x, size_t heads,
                               mlx_array positions)
{
    Graph *g = &engine->graph;
    int n = (int)engine->n_tokens, dim = (int)engine->model->config.head_dim;
    const int apart[] = {n, (int)heads, 1, dim}, together[] = {n, (int)heads, dim};
    x = backend_rotate(engine, table, graph_reshape(g, x, apart, 4), 0, positions);
    return graph_reshape(g, x, together, 3);
}

static mlx_array attend_many(MlxEngine *engine, size_t layer, const Heads *h, mlx_array positions,
                             mlx_array *parts)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    size_t dim = c->head_dim, heads = c->num_attention_heads, groups = c->num_key_value_heads;
    size_t table = c->layers[layer].rope;
    mlx_array q = rotate_tokens(engine, table, h->q, heads, positions);
    mlx_array k = rotate_tokens(engine, table, h->k, groups, positions);
    for (size_t i = 0; i < engine->n_slices; i++) {
        MlxSlice *slice = &engine->slices[i];
        int first = (int)slice->first_token, end = first + (int)slice->n_tokens;
        size_t n = slice->n_tokens;
        mlx_array out = backend_attend(
            engine, slice, layer, heads_first(g, graph_slice(g, q, 0, first, end), n, heads, dim),
            heads_first(g, graph_slice(g, k, 0, first, end), n, groups, dim),
            heads_first(g, graph_slice(g, h->v, 0, first, end), n, groups, dim));
        parts[i] = tokens_first(g, out, n, heads * dim);
    }
    return graph_concatenate(g, parts, engine->n_slices, 0);
}

/* ---- Layers ---- */

/* mlx_lm's Gemma-3 in float16 adds in float32 and clips, since its residuals overflow. */
static mlx_array add_residual(MlxEngine *engine, mlx_array x, mlx_array added)
{
    Graph *g = &engine->graph;
    if (engine->type != MLX_FLOAT16 || !engine->model->config.has_post_norms)
        return graph_add(g, x, added);
    mlx_array sum = graph_add(g, graph_cast(g, x, MLX_FLOAT32), graph_cast(g, added, MLX_FLOAT32));
    sum = graph_clip(g, sum, graph_scalar(g, -65504.0f, MLX_FLOAT32),
                     graph_scalar(g, 65504.0f, MLX_FLOAT32));
    return graph_cast(g, sum, MLX_FLOAT16);
}

static mlx_array norm_if(MlxEngine *engine, mlx_array x, mlx_array weight)
{
    if (!weight.ctx)
        return x;
    return graph_rms_norm(&engine->graph, x, weight, engine->model->config.rms_norm_eps);
}

static mlx_array mlp_block(MlxEngine *engine, size_t index, mlx_array x)
{
    const MlxLayer *layer = &engine->layers[index];
    mlx_array normed = norm_if(engine, x, layer->pre_mlp_norm), out;
    if (engine->model->config.layers[index].is_sparse)
        out = backend_experts(engine, layer, normed);
    else
        out = backend_product(engine, &layer->down,
                              backend_gated(engine, backend_product(engine, &layer->gate, normed),
                                            backend_product(engine, &layer->up, normed)));
    return add_residual(engine, x, norm_if(engine, out, layer->post_mlp_norm));
}

static mlx_array run_layers(MlxEngine *engine, mlx_array x)
{
    Graph *g = &engine->graph;
    size_t n_layers = engine->model->config.num_hidden_layers;
    bool alone = engine->n_slices == 1;
    mlx_array positions = alone ? mlx_array_new() : token_positions(engine);
    mlx_array scales = query_scales(engine);
    mlx_array *parts = memory_allocate_array(engine->n_slices, sizeof *parts);
    if (!parts)
        g->failed = true;
    for (size_t i = 0; i < n_layers && !g->failed; i++) {
        const MlxLayer *layer = &engine->layers[i];
        Heads h = project(engine, layer, norm_if(engine, x, layer->input_norm));
        h.q = scales.ctx ? graph_multiply(g, h.q, scales) : h.q;
        mlx_array out =
            alone ? attend_alone(engine, i, &h) : attend_many(engine, i, &h, positions, parts);
        out = backend_product(engine, &layer->o, out);
        x = add_residual(engine, x, norm_if(engine, out, layer->post_attention_norm));
        x = mlp_block(engine, i, x);
    }
    memory_free(parts);
    return x;
}

static mlx_array run_head(MlxEngine *engine, mlx_array x)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    if (engine->n_wanted < engine->n_tokens) {
        int shape[] = {(int)engine->n_wanted};
        x = graph_take(g, x, graph_data(g, engine->wanted, MLX_INT32, shape, 1), 0);
    }
    x = norm_if(engine, x, engine->final_norm);
    const MlxMatrix *head = engine->head.weight.ctx ? &engine->head : &engine->embedding;
    mlx_array logits = graph_cast(g, backend_product(engine, head, x), MLX_FLOAT32);
    float cap = c->final_logit_softcapping;
    if (cap <= 0.0f)
        return logits;
    logits = graph_tanh(g, graph_multiply(g, logits, graph_scalar(g, 1.0f / cap, MLX_FLOAT32)));
    return graph_multiply(g, logits, graph_scalar(g, cap, MLX_FLOAT32));
}

/* ---- The pass ---- */

mlx_array backend_build_pass(MlxEngine *engine, mlx_array tokens)
{
    mlx_array x = run_layers(engine, backend_embed(engine, tokens));
    return engine->n_wanted > 0 ? run_head(engine, x) : mlx_array_new();
}

/* Evaluates what the last layers left in the caches, when nothing else is wanted. */
static bool evaluate_caches(MlxEngine *engine, Error *err)
{
    mlx_vector_array list = mlx_vector_array_new();
    size_t n_layers = engine->model->config.num_hidden_layers;
    int status = 0;
    for (size_t i = 0; i < engine->n_slices * n_layers && status == 0; i++) {
        const MlxLayerCache *cache = &engine->slices[i / n_layers].sequence->layers[i % n_layers];
        status = mlx_vector_array_append_value(list, cache->keys);
        if (status == 0)
            status = mlx_vector_array_append_value(list, cache->values);
    }
    if (status == 0)
        status = mlx_eval(list);
    mlx_vector_array_free(list);
    return graph_status(status, "forward", err);
}

/* Evaluates result and copies its values of 4 bytes. */
static bool fetch(mlx_array result, size_t count, void *out, Error *err)
{
    if (!graph_status(mlx_array_eval(result), "forward", err))
        return false;
    const void *data = mlx_array_dtype(result) == MLX_FLOAT32
                           ? (const void *)mlx_array_data_float32(result)
                           : (const void *)mlx_array_data_int32(result);
    if (!data || mlx_array_size(result) != count)
        return error_set(err, ERROR_INTERNAL, "forward: MLX: %zu values, expected %zu",
                         mlx_array_size(result), count);
    memcpy(out, data, count * sizeof(float));
    return true;
}

bool backend_fetch_ids(mlx_array ids, size_t count, int32_t *out, Error *err)
{
    return fetch(ids, count, out, err);
}

bool backend_forward_pass(MlxEngine *engine, float *logits, int32_t *ids, Error *err)
{
    Graph *g = &engine->graph;
    size_t wanted = engine->n_wanted;
    int shape[] = {(int)engine->n_tokens};
    mlx_array result =
        backend_build_pass(engine, graph_data(g, engine->tokens, MLX_INT32, shape, 1));
    if (wanted > 0 && ids)
        result = backend_choose(engine, result, 0);
    if (wanted > 0)
        result = graph_keep(g, graph_contiguous(g, result));
    bool ok = graph_check(g, "forward", err);
    graph_release(g);
    if (ok && wanted == 0)
        ok = evaluate_caches(engine, err);
    else if (ok && ids)
        ok = fetch(result, wanted, ids, err);
    else if (ok)
        ok = fetch(result, wanted * engine->model->config.vocab_size, logits, err);
    if (wanted > 0)
        mlx_array_free(result);
    return ok;
}
