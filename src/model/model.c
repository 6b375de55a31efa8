/* Opens a model directory: config.json, generation_config.json, the safetensors, then the binding.
 * The JSON trees live only while it opens; what outlives them is in the model's arena. */
#include "model_parts.h"

#include <string.h>

static const size_t MODEL_ARENA_BYTES_MAX = (size_t)1 << 31;

static bool load(const char *directory, Model *model, Arena *trees, Error *err)
{
    const JsonValue *root, *generation;
    ModelDraft draft;
    if (!json_parse_optional(directory, "config.json", trees, &root, err))
        return false;
    if (!root)
        return error_set(
            err, ERROR_NOT_FOUND,
            "%s/config.json: not found, expected a model directory with config.json, *.safetensors "
            "and tokenizer.json",
            directory);
    return json_parse_optional(directory, "generation_config.json", trees, &generation, err) &&
           config_build(root, generation, &model->arena, &model->config, &draft, err) &&
           tensor_set_open(directory, &model->tensors, err) && weights_bind(model, &draft, err);
}

static Model *model_allocate(Error *err)
{
    Model *model = memory_allocate_zeroed(1, sizeof *model);
    if (model)
        arena_init(&model->arena, MODEL_ARENA_BYTES_MAX);
    else
        error_no_memory(err, "model");
    return model;
}

bool model_open(const char *directory, Model **out, Error *err)
{
    *out = NULL;
    Model *model = model_allocate(err);
    if (!model)
        return false;
    Arena trees;
    arena_init(&trees, JSON_FILE_TREES_BYTES_MAX);
    bool ok = load(directory, model, &trees, err);
    arena_reset(&trees);
    if (!ok) {
        model_close(model);
        return false;
    }
    *out = model;
    return true;
}

bool model_create_random(Slice config_json, uint32_t bits, uint32_t group_size, Model **out,
                         Error *err)
{
    *out = NULL;
    Model *model = model_allocate(err);
    if (!model)
        return false;
    Arena trees;
    arena_init(&trees, JSON_FILE_TREES_BYTES_MAX);
    const JsonValue *root;
    ModelDraft draft;
    bool ok = json_parse(config_json, &trees, &root, err) &&
              config_build(root, NULL, &model->arena, &model->config, &draft, err) &&
              tensor_set_create_random(bits, group_size, &model->tensors, err) &&
              weights_bind(model, &draft, err);
    arena_reset(&trees);
    if (!ok) {
        model_close(model);
        return false;
    }
    *out = model;
    return true;
}

void model_close(Model *model)
{
    if (!model)
        return;
    tensor_set_close(model->tensors);
    arena_reset(&model->arena);
    memory_free(model);
}
