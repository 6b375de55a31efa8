/* Before a schema is checked that may be enforced in part: keywords whose values are sound but
 * beyond what is enforced (look-ahead in a pattern, multiples of 0.01, very long limits) are left
 * out and noted, as unknown keywords are, and the tuples of older drafts are written as those of
 * 2020-12. Schemas of tools come from generators that take all of this for granted. */
#include "regex_tree.h"
#include "schema.h"

static bool names(const JsonMember *member, const char *keyword)
{
    return slice_equal(member->key, slice_of(keyword));
}

/* A pattern that is malformed stays, to be refused. */
static bool check_pattern(SchemaCompiler *c, const JsonValue *value, bool *is_beyond)
{
    RegexTree tree;
    Error err = {0};
    if (value->kind != JSON_STRING)
        return true;
    bool ok = regex_parse(value->as.string, &tree, &err);
    regex_tree_reset(&tree);
    *is_beyond = !ok && (err.code == ERROR_UNSUPPORTED || err.code == ERROR_LIMIT);
    return ok || err.code != ERROR_MEMORY || error_no_memory(c->err, "schema");
}

static bool is_count_above(const JsonValue *value, int64_t most)
{
    int64_t count;
    return json_is_number(value) && json_to_int64(value, &count) && count > most;
}

/* Whole numbers have multiples of anything. */
static bool is_beyond_multiples(const JsonValue *schema, const JsonValue *value)
{
    int64_t whole;
    const JsonValue *type = json_get(schema, SLICE("type"));
    bool may_have_fraction = !type || (schema_types_of(type) & SCHEMA_NUMBER);
    return may_have_fraction && json_is_number(value) && json_to_double(value) > 0 &&
           !json_to_int64(value, &whole);
}

/* Is the member's value sound, but beyond what is enforced? */
static bool check_member(SchemaCompiler *c, const JsonValue *schema, const JsonMember *member,
                         bool *is_beyond)
{
    const JsonValue *value = &member->value;
    *is_beyond = false;
    if (names(member, "pattern"))
        return check_pattern(c, value, is_beyond);
    if (names(member, "multipleOf"))
        *is_beyond = is_beyond_multiples(schema, value);
    else if (names(member, "minLength") || names(member, "maxLength"))
        *is_beyond = is_count_above(value, SCHEMA_LENGTH_MAX);
    else if (names(member, "minItems") || names(member, "maxItems") ||
             names(member, "minProperties"))
        *is_beyond = is_count_above(value, SCHEMA_ITEMS_MAX);
    return true;
}

/* A copy of the array with its schemas relaxed. */
static bool relax_array(SchemaCompiler *c, const JsonValue *array, JsonValue *out)
{
    size_t count = array->as.array.count;
    JsonValue *items = arena_allocate_array(&c->arena, count, sizeof(*items));
    if (!items)
        return error_no_memory(c->err, "schema");
    for (size_t i = 0; i < count; i++) {
        if (!schema_relax(c, &array->as.array.items[i], &items[i]))
            return false;
    }
    *out = (JsonValue){.kind = JSON_ARRAY, .as.array = {items, count}};
    return true;
}

/* A copy of the object of schemas. */
static bool relax_named(SchemaCompiler *c, const JsonValue *object, JsonValue *out)
{
    size_t count = object->as.object.count;
    JsonMember *members = arena_allocate_array(&c->arena, count, sizeof(*members));
    if (!members)
        return error_no_memory(c->err, "schema");
    for (size_t i = 0; i < count; i++) {
        members[i].key = object->as.object.members[i].key;
        if (!schema_relax(c, &object->as.object.members[i].value, &members[i].value))
            return false;
    }
    *out = (JsonValue){.kind = JSON_OBJECT, .as.object = {members, count}};
    return true;
}

/* {"items": [A, B], "additionalItems": S}: what stands in place of a member of it, which is
 * dropped when *drops. */
static void rename_tuple(const JsonValue *schema, JsonMember *member, bool *drops)
{
    const JsonValue *items = json_get(schema, SLICE("items"));
    if (!json_is(items, JSON_ARRAY) || json_get(schema, SLICE("prefixItems")))
        return;
    if (names(member, "additionalItems")) {
        member->key = SLICE("items");
    } else if (names(member, "items")) {
        *drops = member->value.kind != JSON_ARRAY || items->as.array.count == 0;
        member->key = SLICE("prefixItems");
    }
}

static bool relax_member(SchemaCompiler *c, const JsonMember *member, JsonMember *out)
{
    *out = *member;
    SchemaValueKind kind = schema_value_kind(member->key);
    if (kind == SCHEMA_VALUE_SCHEMA)
        return schema_relax(c, &member->value, &out->value);
    if (kind == SCHEMA_VALUE_SCHEMAS && member->value.kind == JSON_ARRAY)
        return relax_array(c, &member->value, &out->value);
    if (kind == SCHEMA_VALUE_NAMED && member->value.kind == JSON_OBJECT)
        return relax_named(c, &member->value, &out->value);
    return true;
}

bool schema_relax(SchemaCompiler *c, const JsonValue *schema, JsonValue *out)
{
    *out = *schema;
    if (schema->kind != JSON_OBJECT)
        return true;
    size_t count = schema->as.object.count, n = 0;
    JsonMember *members = arena_allocate_array(&c->arena, count, sizeof(*members));
    if (!members)
        return error_no_memory(c->err, "schema");
    for (size_t i = 0; i < count; i++) {
        JsonMember member = schema->as.object.members[i];
        bool drops;
        if (!check_member(c, schema, &member, &drops))
            return false;
        if (drops)
            schema_note_ignored(c, member.key);
        rename_tuple(schema, &member, &drops);
        if (drops)
            continue;
        if (!relax_member(c, &member, &members[n++]))
            return false;
    }
    out->as.object.members = members;
    out->as.object.count = n;
    return true;
}
