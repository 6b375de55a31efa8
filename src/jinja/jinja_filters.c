/* Filters over sequences and mappings, and the table of all filters.
 *
 * Where jinja2 yields lazily, the items are computed at once but still handed out as a generator:
 * it has no length and can be walked only once, as templates observe. */
#include "jinja_filters.h"

/* ---- map, select, reject ---- */

static const JinjaValue *find_keyword(const JinjaArguments *given, const char *name)
{
    for (size_t i = 0; i < given->keyword_count; i++) {
        if (slice_equal(given->keywords[i].name, slice_of(name)))
            return &given->keywords[i].value;
    }
    return NULL;
}

/* The filter or test that is named by the argument at `at`; NULL with the error set. */
static const JinjaBuiltin *named_builtin(JinjaMachine *m, const JinjaCall *call, size_t at,
                                         bool test)
{
    const JinjaValue *name = &call->given->items[at];
    Slice text = name->kind == JINJA_STRING ? name->as.string : SLICE_EMPTY;
    const JinjaBuiltin *found = test ? jinja_test_find(text) : jinja_filter_find(text);
    if (!found)
        jinja_fail(m, "No %s named '%.*s'.", test ? "test" : "filter", SLICE_ARG(text));
    return found;
}

static JinjaArguments arguments_from(const JinjaArguments *given, size_t first)
{
    JinjaArguments rest = *given;
    rest.items = first < given->count ? given->items + first : NULL;
    rest.count = first < given->count ? given->count - first : 0;
    return rest;
}

/* map('filter', args...) or map(attribute=..., default=...) */
static bool filter_map(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    JinjaValue mapped, item;
    const JinjaValue *attribute =
        call->given->count == 0 ? find_keyword(call->given, "attribute") : NULL;
    const JinjaValue *fallback = attribute ? find_keyword(call->given, "default") : NULL;
    const JinjaBuiltin *filter = NULL;
    if (!jinja_list_new(m, JINJA_LIST, 0, &mapped))
        return false;
    if (!jinja_truth(&call->self))
        return jinja_generator_new(m, &mapped, out);
    if (!attribute && call->given->count == 0)
        return jinja_fail(m, "map requires a filter argument");
    if (!attribute && !(filter = named_builtin(m, call, 0, false)))
        return false;
    JinjaArguments rest = arguments_from(call->given, 1);
    if (!jinja_iterate(m, &call->self, &it))
        return false;
    for (;;) {
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return jinja_generator_new(m, &mapped, out);
        bool ok = attribute ? jinja_item_attribute(m, &item, attribute, fallback, &item)
                            : jinja_builtin_call(m, filter, &item, &rest, &item);
        if (!ok || !jinja_list_append(m, mapped.as.list, &item))
            return false;
    }
}

/* The items for which a test (by default: being true) of them or of their attribute holds, or
 * fails. */
static bool choose(JinjaMachine *m, const JinjaCall *call, bool by_attribute, bool wanted,
                   JinjaValue *out)
{
    JinjaIterator it;
    JinjaValue kept, item, subject, result;
    size_t offset = by_attribute;
    if (!jinja_list_new(m, JINJA_LIST, 0, &kept))
        return false;
    if (!jinja_truth(&call->self))
        return jinja_generator_new(m, &kept, out);
    if (call->given->count < offset)
        return jinja_fail(m, "Missing parameter for attribute name");
    const JinjaBuiltin *test = NULL;
    if (call->given->count > offset && !(test = named_builtin(m, call, offset, true)))
        return false;
    JinjaArguments rest = arguments_from(call->given, offset + 1);
    if (!jinja_iterate(m, &call->self, &it))
        return false;
    for (;;) {
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return jinja_generator_new(m, &kept, out);
        subject = item;
        if (by_attribute && !jinja_item_attribute(m, &item, &call->given->items[0], NULL, &subject))
            return false;
        result = subject;
        if (test && !jinja_builtin_call(m, test, &subject, &rest, &result))
            return false;
        if (jinja_truth(&result) == wanted && !jinja_list_append(m, kept.as.list, &item))
            return false;
    }
}

static bool filter_select(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return choose(m, call, false, true, out);
}

static bool filter_reject(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return choose(m, call, false, false, out);
}

static bool filter_selectattr(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return choose(m, call, true, true, out);
}

static bool filter_rejectattr(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return choose(m, call, true, false, out);
}

/* ---- The rest over sequences ---- */

static bool filter_length(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    size_t length;
    const JinjaValue *self = &call->self;
    if (!jinja_length(self, &length))
        return jinja_fail(m, "object of type '%s' has no len()", jinja_type_name(self));
    *out = jinja_int((int64_t)length);
    return jinja_charge(m, self->kind == JINJA_STRING ? self->as.string.len / 64 : 0);
}

static bool filter_first(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    bool more;
    if (!jinja_iterate(m, &call->self, &it) || !jinja_next(m, &it, out, &more))
        return false;
    if (!more)
        *out = jinja_undefined(JINJA_MISSING_HINT, SLICE("No first item, sequence was empty."));
    return true;
}

static bool reversed_list(JinjaMachine *m, const JinjaValue *value, JinjaValue *out)
{
    if (!jinja_to_list(m, value, out))
        return false;
    JinjaList *list = out->as.list;
    for (size_t i = 0; i < list->count / 2; i++) {
        JinjaValue swapped = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swapped;
    }
    return true;
}

static bool filter_last(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue list;
    if (call->self.kind == JINJA_GENERATOR)
        return jinja_fail(m, "'generator' object is not reversible");
    if (!jinja_to_list(m, &call->self, &list))
        return false;
    size_t count = list.as.list->count;
    *out = count ? list.as.list->items[count - 1]
                 : jinja_undefined(JINJA_MISSING_HINT, SLICE("No last item, sequence was empty."));
    if (count && call->self.kind == JINJA_STRING)
        out->detail = call->self.detail;
    return true;
}

/* Chosen by a counter that starts anew with each rendering: the same template and variables give
 * the same text, as the prefix cache and whoever compares renderings expect. (SplitMix64; Steele,
 * Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.) */
static bool filter_random(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    size_t count;
    const JinjaValue *self = &call->self;
    if (!jinja_length(self, &count))
        return jinja_fail(m, "object of type '%s' has no len()", jinja_type_name(self));
    if (count == 0) {
        *out = jinja_undefined(JINJA_MISSING_HINT, SLICE("No random item, sequence was empty."));
        return true;
    }
    if (self->kind != JINJA_STRING && self->kind != JINJA_LIST && self->kind != JINJA_TUPLE &&
        self->kind != JINJA_RANGE)
        return jinja_fail(m, "'%s' object is no sequence to choose from", jinja_type_name(self));
    uint64_t z = (m->random_state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    JinjaValue at = jinja_int((int64_t)((z ^ (z >> 31)) % count));
    return jinja_charge(m, self->kind == JINJA_STRING ? self->as.string.len / 64 : 0) &&
           jinja_get_item(m, self, &at, out);
}

static bool filter_reverse(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue list;
    if (call->self.kind == JINJA_STRING) {
        JinjaValue parts[3] = {JINJA_VALUE_ABSENT, JINJA_VALUE_ABSENT, jinja_int(-1)};
        return jinja_get_slice(m, &call->self, parts, out);
    }
    return reversed_list(m, &call->self, &list) && jinja_generator_new(m, &list, out);
}

static bool filter_list(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_to_list(m, &call->self, out);
}

/* join under autoescape: markup among the items, or as the separator, makes markup of all. */
static bool join_escaping(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    JinjaValue parts, item, separator = call->args[0];
    if (separator.kind == JINJA_ABSENT)
        separator = jinja_string(SLICE_EMPTY);
    if (!jinja_iterate(m, &call->self, &it) || !jinja_list_new(m, JINJA_LIST, 8, &parts))
        return false;
    for (bool first = true;; first = false) {
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            break;
        if ((!first && !jinja_list_append(m, parts.as.list, &separator)) ||
            !jinja_item_attribute(m, &item, &call->args[1], NULL, &item) ||
            (jinja_is_markup(&separator) && !jinja_to_markup(m, &item, &item)) ||
            !jinja_list_append(m, parts.as.list, &item))
            return false;
    }
    if (!jinja_join_markup(m, parts.as.list, out))
        return false;
    out->detail |= jinja_is_markup(&separator);
    return true;
}

/* join(d, attribute) */
static bool filter_join(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    Slice separator = SLICE_EMPTY;
    if (m->autoescape)
        return join_escaping(m, call, out);
    if (call->args[0].kind != JINJA_ABSENT && !jinja_to_text(m, &call->args[0], &separator))
        return false;
    if (!jinja_iterate(m, &call->self, &it))
        return false;
    size_t mark = m->text.len;
    for (bool first = true;; first = false) {
        JinjaValue item;
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return jinja_text_finish(m, mark, out);
        if (!jinja_item_attribute(m, &item, &call->args[1], NULL, &item) ||
            !jinja_charge(m, separator.len / 256))
            return false;
        if (!first)
            buffer_append_slice(&m->text, separator);
        if (!jinja_append_text(m, &m->text, &item))
            return false;
    }
}

/* sum(attribute, start) */
static bool filter_sum(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    *out = call->args[1].kind == JINJA_ABSENT ? jinja_int(0) : call->args[1];
    if (out->kind == JINJA_STRING)
        return jinja_fail(m, "sum() can't sum strings [use ''.join(seq) instead]");
    if (!jinja_iterate(m, &call->self, &it))
        return false;
    for (;;) {
        JinjaValue item;
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return true;
        if (!jinja_item_attribute(m, &item, &call->args[0], NULL, &item) ||
            !jinja_operate(m, TOKEN_ADD, out, &item, out))
            return false;
    }
}

/* Moves count items of source from `from` into a new list at the end of rows. */
static bool append_row(JinjaMachine *m, JinjaList *rows, const JinjaList *source, size_t from,
                       size_t count, const JinjaValue *fill, size_t fills)
{
    JinjaValue row;
    bool filled = fill->kind != JINJA_ABSENT && fill->kind != JINJA_NONE;
    if (!jinja_list_new(m, JINJA_LIST, count, &row))
        return false;
    for (size_t i = 0; i < count; i++) {
        if (!jinja_list_append(m, row.as.list, &source->items[from + i]))
            return false;
    }
    for (size_t i = 0; filled && i < fills; i++) {
        if (!jinja_list_append(m, row.as.list, fill))
            return false;
    }
    return jinja_list_append(m, rows, &row);
}

/* batch(linecount, fill_with): rows of linecount items */
static bool filter_batch(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue list, rows;
    int64_t width;
    if (!jinja_arg_integer(m, call, 0, 1, &width) || !jinja_to_list(m, &call->self, &list) ||
        !jinja_list_new(m, JINJA_LIST, 0, &rows))
        return false;
    if (width < 1)
        return jinja_fail(m, "batch: linecount must be positive");
    size_t count = list.as.list->count;
    for (size_t at = 0; at < count; at += (size_t)width) {
        size_t length = count - at < (size_t)width ? count - at : (size_t)width;
        if (!append_row(m, rows.as.list, list.as.list, at, length, &call->args[1],
                        (size_t)width - length))
            return false;
        if (length < (size_t)width)
            break;
    }
    return jinja_generator_new(m, &rows, out);
}

/* slice(slices, fill_with): that many columns of nearly equal length */
static bool filter_slice(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue list, rows;
    int64_t slices;
    if (!jinja_arg_integer(m, call, 0, 1, &slices) || !jinja_to_list(m, &call->self, &list) ||
        !jinja_list_new(m, JINJA_LIST, 0, &rows))
        return false;
    if (slices < 1)
        return jinja_fail(m, "slice: the number of slices must be positive");
    size_t count = list.as.list->count, width = count / (size_t)slices,
           extra = count % (size_t)slices;
    for (size_t i = 0, at = 0; i < (size_t)slices; i++) {
        size_t length = width + (i < extra);
        if (!append_row(m, rows.as.list, list.as.list, at, length, &call->args[1], i >= extra))
            return false;
        at += length;
    }
    return jinja_generator_new(m, &rows, out);
}

static bool filter_items(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue view = call->self;
    if (jinja_is_undefined(&view))
        return jinja_generator_new(m, &view, out);
    if (view.kind != JINJA_DICT)
        return jinja_fail(m, "Can only get item pairs from a mapping.");
    view.kind = JINJA_VIEW;
    view.detail = JINJA_VIEW_ITEMS;
    return jinja_generator_new(m, &view, out);
}

/* Only what is truly an attribute: a dict's keys are not. */
static bool filter_attr(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice name;
    bool unsafe;
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &name))
        return false;
    if (call->self.kind == JINJA_DICT && !jinja_method_find(&call->self, name, &unsafe)) {
        *out = jinja_undefined_of(&call->self, name);
        return true;
    }
    return jinja_get_attribute(m, &call->self, name, out);
}

/* default(default_value, boolean) */
static bool filter_default(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    bool replace = jinja_is_undefined(&call->self) ||
                   (jinja_arg_truth(call, 1, false) && !jinja_truth(&call->self));
    *out = !replace                             ? call->self
           : call->args[0].kind == JINJA_ABSENT ? jinja_string(SLICE_EMPTY)
                                                : call->args[0];
    return true;
}

const JinjaBuiltin *jinja_filter_find(Slice name)
{
    static const JinjaBuiltin filters[] = {
        {"tojson", "?ensure_ascii ?indent ?separators ?sort_keys", jinja_filter_tojson},
        {"length", "", filter_length},
        {"count", "", filter_length},
        {"default", "?default_value ?boolean", filter_default},
        {"d", "?default_value ?boolean", filter_default},
        {"join", "?d ?attribute", filter_join},
        {"list", "", filter_list},
        {"items", "", filter_items},
        {"map", NULL, filter_map},
        {"select", NULL, filter_select},
        {"reject", NULL, filter_reject},
        {"selectattr", NULL, filter_selectattr},
        {"rejectattr", NULL, filter_rejectattr},
        {"first", "", filter_first},
        {"last", "", filter_last},
        {"random", "", filter_random},
        {"reverse", "", filter_reverse},
        {"sort", "?reverse ?case_sensitive ?attribute", jinja_filter_sort},
        {"dictsort", "?case_sensitive ?by ?reverse", jinja_filter_dictsort},
        {"groupby", "attribute ?default ?case_sensitive", jinja_filter_groupby},
        {"unique", "?case_sensitive ?attribute", jinja_filter_unique},
        {"min", "?case_sensitive ?attribute", jinja_filter_min},
        {"max", "?case_sensitive ?attribute", jinja_filter_max},
        {"sum", "?attribute ?start", filter_sum},
        {"batch", "linecount ?fill_with", filter_batch},
        {"slice", "slices ?fill_with", filter_slice},
        {"attr", "name", filter_attr},
    };
    for (size_t i = 0; i < ARRAY_COUNT(filters); i++) {
        if (slice_equal(name, slice_of(filters[i].name)))
            return &filters[i];
    }
    return jinja_text_filter_find(name);
}
