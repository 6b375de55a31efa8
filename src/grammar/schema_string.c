/* Strings by length alone are a chain of calls of "one character"; with a pattern or a format they
 * are a product of automata over characters, made once for equal conditions. */
#include "schema.h"

#include "regex.h"

#include <string.h>

/* Formats that are enforced, as regular expressions of the whole string. Days fit their months and
 * years; hosts of e-mail addresses are names of letters, digits and inner hyphens. */
#define DATE_31 "(0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])"
#define DATE_30 "(0[469]|11)-(0[1-9]|[12]\\d|30)"
#define DATE_28 "02-(0[1-9]|1\\d|2[0-8])"
#define YEAR "(000[1-9]|00[1-9]\\d|0[1-9]\\d\\d|[1-9]\\d{3})"
#define LEAP_DIGITS "(0[48]|[2468][048]|[13579][26])"
#define LEAP_DAY "(\\d\\d" LEAP_DIGITS "|" LEAP_DIGITS "00)-02-29"
#define DATE "(" YEAR "-(" DATE_31 "|" DATE_30 "|" DATE_28 ")|" LEAP_DAY ")"
#define TIME "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
#define OCTET "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
#define LABEL "[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"

static const struct Format {
    const char *name, *regex;
} FORMATS[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "[Tt]" TIME},
    {"uuid", "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"},
    {"ipv4", OCTET "(\\." OCTET "){3}"},
    {"email", ATOM "(\\." ATOM ")*@" LABEL "(\\." LABEL ")*"},
};

static const struct Format *find_format(Slice name)
{
    for (size_t i = 0; i < ARRAY_COUNT(FORMATS); i++) {
        if (slice_equal(slice_of(FORMATS[i].name), name))
            return &FORMATS[i];
    }
    return NULL;
}

bool schema_format_is_enforced(Slice format)
{
    return find_format(format) != NULL;
}

/* The n-th condition (0: pattern, 1: format) of one schema; an empty slice when there is none. */
static Slice condition_regex(const JsonValue *schema, unsigned n, RegexMode *mode)
{
    const JsonValue *value = json_get(schema, n == 0 ? SLICE("pattern") : SLICE("format"));
    *mode = n == 0 ? REGEX_SEARCH : REGEX_WHOLE;
    if (!value)
        return SLICE_EMPTY;
    if (n == 0) /* not a NULL slice, though it may be empty */
        return value->as.string.ptr ? value->as.string : SLICE("");
    const struct Format *format = find_format(value->as.string);
    return format ? slice_of(format->regex) : SLICE_EMPTY;
}

static bool prefix_place(SchemaCompiler *c, const SchemaPlace *place, unsigned n)
{
    char where[SCHEMA_PLACE_BYTES_MAX];
    schema_print_place(place, n == 0 ? "pattern" : "format", where);
    return error_prefix(c->err, "%s", where);
}

/* *found is false when there is no such condition. */
static bool condition(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place,
                      unsigned n, CharDfa *out, bool *found)
{
    RegexMode mode;
    Slice regex = condition_regex(schema, n, &mode);
    *out = (CharDfa){0};
    *found = regex.ptr != NULL;
    return !*found || regex_compile(regex, mode, out, c->err) || prefix_place(c, place, n);
}

static bool add_only_condition(SchemaCompiler *c, SchemaList list, uint32_t next, uint32_t *out)
{
    *out = AUTOMATON_FAIL;
    for (size_t i = 0; i < 2 * list.count; i++) {
        const SchemaMember *member = &list.members[i / 2];
        RegexMode mode;
        Slice regex = condition_regex(member->schema, i % 2, &mode);
        if (!regex.ptr)
            continue;
        if (regex_add(c->text, regex, mode, TEXT_JSON, next, out, c->err))
            return true;
        c->automaton->failed = true;
        return prefix_place(c, member->place, i % 2);
    }
    return true;
}

/* Multiplies *product by factor, which is used up. An empty product has no states. */
static bool multiply_by(CharDfa *product, CharDfa *factor, Error *err)
{
    bool is_empty, ok = true;
    if (product->n_states == 0) {
        *product = *factor;
    } else {
        CharDfa both;
        ok = char_dfa_multiply(product, factor, &both, err);
        char_dfa_reset(product);
        char_dfa_reset(factor);
        if (ok)
            *product = both;
    }
    *factor = (CharDfa){0};
    return ok && char_dfa_trim(product, &is_empty, err);
}

bool schema_string_fits(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place,
                        Slice s, bool *fits)
{
    *fits = true;
    for (unsigned n = 0; n < 2; n++) {
        CharDfa dfa;
        bool found;
        if (!condition(c, schema, place, n, &dfa, &found))
            return false;
        if (found && !char_dfa_accepts(&dfa, s))
            *fits = false;
        char_dfa_reset(&dfa);
    }
    return true;
}

static bool all_conditions(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                           CharDfa *out)
{
    *out = (CharDfa){0};
    CharDfa one;
    bool found, ok = true;
    for (size_t i = 0; ok && i < 2 * list.count; i++) {
        const SchemaMember *member = &list.members[i / 2];
        ok = condition(c, member->schema, member->place, i % 2, &one, &found);
        if (ok && found)
            ok = multiply_by(out, &one, c->err);
    }
    if (ok && (limits->min_length > 0 || limits->max_length != SIZE_MAX))
        ok = char_dfa_of_length(limits->min_length, limits->max_length, &one, c->err) &&
             multiply_by(out, &one, c->err);
    if (!ok) {
        char_dfa_reset(out);
        c->automaton->failed = true;
    }
    return ok;
}

/* Everything that decides about the automaton, written down. */
static bool condition_key(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                          Slice *out)
{
    Buffer key;
    buffer_init(&key, SIZE_MAX);
    buffer_append_format(&key, "%zu,%zu", limits->min_length, limits->max_length);
    for (size_t i = 0; i < 2 * list.count; i++) {
        const JsonValue *value =
            json_get(list.members[i / 2].schema, i % 2 == 0 ? SLICE("pattern") : SLICE("format"));
        if (!value)
            continue;
        buffer_append_format(&key, "%c%zu:", i % 2 == 0 ? 'p' : 'f', value->as.string.len);
        buffer_append_slice(&key, value->as.string);
    }
    bool ok = !key.failed && arena_copy_slice(&c->arena, buffer_view(&key), out);
    buffer_reset(&key);
    if (!ok)
        automaton_fail(c->automaton, ERROR_LIMIT, "the schema needs too much memory");
    return ok;
}

static uint32_t add_conditions(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                               uint32_t next)
{
    Automaton *a = c->automaton;
    Slice key;
    CharDfa dfa;
    if (!condition_key(c, list, limits, &key))
        return AUTOMATON_FAIL;
    for (size_t i = 0; i < c->n_string_rules; i++) {
        if (slice_equal(c->string_rules[i].key, key))
            return automaton_add_call(a, c->string_rules[i].rule, next);
    }
    uint32_t rule = automaton_add_rule(a, SLICE_EMPTY);
    uint32_t body, end = automaton_add_bytes(a, '"', '"', AUTOMATON_RETURN);
    if (limits->n_string_rules == 1 && limits->min_length == 0 && limits->max_length == SIZE_MAX) {
        if (!add_only_condition(c, list, end, &body))
            return AUTOMATON_FAIL;
    } else {
        if (!all_conditions(c, list, limits, &dfa))
            return AUTOMATON_FAIL;
        body = char_dfa_add(c->text, &dfa, TEXT_JSON, end);
        char_dfa_reset(&dfa);
    }
    automaton_set_rule(a, rule, automaton_add_bytes(a, '"', '"', body));
    if (!memory_grow_array((void **)&c->string_rules, c->n_string_rules, &c->string_rules_capacity,
                           sizeof(*c->string_rules)))
        return automaton_fail(a, ERROR_MEMORY, "out of memory: schema");
    c->string_rules[c->n_string_rules++] = (SchemaStringRule){key, rule};
    return automaton_add_call(a, rule, next);
}

static uint32_t add_lengths(SchemaCompiler *c, const SchemaLimits *limits, uint32_t next)
{
    Automaton *a = c->automaton;
    uint32_t close = automaton_add_bytes(a, '"', '"', next), at = close;
    if (limits->max_length == SIZE_MAX) {
        at = automaton_add_split(a, close, close);
        automaton_set_split(a, at, close, text_add_rule(c->text, TEXT_RULE_CHAR_JSON, at));
    } else {
        for (size_t i = limits->min_length; i < limits->max_length; i++)
            at = automaton_add_split(a, text_add_rule(c->text, TEXT_RULE_CHAR_JSON, at), close);
    }
    for (size_t i = 0; i < limits->min_length; i++)
        at = text_add_rule(c->text, TEXT_RULE_CHAR_JSON, at);
    return automaton_add_bytes(a, '"', '"', at);
}

uint32_t schema_add_strings(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                            uint32_t next)
{
    if (limits->min_length > limits->max_length) {
        schema_note_contradiction(c, limits->place, "minLength", "above maxLength");
        return AUTOMATON_FAIL;
    }
    if (limits->min_length > SCHEMA_LENGTH_MAX ||
        (limits->max_length != SIZE_MAX && limits->max_length > SCHEMA_LENGTH_MAX)) {
        schema_fail(c, limits->place,
                    limits->min_length > SCHEMA_LENGTH_MAX ? "minLength" : "maxLength",
                    "more than 65536 characters cannot be enforced");
        c->automaton->failed = true;
        return AUTOMATON_FAIL;
    }
    if (limits->n_string_rules > 0)
        return add_conditions(c, list, limits, next);
    if (limits->min_length == 0 && limits->max_length == SIZE_MAX)
        return text_add_rule(c->text, TEXT_RULE_STRING, next);
    return add_lengths(c, limits, next);
}
