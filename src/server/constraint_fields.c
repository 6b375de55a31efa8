#include "fields.h"

/* Present in any form: not possible here. */
static const char *const REFUSED_FIELDS[] = {"functions", "function_call", "guided_regex",
                                             "guided_choice", "grammar"};

static bool check_tools(const JsonValue *body, HttpError *error)
{
    const JsonValue *tools;
    bool parallel;
    if (!field_read_array(json_get(body, SLICE("tools")), "tools", &tools, error) ||
        !field_read_bool(json_get(body, SLICE("parallel_tool_calls")), "parallel_tool_calls",
                         &parallel, error))
        return false;
    if (tools && tools->as.array.count > 0)
        return field_unsupported("tools", error);
    const JsonValue *choice = json_get_present(body, "tool_choice");
    if (!choice)
        return true;
    if (choice->kind == JSON_OBJECT)
        return field_unsupported("tool_choice", error);
    if (choice->kind != JSON_STRING)
        return field_wrong_type(choice, "tool_choice", "a string or an object", error);
    Slice text = choice->as.string;
    if (slice_equal(text, SLICE("none")) || slice_equal(text, SLICE("auto")))
        return true;
    if (slice_equal(text, SLICE("required")))
        return field_unsupported("tool_choice", error);
    return http_error_set(error, FAULT_VALUE, "tool_choice", "The tool_choice '%.*s' is unknown.",
                          QUOTE_ARG(text));
}

static bool check_response_format(const JsonValue *body, HttpError *error)
{
    const JsonValue *format;
    Slice type = SLICE_EMPTY;
    if (!field_read_object(json_get(body, SLICE("response_format")), "response_format", &format,
                           error))
        return false;
    if (!format)
        return true;
    const JsonValue *value = json_get_present(format, "type");
    if (!value)
        return http_error_set(error, FAULT_MISSING, "response_format.type",
                              "'response_format.type' is missing.");
    if (!field_read_string(value, "response_format.type", &type, error))
        return false;
    if (slice_equal(type, SLICE("text")))
        return true;
    if (slice_equal(type, SLICE("json_object")) || slice_equal(type, SLICE("json_schema")))
        return field_unsupported("response_format", error);
    return http_error_set(error, FAULT_VALUE, "response_format.type",
                          "The response_format '%.*s' is unknown.", QUOTE_ARG(type));
}

bool fields_check_constraints(const JsonValue *body, HttpError *error)
{
    for (size_t i = 0; i < ARRAY_COUNT(REFUSED_FIELDS); i++) {
        if (json_get_present(body, REFUSED_FIELDS[i]))
            return field_unsupported(REFUSED_FIELDS[i], error);
    }
    return check_tools(body, error) && check_response_format(body, error);
}
