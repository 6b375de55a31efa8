#include "gguf_import_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* cmocka needs what is above */
#include <cmocka.h>

/* ---- A place for files ----------------------------------------------------------------------- */

static const char *const written_names[] = {"config.json", "generation_config.json",
                                            "tokenizer.json", "tokenizer_config.json",
                                            "model.safetensors"};

void place_make(Place *place)
{
    snprintf(place->root, sizeof(place->root), "/tmp/mlx-serve-test-XXXXXX");
    assert_non_null(mkdtemp(place->root));
    snprintf(place->gguf, sizeof(place->gguf), "%s/m.gguf", place->root);
    snprintf(place->directory, sizeof(place->directory), "%s/out", place->root);
}

void place_path(const Place *place, const char *name, char path[256])
{
    snprintf(path, 256, "%s/%s", place->directory, name);
}

void place_clean(const Place *place)
{
    char path[256];
    for (size_t i = 0; i < ARRAY_COUNT(written_names); i++) {
        place_path(place, written_names[i], path);
        unlink(path);
    }
}

void place_remove(const Place *place)
{
    place_clean(place);
    if (directory_exists(place->directory))
        assert_int_equal(rmdir(place->directory), 0);
    unlink(place->gguf);
    assert_int_equal(rmdir(place->root), 0);
}

bool place_import(const Place *place, const GgufBuilder *gguf, GgufImportReport *report, Error *err)
{
    Buffer image;
    buffer_init(&image, (size_t)1 << 26);
    gguf_finish(gguf, &image);
    Error write_err = {0};
    if (!file_write(place->gguf, buffer_view(&image), &write_err))
        fail_msg("%s", write_err.message);
    buffer_reset(&image);
    return gguf_import(place->gguf, place->directory, NULL, NULL, report, err);
}

/* ---- Models ---------------------------------------------------------------------------------- */

static const char *const tokens[VOCAB] = {"<|end|>", "<s>",      "a",       "b",
                                          "ab",      "\xc4\xa0", "c",       "\xc4\xa0\x61",
                                          "abc",     "d",        "<think>", "[PAD11]"};
static const int32_t token_types[VOCAB] = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 4, 5};
static const char *const merges[] = {"a b", "\xc4\xa0 a", "ab c"};

void put_byte_level_tokenizer(GgufBuilder *gguf, const char *pre)
{
    gguf_put_text(gguf, "tokenizer.ggml.model", "gpt2");
    gguf_put_text(gguf, "tokenizer.ggml.pre", pre);
    gguf_put_texts(gguf, "tokenizer.ggml.tokens", tokens, VOCAB);
    gguf_put_i32s(gguf, "tokenizer.ggml.token_type", token_types, VOCAB);
    gguf_put_texts(gguf, "tokenizer.ggml.merges", merges, ARRAY_COUNT(merges));
    gguf_put_u32(gguf, "tokenizer.ggml.bos_token_id", 1);
    gguf_put_u32(gguf, "tokenizer.ggml.eos_token_id", 0);
    gguf_put_u32(gguf, "tokenizer.ggml.eot_token_id", 10);
    gguf_put_text(gguf, "tokenizer.chat_template", "{{ messages[0]['content'] }}\n");
}

void put_dim(GgufBuilder *gguf, const char *architecture, const char *suffix, uint32_t value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", architecture, suffix);
    gguf_put_u32(gguf, key, value);
}

void put_dims(GgufBuilder *gguf, const char *architecture, uint32_t layers)
{
    char key[128];
    gguf_put_text(gguf, "general.architecture", architecture);
    put_dim(gguf, architecture, "block_count", layers);
    put_dim(gguf, architecture, "embedding_length", HIDDEN);
    put_dim(gguf, architecture, "attention.head_count", HEADS);
    put_dim(gguf, architecture, "attention.head_count_kv", KV_HEADS);
    put_dim(gguf, architecture, "feed_forward_length", HIDDEN);
    put_dim(gguf, architecture, "context_length", 131072);
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", architecture);
    gguf_put_f32(gguf, key, 1e-5f);
    snprintf(key, sizeof(key), "%s.rope.freq_base", architecture);
    gguf_put_f32(gguf, key, 500000.0f);
}

const BlockFormat *format_named(const char *name)
{
    for (size_t i = 0; i < n_block_formats; i++) {
        if (strcmp(block_formats[i].name, name) == 0)
            return &block_formats[i];
    }
    fail_msg("no format %s", name);
    return NULL;
}

void model_init(Model *model)
{
    *model = (Model){.noise = 12345};
    gguf_init(&model->gguf);
}

void model_free(Model *model)
{
    for (size_t i = 0; i < model->count; i++)
        buffer_reset(&model->sources[i].blocks);
    gguf_free(&model->gguf);
}

Source *model_put(Model *model, const char *gguf, const char *mlx, const BlockFormat *format,
                  size_t rows, size_t cols)
{
    assert_true(model->count < ARRAY_COUNT(model->sources));
    Source *source = &model->sources[model->count++];
    *source = (Source){.format = format, .rows = rows, .cols = cols};
    snprintf(source->gguf, sizeof(source->gguf), "%s", gguf);
    snprintf(source->mlx, sizeof(source->mlx), "%s", mlx);
    buffer_init(&source->blocks, (size_t)1 << 24);
    put_random_blocks(&source->blocks, format, (rows ? rows : 1) * cols, &model->noise);
    gguf_put_tensor(&model->gguf, gguf, format->id, cols, rows, source->blocks.ptr,
                    source->blocks.len);
    return source;
}

void model_put_layer(Model *model, unsigned layer, const char *const *formats, size_t n_formats,
                     bool is_gemma)
{
    static const struct {
        const char *gguf, *mlx, *gemma;
        size_t rows;
    } tensors[] = {
        {"attn_q", "self_attn.q_proj", NULL, HEADS * HEAD_DIM},
        {"attn_k", "self_attn.k_proj", NULL, KV_HEADS * HEAD_DIM},
        {"attn_v", "self_attn.v_proj", NULL, KV_HEADS * HEAD_DIM},
        {"attn_output", "self_attn.o_proj", NULL, HIDDEN},
        {"ffn_gate", "mlp.gate_proj", NULL, HIDDEN},
        {"ffn_up", "mlp.up_proj", NULL, HIDDEN},
        {"ffn_down", "mlp.down_proj", NULL, HIDDEN},
        {"attn_norm", "input_layernorm", NULL, 0},
        {"ffn_norm", "post_attention_layernorm", "pre_feedforward_layernorm", 0},
        {"post_attention_norm", NULL, "post_attention_layernorm", 0},
        {"post_ffw_norm", NULL, "post_feedforward_layernorm", 0},
        {"attn_q_norm", NULL, "self_attn.q_norm", 0},
        {"attn_k_norm", NULL, "self_attn.k_norm", 0},
    };
    size_t next = layer * 7;
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        const char *mlx = is_gemma && tensors[i].gemma ? tensors[i].gemma : tensors[i].mlx;
        if (!mlx)
            continue;
        char gguf_name[64], mlx_name[96];
        snprintf(gguf_name, sizeof(gguf_name), "blk.%u.%s.weight", layer, tensors[i].gguf);
        snprintf(mlx_name, sizeof(mlx_name), "model.layers.%u.%s", layer, mlx);
        bool is_head_norm = strstr(mlx, "_norm") != NULL;
        const char *format = tensors[i].rows ? formats[next++ % n_formats] : "F32";
        model_put(model, gguf_name, mlx_name, format_named(format), tensors[i].rows,
                  is_head_norm ? HEAD_DIM : HIDDEN);
    }
}

void model_put_ends(Model *model, const char *embedding, const char *head)
{
    model_put(model, "token_embd.weight", "model.embed_tokens", format_named(embedding), VOCAB,
              HIDDEN);
    model_put(model, "output_norm.weight", "model.norm", format_named("F32"), 0, HIDDEN);
    if (head)
        model_put(model, "output.weight", "lm_head", format_named(head), VOCAB, HIDDEN);
}

/* ---- Comparison ------------------------------------------------------------------------------ */

/* Where row r of the MLX tensor is in a llama GGUF: pairs (i, i + half) were made neighbours. */
static size_t gguf_row(const Source *source, size_t r, bool is_llama)
{
    bool is_permuted = strstr(source->mlx, "q_proj") || strstr(source->mlx, "k_proj");
    if (!is_llama || !is_permuted)
        return r;
    size_t head = r / HEAD_DIM, i = r % HEAD_DIM;
    return head * HEAD_DIM + (i < HEAD_DIM / 2 ? 2 * i : 2 * (i - HEAD_DIM / 2) + 1);
}

static void compare_vector(const TensorSet *set, const Source *source, bool is_llama, float shift)
{
    char name[128];
    bool is_bias = strstr(source->gguf, ".bias") != NULL;
    snprintf(name, sizeof(name), "%s.%s", source->mlx, is_bias ? "bias" : "weight");
    const TensorView *view = tensor_set_find(set, slice_of(name));
    assert_non_null(view);
    assert_true(view->n_dims == 1 && (size_t)view->shape[0] == source->cols);
    float found[HIDDEN], expected[HIDDEN];
    tensor_read_floats(view, 0, source->cols, found);
    read_blocks(source->format, (const uint8_t *)source->blocks.ptr, source->cols, expected);
    for (size_t i = 0; i < source->cols; i++) {
        float value = expected[gguf_row(source, i, is_llama)] - shift;
        if (found[i] != value)
            fail_msg("%s[%zu]: %a, expected %a", name, i, (double)found[i], (double)value);
    }
}

/* Sum of squared errors and squares of one row. */
static void compare_row(const WeightMatrix *matrix, const Source *source, size_t r, size_t from,
                        double *error, double *energy)
{
    float found[HIDDEN], expected[HIDDEN];
    size_t row_bytes = source->cols / source->format->values * source->format->bytes;
    weight_matrix_read_row(matrix, 0, r, found);
    read_blocks(source->format, (const uint8_t *)source->blocks.ptr + from * row_bytes,
                source->cols, expected);
    for (size_t i = 0; i < source->cols; i++) {
        double difference = (double)found[i] - (double)expected[i];
        if (source->format->is_exact && difference != 0)
            fail_msg("%s (%s) row %zu value %zu: %a, expected %a", source->mlx,
                     source->format->name, r, i, (double)found[i], (double)expected[i]);
        *error += difference * difference;
        *energy += (double)expected[i] * (double)expected[i];
    }
}

static void compare_matrix(const TensorSet *set, const Source *source, bool is_llama)
{
    Error err = {0};
    WeightMatrix matrix;
    if (!weight_matrix_bind(set, source->mlx, 1, source->rows, source->cols, NULL, &matrix, &err))
        fail_msg("%s", err.message);
    assert_int_equal(matrix.bits, source->format->bits);
    assert_int_equal(matrix.group_size, source->format->bits ? 32 : 0);
    double error = 0, energy = 0;
    for (size_t r = 0; r < source->rows; r++)
        compare_row(&matrix, source, r, gguf_row(source, r, is_llama), &error, &energy);
    double relative = sqrt(error / energy);
    if (relative > source->format->error_max)
        fail_msg("%s (%s): relative error %g", source->mlx, source->format->name, relative);
}

void compare_model(const Place *place, const Model *model, bool is_llama, float norm_shift)
{
    Error err = {0};
    TensorSet *set;
    if (!tensor_set_open(place->directory, &set, &err))
        fail_msg("%s", err.message);
    size_t n_tensors = 0;
    for (size_t i = 0; i < model->count; i++) {
        const Source *source = &model->sources[i];
        n_tensors += source->format->bits ? 3 : 1;
        if (source->rows)
            compare_matrix(set, source, is_llama);
        else
            compare_vector(set, source, is_llama, norm_shift);
    }
    assert_int_equal(tensor_set_count(set), n_tensors);
    tensor_set_close(set);
}

/* ---- Reading what was written ---------------------------------------------------------------- */

void document_open(Document *document, const Place *place, const char *name)
{
    char path[256];
    Error err = {0};
    place_path(place, name, path);
    buffer_init(&document->text, (size_t)1 << 24);
    arena_init(&document->arena, (size_t)1 << 26);
    if (!file_read(path, (size_t)1 << 24, &document->text, &err) ||
        !json_parse(buffer_view(&document->text), &document->arena, &document->root, &err))
        fail_msg("%s", err.message);
}

void document_close(Document *document)
{
    arena_reset(&document->arena);
    buffer_reset(&document->text);
}

void expect_json(const Document *document, const char *path, const char *expected)
{
    const JsonValue *value = document->root;
    char part[128];
    for (const char *at = path; *at;) {
        size_t len = strcspn(at, "/");
        snprintf(part, sizeof(part), "%.*s", (int)len, at);
        if (json_is(value, JSON_ARRAY)) {
            size_t index = strtoul(part, NULL, 10);
            value = index < value->as.array.count ? &value->as.array.items[index] : NULL;
        } else {
            value = json_get(value, slice_of(part));
        }
        at += len + (at[len] == '/');
    }
    Buffer text;
    buffer_init(&text, 1 << 20);
    if (value) {
        JsonWriter writer;
        json_writer_init(&writer, &text, 0);
        json_write_value(&writer, value);
    } else {
        buffer_append_text(&text, "absent");
    }
    if (!slice_equal(buffer_view(&text), slice_of(expected)))
        fail_msg("%s: %.*s, expected %s", path, (int)text.len, text.ptr, expected);
    buffer_reset(&text);
}
