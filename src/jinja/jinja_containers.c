/* Methods of lists, tuples, dicts, loops and cyclers.
 *
 * The sandbox of jinja2 refuses methods that change a list or dict. Some published templates use
 * append and pop all the same; they act on values of this rendering alone, so those few are let
 * through. */
#include "jinja_filters.h"

#include <string.h>

/* ---- Lists and tuples ---- */

static bool list_append(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    *out = JINJA_VALUE_NONE;
    return jinja_list_append(m, call->self.as.list, &call->args[0]);
}

static bool list_extend(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue items; /* a copy first: a list may be extended by itself */
    *out = JINJA_VALUE_NONE;
    if (!jinja_to_list(m, &call->args[0], &items))
        return false;
    for (size_t i = 0; i < items.as.list->count; i++) {
        if (!jinja_list_append(m, call->self.as.list, &items.as.list->items[i]))
            return false;
    }
    return true;
}

static bool list_insert(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaList *list = call->self.as.list;
    int64_t at, count = (int64_t)list->count;
    *out = JINJA_VALUE_NONE;
    if (!jinja_arg_integer(m, call, 0, 0, &at) || !jinja_charge(m, list->count / 16) ||
        !jinja_list_append(m, list, &call->args[1]))
        return false;
    at = at < -count ? 0 : at < 0 ? at + count : at > count ? count : at;
    memmove(&list->items[at + 1], &list->items[at], (size_t)(count - at) * sizeof(*list->items));
    list->items[at] = call->args[1];
    return true;
}

static bool list_pop(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaList *list = call->self.as.list;
    int64_t at;
    if (!jinja_arg_integer(m, call, 0, -1, &at) || !jinja_charge(m, list->count / 16))
        return false;
    at += at < 0 ? (int64_t)list->count : 0;
    if (at < 0 || (uint64_t)at >= list->count)
        return jinja_fail(m, list->count ? "pop index out of range" : "pop from empty list");
    *out = list->items[at];
    list->count--;
    memmove(&list->items[at], &list->items[at + 1],
            (list->count - (size_t)at) * sizeof(*list->items));
    return true;
}

static bool list_index(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaList *list = call->self.as.list;
    for (size_t i = 0; i < list->count; i++) {
        bool equal;
        if (!jinja_equal(m, &list->items[i], &call->args[0], &equal))
            return false;
        if (equal) {
            *out = jinja_int((int64_t)i);
            return true;
        }
    }
    return jinja_fail(m, "value is not in list");
}

static bool list_count(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaList *list = call->self.as.list;
    int64_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        bool equal;
        if (!jinja_equal(m, &list->items[i], &call->args[0], &equal))
            return false;
        count += equal;
    }
    *out = jinja_int(count);
    return true;
}

static bool list_copy(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_to_list(m, &call->self, out);
}

/* ---- Dicts ---- */

static bool dict_get(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaEntry *entry;
    if (!jinja_dict_get(m, call->self.as.dict, &call->args[0], &entry))
        return false;
    *out = entry                                ? entry->value
           : call->args[1].kind == JINJA_ABSENT ? JINJA_VALUE_NONE
                                                : call->args[1];
    return true;
}

static bool make_view(const JinjaCall *call, JinjaViewKind kind, JinjaValue *out)
{
    *out = call->self;
    out->kind = JINJA_VIEW;
    out->detail = (uint32_t)kind;
    return true;
}

static bool dict_items(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return make_view(call, JINJA_VIEW_ITEMS, out);
}

static bool dict_keys(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return make_view(call, JINJA_VIEW_KEYS, out);
}

static bool dict_values(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return make_view(call, JINJA_VIEW_VALUES, out);
}

/* Copies all entries of the mapping `from`. */
static bool copy_entries(JinjaMachine *m, const JinjaValue *from, JinjaDict *to)
{
    if (from->kind != JINJA_DICT)
        return jinja_fail_value(m, from, "is not a mapping");
    for (size_t i = 0; from->as.dict != to && i < from->as.dict->count; i++) {
        if (!jinja_dict_set(m, to, &from->as.dict->entries[i].key,
                            &from->as.dict->entries[i].value))
            return false;
    }
    return true;
}

static bool dict_copy(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_dict_new(m, call->self.as.dict->count, out) &&
           copy_entries(m, &call->self, out->as.dict);
}

static bool dict_update(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    *out = JINJA_VALUE_NONE;
    if (call->given->count > 1)
        return jinja_fail(m, "update expected at most 1 argument");
    if (call->given->count == 1 && !copy_entries(m, &call->given->items[0], call->self.as.dict))
        return false;
    for (size_t i = 0; i < call->given->keyword_count; i++) {
        JinjaValue key = jinja_string(call->given->keywords[i].name);
        if (!jinja_dict_set(m, call->self.as.dict, &key, &call->given->keywords[i].value))
            return false;
    }
    return true;
}

static bool dict_setdefault(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaEntry *entry;
    if (!jinja_dict_get(m, call->self.as.dict, &call->args[0], &entry))
        return false;
    *out = entry                                ? entry->value
           : call->args[1].kind == JINJA_ABSENT ? JINJA_VALUE_NONE
                                                : call->args[1];
    return entry || jinja_dict_set(m, call->self.as.dict, &call->args[0], out);
}

static bool dict_pop(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaEntry *entry;
    if (!jinja_dict_get(m, call->self.as.dict, &call->args[0], &entry) ||
        !jinja_charge(m, call->self.as.dict->index_size + call->self.as.dict->count / 16))
        return false;
    if (!entry && call->args[1].kind == JINJA_ABSENT)
        return jinja_fail(m, "pop: no such key");
    *out = entry ? entry->value : call->args[1];
    return !entry || jinja_dict_remove(m, call->self.as.dict, entry);
}

/* ---- Loops, cyclers ---- */

static bool loop_cycle(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    if (call->given->count == 0)
        return jinja_fail(m, "no items for cycling given");
    *out = call->given->items[call->self.as.loop->index0 % (int64_t)call->given->count];
    return true;
}

/* Whether the arguments differ from those of the last call. */
static bool loop_changed(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaLoop *loop = call->self.as.loop;
    JinjaValue now;
    bool same = false;
    if (!jinja_list_new(m, JINJA_TUPLE, call->given->count, &now))
        return false;
    for (size_t i = 0; i < call->given->count; i++) {
        if (!jinja_list_append(m, now.as.list, &call->given->items[i]))
            return false;
    }
    if (loop->changed.kind == JINJA_TUPLE && !jinja_equal(m, &loop->changed, &now, &same))
        return false;
    loop->changed = now;
    *out = jinja_bool(!same);
    return true;
}

static JinjaValue *cycler_position(const JinjaCall *call)
{
    return &call->self.as.list->items[call->self.as.list->count - 1];
}

static bool cycler_next(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue *position = cycler_position(call);
    (void)m;
    *out = call->self.as.list->items[position->as.integer];
    position->as.integer = (position->as.integer + 1) % (int64_t)(call->self.as.list->count - 1);
    return true;
}

static bool cycler_reset(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    *cycler_position(call) = jinja_int(0);
    *out = JINJA_VALUE_NONE;
    return true;
}

/* ---- Tables ---- */

static const JinjaBuiltin list_methods[] = {
    {"append", "object", list_append},
    {"extend", "iterable", list_extend},
    {"insert", "index object", list_insert},
    {"pop", "?index", list_pop},
    {"index", "value", list_index},
    {"count", "value", list_count},
    {"copy", "", list_copy},
};
static const JinjaBuiltin tuple_methods[] = {
    {"index", "value", list_index},
    {"count", "value", list_count},
};
static const JinjaBuiltin dict_methods[] = {
    {"get", "key ?default", dict_get}, {"items", "", dict_items},
    {"keys", "", dict_keys},           {"values", "", dict_values},
    {"copy", "", dict_copy},           {"update", NULL, dict_update},
    {"pop", "key ?default", dict_pop}, {"setdefault", "key ?default", dict_setdefault},
};
static const JinjaBuiltin loop_methods[] = {
    {"cycle", NULL, loop_cycle},
    {"changed", NULL, loop_changed},
};
static const JinjaBuiltin cycler_methods[] = {
    {"next", "", cycler_next},
    {"reset", "", cycler_reset},
};

static bool is_one_of(Slice name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (slice_equal(name, slice_of(names[i])))
            return true;
    }
    return false;
}

const JinjaBuiltin *jinja_container_method_find(const JinjaValue *self, Slice name, bool *unsafe)
{
    static const char *const refused_list[] = {"clear", "remove", "reverse", "sort"};
    static const char *const refused_dict[] = {"clear", "popitem"};
    const JinjaBuiltin *table = NULL;
    size_t count = 0;
    switch (self->kind) {
    case JINJA_LIST:
        table = list_methods;
        count = ARRAY_COUNT(list_methods);
        *unsafe = is_one_of(name, refused_list, ARRAY_COUNT(refused_list));
        break;
    case JINJA_TUPLE:
        table = tuple_methods;
        count = ARRAY_COUNT(tuple_methods);
        break;
    case JINJA_DICT:
        table = dict_methods;
        count = ARRAY_COUNT(dict_methods);
        *unsafe = is_one_of(name, refused_dict, ARRAY_COUNT(refused_dict));
        break;
    case JINJA_LOOP:
        table = loop_methods;
        count = ARRAY_COUNT(loop_methods);
        break;
    case JINJA_CYCLER:
        table = cycler_methods;
        count = ARRAY_COUNT(cycler_methods);
        break;
    default:
        break;
    }
    for (size_t i = 0; i < count; i++) {
        if (slice_equal(name, slice_of(table[i].name)))
            return &table[i];
    }
    return NULL;
}
