#include "chat_request.h"
#include "server.h"

#include <stdio.h>

/* Members that are checked or replaced; all others pass as they are. */
static const char *const MESSAGE_MEMBERS[] = {"role",       "content",      "name",
                                              "tool_calls", "tool_call_id", "reasoning_content"};

typedef struct MessageReader {
    Arena *arena;
    HttpError *error;
    size_t index;
    char param[HTTP_PARAM_BYTES_MAX]; /* scratch: "messages[3].content" */
} MessageReader;

static const char *param_of(MessageReader *reader, const char *member)
{
    snprintf(reader->param, sizeof(reader->param), "messages[%zu]%s%s", reader->index,
             member[0] ? "." : "", member);
    return reader->param;
}

static bool no_memory(MessageReader *reader)
{
    return http_error_set(reader->error, FAULT_INTERNAL, NULL, "Out of memory for the messages.");
}

static JsonValue string_value(Slice text)
{
    JsonValue value = {.kind = JSON_STRING};
    value.as.string = text;
    return value;
}

/* ---- Content ---- */

static bool check_part(MessageReader *reader, const JsonValue *part, size_t at, bool is_assistant)
{
    char member[64];
    Slice type = SLICE_EMPTY, text;
    snprintf(member, sizeof(member), "content[%zu]", at);
    if (part->kind != JSON_OBJECT)
        return field_wrong_type(part, param_of(reader, member), "an object", reader->error);
    snprintf(member, sizeof(member), "content[%zu].type", at);
    const JsonValue *type_value = json_get_present(part, "type");
    if (!type_value)
        return http_error_set(reader->error, FAULT_MISSING, param_of(reader, member),
                              "A part of a content needs a 'type'.");
    if (!field_read_string(type_value, param_of(reader, member), &type, reader->error))
        return false;
    bool is_refusal = is_assistant && slice_equal(type, SLICE("refusal"));
    if (!is_refusal && !slice_equal(type, SLICE("text"))) {
        bool is_known = slice_equal(type, SLICE("image_url")) ||
                        slice_equal(type, SLICE("input_audio")) || slice_equal(type, SLICE("file"));
        return http_error_set(reader->error, is_known ? FAULT_UNSUPPORTED_VALUE : FAULT_VALUE,
                              param_of(reader, member),
                              "This model takes text only; a part of type '%.*s' is not possible.",
                              QUOTE_ARG(type));
    }
    const char *name = is_refusal ? "refusal" : "text";
    const JsonValue *value = json_get_present(part, name);
    snprintf(member, sizeof(member), "content[%zu].%s", at, name);
    if (!value)
        return http_error_set(reader->error, FAULT_MISSING, param_of(reader, member),
                              "A part of type '%s' needs '%s'.", name, name);
    return field_read_string(value, param_of(reader, member), &text, reader->error);
}

/* Each part must be text; the chat room joins them. */
static bool check_parts(MessageReader *reader, const JsonValue *parts, bool is_assistant)
{
    size_t count = parts->as.array.count;
    if (count == 0)
        return http_error_set(reader->error, FAULT_EMPTY_ARRAY, param_of(reader, "content"),
                              "The array of content parts is empty.");
    for (size_t i = 0; i < count; i++) {
        if (!check_part(reader, &parts->as.array.items[i], i, is_assistant))
            return false;
    }
    return true;
}

static bool read_content(MessageReader *reader, const JsonValue *value, Slice role, bool has_calls,
                         JsonValue *out)
{
    bool is_assistant = slice_equal(role, SLICE("assistant"));
    if (!value) {
        /* Most templates look into the text without asking whether there is one. */
        *out = string_value(SLICE(""));
        if (is_assistant && has_calls)
            return true;
        return http_error_set(
            reader->error, FAULT_MISSING, param_of(reader, "content"),
            "A message needs a 'content' unless it is an assistant's with tool calls.");
    }
    *out = *value;
    if (value->kind == JSON_STRING)
        return true;
    if (value->kind == JSON_ARRAY)
        return check_parts(reader, value, is_assistant);
    return field_wrong_type(value, param_of(reader, "content"), "a string or an array of parts",
                            reader->error);
}

/* ---- Other members ---- */

static bool need_string(MessageReader *reader, const JsonValue *object, const char *key,
                        const char *path, Slice *out)
{
    const JsonValue *value = json_get_present(object, key);
    if (!value)
        return http_error_set(reader->error, FAULT_MISSING, param_of(reader, path),
                              "'%s' is missing.", reader->param);
    return field_read_string(value, param_of(reader, path), out, reader->error);
}

static bool check_tool_call(MessageReader *reader, const JsonValue *call, size_t at)
{
    char path[64];
    Slice text = SLICE("function");
    const JsonValue *function;
    snprintf(path, sizeof(path), "tool_calls[%zu]", at);
    if (call->kind != JSON_OBJECT)
        return field_wrong_type(call, param_of(reader, path), "an object", reader->error);
    snprintf(path, sizeof(path), "tool_calls[%zu].id", at);
    if (!need_string(reader, call, "id", path, &text))
        return false;
    text = SLICE("function");
    snprintf(path, sizeof(path), "tool_calls[%zu].type", at);
    if (!field_read_string(json_get_present(call, "type"), param_of(reader, path), &text,
                           reader->error))
        return false;
    if (!slice_equal(text, SLICE("function")))
        return http_error_set(reader->error, FAULT_VALUE, reader->param,
                              "A tool call of type '%.*s' is not possible; use 'function'.",
                              QUOTE_ARG(text));
    snprintf(path, sizeof(path), "tool_calls[%zu].function", at);
    if (!field_read_object(json_get(call, SLICE("function")), param_of(reader, path), &function,
                           reader->error))
        return false;
    if (!function)
        return http_error_set(reader->error, FAULT_MISSING, reader->param, "'%s' is missing.",
                              reader->param);
    snprintf(path, sizeof(path), "tool_calls[%zu].function.name", at);
    if (!need_string(reader, function, "name", path, &text))
        return false;
    snprintf(path, sizeof(path), "tool_calls[%zu].function.arguments", at);
    return need_string(reader, function, "arguments", path, &text);
}

static bool check_tool_calls(MessageReader *reader, const JsonValue *message, Slice role,
                             bool *has_calls)
{
    const JsonValue *calls;
    *has_calls = false;
    if (!field_read_array(json_get(message, SLICE("tool_calls")), param_of(reader, "tool_calls"),
                          &calls, reader->error))
        return false;
    if (!calls)
        return true;
    if (!slice_equal(role, SLICE("assistant")))
        return http_error_set(reader->error, FAULT_VALUE, param_of(reader, "tool_calls"),
                              "Only a message of the assistant has tool calls.");
    for (size_t i = 0; i < calls->as.array.count; i++) {
        if (!check_tool_call(reader, &calls->as.array.items[i], i))
            return false;
    }
    *has_calls = calls->as.array.count > 0;
    return true;
}

static bool read_role(MessageReader *reader, const JsonValue *message, Slice *role)
{
    static const char *const ROLES[] = {"system", "developer", "user", "assistant", "tool"};
    if (!need_string(reader, message, "role", "role", role))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(ROLES); i++) {
        if (slice_equal(*role, slice_of(ROLES[i])))
            return true;
    }
    return http_error_set(
        reader->error, FAULT_VALUE, param_of(reader, "role"),
        "The role '%.*s' is unknown; it is system, developer, user, assistant or tool.",
        QUOTE_ARG(*role));
}

static bool check_strings(MessageReader *reader, const JsonValue *message, Slice role)
{
    Slice text;
    if (slice_equal(role, SLICE("tool")) &&
        !need_string(reader, message, "tool_call_id", "tool_call_id", &text))
        return false;
    return field_read_string(json_get(message, SLICE("name")), param_of(reader, "name"), &text,
                             reader->error) &&
           field_read_string(json_get(message, SLICE("tool_call_id")),
                             param_of(reader, "tool_call_id"), &text, reader->error) &&
           field_read_string(json_get(message, SLICE("reasoning_content")),
                             param_of(reader, "reasoning_content"), &text, reader->error);
}

static bool is_known_member(Slice key)
{
    for (size_t i = 0; i < ARRAY_COUNT(MESSAGE_MEMBERS); i++) {
        if (slice_equal(key, slice_of(MESSAGE_MEMBERS[i])))
            return true;
    }
    return false;
}

/* Templates ask whether a message has a member, and clients send back all of a reply's: null and a
 * list of no calls are the same as none. */
static bool is_given(const JsonValue *known)
{
    return known && known->kind != JSON_NULL &&
           (known->kind != JSON_ARRAY || known->as.array.count > 0);
}

/* The message that the template gets. */
static bool build_message(MessageReader *reader, const JsonValue *message, Slice role,
                          const JsonValue *content, JsonValue *out)
{
    size_t count = message->as.object.count, n = 0;
    JsonMember *members =
        arena_allocate_array(reader->arena, count + ARRAY_COUNT(MESSAGE_MEMBERS), sizeof(*members));
    if (!members)
        return no_memory(reader);
    if (slice_equal(role, SLICE("developer")))
        role = SLICE("system");
    members[n++] = (JsonMember){SLICE("role"), string_value(role)};
    members[n++] = (JsonMember){SLICE("content"), *content};
    for (size_t i = 2; i < ARRAY_COUNT(MESSAGE_MEMBERS); i++) {
        const JsonValue *value = json_get(message, slice_of(MESSAGE_MEMBERS[i]));
        if (is_given(value))
            members[n++] = (JsonMember){slice_of(MESSAGE_MEMBERS[i]), *value};
    }
    for (size_t i = 0; i < count; i++) {
        const JsonMember *member = &message->as.object.members[i];
        if (!is_known_member(member->key) && member->value.kind != JSON_NULL)
            members[n++] = *member;
    }
    out->kind = JSON_OBJECT;
    out->as.object.members = members;
    out->as.object.count = n;
    return true;
}

static bool read_message(MessageReader *reader, const JsonValue *message, JsonValue *out)
{
    Slice role = SLICE_EMPTY;
    bool has_calls;
    JsonValue content;
    if (message->kind != JSON_OBJECT)
        return field_wrong_type(message, param_of(reader, ""), "an object", reader->error);
    return read_role(reader, message, &role) &&
           check_tool_calls(reader, message, role, &has_calls) &&
           read_content(reader, json_get_present(message, "content"), role, has_calls, &content) &&
           check_strings(reader, message, role) &&
           build_message(reader, message, role, &content, out);
}

bool chat_messages_read(const JsonValue *value, Arena *arena, const JsonValue **out,
                        HttpError *error)
{
    const JsonValue *array;
    *out = NULL;
    if (!field_read_array(value, "messages", &array, error))
        return false;
    if (!array)
        return http_error_set(error, FAULT_MISSING, "messages", "'messages' is missing.");
    size_t count = array->as.array.count;
    if (count == 0)
        return http_error_set(error, FAULT_EMPTY_ARRAY, "messages", "'messages' is empty.");
    if (count > SERVER_MESSAGES_MAX)
        return http_error_set(error, FAULT_ARRAY_MAX, "messages",
                              "There are %zu messages, at most %d are possible.", count,
                              SERVER_MESSAGES_MAX);
    MessageReader reader = {.arena = arena, .error = error};
    JsonValue *messages = arena_allocate_array(arena, count, sizeof(*messages));
    JsonValue *result = arena_allocate(arena, sizeof(*result));
    if (!messages || !result)
        return no_memory(&reader);
    for (; reader.index < count; reader.index++) {
        if (!read_message(&reader, &array->as.array.items[reader.index], &messages[reader.index]))
            return false;
    }
    result->kind = JSON_ARRAY;
    result->as.array.items = messages;
    result->as.array.count = count;
    *out = result;
    return true;
}
