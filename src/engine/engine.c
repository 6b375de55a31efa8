/* Chooses a backend. Everything else is its business. */
#include "engine.h"

#include "cpu/cpu_engine.h"
#include "mlx/plugin.h"

#include <stdio.h>

EngineBackend engine_choose_backend(EngineBackend wanted, char *why, size_t size)
{
    Error err;
    if (wanted != ENGINE_BACKEND_AUTO) {
        snprintf(why, size, "asked for");
        return wanted;
    }
    const MlxPlugin *mlx = mlx_plugin_load(&err);
    if (!mlx) {
        snprintf(why, size, "%s", err.message);
        return ENGINE_BACKEND_CPU;
    }
    return mlx->has_gpu(why, size) ? ENGINE_BACKEND_MLX : ENGINE_BACKEND_CPU;
}

bool engine_open(const Model *model, const EngineOptions *options, Engine **out, Error *err)
{
    char why[ENGINE_REASON_MAX];
    *out = NULL;
    if (engine_choose_backend(options->backend, why, sizeof why) == ENGINE_BACKEND_CPU)
        return cpu_engine_open(model, options, INSTRUCTIONS_BEST, out, err);
    const MlxPlugin *mlx = mlx_plugin_load(err);
    return mlx && mlx->open(model, options, out, err);
}

static KvType default_kv_type(EnginePrecision precision, unsigned kv_bits)
{
    return cpu_kv_type(precision, kv_bits, cpu_ops(cpu_best_instructions(INSTRUCTIONS_BEST)));
}

bool engine_kv_bytes(const ModelConfig *config, EnginePrecision precision, unsigned kv_bits,
                     size_t max_tokens, size_t *out, Error *err)
{
    return kv_cache_count_bytes(config, default_kv_type(precision, kv_bits), max_tokens,
                                CPU_BATCH_TOKENS_DEFAULT, out, err);
}

size_t engine_kv_layer_bytes(const ModelConfig *config, EnginePrecision precision, unsigned kv_bits)
{
    return kv_layer_bytes(config, default_kv_type(precision, kv_bits));
}

void engine_close(Engine *engine)
{
    if (engine)
        engine->ops->close(engine);
}

void engine_describe(const Engine *engine, EngineDescription *out)
{
    engine->ops->describe(engine, out);
}

bool engine_sequence_create(Engine *engine, size_t max_tokens, EngineSequence **out, Error *err)
{
    return engine->ops->sequence_create(engine, max_tokens, out, err);
}

void engine_sequence_free(Engine *engine, EngineSequence *sequence)
{
    if (sequence)
        engine->ops->sequence_free(engine, sequence);
}

bool engine_sequence_truncate(Engine *engine, EngineSequence *sequence, size_t length, Error *err)
{
    return engine->ops->sequence_truncate(engine, sequence, length, err);
}

bool engine_forward(Engine *engine, const EngineRow *rows, size_t n_rows, float *logits, Error *err)
{
    return engine->ops->forward(engine, rows, n_rows, logits, err);
}

bool engine_can_hold(const Engine *engine)
{
    return engine->ops->forward_begin != NULL;
}

bool engine_sequence_touch(Engine *engine, EngineSequence *sequence)
{
    return engine->ops->sequence_touch && engine->ops->sequence_touch(engine, sequence);
}

bool engine_forward_begin(Engine *engine, const EngineRow *rows, size_t n_rows, Error *err)
{
    return engine->ops->forward_begin(engine, rows, n_rows, err);
}

bool engine_forward_continue(Engine *engine, float *logits, size_t *left, Error *err)
{
    return engine->ops->forward_continue(engine, logits, left, err);
}

bool engine_has_forward_choose(const Engine *engine)
{
    return engine->ops->forward_choose != NULL;
}

bool engine_forward_choose(Engine *engine, const EngineRow *rows, size_t n_rows,
                           const EngineChoice *choices, int32_t *ids, Error *err)
{
    return engine->ops->forward_choose(engine, rows, n_rows, choices, ids, err);
}
