/* Formatting: "%s" % args and "{}".format(args).
 *
 * Both read a specification into one FormatSpec and share what follows: a number or text, made to a
 * precision, then padded to a width. */
#include "jinja_machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 1 << 20, PRECISION_MAX = 200, LONG_DIGITS_MAX = 800, GROUPED_WIDTH_MAX = 1000 };

typedef struct FormatSpec {
    Slice fill;        /* one code point; empty = space */
    char align;        /* '<' '>' '^' '=' or 0 */
    char sign;         /* '+' ' ' or 0 */
    bool alternate;    /* '#' */
    char grouping;     /* ',' '_' or 0 */
    int64_t width;     /* 0 = none */
    int64_t precision; /* -1 = none */
    char type;         /* 0 = by value */
} FormatSpec;

/* ---- Padding and numbers ---- */

static bool append_fill(JinjaMachine *m, const FormatSpec *spec, size_t count)
{
    Slice fill = spec->fill.len ? spec->fill : SLICE(" ");
    for (size_t i = 0; i < count; i++)
        buffer_append_slice(&m->text, fill);
    return jinja_charge(m, count / 16);
}

/* sign_len bytes of text are a sign or prefix, before which '=' does not pad. */
static bool append_padded(JinjaMachine *m, const FormatSpec *spec, Slice text, size_t sign_len,
                          char align)
{
    size_t length = utf8_count(text);
    size_t pad = (size_t)spec->width > length ? (size_t)spec->width - length : 0;
    size_t left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    if (align == '=') {
        buffer_append(&m->text, text.ptr, sign_len);
        text = (Slice){text.ptr + sign_len, text.len - sign_len};
        left = pad;
    }
    if (!append_fill(m, spec, left))
        return false;
    buffer_append_slice(&m->text, text);
    return append_fill(m, spec, pad - left);
}

/* Puts a separator between groups of the first `whole` digits, counted from the last of them. */
static size_t group_digits(char *to, const char *digits, size_t len, size_t whole, char separator,
                           size_t size)
{
    size_t out = 0;
    for (size_t i = 0; i < len; i++) {
        if (separator && i > 0 && i < whole && (whole - i) % size == 0)
            to[out++] = separator;
        to[out++] = digits[i];
    }
    return out;
}

/* digits: of base 10 with whatever follows them, or whole. Where zeros fill the width, they are
 * digits: with separators among them, too. */
static bool append_number(JinjaMachine *m, const FormatSpec *spec, bool negative,
                          const char *prefix, const char *digits, unsigned base)
{
    char text[GROUPED_WIDTH_MAX + 1200], padded[GROUPED_WIDTH_MAX + LONG_DIGITS_MAX + 1];
    size_t len = 0, digit_count = strlen(digits), group = base == 10 ? 3 : 4;
    size_t whole = base == 10 ? strspn(digits, "0123456789") : digit_count;
    if (negative || spec->sign)
        text[len++] = negative ? '-' : spec->sign;
    for (; *prefix; prefix++)
        text[len++] = *prefix;
    size_t sign_len = len;
    if (spec->grouping && whole > 0 && spec->align == '=' && slice_equal(spec->fill, SLICE("0"))) {
        if (spec->width > GROUPED_WIDTH_MAX)
            return jinja_fail_limit(m, "width of a format with groups", GROUPED_WIDTH_MAX);
        size_t zeros = 0, taken = sign_len + digit_count - whole;
        while (taken + whole + zeros + (whole + zeros - 1) / group < (size_t)spec->width)
            padded[zeros++] = '0';
        memcpy(padded + zeros, digits, digit_count);
        digits = padded;
        digit_count += zeros;
        whole += zeros;
    }
    len += group_digits(text + len, digits, digit_count, whole, spec->grouping, group);
    return append_padded(m, spec, (Slice){text, len}, sign_len, spec->align ? spec->align : '>');
}

static bool append_long(JinjaMachine *m, const FormatSpec *spec, const JinjaValue *value)
{
    char digits[LONG_DIGITS_MAX + 1];
    bool negative = jinja_long_sign(value) < 0;
    Slice text = {value->as.string.ptr + negative, value->as.string.len - negative};
    if (spec->type && spec->type != 'd' && spec->type != 'n')
        return jinja_fail(m, "an integer that exceeds 64 bits cannot be formatted with '%c'",
                          spec->type);
    if (text.len > LONG_DIGITS_MAX)
        return jinja_fail_limit(m, "digits of a formatted integer", LONG_DIGITS_MAX);
    memcpy(digits, text.ptr, text.len);
    digits[text.len] = '\0';
    return append_number(m, spec, negative, "", digits, 10);
}

static bool append_integer(JinjaMachine *m, const FormatSpec *spec, const JinjaValue *value)
{
    if (value->kind == JINJA_LONG)
        return append_long(m, spec, value);
    bool negative = jinja_integer_of(value) < 0;
    uint64_t magnitude =
        negative ? 0 - (uint64_t)jinja_integer_of(value) : (uint64_t)jinja_integer_of(value);
    char type = spec->type ? spec->type : 'd';
    char digits[PRECISION_MAX + 72];
    size_t at = sizeof(digits) - 1;
    unsigned base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    const char *letters = type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    digits[at] = '\0';
    do {
        digits[--at] = letters[magnitude % base];
        magnitude /= base;
    } while (magnitude > 0);
    while ((int64_t)(sizeof(digits) - 1 - at) < spec->precision) /* of a % format */
        digits[--at] = '0';
    char prefix[3] = "";
    if (spec->alternate && base != 10) {
        prefix[0] = '0';
        prefix[1] = type;
    }
    return append_number(m, spec, negative, prefix, digits + at, base);
}

static void print_float(char *out, size_t size, const FormatSpec *spec, int precision,
                        double magnitude)
{
    bool full = spec->alternate; /* keeps the point and the zeros behind it */
    switch (spec->type) {
    case 'e':
        snprintf(out, size, full ? "%#.*e" : "%.*e", precision, magnitude);
        break;
    case 'E':
        snprintf(out, size, full ? "%#.*E" : "%.*E", precision, magnitude);
        break;
    case 'g':
    case 'n':
        snprintf(out, size, full ? "%#.*g" : "%.*g", precision, magnitude);
        break;
    case 'G':
        snprintf(out, size, full ? "%#.*G" : "%.*G", precision, magnitude);
        break;
    default:
        snprintf(out, size, full ? "%#.*f" : "%.*f", precision, magnitude);
    }
}

/* Python's float without a type: as "g", but always with a point or an exponent. */
static void print_general(char *out, size_t size, int precision, double magnitude)
{
    precision = precision > 0 ? precision : 1;
    snprintf(out, size, "%.*e", precision - 1, magnitude);
    long exponent = strtol(strchr(out, 'e') + 1, NULL, 10);
    size_t len;
    if (exponent < -4 || exponent >= precision - 1) {
        size_t end = (size_t)(strchr(out, 'e') - out);
        size_t kept = end;
        while (precision > 1 && kept > 0 && out[kept - 1] == '0')
            kept--;
        kept -= kept > 0 && out[kept - 1] == '.';
        memmove(out + kept, out + end, strlen(out + end) + 1);
        return;
    }
    len = (size_t)snprintf(out, size, "%.*g", precision, magnitude);
    if (!strchr(out, '.') && len + 2 < size)
        memcpy(out + len, ".0", 3);
}

static bool append_float_formatted(JinjaMachine *m, const FormatSpec *spec, double value)
{
    char digits[512 + PRECISION_MAX];
    char type = spec->type;
    int precision = spec->precision < 0 ? 6 : (int)spec->precision;
    bool negative = signbit(value) && !isnan(value);
    double magnitude = fabs(value);
    if (type == '%')
        magnitude *= 100;
    if (isnan(value) || isinf(value)) {
        snprintf(digits, sizeof(digits), "%s", isnan(value) ? "nan" : "inf");
    } else if (type == 0 && spec->precision < 0) {
        Buffer text;
        buffer_init(&text, sizeof(digits) - 1);
        jinja_append_float(&text, magnitude);
        bool ok = buffer_check(&text, "number", m->err);
        memcpy(digits, ok ? text.ptr : "", ok ? text.len : 0);
        digits[ok ? text.len : 0] = '\0';
        buffer_reset(&text);
        if (!ok)
            return false;
    } else if (type == 0) {
        print_general(digits, sizeof(digits), precision, magnitude);
    } else {
        print_float(digits, sizeof(digits), spec, precision, magnitude);
    }
    size_t len = strlen(digits);
    if (type == '%' && len + 1 < sizeof(digits))
        memcpy(digits + len, "%", 2);
    return append_number(m, spec, negative, "", digits, 10);
}

static bool append_string(JinjaMachine *m, const FormatSpec *spec, Slice text)
{
    if (spec->precision >= 0)
        text.len = jinja_text_offset(text, (size_t)spec->precision);
    return append_padded(m, spec, text, 0, spec->align ? spec->align : '<');
}

/* ---- % formatting ---- */

typedef struct PercentState {
    const JinjaValue *args; /* tuple: taken in order; dict: by %(name); else one value */
    size_t used;
    bool markup; /* values are escaped */
} PercentState;

static bool next_percent_argument(JinjaMachine *m, PercentState *state, JinjaValue *out)
{
    const JinjaValue *args = state->args;
    size_t count = args->kind == JINJA_TUPLE ? args->as.list->count : 1;
    if (state->used >= count)
        return jinja_fail(m, "not enough arguments for format string");
    *out = args->kind == JINJA_TUPLE ? args->as.list->items[state->used] : *args;
    state->used++;
    return true;
}

/* Digits or '*' at *at. */
static bool read_percent_number(JinjaMachine *m, PercentState *state, Slice format, size_t *at,
                                int64_t *out)
{
    if (*at < format.len && format.ptr[*at] == '*') {
        JinjaValue value;
        (*at)++;
        if (!next_percent_argument(m, state, &value))
            return false;
        if (!jinja_is_integer(&value))
            return jinja_fail(m, "* wants int");
        *out = jinja_integer_of(&value);
        return true;
    }
    for (; *at < format.len && format.ptr[*at] >= '0' && format.ptr[*at] <= '9'; (*at)++) {
        *out = *out * 10 + (format.ptr[*at] - '0');
        if (*out > WIDTH_MAX)
            return jinja_fail_limit(m, "width of a format", WIDTH_MAX);
    }
    return true;
}

/* %c: a string of one character, or a code point. */
static bool append_character(JinjaMachine *m, const FormatSpec *spec, const JinjaValue *value)
{
    char bytes[UTF8_MAX];
    Slice text = SLICE_EMPTY;
    if (jinja_is_integer(value)) {
        int64_t c = jinja_integer_of(value);
        if (c < 0 || c > 0x10FFFF)
            return jinja_fail(m, "%%c arg not in range(0x110000)");
        if (c >= 0xD800 && c < 0xE000)
            return jinja_fail(m, "%%c: a surrogate is no character");
        text = (Slice){bytes, utf8_encode((uint32_t)c, bytes)};
    } else if (value->kind == JINJA_STRING) {
        text = value->as.string;
    }
    if (utf8_count(text) != 1)
        return jinja_fail(m, "%%c requires int or char");
    FormatSpec whole = *spec;
    whole.precision = -1;
    return append_string(m, &whole, text);
}

/* ascii(): what repr() leaves as it is. */
static bool escape_beyond_ascii(JinjaMachine *m, JinjaValue *value)
{
    Slice text = value->as.string;
    size_t mark = m->text.len, len;
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        if (c < 0x80)
            buffer_append_byte(&m->text, (char)c);
        else
            buffer_append_format(&m->text,
                                 c < 0x100     ? "\\x%02x"
                                 : c < 0x10000 ? "\\u%04x"
                                               : "\\U%08x",
                                 (unsigned)c);
    }
    return jinja_charge(m, text.len / 16) && jinja_text_finish(m, mark, value);
}

static bool append_percent_value(JinjaMachine *m, const FormatSpec *given, bool markup,
                                 const JinjaValue *value)
{
    FormatSpec spec = *given;
    Slice text;
    size_t mark = m->text.len;
    JinjaValue made;
    char c = spec.type;
    if (c == 's' || c == 'r' || c == 'a') {
        if (c != 's') {
            if (!jinja_append_repr(m, &m->text, value) || !jinja_text_finish(m, mark, &made) ||
                (c == 'a' && !escape_beyond_ascii(m, &made)))
                return false;
            text = made.as.string;
        } else if (!jinja_to_text(m, value, &text)) {
            return false;
        }
        if (markup && !(c == 's' && jinja_is_markup(value))) {
            made = jinja_string(text);
            if (!jinja_to_markup(m, &made, &made))
                return false;
            text = made.as.string;
        }
        spec.align = spec.align == '<' ? '<' : '>';
        spec.fill = SLICE_EMPTY;
        return append_string(m, &spec, text);
    }
    if (markup && strchr("oxXc", c))
        return jinja_fail(m, "%%%c format: an integer is required, not markup's argument", c);
    if (c == 'c') {
        spec.align = spec.align == '<' ? '<' : '>';
        spec.fill = SLICE_EMPTY;
        return append_character(m, &spec, value);
    }
    if (jinja_is_undefined(value))
        return jinja_fail_value(m, value, "cannot be formatted");
    if (!jinja_is_number(value))
        return jinja_fail(m, "%%%c format: a real number is required, not %s", c,
                          jinja_type_name(value));
    double number;
    if (strchr("eEfFgG", c))
        return jinja_to_float(m, value, &number) && append_float_formatted(m, &spec, number);
    if (value->kind == JINJA_FLOAT && strchr("oxX", c))
        return jinja_fail(m, "%%%c format: an integer is required, not float", c);
    JinjaValue whole = *value;
    if (value->kind == JINJA_FLOAT) {
        if (!isfinite(value->as.number))
            return jinja_fail(m, "cannot convert float %s to integer",
                              isnan(value->as.number) ? "NaN" : "infinity");
        if (!jinja_integer_from_float(m, value->as.number, &whole))
            return false;
    }
    if (c == 'i' || c == 'u')
        spec.type = 'd';
    return append_integer(m, &spec, &whole);
}

/* One conversion after its '%'. */
static bool append_conversion(JinjaMachine *m, PercentState *state, Slice format, size_t *at)
{
    FormatSpec spec = {.precision = -1};
    JinjaValue value = JINJA_VALUE_ABSENT;
    if (*at < format.len && format.ptr[*at] == '(') {
        size_t start = *at + 1;
        while (*at < format.len && format.ptr[*at] != ')')
            (*at)++;
        if (*at == format.len || state->args->kind != JINJA_DICT)
            return jinja_fail(m, "format requires a mapping");
        JinjaEntry *entry =
            jinja_dict_get_text(m, state->args->as.dict, (Slice){format.ptr + start, *at - start});
        if (!entry)
            return jinja_fail(m, "KeyError: '%.*s'", (int)(*at - start), format.ptr + start);
        value = entry->value;
        (*at)++;
    }
    for (; *at < format.len && format.ptr[*at] && strchr("-+ #0", format.ptr[*at]); (*at)++) {
        char flag = format.ptr[*at];
        if (flag == '-')
            spec.align = '<';
        else if (flag == '#')
            spec.alternate = true;
        else if (flag != '0')
            spec.sign = spec.sign == '+' ? '+' : flag;
        else if (spec.align != '<')
            spec.align = '=', spec.fill = SLICE("0");
    }
    if (spec.align == '<')
        spec.fill = SLICE_EMPTY;
    if (!read_percent_number(m, state, format, at, &spec.width))
        return false;
    if (spec.width < 0) {
        spec.align = '<';
        spec.width = spec.width < -WIDTH_MAX ? WIDTH_MAX : -spec.width;
    }
    if (*at < format.len && format.ptr[*at] == '.') {
        (*at)++;
        spec.precision = 0;
        if (!read_percent_number(m, state, format, at, &spec.precision))
            return false;
        spec.precision = spec.precision < 0 ? 0 : spec.precision;
    }
    while (*at < format.len && format.ptr[*at] && strchr("hlL", format.ptr[*at]))
        (*at)++;
    if (*at == format.len)
        return jinja_fail(m, "incomplete format");
    spec.type = format.ptr[(*at)++];
    if (spec.type == '%') {
        buffer_append_byte(&m->text, '%');
        return true;
    }
    if (spec.type == '\0' || !strchr("diouxXeEfFgGcrsa", spec.type))
        return jinja_fail(m, "unsupported format character '%c'", spec.type);
    if (spec.width > WIDTH_MAX || (spec.precision > PRECISION_MAX && !strchr("srac", spec.type)))
        return jinja_fail_limit(m, "precision of a format", PRECISION_MAX);
    if (value.kind == JINJA_ABSENT && !next_percent_argument(m, state, &value))
        return false;
    return append_percent_value(m, &spec, state->markup, &value);
}

bool jinja_format_percent(JinjaMachine *m, const JinjaValue *given, const JinjaValue *args,
                          JinjaValue *out)
{
    PercentState state = {.args = args, .markup = jinja_is_markup(given)};
    Slice format = given->as.string;
    size_t mark = m->text.len;
    for (size_t at = 0; at < format.len;) {
        const char *percent = memchr(format.ptr + at, '%', format.len - at);
        size_t end = percent ? (size_t)(percent - format.ptr) : format.len;
        buffer_append(&m->text, format.ptr + at, end - at);
        at = end + 1;
        if (percent && !append_conversion(m, &state, format, &at))
            return false;
    }
    bool all_used = args->kind == JINJA_DICT || jinja_is_undefined(args) ||
                    args->kind == JINJA_LIST || state.used > 0 ||
                    (args->kind == JINJA_TUPLE && args->as.list->count == 0);
    if (args->kind == JINJA_TUPLE)
        all_used = state.used >= args->as.list->count;
    if (!all_used)
        return jinja_fail(m, "not all arguments converted during string formatting");
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = state.markup;
    return true;
}

/* ---- str.format ---- */

static bool parse_format_spec(JinjaMachine *m, Slice text, FormatSpec *spec)
{
    *spec = (FormatSpec){.precision = -1};
    size_t at = 0, len = 0;
    if (text.len > 0)
        jinja_text_at(text, 0, &len);
    if (len > 0 && len < text.len && strchr("<>^=", text.ptr[len])) {
        spec->fill = (Slice){text.ptr, len};
        spec->align = text.ptr[len];
        at = len + 1;
    } else if (text.len > 0 && text.ptr[0] && strchr("<>^=", text.ptr[0])) {
        spec->align = text.ptr[0];
        at = 1;
    }
    if (at < text.len && (text.ptr[at] == '+' || text.ptr[at] == '-' || text.ptr[at] == ' ')) {
        spec->sign = text.ptr[at] == '-' ? 0 : text.ptr[at];
        at++;
    }
    if (at < text.len && text.ptr[at] == '#') {
        spec->alternate = true;
        at++;
    }
    if (at < text.len && text.ptr[at] == '0') {
        spec->align = spec->align ? spec->align : '=';
        if (spec->fill.len == 0)
            spec->fill = SLICE("0");
        at++;
    }
    PercentState none = {0};
    if (at < text.len && text.ptr[at] != '*' &&
        !read_percent_number(m, &none, text, &at, &spec->width))
        return false;
    if (at < text.len && (text.ptr[at] == ',' || text.ptr[at] == '_'))
        spec->grouping = text.ptr[at++];
    if (at + 1 < text.len && text.ptr[at] == '.' && text.ptr[at + 1] >= '0' &&
        text.ptr[at + 1] <= '9') {
        at++;
        spec->precision = 0;
        if (!read_percent_number(m, &none, text, &at, &spec->precision))
            return false;
    }
    if (at < text.len)
        spec->type = text.ptr[at++];
    if (at != text.len || (spec->type && !strchr("sdxXobeEfFgGnc%", spec->type)))
        return jinja_fail(m, "Invalid format specifier '%.*s'", SLICE_ARG(text));
    if (spec->grouping && spec->type &&
        strchr(spec->grouping == ',' ? "sxXobnc" : "snc", spec->type))
        return jinja_fail(m, "Cannot specify '%c' with '%c'.", spec->grouping, spec->type);
    return true;
}

static bool append_by_spec(JinjaMachine *m, Slice spec_text, const JinjaValue *value)
{
    FormatSpec spec;
    Slice text;
    if (spec_text.len == 0)
        return jinja_append_text(m, &m->text, value);
    if (!parse_format_spec(m, spec_text, &spec))
        return false;
    if (spec.precision > PRECISION_MAX && value->kind != JINJA_STRING)
        return jinja_fail_limit(m, "precision of a format", PRECISION_MAX);
    if (value->kind != JINJA_STRING && !jinja_is_number(value))
        return jinja_fail(m, "unsupported format string passed to %s.__format__",
                          jinja_type_name(value));
    bool as_float = spec.type && strchr("eEfFgG%", spec.type);
    const char *types = value->kind == JINJA_STRING  ? "s"
                        : value->kind == JINJA_FLOAT ? "eEfFgGn%"
                                                     : "bcdoxXneEfFgG%";
    if (spec.type && !strchr(types, spec.type))
        return jinja_fail(m, "Unknown format code '%c' for object of type '%s'", spec.type,
                          jinja_type_name(value));
    double number;
    if (value->kind == JINJA_FLOAT || as_float)
        return jinja_to_float(m, value, &number) && append_float_formatted(m, &spec, number);
    if (value->kind != JINJA_STRING && spec.precision >= 0)
        return jinja_fail(m, "Precision not allowed in integer format specifier");
    if (value->kind != JINJA_STRING)
        return spec.type == 'c' ? append_character(m, &spec, value)
                                : append_integer(m, &spec, value);
    if (spec.sign || spec.alternate || spec.grouping)
        return jinja_fail(m, "sign, '#' and grouping are not allowed in a string format specifier");
    return jinja_to_text(m, value, &text) && append_string(m, &spec, text);
}

/* The part of a field name up to '.' or '['. */
static Slice take_name(Slice *rest)
{
    size_t len = 0;
    while (len < rest->len && rest->ptr[len] != '.' && rest->ptr[len] != '[')
        len++;
    Slice name = {rest->ptr, len};
    *rest = (Slice){rest->ptr + len, rest->len - len};
    return name;
}

/* What the count of automatic fields is once a field was chosen by its number. */
#define FIELDS_BY_NUMBER SIZE_MAX

/* `0`, `name` or nothing, then .attribute and [item] steps. */
static bool resolve_field(JinjaMachine *m, Slice field, const JinjaArguments *given,
                          size_t *automatic, JinjaValue *out)
{
    Slice name = take_name(&field);
    int64_t number;
    *out = JINJA_VALUE_ABSENT;
    if (name.len == 0 || jinja_read_integer(name, 10, &number, NULL)) {
        bool by_number = name.len > 0;
        if (by_number ? *automatic > 0 && *automatic != FIELDS_BY_NUMBER
                      : *automatic == FIELDS_BY_NUMBER)
            return jinja_fail(
                m, "cannot mix automatic field numbering and manual field specification");
        if (by_number)
            *automatic = FIELDS_BY_NUMBER;
        number = name.len == 0 ? (int64_t)(*automatic)++ : number;
        if (number < 0 || (uint64_t)number >= given->count)
            return jinja_fail(m, "Replacement index %lld out of range for positional args tuple",
                              (long long)number);
        *out = given->items[number];
    }
    if (!jinja_charge(m, given->keyword_count / 8))
        return false;
    for (size_t i = 0; out->kind == JINJA_ABSENT && i < given->keyword_count; i++) {
        if (slice_equal(given->keywords[i].name, name))
            *out = given->keywords[i].value;
    }
    if (out->kind == JINJA_ABSENT)
        return jinja_fail(m, "KeyError: '%.*s'", SLICE_ARG(name));
    while (field.len > 0) {
        bool item = field.ptr[0] == '[';
        field = (Slice){field.ptr + 1, field.len - 1};
        if (!item) {
            name = take_name(&field);
            if (!jinja_get_attribute(m, out, name, out))
                return false;
            continue;
        }
        const char *close = field.len ? memchr(field.ptr, ']', field.len) : NULL;
        if (!close)
            return jinja_fail(m, "Missing ']' in format string");
        name = (Slice){field.ptr, (size_t)(close - field.ptr)};
        JinjaValue key =
            jinja_read_integer(name, 10, &number, NULL) ? jinja_int(number) : jinja_string(name);
        if (!jinja_get_item(m, out, &key, out))
            return false;
        field = (Slice){close + 1, field.len - name.len - 1};
    }
    return true;
}

/* Nested fields of a specification ({:>{width}}) one level deep. */
static bool expand_spec(JinjaMachine *m, Slice spec, const JinjaArguments *given, size_t *automatic,
                        Slice *out)
{
    *out = spec;
    if (spec.len == 0 || !memchr(spec.ptr, '{', spec.len))
        return true;
    JinjaValue made, value;
    size_t mark = m->text.len;
    for (size_t at = 0; at < spec.len;) {
        if (spec.ptr[at] != '{') {
            buffer_append_byte(&m->text, spec.ptr[at++]);
            continue;
        }
        const char *close = memchr(spec.ptr + at, '}', spec.len - at);
        if (!close)
            return jinja_fail(m, "expected '}' before end of string");
        Slice field = {spec.ptr + at + 1, (size_t)(close - spec.ptr) - at - 1};
        if (!resolve_field(m, field, given, automatic, &value) ||
            !jinja_append_text(m, &m->text, &value))
            return false;
        at = (size_t)(close - spec.ptr) + 1;
    }
    if (!jinja_text_finish(m, mark, &made))
        return false;
    *out = made.as.string;
    return true;
}

/* A field of markup: what is markup itself takes no specification, all else is escaped. */
static bool append_escaped_by_spec(JinjaMachine *m, Slice spec, const JinjaValue *value)
{
    JinjaValue text;
    size_t mark = m->text.len;
    if (jinja_is_markup(value))
        return spec.len == 0 ? jinja_append_text(m, &m->text, value)
                             : jinja_fail(m, "Unsupported format specification for Markup.");
    return append_by_spec(m, spec, value) && jinja_text_finish(m, mark, &text) &&
           jinja_append_escaped(m, &m->text, text.as.string);
}

/* The inside of one pair of braces: field, !conversion, :specification. */
static bool append_field(JinjaMachine *m, Slice inside, const JinjaArguments *given, bool markup,
                         size_t *automatic)
{
    size_t colon = 0;
    while (colon < inside.len && inside.ptr[colon] != ':' && inside.ptr[colon] != '!')
        colon++;
    Slice field = {inside.ptr, colon}, spec = SLICE_EMPTY;
    char conversion = 0;
    if (colon + 1 < inside.len && inside.ptr[colon] == '!') {
        conversion = inside.ptr[colon + 1];
        colon += 2;
    }
    if (colon < inside.len && inside.ptr[colon] == ':')
        spec = (Slice){inside.ptr + colon + 1, inside.len - colon - 1};
    JinjaValue value;
    if (!resolve_field(m, field, given, automatic, &value) ||
        !expand_spec(m, spec, given, automatic, &spec))
        return false;
    if (conversion == 0)
        return markup ? append_escaped_by_spec(m, spec, &value) : append_by_spec(m, spec, &value);
    JinjaValue text;
    size_t mark = m->text.len;
    bool ok = conversion == 's' ? jinja_append_text(m, &m->text, &value)
                                : jinja_append_repr(m, &m->text, &value);
    return ok && jinja_text_finish(m, mark, &text) &&
           (conversion != 'a' || escape_beyond_ascii(m, &text)) &&
           (markup ? append_escaped_by_spec(m, spec, &text) : append_by_spec(m, spec, &text));
}

bool jinja_format_braces(JinjaMachine *m, const JinjaValue *self, const JinjaArguments *given,
                         JinjaValue *out)
{
    Slice format = self->as.string;
    bool markup = jinja_is_markup(self);
    size_t mark = m->text.len, automatic = 0;
    for (size_t at = 0; at < format.len; at++) {
        char c = format.ptr[at];
        bool twice = at + 1 < format.len && format.ptr[at + 1] == c;
        if ((c != '{' && c != '}') || twice) {
            buffer_append_byte(&m->text, c);
            at += (c == '{' || c == '}');
            continue;
        }
        if (c == '}')
            return jinja_fail(m, "Single '}' encountered in format string");
        size_t start = at + 1;
        unsigned depth = 1;
        while (++at < format.len && depth > 0)
            depth += format.ptr[at] == '{' ? 1u : format.ptr[at] == '}' ? -1u : 0u;
        if (depth > 0)
            return jinja_fail(m, "expected '}' before end of string");
        at--;
        if (!append_field(m, (Slice){format.ptr + start, at - start}, given, markup, &automatic))
            return false;
    }
    return jinja_charge(m, format.len / 16) && jinja_text_finish(m, mark, out);
}
