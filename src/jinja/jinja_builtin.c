/* Built-ins: binding arguments to parameters, and the global functions. */
#include "jinja_machine.h"

#include <string.h>

enum { RANGE_COUNT_MAX = 100 * 1000 };

/* ---- Binding ---- */

/* The next word of a parameter list, without its '?'. */
static bool next_parameter(const char **list, Slice *name, bool *optional)
{
    while (**list == ' ')
        (*list)++;
    *optional = **list == '?';
    *list += *optional;
    const char *end = *list + strcspn(*list, " ");
    *name = (Slice){*list, (size_t)(end - *list)};
    *list = end;
    return name->len > 0;
}

static bool bind(JinjaMachine *m, JinjaCall *call)
{
    const char *list = call->builtin->parameters;
    const JinjaArguments *given = call->given;
    size_t count = 0, used = 0;
    Slice name;
    bool optional;
    for (; next_parameter(&list, &name, &optional); count++) {
        call->args[count] = count < given->count ? given->items[count] : JINJA_VALUE_ABSENT;
        for (size_t i = 0; i < given->keyword_count; i++) {
            if (!slice_equal(given->keywords[i].name, name))
                continue;
            if (count < given->count)
                return jinja_fail(m, "%s: argument '%.*s' is given twice", call->builtin->name,
                                  SLICE_ARG(name));
            call->args[count] = given->keywords[i].value;
            used++;
        }
        if (!optional && call->args[count].kind == JINJA_ABSENT)
            return jinja_fail(m, "%s: argument '%.*s' is missing", call->builtin->name,
                              SLICE_ARG(name));
    }
    if (given->count > count)
        return jinja_fail(m, "%s takes at most %zu argument(s), %zu given", call->builtin->name,
                          count, given->count);
    if (used < given->keyword_count)
        return jinja_fail(m, "%s got an unexpected keyword argument", call->builtin->name);
    for (; count < JINJA_PARAMETERS_MAX; count++)
        call->args[count] = JINJA_VALUE_ABSENT;
    return true;
}

bool jinja_builtin_call(JinjaMachine *m, const JinjaBuiltin *builtin, const JinjaValue *self,
                        const JinjaArguments *given, JinjaValue *out)
{
    JinjaCall call = {.builtin = builtin, .self = *self, .given = given};
    JinjaValue result = JINJA_VALUE_NONE;
    if (!jinja_charge(m, 1) || (builtin->parameters && !bind(m, &call)) ||
        !builtin->call(m, &call, &result))
        return false;
    if (jinja_is_markup(&call.self) && jinja_is_string_method(builtin))
        jinja_mark_all(&result);
    *out = result;
    return true;
}

bool jinja_arg_integer(JinjaMachine *m, const JinjaCall *call, size_t at, int64_t fallback,
                       int64_t *out)
{
    const JinjaValue *value = &call->args[at];
    *out = fallback;
    if (value->kind == JINJA_ABSENT || value->kind == JINJA_NONE)
        return true;
    if (jinja_is_undefined(value))
        return jinja_fail_value(m, value, "is not a number");
    if (value->kind == JINJA_LONG)
        return jinja_fail(m, "%s: an integer exceeds 64 bits", call->builtin->name);
    if (!jinja_is_integer(value))
        return jinja_fail(m, "%s: '%s' object cannot be interpreted as an integer",
                          call->builtin->name, jinja_type_name(value));
    *out = jinja_integer_of(value);
    return true;
}

bool jinja_arg_string(JinjaMachine *m, const JinjaCall *call, size_t at, Slice fallback, Slice *out)
{
    const JinjaValue *value = &call->args[at];
    *out = fallback;
    if (value->kind == JINJA_ABSENT || (value->kind == JINJA_NONE && fallback.ptr))
        return true;
    if (jinja_is_undefined(value))
        return jinja_fail_value(m, value, "is not a string");
    if (!jinja_is_string(value))
        return jinja_fail(m, "%s: argument must be str, not %s", call->builtin->name,
                          jinja_type_name(value));
    *out = value->as.string;
    return true;
}

bool jinja_arg_truth(const JinjaCall *call, size_t at, bool fallback)
{
    return call->args[at].kind == JINJA_ABSENT ? fallback : jinja_truth(&call->args[at]);
}

/* ---- Global functions ---- */

static bool global_raise_exception(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    (void)out;
    if (!jinja_to_text(m, &call->args[0], &text))
        return false;
    return error_set(m->err, ERROR_INVALID, "%.*s", SLICE_ARG(text));
}

/* range(stop), range(start, stop), range(start, stop, step); the sandbox bounds its length. */
static bool global_range(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t start = 0, stop, step;
    if (!jinja_arg_integer(m, call, 0, 0, &stop))
        return false;
    if (call->args[1].kind != JINJA_ABSENT) {
        start = stop;
        if (!jinja_arg_integer(m, call, 1, 0, &stop))
            return false;
    }
    if (!jinja_arg_integer(m, call, 2, 1, &step))
        return false;
    if (step == 0)
        return jinja_fail(m, "range() arg 3 must not be zero");
    uint64_t span = 0, stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    if (step > 0 && start < stop)
        span = (uint64_t)stop - (uint64_t)start;
    else if (step < 0 && start > stop)
        span = (uint64_t)start - (uint64_t)stop;
    uint64_t count = span == 0 ? 0 : (span - 1) / stride + 1;
    if (count > RANGE_COUNT_MAX)
        return jinja_fail(m, "Range too big. The sandbox blocks ranges larger than %d.",
                          RANGE_COUNT_MAX);
    JinjaRange *range = jinja_allocate(m, 1, sizeof(*range));
    if (!range)
        return false;
    *range = (JinjaRange){start, stop, step, (size_t)count};
    *out = (JinjaValue){.kind = JINJA_RANGE, .as.range = range};
    return true;
}

/* Adds a mapping's entries, or pairs, as dict(x) does. */
static bool add_entries(JinjaMachine *m, const JinjaValue *from, JinjaDict *dict)
{
    JinjaIterator it;
    if (from->kind == JINJA_DICT) {
        for (size_t i = 0; i < from->as.dict->count; i++) {
            if (!jinja_dict_set(m, dict, &from->as.dict->entries[i].key,
                                &from->as.dict->entries[i].value))
                return false;
        }
        return true;
    }
    if (!jinja_iterate(m, from, &it))
        return false;
    for (;;) {
        JinjaValue pair, items;
        bool more;
        if (!jinja_next(m, &it, &pair, &more))
            return false;
        if (!more)
            return true;
        if (!jinja_to_list(m, &pair, &items))
            return false;
        if (items.as.list->count != 2)
            return jinja_fail(m, "dictionary update sequence element has length %zu; 2 is required",
                              items.as.list->count);
        if (!jinja_dict_set(m, dict, &items.as.list->items[0], &items.as.list->items[1]))
            return false;
    }
}

static bool global_dict(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaArguments *given = call->given;
    if (given->count > 1)
        return jinja_fail(m, "%s takes at most 1 positional argument", call->builtin->name);
    if (!jinja_dict_new(m, given->keyword_count, out) ||
        (given->count == 1 && !add_entries(m, &given->items[0], out->as.dict)))
        return false;
    for (size_t i = 0; i < given->keyword_count; i++) {
        JinjaValue key = jinja_string(given->keywords[i].name);
        if (!jinja_dict_set(m, out->as.dict, &key, &given->keywords[i].value))
            return false;
    }
    return true;
}

static bool global_namespace(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    if (!global_dict(m, call, out))
        return false;
    out->kind = JINJA_NAMESPACE;
    for (size_t i = 0; i < out->as.dict->count; i++) {
        const JinjaValue *key = &out->as.dict->entries[i].key;
        if (key->kind == JINJA_STRING && slice_starts_with(key->as.string, SLICE("_")))
            return jinja_fail(m, "namespace attributes cannot begin with an underscore: '%.*s'",
                              SLICE_ARG(key->as.string));
    }
    return true;
}

/* The values in a list, followed by the position of the next. */
static bool global_cycler(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue position = jinja_int(0);
    if (call->given->count == 0)
        return jinja_fail(m, "at least one item has to be provided");
    if (!jinja_list_new(m, JINJA_CYCLER, call->given->count + 1, out))
        return false;
    for (size_t i = 0; i < call->given->count; i++) {
        if (!jinja_list_append(m, out->as.list, &call->given->items[i]))
            return false;
    }
    return jinja_list_append(m, out->as.list, &position);
}

static bool global_joiner(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue used = jinja_bool(false), separator = call->args[0];
    if (separator.kind == JINJA_ABSENT)
        separator = jinja_string(SLICE(", "));
    return jinja_list_new(m, JINJA_JOINER, 2, out) &&
           jinja_list_append(m, out->as.list, &separator) &&
           jinja_list_append(m, out->as.list, &used);
}

const JinjaBuiltin *jinja_global_at(size_t at)
{
    static const JinjaBuiltin globals[] = {
        {"raise_exception", "message", global_raise_exception},
        {"strftime_now", "format", jinja_strftime_now},
        {"range", "start ?stop ?step", global_range},
        {"dict", NULL, global_dict},
        {"namespace", NULL, global_namespace},
        {"cycler", NULL, global_cycler},
        {"joiner", "?sep", global_joiner},
    };
    return at < ARRAY_COUNT(globals) ? &globals[at] : NULL;
}
