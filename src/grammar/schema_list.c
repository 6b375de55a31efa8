/* Flattening and merging of what holds at one place. */
#include "schema.h"

#include <stdlib.h>
#include <string.h>

bool schema_list_of(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place,
                    SchemaList *out)
{
    *out = (SchemaList){0};
    SchemaMember member = {.schema = schema, .place = place};
    return schema_list_append(c, *out, &member, out);
}

bool schema_list_append(SchemaCompiler *c, SchemaList list, const SchemaMember *member,
                        SchemaList *out)
{
    if (list.count >= SCHEMA_LIST_MAX)
        return schema_fail(c, member->place, NULL, "too many schemas hold at one place");
    SchemaMember *members = arena_allocate_array(&c->arena, list.count + 1, sizeof(*members));
    if (!members)
        return error_set(c->err, ERROR_LIMIT, "the schema needs too much memory");
    if (list.count > 0)
        memcpy(members, list.members, list.count * sizeof(*members));
    members[list.count] = *member;
    *out = (SchemaList){members, list.count + 1};
    return true;
}

static bool is_in_chain(const SchemaChain *chain, const JsonValue *schema)
{
    for (; chain; chain = chain->up) {
        if (chain->schema == schema)
            return true;
    }
    return false;
}

/* What is being flattened: a stack of members still to look at, and those done. */
typedef struct Flattening {
    SchemaCompiler *c;
    SchemaMember *todo;
    size_t n_todo, todo_capacity;
    SchemaMember *done;
    size_t n_done, done_capacity;
    bool is_never;
} Flattening;

static bool push_member(SchemaMember **list, size_t *count, size_t *capacity, SchemaMember member,
                        SchemaCompiler *c)
{
    if (++c->work > SCHEMA_WORK_MAX || *count > SCHEMA_LIST_MAX * 8)
        return error_set(c->err, ERROR_LIMIT, "the schema has too many combinations");
    if (!memory_grow_array((void **)list, *count, capacity, sizeof(**list)))
        return error_no_memory(c->err, "schema");
    (*list)[(*count)++] = member;
    return true;
}

static bool push_led(Flattening *f, const SchemaMember *from, const JsonValue *schema,
                     const SchemaPlace *place, const char *keyword)
{
    SchemaCompiler *c = f->c;
    if (is_in_chain(from->chain, schema))
        return schema_fail(c, from->place, keyword, "a cycle with nothing between");
    SchemaChain *chain = arena_allocate(&c->arena, sizeof(*chain));
    if (!chain)
        return error_set(c->err, ERROR_LIMIT, "the schema needs too much memory");
    *chain = (SchemaChain){from->chain, schema};
    return push_member(&f->todo, &f->n_todo, &f->todo_capacity,
                       (SchemaMember){.schema = schema, .place = place, .chain = chain}, c);
}

static bool follow_member(Flattening *f, SchemaMember member)
{
    SchemaCompiler *c = f->c;
    if (member.is_followed)
        return true;
    const JsonValue *reference = json_get(member.schema, SLICE("$ref"));
    const JsonValue *all = json_get(member.schema, SLICE("allOf"));
    if (!member.chain) { /* the first at its place: it can be led back to */
        SchemaChain *chain = arena_allocate(&c->arena, sizeof(*chain));
        if (!chain)
            return error_set(c->err, ERROR_LIMIT, "the schema needs too much memory");
        *chain = (SchemaChain){NULL, member.schema};
        member.chain = chain;
        f->done[f->n_done - 1].chain = chain;
    }
    /* Last first: todo is a stack, and properties keep the order of the schema. */
    for (size_t i = all ? all->as.array.count : 0; i-- > 0;) {
        const SchemaPlace *place =
            schema_place(c, schema_place(c, member.place, SLICE("allOf"), 0), SLICE_EMPTY, i);
        if (!push_led(f, &member, &all->as.array.items[i], place, "allOf"))
            return false;
    }
    if (!reference)
        return true;
    const JsonValue *target;
    return schema_resolve(c, reference->as.string, member.place, &target) &&
           schema_check(c, target, member.place) &&
           push_led(f, &member, target, member.place, "$ref");
}

static bool flatten_one(Flattening *f, SchemaMember member)
{
    if (member.schema->kind == JSON_BOOL) {
        if (!member.schema->as.boolean) {
            f->is_never = true;
            schema_note_contradiction(f->c, member.place, NULL, "the schema false accepts nothing");
        }
        return true;
    }
    for (size_t i = 0; i < f->n_done; i++) {
        SchemaMember *seen = &f->done[i];
        if (seen->schema != member.schema)
            continue;
        /* The same schema by two ways says the same; a branch chosen once stays chosen. */
        seen->any_of_done |= member.any_of_done;
        seen->one_of_done |= member.one_of_done;
        f->c->work += f->n_done;
        return true;
    }
    f->c->work += f->n_done;
    return push_member(&f->done, &f->n_done, &f->done_capacity, member, f->c) &&
           follow_member(f, member);
}

/* Does the member limit anything by itself, besides what was followed or chosen already? */
static bool says_something(const SchemaMember *member)
{
    static const char *const limiting[] = {"type",
                                           "enum",
                                           "const",
                                           "properties",
                                           "required",
                                           "additionalProperties",
                                           "items",
                                           "prefixItems",
                                           "minItems",
                                           "maxItems",
                                           "minimum",
                                           "maximum",
                                           "exclusiveMinimum",
                                           "exclusiveMaximum",
                                           "multipleOf",
                                           "minLength",
                                           "maxLength",
                                           "pattern",
                                           "format",
                                           "minProperties"};
    const JsonValue *schema = member->schema;
    for (size_t i = 0; i < ARRAY_COUNT(limiting); i++) {
        if (json_get(schema, slice_of(limiting[i])))
            return true;
    }
    return (!member->any_of_done && json_get(schema, SLICE("anyOf"))) ||
           (!member->one_of_done && json_get(schema, SLICE("oneOf")));
}

bool schema_list_flatten(SchemaCompiler *c, SchemaList list, SchemaList *out, bool *is_never)
{
    Flattening f = {.c = c};
    bool ok = true;
    for (size_t i = list.count; ok && i-- > 0;)
        ok = push_member(&f.todo, &f.n_todo, &f.todo_capacity, list.members[i], c);
    while (ok && f.n_todo > 0)
        ok = flatten_one(&f, f.todo[--f.n_todo]);
    if (ok && f.n_done > SCHEMA_LIST_MAX)
        ok = error_set(c->err, ERROR_LIMIT, "too many schemas hold at one place");
    SchemaMember *members = NULL;
    if (ok) {
        members = arena_allocate_array(&c->arena, f.n_done, sizeof(*members));
        ok = members || error_set(c->err, ERROR_LIMIT, "the schema needs too much memory");
    }
    size_t n = 0;
    for (size_t i = 0; ok && i < f.n_done; i++) {
        f.done[i].is_followed = true;
        if (says_something(&f.done[i]))
            members[n++] = f.done[i];
    }
    if (ok) {
        *out = (SchemaList){members, n};
        *is_never = f.is_never;
    }
    memory_free(f.todo);
    memory_free(f.done);
    return ok;
}

const SchemaMember *schema_find_keyword(SchemaList list, const char *keyword,
                                        const JsonValue **value)
{
    for (size_t i = 0; i < list.count; i++) {
        *value = json_get(list.members[i].schema, slice_of(keyword));
        if (*value)
            return &list.members[i];
    }
    return NULL;
}

/* ---- Merging ---- */

static unsigned type_bit(Slice name)
{
    static const struct {
        const char *name;
        unsigned bits;
    } types[] = {{"null", SCHEMA_NULL},
                 {"boolean", SCHEMA_BOOLEAN},
                 {"object", SCHEMA_OBJECT},
                 {"array", SCHEMA_ARRAY},
                 {"string", SCHEMA_STRING},
                 {"integer", SCHEMA_INTEGER},
                 {"number", SCHEMA_NUMBER | SCHEMA_INTEGER}};
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        if (slice_equal(slice_of(types[i].name), name))
            return types[i].bits;
    }
    return 0;
}

unsigned schema_types_of(const JsonValue *type)
{
    if (type->kind == JSON_STRING)
        return type_bit(type->as.string);
    if (type->kind != JSON_ARRAY)
        return 0;
    unsigned bits = 0;
    for (size_t i = 0; i < type->as.array.count; i++) {
        const JsonValue *name = &type->as.array.items[i];
        unsigned bit = name->kind == JSON_STRING ? type_bit(name->as.string) : 0;
        if (bit == 0)
            return 0;
        bits |= bit;
    }
    return bits;
}

/* Whole numbers exactly; a JSON_UINT is above all of JSON_INT. */
int schema_compare_numbers(const JsonValue *a, const JsonValue *b)
{
    if (a->kind == JSON_INT && b->kind == JSON_INT)
        return (a->as.integer > b->as.integer) - (a->as.integer < b->as.integer);
    if (a->kind == JSON_UINT && b->kind == JSON_UINT)
        return (a->as.unsigned_integer > b->as.unsigned_integer) -
               (a->as.unsigned_integer < b->as.unsigned_integer);
    if (a->kind != JSON_DOUBLE && b->kind != JSON_DOUBLE)
        return a->kind == JSON_UINT ? 1 : -1;
    double x = json_to_double(a), y = json_to_double(b);
    int64_t whole, other;
    if (x == y && json_to_int64(a, &whole) && json_to_int64(b, &other))
        return (whole > other) - (whole < other);
    return (x > y) - (x < y);
}

static void raise_low(SchemaBounds *bounds, const JsonValue *value, bool is_exclusive)
{
    int order = bounds->has_low ? schema_compare_numbers(value, &bounds->low) : 1;
    if (order < 0 || (order == 0 && !is_exclusive))
        return;
    bounds->low = *value;
    bounds->low_is_exclusive = is_exclusive;
    bounds->has_low = true;
}

static void lower_high(SchemaBounds *bounds, const JsonValue *value, bool is_exclusive)
{
    int order = bounds->has_high ? schema_compare_numbers(value, &bounds->high) : -1;
    if (order > 0 || (order == 0 && !is_exclusive))
        return;
    bounds->high = *value;
    bounds->high_is_exclusive = is_exclusive;
    bounds->has_high = true;
}

static uint64_t greatest_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The whole numbers among the multiples of value are the multiples of *out: value as a fraction in
 * lowest terms has *out above the line. */
static bool whole_multiple(const JsonValue *value, uint64_t *out)
{
    int64_t whole;
    if (json_to_int64(value, &whole)) {
        *out = (uint64_t)whole;
        return true;
    }
    double number = json_to_double(value);
    uint64_t below = 1;
    for (unsigned digits = 0; digits < 12; digits++) {
        double scaled = number * (double)below;
        if (scaled >= 1e15)
            return false;
        double nearest = (double)(int64_t)(scaled + 0.5);
        if (nearest / (double)below == number) {
            uint64_t above = (uint64_t)nearest;
            *out = above / greatest_divisor(above, below);
            return above > 0;
        }
        below *= 10;
    }
    return false;
}

static bool merge_multiple(SchemaCompiler *c, const SchemaMember *member, const JsonValue *value,
                           SchemaLimits *limits, bool is_whole)
{
    uint64_t one;
    if (!is_whole || !whole_multiple(value, &one))
        return schema_fail(c, member->place, "multipleOf",
                           is_whole ? "too fine or too large to be enforced"
                                    : "enforced for whole numbers only");
    uint64_t before = limits->bounds.multiple ? limits->bounds.multiple : 1;
    uint64_t factor = one / greatest_divisor(one, before);
    if (factor > INT64_MAX / before)
        return schema_fail(c, member->place, "multipleOf", "too large to be enforced");
    limits->bounds.multiple = before * factor;
    limits->types &= ~(unsigned)SCHEMA_NUMBER;
    return true;
}

static void merge_count(const JsonValue *schema, const char *keyword, bool is_min, size_t *limit)
{
    const JsonValue *value = json_get(schema, slice_of(keyword));
    int64_t count;
    if (!value || !json_to_int64(value, &count))
        return;
    size_t found = (uint64_t)count < SIZE_MAX ? (size_t)count : SIZE_MAX - 1;
    if (is_min ? found > *limit : found < *limit)
        *limit = found;
}

static void merge_bounds(const JsonValue *schema, SchemaBounds *bounds)
{
    const JsonValue *value;
    if ((value = json_get(schema, SLICE("minimum"))))
        raise_low(bounds, value, false);
    if ((value = json_get(schema, SLICE("exclusiveMinimum"))))
        raise_low(bounds, value, true);
    if ((value = json_get(schema, SLICE("maximum"))))
        lower_high(bounds, value, false);
    if ((value = json_get(schema, SLICE("exclusiveMaximum"))))
        lower_high(bounds, value, true);
}

bool schema_list_merge(SchemaCompiler *c, SchemaList list, SchemaLimits *out)
{
    *out = (SchemaLimits){.types = SCHEMA_ALL,
                          .max_length = SIZE_MAX,
                          .max_items = SIZE_MAX,
                          .place = list.count > 0 ? list.members[0].place : NULL};
    for (size_t i = 0; i < list.count; i++) {
        const JsonValue *schema = list.members[i].schema;
        const JsonValue *value = json_get(schema, SLICE("type"));
        if (value)
            out->types &= schema_types_of(value);
        merge_bounds(schema, &out->bounds);
        merge_count(schema, "minLength", true, &out->min_length);
        merge_count(schema, "maxLength", false, &out->max_length);
        merge_count(schema, "minItems", true, &out->min_items);
        merge_count(schema, "maxItems", false, &out->max_items);
        merge_count(schema, "minProperties", true, &out->min_properties);
        value = json_get(schema, SLICE("format"));
        out->n_string_rules += json_get(schema, SLICE("pattern")) != NULL;
        out->n_string_rules += value && schema_format_is_enforced(value->as.string);
    }
    for (size_t i = 0; i < list.count && (out->types & SCHEMA_INTEGER); i++) {
        const JsonValue *value = json_get(list.members[i].schema, SLICE("multipleOf"));
        int64_t whole;
        bool is_whole = !(out->types & SCHEMA_NUMBER) || (value && json_to_int64(value, &whole));
        if (value && !merge_multiple(c, &list.members[i], value, out, is_whole))
            return false;
    }
    if (out->types == 0)
        schema_note_contradiction(c, out->place, "type", "no type satisfies all that is asked");
    return true;
}
