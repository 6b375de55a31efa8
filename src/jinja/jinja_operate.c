/* Operators, attributes, items and slices, with Python's rules and messages.
 *
 * `a.b` looks for a
 * method first and then for the key, `a['b']` the other way round; what is missing is undefined,
 * not an error. */
#include "jinja_machine.h"

#include <math.h>
#include <string.h>

/* ---- Arithmetic ---- */

static bool fail_operands(JinjaMachine *m, JinjaTokenKind op, const JinjaValue *a,
                          const JinjaValue *b)
{
    if (jinja_is_undefined(a) || jinja_is_undefined(b))
        return jinja_fail_value(m, jinja_is_undefined(a) ? a : b, "cannot be computed with");
    if (op == TOKEN_ADD &&
        (a->kind == JINJA_STRING || a->kind == JINJA_LIST || a->kind == JINJA_TUPLE))
        return jinja_fail(m, "can only concatenate %s (not \"%s\") to %s", jinja_type_name(a),
                          jinja_type_name(b), jinja_type_name(a));
    return jinja_fail(m, "unsupported operand type(s) for %s: '%s' and '%s'", jinja_token_name(op),
                      jinja_type_name(a), jinja_type_name(b));
}

static bool operate_floats(JinjaMachine *m, JinjaTokenKind op, double a, double b, JinjaValue *out)
{
    double result;
    if (b == 0.0 && (op == TOKEN_DIV || op == TOKEN_FLOORDIV || op == TOKEN_MOD))
        return jinja_fail(m, op == TOKEN_DIV        ? "float division by zero"
                             : op == TOKEN_FLOORDIV ? "float floor division by zero"
                                                    : "float modulo");
    switch (op) {
    case TOKEN_ADD:
        result = a + b;
        break;
    case TOKEN_SUB:
        result = a - b;
        break;
    case TOKEN_MUL:
        result = a * b;
        break;
    case TOKEN_DIV:
        result = a / b;
        break;
    case TOKEN_FLOORDIV:
    case TOKEN_MOD: {
        double rest = fmod(a, b);
        double quotient = (a - rest) / b;
        if (rest != 0.0 && (rest < 0) != (b < 0)) {
            rest += b;
            quotient -= 1.0;
        } else if (rest == 0.0) {
            rest = copysign(0.0, b);
        }
        double whole = floor(quotient);
        if (quotient - whole > 0.5)
            whole += 1.0;
        result = op == TOKEN_MOD ? rest : whole;
        break;
    }
    default:
        if (a == 0.0 && b < 0)
            return jinja_fail(m, "0.0 cannot be raised to a negative power");
        result = pow(a, b);
        if (isinf(result) && isfinite(a) && isfinite(b))
            return jinja_fail(m, "Numerical result out of range");
        break;
    }
    *out = jinja_float(result);
    return true;
}

/* ---- Strings and lists under + and * ---- */

/* a + b where a may be the text that an earlier concatenation left room behind (see JinjaMachine).
 */
bool jinja_concatenate(JinjaMachine *m, Slice a, Slice b, JinjaValue *out)
{
    enum { GROW_FROM = 512 };
    for (size_t i = 0; a.len > 0 && i < JINJA_BUILDERS; i++) {
        if (a.ptr != m->builders[i].ptr || a.len != m->builders[i].used ||
            b.len > m->builders[i].capacity - a.len)
            continue;
        if (b.len)
            memcpy(m->builders[i].ptr + a.len, b.ptr, b.len);
        m->builders[i].used += b.len;
        *out = jinja_string((Slice){a.ptr, a.len + b.len});
        return jinja_charge(m, b.len / 64);
    }
    size_t len;
    if (!size_add(a.len, b.len, &len))
        return jinja_fail_limit(m, "string", SIZE_MAX);
    size_t capacity = len >= GROW_FROM && len < JINJA_MEMORY_BYTES_MAX ? len * 2 : len;
    char *text = jinja_charge(m, len / 64) ? jinja_allocate(m, capacity, 1) : NULL;
    if (!text)
        return false;
    if (a.len)
        memcpy(text, a.ptr, a.len);
    if (b.len)
        memcpy(text + a.len, b.ptr, b.len);
    if (capacity > len) {
        unsigned slot = m->next_builder++ % JINJA_BUILDERS;
        m->builders[slot].ptr = text;
        m->builders[slot].used = len;
        m->builders[slot].capacity = capacity;
    }
    *out = jinja_string((Slice){text, len});
    return true;
}

/* Markup (from `safe` or `escape`) escapes what plain text is joined to it. */
static bool add_strings(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, JinjaValue *out)
{
    Slice x = a->as.string, y = b->as.string;
    bool markup = a->detail || b->detail;
    if (markup && !(a->detail && b->detail)) {
        JinjaValue escaped;
        size_t mark = m->text.len;
        if (!jinja_append_escaped(m, &m->text, a->detail ? y : x) ||
            !jinja_text_finish(m, mark, &escaped))
            return false;
        if (a->detail)
            y = escaped.as.string;
        else
            x = escaped.as.string;
    }
    if (!jinja_concatenate(m, x, y, out))
        return false;
    out->detail = markup;
    return true;
}

static bool add_lists(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, JinjaValue *out)
{
    const JinjaList *x = a->as.list, *y = b->as.list;
    JinjaValue sum;
    if (!jinja_charge(m, x->count + y->count) ||
        !jinja_list_new(m, a->kind, x->count + y->count, &sum))
        return false;
    if (x->count)
        memcpy(sum.as.list->items, x->items, x->count * sizeof(JinjaValue));
    if (y->count)
        memcpy(sum.as.list->items + x->count, y->items, y->count * sizeof(JinjaValue));
    sum.as.list->count = x->count + y->count;
    *out = sum;
    return true;
}

static bool repeat_string(JinjaMachine *m, const JinjaValue *value, size_t times, JinjaValue *out)
{
    Slice text = value->as.string;
    size_t len;
    if (!size_multiply(text.len, times, &len))
        return jinja_fail_limit(m, "memory of one rendering", JINJA_MEMORY_BYTES_MAX);
    uint32_t markup = value->detail;
    char *copy = jinja_string_new(m, len, out);
    if (!copy)
        return false;
    for (size_t i = 0; text.len > 0 && i < times; i++)
        memcpy(copy + i * text.len, text.ptr, text.len);
    out->detail = markup;
    return true;
}

static bool repeat_list(JinjaMachine *m, const JinjaValue *value, size_t times, JinjaValue *out)
{
    const JinjaList *list = value->as.list;
    size_t count;
    JinjaValue result;
    if (!size_multiply(list->count, times, &count))
        return jinja_fail_limit(m, "memory of one rendering", JINJA_MEMORY_BYTES_MAX);
    if (!jinja_charge(m, count) || !jinja_list_new(m, value->kind, count, &result))
        return false;
    for (size_t i = 0; list->count > 0 && i < times; i++)
        memcpy(result.as.list->items + i * list->count, list->items,
               list->count * sizeof(JinjaValue));
    result.as.list->count = count;
    *out = result;
    return true;
}

static bool is_sequence(const JinjaValue *value)
{
    return value->kind == JINJA_STRING || value->kind == JINJA_LIST || value->kind == JINJA_TUPLE;
}

static bool repeat(JinjaMachine *m, const JinjaValue *value, int64_t times, JinjaValue *out)
{
    size_t count = times > 0 ? (size_t)times : 0;
    return value->kind == JINJA_STRING ? repeat_string(m, value, count, out)
                                       : repeat_list(m, value, count, out);
}

bool jinja_operate(JinjaMachine *m, JinjaTokenKind op, const JinjaValue *a, const JinjaValue *b,
                   JinjaValue *out)
{
    if (jinja_is_integer(a) && jinja_is_integer(b))
        return jinja_operate_integers(m, op, jinja_integer_of(a), jinja_integer_of(b), out);
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a->kind != JINJA_FLOAT && b->kind != JINJA_FLOAT)
            return jinja_fail(m, "integers that exceed 64 bits cannot be computed with");
        double x = jinja_number_of(a), y = jinja_number_of(b);
        if ((a->kind == JINJA_LONG && isinf(x)) || (b->kind == JINJA_LONG && isinf(y)))
            return jinja_fail(m, "int too large to convert to float");
        return operate_floats(m, op, x, y, out);
    }
    if (op == TOKEN_ADD && a->kind == JINJA_STRING && b->kind == JINJA_STRING)
        return add_strings(m, a, b, out);
    if (op == TOKEN_ADD && a->kind == b->kind && (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE))
        return add_lists(m, a, b, out);
    if (op == TOKEN_MUL && is_sequence(a) && jinja_is_integer(b))
        return repeat(m, a, jinja_integer_of(b), out);
    if (op == TOKEN_MUL && is_sequence(b) && jinja_is_integer(a))
        return repeat(m, b, jinja_integer_of(a), out);
    if (op == TOKEN_MOD && a->kind == JINJA_STRING)
        return jinja_format_percent(m, a, b, out);
    return fail_operands(m, op, a, b);
}

bool jinja_negate(JinjaMachine *m, bool negative, const JinjaValue *a, JinjaValue *out)
{
    if (jinja_is_undefined(a))
        return jinja_fail_value(m, a, "cannot be computed with");
    if (!jinja_is_number(a))
        return jinja_fail(m, "bad operand type for unary %s: '%s'", negative ? "-" : "+",
                          jinja_type_name(a));
    if (a->kind == JINJA_FLOAT) {
        *out = jinja_float(negative ? -a->as.number : a->as.number);
        return true;
    }
    if (a->kind == JINJA_LONG) {
        *out = *a;
        return !negative || jinja_long_negate(m, a, out);
    }
    int64_t integer = jinja_integer_of(a);
    if (negative && integer == INT64_MIN)
        return jinja_fail_overflow(m);
    *out = jinja_int(negative ? -integer : integer);
    return true;
}

/* ---- Attributes and items ---- */

/* A method of the object as a value, or an undefined that explains the sandbox. */
static bool find_method(JinjaMachine *m, const JinjaValue *object, Slice name, JinjaValue *out,
                        bool *found)
{
    bool unsafe = false;
    const JinjaBuiltin *builtin = jinja_method_find(object, name, &unsafe);
    *found = builtin || unsafe;
    if (unsafe)
        *out = jinja_undefined(JINJA_MISSING_UNSAFE, name);
    if (!builtin)
        return true;
    JinjaMethod *method = jinja_allocate(m, 1, sizeof(*method));
    if (!method)
        return false;
    *method = (JinjaMethod){*object, builtin};
    *out = (JinjaValue){.kind = JINJA_METHOD, .as.method = method};
    return true;
}

static bool macro_attribute(JinjaMachine *m, const JinjaMacroNode *macro, Slice name,
                            JinjaValue *out, bool *found)
{
    *found = true;
    if (slice_equal(name, SLICE("name"))) {
        *out = jinja_string(macro->text);
    } else if (slice_equal(name, SLICE("caller"))) {
        *out = jinja_bool(macro->wants_caller);
    } else if (slice_equal(name, SLICE("catch_varargs"))) {
        *out = jinja_bool(macro->wants_varargs);
    } else if (slice_equal(name, SLICE("catch_kwargs"))) {
        *out = jinja_bool(macro->wants_kwargs);
    } else if (slice_equal(name, SLICE("arguments"))) {
        if (!jinja_list_new(m, JINJA_TUPLE, macro->count, out))
            return false;
        for (size_t i = 0; i < macro->count; i++) {
            JinjaValue parameter = jinja_string(macro->parameters[i].text);
            if (!jinja_list_append(m, out->as.list, &parameter))
                return false;
        }
    } else {
        *found = false;
    }
    return true;
}

/* What groupby gives is a pair with names. */
static bool group_attribute(const JinjaValue *object, Slice name, JinjaValue *out)
{
    bool is_key = slice_equal(name, SLICE("grouper"));
    if (object->kind != JINJA_TUPLE || object->detail != 1 ||
        !(is_key || slice_equal(name, SLICE("list"))))
        return false;
    *out = object->as.list->items[is_key ? 0 : 1];
    return true;
}

bool jinja_get_attribute(JinjaMachine *m, const JinjaValue *object, Slice name, JinjaValue *out)
{
    JinjaValue self = *object; /* out may be the same variable */
    bool found = false;
    if (jinja_is_undefined(&self))
        return jinja_fail_value(m, &self, "has no attributes");
    if (self.kind == JINJA_LOOP) {
        if (!jinja_loop_attribute(m, self.as.loop, name, out, &found) || found)
            return found;
    } else if (self.kind == JINJA_NAMESPACE) {
        JinjaEntry *entry = jinja_dict_get_text(m, self.as.dict, name);
        *out = entry ? entry->value : jinja_undefined_of(&self, name);
        return true;
    } else if (self.kind == JINJA_MACRO) {
        if (!macro_attribute(m, self.as.macro->node, name, out, &found) || found)
            return found;
    } else if (self.kind == JINJA_CYCLER && slice_equal(name, SLICE("current"))) {
        const JinjaList *list = self.as.list; /* the last item is the position */
        *out = list->items[list->items[list->count - 1].as.integer];
        return true;
    }
    if (group_attribute(&self, name, out))
        return true;
    if (!find_method(m, &self, name, out, &found) || found)
        return found;
    JinjaEntry *entry = self.kind == JINJA_DICT ? jinja_dict_get_text(m, self.as.dict, name) : NULL;
    *out = entry ? entry->value : jinja_undefined_of(&self, name);
    return true;
}

static bool index_list(const JinjaList *list, int64_t at, JinjaValue *out)
{
    if (at < 0)
        at += (int64_t)list->count;
    if (at < 0 || (uint64_t)at >= list->count)
        return false;
    *out = list->items[at];
    return true;
}

static bool index_string(JinjaMachine *m, const JinjaValue *string, int64_t at, JinjaValue *out,
                         bool *found)
{
    Slice text = string->as.string;
    *found = false;
    if (at < 0)
        at += (int64_t)utf8_count(text);
    if (!jinja_charge(m, text.len / 64))
        return false;
    if (at < 0 || (uint64_t)at >= text.len)
        return true;
    size_t offset = jinja_text_offset(text, (size_t)at), len;
    if (offset == text.len)
        return true;
    jinja_text_at(text, offset, &len);
    uint32_t markup = string->detail;
    *out = jinja_string((Slice){text.ptr + offset, len});
    out->detail = markup;
    *found = true;
    return true;
}

static bool index_integer(JinjaMachine *m, const JinjaValue *object, int64_t at, JinjaValue *out,
                          bool *found)
{
    *found = false;
    switch (object->kind) {
    case JINJA_LIST:
    case JINJA_TUPLE:
        *found = index_list(object->as.list, at, out);
        return true;
    case JINJA_STRING:
        return index_string(m, object, at, out, found);
    case JINJA_RANGE: {
        int64_t count = (int64_t)object->as.range->count;
        at += at < 0 ? count : 0;
        *found = at >= 0 && at < count;
        if (*found)
            *out = jinja_int((int64_t)((uint64_t)object->as.range->start +
                                       (uint64_t)at * (uint64_t)object->as.range->step));
        return true;
    }
    default:
        return true;
    }
}

bool jinja_get_item(JinjaMachine *m, const JinjaValue *object, const JinjaValue *key,
                    JinjaValue *out)
{
    JinjaValue self = *object, name = *key;
    bool found = false;
    if (jinja_is_undefined(&self))
        return jinja_fail_value(m, &self, "has no items");
    if (self.kind == JINJA_DICT) {
        JinjaEntry *entry = NULL;
        if (name.kind == JINJA_STRING)
            entry = jinja_dict_get_text(m, self.as.dict, name.as.string);
        else if (name.kind != JINJA_LIST && name.kind != JINJA_DICT &&
                 !jinja_dict_get(m, self.as.dict, &name, &entry))
            return false;
        if (entry) {
            *out = entry->value;
            return true;
        }
    } else if (jinja_is_integer(&name)) {
        if (!index_integer(m, &self, jinja_integer_of(&name), out, &found) || found)
            return found;
    }
    if (name.kind == JINJA_STRING) {
        if (self.kind == JINJA_LOOP || self.kind == JINJA_NAMESPACE || self.kind == JINJA_MACRO)
            return jinja_get_attribute(m, &self, name.as.string, out);
        if (group_attribute(&self, name.as.string, out))
            return true;
        if (!find_method(m, &self, name.as.string, out, &found) || found)
            return found;
        *out = jinja_undefined_of(&self, name.as.string);
        return true;
    }
    size_t mark = m->text.len;
    JinjaValue shown;
    if (!jinja_append_repr(m, &m->text, &name) || !jinja_text_finish(m, mark, &shown))
        return false;
    *out = jinja_undefined_of(&self, shown.as.string);
    out->detail = (out->detail & ~0xFFu) | JINJA_MISSING_ELEMENT;
    return true;
}

/* ---- Slices ---- */

/* start, stop and step made to fit a length, as Python's slice.indices(). */
static bool resolve_slice(JinjaMachine *m, const JinjaValue parts[3], int64_t length,
                          int64_t resolved[3])
{
    bool given[3];
    for (size_t i = 0; i < 3; i++) {
        given[i] = parts[i].kind != JINJA_ABSENT && parts[i].kind != JINJA_NONE;
        if (given[i] && !jinja_is_integer(&parts[i]))
            return jinja_fail(m,
                              "slice indices must be integers or None or have an __index__ method");
        resolved[i] = given[i] ? jinja_integer_of(&parts[i]) : 0;
    }
    if (!given[2])
        resolved[2] = 1;
    if (resolved[2] == 0)
        return jinja_fail(m, "slice step cannot be zero");
    bool backward = resolved[2] < 0;
    int64_t low = backward ? -1 : 0, high = backward ? length - 1 : length;
    for (size_t i = 0; i < 2; i++) {
        if (!given[i]) {
            resolved[i] = (i == 0) == backward ? high : low;
            continue;
        }
        if (resolved[i] < 0)
            resolved[i] = resolved[i] < -length ? low : resolved[i] + length;
        else if (resolved[i] > high)
            resolved[i] = high;
        if (resolved[i] < low)
            resolved[i] = low;
    }
    return true;
}

static size_t slice_count(const int64_t resolved[3])
{
    int64_t start = resolved[0], stop = resolved[1], step = resolved[2];
    if (step > 0)
        return start < stop ? ((uint64_t)(stop - start) - 1) / (uint64_t)step + 1 : 0;
    return start > stop ? ((uint64_t)(start - stop) - 1) / (0 - (uint64_t)step) + 1 : 0;
}

static bool slice_list(JinjaMachine *m, const JinjaValue *object, const int64_t resolved[3],
                       JinjaValue *out)
{
    const JinjaList *list = object->as.list;
    size_t count = slice_count(resolved);
    JinjaValue result;
    if (!jinja_charge(m, count) || !jinja_list_new(m, object->kind, count, &result))
        return false;
    for (size_t i = 0; i < count; i++)
        result.as.list->items[i] = list->items[resolved[0] + (int64_t)i * resolved[2]];
    result.as.list->count = count;
    *out = result;
    return true;
}

/* Contiguous parts share the text; others are copied character by character through offsets. */
static bool slice_string(JinjaMachine *m, const JinjaValue *object, const int64_t resolved[3],
                         size_t length, JinjaValue *out)
{
    Slice text = object->as.string;
    size_t count = slice_count(resolved);
    if (count == 0) {
        *out = jinja_string(SLICE_EMPTY);
        return true;
    }
    if (resolved[2] == 1) {
        size_t start = jinja_text_offset(text, (size_t)resolved[0]);
        Slice rest = {text.ptr + start, text.len - start};
        rest.len = (size_t)resolved[1] >= length ? rest.len : jinja_text_offset(rest, count);
        *out = jinja_string(rest);
        return true;
    }
    size_t *offsets = jinja_charge(m, length) ? jinja_allocate(m, length, sizeof(*offsets)) : NULL;
    if (!offsets)
        return false;
    for (size_t i = 0, at = 0, len; i < length; i++, at += len) {
        offsets[i] = at;
        jinja_text_at(text, at, &len);
    }
    size_t mark = m->text.len;
    for (size_t i = 0; i < count; i++) {
        size_t len, at = offsets[resolved[0] + (int64_t)i * resolved[2]];
        jinja_text_at(text, at, &len);
        buffer_append(&m->text, text.ptr + at, len);
    }
    return jinja_text_finish(m, mark, out);
}

bool jinja_get_slice(JinjaMachine *m, const JinjaValue *object, const JinjaValue parts[3],
                     JinjaValue *out)
{
    JinjaValue self = *object;
    size_t length;
    int64_t resolved[3];
    if (jinja_is_undefined(&self))
        return jinja_fail_value(m, &self, "has no items");
    if (self.kind == JINJA_DICT)
        return jinja_fail(m, "unhashable type: 'slice'");
    if (!is_sequence(&self) && self.kind != JINJA_RANGE)
        return jinja_fail(m, "'%s' object is not subscriptable", jinja_type_name(&self));
    if (!jinja_length(&self, &length))
        return jinja_fail_value(m, &self, "has no len()");
    if (!jinja_charge(m, self.kind == JINJA_STRING ? self.as.string.len / 64 : 0) ||
        !resolve_slice(m, parts, (int64_t)length, resolved))
        return false;
    if (self.kind == JINJA_STRING) {
        if (!slice_string(m, &self, resolved, length, out))
            return false;
        out->detail = self.detail;
        return true;
    }
    if (self.kind != JINJA_RANGE)
        return slice_list(m, &self, resolved, out);
    JinjaRange *range = jinja_allocate(m, 1, sizeof(*range));
    if (!range)
        return false;
    const JinjaRange *from = self.as.range;
    *range = (JinjaRange){
        (int64_t)((uint64_t)from->start + (uint64_t)resolved[0] * (uint64_t)from->step),
        (int64_t)((uint64_t)from->start + (uint64_t)resolved[1] * (uint64_t)from->step),
        (int64_t)((uint64_t)from->step * (uint64_t)resolved[2]), slice_count(resolved)};
    *out = (JinjaValue){.kind = JINJA_RANGE, .as.range = range};
    return true;
}
