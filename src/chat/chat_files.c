/* What a model's directory says about its chats, read as transformers reads it.
 *
 * Templates have names: "default", and "tool_use" for conversations with tools. They lie in
 * chat_template.jinja and additional_chat_templates/NAME.jinja, or under chat_template of
 * tokenizer_config.json: a string, a list of {name, template}, or an object of them. A
 * chat_template.jinja replaces all of the latter. chat_template.json is where older multimodal
 * models keep theirs, and counts when there is no other.
 *
 * The special tokens are those of tokenizer_config.json; but where that lists no
 * added_tokens_decoder, which is to say in older directories, special_tokens_map.json wins. */
#include "chat_internal.h"
#include "jinja.h"

static const char *const TOKEN_NAMES[CHAT_TOKENS] = {
    [CHAT_TOKEN_BOS] = "bos_token",   [CHAT_TOKEN_EOS] = "eos_token",
    [CHAT_TOKEN_UNK] = "unk_token",   [CHAT_TOKEN_SEP] = "sep_token",
    [CHAT_TOKEN_PAD] = "pad_token",   [CHAT_TOKEN_CLS] = "cls_token",
    [CHAT_TOKEN_MASK] = "mask_token",
};

const char *chat_token_name(ChatToken token)
{
    return TOKEN_NAMES[token];
}

/* ---- Templates ---- */

static Slice text_of(const JsonValue *value)
{
    return json_is(value, JSON_STRING) ? value->as.string : SLICE_EMPTY;
}

/* A template of tokenizer_config.json by its name. */
static Slice named_template(const JsonValue *templates, const char *name)
{
    if (json_is(templates, JSON_OBJECT))
        return text_of(json_get_present(templates, name));
    for (size_t i = 0; json_is(templates, JSON_ARRAY) && i < templates->as.array.count; i++) {
        const JsonValue *item = &templates->as.array.items[i];
        if (slice_equal(text_of(json_get_present(item, "name")), slice_of(name)))
            return text_of(json_get_present(item, "template"));
    }
    return SLICE_EMPTY;
}

/* The only one of a list is the default, whatever its name. */
static Slice default_template(const JsonValue *templates)
{
    if (json_is(templates, JSON_STRING))
        return templates->as.string;
    if (json_is(templates, JSON_ARRAY) && templates->as.array.count == 1)
        return text_of(json_get_present(&templates->as.array.items[0], "template"));
    return named_template(templates, "default");
}

static void set_source(ChatSource *source, const char *name, Slice text)
{
    if (source->text.len == 0 && text.len > 0)
        *source = (ChatSource){name, text};
}

static bool read_template(ChatFiles *files, const char *directory, const char *name, Slice *out,
                          Error *err)
{
    return file_read_optional(directory, name, JINJA_SOURCE_BYTES_MAX, &files->arena, out, err);
}

static bool read_templates(ChatFiles *files, const char *directory, const JsonValue *config,
                           Error *err)
{
    static const char file[] = "chat_template.jinja",
                      tool_file[] = "additional_chat_templates/tool_use.jinja",
                      old_file[] = "chat_template.json";
    ChatSource *source = &files->sources.source, *tool_source = &files->sources.tool_source;
    const JsonValue *templates = json_get_present(config, "chat_template");
    Slice text;
    if (!read_template(files, directory, file, &text, err))
        return false;
    set_source(source, file, text);
    if (!read_template(files, directory, tool_file, &text, err))
        return false;
    set_source(tool_source, tool_file, text);
    if (source->text.len > 0)
        return true;
    set_source(source, "chat_template", default_template(templates));
    set_source(tool_source, "chat_template tool_use", named_template(templates, "tool_use"));
    if (source->text.len > 0)
        return true;
    const JsonValue *old;
    if (!json_parse_optional(directory, old_file, &files->arena, &old, err))
        return false;
    set_source(source, old_file, default_template(json_get_present(old, "chat_template")));
    if (source->text.len == 0 &&
        (json_is(templates, JSON_ARRAY) || json_is(templates, JSON_OBJECT)))
        log_write("%s/tokenizer_config.json: chat_template has no \"default\", the architecture's "
                  "is used",
                  directory);
    return true;
}

/* ---- Special tokens ---- */

/* Tokens are strings or objects with a content. */
static Slice token_text(const JsonValue *token)
{
    return text_of(json_is(token, JSON_OBJECT) ? json_get_present(token, "content") : token);
}

static void take_tokens(const JsonValue *object, Slice tokens[CHAT_TOKENS])
{
    for (size_t i = 0; i < CHAT_TOKENS; i++) {
        const JsonValue *token = json_get(object, slice_of(TOKEN_NAMES[i]));
        if (token)
            tokens[i] = token_text(token);
    }
}

static bool read_tokens(ChatFiles *files, const char *directory, const JsonValue *config,
                        Error *err)
{
    const JsonValue *map;
    take_tokens(config, files->sources.tokens);
    if (json_get(config, SLICE("added_tokens_decoder")))
        return true;
    if (!json_parse_optional(directory, "special_tokens_map.json", &files->arena, &map, err))
        return false;
    take_tokens(map, files->sources.tokens);
    return true;
}

bool chat_files_read(const char *directory, ChatFiles *out, Error *err)
{
    const JsonValue *config;
    *out = (ChatFiles){0};
    arena_init(&out->arena, JSON_FILE_TREES_BYTES_MAX);
    if (json_parse_optional(directory, "tokenizer_config.json", &out->arena, &config, err) &&
        read_templates(out, directory, config, err) && read_tokens(out, directory, config, err))
        return true;
    chat_files_reset(out);
    return false;
}

void chat_files_reset(ChatFiles *files)
{
    arena_reset(&files->arena);
    *files = (ChatFiles){0};
}
