/* Import from end to end: tiny GGUF models made here, written as MLX directories, read back through
 * the room's own reader and compared with a dequantisation of the GGUF blocks written apart. */
#include "gguf_import_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

static void count_lines(void *context, const char *line)
{
    assert_non_null(strstr(line, " -> "));
    ++*(size_t *)context;
}

static void check_llama_config(const Place *place)
{
    Document config;
    document_open(&config, place, "config.json");
    expect_json(&config, "model_type", "\"llama\"");
    expect_json(&config, "hidden_size", "256");
    expect_json(&config, "num_hidden_layers", "3");
    expect_json(&config, "num_attention_heads", "4");
    expect_json(&config, "num_key_value_heads", "2");
    expect_json(&config, "head_dim", "64");
    expect_json(&config, "vocab_size", "12");
    expect_json(&config, "max_position_embeddings", "131072");
    expect_json(&config, "tie_word_embeddings", "false");
    expect_json(&config, "attention_bias", "false");
    expect_json(&config, "rms_norm_eps", "1e-05");
    expect_json(&config, "rope_theta", "500000.0");
    expect_json(&config, "rope_scaling", "null");
    expect_json(&config, "eos_token_id", "0");
    expect_json(&config, "quantization/bits", "8");
    expect_json(&config, "quantization/group_size", "32");
    expect_json(&config, "quantization/mode", "\"affine\"");
    expect_json(&config, "quantization/model.layers.0.self_attn.q_proj", "false");
    expect_json(&config, "quantization/model.layers.0.mlp.up_proj",
                "{\"group_size\":32,\"bits\":5}");
    expect_json(&config, "quantization/lm_head", "absent");
    expect_json(&config, "quantization_config/bits", "8");
    document_close(&config);
    document_open(&config, place, "generation_config.json");
    expect_json(&config, "eos_token_id", "[0,10]");
    expect_json(&config, "bos_token_id", "1");
    document_close(&config);
}

/* Every block format, in a llama whose q and k rows are permuted. */
static void test_every_format(void **state)
{
    (void)state;
    static const char *const formats[] = {"F32",  "F16",  "BF16", "Q4_0",   "Q4_1",
                                          "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS",
                                          "Q4_K", "Q5_K", "Q2_K", "Q3_K",   "Q6_K"};
    Place place;
    Model model;
    place_make(&place);
    model_init(&model);
    put_dims(&model.gguf, "llama", 3);
    put_byte_level_tokenizer(&model.gguf, "smollm");
    model_put_ends(&model, "Q8_0", "Q6_K");
    for (unsigned layer = 0; layer < 3; layer++)
        model_put_layer(&model, layer, formats, ARRAY_COUNT(formats), false);
    GgufImportReport report;
    Error err = {0};
    if (!place_import(&place, &model.gguf, &report, &err))
        fail_msg("%s", err.message);
    compare_model(&place, &model, true, 0);
    check_llama_config(&place);
    assert_int_equal(report.exact_tensors + report.converted_tensors, model.count);
    assert_true(report.worst_relative_error > 1e-4 && report.worst_relative_error < 8e-3);
    assert_non_null(strstr(report.worst_tensor, "weight"));
    size_t lines = 0;
    assert_true(gguf_import(place.gguf, place.directory, count_lines, &lines, NULL, &err));
    assert_int_equal(lines, model.count);
    model_free(&model);
    place_remove(&place);
}

/* Gemma-3: norms lose their 1, rows stay, a SentencePiece vocabulary becomes merges. */
static void test_gemma3(void **state)
{
    (void)state;
    static const char *const formats[] = {"Q4_0"};
    /* The last two are user-defined, so that lengths in characters decide their merges' order. */
    enum { PIECES = VOCAB + 2 };
    static const char *const pieces[PIECES] = {
        "<pad>", "<eos>", "<bos>",  "<unk>",        "  ", "a",   "b",
        "ab",    "aab",   "<0x41>", "\xe2\x96\x81", "aa", "   ", "aba"};
    static const int32_t types[PIECES] = {3, 3, 3, 2, 4, 1, 1, 1, 1, 6, 1, 1, 4, 4};
    static const float scores[PIECES] = {-1000, -1000, -1000, -1000, -1000, -8,    -9,
                                         -1,    -3,    0,     -7,    -2,    -1000, -1000};
    Place place;
    Model model;
    place_make(&place);
    model_init(&model);
    GgufBuilder *gguf = &model.gguf;
    put_dims(gguf, "gemma3", 1);
    put_dim(gguf, "gemma3", "attention.key_length", HEAD_DIM);
    put_dim(gguf, "gemma3", "attention.value_length", HEAD_DIM);
    put_dim(gguf, "gemma3", "attention.sliding_window", 512);
    gguf_put_text(gguf, "gemma3.rope.scaling.type", "linear");
    gguf_put_f32(gguf, "gemma3.rope.scaling.factor", 8);
    gguf_put_text(gguf, "tokenizer.ggml.model", "llama");
    gguf_put_texts(gguf, "tokenizer.ggml.tokens", pieces, PIECES);
    gguf_put_i32s(gguf, "tokenizer.ggml.token_type", types, PIECES);
    gguf_put_f32s(gguf, "tokenizer.ggml.scores", scores, PIECES);
    gguf_put_u32(gguf, "tokenizer.ggml.bos_token_id", 2);
    gguf_put_u32(gguf, "tokenizer.ggml.eos_token_id", 1);
    gguf_put_u32(gguf, "tokenizer.ggml.unknown_token_id", 3);
    gguf_put_bool(gguf, "tokenizer.ggml.add_space_prefix", false);
    model_put_ends(&model, "Q8_0", NULL);
    model_put_layer(&model, 0, formats, 1, true);
    Error err = {0};
    if (!place_import(&place, gguf, NULL, &err))
        fail_msg("%s", err.message);
    compare_model(&place, &model, false, 1);

    Document document;
    document_open(&document, &place, "config.json");
    expect_json(&document, "model_type", "\"gemma3_text\"");
    expect_json(&document, "tie_word_embeddings", "true");
    expect_json(&document, "sliding_window", "512");
    expect_json(&document, "sliding_window_pattern", "6");
    expect_json(&document, "query_pre_attn_scalar", "64");
    expect_json(&document, "rope_local_base_freq", "10000.0");
    expect_json(&document, "rope_scaling", "{\"rope_type\":\"linear\",\"factor\":8.0}");
    expect_json(&document, "quantization/bits", "4");
    document_close(&document);
    document_open(&document, &place, "tokenizer.json");
    expect_json(
        &document, "normalizer",
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}");
    expect_json(&document, "model/merges",
                "[[\"\xe2\x96\x81\xe2\x96\x81\",\"\xe2\x96\x81\"],[\"ab\",\"a\"],[\"\xe2\x96\x81\","
                "\"\xe2\x96\x81\xe2\x96\x81\"],"
                "[\"\xe2\x96\x81\",\"\xe2\x96\x81\"],[\"a\",\"b\"],[\"a\",\"a\"],[\"aa\",\"b\"],["
                "\"a\",\"ab\"]]");
    expect_json(&document, "model/vocab/\xe2\x96\x81\xe2\x96\x81", "4");
    expect_json(&document, "model/byte_fallback", "true");
    expect_json(&document, "model/unk_token", "\"<unk>\"");
    expect_json(&document, "added_tokens/4/special", "false");
    expect_json(&document, "post_processor/single/0/SpecialToken/id", "\"<bos>\"");
    expect_json(&document, "decoder/decoders/3", "absent");
    document_close(&document);
    model_free(&model);
    place_remove(&place);
}

static void test_byte_level_tokenizer(void **state)
{
    (void)state;
    static const char *const formats[] = {"F16"};
    Place place;
    Model model;
    place_make(&place);
    model_init(&model);
    put_dims(&model.gguf, "llama", 1);
    put_byte_level_tokenizer(&model.gguf, "llama-bpe");
    model_put_ends(&model, "F16", NULL);
    model_put_layer(&model, 0, formats, 1, false);
    Error err = {0};
    if (!place_import(&place, &model.gguf, NULL, &err))
        fail_msg("%s", err.message);
    compare_model(&place, &model, true, 0);
    Document document;
    document_open(&document, &place, "tokenizer.json");
    expect_json(&document, "normalizer", "null");
    expect_json(&document, "pre_tokenizer/pretokenizers/0/behavior", "\"Isolated\"");
    expect_json(&document, "pre_tokenizer/pretokenizers/1/use_regex", "false");
    expect_json(&document, "post_processor/special_tokens/<s>/ids", "[1]");
    expect_json(&document, "model/ignore_merges", "true");
    expect_json(&document, "model/merges", "[[\"a\",\"b\"],[\"\xc4\xa0\",\"a\"],[\"ab\",\"c\"]]");
    expect_json(&document, "model/vocab/abc", "8");
    expect_json(&document, "model/vocab/[PAD11]", "absent");
    expect_json(&document, "added_tokens/2/content", "\"<think>\"");
    expect_json(&document, "added_tokens/2/special", "false");
    expect_json(&document, "added_tokens/3", "absent");
    document_close(&document);
    document_open(&document, &place, "tokenizer_config.json");
    expect_json(&document, "bos_token", "\"<s>\"");
    expect_json(&document, "eos_token", "\"<|end|>\"");
    expect_json(&document, "model_max_length", "131072");
    expect_json(&document, "chat_template", "\"{{ messages[0]['content'] }}\\n\"");
    document_close(&document);
    document_open(&document, &place, "config.json");
    expect_json(&document, "quantization", "absent");
    expect_json(&document, "tie_word_embeddings", "true");
    document_close(&document);
    model_free(&model);
    place_remove(&place);
}

/* Qwen-3's head norms keep their values; biases follow their matrices: qwen2's rows stay, llama's
 * are permuted. A vector that 16 bits cannot hold stays float32. */
static void test_norms_and_biases(void **state)
{
    (void)state;
    static const char *const architectures[] = {"qwen3", "qwen2", "llama"};
    static const char *const formats[] = {"Q8_0"};
    for (size_t i = 0; i < ARRAY_COUNT(architectures); i++) {
        bool is_llama = i == 2;
        const BlockFormat *f32 = format_named("F32"), *f16 = format_named("F16");
        Place place;
        Model model;
        place_make(&place);
        model_init(&model);
        put_dims(&model.gguf, architectures[i], 1);
        put_byte_level_tokenizer(&model.gguf, "qwen2");
        model_put_ends(&model, "Q8_0", NULL);
        model_put_layer(&model, 0, formats, 1, false);
        if (i == 0) {
            model_put(&model, "blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm", f32, 0,
                      HEAD_DIM);
            model_put(&model, "blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm", f32, 0,
                      HEAD_DIM);
        } else {
            model_put(&model, "blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj", f32, 0,
                      HEADS * HEAD_DIM);
            model_put(&model, "blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj", f16, 0,
                      KV_HEADS * HEAD_DIM);
        }
        float fine = 1.0f + 0x1p-20f;
        char bytes[sizeof(fine)];
        Source *last = model_put(&model, is_llama ? "blk.0.attn_v.bias" : "output.weight",
                                 is_llama ? "model.layers.0.self_attn.v_proj" : "lm_head",
                                 is_llama ? f32 : f16, is_llama ? 0 : VOCAB,
                                 is_llama ? KV_HEADS * HEAD_DIM : HIDDEN);
        memcpy(bytes, &fine, sizeof(fine));
        if (is_llama) {
            memcpy(last->blocks.ptr, bytes, sizeof(fine));
            memcpy(model.gguf.data.ptr + model.gguf.data.len - last->blocks.len, bytes,
                   sizeof(fine));
        }
        Error err = {0};
        if (!place_import(&place, &model.gguf, NULL, &err))
            fail_msg("%s", err.message);
        compare_model(&place, &model, is_llama, 0);
        Document config;
        document_open(&config, &place, "config.json");
        expect_json(&config, "attention_bias", is_llama ? "true" : "absent");
        expect_json(&config, "head_dim", i == 1 ? "absent" : "64");
        document_close(&config);
        model_free(&model);
        place_remove(&place);
    }
}

/* Llama-3's scaling is recognised in its divisors; anything else in their place is refused. */
static void test_rope_divisors(void **state)
{
    (void)state;
    static const char *const formats[] = {"Q4_0"};
    for (int is_wrong = 0; is_wrong < 2; is_wrong++) {
        Place place;
        Model model;
        place_make(&place);
        model_init(&model);
        put_dims(&model.gguf, "llama", 1);
        put_byte_level_tokenizer(&model.gguf, "llama-bpe");
        model_put_ends(&model, "Q4_0", NULL);
        model_put_layer(&model, 0, formats, 1, false);
        Buffer divisors;
        buffer_init(&divisors, 1 << 12);
        for (int i = 0; i < HEAD_DIM / 2; i++) {
            double wavelength = 2 * 3.141592653589793 * pow(500000, 2.0 * i / HEAD_DIM);
            double smooth = (8192 / wavelength - 1) / 3;
            double divisor = wavelength < 2048   ? 1
                             : wavelength > 8192 ? 32
                                                 : 1 / ((1 - smooth) / 32 + smooth);
            put_f32(&divisors, (float)(is_wrong && i == 20 ? divisor * 1.1 : divisor));
        }
        gguf_put_tensor(&model.gguf, "rope_freqs.weight", 0, HEAD_DIM / 2, 0, divisors.ptr,
                        divisors.len);
        Error err = {0};
        assert_int_equal(place_import(&place, &model.gguf, NULL, &err), !is_wrong);
        if (is_wrong) {
            assert_int_equal(err.code, ERROR_UNSUPPORTED);
            assert_false(directory_exists(place.directory));
        } else {
            Document config;
            document_open(&config, &place, "config.json");
            expect_json(&config, "rope_scaling",
                        "{\"rope_type\":\"llama3\",\"factor\":32.0,\"low_freq_factor\":1.0,"
                        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}");
            document_close(&config);
        }
        buffer_reset(&divisors);
        model_free(&model);
        place_remove(&place);
    }
}

/* Scales that leave f16's range are kept in float32, exactly; infinite ones are refused. */
static void test_large_scales(void **state)
{
    (void)state;
    static const char *const formats[] = {"Q8_0"};
    for (int is_infinite = 0; is_infinite < 2; is_infinite++) {
        Place place;
        Model model;
        place_make(&place);
        model_init(&model);
        put_dims(&model.gguf, "qwen2", 1);
        put_byte_level_tokenizer(&model.gguf, "qwen2");
        model_put_layer(&model, 0, formats, 1, false);
        Source *embedding = model_put(&model, "token_embd.weight", "model.embed_tokens",
                                      format_named("Q8_0"), VOCAB, HIDDEN);
        model_put(&model, "output_norm.weight", "model.norm", format_named("F32"), 0, HIDDEN);
        /* The last block's scale, in the builder's data and in what is expected. */
        uint16_t half = is_infinite ? 0x7c00 : float_to_f16(1000);
        char bytes[2] = {(char)(half & 0xff), (char)(half >> 8)};
        size_t at = embedding->blocks.len - 34;
        memcpy(embedding->blocks.ptr + at, bytes, 2);
        Buffer *data = &model.gguf.data;
        size_t embedding_at = data->len - 1024 - (embedding->blocks.len + 31) / 32 * 32;
        memcpy(data->ptr + embedding_at + at, bytes, 2);
        Error err = {0};
        GgufImportReport report;
        bool ok = place_import(&place, &model.gguf, &report, &err);
        assert_int_equal(ok, !is_infinite);
        if (ok) {
            assert_int_equal(report.converted_tensors, 0);
            compare_model(&place, &model, false, 0);
        } else {
            assert_int_equal(err.code, ERROR_INVALID);
            assert_non_null(strstr(err.message, "token_embd.weight: a scale is not finite"));
        }
        model_free(&model);
        place_remove(&place);
    }
}

/* ---- Refusals -------------------------------------------------------------------------------- */

typedef enum Fault {
    FAULT_NONE,
    FAULT_ARCHITECTURE,
    FAULT_PRE_TOKENIZER,
    FAULT_TOKENIZER,
    FAULT_EXPERTS,
    FAULT_HEADS,
    FAULT_MISSING,
    FAULT_EXTRA,
    FAULT_LAYER,
    FAULT_TYPE,
    FAULT_NORM_SHAPE,
    FAULTS
} Fault;

static const struct {
    ErrorCode code;
    const char *message;
} fault_errors[FAULTS] = {
    [FAULT_NONE] = {ERROR_NONE, ""},
    [FAULT_ARCHITECTURE] =
        {ERROR_UNSUPPORTED,
         "architecture mamba cannot be imported; these can: llama, qwen2, qwen3, gemma3"},
    [FAULT_PRE_TOKENIZER] = {ERROR_UNSUPPORTED, "tokenizer.ggml.pre is falcon"},
    [FAULT_TOKENIZER] = {ERROR_UNSUPPORTED, "tokenizer.ggml.model is bert"},
    [FAULT_EXPERTS] = {ERROR_UNSUPPORTED, "mixtures of experts"},
    [FAULT_HEADS] = {ERROR_UNSUPPORTED, "rotated dimensions"},
    [FAULT_MISSING] = {ERROR_NOT_FOUND, "tensor output_norm.weight is missing"},
    [FAULT_EXTRA] = {ERROR_UNSUPPORTED, "blk.0.ssm_a.weight has no place in architecture llama"},
    [FAULT_LAYER] = {ERROR_UNSUPPORTED, "blk.1.attn_q.weight has no place"},
    [FAULT_TYPE] = {ERROR_UNSUPPORTED, "output.weight: blocks of type IQ2_XXS cannot be imported"},
    [FAULT_NORM_SHAPE] = {ERROR_INVALID, "output_norm.weight: expected a vector of floats"},
};

static void build_faulty(Model *model, Fault fault)
{
    static const char *const formats[] = {"Q4_1", "F16"};
    static const uint8_t zeros[VOCAB * 66];
    GgufBuilder *gguf = &model->gguf;
    put_dims(gguf, fault == FAULT_ARCHITECTURE ? "mamba" : "llama", 1);
    if (fault == FAULT_TOKENIZER)
        gguf_put_text(gguf, "tokenizer.ggml.model", "bert");
    else
        put_byte_level_tokenizer(gguf, fault == FAULT_PRE_TOKENIZER ? "falcon" : "gpt-2");
    if (fault == FAULT_EXPERTS)
        gguf_put_u32(gguf, "llama.expert_count", 8);
    if (fault == FAULT_HEADS)
        gguf_put_u32(gguf, "llama.rope.dimension_count", 32);
    model_put(model, "token_embd.weight", "model.embed_tokens", format_named("Q8_0"), VOCAB,
              HIDDEN);
    if (fault != FAULT_MISSING)
        model_put(model, "output_norm.weight", "model.norm", format_named("F32"),
                  fault == FAULT_NORM_SHAPE, HIDDEN);
    model_put_layer(model, 0, formats, 2, false);
    if (fault == FAULT_EXTRA)
        gguf_put_tensor(gguf, "blk.0.ssm_a.weight", 0, 8, 0, zeros, 32);
    if (fault == FAULT_LAYER)
        gguf_put_tensor(gguf, "blk.1.attn_q.weight", 0, 8, 0, zeros, 32);
    if (fault == FAULT_TYPE)
        gguf_put_tensor(gguf, "output.weight", 16, HIDDEN, VOCAB, zeros, VOCAB * 66);
}

static void test_refusals(void **state)
{
    (void)state;
    for (int fault = FAULT_NONE; fault < FAULTS; fault++) {
        Place place;
        Model model;
        place_make(&place);
        model_init(&model);
        build_faulty(&model, (Fault)fault);
        Error err = {0};
        bool ok = place_import(&place, &model.gguf, NULL, &err);
        if (ok != (fault == FAULT_NONE) || err.code != fault_errors[fault].code ||
            !strstr(err.message, fault_errors[fault].message))
            fail_msg("fault %d: %d %s", fault, (int)err.code, err.message);
        assert_int_equal(directory_exists(place.directory),
                         ok); /* refused before anything is written */
        model_free(&model);
        place_remove(&place);
    }
}

/* Each allocation fails once: an error, no leak, no config.json that would make half a model look
 * whole. */
static void test_failing_allocations(void **state)
{
    (void)state;
    Place place;
    Model model;
    place_make(&place);
    model_init(&model);
    build_faulty(&model, FAULT_NONE);
    Error err = {0};
    assert_true(place_import(&place, &model.gguf, NULL, &err));
    bool ok = false;
    for (uint64_t nth = 1; !ok; nth++) {
        place_clean(&place);
        err = (Error){0};
        fault_fail_allocation(nth);
        ok = gguf_import(place.gguf, place.directory, NULL, NULL, NULL, &err);
        bool was_reached = fault_allocation_count() >= nth;
        fault_fail_allocation(0);
        if (ok != !was_reached || err.code != (ok ? ERROR_NONE : ERROR_MEMORY))
            fail_msg("allocation %u: %d %s", (unsigned)nth, (int)err.code, err.message);
        char path[256];
        place_path(&place, "config.json", path);
        assert_int_equal(file_exists(path), ok);
    }
    model_free(&model);
    place_remove(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_format),
        cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_byte_level_tokenizer),
        cmocka_unit_test(test_norms_and_biases),
        cmocka_unit_test(test_rope_divisors),
        cmocka_unit_test(test_large_scales),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
