/* bench: prefill and decode speed of a model, beside what the machine could do.
 *
 * The limits are measured in the same run: streaming reads for decode (every step reads all weights
 * and the KV cache once), 8-bit multiply-adds from registers for prefill. Tokens are fixed
 * pseudo-random ids; end of text is ignored. Each figure is the median of the repeats. */
#include "cli.h"

#include "json.h"
#include "loaded_model.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct BenchResult {
    double prefill_tps, decode_tps;
    double prefill_share, decode_share; /* of the machine's limits */
    size_t
        peak_bytes; /* resident; before the machine was measured, which takes memory of its own */
    MachineLimits limits;
    EngineDescription engine;
} BenchResult;

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double find_median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static size_t count_matrix_macs(const WeightMatrix *matrix)
{
    return matrix->weight ? matrix->rows * matrix->cols : 0;
}

/* Multiply-adds in the layers' matrices for one token. */
static size_t count_layer_macs(const Model *model)
{
    size_t macs = 0;
    size_t used = model->config.num_experts_per_tok;
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const LayerWeights *layer = &model->weights.layers[i];
        const WeightMatrix *dense[] = {&layer->q,  &layer->k,    &layer->v,    &layer->o,
                                       &layer->up, &layer->gate, &layer->down, &layer->router};
        for (size_t m = 0; m < ARRAY_COUNT(dense); m++)
            macs += count_matrix_macs(dense[m]);
        macs +=
            used * (count_matrix_macs(&layer->expert_gate) + count_matrix_macs(&layer->expert_up) +
                    count_matrix_macs(&layer->expert_down));
    }
    return macs;
}

/* Bytes that one decode step must read: the weights that are used, as resident, and the KV cache. A
 * tied embedding is the head and counts; a separate one is read by the row. */
static double count_decode_bytes(const Model *model, const EngineDescription *engine,
                                 double context, double batch)
{
    double stored = (double)model->weights.bytes;
    double unread = 0;
    if (!model->config.tie_word_embeddings)
        unread = (double)weight_matrix_bytes(&model->weights.embedding);
    double share = stored > 0 ? (stored - unread) / stored : 1;
    return (double)engine->weight_bytes * share +
           batch * context * (double)engine->kv_bytes_per_token;
}

typedef struct BenchState {
    Engine *engine;
    EngineSequence **sequences;
    EngineRow *rows;
    int32_t *tokens; /* [max(prefill, depth)] */
    float *logits;   /* [batch, vocab] */
    size_t batch, prefill, depth, decode;
} BenchState;

static bool feed(BenchState *state, EngineSequence *sequence, size_t count, EngineLogits wanted,
                 Error *err)
{
    if (count == 0)
        return true;
    EngineRow row = {sequence, state->tokens, count, wanted};
    return engine_forward(state->engine, &row, 1, state->logits, err);
}

/* One measurement: a fresh prompt of `prefill` tokens, then `decode` steps from a context of
 * `depth`. */
static bool measure_once(BenchState *state, double *prefill_seconds, double *decode_seconds,
                         Error *err)
{
    EngineSequence *first = state->sequences[0];
    if (!engine_sequence_truncate(state->engine, first, 0, err))
        return false;
    double start = clock_monotonic_seconds();
    if (!feed(state, first, state->prefill, ENGINE_LOGITS_LAST, err))
        return false;
    *prefill_seconds = clock_monotonic_seconds() - start;
    for (size_t s = 0; s < state->batch; s++) {
        if (!engine_sequence_truncate(state->engine, state->sequences[s], 0, err) ||
            !feed(state, state->sequences[s], state->depth, ENGINE_LOGITS_NONE, err))
            return false;
    }
    start = clock_monotonic_seconds();
    for (size_t i = 0; i < state->decode; i++) {
        for (size_t s = 0; s < state->batch; s++)
            state->rows[s] =
                (EngineRow){state->sequences[s], &state->tokens[(i + s) % state->prefill], 1,
                            ENGINE_LOGITS_LAST};
        if (!engine_forward(state->engine, state->rows, state->batch, state->logits, err))
            return false;
    }
    *decode_seconds = clock_monotonic_seconds() - start;
    return true;
}

static bool open_state(const LoadedModel *loaded, const Arguments *arguments, BenchState *state,
                       Error *err)
{
    size_t vocab_size = loaded->model->config.vocab_size;
    *state = (BenchState){
        .engine = loaded->engine,
        .batch = (size_t)arguments->batch,
        .prefill = (size_t)arguments->prefill,
        .depth = (size_t)(arguments->depth >= 0 ? arguments->depth : arguments->prefill),
        .decode = (size_t)arguments->decode,
    };
    size_t longest = state->prefill > state->depth ? state->prefill : state->depth;
    size_t context = longest + state->decode;
    if (context > loaded->model->config.max_position_embeddings)
        return error_set(err, ERROR_LIMIT, "%zu tokens are beyond the model's context of %u",
                         context, (unsigned)loaded->model->config.max_position_embeddings);
    state->tokens = memory_allocate_array(longest, sizeof(int32_t));
    state->rows = memory_allocate_array(state->batch, sizeof(EngineRow));
    state->logits = memory_allocate_array(state->batch * vocab_size, sizeof(float));
    state->sequences = memory_allocate_zeroed(state->batch, sizeof(EngineSequence *));
    if (!state->tokens || !state->rows || !state->logits || !state->sequences)
        return error_no_memory(err, "the benchmark");
    uint64_t random = 1;
    for (size_t i = 0; i < longest; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        state->tokens[i] = (int32_t)((random >> 33) % vocab_size);
    }
    for (size_t s = 0; s < state->batch; s++) {
        if (!engine_sequence_create(loaded->engine, context, &state->sequences[s], err))
            return false;
    }
    return true;
}

static void close_state(BenchState *state)
{
    for (size_t s = 0; state->sequences && s < state->batch; s++)
        engine_sequence_free(state->engine, state->sequences[s]);
    memory_free(state->sequences);
    memory_free(state->logits);
    memory_free(state->rows);
    memory_free(state->tokens);
}

static bool measure(const LoadedModel *loaded, const Arguments *arguments, BenchResult *out,
                    Error *err)
{
    BenchState state;
    size_t repeat = (size_t)arguments->repeat;
    double *prefill = memory_allocate_array(repeat, sizeof(double));
    double *decode = memory_allocate_array(repeat, sizeof(double));
    bool ok = open_state(loaded, arguments, &state, err);
    if (ok && (!prefill || !decode))
        ok = error_no_memory(err, "the benchmark");
    engine_describe(loaded->engine, &out->engine);
    double ignored;
    /* One uncounted round brings pages and clocks up. */
    ok = ok && measure_once(&state, &ignored, &ignored, err);
    for (size_t i = 0; i < repeat && ok && !stop_requested(); i++)
        ok = measure_once(&state, &prefill[i], &decode[i], err);
    if (ok && stop_requested())
        ok = error_set(err, ERROR_CANCELLED, "interrupted");
    out->peak_bytes = process_peak_resident_bytes();
    ok = ok && engine_measure_machine(out->engine.threads, &out->limits, err);
    if (ok) {
        double context = (double)state.depth + (double)state.decode / 2;
        double batch = (double)state.batch;
        out->prefill_tps = (double)state.prefill / find_median(prefill, repeat);
        out->decode_tps = batch * (double)state.decode / find_median(decode, repeat);
        out->prefill_share = out->prefill_tps * (double)count_layer_macs(loaded->model) /
                             out->limits.int8_macs_per_second;
        out->decode_share = out->decode_tps / batch *
                            count_decode_bytes(loaded->model, &out->engine, context, batch) /
                            out->limits.read_bytes_per_second;
    }
    close_state(&state);
    memory_free(prefill);
    memory_free(decode);
    return ok;
}

static bool print_json(const Arguments *arguments, const BenchResult *result, Error *err)
{
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, 1 << 16);
    json_writer_init(&writer, &out, 0);
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"threads", result->engine.threads},
        {"prefill", (uint64_t)arguments->prefill},
        {"decode", (uint64_t)arguments->decode},
        {"depth", (uint64_t)(arguments->depth >= 0 ? arguments->depth : arguments->prefill)},
        {"batch", (uint64_t)arguments->batch},
        {"peak_rss_bytes", result->peak_bytes},
        {"weight_bytes", result->engine.weight_bytes},
    };
    const struct {
        const char *key;
        double value;
    } figures[] = {
        {"prefill_tps", result->prefill_tps},
        {"decode_tps", result->decode_tps},
        {"read_gbps", result->limits.read_bytes_per_second * 1e-9},
        {"int8_gmacs", result->limits.int8_macs_per_second * 1e-9},
        {"prefill_share", result->prefill_share},
        {"decode_share", result->decode_share},
    };
    json_write_object_begin(&writer);
    json_write_key(&writer, "model");
    json_write_text(&writer, arguments->model);
    json_write_key(&writer, "backend");
    json_write_text(&writer, result->engine.backend);
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        json_write_key(&writer, counts[i].key);
        json_write_uint(&writer, counts[i].value);
    }
    for (size_t i = 0; i < ARRAY_COUNT(figures); i++) {
        json_write_key(&writer, figures[i].key);
        json_write_double(&writer, figures[i].value);
    }
    json_write_object_end(&writer);
    bool ok = buffer_check(&out, "output", err);
    if (ok)
        printf("%.*s\n", SLICE_ARG(buffer_view(&out)));
    buffer_reset(&out);
    return ok;
}

static void print_table(const Arguments *arguments, const BenchResult *result)
{
    printf("%s on %s (%s)\n", arguments->model, result->engine.backend, result->engine.device);
    printf("machine  reads %.1f GB/s, %s int8 %.1f G multiply-adds/s\n",
           result->limits.read_bytes_per_second * 1e-9, result->limits.instruction_set,
           result->limits.int8_macs_per_second * 1e-9);
    printf("prefill  %lld tokens: %.1f tokens/s, %.0f%% of the int8 rate\n",
           (long long)arguments->prefill, result->prefill_tps, result->prefill_share * 100);
    printf("decode   %lld tokens at context %lld, batch %lld: %.1f tokens/s, %.0f%% of the read "
           "rate\n",
           (long long)arguments->decode,
           (long long)(arguments->depth >= 0 ? arguments->depth : arguments->prefill),
           (long long)arguments->batch, result->decode_tps, result->decode_share * 100);
    printf("memory   weights %.1f MB, peak %.1f MB\n", (double)result->engine.weight_bytes * 1e-6,
           (double)result->peak_bytes * 1e-6);
}

int command_bench(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded;
    BenchResult result = {0};
    if (!loaded_model_open(arguments, LOAD_ENGINE, &loaded, &err))
        return report_error(&err);
    bool ok = measure(&loaded, arguments, &result, &err);
    if (ok && arguments->json)
        ok = print_json(arguments, &result, &err);
    else if (ok)
        print_table(arguments, &result);
    loaded_model_close(&loaded);
    return ok ? EXIT_DONE : report_error(&err);
}
