/* The sparse MLP: a router picks num_experts_per_tok experts for each token.
 *
 *   p = softmax(x Wrouter) over all experts; the largest k; divided by their sum if norm_topk_prob
 *   y = sum p_e * down_e(act(gate_e x) * up_e x)
 *
 * The tokens that chose an expert are gathered, so that each expert's matrices are read once a
 * pass. A token's sum runs over its experts in the order of their numbers: it does not depend on
 * the batch. */
#include "cpu_engine.h"

#include <string.h>

typedef struct ExpertJob {
    CpuEngine *engine;
    CpuScratch *s;
    const ModelConfig *config;
    size_t n_members;
} ExpertJob;

/* The k largest of row (lower number first among equals), their probabilities in share. They are k
 * different ones even where damaged weights have made all of row NaN: buffers have room for a token
 * once in each expert. */
static void choose_experts(const ModelConfig *c, float *row, uint32_t *ids, float *share)
{
    size_t k = c->num_experts_per_tok;
    float sum = 0.0f;
    ops_softmax(row, c->num_experts);
    for (size_t i = 0; i < k; i++) {
        uint32_t best = 0;
        for (uint32_t e = 1; e < c->num_experts; e++) {
            bool is_taken = row[e] < 0.0f;
            if (!is_taken && (row[best] < 0.0f || row[e] > row[best]))
                best = e;
        }
        ids[i] = best;
        share[i] = row[best];
        sum += row[best];
        row[best] = -1.0f; /* taken */
    }
    for (size_t i = 0; c->norm_topk_prob && sum > 0.0f && i < k; i++)
        share[i] /= sum;
}

static void route_rows(void *context, size_t first, size_t end)
{
    const ExpertJob *job = context;
    const ModelConfig *c = job->config;
    for (size_t t = first; t < end; t++) {
        choose_experts(c, job->s->router + t * c->num_experts,
                       job->s->expert_id + t * c->num_experts_per_tok,
                       job->s->expert_share + t * c->num_experts_per_tok);
        memset(job->s->block_out + t * c->hidden_size, 0, c->hidden_size * sizeof(float));
    }
}

static size_t gather_members(const ExpertJob *job, uint32_t expert)
{
    const CpuScratch *s = job->s;
    size_t k = job->config->num_experts_per_tok, hidden = job->config->hidden_size, n = 0;
    for (size_t i = 0; i < job->engine->pass->n_tokens * k; i++) {
        if (s->expert_id[i] != expert)
            continue;
        s->members[n] = (uint32_t)(i / k);
        s->member_share[n] = s->expert_share[i];
        memcpy(s->gathered + n * hidden, s->normed + i / k * hidden, hidden * sizeof(float));
        n++;
    }
    return n;
}

static void activate_rows(void *context, size_t first, size_t end)
{
    const ExpertJob *job = context;
    CpuScratch *s = job->s;
    size_t inner = job->config->moe_intermediate_size;
    for (size_t i = first; i < end; i++) {
        if (job->config->activation == ACTIVATION_SILU)
            job->engine->ops->silu_multiply(s->gate + i * inner, s->up + i * inner, inner);
        else
            job->engine->ops->gelu_tanh_multiply(s->gate + i * inner, s->up + i * inner, inner);
        activations_quantize_row(&s->activations, i);
    }
}

static void apply_factor(float *rows, size_t count, const float *factors, uint32_t expert)
{
    for (size_t i = 0; factors && i < count; i++)
        rows[i] *= factors[expert];
}

static void run_expert(ExpertJob *job, const CpuLayer *layer, uint32_t expert)
{
    CpuEngine *engine = job->engine;
    CpuScratch *s = job->s;
    size_t inner = job->config->moe_intermediate_size, hidden = job->config->hidden_size;
    job->n_members = gather_members(job, expert);
    if (job->n_members == 0)
        return;
    activations_prepare(&s->activations, layer->expert_gate[expert], s->gathered, job->n_members,
                        hidden, hidden, engine->pool);
    const MatrixProduct inputs[] = {{layer->expert_gate[expert], NULL, s->gate, inner},
                                    {layer->expert_up[expert], NULL, s->up, inner}};
    matrix_multiply(&s->activations, inputs, ARRAY_COUNT(inputs), engine->pool);
    apply_factor(s->gate, job->n_members * inner, layer->gate_factor, expert);
    apply_factor(s->up, job->n_members * inner, layer->up_factor, expert);
    activations_begin(&s->activations, layer->expert_down[expert], s->gate, job->n_members, inner,
                      inner);
    cpu_run_rows(engine, job->n_members, activate_rows, job);
    /* gathered is free again: its rows take the expert's results. */
    const MatrixProduct output = {layer->expert_down[expert], NULL, s->gathered, hidden};
    matrix_multiply(&s->activations, &output, 1, engine->pool);
    apply_factor(s->gathered, job->n_members * hidden, layer->down_factor, expert);
    for (size_t i = 0; i < job->n_members; i++)
        engine->ops->add_scaled(s->block_out + s->members[i] * hidden, s->gathered + i * hidden,
                                hidden, s->member_share[i]);
}

void cpu_experts_forward(CpuEngine *engine, const CpuLayer *layer)
{
    ExpertJob job = {.engine = engine, .s = &engine->scratch, .config = &engine->model->config};
    const MatrixProduct router = {layer->router, NULL, job.s->router, job.config->num_experts};
    matrix_multiply(cpu_fine_activations(engine), &router, 1, engine->pool);
    cpu_run_rows(engine, engine->pass->n_tokens, route_rows, &job);
    for (uint32_t expert = 0; expert < job.config->num_experts; expert++)
        run_expert(&job, layer, expert);
}
