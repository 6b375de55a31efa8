/* Import from end to end: tiny GGUF models made here, written as MLX directories, read back through
 * the room's own reader and compared with a dequantisation of the GGUF blocks written apart. */
#include "gguf_reference.h"

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

enum { HIDDEN = 256, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, VOCAB = 12 };

/* ---- A place for files ----------------------------------------------------------------------- */

static const char *const written_names[] = {"config.json", "generation_config.json",
                                            "tokenizer.json", "tokenizer_config.json",
                                            "model.safetensors"};

typedef struct Place {
    char root[64], gguf[96], directory[96];
} Place;

static void place_make(Place *place)
{
    snprintf(place->root, sizeof(place->root), "/tmp/mlx-serve-test-XXXXXX");
    assert_non_null(mkdtemp(place->root));
    snprintf(place->gguf, sizeof(place->gguf), "%s/m.gguf", place->root);
    snprintf(place->directory, sizeof(place->directory), "%s/out", place->root);
}

static void place_path(const Place *place, const char *name, char path[256])
{
    snprintf(path, 256, "%s/%s", place->directory, name);
}

static void place_clean(const Place *place)
{
    char path[256];
    for (size_t i = 0; i < ARRAY_COUNT(written_names); i++) {
        place_path(place, written_names[i], path);
        unlink(path);
    }
}

/* Fails when anything unexpected was left behind. */
static void place_remove(const Place *place)
{
    place_clean(place);
    if (directory_exists(place->directory))
        assert_int_equal(rmdir(place->directory), 0);
    unlink(place->gguf);
    assert_int_equal(rmdir(place->root), 0);
}

static bool place_import(const Place *place, const GgufBuilder *gguf, GgufImportReport *report,
                         Error *err)
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

static void put_byte_level_tokenizer(GgufBuilder *gguf, const char *pre)
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

static void put_dim(GgufBuilder *gguf, const char *architecture, const char *suffix, uint32_t value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", architecture, suffix);
    gguf_put_u32(gguf, key, value);
}

static void put_dims(GgufBuilder *gguf, const char *architecture, uint32_t layers)
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

/* A tensor of the model, as it is in the GGUF file. */
typedef struct Source {
    char gguf[64], mlx[96];
    const BlockFormat *format;
    size_t rows, cols; /* rows 0: a vector */
    Buffer blocks;
} Source;

typedef struct Model {
    GgufBuilder gguf;
    Source sources[64];
    size_t count;
    uint32_t noise;
} Model;

static const BlockFormat *format_named(const char *name)
{
    for (size_t i = 0; i < n_block_formats; i++) {
        if (strcmp(block_formats[i].name, name) == 0)
            return &block_formats[i];
    }
    fail_msg("no format %s", name);
    return NULL;
}

static void model_init(Model *model)
{
    *model = (Model){.noise = 12345};
    gguf_init(&model->gguf);
}

static void model_free(Model *model)
{
    for (size_t i = 0; i < model->count; i++)
        buffer_reset(&model->sources[i].blocks);
    gguf_free(&model->gguf);
}

static Source *model_put(Model *model, const char *gguf, const char *mlx, const BlockFormat *format,
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

/* One layer's matrices and norms, formats taken in turn from `formats`. */
static void model_put_layer(Model *model, unsigned layer, const char *const *formats,
                            size_t n_formats, bool is_gemma)
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

static void model_put_ends(Model *model, const char *embedding, const char *head)
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

static void compare_model(const Place *place, const Model *model, bool is_llama, float norm_shift)
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

typedef struct Document {
    Buffer text;
    Arena arena;
    const JsonValue *root;
} Document;

static void document_open(Document *document, const Place *place, const char *name)
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

static void document_close(Document *document)
{
    arena_reset(&document->arena);
    buffer_reset(&document->text);
}

/* The value at a path of keys and indices, as compact JSON, compared as text. */
static void expect_json(const Document *document, const char *path, const char *expected)
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

/* ---- Tests ----------------------------------------------------------------------------------- */

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
