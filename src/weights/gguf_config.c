/* GGUF metadata to config.json and generation_config.json, and the table of architectures.
 *
 * config.json carries the keys that mlx-lm's configuration of the model type reads, plus the few
 * that tools expect of every model. Numbers that GGUF stores as float32 are written with the fewest
 * digits that give that float32 back: 1e-05 and not 9.999999747378752e-06. */
#include "gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEY_MAX = 128, LAYERS_MAX = 1024, HEADS_MAX = 1024, DIM_MAX = 1 << 20 };

/* ---- Architectures --------------------------------------------------------------------------- */

/* Every architecture has these; its own rules name the norms beside them. */
static const GgufNameRule common_rules[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},           {"ffn_down", "mlp.down_proj"},
};
static const GgufNameRule llama_rules[] = {{"ffn_norm", "post_attention_layernorm"}};
static const GgufNameRule qwen3_rules[] = {
    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
};
static const GgufNameRule gemma3_rules[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
};

static const GgufArchitecture architectures[] = {
    {.name = "llama",
     .model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .own_rules = llama_rules,
     .n_own_rules = ARRAY_COUNT(llama_rules),
     .default_rope_theta = 1e4,
     .has_permuted_qk = true,
     .writes_head_dim = true,
     .writes_bias_keys = true},
    {.name = "qwen2",
     .model_type = "qwen2",
     .class_name = "Qwen2ForCausalLM",
     .own_rules = llama_rules,
     .n_own_rules = ARRAY_COUNT(llama_rules),
     .default_rope_theta = 1e4},
    {.name = "qwen3",
     .model_type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .own_rules = qwen3_rules,
     .n_own_rules = ARRAY_COUNT(qwen3_rules),
     .default_rope_theta = 1e4,
     .writes_head_dim = true},
    {.name = "gemma3",
     .model_type = "gemma3_text",
     .class_name = "Gemma3ForCausalLM",
     .own_rules = gemma3_rules,
     .n_own_rules = ARRAY_COUNT(gemma3_rules),
     .default_rope_theta = 1e6,
     .has_norm_plus_one = true,
     .writes_head_dim = true},
};

const GgufNameRule *gguf_layer_rule(const GgufArchitecture *architecture, size_t index)
{
    if (index < ARRAY_COUNT(common_rules))
        return &common_rules[index];
    index -= ARRAY_COUNT(common_rules);
    return index < architecture->n_own_rules ? &architecture->own_rules[index] : NULL;
}

bool gguf_find_architecture(const GgufFile *file, const GgufArchitecture **out, Error *err)
{
    *out = NULL;
    Slice name = SLICE_EMPTY;
    if (!gguf_read_string(file, "general.architecture", GGUF_REQUIRED, &name, err))
        return false;
    char known[KEY_MAX];
    size_t at = 0;
    for (size_t i = 0; i < ARRAY_COUNT(architectures); i++) {
        if (slice_equal(name, slice_of(architectures[i].name))) {
            *out = &architectures[i];
            return true;
        }
        at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "",
                               architectures[i].name);
    }
    return error_set(err, ERROR_UNSUPPORTED,
                     "%s: architecture %.*s cannot be imported; these can: %s", file->name,
                     SLICE_ARG(name), known);
}

/* "ARCHITECTURE.suffix" */
typedef struct ArchKey {
    char text[KEY_MAX];
} ArchKey;

static ArchKey arch_key(const GgufArchitecture *architecture, const char *suffix)
{
    ArchKey key;
    snprintf(key.text, sizeof(key.text), "%s.%s", architecture->name, suffix);
    return key;
}

/* ---- Dimensions ------------------------------------------------------------------------------ */

static bool read_dim(const GgufFile *file, const GgufArchitecture *architecture, const char *suffix,
                     GgufNeed need, uint64_t max, uint64_t *out, Error *err)
{
    ArchKey key = arch_key(architecture, suffix);
    if (!gguf_read_uint(file, key.text, need, max, out, err))
        return false;
    return *out > 0 || error_set(err, ERROR_INVALID, "%s: key %s is 0", file->name, key.text);
}

static bool check_head_dims(const GgufFile *file, const GgufArchitecture *architecture,
                            const GgufDims *dims, Error *err)
{
    uint64_t value_length = dims->head_dim, rotated = dims->head_dim;
    if (!read_dim(file, architecture, "attention.value_length", GGUF_OPTIONAL, DIM_MAX,
                  &value_length, err) ||
        !read_dim(file, architecture, "rope.dimension_count", GGUF_OPTIONAL, DIM_MAX, &rotated,
                  err))
        return false;
    if (value_length != dims->head_dim || rotated != dims->head_dim)
        return error_set(
            err, ERROR_UNSUPPORTED,
            "%s: heads of %llu, values of %llu and %llu rotated dimensions: they must be "
            "the same",
            file->name, (unsigned long long)dims->head_dim, (unsigned long long)value_length,
            (unsigned long long)rotated);
    if (!architecture->writes_head_dim && dims->head_dim * dims->heads != dims->hidden)
        return error_set(err, ERROR_UNSUPPORTED, "%s: head_dim is not hidden_size / heads",
                         file->name);
    return true;
}

static bool check_no_experts(const GgufFile *file, const GgufArchitecture *architecture, Error *err)
{
    uint64_t experts = 0;
    ArchKey key = arch_key(architecture, "expert_count");
    if (!gguf_read_uint(file, key.text, GGUF_OPTIONAL, UINT32_MAX, &experts, err))
        return false;
    return experts == 0 || error_set(err, ERROR_UNSUPPORTED,
                                     "%s: mixtures of experts are not imported", file->name);
}

bool gguf_read_dims(const GgufFile *file, const GgufArchitecture *architecture, GgufDims *out,
                    Error *err)
{
    GgufDims d = {.layers = 0};
    if (!read_dim(file, architecture, "block_count", GGUF_REQUIRED, LAYERS_MAX, &d.layers, err) ||
        !read_dim(file, architecture, "embedding_length", GGUF_REQUIRED, DIM_MAX, &d.hidden, err) ||
        !read_dim(file, architecture, "attention.head_count", GGUF_REQUIRED, HEADS_MAX, &d.heads,
                  err) ||
        !read_dim(file, architecture, "feed_forward_length", GGUF_REQUIRED, DIM_MAX,
                  &d.feed_forward, err) ||
        !read_dim(file, architecture, "context_length", GGUF_REQUIRED, INT32_MAX, &d.context, err))
        return false;
    d.kv_heads = d.heads;
    d.head_dim = d.hidden / d.heads;
    if (!read_dim(file, architecture, "attention.head_count_kv", GGUF_OPTIONAL, d.heads,
                  &d.kv_heads, err) ||
        !read_dim(file, architecture, "attention.key_length", GGUF_OPTIONAL, DIM_MAX, &d.head_dim,
                  err))
        return false;
    if (d.head_dim == 0 || d.head_dim % 2 != 0 || d.heads % d.kv_heads != 0)
        return error_set(err, ERROR_INVALID, "%s: %llu heads of %llu on %llu KV heads", file->name,
                         (unsigned long long)d.heads, (unsigned long long)d.head_dim,
                         (unsigned long long)d.kv_heads);
    if (!check_head_dims(file, architecture, &d, err) || !check_no_experts(file, architecture, err))
        return false;
    const GgufTensor *embedding = gguf_find_tensor(file, SLICE("token_embd.weight"));
    if (!embedding || embedding->n_dims != 2)
        return error_set(err, ERROR_NOT_FOUND, "%s: tensor token_embd.weight is missing",
                         file->name);
    d.vocab = embedding->rows;
    d.is_tied = gguf_find_tensor(file, SLICE("output.weight")) == NULL;
    *out = d;
    return true;
}

/* ---- RoPE ------------------------------------------------------------------------------------ */

/* Llama-3's scaling is stored as one divisor per frequency. Its parameters but the factor are the
 * same in every published model; they are believed only if they reproduce the divisors. */
static const double llama3_low = 1, llama3_high = 4, llama3_context = 8192;

static double llama3_divisor(double inverse_frequency, double factor)
{
    double wavelength = 2 * 3.14159265358979323846 / inverse_frequency;
    if (wavelength < llama3_context / llama3_high)
        return 1;
    if (wavelength > llama3_context / llama3_low)
        return factor;
    double smooth = (llama3_context / wavelength - llama3_low) / (llama3_high - llama3_low);
    return 1 / ((1 - smooth) / factor + smooth);
}

static bool write_llama3_scaling(const GgufFile *file, const GgufTensor *divisors,
                                 double rope_theta, uint64_t head_dim, JsonWriter *w, Error *err)
{
    uint64_t count = head_dim / 2;
    if (divisors->type->dtype != DTYPE_F32 || divisors->n_dims != 1 || divisors->dims[0] != count)
        return error_set(err, ERROR_UNSUPPORTED,
                         "%s: tensor rope_freqs.weight is not %llu float32 values", file->name,
                         (unsigned long long)count);
    TensorView view = {.dtype = DTYPE_F32,
                       .data = (const uint8_t *)file->image.ptr + divisors->offset,
                       .n_bytes = divisors->n_bytes};
    float factor = 1;
    for (uint64_t i = 0; i < count; i++) {
        float value;
        tensor_read_floats(&view, (size_t)i, 1, &value);
        factor = value > factor ? value : factor;
    }
    for (uint64_t i = 0; i < count; i++) {
        float value;
        tensor_read_floats(&view, (size_t)i, 1, &value);
        double inverse = pow(rope_theta, -2.0 * (double)i / (double)head_dim);
        double expected = llama3_divisor(inverse, (double)factor);
        if (!(fabs((double)value - expected) <= 1e-3 * expected))
            return error_set(err, ERROR_UNSUPPORTED,
                             "%s: rope_freqs.weight is not Llama-3's scaling (value %llu is %g, "
                             "expected %g)",
                             file->name, (unsigned long long)i, (double)value, expected);
    }
    json_write_key(w, "rope_scaling");
    json_write_object_begin(w);
    json_write_key(w, "rope_type");
    json_write_text(w, "llama3");
    json_write_key(w, "factor");
    json_write_float(w, factor);
    json_write_key(w, "low_freq_factor");
    json_write_double(w, llama3_low);
    json_write_key(w, "high_freq_factor");
    json_write_double(w, llama3_high);
    json_write_key(w, "original_max_position_embeddings");
    json_write_int(w, (int64_t)llama3_context);
    json_write_object_end(w);
    return true;
}

static bool write_named_scaling(const GgufFile *file, const GgufArchitecture *architecture,
                                const GgufDims *dims, JsonWriter *w, Error *err)
{
    Slice type = SLICE("none");
    double factor = 0;
    uint64_t original = dims->context;
    if (!gguf_read_string(file, arch_key(architecture, "rope.scaling.type").text, GGUF_OPTIONAL,
                          &type, err) ||
        !gguf_read_double(file, arch_key(architecture, "rope.scale_linear").text, GGUF_OPTIONAL,
                          &factor, err) ||
        !gguf_read_double(file, arch_key(architecture, "rope.scaling.factor").text, GGUF_OPTIONAL,
                          &factor, err) ||
        !gguf_read_uint(file, arch_key(architecture, "rope.scaling.original_context_length").text,
                        GGUF_OPTIONAL, INT32_MAX, &original, err))
        return false;
    bool is_yarn = slice_equal(type, SLICE("yarn"));
    bool is_none = slice_equal(type, SLICE("none"));
    if (!is_yarn && !is_none && !slice_equal(type, SLICE("linear")))
        return error_set(err, ERROR_UNSUPPORTED, "%s: rope scaling %.*s cannot be imported",
                         file->name, SLICE_ARG(type));
    bool has_old_key = gguf_find(file, slice_of(arch_key(architecture, "rope.scale_linear").text));
    json_write_key(w, "rope_scaling");
    if ((is_none && !has_old_key) || factor <= 0 || factor == 1) {
        json_write_null(w);
        return true;
    }
    json_write_object_begin(w);
    json_write_key(w, "rope_type");
    json_write_text(w, is_yarn ? "yarn" : "linear");
    json_write_key(w, "factor");
    json_write_float(w, (float)factor);
    if (is_yarn) {
        json_write_key(w, "original_max_position_embeddings");
        json_write_uint(w, original);
    }
    json_write_object_end(w);
    return true;
}

static bool write_rope(const GgufFile *file, const GgufArchitecture *architecture,
                       const GgufDims *dims, JsonWriter *w, Error *err)
{
    double theta = architecture->default_rope_theta;
    if (!gguf_read_double(file, arch_key(architecture, "rope.freq_base").text, GGUF_OPTIONAL,
                          &theta, err))
        return false;
    json_write_key(w, "rope_theta");
    json_write_float(w, (float)theta);
    const GgufTensor *divisors = gguf_find_tensor(file, SLICE("rope_freqs.weight"));
    if (divisors)
        return write_llama3_scaling(file, divisors, theta, dims->head_dim, w, err);
    return write_named_scaling(file, architecture, dims, w, err);
}

/* ---- config.json ----------------------------------------------------------------------------- */

static void write_count(JsonWriter *w, const char *key, uint64_t value)
{
    json_write_key(w, key);
    json_write_uint(w, value);
}

static void write_flag(JsonWriter *w, const char *key, bool value)
{
    json_write_key(w, key);
    json_write_bool(w, value);
}

/* Every fifth layer and so on: Gemma-3's own keys, with their published defaults. */
static bool write_gemma3(const GgufFile *file, const GgufArchitecture *architecture,
                         const GgufDims *dims, JsonWriter *w, Error *err)
{
    uint64_t window = 512, pattern = 6;
    double local_theta = 1e4;
    const char *pattern_key = "gemma3.attention.sliding_window_pattern";
    const GgufValue *value = gguf_find(file, slice_of(pattern_key));
    bool has_number = value && value->type != GGUF_ARRAY; /* a per-layer array only restates it */
    if (!read_dim(file, architecture, "attention.sliding_window", GGUF_OPTIONAL, INT32_MAX, &window,
                  err) ||
        (has_number &&
         !gguf_read_uint(file, pattern_key, GGUF_OPTIONAL, LAYERS_MAX, &pattern, err)) ||
        !gguf_read_double(file, "gemma3.rope.freq_base_swa", GGUF_OPTIONAL, &local_theta, err))
        return false;
    /* Only the 27B model scales scores by the width that heads would have without their own
     * head_dim. */
    enum { LAYERS_OF_27B = 62 };
    uint64_t scalar = dims->layers == LAYERS_OF_27B ? dims->hidden / dims->heads : dims->head_dim;
    write_count(w, "sliding_window", window);
    write_count(w, "sliding_window_pattern", pattern);
    json_write_key(w, "rope_local_base_freq");
    json_write_float(w, (float)local_theta);
    write_count(w, "query_pre_attn_scalar", scalar);
    json_write_key(w, "hidden_activation");
    json_write_text(w, "gelu_pytorch_tanh");
    return true;
}

static bool has_layer_bias(const GgufFile *file, const char *name)
{
    char text[KEY_MAX];
    int len = snprintf(text, sizeof(text), "blk.0.%s.bias", name);
    return gguf_find_tensor(file, (Slice){text, (size_t)len}) != NULL;
}

/* The default is the width that most modules have; the others are named, dense ones with false. */
static void write_quantization(JsonWriter *w, const char *key, const GgufModule *modules,
                               size_t n_modules)
{
    size_t counts[9] = {0};
    uint32_t common = 0;
    for (size_t i = 0; i < n_modules; i++) {
        uint32_t bits = modules[i].bits;
        if (bits > 0 && bits < ARRAY_COUNT(counts) && ++counts[bits] > counts[common])
            common = bits;
    }
    if (common == 0)
        return;
    json_write_key(w, key);
    json_write_object_begin(w);
    write_count(w, "group_size", GGUF_GROUP);
    write_count(w, "bits", common);
    json_write_key(w, "mode");
    json_write_text(w, "affine");
    for (size_t i = 0; i < n_modules; i++) {
        if (modules[i].bits == common)
            continue;
        json_write_key(w, modules[i].name);
        if (modules[i].bits == 0) {
            json_write_bool(w, false);
            continue;
        }
        json_write_object_begin(w);
        write_count(w, "group_size", GGUF_GROUP);
        write_count(w, "bits", modules[i].bits);
        json_write_object_end(w);
    }
    json_write_object_end(w);
}

/* bos and eos, each if the file has it. */
static bool write_token_ids(const GgufFile *file, JsonWriter *w, Error *err)
{
    static const char *const keys[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                          {"tokenizer.ggml.eos_token_id", "eos_token_id"},
                                          {"tokenizer.ggml.padding_token_id", "pad_token_id"}};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        uint64_t id = UINT64_MAX;
        if (!gguf_read_uint(file, keys[i][0], GGUF_OPTIONAL, INT32_MAX, &id, err))
            return false;
        if (id != UINT64_MAX)
            write_count(w, keys[i][1], id);
    }
    return true;
}

static void write_identity(const GgufArchitecture *architecture, DType dtype, JsonWriter *w)
{
    const char *dtype_text = dtype == DTYPE_BF16  ? "bfloat16"
                             : dtype == DTYPE_F32 ? "float32"
                                                  : "float16";
    json_write_key(w, "architectures");
    json_write_array_begin(w);
    json_write_text(w, architecture->class_name);
    json_write_array_end(w);
    json_write_key(w, "model_type");
    json_write_text(w, architecture->model_type);
    json_write_key(w, "torch_dtype");
    json_write_text(w, dtype_text);
}

static bool write_numbers(const GgufFile *file, const GgufArchitecture *architecture,
                          const GgufDims *dims, JsonWriter *w, Error *err)
{
    double epsilon = 0;
    if (!gguf_read_double(file, arch_key(architecture, "attention.layer_norm_rms_epsilon").text,
                          GGUF_REQUIRED, &epsilon, err))
        return false;
    write_count(w, "hidden_size", dims->hidden);
    write_count(w, "intermediate_size", dims->feed_forward);
    write_count(w, "num_hidden_layers", dims->layers);
    write_count(w, "num_attention_heads", dims->heads);
    write_count(w, "num_key_value_heads", dims->kv_heads);
    if (architecture->writes_head_dim)
        write_count(w, "head_dim", dims->head_dim);
    write_count(w, "vocab_size", dims->vocab);
    write_count(w, "max_position_embeddings", dims->context);
    json_write_key(w, "rms_norm_eps");
    json_write_float(w, (float)epsilon);
    write_flag(w, "tie_word_embeddings", dims->is_tied);
    return true;
}

bool gguf_write_config(const GgufFile *file, const GgufArchitecture *architecture,
                       const GgufDims *dims, const GgufModule *modules, size_t n_modules,
                       DType dtype, Buffer *out, Error *err)
{
    JsonWriter w;
    json_writer_init(&w, out, 2);
    json_write_object_begin(&w);
    write_identity(architecture, dtype, &w);
    if (!write_numbers(file, architecture, dims, &w, err) || !write_token_ids(file, &w, err) ||
        !write_rope(file, architecture, dims, &w, err))
        return false;
    if (architecture->has_norm_plus_one) {
        if (!write_gemma3(file, architecture, dims, &w, err))
            return false;
    } else {
        json_write_key(&w, "hidden_act");
        json_write_text(&w, "silu");
    }
    if (architecture->writes_bias_keys) {
        write_flag(&w, "attention_bias", has_layer_bias(file, "attn_q"));
        write_flag(&w, "mlp_bias", has_layer_bias(file, "ffn_gate"));
    }
    write_quantization(&w, "quantization", modules, n_modules);
    write_quantization(&w, "quantization_config", modules, n_modules);
    json_write_object_end(&w);
    buffer_append_byte(out, '\n');
    return buffer_check(out, "config.json", err);
}

/* Every token that ends a turn: GGUF keeps end of text, of turn and of message apart. */
bool gguf_write_generation_config(const GgufFile *file, Buffer *out, Error *err)
{
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id",
                                           "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    JsonWriter w;
    json_writer_init(&w, out, 2);
    json_write_object_begin(&w);
    uint64_t bos = UINT64_MAX, ends[ARRAY_COUNT(end_keys)];
    size_t n_ends = 0;
    if (!gguf_read_uint(file, "tokenizer.ggml.bos_token_id", GGUF_OPTIONAL, INT32_MAX, &bos, err))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(end_keys); i++) {
        uint64_t id = UINT64_MAX;
        if (!gguf_read_uint(file, end_keys[i], GGUF_OPTIONAL, INT32_MAX, &id, err))
            return false;
        bool is_new = id != UINT64_MAX;
        for (size_t j = 0; j < n_ends; j++)
            is_new = is_new && ends[j] != id;
        if (is_new)
            ends[n_ends++] = id;
    }
    if (bos != UINT64_MAX)
        write_count(&w, "bos_token_id", bos);
    if (n_ends == 1)
        write_count(&w, "eos_token_id", ends[0]);
    if (n_ends > 1) {
        json_write_key(&w, "eos_token_id");
        json_write_array_begin(&w);
        for (size_t i = 0; i < n_ends; i++)
            json_write_uint(&w, ends[i]);
        json_write_array_end(&w);
    }
    json_write_object_end(&w);
    buffer_append_byte(out, '\n');
    return buffer_check(out, "generation_config.json", err);
}
