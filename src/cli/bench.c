/* bench: prefill and decode speed of a model, beside what the machine could do.
 *
 * Prefill is a fresh prompt of so many tokens; decoding starts from a context of `depth` tokens
 * with `batch` sequences at once, and returns to it for each repeat. Tokens are fixed pseudo-random
 * ids; end of text is ignored. Each figure is the median of the repeats, after a short uncounted
 * one. The limits are measured in the same run: streaming reads for decode (every step reads the
 * weights in use and the KV cache once), 8-bit multiply-adds from registers for prefill. */
#include "bench.h"

#include "loaded_model.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>

enum {
    WARM_PREFILL_TOKENS = 128,
    WARM_DECODE_STEPS = 4,
};

typedef struct Bench {
    const LoadedModel *loaded;
    const Arguments *arguments;
    Progress progress;
    int32_t *tokens; /* [n_tokens], pseudo-random */
    size_t n_tokens;
    float *logits;            /* [largest batch, vocab] */
    double *seconds;          /* [repeat] */
    EngineRow *rows;          /* [largest batch] */
    int32_t *inputs, *chosen; /* [largest batch] of a step */
    EngineSequence **sequences;
    size_t n_sequences; /* of the running measurement */
} Bench;

/* ---- What a step costs ---- */

static double count_macs(const WeightMatrix *matrix)
{
    return matrix->weight ? (double)matrix->rows * (double)matrix->cols : 0;
}

/* Multiply-adds in the layers' matrices for one token. */
static double count_layer_macs(const Model *model)
{
    double macs = 0;
    double used = model->config.num_experts_per_tok;
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const LayerWeights *layer = &model->weights.layers[i];
        const WeightMatrix *dense[] = {&layer->q,  &layer->k,    &layer->v,    &layer->o,
                                       &layer->up, &layer->gate, &layer->down, &layer->router};
        for (size_t m = 0; m < ARRAY_COUNT(dense); m++)
            macs += count_macs(dense[m]);
        macs += used * (count_macs(&layer->expert_gate) + count_macs(&layer->expert_up) +
                        count_macs(&layer->expert_down));
    }
    return macs;
}

/* Stored bytes that a step of `batch` tokens does not read: a separate embedding, of which rows are
 * looked up, and the experts that no token chooses, when each chooses at random. */
static double count_unread_bytes(const Model *model, double batch)
{
    const ModelConfig *c = &model->config;
    double unread = 0;
    if (!c->tie_word_embeddings)
        unread += (double)weight_matrix_bytes(&model->weights.embedding);
    if (c->num_experts == 0)
        return unread;
    double idle = pow(1.0 - (double)c->num_experts_per_tok / (double)c->num_experts, batch);
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        const LayerWeights *layer = &model->weights.layers[i];
        if (c->layers[i].is_sparse)
            unread += idle * (double)(weight_matrix_bytes(&layer->expert_gate) +
                                      weight_matrix_bytes(&layer->expert_up) +
                                      weight_matrix_bytes(&layer->expert_down));
    }
    return unread;
}

/* Keys and values that one token of a sequence looks at. */
static double count_context_bytes(const ModelConfig *config, const EngineDescription *engine,
                                  double context)
{
    double full = 0, positions = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        double window = config->layers[i].sliding_window;
        full += window > 0 ? 0 : 1;
        positions += window > 0 && window < context ? window : context;
    }
    return full > 0 ? positions * (double)engine->kv_bytes_per_token / full : 0;
}

/* Bytes that a decode step must read: the weights in use, as resident, and the KV cache. */
static double count_step_bytes(const Model *model, const EngineDescription *engine, double context,
                               double batch)
{
    double stored = (double)model->weights.bytes;
    double read = stored > 0 ? (stored - count_unread_bytes(model, batch)) / stored : 0;
    return (double)engine->weight_bytes * read +
           batch * count_context_bytes(&model->config, engine, context);
}

/* ---- Measuring ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static BenchRate find_rate(double *seconds, size_t count, double tokens)
{
    qsort(seconds, count, sizeof(*seconds), compare_doubles);
    double median =
        count % 2 ? seconds[count / 2] : (seconds[count / 2 - 1] + seconds[count / 2]) / 2;
    return (BenchRate){tokens / median, tokens / seconds[count - 1], tokens / seconds[0], 0};
}

static bool check_stop(Error *err)
{
    return !stop_requested() || error_set(err, ERROR_CANCELLED, "interrupted");
}

static bool feed(Bench *bench, EngineSequence *sequence, size_t count, EngineLogits wanted,
                 Error *err)
{
    if (count == 0)
        return true;
    EngineRow row = {sequence, bench->tokens, count, wanted};
    return engine_forward(bench->loaded->engine, &row, 1, bench->logits, err);
}

static void free_sequences(Bench *bench)
{
    for (size_t s = 0; s < bench->n_sequences; s++)
        engine_sequence_free(bench->loaded->engine, bench->sequences[s]);
    bench->n_sequences = 0;
}

static bool measure_prefill(Bench *bench, size_t tokens, BenchRate *out, Error *err)
{
    Engine *engine = bench->loaded->engine;
    size_t repeat = (size_t)bench->arguments->repeat;
    size_t warm = tokens < WARM_PREFILL_TOKENS ? tokens : WARM_PREFILL_TOKENS;
    if (!engine_sequence_create(engine, tokens, &bench->sequences[0], err))
        return false;
    bench->n_sequences = 1;
    bool ok = feed(bench, bench->sequences[0], warm, ENGINE_LOGITS_LAST, err);
    for (size_t i = 0; i < repeat && ok; i++) {
        progress_show(&bench->progress, "prefill %zu: %zu of %zu", tokens, i + 1, repeat);
        ok = check_stop(err) && engine_sequence_truncate(engine, bench->sequences[0], 0, err);
        double start = clock_monotonic_seconds();
        ok = ok && feed(bench, bench->sequences[0], tokens, ENGINE_LOGITS_LAST, err);
        bench->seconds[i] = clock_monotonic_seconds() - start;
    }
    if (ok)
        *out = find_rate(bench->seconds, repeat, (double)tokens);
    free_sequences(bench);
    return ok;
}

/* The sequences of a decode measurement, each with depth tokens: copies of the first, where the
 * engine can make them. */
static bool create_sequences(Bench *bench, size_t depth, size_t batch, Error *err)
{
    Engine *engine = bench->loaded->engine;
    size_t context = depth + (size_t)bench->arguments->decode;
    for (size_t s = 0; s < batch; s++) {
        progress_show(&bench->progress, "decode at %zu, batch %zu: context %zu of %zu", depth,
                      batch, s + 1, batch);
        if (!check_stop(err))
            return false;
        if (s > 0 && depth > 0 && engine->ops->sequence_fork) {
            if (!engine->ops->sequence_fork(engine, bench->sequences[0], depth, context,
                                            &bench->sequences[s], err))
                return false;
            bench->n_sequences++;
            continue;
        }
        if (!engine_sequence_create(engine, context, &bench->sequences[s], err))
            return false;
        bench->n_sequences++;
        if (!feed(bench, bench->sequences[s], depth, ENGINE_LOGITS_NONE, err))
            return false;
    }
    return true;
}

/* Where the engine can choose tokens, it goes on with its own, as a greedy reply would; elsewhere
 * the tokens are given. */
static bool run_decode(Bench *bench, size_t steps, Error *err)
{
    Engine *engine = bench->loaded->engine;
    size_t n = bench->n_sequences;
    bool chooses = engine_has_forward_choose(engine);
    for (size_t i = 0; i < steps; i++) {
        for (size_t s = 0; s < n; s++) {
            int32_t given = bench->tokens[(i + s) % bench->n_tokens];
            bench->inputs[s] = chooses && i > 0 ? bench->chosen[s] : given;
            bench->rows[s] =
                (EngineRow){bench->sequences[s], &bench->inputs[s], 1, ENGINE_LOGITS_LAST};
        }
        if (!check_stop(err) ||
            !(chooses ? engine_forward_choose(engine, bench->rows, n, NULL, bench->chosen, err)
                      : engine_forward(engine, bench->rows, n, bench->logits, err)))
            return false;
    }
    return true;
}

/* Back to depth tokens; from scratch where a sliding window has dropped some of them. */
static bool rewind_sequences(Bench *bench, size_t depth, Error *err)
{
    for (size_t s = 0; s < bench->n_sequences; s++) {
        if (engine_sequence_truncate(bench->loaded->engine, bench->sequences[s], depth, NULL))
            continue;
        if (!engine_sequence_truncate(bench->loaded->engine, bench->sequences[s], 0, err) ||
            !feed(bench, bench->sequences[s], depth, ENGINE_LOGITS_NONE, err))
            return false;
    }
    return true;
}

static bool measure_decode(Bench *bench, size_t depth, size_t batch, BenchRate *out, Error *err)
{
    size_t repeat = (size_t)bench->arguments->repeat, steps = (size_t)bench->arguments->decode;
    bool ok = create_sequences(bench, depth, batch, err) &&
              run_decode(bench, steps < WARM_DECODE_STEPS ? steps : WARM_DECODE_STEPS, err);
    for (size_t i = 0; i < repeat && ok; i++) {
        progress_show(&bench->progress, "decode at %zu, batch %zu: %zu of %zu", depth, batch, i + 1,
                      repeat);
        ok = rewind_sequences(bench, depth, err);
        double start = clock_monotonic_seconds();
        ok = ok && run_decode(bench, steps, err);
        bench->seconds[i] = clock_monotonic_seconds() - start;
    }
    if (ok)
        *out = find_rate(bench->seconds, repeat, (double)(batch * steps));
    free_sequences(bench);
    return ok;
}

static bool measure_all(Bench *bench, BenchReport *report, Error *err)
{
    const Arguments *arguments = bench->arguments;
    const Model *model = bench->loaded->model;
    for (size_t p = 0; p < arguments->prefill.count; p++) {
        BenchPrefill *prefill = &report->prefill[report->n_prefill++];
        prefill->tokens = (size_t)arguments->prefill.items[p];
        if (!measure_prefill(bench, prefill->tokens, &prefill->rate, err))
            return false;
    }
    for (size_t d = 0; d < arguments->depth.count; d++) {
        for (size_t b = 0; b < arguments->batch.count; b++) {
            BenchDecode *decode = &report->decode[report->n_decode++];
            decode->depth = (size_t)arguments->depth.items[d];
            decode->batch = (size_t)arguments->batch.items[b];
            if (!measure_decode(bench, decode->depth, decode->batch, &decode->rate, err))
                return false;
        }
    }
    report->peak_bytes = process_peak_resident_bytes();
    progress_show(&bench->progress, "measuring the machine");
    if (!engine_measure_machine(report->engine.threads, &report->limits, err))
        return false;
    for (size_t i = 0; i < report->n_prefill; i++) {
        BenchRate *rate = &report->prefill[i].rate;
        rate->share = rate->median * count_layer_macs(model) / report->limits.int8_macs_per_second;
    }
    for (size_t i = 0; i < report->n_decode; i++) {
        BenchDecode *decode = &report->decode[i];
        double context = (double)decode->depth + (double)arguments->decode / 2;
        double batch = (double)decode->batch;
        decode->rate.share = decode->rate.median / batch *
                             count_step_bytes(model, &report->engine, context, batch) /
                             report->limits.read_bytes_per_second;
    }
    return true;
}

/* ---- The command ---- */

static size_t find_largest(const IntList *list)
{
    size_t largest = 0;
    for (size_t i = 0; i < list->count; i++)
        largest = (size_t)list->items[i] > largest ? (size_t)list->items[i] : largest;
    return largest;
}

static bool open_bench(const LoadedModel *loaded, const Arguments *arguments, Bench *bench,
                       Error *err)
{
    const ModelConfig *config = &loaded->model->config;
    size_t batch = find_largest(&arguments->batch), prefill = find_largest(&arguments->prefill);
    size_t context = find_largest(&arguments->depth) + (size_t)arguments->decode;
    bench->n_tokens = prefill > context ? prefill : context;
    if (bench->n_tokens > config->max_position_embeddings)
        return error_set(err, ERROR_LIMIT, "%zu tokens are beyond the model's context of %u",
                         bench->n_tokens, (unsigned)config->max_position_embeddings);
    bench->tokens = memory_allocate_array(bench->n_tokens, sizeof(int32_t));
    bench->rows = memory_allocate_array(batch, sizeof(EngineRow));
    bench->inputs = memory_allocate_array(batch, sizeof(int32_t));
    bench->chosen = memory_allocate_array(batch, sizeof(int32_t));
    bench->logits = memory_allocate_array(batch * config->vocab_size, sizeof(float));
    bench->sequences = memory_allocate_zeroed(batch, sizeof(EngineSequence *));
    bench->seconds = memory_allocate_array((size_t)arguments->repeat, sizeof(double));
    if (!bench->tokens || !bench->rows || !bench->inputs || !bench->chosen || !bench->logits ||
        !bench->sequences || !bench->seconds)
        return error_no_memory(err, "the benchmark");
    uint64_t random = 1;
    for (size_t i = 0; i < bench->n_tokens; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bench->tokens[i] = (int32_t)((random >> 33) % config->vocab_size);
    }
    return true;
}

static void close_bench(Bench *bench)
{
    memory_free(bench->seconds);
    memory_free(bench->sequences);
    memory_free(bench->logits);
    memory_free(bench->rows);
    memory_free(bench->inputs);
    memory_free(bench->chosen);
    memory_free(bench->tokens);
}

int command_bench(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded = {0};
    Bench bench = {.loaded = &loaded, .arguments = arguments};
    BenchReport *report = memory_allocate_zeroed(1, sizeof(*report));
    bool ok = report || error_no_memory(&err, "the benchmark");

    progress_init(&bench.progress);
    progress_show(&bench.progress, "loading");
    double start = clock_monotonic_seconds();
    ok = ok && loaded_model_open(arguments, LOAD_ENGINE, &loaded, &err);
    if (ok) {
        report->arguments = arguments;
        report->load_seconds = clock_monotonic_seconds() - start;
        engine_describe(loaded.engine, &report->engine);
        ok = open_bench(&loaded, arguments, &bench, &err) && measure_all(&bench, report, &err);
    }
    progress_clear(&bench.progress);
    ok = ok && bench_report_print(report, &err);
    close_bench(&bench);
    loaded_model_close(&loaded);
    memory_free(report);
    return ok ? EXIT_DONE : report_error(&err);
}
