/* GGUF's vocabulary to tokenizer.json and tokenizer_config.json.
 *
 * GGUF keeps tokens, types and either merges (model "gpt2": byte-level BPE) or scores (model
 * "llama": SentencePiece), but not the normaliser, pre-tokeniser and decoder. Those follow from the
 * model and, for byte-level ones, from the name in tokenizer.ggml.pre: a table below; an unknown
 * name is refused, since guessing would give other token ids without a sign of it. */
#include "gguf.h"

#include <string.h>

enum { TOKENS_MAX = 1 << 22 };
static const size_t tokenizer_arena_max = (size_t)2 << 30;

#define SPACE_MARK "\xe2\x96\x81" /* U+2581 */

/* ---- Byte-level pre-tokenisers --------------------------------------------------------------- */

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SPLIT_QWEN2                                                                                \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" TAIL
#define SPLIT_LLAMA3                                                                               \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" TAIL
#define SPLIT_QWEN35                                                                               \
    CONTRACTIONS                                                                                   \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" TAIL
#define SPLIT_TEKKEN                                                                               \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"    \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"   \
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" TAIL

typedef struct PreTokenizer {
    const char *name;
    const char *split; /* a regex before ByteLevel; NULL: ByteLevel's own (GPT-2's) */
    bool has_digits;   /* single digits are split off first */
    bool has_nfc;
    bool ignores_merges;
    bool adds_bos; /* unless tokenizer.ggml.add_bos_token says otherwise */
} PreTokenizer;

static const PreTokenizer pre_tokenizers[] = {
    {"gpt-2", NULL, false, false, false, false},
    {"smollm", NULL, true, false, false, false},
    {"starcoder", NULL, true, false, false, false},
    {"refact", NULL, true, false, false, false},
    {"command-r", NULL, true, false, false, false},
    {"llama-bpe", SPLIT_LLAMA3, false, false, true, true},
    {"llama3", SPLIT_LLAMA3, false, false, true, true},
    {"llama-v3", SPLIT_LLAMA3, false, false, true, true},
    {"tekken", SPLIT_TEKKEN, false, false, true, true},
    {"qwen2", SPLIT_QWEN2, false, true, false, false},
    {"deepseek-r1-qwen", SPLIT_QWEN2, false, true, false, false},
    {"qwen35", SPLIT_QWEN35, false, false, false, false},
};

static bool find_pre_tokenizer(const GgufFile *file, const PreTokenizer **out, Error *err)
{
    Slice name = SLICE("default");
    if (!gguf_read_string(file, "tokenizer.ggml.pre", GGUF_OPTIONAL, &name, err))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(pre_tokenizers); i++) {
        if (slice_equal(name, slice_of(pre_tokenizers[i].name))) {
            *out = &pre_tokenizers[i];
            return true;
        }
    }
    return error_set(err, ERROR_UNSUPPORTED,
                     "%s: tokenizer.ggml.pre is %.*s, a pre-tokenizer that cannot be imported",
                     file->name, SLICE_ARG(name));
}

/* ---- Writing helpers ------------------------------------------------------------------------- */

static void write_text_field(JsonWriter *w, const char *key, const char *text)
{
    json_write_key(w, key);
    json_write_text(w, text);
}

static void write_bool_field(JsonWriter *w, const char *key, bool value)
{
    json_write_key(w, key);
    json_write_bool(w, value);
}

static void write_null_field(JsonWriter *w, const char *key)
{
    json_write_key(w, key);
    json_write_null(w);
}

static void begin_typed(JsonWriter *w, const char *type)
{
    json_write_object_begin(w);
    write_text_field(w, "type", type);
}

static void begin_sequence(JsonWriter *w, const char *list)
{
    begin_typed(w, "Sequence");
    json_write_key(w, list);
    json_write_array_begin(w);
}

static void end_sequence(JsonWriter *w)
{
    json_write_array_end(w);
    json_write_object_end(w);
}

static void write_pattern(JsonWriter *w, const char *kind, const char *text)
{
    json_write_key(w, "pattern");
    json_write_object_begin(w);
    write_text_field(w, kind, text);
    json_write_object_end(w);
}

static void write_byte_level(JsonWriter *w, bool use_regex)
{
    begin_typed(w, "ByteLevel");
    write_bool_field(w, "add_prefix_space", false);
    write_bool_field(w, "trim_offsets", true);
    write_bool_field(w, "use_regex", use_regex);
    json_write_object_end(w);
}

static void write_replace(JsonWriter *w, const char *from, const char *to)
{
    begin_typed(w, "Replace");
    write_pattern(w, "String", from);
    write_text_field(w, "content", to);
    json_write_object_end(w);
}

/* ---- The stages around the model ------------------------------------------------------------- */

static void write_byte_level_stages(const PreTokenizer *pre, JsonWriter *w)
{
    json_write_key(w, "normalizer");
    if (pre->has_nfc) {
        begin_typed(w, "NFC");
        json_write_object_end(w);
    } else {
        json_write_null(w);
    }
    json_write_key(w, "pre_tokenizer");
    begin_sequence(w, "pretokenizers");
    if (pre->has_digits) {
        begin_typed(w, "Digits");
        write_bool_field(w, "individual_digits", true);
        json_write_object_end(w);
    }
    if (pre->split) {
        begin_typed(w, "Split");
        write_pattern(w, "Regex", pre->split);
        write_text_field(w, "behavior", "Isolated");
        write_bool_field(w, "invert", false);
        json_write_object_end(w);
    }
    write_byte_level(w, pre->split == NULL);
    end_sequence(w);
    json_write_key(w, "decoder");
    write_byte_level(w, pre->split == NULL);
}

/* has_prefix: a space is put before the text, and the decoder takes it away. */
static void write_spm_stages(bool has_prefix, JsonWriter *w)
{
    json_write_key(w, "normalizer");
    if (has_prefix) {
        begin_sequence(w, "normalizers");
        begin_typed(w, "Prepend");
        write_text_field(w, "prepend", SPACE_MARK);
        json_write_object_end(w);
    }
    write_replace(w, " ", SPACE_MARK);
    if (has_prefix)
        end_sequence(w);
    write_null_field(w, "pre_tokenizer");
    json_write_key(w, "decoder");
    begin_sequence(w, "decoders");
    write_replace(w, SPACE_MARK, " ");
    begin_typed(w, "ByteFallback");
    json_write_object_end(w);
    begin_typed(w, "Fuse");
    json_write_object_end(w);
    if (has_prefix) {
        begin_typed(w, "Strip");
        write_text_field(w, "content", " ");
        json_write_key(w, "start");
        json_write_int(w, 1);
        json_write_key(w, "stop");
        json_write_int(w, 0);
        json_write_object_end(w);
    }
    end_sequence(w);
}

static void write_template_piece(JsonWriter *w, const char *kind, Slice id, int64_t type_id)
{
    json_write_object_begin(w);
    json_write_key(w, kind);
    json_write_object_begin(w);
    json_write_key(w, "id");
    json_write_string(w, id);
    json_write_key(w, "type_id");
    json_write_int(w, type_id);
    json_write_object_end(w);
    json_write_object_end(w);
}

/* BOS before the text, when the tokenizer adds one. */
static void write_post_processor(const GgufVocabulary *v, JsonWriter *w)
{
    json_write_key(w, "post_processor");
    if (!v->adds_bos || v->bos >= v->count) {
        json_write_null(w);
        return;
    }
    Slice bos = v->tokens[v->bos];
    begin_typed(w, "TemplateProcessing");
    json_write_key(w, "single");
    json_write_array_begin(w);
    write_template_piece(w, "SpecialToken", bos, 0);
    write_template_piece(w, "Sequence", SLICE("A"), 0);
    json_write_array_end(w);
    json_write_key(w, "pair");
    json_write_array_begin(w);
    write_template_piece(w, "SpecialToken", bos, 0);
    write_template_piece(w, "Sequence", SLICE("A"), 0);
    write_template_piece(w, "SpecialToken", bos, 1);
    write_template_piece(w, "Sequence", SLICE("B"), 1);
    json_write_array_end(w);
    json_write_key(w, "special_tokens");
    json_write_object_begin(w);
    json_write_key_slice(w, bos);
    json_write_object_begin(w);
    json_write_key(w, "id");
    json_write_string(w, bos);
    json_write_key(w, "ids");
    json_write_array_begin(w);
    json_write_uint(w, v->bos);
    json_write_array_end(w);
    json_write_key(w, "tokens");
    json_write_array_begin(w);
    json_write_string(w, bos);
    json_write_array_end(w);
    json_write_object_end(w);
    json_write_object_end(w);
    json_write_object_end(w);
}

/* ---- Vocabulary ---- */

static bool is_added(const GgufVocabulary *v, size_t id)
{
    int64_t type = v->types[id];
    return type == GGUF_TOKEN_UNKNOWN || type == GGUF_TOKEN_CONTROL ||
           type == GGUF_TOKEN_USER_DEFINED;
}

static void write_added_token_fields(const GgufVocabulary *v, size_t id, JsonWriter *w)
{
    json_write_key(w, "content");
    json_write_string(w, v->tokens[id]);
    write_bool_field(w, "single_word", false);
    write_bool_field(w, "lstrip", false);
    write_bool_field(w, "rstrip", false);
    write_bool_field(w, "normalized", false);
    write_bool_field(w, "special", v->types[id] != GGUF_TOKEN_USER_DEFINED);
}

static void write_added_tokens(const GgufVocabulary *v, JsonWriter *w)
{
    json_write_key(w, "added_tokens");
    json_write_array_begin(w);
    for (size_t i = 0; i < v->count; i++) {
        if (!is_added(v, i))
            continue;
        json_write_object_begin(w);
        json_write_key(w, "id");
        json_write_uint(w, i);
        write_added_token_fields(v, i, w);
        json_write_object_end(w);
    }
    json_write_array_end(w);
}

static void write_vocab(const GgufVocabulary *v, JsonWriter *w)
{
    json_write_key(w, "vocab");
    json_write_object_begin(w);
    for (size_t i = 0; i < v->count; i++) {
        /* Byte-level models pad their matrices with unused rows, which are no tokens. */
        if (!v->is_spm && v->types[i] == GGUF_TOKEN_UNUSED)
            continue;
        json_write_key_slice(w, v->tokens[i]);
        json_write_uint(w, i);
    }
    json_write_object_end(w);
}

void gguf_write_merge(JsonWriter *w, Slice left, Slice right)
{
    json_write_array_begin(w);
    json_write_string(w, left);
    json_write_string(w, right);
    json_write_array_end(w);
}

/* "left right"; a part may itself begin with a space, hence the search from the second byte. */
static bool write_stored_merges(const GgufVocabulary *v, JsonWriter *w)
{
    const Slice *merges;
    size_t count;
    if (!gguf_read_strings(v->file, "tokenizer.ggml.merges", v->arena, &merges, &count, v->err))
        return false;
    if (!merges)
        return error_set(v->err, ERROR_NOT_FOUND, "%s: key tokenizer.ggml.merges is missing",
                         v->file->name);
    json_write_array_begin(w);
    for (size_t i = 0; i < count; i++) {
        size_t space = slice_find(merges[i], SLICE(" "), 1);
        if (space == SIZE_MAX || space + 1 >= merges[i].len)
            return error_set(v->err, ERROR_INVALID,
                             "%s: tokenizer.ggml.merges: item %zu is not two tokens", v->file->name,
                             i);
        gguf_write_merge(w, (Slice){merges[i].ptr, space},
                         (Slice){merges[i].ptr + space + 1, merges[i].len - space - 1});
    }
    json_write_array_end(w);
    return true;
}

/* ---- Reading the vocabulary ------------------------------------------------------------------ */

static bool fail_count(const GgufVocabulary *v, const char *key, size_t found)
{
    return error_set(v->err, ERROR_INVALID,
                     "%s: key %s: %zu items, expected one for each of %zu tokens", v->file->name,
                     key, found, v->count);
}

static bool read_types(GgufVocabulary *v)
{
    const char *key = "tokenizer.ggml.token_type";
    size_t count;
    if (!gguf_read_int_array(v->file, key, v->arena, &v->types, &count, v->err))
        return false;
    if (v->types)
        return count == v->count || fail_count(v, key, count);
    int64_t *types = arena_allocate_array(v->arena, v->count + 1, sizeof(*types));
    if (!types)
        return error_no_memory(v->err, "token types");
    for (size_t i = 0; i < v->count; i++)
        types[i] = GGUF_TOKEN_NORMAL;
    v->types = types;
    return true;
}

static bool read_special_ids(GgufVocabulary *v)
{
    const struct {
        const char *key;
        uint64_t *id;
    } ids[] = {{"tokenizer.ggml.bos_token_id", &v->bos},
               {"tokenizer.ggml.eos_token_id", &v->eos},
               {"tokenizer.ggml.unknown_token_id", &v->unknown},
               {"tokenizer.ggml.padding_token_id", &v->padding}};
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        *ids[i].id = UINT64_MAX;
        if (!gguf_read_uint(v->file, ids[i].key, GGUF_OPTIONAL, v->count - 1, ids[i].id, v->err))
            return false;
    }
    return true;
}

/* GGUF's converter turned U+2581 in user-defined tokens into spaces; this turns it back. */
static bool restore_space_marks(GgufVocabulary *v)
{
    Slice *tokens = arena_allocate_array(v->arena, v->count, sizeof(*tokens));
    if (!tokens)
        return error_no_memory(v->err, "tokens");
    memcpy(tokens, v->tokens, v->count * sizeof(*tokens));
    for (size_t i = 0; i < v->count; i++) {
        Slice old = tokens[i];
        if (v->types[i] != GGUF_TOKEN_USER_DEFINED || slice_find(old, SLICE(" "), 0) == SIZE_MAX)
            continue;
        size_t room;
        char *text = size_multiply(old.len, 3, &room) ? arena_allocate(v->arena, room) : NULL;
        if (!text)
            return error_no_memory(v->err, "tokens");
        size_t len = 0;
        for (size_t j = 0; j < old.len; j++) {
            if (old.ptr[j] == ' ') {
                memcpy(text + len, SPACE_MARK, 3);
                len += 3;
            } else {
                text[len++] = old.ptr[j];
            }
        }
        tokens[i] = (Slice){text, len};
    }
    v->tokens = tokens;
    return true;
}

static bool read_vocabulary(GgufVocabulary *v)
{
    const GgufFile *file = v->file;
    Slice model = SLICE_EMPTY;
    if (!gguf_read_string(file, "tokenizer.ggml.model", GGUF_REQUIRED, &model, v->err))
        return false;
    v->is_spm = slice_equal(model, SLICE("llama"));
    if (!v->is_spm && !slice_equal(model, SLICE("gpt2")))
        return error_set(v->err, ERROR_UNSUPPORTED,
                         "%s: tokenizer.ggml.model is %.*s; gpt2 and llama can be imported",
                         file->name, SLICE_ARG(model));
    if (!gguf_read_strings(file, "tokenizer.ggml.tokens", v->arena, &v->tokens, &v->count, v->err))
        return false;
    if (v->count == 0 || v->count > TOKENS_MAX)
        return error_set(v->err, ERROR_INVALID, "%s: %zu tokens, expected 1 to %d", file->name,
                         v->count, TOKENS_MAX);
    if (!read_types(v) || !read_special_ids(v))
        return false;
    if (!v->is_spm)
        return true;
    size_t n_scores;
    if (!gguf_read_float_array(file, "tokenizer.ggml.scores", v->arena, &v->scores, &n_scores,
                               v->err))
        return false;
    if (n_scores != v->count)
        return fail_count(v, "tokenizer.ggml.scores", n_scores);
    return restore_space_marks(v);
}

/* ---- tokenizer.json and tokenizer_config.json ------------------------------------------------ */

static void write_model_flags(const GgufVocabulary *v, const PreTokenizer *pre, JsonWriter *w)
{
    bool has_unknown = v->is_spm && v->unknown < v->count;
    write_text_field(w, "type", "BPE");
    write_null_field(w, "dropout");
    json_write_key(w, "unk_token");
    if (has_unknown)
        json_write_string(w, v->tokens[v->unknown]);
    else
        json_write_null(w);
    write_null_field(w, "continuing_subword_prefix");
    write_null_field(w, "end_of_word_suffix");
    write_bool_field(w, "fuse_unk", v->is_spm);
    write_bool_field(w, "byte_fallback", v->is_spm);
    write_bool_field(w, "ignore_merges", pre && pre->ignores_merges);
}

static bool write_tokenizer_json(GgufVocabulary *v, Buffer *out)
{
    const PreTokenizer *pre = NULL;
    if (!v->is_spm && !find_pre_tokenizer(v->file, &pre, v->err))
        return false;
    v->adds_bos = v->is_spm || pre->adds_bos;
    bool has_prefix = true;
    if (!gguf_read_bool(v->file, "tokenizer.ggml.add_bos_token", &v->adds_bos, v->err) ||
        !gguf_read_bool(v->file, "tokenizer.ggml.add_space_prefix", &has_prefix, v->err))
        return false;
    JsonWriter w;
    json_writer_init(&w, out, 0);
    json_write_object_begin(&w);
    write_text_field(&w, "version", "1.0");
    write_null_field(&w, "truncation");
    write_null_field(&w, "padding");
    write_added_tokens(v, &w);
    if (v->is_spm)
        write_spm_stages(has_prefix, &w);
    else
        write_byte_level_stages(pre, &w);
    write_post_processor(v, &w);
    json_write_key(&w, "model");
    json_write_object_begin(&w);
    write_model_flags(v, pre, &w);
    write_vocab(v, &w);
    json_write_key(&w, "merges");
    if (!(v->is_spm ? gguf_write_scored_merges(v, &w) : write_stored_merges(v, &w)))
        return false;
    json_write_object_end(&w);
    json_write_object_end(&w);
    return buffer_check(out, "tokenizer.json", v->err);
}

static void write_token_name(const GgufVocabulary *v, const char *key, uint64_t id, JsonWriter *w)
{
    if (id >= v->count)
        return;
    json_write_key(w, key);
    json_write_string(w, v->tokens[id]);
}

static bool write_tokenizer_config(const GgufVocabulary *v, const GgufArchitecture *architecture,
                                   Buffer *out)
{
    Slice template = SLICE_EMPTY;
    if (!gguf_read_string(v->file, "tokenizer.chat_template", GGUF_OPTIONAL, &template, v->err))
        return false;
    JsonWriter w;
    json_writer_init(&w, out, 2);
    json_write_object_begin(&w);
    /* The generic class takes tokenizer.json as it is; the families' own ones rebuild it. */
    write_text_field(&w, "tokenizer_class", "PreTrainedTokenizerFast");
    write_bool_field(&w, "clean_up_tokenization_spaces", false);
    write_bool_field(&w, "add_bos_token", v->adds_bos);
    write_token_name(v, "bos_token", v->bos, &w);
    write_token_name(v, "eos_token", v->eos, &w);
    write_token_name(v, "unk_token", v->unknown, &w);
    write_token_name(v, "pad_token", v->padding, &w);
    char key[64];
    size_t len = strlen(architecture->name);
    memcpy(key, architecture->name, len);
    memcpy(key + len, ".context_length", sizeof(".context_length"));
    uint64_t context = 0;
    if (!gguf_read_uint(v->file, key, GGUF_OPTIONAL, INT32_MAX, &context, v->err))
        return false;
    if (context > 0) {
        json_write_key(&w, "model_max_length");
        json_write_uint(&w, context);
    }
    if (template.len > 0) {
        json_write_key(&w, "chat_template");
        json_write_string(&w, template);
    }
    json_write_object_end(&w);
    buffer_append_byte(out, '\n');
    return buffer_check(out, "tokenizer_config.json", v->err);
}

bool gguf_write_tokenizer(const GgufFile *file, const GgufArchitecture *architecture,
                          Buffer *tokenizer, Buffer *config, Error *err)
{
    Arena arena;
    arena_init(&arena, tokenizer_arena_max);
    GgufVocabulary v = {.file = file, .arena = &arena, .err = err};
    bool ok = read_vocabulary(&v) && write_tokenizer_json(&v, tokenizer) &&
              write_tokenizer_config(&v, architecture, config);
    arena_reset(&arena);
    return ok;
}
