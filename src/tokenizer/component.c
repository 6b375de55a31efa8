#include "internal.h"

bool component_unknown(const char *what, Slice type, Error *err)
{
    int shown = type.len < 60 ? (int)type.len : 60;
    return error_set(err, ERROR_UNSUPPORTED, "%s of type '%.*s' is not supported", what, shown,
                     type.ptr ? type.ptr : "");
}

static bool visit_at_depth(const JsonValue *config, const char *what, const char *list,
                           ComponentVisitor *visit, void *to, int depth, Error *err)
{
    if (!json_is(config, JSON_OBJECT))
        return error_set(err, ERROR_INVALID, "%s is a %s, expected an object", what,
                         config ? json_kind_name(config->kind) : "missing value");
    Slice type = SLICE_EMPTY;
    if (!json_read_string(config, "type", &type, err))
        return error_prefix(err, "%s", what);
    if (!type.ptr)
        return error_set(err, ERROR_INVALID, "%s has no type", what);
    if (!slice_equal(type, SLICE("Sequence")))
        return visit(to, type, config, err);
    if (depth == COMPONENT_DEPTH_MAX)
        return error_set(err, ERROR_LIMIT, "%s: sequences nested deeper than %d", what,
                         COMPONENT_DEPTH_MAX);
    const JsonValue *items = json_get_present(config, list);
    if (!json_is(items, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "%s: a sequence has no list '%s'", what, list);
    for (size_t i = 0; i < items->as.array.count; i++) {
        if (!visit_at_depth(&items->as.array.items[i], what, list, visit, to, depth + 1, err))
            return false;
    }
    return true;
}

bool component_visit(const JsonValue *config, const char *what, const char *list,
                     ComponentVisitor *visit, void *to, Error *err)
{
    if (!config || config->kind == JSON_NULL)
        return true;
    return visit_at_depth(config, what, list, visit, to, 0, err);
}

bool component_read_text(const JsonValue *config, const char *key, char out[COMPONENT_TEXT_MAX],
                         size_t *len, Error *err)
{
    Slice text = SLICE_EMPTY;
    if (!json_read_string(config, key, &text, err))
        return false;
    if (!text.ptr)
        return error_set(err, ERROR_INVALID, "'%s' is missing", key);
    if (text.len > COMPONENT_TEXT_MAX)
        return error_set(err, ERROR_LIMIT, "'%s' has %zu bytes, at most %d are taken", key,
                         text.len, COMPONENT_TEXT_MAX);
    memcpy(out, text.ptr, text.len);
    *len = text.len;
    return true;
}

bool component_read_character(const JsonValue *config, const char *key, char out[UTF8_MAX],
                              size_t *len, Error *err)
{
    char text[COMPONENT_TEXT_MAX];
    if (!component_read_text(config, key, text, len, err))
        return false;
    if (*len == 0 || unicode_length(text[0]) != *len)
        return error_set(err, ERROR_INVALID, "'%s' is '%.*s', expected one character", key,
                         (int)*len, text);
    memcpy(out, text, *len);
    return true;
}

bool component_read_pattern(const JsonValue *config, Pattern *out, Error *err)
{
    const JsonValue *pattern = json_get_present(config, "pattern");
    Slice text = SLICE_EMPTY, regex = SLICE_EMPTY;
    if (!json_is(pattern, JSON_OBJECT))
        return error_set(err, ERROR_INVALID, "'pattern' is missing or not an object");
    if (!json_read_string(pattern, "String", &text, err) ||
        !json_read_string(pattern, "Regex", &regex, err))
        return false;
    if (regex.ptr)
        return pattern_init_regex(out, regex, err);
    if (text.ptr)
        return pattern_init_literal(out, text, err);
    return error_set(err, ERROR_INVALID, "'pattern' has neither 'String' nor 'Regex'");
}
