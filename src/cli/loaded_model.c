#include "loaded_model.h"

#include "bench.h"
#include "scheduler.h"

#include <stdio.h>

/* The stop set: the model's ids and the tokenizer's eos_token. */
static bool add_tokenizer_eos(LoadedModel *loaded, Error *err)
{
    Slice eos = chat_template_eos_token(loaded->chat);
    int32_t id = eos.len > 0 ? tokenizer_find_token(loaded->tokenizer, eos) : -1;
    return model_add_eos(loaded->model, id, err);
}

/* Said last, when nothing can fail any more: an error is one line alone. */
static void report_skipped(const ModelWeights *weights)
{
    if (weights->n_skipped == 0)
        return;
    bool one = weights->n_skipped == 1;
    log_write("skipping %zu tensor%s (%.1f MB) that the text model does not use: %.*s%s",
              weights->n_skipped, one ? "" : "s", (double)weights->skipped_bytes * 1e-6,
              SLICE_ARG(weights->first_skipped->name), one ? "" : " and others");
}

static bool open_model(const Arguments *arguments, Model **out, Error *err)
{
    if (arguments->shape) {
        Slice config;
        return bench_shape_find(arguments->shape, &config, err) &&
               model_create_random(config, (uint32_t)arguments->bits,
                                   (uint32_t)arguments->group_size, out, err);
    }
    if (slice_ends_with(slice_of(arguments->model), SLICE(".gguf")) &&
        file_exists(arguments->model))
        return error_set(err, ERROR_UNSUPPORTED,
                         "%.300s: a GGUF file (\"mlx-serve import FILE --out DIR\" makes a model "
                         "directory of it)",
                         arguments->model);
    if (!directory_exists(arguments->model))
        return error_set(err, ERROR_NOT_FOUND,
                         "%.300s: no such directory (a model is a directory with config.json)",
                         arguments->model);
    return model_open(arguments->model, out, err);
}

/* While serving, keys and values have a limit: what was asked for, else what the machine has. */
static bool choose_kv_bytes(const LoadedModel *loaded, const Arguments *arguments, size_t *out,
                            Error *err)
{
    size_t context = 0, one = 0;
    *out = (size_t)arguments->kv_memory;
    if (arguments->command != COMMAND_SERVE || *out > 0)
        return true;
    if (!loaded_model_context(loaded, arguments, &context, err) ||
        !engine_kv_bytes(&loaded->model->config, arguments->precision, (unsigned)arguments->kv_bits,
                         context, &one, err))
        return false;
    *out = scheduler_kv_bytes(one, (size_t)arguments->parallel, loaded->model->weights.bytes,
                              process_available_bytes());
    return true;
}

/* Marks of reasoning and calls belong to the text, also where they are special tokens. */
static bool show_marks(LoadedModel *loaded, Error *err)
{
    Slice texts[MARKUP_TEXTS];
    markup_texts(chat_template_markup(loaded->chat), texts);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        if (!tokenizer_show_tokens(loaded->tokenizer, texts[i], err))
            return false;
    }
    return true;
}

bool loaded_model_open(const Arguments *arguments, unsigned parts, LoadedModel *out, Error *err)
{
    *out = (LoadedModel){0};
    if (!open_model(arguments, &out->model, err))
        return false;
    if (parts & LOAD_TEXT) {
        Slice type = slice_of(out->model->config.model_type);
        if (!tokenizer_open_model(arguments->model, &out->tokenizer, err) ||
            !chat_template_open(arguments->model, type, &out->chat, err) || !show_marks(out, err) ||
            !add_tokenizer_eos(out, err))
            goto failed;
    }
    if (parts & LOAD_ENGINE) {
        EngineOptions options = {
            .backend = arguments->backend,
            .precision = arguments->precision,
            .threads = (size_t)arguments->threads,
            .kv_bits = (unsigned)arguments->kv_bits,
        };
        if (!choose_kv_bytes(out, arguments, &options.kv_bytes_max, err) ||
            !engine_open(out->model, &options, &out->engine, err))
            goto failed;
    }
    report_skipped(&out->model->weights);
    return true;
failed:
    loaded_model_close(out);
    return false;
}

void loaded_model_close(LoadedModel *loaded)
{
    engine_close(loaded->engine);
    chat_template_free(loaded->chat);
    tokenizer_free(loaded->tokenizer);
    model_close(loaded->model);
    *loaded = (LoadedModel){0};
}

bool loaded_model_context(const LoadedModel *loaded, const Arguments *arguments, size_t *out,
                          Error *err)
{
    size_t most = loaded->model->config.max_position_embeddings;
    if (arguments->ctx == 0) {
        *out = most < DEFAULT_CONTEXT_MAX ? most : DEFAULT_CONTEXT_MAX;
        return true;
    }
    if ((size_t)arguments->ctx > most)
        return error_set(err, ERROR_USAGE, "--ctx %lld: the model's context is %zu tokens",
                         (long long)arguments->ctx, most);
    *out = (size_t)arguments->ctx;
    return true;
}

void read_model_type(const char *directory, char out[MODEL_TYPE_BYTES_MAX])
{
    Arena arena;
    const JsonValue *config;
    Slice type = SLICE_EMPTY;
    out[0] = '\0';
    arena_init(&arena, JSON_FILE_TREES_BYTES_MAX);
    if (json_parse_optional(directory, "config.json", &arena, &config, NULL) &&
        json_read_string(config, "model_type", &type, NULL))
        snprintf(out, MODEL_TYPE_BYTES_MAX, "%.*s", SLICE_ARG(type));
    arena_reset(&arena);
}
