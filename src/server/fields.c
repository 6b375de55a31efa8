#include "fields.h"

#include <stdio.h>

static bool is_absent(const JsonValue *value)
{
    return !value || value->kind == JSON_NULL;
}

bool field_wrong_type(const JsonValue *value, const char *param, const char *expected,
                      HttpError *error)
{
    return http_error_set(error, FAULT_TYPE, param, "'%s' must be %s, but it is of type %s.", param,
                          expected, json_kind_name(value->kind));
}

bool field_read_bool(const JsonValue *value, const char *param, bool *out, HttpError *error)
{
    if (is_absent(value))
        return true;
    if (value->kind != JSON_BOOL)
        return field_wrong_type(value, param, "true or false", error);
    *out = value->as.boolean;
    return true;
}

/* Whether a number is beyond every int64_t, and on which side. An integer that is may have become
 * the double next to it, which is not. */
static int beyond_int64(const JsonValue *value)
{
    if (value->kind == JSON_UINT)
        return 1;
    if (value->kind != JSON_DOUBLE)
        return 0;
    if (value->as.wide.digits)
        return value->as.number > 0 ? 1 : -1;
    if (value->as.number >= 0x1p63)
        return 1;
    return value->as.number < -0x1p63 ? -1 : 0;
}

bool field_read_integer(const JsonValue *value, const char *param, int64_t min, int64_t max,
                        int64_t *out, HttpError *error)
{
    if (is_absent(value))
        return true;
    if (!json_is_number(value))
        return field_wrong_type(value, param, "an integer", error);
    int64_t number = 0;
    int beyond = beyond_int64(value);
    if (beyond == 0 && !json_to_int64(value, &number))
        return http_error_set(error, FAULT_TYPE, param,
                              "'%s' must be an integer, but it has a fraction.", param);
    if (beyond < 0 || (beyond == 0 && number < min))
        return http_error_set(error, FAULT_INTEGER_MIN, param, "'%s' must be at least %lld.", param,
                              (long long)min);
    if (beyond > 0 || number > max)
        return http_error_set(error, FAULT_INTEGER_MAX, param, "'%s' must be at most %lld.", param,
                              (long long)max);
    *out = number;
    return true;
}

bool field_read_number(const JsonValue *value, const char *param, double min, double max,
                       float *out, HttpError *error)
{
    if (is_absent(value))
        return true;
    if (!json_is_number(value))
        return field_wrong_type(value, param, "a number", error);
    double number = json_to_double(value);
    if (!(number >= min))
        return http_error_set(error, FAULT_DECIMAL_MIN, param, "'%s' must be at least %g.", param,
                              min);
    if (!(number <= max))
        return http_error_set(error, FAULT_DECIMAL_MAX, param, "'%s' must be at most %g.", param,
                              max);
    *out = (float)number;
    return true;
}

bool field_read_string(const JsonValue *value, const char *param, Slice *out, HttpError *error)
{
    if (is_absent(value))
        return true;
    if (value->kind != JSON_STRING)
        return field_wrong_type(value, param, "a string", error);
    *out = value->as.string;
    return true;
}

bool field_read_object(const JsonValue *value, const char *param, const JsonValue **out,
                       HttpError *error)
{
    *out = NULL;
    if (is_absent(value))
        return true;
    if (value->kind != JSON_OBJECT)
        return field_wrong_type(value, param, "an object", error);
    *out = value;
    return true;
}

bool field_read_array(const JsonValue *value, const char *param, const JsonValue **out,
                      HttpError *error)
{
    *out = NULL;
    if (is_absent(value))
        return true;
    if (value->kind != JSON_ARRAY)
        return field_wrong_type(value, param, "an array", error);
    *out = value;
    return true;
}

bool field_unsupported(const char *param, HttpError *error)
{
    return http_error_set(error, FAULT_UNSUPPORTED_PARAMETER, param, "'%s' is not supported here.",
                          param);
}

bool fields_read_tokens(const JsonValue *array, const char *param, size_t vocab_size,
                        TokenList *out, HttpError *error)
{
    Error err;
    char place[HTTP_PARAM_BYTES_MAX];
    for (size_t i = 0; i < array->as.array.count; i++) {
        int64_t id = 0;
        const JsonValue *item = &array->as.array.items[i];
        snprintf(place, sizeof(place), "%s[%zu]", param, i);
        if (item->kind == JSON_NULL)
            return field_wrong_type(item, place, "a token id", error);
        if (!field_read_integer(item, place, 0, INT32_MAX, &id, error))
            return false;
        if ((uint64_t)id >= vocab_size)
            return http_error_set(error, FAULT_INTEGER_MAX, place,
                                  "The token id %lld is not in the vocabulary of %zu tokens.",
                                  (long long)id, vocab_size);
        if (!token_list_append(out, (int32_t)id, &err))
            return http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, param);
    }
    return true;
}

bool fields_read_stream(const JsonValue *object, bool *stream, bool *include_usage,
                        HttpError *error)
{
    const JsonValue *options;
    if (!field_read_bool(json_get(object, SLICE("stream")), "stream", stream, error) ||
        !field_read_object(json_get(object, SLICE("stream_options")), "stream_options", &options,
                           error))
        return false;
    if (options && !*stream)
        return http_error_set(error, FAULT_VALUE, "stream_options",
                              "'stream_options' is possible only with 'stream' set to true.");
    return field_read_bool(json_get(options, SLICE("include_usage")),
                           "stream_options.include_usage", include_usage, error);
}
