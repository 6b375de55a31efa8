#include "internal.h"

/* ---- Token lists ---- */

void token_list_reset(TokenList *list)
{
    memory_free(list->ids);
    *list = (TokenList){0};
}

bool token_list_append(TokenList *list, int32_t id, Error *err)
{
    if (!memory_grow_array((void **)&list->ids, list->count, &list->capacity, sizeof(*list->ids)))
        return error_no_memory(err, "token ids");
    list->ids[list->count++] = id;
    return true;
}

/* ---- Opening ---- */

typedef bool TokenizerLoad(Tokenizer *tokenizer, Slice bytes, const ExtraTokens *extra, Error *err);

static bool create_with(TokenizerLoad *load, Slice bytes, const ExtraTokens *extra,
                        const char *name, Tokenizer **out, Error *err)
{
    *out = NULL;
    if (bytes.len > TOKENIZER_FILE_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "%s: %zu bytes, at most %d are taken", name, bytes.len,
                         TOKENIZER_FILE_BYTES_MAX);
    Tokenizer *tokenizer = memory_allocate_zeroed(1, sizeof(*tokenizer));
    if (!tokenizer) {
        error_no_memory(err, "tokenizer");
        return error_prefix(err, "%s", name);
    }
    if (!load(tokenizer, bytes, extra, err)) {
        tokenizer_free(tokenizer);
        return error_prefix(err, "%s", name);
    }
    *out = tokenizer;
    return true;
}

bool tokenizer_create(Slice json, const char *name, Tokenizer **out, Error *err)
{
    const ExtraTokens none = {0};
    return create_with(tokenizer_load, json, &none, name, out, err);
}

bool tokenizer_create_pieces(Slice model, const char *name, Tokenizer **out, Error *err)
{
    const ExtraTokens none = {0};
    return create_with(tokenizer_load_pieces, model, &none, name, out, err);
}

/* The tokenizer's file in a directory. */
static bool find_file(const char *directory, char file[PATH_BYTES_MAX], Error *err)
{
    if (!path_join(file, PATH_BYTES_MAX, directory, "tokenizer.model", err))
        return false;
    if (file_exists(file)) {
        char json[PATH_BYTES_MAX];
        if (!path_join(json, sizeof(json), directory, "tokenizer.json", err))
            return false;
        if (!file_exists(json))
            return true;
    }
    return path_join(file, PATH_BYTES_MAX, directory, "tokenizer.json", err);
}

static bool open_file(const char *path, const ExtraTokens *extra, Tokenizer **out, Error *err)
{
    FileMap map;
    if (!file_map_open(path, &map, err))
        return false;
    bool has_pieces = slice_ends_with(slice_of(path), SLICE(".model"));
    bool ok = create_with(has_pieces ? tokenizer_load_pieces : tokenizer_load,
                          (Slice){(const char *)map.data, map.size}, extra, path, out, err);
    file_map_close(&map);
    return ok;
}

bool tokenizer_open(const char *path, Tokenizer **out, Error *err)
{
    const ExtraTokens none = {0};
    char file[PATH_BYTES_MAX];
    *out = NULL;
    if (directory_exists(path)) {
        if (!find_file(path, file, err))
            return false;
        path = file;
    }
    return open_file(path, &none, out, err);
}

bool tokenizer_open_model(const char *directory, Tokenizer **out, Error *err)
{
    ExtraTokens extra;
    char file[PATH_BYTES_MAX];
    *out = NULL;
    if (!find_file(directory, file, err) || !extra_tokens_read(directory, &extra, err))
        return false;
    bool ok = open_file(file, &extra, out, err);
    extra_tokens_reset(&extra);
    return ok;
}

void tokenizer_free(Tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    added_set_reset(&tokenizer->raw_added);
    added_set_reset(&tokenizer->normalized_added);
    buffer_reset(&tokenizer->normalized_contents);
    memory_free(tokenizer->respelt);
    pre_tokenizer_reset(&tokenizer->pre_tokenizer);
    normalizer_reset(&tokenizer->normalizer);
    bpe_reset(&tokenizer->bpe);
    vocabulary_reset(&tokenizer->vocabulary);
    unicode_table_reset(&tokenizer->unicode);
    memory_free(tokenizer);
}

/* ---- Tokens ---- */

size_t tokenizer_vocabulary_size(const Tokenizer *tokenizer)
{
    return tokenizer->vocabulary.size;
}

Slice tokenizer_token_content(const Tokenizer *tokenizer, int32_t id)
{
    if (!vocabulary_flags(&tokenizer->vocabulary, id))
        return SLICE_EMPTY;
    return vocabulary_content(&tokenizer->vocabulary, id);
}

int32_t tokenizer_find_token(const Tokenizer *tokenizer, Slice content)
{
    if (!content.ptr)
        content.ptr = "";
    return vocabulary_find(&tokenizer->vocabulary, content, TOKEN_MODEL | TOKEN_ADDED);
}

bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id)
{
    return vocabulary_flags(&tokenizer->vocabulary, id) & TOKEN_SPECIAL;
}

bool tokenizer_is_skipped(const Tokenizer *tokenizer, int32_t id)
{
    unsigned flags = vocabulary_flags(&tokenizer->vocabulary, id);
    return (flags & (TOKEN_SPECIAL | TOKEN_SHOWN)) == TOKEN_SPECIAL;
}

bool tokenizer_show_tokens(Tokenizer *tokenizer, Slice text, Error *err)
{
    TokenList tokens = {0};
    bool ok = tokenizer_encode(tokenizer, text, false, &tokens, err);
    for (size_t i = 0; ok && i < tokens.count; i++) {
        TokenEntry *entry = &tokenizer->vocabulary.entries[tokens.ids[i]];
        if (entry->flags & TOKEN_SPECIAL)
            entry->flags = (entry->flags | TOKEN_SHOWN) & 0xff;
    }
    token_list_reset(&tokens);
    return ok;
}

/* ---- Encoding ---- */

static void context_init(EncodeContext *context, const Tokenizer *tokenizer, TokenList *out,
                         Error *err)
{
    *context = (EncodeContext){.tokenizer = tokenizer, .out = out, .err = err};
    buffer_init(&context->repaired, NORMALIZED_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(context->normalized); i++)
        buffer_init(&context->normalized[i], NORMALIZED_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(context->steps); i++)
        buffer_init(&context->steps[i], NORMALIZED_BYTES_MAX);
}

static void context_reset(EncodeContext *context)
{
    pattern_scratch_reset(&context->patterns);
    bpe_scratch_reset(&context->bpe);
    buffer_reset(&context->repaired);
    for (size_t i = 0; i < ARRAY_COUNT(context->normalized); i++)
        buffer_reset(&context->normalized[i]);
    for (size_t i = 0; i < ARRAY_COUNT(context->steps); i++)
        buffer_reset(&context->steps[i]);
}

/* A piece of raw text without added tokens. */
static bool encode_piece(EncodeContext *context, Slice piece, bool at_start)
{
    const Tokenizer *tokenizer = context->tokenizer;
    Slice text;
    if (!normalizer_run(&tokenizer->normalizer, &tokenizer->unicode, &context->patterns,
                        context->normalized, piece, &text, context->err))
        return false;
    AddedScan scan = {.skip_special = context->skip_special};
    AddedSegment segment;
    while (
        added_scan_next(&scan, &tokenizer->normalized_added, &tokenizer->unicode, text, &segment)) {
        Slice part = {text.ptr + segment.start, segment.end - segment.start};
        if (!(segment.id >= 0 ? token_list_append(context->out, segment.id, context->err)
                              : pre_tokenizer_run(context, part, at_start && segment.start == 0)))
            return false;
    }
    return true;
}

static bool encode_text(EncodeContext *context, Slice text)
{
    const Tokenizer *tokenizer = context->tokenizer;
    AddedScan scan = {.skip_special = context->skip_special};
    AddedSegment segment;
    while (added_scan_next(&scan, &tokenizer->raw_added, &tokenizer->unicode, text, &segment)) {
        Slice piece = {text.ptr + segment.start, segment.end - segment.start};
        if (!(segment.id >= 0 ? token_list_append(context->out, segment.id, context->err)
                              : encode_piece(context, piece, segment.start == 0)))
            return false;
    }
    return true;
}

static bool encode_template(EncodeContext *context, Slice text)
{
    const Tokenizer *tokenizer = context->tokenizer;
    for (size_t i = 0; i < tokenizer->template_count; i++) {
        int32_t item = tokenizer->template_items[i];
        if (!(item == TEMPLATE_SEQUENCE ? encode_text(context, text)
                                        : token_list_append(context->out, item, context->err)))
            return false;
    }
    return true;
}

static bool encode(const Tokenizer *tokenizer, Slice text, bool add_special, bool parse_special,
                   TokenList *out, Error *err)
{
    EncodeContext context;
    size_t before = out->count;
    bool ok = true;
    if (text.len > TOKENIZER_TEXT_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "a text of %zu bytes, at most %d are taken", text.len,
                         TOKENIZER_TEXT_BYTES_MAX);
    context_init(&context, tokenizer, out, err);
    context.skip_special = !parse_special;
    if (!utf8_is_valid(text)) {
        utf8_append_repaired(&context.repaired, text);
        ok = buffer_check(&context.repaired, "text", err);
        text = buffer_view(&context.repaired);
    }
    ok = ok && (add_special ? encode_template(&context, text) : encode_text(&context, text));
    context_reset(&context);
    if (!ok)
        out->count = before;
    return ok;
}

bool tokenizer_encode(const Tokenizer *tokenizer, Slice text, bool add_special, TokenList *out,
                      Error *err)
{
    return encode(tokenizer, text, add_special, true, out, err);
}

bool tokenizer_encode_plain(const Tokenizer *tokenizer, Slice text, bool add_special,
                            TokenList *out, Error *err)
{
    return encode(tokenizer, text, add_special, false, out, err);
}
