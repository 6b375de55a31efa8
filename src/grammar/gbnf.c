/* Recursive descent into a tree per rule, the tree built backwards into the automaton at once when
 * the rule ends. Quantified items are built once per copy, so repetition is bounded by the
 * automaton's states. Rules are numbered when first named. */
#include "gbnf.h"

#include <stdlib.h>
#include <string.h>

enum { TREE_BYTES_MAX = 64 << 20, RANGES_MAX = 2048 };
#define NO_END UINT32_MAX

typedef enum ItemKind { ITEM_LITERAL, ITEM_RANGES, ITEM_RULE, ITEM_GROUP } ItemKind;

typedef struct Item Item;
typedef struct Alternative Alternative;

struct Item {
    ItemKind kind;
    uint32_t min, max;
    Slice literal;
    const CharRange *ranges;
    size_t n_ranges;
    uint32_t rule;
    Alternative *group;
    Item *previous; /* sequences are built from their end */
};

struct Alternative {
    Item *last;
    Alternative *next;
};

typedef struct RuleName {
    Slice name;
    uint32_t rule;
    bool is_defined;
    size_t first_use; /* offset */
} RuleName;

typedef struct Parser {
    Slice source;
    size_t at;
    unsigned depth;
    Text *text;
    Arena *arena; /* of the current rule */
    RuleName *names;
    size_t n_names, names_capacity;
    uint32_t *slots; /* of names by hash, + 1 */
    size_t n_slots;
    Error *err;
} Parser;

/* ---- Characters ---- */

static bool fail_at(Parser *p, size_t at, ErrorCode code, const char *what, Slice about)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < p->source.len; i++) {
        column = p->source.ptr[i] == '\n' ? 1 : column + 1;
        line += p->source.ptr[i] == '\n';
    }
    if (about.len > AUTOMATON_QUOTE_BYTES_MAX)
        about.len = AUTOMATON_QUOTE_BYTES_MAX;
    if (about.len > 0)
        return error_set(p->err, code, "line %zu column %zu: %s %.*s", line, column, what,
                         SLICE_ARG(about));
    return error_set(p->err, code, "line %zu column %zu: %s", line, column, what);
}

static bool invalid(Parser *p, const char *what)
{
    return fail_at(p, p->at, ERROR_INVALID, what, SLICE_EMPTY);
}

static char peek(const Parser *p)
{
    return p->at < p->source.len ? p->source.ptr[p->at] : '\0';
}

static bool at_end(const Parser *p)
{
    return p->at >= p->source.len;
}

static bool skip(Parser *p, const char *text)
{
    Slice rest = {p->source.ptr + p->at, p->source.len - p->at};
    if (!slice_starts_with(rest, slice_of(text)))
        return false;
    p->at += strlen(text);
    return true;
}

/* Spaces and comments; line ends too if asked. */
static void skip_space(Parser *p, bool over_lines)
{
    while (!at_end(p)) {
        char c = peek(p);
        if (c == '#') {
            while (!at_end(p) && peek(p) != '\n' && peek(p) != '\r')
                p->at++;
        } else if (c == ' ' || c == '\t' || (over_lines && (c == '\n' || c == '\r'))) {
            p->at++;
        } else {
            break;
        }
    }
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

static Slice read_name(Parser *p)
{
    size_t start = p->at;
    while (is_name_char(peek(p)))
        p->at++;
    return (Slice){p->source.ptr + start, p->at - start};
}

static bool read_hex(Parser *p, size_t digits, uint32_t *out)
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

static bool read_escape(Parser *p, uint32_t *out)
{
    if (at_end(p))
        return invalid(p, "a backslash at the end");
    char c = p->source.ptr[p->at++];
    switch (c) {
    case 'x':
        return read_hex(p, 2, out);
    case 'u':
    case 'U':
        if (!read_hex(p, c == 'u' ? 4 : 8, out))
            return false;
        if (*out > CODE_POINT_MAX || (*out >= 0xd800 && *out <= 0xdfff))
            return invalid(p, "no such character");
        return true;
    case 't':
        *out = '\t';
        return true;
    case 'r':
        *out = '\r';
        return true;
    case 'n':
        *out = '\n';
        return true;
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^':
        *out = (uint8_t)c;
        return true;
    default:
        p->at--;
        return invalid(p, "unknown escape");
    }
}

static bool read_char(Parser *p, uint32_t *out)
{
    if (skip(p, "\\"))
        return read_escape(p, out);
    size_t len = utf8_decode(p->source.ptr + p->at, p->source.len - p->at, out);
    if (len == 0)
        return invalid(p, "not UTF-8");
    p->at += len;
    return true;
}

/* ---- Names ---- */

static bool grow_slots(Parser *p)
{
    if (p->n_names * 2 < p->n_slots)
        return true;
    size_t n_slots = p->n_slots ? p->n_slots * 2 : 64;
    memory_free(p->slots);
    p->slots = memory_allocate_zeroed(n_slots, sizeof(*p->slots));
    p->n_slots = p->slots ? n_slots : 0;
    if (!p->slots)
        return error_no_memory(p->err, "grammar rules");
    for (size_t i = 0; i < p->n_names; i++) {
        size_t at = (size_t)slice_hash(p->names[i].name) & (n_slots - 1);
        while (p->slots[at])
            at = (at + 1) & (n_slots - 1);
        p->slots[at] = (uint32_t)i + 1;
    }
    return true;
}

static RuleName *find_name(Parser *p, Slice name)
{
    if (!grow_slots(p))
        return NULL;
    size_t at = (size_t)slice_hash(name) & (p->n_slots - 1);
    for (; p->slots[at]; at = (at + 1) & (p->n_slots - 1)) {
        if (slice_equal(p->names[p->slots[at] - 1].name, name))
            return &p->names[p->slots[at] - 1];
    }
    if (!memory_grow_array((void **)&p->names, p->n_names, &p->names_capacity, sizeof(*p->names))) {
        error_no_memory(p->err, "grammar rules");
        return NULL;
    }
    Automaton *a = p->text->automaton;
    RuleName *rule = &p->names[p->n_names];
    *rule = (RuleName){name, automaton_add_rule(a, name), false, p->at};
    if (a->failed)
        return NULL;
    p->slots[at] = (uint32_t)++p->n_names;
    return rule;
}

/* ---- Items ---- */

static int compare_ranges(const void *a, const void *b)
{
    const CharRange *x = a, *y = b;
    return (x->low > y->low) - (x->low < y->low);
}

/* Sorts, joins and complements; the arena's copy goes to item. */
static bool keep_ranges(Parser *p, Item *item, CharRange *ranges, size_t n, bool negate)
{
    qsort(ranges, n, sizeof(*ranges), compare_ranges);
    CharRange *out = arena_allocate_array(p->arena, n + 1, sizeof(*out));
    if (!out)
        return error_no_memory(p->err, "grammar");
    size_t kept = 0;
    uint32_t from = 0;
    for (size_t i = 0; i < n; i++) {
        CharRange r = ranges[i];
        if (negate) {
            if (r.low > from)
                out[kept++] = (CharRange){from, r.low - 1};
            if (r.high + 1 > from)
                from = r.high + 1;
        } else if (kept > 0 && r.low <= (uint64_t)out[kept - 1].high + 1) {
            if (r.high > out[kept - 1].high)
                out[kept - 1].high = r.high;
        } else {
            out[kept++] = r;
        }
    }
    if (negate && from <= CODE_POINT_MAX)
        out[kept++] = (CharRange){from, CODE_POINT_MAX};
    item->kind = ITEM_RANGES;
    item->ranges = out;
    item->n_ranges = kept;
    return true;
}

static bool parse_class(Parser *p, Item *item)
{
    CharRange *ranges = arena_allocate_array(p->arena, RANGES_MAX, sizeof(*ranges));
    if (!ranges)
        return error_no_memory(p->err, "grammar");
    size_t n = 0;
    bool negate = skip(p, "^");
    while (!skip(p, "]")) {
        if (at_end(p))
            return invalid(p, "] is missing");
        if (n >= RANGES_MAX)
            return invalid(p, "a class of too many ranges");
        if (!read_char(p, &ranges[n].low))
            return false;
        ranges[n].high = ranges[n].low;
        if (peek(p) == '-' && p->at + 1 < p->source.len && p->source.ptr[p->at + 1] != ']') {
            p->at++;
            if (!read_char(p, &ranges[n].high))
                return false;
            if (ranges[n].high < ranges[n].low)
                return invalid(p, "a range out of order");
        }
        n++;
    }
    return keep_ranges(p, item, ranges, n, negate);
}

static bool parse_literal(Parser *p, Item *item)
{
    size_t start = p->at, len = 0;
    /* An escape is never shorter than what it stands for. */
    while (start < p->source.len && p->source.ptr[start] != '"')
        start += p->source.ptr[start] == '\\' ? 2 : 1;
    char *bytes = arena_allocate(p->arena, start - p->at + UTF8_MAX);
    if (!bytes)
        return error_no_memory(p->err, "grammar");
    while (!skip(p, "\"")) {
        uint32_t c;
        if (at_end(p))
            return invalid(p, "\" is missing");
        if (!read_char(p, &c))
            return false;
        len += utf8_encode(c, bytes + len);
    }
    item->kind = ITEM_LITERAL;
    item->literal = (Slice){bytes, len};
    return true;
}

static bool parse_alternatives(Parser *p, bool is_nested, Alternative **out);

static bool parse_rule_reference(Parser *p, Item *item)
{
    Slice name = read_name(p);
    RuleName *rule = find_name(p, name);
    if (!rule)
        return false;
    item->kind = ITEM_RULE;
    item->rule = rule->rule;
    return true;
}

static bool parse_item(Parser *p, Item *item)
{
    if (skip(p, "\""))
        return parse_literal(p, item);
    if (skip(p, "["))
        return parse_class(p, item);
    if (skip(p, "."))
        return keep_ranges(p, item, &(CharRange){0, CODE_POINT_MAX}, 1, false);
    if (skip(p, "(")) {
        if (++p->depth > GBNF_DEPTH_MAX)
            return invalid(p, "groups are nested too deeply");
        skip_space(p, true);
        item->kind = ITEM_GROUP;
        if (!parse_alternatives(p, true, &item->group))
            return false;
        p->depth--;
        return skip(p, ")") || invalid(p, ") is missing");
    }
    return parse_rule_reference(p, item);
}

static bool read_count(Parser *p, uint32_t *out, bool *found)
{
    *out = 0;
    *found = false;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
        *found = true;
        *out = *out * 10 + (uint32_t)(peek(p) - '0');
        if (*out > GBNF_REPEAT_MAX)
            return invalid(p, "a repetition beyond 65536");
    }
    return true;
}

static bool read_braces(Parser *p, uint32_t *min, uint32_t *max)
{
    bool has_min, has_max;
    skip_space(p, true);
    if (!read_count(p, min, &has_min))
        return false;
    *max = *min;
    skip_space(p, true);
    if (skip(p, ",")) {
        skip_space(p, true);
        if (!read_count(p, max, &has_max))
            return false;
        if (!has_max)
            *max = NO_END;
        skip_space(p, true);
    } else if (!has_min) {
        return invalid(p, "a number is missing");
    }
    if (!skip(p, "}"))
        return invalid(p, "} is missing");
    return *min <= *max || invalid(p, "a repetition out of order");
}

static bool read_quantifier(Parser *p, uint32_t *min, uint32_t *max, bool *found)
{
    *found = true;
    *min = 0;
    *max = NO_END;
    if (skip(p, "*"))
        return true;
    if (skip(p, "+"))
        *min = 1;
    else if (skip(p, "?"))
        *max = 1;
    else if (skip(p, "{"))
        return read_braces(p, min, max);
    else
        *found = false;
    return true;
}

/* Quantifiers behind the item, each applied to what is in front of it. */
static bool parse_quantifiers(Parser *p, Item *item, bool is_nested)
{
    for (bool is_first = true;; is_first = false) {
        skip_space(p, is_nested);
        uint32_t min, max;
        bool found;
        if (!read_quantifier(p, &min, &max, &found))
            return false;
        if (!found)
            return true;
        if (!is_first) {
            Item *inner = arena_allocate(p->arena, sizeof(*inner));
            Alternative *group = arena_allocate(p->arena, sizeof(*group));
            if (!inner || !group)
                return error_no_memory(p->err, "grammar");
            if (++p->depth > GBNF_DEPTH_MAX)
                return invalid(p, "too many quantifiers");
            Item *previous = item->previous;
            *inner = *item;
            inner->previous = NULL;
            *group = (Alternative){.last = inner};
            *item = (Item){.kind = ITEM_GROUP, .group = group, .previous = previous};
        }
        item->min = min;
        item->max = max;
    }
}

static bool starts_item(char c)
{
    return c == '"' || c == '[' || c == '(' || c == '.' || is_name_char(c);
}

static bool parse_sequence(Parser *p, bool is_nested, Item **last)
{
    *last = NULL;
    while (starts_item(peek(p))) {
        unsigned depth = p->depth;
        Item *item = arena_allocate(p->arena, sizeof(*item));
        if (!item)
            return error_no_memory(p->err, "grammar");
        *item = (Item){.min = 1, .max = 1, .previous = *last};
        if (!parse_item(p, item) || !parse_quantifiers(p, item, is_nested))
            return false;
        p->depth = depth;
        *last = item;
    }
    return true;
}

/* Is there a '|' behind line ends? */
static bool skip_to_bar(Parser *p, bool is_nested)
{
    size_t start = p->at;
    skip_space(p, is_nested);
    if (skip(p, "|"))
        return true;
    skip_space(p, true);
    if (skip(p, "|"))
        return true;
    p->at = start;
    return false;
}

static bool parse_alternatives(Parser *p, bool is_nested, Alternative **out)
{
    Alternative **tail = out;
    do {
        skip_space(p, true);
        Alternative *alternative = arena_allocate(p->arena, sizeof(*alternative));
        if (!alternative)
            return error_no_memory(p->err, "grammar");
        *alternative = (Alternative){0};
        if (!parse_sequence(p, is_nested, &alternative->last))
            return false;
        *tail = alternative;
        tail = &alternative->next;
    } while (skip_to_bar(p, is_nested));
    skip_space(p, is_nested);
    return true;
}

/* ---- Building ---- */

static uint32_t build_alternatives(Parser *p, const Alternative *alternatives, uint32_t next);

static uint32_t build_once(Parser *p, const Item *item, uint32_t next)
{
    switch (item->kind) {
    case ITEM_LITERAL:
        return automaton_add_literal(p->text->automaton, item->literal, next);
    case ITEM_RANGES:
        return text_add_ranges(p->text, TEXT_RAW, item->ranges, item->n_ranges, next);
    case ITEM_RULE:
        return automaton_add_call(p->text->automaton, item->rule, next);
    case ITEM_GROUP:
        return build_alternatives(p, item->group, next);
    }
    return AUTOMATON_FAIL;
}

static uint32_t build_item(Parser *p, const Item *item, uint32_t next)
{
    Automaton *a = p->text->automaton;
    uint32_t at = next;
    if (item->max == NO_END) {
        uint32_t loop = automaton_add_split(a, next, next);
        automaton_set_split(a, loop, build_once(p, item, loop), next);
        at = loop;
    } else {
        for (uint32_t i = item->min; i < item->max && !a->failed; i++)
            at = automaton_add_split(a, build_once(p, item, at), next);
    }
    for (uint32_t i = 0; i < item->min && !a->failed; i++) {
        uint32_t start = build_once(p, item, at);
        if (start == at)
            break; /* an empty item, however often */
        at = start;
    }
    return at;
}

static uint32_t build_alternatives(Parser *p, const Alternative *alternatives, uint32_t next)
{
    Automaton *a = p->text->automaton;
    uint32_t result = AUTOMATON_FAIL;
    for (const Alternative *one = alternatives; one; one = one->next) {
        uint32_t at = next;
        for (const Item *item = one->last; item; item = item->previous)
            at = build_item(p, item, at);
        result = result == AUTOMATON_FAIL ? at : automaton_add_split(a, result, at);
    }
    return result;
}

/* ---- Rules ---- */

static bool parse_rule(Parser *p)
{
    size_t start = p->at;
    Slice name = read_name(p);
    if (name.len == 0)
        return invalid(p, "a rule name is missing");
    skip_space(p, false);
    if (!skip(p, "::="))
        return invalid(p, "::= is missing");
    skip_space(p, true);
    RuleName *rule = find_name(p, name);
    if (!rule)
        return false;
    if (rule->is_defined)
        return fail_at(p, start, ERROR_INVALID, "a second definition of", name);
    rule->is_defined = true;
    uint32_t id = rule->rule; /* the array of names may move */
    Alternative *alternatives;
    if (!parse_alternatives(p, false, &alternatives))
        return false;
    automaton_set_rule(p->text->automaton, id,
                       build_alternatives(p, alternatives, AUTOMATON_RETURN));
    if (p->text->automaton->failed)
        return false;
    if (!at_end(p) && peek(p) != '\n' && peek(p) != '\r')
        return peek(p) == '<' ? invalid(p, "token references are not supported")
                              : invalid(p, "unexpected character");
    return true;
}

static bool parse_rules(Parser *p)
{
    Arena arena;
    arena_init(&arena, TREE_BYTES_MAX);
    p->arena = &arena;
    bool ok = true;
    for (skip_space(p, true); ok && !at_end(p); skip_space(p, true)) {
        p->depth = 0;
        ok = parse_rule(p);
        arena_reset(&arena);
    }
    return ok;
}

static bool check_names(Parser *p)
{
    Automaton *a = p->text->automaton;
    bool has_root = false;
    for (size_t i = 0; i < p->n_names; i++) {
        const RuleName *rule = &p->names[i];
        if (!rule->is_defined)
            return fail_at(p, rule->first_use, ERROR_INVALID, "no definition of rule", rule->name);
        if (slice_equal(rule->name, SLICE("root"))) {
            has_root = true;
            a->root = rule->rule;
        }
    }
    return has_root || error_set(p->err, ERROR_INVALID, "there is no rule named root");
}

bool gbnf_compile(Slice source, Text *text, Error *err)
{
    if (source.len > GBNF_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "a grammar of %zu bytes, at most %d", source.len,
                         GBNF_BYTES_MAX);
    Parser p = {.source = source, .text = text, .err = err};
    bool ok = parse_rules(&p) && check_names(&p);
    memory_free(p.names);
    memory_free(p.slots);
    return ok;
}
