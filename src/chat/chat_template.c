/* A model's chat template: where it is found, and its rendering. */
#include "chat_internal.h"
#include "jinja.h"

#include <string.h>

enum {
    TOKENIZER_CONFIG_BYTES_MAX = 64 << 20,
    TEMPLATE_ARENA_BYTES_MAX = 4 << 20, /* source and the two tokens */
    TOKEN_BYTES_MAX = 1 << 10,
};

struct ChatTemplate {
    Arena arena; /* of the slices below */
    JinjaTemplate *jinja;
    Slice source, bos_token, eos_token;
    Markup markup;
    ChatToolSupport tools;
    bool is_default;
};

bool chat_template_create(Slice source, const char *name, Slice bos_token, Slice eos_token,
                          ChatTemplate **out, Error *err)
{
    *out = NULL;
    ChatTemplate *tmpl = memory_allocate_zeroed(1, sizeof(*tmpl));
    if (!tmpl)
        return error_no_memory(err, "chat template");
    arena_init(&tmpl->arena, TEMPLATE_ARENA_BYTES_MAX);
    if (!jinja_template_create(source, name, &tmpl->jinja, err))
        goto fail;
    if (bos_token.len > TOKEN_BYTES_MAX || eos_token.len > TOKEN_BYTES_MAX) {
        error_set(err, ERROR_LIMIT, "%s: bos_token or eos_token exceeds %d bytes", name,
                  TOKEN_BYTES_MAX);
        goto fail;
    }
    if (!arena_copy_slice(&tmpl->arena, source, &tmpl->source) ||
        !arena_copy_slice(&tmpl->arena, bos_token, &tmpl->bos_token) ||
        !arena_copy_slice(&tmpl->arena, eos_token, &tmpl->eos_token)) {
        error_no_memory(err, "chat template");
        goto fail;
    }
    chat_markup_find(source, &tmpl->markup);
    chat_tools_find_support(source, &tmpl->tools);
    *out = tmpl;
    return true;
fail:
    chat_template_free(tmpl);
    return false;
}

void chat_template_free(ChatTemplate *tmpl)
{
    if (!tmpl)
        return;
    jinja_template_free(tmpl->jinja);
    arena_reset(&tmpl->arena);
    memory_free(tmpl);
}

/* bos_token and eos_token are strings or objects with a content. */
static Slice token_of_config(const JsonValue *config, const char *key)
{
    const JsonValue *token = json_get_present(config, key);
    if (json_is(token, JSON_OBJECT))
        token = json_get_present(token, "content");
    return json_is(token, JSON_STRING) ? token->as.string : SLICE_EMPTY;
}

/* chat_template is a string or a list of {name, template}, of which "default" (or the only one)
 * counts. */
static Slice source_of_config(const JsonValue *config)
{
    const JsonValue *value = json_get_present(config, "chat_template");
    if (json_is(value, JSON_STRING))
        return value->as.string;
    for (size_t i = 0; json_is(value, JSON_ARRAY) && i < value->as.array.count; i++) {
        const JsonValue *name = json_get_present(&value->as.array.items[i], "name");
        const JsonValue *text = json_get_present(&value->as.array.items[i], "template");
        bool wanted =
            value->as.array.count == 1 ||
            (json_is(name, JSON_STRING) && slice_equal(name->as.string, SLICE("default")));
        if (wanted && json_is(text, JSON_STRING))
            return text->as.string;
    }
    return SLICE_EMPTY;
}

/* Reads tokenizer_config.json into arena; *config is NULL when the model has none. */
static bool read_config(const char *directory, Buffer *bytes, Arena *arena,
                        const JsonValue **config, Error *err)
{
    char path[PATH_BYTES_MAX];
    *config = NULL;
    if (!path_join(path, sizeof(path), directory, "tokenizer_config.json", err))
        return false;
    if (!file_exists(path))
        return true;
    if (!file_read(path, TOKENIZER_CONFIG_BYTES_MAX, bytes, err))
        return false;
    return json_parse(buffer_view(bytes), arena, config, err) || error_prefix(err, "%s", path);
}

bool chat_template_open(const char *model_directory, Slice model_type, ChatTemplate **out,
                        Error *err)
{
    char path[PATH_BYTES_MAX];
    Arena arena;
    Buffer config_bytes, file_bytes;
    const JsonValue *config;
    const char *name = "chat_template.jinja";
    bool is_default = false, ok = false;
    *out = NULL;
    arena_init(&arena, (size_t)TOKENIZER_CONFIG_BYTES_MAX * 8);
    buffer_init(&config_bytes, TOKENIZER_CONFIG_BYTES_MAX);
    buffer_init(&file_bytes, JINJA_SOURCE_BYTES_MAX);
    if (!read_config(model_directory, &config_bytes, &arena, &config, err) ||
        !path_join(path, sizeof(path), model_directory, name, err))
        goto cleanup;
    Slice source;
    if (file_exists(path)) {
        if (!file_read(path, JINJA_SOURCE_BYTES_MAX, &file_bytes, err))
            goto cleanup;
        source = buffer_view(&file_bytes);
    } else {
        source = source_of_config(config);
        name = "chat_template";
    }
    if (source.len == 0) {
        source = chat_default_source(model_type);
        name = "default chat template";
        is_default = true;
    }
    ok = chat_template_create(source, name, token_of_config(config, "bos_token"),
                              token_of_config(config, "eos_token"), out, err);
    if (ok)
        (*out)->is_default = is_default;
cleanup:
    buffer_reset(&file_bytes);
    buffer_reset(&config_bytes);
    arena_reset(&arena);
    return ok;
}

Slice chat_template_bos_token(const ChatTemplate *tmpl)
{
    return tmpl->bos_token;
}

Slice chat_template_eos_token(const ChatTemplate *tmpl)
{
    return tmpl->eos_token;
}

Slice chat_template_source(const ChatTemplate *tmpl)
{
    return tmpl->source;
}

bool chat_template_is_default(const ChatTemplate *tmpl)
{
    return tmpl->is_default;
}

const Markup *chat_template_markup(const ChatTemplate *tmpl)
{
    return &tmpl->markup;
}

bool chat_template_takes_one_call(const ChatTemplate *tmpl)
{
    return tmpl->tools.takes_one_call;
}

/* ---- Rendering ---- */

static void add_variable(JsonMember *members, size_t *count, const char *name,
                         const JsonValue *value)
{
    members[*count].key = slice_of(name);
    members[*count].value = value ? *value : (JsonValue){.kind = JSON_NULL};
    (*count)++;
}

/* A token is only defined when there is one. */
static void add_token(JsonMember *members, size_t *count, const char *name, const JsonValue *given,
                      Slice own)
{
    JsonValue value = {.kind = JSON_STRING, .as.string = own};
    if (given)
        value = *given;
    if (given ? value.kind == JSON_STRING : own.len > 0)
        add_variable(members, count, name, &value);
}

static bool render(const ChatTemplate *tmpl, const ChatRequest *request,
                   ChatPreparation preparation, Arena *scratch, Buffer *out, Error *err)
{
    JsonMember members[6];
    size_t count = 0;
    JsonValue messages,
        generation = {.kind = JSON_BOOL, .as.boolean = request->add_generation_prompt};
    const JsonValue *tools = request->tools;
    if (!chat_messages_prepare(request->messages, preparation, scratch, &messages, err))
        return false;
    if (request->for_reply &&
        !chat_tools_rewrite(&tmpl->tools, &tmpl->markup.calls, &tools, &messages, scratch, err))
        return false;
    add_variable(members, &count, "messages", &messages);
    add_variable(members, &count, "tools", tools);
    add_variable(members, &count, "documents", request->documents);
    add_variable(members, &count, "add_generation_prompt", &generation);
    add_token(members, &count, "bos_token", request->bos_token, tmpl->bos_token);
    add_token(members, &count, "eos_token", request->eos_token, tmpl->eos_token);
    JsonValue variables = {.kind = JSON_OBJECT, .as.object = {members, count}};
    JinjaContext context = {
        .variables = &variables, .more = request->kwargs, .now_text = request->now_text};
    return jinja_template_render(tmpl->jinja, &context, out, err);
}

static bool has_calls(const JsonValue *messages)
{
    for (size_t i = 0; json_is(messages, JSON_ARRAY) && i < messages->as.array.count; i++) {
        if (json_get_present(&messages->as.array.items[i], "tool_calls"))
            return true;
    }
    return false;
}

bool chat_template_render(const ChatTemplate *tmpl, const ChatRequest *request, Arena *scratch,
                          Buffer *out, Error *err)
{
    ChatPreparation preparation = {request->for_reply, request->for_reply};
    size_t before = out->len;
    if (render(tmpl, request, preparation, scratch, out, err))
        return true;
    if (!request->for_reply || err->code != ERROR_INVALID || !has_calls(request->messages))
        return false;
    /* A few templates were written for arguments that are text. */
    Error again = {0};
    preparation.parse_arguments = false;
    out->len = before;
    if (render(tmpl, request, preparation, scratch, out, &again))
        return true;
    out->len = before;
    return false;
}
