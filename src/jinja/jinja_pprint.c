/* The filter pprint: Python's pprint.pformat with its defaults.
 *
 * What fits into the rest of an 80-column line stands there; otherwise lists, tuples and dicts put
 * each item on a line of its own, and long strings are cut at blanks into adjacent literals. Dicts
 * are sorted by key. */
#include "jinja_filters.h"

#include <string.h>

enum { LINE_WIDTH = 80 };

/* ---- Sorted dicts ---- */

static int compare_bytes(Slice a, Slice b)
{
    size_t common = a.len < b.len ? a.len : b.len;
    int order = common ? memcmp(a.ptr, b.ptr, common) : 0;
    return order != 0 ? order : a.len < b.len ? -1 : a.len > b.len;
}

/* Keys that Python cannot compare are ordered by the names of their types. */
static bool key_is_less(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, bool *out)
{
    bool comparable = (jinja_is_number(a) && jinja_is_number(b)) ||
                      (a->kind == b->kind && a->kind == JINJA_STRING);
    int order;
    if (comparable) {
        if (!jinja_compare(m, a, b, "<", &order))
            return false;
    } else if (a->kind == JINJA_TUPLE && b->kind == JINJA_TUPLE) {
        const JinjaList *x = a->as.list, *y = b->as.list;
        for (size_t i = 0; i < x->count && i < y->count; i++) {
            bool equal;
            if (!jinja_equal(m, &x->items[i], &y->items[i], &equal))
                return false;
            if (!equal)
                return key_is_less(m, &x->items[i], &y->items[i], out);
        }
        order = x->count < y->count ? -1 : 1;
    } else {
        order = compare_bytes(slice_of(jinja_type_name(a)), slice_of(jinja_type_name(b)));
    }
    *out = order == -1 || (!comparable && order < 0);
    return true;
}

static bool merge_entries(JinjaMachine *m, const JinjaEntry **from, const JinjaEntry **to,
                          size_t middle, size_t count)
{
    size_t left = 0, right = middle;
    for (size_t i = 0; i < count; i++) {
        bool take_right = left == middle;
        if (!take_right && right < count &&
            !key_is_less(m, &from[right]->key, &from[left]->key, &take_right))
            return false;
        to[i] = from[take_right ? right++ : left++];
    }
    return jinja_charge(m, count);
}

static bool sorted_entries(JinjaMachine *m, const JinjaDict *dict, const JinjaEntry ***out)
{
    size_t count = dict->count;
    const JinjaEntry **from = jinja_allocate(m, count + 1, sizeof(*from));
    const JinjaEntry **to = jinja_allocate(m, count + 1, sizeof(*to));
    if (!from || !to)
        return false;
    for (size_t i = 0; i < count; i++)
        from[i] = &dict->entries[i];
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t start = 0; start < count; start += 2 * width) {
            size_t length = count - start < 2 * width ? count - start : 2 * width;
            size_t middle = length < width ? length : width;
            if (!merge_entries(m, from + start, to + start, middle, length))
                return false;
        }
        const JinjaEntry **swapped = from;
        from = to;
        to = swapped;
    }
    *out = from;
    return true;
}

/* ---- On one line ---- */

static bool append_flat(JinjaMachine *m, const JinjaValue *value, unsigned level);

static bool append_flat_dict(JinjaMachine *m, const JinjaDict *dict, unsigned level)
{
    const JinjaEntry **entries;
    if (!sorted_entries(m, dict, &entries))
        return false;
    buffer_append_byte(&m->text, '{');
    for (size_t i = 0; i < dict->count; i++) {
        buffer_append_text(&m->text, i > 0 ? ", " : "");
        if (!append_flat(m, &entries[i]->key, level + 1))
            return false;
        buffer_append_text(&m->text, ": ");
        if (!append_flat(m, &entries[i]->value, level + 1))
            return false;
    }
    buffer_append_byte(&m->text, '}');
    return true;
}

/* repr with sorted dicts */
static bool append_flat(JinjaMachine *m, const JinjaValue *value, unsigned level)
{
    if (level > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of printed values", JINJA_VALUE_DEPTH_MAX);
    if (value->kind == JINJA_DICT)
        return jinja_charge(m, 1) && append_flat_dict(m, value->as.dict, level);
    if (value->kind != JINJA_LIST && value->kind != JINJA_TUPLE)
        return jinja_append_repr(m, &m->text, value);
    bool tuple = value->kind == JINJA_TUPLE;
    const JinjaList *list = value->as.list;
    buffer_append_byte(&m->text, tuple ? '(' : '[');
    for (size_t i = 0; i < list->count; i++) {
        buffer_append_text(&m->text, i > 0 ? ", " : "");
        if (!append_flat(m, &list->items[i], level + 1))
            return false;
    }
    buffer_append_text(&m->text, tuple ? (list->count == 1 ? ",)" : ")") : "]");
    return jinja_charge(m, 1);
}

/* ---- Over several lines ---- */

static bool append_pretty(JinjaMachine *m, const JinjaValue *value, int64_t indent,
                          int64_t allowance, unsigned level);

static bool append_break(JinjaMachine *m, const char *before, int64_t indent)
{
    buffer_append_text(&m->text, before);
    buffer_append_byte(&m->text, '\n');
    for (int64_t i = 0; i < indent; i++)
        buffer_append_byte(&m->text, ' ');
    if (m->text.failed && m->text.over_limit)
        return jinja_fail_limit(m, "output bytes", m->text.max);
    return jinja_charge(m, 1 + (size_t)indent / 16);
}

static bool append_pretty_dict(JinjaMachine *m, const JinjaDict *dict, int64_t indent,
                               int64_t allowance, unsigned level)
{
    const JinjaEntry **entries;
    if (!sorted_entries(m, dict, &entries))
        return false;
    buffer_append_byte(&m->text, '{');
    indent++;
    for (size_t i = 0; i < dict->count; i++) {
        bool last = i + 1 == dict->count;
        size_t mark = m->text.len;
        if (!append_flat(m, &entries[i]->key, level))
            return false;
        Slice key = {m->text.ptr + mark, m->text.len - mark};
        int64_t width = (int64_t)utf8_count(key);
        buffer_append_text(&m->text, ": ");
        if (!append_pretty(m, &entries[i]->value, indent + width + 2, last ? allowance + 1 : 1,
                           level) ||
            (!last && !append_break(m, ",", indent)))
            return false;
    }
    buffer_append_byte(&m->text, '}');
    return true;
}

static bool append_pretty_list(JinjaMachine *m, const JinjaValue *value, int64_t indent,
                               int64_t allowance, unsigned level)
{
    const JinjaList *list = value->as.list;
    bool tuple = value->kind == JINJA_TUPLE;
    const char *end = tuple ? (list->count == 1 ? ",)" : ")") : "]";
    buffer_append_byte(&m->text, tuple ? '(' : '[');
    indent++;
    allowance += (int64_t)strlen(end);
    for (size_t i = 0; i < list->count; i++) {
        bool last = i + 1 == list->count;
        if (!append_pretty(m, &list->items[i], indent, last ? allowance : 1, level) ||
            (!last && !append_break(m, ",", indent)))
            return false;
    }
    buffer_append_text(&m->text, end);
    return true;
}

/* Code points of repr(text). */
static bool repr_width(JinjaMachine *m, Slice text, int64_t *out)
{
    size_t mark = m->text.len;
    JinjaValue value = jinja_string(text), made;
    if (!jinja_append_repr(m, &m->text, &value))
        return false;
    bool ok = !m->text.failed;
    *out = ok ? (int64_t)utf8_count((Slice){m->text.ptr + mark, m->text.len - mark}) : 0;
    if (!ok)
        return jinja_text_finish(m, mark, &made);
    m->text.len = mark;
    return true;
}

static bool add_part(JinjaMachine *m, JinjaList *parts, Slice text)
{
    JinjaValue part = jinja_string(text);
    return jinja_list_append(m, parts, &part);
}

/* A run of characters and the blanks behind it. */
static Slice next_word(Slice line, size_t at)
{
    size_t end = at, len;
    while (end < line.len && !jinja_is_space(jinja_text_at(line, end, &len)))
        end += len;
    while (end < line.len && jinja_is_space(jinja_text_at(line, end, &len)))
        end += len;
    return (Slice){line.ptr + at, end - at};
}

/* Cuts a line that is too wide at blanks into parts that fit, where they can. */
static bool split_line(JinjaMachine *m, Slice line, int64_t width, int64_t allowance,
                       JinjaList *parts)
{
    Slice current = {line.ptr, 0};
    int64_t needed;
    for (size_t at = 0; at < line.len;) {
        Slice word = next_word(line, at), candidate = {current.ptr, current.len + word.len};
        at += word.len;
        if (!repr_width(m, candidate, &needed))
            return false;
        if (needed <= width - (at == line.len ? allowance : 0)) {
            current = candidate;
            continue;
        }
        if (current.len > 0 && !add_part(m, parts, current))
            return false;
        current = word;
    }
    return current.len == 0 || add_part(m, parts, current);
}

static bool append_pretty_string(JinjaMachine *m, Slice text, int64_t indent, int64_t allowance,
                                 unsigned level)
{
    bool outermost = level == 1;
    JinjaValue parts;
    Slice line, line_break;
    indent += outermost;
    allowance += outermost;
    int64_t width = LINE_WIDTH - indent, needed;
    if (!jinja_list_new(m, JINJA_LIST, 4, &parts))
        return false;
    for (size_t at = 0; jinja_text_next_line(text, &at, &line, &line_break);) {
        int64_t reserved = at == text.len ? allowance : 0;
        line.len += line_break.len;
        if (!repr_width(m, line, &needed) ||
            !(needed <= width - reserved ? add_part(m, parts.as.list, line)
                                         : split_line(m, line, width, reserved, parts.as.list)))
            return false;
    }
    const JinjaList *list = parts.as.list;
    bool parentheses = outermost && list->count > 1;
    buffer_append_text(&m->text, parentheses ? "(" : "");
    for (size_t i = 0; i < list->count; i++) {
        if ((i > 0 && !append_break(m, "", indent)) ||
            !jinja_append_repr(m, &m->text, &list->items[i]))
            return false;
    }
    buffer_append_text(&m->text, parentheses ? ")" : "");
    return true;
}

/* indent: columns before the value; allowance: columns that must stay free behind it. */
static bool append_pretty(JinjaMachine *m, const JinjaValue *value, int64_t indent,
                          int64_t allowance, unsigned level)
{
    if (level > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of printed values", JINJA_VALUE_DEPTH_MAX);
    size_t mark = m->text.len;
    JinjaValue made;
    if (!append_flat(m, value, level))
        return false;
    if (m->text.failed)
        return jinja_text_finish(m, mark, &made);
    size_t width = utf8_count((Slice){m->text.ptr + mark, m->text.len - mark});
    bool splits = value->kind == JINJA_DICT || value->kind == JINJA_LIST ||
                  value->kind == JINJA_TUPLE ||
                  (value->kind == JINJA_STRING && !value->detail && value->as.string.len > 0);
    if (!splits || (int64_t)width <= LINE_WIDTH - indent - allowance)
        return true;
    m->text.len = mark;
    if (value->kind == JINJA_DICT)
        return append_pretty_dict(m, value->as.dict, indent, allowance, level + 1);
    if (value->kind == JINJA_STRING)
        return append_pretty_string(m, value->as.string, indent, allowance, level + 1);
    return append_pretty_list(m, value, indent, allowance, level + 1);
}

bool jinja_filter_pprint(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    size_t mark = m->text.len;
    return append_pretty(m, &call->self, 0, 0, 0) && jinja_text_finish(m, mark, out);
}
