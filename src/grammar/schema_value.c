/* enum and const: the listed values that satisfy everything else, each spelled out. */
#include "schema.h"

#include <math.h>
#include <string.h>

/* ---- Does a value satisfy a schema? ---- */

static bool value_equals(const JsonValue *a, const JsonValue *b)
{
    if (json_is_number(a) && json_is_number(b))
        return schema_compare_numbers(a, b) == 0;
    if (a->kind != b->kind)
        return false;
    switch (a->kind) {
    case JSON_BOOL:
        return a->as.boolean == b->as.boolean;
    case JSON_STRING:
        return slice_equal(a->as.string, b->as.string);
    case JSON_ARRAY:
        if (a->as.array.count != b->as.array.count)
            return false;
        for (size_t i = 0; i < a->as.array.count; i++) {
            if (!value_equals(&a->as.array.items[i], &b->as.array.items[i]))
                return false;
        }
        return true;
    case JSON_OBJECT:
        if (a->as.object.count != b->as.object.count)
            return false;
        for (size_t i = 0; i < a->as.object.count; i++) {
            const JsonMember *member = &a->as.object.members[i];
            const JsonValue *other = json_get(b, member->key);
            if (!other || !value_equals(&member->value, other))
                return false;
        }
        return true;
    default:
        return true; /* null */
    }
}

static unsigned type_of(const JsonValue *value)
{
    switch (value->kind) {
    case JSON_NULL:
        return SCHEMA_NULL;
    case JSON_BOOL:
        return SCHEMA_BOOLEAN;
    case JSON_STRING:
        return SCHEMA_STRING;
    case JSON_ARRAY:
        return SCHEMA_ARRAY;
    case JSON_OBJECT:
        return SCHEMA_OBJECT;
    case JSON_DOUBLE: /* 1e20 is a whole number, too */
        return value->as.number == floor(value->as.number) ? SCHEMA_INTEGER : SCHEMA_NUMBER;
    default:
        return SCHEMA_INTEGER;
    }
}

typedef struct Fit {
    SchemaCompiler *c;
    const SchemaPlace *place;
    unsigned depth;
    bool ok; /* false: c->err is set */
} Fit;

static bool fits(Fit *f, const JsonValue *schema, const JsonValue *value);

/* Whole numbers exactly: a double has 53 bits of them. */
static bool is_multiple(const JsonValue *value, const JsonValue *of)
{
    int64_t whole, divisor;
    if (json_to_int64(of, &divisor) && divisor > 0) {
        if (value->kind == JSON_UINT)
            return value->as.unsigned_integer % (uint64_t)divisor == 0;
        if (json_to_int64(value, &whole))
            return whole % divisor == 0;
    }
    double quotient = json_to_double(value) / json_to_double(of);
    return quotient < 9e15 && quotient > -9e15 && (double)(int64_t)quotient == quotient;
}

static bool fits_numbers(const JsonValue *schema, const JsonValue *value)
{
    const JsonValue *limit;
    if (!json_is_number(value))
        return true;
    if ((limit = json_get(schema, SLICE("minimum"))) && schema_compare_numbers(value, limit) < 0)
        return false;
    if ((limit = json_get(schema, SLICE("maximum"))) && schema_compare_numbers(value, limit) > 0)
        return false;
    if ((limit = json_get(schema, SLICE("exclusiveMinimum"))) &&
        schema_compare_numbers(value, limit) <= 0)
        return false;
    if ((limit = json_get(schema, SLICE("exclusiveMaximum"))) &&
        schema_compare_numbers(value, limit) >= 0)
        return false;
    limit = json_get(schema, SLICE("multipleOf"));
    return !limit || is_multiple(value, limit);
}

static bool count_fits(const JsonValue *schema, const char *min, const char *max, size_t count)
{
    int64_t limit;
    const JsonValue *value = min ? json_get(schema, slice_of(min)) : NULL;
    if (value && json_to_int64(value, &limit) && count < (uint64_t)limit)
        return false;
    value = max ? json_get(schema, slice_of(max)) : NULL;
    return !value || !json_to_int64(value, &limit) || count <= (uint64_t)limit;
}

static bool fits_string(Fit *f, const JsonValue *schema, const JsonValue *value)
{
    bool result;
    if (value->kind != JSON_STRING)
        return true;
    if (!count_fits(schema, "minLength", "maxLength", utf8_count(value->as.string)))
        return false;
    f->ok = f->ok && schema_string_fits(f->c, schema, f->place, value->as.string, &result);
    return f->ok && result;
}

static bool fits_array(Fit *f, const JsonValue *schema, const JsonValue *value)
{
    if (value->kind != JSON_ARRAY)
        return true;
    if (!count_fits(schema, "minItems", "maxItems", value->as.array.count))
        return false;
    const JsonValue *prefix = json_get(schema, SLICE("prefixItems"));
    const JsonValue *items = json_get(schema, SLICE("items"));
    for (size_t i = 0; i < value->as.array.count; i++) {
        const JsonValue *own =
            prefix && i < prefix->as.array.count ? &prefix->as.array.items[i] : items;
        if (own && !fits(f, own, &value->as.array.items[i]))
            return false;
    }
    return true;
}

static bool fits_object(Fit *f, const JsonValue *schema, const JsonValue *value)
{
    if (value->kind != JSON_OBJECT)
        return true;
    if (!count_fits(schema, "minProperties", NULL, value->as.object.count))
        return false;
    const JsonValue *required = json_get(schema, SLICE("required"));
    for (size_t i = 0; required && i < required->as.array.count; i++) {
        if (!json_get(value, required->as.array.items[i].as.string))
            return false;
    }
    const JsonValue *properties = json_get(schema, SLICE("properties"));
    const JsonValue *others = json_get(schema, SLICE("additionalProperties"));
    for (size_t i = 0; i < value->as.object.count; i++) {
        const JsonMember *member = &value->as.object.members[i];
        const JsonValue *own = json_get(properties, member->key);
        own = own ? own : others;
        if (own && !fits(f, own, &member->value))
            return false;
    }
    return true;
}

static bool fits_listed(SchemaCompiler *c, const JsonValue *schema, const JsonValue *value)
{
    const JsonValue *one = json_get(schema, SLICE("const"));
    if (one && !value_equals(one, value))
        return false;
    const JsonValue *listed = json_get(schema, SLICE("enum"));
    for (size_t i = 0; listed && i < listed->as.array.count; i++) {
        c->work++;
        if (value_equals(&listed->as.array.items[i], value))
            return true;
    }
    return !listed;
}

static bool fits_combined(Fit *f, const JsonValue *schema, const JsonValue *value)
{
    static const char *const names[] = {"allOf", "anyOf", "oneOf"};
    for (size_t n = 0; n < ARRAY_COUNT(names); n++) {
        const JsonValue *branches = json_get(schema, slice_of(names[n]));
        bool needs_all = n == 0, result = needs_all || !branches;
        for (size_t i = 0; branches && i < branches->as.array.count && result == needs_all; i++)
            result = fits(f, &branches->as.array.items[i], value);
        if (!result)
            return false;
    }
    const JsonValue *reference = json_get(schema, SLICE("$ref")), *target;
    if (!reference)
        return true;
    f->ok = f->ok && schema_resolve(f->c, reference->as.string, f->place, &target);
    return f->ok && fits(f, target, value);
}

/* Depth: references may lead around without end, so it is limited by itself. */
static bool fits(Fit *f, const JsonValue *schema, const JsonValue *value)
{
    if (!f->ok)
        return false;
    if (schema->kind == JSON_BOOL)
        return schema->as.boolean;
    if (schema->kind != JSON_OBJECT || ++f->depth > 200 || ++f->c->work > SCHEMA_WORK_MAX) {
        f->ok = error_set(f->c->err, ERROR_LIMIT,
                          "the values of an enum are too hard to check against the rest");
        return false;
    }
    const JsonValue *type = json_get(schema, SLICE("type"));
    bool result = (!type || (schema_types_of(type) & type_of(value))) &&
                  fits_listed(f->c, schema, value) && fits_numbers(schema, value) &&
                  fits_string(f, schema, value) && fits_array(f, schema, value) &&
                  fits_object(f, schema, value) && fits_combined(f, schema, value);
    f->depth--;
    return result;
}

/* ---- Spelling a value ---- */

static uint32_t add_value(SchemaCompiler *c, const JsonValue *value, uint32_t next);

static uint32_t add_number(SchemaCompiler *c, const JsonValue *value, uint32_t next)
{
    Automaton *a = c->automaton;
    char text[JSON_NUMBER_TEXT_MAX];
    Buffer buffer;
    buffer_init(&buffer, 2 * JSON_NUMBER_TEXT_MAX);
    int64_t whole;
    if (value->kind == JSON_UINT)
        buffer_append_format(&buffer, "%llu", (unsigned long long)value->as.unsigned_integer);
    else if (json_to_int64(value, &whole))
        buffer_append_format(&buffer, "%lld", (long long)whole);
    else if (value->as.number == floor(value->as.number) && fabs(value->as.number) < 1e30)
        buffer_append_format(&buffer, "%.0f", value->as.number);
    uint32_t result = AUTOMATON_FAIL;
    if (buffer.len > 0)
        result = automaton_add_literal(a, buffer_view(&buffer), next);
    if (value->kind == JSON_DOUBLE) { /* 5.0 may be either */
        size_t len = json_format_double(value->as.number, text);
        result =
            automaton_add_either(a, result, automaton_add_literal(a, (Slice){text, len}, next));
    }
    buffer_reset(&buffer);
    return result;
}

/* Elements last to first; is_object: names too. */
static uint32_t add_container(SchemaCompiler *c, const JsonValue *value, uint32_t next)
{
    Automaton *a = c->automaton;
    bool is_object = value->kind == JSON_OBJECT;
    size_t count = is_object ? value->as.object.count : value->as.array.count;
    uint8_t close = is_object ? '}' : ']', open = is_object ? '{' : '[';
    uint32_t at = automaton_add_bytes(a, close, close, next);
    at = text_add_rule(c->text, TEXT_RULE_SPACE, at);
    for (size_t i = count; i-- > 0 && !a->failed;) {
        if (i + 1 < count) {
            at = automaton_add_bytes(a, ',', ',', text_add_rule(c->text, TEXT_RULE_SPACE, at));
            at = text_add_rule(c->text, TEXT_RULE_SPACE, at);
        }
        if (!is_object) {
            at = add_value(c, &value->as.array.items[i], at);
            continue;
        }
        at = add_value(c, &value->as.object.members[i].value, at);
        at = automaton_add_bytes(a, ':', ':', text_add_rule(c->text, TEXT_RULE_SPACE, at));
        at = text_add_rule(c->text, TEXT_RULE_SPACE, at);
        at = text_add_json_string(c->text, value->as.object.members[i].key, at);
    }
    if (count > 0)
        at = text_add_rule(c->text, TEXT_RULE_SPACE, at);
    return automaton_add_bytes(a, open, open, at);
}

static uint32_t add_value(SchemaCompiler *c, const JsonValue *value, uint32_t next)
{
    Automaton *a = c->automaton;
    switch (value->kind) {
    case JSON_NULL:
        return automaton_add_literal(a, SLICE("null"), next);
    case JSON_BOOL:
        return automaton_add_literal(a, value->as.boolean ? SLICE("true") : SLICE("false"), next);
    case JSON_STRING:
        return text_add_json_string(c->text, value->as.string, next);
    case JSON_ARRAY:
    case JSON_OBJECT:
        return add_container(c, value, next);
    default:
        return add_number(c, value, next);
    }
}

/* Does `"s"` need no escape and no second spelling? */
static bool is_plain(Slice s)
{
    for (size_t i = 0; i < s.len; i++) {
        uint8_t b = (uint8_t)s.ptr[i];
        if (b < 0x20 || b >= 0x80 || b == '"' || b == '\\')
            return false;
    }
    return true;
}

typedef struct Chosen {
    Slice *strings; /* plain ones, for one trie */
    size_t n_strings;
    uint32_t others;
} Chosen;

/* from: the member that lists the value. */
static bool choose(SchemaCompiler *c, SchemaList list, const SchemaMember *from,
                   const JsonValue *value, bool is_const, Chosen *chosen, uint32_t next)
{
    Fit f = {.c = c, .place = from->place, .ok = true};
    bool result = true;
    for (size_t i = 0; i < list.count && result; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *schema = member->schema;
        const JsonValue *type = json_get(schema, SLICE("type"));
        result = (!type || (schema_types_of(type) & type_of(value))) &&
                 ((member == from && !is_const) || fits_listed(c, schema, value)) &&
                 fits_numbers(schema, value) && fits_string(&f, schema, value) &&
                 fits_array(&f, schema, value) && fits_object(&f, schema, value);
    }
    c->work += list.count;
    if (f.ok && c->work > SCHEMA_WORK_MAX)
        f.ok = error_set(c->err, ERROR_LIMIT, "the schema has too many combinations");
    if (!f.ok)
        return false;
    if (!result)
        return true;
    if (value->kind == JSON_STRING && is_plain(value->as.string))
        chosen->strings[chosen->n_strings++] = value->as.string;
    else
        chosen->others =
            automaton_add_either(c->automaton, chosen->others, add_value(c, value, next));
    return true;
}

uint32_t schema_add_values(SchemaCompiler *c, SchemaList list, uint32_t next)
{
    Automaton *a = c->automaton;
    const JsonValue *value, *values = NULL;
    const SchemaMember *member = schema_find_keyword(list, "const", &value);
    const char *keyword = "const";
    size_t count = 1;
    if (!member) {
        keyword = "enum";
        member = schema_find_keyword(list, "enum", &values);
        count = values->as.array.count;
    }
    Chosen chosen = {.strings = memory_allocate_array(count, sizeof(Slice)),
                     .others = AUTOMATON_FAIL};
    if (!chosen.strings)
        return automaton_fail(a, ERROR_MEMORY, "out of memory: schema");
    uint32_t result = AUTOMATON_FAIL;
    for (size_t i = 0; i < count && !a->failed; i++) {
        if (!choose(c, list, member, values ? &values->as.array.items[i] : value, !values, &chosen,
                    next))
            a->failed = true;
    }
    if (!a->failed && chosen.n_strings > 0) {
        uint32_t close = automaton_add_bytes(a, '"', '"', next);
        uint32_t trie = text_add_choice(c->text, chosen.strings, chosen.n_strings, close);
        result = automaton_add_bytes(a, '"', '"', trie);
    }
    result = automaton_add_either(a, result, chosen.others);
    memory_free(chosen.strings);
    if (result == AUTOMATON_FAIL)
        schema_note_contradiction(c, member->place, keyword, "no value satisfies the rest too");
    return result;
}
