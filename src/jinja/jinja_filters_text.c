/* Filters over text and numbers. */
#include "jinja_filters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { INDENT_MAX = 1000, PRECISION_MAX = 300 };

/* ---- Text ---- */

static bool filter_string(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    if (call->self.kind == JINJA_STRING) {
        *out = call->self;
        return true;
    }
    if (!jinja_to_text(m, &call->self, &text))
        return false;
    *out = jinja_string(text);
    return true;
}

static bool filter_safe(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    if (!filter_string(m, call, out))
        return false;
    out->detail = 1;
    return true;
}

static bool filter_forceescape(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue plain = call->self;
    plain.detail = plain.kind == JINJA_STRING ? 0 : plain.detail;
    return jinja_to_markup(m, &plain, out);
}

static bool filter_escape(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_to_markup(m, &call->self, out);
}

static bool change_case(JinjaMachine *m, const JinjaCall *call, JinjaCase how, JinjaValue *out)
{
    Slice text;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_text_to_case(m, text, how, out))
        return false;
    out->detail = jinja_is_markup(&call->self);
    return true;
}

static bool filter_upper(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return change_case(m, call, JINJA_CASE_UPPER, out);
}

static bool filter_lower(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return change_case(m, call, JINJA_CASE_LOWER, out);
}

static bool filter_capitalize(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 8))
        return false;
    size_t mark = m->text.len;
    jinja_append_capitalized(&m->text, text);
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = jinja_is_markup(&call->self);
    return true;
}

/* Words are what stands between white space, dashes and opening brackets. */
static bool filter_title(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 8))
        return false;
    size_t mark = m->text.len, len;
    for (size_t at = 0; at < text.len;) {
        size_t end = at;
        bool separator = false;
        for (; end < text.len; end += len) {
            uint32_t c = jinja_text_at(text, end, &len);
            separator = jinja_is_space(c) || (c > 0 && c < 0x80 && strchr("-({[<", (int)c));
            if (separator)
                break;
        }
        if (end > at) { /* unlike str.title(): both parts by themselves */
            size_t first;
            jinja_text_at(text, at, &first);
            jinja_append_case(&m->text, (Slice){text.ptr + at, first}, JINJA_CASE_UPPER);
            jinja_append_case(&m->text, (Slice){text.ptr + at + first, end - at - first},
                              JINJA_CASE_LOWER);
        }
        if (separator) {
            buffer_append(&m->text, text.ptr + end, len);
            end += len;
        }
        at = end;
    }
    return jinja_text_finish(m, mark, out);
}

static bool filter_trim(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text, chars;
    bool by_space = call->args[0].kind == JINJA_ABSENT || call->args[0].kind == JINJA_NONE;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 256) ||
        !jinja_arg_string(m, call, 0, SLICE(""), &chars))
        return false;
    if (by_space)
        text = jinja_text_strip(text, true, true);
    else if (!jinja_text_strip_chars(m, text, chars, true, true, &text))
        return false;
    *out = jinja_string(text);
    out->detail = jinja_is_markup(&call->self);
    return true;
}

/* replace(old, new, count) */
static bool filter_replace(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text, old, replacement;
    int64_t count;
    JinjaValue self = call->self, inserted = call->args[1];
    if (m->autoescape && !jinja_is_markup(&self) &&
        (jinja_is_markup(&call->args[0]) || jinja_is_markup(&inserted)) &&
        !jinja_to_markup(m, &self, &self))
        return false;
    bool markup = m->autoescape && jinja_is_markup(&self);
    if (markup && !jinja_to_markup(m, &inserted, &inserted))
        return false;
    if (!jinja_to_text(m, &self, &text) || !jinja_to_text(m, &call->args[0], &old) ||
        !jinja_to_text(m, &inserted, &replacement) || !jinja_arg_integer(m, call, 2, -1, &count) ||
        !jinja_text_replace(m, text, old, replacement, count, out))
        return false;
    out->detail = markup;
    return true;
}

/* The text of one level: a number of spaces or a string. */
static bool read_indentation(JinjaMachine *m, const JinjaCall *call, Slice *out)
{
    int64_t width;
    if (call->args[0].kind == JINJA_STRING) {
        *out = call->args[0].as.string;
        return true;
    }
    if (!jinja_arg_integer(m, call, 0, 4, &width))
        return false;
    if (width > INDENT_MAX)
        return jinja_fail_limit(m, "indent: width", INDENT_MAX);
    JinjaValue spaces = jinja_string(SLICE_EMPTY);
    char *text = width > 0 ? jinja_string_new(m, (size_t)width, &spaces) : NULL;
    if (text)
        memset(text, ' ', (size_t)width);
    *out = spaces.as.string;
    return width <= 0 || text;
}

/* indent(width, first, blank) */
static bool filter_indent(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice indentation, line, line_break;
    bool first = jinja_arg_truth(call, 1, false), blank = jinja_arg_truth(call, 2, false);
    if (call->self.kind != JINJA_STRING)
        return jinja_fail_value(m, &call->self, "cannot be indented");
    Slice text = call->self.as.string;
    if (!read_indentation(m, call, &indentation) || !jinja_charge(m, text.len / 32))
        return false;
    size_t mark = m->text.len, at = 0;
    bool ended = true; /* the last line was ended by a break: a line follows, though empty */
    if (first)
        buffer_append_slice(&m->text, indentation);
    for (bool is_first = true; ended; is_first = false) {
        if (!jinja_text_next_line(text, &at, &line, &line_break))
            line = line_break = SLICE_EMPTY;
        ended = line_break.len > 0;
        if (!is_first)
            buffer_append_byte(&m->text, '\n');
        if (!is_first && (blank || line.len > 0))
            buffer_append_slice(&m->text, indentation);
        buffer_append_slice(&m->text, line);
        if (!jinja_charge(m, 1 + indentation.len / 64))
            return false;
    }
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = call->self.detail;
    return true;
}

/* truncate(length, killwords, end, leeway) */
static bool filter_truncate(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t length, leeway;
    Slice end;
    size_t count = 0;
    if (!jinja_arg_integer(m, call, 0, 255, &length) ||
        !jinja_arg_string(m, call, 2, SLICE("..."), &end) ||
        !jinja_arg_integer(m, call, 3, 5, &leeway))
        return false;
    if (call->self.kind == JINJA_STRING && !jinja_charge(m, call->self.as.string.len / 64))
        return false;
    if (!jinja_length(&call->self, &count))
        return jinja_fail_value(m, &call->self, "has no len()");
    int64_t end_count = (int64_t)utf8_count(end);
    if (length < end_count || leeway < 0)
        return jinja_fail(m, "expected length >= %lld and leeway >= 0", (long long)end_count);
    *out = call->self;
    if ((int64_t)count <= length || (int64_t)count - length <= leeway)
        return true;
    if (call->self.kind != JINJA_STRING)
        return jinja_fail_value(m, &call->self, "cannot be truncated");
    Slice text = call->self.as.string;
    if (!jinja_charge(m, text.len / 64))
        return false;
    text.len = jinja_text_offset(text, (size_t)(length - end_count));
    if (!jinja_arg_truth(call, 1, false)) {
        size_t space = text.len;
        while (space > 0 && text.ptr[space - 1] != ' ')
            space--;
        text.len = space > 0 ? space - 1 : text.len;
    }
    JinjaValue kept = jinja_string(text), tail = jinja_string(end);
    kept.detail = call->self.detail;
    tail.detail = jinja_is_markup(&call->args[2]);
    return jinja_operate(m, TOKEN_ADD, &kept, &tail, out);
}

static bool filter_center(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    int64_t width;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_arg_integer(m, call, 0, 80, &width) ||
        !jinja_text_center(m, text, width, SLICE(" "), out))
        return false;
    out->detail = jinja_is_markup(&call->self);
    return true;
}

static bool filter_wordcount(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text;
    int64_t count = 0;
    bool inside = false;
    size_t len;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 16))
        return false;
    for (size_t at = 0; at < text.len; at += len) {
        bool word = jinja_is_word(jinja_text_at(text, at, &len));
        count += word && !inside;
        inside = word;
    }
    *out = jinja_int(count);
    return true;
}

/* "%s" | format(x), or with keywords "%(name)s" */
static bool filter_format(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaValue args, format;
    const JinjaArguments *given = call->given;
    if (given->count > 0 && given->keyword_count > 0)
        return jinja_fail(m, "can't handle positional and keyword arguments at the same time");
    if (!filter_string(m, call, &format))
        return false;
    if (given->keyword_count > 0) {
        if (!jinja_dict_new(m, given->keyword_count, &args))
            return false;
        for (size_t i = 0; i < given->keyword_count; i++) {
            JinjaValue key = jinja_string(given->keywords[i].name);
            if (!jinja_dict_set(m, args.as.dict, &key, &given->keywords[i].value))
                return false;
        }
    } else {
        if (!jinja_list_new(m, JINJA_TUPLE, given->count, &args))
            return false;
        for (size_t i = 0; i < given->count; i++) {
            if (!jinja_list_append(m, args.as.list, &given->items[i]))
                return false;
        }
    }
    return jinja_format_percent(m, &format, &args, out);
}

/* Tags and comments go, character references of markup are resolved, runs of blanks become one. */
static bool filter_striptags(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    static const struct {
        const char *reference;
        char character;
    } references[] = {{"&lt;", '<'},  {"&gt;", '>'},   {"&quot;", '"'},
                      {"&#34;", '"'}, {"&#39;", '\''}, {"&amp;", '&'}};
    Slice text;
    if (!jinja_to_text(m, &call->self, &text) || !jinja_charge(m, text.len / 8))
        return false;
    size_t mark = m->text.len, len;
    bool blank = false;
    for (size_t at = 0; at < text.len;) {
        Slice rest = {text.ptr + at, text.len - at};
        bool comment = slice_starts_with(rest, SLICE("<!--"));
        size_t close = SIZE_MAX;
        if (rest.ptr[0] == '<' &&
            !jinja_text_find(m, rest, comment ? SLICE("-->") : SLICE(">"), 1, &close))
            return false;
        if (close != SIZE_MAX) {
            at += close + (comment ? 3 : 1);
            continue;
        }
        uint32_t c = jinja_text_at(rest, 0, &len);
        at += len;
        if (jinja_is_space(c)) {
            blank = m->text.len > mark;
            continue;
        }
        if (blank)
            buffer_append_byte(&m->text, ' ');
        blank = false;
        size_t i = 0;
        while (i < ARRAY_COUNT(references) &&
               !slice_starts_with(rest, slice_of(references[i].reference)))
            i++;
        if (c == '&' && i < ARRAY_COUNT(references)) {
            buffer_append_byte(&m->text, references[i].character);
            at += strlen(references[i].reference) - 1;
        } else {
            buffer_append(&m->text, rest.ptr, len);
        }
    }
    return jinja_text_finish(m, mark, out);
}

static void append_quoted_url(Buffer *out, Slice text, bool query)
{
    static const char hex[] = "0123456789ABCDEF";
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        bool plain = (c < 0x80 && c != 0 && jinja_is_word(c)) || (c && strchr("-.~", c)) ||
                     (c == '/' && !query);
        if (plain) {
            buffer_append_byte(out, (char)c);
        } else if (c == ' ' && query) {
            buffer_append_byte(out, '+');
        } else {
            char escaped[3] = {'%', hex[c >> 4], hex[c & 15]};
            buffer_append(out, escaped, 3);
        }
    }
}

static bool append_url_part(JinjaMachine *m, const JinjaValue *value, bool query)
{
    Slice text;
    if (!jinja_to_text(m, value, &text) || !jinja_charge(m, text.len / 16))
        return false;
    append_quoted_url(&m->text, text, query);
    return true;
}

/* A text, or the pairs of a query. */
static bool filter_urlencode(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    size_t mark = m->text.len;
    JinjaValue list;
    if (call->self.kind == JINJA_STRING || !jinja_is_iterable(&call->self))
        return append_url_part(m, &call->self, false) && jinja_text_finish(m, mark, out);
    JinjaValue pairs = call->self;
    if (pairs.kind == JINJA_DICT) {
        pairs.kind = JINJA_VIEW;
        pairs.detail = JINJA_VIEW_ITEMS;
    }
    if (!jinja_to_list(m, &pairs, &list))
        return false;
    for (size_t i = 0; i < list.as.list->count; i++) {
        JinjaValue pair;
        if (!jinja_to_list(m, &list.as.list->items[i], &pair))
            return false;
        if (pair.as.list->count != 2)
            return jinja_fail(m, "urlencode: expected pairs of key and value");
        if (i > 0)
            buffer_append_byte(&m->text, '&');
        if (!append_url_part(m, &pair.as.list->items[0], true))
            return false;
        buffer_append_byte(&m->text, '=');
        if (!append_url_part(m, &pair.as.list->items[1], true))
            return false;
    }
    return jinja_text_finish(m, mark, out);
}

/* xmlattr(autospace): key="value" pairs, leaving out what is none or undefined */
static bool filter_xmlattr(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    if (call->self.kind != JINJA_DICT)
        return jinja_fail_value(m, &call->self, "is no mapping of attributes");
    size_t mark = m->text.len;
    bool space = jinja_arg_truth(call, 0, true);
    for (size_t i = 0; i < call->self.as.dict->count; i++) {
        const JinjaEntry *entry = &call->self.as.dict->entries[i];
        Slice key;
        if (entry->value.kind == JINJA_NONE || jinja_is_undefined(&entry->value))
            continue;
        if (!jinja_to_text(m, &entry->key, &key))
            return false;
        for (size_t at = 0; at < key.len; at++) {
            if (key.ptr[at] == '\0' || strchr(" \t\n\r\f\v/>=", key.ptr[at]))
                return jinja_fail(m, "Invalid character in attribute name: '%.*s'", SLICE_ARG(key));
        }
        buffer_append_text(&m->text, space ? " " : "");
        space = true;
        if (!jinja_append_as_markup(m, &m->text, &entry->key))
            return false;
        buffer_append_text(&m->text, "=\"");
        if (!jinja_append_as_markup(m, &m->text, &entry->value))
            return false;
        buffer_append_byte(&m->text, '"');
    }
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = m->autoescape;
    return true;
}

/* ---- Numbers ---- */

/* int(default, base): a text that is no integer may be a float; else the default */
static bool filter_int(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaValue *self = &call->self;
    int64_t base, integer = 0;
    double number = (double)NAN;
    bool beyond = false;
    if (jinja_is_undefined(self))
        return jinja_fail_value(m, self, "is no number");
    size_t length = self->kind == JINJA_STRING ? self->as.string.len : 0;
    if (!jinja_arg_integer(m, call, 1, 10, &base) || !jinja_charge(m, length / 16))
        return false;
    *out = *self;
    if (self->kind == JINJA_LONG)
        return true;
    *out = call->args[0].kind == JINJA_ABSENT ? jinja_int(0) : call->args[0];
    if (jinja_is_integer(self)) {
        *out = jinja_int(jinja_integer_of(self));
        return true;
    }
    if (self->kind == JINJA_FLOAT) {
        number = self->as.number;
        if (isinf(number))
            return jinja_fail(m, "cannot convert float infinity to integer");
    } else if (self->kind == JINJA_STRING) {
        bool valid_base = base == 0 || (base >= 2 && base <= 36);
        if (valid_base && jinja_read_integer(self->as.string, (int)base, &integer, &beyond)) {
            *out = jinja_int(integer);
            return true;
        }
        if (beyond)
            return jinja_fail_overflow(m);
        if (!jinja_read_float(self->as.string, &number))
            return true;
    }
    return !isfinite(number) || jinja_integer_from_float(m, number, out);
}

static bool filter_float(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    double number = 0;
    if (call->self.kind == JINJA_STRING && !jinja_charge(m, call->self.as.string.len / 64))
        return false;
    if (jinja_is_undefined(&call->self))
        return jinja_fail_value(m, &call->self, "is no number");
    bool ok = jinja_is_number(&call->self);
    if (!ok)
        ok = call->self.kind == JINJA_STRING && jinja_read_float(call->self.as.string, &number);
    else if (!jinja_to_float(m, &call->self, &number))
        return false;
    *out = ok || call->args[0].kind == JINJA_ABSENT ? jinja_float(number) : call->args[0];
    return true;
}

static bool filter_abs(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    const JinjaValue *self = &call->self;
    if (self->kind == JINJA_FLOAT) {
        *out = jinja_float(fabs(self->as.number));
        return true;
    }
    if (!jinja_is_number(self))
        return jinja_fail_value(m, self, "has no absolute value");
    bool negative =
        self->kind == JINJA_LONG ? jinja_long_sign(self) < 0 : jinja_integer_of(self) < 0;
    return jinja_negate(m, negative, self, out);
}

/* Half to even on the decimal value, which printing does exactly. */
static bool round_float(JinjaMachine *m, double value, int precision, JinjaValue *out)
{
    char text[700];
    double scaled, unit = pow(10.0, -precision);
    if (!isfinite(value)) {
        *out = jinja_float(value);
        return true;
    }
    if (precision < 0) {
        scaled = nearbyint(value / unit) * unit;
        *out = jinja_float(scaled);
        return true;
    }
    int len = snprintf(text, sizeof(text), "%.*f", precision, value);
    if (len < 0 || (size_t)len >= sizeof(text) ||
        !jinja_read_float((Slice){text, (size_t)len}, &scaled))
        return jinja_fail(m, "round: number too long");
    *out = jinja_float(scaled);
    return true;
}

/* round(precision, method) */
static bool filter_round(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t precision;
    Slice method;
    if (!jinja_arg_integer(m, call, 0, 0, &precision) ||
        !jinja_arg_string(m, call, 1, SLICE("common"), &method))
        return false;
    bool common = slice_equal(method, SLICE("common")), up = slice_equal(method, SLICE("ceil"));
    if (!common && !up && !slice_equal(method, SLICE("floor")))
        return jinja_fail(m, "method must be common, ceil or floor");
    if (!jinja_is_number(&call->self))
        return jinja_fail_value(m, &call->self, "cannot be rounded");
    if (precision > PRECISION_MAX || precision < -PRECISION_MAX)
        return jinja_fail_limit(m, "round: precision", PRECISION_MAX);
    double value = jinja_number_of(&call->self);
    if (common && call->self.kind == JINJA_BOOL) {
        *out = jinja_int(call->self.as.boolean);
        return true;
    }
    bool is_float = call->self.kind == JINJA_FLOAT;
    if (common && !is_float) {
        *out = call->self;
        if (precision >= 0)
            return true;
        if (call->self.kind == JINJA_LONG)
            return jinja_fail_overflow(m);
        return jinja_round_integer(m, jinja_integer_of(&call->self), -precision, out);
    }
    if (!is_float && precision >= 0) { /* whole already, at any precision */
        *out = jinja_float(value);
        return jinja_to_float(m, &call->self, &value);
    }
    if (common)
        return round_float(m, value, (int)precision, out);
    double unit = pow(10.0, (double)precision);
    value = up ? ceil(value * unit) : floor(value * unit);
    if (!isfinite(value))
        return jinja_fail(m, "cannot convert float %s to integer",
                          isnan(value) ? "NaN" : "infinity");
    *out = jinja_float((value + 0.0) / unit); /* Python's ceil is an integer: no negative zero */
    return true;
}

/* filesizeformat(binary) */
static bool filter_filesizeformat(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    static const char prefixes[] = "kMGTPEZY";
    bool binary = jinja_arg_truth(call, 0, false);
    double base = binary ? 1024 : 1000, bytes = 0;
    bool ok = jinja_is_number(&call->self);
    if (!ok)
        ok = call->self.kind == JINJA_STRING && jinja_read_float(call->self.as.string, &bytes);
    else if (!jinja_to_float(m, &call->self, &bytes))
        return false;
    if (!ok)
        return jinja_fail_value(m, &call->self, "is no number of bytes");
    size_t mark = m->text.len;
    if (bytes == 1) {
        buffer_append_text(&m->text, "1 Byte");
    } else if (bytes < base) {
        buffer_append_format(&m->text, "%.0f Bytes", trunc(bytes));
    } else {
        size_t i = 0;
        double unit = base * base;
        for (; i + 1 < sizeof(prefixes) - 1 && bytes >= unit; i++)
            unit *= base;
        char prefix = binary && i == 0 ? 'K' : prefixes[i];
        buffer_append_format(&m->text, "%.1f %c%sB", base * bytes / unit, prefix,
                             binary ? "i" : "");
    }
    return jinja_text_finish(m, mark, out);
}

const JinjaBuiltin *jinja_text_filter_find(Slice name)
{
    static const JinjaBuiltin filters[] = {
        {"trim", "?chars", filter_trim},
        {"string", "", filter_string},
        {"safe", "", filter_safe},
        {"escape", "", filter_escape},
        {"e", "", filter_escape},
        {"forceescape", "", filter_forceescape},
        {"lower", "", filter_lower},
        {"upper", "", filter_upper},
        {"capitalize", "", filter_capitalize},
        {"title", "", filter_title},
        {"replace", "old new ?count", filter_replace},
        {"indent", "?width ?first ?blank", filter_indent},
        {"truncate", "?length ?killwords ?end ?leeway", filter_truncate},
        {"center", "?width", filter_center},
        {"wordcount", "", filter_wordcount},
        {"format", NULL, filter_format},
        {"striptags", "", filter_striptags},
        {"urlencode", "", filter_urlencode},
        {"urlize", "?trim_url_limit ?nofollow ?target ?rel ?extra_schemes", jinja_filter_urlize},
        {"wordwrap", "?width ?break_long_words ?wrapstring ?break_on_hyphens",
         jinja_filter_wordwrap},
        {"pprint", "", jinja_filter_pprint},
        {"xmlattr", "?autospace", filter_xmlattr},
        {"int", "?default ?base", filter_int},
        {"float", "?default", filter_float},
        {"abs", "", filter_abs},
        {"round", "?precision ?method", filter_round},
        {"filesizeformat", "?binary", filter_filesizeformat},
    };
    for (size_t i = 0; i < ARRAY_COUNT(filters); i++) {
        if (slice_equal(name, slice_of(filters[i].name)))
            return &filters[i];
    }
    return NULL;
}
