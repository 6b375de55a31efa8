/* Repacks the matrices of a model in the groups in which they are multiplied, one group after the
 * other, and gives each one's pages back to the system as soon as its copy exists: at any time
 * about one copy of the weights is resident. */
#include "cpu_engine.h"

#include <assert.h>
#include <string.h>

enum { GROUP_MAX = 3 };

/* The pages of one expert, where a tensor holds all of them. Those that two share stay. */
static void release_pages(const CpuEngine *engine, const WeightMatrix *matrix, size_t expert)
{
    const TensorView *const tensors[] = {matrix->weight, matrix->scales, matrix->biases};
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        if (!tensors[i])
            continue;
        TensorView part = *tensors[i];
        part.n_bytes /= matrix->n_experts;
        part.data += expert * part.n_bytes;
        tensor_set_release(engine->model->tensors, &part);
    }
}

static bool pack(CpuEngine *engine, const PackRequest *requests, size_t count, Error *err)
{
    if (!packed_matrices_create(&engine->store, requests, count, engine->pool, err))
        return false;
    for (size_t i = 0; i < count; i++) {
        engine->weight_bytes += packed_matrix_bytes(*requests[i].out);
        release_pages(engine, requests[i].source, requests[i].expert);
    }
    return true;
}

static bool pack_one(CpuEngine *engine, const WeightMatrix *source, PackedMatrix **out, Error *err)
{
    const PackRequest request = {source, 0, out};
    return pack(engine, &request, 1, err);
}

/* ---- Experts ---- */

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

static bool create_stack(const WeightMatrix *source, PackedMatrix ***out, float **factors,
                         Error *err)
{
    *out = memory_allocate_zeroed(source->n_experts, sizeof **out);
    return *out ? read_factors(source, factors, err) : error_no_memory(err, "experts");
}

/* One expert's matrices of the stacks, which are multiplied together. Factors are applied to
 * results, not to weights. */
static bool pack_expert(CpuEngine *engine, const WeightMatrix *const *stacks,
                        PackedMatrix **const *outs, size_t count, size_t expert, Error *err)
{
    WeightMatrix sources[GROUP_MAX];
    PackRequest requests[GROUP_MAX];
    assert(count <= GROUP_MAX);
    for (size_t i = 0; i < count; i++) {
        bool is_alone = stacks[i]->experts != NULL;
        sources[i] = is_alone ? stacks[i]->experts[expert] : *stacks[i];
        sources[i].global_scale = NULL;
        requests[i] = (PackRequest){&sources[i], is_alone ? 0 : expert, &outs[i][expert]};
    }
    return pack(engine, requests, count, err);
}

/* The pages that experts share. */
static void release_stack(const CpuEngine *engine, const WeightMatrix *stack)
{
    WeightMatrix whole = *stack;
    whole.n_experts = 1;
    if (!stack->experts)
        release_pages(engine, &whole, 0);
}

static bool load_experts(CpuEngine *engine, const LayerWeights *w, CpuLayer *layer, Error *err)
{
    if (!pack_one(engine, &w->router, &layer->router, err) ||
        !create_stack(&w->expert_gate, &layer->expert_gate, &layer->gate_factor, err) ||
        !create_stack(&w->expert_up, &layer->expert_up, &layer->up_factor, err) ||
        !create_stack(&w->expert_down, &layer->expert_down, &layer->down_factor, err))
        return false;
    const WeightMatrix *const inputs[] = {&w->expert_gate, &w->expert_up};
    PackedMatrix **const input_outs[] = {layer->expert_gate, layer->expert_up};
    const WeightMatrix *const down = &w->expert_down;
    PackedMatrix **const down_out = layer->expert_down;
    for (size_t e = 0; e < w->expert_gate.n_experts; e++) {
        if (!pack_expert(engine, inputs, input_outs, 2, e, err) ||
            !pack_expert(engine, &down, &down_out, 1, e, err))
            return false;
    }
    release_stack(engine, &w->expert_gate);
    release_stack(engine, &w->expert_up);
    release_stack(engine, &w->expert_down);
    return true;
}

/* ---- Layers ---- */

static bool load_layer(CpuEngine *engine, size_t index, Error *err)
{
    const LayerWeights *w = &engine->model->weights.layers[index];
    CpuLayer *layer = &engine->layers[index];
    const PackRequest attention[] = {
        {&w->q, 0, &layer->q}, {&w->k, 0, &layer->k}, {&w->v, 0, &layer->v}};
    if (!pack(engine, attention, ARRAY_COUNT(attention), err) ||
        !pack_one(engine, &w->o, &layer->o, err))
        return false;
    if (engine->model->config.layers[index].is_sparse)
        return load_experts(engine, w, layer, err);
    const PackRequest mlp[] = {{&w->gate, 0, &layer->gate}, {&w->up, 0, &layer->up}};
    return pack(engine, mlp, ARRAY_COUNT(mlp), err) &&
           pack_one(engine, &w->down, &layer->down, err);
}

bool cpu_weights_load(CpuEngine *engine, Error *err)
{
    const ModelConfig *config = &engine->model->config;
    const ModelWeights *weights = &engine->model->weights;
    engine->layers = memory_allocate_zeroed(config->num_hidden_layers, sizeof *engine->layers);
    if (!engine->layers)
        return error_no_memory(err, "layers");
    if (!pack_one(engine, &weights->embedding, &engine->embedding, err))
        return false;
    engine->head = engine->embedding;
    if (!config->tie_word_embeddings) {
        engine->head = NULL;
        if (!pack_one(engine, &weights->head, &engine->head, err))
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
