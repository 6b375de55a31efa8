/* Opening model directories: what is bound, and what is refused. A damaged directory is a fixture's
 * files with one text replaced in config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODELS TEST_DATA_DIR "/models/"

static void copy_file(const char *from_directory, const char *to_directory, const char *name,
                      const char *old, const char *new)
{
    char from[PATH_BYTES_MAX], to[PATH_BYTES_MAX];
    Error err = {0};
    Buffer text, changed;
    buffer_init(&text, 64 << 20);
    buffer_init(&changed, 64 << 20);
    assert_true(path_join(from, sizeof from, from_directory, name, &err));
    assert_true(path_join(to, sizeof to, to_directory, name, &err));
    assert_true(file_read(from, 64 << 20, &text, &err));
    Slice content = buffer_view(&text);
    if (old) {
        size_t at = slice_find(content, slice_of(old), 0);
        assert_true(at != SIZE_MAX);
        buffer_append(&changed, content.ptr, at);
        buffer_append_text(&changed, new);
        buffer_append(&changed, content.ptr + at + strlen(old), content.len - at - strlen(old));
        content = buffer_view(&changed);
    }
    assert_true(file_write(to, content, &err));
    buffer_reset(&changed);
    buffer_reset(&text);
}

/* Copies a fixture of one shard, with `old` in its config.json replaced; out is the new directory.
 */
static void make_directory(const char *fixture, const char *old, const char *new, char out[64])
{
    snprintf(out, 64, "/tmp/mlx-serve-model-XXXXXX");
    assert_non_null(mkdtemp(out));
    copy_file(fixture, out, "config.json", old, new);
    copy_file(fixture, out, "model.safetensors", NULL, NULL);
}

static void remove_directory(const char *directory)
{
    char path[PATH_BYTES_MAX];
    Error err = {0};
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        assert_true(path_join(path, sizeof path, directory, names[i], &err));
        unlink(path);
    }
    rmdir(directory);
}

static void refuse(const char *fixture, const char *old, const char *new, ErrorCode code,
                   const char *message)
{
    char directory[64];
    Model *model;
    Error err = {0};
    make_directory(fixture, old, new, directory);
    bool opened = model_open(directory, &model, &err);
    remove_directory(directory);
    if (opened)
        fail_msg("opened with %s", new);
    assert_null(model);
    if (err.code != code || !strstr(err.message, message))
        fail_msg("with %s: code %d \"%s\", expected code %d and \"%s\"", new, err.code, err.message,
                 code, message);
}

static void test_llama3(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "llama3-q4-g64", &model, &err));
    const ModelWeights *w = &model->weights;
    assert_int_equal(w->embedding.rows, 600);
    assert_int_equal(w->embedding.cols, 128);
    assert_true(model->config.tie_word_embeddings);
    assert_ptr_equal(w->head.weight, w->embedding.weight);
    assert_int_equal(w->layers[3].k.rows, 32);
    assert_int_equal(w->layers[3].down.cols, 320);
    assert_int_equal(w->layers[0].q.bits, 4);
    assert_null(w->layers[0].q_norm);
    assert_null(w->layers[0].post_mlp_norm);
    assert_int_equal(w->bytes, tensor_set_bytes(model->tensors));
    size_t layer = 128 * 128 * 2 + 32 * 128 * 2 + 320 * 128 * 3 + 2 * 128;
    assert_int_equal(w->parameter_count, 600 * 128 + 4 * layer + 128);
    assert_true(model_is_eos(&model->config, 597));
    model_close(model);
}

static void test_mixed_overrides(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "llama2-mixed-sharded", &model, &err));
    const LayerWeights *layers = model->weights.layers;
    assert_int_equal(layers[0].q.bits, 2);
    assert_int_equal(layers[1].o.group_size, 128);
    assert_int_equal(layers[2].down.mode, QUANT_NONE);
    assert_int_equal(model->weights.head.bits, 8);
    assert_false(model->config.tie_word_embeddings);
    model_close(model);
}

static void test_gemma_norms_and_prefix(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "gemma3-mm-q4-g64", &model, &err));
    const TensorView *stored = tensor_set_find(
        model->tensors, SLICE("language_model.model.layers.2.input_layernorm.weight"));
    assert_non_null(stored);
    float first;
    tensor_read_floats(stored, 0, 1, &first);
    assert_true(model->weights.layers[2].input_norm[0] == first + 1.0f);
    assert_non_null(model->weights.layers[2].post_mlp_norm);
    assert_non_null(model->weights.layers[2].k_norm);
    assert_int_equal(model->weights.layers[0].v.bits, 8);
    assert_int_equal(model->config.vocab_size, 660);
    assert_true(model->weights.bytes < tensor_set_bytes(model->tensors));
    model_close(model);
}

static void test_fused_projections(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "phi3-q4-g64", &model, &err));
    const LayerWeights *layer = &model->weights.layers[1];
    assert_ptr_equal(layer->q.weight, layer->v.weight);
    assert_int_equal(layer->k.first_row, 128);
    assert_int_equal(layer->v.first_row, 256);
    assert_int_equal(layer->up.first_row, 256);
    model_close(model);
}

static void test_refusals(void **state)
{
    (void)state;
    const char *llama = MODELS "llama3-q4-g64";
    refuse(llama, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5", ERROR_NOT_FOUND,
           "tensor model.layers.4.input_layernorm.weight: missing");
    refuse(llama, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3", ERROR_UNSUPPORTED,
           "tensor model.layers.3.");
    refuse(llama, "\"intermediate_size\": 320", "\"intermediate_size\": 256", ERROR_INVALID,
           "model.layers.0.mlp.gate_proj");
    refuse(llama, "\"vocab_size\": 600", "\"vocab_size\": 601", ERROR_INVALID,
           "model.embed_tokens");
    refuse(llama, "\"attention_bias\": false", "\"attention_bias\": true", ERROR_NOT_FOUND,
           "self_attn.q_proj.bias: missing, expected shape [128]");
    refuse(llama, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
           ERROR_NOT_FOUND, "lm_head");
    refuse(llama, "\"group_size\": 64",
           "\"model.layers.1.mlp.up_proj\": {\"bits\": 8, \"group_size\": 64}, \"group_size\": 64",
           ERROR_INVALID, "model.layers.1.mlp.up_proj");
    refuse(llama, "\"group_size\": 64", "\"model.layers.1.mlp.up_proj\": false, \"group_size\": 64",
           ERROR_INVALID, "model.layers.1.mlp.up_proj");
    refuse(llama, "\"group_size\": 64", "\"model.embed_tokens\": 4, \"group_size\": 64",
           ERROR_INVALID, "quantization of model.embed_tokens");
    refuse(llama, "\"model_type\": \"llama\"", "\"model_type\": \"rwkv\"", ERROR_UNSUPPORTED,
           "rwkv");
    refuse(MODELS "qwen3-q4-g32", "\"model_type\": \"qwen3\"", "\"model_type\": \"llama\"",
           ERROR_UNSUPPORTED, "k_norm.weight: not part of a llama model");
    refuse(MODELS "qwen3-moe-q4-g64", "\"num_experts\": 8", "\"num_experts\": 4", ERROR_INVALID,
           "mlp.gate");
}

/* The tensors decide about modules that config.json does not name, unless none is as it says. */
static void test_global_layout(void **state)
{
    (void)state;
    refuse(MODELS "llama3-q4-g64", "\"bits\": 4", "\"bits\": 8", ERROR_INVALID,
           "quantization says 8 bits, group_size 64, but no module is so: tensor "
           "model.embed_tokens.weight has 4 bits");
    refuse(MODELS "llama3-q4-g64", "\"group_size\": 64", "\"group_size\": 128", ERROR_INVALID,
           "group_size 128, but no module is so");
}

static void test_unused_tensors(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "mistral-window-q3", &model, &err));
    assert_int_equal(model->weights.n_skipped, 2); /* not the known lm_head and inv_freq */
    assert_int_equal(model->weights.skipped_bytes, (16 + 4) * 4);
    assert_true(
        slice_equal(model->weights.first_skipped->name, SLICE("vision_embedder.patch.bias")));
    model_close(model);
    assert_true(model_open(MODELS "gemma3-mm-q4-g64", &model, &err));
    assert_true(model->weights.n_skipped > 0);
    model_close(model);
    assert_true(model_open(MODELS "llama3-q4-g64", &model, &err));
    assert_int_equal(model->weights.n_skipped, 0);
    assert_null(model->weights.first_skipped);
    model_close(model);
}

static void test_experts_of_their_own(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "qwen3-moe-unstacked", &model, &err));
    const ModelConfig *c = &model->config;
    assert_false(c->layers[0].is_sparse || c->layers[2].is_sparse || c->layers[3].is_sparse);
    assert_true(c->layers[1].is_sparse && !c->norm_topk_prob);
    const WeightMatrix *up = &model->weights.layers[1].expert_up;
    assert_int_equal(up->n_experts, 4);
    assert_int_equal(weight_matrix_bytes(up), 4 * 32 * 64 * 2);
    assert_int_equal(model->weights.bytes, tensor_set_bytes(model->tensors));
    float through[64], direct[64];
    const TensorView *third =
        tensor_set_find(model->tensors, SLICE("model.layers.1.mlp.experts.3.up_proj.weight"));
    tensor_read_floats(third, 5 * 64, 64, direct);
    weight_matrix_read_row(up, 3, 5, through);
    assert_memory_equal(through, direct, sizeof direct);
    model_close(model);
    refuse(MODELS "qwen3-moe-unstacked", "\"num_experts\": 4", "\"num_experts\": 5", ERROR_INVALID,
           "model.layers.1.mlp.gate.weight: shape [4, 64], expected [5, 64]");
}

static void test_tokenizers_eos(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_true(model_open(MODELS "mistral-window-q3", &model, &err));
    assert_int_equal(model->config.n_eos_token_ids, 1);
    assert_true(model_add_eos(model, -1, &err) && model_add_eos(model, 2, &err));
    assert_int_equal(model->config.n_eos_token_ids, 1);
    assert_true(model_add_eos(model, 9, &err));
    assert_true(model_is_eos(&model->config, 2) && model_is_eos(&model->config, 9));
    for (int32_t id = 20; model->config.n_eos_token_ids < MODEL_EOS_MAX; id++)
        assert_true(model_add_eos(model, id, &err));
    assert_false(model_add_eos(model, 150, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    model_close(model);
}

/* tie_word_embeddings absent: the tensors decide. */
static void test_tie_by_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *fixture, *key;
        bool tied;
    } cases[] = {{MODELS "llama3-q4-g64", "\"tie_word_embeddings\": true,", true},
                 {MODELS "mistral-q8-g64", "\"tie_word_embeddings\": false,", false}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char directory[64];
        Model *model;
        Error err = {0};
        make_directory(cases[i].fixture, cases[i].key, "", directory);
        bool opened = model_open(directory, &model, &err);
        remove_directory(directory);
        assert_true(opened);
        assert_int_equal(model->config.tie_word_embeddings, cases[i].tied);
        model_close(model);
    }
}

static void test_no_directory(void **state)
{
    (void)state;
    Model *model;
    Error err = {0};
    assert_false(model_open("/nonexistent/model", &model, &err));
    assert_null(model);
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    assert_non_null(strstr(err.message, "config.json"));
}

static const char random_config[] =
    "{\"model_type\": \"qwen3_moe\", \"hidden_size\": 64, \"intermediate_size\": 128, "
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"head_dim\": 32, \"vocab_size\": 100, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000, "
    "\"num_experts\": 4, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 96, "
    "\"tie_word_embeddings\": false}";

static void test_random_weights(void **state)
{
    (void)state;
    Error err = {0};
    Model *model;
    assert_true(model_create_random(slice_of(random_config), 4, 32, &model, &err));
    const LayerWeights *layer = &model->weights.layers[1];
    assert_int_equal(layer->q.rows, 128);
    assert_int_equal(layer->expert_down.n_experts, 4);
    assert_int_equal(layer->expert_down.rows, 64);
    assert_int_equal(layer->expert_down.cols, 96);
    assert_int_equal(layer->k.bits, 4);
    assert_true(model->weights.head.weight != model->weights.embedding.weight);
    assert_true(layer->q_norm[31] == 1.0f && model->weights.final_norm[63] == 1.0f);
    assert_int_equal(model->weights.bytes, tensor_set_bytes(model->tensors));
    model_close(model);

    assert_false(model_create_random(slice_of(random_config), 4, 128, &model, &err));
    assert_null(model);
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    assert_false(model_create_random(SLICE("{\"model_type\": 5}"), 4, 64, &model, &err));
    model = NULL;
    for (uint64_t nth = 1; !model; nth++) {
        Error failed = {0};
        fault_fail_allocation(nth);
        bool made = model_create_random(slice_of(random_config), 4, 32, &model, &failed);
        fault_fail_allocation(0);
        assert_int_equal(made, model != NULL);
        if (!made)
            assert_int_equal(failed.code, ERROR_MEMORY);
        assert_true(nth < 10000);
    }
    model_close(model);
}

static void test_no_memory(void **state)
{
    (void)state;
    static const char *const models[] = {MODELS "llama3-q4-g64", MODELS "qwen3-moe-q4-g64",
                                         MODELS "qwen3-moe-unstacked"};
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        Model *model = NULL;
        for (uint64_t nth = 1; !model; nth++) {
            Error err = {0};
            fault_fail_allocation(nth);
            bool opened = model_open(models[i], &model, &err);
            fault_fail_allocation(0);
            assert_int_equal(opened, model != NULL);
            if (!opened)
                assert_int_equal(err.code, ERROR_MEMORY);
            assert_true(nth < 10000);
        }
        model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_mixed_overrides),
        cmocka_unit_test(test_gemma_norms_and_prefix),
        cmocka_unit_test(test_fused_projections),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_global_layout),
        cmocka_unit_test(test_unused_tensors),
        cmocka_unit_test(test_experts_of_their_own),
        cmocka_unit_test(test_tokenizers_eos),
        cmocka_unit_test(test_tie_by_tensors),
        cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_no_directory),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
