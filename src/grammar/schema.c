/* Lists to rules: the queue, alternatives, types. */
#include "schema.h"

#include <string.h>

/* ---- Rules by their lists ---- */

static uint64_t hash_list(SchemaList list)
{
    /* A sum: order does not matter. */
    uint64_t sum = list.count;
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *m = &list.members[i];
        uint64_t h = (uint64_t)(uintptr_t)m->schema * 4 + m->any_of_done * 2 + m->one_of_done;
        h *= UINT64_C(0x9e3779b97f4a7c15);
        sum += h ^ h >> 31;
    }
    return sum;
}

static bool lists_equal(SchemaList a, SchemaList b)
{
    if (a.count != b.count)
        return false;
    for (size_t i = 0; i < a.count; i++) { /* members are unique in a flat list */
        const SchemaMember *m = &a.members[i];
        bool found = false;
        for (size_t k = 0; k < b.count && !found; k++) {
            const SchemaMember *o = &b.members[(i + k) % b.count];
            found = m->schema == o->schema && m->any_of_done == o->any_of_done &&
                    m->one_of_done == o->one_of_done;
        }
        if (!found)
            return false;
    }
    return true;
}

static bool grow_slots(SchemaCompiler *c)
{
    if (c->n_rules * 2 < c->n_slots)
        return true;
    size_t n_slots = c->n_slots ? c->n_slots * 2 : 64;
    uint32_t *slots = memory_allocate_zeroed(n_slots, sizeof(*slots));
    if (!slots)
        return error_no_memory(c->err, "schema");
    memory_free(c->slots);
    c->slots = slots;
    c->n_slots = n_slots;
    for (size_t i = 0; i < c->n_rules; i++) {
        size_t at = (size_t)c->rules[i].hash & (n_slots - 1);
        while (slots[at])
            at = (at + 1) & (n_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    return true;
}

/* The rule of any document that the list accepts, made when first asked for. */
static uint32_t get_rule(SchemaCompiler *c, SchemaList flat)
{
    Automaton *a = c->automaton;
    if (a->failed)
        return 0;
    if (!grow_slots(c)) {
        a->failed = true;
        return 0;
    }
    uint64_t hash = hash_list(flat);
    size_t at = (size_t)hash & (c->n_slots - 1);
    for (; c->slots[at]; at = (at + 1) & (c->n_slots - 1)) {
        const SchemaRule *rule = &c->rules[c->slots[at] - 1];
        if (rule->hash == hash && lists_equal(rule->list, flat))
            return rule->rule;
    }
    if (c->n_rules >= SCHEMA_RULES_MAX) {
        automaton_fail(a, ERROR_LIMIT, "the schema has too many combinations");
        return 0;
    }
    if (!memory_grow_array((void **)&c->rules, c->n_rules, &c->rules_capacity, sizeof(*c->rules))) {
        automaton_fail(a, ERROR_MEMORY, "out of memory: schema");
        return 0;
    }
    c->rules[c->n_rules] = (SchemaRule){flat, automaton_add_rule(a, SLICE_EMPTY), hash};
    c->slots[at] = (uint32_t)c->n_rules + 1;
    return c->rules[c->n_rules++].rule;
}

/* ---- Lists ---- */

/* One list per branch of the member's anyOf or oneOf. */
static uint32_t add_branches(SchemaCompiler *c, SchemaList list, size_t at, bool is_any_of,
                             uint32_t next)
{
    Automaton *a = c->automaton;
    const char *keyword = is_any_of ? "anyOf" : "oneOf";
    const SchemaMember *member = &list.members[at];
    const JsonValue *branches = json_get(member->schema, slice_of(keyword));
    SchemaMember *members = arena_allocate_array(&c->arena, list.count, sizeof(*members));
    if (!members)
        return automaton_fail(a, ERROR_LIMIT, "the schema needs too much memory");
    memcpy(members, list.members, list.count * sizeof(*members));
    if (is_any_of)
        members[at].any_of_done = true;
    else
        members[at].one_of_done = true;
    SchemaList base = {members, list.count};
    const SchemaPlace *place = schema_place(c, member->place, slice_of(keyword), 0);
    uint32_t result = AUTOMATON_FAIL;
    for (size_t i = 0; i < branches->as.array.count && !a->failed; i++) {
        SchemaChain *chain = arena_allocate(&c->arena, sizeof(*chain));
        SchemaList extended;
        if (!chain)
            return automaton_fail(a, ERROR_LIMIT, "the schema needs too much memory");
        *chain = (SchemaChain){member->chain, &branches->as.array.items[i]};
        SchemaMember branch = {.schema = &branches->as.array.items[i],
                               .place = schema_place(c, place, SLICE_EMPTY, i),
                               .chain = chain};
        if (!schema_list_append(c, base, &branch, &extended)) {
            a->failed = true;
            return AUTOMATON_FAIL;
        }
        result = automaton_add_either(a, result, schema_add_list(c, extended, next));
    }
    return result;
}

/* A member with alternatives not chosen yet. */
static bool find_alternatives(SchemaList list, size_t *at, bool *is_any_of)
{
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *m = &list.members[i];
        *at = i;
        *is_any_of = !m->any_of_done && json_get(m->schema, SLICE("anyOf"));
        if (*is_any_of || (!m->one_of_done && json_get(m->schema, SLICE("oneOf"))))
            return true;
    }
    return false;
}

static uint32_t add_types(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                          uint32_t next)
{
    Automaton *a = c->automaton;
    uint32_t at = AUTOMATON_FAIL;
    if (limits->types & SCHEMA_NULL)
        at = automaton_add_either(a, at, automaton_add_literal(a, SLICE("null"), next));
    if (limits->types & SCHEMA_BOOLEAN) {
        at = automaton_add_either(a, at, automaton_add_literal(a, SLICE("false"), next));
        at = automaton_add_either(a, at, automaton_add_literal(a, SLICE("true"), next));
    }
    if (limits->types & SCHEMA_INTEGER)
        at = automaton_add_either(a, at, schema_add_numbers(c, limits, next));
    if (limits->types & SCHEMA_STRING)
        at = automaton_add_either(a, at, schema_add_strings(c, list, limits, next));
    if (limits->types & SCHEMA_ARRAY)
        at = automaton_add_either(a, at, schema_add_arrays(c, list, limits, next));
    if (limits->types & SCHEMA_OBJECT)
        at = automaton_add_either(a, at, schema_add_objects(c, list, limits, next));
    return at;
}

static bool is_listed(SchemaList list)
{
    const JsonValue *value;
    return schema_find_keyword(list, "const", &value) || schema_find_keyword(list, "enum", &value);
}

static uint32_t add_flat(SchemaCompiler *c, SchemaList flat, uint32_t next)
{
    Automaton *a = c->automaton;
    size_t at;
    bool is_any_of;
    if (find_alternatives(flat, &at, &is_any_of))
        return add_branches(c, flat, at, is_any_of, next);
    if (is_listed(flat))
        return schema_add_values(c, flat, next);
    SchemaLimits limits;
    if (!schema_list_merge(c, flat, &limits)) {
        a->failed = true;
        return AUTOMATON_FAIL;
    }
    return add_types(c, flat, &limits, next);
}

/* Is it compiled in place? What contains other values, or chooses, becomes a rule. */
static bool is_simple(SchemaCompiler *c, SchemaList flat)
{
    size_t at;
    bool is_any_of;
    SchemaLimits limits;
    (void)c;
    if (find_alternatives(flat, &at, &is_any_of))
        return false;
    if (is_listed(flat))
        return true;
    limits.types = SCHEMA_ALL;
    for (size_t i = 0; i < flat.count; i++) {
        const JsonValue *type = json_get(flat.members[i].schema, SLICE("type"));
        if (type)
            limits.types &= schema_types_of(type);
    }
    return (limits.types & (SCHEMA_OBJECT | SCHEMA_ARRAY)) == 0;
}

uint32_t schema_add_list(SchemaCompiler *c, SchemaList list, uint32_t next)
{
    Automaton *a = c->automaton;
    SchemaList flat;
    bool is_never;
    if (a->failed)
        return AUTOMATON_FAIL;
    if (!schema_list_flatten(c, list, &flat, &is_never)) {
        a->failed = true;
        return AUTOMATON_FAIL;
    }
    if (is_never)
        return AUTOMATON_FAIL;
    if (flat.count == 0)
        return text_add_rule(c->text, TEXT_RULE_VALUE, next);
    if (is_simple(c, flat))
        return add_flat(c, flat, next);
    return automaton_add_call(a, get_rule(c, flat), next);
}

/* ---- The whole ---- */

void schema_compiler_init(SchemaCompiler *c, Text *text, const JsonValue *root, bool is_strict)
{
    *c = (SchemaCompiler){
        .text = text, .automaton = text->automaton, .root = root, .is_strict = is_strict};
    arena_init(&c->arena, SCHEMA_ARENA_BYTES_MAX);
}

void schema_compiler_reset(SchemaCompiler *c)
{
    arena_reset(&c->arena);
    memory_free(c->rules);
    memory_free(c->slots);
    memory_free(c->checked);
    memory_free(c->string_rules);
    *c = (SchemaCompiler){0};
}

bool schema_compile(SchemaCompiler *c, Error *err)
{
    Automaton *a = c->automaton;
    static const SchemaPlace top = {0};
    c->err = err;
    SchemaList list;
    if (!c->is_strict) {
        if (!schema_relax(c, c->root, &c->relaxed))
            return false;
        c->root = &c->relaxed;
    }
    if (!schema_check(c, c->root, &top) || !schema_list_of(c, c->root, &top, &list))
        return false;
    a->root = automaton_add_rule(a, SLICE_EMPTY);
    automaton_set_rule(a, a->root, schema_add_list(c, list, AUTOMATON_RETURN));
    while (c->n_compiled < c->n_rules && !a->failed) {
        SchemaRule rule = c->rules[c->n_compiled++];
        automaton_set_rule(a, rule.rule, add_flat(c, rule.list, AUTOMATON_RETURN));
    }
    return !a->failed;
}
