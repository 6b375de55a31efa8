/* Added tokens that a model's directory lists beside the tokenizer's file: added_tokens_decoder of
 * tokenizer_config.json ({"32000": {"content": "<|im_end|>", ...}}), or, where there is none,
 * added_tokens.json ({"<|im_end|>": 32000}), whose tokens are special when tokenizer_config.json
 * or special_tokens_map.json uses them so. transformers adds what the tokenizer's file lacks; a
 * tokenizer.model lacks all of them. An id that the file gives to another token is left alone. */
#include "internal.h"

#include <stdlib.h>

static bool parse_id(Slice text, int64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] < '0' || text.ptr[i] > '9' || *out >= VOCABULARY_SIZE_MAX)
            return false;
        *out = *out * 10 + (text.ptr[i] - '0');
    }
    return text.len > 0 && *out < VOCABULARY_SIZE_MAX;
}

static bool allocate_tokens(ExtraTokens *extra, size_t count, Error *err)
{
    extra->tokens = arena_allocate_array(&extra->arena, count, sizeof(*extra->tokens));
    return extra->tokens || error_no_memory(err, "added tokens");
}

/* An entry of added_tokens_decoder. A special token is by default searched for in the raw text. */
static bool read_entry(const JsonMember *member, AddedToken *token, Error *err)
{
    int64_t id;
    int shown = member->key.len < 60 ? (int)member->key.len : 60;
    *token = (AddedToken){0};
    if (!parse_id(member->key, &id))
        return error_set(err, ERROR_INVALID, "key '%.*s', expected a token id", shown,
                         member->key.ptr);
    token->id = (int32_t)id;
    bool ok = json_read_string(&member->value, "content", &token->content, err) &&
              json_read_bool(&member->value, "special", &token->special, err);
    token->is_normalized = !token->special;
    ok = ok && json_read_bool(&member->value, "normalized", &token->is_normalized, err) &&
         json_read_bool(&member->value, "single_word", &token->single_word, err) &&
         json_read_bool(&member->value, "lstrip", &token->lstrip, err) &&
         json_read_bool(&member->value, "rstrip", &token->rstrip, err);
    if (ok && token->content.len == 0)
        ok = error_set(err, ERROR_INVALID, "no content");
    return ok || error_prefix(err, "%.*s", shown, member->key.ptr);
}

static bool read_decoder(const JsonValue *decoder, ExtraTokens *extra, Error *err)
{
    if (decoder->kind != JSON_OBJECT)
        return error_set(err, ERROR_INVALID, "a %s, expected an object",
                         json_kind_name(decoder->kind));
    if (!allocate_tokens(extra, decoder->as.object.count, err))
        return false;
    for (size_t i = 0; i < decoder->as.object.count; i++) {
        if (!read_entry(&decoder->as.object.members[i], &extra->tokens[extra->count++], err))
            return false;
    }
    return true;
}

/* Is it the token, or one of a list of tokens? They are strings or objects with a content. */
static bool names_token(const JsonValue *value, Slice content)
{
    for (size_t i = 0; json_is(value, JSON_ARRAY) && i < value->as.array.count; i++) {
        const JsonValue *item = &value->as.array.items[i];
        if (item->kind != JSON_ARRAY && names_token(item, content))
            return true;
    }
    if (json_is(value, JSON_OBJECT))
        value = json_get(value, SLICE("content"));
    return json_is(value, JSON_STRING) && slice_equal(value->as.string, content);
}

static bool is_used_as_special(const JsonValue *object, Slice content)
{
    for (size_t i = 0; json_is(object, JSON_OBJECT) && i < object->as.object.count; i++) {
        const JsonMember *member = &object->as.object.members[i];
        bool is_list = slice_ends_with(member->key, SLICE("_special_tokens"));
        if ((is_list || slice_ends_with(member->key, SLICE("_token"))) &&
            names_token(&member->value, content))
            return true;
    }
    return false;
}

/* added_tokens.json */
static bool read_list(const char *directory, const JsonValue *config, ExtraTokens *extra,
                      Error *err)
{
    const JsonValue *list, *map;
    if (!json_parse_optional(directory, "added_tokens.json", &extra->arena, &list, err))
        return false;
    if (!json_is(list, JSON_OBJECT))
        return true;
    if (!json_parse_optional(directory, "special_tokens_map.json", &extra->arena, &map, err) ||
        !allocate_tokens(extra, list->as.object.count, err))
        return false;
    for (size_t i = 0; i < list->as.object.count; i++) {
        const JsonMember *member = &list->as.object.members[i];
        int64_t id;
        if (!json_to_int64(&member->value, &id) || id < 0 || id >= VOCABULARY_SIZE_MAX)
            return error_set(err, ERROR_INVALID,
                             "%s/added_tokens.json: token '%.*s': expected an id", directory,
                             member->key.len < 60 ? (int)member->key.len : 60, member->key.ptr);
        bool special =
            is_used_as_special(config, member->key) || is_used_as_special(map, member->key);
        extra->tokens[extra->count++] = (AddedToken){.content = member->key,
                                                     .id = (int32_t)id,
                                                     .special = special,
                                                     .is_normalized = !special};
    }
    return true;
}

bool extra_tokens_read(const char *directory, ExtraTokens *out, Error *err)
{
    const JsonValue *config;
    *out = (ExtraTokens){0};
    arena_init(&out->arena, JSON_FILE_TREES_BYTES_MAX);
    bool ok = json_parse_optional(directory, "tokenizer_config.json", &out->arena, &config, err);
    const JsonValue *decoder = ok ? json_get_present(config, "added_tokens_decoder") : NULL;
    if (decoder)
        ok = read_decoder(decoder, out, err) ||
             error_prefix(err, "%s/tokenizer_config.json: added_tokens_decoder", directory);
    else
        ok = ok && read_list(directory, config, out, err);
    if (!ok)
        extra_tokens_reset(out);
    return ok;
}

void extra_tokens_reset(ExtraTokens *extra)
{
    arena_reset(&extra->arena);
    *extra = (ExtraTokens){0};
}

bool extra_token_add(Vocabulary *vocabulary, const AddedToken *token, bool *added, Error *err)
{
    unsigned flags = vocabulary_flags(vocabulary, token->id);
    int32_t found = vocabulary_find(vocabulary, token->content, ~0U);
    *added = found < 0 ? flags == 0 : found == token->id && !(flags & TOKEN_ADDED);
    flags = TOKEN_ADDED | (token->special ? TOKEN_SPECIAL : 0U);
    return !*added || vocabulary_add(vocabulary, token->content, token->id, flags, err) ||
           error_prefix(err, "added tokens beside the file");
}
