/* Tools for templates that know none.
 *
 * The tools go into the system message (in front of the first user message where a template refuses
 * system messages), with the form that calls must have: the same form that replies are held to.
 * Calls of earlier turns are written as the model would have written them, results as a message of
 * the user. */
#include "chat_internal.h"

#include <string.h>

enum {
    TOOLS_TEXT_BYTES_MAX = 64 << 20,
    SHORT_ID_LENGTH = 9,
};

static bool holds(Slice source, const char *text)
{
    return slice_find(source, slice_of(text), 0) < source.len;
}

void chat_tools_find_support(Slice source, ChatToolSupport *out)
{
    *out = (ChatToolSupport){
        .writes_tools = holds(source, "tools"),
        .writes_calls = holds(source, "tool_calls"),
        .refuses_system = holds(source, "System role not supported"),
        .takes_one_call = holds(source, "single tool-calls at once"),
        .wants_short_ids = holds(source, "alphanumeric strings with length 9"),
    };
}

static bool no_memory(Error *err)
{
    return error_no_memory(err, "chat messages");
}

/* Takes the buffer's bytes into the arena. */
static bool keep_text(Buffer *text, Arena *scratch, JsonValue *out, Error *err)
{
    Slice copy;
    bool ok = buffer_check(text, "tools in messages", err);
    if (ok && !arena_copy_slice(scratch, buffer_view(text), &copy))
        ok = no_memory(err);
    if (ok)
        *out = (JsonValue){.kind = JSON_STRING, .as.string = copy};
    buffer_reset(text);
    return ok;
}

static Slice string_of(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get_present(object, key);
    return json_is(value, JSON_STRING) ? value->as.string : SLICE_EMPTY;
}

static bool has_role(const JsonValue *message, const char *role)
{
    return slice_equal(string_of(message, "role"), slice_of(role));
}

/* {"role": role, "content": content} */
static bool make_message(const char *role, const JsonValue *content, Arena *scratch, JsonValue *out,
                         Error *err)
{
    JsonMember *members = arena_allocate_array(scratch, 2, sizeof(*members));
    if (!members)
        return no_memory(err);
    members[0] = (JsonMember){SLICE("role"), {.kind = JSON_STRING, .as.string = slice_of(role)}};
    members[1] = (JsonMember){SLICE("content"), *content};
    *out = (JsonValue){.kind = JSON_OBJECT, .as.object = {members, 2}};
    return true;
}

/* ---- Short ids ---- */

/* Equal ids stay equal, different ones different but for an accident of 54 bits. */
static bool shorten_id(const JsonValue *id, Arena *scratch, JsonValue *out, Error *err)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    *out = *id;
    if (id->kind != JSON_STRING || id->as.string.len == SHORT_ID_LENGTH)
        return true;
    char *text = arena_allocate(scratch, SHORT_ID_LENGTH + 1);
    if (!text)
        return no_memory(err);
    uint64_t hash = slice_hash(id->as.string);
    for (size_t i = 0; i < SHORT_ID_LENGTH; i++, hash /= 62)
        text[i] = digits[hash % 62];
    text[SHORT_ID_LENGTH] = '\0';
    *out = (JsonValue){.kind = JSON_STRING, .as.string = {text, SHORT_ID_LENGTH}};
    return true;
}

static bool shorten_ids(JsonValue *value, Arena *scratch, Error *err);

/* A copy of the object with the ids in it shortened; tool_calls are gone into. */
static bool shorten_in_object(JsonValue *object, Arena *scratch, Error *err)
{
    size_t count = object->as.object.count;
    JsonMember *members = arena_allocate_array(scratch, count, sizeof(*members));
    if (!members)
        return no_memory(err);
    for (size_t i = 0; i < count; i++) {
        members[i] = object->as.object.members[i];
        bool is_id = slice_equal(members[i].key, SLICE("id")) ||
                     slice_equal(members[i].key, SLICE("tool_call_id"));
        JsonValue value = members[i].value;
        if (is_id ? !shorten_id(&value, scratch, &members[i].value, err)
                  : slice_equal(members[i].key, SLICE("tool_calls")) &&
                        !shorten_ids(&members[i].value, scratch, err))
            return false;
    }
    object->as.object.members = members;
    return true;
}

static bool shorten_ids(JsonValue *value, Arena *scratch, Error *err)
{
    if (value->kind != JSON_ARRAY)
        return true;
    size_t count = value->as.array.count;
    JsonValue *items = arena_allocate_array(scratch, count, sizeof(*items));
    if (!items)
        return no_memory(err);
    for (size_t i = 0; i < count; i++) {
        items[i] = value->as.array.items[i];
        if (items[i].kind == JSON_OBJECT && !shorten_in_object(&items[i], scratch, err))
            return false;
    }
    value->as.array.items = items;
    return true;
}

/* ---- Calls and results as text ---- */

static void append_json(const JsonValue *value, Buffer *out)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_value(&writer, value);
}

static void append_call(const MarkupCalls *form, const JsonValue *call, Buffer *out)
{
    const JsonValue *function = json_get_present(call, "function");
    const JsonValue *arguments = json_get_present(function, "arguments");
    buffer_append_slice(out, form->before_name);
    buffer_append_slice(out, string_of(function, "name"));
    buffer_append_slice(out, form->after_name);
    if (json_is(arguments, JSON_STRING))
        buffer_append_slice(out, arguments->as.string);
    else if (arguments)
        append_json(arguments, out);
    buffer_append_slice(out, form->after_arguments);
}

static bool write_calls(const MarkupCalls *form, const JsonValue *message, const JsonValue *calls,
                        Arena *scratch, JsonValue *out, Error *err)
{
    Buffer text;
    JsonValue content;
    Slice before = string_of(message, "content");
    buffer_init(&text, TOOLS_TEXT_BYTES_MAX);
    buffer_append_slice(&text, before);
    if (before.len > 0 && !slice_ends_with(before, SLICE("\n")))
        buffer_append_byte(&text, '\n');
    buffer_append_slice(&text, form->triggers[0].text);
    buffer_append_slice(&text, form->before_calls);
    for (size_t i = 0; i < calls->as.array.count; i++) {
        if (i > 0)
            buffer_append_slice(&text, form->between_calls);
        append_call(form, &calls->as.array.items[i], &text);
    }
    buffer_append_slice(&text, form->after_calls);
    return keep_text(&text, scratch, &content, err) &&
           make_message("assistant", &content, scratch, out, err);
}

/* The results from messages[*at] on, as one message of the user; *at is left on the last. */
static bool write_results(const JsonValue *messages, size_t *at, Arena *scratch, JsonValue *out,
                          Error *err)
{
    Buffer text;
    JsonValue content;
    size_t first = *at;
    buffer_init(&text, TOOLS_TEXT_BYTES_MAX);
    for (;;) {
        const JsonValue *message = &messages->as.array.items[*at];
        if (*at > first)
            buffer_append_byte(&text, '\n');
        buffer_append_text(&text, "<tool_response>\n");
        buffer_append_slice(&text, string_of(message, "content"));
        buffer_append_text(&text, "\n</tool_response>");
        if (*at + 1 == messages->as.array.count ||
            !has_role(&messages->as.array.items[*at + 1], "tool"))
            break;
        ++*at;
    }
    return keep_text(&text, scratch, &content, err) &&
           make_message("user", &content, scratch, out, err);
}

/* ---- The tools ---- */

static void append_tools(const MarkupCalls *form, const JsonValue *tools, Buffer *out)
{
    static const JsonValue nothing = {.kind = JSON_OBJECT};
    const JsonMember name = {SLICE("name"), {.kind = JSON_STRING, .as.string = SLICE("NAME")}};
    const JsonMember members[] = {name, {SLICE("arguments"), nothing}};
    const JsonValue function = {.kind = JSON_OBJECT, .as.object = {members, 2}};
    const JsonMember call_member = {SLICE("function"), function};
    const JsonValue call = {.kind = JSON_OBJECT, .as.object = {&call_member, 1}};
    buffer_append_text(out, "You can call these tools, one description in JSON a line:\n<tools>\n");
    for (size_t i = 0; i < tools->as.array.count; i++) {
        append_json(&tools->as.array.items[i], out);
        buffer_append_byte(out, '\n');
    }
    buffer_append_text(out, "</tools>\nTo call a tool, reply in exactly this form, with the tool's "
                            "name for NAME and its arguments as a JSON object for {}:\n");
    buffer_append_slice(out, form->triggers[0].text);
    buffer_append_slice(out, form->before_calls);
    append_call(form, &call, out);
    buffer_append_slice(out, form->after_calls);
    buffer_append_text(out, "\nIts result comes back in <tool_response></tool_response>.");
}

/* The message's text with the tools at its end (before_text false) or before it. */
static bool join_tools(const MarkupCalls *form, const JsonValue *tools, Slice own, bool before_text,
                       Arena *scratch, JsonValue *out, Error *err)
{
    Buffer text;
    buffer_init(&text, TOOLS_TEXT_BYTES_MAX);
    if (!before_text && own.len > 0) {
        buffer_append_slice(&text, own);
        buffer_append_text(&text, "\n\n");
    }
    append_tools(form, tools, &text);
    if (before_text) {
        buffer_append_text(&text, "\n\n");
        buffer_append_slice(&text, own);
    }
    return keep_text(&text, scratch, out, err);
}

/* Puts the tools into items[0 .. count), which has room for one message more. */
static bool place_tools(const ChatToolSupport *support, const MarkupCalls *form,
                        const JsonValue *tools, JsonValue *items, size_t *count, Arena *scratch,
                        Error *err)
{
    JsonValue content;
    size_t at = 0;
    if (support->refuses_system) {
        while (at < *count && !has_role(&items[at], "user"))
            at++;
        if (at == *count)
            return error_set(err, ERROR_INVALID, "tools need a message of the user");
        return join_tools(form, tools, string_of(&items[at], "content"), true, scratch, &content,
                          err) &&
               make_message("user", &content, scratch, &items[at], err);
    }
    bool has_system = *count > 0 && has_role(&items[0], "system");
    if (!has_system) {
        memmove(items + 1, items, *count * sizeof(*items));
        ++*count;
    }
    Slice own = has_system ? string_of(&items[0], "content") : SLICE_EMPTY;
    return join_tools(form, tools, own, false, scratch, &content, err) &&
           make_message("system", &content, scratch, &items[0], err);
}

/* Calls and results as text; *count is what messages items [room for all] get. */
static bool rewrite_history(const MarkupCalls *form, const JsonValue *messages, JsonValue *items,
                            size_t *count, Arena *scratch, Error *err)
{
    for (size_t i = 0; i < messages->as.array.count; i++) {
        const JsonValue *message = &messages->as.array.items[i];
        const JsonValue *calls = json_get_present(message, "tool_calls");
        JsonValue *item = &items[(*count)++];
        bool ok = true;
        if (has_role(message, "tool"))
            ok = write_results(messages, &i, scratch, item, err);
        else if (json_is(calls, JSON_ARRAY) && calls->as.array.count > 0)
            ok = write_calls(form, message, calls, scratch, item, err);
        else
            *item = *message;
        if (!ok)
            return false;
    }
    return true;
}

/* ---- Public ---- */

bool chat_tools_rewrite(const ChatToolSupport *support, const MarkupCalls *calls,
                        const JsonValue **tools, JsonValue *messages, Arena *scratch, Error *err)
{
    size_t count = 0, n = messages->as.array.count;
    if (*tools && (*tools)->as.array.count == 0)
        *tools = NULL;
    bool places_tools = *tools && !support->writes_tools;
    if (support->wants_short_ids && !shorten_ids(messages, scratch, err))
        return false;
    if (support->writes_calls && !places_tools)
        return true;
    JsonValue *items = n < SIZE_MAX ? arena_allocate_array(scratch, n + 1, sizeof(*items)) : NULL;
    if (!items)
        return no_memory(err);
    if (support->writes_calls) {
        memcpy(items, messages->as.array.items, n * sizeof(*items));
        count = n;
    } else if (!rewrite_history(calls, messages, items, &count, scratch, err)) {
        return false;
    }
    if (places_tools) {
        if (!place_tools(support, calls, *tools, items, &count, scratch, err))
            return false;
        *tools = NULL;
    }
    *messages = (JsonValue){.kind = JSON_ARRAY, .as.array = {items, count}};
    return true;
}
