/* Keys and values of sequences.
 *
 *   row        0 ........... length - first ...... capacity
 *   position   first ....... length
 *
 * Appending writes rows [length - first, + n) in place, since nobody else holds the array; when
 * they do not fit, the rows that are still needed move to a larger array (a full layer) or to the
 * front of a new one (a layer with a window, which needs the last W - 1). A fork shares the arrays,
 * and MLX copies on the first write. */
#include "mlx_engine.h"

/* ---- Reservations ---- */

static size_t round_to_step(size_t rows)
{
    return (rows + MLX_CACHE_STEP - 1) / MLX_CACHE_STEP * MLX_CACHE_STEP;
}

/* The most rows that make_room gives a layer. */
static size_t layer_rows(const MlxEngine *engine, size_t window, size_t max_tokens)
{
    size_t rows = round_to_step(max_tokens);
    size_t kept = window + engine->max_batch_tokens;
    size_t bound = round_to_step(kept) + MLX_CACHE_STEP;
    return window > 0 && bound < rows ? bound : rows;
}

size_t backend_kv_bytes(const MlxEngine *engine, size_t max_tokens)
{
    const ModelConfig *c = &engine->model->config;
    size_t row_bytes =
        2 * (size_t)c->num_key_value_heads * c->head_dim * mlx_dtype_size(engine->type);
    size_t bytes = 0;
    for (size_t i = 0; i < c->num_hidden_layers; i++)
        bytes += layer_rows(engine, c->layers[i].sliding_window, max_tokens) * row_bytes;
    return bytes;
}

bool backend_sequence_reserve(MlxEngine *engine, EngineSequence *sequence, size_t max_tokens,
                              Error *err)
{
    size_t bytes = backend_kv_bytes(engine, max_tokens), limit = engine->kv_bytes_max;
    size_t others = engine->kv_bytes_used - sequence->kv_bytes;
    if (limit > 0 && bytes > limit)
        return error_set(err, ERROR_LIMIT,
                         "%zu tokens need %zu bytes of KV memory, expected at most %zu", max_tokens,
                         bytes, limit);
    if (limit > 0 && bytes > limit - others)
        return error_set(err, ERROR_MEMORY, "no KV memory for %zu tokens now", max_tokens);
    engine->kv_bytes_used = others + bytes;
    sequence->kv_bytes = bytes;
    return true;
}

/* ---- Sequences ---- */

bool backend_sequence_create(MlxEngine *engine, size_t max_tokens, EngineSequence **out, Error *err)
{
    *out = NULL;
    EngineSequence *sequence = memory_allocate_zeroed(1, sizeof *sequence);
    if (!sequence)
        return error_no_memory(err, "sequence");
    sequence->engine = engine;
    sequence->max_tokens = max_tokens;
    sequence->layers =
        memory_allocate_zeroed(engine->model->config.num_hidden_layers, sizeof *sequence->layers);
    bool ok = sequence->layers || error_no_memory(err, "sequence");
    if (!ok || !backend_sequence_reserve(engine, sequence, max_tokens, err)) {
        memory_free(sequence->layers);
        memory_free(sequence);
        return false;
    }
    *out = sequence;
    return true;
}

void backend_sequence_free(MlxEngine *engine, EngineSequence *sequence)
{
    for (size_t i = 0; i < engine->model->config.num_hidden_layers; i++) {
        mlx_array_free(sequence->layers[i].keys);
        mlx_array_free(sequence->layers[i].values);
    }
    engine->kv_bytes_used -= sequence->kv_bytes;
    memory_free(sequence->layers);
    memory_free(sequence);
}

/* ---- Appending ---- */

/* The first position that a query at `length` sees. */
static size_t first_needed(size_t window, size_t length)
{
    return window > 0 && length + 1 > window ? length + 1 - window : 0;
}

bool backend_sequence_holds(const MlxEngine *engine, const EngineSequence *sequence, size_t length)
{
    const ModelConfig *c = &engine->model->config;
    for (size_t i = 0; i < c->num_hidden_layers; i++) {
        if (sequence->layers[i].first > first_needed(c->layers[i].sliding_window, length))
            return false;
    }
    return true;
}

bool backend_sequence_share(MlxEngine *engine, const EngineSequence *from, EngineSequence *to,
                            Error *err)
{
    for (size_t i = 0; i < engine->model->config.num_hidden_layers; i++) {
        const MlxLayerCache *source = &from->layers[i];
        MlxLayerCache *target = &to->layers[i];
        if (!source->keys.ctx)
            continue;
        if (!graph_status(mlx_array_set(&target->keys, source->keys), "fork", err) ||
            !graph_status(mlx_array_set(&target->values, source->values), "fork", err))
            return false;
        target->first = source->first;
        target->capacity = source->capacity;
    }
    return true;
}

/* Rows [from, to) of old in a new array of capacity rows. */
static mlx_array move_rows(MlxEngine *engine, mlx_array old, size_t from, size_t to,
                           size_t capacity)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    int shape[] = {1, (int)c->num_key_value_heads, (int)(capacity - (to - from)), (int)c->head_dim};
    mlx_array room = graph_zeros(g, shape, 4, engine->type);
    if (to == from)
        return room;
    const mlx_array parts[] = {graph_slice(g, old, 2, (int)from, (int)to), room};
    return graph_concatenate(g, parts, 2, 2);
}

static void replace(mlx_array *place, mlx_array owned)
{
    mlx_array_free(*place);
    *place = owned;
}

static void make_room(MlxEngine *engine, MlxLayerCache *cache, size_t window, size_t length,
                      size_t n)
{
    Graph *g = &engine->graph;
    if (length + n - cache->first <= cache->capacity)
        return;
    size_t first = first_needed(window, length);
    first = first < cache->first ? cache->first : first;
    size_t rows = length + n - first;
    size_t capacity = round_to_step(rows);
    if (window > 0)
        capacity += MLX_CACHE_STEP; /* so that moving is rare */
    size_t from = first - cache->first, to = length - cache->first;
    replace(&cache->keys, graph_keep(g, move_rows(engine, cache->keys, from, to, capacity)));
    replace(&cache->values, graph_keep(g, move_rows(engine, cache->values, from, to, capacity)));
    cache->first = first;
    cache->capacity = capacity;
}

void backend_cache_append(MlxEngine *engine, MlxSlice *slice, size_t layer, mlx_array k,
                          mlx_array v, mlx_array *keys, mlx_array *values)
{
    Graph *g = &engine->graph;
    MlxLayerCache *cache = &slice->sequence->layers[layer];
    size_t window = engine->model->config.layers[layer].sliding_window;
    size_t length = slice->sequence->length, n = slice->n_tokens;
    make_room(engine, cache, window, length, n);
    int at = (int)(length - cache->first), end = at + (int)n;
    replace(&cache->keys, graph_keep(g, graph_slice_update(g, cache->keys, k, 2, at, end)));
    replace(&cache->values, graph_keep(g, graph_slice_update(g, cache->values, v, 2, at, end)));
    size_t seen = first_needed(window, length);
    int from = seen > cache->first ? (int)(seen - cache->first) : 0;
    *keys = graph_slice(g, cache->keys, 2, from, end);
    *values = graph_slice(g, cache->values, 2, from, end);
}
