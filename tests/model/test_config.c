/* config.json to ModelConfig: what each architecture's keys mean, and what is refused. Expected
 * numbers are computed here from the format's formulas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SHAPE_KEYS                                                                                 \
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":4,"                        \
    "\"num_attention_heads\":4,\"vocab_size\":100,\"rms_norm_eps\":1e-5"
#define LLAMA_SHAPE "\"model_type\":\"llama\"," SHAPE_KEYS
#define SMOLLM3 "\"model_type\":\"smollm3\"," SHAPE_KEYS
#define SCALED_QUERIES                                                                             \
    "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6,"                           \
    "\"original_max_position_embeddings\":16,\"llama_4_scaling_beta\":0.1}"

static bool parse(const char *config, const char *generation, Arena *arena, ModelConfig *out,
                  Error *err)
{
    arena_init(arena, 64 << 20);
    return model_config_parse(slice_of(config), slice_of(generation), arena, out, err);
}

static void accept(const char *config, const char *generation, Arena *arena, ModelConfig *out)
{
    Error err = {0};
    if (!parse(config, generation, arena, out, &err))
        fail_msg("%s: %s", config, err.message);
}

static void refuse(const char *config, const char *generation, ErrorCode code, const char *message)
{
    Arena arena;
    ModelConfig parsed;
    Error err = {0};
    if (parse(config, generation, &arena, &parsed, &err))
        fail_msg("accepted: %s", config);
    if (err.code != code || !strstr(err.message, message))
        fail_msg("%s: code %d \"%s\", expected code %d and \"%s\"", config, err.code, err.message,
                 code, message);
    arena_reset(&arena);
}

static void test_llama(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"num_key_value_heads\":2,\"head_dim\":null,\"rope_scaling\":null,"
           "\"eos_token_id\":7,\"model_max_length\":1000000000000000019884624838656}",
           "", &arena, &c);
    assert_string_equal(c.model_type, "llama");
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.num_key_value_heads, 2);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(fabsf(c.attention_scale - 0.25f) < 1e-7f);
    assert_false(c.has_qkv_bias || c.has_o_bias || c.has_mlp_bias || c.has_qk_norm);
    assert_int_equal(c.rope[0].rotary_dims, 16);
    for (int d = 0; d < 8; d++)
        assert_true(fabs(c.rope[0].inverse_frequencies[d] - pow(1e4, -d / 8.0)) < 1e-12);
    assert_true(model_is_eos(&c, 7));
    assert_false(model_is_eos(&c, 2));
    arena_reset(&arena);
}

static void test_heads_default_and_biases(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32}", "",
           &arena, &c);
    assert_int_equal(c.num_key_value_heads, 4);
    assert_int_equal(c.head_dim, 32);
    assert_true(c.has_qkv_bias && c.has_o_bias && c.has_mlp_bias);
    arena_reset(&arena);
    accept("{\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":128,"
           "\"num_hidden_layers\":4,\"num_attention_heads\":4,\"vocab_size\":100,"
           "\"rms_norm_eps\":1e-5,\"sliding_window\":8,\"use_sliding_window\":false}",
           "", &arena, &c);
    assert_true(c.has_qkv_bias);
    assert_false(c.has_o_bias);
    assert_int_equal(c.layers[3].sliding_window, 0);
    assert_true(fabs(c.rope[0].rope_theta - 1e6) < 1e-3);
    arena_reset(&arena);
}

static void test_eos_rules(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"eos_token_id\":[7,8]}", "{\"eos_token_id\":[1,6]}", &arena, &c);
    assert_int_equal(c.n_eos_token_ids, 2);
    assert_true(model_is_eos(&c, 1) && model_is_eos(&c, 6) && !model_is_eos(&c, 7));
    arena_reset(&arena);
    accept("{" LLAMA_SHAPE ",\"eos_token_id\":[7,8]}", "{\"eos_token_id\":0}", &arena, &c);
    assert_true(model_is_eos(&c, 7) && model_is_eos(&c, 8) && !model_is_eos(&c, 0));
    arena_reset(&arena);
    refuse("{" LLAMA_SHAPE ",\"eos_token_id\":\"x\"}", "", ERROR_INVALID, "eos_token_id");
    refuse("{" LLAMA_SHAPE ",\"eos_token_id\":-1}", "", ERROR_INVALID, "eos_token_id");
    refuse("{" LLAMA_SHAPE "}", "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
           ERROR_LIMIT, "generation_config.json");
    refuse("{" LLAMA_SHAPE "}", "{", ERROR_INVALID, "generation_config.json");
}

/* The formulas of the format notes, spelt out once more. */
static void test_rope_scaling(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8.0}}", "",
           &arena, &c);
    assert_true(fabs(c.rope[0].inverse_frequencies[3] - pow(1e4, -3 / 8.0) / 8) < 1e-12);
    arena_reset(&arena);

    accept("{" LLAMA_SHAPE
           ",\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":32,"
           "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
           "", &arena, &c);
    for (int d = 0; d < 8; d++) {
        double inverse = pow(5e5, -d / 8.0), wave = 2 * 3.141592653589793 / inverse;
        double t = (64 / wave - 1) / 3;
        double expected = wave > 64   ? inverse / 32
                          : wave < 16 ? inverse
                                      : (1 - t) * inverse / 32 + t * inverse;
        assert_true(fabs(c.rope[0].inverse_frequencies[d] / expected - 1) < 1e-9);
    }
    arena_reset(&arena);

    accept("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
           "\"original_max_position_embeddings\":32768}}",
           "", &arena, &c);
    assert_true(fabs(c.rope[0].attention_factor - (0.1 * log(4) + 1)) < 1e-9);
    assert_true(fabs(c.rope[0].inverse_frequencies[0] - 1.0) < 1e-9);
    /* 16 dims: lo = floor(4.4), hi = ceil(7.4), so dimension 7 stands at 3/4 of the ramp. */
    double seventh = pow(1e4, -7 / 8.0);
    assert_true(fabs(c.rope[0].inverse_frequencies[7] - (seventh / 4 * 0.75 + seventh * 0.25)) <
                1e-9);
    arena_reset(&arena);

    accept("{" LLAMA_SHAPE
           ",\"max_position_embeddings\":131072,\"original_max_position_embeddings\":4096,"
           "\"rope_scaling\":{\"type\":\"longrope\",\"long_factor\":[1,2,3,4,5,6,7,8],"
           "\"short_factor\":[1,1,1,1,1,1,1,1]}}",
           "", &arena, &c);
    assert_true(fabs(c.rope[0].inverse_frequencies[4] - pow(1e4, -4 / 8.0) / 5) < 1e-12);
    assert_true(fabs(c.rope[0].attention_factor - sqrt(1 + log(32) / log(4096))) < 1e-9);
    arena_reset(&arena);
}

static void test_rope_parameters(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"rope_parameters\":{\"rope_theta\":250000.0,\"rope_type\":\"linear\","
           "\"factor\":2.0}}",
           "", &arena, &c);
    assert_true(fabs(c.rope[0].inverse_frequencies[2] - pow(250000, -2 / 8.0) / 2) < 1e-12);
    arena_reset(&arena);
    accept("{\"model_type\":\"gemma3_text\",\"rope_parameters\":{"
           "\"full_attention\":{\"rope_theta\":2000000.0,\"rope_type\":\"linear\",\"factor\":8.0},"
           "\"sliding_attention\":{\"rope_theta\":20000.0,\"rope_type\":\"default\"}}}",
           "", &arena, &c);
    assert_true(fabs(c.rope[0].inverse_frequencies[1] - pow(2e6, -1 / 128.0) / 8) < 1e-12);
    assert_true(fabs(c.rope[1].inverse_frequencies[1] - pow(2e4, -1 / 128.0)) < 1e-12);
    arena_reset(&arena);
}

static void test_context(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    /* Qwen's way of switching yarn on leaves max_position_embeddings as it was. */
    accept("{" LLAMA_SHAPE ",\"max_position_embeddings\":40960,\"rope_scaling\":{\"rope_type\":"
           "\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}}",
           "", &arena, &c);
    assert_int_equal(c.max_position_embeddings, 131072);
    arena_reset(&arena);
    /* Llama-3.2's counts the scaling in; a linear factor says nothing about the start. */
    accept("{" LLAMA_SHAPE ",\"max_position_embeddings\":131072,\"rope_scaling\":{\"rope_type\":"
           "\"llama3\",\"factor\":32.0,\"original_max_position_embeddings\":8192}}",
           "", &arena, &c);
    assert_int_equal(c.max_position_embeddings, 131072);
    arena_reset(&arena);
    accept("{" LLAMA_SHAPE ",\"max_position_embeddings\":16384,\"rope_scaling\":{\"type\":"
           "\"linear\",\"factor\":4.0}}",
           "", &arena, &c);
    assert_int_equal(c.max_position_embeddings, 16384);
    arena_reset(&arena);
    accept("{" LLAMA_SHAPE ",\"rope_parameters\":{\"rope_theta\":1e4,\"rope_type\":\"yarn\","
           "\"factor\":1e30,\"original_max_position_embeddings\":32768}}",
           "", &arena, &c);
    assert_int_equal(c.max_position_embeddings, 1 << 30);
    arena_reset(&arena);
}

static void test_rope_refusals(void **state)
{
    (void)state;
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", "",
           ERROR_UNSUPPORTED, "dynamic");
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"linear\"}}", "", ERROR_INVALID, "factor");
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "",
           ERROR_INVALID, "factor");
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e999}}", "",
           ERROR_INVALID, "factor");
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":7}", "", ERROR_INVALID, "rope_scaling");
    refuse("{" LLAMA_SHAPE
           ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
           "\"high_freq_factor\":4}}",
           "", ERROR_INVALID, "high_freq_factor");
    refuse("{" LLAMA_SHAPE ",\"rope_scaling\":{\"type\":\"longrope\",\"long_factor\":[1,2]}}", "",
           ERROR_INVALID, "long_factor has 2 numbers, expected 8");
    refuse("{" LLAMA_SHAPE ",\"rope_theta\":-1}", "", ERROR_INVALID, "rope_theta");
    refuse("{" LLAMA_SHAPE ",\"rope_theta\":\"x\"}", "", ERROR_INVALID, "rope_theta");
    refuse("{" LLAMA_SHAPE ",\"rope_traditional\":true}", "", ERROR_UNSUPPORTED,
           "rope_traditional");
}

static void test_gemma3(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{\"model_type\":\"gemma3\",\"vocab_size\":660,\"text_config\":{\"hidden_size\":1152,"
           "\"intermediate_size\":256,\"num_hidden_layers\":8,\"sliding_window\":24,\"vocab_size\":"
           "99}}",
           "", &arena, &c);
    assert_int_equal(c.vocab_size, 660);
    assert_int_equal(c.num_attention_heads, 8);
    assert_int_equal(c.num_key_value_heads, 4);
    assert_int_equal(c.head_dim, 256);
    assert_true(c.norm_adds_one && c.has_post_norms && c.has_qk_norm);
    assert_true(c.embedding_scale == 34.0f); /* sqrt(1152) = 33.94 in bfloat16 */
    assert_int_equal(c.activation, ACTIVATION_GELU_TANH);
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(c.layers[i].sliding_window, i == 5 ? 0 : 24);
        assert_int_equal(c.layers[i].rope, i == 5 ? 0 : 1);
    }
    arena_reset(&arena);
    accept("{\"model_type\":\"gemma3_text\",\"num_hidden_layers\":3,\"sliding_window\":16,"
           "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\"]}",
           "", &arena, &c);
    assert_int_equal(c.layers[0].sliding_window, 16);
    assert_int_equal(c.layers[1].sliding_window, 0);
    assert_int_equal(c.layers[2].rope, 1);
    arena_reset(&arena);
    refuse("{\"model_type\":\"gemma3\"}", "", ERROR_INVALID, "text_config is missing");
    refuse("{\"model_type\":\"gemma3_text\",\"layer_types\":[\"full_attention\"]}", "",
           ERROR_INVALID, "layer_types has 1 items, expected 26");
    refuse("{\"model_type\":\"gemma3_text\",\"num_hidden_layers\":1,\"layer_types\":[\"linear\"]}",
           "", ERROR_UNSUPPORTED, "layer_types[0]");
}

static void test_defaults_of_absent_keys(void **state)
{
    (void)state;
#define SMALL                                                                                      \
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"vocab_size\":100,"     \
    "\"num_attention_heads\":4,\"rms_norm_eps\":1e-6"
    Arena arena;
    ModelConfig c;
    accept("{\"model_type\":\"gemma2\"," SMALL "}", "", &arena, &c);
    assert_true(c.attn_logit_softcapping == 50.0f && c.final_logit_softcapping == 30.0f);
    assert_int_equal(c.head_dim, 256);
    arena_reset(&arena);
    accept("{\"model_type\":\"gemma2\",\"attn_logit_softcapping\":null,"
           "\"final_logit_softcapping\":20.0," SMALL "}",
           "", &arena, &c);
    assert_true(c.attn_logit_softcapping == 0.0f && c.final_logit_softcapping == 20.0f);
    arena_reset(&arena);
    accept("{\"model_type\":\"qwen3\",\"rope_theta\":1e6," SMALL "}", "", &arena, &c);
    assert_int_equal(c.head_dim, 128); /* not 64 / 4 */
    arena_reset(&arena);
    accept("{\"model_type\":\"phi3\"," SMALL "}", "", &arena, &c);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.num_key_value_heads, 4);
    assert_false(c.tie_word_embeddings);
    arena_reset(&arena);
    refuse("{\"model_type\":\"qwen3\"," SMALL "}", "", ERROR_INVALID, "rope_theta is missing");
}

static void test_llama_layer_types(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    const char *types = "\"layer_types\":[\"full_attention\",\"sliding_attention\","
                        "\"full_attention\",\"full_attention\"]";
    char text[512];
    snprintf(text, sizeof text, "{" LLAMA_SHAPE ",%s,\"sliding_window\":9}", types);
    accept(text, "", &arena, &c);
    assert_int_equal(c.layers[1].sliding_window, 9);
    assert_int_equal(c.layers[2].sliding_window, 0);
    assert_int_equal(c.layers[1].rope, 0);
    arena_reset(&arena);
    snprintf(text, sizeof text, "{" LLAMA_SHAPE ",%s}", types);
    refuse(text, "", ERROR_INVALID, "sliding_window is missing");
}

/* SmolLM3: layers without rotation by a list, or every fourth. */
static void test_unrotated_layers(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{" SMOLLM3 ",\"no_rope_layers\":[1,0,1,0]}", "", &arena, &c);
    assert_int_equal(c.layers[0].rope, 0);
    assert_int_equal(c.layers[1].rope, MODEL_ROPE_NONE);
    assert_int_equal(c.layers[2].rope, 0);
    assert_int_equal(c.layers[3].rope, MODEL_ROPE_NONE);
    arena_reset(&arena);
    accept("{" SMOLLM3 ",\"no_rope_layers\":null}", "", &arena, &c);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(c.layers[i].rope, i == 3 ? MODEL_ROPE_NONE : 0);
    arena_reset(&arena);
    accept("{" SMOLLM3 ",\"no_rope_layer_interval\":2}", "", &arena, &c);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(c.layers[i].rope, i % 2 ? MODEL_ROPE_NONE : 0);
    arena_reset(&arena);
    refuse("{" SMOLLM3 ",\"no_rope_layers\":[1,0]}", "", ERROR_INVALID, "has 2 items, expected 4");
    refuse("{" SMOLLM3 ",\"no_rope_layers\":[1,0,\"x\",1]}", "", ERROR_INVALID,
           "no_rope_layers[2]");
    refuse("{" SMOLLM3 ",\"no_rope_layer_interval\":0}", "", ERROR_INVALID,
           "no_rope_layer_interval");
}

/* Mistral 3: what kind of text model the wrapper holds decides whether positions scale queries. */
static void test_mistral3(void **state)
{
    (void)state;
    Arena arena;
    ModelConfig c;
    accept("{\"model_type\":\"mistral3\",\"text_config\":{\"model_type\":\"ministral3\"," SHAPE_KEYS
           "," SCALED_QUERIES "}}",
           "", &arena, &c);
    assert_string_equal(c.model_type, "mistral3");
    assert_int_equal(c.query_scaling_length, 16);
    assert_true(fabs(model_query_scale(&c, 15) - 1.0) < 1e-12);
    assert_true(fabs(model_query_scale(&c, 16) - (1.0 + 0.1 * log(2.0))) < 1e-12);
    assert_true(fabs(model_query_scale(&c, 47) - (1.0 + 0.1 * log(3.0))) < 1e-12);
    arena_reset(&arena);
    accept("{\"model_type\":\"ministral3\"," SHAPE_KEYS "," SCALED_QUERIES "}", "", &arena, &c);
    assert_int_equal(c.query_scaling_length, 16);
    arena_reset(&arena);
    accept("{\"model_type\":\"mistral3\",\"text_config\":{" SHAPE_KEYS "," SCALED_QUERIES "}}", "",
           &arena, &c);
    assert_int_equal(c.query_scaling_length, 0);
    assert_true(fabs(model_query_scale(&c, 1000) - 1.0) < 1e-12);
    arena_reset(&arena);
    refuse("{\"model_type\":\"mistral3\",\"text_config\":{\"model_type\":\"mistral4\"," SHAPE_KEYS
           "}}",
           "", ERROR_UNSUPPORTED, "text_config: model_type \"mistral4\" is not supported");
    refuse("{\"model_type\":\"ministral3\"," SHAPE_KEYS
           ",\"rope_parameters\":{\"llama_4_scaling_beta\":0.1}}",
           "", ERROR_INVALID, "rope_parameters: key original_max_position_embeddings is missing");
    refuse("{\"model_type\":\"ministral3\"," SHAPE_KEYS
           ",\"rope_parameters\":{\"llama_4_scaling_beta\":-1,\"original_max_position_embeddings\":"
           "16}}",
           "", ERROR_INVALID, "llama_4_scaling_beta is -1");
}

static void test_experts(void **state)
{
    (void)state;
#define MOE                                                                                        \
    "\"model_type\":\"qwen3_moe\",\"hidden_size\":64,\"intermediate_size\":128,"                   \
    "\"num_attention_heads\":4,\"head_dim\":32,\"vocab_size\":100,\"rms_norm_eps\":1e-6,"          \
    "\"rope_theta\":1e6,\"num_hidden_layers\":5,\"num_experts\":8,\"moe_intermediate_size\":32"
    Arena arena;
    ModelConfig c;
    accept("{" MOE ",\"num_experts_per_tok\":2,\"decoder_sparse_step\":2,\"mlp_only_layers\":[3],"
           "\"norm_topk_prob\":true}",
           "", &arena, &c);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(c.layers[i].is_sparse, i == 1);
    assert_true(c.norm_topk_prob);
    arena_reset(&arena);
    accept("{\"model_type\":\"mixtral\"," SHAPE_KEYS
           ",\"num_local_experts\":8,\"num_experts_per_tok\":2}",
           "", &arena, &c);
    assert_int_equal(c.num_experts, 8);
    assert_int_equal(c.moe_intermediate_size, 128);
    assert_true(c.norm_topk_prob && c.layers[0].is_sparse && c.layers[3].is_sparse);
    arena_reset(&arena);
    accept(
        "{\"model_type\":\"qwen3_vl_moe\",\"text_config\":{" SHAPE_KEYS
        ",\"num_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":32,"
        "\"head_dim\":16,\"rope_scaling\":{\"mrope_section\":[4,2,2],\"rope_type\":\"default\"}}}",
        "", &arena, &c);
    assert_int_equal(c.num_experts, 4);
    assert_true(c.has_qk_norm && !c.norm_topk_prob);
    arena_reset(&arena);
    refuse("{\"model_type\":\"mixtral\"," SHAPE_KEYS ",\"num_experts_per_tok\":2}", "",
           ERROR_INVALID, "num_local_experts is missing");
    refuse("{" MOE ",\"num_experts_per_tok\":9}", "", ERROR_INVALID, "num_experts_per_tok");
    refuse("{" MOE "}", "", ERROR_INVALID, "num_experts_per_tok is missing");
    refuse("{" MOE ",\"num_experts_per_tok\":2,\"mlp_only_layers\":[\"x\"]}", "", ERROR_INVALID,
           "mlp_only_layers[0]");
}

static void test_damaged(void **state)
{
    (void)state;
    refuse("", "", ERROR_INVALID, "config.json");
    refuse("[]", "", ERROR_INVALID, "expected an object");
    refuse("{}", "", ERROR_INVALID, "model_type is missing");
    refuse("{\"model_type\":7}", "", ERROR_INVALID, "model_type");
    refuse("{\"model_type\":\"mamba\"}", "", ERROR_UNSUPPORTED, "expected one of llama, mistral");
    refuse("{\"model_type\":\"llama\"}", "", ERROR_INVALID, "hidden_size is missing");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":0}", "", ERROR_INVALID, "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":-64}", "", ERROR_INVALID, "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":64.5}", "", ERROR_INVALID, "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":\"64\"}", "", ERROR_INVALID, "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":1e30}", "", ERROR_INVALID, "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":99999999999999999999}", "", ERROR_INVALID,
           "hidden_size");
    refuse("{" LLAMA_SHAPE ",\"hidden_size\":66}", "", ERROR_INVALID,
           "hidden_size is 66, expected a multiple of num_attention_heads 4");
    refuse("{" LLAMA_SHAPE ",\"num_hidden_layers\":1025}", "", ERROR_INVALID, "num_hidden_layers");
    refuse("{" LLAMA_SHAPE ",\"vocab_size\":5000000}", "", ERROR_INVALID, "vocab_size");
    refuse("{" LLAMA_SHAPE ",\"num_key_value_heads\":3}", "", ERROR_INVALID,
           "num_key_value_heads is 3, expected a divisor of num_attention_heads 4");
    refuse("{" LLAMA_SHAPE ",\"head_dim\":7}", "", ERROR_INVALID, "head_dim is 7");
    refuse("{" LLAMA_SHAPE ",\"head_dim\":1048576}", "", ERROR_LIMIT, "head_dim");
    refuse("{" LLAMA_SHAPE ",\"rms_norm_eps\":0}", "", ERROR_INVALID, "rms_norm_eps");
    refuse("{" LLAMA_SHAPE ",\"rms_norm_eps\":1e999}", "", ERROR_INVALID, "rms_norm_eps");
    refuse("{" LLAMA_SHAPE ",\"rms_norm_eps\":NaN}", "", ERROR_INVALID, "config.json");
    refuse("{" LLAMA_SHAPE ",\"hidden_act\":\"relu\"}", "", ERROR_UNSUPPORTED,
           "hidden_act is \"relu\"");
    refuse("{" LLAMA_SHAPE ",\"tie_word_embeddings\":1}", "", ERROR_INVALID, "tie_word_embeddings");
}

static void test_quantization(void **state)
{
    (void)state;
    refuse("{" LLAMA_SHAPE ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}", "",
           ERROR_UNSUPPORTED, "gptq");
    refuse("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":4,\"mode\":\"q4_k\"}}", "",
           ERROR_UNSUPPORTED, "q4_k");
    refuse("{" LLAMA_SHAPE ",\"quantization\":[4]}", "", ERROR_INVALID, "quantization is a");
    refuse("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":0}}", "", ERROR_INVALID, "bits");
    refuse("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":7}}", "", ERROR_UNSUPPORTED,
           "7 bits in groups of 64, expected for affine: 2, 3, 4, 5, 6 or 8 bits");
    refuse("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":4,\"group_size\":16}}", "",
           ERROR_UNSUPPORTED, "groups of 16");
    refuse("{" LLAMA_SHAPE ",\"quantization\":{\"mode\":\"mxfp4\",\"group_size\":64}}", "",
           ERROR_UNSUPPORTED, "4 bits in groups of 64, expected for mxfp4: 4 bits in groups of 32");
    Arena arena;
    ModelConfig c;
    accept("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":4,\"group_size\":64,\"lm_head\":false}}",
           "", &arena, &c);
    arena_reset(&arena);
    /* A conversion of a model that came in another format: MLX's own key counts. */
    accept("{" LLAMA_SHAPE ",\"quantization\":{\"bits\":4,\"group_size\":64},"
           "\"quantization_config\":{\"quant_method\":\"fp8\"}}",
           "", &arena, &c);
    arena_reset(&arena);
}

/* Every type of the list is one that the parser takes. */
static void test_supported_types(void **state)
{
    (void)state;
    char list[256], text[512];
    snprintf(list, sizeof list, "%s", model_supported_types());
    size_t count = 0, len = strlen(list);
    for (size_t start = 0; start < len;) {
        size_t end = start;
        while (end < len && list[end] != ',')
            end++;
        snprintf(text, sizeof text, "{\"model_type\":\"%.*s\"}", (int)(end - start), list + start);
        Arena arena;
        ModelConfig c;
        Error err = {0};
        if (!parse(text, "", &arena, &c, &err))
            assert_int_equal(err.code, ERROR_INVALID); /* a missing key, not the type */
        arena_reset(&arena);
        start = end + 2;
        count++;
    }
    assert_int_equal(count, 15);
}

static void test_no_memory(void **state)
{
    (void)state;
    const char *text = "{" LLAMA_SHAPE ",\"quantization\":{\"bits\":4},\"rope_scaling\":{\"type\":"
                       "\"linear\",\"factor\":2}}";
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        Arena arena;
        ModelConfig c;
        Error err = {0};
        fault_fail_allocation(nth);
        done = parse(text, "{\"eos_token_id\":3}", &arena, &c, &err);
        fault_fail_allocation(0);
        if (!done)
            assert_int_equal(err.code, ERROR_MEMORY);
        arena_reset(&arena);
        assert_true(nth < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_heads_default_and_biases),
        cmocka_unit_test(test_eos_rules),
        cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_rope_parameters),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_rope_refusals),
        cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_llama_layer_types),
        cmocka_unit_test(test_defaults_of_absent_keys),
        cmocka_unit_test(test_unrotated_layers),
        cmocka_unit_test(test_mistral3),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_quantization),
        cmocka_unit_test(test_supported_types),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
