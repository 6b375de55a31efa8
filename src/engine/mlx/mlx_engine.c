/* The MLX engine behind the seam: opening, sequences, the cutting of calls into passes, and the
 * shared object's one export. Every entry hands its work to the runner's thread. */
#include "mlx_engine.h"
#include "plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <unistd.h>
#endif

static MlxEngine *as_mlx(Engine *engine)
{
    return (MlxEngine *)(void *)engine;
}

/* ---- Device ---- */

/* The name that MLX's device has for itself. */
static void read_device_name(mlx_device device, char *out, size_t size)
{
    mlx_device_info info = mlx_device_info_new();
    const char *name = NULL;
    bool there = false;
    if (mlx_device_info_get(&info, device) == 0 &&
        mlx_device_info_has_key(&there, info, "device_name") == 0 && there &&
        mlx_device_info_get_string(&name, info, "device_name") == 0 && name)
        snprintf(out, size, "%s", name);
    mlx_device_info_free(info);
}

static bool gpu_is_there(void)
{
    mlx_device gpu = mlx_device_new_type(MLX_GPU, 0);
    bool available = false;
    int count = 0;
    bool there = mlx_device_is_available(&available, gpu) == 0 && available &&
                 mlx_device_count(&count, MLX_GPU) == 0 && count > 0;
    mlx_device_free(gpu);
    return there;
}

static bool has_gpu(char *text, size_t size)
{
    graph_install_error_handler();
    snprintf(text, size, "MLX finds no GPU");
    if (!gpu_is_there())
        return false;
    mlx_device gpu = mlx_device_new_type(MLX_GPU, 0);
    snprintf(text, size, "GPU");
    read_device_name(gpu, text, size);
    mlx_device_free(gpu);
    return true;
}

static bool open_device(MlxEngine *engine, Error *err)
{
    engine->is_gpu = gpu_is_there();
    engine->device = mlx_device_new_type(engine->is_gpu ? MLX_GPU : MLX_CPU, 0);
    if (!graph_status(mlx_set_default_device(engine->device), "device", err))
        return false;
    engine->stream = mlx_stream_new_device(engine->device);
    if (!engine->stream.ctx)
        return graph_status(1, "stream", err);
    char name[48] = "CPU";
    if (engine->is_gpu) {
        snprintf(name, sizeof name, "GPU");
        read_device_name(engine->device, name, sizeof name);
    }
    snprintf(engine->device_name, sizeof engine->device_name, "MLX, %s", name);
    graph_init(&engine->graph, engine->stream);
    return true;
}

/* Memory that MLX keeps for reuse is bounded; on Metal, weights and caches stay wired as far as the
 * device recommends (elsewhere there is nothing to wire). */
static bool limit_memory(MlxEngine *engine, Error *err)
{
    size_t old, recommended = 0;
    bool there = false;
    if (!graph_status(mlx_set_cache_limit(&old, MLX_CACHE_BYTES_MAX), "memory limit", err))
        return false;
    mlx_device_info info = mlx_device_info_new();
    if (engine->is_gpu && mlx_device_info_get(&info, engine->device) == 0 &&
        mlx_device_info_has_key(&there, info, "max_recommended_working_set_size") == 0 && there)
        mlx_device_info_get_size(&recommended, info, "max_recommended_working_set_size");
    mlx_device_info_free(info);
    return recommended == 0 ||
           graph_status(mlx_set_wired_limit(&old, recommended), "memory limit", err);
}

/* ---- Opening and closing ---- */

typedef struct OpenTask {
    MlxEngine *engine;
    bool ok;
    Error *err;
} OpenTask;

static bool allocate_pass(MlxEngine *engine, Error *err)
{
    size_t n = engine->max_batch_tokens;
    engine->slices = memory_allocate_zeroed(n, sizeof *engine->slices);
    engine->tokens = memory_allocate_zeroed(n, sizeof *engine->tokens);
    engine->wanted = memory_allocate_zeroed(n, sizeof *engine->wanted);
    engine->ahead.sequences = memory_allocate_zeroed(n, sizeof *engine->ahead.sequences);
    engine->ahead.tokens = memory_allocate_zeroed(n, sizeof *engine->ahead.tokens);
    engine->ahead.choices = memory_allocate_zeroed(n, sizeof *engine->ahead.choices);
    return (engine->slices && engine->tokens && engine->wanted && engine->ahead.sequences &&
            engine->ahead.tokens && engine->ahead.choices) ||
           error_no_memory(err, "scratch");
}

static void open_task(void *context)
{
    OpenTask *task = context;
    MlxEngine *engine = task->engine;
    task->ok = open_device(engine, task->err) && limit_memory(engine, task->err);
    if (!task->ok)
        return;
    if (engine->max_batch_tokens == 0)
        engine->max_batch_tokens = engine->is_gpu ? MLX_BATCH_TOKENS_GPU : MLX_BATCH_TOKENS_CPU;
    task->ok = allocate_pass(engine, task->err) && backend_weights_load(engine, task->err);
    mlx_clear_cache();
}

static void close_task(void *context)
{
    MlxEngine *engine = context;
    backend_ahead_forget(engine);
    backend_weights_free(engine);
    graph_free(&engine->graph);
    if (engine->stream.ctx)
        mlx_stream_free(engine->stream);
    if (engine->device.ctx)
        mlx_device_free(engine->device);
    mlx_clear_cache();
    mlx_clear_streams();
}

#ifdef __linux__
/* Objects of CUDA that MLX still holds in static storage are destroyed at exit, some of them after
 * the driver has gone, and that throws where nobody can catch it. What is registered last runs
 * first: the process leaves here, with its own status and nothing unwritten. */
static void leave_before_mlx(int status, void *unused)
{
    (void)unused;
    fflush(NULL);
    _exit(status);
}
#endif

static void engine_close_mlx(Engine *base)
{
    MlxEngine *engine = as_mlx(base);
    if (engine->runner)
        runner_run(engine->runner, close_task, engine);
    runner_free(engine->runner);
#ifdef __linux__
    if (engine->is_gpu)
        on_exit(leave_before_mlx, NULL);
#endif
    memory_free(engine->slices);
    memory_free(engine->tokens);
    memory_free(engine->wanted);
    memory_free(engine->ahead.sequences);
    memory_free(engine->ahead.tokens);
    memory_free(engine->ahead.choices);
    memory_free(engine);
}

static void describe(const Engine *base, EngineDescription *out)
{
    const MlxEngine *engine = (const MlxEngine *)(const void *)base;
    const ModelConfig *c = &engine->model->config;
    size_t full = 0, longest = c->max_position_embeddings;
    for (size_t i = 0; i < c->num_hidden_layers; i++)
        full += c->layers[i].sliding_window == 0;
    while (engine->kv_bytes_max > 0 && longest > 0 &&
           backend_kv_bytes(engine, longest) > engine->kv_bytes_max)
        longest = longest > MLX_CACHE_STEP ? longest - MLX_CACHE_STEP : 0;
    *out = (EngineDescription){.backend = "mlx",
                               .weight_bytes = engine->weight_bytes,
                               .kv_bytes_per_token = full * 2 * c->num_key_value_heads *
                                                     c->head_dim * mlx_dtype_size(engine->type),
                               .kv_bytes_max = engine->kv_bytes_max,
                               .kv_slides = full < c->num_hidden_layers,
                               .max_sequence_tokens = longest,
                               .max_batch_tokens = engine->max_batch_tokens,
                               .vocab_size = c->vocab_size,
                               .max_context = c->max_position_embeddings,
                               .threads = 1};
    snprintf(out->device, sizeof out->device, "%s", engine->device_name);
    /* Counters of MLX's allocator, which any thread may read. */
    mlx_get_active_memory(&out->device_bytes);
    mlx_get_peak_memory(&out->device_peak_bytes);
}

/* ---- Sequences ---- */

typedef struct SequenceTask {
    MlxEngine *engine;
    const EngineSequence *from;
    EngineSequence *sequence;
    size_t length, max_tokens;
    bool ok;
    Error *err;
} SequenceTask;

static bool sequence_create(Engine *base, size_t max_tokens, EngineSequence **out, Error *err)
{
    return backend_sequence_create(as_mlx(base), max_tokens, out, err);
}

static void free_task(void *context)
{
    SequenceTask *task = context;
    backend_ahead_forget(task->engine); /* it may be about this one */
    backend_sequence_free(task->engine, task->sequence);
}

static void sequence_free(Engine *base, EngineSequence *sequence)
{
    SequenceTask task = {.engine = as_mlx(base), .sequence = sequence};
    if (sequence)
        runner_run(task.engine->runner, free_task, &task);
}

static bool check_prefix(const EngineSequence *sequence, size_t length, Error *err)
{
    if (length > sequence->length)
        return error_set(err, ERROR_INVALID, "length %zu of a sequence of %zu tokens", length,
                         sequence->length);
    if (sequence->is_broken)
        return error_set(err, ERROR_INTERNAL, "the sequence was lost in a failed step");
    if (!backend_sequence_holds(sequence->engine, sequence, length))
        return error_set(err, ERROR_UNSUPPORTED,
                         "the sliding window has dropped keys that a sequence of %zu tokens needs",
                         length);
    return true;
}

static bool sequence_truncate(Engine *base, EngineSequence *sequence, size_t length, Error *err)
{
    if (!check_prefix(sequence, length, err))
        return false;
    as_mlx(base)->ahead.count = 0; /* what was begun stood behind the old length */
    sequence->length = length;
    return true;
}

static void fork_task(void *context)
{
    SequenceTask *task = context;
    task->ok = backend_sequence_share(task->engine, task->from, task->sequence, task->err);
}

static bool sequence_fork(Engine *base, EngineSequence *from, size_t length, size_t max_tokens,
                          EngineSequence **out, Error *err)
{
    MlxEngine *engine = as_mlx(base);
    *out = NULL;
    if (!check_prefix(from, length, err))
        return false;
    if (length > max_tokens)
        return error_set(err, ERROR_LIMIT, "a sequence of %zu tokens cannot take %zu", max_tokens,
                         length);
    SequenceTask task = {.engine = engine, .from = from, .err = err};
    if (!backend_sequence_create(engine, max_tokens, &task.sequence, err))
        return false;
    runner_run(engine->runner, fork_task, &task);
    if (!task.ok) {
        sequence_free(base, task.sequence);
        return false;
    }
    task.sequence->length = length;
    *out = task.sequence;
    return true;
}

/* A smaller reservation cannot fail. */
static void sequence_seal(Engine *base, EngineSequence *sequence)
{
    Error err;
    sequence->max_tokens = sequence->length;
    (void)!backend_sequence_reserve(as_mlx(base), sequence, sequence->length, &err);
}

static size_t kv_bytes_used(const Engine *base)
{
    return ((const MlxEngine *)(const void *)base)->kv_bytes_used;
}

static bool sequence_holds_prefix(const EngineSequence *sequence, size_t length)
{
    return length <= sequence->length && !sequence->is_broken &&
           backend_sequence_holds(sequence->engine, sequence, length);
}

static size_t sequence_length(const EngineSequence *sequence)
{
    return sequence->length;
}

/* ---- Forward ---- */

static bool check_row(MlxEngine *engine, const EngineRow *row, bool has_logits, Error *err)
{
    EngineSequence *sequence = row->sequence;
    uint32_t vocab = engine->model->config.vocab_size;
    if (!sequence || row->n_tokens == 0 || !row->tokens)
        return error_set(err, ERROR_INVALID, "a row without a sequence or tokens");
    if (sequence->last_call == engine->call)
        return error_set(err, ERROR_INVALID, "a sequence has more than one row in a call");
    sequence->last_call = engine->call;
    if (sequence->is_broken)
        return error_set(err, ERROR_INTERNAL, "the sequence was lost in a failed step");
    if (row->n_tokens > sequence->max_tokens - sequence->length)
        return error_set(err, ERROR_LIMIT,
                         "a sequence of %zu tokens with room for %zu cannot take %zu",
                         sequence->length, sequence->max_tokens, row->n_tokens);
    if (!has_logits && row->logits != ENGINE_LOGITS_NONE)
        return error_set(err, ERROR_INVALID, "logits are wanted, but there is no room for them");
    for (size_t i = 0; i < row->n_tokens; i++) {
        if (row->tokens[i] < 0 || (uint32_t)row->tokens[i] >= vocab)
            return error_set(err, ERROR_INVALID, "token id %d, expected 0 to %u", row->tokens[i],
                             vocab - 1);
    }
    return true;
}

/* Puts tokens [first, first + count) of the row into the pass. */
static void add_slice(MlxEngine *engine, const EngineRow *row, size_t first, size_t count)
{
    engine->slices[engine->n_slices++] =
        (MlxSlice){.sequence = row->sequence, .first_token = engine->n_tokens, .n_tokens = count};
    for (size_t i = 0; i < count; i++) {
        size_t token = engine->n_tokens++;
        bool is_last = first + i + 1 == row->n_tokens;
        engine->tokens[token] = row->tokens[first + i];
        if (row->logits == ENGINE_LOGITS_ALL || (row->logits == ENGINE_LOGITS_LAST && is_last))
            engine->wanted[engine->n_wanted++] = (int32_t)token;
    }
}

/* Runs what the pass holds and empties it; the results' pointers move on. */
static bool run_pass(MlxEngine *engine, float **logits, int32_t **ids, Error *err)
{
    bool decodes = *ids && engine->n_tokens == engine->n_slices &&
                   engine->n_wanted == engine->n_slices && engine->n_slices > 0,
         ok = true;
    if (decodes) {
        ok = backend_decode_ahead(engine, *ids, err);
    } else if (engine->n_tokens > 0) {
        backend_ahead_forget(engine);
        ok = backend_forward_pass(engine, *logits, *ids, err);
    }
    for (size_t i = 0; i < engine->n_slices; i++) {
        if (ok)
            engine->slices[i].sequence->length += engine->slices[i].n_tokens;
        else
            engine->slices[i].sequence->is_broken = true;
    }
    if (engine->choices)
        engine->choices += engine->n_wanted;
    if (engine->n_wanted > 0 && *ids)
        *ids += engine->n_wanted;
    else if (engine->n_wanted > 0)
        *logits += engine->n_wanted * engine->model->config.vocab_size;
    engine->n_slices = engine->n_tokens = engine->n_wanted = 0;
    return ok;
}

typedef struct ForwardTask {
    MlxEngine *engine;
    const EngineRow *rows;
    size_t n_rows;
    float *logits; /* this or ids; both NULL when nothing is wanted */
    int32_t *ids;
    const EngineChoice *choices; /* with ids; or NULL */
    bool ok;
    Error *err;
} ForwardTask;

static void forward_task(void *context)
{
    ForwardTask *task = context;
    MlxEngine *engine = task->engine;
    task->ok = true;
    engine->choices = task->choices;
    for (size_t i = 0; i < task->n_rows; i++) {
        const EngineRow *row = &task->rows[i];
        for (size_t done = 0; done < row->n_tokens && task->ok;) {
            size_t room = engine->max_batch_tokens - engine->n_tokens;
            size_t left = row->n_tokens - done;
            size_t count = left < room ? left : room;
            add_slice(engine, row, done, count);
            done += count;
            if (engine->n_tokens == engine->max_batch_tokens)
                task->ok = run_pass(engine, &task->logits, &task->ids, task->err);
        }
    }
    task->ok = task->ok && run_pass(engine, &task->logits, &task->ids, task->err);
}

static bool run_forward(Engine *base, const EngineRow *rows, size_t n_rows, float *logits,
                        const EngineChoice *choices, int32_t *ids, Error *err)
{
    MlxEngine *engine = as_mlx(base);
    engine->call++;
    for (size_t i = 0; i < n_rows; i++) {
        if (!check_row(engine, &rows[i], logits || ids, err))
            return false;
    }
    ForwardTask task = {engine, rows, n_rows, logits, ids, choices, true, err};
    runner_run(engine->runner, forward_task, &task);
    return task.ok;
}

static bool forward(Engine *base, const EngineRow *rows, size_t n_rows, float *logits, Error *err)
{
    return run_forward(base, rows, n_rows, logits, NULL, NULL, err);
}

static bool forward_choose(Engine *base, const EngineRow *rows, size_t n_rows,
                           const EngineChoice *choices, int32_t *ids, Error *err)
{
    return run_forward(base, rows, n_rows, NULL, choices, ids, err);
}

/* ---- The export ---- */

static const EngineOps MLX_OPS = {
    .close = engine_close_mlx,
    .describe = describe,
    .sequence_create = sequence_create,
    .sequence_free = sequence_free,
    .sequence_truncate = sequence_truncate,
    .sequence_fork = sequence_fork,
    .sequence_seal = sequence_seal,
    .kv_bytes_used = kv_bytes_used,
    .sequence_holds_prefix = sequence_holds_prefix,
    .sequence_length = sequence_length,
    .forward = forward,
    .forward_choose = forward_choose,
};

static bool open_engine(const Model *model, const EngineOptions *options, Engine **out, Error *err)
{
    *out = NULL;
    if (options->max_batch_tokens > MLX_BATCH_TOKENS_MAX)
        return error_set(err, ERROR_LIMIT, "max_batch_tokens %zu, expected at most %d",
                         options->max_batch_tokens, MLX_BATCH_TOKENS_MAX);
    if (options->kv_bits == 8)
        return error_set(err, ERROR_UNSUPPORTED,
                         "the mlx engine keeps keys and values as the model's type, not in 8 bits");
    MlxEngine *engine = memory_allocate_zeroed(1, sizeof *engine);
    if (!engine)
        return error_no_memory(err, "engine");
    engine->base.ops = &MLX_OPS;
    engine->model = model;
    engine->is_f32 = options->precision == ENGINE_PRECISION_F32;
    engine->max_batch_tokens = options->max_batch_tokens;
    engine->kv_bytes_max = options->kv_bytes_max;
    OpenTask task = {engine, false, err};
    graph_install_error_handler();
    if (engine->is_f32)
        setenv("MLX_ENABLE_TF32", "0", 0); /* CUDA's matrix products would drop 13 bits */
    if (runner_create(&engine->runner, err))
        runner_run(engine->runner, open_task, &task);
    if (!task.ok) {
        engine_close_mlx(&engine->base);
        return false;
    }
    *out = &engine->base;
    return true;
}

const MlxPlugin *engine_plugin_entry(void);

__attribute__((visibility("default"))) const MlxPlugin *engine_plugin_entry(void)
{
    static const MlxPlugin plugin = {MLX_SERVE_VERSION, MLX_PLUGIN_BUILD, has_gpu, open_engine};
    return &plugin;
}
