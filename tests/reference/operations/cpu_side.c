/* The CPU engine's side of compare_operations. */
#include "operations.h"

#include "cpu/attention_codes.h"
#include "cpu/cpu_engine.h"

#include <math.h>
#include <string.h>

static void store_rows(const Operation *op, const CpuEngine *engine, const KvCache *cache)
{
    const ModelConfig *c = &engine->model->config;
    const KvLayer *layer = &cache->pool->layers[op->layer];
    size_t dim = c->head_dim, heads = c->num_key_value_heads, padded = cache->pool->value_stride;
    for (size_t i = 0; i < N_TOKENS * heads; i++) {
        const float *k = op->y + i * dim, *v = op->z + i * dim;
        if (kv_is_codes(cache->pool->type)) {
            attention_store_codes(engine->ops, cache->pool->type, k, v, dim,
                                  kv_cache_keys(cache, layer, i % heads, i / heads),
                                  kv_cache_values(cache, layer, i % heads, i / heads),
                                  i / heads % KV_BLOCK);
            continue;
        }
        void *key = kv_cache_key(cache, layer, i % heads, i / heads);
        void *value = kv_cache_value(cache, layer, i % heads, i / heads);
        memset(value, 0, padded * cache->pool->element_size);
        if (cache->pool->element_size == 2) {
            engine->ops->store_half(k, dim, key, KV_KEY_TILE);
            engine->ops->store_half(v, dim, value, 1);
            continue;
        }
        for (size_t d = 0; d < dim; d++)
            ((float *)key)[d * KV_KEY_TILE] = k[d];
        memcpy(value, v, dim * sizeof *v);
    }
}

static void cpu_embedding(const Operation *op, CpuEngine *engine, float *out)
{
    const ModelConfig *c = &engine->model->config;
    for (size_t t = 0; t < N_TOKENS; t++) {
        float *row = out + t * c->hidden_size;
        packed_matrix_read_row(engine->embedding, (size_t)op->ids[t], row);
        for (size_t i = 0; i < c->hidden_size; i++)
            row[i] *= c->embedding_scale;
    }
}

static void cpu_norm(const Operation *op, CpuEngine *engine, float *out)
{
    const ModelConfig *c = &engine->model->config;
    for (size_t t = 0; t < N_TOKENS; t++)
        engine->ops->rms_norm(op->x + t * c->hidden_size,
                              engine->model->weights.layers[0].input_norm, c->hidden_size,
                              c->rms_norm_eps, out + t * c->hidden_size);
}

static const PackedMatrix *find_matrix(const CpuEngine *engine, const Operation *op)
{
    const CpuLayer *layer = &engine->layers[op->layer];
    switch (op->matrix) {
    case MATRIX_Q:
        return layer->q;
    case MATRIX_V:
        return layer->v;
    case MATRIX_DOWN:
        return layer->down;
    default:
        return engine->head;
    }
}

static void cpu_product(const Operation *op, CpuEngine *engine, float *out)
{
    Activations *input = &engine->scratch.activations;
    const MatrixProduct product = {find_matrix(engine, op), op->bias, out, op->rows};
    activations_prepare(input, product.matrix, op->x, op->n_tokens, op->cols, op->cols,
                        engine->pool);
    matrix_multiply(input, &product, 1, engine->pool);
}

static void cpu_rotation(const Operation *op, CpuEngine *engine, float *out)
{
    const ModelConfig *c = &engine->model->config;
    const RopeTable *rope = &c->rope[op->layer];
    size_t half = rope->rotary_dims / 2, heads = c->num_attention_heads, dim = c->head_dim;
    float *cosines = engine->pass->cosines[0], *sines = engine->pass->sines[0];
    for (size_t t = 0; t < N_TOKENS; t++) {
        for (size_t d = 0; d < half; d++) {
            double angle = (double)(ROTATION_OFFSET + t) * rope->inverse_frequencies[d];
            cosines[d] = (float)(cos(angle) * rope->attention_factor);
            sines[d] = (float)(sin(angle) * rope->attention_factor);
        }
        for (size_t h = 0; h < heads; h++) {
            float *to = out + (t * heads + h) * dim;
            memcpy(to, op->x + (t * heads + h) * dim, dim * sizeof *to);
            engine->ops->rotate(to, cosines, sines, half);
        }
    }
}

static void cpu_attention(const Operation *op, CpuEngine *engine, float *out)
{
    Error err = {0};
    EngineSequence *sequence;
    size_t cols =
        (size_t)engine->model->config.num_attention_heads * engine->model->config.head_dim;
    require(engine_sequence_create(&engine->base, N_TOKENS, &sequence, &err), &err);
    kv_cache_prepare(&sequence->cache, N_TOKENS);
    store_rows(op, engine, &sequence->cache);
    AttentionSlice slice = {&sequence->cache, 0, N_TOKENS, 0};
    attention_plan(engine->scratch.attention, &slice, 1);
    attention_run(engine->scratch.attention, engine->ops, op->layer, op->x, cols, out, cols, NULL,
                  engine->pool);
    engine_sequence_free(&engine->base, sequence);
}

static void cpu_activation(const Operation *op, CpuEngine *engine, float *out)
{
    memcpy(out, op->x, op->count * sizeof *out);
    if (engine->model->config.activation == ACTIVATION_SILU)
        engine->ops->silu_multiply(out, op->y, op->count);
    else
        engine->ops->gelu_tanh_multiply(out, op->y, op->count);
}

static void cpu_experts(const Operation *op, CpuEngine *engine, float *out)
{
    size_t hidden = engine->model->config.hidden_size;
    memcpy(engine->scratch.normed, op->x, N_TOKENS * hidden * sizeof *op->x);
    engine->pass->n_tokens = N_TOKENS;
    activations_prepare(&engine->scratch.activations, engine->layers[op->layer].router,
                        engine->scratch.normed, N_TOKENS, hidden, hidden, engine->pool);
    cpu_experts_forward(engine, &engine->layers[op->layer]);
    memcpy(out, engine->scratch.block_out, op->count * sizeof *out);
}

void *cpu_side_open(const Model *model, bool is_f32)
{
    Error err = {0};
    Engine *engine;
    EngineOptions options = {.precision = is_f32 ? ENGINE_PRECISION_F32 : ENGINE_PRECISION_INT16,
                             .threads = 2};
    require(cpu_engine_open(model, &options, INSTRUCTIONS_BEST, &engine, &err), &err);
    return engine;
}

void cpu_side_run(void *side, const Operation *op, float *out)
{
    static void (*const RUN[])(const Operation *, CpuEngine *, float *) = {
        [OPERATION_EMBEDDING] = cpu_embedding, [OPERATION_NORM] = cpu_norm,
        [OPERATION_PRODUCT] = cpu_product,     [OPERATION_ROTATION] = cpu_rotation,
        [OPERATION_ATTENTION] = cpu_attention, [OPERATION_ACTIVATION] = cpu_activation,
        [OPERATION_EXPERTS] = cpu_experts,
    };
    RUN[op->kind](op, side, out);
}

void cpu_side_close(void *side)
{
    engine_close(side);
}
