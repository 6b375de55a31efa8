/* Chooses a backend. Everything else is its business. */
#include "engine.h"

#include "cpu/cpu_engine.h"

bool engine_open(const Model *model, const EngineOptions *options, Engine **out, Error *err)
{
    *out = NULL;
    if (options->backend == ENGINE_BACKEND_MLX)
        return error_set(err, ERROR_UNSUPPORTED,
                         "built without the mlx engine, expected cpu or auto");
    return cpu_engine_open(model, options, INSTRUCTIONS_AMX, out, err);
}

bool engine_kv_bytes(const ModelConfig *config, EnginePrecision precision, size_t max_tokens,
                     size_t *out, Error *err)
{
    return kv_cache_count_bytes(config, precision != ENGINE_PRECISION_F32, max_tokens,
                                CPU_BATCH_TOKENS_DEFAULT, out, err);
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
