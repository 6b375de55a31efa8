/* compare_operations [--each] MODEL...: the engines' operations against the formulas in double.
 *
 * Each operation of a layer runs on random inputs with the model's own weights and shapes, in the
 * CPU engine (float32 and 16-bit activations) and in the MLX engine (float32 and the model's type,
 * on its GPU if there is one): one input, four results, and the largest difference of each from the
 * formula in units of the expected values' standard deviation. Prints the worst over all models, or
 * with --each one table a model; fails when a float32 result is wrong. Inputs are bfloat16 values,
 * so that all engines start from the same. */
#include "operations.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENGINES = 4, OPERATIONS_MAX = 64 };

static const char *const ENGINE_NAMES[ENGINES] = {"cpu, f32", "cpu, int16", "mlx, f32",
                                                  "mlx, model's type"};

typedef struct World {
    Model *model;
    const ModelConfig *config;
    void *sides[ENGINES];
    void (*run[ENGINES])(void *side, const Operation *operation, float *out);
} World;

/* Rotations by some thousand radians are what is furthest off: MLX's angles are float32. */
static const double F32_LIMIT = 2e-4;

/* The worst of each operation so far; in the order in which they first came. */
typedef struct Table {
    struct {
        char name[48];
        double worst[ENGINES];
    } rows[OPERATIONS_MAX];
    size_t count;
} Table;

static const char *running = "loading"; /* what is under way, for messages */

static void die(const char *what)
{
    fprintf(stderr, "compare_operations: %s: %s\n", running, what);
    exit(1);
}

void require(bool ok, const Error *err)
{
    if (!ok)
        die(err->message);
}

void *allocate(size_t count, size_t size)
{
    void *result = memory_allocate_zeroed(count, size);
    if (!result)
        die("out of memory");
    return result;
}

/* About normal, in bfloat16. */
static float *random_rows(size_t count, uint32_t seed)
{
    float *x = allocate(count, sizeof *x);
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            sum += (float)(seed >> 8) / 8388608.0f - 1.0f;
        }
        x[i] = float_from_bf16(float_to_bf16(sum));
    }
    return x;
}

/* ---- Results ---- */

static void record(Table *table, const char *name, size_t engine, const double *expected,
                   const float *found, size_t count)
{
    double mean = 0, square = 0, worst = 0;
    for (size_t i = 0; i < count; i++)
        mean += expected[i] / (double)count;
    for (size_t i = 0; i < count; i++)
        square += (expected[i] - mean) * (expected[i] - mean) / (double)count;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs(expected[i] - (double)found[i]);
        worst = difference <= worst ? worst : difference; /* NaN stays */
    }
    worst /= square > 0 ? sqrt(square) : 1.0;
    size_t row = 0;
    while (row < table->count && strcmp(table->rows[row].name, name) != 0)
        row++;
    if (row == OPERATIONS_MAX)
        die("too many operations");
    if (row == table->count) {
        snprintf(table->rows[row].name, sizeof table->rows[row].name, "%s", name);
        table->count++;
    }
    double *slot = &table->rows[row].worst[engine];
    *slot = worst <= *slot ? *slot : worst;
}

static void print_table(const Table *table)
{
    printf("| operation |");
    for (size_t e = 0; e < ENGINES; e++)
        printf(" %s |", ENGINE_NAMES[e]);
    printf("\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < table->count; i++) {
        printf("| %s |", table->rows[i].name);
        for (size_t e = 0; e < ENGINES; e++)
            printf(" %.0e |", table->rows[i].worst[e]);
        printf("\n");
    }
}

static void compare(const World *w, Table *table, const Operation *op)
{
    float *found = allocate(op->count, sizeof *found);
    running = op->name;
    for (size_t e = 0; e < ENGINES; e++) {
        w->run[e](w->sides[e], op, found);
        record(table, op->name, e, op->expected, found, op->count);
    }
    memory_free(found);
    running = "between operations";
}

/* ---- Embedding ---- */

static void compare_embedding(const World *w, Table *table)
{
    size_t hidden = w->config->hidden_size;
    int32_t ids[N_TOKENS];
    float *row = allocate(hidden, sizeof *row);
    Operation op = {
        .kind = OPERATION_EMBEDDING, .name = "embedding", .ids = ids, .count = N_TOKENS * hidden};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (size_t t = 0; t < N_TOKENS; t++) {
        ids[t] = (int32_t)(t * 7919 % w->config->vocab_size);
        weight_matrix_read_row(&w->model->weights.embedding, 0, (size_t)ids[t], row);
        for (size_t i = 0; i < hidden; i++)
            op.expected[t * hidden + i] = (double)row[i] * (double)w->config->embedding_scale;
    }
    compare(w, table, &op);
    memory_free(op.expected);
    memory_free(row);
}

/* ---- Norm ---- */

static void compare_norm(const World *w, Table *table)
{
    size_t hidden = w->config->hidden_size;
    const float *weight = w->model->weights.layers[0].input_norm;
    float *x = random_rows(N_TOKENS * hidden, 2);
    Operation op = {.kind = OPERATION_NORM, .name = "RMS norm", .x = x, .count = N_TOKENS * hidden};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (size_t t = 0; t < N_TOKENS; t++) {
        double square = 0;
        for (size_t i = 0; i < hidden; i++)
            square += (double)x[t * hidden + i] * (double)x[t * hidden + i];
        double factor = 1.0 / sqrt(square / (double)hidden + (double)w->config->rms_norm_eps);
        for (size_t i = 0; i < hidden; i++)
            op.expected[t * hidden + i] = (double)x[t * hidden + i] * factor * (double)weight[i];
    }
    compare(w, table, &op);
    memory_free(op.expected);
    memory_free(x);
}

/* ---- Products ---- */

static void expect_product(const WeightMatrix *m, size_t expert, const float *bias, const double *x,
                           size_t n, double *out)
{
    float *row = allocate(m->cols, sizeof *row);
    for (size_t r = 0; r < m->rows; r++) {
        weight_matrix_read_row(m, expert, r, row);
        for (size_t t = 0; t < n; t++) {
            double sum = bias ? (double)bias[r] : 0.0;
            for (size_t i = 0; i < m->cols; i++)
                sum += (double)row[i] * x[t * m->cols + i];
            out[t * m->rows + r] = sum;
        }
    }
    memory_free(row);
}

static double *widened(const float *x, size_t count)
{
    double *out = allocate(count, sizeof *out);
    for (size_t i = 0; i < count; i++)
        out[i] = (double)x[i];
    return out;
}

static void compare_product(const World *w, Table *table, size_t layer, OperationMatrix which,
                            const WeightMatrix *m, const float *bias)
{
    static const char *const MODES[] = {[QUANT_NONE] = "dense",
                                        [QUANT_AFFINE] = "affine",
                                        [QUANT_MXFP4] = "mxfp4",
                                        [QUANT_MXFP8] = "mxfp8",
                                        [QUANT_NVFP4] = "nvfp4"};
    static const size_t COUNTS[] = {1, N_TOKENS};
    float *x = random_rows(N_TOKENS * m->cols, 3);
    double *exact = widened(x, N_TOKENS * m->cols);
    char name[48];
    Operation op = {.kind = OPERATION_PRODUCT,
                    .name = name,
                    .layer = layer,
                    .x = x,
                    .matrix = which,
                    .cols = m->cols,
                    .rows = m->rows,
                    .bias = bias};
    op.expected = allocate(N_TOKENS * m->rows, sizeof *op.expected);
    for (size_t i = 0; i < ARRAY_COUNT(COUNTS); i++) {
        char layout[24] = "";
        if (m->mode == QUANT_AFFINE)
            snprintf(layout, sizeof layout, " %u-bit g%u", m->bits, m->group_size);
        snprintf(name, sizeof name, "product, %s%s, %zu token%s", MODES[m->mode], layout, COUNTS[i],
                 COUNTS[i] > 1 ? "s" : "");
        op.n_tokens = COUNTS[i];
        op.count = COUNTS[i] * m->rows;
        expect_product(m, 0, op.bias, exact, COUNTS[i], op.expected);
        compare(w, table, &op);
    }
    memory_free(op.expected);
    memory_free(exact);
    memory_free(x);
}

/* Whatever formats the model mixes. */
static void compare_products(const World *w, Table *table)
{
    for (size_t i = 0; i < w->config->num_hidden_layers; i++) {
        const LayerWeights *layer = &w->model->weights.layers[i];
        compare_product(w, table, i, MATRIX_Q, &layer->q, layer->q_bias);
        compare_product(w, table, i, MATRIX_V, &layer->v, layer->v_bias);
        if (!w->config->layers[i].is_sparse)
            compare_product(w, table, i, MATRIX_DOWN, &layer->down, layer->down_bias);
    }
    compare_product(w, table, 0, MATRIX_HEAD, &w->model->weights.head, NULL);
}

/* ---- Rotation: layer holds the table ---- */

static void expect_rotation(const RopeTable *rope, size_t position, const float *x, size_t dim,
                            double *out)
{
    size_t half = rope->rotary_dims / 2;
    for (size_t d = 0; d < dim; d++)
        out[d] = (double)x[d];
    for (size_t d = 0; d < half; d++) {
        double angle = (double)position * rope->inverse_frequencies[d];
        double c = cos(angle) * rope->attention_factor, s = sin(angle) * rope->attention_factor;
        double a = (double)x[d], b = (double)x[d + half];
        out[d] = a * c - b * s;
        out[d + half] = b * c + a * s;
    }
}

static void compare_rotation(const World *w, Table *table)
{
    size_t heads = w->config->num_attention_heads, dim = w->config->head_dim;
    float *x = random_rows(N_TOKENS * heads * dim, 4);
    Operation op = {.kind = OPERATION_ROTATION,
                    .name = "rotary embedding",
                    .x = x,
                    .count = N_TOKENS * heads * dim};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (op.layer = 0; op.layer < MODEL_ROPE_TABLES; op.layer++) {
        const RopeTable *rope = &w->config->rope[op.layer];
        if (rope->rotary_dims == 0)
            continue;
        for (size_t t = 0; t < N_TOKENS; t++) {
            for (size_t h = 0; h < heads; h++)
                expect_rotation(rope, ROTATION_OFFSET + t, x + (t * heads + h) * dim, dim,
                                op.expected + (t * heads + h) * dim);
        }
        compare(w, table, &op);
    }
    memory_free(op.expected);
    memory_free(x);
}

/* ---- Attention: x, y, z are q, k, v ---- */

/* One head of query i. */
static void expect_attention(const World *w, const Operation *op, size_t i, size_t head)
{
    const ModelConfig *c = w->config;
    size_t dim = c->head_dim, groups = c->num_key_value_heads;
    size_t group = head / (c->num_attention_heads / groups);
    size_t window = c->layers[op->layer].sliding_window;
    size_t first = window > 0 && i + 1 > window ? i + 1 - window : 0;
    const float *q = op->x + (i * c->num_attention_heads + head) * dim;
    double *out = op->expected + (i * c->num_attention_heads + head) * dim, sum = 0;
    double cap = (double)c->attn_logit_softcapping;
    memset(out, 0, dim * sizeof *out);
    for (size_t j = first; j <= i; j++) {
        const float *k = op->y + (j * groups + group) * dim,
                    *v = op->z + (j * groups + group) * dim;
        double score = 0;
        for (size_t d = 0; d < dim; d++)
            score += (double)q[d] * (double)k[d] * (double)c->attention_scale;
        double share = exp(cap > 0 ? cap * tanh(score / cap) : score); /* scores are small */
        sum += share;
        for (size_t d = 0; d < dim; d++)
            out[d] += share * (double)v[d];
    }
    for (size_t d = 0; d < dim; d++)
        out[d] /= sum;
}

static void compare_attention(const World *w, Table *table)
{
    const ModelConfig *c = w->config;
    size_t q_count = N_TOKENS * (size_t)c->num_attention_heads * c->head_dim;
    size_t k_count = N_TOKENS * (size_t)c->num_key_value_heads * c->head_dim;
    float *q = random_rows(q_count, 5), *k = random_rows(k_count, 6), *v = random_rows(k_count, 7);
    Operation op = {.kind = OPERATION_ATTENTION, .x = q, .y = k, .z = v, .count = q_count};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (op.layer = 0; op.layer < c->num_hidden_layers; op.layer++) {
        bool capped = c->attn_logit_softcapping > 0;
        bool windowed = c->layers[op.layer].sliding_window > 0;
        op.name = capped     ? windowed ? "attention, soft-cap, window" : "attention, soft-cap"
                  : windowed ? "attention, window"
                             : "attention";
        for (size_t i = 0; i < N_TOKENS * (size_t)c->num_attention_heads; i++)
            expect_attention(w, &op, i / c->num_attention_heads, i % c->num_attention_heads);
        compare(w, table, &op);
    }
    memory_free(op.expected);
    memory_free(q);
    memory_free(k);
    memory_free(v);
}

/* ---- Activation: x is the gate, y what it is multiplied by ---- */

static double expect_activation(Activation activation, double x)
{
    return activation == ACTIVATION_SILU
               ? x / (1.0 + exp(-x))
               : 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

static void compare_activation(const World *w, Table *table)
{
    enum { COUNT = 4096 };
    Activation activation = w->config->activation;
    float *gate = random_rows(COUNT, 8), *up = random_rows(COUNT, 9);
    Operation op = {.kind = OPERATION_ACTIVATION,
                    .name = activation == ACTIVATION_SILU ? "SiLU gate" : "GELU gate",
                    .x = gate,
                    .y = up,
                    .count = COUNT};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (size_t i = 0; i < COUNT; i++)
        op.expected[i] = expect_activation(activation, (double)gate[i]) * (double)up[i];
    compare(w, table, &op);
    memory_free(op.expected);
    memory_free(gate);
    memory_free(up);
}

/* ---- Experts ---- */

/* Adds share * expert(x) to out. */
static void add_expert(const World *w, const LayerWeights *layer, size_t expert, double share,
                       const double *x, double *out)
{
    size_t inner = layer->expert_gate.rows, hidden = w->config->hidden_size;
    double *gate = allocate(inner, sizeof *gate), *up = allocate(inner, sizeof *up);
    double *result = allocate(hidden, sizeof *result);
    expect_product(&layer->expert_gate, expert, NULL, x, 1, gate);
    expect_product(&layer->expert_up, expert, NULL, x, 1, up);
    for (size_t i = 0; i < inner; i++)
        gate[i] = expect_activation(w->config->activation, gate[i]) * up[i];
    expect_product(&layer->expert_down, expert, NULL, gate, 1, result);
    for (size_t i = 0; i < hidden; i++)
        out[i] += share * result[i];
    memory_free(gate);
    memory_free(up);
    memory_free(result);
}

static void expect_experts(const World *w, const LayerWeights *layer, const double *x, double *out)
{
    size_t n = w->config->num_experts, k = w->config->num_experts_per_tok;
    double *p = allocate(n, sizeof *p), *q = allocate(n, sizeof *q), all = 0, chosen = 0;
    size_t best[MODEL_EXPERTS_MAX];
    expect_product(&layer->router, 0, NULL, x, 1, p);
    for (size_t e = 0; e < n; e++)
        all += q[e] = p[e] = exp(p[e]); /* scores are small */
    for (size_t i = 0; i < k; i++) {
        best[i] = 0;
        for (size_t e = 1; e < n; e++)
            best[i] = q[e] > q[best[i]] ? e : best[i];
        q[best[i]] = -1.0;
        chosen += p[best[i]];
    }
    memset(out, 0, w->config->hidden_size * sizeof *out);
    for (size_t i = 0; i < k; i++)
        add_expert(w, layer, best[i], p[best[i]] / (w->config->norm_topk_prob ? chosen : all), x,
                   out);
    memory_free(p);
    memory_free(q);
}

static void compare_experts(const World *w, Table *table)
{
    size_t hidden = w->config->hidden_size;
    float *x = random_rows(N_TOKENS * hidden, 10);
    double *exact = widened(x, N_TOKENS * hidden);
    Operation op = {
        .kind = OPERATION_EXPERTS, .name = "experts", .x = x, .count = N_TOKENS * hidden};
    op.expected = allocate(op.count, sizeof *op.expected);
    for (op.layer = 0; op.layer < w->config->num_hidden_layers; op.layer++) {
        if (!w->config->layers[op.layer].is_sparse)
            continue;
        for (size_t t = 0; t < N_TOKENS; t++)
            expect_experts(w, &w->model->weights.layers[op.layer], exact + t * hidden,
                           op.expected + t * hidden);
        compare(w, table, &op);
    }
    memory_free(op.expected);
    memory_free(exact);
    memory_free(x);
}

/* ---- Models ---- */

static void compare_model(const char *directory, Table *table)
{
    Error err = {0};
    World w = {.run = {cpu_side_run, cpu_side_run, mlx_side_run, mlx_side_run}};
    require(model_open(directory, &w.model, &err), &err);
    w.config = &w.model->config;
    for (size_t e = 0; e < ENGINES; e++) {
        bool is_f32 = e % 2 == 0;
        w.sides[e] = e < 2 ? cpu_side_open(w.model, is_f32) : mlx_side_open(w.model, is_f32);
    }
    compare_embedding(&w, table);
    compare_norm(&w, table);
    compare_rotation(&w, table);
    compare_attention(&w, table);
    compare_activation(&w, table);
    compare_experts(&w, table);
    compare_products(&w, table);
    for (size_t e = 0; e < ENGINES; e++)
        (e < 2 ? cpu_side_close : mlx_side_close)(w.sides[e]);
    model_close(w.model);
}

/* False when a result in float32 is further off than rounding explains. */
static bool check_table(const Table *table)
{
    bool ok = true;
    for (size_t i = 0; i < table->count; i++) {
        for (size_t e = 0; e < ENGINES; e += 2) {
            double worst = table->rows[i].worst[e];
            if (!(worst <= F32_LIMIT))
                fprintf(stderr, "%s, %s: %g, expected at most %g\n", table->rows[i].name,
                        ENGINE_NAMES[e], worst, F32_LIMIT);
            ok = ok && worst <= F32_LIMIT;
        }
    }
    return ok;
}

int main(int argc, char **argv)
{
    static Table all, one;
    bool each = argc > 1 && strcmp(argv[1], "--each") == 0, ok = true;
    if (argc < 2 + each) {
        fprintf(stderr, "usage: compare_operations [--each] MODEL...\n");
        return 2;
    }
    setenv("MLX_ENABLE_TF32", "0", 0); /* CUDA's matrix products would drop 13 bits */
    for (int i = 1 + each; i < argc; i++) {
        compare_model(argv[i], each ? &one : &all);
        if (!each)
            continue;
        printf("\n%s\n\n", argv[i]);
        print_table(&one);
        fflush(stdout);
        ok = check_table(&one) && ok;
        one = (Table){0};
    }
    if (!each) {
        print_table(&all);
        ok = check_table(&all);
    }
    return ok ? 0 : 1;
}
