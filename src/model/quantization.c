/* config.json's quantisation keys.
 *
 *   {"group_size": 64, "bits": 4, "mode": "affine",
 *    "model.layers.0.mlp.down_proj": {...}, "lm_head": false}
 *
 * The first three are the defaults; every other key is a module's path. A module's dict gives its
 * own values, and one without mode is affine even when the global mode is not; false means not
 * quantised; true means the defaults. Modules that are not named are told by their tensors. */
#include "model_parts.h"

#include <string.h>

static const struct {
    const char *name;
    QuantMode mode;
    uint32_t bits, group_size; /* defaults; but for affine the only values there are */
    const char *layouts;
} MODES[] = {
    {"affine", QUANT_AFFINE, 4, 64, "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128"},
    {"mxfp4", QUANT_MXFP4, 4, 32, "4 bits in groups of 32"},
    {"mxfp8", QUANT_MXFP8, 8, 32, "8 bits in groups of 32"},
    {"nvfp4", QUANT_NVFP4, 4, 16, "4 bits in groups of 16"},
};

static bool is_layout(QuantMode mode, int64_t bits, int64_t group_size)
{
    if (mode == QUANT_AFFINE)
        return bits >= 2 && bits <= 8 && bits != 7 &&
               (group_size == 32 || group_size == 64 || group_size == 128);
    return bits == (mode == QUANT_MXFP8 ? 8 : 4) && group_size == (mode == QUANT_NVFP4 ? 16 : 32);
}

static bool read_spec(const JsonValue *object, QuantSpec *out, Error *err)
{
    Slice mode = SLICE("affine");
    if (!json_read_string(object, "mode", &mode, err))
        return false;
    size_t m = 0;
    while (m < ARRAY_COUNT(MODES) && !slice_equal(slice_of(MODES[m].name), mode))
        m++;
    if (m == ARRAY_COUNT(MODES))
        return error_set(err, ERROR_UNSUPPORTED,
                         "mode \"%.*s\", expected affine, mxfp4, mxfp8 or nvfp4", SLICE_ARG(mode));
    int64_t bits = MODES[m].bits, group_size = MODES[m].group_size;
    if (!json_read_int(object, "bits", 1, 32, &bits, err) ||
        !json_read_int(object, "group_size", 1, 1 << 20, &group_size, err))
        return false;
    if (!is_layout(MODES[m].mode, bits, group_size))
        return error_set(err, ERROR_UNSUPPORTED, "%lld bits in groups of %lld, expected for %s: %s",
                         (long long)bits, (long long)group_size, MODES[m].name, MODES[m].layouts);
    *out = (QuantSpec){.quantized = true,
                       .mode = MODES[m].mode,
                       .bits = (uint32_t)bits,
                       .group_size = (uint32_t)group_size};
    return true;
}

/* GPTQ, AWQ, fp8 and others name themselves; their tensors are packed differently. */
static bool refuse_other_formats(const JsonValue *object, const char *key, Error *err)
{
    const JsonValue *method = json_get_present(object, "quant_method");
    if (!method)
        return true;
    if (method->kind != JSON_STRING)
        return error_set(err, ERROR_INVALID, "%s.quant_method is a %s, expected a string", key,
                         json_kind_name(method->kind));
    return error_set(err, ERROR_UNSUPPORTED,
                     "%s.quant_method is \"%.*s\", expected MLX quantisation (no quant_method)",
                     key, SLICE_ARG(method->as.string));
}

/* `quantization` is MLX's own key and wins; quantization_config repeats it for Hugging Face, or, in
 * a conversion of a model that came quantised, still tells of the former format. */
bool quantization_find(const JsonValue *root, const JsonValue **out, Error *err)
{
    static const char *const KEYS[] = {"quantization", "quantization_config"};
    *out = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(KEYS); i++) {
        const JsonValue *object = json_get_present(root, KEYS[i]);
        if (!object || *out)
            continue;
        if (object->kind != JSON_OBJECT)
            return error_set(err, ERROR_INVALID, "%s is a %s, expected an object", KEYS[i],
                             json_kind_name(object->kind));
        if (!refuse_other_formats(object, KEYS[i], err))
            return false;
        QuantSpec defaults;
        if (!read_spec(object, &defaults, err))
            return error_prefix(err, "%s", KEYS[i]);
        *out = object;
    }
    return true;
}

bool quantization_defaults(const JsonValue *quantization, QuantSpec *out, Error *err)
{
    *out = (QuantSpec){0};
    return !quantization || read_spec(quantization, out, err) ||
           error_prefix(err, "config.json: quantization");
}

bool quantization_module(const JsonValue *quantization, const char *module, QuantSpec *out,
                         bool *named, Error *err)
{
    *out = (QuantSpec){0};
    *named = false;
    if (!quantization)
        return true;
    const JsonValue *entry = json_get_present(quantization, module);
    if (!entry)
        return true;
    *named = true;
    bool ok;
    if (entry->kind == JSON_BOOL)
        ok = !entry->as.boolean || read_spec(quantization, out, err);
    else if (entry->kind == JSON_OBJECT)
        ok = read_spec(entry, out, err);
    else
        ok = error_set(err, ERROR_INVALID, "is a %s, expected an object or a boolean",
                       json_kind_name(entry->kind));
    return ok || error_prefix(err, "config.json: quantization of %s", module);
}
