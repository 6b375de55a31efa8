#include "fields.h"

/* Present in any form: not possible here. */
static const char *const REFUSED_FIELDS[] = {"functions", "function_call"};

static bool set_constraint(ConstraintFields *out, GrammarKind kind, Slice text, const char *param,
                           HttpError *error)
{
    if (out->is_constrained)
        return http_error_set(error, FAULT_VALUE, param,
                              "'%s' and '%s' cannot constrain one reply together.", out->param,
                              param);
    *out = (ConstraintFields){
        .is_constrained = true, .source = {.kind = kind, .text = text}, .param = param};
    return true;
}

/* The schema as text: what the cache of compiled grammars knows it by. */
static bool write_schema(const JsonValue *schema, const char *param, Arena *arena, Slice *out,
                         HttpError *error)
{
    Buffer text;
    JsonWriter writer;
    Error err = {0};
    buffer_init(&text, GRAMMAR_SOURCE_BYTES_MAX);
    json_writer_init(&writer, &text, 0);
    json_write_value(&writer, schema);
    bool ok = buffer_check(&text, "the schema", &err);
    if (ok && !arena_copy_slice(arena, buffer_view(&text), out))
        ok = error_no_memory(&err, "schema");
    buffer_reset(&text);
    return ok || http_error_from(error, &err, FAULT_JSON_SCHEMA, FAULT_JSON_SCHEMA, param);
}

static bool set_schema(ConstraintFields *out, const JsonValue *schema, const char *param,
                       Arena *arena, HttpError *error)
{
    Slice text;
    if (schema->kind != JSON_OBJECT)
        return http_error_set(error, FAULT_JSON_SCHEMA, param,
                              "The schema must be an object, not of type %s.",
                              json_kind_name(schema->kind));
    return write_schema(schema, param, arena, &text, error) &&
           set_constraint(out, GRAMMAR_JSON_SCHEMA, text, param, error);
}

/* Any object, or, in the form that llama-server has, one that fits `schema`. */
static bool read_json_object(const JsonValue *format, Arena *arena, ConstraintFields *out,
                             HttpError *error)
{
    const JsonValue *schema = json_get_present(format, "schema");
    if (!schema || (schema->kind == JSON_OBJECT && schema->as.object.count == 0))
        return set_constraint(out, GRAMMAR_JSON_OBJECT, SLICE_EMPTY, "response_format", error);
    return set_schema(out, schema, "response_format.schema", arena, error);
}

static bool read_schema(const JsonValue *format, Arena *arena, ConstraintFields *out,
                        HttpError *error)
{
    static const char param[] = "response_format.json_schema",
                      schema_param[] = "response_format.json_schema.schema";
    const JsonValue *object, *schema;
    Slice name = SLICE_EMPTY, description;
    bool strict = true;
    if (!field_read_object(json_get(format, SLICE("json_schema")), param, &object, error))
        return false;
    if (!object)
        return http_error_set(error, FAULT_MISSING, param, "'%s' is missing.", param);
    if (!json_get_present(object, "name"))
        return http_error_set(error, FAULT_MISSING, "response_format.json_schema.name",
                              "'response_format.json_schema.name' is missing.");
    if (!field_read_string(json_get(object, SLICE("name")), "response_format.json_schema.name",
                           &name, error) ||
        !field_read_string(json_get(object, SLICE("description")),
                           "response_format.json_schema.description", &description, error) ||
        !field_read_bool(json_get(object, SLICE("strict")), "response_format.json_schema.strict",
                         &strict, error))
        return false;
    schema = json_get_present(object, "schema");
    if (!schema)
        return http_error_set(error, FAULT_MISSING, schema_param, "'%s' is missing.", schema_param);
    if (!set_schema(out, schema, schema_param, arena, error))
        return false;
    out->source.ignores_unknown = !strict;
    return true;
}

static bool read_response_format(const JsonValue *body, Arena *arena, ConstraintFields *out,
                                 HttpError *error)
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
    if (slice_equal(type, SLICE("json_object")))
        return read_json_object(format, arena, out, error);
    if (slice_equal(type, SLICE("json_schema")))
        return read_schema(format, arena, out, error);
    return http_error_set(error, FAULT_VALUE, "response_format.type",
                          "The response_format '%.*s' is unknown.", QUOTE_ARG(type));
}

static bool read_choice_list(const JsonValue *body, Arena *arena, ConstraintFields *out,
                             HttpError *error)
{
    static const char param[] = "guided_choice";
    const JsonValue *list;
    if (!field_read_array(json_get(body, SLICE("guided_choice")), param, &list, error))
        return false;
    if (!list)
        return true;
    size_t count = list->as.array.count;
    if (count == 0)
        return http_error_set(error, FAULT_EMPTY_ARRAY, param, "'guided_choice' is empty.");
    Slice *choices = arena_allocate_array(arena, count, sizeof(*choices));
    if (!choices)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    for (size_t i = 0; i < count; i++) {
        const JsonValue *item = &list->as.array.items[i];
        if (item->kind != JSON_STRING)
            return field_wrong_type(item, param, "an array of strings", error);
        choices[i] = item->as.string;
    }
    if (!set_constraint(out, GRAMMAR_CHOICE, SLICE_EMPTY, param, error))
        return false;
    out->source.choices = choices;
    out->source.n_choices = count;
    return true;
}

static bool read_text(const JsonValue *body, const char *param, GrammarKind kind,
                      ConstraintFields *out, HttpError *error)
{
    const JsonValue *value = json_get_present(body, param);
    Slice text = SLICE_EMPTY;
    if (!value)
        return true;
    return field_read_string(value, param, &text, error) &&
           set_constraint(out, kind, text, param, error);
}

bool fields_read_constraint(const JsonValue *body, Arena *arena, ConstraintFields *out,
                            HttpError *error)
{
    *out = (ConstraintFields){0};
    for (size_t i = 0; i < ARRAY_COUNT(REFUSED_FIELDS); i++) {
        if (json_get_present(body, REFUSED_FIELDS[i]))
            return field_unsupported(REFUSED_FIELDS[i], error);
    }
    return read_response_format(body, arena, out, error) &&
           read_text(body, "guided_regex", GRAMMAR_REGEX, out, error) &&
           read_choice_list(body, arena, out, error) &&
           read_text(body, "grammar", GRAMMAR_GBNF, out, error);
}
