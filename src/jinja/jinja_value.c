/* Values: making, asking, containers, and what comes in as JSON.
 *
 * Dict keys follow Python: 1, 1.0 and True are one key, lists and dicts are none. Look-ups of small
 * dicts compare entry by entry; larger ones get an index that is rebuilt when it fills or an entry
 * goes. */
#include "jinja_machine.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DICT_INDEX_FROM = 9 }; /* entries at which a dict gets an index */

JinjaValue jinja_bool(bool value)
{
    return (JinjaValue){.kind = JINJA_BOOL, .as.boolean = value};
}

JinjaValue jinja_int(int64_t value)
{
    return (JinjaValue){.kind = JINJA_INT, .as.integer = value};
}

JinjaValue jinja_float(double value)
{
    return (JinjaValue){.kind = JINJA_FLOAT, .as.number = value};
}

JinjaValue jinja_string(Slice text)
{
    return (JinjaValue){.kind = JINJA_STRING, .as.string = text};
}

JinjaValue jinja_undefined(JinjaMissing why, Slice name)
{
    return (JinjaValue){.kind = JINJA_UNDEFINED, .detail = (uint32_t)why, .as.string = name};
}

JinjaValue jinja_undefined_of(const JinjaValue *object, Slice name)
{
    JinjaValue value = jinja_undefined(JINJA_MISSING_ATTRIBUTE, name);
    value.detail |= (uint32_t)object->kind << 8;
    return value;
}

bool jinja_is_undefined(const JinjaValue *value)
{
    return value->kind == JINJA_UNDEFINED;
}

bool jinja_is_string(const JinjaValue *value)
{
    return value->kind == JINJA_STRING;
}

bool jinja_is_integer(const JinjaValue *value)
{
    return value->kind == JINJA_BOOL || value->kind == JINJA_INT;
}

bool jinja_is_number(const JinjaValue *value)
{
    return value->kind >= JINJA_BOOL && value->kind <= JINJA_FLOAT;
}

bool jinja_is_iterable(const JinjaValue *value)
{
    return value->kind == JINJA_UNDEFINED ||
           (value->kind >= JINJA_STRING && value->kind <= JINJA_VIEW) || value->kind == JINJA_LOOP;
}

bool jinja_is_callable(const JinjaValue *value)
{
    return value->kind >= JINJA_MACRO || value->kind == JINJA_UNDEFINED;
}

int64_t jinja_integer_of(const JinjaValue *value)
{
    return value->kind == JINJA_BOOL ? value->as.boolean : value->as.integer;
}

double jinja_number_of(const JinjaValue *value)
{
    switch (value->kind) {
    case JINJA_FLOAT:
        return value->as.number;
    case JINJA_LONG:
        return jinja_long_to_double(value);
    default:
        return (double)jinja_integer_of(value);
    }
}

const char *jinja_type_name(const JinjaValue *value)
{
    static const char *const names[] = {
        [JINJA_ABSENT] = "nothing",
        [JINJA_UNDEFINED] = "Undefined",
        [JINJA_NONE] = "NoneType",
        [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int",
        [JINJA_LONG] = "int",
        [JINJA_FLOAT] = "float",
        [JINJA_STRING] = "str",
        [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",
        [JINJA_DICT] = "dict",
        [JINJA_RANGE] = "range",
        [JINJA_GENERATOR] = "generator",
        [JINJA_VIEW] = "dict view",
        [JINJA_NAMESPACE] = "Namespace",
        [JINJA_MACRO] = "Macro",
        [JINJA_LOOP] = "LoopContext",
        [JINJA_METHOD] = "method",
        [JINJA_FUNCTION] = "function",
        [JINJA_CYCLER] = "Cycler",
        [JINJA_JOINER] = "Joiner",
    };
    return names[value->kind];
}

bool jinja_truth(const JinjaValue *value)
{
    size_t length;
    switch (value->kind) {
    case JINJA_ABSENT:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return value->as.boolean;
    case JINJA_INT:
        return value->as.integer != 0;
    case JINJA_FLOAT:
        return value->as.number != 0.0;
    case JINJA_STRING:
        return value->as.string.len != 0;
    default:
        return !jinja_length(value, &length) || length != 0;
    }
}

bool jinja_length(const JinjaValue *value, size_t *out)
{
    switch (value->kind) {
    case JINJA_UNDEFINED:
        *out = 0;
        return true;
    case JINJA_STRING:
        *out = utf8_count(value->as.string);
        return true;
    case JINJA_LIST:
    case JINJA_TUPLE:
        *out = value->as.list->count;
        return true;
    case JINJA_DICT:
    case JINJA_VIEW:
        *out = value->as.dict->count;
        return true;
    case JINJA_RANGE:
        *out = value->as.range->count;
        return true;
    default:
        return false;
    }
}

/* ---- Strings, lists, generators ---- */

char *jinja_string_new(JinjaMachine *m, size_t len, JinjaValue *out)
{
    char *text = jinja_allocate(m, len, 1);
    if (!text || !jinja_charge(m, len / 64))
        return NULL;
    *out = jinja_string((Slice){text, len});
    return text;
}

bool jinja_string_copy(JinjaMachine *m, Slice text, JinjaValue *out)
{
    char *copy = jinja_string_new(m, text.len, out);
    if (copy && text.len)
        memcpy(copy, text.ptr, text.len);
    return copy != NULL;
}

bool jinja_list_new(JinjaMachine *m, JinjaKind kind, size_t capacity, JinjaValue *out)
{
    JinjaList *list = jinja_allocate(m, 1, sizeof(*list));
    if (!list)
        return false;
    *list = (JinjaList){.capacity = capacity};
    list->items = capacity ? jinja_allocate(m, capacity, sizeof(JinjaValue)) : NULL;
    if (capacity && !list->items)
        return false;
    *out = (JinjaValue){.kind = kind, .as.list = list};
    return true;
}

bool jinja_list_append(JinjaMachine *m, JinjaList *list, const JinjaValue *item)
{
    if (!jinja_charge(m, 1))
        return false;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 4;
        JinjaValue *items = jinja_allocate(m, capacity, sizeof(*items));
        if (!items)
            return false;
        if (list->count)
            memcpy(items, list->items, list->count * sizeof(*items));
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = *item;
    return true;
}

bool jinja_pair_new(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, JinjaValue *out)
{
    JinjaValue first = *a, second = *b; /* out may be one of them */
    if (!jinja_list_new(m, JINJA_TUPLE, 2, out))
        return false;
    out->as.list->items[0] = first;
    out->as.list->items[1] = second;
    out->as.list->count = 2;
    return true;
}

bool jinja_generator_new(JinjaMachine *m, const JinjaValue *source, JinjaValue *out)
{
    JinjaIterator *it = jinja_allocate(m, 1, sizeof(*it));
    if (!it || !jinja_iterate(m, source, it))
        return false;
    *out = (JinjaValue){.kind = JINJA_GENERATOR, .as.iterator = it};
    return true;
}

/* ---- Dicts ---- */

/* An integer that a float equals, so that 1 and 1.0 hash alike. */
static bool float_is_integer(double number, int64_t *out)
{
    if (!(number >= -9223372036854775808.0 && number < 9223372036854775808.0) ||
        number != floor(number))
        return false;
    *out = (int64_t)number;
    return true;
}

static uint64_t hash_bytes(const void *bytes, size_t len)
{
    return slice_hash((Slice){bytes, len});
}

/* Fails on what Python cannot hash. Tuples may share parts, so that few values make many visits:
 * each is a step. */
static bool hash_value(JinjaMachine *m, const JinjaValue *key, unsigned depth, uint64_t *out)
{
    int64_t integer;
    double number;
    *out = (uint64_t)key->kind;
    switch (key->kind) {
    case JINJA_STRING:
        *out = slice_hash(key->as.string);
        return jinja_charge(m, key->as.string.len / 64);
    case JINJA_BOOL:
    case JINJA_INT:
        integer = jinja_integer_of(key);
        *out = hash_bytes(&integer, sizeof(integer));
        return true;
    case JINJA_LONG:
        number = jinja_long_to_double(key);
        *out = hash_bytes(&number, sizeof(number));
        return true;
    case JINJA_FLOAT:
        *out = float_is_integer(key->as.number, &integer)
                   ? hash_bytes(&integer, sizeof(integer))
                   : hash_bytes(&key->as.number, sizeof(key->as.number));
        return true;
    case JINJA_TUPLE:
        if (depth >= JINJA_VALUE_DEPTH_MAX)
            return jinja_fail_limit(m, "nesting of a key", JINJA_VALUE_DEPTH_MAX);
        for (size_t i = 0; i < key->as.list->count; i++) {
            uint64_t part;
            if (!jinja_charge(m, 1) || !hash_value(m, &key->as.list->items[i], depth + 1, &part))
                return false;
            *out = *out * 31 + part;
        }
        return true;
    case JINJA_LIST:
    case JINJA_DICT:
    case JINJA_VIEW:
        return jinja_fail(m, "unhashable type: '%s'", jinja_type_name(key));
    default:
        return true;
    }
}

bool jinja_dict_new(JinjaMachine *m, size_t capacity, JinjaValue *out)
{
    JinjaDict *dict = jinja_allocate(m, 1, sizeof(*dict));
    if (!dict)
        return false;
    *dict = (JinjaDict){.capacity = capacity};
    dict->entries = capacity ? jinja_allocate(m, capacity, sizeof(JinjaEntry)) : NULL;
    if (capacity && !dict->entries)
        return false;
    *out = (JinjaValue){.kind = JINJA_DICT, .as.dict = dict};
    return true;
}

static bool dict_link(JinjaMachine *m, JinjaDict *dict, size_t number)
{
    uint64_t hash;
    size_t mask = dict->index_size - 1;
    if (!hash_value(m, &dict->entries[number].key, 0, &hash))
        return false;
    size_t at = (size_t)hash & mask;
    while (dict->index[at])
        at = (at + 1) & mask;
    dict->index[at] = (uint32_t)number + 1;
    return true;
}

static bool dict_reindex(JinjaMachine *m, JinjaDict *dict)
{
    if (dict->count < DICT_INDEX_FROM)
        return true;
    if (dict->count * 2 <= dict->index_size)
        return dict_link(m, dict, dict->count - 1);
    size_t size = dict->index_size ? dict->index_size * 4 : 64;
    while (size < dict->count * 2)
        size *= 2;
    uint32_t *index = jinja_allocate(m, size, sizeof(*index));
    if (!index)
        return false;
    memset(index, 0, size * sizeof(*index));
    dict->index = index;
    dict->index_size = size;
    for (size_t i = 0; i < dict->count; i++) {
        if (!dict_link(m, dict, i))
            return false;
    }
    return true;
}

bool jinja_dict_get(JinjaMachine *m, const JinjaDict *dict, const JinjaValue *key,
                    JinjaEntry **found)
{
    uint64_t hash = 0;
    *found = NULL;
    if (!hash_value(m, key, 0, &hash))
        return false;
    size_t mask = dict->index_size - 1;
    size_t at = dict->index_size ? (size_t)hash & mask : 0;
    for (;;) {
        size_t number;
        if (dict->index_size) {
            if (!dict->index[at])
                return true;
            number = dict->index[at] - 1;
            at = (at + 1) & mask;
        } else {
            if (at == dict->count)
                return true;
            number = at++;
        }
        bool equal;
        if (!jinja_equal(m, &dict->entries[number].key, key, &equal))
            return false;
        if (equal) {
            *found = &dict->entries[number];
            return true;
        }
    }
}

JinjaEntry *jinja_dict_get_text(JinjaMachine *m, const JinjaDict *dict, Slice key)
{
    size_t mask = dict->index_size - 1;
    size_t at = dict->index_size ? (size_t)slice_hash(key) & mask : 0;
    jinja_note_work(m, key.len / 64);
    for (;; jinja_note_work(m, dict->index_size ? 1 + key.len / 256 : 0)) {
        size_t number = at;
        if (dict->index_size) {
            if (!dict->index[at])
                return NULL;
            number = dict->index[at] - 1;
        } else if (at == dict->count) {
            return NULL;
        }
        const JinjaValue *candidate = &dict->entries[number].key;
        if (candidate->kind == JINJA_STRING && slice_equal(candidate->as.string, key))
            return &dict->entries[number];
        at = dict->index_size ? (at + 1) & mask : at + 1;
    }
}

bool jinja_dict_set(JinjaMachine *m, JinjaDict *dict, const JinjaValue *key,
                    const JinjaValue *value)
{
    JinjaEntry *found;
    if (!jinja_charge(m, 1) || !jinja_dict_get(m, dict, key, &found))
        return false;
    if (found) {
        found->value = *value;
        return true;
    }
    if (dict->count >= UINT32_MAX - 1)
        return jinja_fail_limit(m, "dict entries", UINT32_MAX - 1);
    if (dict->count == dict->capacity) {
        size_t capacity = dict->capacity ? dict->capacity * 2 : 4;
        JinjaEntry *entries = jinja_allocate(m, capacity, sizeof(*entries));
        if (!entries)
            return false;
        if (dict->count)
            memcpy(entries, dict->entries, dict->count * sizeof(*entries));
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (JinjaEntry){*key, *value};
    return dict_reindex(m, dict);
}

bool jinja_dict_remove(JinjaMachine *m, JinjaDict *dict, JinjaEntry *entry)
{
    size_t number = (size_t)(entry - dict->entries);
    memmove(entry, entry + 1, (dict->count - number - 1) * sizeof(*entry));
    dict->count--;
    if (!dict->index_size)
        return true;
    memset(dict->index, 0, dict->index_size * sizeof(*dict->index));
    for (size_t i = 0; i < dict->count; i++) {
        if (!dict_link(m, dict, i))
            return false;
    }
    return true;
}

/* ---- From JSON ---- */

static bool convert(JinjaMachine *m, const JsonValue *json, unsigned depth, JinjaValue *out);

static bool convert_array(JinjaMachine *m, const JsonValue *json, unsigned depth, JinjaValue *out)
{
    size_t count = json->as.array.count;
    if (!jinja_list_new(m, JINJA_LIST, count, out))
        return false;
    JinjaList *list = out->as.list;
    for (; list->count < count; list->count++) {
        if (!convert(m, &json->as.array.items[list->count], depth + 1, &list->items[list->count]))
            return false;
    }
    return true;
}

/* A repeated key keeps its first place and its last value, as Python's reader has it. */
static bool convert_object(JinjaMachine *m, const JsonValue *json, unsigned depth, JinjaValue *out)
{
    if (!jinja_dict_new(m, json->as.object.count, out))
        return false;
    for (size_t i = 0; i < json->as.object.count; i++) {
        const JsonMember *member = &json->as.object.members[i];
        JinjaValue key = jinja_string(member->key), value;
        if (!convert(m, &member->value, depth + 1, &value) ||
            !jinja_dict_set(m, out->as.dict, &key, &value))
            return false;
    }
    return true;
}

static bool convert_unsigned(JinjaMachine *m, uint64_t value, JinjaValue *out)
{
    char text[24];
    JinjaValue copy;
    int len = snprintf(text, sizeof(text), "%" PRIu64, value);
    return jinja_string_copy(m, (Slice){text, (size_t)len}, &copy) &&
           jinja_long_new(m, copy.as.string, out);
}

static bool convert(JinjaMachine *m, const JsonValue *json, unsigned depth, JinjaValue *out)
{
    if (depth > JSON_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of the variables", JSON_DEPTH_MAX);
    switch (json->kind) {
    case JSON_BOOL:
        *out = jinja_bool(json->as.boolean);
        return true;
    case JSON_INT:
        *out = jinja_int(json->as.integer);
        return true;
    case JSON_UINT:
        return convert_unsigned(m, json->as.unsigned_integer, out);
    case JSON_DOUBLE:
        if (json->as.wide.digits)
            return jinja_long_new(m, slice_of(json->as.wide.digits), out);
        *out = jinja_float(json->as.number);
        return true;
    case JSON_STRING:
        *out = jinja_string(json->as.string);
        return true;
    case JSON_ARRAY:
        return convert_array(m, json, depth, out);
    case JSON_OBJECT:
        return convert_object(m, json, depth, out);
    default:
        *out = JINJA_VALUE_NONE;
        return true;
    }
}

bool jinja_value_from_json(JinjaMachine *m, const JsonValue *json, JinjaValue *out)
{
    return convert(m, json, 0, out);
}
