/* A range of characters becomes ranges of byte sequences by cutting it where the leading "digits"
 * change: UTF-8 bytes and hexadecimal digits alike are numbers in a base, most significant first.
 */
#include "text.h"

#include <stdlib.h>
#include <string.h>

/* ---- Ranges of digit sequences ---- */

typedef struct Digits {
    uint8_t low, high; /* of every digit but the first */
    bool is_hex;       /* digits 0..15 spelled 0-9a-fA-F; else the digit is the byte */
} Digits;

static const Digits UTF8_DIGITS = {0x80, 0xbf, false};
static const Digits HEX_DIGITS = {0, 15, true};

static uint32_t add_digit(Automaton *a, Digits kind, uint8_t low, uint8_t high, uint32_t next)
{
    if (!kind.is_hex)
        return automaton_add_bytes(a, low, high, next);
    uint32_t result = AUTOMATON_FAIL;
    if (low <= 9)
        result = automaton_add_bytes(a, '0' + low, (uint8_t)('0' + (high < 9 ? high : 9)), next);
    if (high >= 10) {
        uint8_t from = (uint8_t)((low > 10 ? low : 10) - 10), to = (uint8_t)(high - 10);
        result =
            automaton_add_either(a, result, automaton_add_bytes(a, 'a' + from, 'a' + to, next));
        result =
            automaton_add_either(a, result, automaton_add_bytes(a, 'A' + from, 'A' + to, next));
    }
    return result;
}

static bool all_are(const uint8_t *digits, size_t n, uint8_t digit)
{
    for (size_t i = 0; i < n; i++) {
        if (digits[i] != digit)
            return false;
    }
    return true;
}

/* Sequences of n digits from low to high, both included, in order of their value. */
static uint32_t add_sequence_range(Automaton *a, Digits kind, const uint8_t *low,
                                   const uint8_t *high, size_t n, uint32_t next)
{
    if (n == 0)
        return next;
    if (low[0] == high[0])
        return add_digit(a, kind, low[0], high[0],
                         add_sequence_range(a, kind, low + 1, high + 1, n - 1, next));
    uint8_t least[4], most[4];
    memset(least, kind.low, sizeof(least));
    memset(most, kind.high, sizeof(most));
    uint8_t from = low[0], to = high[0];
    uint32_t result = AUTOMATON_FAIL;
    if (!all_are(low + 1, n - 1, kind.low)) {
        result =
            add_digit(a, kind, from, from, add_sequence_range(a, kind, low + 1, most, n - 1, next));
        from++;
    }
    if (!all_are(high + 1, n - 1, kind.high)) {
        uint32_t last =
            add_digit(a, kind, to, to, add_sequence_range(a, kind, least, high + 1, n - 1, next));
        result = automaton_add_either(a, result, last);
        to--;
    }
    if (from <= to) {
        uint32_t between = next;
        for (size_t i = 1; i < n; i++)
            between = add_digit(a, kind, kind.low, kind.high, between);
        result = automaton_add_either(a, result, add_digit(a, kind, from, to, between));
    }
    return result;
}

/* \uXXXX with a value from low to high */
static uint32_t add_unicode_escape(Automaton *a, uint32_t low, uint32_t high, uint32_t next)
{
    uint8_t l[4], h[4];
    for (unsigned i = 0; i < 4; i++) {
        l[i] = low >> (12 - 4 * i) & 15;
        h[i] = high >> (12 - 4 * i) & 15;
    }
    return automaton_add_literal(a, SLICE("\\u"), add_sequence_range(a, HEX_DIGITS, l, h, 4, next));
}

/* Two escapes, a surrogate pair; low and high are code points minus 0x10000. */
static uint32_t add_escape_pairs(Automaton *a, uint32_t low, uint32_t high, uint32_t next)
{
    uint32_t l1 = low >> 10, l2 = low & 0x3ff, h1 = high >> 10, h2 = high & 0x3ff;
    if (l1 == h1)
        return add_unicode_escape(a, 0xd800 + l1, 0xd800 + h1,
                                  add_unicode_escape(a, 0xdc00 + l2, 0xdc00 + h2, next));
    uint32_t result = AUTOMATON_FAIL;
    if (l2 > 0)
        result = add_escape_pairs(a, low, l1 << 10 | 0x3ff, next), l1++;
    if (h2 < 0x3ff) {
        result = automaton_add_either(a, result, add_escape_pairs(a, h1 << 10, high, next));
        if (h1 == 0)
            return result;
        h1--;
    }
    if (l1 <= h1)
        result =
            automaton_add_either(a, result,
                                 add_unicode_escape(a, 0xd800 + l1, 0xd800 + h1,
                                                    add_unicode_escape(a, 0xdc00, 0xdfff, next)));
    return result;
}

typedef uint32_t (*AddPart)(Automaton *a, uint32_t low, uint32_t high, uint32_t next);

static uint32_t add_utf8(Automaton *a, uint32_t low, uint32_t high, uint32_t next)
{
    char l[UTF8_MAX], h[UTF8_MAX];
    size_t n = utf8_encode(low, l);
    utf8_encode(high, h);
    return add_sequence_range(a, UTF8_DIGITS, (uint8_t *)l, (uint8_t *)h, n, next);
}

static uint32_t add_spelled(Automaton *a, uint32_t low, uint32_t high, uint32_t next)
{
    uint32_t raw = add_utf8(a, low, high, next);
    return automaton_add_either(a, raw,
                                low < 0x10000
                                    ? add_unicode_escape(a, low, high, next)
                                    : add_escape_pairs(a, low - 0x10000, high - 0x10000, next));
}

/* Cuts [low, high] at the lengths of UTF-8 and around the surrogates. */
static uint32_t add_beyond_ascii(Automaton *a, CharRange range, AddPart add, uint32_t next)
{
    static const CharRange parts[] = {
        {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, CODE_POINT_MAX}};
    uint32_t result = AUTOMATON_FAIL;
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        uint32_t low = range.low > parts[i].low ? range.low : parts[i].low;
        uint32_t high = range.high < parts[i].high ? range.high : parts[i].high;
        if (low <= high)
            result = automaton_add_either(a, result, add(a, low, high, next));
    }
    return result;
}

/* ---- Characters in JSON ---- */

static char short_escape(uint32_t c)
{
    switch (c) {
    case '"':
        return '"';
    case '\\':
        return '\\';
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

/* A character that JSON wants escaped. */
static uint32_t add_escaped(Automaton *a, uint32_t c, uint32_t next)
{
    uint32_t result = AUTOMATON_FAIL;
    char letter = short_escape(c);
    if (letter)
        result = automaton_add_literal(a, (Slice){(char[]){'\\', letter}, 2}, next);
    if (c < 0x20)
        result = automaton_add_either(a, result, add_unicode_escape(a, c, c, next));
    return result;
}

static uint32_t add_ascii_json(Text *text, CharRange r, uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t result = AUTOMATON_FAIL;
    if (r.low == 0 && r.high >= 0x1f) {
        result = text_add_rule(text, TEXT_RULE_CONTROL_JSON, next);
        r.low = 0x20;
    }
    while (r.low <= r.high) {
        uint32_t c = r.low;
        if (c < 0x20 || c == '"' || c == '\\') {
            result = automaton_add_either(a, result, add_escaped(a, c, next));
            r.low++;
            continue;
        }
        if (c == 0x7f) /* writers differ about it as about what is beyond ASCII */
            result = automaton_add_either(a, result, add_unicode_escape(a, c, c, next));
        uint32_t end = c < '"' ? '"' : c < '\\' ? '\\' : c < 0x7f ? 0x7f : 0x80;
        uint32_t last = r.high < end ? r.high : end - 1;
        result = automaton_add_either(a, result,
                                      automaton_add_bytes(a, (uint8_t)c, (uint8_t)last, next));
        r.low = last + 1;
    }
    return result;
}

uint32_t text_add_ranges(Text *text, TextSpelling spelling, const CharRange *ranges, size_t count,
                         uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t result = AUTOMATON_FAIL;
    for (size_t i = 0; i < count; i++) {
        CharRange r = ranges[i];
        if (r.low < 0x80) {
            CharRange ascii = {r.low, r.high < 0x80 ? r.high : 0x7f};
            result = automaton_add_either(
                a, result,
                spelling == TEXT_JSON
                    ? add_ascii_json(text, ascii, next)
                    : automaton_add_bytes(a, (uint8_t)ascii.low, (uint8_t)ascii.high, next));
            r.low = 0x80;
        }
        if (r.low > r.high)
            continue;
        uint32_t beyond;
        if (r.low == 0x80 && r.high == CODE_POINT_MAX)
            beyond = text_add_rule(
                text, spelling == TEXT_JSON ? TEXT_RULE_BEYOND_ASCII_JSON : TEXT_RULE_BEYOND_ASCII,
                next);
        else
            beyond = add_beyond_ascii(a, r, spelling == TEXT_JSON ? add_spelled : add_utf8, next);
        result = automaton_add_either(a, result, beyond);
    }
    return result;
}

uint32_t text_add_json_string(Text *text, Slice s, uint32_t next)
{
    Automaton *a = text->automaton;
    next = automaton_add_bytes(a, '"', '"', next);
    for (size_t end = s.len; end > 0;) {
        size_t at = end - 1;
        while (at > 0 && ((uint8_t)s.ptr[at] & 0xc0) == 0x80)
            at--;
        uint32_t c;
        if (utf8_decode(s.ptr + at, end - at, &c) != end - at)
            return automaton_fail(a, ERROR_INVALID, "a string is not UTF-8");
        next = text_add_ranges(text, TEXT_JSON, &(CharRange){c, c}, 1, next);
        end = at;
    }
    return automaton_add_bytes(a, '"', '"', next);
}

/* ---- Choices ---- */

static int compare_slices(const void *a, const void *b)
{
    return slice_compare(*(const Slice *)a, *(const Slice *)b);
}

static size_t shared_prefix(Slice a, Slice b)
{
    size_t n = 0;
    while (n < a.len && n < b.len && a.ptr[n] == b.ptr[n])
        n++;
    return n;
}

/* Strings are taken in order; `branches` holds, for every depth of the one at hand, the
 * alternatives found so far below its prefix of that length. A depth is closed when the next string
 * leaves it. */
static void close_branches(Automaton *a, uint32_t *branches, Slice s, size_t down_to)
{
    for (size_t depth = s.len; depth > down_to; depth--) {
        uint8_t byte = (uint8_t)s.ptr[depth - 1];
        uint32_t edge = automaton_add_bytes(a, byte, byte, branches[depth]);
        branches[depth] = AUTOMATON_FAIL;
        branches[depth - 1] = automaton_add_either(a, branches[depth - 1], edge);
    }
}

uint32_t text_add_choice(Text *text, Slice *strings, size_t count, uint32_t next)
{
    Automaton *a = text->automaton;
    size_t longest = 0;
    for (size_t i = 0; i < count; i++)
        longest = strings[i].len > longest ? strings[i].len : longest;
    uint32_t *branches = memory_allocate_array(longest + 1, sizeof(*branches));
    if (!branches)
        return automaton_fail(a, ERROR_MEMORY, "out of memory: choices");
    for (size_t i = 0; i <= longest; i++)
        branches[i] = AUTOMATON_FAIL;
    qsort(strings, count, sizeof(*strings), compare_slices);
    for (size_t i = 0; i < count; i++) {
        size_t shared = i > 0 ? shared_prefix(strings[i - 1], strings[i]) : 0;
        if (i > 0 && shared == strings[i].len && shared == strings[i - 1].len)
            continue; /* the same again */
        if (i > 0)
            close_branches(a, branches, strings[i - 1], shared);
        branches[strings[i].len] = automaton_add_either(a, branches[strings[i].len], next);
    }
    if (count > 0)
        close_branches(a, branches, strings[count - 1], 0);
    uint32_t result = branches[0];
    memory_free(branches);
    return result;
}

/* ---- Numbers ---- */

/* [0-9]{min,max}; max SIZE_MAX: no end. */
static uint32_t add_digits(Text *text, size_t min, size_t max, uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t at = next;
    if (max == SIZE_MAX) {
        uint32_t loop = automaton_add_split(a, next, next);
        automaton_set_split(a, loop, automaton_add_bytes(a, '0', '9', loop), next);
        at = loop;
    } else {
        for (size_t i = min; i < max; i++)
            at = automaton_add_split(a, automaton_add_bytes(a, '0', '9', at), next);
    }
    for (size_t i = 0; i < min; i++)
        at = automaton_add_bytes(a, '0', '9', at);
    return at;
}

static uint32_t add_whole(Text *text, bool may_be_negative, uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t at = automaton_add_bytes(a, '1', '9', add_digits(text, 0, SIZE_MAX, next));
    at = automaton_add_split(a, automaton_add_bytes(a, '0', '0', next), at);
    if (may_be_negative)
        at = automaton_add_split(a, automaton_add_bytes(a, '-', '-', at), at);
    return at;
}

uint32_t text_add_integer(Text *text, uint32_t next)
{
    return add_whole(text, true, next);
}

/* [eE] with up to two digits or three that stay within a double's range for a mantissa of one digit
 * before the point. */
static uint32_t add_exponent(Text *text, uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t one = automaton_add_bytes(a, '0', '9', next);
    uint32_t two = automaton_add_bytes(a, '0', '9', one);
    uint32_t up_to_7 = automaton_add_bytes(a, '0', '0', automaton_add_bytes(a, '0', '7', next));
    uint32_t large = automaton_add_either(a, automaton_add_bytes(a, '0', '2', two),
                                          automaton_add_bytes(a, '3', '3', up_to_7));
    uint32_t positive = automaton_add_either(a, add_digits(text, 1, 2, next), large);
    /* Below: 324 is the least that is not 0, but 0 is as finite. */
    uint32_t small = automaton_add_either(a, add_digits(text, 1, 2, next),
                                          automaton_add_bytes(a, '0', '3', two));
    uint32_t at = automaton_add_either(a, positive, automaton_add_bytes(a, '+', '+', positive));
    at = automaton_add_either(a, at, automaton_add_bytes(a, '-', '-', small));
    return automaton_add_either(a, automaton_add_bytes(a, 'e', 'e', at),
                                automaton_add_bytes(a, 'E', 'E', at));
}

uint32_t text_add_number(Text *text, bool may_be_negative, uint32_t next)
{
    Automaton *a = text->automaton;
    uint32_t tail = automaton_add_split(a, add_exponent(text, next), next);
    uint32_t fraction = automaton_add_bytes(a, '.', '.', add_digits(text, 1, SIZE_MAX, tail));
    return add_whole(text, may_be_negative, automaton_add_split(a, fraction, tail));
}

/* ---- Shared rules ---- */

static uint32_t add_char(Text *text, uint32_t next)
{
    Automaton *a = text->automaton;
    static const char escapes[] = "\"\\/bfnrt";
    uint32_t escape = AUTOMATON_FAIL;
    for (const char *e = escapes; *e; e++)
        escape =
            automaton_add_either(a, escape, automaton_add_bytes(a, (uint8_t)*e, (uint8_t)*e, next));
    uint32_t at = automaton_add_bytes(a, '\\', '\\', escape);
    at = automaton_add_either(a, at, add_unicode_escape(a, 0, 0xd7ff, next));
    at = automaton_add_either(a, at, add_unicode_escape(a, 0xe000, 0xffff, next));
    at = automaton_add_either(a, at, add_escape_pairs(a, 0, CODE_POINT_MAX - 0x10000, next));
    at = automaton_add_either(a, at, text_add_rule(text, TEXT_RULE_BEYOND_ASCII, next));
    at = automaton_add_either(a, at, automaton_add_bytes(a, 0x5d, 0x7f, next));
    at = automaton_add_either(a, at, automaton_add_bytes(a, 0x23, 0x5b, next));
    return automaton_add_either(a, at, automaton_add_bytes(a, 0x20, 0x21, next));
}

static uint32_t add_string(Text *text)
{
    Automaton *a = text->automaton;
    uint32_t loop = automaton_add_split(a, AUTOMATON_RETURN, AUTOMATON_RETURN);
    automaton_set_split(a, loop, automaton_add_bytes(a, '"', '"', AUTOMATON_RETURN),
                        add_char(text, loop));
    return automaton_add_bytes(a, '"', '"', loop);
}

/* open (element (, element)*)? close, with space between. */
static uint32_t add_container(Text *text, bool is_object)
{
    Automaton *a = text->automaton;
    uint8_t close = is_object ? '}' : ']';
    uint32_t end = automaton_add_bytes(a, close, close, AUTOMATON_RETURN);
    uint32_t more = automaton_add_split(a, end, end);
    uint32_t element =
        text_add_rule(text, TEXT_RULE_VALUE, text_add_rule(text, TEXT_RULE_SPACE, more));
    if (is_object) {
        uint32_t colon =
            automaton_add_bytes(a, ':', ':', text_add_rule(text, TEXT_RULE_SPACE, element));
        element =
            text_add_rule(text, TEXT_RULE_STRING, text_add_rule(text, TEXT_RULE_SPACE, colon));
    }
    automaton_set_split(
        a, more, end,
        automaton_add_bytes(a, ',', ',', text_add_rule(text, TEXT_RULE_SPACE, element)));
    uint32_t at = text_add_rule(text, TEXT_RULE_SPACE, automaton_add_split(a, end, element));
    return automaton_add_bytes(a, is_object ? '{' : '[', is_object ? '{' : '[', at);
}

static uint32_t add_indent(Automaton *a, uint8_t byte, size_t max)
{
    uint32_t at = AUTOMATON_RETURN;
    for (size_t i = 0; i < max; i++)
        at = automaton_add_split(a, automaton_add_bytes(a, byte, byte, at), AUTOMATON_RETURN);
    return at;
}

static uint32_t add_space(Automaton *a)
{
    uint32_t at = automaton_add_split(a, add_indent(a, ' ', JSON_INDENT_SPACES_MAX),
                                      add_indent(a, '\t', JSON_INDENT_TABS_MAX));
    at = automaton_add_split(a, automaton_add_bytes(a, '\n', '\n', at),
                             automaton_add_bytes(a, ' ', ' ', AUTOMATON_RETURN));
    return automaton_add_split(a, at, AUTOMATON_RETURN);
}

static uint32_t add_value(Text *text)
{
    Automaton *a = text->automaton;
    uint32_t at = text_add_number(text, true, AUTOMATON_RETURN);
    at = automaton_add_either(a, at, text_add_rule(text, TEXT_RULE_STRING, AUTOMATON_RETURN));
    at = automaton_add_either(a, at, text_add_rule(text, TEXT_RULE_OBJECT, AUTOMATON_RETURN));
    at = automaton_add_either(a, at, text_add_rule(text, TEXT_RULE_ARRAY, AUTOMATON_RETURN));
    at = automaton_add_either(a, at, automaton_add_literal(a, SLICE("true"), AUTOMATON_RETURN));
    at = automaton_add_either(a, at, automaton_add_literal(a, SLICE("false"), AUTOMATON_RETURN));
    return automaton_add_either(a, at, automaton_add_literal(a, SLICE("null"), AUTOMATON_RETURN));
}

static uint32_t add_control(Automaton *a)
{
    uint32_t at = add_unicode_escape(a, 0, 0x1f, AUTOMATON_RETURN);
    for (const char *e = "bfnrt"; *e; e++)
        at = automaton_add_either(
            a, at, automaton_add_literal(a, (Slice){(char[]){'\\', *e}, 2}, AUTOMATON_RETURN));
    return at;
}

static uint32_t add_body(Text *text, TextRule rule)
{
    Automaton *a = text->automaton;
    CharRange beyond = {0x80, CODE_POINT_MAX};
    switch (rule) {
    case TEXT_RULE_BEYOND_ASCII:
        return add_beyond_ascii(a, beyond, add_utf8, AUTOMATON_RETURN);
    case TEXT_RULE_BEYOND_ASCII_JSON:
        return add_beyond_ascii(a, beyond, add_spelled, AUTOMATON_RETURN);
    case TEXT_RULE_CONTROL_JSON:
        return add_control(a);
    case TEXT_RULE_CHAR_JSON:
        return add_char(text, AUTOMATON_RETURN);
    case TEXT_RULE_SPACE:
        return add_space(a);
    case TEXT_RULE_STRING:
        return add_string(text);
    case TEXT_RULE_VALUE:
        return add_value(text);
    case TEXT_RULE_OBJECT:
        return add_container(text, true);
    case TEXT_RULE_ARRAY:
        return add_container(text, false);
    case TEXT_RULE_COUNT:
        break;
    }
    return AUTOMATON_FAIL;
}

uint32_t text_get_rule(Text *text, TextRule rule)
{
    if (text->rules[rule] == 0) {
        /* Entered before it is built: values contain values. */
        uint32_t id = automaton_add_rule(text->automaton, SLICE_EMPTY);
        text->rules[rule] = id + 1;
        automaton_set_rule(text->automaton, id, add_body(text, rule));
    }
    return text->rules[rule] - 1;
}

uint32_t text_add_rule(Text *text, TextRule rule, uint32_t next)
{
    return automaton_add_call(text->automaton, text_get_rule(text, rule), next);
}
