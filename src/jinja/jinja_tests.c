/* Tests: what may follow `is`. Each yields a boolean. */
#include "jinja_filters.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

static bool answer(JinjaValue *out, bool holds)
{
    *out = jinja_bool(holds);
    return true;
}

static bool test_defined(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, !jinja_is_undefined(&call->self));
}

static bool test_undefined(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_undefined(&call->self));
}

static bool test_none(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_NONE);
}

static bool test_boolean(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_BOOL);
}

static bool test_true(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_BOOL && call->self.as.boolean);
}

static bool test_false(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_BOOL && !call->self.as.boolean);
}

static bool test_integer(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_INT || call->self.kind == JINJA_LONG);
}

static bool test_float(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_FLOAT);
}

static bool test_number(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_number(&call->self));
}

static bool test_string(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_STRING);
}

static bool test_mapping(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_DICT);
}

static bool test_sequence(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    JinjaKind kind = call->self.kind;
    return answer(out, (kind >= JINJA_STRING && kind <= JINJA_RANGE) || kind == JINJA_UNDEFINED);
}

static bool test_iterable(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_iterable(&call->self));
}

static bool test_callable(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_callable(&call->self) && call->self.kind != JINJA_CYCLER);
}

static bool test_escaped(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, call->self.kind == JINJA_STRING && call->self.detail);
}

/* self % divisor == rest */
static bool has_remainder(JinjaMachine *m, const JinjaValue *self, const JinjaValue *divisor,
                          int64_t rest, JinjaValue *out)
{
    JinjaValue remainder, expected = jinja_int(rest);
    bool equal;
    if (!jinja_operate(m, TOKEN_MOD, self, divisor, &remainder) ||
        !jinja_equal(m, &remainder, &expected, &equal))
        return false;
    return answer(out, equal);
}

static bool test_odd(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue two = jinja_int(2);
    return has_remainder(m, &call->self, &two, 1, out);
}

static bool test_even(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue two = jinja_int(2);
    return has_remainder(m, &call->self, &two, 0, out);
}

static bool test_divisibleby(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return has_remainder(m, &call->self, &call->args[0], 0, out);
}

static bool has_case(JinjaMachine *m, const JinjaCall *call, utf8proc_category_t wanted,
                     utf8proc_category_t refused, JinjaValue *out)
{
    Slice text;
    bool cased = false;
    size_t len;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 8))
        return false;
    for (size_t at = 0; at < text.len; at += len) {
        utf8proc_category_t category = jinja_case_of(jinja_text_at(text, at, &len));
        if (category == refused || category == UTF8PROC_CATEGORY_LT)
            return answer(out, false);
        cased |= category == wanted;
    }
    return answer(out, cased);
}

static bool test_lower(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return has_case(m, call, UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LU, out);
}

static bool test_upper(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return has_case(m, call, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LL, out);
}

static bool test_sameas(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaValue *a = &call->self, *b = &call->args[0];
    bool same = a->kind == b->kind;
    if (same &&
        (a->kind <= JINJA_STRING)) { /* Python shares small scalars; equal ones count as one */
        if (!jinja_equal(m, a, b, &same))
            return false;
    } else if (same) {
        same = a->as.list == b->as.list;
    }
    return answer(out, same);
}

static bool test_in(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    bool found;
    return jinja_contains(m, &call->args[0], &call->self, &found) && answer(out, found);
}

static bool test_eq(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    bool equal;
    return jinja_equal(m, &call->self, &call->args[0], &equal) && answer(out, equal);
}

static bool test_ne(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    bool equal;
    return jinja_equal(m, &call->self, &call->args[0], &equal) && answer(out, !equal);
}

static bool test_lt(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int order;
    return jinja_compare(m, &call->self, &call->args[0], "<", &order) && answer(out, order == -1);
}

static bool test_le(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int order;
    return jinja_compare(m, &call->self, &call->args[0], "<=", &order) &&
           answer(out, order == -1 || order == 0);
}

static bool test_gt(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int order;
    return jinja_compare(m, &call->self, &call->args[0], ">", &order) && answer(out, order == 1);
}

static bool test_ge(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int order;
    return jinja_compare(m, &call->self, &call->args[0], ">=", &order) &&
           answer(out, order == 1 || order == 0);
}

static bool test_filter(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_string(&call->self) && jinja_filter_find(call->self.as.string));
}

static bool test_test(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    (void)m;
    return answer(out, jinja_is_string(&call->self) && jinja_test_find(call->self.as.string));
}

const JinjaBuiltin *jinja_test_find(Slice name)
{
    static const JinjaBuiltin tests[] = {
        {"defined", "", test_defined},    {"undefined", "", test_undefined},
        {"none", "", test_none},          {"string", "", test_string},
        {"mapping", "", test_mapping},    {"iterable", "", test_iterable},
        {"sequence", "", test_sequence},  {"number", "", test_number},
        {"integer", "", test_integer},    {"float", "", test_float},
        {"boolean", "", test_boolean},    {"true", "", test_true},
        {"false", "", test_false},        {"callable", "", test_callable},
        {"escaped", "", test_escaped},    {"odd", "", test_odd},
        {"even", "", test_even},          {"divisibleby", "num", test_divisibleby},
        {"lower", "", test_lower},        {"upper", "", test_upper},
        {"sameas", "other", test_sameas}, {"in", "seq", test_in},
        {"eq", "other", test_eq},         {"equalto", "other", test_eq},
        {"==", "other", test_eq},         {"ne", "other", test_ne},
        {"!=", "other", test_ne},         {"lt", "other", test_lt},
        {"lessthan", "other", test_lt},   {"<", "other", test_lt},
        {"le", "other", test_le},         {"<=", "other", test_le},
        {"gt", "other", test_gt},         {"greaterthan", "other", test_gt},
        {">", "other", test_gt},          {"ge", "other", test_ge},
        {">=", "other", test_ge},         {"filter", "", test_filter},
        {"test", "", test_test},
    };
    for (size_t i = 0; i < ARRAY_COUNT(tests); i++) {
        if (slice_equal(name, slice_of(tests[i].name)))
            return &tests[i];
    }
    return NULL;
}
