/* Repacks the matrices of a model, one after the other, and gives each one's pages back to the
 * system as soon as its copy exists: at any time about one copy of the weights is resident. */
#include "cpu_engine.h"

#include <string.h>

static void release_pages(const CpuEngine *engine, const WeightMatrix *matrix)
{
    const TensorView *const tensors[] = {matrix->weight, matrix->scales, matrix->biases};
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        if (tensors[i])
            tensor_set_release(engine->model->tensors, tensors[i]);
    }
}

static bool pack(CpuEngine *engine, const WeightMatrix *source, PackedMatrix **out, Error *err)
{
    if (!packed_matrix_create_in(&engine->store, source, 0, engine->pool, out, err))
        return false;
    engine->weight_bytes += packed_matrix_bytes(*out);
    release_pages(engine, source);
    return true;
}

static bool read_factors(const WeightMatrix *source, float **out, Error *err)
{
    bool all_ones = true;
    for (size_t e = 0; e < source->n_experts; e++)
        all_ones = all_ones && !(source->experts ? &source->experts[e] : source)->global_scale;
    if (all_ones)
        return true;
    *out = memory_allocate_array(source->n_experts, sizeof **out);
    if (!*out)
        return error_no_memory(err, "experts");
    for (size_t e = 0; e < source->n_experts; e++)
        (*out)[e] = weight_matrix_expert_factor(source, e);
    return true;
}

static bool pack_stack(CpuEngine *engine, const WeightMatrix *source, PackedMatrix ***out,
                       float **factor, Error *err)
{
    *out = memory_allocate_zeroed(source->n_experts, sizeof **out);
    if (!*out)
        return error_no_memory(err, "experts");
    if (!read_factors(source, factor, err))
        return false;
    for (size_t e = 0; e < source->n_experts; e++) {
        WeightMatrix one = source->experts ? source->experts[e] : *source;
        one.global_scale = NULL;
        if (!packed_matrix_create_in(&engine->store, &one, source->experts ? 0 : e, engine->pool,
                                     &(*out)[e], err))
            return false;
        engine->weight_bytes += packed_matrix_bytes((*out)[e]);
        if (source->experts)
            release_pages(engine, &one);
    }
    if (!source->experts)
        release_pages(engine, source);
    return true;
}

static bool load_layer(CpuEngine *engine, size_t index, Error *err)
{
    const LayerWeights *w = &engine->model->weights.layers[index];
    CpuLayer *layer = &engine->layers[index];
    if (!pack(engine, &w->q, &layer->q, err) || !pack(engine, &w->k, &layer->k, err) ||
        !pack(engine, &w->v, &layer->v, err) || !pack(engine, &w->o, &layer->o, err))
        return false;
    if (engine->model->config.layers[index].is_sparse)
        return pack(engine, &w->router, &layer->router, err) &&
               pack_stack(engine, &w->expert_gate, &layer->expert_gate, &layer->gate_factor, err) &&
               pack_stack(engine, &w->expert_up, &layer->expert_up, &layer->up_factor, err) &&
               pack_stack(engine, &w->expert_down, &layer->expert_down, &layer->down_factor, err);
    return pack(engine, &w->gate, &layer->gate, err) && pack(engine, &w->up, &layer->up, err) &&
           pack(engine, &w->down, &layer->down, err);
}

bool cpu_weights_load(CpuEngine *engine, Error *err)
{
    const ModelConfig *config = &engine->model->config;
    const ModelWeights *weights = &engine->model->weights;
    engine->layers = memory_allocate_zeroed(config->num_hidden_layers, sizeof *engine->layers);
    if (!engine->layers)
        return error_no_memory(err, "layers");
    if (!pack(engine, &weights->embedding, &engine->embedding, err))
        return false;
    engine->head = engine->embedding;
    if (!config->tie_word_embeddings) {
        engine->head = NULL;
        if (!pack(engine, &weights->head, &engine->head, err))
            return false;
    }
    for (size_t i = 0; i < config->num_hidden_layers; i++) {
        if (!load_layer(engine, i, err))
            return false;
    }
    return true;
}

static void free_stack(PackedMatrix **stack, size_t count)
{
    for (size_t e = 0; stack && e < count; e++)
        packed_matrix_free(stack[e]);
    memory_free(stack);
}

void cpu_weights_free(CpuEngine *engine)
{
    const ModelConfig *config = &engine->model->config;
    for (size_t i = 0; engine->layers && i < config->num_hidden_layers; i++) {
        CpuLayer *layer = &engine->layers[i];
        PackedMatrix *const matrices[] = {layer->q,    layer->k,  layer->v,    layer->o,
                                          layer->gate, layer->up, layer->down, layer->router};
        for (size_t m = 0; m < ARRAY_COUNT(matrices); m++)
            packed_matrix_free(matrices[m]);
        free_stack(layer->expert_gate, config->num_experts);
        free_stack(layer->expert_up, config->num_experts);
        free_stack(layer->expert_down, config->num_experts);
        memory_free(layer->gate_factor);
        memory_free(layer->up_factor);
        memory_free(layer->down_factor);
    }
    memory_free(engine->layers);
    if (engine->head != engine->embedding)
        packed_matrix_free(engine->head);
    packed_matrix_free(engine->embedding);
    packed_store_reset(&engine->store);
}
