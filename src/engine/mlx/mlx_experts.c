/* The sparse MLP: a router picks num_experts_per_tok experts for each token.
 *
 *   p = softmax(x Wrouter) over all experts; the largest k; divided by their sum if norm_topk_prob
 *   y = sum p_e * down_e(act(gate_e x) * up_e x)
 *
 * The products gather the chosen experts' matrices. From a few dozen (token, expert) pairs on, the
 * pairs are sorted by expert first, so that an expert's matrices are read in one stretch. */
#include "mlx_engine.h"

enum { EXPERTS_SORT_PAIRS = 64 };

/* x [pairs, 1, cols] times each pair's own expert. */
static mlx_array gathered_product(MlxEngine *engine, const MlxMatrix *m, mlx_array x,
                                  mlx_array experts, bool sorted)
{
    Graph *g = &engine->graph;
    mlx_array r = mlx_array_new(), none = mlx_array_new();
    int status = 1;
    if (!m->mode)
        x = graph_cast(g, x, mlx_array_dtype(m->weight));
    if (!g->failed && m->mode)
        status = mlx_gather_qmm(&r, x, m->weight, m->scales, m->biases, none, experts, true,
                                (mlx_optional_int){m->group_size, true},
                                (mlx_optional_int){m->bits, true}, m->mode, sorted, g->stream);
    else if (!g->failed)
        status = mlx_gather_mm(&r, x, m->weight, none, experts, sorted, g->stream);
    mlx_array y = graph_cast(g, graph_take_result(g, status, r), engine->type);
    return m->factors.ctx ? graph_multiply(g, y, graph_take(g, m->factors, experts, 0)) : y;
}

static void choose(MlxEngine *engine, mlx_array scores, mlx_array *experts, mlx_array *shares)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    int k = (int)c->num_experts_per_tok;
    mlx_array p = graph_softmax(g, graph_cast(g, scores, MLX_FLOAT32), -1);
    mlx_array order = graph_argpartition(g, graph_negative(g, p), k - 1, -1);
    *experts = graph_slice(g, order, 1, 0, k);
    *shares = graph_take_along(g, p, *experts, -1);
    if (c->norm_topk_prob)
        *shares = graph_divide(g, *shares, graph_sum(g, *shares, -1, true));
}

mlx_array backend_experts(MlxEngine *engine, const MlxLayer *layer, mlx_array x)
{
    Graph *g = &engine->graph;
    const ModelConfig *c = &engine->model->config;
    mlx_array experts, shares;
    choose(engine, backend_product(engine, &layer->router, x), &experts, &shares);
    if (g->failed)
        return experts;
    int n = mlx_array_dim(x, 0), k = (int)c->num_experts_per_tok, hidden = (int)c->hidden_size;
    int pairs = n * k;
    const int flat[] = {pairs}, rows[] = {pairs, 1, hidden}, apart[] = {n, k, hidden};
    const int weights[] = {n, k, 1};
    mlx_array pair_expert = graph_reshape(g, experts, flat, 1);
    mlx_array pair_token = graph_range(g, 0, (size_t)pairs);
    mlx_array back = mlx_array_new();
    bool sorted = pairs >= EXPERTS_SORT_PAIRS;
    if (sorted) {
        pair_token = graph_argsort(g, pair_expert, 0);
        pair_expert = graph_take(g, pair_expert, pair_token, 0);
        back = graph_argsort(g, pair_token, 0);
    }
    const int32_t per_token = k;
    mlx_array divisor = graph_data(g, &per_token, MLX_INT32, NULL, 0);
    pair_token = graph_floor_divide(g, graph_cast(g, pair_token, MLX_INT32), divisor);
    mlx_array in = graph_reshape(g, graph_take(g, x, pair_token, 0), rows, 3);
    mlx_array gate = gathered_product(engine, &layer->gate, in, pair_expert, sorted);
    mlx_array up = gathered_product(engine, &layer->up, in, pair_expert, sorted);
    mlx_array out = gathered_product(engine, &layer->down, backend_gated(engine, gate, up),
                                     pair_expert, sorted);
    if (sorted)
        out = graph_take(g, out, back, 0);
    shares = graph_cast(g, graph_reshape(g, shares, weights, 3), engine->type);
    out = graph_multiply(g, graph_reshape(g, out, apart, 3), shares);
    return graph_sum(g, out, 1, false);
}
