/* Equality, order, membership and walking of values, as Python has them.
 *
 * Both comparisons recurse into containers; depth and steps bound them, since a template can build
 * values that are cyclic or that share parts exponentially. */
#include "jinja_machine.h"

/* ---- Equality and order ---- */

/* Exact, where converting a large integer to double would not be. NaN gives 2. */
static int compare_integer_float(int64_t a, double b)
{
    if (b != b)
        return 2;
    if (b >= 9223372036854775808.0)
        return -1;
    if (b < -9223372036854775808.0)
        return 1;
    int64_t whole = (int64_t)b;
    if (a != whole)
        return a < whole ? -1 : 1;
    double fraction = b - (double)whole;
    return fraction > 0 ? -1 : fraction < 0;
}

static int compare_numbers(const JinjaValue *a, const JinjaValue *b)
{
    if (jinja_is_integer(a) && jinja_is_integer(b)) {
        int64_t x = jinja_integer_of(a), y = jinja_integer_of(b);
        return x < y ? -1 : x > y;
    }
    if (a->kind == JINJA_LONG || b->kind == JINJA_LONG) {
        int order = a->kind == JINJA_LONG ? jinja_long_compare(a, b) : jinja_long_compare(b, a);
        return a->kind == JINJA_LONG || order == 2 ? order : -order;
    }
    if (jinja_is_integer(a))
        return compare_integer_float(jinja_integer_of(a), b->as.number);
    if (jinja_is_integer(b)) {
        int order = compare_integer_float(jinja_integer_of(b), a->as.number);
        return order == 2 ? 2 : -order;
    }
    double x = jinja_number_of(a), y = jinja_number_of(b);
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

static bool equal_at(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, unsigned depth,
                     bool *out);

static bool equal_lists(JinjaMachine *m, const JinjaList *a, const JinjaList *b, unsigned depth,
                        bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; *out && a != b && i < a->count; i++) {
        if (!equal_at(m, &a->items[i], &b->items[i], depth + 1, out))
            return false;
    }
    return true;
}

static bool equal_dicts(JinjaMachine *m, const JinjaDict *a, const JinjaDict *b, unsigned depth,
                        bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; *out && a != b && i < a->count; i++) {
        JinjaEntry *other;
        if (!jinja_dict_get(m, b, &a->entries[i].key, &other))
            return false;
        if (!other)
            *out = false;
        else if (!equal_at(m, &a->entries[i].value, &other->value, depth + 1, out))
            return false;
    }
    return true;
}

static bool equal_at(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, unsigned depth,
                     bool *out)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of compared values", JINJA_VALUE_DEPTH_MAX);
    if (!jinja_charge(m, 1))
        return false;
    *out = false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = compare_numbers(a, b) == 0;
        return true;
    }
    if (a->kind != b->kind)
        return true;
    switch (a->kind) {
    case JINJA_STRING:
        *out = slice_equal(a->as.string, b->as.string);
        return jinja_charge(m, a->as.string.len == b->as.string.len ? a->as.string.len / 256 : 0);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return equal_lists(m, a->as.list, b->as.list, depth, out);
    case JINJA_DICT:
        return equal_dicts(m, a->as.dict, b->as.dict, depth, out);
    case JINJA_RANGE:
        *out = a->as.range->count == b->as.range->count &&
               (a->as.range->count == 0 ||
                (a->as.range->start == b->as.range->start &&
                 (a->as.range->count == 1 || a->as.range->step == b->as.range->step)));
        return true;
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *out = true;
        return true;
    default:
        *out = a->as.list == b->as.list && a->detail == b->detail; /* identity */
        return true;
    }
}

bool jinja_equal(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, bool *out)
{
    return equal_at(m, a, b, 0, out);
}

static bool compare_at(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, const char *what,
                       unsigned depth, int *out)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of compared values", JINJA_VALUE_DEPTH_MAX);
    if (!jinja_charge(m, 1))
        return false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = compare_numbers(a, b);
        return true;
    }
    if (a->kind == JINJA_STRING && b->kind == JINJA_STRING) {
        int order = slice_compare(a->as.string, b->as.string);
        size_t common = a->as.string.len < b->as.string.len ? a->as.string.len : b->as.string.len;
        *out = order < 0 ? -1 : order > 0;
        return jinja_charge(m, common / 256);
    }
    if (a->kind == b->kind && (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE)) {
        const JinjaList *x = a->as.list, *y = b->as.list;
        for (size_t i = 0; i < x->count && i < y->count; i++) {
            bool equal;
            if (!equal_at(m, &x->items[i], &y->items[i], depth + 1, &equal))
                return false;
            if (!equal)
                return compare_at(m, &x->items[i], &y->items[i], what, depth + 1, out);
        }
        *out = x->count < y->count ? -1 : x->count > y->count;
        return true;
    }
    if (jinja_is_undefined(a) || jinja_is_undefined(b))
        return jinja_fail_value(m, jinja_is_undefined(a) ? a : b, "cannot be ordered");
    return jinja_fail(m, "'%s' not supported between instances of '%s' and '%s'", what,
                      jinja_type_name(a), jinja_type_name(b));
}

bool jinja_compare(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, const char *what,
                   int *out)
{
    return compare_at(m, a, b, what, 0, out);
}

bool jinja_contains(JinjaMachine *m, const JinjaValue *container, const JinjaValue *item, bool *out)
{
    if (container->kind == JINJA_STRING) {
        size_t at;
        if (!jinja_is_string(item)) {
            if (jinja_is_undefined(item))
                return jinja_fail_value(m, item, "cannot be searched for");
            return jinja_fail(m, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(item));
        }
        if (!jinja_text_find(m, container->as.string, item->as.string, 0, &at))
            return false;
        *out = at != SIZE_MAX;
        return true;
    }
    if (container->kind == JINJA_DICT ||
        (container->kind == JINJA_VIEW && container->detail == JINJA_VIEW_KEYS)) {
        JinjaEntry *entry;
        if (!jinja_dict_get(m, container->as.dict, item, &entry))
            return false;
        *out = entry != NULL;
        return true;
    }
    if (!jinja_is_iterable(container))
        return jinja_fail(m, "argument of type '%s' is not iterable", jinja_type_name(container));
    JinjaIterator it;
    if (!jinja_iterate(m, container, &it))
        return false;
    for (*out = false; !*out;) {
        JinjaValue value;
        bool more;
        if (!jinja_next(m, &it, &value, &more))
            return false;
        if (!more)
            return true;
        if (!jinja_equal(m, &value, item, out))
            return false;
    }
    return true;
}

/* ---- Walking ---- */

bool jinja_iterate(JinjaMachine *m, const JinjaValue *value, JinjaIterator *out)
{
    if (!jinja_is_iterable(value) || value->kind == JINJA_LOOP)
        return jinja_fail(m, "'%s' object is not iterable", jinja_type_name(value));
    *out = (JinjaIterator){.source = *value};
    if (value->kind == JINJA_GENERATOR)
        out->inner = value->as.iterator;
    return true;
}

static bool next_of_view(JinjaMachine *m, const JinjaValue *view, const JinjaEntry *entry,
                         JinjaValue *out)
{
    if (view->kind == JINJA_DICT || view->detail == JINJA_VIEW_KEYS)
        *out = entry->key;
    else if (view->detail == JINJA_VIEW_VALUES)
        *out = entry->value;
    else
        return jinja_pair_new(m, &entry->key, &entry->value, out);
    return true;
}

bool jinja_next(JinjaMachine *m, JinjaIterator *it, JinjaValue *out, bool *more)
{
    if (!jinja_charge(m, 1))
        return false;
    /* A generator over a generator shares the innermost position. */
    while (it->inner)
        it = it->inner;
    *more = false;
    const JinjaValue *source = &it->source;
    size_t at = it->at;
    switch (source->kind) {
    case JINJA_STRING: {
        if (at >= source->as.string.len)
            return true;
        size_t len;
        jinja_text_at(source->as.string, at, &len);
        *out = jinja_string((Slice){source->as.string.ptr + at, len});
        it->at += len;
        break;
    }
    case JINJA_LIST:
    case JINJA_TUPLE:
        if (at >= source->as.list->count)
            return true;
        *out = source->as.list->items[at];
        it->at++;
        break;
    case JINJA_DICT:
    case JINJA_VIEW:
        if (at >= source->as.dict->count)
            return true;
        it->at++;
        if (!next_of_view(m, source, &source->as.dict->entries[at], out))
            return false;
        break;
    case JINJA_RANGE:
        if (at >= source->as.range->count)
            return true;
        /* Unsigned, because the product alone may pass 64 bits where the sum does not. */
        *out = jinja_int((int64_t)((uint64_t)source->as.range->start +
                                   (uint64_t)at * (uint64_t)source->as.range->step));
        it->at++;
        break;
    default:
        return true;
    }
    *more = true;
    return true;
}

bool jinja_to_list(JinjaMachine *m, const JinjaValue *value, JinjaValue *out)
{
    JinjaIterator it;
    size_t length = 0;
    if (!jinja_iterate(m, value, &it))
        return false;
    if (!jinja_length(value, &length))
        length = 0;
    JinjaValue list;
    if (!jinja_list_new(m, JINJA_LIST, length, &list))
        return false;
    for (;;) {
        JinjaValue item;
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            break;
        if (!jinja_list_append(m, list.as.list, &item))
            return false;
    }
    *out = list;
    return true;
}
