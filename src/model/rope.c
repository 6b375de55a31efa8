/* Rotary tables: inv[d] = theta^(-2d / rotary_dims) for each pair (d, d + rotary_dims / 2), then
 * scaled.
 *
 *   linear    inv / factor
 *   llama3    wavelength w = 2 pi / inv against L = original_max_position_embeddings: long
 *             waves (w > L / low) are divided by factor, short ones (w < L / high) kept, those
 *             between are blended
 *   yarn      dimensions that turn more than beta_fast times in L are kept, those that turn less
 *             than beta_slow times divided by factor, a linear ramp between; cos and sin grow by
 *             m(factor)
 *   longrope  inv / long_factor[d]; cos and sin times sqrt(1 + ln f / ln L), f = max_position / L
 *
 * The keys come in two shapes: rope_theta with rope_scaling, or rope_parameters (transformers 5),
 * which holds both and for Gemma-3 one such object per layer kind. Formulas as mlx_lm computes them
 * (longrope always takes long_factor), in double: arXiv:2104.09864, arXiv:2309.00071. */
#include "model_parts.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

typedef struct RopeSource {
    const JsonValue *text;    /* holds keys that some files keep outside of the scaling object */
    const JsonValue *scaling; /* NULL: none */
    double theta;
    uint32_t rotary_dims;
    uint32_t max_position_embeddings;
} RopeSource;

static bool scaling_kind(const JsonValue *scaling, RopeScaling *out, Error *err)
{
    static const struct {
        const char *name;
        RopeScaling kind;
    } KINDS[] = {
        {"default", ROPE_SCALING_NONE},      {"linear", ROPE_SCALING_LINEAR},
        {"llama3", ROPE_SCALING_LLAMA3},     {"yarn", ROPE_SCALING_YARN},
        {"longrope", ROPE_SCALING_LONGROPE}, {"su", ROPE_SCALING_LONGROPE},
    };
    Slice name = SLICE("default");
    if (!json_read_string(scaling, "rope_type", &name, err) ||
        !json_read_string(scaling, "type", &name, err))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(KINDS); i++) {
        if (slice_equal(slice_of(KINDS[i].name), name)) {
            *out = KINDS[i].kind;
            return true;
        }
    }
    return error_set(err, ERROR_UNSUPPORTED,
                     "rope_type \"%.*s\", expected default, linear, llama3, yarn or longrope",
                     SLICE_ARG(name));
}

static double plain_frequency(const RopeSource *source, uint32_t d)
{
    return pow(source->theta, -2.0 * (double)d / (double)source->rotary_dims);
}

static bool build_linear(const RopeSource *source, RopeTable *table, Error *err)
{
    if (!config_read_positive(source->scaling, "factor", 0, &table->factor, err))
        return false;
    for (uint32_t d = 0; d < table->rotary_dims / 2; d++)
        table->inverse_frequencies[d] = plain_frequency(source, d) / table->factor;
    return true;
}

static bool build_llama3(const RopeSource *source, RopeTable *table, Error *err)
{
    double low = 0, high = 0, length = 0;
    if (!config_read_positive(source->scaling, "factor", 0, &table->factor, err) ||
        !config_read_positive(source->scaling, "low_freq_factor", 1.0, &low, err) ||
        !config_read_positive(source->scaling, "high_freq_factor", 4.0, &high, err) ||
        !config_read_positive(source->scaling, "original_max_position_embeddings", 8192.0, &length,
                              err))
        return false;
    if (!(high > low))
        return error_set(err, ERROR_INVALID,
                         "high_freq_factor %g, expected above low_freq_factor %g", high, low);
    for (uint32_t d = 0; d < table->rotary_dims / 2; d++) {
        double inverse = plain_frequency(source, d);
        double wavelength = 2.0 * PI / inverse;
        if (wavelength > length / low) {
            inverse /= table->factor;
        } else if (wavelength >= length / high) {
            double t = (length / wavelength - low) / (high - low);
            inverse = (1.0 - t) * inverse / table->factor + t * inverse;
        }
        table->inverse_frequencies[d] = inverse;
    }
    return true;
}

static double yarn_magnitude(double factor, double weight)
{
    return factor <= 1.0 ? 1.0 : 0.1 * weight * log(factor) + 1.0;
}

static bool build_yarn(const RopeSource *source, RopeTable *table, Error *err)
{
    double length = 0, beta_fast = 0, beta_slow = 0, mscale = 1.0, mscale_all_dim = 0.0;
    if (!config_read_positive(source->scaling, "factor", 0, &table->factor, err) ||
        !config_read_positive(source->scaling, "original_max_position_embeddings", 4096.0, &length,
                              err) ||
        !config_read_positive(source->scaling, "beta_fast", 32.0, &beta_fast, err) ||
        !config_read_positive(source->scaling, "beta_slow", 1.0, &beta_slow, err) ||
        !json_read_double(source->scaling, "mscale", &mscale, err) ||
        !json_read_double(source->scaling, "mscale_all_dim", &mscale_all_dim, err))
        return false;
    if (!(source->theta > 1.0))
        return error_set(err, ERROR_INVALID, "rope_theta %g, expected above 1 with yarn",
                         source->theta);
    double dims = (double)source->rotary_dims;
    double per_turn = dims / (2.0 * log(source->theta));
    double low = floor(per_turn * log(length / (2.0 * PI * beta_fast)));
    double high = ceil(per_turn * log(length / (2.0 * PI * beta_slow)));
    low = low > 0.0 ? low : 0.0;
    high = high < dims - 1.0 ? high : dims - 1.0;
    double width = high - low;
    if (!(width > 0.0 || width < 0.0))
        width = 0.001;
    for (uint32_t d = 0; d < table->rotary_dims / 2; d++) {
        double ramp = ((double)d - low) / width;
        ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
        double inverse = plain_frequency(source, d);
        table->inverse_frequencies[d] = inverse / table->factor * ramp + inverse * (1.0 - ramp);
    }
    table->attention_factor =
        yarn_magnitude(table->factor, mscale) / yarn_magnitude(table->factor, mscale_all_dim);
    return true;
}

static bool build_longrope(const RopeSource *source, RopeTable *table, Error *err)
{
    uint32_t outer = 0, length = 1;
    if (!config_read_dimension(source->text, "original_max_position_embeddings", UINT32_MAX / 2,
                               4096, &outer, err) ||
        !config_read_dimension(source->scaling, "original_max_position_embeddings", UINT32_MAX / 2,
                               outer, &length, err))
        return false;
    const JsonValue *factors = json_get_present(source->scaling, "long_factor");
    size_t pairs = table->rotary_dims / 2;
    if (!json_is(factors, JSON_ARRAY) || factors->as.array.count != pairs)
        return error_set(err, ERROR_INVALID, "long_factor has %zu numbers, expected %zu",
                         json_is(factors, JSON_ARRAY) ? factors->as.array.count : 0, pairs);
    for (uint32_t d = 0; d < pairs; d++) {
        const JsonValue *item = &factors->as.array.items[d];
        double factor = json_is_number(item) ? json_to_double(item) : 0.0;
        if (!(factor > 0.0) || !isfinite(factor))
            return error_set(err, ERROR_INVALID,
                             "long_factor[%u], expected a finite number above 0", d);
        table->inverse_frequencies[d] = plain_frequency(source, d) / factor;
    }
    double ratio = (double)source->max_position_embeddings / (double)length;
    table->factor = ratio;
    if (ratio > 1.0 && length > 1)
        table->attention_factor = sqrt(1.0 + log(ratio) / log((double)length));
    return true;
}

static bool build_table(const RopeSource *source, Arena *arena, RopeTable *table, Error *err)
{
    *table = (RopeTable){.rotary_dims = source->rotary_dims,
                         .attention_factor = 1.0,
                         .rope_theta = source->theta,
                         .factor = 1.0};
    if (source->scaling && source->scaling->kind != JSON_OBJECT)
        return error_set(err, ERROR_INVALID, "is a %s, expected an object",
                         json_kind_name(source->scaling->kind));
    if (source->scaling && !scaling_kind(source->scaling, &table->scaling, err))
        return false;
    size_t pairs = source->rotary_dims / 2;
    table->inverse_frequencies = arena_allocate_array(arena, pairs, sizeof(double));
    if (!table->inverse_frequencies)
        return error_no_memory(err, "rotary table");
    for (uint32_t d = 0; d < pairs; d++)
        table->inverse_frequencies[d] = plain_frequency(source, d);
    bool ok = true;
    if (table->scaling == ROPE_SCALING_LINEAR)
        ok = build_linear(source, table, err);
    else if (table->scaling == ROPE_SCALING_LLAMA3)
        ok = build_llama3(source, table, err);
    else if (table->scaling == ROPE_SCALING_YARN)
        ok = build_yarn(source, table, err);
    else if (table->scaling == ROPE_SCALING_LONGROPE)
        ok = build_longrope(source, table, err);
    if (!ok)
        return false;
    for (uint32_t d = 0; d < pairs; d++) {
        if (!isfinite(table->inverse_frequencies[d]))
            return error_set(err, ERROR_INVALID, "gives no finite frequency for dimension %u", d);
    }
    if (!isfinite(table->attention_factor))
        return error_set(err, ERROR_INVALID, "gives no finite attention factor");
    return true;
}

/* rope_parameters of one layer kind: the object itself, or its member of that name. */
static const JsonValue *parameters_of(const JsonValue *text, const char *layer_kind)
{
    const JsonValue *parameters = json_get_present(text, "rope_parameters");
    const JsonValue *nested = json_get_present(parameters, layer_kind);
    return nested ? nested : parameters;
}

static bool read_rotary_dims(const JsonValue *text, const Architecture *architecture,
                             uint32_t head_dim, uint32_t *out, Error *err)
{
    double part = 1.0;
    const JsonValue *holder = text;
    if (!json_get_present(text, "partial_rotary_factor") &&
        json_is(json_get_present(text, "rope_parameters"), JSON_OBJECT))
        holder = json_get_present(text, "rope_parameters");
    if (architecture->has_partial_rotary &&
        !config_read_positive(holder, "partial_rotary_factor", 1.0, &part, err))
        return false;
    double dims = floor((double)head_dim * part);
    if (!(part <= 1.0) || dims < 2.0 || fmod(dims, 2.0) > 0.0)
        return error_set(err, ERROR_INVALID,
                         "partial_rotary_factor %g of head_dim %u, expected an even number of "
                         "dimensions from 2 to head_dim",
                         part, head_dim);
    *out = (uint32_t)dims;
    return true;
}

static bool build_global(const JsonValue *text, const Architecture *architecture,
                         uint32_t rotary_dims, Arena *arena, ModelConfig *config, Error *err)
{
    const JsonValue *parameters = parameters_of(text, "full_attention");
    const JsonValue *scaling = json_get_present(text, "rope_scaling");
    const char *scaling_key = scaling ? "rope_scaling" : "rope_parameters";
    if (!scaling)
        scaling = parameters;
    RopeSource source = {.text = text,
                         .scaling = scaling,
                         .rotary_dims = rotary_dims,
                         .max_position_embeddings = config->max_position_embeddings};
    const JsonValue *holder = json_get_present(text, "rope_theta") ? text : parameters;
    if (!config_read_positive(holder ? holder : text, "rope_theta", architecture->rope_theta,
                              &source.theta, err))
        return false;
    if (scaling && architecture->ignores_rope_scaling) {
        RopeScaling kind = ROPE_SCALING_NONE;
        if (!scaling_kind(scaling, &kind, err))
            return error_prefix(err, "%s", scaling_key);
        if (kind != ROPE_SCALING_NONE)
            log_write("%s of a %s model is not applied, as in mlx_lm", scaling_key,
                      architecture->model_type);
        source.scaling = NULL;
    }
    return build_table(&source, arena, &config->rope[0], err) ||
           error_prefix(err, "%s", scaling_key);
}

/* Yarn from a named length makes the context that many times longer, where max_position_embeddings
 * does not say so already (Qwen's way of switching it on). Not llama3: max_position_embeddings
 * counts that in, and its factor is no ratio of lengths (Llama-3.2: 131072 tokens, 32 times 8192).
 */
static void extend_context(const JsonValue *text, ModelConfig *config)
{
    static const double MOST = 1 << 30;
    const RopeTable *table = &config->rope[0];
    if (table->scaling != ROPE_SCALING_YARN)
        return;
    const JsonValue *scaling = json_get_present(text, "rope_scaling");
    if (!scaling)
        scaling = parameters_of(text, "full_attention");
    const JsonValue *original = json_get_present(scaling, "original_max_position_embeddings");
    double length = original ? floor(json_to_double(original) * table->factor) : 0.0;
    if (length > (double)config->max_position_embeddings)
        config->max_position_embeddings = (uint32_t)(length < MOST ? length : MOST);
}

bool rope_tables_build(const JsonValue *text, const Architecture *architecture, Arena *arena,
                       ModelConfig *config, Error *err)
{
    bool traditional = false;
    if (!json_read_bool(text, "rope_traditional", &traditional, err))
        return false;
    if (traditional)
        return error_set(err, ERROR_UNSUPPORTED, "rope_traditional is true, expected false");
    uint32_t rotary_dims = 0;
    if (!read_rotary_dims(text, architecture, config->head_dim, &rotary_dims, err) ||
        !build_global(text, architecture, rotary_dims, arena, config, err))
        return false;
    extend_context(text, config);
    config->rope[1] = config->rope[0];
    if (!architecture->has_local_rope)
        return true;
    RopeSource local = {.text = text, .rotary_dims = rotary_dims};
    const JsonValue *parameters = json_get_present(text, "rope_parameters");
    const JsonValue *sliding = json_get_present(parameters, "sliding_attention");
    bool has_key = json_get_present(text, "rope_local_base_freq") != NULL;
    if (sliding && !has_key) {
        if (!config_read_positive(sliding, "rope_theta", architecture->rope_local_base_freq,
                                  &local.theta, err))
            return error_prefix(err, "rope_parameters.sliding_attention");
    } else if (!config_read_positive(text, "rope_local_base_freq",
                                     architecture->rope_local_base_freq, &local.theta, err)) {
        return false;
    }
    return build_table(&local, arena, &config->rope[1], err);
}
