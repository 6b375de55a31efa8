/* Shapes of known models, as the keys of their config.json that decide how much is computed. */
#include "bench.h"

#include <string.h>

typedef struct Shape {
    const char *name;
    const char *config;
} Shape;

/* What members of a family have in common; S strings together the rest. */
#define LLAMA(rest) "{\"model_type\": \"llama\", \"rms_norm_eps\": 1e-5, " rest "}"
#define LLAMA3(factor, rest)                                                                       \
    LLAMA("\"vocab_size\": 128256, \"max_position_embeddings\": 131072, \"rope_theta\": 500000, "  \
          "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": " factor                      \
          ", \"low_freq_factor\": 1, \"high_freq_factor\": 4, "                                    \
          "\"original_max_position_embeddings\": 8192}, " rest)
#define QWEN3(type, rest)                                                                          \
    "{\"model_type\": \"" type "\", \"rms_norm_eps\": 1e-6, \"rope_theta\": 1000000, "             \
    "\"vocab_size\": 151936, \"max_position_embeddings\": 40960, \"head_dim\": 128, " rest "}"
#define GEMMA3(rest)                                                                               \
    "{\"model_type\": \"gemma3_text\", \"head_dim\": 256, \"query_pre_attn_scalar\": 256, " rest "}"

#define SIZES(hidden, inner, layers, heads, kv_heads)                                              \
    "\"hidden_size\": " #hidden ", \"intermediate_size\": " #inner                                 \
    ", \"num_hidden_layers\": " #layers ", \"num_attention_heads\": " #heads                       \
    ", \"num_key_value_heads\": " #kv_heads
#define TIED ", \"tie_word_embeddings\": true"
#define UNTIED ", \"tie_word_embeddings\": false"

static const Shape shapes[] = {
    {"smollm2-135m", LLAMA(SIZES(576, 1536, 30, 9, 3) TIED
                           ", \"vocab_size\": 49152, \"max_position_embeddings\": 8192, "
                           "\"rope_theta\": 100000")},
    {"smollm2-1.7b", LLAMA(SIZES(2048, 8192, 24, 32, 32) TIED
                           ", \"vocab_size\": 49152, \"max_position_embeddings\": 8192, "
                           "\"rope_theta\": 130000")},
    {"llama3-1b", LLAMA3("32", SIZES(2048, 8192, 16, 32, 8) TIED)},
    {"llama3-3b", LLAMA3("32", SIZES(3072, 8192, 28, 24, 8) TIED)},
    {"llama3-8b", LLAMA3("8", SIZES(4096, 14336, 32, 32, 8) UNTIED)},
    {"mistral-7b",
     "{\"model_type\": \"mistral\", \"rms_norm_eps\": 1e-5, " SIZES(4096, 14336, 32, 32, 8) UNTIED
     ", \"vocab_size\": 32768, \"max_position_embeddings\": 32768, "
     "\"rope_theta\": 1000000}"},
    {"qwen3-0.6b", QWEN3("qwen3", SIZES(1024, 3072, 28, 16, 8) TIED)},
    {"qwen3-1.7b", QWEN3("qwen3", SIZES(2048, 6144, 28, 16, 8) TIED)},
    {"qwen3-4b", QWEN3("qwen3", SIZES(2560, 9728, 36, 32, 8) TIED)},
    {"qwen3-8b", QWEN3("qwen3", SIZES(4096, 12288, 36, 32, 8) UNTIED)},
    {"qwen3-30b-a3b", QWEN3("qwen3_moe", SIZES(2048, 6144, 48, 32, 4) UNTIED
                            ", \"num_experts\": 128, \"num_experts_per_tok\": 8, "
                            "\"moe_intermediate_size\": 768, \"norm_topk_prob\": true")},
    {"gemma3-270m", GEMMA3(SIZES(640, 2048, 18, 4, 1) ", \"vocab_size\": 262144, "
                                                      "\"max_position_embeddings\": 32768, "
                                                      "\"sliding_window\": 512")},
    {"gemma3-1b", GEMMA3(SIZES(1152, 6912, 26, 4, 1) ", \"vocab_size\": 262144, "
                                                     "\"max_position_embeddings\": 32768, "
                                                     "\"sliding_window\": 512")},
    {"gemma3-4b", GEMMA3(SIZES(2560, 10240, 34, 8, 4) ", \"vocab_size\": 262208, "
                                                      "\"max_position_embeddings\": 131072, "
                                                      "\"sliding_window\": 1024")},
    {"gemma3-12b", GEMMA3(SIZES(3840, 15360, 48, 16, 8) ", \"vocab_size\": 262208, "
                                                        "\"max_position_embeddings\": 131072, "
                                                        "\"sliding_window\": 1024")},
};

bool bench_shape_find(const char *name, Slice *config, Error *err)
{
    Buffer names;
    buffer_init(&names, 1 << 12);
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        if (strcmp(shapes[i].name, name) == 0) {
            buffer_reset(&names);
            *config = slice_of(shapes[i].config);
            return true;
        }
        buffer_append_format(&names, "%s%s", i ? ", " : "", shapes[i].name);
    }
    error_set(err, ERROR_USAGE, "--shape: \"%.40s\" is not one of %.*s", name,
              SLICE_ARG(buffer_view(&names)));
    buffer_reset(&names);
    return false;
}
