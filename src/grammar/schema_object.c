/* Objects and arrays.
 *
 * An object's members come in the order of the schema, those without a property of their own last.
 * With c members so far (counted only if minProperties asks for it) and i properties passed:
 *
 *     key(i, c)   = property i, then after(i + 1, c + 1)  |  key(i + 1, c) if i may be left out
 *     after(i, c) = space ( "," space key(i, c)  |  "}" if all from i on may be left out, and c is
 * enough )
 *
 * and behind the last property key(n, c) is any other name, if any is allowed. */
#include "schema.h"

#include <string.h>

/* ---- What is known of an object ---- */

typedef struct Property {
    Slice name;
    SchemaList list;
    const SchemaPlace *place;
    bool is_required;
    uint32_t rule; /* of the whole member, when it is used more than once */
} Property;

typedef struct Object {
    SchemaCompiler *c;
    Property *properties;
    size_t n_properties, capacity;
    uint32_t *slots; /* of properties by name, + 1 */
    size_t n_slots;
    bool allows_others;
    SchemaList others; /* what a member without a property of its own must satisfy */
    uint32_t other_rule;
    size_t min_members; /* 0: what is required suffices */
    size_t n_required;
    const SchemaPlace *place;
} Object;

static bool fail_memory(SchemaCompiler *c)
{
    return error_no_memory(c->err, "schema");
}

static bool grow_slots(Object *o)
{
    if (o->n_properties * 2 < o->n_slots)
        return true;
    size_t n_slots = o->n_slots ? o->n_slots * 2 : 32;
    uint32_t *slots = memory_allocate_zeroed(n_slots, sizeof(*slots));
    if (!slots)
        return fail_memory(o->c);
    memory_free(o->slots);
    o->slots = slots;
    o->n_slots = n_slots;
    for (size_t i = 0; i < o->n_properties; i++) {
        size_t at = (size_t)slice_hash(o->properties[i].name) & (n_slots - 1);
        while (slots[at])
            at = (at + 1) & (n_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    return true;
}

/* The property of that name, made if there is none; NULL without memory. */
static Property *get_property(Object *o, Slice name, const SchemaPlace *place)
{
    if (!grow_slots(o))
        return NULL;
    size_t at = (size_t)slice_hash(name) & (o->n_slots - 1);
    for (; o->slots[at]; at = (at + 1) & (o->n_slots - 1)) {
        if (slice_equal(o->properties[o->slots[at] - 1].name, name))
            return &o->properties[o->slots[at] - 1];
    }
    if (!memory_grow_array((void **)&o->properties, o->n_properties, &o->capacity,
                           sizeof(*o->properties))) {
        fail_memory(o->c);
        return NULL;
    }
    o->properties[o->n_properties] = (Property){.name = name, .place = place};
    o->slots[at] = (uint32_t)++o->n_properties;
    return &o->properties[o->n_properties - 1];
}

static bool append_schema(SchemaCompiler *c, SchemaList *list, const JsonValue *schema,
                          const SchemaPlace *place)
{
    SchemaMember member = {.schema = schema, .place = place};
    return schema_list_append(c, *list, &member, list);
}

/* What the member `name` must satisfy: of each schema its own property, or its
 * additionalProperties. */
static bool collect_property(Object *o, SchemaList list, Property *property)
{
    SchemaCompiler *c = o->c;
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *own =
            json_get(json_get(member->schema, SLICE("properties")), property->name);
        const JsonValue *others = json_get(member->schema, SLICE("additionalProperties"));
        c->work++;
        const SchemaPlace *place = member->place;
        if (own) {
            place =
                schema_place(c, schema_place(c, place, SLICE("properties"), 0), property->name, 0);
            property->place = place;
        } else if (others) {
            place = schema_place(c, place, SLICE("additionalProperties"), 0);
        }
        if ((own || others) && !append_schema(c, &property->list, own ? own : others, place))
            return false;
    }
    return true;
}

static bool collect_names(Object *o, SchemaList list)
{
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *properties = json_get(member->schema, SLICE("properties"));
        for (size_t k = 0; properties && k < properties->as.object.count; k++) {
            if (!get_property(o, properties->as.object.members[k].key, member->place))
                return false;
        }
    }
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *required = json_get(member->schema, SLICE("required"));
        for (size_t k = 0; required && k < required->as.array.count; k++) {
            Property *property =
                get_property(o, required->as.array.items[k].as.string, member->place);
            if (!property)
                return false;
            o->n_required += !property->is_required;
            property->is_required = true;
        }
    }
    return true;
}

static bool collect_others(Object *o, SchemaList list)
{
    SchemaCompiler *c = o->c;
    o->allows_others = true;
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *others = json_get(member->schema, SLICE("additionalProperties"));
        if (!others)
            continue;
        if (others->kind == JSON_BOOL && !others->as.boolean)
            o->allows_others = false;
        else if (!append_schema(c, &o->others, others,
                                schema_place(c, member->place, SLICE("additionalProperties"), 0)))
            return false;
    }
    return true;
}

static bool collect(Object *o, SchemaList list, const SchemaLimits *limits)
{
    SchemaCompiler *c = o->c;
    if (!collect_names(o, list) || !collect_others(o, list))
        return false;
    for (size_t i = 0; i < o->n_properties; i++) {
        if (!collect_property(o, list, &o->properties[i]))
            return false;
        if (c->work > SCHEMA_WORK_MAX)
            return error_set(c->err, ERROR_LIMIT, "the schema has too many combinations");
    }
    if (limits->min_properties > o->n_required)
        o->min_members = limits->min_properties;
    if (o->min_members > o->n_properties && !o->allows_others) {
        schema_note_contradiction(c, o->place, "minProperties", "more than there are properties");
        o->min_members = o->n_properties + 1;
    }
    if (o->min_members > SCHEMA_ITEMS_MAX)
        return schema_fail(c, o->place, "minProperties", "too many to be enforced");
    return true;
}

/* ---- Members ---- */

static uint32_t add_colon(SchemaCompiler *c, uint32_t next)
{
    next = text_add_rule(c->text, TEXT_RULE_SPACE, next);
    next = automaton_add_bytes(c->automaton, ':', ':', next);
    return text_add_rule(c->text, TEXT_RULE_SPACE, next);
}

static uint32_t add_member(Object *o, const Property *property, uint32_t next)
{
    SchemaCompiler *c = o->c;
    uint32_t value = schema_add_list(c, property->list, next);
    if (value == AUTOMATON_FAIL) {
        if (property->is_required)
            schema_note_contradiction(c, property->place, NULL,
                                      "required, but nothing satisfies it");
        return AUTOMATON_FAIL;
    }
    return text_add_json_string(c->text, property->name, add_colon(c, value));
}

/* A name that is no property's. */
static uint32_t add_other_name(Object *o, uint32_t next)
{
    SchemaCompiler *c = o->c;
    if (o->n_properties == 0)
        return text_add_rule(c->text, TEXT_RULE_STRING, next);
    Slice *names = memory_allocate_array(o->n_properties, sizeof(*names));
    if (!names)
        return automaton_fail(c->automaton, ERROR_MEMORY, "out of memory: schema");
    for (size_t i = 0; i < o->n_properties; i++)
        names[i] = o->properties[i].name;
    CharDfa dfa;
    uint32_t result = AUTOMATON_FAIL;
    if (char_dfa_of_others(names, o->n_properties, &dfa, c->err)) {
        result = automaton_add_bytes(c->automaton, '"', '"', next);
        result = char_dfa_add(c->text, &dfa, TEXT_JSON, result);
        result = automaton_add_bytes(c->automaton, '"', '"', result);
        char_dfa_reset(&dfa);
    } else {
        error_prefix(c->err, "names that are no properties");
        c->automaton->failed = true;
    }
    memory_free(names);
    return result;
}

static uint32_t add_other_member(Object *o, uint32_t next)
{
    SchemaCompiler *c = o->c;
    uint32_t value = schema_add_list(c, o->others, next);
    return value == AUTOMATON_FAIL ? AUTOMATON_FAIL : add_other_name(o, add_colon(c, value));
}

/* Members in rules of their own, where counting would repeat them. */
static void add_member_rules(Object *o)
{
    Automaton *a = o->c->automaton;
    for (size_t i = 0; i < o->n_properties; i++) {
        o->properties[i].rule = automaton_add_rule(a, SLICE_EMPTY);
        automaton_set_rule(a, o->properties[i].rule,
                           add_member(o, &o->properties[i], AUTOMATON_RETURN));
    }
}

/* ---- The whole ---- */

typedef struct Builder {
    Object *o;
    uint32_t end;                    /* "}" and out */
    size_t last_required;            /* properties from here on may all be left out */
    uint32_t *key, *after;           /* [min_members + 1] of the property at hand */
    uint32_t *key_next, *after_next; /* of the one behind it */
} Builder;

static uint32_t add_after(const Builder *b, size_t i, size_t count, uint32_t key)
{
    const Object *o = b->o;
    Automaton *a = o->c->automaton;
    uint32_t more = AUTOMATON_FAIL;
    if (key != AUTOMATON_FAIL)
        more = automaton_add_bytes(a, ',', ',', text_add_rule(o->c->text, TEXT_RULE_SPACE, key));
    bool may_end = i >= b->last_required && count >= o->min_members;
    uint32_t at = automaton_add_either(a, may_end ? b->end : AUTOMATON_FAIL, more);
    return text_add_rule(o->c->text, TEXT_RULE_SPACE, at);
}

/* key(n, .) and after(n, .): others, in a loop once they are enough. */
static void add_last(Builder *b)
{
    Object *o = b->o;
    Automaton *a = o->c->automaton;
    size_t n = o->n_properties, enough = o->min_members;
    uint32_t loop = automaton_add_split(a, AUTOMATON_FAIL, AUTOMATON_FAIL);
    uint32_t key = AUTOMATON_FAIL;
    if (o->allows_others) {
        o->other_rule = automaton_add_rule(a, SLICE_EMPTY);
        automaton_set_rule(a, o->other_rule, add_other_member(o, AUTOMATON_RETURN));
        key = automaton_add_call(a, o->other_rule, loop);
    }
    b->key_next[enough] = key;
    uint32_t after = add_after(b, n, enough, key);
    automaton_set_split(a, loop, after, after);
    b->after_next[enough] = loop;
    for (size_t count = enough; count-- > 0;) {
        b->key_next[count] = o->allows_others
                                 ? automaton_add_call(a, o->other_rule, b->after_next[count + 1])
                                 : AUTOMATON_FAIL;
        b->after_next[count] = add_after(b, n, count, b->key_next[count]);
    }
}

static void add_property(Builder *b, size_t i)
{
    Object *o = b->o;
    Automaton *a = o->c->automaton;
    const Property *property = &o->properties[i];
    for (size_t count = 0; count <= o->min_members; count++) {
        uint32_t after = b->after_next[count < o->min_members ? count + 1 : count];
        uint32_t key = o->min_members > 0 ? automaton_add_call(a, property->rule, after)
                                          : add_member(o, property, after);
        if (!property->is_required)
            key = automaton_add_either(a, key, b->key_next[count]);
        b->key[count] = key;
    }
    for (size_t count = 0; count <= o->min_members && i > 0; count++)
        b->after[count] = add_after(b, i, count, b->key[count]);
    uint32_t *key = b->key, *after = b->after;
    b->key = b->key_next;
    b->after = b->after_next;
    b->key_next = key;
    b->after_next = after;
}

static uint32_t build(Object *o, uint32_t next)
{
    SchemaCompiler *c = o->c;
    Automaton *a = c->automaton;
    size_t width = o->min_members + 1;
    uint32_t *memory = memory_allocate_array(width, 4 * sizeof(*memory));
    if (!memory)
        return automaton_fail(a, ERROR_MEMORY, "out of memory: schema");
    Builder b = {.o = o,
                 .end = automaton_add_bytes(a, '}', '}', next),
                 .key = memory,
                 .after = memory + width,
                 .key_next = memory + 2 * width,
                 .after_next = memory + 3 * width};
    for (size_t i = 0; i < o->n_properties; i++) {
        if (o->properties[i].is_required)
            b.last_required = i + 1;
    }
    if (o->min_members > 0)
        add_member_rules(o);
    add_last(&b);
    for (size_t i = o->n_properties; i-- > 0 && !a->failed;)
        add_property(&b, i);
    uint32_t at = b.key_next[0];
    if (b.last_required == 0 && o->min_members == 0)
        at = automaton_add_either(a, b.end, at);
    memory_free(memory);
    return automaton_add_bytes(a, '{', '{', text_add_rule(c->text, TEXT_RULE_SPACE, at));
}

uint32_t schema_add_objects(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                            uint32_t next)
{
    Object o = {.c = c, .place = limits->place};
    uint32_t result = AUTOMATON_FAIL;
    if (!collect(&o, list, limits))
        c->automaton->failed = true;
    else if (o.n_properties == 0 && o.allows_others && o.others.count == 0 && o.min_members == 0)
        result = text_add_rule(c->text, TEXT_RULE_OBJECT, next);
    else
        result = build(&o, next);
    memory_free(o.properties);
    memory_free(o.slots);
    return result;
}

/* ---- Arrays ---- */

/* What the element at index must satisfy; behind all prefixItems every element satisfies the same.
 */
static bool collect_element(SchemaCompiler *c, SchemaList list, size_t index, SchemaList *out)
{
    *out = (SchemaList){0};
    for (size_t i = 0; i < list.count; i++) {
        const SchemaMember *member = &list.members[i];
        const JsonValue *prefix = json_get(member->schema, SLICE("prefixItems"));
        const JsonValue *items = json_get(member->schema, SLICE("items"));
        const SchemaPlace *place = member->place;
        c->work++;
        if (prefix && index < prefix->as.array.count) {
            items = &prefix->as.array.items[index];
            place = schema_place(c, schema_place(c, place, SLICE("prefixItems"), 0), SLICE_EMPTY,
                                 index);
        } else if (items) {
            place = schema_place(c, place, SLICE("items"), 0);
        }
        if (items && !append_schema(c, out, items, place))
            return false;
    }
    return true;
}

static size_t count_prefix(SchemaList list)
{
    size_t longest = 0;
    for (size_t i = 0; i < list.count; i++) {
        const JsonValue *prefix = json_get(list.members[i].schema, SLICE("prefixItems"));
        if (prefix && prefix->as.array.count > longest)
            longest = prefix->as.array.count;
    }
    return longest;
}

static uint32_t add_after_element(SchemaCompiler *c, bool may_end, uint32_t end, uint32_t element)
{
    Automaton *a = c->automaton;
    uint32_t more = AUTOMATON_FAIL;
    if (element != AUTOMATON_FAIL)
        more = automaton_add_bytes(a, ',', ',', text_add_rule(c->text, TEXT_RULE_SPACE, element));
    uint32_t at = automaton_add_either(a, may_end ? end : AUTOMATON_FAIL, more);
    return at == AUTOMATON_FAIL ? at : text_add_rule(c->text, TEXT_RULE_SPACE, at);
}

/* Elements from the last that is counted to the first; `rest` is the rule of those behind the
 * prefix. */
static uint32_t build_array(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                            uint32_t rest, size_t n_prefix, uint32_t next)
{
    Automaton *a = c->automaton;
    uint32_t end = automaton_add_bytes(a, ']', ']', next), element = AUTOMATON_FAIL;
    bool is_open = limits->max_items == SIZE_MAX;
    size_t n = n_prefix > limits->min_items ? n_prefix : limits->min_items;
    if (!is_open)
        n = limits->max_items;
    if (is_open) {
        uint32_t loop = automaton_add_split(a, AUTOMATON_FAIL, AUTOMATON_FAIL);
        element = automaton_add_call(a, rest, loop);
        uint32_t after = add_after_element(c, true, end, element);
        automaton_set_split(a, loop, after, after);
    }
    for (size_t i = n; i-- > 0 && !a->failed;) {
        uint32_t after = add_after_element(c, i + 1 >= limits->min_items, end, element);
        if (i >= n_prefix) {
            element = automaton_add_call(a, rest, after);
            continue;
        }
        SchemaList own;
        if (!collect_element(c, list, i, &own)) {
            a->failed = true;
            return AUTOMATON_FAIL;
        }
        element = after == AUTOMATON_FAIL ? after : schema_add_list(c, own, after);
    }
    uint32_t at = automaton_add_either(a, limits->min_items == 0 ? end : AUTOMATON_FAIL, element);
    if (at == AUTOMATON_FAIL)
        return at;
    return automaton_add_bytes(a, '[', '[', text_add_rule(c->text, TEXT_RULE_SPACE, at));
}

uint32_t schema_add_arrays(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                           uint32_t next)
{
    Automaton *a = c->automaton;
    if (limits->min_items > limits->max_items) {
        schema_note_contradiction(c, limits->place, "minItems", "above maxItems");
        return AUTOMATON_FAIL;
    }
    bool is_open = limits->max_items == SIZE_MAX;
    size_t n_prefix = count_prefix(list);
    if (limits->min_items > SCHEMA_ITEMS_MAX ||
        (!is_open && limits->max_items > SCHEMA_ITEMS_MAX)) {
        schema_fail(c, limits->place, is_open ? "minItems" : "maxItems",
                    "more than 32768 elements cannot be enforced");
        a->failed = true;
        return AUTOMATON_FAIL;
    }
    SchemaList rest;
    if (!collect_element(c, list, SIZE_MAX, &rest)) {
        a->failed = true;
        return AUTOMATON_FAIL;
    }
    if (n_prefix == 0 && rest.count == 0 && is_open && limits->min_items == 0)
        return text_add_rule(c->text, TEXT_RULE_ARRAY, next);
    uint32_t rule = automaton_add_rule(a, SLICE_EMPTY);
    automaton_set_rule(a, rule, schema_add_list(c, rest, AUTOMATON_RETURN));
    return build_array(c, list, limits, rule, n_prefix, next);
}
