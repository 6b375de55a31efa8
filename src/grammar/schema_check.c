/* Every keyword of every schema is known and has the right kind of value, and every reference leads
 * to a schema, before anything is compiled: so the compiler reads keywords without doubts. */
#include "schema.h"

#include <stdlib.h>
#include <string.h>

/* ---- Places ---- */

void schema_print_place(const SchemaPlace *place, const char *keyword,
                        char out[SCHEMA_PLACE_BYTES_MAX])
{
    const SchemaPlace *steps[64];
    size_t n = 0;
    bool is_cut = false;
    for (; place && place->parent; place = place->parent) {
        if (n == ARRAY_COUNT(steps)) {
            is_cut = true;
            n--;
            memmove(steps, steps + 1, n * sizeof(const SchemaPlace *));
        }
        steps[n++] = place;
    }
    Buffer text;
    buffer_init(&text, SCHEMA_PLACE_BYTES_MAX - 1);
    buffer_append_text(&text, is_cut ? "#/..." : "#");
    while (n-- > 0) {
        if (steps[n]->name.ptr)
            buffer_append_format(&text, "/%.*s", SLICE_ARG(steps[n]->name));
        else
            buffer_append_format(&text, "/%zu", steps[n]->index);
    }
    if (keyword)
        buffer_append_format(&text, "/%s", keyword);
    size_t len = text.len;
    while (len > 0 && !utf8_is_valid((Slice){text.ptr, len}))
        len--;
    if (len > 0)
        memcpy(out, text.ptr, len);
    out[len] = '\0';
    buffer_reset(&text);
}

bool schema_fail(SchemaCompiler *c, const SchemaPlace *place, const char *keyword, const char *what)
{
    char where[SCHEMA_PLACE_BYTES_MAX];
    schema_print_place(place, keyword, where);
    return error_set(c->err, ERROR_INVALID, "%s: %s", where, what);
}

void schema_note_contradiction(SchemaCompiler *c, const SchemaPlace *place, const char *keyword,
                               const char *what)
{
    if (c->contradiction[0])
        return;
    Error note = {0}, *kept = c->err;
    c->err = &note;
    schema_fail(c, place, keyword, what);
    c->err = kept;
    size_t len = strlen(note.message);
    if (len >= sizeof(c->contradiction))
        len = sizeof(c->contradiction) - 1;
    memcpy(c->contradiction, note.message, len);
    c->contradiction[len] = '\0';
}

const SchemaPlace *schema_place(SchemaCompiler *c, const SchemaPlace *parent, Slice name,
                                size_t index)
{
    SchemaPlace *place = arena_allocate(&c->arena, sizeof(*place));
    if (!place)
        return parent; /* a less exact message */
    *place = (SchemaPlace){parent, name, index};
    return place;
}

/* ---- References ---- */

/* One step of a JSON pointer inside a URI fragment: %XX, then ~1 and ~0. */
static bool decode_step(Arena *arena, Slice step, Slice *out)
{
    char *bytes = arena_allocate(arena, step.len + 1);
    if (!bytes)
        return false;
    size_t n = 0;
    for (size_t i = 0; i < step.len; i++) {
        char b = step.ptr[i];
        if (b == '%' && i + 2 < step.len && hex_digit_value(step.ptr[i + 1]) >= 0 &&
            hex_digit_value(step.ptr[i + 2]) >= 0) {
            b = (char)(hex_digit_value(step.ptr[i + 1]) << 4 | hex_digit_value(step.ptr[i + 2]));
            i += 2;
        }
        bytes[n++] = b;
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == '~' && i + 1 < n && (bytes[i + 1] == '0' || bytes[i + 1] == '1'))
            bytes[kept++] = bytes[++i] == '0' ? '~' : '/';
        else
            bytes[kept++] = bytes[i];
    }
    *out = (Slice){bytes, kept};
    return true;
}

static const JsonValue *take_step(const JsonValue *at, Slice step)
{
    if (json_is(at, JSON_OBJECT))
        return json_get(at, step);
    if (!json_is(at, JSON_ARRAY) || step.len == 0 || step.len > 9)
        return NULL;
    size_t index = 0;
    for (size_t i = 0; i < step.len; i++) {
        if (step.ptr[i] < '0' || step.ptr[i] > '9')
            return NULL;
        index = index * 10 + (size_t)(step.ptr[i] - '0');
    }
    return index < at->as.array.count ? &at->as.array.items[index] : NULL;
}

bool schema_resolve(SchemaCompiler *c, Slice reference, const SchemaPlace *place,
                    const JsonValue **out)
{
    if (reference.len == 0 || reference.ptr[0] != '#')
        return schema_fail(c, place, "$ref",
                           "only references inside the schema (#/...) are followed");
    const JsonValue *at = c->root;
    for (size_t i = 1; i < reference.len && at;) {
        if (reference.ptr[i] != '/')
            return schema_fail(c, place, "$ref", "not of the form #/...");
        size_t end = slice_find(reference, SLICE("/"), i + 1);
        if (end == SIZE_MAX)
            end = reference.len;
        Slice step;
        if (!decode_step(&c->arena, (Slice){reference.ptr + i + 1, end - i - 1}, &step))
            return error_no_memory(c->err, "schema");
        c->work += 1 + (json_is(at, JSON_OBJECT) ? at->as.object.count / 16 : 0);
        if (c->work > SCHEMA_WORK_MAX)
            return error_set(c->err, ERROR_LIMIT, "the schema has too many references");
        at = take_step(at, step);
        i = end;
    }
    if (!json_is(at, JSON_OBJECT) && !json_is(at, JSON_BOOL))
        return schema_fail(c, place, "$ref", "leads to no schema");
    *out = at;
    return true;
}

/* ---- Keywords ---- */

static const struct Keyword {
    const char *name;
    SchemaValueKind kind;
} KEYWORDS[] = {
    {"$comment", SCHEMA_VALUE_ANY},
    {"$defs", SCHEMA_VALUE_NAMED},
    {"$id", SCHEMA_VALUE_ANY},
    {"$ref", SCHEMA_VALUE_REFERENCE},
    {"$schema", SCHEMA_VALUE_ANY},
    {"additionalProperties", SCHEMA_VALUE_SCHEMA},
    {"allOf", SCHEMA_VALUE_SCHEMAS},
    {"anyOf", SCHEMA_VALUE_SCHEMAS},
    {"const", SCHEMA_VALUE_ANY},
    {"default", SCHEMA_VALUE_ANY},
    {"definitions", SCHEMA_VALUE_NAMED},
    {"deprecated", SCHEMA_VALUE_ANY},
    {"description", SCHEMA_VALUE_ANY},
    {"discriminator", SCHEMA_VALUE_ANY},
    {"enum", SCHEMA_VALUE_VALUES},
    {"examples", SCHEMA_VALUE_ANY},
    {"exclusiveMaximum", SCHEMA_VALUE_NUMBER},
    {"exclusiveMinimum", SCHEMA_VALUE_NUMBER},
    {"format", SCHEMA_VALUE_STRING},
    {"items", SCHEMA_VALUE_SCHEMA},
    {"maxItems", SCHEMA_VALUE_COUNT},
    {"maxLength", SCHEMA_VALUE_COUNT},
    {"maximum", SCHEMA_VALUE_NUMBER},
    {"minItems", SCHEMA_VALUE_COUNT},
    {"minLength", SCHEMA_VALUE_COUNT},
    {"minProperties", SCHEMA_VALUE_COUNT},
    {"minimum", SCHEMA_VALUE_NUMBER},
    {"multipleOf", SCHEMA_VALUE_POSITIVE},
    {"oneOf", SCHEMA_VALUE_SCHEMAS},
    {"pattern", SCHEMA_VALUE_STRING},
    {"prefixItems", SCHEMA_VALUE_SCHEMAS},
    {"properties", SCHEMA_VALUE_NAMED},
    {"readOnly", SCHEMA_VALUE_ANY},
    {"required", SCHEMA_VALUE_NAMES},
    {"title", SCHEMA_VALUE_ANY},
    {"type", SCHEMA_VALUE_TYPE},
    {"writeOnly", SCHEMA_VALUE_ANY},
};

static const struct Keyword *find_keyword(Slice name)
{
    for (size_t i = 0; i < ARRAY_COUNT(KEYWORDS); i++) {
        if (slice_equal(slice_of(KEYWORDS[i].name), name))
            return &KEYWORDS[i];
    }
    return NULL;
}

SchemaValueKind schema_value_kind(Slice keyword)
{
    const struct Keyword *found = find_keyword(keyword);
    return found ? found->kind : SCHEMA_VALUE_ANY;
}

static bool is_finite_number(const JsonValue *value)
{
    if (!json_is_number(value))
        return false;
    double number = json_to_double(value);
    return number - number == 0;
}

static bool check_scalar(SchemaCompiler *c, const struct Keyword *keyword, const JsonValue *value,
                         const SchemaPlace *place)
{
    int64_t count;
    switch (keyword->kind) {
    case SCHEMA_VALUE_TYPE:
        return schema_types_of(value) != 0 ||
               schema_fail(c, place, keyword->name, "not a type name or a list of them");
    case SCHEMA_VALUE_VALUES:
        return (json_is(value, JSON_ARRAY) && value->as.array.count > 0) ||
               schema_fail(c, place, keyword->name, "not an array with elements");
    case SCHEMA_VALUE_NAMES:
        if (!json_is(value, JSON_ARRAY))
            return schema_fail(c, place, keyword->name, "not an array of names");
        for (size_t i = 0; i < value->as.array.count; i++) {
            if (value->as.array.items[i].kind != JSON_STRING)
                return schema_fail(c, place, keyword->name, "not an array of names");
        }
        return true;
    case SCHEMA_VALUE_COUNT:
        return (json_is_number(value) && json_to_int64(value, &count) && count >= 0) ||
               schema_fail(c, place, keyword->name, "not a whole number from 0 on");
    case SCHEMA_VALUE_NUMBER:
        return is_finite_number(value) || schema_fail(c, place, keyword->name, "not a number");
    case SCHEMA_VALUE_POSITIVE:
        return (is_finite_number(value) && json_to_double(value) > 0) ||
               schema_fail(c, place, keyword->name, "not a number above 0");
    case SCHEMA_VALUE_STRING:
        return json_is(value, JSON_STRING) || schema_fail(c, place, keyword->name, "not a string");
    default:
        return true;
    }
}

static bool check_children(SchemaCompiler *c, const struct Keyword *keyword, const JsonValue *value,
                           const SchemaPlace *place)
{
    const SchemaPlace *here = schema_place(c, place, slice_of(keyword->name), 0);
    if (keyword->kind == SCHEMA_VALUE_SCHEMA)
        return schema_check(c, value, here);
    if (keyword->kind == SCHEMA_VALUE_SCHEMAS) {
        if (!json_is(value, JSON_ARRAY) || value->as.array.count == 0)
            return schema_fail(c, place, keyword->name, "not an array of schemas");
        for (size_t i = 0; i < value->as.array.count; i++) {
            if (!schema_check(c, &value->as.array.items[i], schema_place(c, here, SLICE_EMPTY, i)))
                return false;
        }
        return true;
    }
    if (!json_is(value, JSON_OBJECT))
        return schema_fail(c, place, keyword->name, "not an object of schemas");
    for (size_t i = 0; i < value->as.object.count; i++) {
        const JsonMember *member = &value->as.object.members[i];
        if (!schema_check(c, &member->value, schema_place(c, here, member->key, 0)))
            return false;
    }
    return true;
}

void schema_note_ignored(SchemaCompiler *c, Slice keyword)
{
    for (size_t i = 0; i < c->n_ignored; i++) {
        if (slice_equal(c->ignored[i], keyword))
            return;
    }
    if (c->n_ignored < SCHEMA_IGNORED_MAX)
        c->ignored[c->n_ignored++] = keyword;
}

/* {"propertyNames": {"type": "string"}}, which generators write for every map: names are strings
 * anyway, so that there is nothing to enforce. */
static bool says_nothing(const JsonMember *member)
{
    const JsonValue *schema = &member->value;
    if (!slice_equal(member->key, SLICE("propertyNames")) || schema->kind != JSON_OBJECT ||
        schema->as.object.count != 1)
        return false;
    const JsonValue *type = json_get(schema, SLICE("type"));
    return type && (schema_types_of(type) & SCHEMA_STRING);
}

static bool ignore_keyword(SchemaCompiler *c, Slice name, const SchemaPlace *place)
{
    if (c->is_strict) {
        char where[SCHEMA_PLACE_BYTES_MAX];
        schema_print_place(place, NULL, where);
        Slice shown = name;
        if (shown.len > AUTOMATON_QUOTE_BYTES_MAX)
            shown.len = AUTOMATON_QUOTE_BYTES_MAX;
        return error_set(c->err, ERROR_INVALID, "%s: keyword %.*s is not supported", where,
                         SLICE_ARG(shown));
    }
    schema_note_ignored(c, name);
    return true;
}

/* True when schema was seen before; else it is now. */
static bool was_checked(SchemaCompiler *c, const JsonValue *schema, bool *ok)
{
    if (c->n_checked * 2 >= c->n_checked_slots) {
        size_t n_slots = c->n_checked_slots ? c->n_checked_slots * 2 : 256;
        const JsonValue **slots = memory_allocate_zeroed(n_slots, sizeof(const JsonValue *));
        if (!slots) {
            *ok = error_no_memory(c->err, "schema");
            return true;
        }
        for (size_t i = 0; i < c->n_checked_slots; i++) {
            if (!c->checked[i])
                continue;
            size_t at = ((uintptr_t)c->checked[i] >> 4) & (n_slots - 1);
            while (slots[at])
                at = (at + 1) & (n_slots - 1);
            slots[at] = c->checked[i];
        }
        memory_free(c->checked);
        c->checked = slots;
        c->n_checked_slots = n_slots;
    }
    size_t at = ((uintptr_t)schema >> 4) & (c->n_checked_slots - 1);
    for (; c->checked[at]; at = (at + 1) & (c->n_checked_slots - 1)) {
        if (c->checked[at] == schema)
            return true;
    }
    c->checked[at] = schema;
    c->n_checked++;
    return false;
}

/* Depth is that of the document (JSON_DEPTH_MAX): targets of references are checked where they
 * stand, or by the one reference that leads outside all schemas. */
bool schema_check(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place)
{
    bool ok = true;
    if (was_checked(c, schema, &ok))
        return ok;
    if (schema->kind == JSON_BOOL)
        return true;
    if (schema->kind != JSON_OBJECT)
        return schema_fail(c, place, NULL, "a schema is an object, true or false");
    for (size_t i = 0; i < schema->as.object.count; i++) {
        const JsonMember *member = &schema->as.object.members[i];
        const struct Keyword *keyword = find_keyword(member->key);
        if (!keyword) {
            if (!says_nothing(member) && !ignore_keyword(c, member->key, place))
                return false;
            continue;
        }
        switch (keyword->kind) {
        case SCHEMA_VALUE_ANY:
            break;
        case SCHEMA_VALUE_SCHEMA:
        case SCHEMA_VALUE_SCHEMAS:
        case SCHEMA_VALUE_NAMED:
            ok = check_children(c, keyword, &member->value, place);
            break;
        case SCHEMA_VALUE_REFERENCE: {
            const JsonValue *target;
            ok = json_is(&member->value, JSON_STRING)
                     ? schema_resolve(c, member->value.as.string, place, &target)
                     : schema_fail(c, place, keyword->name, "not a string");
            break;
        }
        default:
            ok = check_scalar(c, keyword, &member->value, place);
        }
        if (!ok)
            return false;
    }
    return true;
}
