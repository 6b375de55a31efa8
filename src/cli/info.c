/* info: what a model directory holds and what running it takes. */
#include "cli.h"

#include "loaded_model.h"

#include <stdio.h>
#include <string.h>

static const char *mode_name(const WeightMatrix *matrix)
{
    switch (matrix->mode) {
    case QUANT_AFFINE:
        return "affine";
    case QUANT_MXFP4:
        return "mxfp4";
    case QUANT_MXFP8:
        return "mxfp8";
    case QUANT_NVFP4:
        return "nvfp4";
    case QUANT_NONE:
        break;
    }
    return dtype_name(matrix->weight->dtype);
}

static void format_layout(const WeightMatrix *matrix, char *out, size_t size)
{
    if (matrix->mode == QUANT_NONE)
        snprintf(out, size, "%s", mode_name(matrix));
    else
        snprintf(out, size, "%u-bit %s, group %u", (unsigned)matrix->bits, mode_name(matrix),
                 (unsigned)matrix->group_size);
}

/* One line for a kind of module: its layout in layer 0, and in how many layers it differs from
 * that. */
static void print_module(const Model *model, const char *name, size_t field_offset)
{
    char first[64] = "", layout[64];
    size_t present = 0, differing = 0, bytes = 0;
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const char *layer = (const char *)&model->weights.layers[i];
        WeightMatrix matrix;
        memcpy(&matrix, layer + field_offset, sizeof(matrix));
        if (!matrix.weight)
            continue;
        format_layout(&matrix, layout, sizeof(layout));
        if (present++ == 0)
            memcpy(first, layout, sizeof(first));
        differing += strcmp(first, layout) != 0;
        bytes += weight_matrix_bytes(&matrix);
    }
    if (present == 0)
        return;
    printf("  %-12s %s, %.1f MB", name, first, (double)bytes * 1e-6);
    if (differing > 0)
        printf(" (%zu of %zu layers differ)", differing, present);
    printf("\n");
}

static void print_matrix(const char *name, const WeightMatrix *matrix, const char *note)
{
    char layout[64];
    format_layout(matrix, layout, sizeof(layout));
    printf("  %-12s %s, %.1f MB%s\n", name, layout, (double)weight_matrix_bytes(matrix) * 1e-6,
           note);
}

static void print_quantisation(const Model *model)
{
    static const struct {
        const char *name;
        size_t offset;
    } modules[] = {
        {"q_proj", offsetof(LayerWeights, q)},
        {"k_proj", offsetof(LayerWeights, k)},
        {"v_proj", offsetof(LayerWeights, v)},
        {"o_proj", offsetof(LayerWeights, o)},
        {"gate_proj", offsetof(LayerWeights, gate)},
        {"up_proj", offsetof(LayerWeights, up)},
        {"down_proj", offsetof(LayerWeights, down)},
        {"router", offsetof(LayerWeights, router)},
        {"expert gate", offsetof(LayerWeights, expert_gate)},
        {"expert up", offsetof(LayerWeights, expert_up)},
        {"expert down", offsetof(LayerWeights, expert_down)},
    };
    printf("weights\n");
    bool tied = model->config.tie_word_embeddings;
    print_matrix("embedding", &model->weights.embedding, tied ? " (also the output head)" : "");
    for (size_t i = 0; i < ARRAY_COUNT(modules); i++)
        print_module(model, modules[i].name, modules[i].offset);
    if (!tied)
        print_matrix("head", &model->weights.head, "");
}

/* fp16 keys and values of every layer; sliding layers hold at most their window. */
static size_t count_kv_bytes(const ModelConfig *config, size_t tokens)
{
    size_t total = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        size_t window = config->layers[i].sliding_window;
        size_t kept = window > 0 && window < tokens ? window : tokens;
        total += kept * config->num_key_value_heads * config->head_dim * 2 * sizeof(uint16_t);
    }
    return total;
}

static void print_config(const ModelConfig *config, const ModelWeights *weights)
{
    printf("architecture   %s, %u layers, hidden %u, MLP %u\n", config->model_type,
           (unsigned)config->num_hidden_layers, (unsigned)config->hidden_size,
           (unsigned)config->intermediate_size);
    printf("attention      %u heads of %u, %u for keys and values\n",
           (unsigned)config->num_attention_heads, (unsigned)config->head_dim,
           (unsigned)config->num_key_value_heads);
    if (config->num_experts > 0)
        printf("experts        %u, %u a token\n", (unsigned)config->num_experts,
               (unsigned)config->num_experts_per_tok);
    printf("vocabulary     %u tokens\n", (unsigned)config->vocab_size);
    printf("context        %u tokens\n", (unsigned)config->max_position_embeddings);
    printf("parameters     %.1f M in %.1f MB\n", (double)weights->parameter_count * 1e-6,
           (double)weights->bytes * 1e-6);
    printf("KV cache       %zu bytes a token (fp16); %.1f MB at the full context\n",
           count_kv_bytes(config, 1),
           (double)count_kv_bytes(config, config->max_position_embeddings) * 1e-6);
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

int command_info(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded;
    if (!loaded_model_open(arguments, LOAD_TEXT, &loaded, &err))
        return report_error(&err);
    print_config(&loaded.model->config, &loaded.model->weights);
    print_text(&loaded);
    print_quantisation(loaded.model);
    loaded_model_close(&loaded);
    return EXIT_DONE;
}
