/* A model's chat template and its rendering. */
#include "chat_internal.h"
#include "jinja.h"

#include <string.h>

enum {
    TEMPLATE_ARENA_BYTES_MAX = 4 << 20, /* source and tokens */
    TOKEN_BYTES_MAX = 1 << 10,
};

/* A template as it is rendered. */
typedef struct Variant {
    JinjaTemplate *jinja;
    ChatToolSupport support;
} Variant;

struct ChatTemplate {
    Arena arena;               /* of the slices below */
    Variant plain, with_tools; /* the latter without jinja: one for all conversations */
    Slice source;              /* of the plain one */
    Slice tokens[CHAT_TOKENS];
    Markup markup;
    bool is_default;
};

static const Variant *choose_variant(const ChatTemplate *tmpl, bool with_tools)
{
    return with_tools && tmpl->with_tools.jinja ? &tmpl->with_tools : &tmpl->plain;
}

static bool create_variant(const ChatSource *source, Variant *out, Error *err)
{
    chat_tools_find_support(source->text, &out->support);
    return jinja_template_create(source->text, source->name, &out->jinja, err);
}

/* Calls are written as the template for tools has them. */
static void find_markup(ChatTemplate *tmpl, const ChatSources *sources)
{
    chat_markup_find(sources->source.text, &tmpl->markup);
    if (!tmpl->with_tools.jinja)
        return;
    Markup with_tools;
    chat_markup_find(sources->tool_source.text, &with_tools);
    tmpl->markup.calls = with_tools.calls;
    if (tmpl->markup.think_open.len == 0) {
        tmpl->markup.think_open = with_tools.think_open;
        tmpl->markup.think_close = with_tools.think_close;
    }
}

static bool copy_tokens(const ChatSources *sources, ChatTemplate *tmpl, Error *err)
{
    for (int i = 0; i < CHAT_TOKENS; i++) {
        if (sources->tokens[i].len > TOKEN_BYTES_MAX)
            return error_set(err, ERROR_LIMIT, "%s: %s exceeds %d bytes", sources->source.name,
                             chat_token_name((ChatToken)i), TOKEN_BYTES_MAX);
        if (!arena_copy_slice(&tmpl->arena, sources->tokens[i], &tmpl->tokens[i]))
            return error_no_memory(err, "chat template");
    }
    return true;
}

static bool create(const ChatSources *sources, ChatTemplate **out, Error *err)
{
    *out = NULL;
    ChatTemplate *tmpl = memory_allocate_zeroed(1, sizeof(*tmpl));
    if (!tmpl)
        return error_no_memory(err, "chat template");
    arena_init(&tmpl->arena, TEMPLATE_ARENA_BYTES_MAX);
    bool ok = create_variant(&sources->source, &tmpl->plain, err) &&
              (sources->tool_source.text.len == 0 ||
               create_variant(&sources->tool_source, &tmpl->with_tools, err)) &&
              copy_tokens(sources, tmpl, err);
    if (ok && !arena_copy_slice(&tmpl->arena, sources->source.text, &tmpl->source))
        ok = error_no_memory(err, "chat template");
    if (!ok) {
        chat_template_free(tmpl);
        return false;
    }
    find_markup(tmpl, sources);
    *out = tmpl;
    return true;
}

bool chat_template_create(Slice source, const char *name, Slice bos_token, Slice eos_token,
                          ChatTemplate **out, Error *err)
{
    const ChatSources sources = {
        .source = {name, source},
        .tokens = {[CHAT_TOKEN_BOS] = bos_token, [CHAT_TOKEN_EOS] = eos_token}};
    return create(&sources, out, err);
}

void chat_template_free(ChatTemplate *tmpl)
{
    if (!tmpl)
        return;
    jinja_template_free(tmpl->plain.jinja);
    jinja_template_free(tmpl->with_tools.jinja);
    arena_reset(&tmpl->arena);
    memory_free(tmpl);
}

bool chat_template_open(const char *model_directory, Slice model_type, ChatTemplate **out,
                        Error *err)
{
    ChatFiles files;
    *out = NULL;
    if (!chat_files_read(model_directory, &files, err))
        return false;
    bool is_default = files.sources.source.text.len == 0;
    if (is_default)
        files.sources.source =
            (ChatSource){"default chat template", chat_default_source(model_type)};
    bool ok = create(&files.sources, out, err);
    if (ok)
        (*out)->is_default = is_default;
    chat_files_reset(&files);
    return ok;
}

Slice chat_template_bos_token(const ChatTemplate *tmpl)
{
    return tmpl->tokens[CHAT_TOKEN_BOS];
}

Slice chat_template_eos_token(const ChatTemplate *tmpl)
{
    return tmpl->tokens[CHAT_TOKEN_EOS];
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
    return choose_variant(tmpl, true)->support.takes_one_call;
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
static void add_token(const ChatTemplate *tmpl, ChatToken token, const JsonValue *given,
                      JsonMember *members, size_t *count)
{
    Slice own = tmpl->tokens[token];
    JsonValue value = {.kind = JSON_STRING, .as.string = own};
    if (given)
        value = *given;
    if (given ? value.kind == JSON_STRING : own.len > 0)
        add_variable(members, count, chat_token_name(token), &value);
}

static void add_tokens(const ChatTemplate *tmpl, const ChatRequest *request, JsonMember *members,
                       size_t *count)
{
    const JsonValue *given[CHAT_TOKENS] = {
        [CHAT_TOKEN_BOS] = request->bos_token, [CHAT_TOKEN_EOS] = request->eos_token};
    for (int i = 0; i < CHAT_TOKENS; i++)
        add_token(tmpl, (ChatToken)i, given[i], members, count);
}

static bool render(const ChatTemplate *tmpl, const ChatRequest *request,
                   ChatPreparation preparation, Arena *scratch, Buffer *out, Error *err)
{
    enum { VARIABLES = 4 }; /* beside the tokens */
    JsonMember members[VARIABLES + CHAT_TOKENS];
    size_t count = 0;
    JsonValue messages,
        generation = {.kind = JSON_BOOL, .as.boolean = request->add_generation_prompt};
    const JsonValue *tools = request->tools;
    bool with_tools = tools && !(request->for_reply && tools->as.array.count == 0);
    const Variant *variant = choose_variant(tmpl, with_tools);
    if (!chat_messages_prepare(request->messages, preparation, scratch, &messages, err))
        return false;
    if (request->for_reply && !chat_tools_rewrite(&variant->support, &tmpl->markup.calls, &tools,
                                                  &messages, scratch, err))
        return false;
    add_variable(members, &count, "messages", &messages);
    add_variable(members, &count, "tools", tools);
    add_variable(members, &count, "documents", request->documents);
    add_variable(members, &count, "add_generation_prompt", &generation);
    add_tokens(tmpl, request, members, &count);
    JsonValue variables = {.kind = JSON_OBJECT, .as.object = {members, count}};
    JinjaContext context = {
        .variables = &variables, .more = request->kwargs, .now_text = request->now_text};
    return jinja_template_render(variant->jinja, &context, out, err);
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
