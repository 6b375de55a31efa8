/* Reading tokenizer.json. Vocabulary, merges and added tokens, which are nearly all of the file, go
 * through the pull reader straight into their tables; only the small objects that describe the
 * pipeline become trees. Members may come in any order: merges met before the vocabulary are read
 * again afterwards. */
#include "internal.h"

#include <stdlib.h>

enum { CONFIG_ARENA_BYTES = 16 << 20 };

typedef struct Loader {
    Tokenizer *tokenizer;
    Slice json;
    Error *err;
    Slice normalizer, pre_tokenizer, post_processor, decoder,
        merges; /* raw values; empty: absent */
    bool has_model, has_vocab, has_merges;
    Buffer text[2];   /* strings with their escapes resolved */
    Buffer unk_token; /* valid when bpe.has_unk */
    AddedToken *added;
    size_t added_count, added_capacity;
} Loader;

/* ---- Tokens of the reader ---- */

static bool expect(JsonReader *reader, JsonToken found, JsonToken wanted, const char *what,
                   Error *err)
{
    if (found == wanted)
        return true;
    if (found == JSON_TOKEN_ERROR)
        return false; /* the reader has said why */
    return error_set(err, ERROR_INVALID, "%s is not of the expected kind (byte %zu)", what,
                     json_reader_end_offset(reader));
}

/* The last string or key; with escapes it is resolved into buffer. */
static bool get_string(const JsonReader *reader, Buffer *buffer, Slice *out, Error *err)
{
    *out = reader->raw;
    if (!reader->has_escapes)
        return true;
    buffer_clear(buffer);
    char *to = buffer_extend(buffer, reader->raw.len);
    if (!to)
        return buffer_check(buffer, "string", err);
    *out = (Slice){to, json_reader_copy_string(reader, to)};
    return true;
}

static bool read_string(JsonReader *reader, Buffer *buffer, const char *what, Slice *out,
                        Error *err)
{
    return expect(reader, json_reader_next(reader), JSON_TOKEN_STRING, what, err) &&
           get_string(reader, buffer, out, err);
}

static bool read_id(JsonReader *reader, Slice token, int64_t *out, Error *err)
{
    int shown = token.len < 60 ? (int)token.len : 60;
    if (!expect(reader, json_reader_next(reader), JSON_TOKEN_NUMBER, "a token id", err))
        return false;
    JsonValue value = json_reader_number(reader);
    if (!json_to_int64(&value, out))
        return error_set(err, ERROR_INVALID, "token '%.*s': id is not an integer", shown,
                         token.ptr ? token.ptr : "");
    return true;
}

static bool read_bool(JsonReader *reader, const char *what, bool *out, Error *err)
{
    JsonToken token = json_reader_next(reader);
    if (token == JSON_TOKEN_NULL)
        return true;
    *out = token == JSON_TOKEN_TRUE;
    return token == JSON_TOKEN_FALSE || expect(reader, token, JSON_TOKEN_TRUE, what, err);
}

/* Skips the next value; *raw are its bytes. */
static bool skip_raw(JsonReader *reader, Slice json, Slice *raw)
{
    size_t start = json_reader_offset(reader);
    if (!json_reader_skip_value(reader))
        return false;
    *raw = (Slice){json.ptr + start, json_reader_end_offset(reader) - start};
    return true;
}

/* ---- Model ---- */

static bool read_vocab(Loader *loader, JsonReader *reader)
{
    JsonToken token;
    if (loader->has_vocab)
        return error_set(loader->err, ERROR_INVALID, "model.vocab occurs twice");
    loader->has_vocab = true;
    if (!expect(reader, json_reader_next(reader), JSON_TOKEN_OBJECT_BEGIN, "model.vocab",
                loader->err))
        return false;
    while ((token = json_reader_next(reader)) == JSON_TOKEN_KEY) {
        Slice content;
        int64_t id;
        if (!get_string(reader, &loader->text[0], &content, loader->err) ||
            !read_id(reader, content, &id, loader->err) ||
            !vocabulary_add(&loader->tokenizer->vocabulary, content, id, TOKEN_MODEL, loader->err))
            return false;
    }
    return token == JSON_TOKEN_OBJECT_END;
}

/* "a b": exactly one space. */
static bool split_merge(Slice text, Slice *left, Slice *right)
{
    size_t space = slice_find(text, SLICE(" "), 0);
    if (space == SIZE_MAX || slice_find(text, SLICE(" "), space + 1) != SIZE_MAX)
        return false;
    *left = (Slice){text.ptr, space};
    *right = (Slice){text.ptr + space + 1, text.len - space - 1};
    return true;
}

static bool read_merge(Loader *loader, JsonReader *reader, JsonToken token, uint32_t *rank)
{
    Slice left, right, text;
    if (token == JSON_TOKEN_STRING) {
        if (!get_string(reader, &loader->text[0], &text, loader->err))
            return false;
        if (slice_starts_with(text, SLICE("#version")))
            return true; /* a header line of merges.txt that found its way here has no rank */
        if (!split_merge(text, &left, &right))
            return error_set(loader->err, ERROR_INVALID, "merge %u is not two tokens", *rank);
    } else {
        if (!expect(reader, token, JSON_TOKEN_ARRAY_BEGIN, "a merge", loader->err) ||
            !read_string(reader, &loader->text[0], "a merge", &left, loader->err) ||
            !read_string(reader, &loader->text[1], "a merge", &right, loader->err) ||
            !expect(reader, json_reader_next(reader), JSON_TOKEN_ARRAY_END, "a merge", loader->err))
            return false;
    }
    return bpe_add_merge(&loader->tokenizer->bpe, left, right, (*rank)++, loader->err);
}

static bool read_merges(Loader *loader, JsonReader *reader)
{
    JsonToken token;
    uint32_t rank = 0;
    if (!expect(reader, json_reader_next(reader), JSON_TOKEN_ARRAY_BEGIN, "model.merges",
                loader->err))
        return false;
    while ((token = json_reader_next(reader)) != JSON_TOKEN_ARRAY_END) {
        if (!read_merge(loader, reader, token, &rank))
            return false;
    }
    return true;
}

static bool read_merges_now_or_later(Loader *loader, JsonReader *reader)
{
    if (loader->has_merges)
        return error_set(loader->err, ERROR_INVALID, "model.merges occurs twice");
    loader->has_merges = true;
    if (loader->has_vocab)
        return read_merges(loader, reader);
    return skip_raw(reader, loader->json, &loader->merges);
}

/* A string or null; *out.ptr NULL for null. */
static bool read_optional_string(Loader *loader, JsonReader *reader, const char *what, Slice *out)
{
    JsonToken token = json_reader_next(reader);
    *out = SLICE_EMPTY;
    if (token == JSON_TOKEN_NULL)
        return true;
    if (!expect(reader, token, JSON_TOKEN_STRING, what, loader->err) ||
        !get_string(reader, &loader->text[0], out, loader->err))
        return false;
    if (!out->ptr)
        out->ptr = "";
    return true;
}

static bool read_model_type(Loader *loader, JsonReader *reader)
{
    Slice type;
    return read_string(reader, &loader->text[0], "model.type", &type, loader->err) &&
           (slice_equal(type, SLICE("BPE")) || component_unknown("a model", type, loader->err));
}

/* Dropout makes encoding random: only its absence is taken. */
static bool read_dropout(Loader *loader, JsonReader *reader)
{
    JsonToken token = json_reader_next(reader);
    if (token == JSON_TOKEN_NULL)
        return true;
    if (!expect(reader, token, JSON_TOKEN_NUMBER, "model.dropout", loader->err))
        return false;
    JsonValue value = json_reader_number(reader);
    return json_to_double(&value) == 0.0 ||
           error_set(loader->err, ERROR_UNSUPPORTED, "model.dropout is not supported");
}

static bool read_unk_token(Loader *loader, JsonReader *reader)
{
    Slice token;
    if (!read_optional_string(loader, reader, "model.unk_token", &token))
        return false;
    loader->tokenizer->bpe.has_unk = token.ptr != NULL;
    buffer_clear(&loader->unk_token);
    buffer_append_slice(&loader->unk_token, token);
    return buffer_check(&loader->unk_token, "model.unk_token", loader->err);
}

/* continuing_subword_prefix and end_of_word_suffix: other models' way of marking words. */
static bool read_affix(Loader *loader, JsonReader *reader, const char *what)
{
    Slice affix;
    return read_optional_string(loader, reader, what, &affix) &&
           (affix.len == 0 ||
            error_set(loader->err, ERROR_UNSUPPORTED, "%s is not supported", what));
}

static bool read_model_member(Loader *loader, JsonReader *reader, Slice key)
{
    Bpe *bpe = &loader->tokenizer->bpe;
    if (slice_equal(key, SLICE("type")))
        return read_model_type(loader, reader);
    if (slice_equal(key, SLICE("vocab")))
        return read_vocab(loader, reader);
    if (slice_equal(key, SLICE("merges")))
        return read_merges_now_or_later(loader, reader);
    if (slice_equal(key, SLICE("dropout")))
        return read_dropout(loader, reader);
    if (slice_equal(key, SLICE("unk_token")))
        return read_unk_token(loader, reader);
    if (slice_equal(key, SLICE("continuing_subword_prefix")))
        return read_affix(loader, reader, "model.continuing_subword_prefix");
    if (slice_equal(key, SLICE("end_of_word_suffix")))
        return read_affix(loader, reader, "model.end_of_word_suffix");
    if (slice_equal(key, SLICE("fuse_unk")))
        return read_bool(reader, "model.fuse_unk", &bpe->fuse_unk, loader->err);
    if (slice_equal(key, SLICE("byte_fallback")))
        return read_bool(reader, "model.byte_fallback", &bpe->byte_fallback, loader->err);
    if (slice_equal(key, SLICE("ignore_merges")))
        return read_bool(reader, "model.ignore_merges", &bpe->ignore_merges, loader->err);
    return json_reader_skip_value(reader);
}

static bool read_model(Loader *loader, JsonReader *reader)
{
    JsonToken token;
    if (loader->has_model)
        return error_set(loader->err, ERROR_INVALID, "model occurs twice");
    loader->has_model = true;
    if (!expect(reader, json_reader_next(reader), JSON_TOKEN_OBJECT_BEGIN, "model", loader->err))
        return false;
    while ((token = json_reader_next(reader)) == JSON_TOKEN_KEY) {
        Slice key;
        if (!get_string(reader, &loader->text[0], &key, loader->err) ||
            !read_model_member(loader, reader, key))
            return false;
    }
    if (token != JSON_TOKEN_OBJECT_END)
        return false;
    if (!loader->has_vocab || !loader->has_merges)
        return error_set(loader->err, ERROR_INVALID, "model has no %s",
                         loader->has_vocab ? "merges" : "vocab");
    if (!loader->merges.ptr)
        return true;
    JsonReader again;
    json_reader_init(&again, loader->merges, loader->err);
    return read_merges(loader, &again);
}

/* ---- Added tokens ---- */

static bool read_added_member(Loader *loader, JsonReader *reader, AddedToken *token, int64_t *id)
{
    Slice key;
    if (!get_string(reader, &loader->text[0], &key, loader->err))
        return false;
    if (slice_equal(key, SLICE("id")))
        return read_id(reader, SLICE("added"), id, loader->err);
    if (slice_equal(key, SLICE("content")))
        return read_string(reader, &loader->text[1], "an added token", &token->content,
                           loader->err);
    if (slice_equal(key, SLICE("single_word")))
        return read_bool(reader, "single_word", &token->single_word, loader->err);
    if (slice_equal(key, SLICE("lstrip")))
        return read_bool(reader, "lstrip", &token->lstrip, loader->err);
    if (slice_equal(key, SLICE("rstrip")))
        return read_bool(reader, "rstrip", &token->rstrip, loader->err);
    if (slice_equal(key, SLICE("normalized")))
        return read_bool(reader, "normalized", &token->is_normalized, loader->err);
    if (slice_equal(key, SLICE("special")))
        return read_bool(reader, "special", &token->special, loader->err);
    return json_reader_skip_value(reader);
}

static bool keep_added_token(Loader *loader, const AddedToken *token)
{
    if (!memory_grow_array((void **)&loader->added, loader->added_count, &loader->added_capacity,
                           sizeof(*token)))
        return error_no_memory(loader->err, "added tokens");
    loader->added[loader->added_count++] = *token;
    return true;
}

static bool read_added_token(Loader *loader, JsonReader *reader)
{
    AddedToken added = {.order = (uint32_t)loader->added_count};
    int64_t id = -1;
    JsonToken token;
    buffer_clear(&loader->text[1]);
    while ((token = json_reader_next(reader)) == JSON_TOKEN_KEY) {
        if (!read_added_member(loader, reader, &added, &id))
            return false;
    }
    if (token != JSON_TOKEN_OBJECT_END)
        return false;
    if (!added.content.ptr)
        return error_set(loader->err, ERROR_INVALID, "an added token has no content");
    unsigned flags = TOKEN_ADDED | (added.special ? TOKEN_SPECIAL : 0U);
    if (!vocabulary_add(&loader->tokenizer->vocabulary, added.content, id, flags, loader->err))
        return error_prefix(loader->err, "added_tokens");
    added.id = (int32_t)id;
    return keep_added_token(loader, &added);
}

static bool read_added_tokens(Loader *loader, JsonReader *reader)
{
    JsonToken token = json_reader_next(reader);
    if (token == JSON_TOKEN_NULL)
        return true;
    if (!expect(reader, token, JSON_TOKEN_ARRAY_BEGIN, "added_tokens", loader->err))
        return false;
    while ((token = json_reader_next(reader)) != JSON_TOKEN_ARRAY_END) {
        if (!expect(reader, token, JSON_TOKEN_OBJECT_BEGIN, "an added token", loader->err) ||
            !read_added_token(loader, reader))
            return false;
    }
    return true;
}

static bool add_extra_tokens(Loader *loader, const ExtraTokens *extra)
{
    for (size_t i = 0; i < extra->count; i++) {
        AddedToken token = extra->tokens[i];
        bool added;
        if (!extra_token_add(&loader->tokenizer->vocabulary, &token, &added, loader->err))
            return false;
        token.order = (uint32_t)loader->added_count;
        if (added && !keep_added_token(loader, &token))
            return false;
    }
    return true;
}

/* Normalises the contents of the tokens that are searched for in normalised text. They go to one
 * buffer, which moves while it grows: until the end a content is the offset of its start. */
static bool normalize_contents(Tokenizer *tokenizer, AddedToken *tokens, size_t count, Error *err)
{
    PatternScratch scratch = {0};
    Buffer buffers[2];
    Buffer *contents = &tokenizer->normalized_contents;
    bool ok = true;
    size_t *offsets = memory_allocate_array(count + 1, sizeof(*offsets));
    if (!offsets)
        return error_no_memory(err, "added tokens");
    buffer_init(&buffers[0], NORMALIZED_BYTES_MAX);
    buffer_init(&buffers[1], NORMALIZED_BYTES_MAX);
    for (size_t i = 0; ok && i < count; i++) {
        Slice text;
        offsets[i] = contents->len;
        ok = normalizer_run(&tokenizer->normalizer, &tokenizer->unicode, &scratch, buffers,
                            tokens[i].content, &text, err);
        if (ok)
            buffer_append_slice(contents, text);
    }
    ok = ok && buffer_check(contents, "added tokens", err);
    offsets[count] = contents->len;
    for (size_t i = 0; ok && i < count; i++)
        tokens[i].content = (Slice){contents->ptr + offsets[i], offsets[i + 1] - offsets[i]};
    buffer_reset(&buffers[0]);
    buffer_reset(&buffers[1]);
    pattern_scratch_reset(&scratch);
    memory_free(offsets);
    return ok;
}

static int compare_ids(const void *a, const void *b)
{
    const RespeltToken *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static bool note_respelt(Tokenizer *tokenizer, const AddedToken *tokens, size_t count, Error *err)
{
    tokenizer->respelt = memory_allocate_array(count, sizeof(*tokenizer->respelt));
    if (!tokenizer->respelt)
        return error_no_memory(err, "added tokens");
    for (size_t i = 0; i < count; i++) {
        int32_t id = tokens[i].id;
        TokenEntry *entry = &tokenizer->vocabulary.entries[id];
        bool noted = entry->flags & TOKEN_RESPELT; /* a token may be listed twice */
        if (noted || slice_equal(tokens[i].content, vocabulary_content(&tokenizer->vocabulary, id)))
            continue;
        entry->flags = (entry->flags | TOKEN_RESPELT) & 0xff;
        tokenizer->respelt[tokenizer->respelt_count++] = (RespeltToken){id, tokens[i].content};
    }
    qsort(tokenizer->respelt, tokenizer->respelt_count, sizeof(RespeltToken), compare_ids);
    return true;
}

/* Of equal contents, special tokens come first. */
static bool build_added_set(Loader *loader, bool normalized, AddedSet *set)
{
    Tokenizer *tokenizer = loader->tokenizer;
    AddedToken *tokens = memory_allocate_array(loader->added_count, sizeof(*tokens));
    size_t count = 0;
    if (!tokens)
        return error_no_memory(loader->err, "added tokens");
    for (size_t i = 0; i < loader->added_count; i++) {
        if (loader->added[i].is_normalized != normalized)
            continue;
        tokens[count] = loader->added[i];
        tokens[count].content = vocabulary_content(&tokenizer->vocabulary, tokens[count].id);
        tokens[count].order += tokens[count].special ? 0 : (uint32_t)loader->added_count;
        count++;
    }
    if (normalized && !(normalize_contents(tokenizer, tokens, count, loader->err) &&
                        note_respelt(tokenizer, tokens, count, loader->err))) {
        memory_free(tokens);
        return false;
    }
    added_set_build(set, tokens, count);
    return true;
}

/* ---- The file ---- */

static bool read_member(Loader *loader, JsonReader *reader, Slice key)
{
    if (slice_equal(key, SLICE("model")))
        return read_model(loader, reader);
    if (slice_equal(key, SLICE("added_tokens")))
        return read_added_tokens(loader, reader);
    if (slice_equal(key, SLICE("normalizer")))
        return skip_raw(reader, loader->json, &loader->normalizer);
    if (slice_equal(key, SLICE("pre_tokenizer")))
        return skip_raw(reader, loader->json, &loader->pre_tokenizer);
    if (slice_equal(key, SLICE("post_processor")))
        return skip_raw(reader, loader->json, &loader->post_processor);
    if (slice_equal(key, SLICE("decoder")))
        return skip_raw(reader, loader->json, &loader->decoder);
    /* truncation and padding are the caller's business, as in transformers */
    return json_reader_skip_value(reader);
}

static bool read_file(Loader *loader)
{
    JsonReader reader;
    JsonToken token;
    json_reader_init(&reader, loader->json, loader->err);
    if (!expect(&reader, json_reader_next(&reader), JSON_TOKEN_OBJECT_BEGIN, "the file",
                loader->err))
        return false;
    while ((token = json_reader_next(&reader)) == JSON_TOKEN_KEY) {
        Slice key;
        if (!get_string(&reader, &loader->text[0], &key, loader->err) ||
            !read_member(loader, &reader, key))
            return false;
    }
    if (token != JSON_TOKEN_OBJECT_END || json_reader_next(&reader) != JSON_TOKEN_END)
        return false;
    return loader->has_model || error_set(loader->err, ERROR_INVALID, "the file has no model");
}

static bool parse_config(Slice raw, Arena *arena, const JsonValue **out, Error *err)
{
    *out = NULL;
    return raw.len == 0 || json_parse(raw, arena, out, err);
}

static bool load_pipeline(Loader *loader)
{
    Tokenizer *tokenizer = loader->tokenizer;
    const JsonValue *normalizer, *pre_tokenizer, *post_processor, *decoder;
    Arena arena;
    arena_init(&arena, CONFIG_ARENA_BYTES);
    bool ok = parse_config(loader->normalizer, &arena, &normalizer, loader->err) &&
              parse_config(loader->pre_tokenizer, &arena, &pre_tokenizer, loader->err) &&
              parse_config(loader->post_processor, &arena, &post_processor, loader->err) &&
              parse_config(loader->decoder, &arena, &decoder, loader->err) &&
              normalizer_load(&tokenizer->normalizer, normalizer, loader->err) &&
              pre_tokenizer_load(&tokenizer->pre_tokenizer, pre_tokenizer, loader->err) &&
              pre_tokenizer_check(&tokenizer->pre_tokenizer, &tokenizer->normalizer, loader->err) &&
              post_processor_load(tokenizer, post_processor, loader->err) &&
              decoder_load(&tokenizer->decoder, decoder, loader->err);
    arena_reset(&arena);
    return ok;
}

static bool finish_model(Loader *loader)
{
    Bpe *bpe = &loader->tokenizer->bpe;
    bpe->byte_level = loader->tokenizer->pre_tokenizer.byte_level;
    Slice unk = buffer_view(&loader->unk_token);
    if (bpe->has_unk)
        bpe->unk_id = vocabulary_find(&loader->tokenizer->vocabulary,
                                      (Slice){unk.ptr ? unk.ptr : "", unk.len}, TOKEN_MODEL);
    return bpe_finish(bpe, loader->err);
}

bool tokenizer_load(Tokenizer *tokenizer, Slice json, const ExtraTokens *extra, Error *err)
{
    Loader loader = {.tokenizer = tokenizer, .json = json, .err = err};
    for (size_t i = 0; i < ARRAY_COUNT(loader.text); i++)
        buffer_init(&loader.text[i], TOKENIZER_FILE_BYTES_MAX);
    buffer_init(&loader.unk_token, TOKENIZER_FILE_BYTES_MAX);
    buffer_init(&tokenizer->normalized_contents, NORMALIZED_BYTES_MAX);
    bpe_init(&tokenizer->bpe, &tokenizer->vocabulary);
    /* Real files spend 30 to 130 bytes on a token and its merges. */
    bool ok = vocabulary_init(&tokenizer->vocabulary, json.len / 64, err) &&
              unicode_table_init(&tokenizer->unicode, err) && read_file(&loader) &&
              add_extra_tokens(&loader, extra) && load_pipeline(&loader) && finish_model(&loader) &&
              build_added_set(&loader, false, &tokenizer->raw_added) &&
              build_added_set(&loader, true, &tokenizer->normalized_added);
    for (size_t i = 0; i < ARRAY_COUNT(loader.text); i++)
        buffer_reset(&loader.text[i]);
    buffer_reset(&loader.unk_token);
    memory_free(loader.added);
    return ok;
}
