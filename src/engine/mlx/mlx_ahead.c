/* Decoding with the device kept busy.
 *
 * Choosing tokens on the device makes step t + 1 depend on nothing that the host has to see. So
 * its graph is built, and handed to the device, before step t's tokens are fetched:
 *
 *   host    build t+1 | fetch ids of t | text, clients, ... | build t+2 | fetch ids of t+1 | ...
 *   device  ... step t ... | ......... step t+1 .......... | .......... step t+2 ..........
 *
 * The next call takes the result if it goes on as expected: the same sequences, each with the token
 * that it was given and the draw that was announced. Otherwise the result is dropped; the rows that
 * the step appended to caches lie beyond every sequence's length and are written over. A step is
 * begun ahead only after two successive steps of the same sequences, so that a sequence that ends
 * costs one step of waste and one that is still being prefilled none. */
#include "mlx_engine.h"

#include <string.h>

void backend_ahead_forget(MlxEngine *engine)
{
    mlx_array_free(engine->ahead.ids);
    engine->ahead.ids = mlx_array_new();
    engine->ahead.count = 0;
}

static EngineChoice choice_of(const MlxEngine *engine, size_t i)
{
    return engine->choices ? engine->choices[i] : (EngineChoice){0};
}

static bool continues(const MlxEngine *engine)
{
    const MlxAhead *ahead = &engine->ahead;
    if (ahead->count != engine->n_slices)
        return false;
    for (size_t i = 0; i < ahead->count; i++) {
        EngineChoice now = choice_of(engine, i), then = ahead->choices[i];
        if (engine->slices[i].sequence != ahead->sequences[i] ||
            engine->tokens[i] != ahead->tokens[i] || now.temperature != then.temperature ||
            now.draws[0] != then.draws[1])
            return false;
    }
    return true;
}

/* The pass's ids, not evaluated; the caller owns the handle. */
static mlx_array build_step(MlxEngine *engine, mlx_array tokens, size_t draw)
{
    Graph *g = &engine->graph;
    return graph_keep(g, backend_choose(engine, backend_build_pass(engine, tokens), draw));
}

static bool start(mlx_array ids, Error *err)
{
    mlx_vector_array list = mlx_vector_array_new_value(ids);
    int status = mlx_async_eval(list);
    mlx_vector_array_free(list);
    return graph_status(status, "forward", err);
}

/* Begins the step that follows the pass, whose ids these are. */
static bool begin_next(MlxEngine *engine, mlx_array ids, Error *err)
{
    Graph *g = &engine->graph;
    for (size_t i = 0; i < engine->n_slices; i++) {
        if (engine->slices[i].sequence->length + 2 > engine->slices[i].sequence->max_tokens)
            return true; /* no room for it */
    }
    for (size_t i = 0; i < engine->n_slices; i++)
        engine->slices[i].sequence->length++;
    engine->ahead.ids = build_step(engine, ids, 1);
    for (size_t i = 0; i < engine->n_slices; i++)
        engine->slices[i].sequence->length--;
    bool ok = graph_check(g, "forward", err);
    graph_release(g);
    return ok && start(engine->ahead.ids, err);
}

bool backend_decode_ahead(MlxEngine *engine, int32_t *ids, Error *err)
{
    Graph *g = &engine->graph;
    MlxAhead *ahead = &engine->ahead;
    size_t n = engine->n_slices;
    int shape[] = {(int)n};
    bool steady = continues(engine), ok = true;
    mlx_array now = mlx_array_new();
    if (steady && ahead->ids.ctx) {
        now = ahead->ids;
        ahead->ids = mlx_array_new();
    } else {
        backend_ahead_forget(engine);
        now = build_step(engine, graph_data(g, engine->tokens, MLX_INT32, shape, 1), 0);
        ok = graph_check(g, "forward", err);
        graph_release(g);
        ok = ok && start(now, err);
    }
    ok = ok && (!steady || begin_next(engine, now, err)) && backend_fetch_ids(now, n, ids, err);
    mlx_array_free(now);
    if (!ok) {
        backend_ahead_forget(engine);
        return false;
    }
    ahead->count = n;
    memcpy(ahead->tokens, ids, n * sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        ahead->sequences[i] = engine->slices[i].sequence;
        ahead->choices[i] = choice_of(engine, i);
    }
    return true;
}
