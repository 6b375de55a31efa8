/* Messages as templates expect them.
 *
 * Always: a message with one of reasoning_content, thinking, reasoning gets both `thinking` (in
 * front, its own value kept) and `reasoning_content`, as transformers 5 does. On request: a content
 * of text parts becomes one string, and tool-call arguments given as JSON text become values, so
 * that templates which concatenate or iterate find what they were written for. Unchanged parts are
 * shared with the input. */
#include "chat_internal.h"

#include <string.h>

static JsonMember *new_members(Arena *scratch, size_t count, Error *err)
{
    JsonMember *members = arena_allocate_array(scratch, count, sizeof(*members));
    if (!members)
        error_no_memory(err, "chat messages");
    return members;
}

/* Puts value under key: in place of the last member of that name, else behind the others. */
static void set_member(JsonMember *members, size_t *count, const char *key, const JsonValue *value)
{
    size_t at = *count;
    for (size_t i = 0; i < *count; i++) {
        if (slice_equal(members[i].key, slice_of(key)))
            at = i;
    }
    members[at] = (JsonMember){slice_of(key), *value};
    *count += at == *count;
}

static const JsonValue *find_reasoning(const JsonValue *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        const JsonValue *value = json_get_present(message, names[i]);
        if (value)
            return value;
    }
    return NULL;
}

/* The text of a part of type text or refusal, which holds it under the same name; else NULL. */
static const JsonValue *part_text(const JsonValue *part)
{
    static const char *const types[] = {"text", "refusal"};
    const JsonValue *type = json_get_present(part, "type");
    for (size_t i = 0; i < ARRAY_COUNT(types) && json_is(type, JSON_STRING); i++) {
        const JsonValue *text = json_get_present(part, types[i]);
        if (slice_equal(type->as.string, slice_of(types[i])) && json_is(text, JSON_STRING))
            return text;
    }
    return NULL;
}

/* An array of nothing but text parts becomes their concatenation; anything else stays. */
static bool join_parts(const JsonValue *content, Arena *scratch, JsonValue *out, Error *err)
{
    size_t len = 0;
    *out = *content;
    if (content->kind != JSON_ARRAY || content->as.array.count == 0)
        return true;
    for (size_t i = 0; i < content->as.array.count; i++) {
        const JsonValue *text = part_text(&content->as.array.items[i]);
        if (!text)
            return true;
        if (!size_add(len, text->as.string.len, &len))
            return error_no_memory(err, "chat messages");
    }
    char *joined = len < SIZE_MAX ? arena_allocate(scratch, len + 1) : NULL;
    if (!joined)
        return error_no_memory(err, "chat messages");
    *out = (JsonValue){.kind = JSON_STRING, .as.string = {joined, len}};
    for (size_t i = 0; i < content->as.array.count; i++) {
        Slice text = part_text(&content->as.array.items[i])->as.string;
        if (text.len)
            memcpy(joined, text.ptr, text.len);
        joined += text.len;
    }
    *joined = '\0';
    return true;
}

/* A copy of object with one member replaced. */
static bool replace_member(const JsonValue *object, const char *key, const JsonValue *value,
                           Arena *scratch, JsonValue *out, Error *err)
{
    size_t count = object->as.object.count;
    JsonMember *members = new_members(scratch, count + 1, err);
    if (!members)
        return false;
    if (count)
        memcpy(members, object->as.object.members, count * sizeof(*members));
    set_member(members, &count, key, value);
    *out = (JsonValue){.kind = JSON_OBJECT, .as.object = {members, count}};
    return true;
}

/* {"function": {"arguments": "{...}"}} with the text parsed; text that is no JSON stays text, but
 * no text at all is what some clients have for a call without arguments. */
static bool parse_arguments(const JsonValue *call, Arena *scratch, JsonValue *out, Error *err)
{
    const JsonValue *function = json_get_present(call, "function"), *parsed;
    const JsonValue *arguments = json_get_present(function, "arguments");
    JsonValue changed;
    *out = *call;
    if (!json_is(arguments, JSON_STRING))
        return true;
    Error ignored = {.code = ERROR_NONE};
    Slice text = arguments->as.string.len > 0 ? arguments->as.string : SLICE("{}");
    if (!json_parse(text, scratch, &parsed, &ignored)) {
        if (ignored.code != ERROR_MEMORY)
            return true;
        return error_no_memory(err, "chat messages");
    }
    return replace_member(function, "arguments", parsed, scratch, &changed, err) &&
           replace_member(call, "function", &changed, scratch, out, err);
}

static bool parse_tool_calls(const JsonValue *calls, Arena *scratch, JsonValue *out, Error *err)
{
    *out = *calls;
    if (calls->kind != JSON_ARRAY || calls->as.array.count == 0)
        return true;
    JsonValue *items = arena_allocate_array(scratch, calls->as.array.count, sizeof(*items));
    if (!items)
        return error_no_memory(err, "chat messages");
    for (size_t i = 0; i < calls->as.array.count; i++) {
        if (!parse_arguments(&calls->as.array.items[i], scratch, &items[i], err))
            return false;
    }
    out->as.array.items = items;
    return true;
}

/* Content and tool calls of one message, in its own copy of the members. */
static bool rewrite_members(JsonMember *members, size_t count, ChatPreparation preparation,
                            Arena *scratch, Error *err)
{
    for (size_t i = 0; i < count; i++) {
        JsonValue value = members[i].value;
        bool ok = true;
        if (preparation.join_content && slice_equal(members[i].key, SLICE("content")))
            ok = join_parts(&value, scratch, &members[i].value, err);
        else if (preparation.parse_arguments && slice_equal(members[i].key, SLICE("tool_calls")))
            ok = parse_tool_calls(&value, scratch, &members[i].value, err);
        if (!ok)
            return false;
    }
    return true;
}

static bool prepare_message(const JsonValue *message, ChatPreparation preparation, Arena *scratch,
                            JsonValue *out, Error *err)
{
    const JsonValue *reasoning = find_reasoning(message);
    bool rewrites = preparation.join_content || preparation.parse_arguments;
    *out = *message;
    if (message->kind != JSON_OBJECT || (!reasoning && !rewrites))
        return true;
    size_t count = 0;
    JsonMember *members = new_members(scratch, message->as.object.count + 2, err);
    if (!members)
        return false;
    if (reasoning)
        members[count++] = (JsonMember){SLICE("thinking"), *reasoning};
    for (size_t i = 0; i < message->as.object.count; i++) {
        const JsonMember *member = &message->as.object.members[i];
        if (reasoning && slice_equal(member->key, SLICE("thinking")))
            members[0] = *member;
        else
            members[count++] = *member;
    }
    if (reasoning)
        set_member(members, &count, "reasoning_content", reasoning);
    if (rewrites && !rewrite_members(members, count, preparation, scratch, err))
        return false;
    *out = (JsonValue){.kind = JSON_OBJECT, .as.object = {members, count}};
    return true;
}

bool chat_messages_prepare(const JsonValue *messages, ChatPreparation preparation, Arena *scratch,
                           JsonValue *out, Error *err)
{
    if (!json_is(messages, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "messages: expected an array");
    size_t count = messages->as.array.count;
    JsonValue *items = arena_allocate_array(scratch, count, sizeof(*items));
    if (!items)
        return error_no_memory(err, "chat messages");
    for (size_t i = 0; i < count; i++) {
        if (messages->as.array.items[i].kind != JSON_OBJECT)
            return error_set(err, ERROR_INVALID, "messages[%zu]: expected an object", i);
        if (!prepare_message(&messages->as.array.items[i], preparation, scratch, &items[i], err))
            return false;
    }
    *out = (JsonValue){.kind = JSON_ARRAY, .as.array = {items, count}};
    return true;
}
