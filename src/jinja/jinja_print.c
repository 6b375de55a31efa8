/* Values to text: Python's str() and repr(), JSON; and numbers from text. */
#include "jinja_filters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

/* ---- Numbers ---- */

enum { FLOAT_DIGITS_MAX = 24 };

/* The shortest digits that read back to value, as 0.DIGITS * 10^point. */
static size_t float_digits(double value, char digits[FLOAT_DIGITS_MAX], int *point)
{
    char text[JSON_NUMBER_TEXT_MAX];
    size_t len = json_format_double(value, text), count = 0;
    bool after_dot = false;
    *point = 0;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '.') {
            after_dot = true;
        } else if (c == 'e' || c == 'E') {
            int64_t exponent = 0;
            jinja_read_integer((Slice){text + i + 1, len - i - 1}, 10, &exponent, NULL);
            *point += (int)exponent;
            break;
        } else if (c >= '0' && c <= '9') {
            if (count == 0 && c == '0') {
                *point -= after_dot;
                continue;
            }
            *point += !after_dot;
            if (count < FLOAT_DIGITS_MAX)
                digits[count++] = c;
        }
    }
    while (count > 0 && digits[count - 1] == '0')
        count--;
    return count;
}

void jinja_append_float(Buffer *out, double value)
{
    char digits[FLOAT_DIGITS_MAX];
    int point;
    if (isnan(value) || isinf(value)) {
        buffer_append_text(out, isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    if (signbit(value))
        buffer_append_byte(out, '-');
    size_t count = float_digits(value, digits, &point);
    if (count == 0) {
        buffer_append_text(out, "0.0");
    } else if (point > 16 || point < -3) {
        buffer_append_byte(out, digits[0]);
        if (count > 1) {
            buffer_append_byte(out, '.');
            buffer_append(out, digits + 1, count - 1);
        }
        buffer_append_format(out, "e%c%02d", point > 0 ? '+' : '-',
                             point > 0 ? point - 1 : 1 - point);
    } else if (point <= 0) {
        buffer_append_text(out, "0.");
        for (int i = point; i < 0; i++)
            buffer_append_byte(out, '0');
        buffer_append(out, digits, count);
    } else {
        for (int i = 0; i < point; i++)
            buffer_append_byte(out, (size_t)i < count ? digits[i] : '0');
        buffer_append_byte(out, '.');
        if ((size_t)point < count)
            buffer_append(out, digits + point, count - (size_t)point);
        else
            buffer_append_byte(out, '0');
    }
}

static Slice strip_space(Slice text)
{
    size_t len;
    while (text.len > 0 && jinja_is_space(jinja_text_at(text, 0, &len)))
        text = (Slice){text.ptr + len, text.len - len};
    while (text.len > 0 && jinja_is_space((unsigned char)text.ptr[text.len - 1]))
        text.len--;
    return text;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'Z')
        return c - 'A' + 10;
    return 99;
}

/* Steps over a base's prefix (0x..); base 0 takes the base from it. */
static void skip_base_prefix(Slice *text, int *base)
{
    if (text->len > 2 && text->ptr[0] == '0') {
        char letter = (char)(text->ptr[1] | 0x20);
        int named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
        if (named != 0 && (*base == named || *base == 0)) {
            *base = named;
            *text = (Slice){text->ptr + 2, text->len - 2};
            if (text->ptr[0] == '_')
                *text = (Slice){text->ptr + 1, text->len - 1};
        }
    }
    if (*base == 0)
        *base = 10;
}

bool jinja_read_integer(Slice text, int base, int64_t *out, bool *beyond)
{
    text = strip_space(text);
    bool negative = text.len > 0 && text.ptr[0] == '-';
    if (negative || (text.len > 0 && text.ptr[0] == '+'))
        text = (Slice){text.ptr + 1, text.len - 1};
    skip_base_prefix(&text, &base);
    uint64_t value = 0, limit = (uint64_t)INT64_MAX + negative;
    bool after_digit = false, fits = true;
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] == '_' && after_digit && i + 1 < text.len) {
            after_digit = false;
            continue;
        }
        uint64_t digit = (uint64_t)digit_of(text.ptr[i]);
        if (digit >= (uint64_t)base)
            return false;
        fits &= value <= (limit - digit) / (uint64_t)base;
        value = fits ? value * (uint64_t)base + digit : 0;
        after_digit = true;
    }
    *out = negative ? (int64_t)(0 - value) : (int64_t)value;
    if (beyond)
        *beyond = after_digit && !fits;
    return after_digit && fits;
}

static bool is_word(Slice text, const char *word)
{
    size_t len = strlen(word);
    if (text.len != len)
        return false;
    for (size_t i = 0; i < len; i++) {
        if ((text.ptr[i] | 0x20) != word[i])
            return false;
    }
    return true;
}

/* Rewritten into JSON's grammar (no leading zeros, digits on both sides of the dot) and read there.
 */
bool jinja_read_float(Slice text, double *out)
{
    enum { TEXT_MAX = 400 };
    char json[TEXT_MAX + 8];
    size_t len = 0, at = 0;
    text = strip_space(text);
    if (text.len == 0)
        return false;
    bool negative = text.ptr[0] == '-';
    at += negative || text.ptr[0] == '+';
    Slice rest = {text.ptr + at, text.len - at};
    if (is_word(rest, "inf") || is_word(rest, "infinity") || is_word(rest, "nan")) {
        *out = is_word(rest, "nan") ? (double)NAN : negative ? -(double)INFINITY : (double)INFINITY;
        return true;
    }
    if (text.len > TEXT_MAX || at == text.len)
        return false;
    while (at + 1 < text.len && text.ptr[at] == '0' && digit_of(text.ptr[at + 1]) < 10)
        at++;
    bool dotted = text.ptr[at] == '.';
    if (dotted && (at + 1 == text.len || digit_of(text.ptr[at + 1]) > 9))
        return false;
    if (negative)
        json[len++] = '-';
    if (dotted)
        json[len++] = '0';
    for (; at < text.len; at++) {
        if (text.ptr[at] == '_' && at > 0 && digit_of(text.ptr[at - 1]) < 10)
            continue;
        json[len++] = text.ptr[at];
        bool digit_follows = at + 1 < text.len && digit_of(text.ptr[at + 1]) < 10;
        if (text.ptr[at] == '.' && !digit_follows)
            json[len++] = '0';
        if (len > TEXT_MAX)
            return false;
    }
    JsonReader reader;
    json_reader_init(&reader, (Slice){json, len}, &(Error){.code = ERROR_NONE});
    if (json_reader_next(&reader) != JSON_TOKEN_NUMBER)
        return false;
    JsonValue value = json_reader_number(&reader);
    if (json_reader_next(&reader) != JSON_TOKEN_END)
        return false;
    *out = json_to_double(&value);
    if (negative && *out == 0)
        *out = -0.0; /* "-0" is an integer to JSON */
    return true;
}

/* ---- Strings ---- */

static void append_quoted(Buffer *out, Slice text)
{
    bool single = text.len > 0 && memchr(text.ptr, '\'', text.len);
    bool twofold = text.len > 0 && memchr(text.ptr, '"', text.len);
    char quote = single && !twofold ? '"' : '\'';
    buffer_append_byte(out, quote);
    size_t len;
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        if (c == (unsigned char)quote || c == '\\')
            buffer_append(out, (const char[]){'\\', (char)c}, 2);
        else if (c == '\n' || c == '\r' || c == '\t')
            buffer_append_text(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (jinja_is_printable(c))
            buffer_append(out, text.ptr + at, len);
        else
            buffer_append_format(out,
                                 c < 0x100     ? "\\x%02x"
                                 : c < 0x10000 ? "\\u%04x"
                                               : "\\U%08x",
                                 c);
    }
    buffer_append_byte(out, quote);
}

/* ---- str and repr ---- */

static bool append_repr_at(JinjaMachine *m, Buffer *out, const JinjaValue *value, unsigned depth);

static bool append_items(JinjaMachine *m, Buffer *out, const JinjaValue *value, unsigned depth)
{
    const JinjaList *list = value->as.list;
    bool tuple = value->kind == JINJA_TUPLE;
    buffer_append_byte(out, tuple ? '(' : '[');
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0)
            buffer_append_text(out, ", ");
        if (!append_repr_at(m, out, &list->items[i], depth + 1))
            return false;
    }
    if (tuple && list->count == 1)
        buffer_append_byte(out, ',');
    buffer_append_byte(out, tuple ? ')' : ']');
    return true;
}

static bool append_entries(JinjaMachine *m, Buffer *out, const JinjaDict *dict, unsigned depth)
{
    buffer_append_byte(out, '{');
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            buffer_append_text(out, ", ");
        if (!append_repr_at(m, out, &dict->entries[i].key, depth + 1))
            return false;
        buffer_append_text(out, ": ");
        if (!append_repr_at(m, out, &dict->entries[i].value, depth + 1))
            return false;
    }
    buffer_append_byte(out, '}');
    return true;
}

static bool append_view(JinjaMachine *m, Buffer *out, const JinjaValue *view, unsigned depth)
{
    static const char *const names[] = {"dict_keys(", "dict_values(", "dict_items("};
    JinjaValue list;
    if (!jinja_to_list(m, view, &list))
        return false;
    buffer_append_text(out, names[view->detail]);
    if (!append_items(m, out, &list, depth))
        return false;
    buffer_append_byte(out, ')');
    return true;
}

static void append_range(Buffer *out, const JinjaRange *range)
{
    buffer_append_format(out, "range(%lld, %lld", (long long)range->start, (long long)range->stop);
    if (range->step != 1)
        buffer_append_format(out, ", %lld", (long long)range->step);
    buffer_append_byte(out, ')');
}

static bool append_repr_at(JinjaMachine *m, Buffer *out, const JinjaValue *value, unsigned depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of printed values", JINJA_VALUE_DEPTH_MAX);
    if (out->failed && out->over_limit)
        return jinja_fail_limit(m, "output bytes", out->max);
    if (!jinja_charge(m, 1 + (value->kind == JINJA_STRING ? value->as.string.len / 32 : 0)))
        return false;
    switch (value->kind) {
    case JINJA_UNDEFINED:
        buffer_append_text(out, "Undefined");
        return true;
    case JINJA_NONE:
        buffer_append_text(out, "None");
        return true;
    case JINJA_BOOL:
        buffer_append_text(out, value->as.boolean ? "True" : "False");
        return true;
    case JINJA_INT:
        buffer_append_format(out, "%lld", (long long)value->as.integer);
        return true;
    case JINJA_LONG:
        buffer_append_slice(out, value->as.string);
        return true;
    case JINJA_FLOAT:
        jinja_append_float(out, value->as.number);
        return true;
    case JINJA_STRING:
        buffer_append_text(out, value->detail ? "Markup(" : "");
        append_quoted(out, value->as.string);
        buffer_append_text(out, value->detail ? ")" : "");
        return true;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return append_items(m, out, value, depth);
    case JINJA_DICT:
        return append_entries(m, out, value->as.dict, depth);
    case JINJA_NAMESPACE:
        buffer_append_text(out, "<Namespace ");
        if (!append_entries(m, out, value->as.dict, depth))
            return false;
        buffer_append_byte(out, '>');
        return true;
    case JINJA_VIEW:
        return append_view(m, out, value, depth);
    case JINJA_RANGE:
        append_range(out, value->as.range);
        return true;
    case JINJA_MACRO:
        buffer_append_text(out, "<Macro ");
        if (value->as.macro->node->text.len > 0)
            append_quoted(out, value->as.macro->node->text);
        else
            buffer_append_text(out, "anonymous"); /* the body of a call block */
        buffer_append_byte(out, '>');
        return true;
    default:
        buffer_append_format(out, "<%s object>", jinja_type_name(value));
        return true;
    }
}

bool jinja_append_repr(JinjaMachine *m, Buffer *out, const JinjaValue *value)
{
    return append_repr_at(m, out, value, 0);
}

bool jinja_append_text(JinjaMachine *m, Buffer *out, const JinjaValue *value)
{
    if (value->kind == JINJA_UNDEFINED)
        return true;
    if (value->kind != JINJA_STRING)
        return append_repr_at(m, out, value, 0);
    buffer_append_slice(out, value->as.string);
    return jinja_charge(m, value->as.string.len / 256);
}

bool jinja_to_text(JinjaMachine *m, const JinjaValue *value, Slice *out)
{
    JinjaValue text;
    if (value->kind == JINJA_STRING) {
        *out = value->as.string;
        return true;
    }
    size_t mark = m->text.len;
    if (!jinja_append_text(m, &m->text, value) || !jinja_text_finish(m, mark, &text))
        return false;
    *out = text.as.string;
    return true;
}

/* ---- JSON ---- */

typedef struct JsonStyle {
    bool ascii, indented, sorted;
    Slice indent, item_separator, key_separator;
} JsonStyle;

static bool append_json(JinjaMachine *m, const JsonStyle *style, const JinjaValue *value,
                        unsigned depth);

static void append_json_string(Buffer *out, Slice text, bool ascii)
{
    static const char letters[] = "\"\\\b\f\n\r\t", escapes[] = "\"\\bfnrt";
    buffer_append_byte(out, '"');
    size_t len;
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        const char *letter = c > 0 && c < 0x80 ? strchr(letters, (int)c) : NULL;
        if (letter)
            buffer_append(out, (const char[]){'\\', escapes[letter - letters]}, 2);
        else if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000))
            buffer_append_format(out, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            buffer_append_format(out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                                 0xDC00 + ((c - 0x10000) & 0x3FF));
        else
            buffer_append(out, text.ptr + at, len);
    }
    buffer_append_byte(out, '"');
}

static void append_json_break(JinjaMachine *m, const JsonStyle *style, unsigned depth)
{
    if (!style->indented)
        return;
    buffer_append_byte(&m->text, '\n');
    for (unsigned i = 0; i < depth; i++)
        buffer_append_slice(&m->text, style->indent);
}

static bool append_json_array(JinjaMachine *m, const JsonStyle *style, const JinjaList *list,
                              unsigned depth)
{
    buffer_append_byte(&m->text, '[');
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0)
            buffer_append_slice(&m->text, style->item_separator);
        append_json_break(m, style, depth + 1);
        if (!append_json(m, style, &list->items[i], depth + 1))
            return false;
    }
    if (list->count > 0)
        append_json_break(m, style, depth);
    buffer_append_byte(&m->text, ']');
    return true;
}

/* Keys that are numbers, booleans or None are written as strings. */
static bool append_json_key(JinjaMachine *m, const JsonStyle *style, const JinjaValue *key)
{
    if (key->kind == JINJA_STRING) {
        append_json_string(&m->text, key->as.string, style->ascii);
        return true;
    }
    if (!jinja_is_number(key) && key->kind != JINJA_NONE)
        return jinja_fail(m, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(key));
    buffer_append_byte(&m->text, '"');
    if (!append_json(m, style, key, 0))
        return false;
    buffer_append_byte(&m->text, '"');
    return true;
}

/* Entry numbers in key order: an insertion sort, charged, since sort_keys is rare and dicts are
 * small. */
static bool sort_entries(JinjaMachine *m, const JinjaDict *dict, size_t *order)
{
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        for (; at > 0; at--) {
            int relation;
            if (!jinja_compare(m, &dict->entries[i].key, &dict->entries[order[at - 1]].key, "<",
                               &relation))
                return false;
            if (relation != -1)
                break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return true;
}

static bool append_json_object(JinjaMachine *m, const JsonStyle *style, const JinjaDict *dict,
                               unsigned depth)
{
    size_t *order = NULL;
    if (style->sorted) {
        order = jinja_allocate(m, dict->count + 1, sizeof(*order));
        if (!order || !sort_entries(m, dict, order))
            return false;
    }
    buffer_append_byte(&m->text, '{');
    for (size_t i = 0; i < dict->count; i++) {
        const JinjaEntry *entry = &dict->entries[order ? order[i] : i];
        if (i > 0)
            buffer_append_slice(&m->text, style->item_separator);
        append_json_break(m, style, depth + 1);
        if (!append_json_key(m, style, &entry->key))
            return false;
        buffer_append_slice(&m->text, style->key_separator);
        if (!append_json(m, style, &entry->value, depth + 1))
            return false;
    }
    if (dict->count > 0)
        append_json_break(m, style, depth);
    buffer_append_byte(&m->text, '}');
    return true;
}

static bool append_json(JinjaMachine *m, const JsonStyle *style, const JinjaValue *value,
                        unsigned depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail_limit(m, "nesting of printed values", JINJA_VALUE_DEPTH_MAX);
    if (m->text.failed && m->text.over_limit)
        return jinja_fail_limit(m, "output bytes", m->text.max);
    if (!jinja_charge(m, 1 + (value->kind == JINJA_STRING ? value->as.string.len / 32 : 0)))
        return false;
    switch (value->kind) {
    case JINJA_NONE:
        buffer_append_text(&m->text, "null");
        return true;
    case JINJA_BOOL:
        buffer_append_text(&m->text, value->as.boolean ? "true" : "false");
        return true;
    case JINJA_INT:
    case JINJA_LONG:
        return append_repr_at(m, &m->text, value, depth);
    case JINJA_FLOAT:
        if (isnan(value->as.number))
            buffer_append_text(&m->text, "NaN");
        else if (isinf(value->as.number))
            buffer_append_text(&m->text, value->as.number < 0 ? "-Infinity" : "Infinity");
        else
            jinja_append_float(&m->text, value->as.number);
        return true;
    case JINJA_STRING:
        append_json_string(&m->text, value->as.string, style->ascii);
        return true;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return append_json_array(m, style, value->as.list, depth);
    case JINJA_DICT:
        return append_json_object(m, style, value->as.dict, depth);
    default:
        return jinja_fail(m, "Object of type %s is not JSON serializable", jinja_type_name(value));
    }
}

static bool read_indent(JinjaMachine *m, const JinjaValue *indent, JsonStyle *style)
{
    style->indented = true;
    style->item_separator = SLICE(",");
    if (indent->kind == JINJA_STRING) {
        style->indent = indent->as.string;
        return true;
    }
    if (!jinja_is_integer(indent))
        return jinja_fail(m, "tojson: indent must be an integer or a string, not %s",
                          jinja_type_name(indent));
    int64_t width = jinja_integer_of(indent);
    if (width > 1000)
        return jinja_fail_limit(m, "tojson: indent", 1000);
    JinjaValue spaces = jinja_string(SLICE_EMPTY);
    char *text = width > 0 ? jinja_string_new(m, (size_t)width, &spaces) : NULL;
    if (text)
        memset(text, ' ', (size_t)width);
    style->indent = spaces.as.string;
    return width <= 0 || text;
}

/* tojson(ensure_ascii, indent, separators, sort_keys) of Hugging Face: json.dumps, no HTML escapes.
 */
bool jinja_filter_tojson(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JsonStyle style = {.item_separator = SLICE(", "), .key_separator = SLICE(": ")};
    const JinjaValue *indent = &call->args[1], *separators = &call->args[2];
    style.ascii = jinja_arg_truth(call, 0, false);
    style.sorted = jinja_arg_truth(call, 3, false);
    if (indent->kind != JINJA_ABSENT && indent->kind != JINJA_NONE &&
        !read_indent(m, indent, &style))
        return false;
    if (separators->kind == JINJA_LIST || separators->kind == JINJA_TUPLE) {
        const JinjaList *pair = separators->as.list;
        if (pair->count != 2 || !jinja_is_string(&pair->items[0]) ||
            !jinja_is_string(&pair->items[1]))
            return jinja_fail(m, "tojson: separators must be two strings");
        style.item_separator = pair->items[0].as.string;
        style.key_separator = pair->items[1].as.string;
    }
    size_t mark = m->text.len;
    return append_json(m, &style, &call->self, 0) && jinja_text_finish(m, mark, out);
}
