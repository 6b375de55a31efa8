/* The MLX engine's side of compare_operations: on its GPU if there is one. */
#include "operations.h"

#include "mlx/mlx_engine.h"

#include <string.h>

static mlx_array mlx_input(MlxEngine *engine, const float *x, const int *shape, size_t dims)
{
    Graph *g = &engine->graph;
    return graph_cast(g, graph_data(g, x, MLX_FLOAT32, shape, dims), engine->type);
}

static mlx_array mlx_rows(MlxEngine *engine, const float *x, size_t n, size_t cols)
{
    const int shape[] = {(int)n, (int)cols};
    return mlx_input(engine, x, shape, 2);
}

/* [n, heads, dim] as [1, heads, n, dim]. */
static mlx_array mlx_heads(MlxEngine *engine, const float *x, size_t heads)
{
    const int shape[] = {1, N_TOKENS, (int)heads, (int)engine->model->config.head_dim};
    return graph_transpose(&engine->graph, mlx_input(engine, x, shape, 4),
                           (const int[]){0, 2, 1, 3}, 4);
}

static void mlx_fetch(MlxEngine *engine, mlx_array result, float *out)
{
    Error err = {0};
    Graph *g = &engine->graph;
    mlx_array kept = graph_keep(g, graph_contiguous(g, graph_cast(g, result, MLX_FLOAT32)));
    require(graph_check(g, "operation", &err), &err);
    graph_release(g);
    require(graph_status(mlx_array_eval(kept), "operation", &err), &err);
    memcpy(out, mlx_array_data_float32(kept), mlx_array_size(kept) * sizeof *out);
    mlx_array_free(kept);
}

/* [1, heads, n, dim] as [n, heads * dim]. */
static mlx_array mlx_tokens(Graph *g, mlx_array x)
{
    return graph_transpose(g, x, (const int[]){0, 2, 1, 3}, 4);
}

static mlx_array mlx_embedding(const Operation *op, MlxEngine *engine)
{
    const int shape[] = {N_TOKENS};
    return backend_embed(engine, graph_data(&engine->graph, op->ids, MLX_INT32, shape, 1));
}

static mlx_array mlx_norm(const Operation *op, MlxEngine *engine)
{
    const ModelConfig *c = &engine->model->config;
    return graph_rms_norm(&engine->graph, mlx_rows(engine, op->x, N_TOKENS, c->hidden_size),
                          engine->layers[0].input_norm, c->rms_norm_eps);
}

static mlx_array mlx_product(const Operation *op, MlxEngine *engine)
{
    const MlxLayer *layer = &engine->layers[op->layer];
    mlx_array x = mlx_rows(engine, op->x, op->n_tokens, op->cols);
    switch (op->matrix) {
    case MATRIX_Q:
        return backend_product(engine, &layer->q, x);
    case MATRIX_V:
        return backend_product(engine, &layer->v, x);
    case MATRIX_DOWN:
        return backend_product(engine, &layer->down, x);
    default:
        return backend_product(engine, engine->head.weight.ctx ? &engine->head : &engine->embedding,
                               x);
    }
}

static mlx_array mlx_rotation(const Operation *op, MlxEngine *engine)
{
    mlx_array x = mlx_heads(engine, op->x, engine->model->config.num_attention_heads);
    return mlx_tokens(&engine->graph,
                      backend_rotate(engine, op->layer, x, ROTATION_OFFSET, mlx_array_new()));
}

static mlx_array mlx_attention(const Operation *op, MlxEngine *engine)
{
    Error err = {0};
    EngineSequence *sequence;
    const ModelConfig *c = &engine->model->config;
    require(backend_sequence_create(engine, N_TOKENS, &sequence, &err), &err);
    MlxSlice slice = {.sequence = sequence, .n_tokens = N_TOKENS};
    mlx_array out =
        backend_attend(engine, &slice, op->layer, mlx_heads(engine, op->x, c->num_attention_heads),
                       mlx_heads(engine, op->y, c->num_key_value_heads),
                       mlx_heads(engine, op->z, c->num_key_value_heads));
    backend_sequence_free(engine, sequence);
    return mlx_tokens(&engine->graph, out);
}

static mlx_array mlx_activation(const Operation *op, MlxEngine *engine)
{
    return backend_gated(engine, mlx_rows(engine, op->x, 1, op->count),
                         mlx_rows(engine, op->y, 1, op->count));
}

static mlx_array mlx_experts(const Operation *op, MlxEngine *engine)
{
    return backend_experts(engine, &engine->layers[op->layer],
                           mlx_rows(engine, op->x, N_TOKENS, engine->model->config.hidden_size));
}

void *mlx_side_open(const Model *model, bool is_f32)
{
    Error err = {0};
    bool available = false;
    MlxEngine *engine = allocate(1, sizeof *engine);
    graph_install_error_handler();
    mlx_device gpu = mlx_device_new_type(MLX_GPU, 0);
    engine->is_gpu = mlx_device_is_available(&available, gpu) == 0 && available;
    mlx_device_free(gpu);
    engine->model = model;
    engine->is_f32 = is_f32;
    engine->max_batch_tokens = MLX_BATCH_TOKENS_CPU;
    engine->device = mlx_device_new_type(engine->is_gpu ? MLX_GPU : MLX_CPU, 0);
    require(graph_status(mlx_set_default_device(engine->device), "device", &err), &err);
    engine->stream = mlx_stream_new_device(engine->device);
    graph_init(&engine->graph, engine->stream);
    require(backend_weights_load(engine, &err), &err);
    return engine;
}

void mlx_side_run(void *side, const Operation *op, float *out)
{
    static mlx_array (*const RUN[])(const Operation *, MlxEngine *) = {
        [OPERATION_EMBEDDING] = mlx_embedding, [OPERATION_NORM] = mlx_norm,
        [OPERATION_PRODUCT] = mlx_product,     [OPERATION_ROTATION] = mlx_rotation,
        [OPERATION_ATTENTION] = mlx_attention, [OPERATION_ACTIVATION] = mlx_activation,
        [OPERATION_EXPERTS] = mlx_experts,
    };
    mlx_fetch(side, RUN[op->kind](op, side), out);
}

void mlx_side_close(void *side)
{
    MlxEngine *engine = side;
    backend_weights_free(engine);
    graph_free(&engine->graph);
    mlx_stream_free(engine->stream);
    mlx_device_free(engine->device);
    memory_free(engine);
}
