/* The buffers that passes share, and those that each has for itself: one allocation, laid out twice
 * by the same code, first to count its bytes. */
#include "cpu_engine.h"

#include <string.h>

enum { SCRATCH_ALIGNMENT = 64 };

typedef struct Layout {
    uint8_t *base; /* NULL while counting */
    size_t used;
} Layout;

/* count rows of width elements. Both are bounded (2^16 tokens, 2^22 values), so nothing overflows.
 */
static void *take(Layout *layout, size_t count, size_t width, size_t element_size)
{
    size_t bytes = count * width * element_size;
    void *at = layout->base ? layout->base + layout->used : NULL;
    layout->used += (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
    return at;
}

static float *take_floats(Layout *layout, size_t rows, size_t width)
{
    return take(layout, rows, width, sizeof(float));
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void lay_out(CpuScratch *s, const ModelConfig *c, size_t rows, Layout *layout)
{
    size_t hidden = c->hidden_size;
    size_t inner = larger(c->intermediate_size, c->moe_intermediate_size);
    size_t q_cols = (size_t)c->num_attention_heads * c->head_dim;
    size_t kv_cols = (size_t)c->num_key_value_heads * c->head_dim;
    s->normed = take_floats(layout, rows, hidden);
    s->block_out = take_floats(layout, rows, hidden);
    s->q = take_floats(layout, rows, q_cols);
    s->attended = take_floats(layout, rows, q_cols);
    s->k = take_floats(layout, rows, kv_cols);
    s->v = take_floats(layout, rows, kv_cols);
    s->gate = take_floats(layout, rows, inner);
    s->up = take_floats(layout, rows, inner);
    if (c->num_experts == 0)
        return;
    s->router = take_floats(layout, rows, c->num_experts);
    s->gathered = take_floats(layout, rows, hidden);
    s->expert_share = take_floats(layout, rows, c->num_experts_per_tok);
    s->expert_id = take(layout, rows, c->num_experts_per_tok, sizeof *s->expert_id);
    s->members = take(layout, rows, 1, sizeof *s->members);
    s->member_share = take_floats(layout, rows, 1);
}

static void lay_out_pass(CpuPass *pass, const ModelConfig *c, size_t rows, Layout *layout)
{
    pass->x = take_floats(layout, rows, c->hidden_size);
    for (size_t i = 0; i < MODEL_ROPE_TABLES; i++) {
        pass->cosines[i] = take_floats(layout, rows, c->rope[i].rotary_dims / 2);
        pass->sines[i] = take_floats(layout, rows, c->rope[i].rotary_dims / 2);
    }
    pass->tokens = take(layout, rows, 1, sizeof *pass->tokens);
    pass->token_slice = take(layout, rows, 1, sizeof *pass->token_slice);
    pass->wanted = take(layout, rows, 1, sizeof *pass->wanted);
    pass->slices = take(layout, rows, 1, sizeof *pass->slices);
    pass->slice_sequence = take(layout, rows, 1, sizeof *pass->slice_sequence);
}

bool cpu_pass_create(const CpuEngine *engine, CpuPass *pass, Error *err)
{
    const ModelConfig *c = &engine->model->config;
    size_t rows = engine->max_batch_tokens;
    Layout layout = {0};
    lay_out_pass(pass, c, rows, &layout);
    pass->memory = memory_allocate_aligned(SCRATCH_ALIGNMENT, layout.used + SCRATCH_ALIGNMENT);
    if (!pass->memory)
        return error_set(err, ERROR_MEMORY, "a pass of %zu tokens: no memory for %zu bytes", rows,
                         layout.used);
    pass->bytes = layout.used;
    layout = (Layout){.base = pass->memory};
    lay_out_pass(pass, c, rows, &layout);
    return true;
}

void cpu_pass_free(CpuPass *pass)
{
    memory_free(pass->memory);
    *pass = (CpuPass){0};
}

static size_t widest_input(const ModelConfig *c)
{
    size_t q_cols = (size_t)c->num_attention_heads * c->head_dim;
    size_t inner = larger(c->intermediate_size, c->moe_intermediate_size);
    return larger(larger(c->hidden_size, q_cols), inner);
}

bool cpu_scratch_create(CpuEngine *engine, Error *err)
{
    const ModelConfig *c = &engine->model->config;
    CpuScratch *s = &engine->scratch;
    size_t rows = engine->max_batch_tokens;
    Layout layout = {0};
    lay_out(s, c, rows, &layout);
    s->memory = memory_allocate_aligned(SCRATCH_ALIGNMENT, layout.used + SCRATCH_ALIGNMENT);
    if (!s->memory)
        return error_set(err, ERROR_MEMORY, "scratch for %zu tokens: no memory for %zu bytes", rows,
                         layout.used);
    s->bytes = layout.used;
    layout = (Layout){.base = s->memory};
    lay_out(s, c, rows, &layout);

    AttentionShape shape = {.n_heads = c->num_attention_heads,
                            .n_kv_heads = c->num_key_value_heads,
                            .head_dim = c->head_dim,
                            .scale = c->attention_scale,
                            .soft_cap = c->attn_logit_softcapping,
                            .kv_type = engine->kv.type};
    if (!attention_scratch_create(shape, rows, c->max_position_embeddings, engine->threads,
                                  &s->attention, err))
        return false;
    s->bytes += attention_scratch_bytes(s->attention);
    size_t cols = widest_input(c);
    if (!activations_create(rows, cols, engine->precision, &s->activations, err))
        return false;
    s->bytes += activations_bytes(&s->activations);
    if (engine->precision != ACTIVATIONS_INT8)
        return true;
    if (!activations_create(rows, c->num_experts > 0 ? cols : c->hidden_size, ACTIVATIONS_INT12,
                            &s->fine_activations, err))
        return false;
    s->bytes += activations_bytes(&s->fine_activations);
    return true;
}

Activations *cpu_fine_activations(CpuEngine *engine)
{
    CpuScratch *s = &engine->scratch;
    return engine->precision == ACTIVATIONS_INT8 ? &s->fine_activations : &s->activations;
}

void cpu_scratch_free(CpuScratch *scratch)
{
    activations_free(&scratch->fine_activations);
    activations_free(&scratch->activations);
    attention_scratch_free(scratch->attention);
    memory_free(scratch->memory);
    *scratch = (CpuScratch){0};
}
