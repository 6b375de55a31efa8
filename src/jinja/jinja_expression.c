/* Expressions, by precedence climbing: one function for all left-associative binary levels keeps
 * the recursion per bracket to a few frames. From loose to tight:
 *
 *   a if b else c | or | and | not | == != < <= > >= in, not in (chained) | + - | ~ | * / // % | **
 *   | unary + - | postfix .x [x] (x) | filters and `is` tests
 *
 * Filters and tests bind to a unary operand as a whole: -1|abs is (-1)|abs. */
#include "jinja_machine.h"

#include <string.h>

enum { LEVEL_SUM, LEVEL_CONCAT, LEVEL_PRODUCT, LEVEL_POWER, LEVEL_UNARY };

static bool parse_or(JinjaParser *p, JinjaNode **out);
static bool parse_unary(JinjaParser *p, bool with_filters, JinjaNode **out);

/* ---- Primaries ---- */

static bool parse_list(JinjaParser *p, JinjaNode **out)
{
    JinjaNode *list = jinja_parser_node(p, NODE_LIST, p->token.line);
    if (!list || !jinja_parser_advance(p))
        return false;
    while (p->token.kind != TOKEN_RBRACKET) {
        if (list->as.nodes.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (p->token.kind == TOKEN_RBRACKET)
            break;
        JinjaNode *item;
        if (!jinja_parse_expression(p, 0, &item) || !jinja_parser_push(p, &list->as.nodes, item))
            return false;
    }
    *out = list;
    return jinja_parser_expect(p, TOKEN_RBRACKET);
}

static bool parse_dict(JinjaParser *p, JinjaNode **out)
{
    JinjaNode *dict = jinja_parser_node(p, NODE_DICT, p->token.line);
    if (!dict || !jinja_parser_advance(p))
        return false;
    while (p->token.kind != TOKEN_RBRACE) {
        if (dict->as.nodes.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (p->token.kind == TOKEN_RBRACE)
            break;
        JinjaNode *key, *value;
        if (!jinja_parse_expression(p, 0, &key) || !jinja_parser_expect(p, TOKEN_COLON) ||
            !jinja_parse_expression(p, 0, &value) || !jinja_parser_push(p, &dict->as.nodes, key) ||
            !jinja_parser_push(p, &dict->as.nodes, value))
            return false;
    }
    *out = dict;
    return jinja_parser_expect(p, TOKEN_RBRACE);
}

/* Macros take extra arguments, keywords or a caller only if their body names these variables. */
static void note_macro_name(JinjaParser *p, Slice name)
{
    if (!p->macro)
        return;
    p->macro->wants_caller |= slice_equal(name, SLICE("caller"));
    p->macro->wants_varargs |= slice_equal(name, SLICE("varargs"));
    p->macro->wants_kwargs |= slice_equal(name, SLICE("kwargs"));
}

/* Constants are spelled in lower case or as in Python. */
static bool constant_of_name(Slice name, JinjaValue *out)
{
    if (slice_equal(name, SLICE("true")) || slice_equal(name, SLICE("True")))
        *out = jinja_bool(true);
    else if (slice_equal(name, SLICE("false")) || slice_equal(name, SLICE("False")))
        *out = jinja_bool(false);
    else if (slice_equal(name, SLICE("none")) || slice_equal(name, SLICE("None")))
        *out = JINJA_VALUE_NONE;
    else
        return false;
    return true;
}

static bool parse_name(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    Slice name = p->token.text;
    JinjaNode *node = jinja_parser_node(p, NODE_NAME, p->token.line);
    if (!node || !jinja_parser_advance(p))
        return false;
    *out = node;
    if (constant_of_name(name, &node->as.constant)) {
        node->kind = NODE_CONST;
        return true;
    }
    uint32_t id;
    if (!jinja_parser_intern(p, name, &id))
        return false;
    if ((flags & PARSE_NAMESPACE) && p->token.kind == TOKEN_DOT) {
        node->kind = NODE_NAMESPACE_TARGET;
        node->as.target.id = id;
        node->as.target.object = name;
        return jinja_parser_advance(p) && jinja_parser_expect_name(p, &node->as.target.attribute);
    }
    note_macro_name(p, name);
    node->as.name.id = id;
    node->as.name.text = name;
    return true;
}

/* Adjacent string literals are one. */
static bool parse_string(JinjaParser *p, JinjaNode **out)
{
    JinjaNode *node = jinja_parser_node(p, NODE_CONST, p->token.line);
    if (!node)
        return false;
    Slice text = p->token.text;
    if (!jinja_parser_advance(p))
        return false;
    while (p->token.kind == TOKEN_STRING) {
        Slice more = p->token.text;
        char *joined = arena_allocate(&p->tmpl->arena, text.len + more.len + 1);
        if (!joined)
            return error_no_memory(p->err, "template");
        if (text.len)
            memcpy(joined, text.ptr, text.len);
        if (more.len)
            memcpy(joined + text.len, more.ptr, more.len);
        text = (Slice){joined, text.len + more.len};
        if (!jinja_parser_advance(p))
            return false;
    }
    node->as.constant = jinja_string(text);
    *out = node;
    return true;
}

static bool parse_primary(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    JinjaToken token = p->token;
    switch (token.kind) {
    case TOKEN_NAME:
        return parse_name(p, flags, out);
    case TOKEN_STRING:
        return parse_string(p, out);
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        *out = jinja_parser_node(p, NODE_CONST, token.line);
        if (!*out)
            return false;
        (*out)->as.constant = token.kind == TOKEN_INTEGER ? jinja_int(token.as.integer)
                                                          : jinja_float(token.as.number);
        return jinja_parser_advance(p);
    case TOKEN_LPAREN:
        return jinja_parser_advance(p) && jinja_parse_tuple(p, PARSE_PARENTHESES, out) &&
               jinja_parser_expect(p, TOKEN_RPAREN);
    case TOKEN_LBRACKET:
        return parse_list(p, out);
    case TOKEN_LBRACE:
        return parse_dict(p, out);
    default:
        return jinja_parser_fail(p, token.line, "unexpected '%s'", jinja_token_name(token.kind));
    }
}

/* ---- Postfix: attributes, items, calls ---- */

/* One part of a subscript: an expression or a slice. */
static bool parse_subscript_part(JinjaParser *p, JinjaNode **out)
{
    uint32_t line = p->token.line;
    JinjaNode *parts[3] = {NULL, NULL, NULL};
    if (p->token.kind != TOKEN_COLON) {
        if (!jinja_parse_expression(p, 0, &parts[0]))
            return false;
        if (p->token.kind != TOKEN_COLON) {
            *out = parts[0];
            return true;
        }
    }
    for (size_t i = 1; i < 3 && p->token.kind == TOKEN_COLON; i++) {
        if (!jinja_parser_advance(p))
            return false;
        JinjaTokenKind kind = p->token.kind;
        if (kind != TOKEN_COLON && kind != TOKEN_RBRACKET && kind != TOKEN_COMMA &&
            !jinja_parse_expression(p, 0, &parts[i]))
            return false;
    }
    *out = jinja_parser_node(p, NODE_SLICE, line);
    if (!*out)
        return false;
    (*out)->as.slice.start = parts[0];
    (*out)->as.slice.stop = parts[1];
    (*out)->as.slice.step = parts[2];
    return true;
}

static bool parse_subscript(JinjaParser *p, JinjaNode *object, JinjaNode **out)
{
    JinjaNode *node = jinja_parser_node(p, NODE_ITEM, p->token.line);
    JinjaNode *parts = jinja_parser_node(p, NODE_TUPLE, p->token.line);
    if (!node || !parts || !jinja_parser_advance(p))
        return false;
    while (p->token.kind != TOKEN_RBRACKET) {
        if (parts->as.nodes.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        JinjaNode *part;
        if (!parse_subscript_part(p, &part))
            return false;
        if (part->kind == NODE_SLICE && (parts->as.nodes.count > 0 || p->token.kind == TOKEN_COMMA))
            return jinja_parser_fail(p, part->line, "a slice must be the only subscript");
        if (!jinja_parser_push(p, &parts->as.nodes, part))
            return false;
    }
    node->as.item.object = object;
    node->as.item.index = parts->as.nodes.count == 1 ? parts->as.nodes.items[0] : parts;
    *out = node;
    return jinja_parser_expect(p, TOKEN_RBRACKET);
}

static bool parse_attribute(JinjaParser *p, JinjaNode *object, JinjaNode **out)
{
    JinjaNode *node = jinja_parser_node(p, NODE_ATTRIBUTE, p->token.line);
    if (!node || !jinja_parser_advance(p))
        return false;
    *out = node;
    if (p->token.kind == TOKEN_INTEGER) { /* a.0 is a[0] */
        JinjaNode *index;
        if (!parse_primary(p, 0, &index))
            return false;
        node->kind = NODE_ITEM;
        node->as.item.object = object;
        node->as.item.index = index;
        return true;
    }
    if (p->token.kind != TOKEN_NAME)
        return jinja_parser_fail(p, p->token.line, "expected name or number");
    node->as.attribute.object = object;
    node->as.attribute.name = p->token.text;
    return jinja_parser_advance(p);
}

static bool parse_keyword(JinjaParser *p, JinjaCallNodes *call)
{
    if (call->keyword_count >= JINJA_KEYWORDS_MAX)
        return jinja_parser_fail(p, p->token.line, "call has more than %d keyword arguments",
                                 JINJA_KEYWORDS_MAX);
    if (!jinja_parser_grow(p, (void **)&call->keywords, call->keyword_count,
                           &call->keyword_capacity, sizeof(*call->keywords)))
        return false;
    for (size_t i = 0; i < call->keyword_count; i++) {
        if (slice_equal(call->keywords[i].name, p->token.text))
            return jinja_parser_fail(p, p->token.line, "keyword argument repeated: %.*s",
                                     SLICE_ARG(p->token.text));
    }
    JinjaKeywordNode *keyword = &call->keywords[call->keyword_count++];
    keyword->name = p->token.text;
    return jinja_parser_advance(p) && jinja_parser_advance(p) &&
           jinja_parse_expression(p, 0, &keyword->value);
}

static bool parse_argument(JinjaParser *p, JinjaCallNodes *call, uint32_t line)
{
    const JinjaToken *ahead = NULL;
    bool star = p->token.kind == TOKEN_MUL, star_star = p->token.kind == TOKEN_POW;
    if (p->token.kind == TOKEN_NAME && !jinja_parser_look(p, &ahead))
        return false;
    bool keyword = ahead && ahead->kind == TOKEN_ASSIGN;
    bool plain = !star && !star_star && !keyword;
    if (call->star_star || (star && call->star) ||
        (plain && (call->star || call->keyword_count > 0)))
        return jinja_parser_fail(p, line, "invalid syntax for function call expression");
    if (keyword)
        return parse_keyword(p, call);
    if (star || star_star)
        return jinja_parser_advance(p) &&
               jinja_parse_expression(p, 0, star ? &call->star : &call->star_star);
    JinjaNode *argument;
    return jinja_parse_expression(p, 0, &argument) &&
           jinja_parser_push(p, &call->positional, argument);
}

static bool parse_arguments(JinjaParser *p, JinjaCallNodes **out)
{
    uint32_t line = p->token.line;
    JinjaCallNodes *call = arena_allocate(&p->tmpl->arena, sizeof(*call));
    if (!call)
        return error_no_memory(p->err, "template");
    *call = (JinjaCallNodes){0};
    *out = call;
    if (!jinja_parser_expect(p, TOKEN_LPAREN))
        return false;
    for (bool first = true; p->token.kind != TOKEN_RPAREN; first = false) {
        if (!first && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (p->token.kind == TOKEN_RPAREN)
            break;
        if (!parse_argument(p, call, line))
            return false;
    }
    return jinja_parser_expect(p, TOKEN_RPAREN);
}

static bool parse_call(JinjaParser *p, JinjaNode *callee, JinjaNode **out)
{
    JinjaNode *node = jinja_parser_node(p, NODE_CALL, p->token.line);
    if (!node || !parse_arguments(p, &node->as.call.arguments))
        return false;
    node->as.call.callee = callee;
    *out = node;
    return true;
}

static bool parse_postfix(JinjaParser *p, JinjaNode **node)
{
    for (;;) {
        bool ok;
        switch (p->token.kind) {
        case TOKEN_DOT:
            ok = parse_attribute(p, *node, node);
            break;
        case TOKEN_LBRACKET:
            ok = parse_subscript(p, *node, node);
            break;
        case TOKEN_LPAREN:
            ok = parse_call(p, *node, node);
            break;
        default:
            return true;
        }
        if (!ok)
            return false;
    }
}

/* ---- Filters and tests ---- */

/* name or dotted.name */
static bool parse_dotted_name(JinjaParser *p, Slice *name)
{
    if (!jinja_parser_expect_name(p, name))
        return false;
    while (p->token.kind == TOKEN_DOT) {
        Slice part;
        if (!jinja_parser_advance(p) || !jinja_parser_expect_name(p, &part))
            return false;
        char *joined = arena_allocate(&p->tmpl->arena, name->len + part.len + 1);
        if (!joined)
            return error_no_memory(p->err, "template");
        memcpy(joined, name->ptr, name->len);
        joined[name->len] = '.';
        memcpy(joined + name->len + 1, part.ptr, part.len);
        *name = (Slice){joined, name->len + 1 + part.len};
    }
    return true;
}

bool jinja_parse_filters(JinjaParser *p, JinjaNode *subject, bool start_inline, JinjaNode **out)
{
    *out = subject;
    while (p->token.kind == TOKEN_PIPE || start_inline) {
        if (!start_inline && !jinja_parser_advance(p))
            return false;
        start_inline = false;
        JinjaNode *node = jinja_parser_node(p, NODE_FILTER, p->token.line);
        if (!node || !parse_dotted_name(p, &node->as.apply.name))
            return false;
        if (p->token.kind == TOKEN_LPAREN && !parse_arguments(p, &node->as.apply.arguments))
            return false;
        node->as.apply.subject = *out;
        node->as.apply.builtin = jinja_filter_find(node->as.apply.name);
        if (!node->as.apply.builtin && !p->unknown)
            p->unknown = node;
        *out = node;
    }
    return true;
}

/* A test's single argument may stand without brackets: `x is divisibleby 3`. */
static bool parse_bare_test_argument(JinjaParser *p, JinjaCallNodes **out)
{
    switch (p->token.kind) {
    case TOKEN_NAME:
        if (jinja_parser_is_name(p, "else") || jinja_parser_is_name(p, "or") ||
            jinja_parser_is_name(p, "and"))
            return true;
        if (jinja_parser_is_name(p, "is"))
            return jinja_parser_fail(p, p->token.line, "You cannot chain multiple tests with is");
        break;
    case TOKEN_STRING:
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
    case TOKEN_LBRACKET:
    case TOKEN_LBRACE:
        break;
    default:
        return true;
    }
    JinjaCallNodes *call = arena_allocate(&p->tmpl->arena, sizeof(*call));
    if (!call)
        return error_no_memory(p->err, "template");
    *call = (JinjaCallNodes){0};
    *out = call;
    JinjaNode *argument;
    return parse_primary(p, 0, &argument) && parse_postfix(p, &argument) &&
           jinja_parser_push(p, &call->positional, argument);
}

static bool parse_test(JinjaParser *p, JinjaNode *subject, JinjaNode **out)
{
    uint32_t line = p->token.line;
    JinjaNode *node = jinja_parser_node(p, NODE_TEST, line);
    if (!node || !jinja_parser_advance(p))
        return false;
    bool negated = jinja_parser_is_name(p, "not");
    if (negated && !jinja_parser_advance(p))
        return false;
    if (!parse_dotted_name(p, &node->as.apply.name))
        return false;
    bool bracketed = p->token.kind == TOKEN_LPAREN;
    if (!(bracketed ? parse_arguments(p, &node->as.apply.arguments)
                    : parse_bare_test_argument(p, &node->as.apply.arguments)))
        return false;
    node->as.apply.subject = subject;
    node->as.apply.builtin = jinja_test_find(node->as.apply.name);
    if (!node->as.apply.builtin && !p->unknown)
        p->unknown = node;
    *out = node;
    if (!negated)
        return true;
    JinjaNode *not_node = jinja_parser_node(p, NODE_NOT, line);
    if (!not_node)
        return false;
    not_node->as.operand = node;
    *out = not_node;
    return true;
}

static bool parse_filters_and_tests(JinjaParser *p, JinjaNode **node)
{
    for (;;) {
        bool ok;
        if (p->token.kind == TOKEN_PIPE)
            ok = jinja_parse_filters(p, *node, false, node);
        else if (jinja_parser_is_name(p, "is"))
            ok = parse_test(p, *node, node);
        else if (p->token.kind == TOKEN_LPAREN)
            ok = parse_call(p, *node, node);
        else
            return true;
        if (!ok)
            return false;
    }
}

/* ---- Operators ---- */

static bool parse_unary(JinjaParser *p, bool with_filters, JinjaNode **out)
{
    if (!jinja_parser_enter(p))
        return false;
    bool ok;
    JinjaTokenKind kind = p->token.kind;
    if (kind == TOKEN_SUB || kind == TOKEN_ADD) {
        JinjaNode *node =
            jinja_parser_node(p, kind == TOKEN_SUB ? NODE_NEGATE : NODE_PLUS, p->token.line);
        ok = node && jinja_parser_advance(p) && parse_unary(p, false, &node->as.operand);
        *out = node;
    } else {
        ok = parse_primary(p, 0, out);
    }
    ok = ok && parse_postfix(p, out) && (!with_filters || parse_filters_and_tests(p, out));
    p->depth--;
    return ok;
}

static int level_of(JinjaTokenKind kind)
{
    switch (kind) {
    case TOKEN_ADD:
    case TOKEN_SUB:
        return LEVEL_SUM;
    case TOKEN_TILDE:
        return LEVEL_CONCAT;
    case TOKEN_MUL:
    case TOKEN_DIV:
    case TOKEN_FLOORDIV:
    case TOKEN_MOD:
        return LEVEL_PRODUCT;
    case TOKEN_POW:
        return LEVEL_POWER;
    default:
        return -1;
    }
}

/* Operators of at least this level, all left-associative; a chain of ~ is one node. */
static bool parse_binary(JinjaParser *p, int level, JinjaNode **out)
{
    if (!parse_unary(p, true, out))
        return false;
    for (;;) {
        JinjaTokenKind op = p->token.kind;
        int found = level_of(op);
        if (found < level)
            return true;
        uint32_t line = p->token.line;
        JinjaNode *right;
        if (!jinja_parser_advance(p) || !parse_binary(p, found + 1, &right))
            return false;
        if (op == TOKEN_TILDE && (*out)->kind == NODE_CONCAT) {
            if (!jinja_parser_push(p, &(*out)->as.nodes, right))
                return false;
            continue;
        }
        JinjaNode *node = jinja_parser_node(p, op == TOKEN_TILDE ? NODE_CONCAT : NODE_BINARY, line);
        if (!node)
            return false;
        if (op == TOKEN_TILDE) {
            if (!jinja_parser_push(p, &node->as.nodes, *out) ||
                !jinja_parser_push(p, &node->as.nodes, right))
                return false;
        } else {
            node->as.binary.op = op;
            node->as.binary.left = *out;
            node->as.binary.right = right;
        }
        *out = node;
    }
}

/* The comparison operator at the current token, stepped over; *found false when there is none. */
static bool take_comparison(JinjaParser *p, JinjaTokenKind *op, bool *found)
{
    const JinjaToken *ahead;
    *op = p->token.kind;
    *found = true;
    if (*op >= TOKEN_EQ && *op <= TOKEN_LE)
        return jinja_parser_advance(p);
    if (jinja_parser_is_name(p, "in")) {
        *op = TOKEN_IN;
        return jinja_parser_advance(p);
    }
    *found = false;
    if (!jinja_parser_is_name(p, "not"))
        return true;
    if (!jinja_parser_look(p, &ahead))
        return false;
    if (ahead->kind != TOKEN_NAME || !slice_equal(ahead->text, SLICE("in")))
        return true;
    *op = TOKEN_NOT_IN;
    *found = true;
    return jinja_parser_advance(p) && jinja_parser_advance(p);
}

static bool parse_comparison(JinjaParser *p, JinjaNode **out)
{
    uint32_t line = p->token.line;
    if (!parse_binary(p, LEVEL_SUM, out))
        return false;
    JinjaNode *node = NULL;
    for (;;) {
        JinjaTokenKind op;
        bool found;
        if (!take_comparison(p, &op, &found))
            return false;
        if (!found)
            return true;
        if (!node) {
            node = jinja_parser_node(p, NODE_COMPARE, line);
            if (!node)
                return false;
            node->as.compare.first = *out;
            *out = node;
        }
        if (!jinja_parser_grow(p, (void **)&node->as.compare.operands, node->as.compare.count,
                               &node->as.compare.capacity, sizeof(JinjaOperand)))
            return false;
        JinjaOperand *operand = &node->as.compare.operands[node->as.compare.count++];
        operand->op = op;
        if (!parse_binary(p, LEVEL_SUM, &operand->value))
            return false;
    }
}

static bool parse_not(JinjaParser *p, JinjaNode **out)
{
    if (!jinja_parser_is_name(p, "not"))
        return parse_comparison(p, out);
    if (!jinja_parser_enter(p))
        return false;
    JinjaNode *node = jinja_parser_node(p, NODE_NOT, p->token.line);
    bool ok = node && jinja_parser_advance(p) && parse_not(p, &node->as.operand);
    p->depth--;
    *out = node;
    return ok;
}

/* left `word` right `word` ..., left-associative. */
static bool parse_logical(JinjaParser *p, const char *word, JinjaNodeKind kind,
                          bool (*next)(JinjaParser *, JinjaNode **), JinjaNode **out)
{
    if (!next(p, out))
        return false;
    while (jinja_parser_is_name(p, word)) {
        JinjaNode *node = jinja_parser_node(p, kind, p->token.line);
        if (!node || !jinja_parser_advance(p))
            return false;
        node->as.binary.left = *out;
        if (!next(p, &node->as.binary.right))
            return false;
        *out = node;
    }
    return true;
}

static bool parse_and(JinjaParser *p, JinjaNode **out)
{
    return parse_logical(p, "and", NODE_AND, parse_not, out);
}

static bool parse_or(JinjaParser *p, JinjaNode **out)
{
    return parse_logical(p, "or", NODE_OR, parse_and, out);
}

/* a if b else c; b's else may itself be a condition. Filters inside need not exist until reached.
 */
static bool parse_condition(JinjaParser *p, JinjaNode **out)
{
    const JinjaNode *unknown = p->unknown;
    p->unknown = NULL;
    if (!parse_or(p, out))
        return false;
    bool soft = false;
    while (jinja_parser_is_name(p, "if")) {
        soft = true;
        JinjaNode *node = jinja_parser_node(p, NODE_CONDITION, p->token.line);
        if (!node || !jinja_parser_advance(p) || !parse_or(p, &node->as.condition.test))
            return false;
        node->as.condition.yes = *out;
        *out = node;
        if (jinja_parser_is_name(p, "else") &&
            (!jinja_parser_advance(p) || !jinja_parse_expression(p, 0, &node->as.condition.no)))
            return false;
    }
    if (soft)
        p->unknown = NULL;
    if (unknown)
        p->unknown = unknown;
    return true;
}

bool jinja_parse_expression(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    if (!jinja_parser_enter(p))
        return false;
    bool ok = (flags & PARSE_NO_CONDITION) ? parse_or(p, out) : parse_condition(p, out);
    p->depth--;
    return ok;
}

static bool at_tuple_end(const JinjaParser *p, unsigned flags)
{
    return p->token.kind == TOKEN_PRINT_END || p->token.kind == TOKEN_BLOCK_END ||
           p->token.kind == TOKEN_RPAREN ||
           ((flags & PARSE_END_IN) && jinja_parser_is_name(p, "in")) ||
           ((flags & PARSE_END_RECURSIVE) && jinja_parser_is_name(p, "recursive"));
}

bool jinja_parse_tuple(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    uint32_t line = p->token.line;
    JinjaNodes items = {0};
    bool is_tuple = false;
    for (;;) {
        if (items.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (at_tuple_end(p, flags))
            break;
        JinjaNode *item;
        bool ok = (flags & PARSE_SIMPLE) ? parse_primary(p, flags, &item)
                                         : jinja_parse_expression(p, flags, &item);
        if (!ok || !jinja_parser_push(p, &items, item))
            return false;
        if (p->token.kind != TOKEN_COMMA)
            break;
        is_tuple = true;
    }
    if (!is_tuple && items.count == 1) {
        *out = items.items[0];
        return true;
    }
    if (items.count == 0 && !(flags & PARSE_PARENTHESES))
        return jinja_parser_fail(p, p->token.line, "Expected an expression, got '%s'",
                                 jinja_token_name(p->token.kind));
    *out = jinja_parser_node(p, NODE_TUPLE, line);
    if (*out)
        (*out)->as.nodes = items;
    return *out != NULL;
}
