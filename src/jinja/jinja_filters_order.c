/* Filters that put items in order or pick by it: sort, dictsort, groupby, min, max, unique; and the
 * attributes that they, and other filters, look at. */
#include "jinja_filters.h"

#include <string.h>

/* ---- Attributes ---- */

/* item.a.0.b for attribute "a.0.b"; parts of digits are indices. A fallback replaces what is
 * missing. */
static bool get_path(JinjaMachine *m, const JinjaValue *item, Slice path,
                     const JinjaValue *fallback, JinjaValue *out)
{
    *out = *item;
    for (size_t at = 0; at <= path.len;) {
        size_t end = at;
        bool digits = true;
        for (; end < path.len && path.ptr[end] != '.'; end++)
            digits &= path.ptr[end] >= '0' && path.ptr[end] <= '9';
        Slice part = {path.ptr + at, end - at};
        int64_t index;
        bool numeric = digits && part.len > 0 && jinja_read_integer(part, 10, &index, NULL);
        JinjaValue key = numeric ? jinja_int(index) : jinja_string(part);
        if (!jinja_get_item(m, out, &key, out))
            return false;
        if (fallback && fallback->kind > JINJA_NONE && jinja_is_undefined(out))
            *out = *fallback;
        at = end + 1;
    }
    return true;
}

static bool fold_case(JinjaMachine *m, bool case_sensitive, JinjaValue *value)
{
    if (case_sensitive || value->kind != JINJA_STRING)
        return true;
    return jinja_text_to_case(m, value->as.string, JINJA_CASE_LOWER, value);
}

bool jinja_item_attribute(JinjaMachine *m, const JinjaValue *item, const JinjaValue *attribute,
                          const JinjaValue *fallback, JinjaValue *out)
{
    if (attribute->kind == JINJA_ABSENT || attribute->kind == JINJA_NONE) {
        *out = *item;
        return true;
    }
    if (attribute->kind == JINJA_STRING)
        return get_path(m, item, attribute->as.string, fallback, out);
    if (!jinja_get_item(m, item, attribute, out))
        return false;
    if (fallback && fallback->kind > JINJA_NONE && jinja_is_undefined(out))
        *out = *fallback;
    return true;
}

/* Sorting takes several attributes, separated by commas. The key is a list even of one, so that
 * equal keys need no order: undefined ones can be sorted together. */
static bool get_sort_key(JinjaMachine *m, const JinjaValue *item, const JinjaValue *attribute,
                         bool case_sensitive, JinjaValue *out)
{
    JinjaValue keys, key;
    bool paths = attribute->kind == JINJA_STRING;
    Slice rest = paths ? attribute->as.string : SLICE_EMPTY;
    if (!jinja_list_new(m, JINJA_LIST, 1, &keys))
        return false;
    for (bool more = true; more;) {
        const char *comma = rest.len ? memchr(rest.ptr, ',', rest.len) : NULL;
        Slice part = {rest.ptr, comma ? (size_t)(comma - rest.ptr) : rest.len};
        bool ok = paths ? get_path(m, item, part, NULL, &key)
                        : jinja_item_attribute(m, item, attribute, NULL, &key);
        if (!ok || !fold_case(m, case_sensitive, &key) || !jinja_list_append(m, keys.as.list, &key))
            return false;
        more = comma != NULL;
        if (more)
            rest = (Slice){comma + 1, rest.len - part.len - 1};
    }
    *out = keys;
    return true;
}

/* ---- Sorting ---- */

typedef struct Keyed {
    JinjaValue key, item;
} Keyed;

/* Merges the sorted halves; equal keys keep their order, in reverse too. */
static bool merge(JinjaMachine *m, Keyed *items, Keyed *space, size_t middle, size_t count,
                  bool reverse)
{
    size_t left = 0, right = middle;
    for (size_t i = 0; i < count; i++) {
        bool take_right = left == middle;
        if (!take_right && right < count) {
            int order;
            const Keyed *a = reverse ? &items[left] : &items[right];
            const Keyed *b = reverse ? &items[right] : &items[left];
            if (!jinja_compare(m, &a->key, &b->key, "<", &order))
                return false;
            take_right = order == -1;
        }
        space[i] = items[take_right ? right++ : left++];
    }
    memcpy(items, space, count * sizeof(*items));
    return true;
}

/* Merge sort from the bottom up: stable, no recursion, n log n comparisons. */
static bool sort_keyed(JinjaMachine *m, Keyed *items, size_t count, bool reverse)
{
    Keyed *space = jinja_allocate(m, count + 1, sizeof(*space));
    if (!space)
        return false;
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t start = 0; start + width < count; start += 2 * width) {
            size_t length = count - start < 2 * width ? count - start : 2 * width;
            if (!merge(m, items + start, space, width, length, reverse))
                return false;
        }
    }
    return true;
}

static bool make_keyed(JinjaMachine *m, const JinjaValue *list, const JinjaValue *attribute,
                       bool case_sensitive, Keyed **out)
{
    size_t count = list->as.list->count;
    Keyed *items = jinja_allocate(m, count + 1, sizeof(*items));
    if (!items)
        return false;
    for (size_t i = 0; i < count; i++) {
        items[i].item = list->as.list->items[i];
        if (!get_sort_key(m, &items[i].item, attribute, case_sensitive, &items[i].key))
            return false;
    }
    *out = items;
    return true;
}

/* sort(reverse, case_sensitive, attribute) */
bool jinja_filter_sort(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Keyed *items;
    if (!jinja_to_list(m, &call->self, out) ||
        !make_keyed(m, out, &call->args[2], jinja_arg_truth(call, 1, false), &items) ||
        !sort_keyed(m, items, out->as.list->count, jinja_arg_truth(call, 0, false)))
        return false;
    for (size_t i = 0; i < out->as.list->count; i++)
        out->as.list->items[i] = items[i].item;
    return true;
}

/* dictsort(case_sensitive, by, reverse): (key, value) pairs */
bool jinja_filter_dictsort(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice by;
    if (call->self.kind != JINJA_DICT)
        return jinja_fail_value(m, &call->self, "is no mapping to sort");
    if (!jinja_arg_string(m, call, 1, SLICE("key"), &by))
        return false;
    bool by_value = slice_equal(by, SLICE("value"));
    if (!by_value && !slice_equal(by, SLICE("key")))
        return jinja_fail(m, "You can only sort by either \"key\" or \"value\"");
    const JinjaDict *dict = call->self.as.dict;
    Keyed *items = jinja_allocate(m, dict->count + 1, sizeof(*items));
    if (!items || !jinja_list_new(m, JINJA_LIST, dict->count, out))
        return false;
    for (size_t i = 0; i < dict->count; i++) {
        items[i].key = by_value ? dict->entries[i].value : dict->entries[i].key;
        if (!fold_case(m, jinja_arg_truth(call, 0, false), &items[i].key) ||
            !jinja_pair_new(m, &dict->entries[i].key, &dict->entries[i].value, &items[i].item))
            return false;
    }
    if (!sort_keyed(m, items, dict->count, jinja_arg_truth(call, 2, false)))
        return false;
    for (size_t i = 0; i < dict->count; i++)
        out->as.list->items[i] = items[i].item;
    out->as.list->count = dict->count;
    return true;
}

/* groupby(attribute, default, case_sensitive): (key, items) pairs in key order */
bool jinja_filter_groupby(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue list, group = JINJA_VALUE_NONE, key, pair = JINJA_VALUE_NONE;
    bool case_sensitive = jinja_arg_truth(call, 2, false);
    if (!jinja_to_list(m, &call->self, &list))
        return false;
    size_t count = list.as.list->count;
    Keyed *items = jinja_allocate(m, count + 1, sizeof(*items));
    if (!items || !jinja_list_new(m, JINJA_LIST, 4, out))
        return false;
    for (size_t i = 0; i < count; i++) {
        items[i].item = list.as.list->items[i];
        if (!jinja_item_attribute(m, &items[i].item, &call->args[0], &call->args[1],
                                  &items[i].key) ||
            !fold_case(m, case_sensitive, &items[i].key))
            return false;
    }
    if (!sort_keyed(m, items, count, false))
        return false;
    for (size_t i = 0; i < count; i++) {
        bool same = false;
        if (i > 0 && !jinja_equal(m, &items[i].key, &items[i - 1].key, &same))
            return false;
        /* The key is shown as its first item spells it. */
        if (!same &&
            (!jinja_list_new(m, JINJA_LIST, 4, &group) ||
             !jinja_item_attribute(m, &items[i].item, &call->args[0], &call->args[1], &key) ||
             !jinja_pair_new(m, &key, &group, &pair)))
            return false;
        pair.detail = 1;
        if (!same && !jinja_list_append(m, out->as.list, &pair))
            return false;
        if (!jinja_list_append(m, group.as.list, &items[i].item))
            return false;
    }
    return true;
}

/* min and max (case_sensitive, attribute) */
static bool pick_extreme(JinjaMachine *m, const JinjaCall *call, bool greatest, JinjaValue *out)
{
    JinjaIterator it;
    JinjaValue best_key = JINJA_VALUE_ABSENT;
    bool case_sensitive = jinja_arg_truth(call, 0, false);
    if (!jinja_iterate(m, &call->self, &it))
        return false;
    *out = jinja_undefined(JINJA_MISSING_HINT, SLICE("No aggregated item, sequence was empty."));
    for (;;) {
        JinjaValue item, key;
        bool more;
        int order = -1;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return true;
        if (!jinja_item_attribute(m, &item, &call->args[1], NULL, &key) ||
            !fold_case(m, case_sensitive, &key))
            return false;
        const JinjaValue *a = greatest ? &best_key : &key, *b = greatest ? &key : &best_key;
        if (best_key.kind != JINJA_ABSENT && !jinja_compare(m, a, b, greatest ? ">" : "<", &order))
            return false;
        if (order == -1) {
            best_key = key;
            *out = item;
        }
    }
}

bool jinja_filter_min(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return pick_extreme(m, call, false, out);
}

bool jinja_filter_max(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return pick_extreme(m, call, true, out);
}

/* unique(case_sensitive, attribute): the first of each key */
bool jinja_filter_unique(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    JinjaValue seen, kept, item, key;
    bool case_sensitive = jinja_arg_truth(call, 0, false);
    if (!jinja_iterate(m, &call->self, &it) || !jinja_dict_new(m, 0, &seen) ||
        !jinja_list_new(m, JINJA_LIST, 0, &kept))
        return false;
    for (;;) {
        bool more;
        JinjaEntry *known;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return jinja_generator_new(m, &kept, out);
        if (!jinja_item_attribute(m, &item, &call->args[1], NULL, &key) ||
            !fold_case(m, case_sensitive, &key) || !jinja_dict_get(m, seen.as.dict, &key, &known))
            return false;
        if (!known && (!jinja_dict_set(m, seen.as.dict, &key, &key) ||
                       !jinja_list_append(m, kept.as.list, &item)))
            return false;
    }
}
