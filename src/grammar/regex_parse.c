/* Recursive descent: alternatives of sequences of quantified atoms. */
#include "regex_tree.h"

#include <stdlib.h>
#include <string.h>

enum { TREE_BYTES_MAX = 16 << 20, RANGES_MAX = 4096 };

typedef struct RegexParser {
    Slice source;
    size_t at;
    unsigned depth;
    RegexTree *tree;
    CharRange ranges[RANGES_MAX]; /* of the class being read */
    size_t n_ranges;
    Error *err;
} RegexParser;

/* ---- Errors and characters ---- */

static bool fail_at(RegexParser *p, ErrorCode code, const char *what)
{
    return error_set(p->err, code, "at offset %zu: %s", p->at, what);
}

static bool invalid(RegexParser *p, const char *what)
{
    return fail_at(p, ERROR_INVALID, what);
}

static bool unsupported(RegexParser *p, const char *what)
{
    return fail_at(p, ERROR_UNSUPPORTED, what);
}

static bool at_end(const RegexParser *p)
{
    return p->at >= p->source.len;
}

static char peek(const RegexParser *p)
{
    return at_end(p) ? '\0' : p->source.ptr[p->at];
}

static bool skip(RegexParser *p, const char *text)
{
    Slice rest = {p->source.ptr + p->at, p->source.len - p->at};
    if (!slice_starts_with(rest, slice_of(text)))
        return false;
    p->at += strlen(text);
    return true;
}

static bool read_char(RegexParser *p, uint32_t *c)
{
    size_t len = utf8_decode(p->source.ptr + p->at, p->source.len - p->at, c);
    if (len == 0)
        return invalid(p, "not UTF-8");
    p->at += len;
    return true;
}

static bool read_hex(RegexParser *p, size_t digits, uint32_t *out)
{
    *out = 0;
    for (size_t i = 0; i < digits; i++, p->at++) {
        int value = hex_digit_value(peek(p));
        if (value < 0)
            return invalid(p, "a hexadecimal digit is missing");
        *out = *out << 4 | (uint32_t)value;
    }
    return true;
}

/* After "\u": XXXX, a surrogate pair, or {X...}. */
static bool read_unicode_escape(RegexParser *p, uint32_t *out)
{
    if (skip(p, "{")) {
        *out = 0;
        size_t digits = 0;
        for (; hex_digit_value(peek(p)) >= 0; p->at++, digits++) {
            *out = *out << 4 | (uint32_t)hex_digit_value(peek(p));
            if (*out > CODE_POINT_MAX)
                return invalid(p, "no such character");
        }
        if (digits == 0 || !skip(p, "}"))
            return invalid(p, "\\u{ needs hexadecimal digits and }");
    } else {
        if (!read_hex(p, 4, out))
            return false;
        uint32_t low;
        if (*out >= 0xd800 && *out < 0xdc00 && skip(p, "\\u")) {
            if (!read_hex(p, 4, &low))
                return false;
            if (low < 0xdc00 || low > 0xdfff)
                return invalid(p, "a lone surrogate");
            *out = 0x10000 + ((*out - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    if (*out >= 0xd800 && *out <= 0xdfff)
        return invalid(p, "a lone surrogate");
    return true;
}

/* ---- Sets ---- */

static bool add_range(RegexParser *p, uint32_t low, uint32_t high)
{
    if (p->n_ranges >= RANGES_MAX)
        return fail_at(p, ERROR_LIMIT, "a class of too many ranges");
    p->ranges[p->n_ranges++] = (CharRange){low, high};
    return true;
}

static int compare_ranges(const void *a, const void *b)
{
    const CharRange *x = a, *y = b;
    return (x->low > y->low) - (x->low < y->low);
}

/* Sorts and joins; complements if asked. */
static size_t normalise(CharRange *ranges, size_t count, bool negate)
{
    qsort(ranges, count, sizeof(*ranges), compare_ranges);
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (n > 0 && ranges[i].low <= (uint64_t)ranges[n - 1].high + 1) {
            if (ranges[i].high > ranges[n - 1].high)
                ranges[n - 1].high = ranges[i].high;
        } else {
            ranges[n++] = ranges[i];
        }
    }
    if (!negate)
        return n;
    uint32_t from = 0;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        CharRange r = ranges[i];
        if (r.low > from)
            ranges[kept++] = (CharRange){from, r.low - 1};
        from = r.high + 1;
    }
    if (from <= CODE_POINT_MAX)
        ranges[kept++] = (CharRange){from, CODE_POINT_MAX}; /* room: n ranges leave n + 1 gaps */
    return kept;
}

static const CharRange DIGITS[] = {{'0', '9'}};
static const CharRange WORDS[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const CharRange SPACES[] = {{9, 13}, {' ', ' '}};
/* What is a space to any of the dialects is matched neither by \S nor by [^\s]. */
static const CharRange ALL_SPACES[] = {{9, 13},          {0x1c, 0x20},     {0x85, 0x85},
                                       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
                                       {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f},
                                       {0x3000, 0x3000}, {0xfeff, 0xfeff}};
static const CharRange LINE_ENDS[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

static bool add_ranges(RegexParser *p, const CharRange *ranges, size_t count, bool negate)
{
    CharRange copy[ARRAY_COUNT(ALL_SPACES) + 1];
    memcpy(copy, ranges, count * sizeof(*ranges));
    count = normalise(copy, count, negate);
    for (size_t i = 0; i < count; i++) {
        if (!add_range(p, copy[i].low, copy[i].high))
            return false;
    }
    return true;
}

/* \d \D \w \W \s \S: true and *found when the letter is one of them. is_negated: in a [^...]. */
static bool add_named_class(RegexParser *p, char letter, bool is_negated, bool *found)
{
    *found = true;
    switch (letter) {
    case 'd':
    case 'D':
        return add_ranges(p, DIGITS, ARRAY_COUNT(DIGITS), letter == 'D');
    case 'w':
    case 'W':
        return add_ranges(p, WORDS, ARRAY_COUNT(WORDS), letter == 'W');
    case 's':
        return is_negated ? add_ranges(p, ALL_SPACES, ARRAY_COUNT(ALL_SPACES), false)
                          : add_ranges(p, SPACES, ARRAY_COUNT(SPACES), false);
    case 'S':
        return add_ranges(p, ALL_SPACES, ARRAY_COUNT(ALL_SPACES), true);
    default:
        *found = false;
        return true;
    }
}

/* An escape that stands for one character; `at` is behind the backslash. */
static bool read_escaped_char(RegexParser *p, bool in_class, uint32_t *out)
{
    if (at_end(p))
        return invalid(p, "a backslash at the end");
    char letter = p->source.ptr[p->at];
    static const char names[] = "tnrfv0", values[] = "\t\n\r\f\v";
    const char *name = letter ? strchr(names, letter) : NULL;
    if (name) {
        p->at++;
        if (letter == '0' && peek(p) >= '0' && peek(p) <= '9')
            return unsupported(p, "octal escapes");
        *out = (uint32_t)values[name - names];
        return true;
    }
    if (letter == 'x' || letter == 'u' || letter == 'c') {
        p->at++;
        if (letter == 'x')
            return read_hex(p, 2, out);
        if (letter == 'u')
            return read_unicode_escape(p, out);
        char control = peek(p);
        if ((control | 0x20) < 'a' || (control | 0x20) > 'z')
            return invalid(p, "\\c needs a letter");
        p->at++;
        *out = (uint32_t)control & 31;
        return true;
    }
    if (letter == 'b' && in_class) {
        p->at++;
        *out = '\b';
        return true;
    }
    if ((letter >= '1' && letter <= '9') || letter == 'k')
        return unsupported(p, "back references");
    if (letter == 'b' || letter == 'B')
        return unsupported(p, "word borders");
    if (letter == 'p' || letter == 'P')
        return unsupported(p, "Unicode properties");
    if ((letter | 0x20) >= 'a' && (letter | 0x20) <= 'z')
        return unsupported(p, "this escape");
    return read_char(p, out); /* any other character stands for itself */
}

static bool keep_set(RegexParser *p, bool negate, uint32_t *out)
{
    if (p->n_ranges + 1 > RANGES_MAX)
        return fail_at(p, ERROR_LIMIT, "a class of too many ranges");
    p->n_ranges = normalise(p->ranges, p->n_ranges, negate);
    RegexTree *tree = p->tree;
    for (size_t i = 0; i < tree->n_sets; i++) {
        if (tree->sets[i].count == p->n_ranges &&
            memcmp(tree->sets[i].ranges, p->ranges, p->n_ranges * sizeof(*p->ranges)) == 0) {
            *out = (uint32_t)i;
            return true;
        }
    }
    if (!memory_grow_array((void **)&tree->sets, tree->n_sets, &tree->sets_capacity,
                           sizeof(*tree->sets)))
        return error_no_memory(p->err, "regular expression");
    CharRange *copy = arena_allocate_array(&tree->arena, p->n_ranges, sizeof(*copy));
    if (!copy)
        return error_no_memory(p->err, "regular expression");
    memcpy(copy, p->ranges, p->n_ranges * sizeof(*copy));
    tree->sets[tree->n_sets] = (RegexSet){copy, p->n_ranges};
    *out = (uint32_t)tree->n_sets++;
    return true;
}

/* One end of a range in a class, or a named class (*is_class). */
static bool read_class_atom(RegexParser *p, bool is_negated, uint32_t *c, bool *is_class)
{
    *is_class = false;
    if (!skip(p, "\\"))
        return read_char(p, c);
    if (!add_named_class(p, peek(p), is_negated, is_class))
        return false;
    if (*is_class) {
        p->at++;
        return true;
    }
    return read_escaped_char(p, true, c);
}

/* Behind '['. */
static bool read_class(RegexParser *p, uint32_t *set)
{
    p->n_ranges = 0;
    bool negate = skip(p, "^");
    for (bool is_first = true;; is_first = false) {
        if (at_end(p))
            return invalid(p, "] is missing");
        if (peek(p) == ']' && !is_first)
            break;
        /* "[]" is the empty class in ECMAScript, and a class of "]" elsewhere. */
        if (peek(p) == ']')
            return unsupported(p, "] first in a class; write \\]");
        if (peek(p) == '[' && p->at + 1 < p->source.len && p->source.ptr[p->at + 1] == ':')
            return unsupported(p, "POSIX classes");
        uint32_t low, high;
        bool low_is_class, high_is_class;
        if (!read_class_atom(p, negate, &low, &low_is_class))
            return false;
        bool is_range =
            peek(p) == '-' && p->at + 1 < p->source.len && p->source.ptr[p->at + 1] != ']';
        if (low_is_class)
            continue; /* a '-' behind it is itself, as in [\w-.] */
        high = low;
        if (is_range) {
            p->at++;
            if (!read_class_atom(p, negate, &high, &high_is_class))
                return false;
            if (high_is_class) { /* the same, as in [a-\d] */
                if (!add_range(p, '-', '-'))
                    return false;
                high = low;
            }
            if (high < low)
                return invalid(p, "a range out of order");
        }
        if (!add_range(p, low, high))
            return false;
    }
    p->at++;
    return keep_set(p, negate, set);
}

/* ---- Expressions ---- */

static RegexNode *make_node(RegexParser *p, RegexKind kind)
{
    RegexNode *node = arena_allocate(&p->tree->arena, sizeof(*node));
    if (!node) {
        error_no_memory(p->err, "regular expression");
        return NULL;
    }
    *node = (RegexNode){.kind = kind};
    return node;
}

static bool parse_alternatives(RegexParser *p, RegexNode **out);

/* Behind '(': only what does not look around. */
static bool skip_group_kind(RegexParser *p)
{
    if (!skip(p, "?"))
        return true;
    if (skip(p, ":"))
        return true;
    if (peek(p) == '=' || peek(p) == '!')
        return unsupported(p, "look-ahead");
    bool is_python = skip(p, "P");
    if (!is_python && p->at + 1 < p->source.len && peek(p) == '<' &&
        strchr("=!", p->source.ptr[p->at + 1]))
        return unsupported(p, "look-behind");
    if (!skip(p, "<"))
        return unsupported(p, "this kind of group");
    while (!at_end(p) && peek(p) != '>')
        p->at++;
    return skip(p, ">") || invalid(p, "> is missing");
}

static bool parse_group(RegexParser *p, RegexNode **out)
{
    if (++p->depth > REGEX_DEPTH_MAX)
        return fail_at(p, ERROR_LIMIT, "groups are nested too deeply");
    if (!skip_group_kind(p) || !parse_alternatives(p, out))
        return false;
    p->depth--;
    return skip(p, ")") || invalid(p, ") is missing");
}

static bool parse_set_escape(RegexParser *p, RegexNode *node)
{
    bool is_class;
    p->n_ranges = 0;
    if (!add_named_class(p, peek(p), false, &is_class))
        return false;
    if (is_class) {
        p->at++;
    } else {
        uint32_t c;
        if (!read_escaped_char(p, false, &c) || !add_range(p, c, c))
            return false;
    }
    return keep_set(p, false, &node->set);
}

static bool parse_atom(RegexParser *p, RegexNode **out)
{
    if (skip(p, "("))
        return parse_group(p, out);
    char c = peek(p);
    *out = make_node(p, c == '^' ? REGEX_BEGIN : c == '$' ? REGEX_END : REGEX_SET);
    if (!*out)
        return false;
    if (skip(p, "^") || skip(p, "$"))
        return true;
    if (skip(p, "["))
        return read_class(p, &(*out)->set);
    if (skip(p, "\\"))
        return parse_set_escape(p, *out);
    p->n_ranges = 0;
    if (skip(p, "."))
        return add_ranges(p, LINE_ENDS, ARRAY_COUNT(LINE_ENDS), true) &&
               keep_set(p, false, &(*out)->set);
    if (c == '*' || c == '+' || c == '?')
        return invalid(p, "nothing to repeat");
    uint32_t code_point;
    return read_char(p, &code_point) && add_range(p, code_point, code_point) &&
           keep_set(p, false, &(*out)->set);
}

static bool read_count(RegexParser *p, uint32_t *out)
{
    *out = 0;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
        *out = *out * 10 + (uint32_t)(peek(p) - '0');
        if (*out > REGEX_REPEAT_MAX)
            return fail_at(p, ERROR_LIMIT, "a repetition beyond 65536");
    }
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* {m}, {m,}, {m,n}; a brace that begins none of them is a literal (*found false). */
static bool read_braces(RegexParser *p, uint32_t *min, uint32_t *max, bool *found)
{
    size_t start = p->at;
    *found = false;
    if (!skip(p, "{"))
        return true;
    bool has_min = is_digit(peek(p));
    if (!read_count(p, min))
        return false;
    *max = *min;
    if (has_min && skip(p, ",")) {
        bool has_max = is_digit(peek(p));
        if (!read_count(p, max))
            return false;
        if (!has_max)
            *max = REGEX_NO_END;
    }
    if (!has_min || !skip(p, "}")) {
        p->at = start;
        return true;
    }
    *found = true;
    return *min <= *max || invalid(p, "a repetition out of order");
}

static bool read_quantifier(RegexParser *p, uint32_t *min, uint32_t *max, bool *found)
{
    *found = true;
    *min = 0;
    *max = REGEX_NO_END;
    if (skip(p, "*"))
        return true;
    if (skip(p, "+")) {
        *min = 1;
        return true;
    }
    if (skip(p, "?")) {
        *max = 1;
        return true;
    }
    return read_braces(p, min, max, found);
}

static bool parse_quantified(RegexParser *p, RegexNode **out)
{
    if (!parse_atom(p, out))
        return false;
    uint32_t min, max;
    bool found;
    if (!read_quantifier(p, &min, &max, &found))
        return false;
    if (!found)
        return true;
    skip(p, "?"); /* lazy: the same strings */
    if (peek(p) == '+')
        return unsupported(p, "possessive quantifiers");
    if (peek(p) == '*' || peek(p) == '?')
        return invalid(p, "nothing to repeat");
    RegexNode *repeat = make_node(p, REGEX_REPEAT);
    if (!repeat)
        return false;
    repeat->min = min;
    repeat->max = max;
    repeat->children = *out;
    *out = repeat;
    return true;
}

static bool parse_sequence(RegexParser *p, RegexNode **out)
{
    *out = make_node(p, REGEX_ALL_OF);
    if (!*out)
        return false;
    RegexNode **tail = &(*out)->children;
    while (!at_end(p) && peek(p) != '|' && peek(p) != ')') {
        if (!parse_quantified(p, tail))
            return false;
        if ((*tail)->sibling) /* a group's node is shared by nobody, but keep the list sound */
            return error_set(p->err, ERROR_INTERNAL, "regular expression tree");
        tail = &(*tail)->sibling;
    }
    return true;
}

static bool parse_alternatives(RegexParser *p, RegexNode **out)
{
    *out = make_node(p, REGEX_ONE_OF);
    if (!*out)
        return false;
    RegexNode **tail = &(*out)->children;
    do {
        if (!parse_sequence(p, tail))
            return false;
        tail = &(*tail)->sibling;
    } while (skip(p, "|"));
    return true;
}

bool regex_parse(Slice source, RegexTree *out, Error *err)
{
    *out = (RegexTree){0};
    if (source.len > REGEX_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "a regular expression of %zu bytes, at most %d",
                         source.len, REGEX_BYTES_MAX);
    RegexParser *p = memory_allocate_zeroed(1, sizeof(*p));
    if (!p)
        return error_no_memory(err, "regular expression");
    arena_init(&out->arena, TREE_BYTES_MAX);
    p->source = source;
    p->tree = out;
    p->err = err;
    bool ok = parse_alternatives(p, &out->root);
    if (ok && !at_end(p))
        ok = invalid(p, "an unmatched )");
    memory_free(p);
    if (!ok)
        regex_tree_reset(out);
    return ok;
}

void regex_tree_reset(RegexTree *tree)
{
    arena_reset(&tree->arena);
    memory_free(tree->sets);
    *tree = (RegexTree){0};
}
