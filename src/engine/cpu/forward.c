/* One pass through the transformer that ModelConfig describes.
 *
 *   x = embedding * scale
 *   per layer:  n = norm(x)             q, k, v = n Wqkv      [norm q, k]  rotate q, k, store k, v
 *               a = attention           x += [norm](a Wo)
 *               n = norm(x)             m = act(n Wgate) * (n Wup), or experts
 *               x += [norm](m Wdown)
 *   logits = cap(norm(x) Whead), for the wanted tokens only
 *
 * A layer is five parallel sections of products and attention; between them lie row sections (a
 * norm and the quantisation of its result, say), which run on the caller alone while there are few
 * tokens. Where each sequence has one token, rotating and storing are done by attention's parts.
 * What a block adds to x is added by the row section that follows, with its norm; where a pass is
 * held between two layers, before that. */
#include "attention_codes.h"
#include "cpu_engine.h"

#include <math.h>

enum {
    FEW_ROWS = 4,
    PART_ROWS_MIN = 2,
    SOFT_CAP_VALUES = 16 << 10, /* of a parallel section's part */
};

typedef struct RowJob {
    CpuEngine *engine;
    const ModelConfig *config;
    CpuScratch *s;
    CpuPass *pass;
    size_t layer;
    const float *pending_norm; /* applied to block_out before it is added, or NULL */
    bool has_pending;          /* block_out has still to be added to x */
    const float *norm;
    Activations *input; /* of the block's next products */
} RowJob;

typedef struct RowRanges {
    CpuRowTask task;
    void *context;
    size_t n_rows, n_together;
} RowRanges;

static void rows_part(void *context, size_t part, size_t n_parts)
{
    const RowRanges *ranges = context;
    size_t first = part * ranges->n_together, left = ranges->n_rows - first;
    (void)n_parts;
    ranges->task(ranges->context, first,
                 first + (left < ranges->n_together ? left : ranges->n_together));
}

static size_t divide_up(size_t n, size_t by)
{
    return (n + by - 1) / by;
}

void cpu_run_rows(const CpuEngine *engine, size_t n_rows, CpuRowTask task, void *context)
{
    size_t together = divide_up(n_rows, engine->threads);
    together = together > PART_ROWS_MIN ? together : PART_ROWS_MIN;
    together = together < CPU_ROWS_PER_PART ? together : CPU_ROWS_PER_PART;
    RowRanges ranges = {task, context, n_rows, together};
    cpu_pool_run_shares(n_rows <= FEW_ROWS ? NULL : engine->pool, rows_part, &ranges,
                        divide_up(n_rows, together));
}

static size_t token_position(const CpuPass *pass, size_t token)
{
    const AttentionSlice *slice = &pass->slices[pass->token_slice[token]];
    return slice->first_position + (token - slice->first_token);
}

/* ---- Row sections ---- */

/* Angles in double: at position 10^5 float32 would be off by thousandths of a radian. */
static void fill_angles(const RopeTable *table, size_t position, float *cosines, float *sines)
{
    for (uint32_t d = 0; d < table->rotary_dims / 2; d++) {
        double angle = (double)position * table->inverse_frequencies[d];
        cosines[d] = (float)(cos(angle) * table->attention_factor);
        sines[d] = (float)(sin(angle) * table->attention_factor);
    }
}

static bool uses_local_rope(const ModelConfig *config)
{
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        if (config->layers[i].rope == 1)
            return true;
    }
    return false;
}

static void embed_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    CpuPass *pass = job->pass;
    const ModelConfig *c = job->config;
    size_t hidden = c->hidden_size;
    size_t n_tables = uses_local_rope(c) ? 2 : 1;
    for (size_t t = first; t < end; t++) {
        float *x = pass->x + t * hidden;
        packed_matrix_read_row(job->engine->embedding, (size_t)pass->tokens[t], x);
        job->engine->ops->scale(x, hidden, c->embedding_scale, x);
        for (size_t i = 0; i < n_tables; i++) {
            size_t half = c->rope[i].rotary_dims / 2;
            fill_angles(&c->rope[i], token_position(pass, t), pass->cosines[i] + t * half,
                        pass->sines[i] + t * half);
        }
    }
}

static void add_pending(const RowJob *job, size_t token)
{
    if (!job->has_pending)
        return;
    size_t hidden = job->config->hidden_size;
    float *added = job->s->block_out + token * hidden;
    const CpuOps *ops = job->engine->ops;
    if (job->pending_norm)
        ops->rms_norm(added, job->pending_norm, hidden, job->config->rms_norm_eps, added);
    ops->add(job->pass->x + token * hidden, added, hidden);
}

static void norm_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    CpuScratch *s = job->s;
    size_t hidden = job->config->hidden_size;
    for (size_t t = first; t < end; t++) {
        add_pending(job, t);
        job->engine->ops->rms_norm(job->pass->x + t * hidden, job->norm, hidden,
                                   job->config->rms_norm_eps, s->normed + t * hidden);
        activations_quantize_row(job->input, t);
    }
}

static void finish_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    CpuScratch *s = job->s;
    size_t hidden = job->config->hidden_size;
    for (size_t i = first; i < end; i++) {
        size_t t = job->pass->wanted[i];
        add_pending(job, t);
        job->engine->ops->rms_norm(job->pass->x + t * hidden, job->norm, hidden,
                                   job->config->rms_norm_eps, s->normed + i * hidden);
        activations_quantize_row(job->input, i);
    }
}

static void position_head(const RowJob *job, float *head, const float *norm, size_t token)
{
    const ModelConfig *c = job->config;
    const CpuOps *ops = job->engine->ops;
    size_t table = c->layers[job->layer].rope;
    if (norm)
        ops->rms_norm(head, norm, c->head_dim, c->rms_norm_eps, head);
    if (table == MODEL_ROPE_NONE)
        return;
    size_t half = c->rope[table].rotary_dims / 2;
    ops->rotate(head, job->pass->cosines[table] + token * half,
                job->pass->sines[table] + token * half, half);
}

/* Where rows of one head are stored: positions from `position` on, within a tile of keys. */
typedef struct KvPlace {
    const KvCache *cache;
    const KvLayer *layer;
    size_t head, position;
} KvPlace;

/* n rows of a head's keys and values, stride apart. */
static void store_half_rows(const CpuOps *ops, KvPlace at, const float *k, const float *v,
                            size_t stride, size_t n)
{
    const KvPool *pool = at.cache->pool;
    void *keys = kv_cache_key(at.cache, at.layer, at.head, at.position);
    uint16_t *value = (void *)kv_cache_value(at.cache, at.layer, at.head, at.position);
    ops->store_half_rows(k, stride, n, pool->head_dim, keys, KV_KEY_TILE);
    for (size_t i = 0; i < n; i++, value += pool->value_stride) {
        ops->store_half(v + i * stride, pool->head_dim, value, 1);
        for (size_t d = pool->head_dim; d < pool->value_stride; d++)
            value[d] = 0;
    }
}

static void store_row(const CpuOps *ops, KvPlace at, const float *k, const float *v)
{
    const KvPool *pool = at.cache->pool;
    if (kv_is_codes(pool->type)) {
        attention_store_codes(ops, pool->type, k, v, pool->head_dim,
                              kv_cache_keys(at.cache, at.layer, at.head, at.position),
                              kv_cache_values(at.cache, at.layer, at.head, at.position),
                              at.position % KV_BLOCK);
        return;
    }
    float *key = (void *)kv_cache_key(at.cache, at.layer, at.head, at.position);
    float *value = (void *)kv_cache_value(at.cache, at.layer, at.head, at.position);
    for (size_t d = 0; d < pool->head_dim; d++)
        key[d * KV_KEY_TILE] = k[d];
    for (size_t d = 0; d < pool->value_stride; d++)
        value[d] = d < pool->head_dim ? v[d] : 0.0f;
}

/* Tokens [first, first + n), which lie in one tile of keys of one sequence. */
typedef struct StoreRun {
    size_t first, n;
    KvPlace at; /* of the first of them, head 0 */
} StoreRun;

/* The run that begins at a token, up to `end`. */
static StoreRun find_run(const RowJob *job, size_t first, size_t end)
{
    const CpuPass *pass = job->pass;
    const AttentionSlice *slice = &pass->slices[pass->token_slice[first]];
    size_t position = token_position(pass, first);
    size_t left = slice->first_token + slice->n_tokens - first;
    size_t n = KV_KEY_TILE - position % KV_KEY_TILE;
    n = n < left ? n : left;
    n = n < end - first ? n : end - first;
    KvPlace at = {slice->cache, &slice->cache->pool->layers[job->layer], 0, position};
    return (StoreRun){first, n, at};
}

/* Asks for the memory where keys and values of heads [first, end) will be stored. */
static void ask_for_run(const StoreRun *run, size_t first, size_t end)
{
    KvPlace at = run->at;
    const KvPool *pool = at.cache->pool;
    if (!kv_is_codes(pool->type))
        return;
    for (at.head = first; at.head < end; at.head++)
        attention_ask_for_slots(pool->type, pool->head_dim,
                                kv_cache_keys(at.cache, at.layer, at.head, at.position),
                                kv_cache_values(at.cache, at.layer, at.head, at.position),
                                at.position % KV_BLOCK, run->n);
}

static void store_run(const RowJob *job, const StoreRun *run, size_t first, size_t end)
{
    const CpuScratch *s = job->s;
    const ModelConfig *c = job->config;
    size_t stride = (size_t)c->num_key_value_heads * c->head_dim;
    KvPlace at = run->at;
    for (at.head = first; at.head < end; at.head++) {
        const float *k = s->k + run->first * stride + at.head * c->head_dim;
        const float *v = s->v + run->first * stride + at.head * c->head_dim;
        if (at.cache->pool->type == KV_F16) {
            store_half_rows(job->engine->ops, at, k, v, stride, run->n);
            continue;
        }
        KvPlace row = at;
        for (size_t i = 0; i < run->n; i++, row.position++)
            store_row(job->engine->ops, row, k + i * stride, v + i * stride);
    }
}

/* q and k of KV heads [first, end) get their norms, rotations and scales. */
static void position_heads(const RowJob *job, size_t token, size_t first, size_t end)
{
    const ModelConfig *c = job->config;
    const LayerWeights *w = &job->engine->model->weights.layers[job->layer];
    float *q = job->s->q + token * c->num_attention_heads * c->head_dim;
    float *k = job->s->k + token * c->num_key_value_heads * c->head_dim;
    size_t group = c->num_attention_heads / c->num_key_value_heads;
    for (size_t h = first * group; h < end * group; h++)
        position_head(job, q + h * c->head_dim, w->q_norm, token);
    for (size_t h = first; h < end; h++)
        position_head(job, k + h * c->head_dim, w->k_norm, token);
    const float scale = (float)model_query_scale(c, token_position(job->pass, token));
    if (scale != 1.0f) {
        float *own = q + first * group * c->head_dim;
        job->engine->ops->scale(own, (end - first) * group * c->head_dim, scale, own);
    }
}

/* q and k get their norms and rotations; k and v go to the cache. */
static void position_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    StoreRun runs[CPU_ROWS_PER_PART];
    size_t n_runs = 0, n_heads = job->config->num_key_value_heads;
    for (size_t t = first; t < end; n_runs++) {
        StoreRun *run = &runs[n_runs];
        *run = find_run(job, t, end);
        ask_for_run(run, 0, n_heads);
        for (; t < run->first + run->n; t++)
            position_heads(job, t, 0, n_heads);
    }
    for (size_t i = 0; i < n_runs; i++)
        store_run(job, &runs[i], 0, n_heads);
}

/* The same for some heads of a token, as an AttentionSource. */
static void make_heads(void *context, size_t token, size_t first, size_t end)
{
    const RowJob *job = context;
    StoreRun run = find_run(job, token, token + 1);
    position_heads(job, token, first, end);
    store_run(job, &run, first, end);
}

static void ask_for_heads(void *context, size_t token, size_t first, size_t end)
{
    StoreRun run = find_run(context, token, token + 1);
    ask_for_run(&run, first, end);
}

static void quantize_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    for (size_t t = first; t < end; t++)
        activations_quantize_row(job->input, t);
}

static void activate_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    CpuScratch *s = job->s;
    const CpuOps *ops = job->engine->ops;
    size_t inner = job->config->intermediate_size;
    for (size_t t = first; t < end; t++) {
        float *gate = s->gate + t * inner;
        if (job->config->activation == ACTIVATION_SILU)
            ops->silu_multiply(gate, s->up + t * inner, inner);
        else
            ops->gelu_tanh_multiply(gate, s->up + t * inner, inner);
        activations_quantize_row(job->input, t);
    }
}

/* ---- Blocks ---- */

/* Adds what is pending to x, and makes norm(x) the input of the next products, matrix's first. */
static void open_block(RowJob *job, const float *norm, const PackedMatrix *matrix)
{
    CpuScratch *s = job->s;
    size_t hidden = job->config->hidden_size;
    job->norm = norm;
    activations_begin(job->input, matrix, s->normed, job->pass->n_tokens, hidden, hidden);
    cpu_run_rows(job->engine, job->pass->n_tokens, norm_rows, job);
}

static void close_block(RowJob *job, const float *post_norm)
{
    job->has_pending = true;
    job->pending_norm = post_norm;
}

static void attention_block(RowJob *job)
{
    CpuEngine *engine = job->engine;
    CpuScratch *s = job->s;
    const ModelConfig *c = job->config;
    const CpuLayer *layer = &engine->layers[job->layer];
    const LayerWeights *w = &engine->model->weights.layers[job->layer];
    size_t q_cols = (size_t)c->num_attention_heads * c->head_dim;
    size_t kv_cols = (size_t)c->num_key_value_heads * c->head_dim;
    size_t n = job->pass->n_tokens;

    job->input = c->num_experts > 0 ? cpu_fine_activations(engine) : &s->activations;
    open_block(job, w->input_norm, layer->q);
    const MatrixProduct inputs[] = {{layer->q, w->q_bias, s->q, q_cols},
                                    {layer->k, w->k_bias, s->k, kv_cols},
                                    {layer->v, w->v_bias, s->v, kv_cols}};
    matrix_multiply(job->input, inputs, ARRAY_COUNT(inputs), engine->pool);
    const AttentionSource source = {make_heads, ask_for_heads, job};
    bool takes_source = attention_takes_source(s->attention, job->layer);
    if (!takes_source)
        cpu_run_rows(engine, n, position_rows, job);
    attention_run(s->attention, engine->ops, job->layer, s->q, q_cols, s->attended, q_cols,
                  takes_source ? &source : NULL, engine->pool);
    activations_begin(job->input, layer->o, s->attended, n, q_cols, q_cols);
    cpu_run_rows(engine, n, quantize_rows, job);
    const MatrixProduct output = {layer->o, w->o_bias, s->block_out, c->hidden_size};
    matrix_multiply(job->input, &output, 1, engine->pool);
    close_block(job, w->post_attention_norm);
}

static void mlp_block(RowJob *job)
{
    CpuEngine *engine = job->engine;
    CpuScratch *s = job->s;
    const CpuLayer *layer = &engine->layers[job->layer];
    const LayerWeights *w = &engine->model->weights.layers[job->layer];
    size_t inner = job->config->intermediate_size, n = job->pass->n_tokens;

    const bool is_sparse = job->config->layers[job->layer].is_sparse;
    job->input = is_sparse ? cpu_fine_activations(engine) : &s->activations;
    open_block(job, w->pre_mlp_norm, is_sparse ? layer->router : layer->gate);
    if (is_sparse) {
        cpu_experts_forward(engine, layer);
    } else {
        const MatrixProduct inputs[] = {{layer->gate, w->gate_bias, s->gate, inner},
                                        {layer->up, w->up_bias, s->up, inner}};
        matrix_multiply(job->input, inputs, ARRAY_COUNT(inputs), engine->pool);
        activations_begin(job->input, layer->down, s->gate, n, inner, inner);
        cpu_run_rows(engine, n, activate_rows, job);
        const MatrixProduct output = {layer->down, w->down_bias, s->block_out,
                                      job->config->hidden_size};
        matrix_multiply(job->input, &output, 1, engine->pool);
    }
    close_block(job, w->post_mlp_norm);
}

/* ---- The head ---- */

typedef struct CapJob {
    const CpuOps *ops;
    float *logits;
    size_t count;
    float cap;
} CapJob;

static void cap_part(void *context, size_t part, size_t n_parts)
{
    const CapJob *job = context;
    size_t first = part * SOFT_CAP_VALUES;
    size_t left = job->count - first;
    (void)n_parts;
    job->ops->soft_cap(job->logits + first, left < SOFT_CAP_VALUES ? left : SOFT_CAP_VALUES,
                       job->cap);
}

static void head_block(RowJob *job, float *logits)
{
    CpuEngine *engine = job->engine;
    CpuScratch *s = job->s;
    const ModelConfig *c = job->config;
    size_t n = job->pass->n_wanted, hidden = c->hidden_size;
    job->input = cpu_fine_activations(engine);
    job->norm = engine->model->weights.final_norm;
    activations_begin(job->input, engine->head, s->normed, n, hidden, hidden);
    cpu_run_rows(engine, n, finish_rows, job);
    const MatrixProduct head = {engine->head, NULL, logits, c->vocab_size};
    matrix_multiply(job->input, &head, 1, engine->pool);
    if (c->final_logit_softcapping > 0.0f) {
        CapJob cap = {engine->ops, logits, n * c->vocab_size, c->final_logit_softcapping};
        cpu_pool_run(engine->pool, cap_part, &cap,
                     (cap.count + SOFT_CAP_VALUES - 1) / SOFT_CAP_VALUES);
    }
}

/* ---- The pass ---- */

static void pending_rows(void *context, size_t first, size_t end)
{
    const RowJob *job = context;
    for (size_t t = first; t < end; t++)
        add_pending(job, t);
}

static RowJob open_pass(CpuEngine *engine)
{
    CpuPass *pass = engine->pass;
    attention_plan(engine->scratch.attention, pass->slices, pass->n_slices);
    return (RowJob){.engine = engine,
                    .config = &engine->model->config,
                    .s = &engine->scratch,
                    .pass = pass,
                    .layer = pass->layer};
}

void cpu_forward_pass(CpuEngine *engine, float *logits)
{
    RowJob job = open_pass(engine);
    cpu_run_rows(engine, job.pass->n_tokens, embed_rows, &job);
    for (; job.layer < job.config->num_hidden_layers; job.layer++) {
        attention_block(&job);
        mlp_block(&job);
    }
    if (job.pass->n_wanted > 0)
        head_block(&job, logits);
}

void cpu_forward_part(CpuEngine *engine, float *logits)
{
    RowJob job = open_pass(engine);
    if (job.layer == job.config->num_hidden_layers) {
        if (job.pass->n_wanted > 0)
            head_block(&job, logits);
        job.pass->n_wanted = 0;
        return;
    }
    if (job.layer == 0)
        cpu_run_rows(engine, job.pass->n_tokens, embed_rows, &job);
    attention_block(&job);
    mlp_block(&job);
    cpu_run_rows(engine, job.pass->n_tokens, pending_rows, &job);
    job.pass->layer++;
}

size_t cpu_parts_left(const CpuEngine *engine, const CpuPass *pass)
{
    return engine->model->config.num_hidden_layers - pass->layer + (pass->n_wanted > 0);
}
