/* Tokens chosen where the logits are, so that no row of them crosses to the host.
 *
 * The argmax, or a draw: with weights w = exp((logit - best) / temperature) and their cumulated
 * sums c in the order of ids, the first id with c > draw * (all weights). Sums are float32, so a
 * draw close to the border of two tokens may fall on the other side than in double. */
#include "mlx_engine.h"

typedef float (*ChoiceValue)(const EngineChoice *choice, size_t draw);

static float divisor_of(const EngineChoice *choice, size_t draw)
{
    (void)draw;
    return choice->temperature > 0 ? choice->temperature : 1.0f;
}

static float draw_of(const EngineChoice *choice, size_t draw)
{
    return (float)choice->draws[draw];
}

static float temperature_of(const EngineChoice *choice, size_t draw)
{
    (void)draw;
    return choice->temperature;
}

/* A value of each of the pass's choices: [n_wanted, 1]. */
static mlx_array column(MlxEngine *engine, ChoiceValue value, size_t draw)
{
    Graph *g = &engine->graph;
    const int shape[] = {(int)engine->n_wanted, 1};
    float *values = memory_allocate_array(engine->n_wanted, sizeof *values);
    if (!values) {
        g->failed = true;
        return mlx_array_new();
    }
    for (size_t i = 0; i < engine->n_wanted; i++)
        values[i] = value(&engine->choices[i], draw);
    mlx_array result = graph_data(g, values, MLX_FLOAT32, shape, 2);
    memory_free(values);
    return result;
}

static mlx_array count_true(Graph *g, mlx_array condition)
{
    return graph_sum(g, graph_cast(g, condition, MLX_INT32), -1, true);
}

/* [n_wanted, 1] */
static mlx_array draw_ids(MlxEngine *engine, mlx_array logits, size_t draw)
{
    Graph *g = &engine->graph;
    int last = (int)engine->model->config.vocab_size - 1;
    mlx_array below = graph_add(g, logits, graph_negative(g, graph_max(g, logits, -1)));
    mlx_array weights = graph_exp(g, graph_divide(g, below, column(engine, divisor_of, 0)));
    mlx_array sums = graph_cumsum(g, weights, -1);
    mlx_array all = graph_slice(g, sums, 1, last, last + 1);
    mlx_array target = graph_multiply(g, all, column(engine, draw_of, draw));
    mlx_array passed = count_true(g, graph_greater_equal(g, target, sums));
    /* Rounding may make the draw 1: then the last id with any weight. */
    mlx_array most = count_true(g, graph_less(g, sums, all));
    return graph_where(g, graph_less(g, most, passed), most, passed);
}

mlx_array backend_choose(MlxEngine *engine, mlx_array logits, size_t draw)
{
    Graph *g = &engine->graph;
    size_t n_draws = 0;
    for (size_t i = 0; engine->choices && i < engine->n_wanted; i++)
        n_draws += engine->choices[i].temperature > 0;
    mlx_array best = graph_cast(g, graph_argmax(g, logits, -1), MLX_INT32);
    if (n_draws == 0)
        return best;
    const int flat[] = {(int)engine->n_wanted};
    mlx_array drawn = graph_reshape(g, draw_ids(engine, logits, draw), flat, 1);
    if (n_draws == engine->n_wanted)
        return drawn;
    mlx_array temperatures = graph_reshape(g, column(engine, temperature_of, 0), flat, 1);
    mlx_array none = graph_scalar(g, 0.0f, MLX_FLOAT32);
    return graph_where(g, graph_less(g, none, temperatures), drawn, best);
}
