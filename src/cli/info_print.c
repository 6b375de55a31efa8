/* The two faces of `info`: text for people, one JSON object for programs. */
#include "info.h"

#include "json.h"

#include <stdio.h>
#include <string.h>

enum { OUTPUT_BYTES_MAX = 1 << 20 };

static const char *mode_name(QuantMode mode)
{
    static const char *const NAMES[] = {"none", "affine", "mxfp4", "mxfp8", "nvfp4"};
    return (size_t)mode < ARRAY_COUNT(NAMES) ? NAMES[mode] : "?";
}

static const char *scaling_name(RopeScaling scaling)
{
    static const char *const NAMES[] = {"none", "linear", "llama3", "yarn", "longrope"};
    return (size_t)scaling < ARRAY_COUNT(NAMES) ? NAMES[scaling] : "?";
}

/* ---- Text ---- */

static const char *format_bytes(size_t bytes, char out[32])
{
    if (bytes < 1000000)
        snprintf(out, 32, "%.1f kB", (double)bytes * 1e-3);
    else
        snprintf(out, 32, "%.1f MB", (double)bytes * 1e-6);
    return out;
}

static void print_layout(const InfoLayout *layout)
{
    if (layout->mode == QUANT_NONE)
        printf("%s", dtype_name(layout->dtype));
    else if (layout->mode == QUANT_AFFINE)
        printf("%u-bit affine, group %u, %s scales", (unsigned)layout->bits,
               (unsigned)layout->group_size, dtype_name(layout->dtype));
    else
        printf("%s", mode_name(layout->mode));
}

static void print_kinds(const InfoReport *report)
{
    printf("weights\n");
    for (size_t k = 0; k < report->n_kinds; k++) {
        const InfoKind *kind = &report->kinds[k];
        printf("  %-16s ", kind->name);
        for (size_t i = 0; i < kind->n_layouts; i++) {
            printf("%s", i > 0 ? "; " : "");
            print_layout(&kind->layouts[i]);
            if (kind->n_layouts > 1)
                printf(" (%zu)", kind->layouts[i].count);
        }
        bool is_head = report->loaded->model->config.tie_word_embeddings &&
                       strcmp(kind->name, "embed_tokens") == 0;
        char size[32];
        printf("; %s%s\n", format_bytes(kind->bytes, size), is_head ? ", also the head" : "");
    }
}

static void print_rope(const ModelConfig *config, size_t sliding_layers)
{
    const RopeTable *rope = &config->rope[0];
    printf("RoPE           theta %g", rope->rope_theta);
    if (rope->scaling != ROPE_SCALING_NONE)
        printf(", %s scaling by %g", scaling_name(rope->scaling), rope->factor);
    if (rope->rotary_dims < config->head_dim)
        printf(", %u of %u dimensions", (unsigned)rope->rotary_dims, (unsigned)config->head_dim);
    if (sliding_layers > 0 && config->rope[1].rope_theta != rope->rope_theta)
        printf("; sliding layers theta %g", config->rope[1].rope_theta);
    size_t unrotated = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        unrotated += config->layers[i].rope == MODEL_ROPE_NONE;
    if (unrotated > 0)
        printf("; not in %zu of %u layers", unrotated, (unsigned)config->num_hidden_layers);
    if (config->query_scaling_length > 0)
        printf("; queries grow each %u tokens", (unsigned)config->query_scaling_length);
    printf("\n");
}

static void print_config(const InfoReport *report)
{
    const ModelConfig *config = &report->loaded->model->config;
    const ModelWeights *weights = &report->loaded->model->weights;
    printf("architecture   %s, %u layers, hidden %u, MLP %u\n", config->model_type,
           (unsigned)config->num_hidden_layers, (unsigned)config->hidden_size,
           (unsigned)config->intermediate_size);
    printf("attention      %u heads of %u, %u for keys and values\n",
           (unsigned)config->num_attention_heads, (unsigned)config->head_dim,
           (unsigned)config->num_key_value_heads);
    if (report->sliding_layers > 0)
        printf("sliding window %u tokens in %zu of %u layers\n", (unsigned)report->sliding_window,
               report->sliding_layers, (unsigned)config->num_hidden_layers);
    print_rope(config, report->sliding_layers);
    if (config->num_experts > 0)
        printf("experts        %u of MLP %u, %u a token\n", (unsigned)config->num_experts,
               (unsigned)config->moe_intermediate_size, (unsigned)config->num_experts_per_tok);
    printf("vocabulary     %u tokens\n", (unsigned)config->vocab_size);
    printf("context        %u tokens\n", (unsigned)config->max_position_embeddings);
    char size[32];
    printf("parameters     %.1f M in %s\n", (double)weights->parameter_count * 1e-6,
           format_bytes(weights->bytes, size));
    printf("KV cache       %zu bytes a token (%zu bits)", report->kv_bytes_per_token,
           (size_t)report->kv_bits);
    if (report->sliding_layers > 0)
        printf(", %zu beyond the window", report->kv_growing_bytes);
    printf("\n               %s for %zu at once with a context of %zu\n",
           format_bytes(report->kv_bytes, size), report->parallel, report->ctx);
}

static const char *backend_name(EngineBackend backend)
{
    return backend == ENGINE_BACKEND_MLX ? "mlx" : "cpu";
}

static void print_text(const LoadedModel *loaded)
{
    Slice bos = chat_template_bos_token(loaded->chat);
    Slice eos = chat_template_eos_token(loaded->chat);
    printf("tokenizer      %zu tokens\n", tokenizer_vocabulary_size(loaded->tokenizer));
    printf("chat template  %s, %zu bytes\n",
           chat_template_is_default(loaded->chat) ? "none in the model: the architecture's default"
                                                  : "the model's own",
           chat_template_source(loaded->chat).len);
    printf("special tokens BOS %.*s, EOS %.*s; text ends at ids", SLICE_ARG(bos), SLICE_ARG(eos));
    const ModelConfig *config = &loaded->model->config;
    for (size_t i = 0; i < config->n_eos_token_ids; i++)
        printf(" %d", (int)config->eos_token_ids[i]);
    printf("%s\n", config->n_eos_token_ids ? "" : " (none)");
}

void info_print_text(const InfoReport *report)
{
    print_config(report);
    print_text(report->loaded);
    printf("engine         %s: %s\n", backend_name(report->backend), report->backend_reason);
    print_kinds(report);
}

/* ---- JSON ---- */

static void write_uint(JsonWriter *w, const char *key, uint64_t value)
{
    json_write_key(w, key);
    json_write_uint(w, value);
}

static void write_slice(JsonWriter *w, const char *key, Slice value)
{
    json_write_key(w, key);
    if (value.len > 0)
        json_write_string(w, value);
    else
        json_write_null(w);
}

static void write_layout(JsonWriter *w, const InfoLayout *layout)
{
    json_write_object_begin(w);
    write_slice(w, "mode", slice_of(mode_name(layout->mode)));
    if (layout->mode != QUANT_NONE) {
        write_uint(w, "bits", layout->bits);
        write_uint(w, "group_size", layout->group_size);
    }
    write_slice(w, "dtype", slice_of(dtype_name(layout->dtype)));
    write_uint(w, "modules", layout->count);
    json_write_object_end(w);
}

static void write_kinds(JsonWriter *w, const InfoReport *report)
{
    json_write_key(w, "quantization");
    json_write_object_begin(w);
    for (size_t k = 0; k < report->n_kinds; k++) {
        const InfoKind *kind = &report->kinds[k];
        json_write_key(w, kind->name);
        json_write_object_begin(w);
        write_uint(w, "bytes", kind->bytes);
        json_write_key(w, "layouts");
        json_write_array_begin(w);
        for (size_t i = 0; i < kind->n_layouts; i++)
            write_layout(w, &kind->layouts[i]);
        json_write_array_end(w);
        json_write_object_end(w);
    }
    json_write_object_end(w);
}

static void write_config(JsonWriter *w, const InfoReport *report)
{
    const ModelConfig *config = &report->loaded->model->config;
    const ModelWeights *weights = &report->loaded->model->weights;
    write_slice(w, "model_type", slice_of(config->model_type));
    write_uint(w, "num_hidden_layers", config->num_hidden_layers);
    write_uint(w, "hidden_size", config->hidden_size);
    write_uint(w, "intermediate_size", config->intermediate_size);
    write_uint(w, "num_attention_heads", config->num_attention_heads);
    write_uint(w, "num_key_value_heads", config->num_key_value_heads);
    write_uint(w, "head_dim", config->head_dim);
    write_uint(w, "num_experts", config->num_experts);
    write_uint(w, "num_experts_per_tok", config->num_experts_per_tok);
    write_uint(w, "vocab_size", config->vocab_size);
    write_uint(w, "context", config->max_position_embeddings);
    write_uint(w, "sliding_window", report->sliding_window);
    write_uint(w, "sliding_layers", report->sliding_layers);
    json_write_key(w, "rope_theta");
    json_write_double(w, config->rope[0].rope_theta);
    write_slice(w, "rope_scaling", slice_of(scaling_name(config->rope[0].scaling)));
    json_write_key(w, "tie_word_embeddings");
    json_write_bool(w, config->tie_word_embeddings);
    write_uint(w, "parameters", weights->parameter_count);
    write_uint(w, "weight_bytes", weights->bytes);
    write_uint(w, "skipped_tensors", weights->n_skipped);
    write_uint(w, "skipped_bytes", weights->skipped_bytes);
    write_uint(w, "kv_bits", report->kv_bits);
    write_uint(w, "kv_bytes_per_token", report->kv_bytes_per_token);
    write_uint(w, "kv_bytes_per_token_beyond_window", report->kv_growing_bytes);
    json_write_key(w, "backend");
    json_write_text(w, backend_name(report->backend));
    json_write_key(w, "backend_reason");
    json_write_text(w, report->backend_reason);
    write_uint(w, "ctx", report->ctx);
    write_uint(w, "parallel", report->parallel);
    write_uint(w, "kv_bytes", report->kv_bytes);
}

static void write_text(JsonWriter *w, const LoadedModel *loaded)
{
    write_uint(w, "tokenizer_tokens", tokenizer_vocabulary_size(loaded->tokenizer));
    json_write_key(w, "chat_template");
    json_write_text(w, chat_template_is_default(loaded->chat) ? "default" : "model");
    write_uint(w, "chat_template_bytes", chat_template_source(loaded->chat).len);
    write_slice(w, "bos_token", chat_template_bos_token(loaded->chat));
    write_slice(w, "eos_token", chat_template_eos_token(loaded->chat));
    json_write_key(w, "eos_token_ids");
    json_write_array_begin(w);
    for (size_t i = 0; i < loaded->model->config.n_eos_token_ids; i++)
        json_write_int(w, loaded->model->config.eos_token_ids[i]);
    json_write_array_end(w);
}

bool info_print_json(const InfoReport *report, Error *err)
{
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, OUTPUT_BYTES_MAX);
    json_writer_init(&writer, &out, 0);
    json_write_object_begin(&writer);
    write_config(&writer, report);
    write_text(&writer, report->loaded);
    write_kinds(&writer, report);
    json_write_object_end(&writer);
    buffer_append_byte(&out, '\n');
    bool ok = write_output(&out, err);
    buffer_reset(&out);
    return ok;
}
