#include "fields.h"

#include <stdio.h>
#include <string.h>

enum { TOOLS_MAX = 128, TOOL_NAME_BYTES_MAX = 64 };

typedef struct ToolReader {
    Arena *arena;
    HttpError *error;
    char param[HTTP_PARAM_BYTES_MAX]; /* scratch: "tools[3].function.name" */
} ToolReader;

static const char *param_of(ToolReader *reader, size_t index, const char *member)
{
    snprintf(reader->param, sizeof(reader->param), "tools[%zu]%s", index, member);
    return reader->param;
}

static bool no_memory(ToolReader *reader)
{
    return http_error_set(reader->error, FAULT_INTERNAL, NULL, "Out of memory for the tools.");
}

static bool is_name(Slice name)
{
    if (name.len == 0 || name.len > TOOL_NAME_BYTES_MAX)
        return false;
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '-'))
            return false;
    }
    return true;
}

/* ---- Schemas ---- */

/* Where a tool lists properties and does not say what else may come, nothing else may. */
static bool is_left_open(const JsonValue *schema)
{
    static const char *const CLOSED_BY[] = {
        "additionalProperties", "$ref", "allOf", "anyOf", "oneOf", "minProperties"};
    for (size_t i = 0; i < ARRAY_COUNT(CLOSED_BY); i++) {
        if (json_get(schema, slice_of(CLOSED_BY[i])))
            return false;
    }
    const JsonValue *properties = json_get_present(schema, "properties");
    const JsonValue *required = json_get_present(schema, "required");
    if (!json_is(properties, JSON_OBJECT))
        return false;
    for (size_t i = 0; json_is(required, JSON_ARRAY) && i < required->as.array.count; i++) {
        const JsonValue *name = &required->as.array.items[i];
        if (name->kind != JSON_STRING || !json_get(properties, name->as.string))
            return false;
    }
    return true;
}

static bool is_object_type(const JsonValue *type)
{
    if (json_is(type, JSON_STRING))
        return slice_equal(type->as.string, SLICE("object"));
    for (size_t i = 0; json_is(type, JSON_ARRAY) && i < type->as.array.count; i++) {
        if (is_object_type(&type->as.array.items[i]))
            return true;
    }
    return false;
}

/* The schema as text, with `type` set to object. */
static bool write_schema(ToolReader *reader, const JsonValue *schema, Slice *out)
{
    Buffer text;
    JsonWriter writer;
    bool ok = true;
    buffer_init(&text, GRAMMAR_SOURCE_BYTES_MAX);
    json_writer_init(&writer, &text, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "type");
    json_write_text(&writer, "object");
    for (size_t i = 0; i < schema->as.object.count; i++) {
        const JsonMember *member = &schema->as.object.members[i];
        if (slice_equal(member->key, SLICE("type")))
            continue;
        json_write_key_slice(&writer, member->key);
        json_write_value(&writer, &member->value);
    }
    if (is_left_open(schema)) {
        json_write_key(&writer, "additionalProperties");
        json_write_bool(&writer, false);
    }
    json_write_object_end(&writer);
    if (text.over_limit)
        ok = http_error_set(reader->error, FAULT_JSON_SCHEMA, reader->param,
                            "The schema has more than %d bytes.", GRAMMAR_SOURCE_BYTES_MAX);
    else if (text.failed || !arena_copy_slice(reader->arena, buffer_view(&text), out))
        ok = no_memory(reader);
    buffer_reset(&text);
    return ok;
}

static bool read_parameters(ToolReader *reader, size_t index, const JsonValue *function,
                            GrammarTool *out)
{
    const JsonMember no_properties = {SLICE("properties"), {.kind = JSON_OBJECT}};
    const JsonValue nothing = {.kind = JSON_OBJECT, .as.object = {&no_properties, 1}};
    const char *param = param_of(reader, index, ".function.parameters");
    const JsonValue *parameters, *type;
    if (!field_read_object(json_get(function, SLICE("parameters")), param, &parameters,
                           reader->error))
        return false;
    if (!parameters)
        parameters = &nothing;
    type = json_get(parameters, SLICE("type"));
    if (type && !is_object_type(type))
        return http_error_set(reader->error, FAULT_JSON_SCHEMA, param,
                              "The parameters of a function are an object; '%s' has another type.",
                              param);
    return write_schema(reader, parameters, &out->arguments.text);
}

/* ---- The list ---- */

static bool read_function(ToolReader *reader, size_t index, const JsonValue *function,
                          GrammarTool *out)
{
    Slice description;
    bool strict = false;
    *out = (GrammarTool){.arguments = {.kind = GRAMMAR_JSON_SCHEMA}};
    const char *param = param_of(reader, index, ".function.name");
    const JsonValue *name = json_get_present(function, "name");
    if (!name)
        return http_error_set(reader->error, FAULT_MISSING, param, "'%s' is missing.", param);
    if (!field_read_string(name, param, &out->name, reader->error))
        return false;
    if (!is_name(out->name))
        return http_error_set(reader->error, FAULT_VALUE, param,
                              "The name '%.*s' is not made of 1 to %d letters, digits, _ and -.",
                              QUOTE_ARG(out->name), TOOL_NAME_BYTES_MAX);
    if (!field_read_string(json_get(function, SLICE("description")),
                           param_of(reader, index, ".function.description"), &description,
                           reader->error) ||
        !field_read_bool(json_get(function, SLICE("strict")),
                         param_of(reader, index, ".function.strict"), &strict, reader->error))
        return false;
    out->arguments.ignores_unknown = !strict;
    return read_parameters(reader, index, function, out);
}

static bool read_tool(ToolReader *reader, size_t index, const JsonValue *tool, GrammarTool *out)
{
    Slice type = SLICE_EMPTY;
    const JsonValue *function;
    const char *param = param_of(reader, index, "");
    if (tool->kind != JSON_OBJECT)
        return field_wrong_type(tool, param, "an object", reader->error);
    param = param_of(reader, index, ".type");
    const JsonValue *type_value = json_get_present(tool, "type");
    if (!type_value)
        return http_error_set(reader->error, FAULT_MISSING, param, "'%s' is missing.", param);
    if (!field_read_string(type_value, param, &type, reader->error))
        return false;
    if (!slice_equal(type, SLICE("function")))
        return http_error_set(reader->error, FAULT_UNSUPPORTED_VALUE, param,
                              "A tool of type '%.*s' is not possible; use 'function'.",
                              QUOTE_ARG(type));
    param = param_of(reader, index, ".function");
    if (!field_read_object(json_get(tool, SLICE("function")), param, &function, reader->error))
        return false;
    if (!function)
        return http_error_set(reader->error, FAULT_MISSING, param, "'%s' is missing.", param);
    return read_function(reader, index, function, out);
}

/* Index of the tool of that name below count, or count. */
static size_t find_tool(const GrammarTool *tools, size_t count, Slice name)
{
    size_t i = 0;
    while (i < count && !slice_equal(tools[i].name, name))
        i++;
    return i;
}

static bool read_list(ToolReader *reader, const JsonValue *body, const JsonValue **list,
                      GrammarTool **tools)
{
    *tools = NULL;
    if (!field_read_array(json_get(body, SLICE("tools")), "tools", list, reader->error))
        return false;
    size_t count = *list ? (*list)->as.array.count : 0;
    if (count == 0)
        *list = NULL;
    if (count > TOOLS_MAX)
        return http_error_set(reader->error, FAULT_ARRAY_MAX, "tools",
                              "There are %zu tools, at most %d are possible.", count, TOOLS_MAX);
    *tools = arena_allocate_array(reader->arena, count, sizeof(**tools));
    if (!*tools)
        return no_memory(reader);
    for (size_t i = 0; i < count; i++) {
        GrammarTool *tool = &(*tools)[i];
        if (!read_tool(reader, i, &(*list)->as.array.items[i], tool))
            return false;
        if (find_tool(*tools, i, tool->name) < i)
            return http_error_set(reader->error, FAULT_VALUE, param_of(reader, i, ".function.name"),
                                  "There are two tools of the name '%.*s'.", QUOTE_ARG(tool->name));
    }
    return true;
}

/* ---- The choice ---- */

typedef struct ToolChoice {
    const char *param; /* of the value at hand */
    GrammarTool *all;
    size_t n_all;
    bool *is_allowed; /* [n_all] */
} ToolChoice;

/* {"type": "function", "function": {"name": N}} */
static bool allow_named(ToolReader *reader, const ToolChoice *choice, const JsonValue *object)
{
    const JsonValue *function;
    Slice type = SLICE_EMPTY, name = SLICE_EMPTY;
    char param[HTTP_PARAM_BYTES_MAX];
    if (object->kind != JSON_OBJECT)
        return field_wrong_type(object, choice->param, "an object", reader->error);
    snprintf(param, sizeof(param), "%s.type", choice->param);
    if (!field_read_string(json_get_present(object, "type"), param, &type, reader->error))
        return false;
    if (!slice_equal(type, SLICE("function")))
        return http_error_set(reader->error, FAULT_VALUE, param, "The tool type '%.*s' is unknown.",
                              QUOTE_ARG(type));
    snprintf(param, sizeof(param), "%s.function", choice->param);
    if (!field_read_object(json_get(object, SLICE("function")), param, &function, reader->error))
        return false;
    snprintf(param, sizeof(param), "%s.function.name", choice->param);
    const JsonValue *value = json_get_present(function, "name");
    if (!value)
        return http_error_set(reader->error, FAULT_MISSING, param, "'%s' is missing.", param);
    if (!field_read_string(value, param, &name, reader->error))
        return false;
    size_t at = find_tool(choice->all, choice->n_all, name);
    if (at == choice->n_all)
        return http_error_set(reader->error, FAULT_VALUE, param,
                              "There is no tool of the name '%.*s'.", QUOTE_ARG(name));
    choice->is_allowed[at] = true;
    return true;
}

/* {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}} */
static bool read_allowed(ToolReader *reader, ToolChoice *choice, const JsonValue *object,
                         ToolFields *out)
{
    static const char param[] = "tool_choice.allowed_tools",
                      mode_param[] = "tool_choice.allowed_tools.mode",
                      list_param[] = "tool_choice.allowed_tools.tools";
    const JsonValue *allowed, *list;
    Slice mode = SLICE_EMPTY;
    if (!field_read_object(json_get(object, SLICE("allowed_tools")), param, &allowed,
                           reader->error))
        return false;
    if (!allowed)
        return http_error_set(reader->error, FAULT_MISSING, param, "'%s' is missing.", param);
    if (!json_get_present(allowed, "mode"))
        return http_error_set(reader->error, FAULT_MISSING, mode_param, "'%s' is missing.",
                              mode_param);
    if (!field_read_string(json_get_present(allowed, "mode"), mode_param, &mode, reader->error) ||
        !field_read_array(json_get(allowed, SLICE("tools")), list_param, &list, reader->error))
        return false;
    out->needs_call = slice_equal(mode, SLICE("required"));
    if (!out->needs_call && !slice_equal(mode, SLICE("auto")))
        return http_error_set(reader->error, FAULT_VALUE, mode_param,
                              "The mode '%.*s' is neither 'auto' nor 'required'.", QUOTE_ARG(mode));
    if (!list || list->as.array.count == 0)
        return http_error_set(reader->error, list ? FAULT_EMPTY_ARRAY : FAULT_MISSING, list_param,
                              "'%s' names no tool.", list_param);
    for (size_t i = 0; i < list->as.array.count; i++) {
        char item_param[HTTP_PARAM_BYTES_MAX];
        snprintf(item_param, sizeof(item_param), "%s[%zu]", list_param, i);
        choice->param = item_param;
        if (!allow_named(reader, choice, &list->as.array.items[i]))
            return false;
    }
    return true;
}

static bool read_choice_object(ToolReader *reader, ToolChoice *choice, const JsonValue *object,
                               ToolFields *out)
{
    const JsonValue *type = json_get_present(object, "type");
    if (!type)
        return http_error_set(reader->error, FAULT_MISSING, "tool_choice.type",
                              "'tool_choice.type' is missing.");
    if (json_is(type, JSON_STRING) && slice_equal(type->as.string, SLICE("allowed_tools")))
        return read_allowed(reader, choice, object, out);
    out->needs_call = out->one_call = true;
    return allow_named(reader, choice, object);
}

static bool read_choice(ToolReader *reader, const JsonValue *body, ToolChoice *choice,
                        ToolFields *out)
{
    const JsonValue *value = json_get_present(body, "tool_choice");
    if (json_is(value, JSON_OBJECT)) {
        if (choice->n_all == 0)
            return http_error_set(reader->error, FAULT_VALUE, "tool_choice",
                                  "A 'tool_choice' of this kind needs 'tools'.");
        return read_choice_object(reader, choice, value, out);
    }
    Slice text = SLICE("auto");
    if (value && value->kind != JSON_STRING)
        return field_wrong_type(value, "tool_choice", "a string or an object", reader->error);
    if (value)
        text = value->as.string;
    if (slice_equal(text, SLICE("none")))
        return true;
    out->needs_call = slice_equal(text, SLICE("required"));
    if (!out->needs_call && !slice_equal(text, SLICE("auto")))
        return http_error_set(reader->error, FAULT_VALUE, "tool_choice",
                              "The tool_choice '%.*s' is unknown.", QUOTE_ARG(text));
    if (out->needs_call && choice->n_all == 0)
        return http_error_set(reader->error, FAULT_VALUE, "tool_choice",
                              "The tool_choice 'required' needs 'tools'.");
    for (size_t i = 0; i < choice->n_all; i++)
        choice->is_allowed[i] = true;
    return true;
}

/* ---- Public ---- */

bool fields_check_tools(const JsonValue *body, Arena *arena, const JsonValue **out,
                        HttpError *error)
{
    ToolReader reader = {.arena = arena, .error = error};
    GrammarTool *tools;
    return read_list(&reader, body, out, &tools);
}

bool fields_read_tools(const JsonValue *body, Arena *arena, ToolFields *out, HttpError *error)
{
    ToolReader reader = {.arena = arena, .error = error};
    ToolChoice choice = {.param = "tool_choice"};
    bool parallel = true;
    *out = (ToolFields){0};
    if (!read_list(&reader, body, &out->list, &choice.all) ||
        !field_read_bool(json_get(body, SLICE("parallel_tool_calls")), "parallel_tool_calls",
                         &parallel, error))
        return false;
    choice.n_all = out->list ? out->list->as.array.count : 0;
    choice.is_allowed = arena_allocate_array(arena, choice.n_all, sizeof(bool));
    size_t *indices = arena_allocate_array(arena, choice.n_all, sizeof(*indices));
    if (!choice.is_allowed || !indices)
        return no_memory(&reader);
    memset(choice.is_allowed, 0, choice.n_all * sizeof(bool));
    if (!read_choice(&reader, body, &choice, out))
        return false;
    for (size_t i = 0; i < choice.n_all; i++) {
        if (!choice.is_allowed[i])
            continue;
        choice.all[out->n_tools] = choice.all[i];
        indices[out->n_tools++] = i;
    }
    out->tools = choice.all;
    out->indices = indices;
    out->one_call = out->one_call || !parallel;
    return true;
}
