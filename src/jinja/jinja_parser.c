/* Statements, and what both halves of the parser share.
 *
 * Recursive descent with a nesting count, so a hostile source ends in an error and not in the guard
 * page. Long chains (a + b + ..., elif, x|f|g) grow by loops. Filters and tests that do not exist
 * are faults of the source, except inside an `if` or a conditional expression, where templates
 * guard them by testing. */
#include "jinja_machine.h"

#include <stdio.h>
#include <string.h>

static bool parse_body(JinjaParser *p, const char *const *ends, JinjaNodes *out);

/* ---- Shared helpers ---- */

bool jinja_parser_fail(JinjaParser *p, uint32_t line, const char *format, ...)
{
    char message[ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    return error_set(p->err, ERROR_INVALID, "%s:%u: %s", p->tmpl->name, line, message);
}

bool jinja_parser_advance(JinjaParser *p)
{
    if (p->has_ahead) {
        p->token = p->ahead;
        p->has_ahead = false;
        return true;
    }
    return jinja_lexer_next(&p->lexer, &p->token);
}

bool jinja_parser_look(JinjaParser *p, const JinjaToken **ahead)
{
    if (!p->has_ahead && !jinja_lexer_next(&p->lexer, &p->ahead))
        return false;
    p->has_ahead = true;
    *ahead = &p->ahead;
    return true;
}

/* "expected X, got Y" for the current token; names show what they are. */
static bool fail_expected(JinjaParser *p, const char *expected)
{
    if (p->token.kind == TOKEN_END)
        return jinja_parser_fail(p, p->token.line, "unexpected end of template, expected '%s'",
                                 expected);
    if (p->token.kind == TOKEN_NAME)
        return jinja_parser_fail(p, p->token.line, "expected token '%s', got '%.*s'", expected,
                                 SLICE_ARG(p->token.text));
    return jinja_parser_fail(p, p->token.line, "expected token '%s', got '%s'", expected,
                             jinja_token_name(p->token.kind));
}

bool jinja_parser_expect(JinjaParser *p, JinjaTokenKind kind)
{
    if (p->token.kind != kind)
        return fail_expected(p, jinja_token_name(kind));
    return jinja_parser_advance(p);
}

bool jinja_parser_expect_name(JinjaParser *p, Slice *name)
{
    *name = p->token.text;
    return jinja_parser_expect(p, TOKEN_NAME);
}

bool jinja_parser_is_name(const JinjaParser *p, const char *name)
{
    return p->token.kind == TOKEN_NAME && slice_equal(p->token.text, slice_of(name));
}

bool jinja_parser_enter(JinjaParser *p)
{
    if (p->depth >= JINJA_NESTING_MAX)
        return error_set(p->err, ERROR_LIMIT, "%s:%u: blocks and expressions nest deeper than %d",
                         p->tmpl->name, p->token.line, JINJA_NESTING_MAX);
    p->depth++;
    return true;
}

JinjaNode *jinja_parser_node(JinjaParser *p, JinjaNodeKind kind, uint32_t line)
{
    JinjaNode *node = arena_allocate(&p->tmpl->arena, sizeof(*node));
    if (!node) {
        error_no_memory(p->err, "template");
        return NULL;
    }
    memset(node, 0, sizeof(*node));
    node->kind = kind;
    node->line = line;
    node->escape = p->escape;
    return node;
}

bool jinja_parser_grow(JinjaParser *p, void **items, size_t count, size_t *capacity,
                       size_t item_size)
{
    if (count < *capacity)
        return true;
    size_t wanted = *capacity ? *capacity * 2 : 4;
    void *grown = arena_allocate_array(&p->tmpl->arena, wanted, item_size);
    if (!grown)
        return error_no_memory(p->err, "template");
    if (count)
        memcpy(grown, *items, count * item_size);
    *items = grown;
    *capacity = wanted;
    return true;
}

bool jinja_parser_push(JinjaParser *p, JinjaNodes *nodes, JinjaNode *node)
{
    if (!jinja_parser_grow(p, (void **)&nodes->items, nodes->count, &nodes->capacity,
                           sizeof(JinjaNode *)))
        return false;
    nodes->items[nodes->count++] = node;
    return true;
}

/* ---- Names ---- */

size_t jinja_names_find(const JinjaNames *names, Slice name)
{
    if (names->index_size == 0)
        return SIZE_MAX;
    size_t mask = names->index_size - 1;
    for (size_t at = (size_t)slice_hash(name) & mask; names->index[at]; at = (at + 1) & mask) {
        if (slice_equal(names->items[names->index[at] - 1], name))
            return names->index[at] - 1;
    }
    return SIZE_MAX;
}

static void names_link(JinjaNames *names, size_t number)
{
    size_t mask = names->index_size - 1;
    size_t at = (size_t)slice_hash(names->items[number]) & mask;
    while (names->index[at])
        at = (at + 1) & mask;
    names->index[at] = (uint32_t)number + 1;
}

bool jinja_parser_intern(JinjaParser *p, Slice name, uint32_t *id)
{
    JinjaNames *names = &p->tmpl->names;
    size_t found = jinja_names_find(names, name);
    if (found != SIZE_MAX) {
        *id = (uint32_t)found;
        return true;
    }
    if (!jinja_parser_grow(p, (void **)&names->items, names->count, &names->capacity,
                           sizeof(Slice)))
        return false;
    names->items[names->count++] = name;
    *id = (uint32_t)(names->count - 1);
    if (names->count * 2 <= names->index_size) {
        names_link(names, names->count - 1);
        return true;
    }
    size_t size = names->index_size ? names->index_size * 2 : 64;
    names->index = arena_allocate_array(&p->tmpl->arena, size, sizeof(uint32_t));
    if (!names->index) {
        names->index_size = 0;
        return error_no_memory(p->err, "template");
    }
    memset(names->index, 0, size * sizeof(uint32_t));
    names->index_size = size;
    for (size_t i = 0; i < names->count; i++)
        names_link(names, i);
    return true;
}

/* ---- Frames ---- */

/* A block of its own: names inside it are not excused by an `if` outside. */
typedef struct Frame {
    bool soft;
    unsigned loop_depth;
    JinjaMacroNode *macro;
} Frame;

static Frame frame_enter(JinjaParser *p, bool is_function)
{
    Frame saved = {p->soft, p->loop_depth, p->macro};
    p->soft = false;
    if (is_function)
        p->loop_depth = 0;
    return saved;
}

static void frame_leave(JinjaParser *p, Frame saved)
{
    p->soft = saved.soft;
    p->loop_depth = saved.loop_depth;
    if (saved.macro &&
        p->macro != saved.macro) { /* what an inner macro names counts for the outer */
        saved.macro->wants_caller |= p->macro->wants_caller;
        saved.macro->wants_varargs |= p->macro->wants_varargs;
        saved.macro->wants_kwargs |= p->macro->wants_kwargs;
    }
    p->macro = saved.macro;
}

/* After an expression: an unknown filter in it is a fault unless an `if` excuses it. */
static bool check_unknown(JinjaParser *p)
{
    const JinjaNode *unknown = p->unknown;
    p->unknown = NULL;
    if (!unknown || p->soft)
        return true;
    return jinja_parser_fail(p, unknown->line, "No %s named '%.*s'.",
                             unknown->kind == NODE_FILTER ? "filter" : "test",
                             SLICE_ARG(unknown->as.apply.name));
}

static bool parse_checked(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    return jinja_parse_expression(p, flags, out) && check_unknown(p);
}

static bool parse_checked_tuple(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    return jinja_parse_tuple(p, flags, out) && check_unknown(p);
}

/* Steps over the name that is expected here. */
static bool take_word(JinjaParser *p, const char *word)
{
    if (!jinja_parser_is_name(p, word))
        return fail_expected(p, word);
    return jinja_parser_advance(p);
}

/* ---- Targets and signatures ---- */

/* The nesting of tuples was bounded when they were parsed. */
static bool can_assign(const JinjaNode *node)
{
    if (node->kind == NODE_NAME || node->kind == NODE_NAMESPACE_TARGET)
        return true;
    if (node->kind != NODE_TUPLE)
        return false;
    for (size_t i = 0; i < node->as.nodes.count; i++) {
        if (!can_assign(node->as.nodes.items[i]))
            return false;
    }
    return true;
}

static bool parse_target(JinjaParser *p, unsigned flags, JinjaNode **out)
{
    uint32_t line = p->token.line;
    if (!jinja_parse_tuple(p, flags | PARSE_SIMPLE, out))
        return false;
    return can_assign(*out) || jinja_parser_fail(p, line, "can't assign to this expression");
}

static bool parse_name_target(JinjaParser *p, Slice *text, uint32_t *id)
{
    return jinja_parser_expect_name(p, text) && jinja_parser_intern(p, *text, id);
}

static bool parse_signature(JinjaParser *p, JinjaMacroNode *macro)
{
    if (!jinja_parser_expect(p, TOKEN_LPAREN))
        return false;
    bool has_fallback = false;
    while (p->token.kind != TOKEN_RPAREN) {
        if (macro->count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (!jinja_parser_grow(p, (void **)&macro->parameters, macro->count, &macro->capacity,
                               sizeof(JinjaParameter)))
            return false;
        JinjaParameter *parameter = &macro->parameters[macro->count];
        *parameter = (JinjaParameter){0};
        if (!parse_name_target(p, &parameter->text, &parameter->name))
            return false;
        if (p->token.kind == TOKEN_ASSIGN) {
            has_fallback = true;
            if (!jinja_parser_advance(p) || !parse_checked(p, 0, &parameter->fallback))
                return false;
        } else if (has_fallback) {
            return jinja_parser_fail(p, p->token.line,
                                     "non-default argument follows default argument");
        }
        macro->count++;
    }
    return jinja_parser_expect(p, TOKEN_RPAREN);
}

static JinjaMacroNode *new_macro(JinjaParser *p)
{
    JinjaMacroNode *macro = arena_allocate(&p->tmpl->arena, sizeof(*macro));
    if (!macro) {
        error_no_memory(p->err, "template");
        return NULL;
    }
    *macro = (JinjaMacroNode){0};
    return macro;
}

/* Body of a macro or call block up to `end`, which is stepped over. */
static bool parse_function_body(JinjaParser *p, JinjaMacroNode *macro, const char *end)
{
    const char *const ends[] = {end, NULL};
    return parse_body(p, ends, &macro->body) && jinja_parser_advance(p);
}

/* ---- Statements ---- */

/* Filters, then a block in a scope of its own up to one of `ends`. start_inline: the first filter
 * has no bar before it. */
static bool parse_filtered_block(JinjaParser *p, bool start_inline, const char *const *ends,
                                 JinjaNode *node)
{
    if (!jinja_parse_filters(p, NULL, start_inline, &node->as.block.filter) || !check_unknown(p))
        return false;
    Frame saved = frame_enter(p, false);
    bool ok = parse_body(p, ends, &node->as.block.body) && jinja_parser_advance(p);
    frame_leave(p, saved);
    return ok;
}

static bool parse_set(JinjaParser *p, JinjaNode *node)
{
    JinjaNode *target;
    if (!parse_target(p, PARSE_NAMESPACE, &target))
        return false;
    if (p->token.kind == TOKEN_ASSIGN) {
        node->kind = NODE_SET;
        node->as.set.target = target;
        return jinja_parser_advance(p) && parse_checked_tuple(p, 0, &node->as.set.value);
    }
    static const char *const ends[] = {"endset", NULL};
    node->kind = NODE_SET_BLOCK;
    node->as.block.target = target;
    return parse_filtered_block(p, false, ends, node);
}

static bool parse_for_parts(JinjaParser *p, JinjaForNode *loop)
{
    static const char *const body_ends[] = {"endfor", "else", NULL};
    static const char *const else_ends[] = {"endfor", NULL};
    if (jinja_parser_is_name(p, "if") &&
        (!jinja_parser_advance(p) || !parse_checked(p, 0, &loop->filter)))
        return false;
    if (jinja_parser_is_name(p, "recursive")) {
        loop->recursive = true;
        if (!jinja_parser_advance(p))
            return false;
    }
    p->loop_depth++;
    if (!parse_body(p, body_ends, &loop->body))
        return false;
    p->loop_depth--;
    if (jinja_parser_is_name(p, "else") &&
        (!jinja_parser_advance(p) || !parse_body(p, else_ends, &loop->otherwise)))
        return false;
    return jinja_parser_advance(p);
}

static bool parse_for(JinjaParser *p, JinjaNode *node)
{
    JinjaForNode *loop = arena_allocate(&p->tmpl->arena, sizeof(*loop));
    if (!loop)
        return error_no_memory(p->err, "template");
    *loop = (JinjaForNode){.escape = p->escape};
    node->kind = NODE_FOR;
    node->as.loop = loop;
    if (!parse_target(p, PARSE_END_IN, &loop->target) || !take_word(p, "in") ||
        !parse_checked_tuple(p, PARSE_NO_CONDITION | PARSE_END_RECURSIVE, &loop->iterable))
        return false;
    Frame saved = frame_enter(p, false);
    bool ok = parse_for_parts(p, loop);
    frame_leave(p, saved);
    return ok;
}

/* if, elif and else are a list of branches, so that their number costs no nesting. */
static bool parse_branches(JinjaParser *p, JinjaNode *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const else_ends[] = {"endif", NULL};
    for (bool is_else = false;;) {
        if (!jinja_parser_grow(p, (void **)&node->as.branches.branches, node->as.branches.count,
                               &node->as.branches.capacity, sizeof(JinjaBranch)))
            return false;
        JinjaBranch branch = {0};
        if (!is_else && !parse_checked_tuple(p, PARSE_NO_CONDITION, &branch.test))
            return false;
        if (!parse_body(p, is_else ? else_ends : ends, &branch.body))
            return false;
        node->as.branches.branches[node->as.branches.count++] = branch;
        if (jinja_parser_is_name(p, "endif"))
            return jinja_parser_advance(p);
        is_else = jinja_parser_is_name(p, "else");
        if (!jinja_parser_advance(p))
            return false;
    }
}

static bool parse_if(JinjaParser *p, JinjaNode *node)
{
    bool saved = p->soft;
    node->kind = NODE_IF;
    p->soft = true;
    bool ok = parse_branches(p, node);
    p->soft = saved;
    return ok;
}

static bool parse_macro(JinjaParser *p, JinjaNode *node)
{
    node->kind = NODE_MACRO;
    JinjaMacroNode *macro = node->as.macro = new_macro(p);
    if (!macro || !parse_name_target(p, &macro->text, &macro->name))
        return false;
    Frame saved = frame_enter(p, true);
    p->macro = macro;
    bool ok = parse_signature(p, macro) && parse_function_body(p, macro, "endmacro");
    frame_leave(p, saved);
    return ok;
}

static bool parse_call_block(JinjaParser *p, JinjaNode *node)
{
    node->kind = NODE_CALL_BLOCK;
    JinjaMacroNode *body = node->as.call_block.body = new_macro(p);
    if (!body || (p->token.kind == TOKEN_LPAREN && !parse_signature(p, body)) ||
        !parse_checked(p, 0, &node->as.call_block.call))
        return false;
    if (node->as.call_block.call->kind != NODE_CALL)
        return jinja_parser_fail(p, node->line, "expected call");
    Frame saved = frame_enter(p, true);
    bool ok = parse_function_body(p, body, "endcall");
    frame_leave(p, saved);
    return ok;
}

static bool parse_filter_block(JinjaParser *p, JinjaNode *node)
{
    static const char *const ends[] = {"endfilter", NULL};
    node->kind = NODE_FILTER_BLOCK;
    return parse_filtered_block(p, true, ends, node);
}

static bool parse_with(JinjaParser *p, JinjaNode *node)
{
    static const char *const ends[] = {"endwith", NULL};
    node->kind = NODE_WITH;
    while (p->token.kind != TOKEN_BLOCK_END) {
        JinjaNode *target, *value;
        if (node->as.with.targets.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (!parse_target(p, 0, &target) || !jinja_parser_expect(p, TOKEN_ASSIGN) ||
            !parse_checked(p, 0, &value) || !jinja_parser_push(p, &node->as.with.targets, target) ||
            !jinja_parser_push(p, &node->as.with.values, value))
            return false;
    }
    Frame saved = frame_enter(p, false);
    bool ok = parse_body(p, ends, &node->as.with.body) && jinja_parser_advance(p);
    frame_leave(p, saved);
    return ok;
}

static bool parse_scope(JinjaParser *p, JinjaNode *node, const char *end)
{
    const char *const ends[] = {end, NULL};
    node->kind = NODE_SCOPE;
    Frame saved = frame_enter(p, true);
    bool ok = parse_body(p, ends, &node->as.block.body) && jinja_parser_advance(p);
    frame_leave(p, saved);
    return ok;
}

/* A template stands alone, so a block is only a named part rendered where it stands. */
static bool parse_block(JinjaParser *p, JinjaNode *node)
{
    Slice name;
    if (!jinja_parser_expect_name(p, &name))
        return false;
    while (jinja_parser_is_name(p, "scoped") || jinja_parser_is_name(p, "required")) {
        if (!jinja_parser_advance(p))
            return false;
    }
    JinjaEscape around = p->escape;
    p->escape = JINJA_ESCAPE_NEVER; /* a block is compiled for itself */
    bool ok = parse_scope(p, node, "endblock");
    p->escape = around;
    if (!ok)
        return false;
    if (p->token.kind == TOKEN_NAME && slice_equal(p->token.text, name))
        return jinja_parser_advance(p);
    return true;
}

static bool parse_autoescape(JinjaParser *p, JinjaNode *node)
{
    static const char *const ends[] = {"endautoescape", NULL};
    JinjaNode *setting;
    if (!parse_checked(p, 0, &setting))
        return false;
    node->kind = NODE_AUTOESCAPE;
    node->as.block.filter = setting;
    Frame saved = frame_enter(p, false);
    JinjaEscape around = p->escape;
    if (setting->kind != NODE_CONST || around == JINJA_ESCAPE_ASK)
        p->escape = JINJA_ESCAPE_ASK;
    else
        p->escape = jinja_truth(&setting->as.constant) ? JINJA_ESCAPE_ALWAYS : JINJA_ESCAPE_NEVER;
    bool ok = parse_body(p, ends, &node->as.block.body) && jinja_parser_advance(p);
    p->escape = around;
    frame_leave(p, saved);
    return ok;
}

static bool parse_print(JinjaParser *p, JinjaNode *node)
{
    node->kind = NODE_PRINT;
    while (p->token.kind != TOKEN_BLOCK_END) {
        JinjaNode *value;
        if (node->as.nodes.count > 0 && !jinja_parser_expect(p, TOKEN_COMMA))
            return false;
        if (!parse_checked(p, 0, &value) || !jinja_parser_push(p, &node->as.nodes, value))
            return false;
    }
    return true;
}

static bool parse_jump(JinjaParser *p, JinjaNode *node, JinjaNodeKind kind)
{
    node->kind = kind;
    if (p->loop_depth > 0)
        return true;
    return jinja_parser_fail(p, node->line, "'%s' outside loop",
                             kind == NODE_BREAK ? "break" : "continue");
}

static bool dispatch_statement(JinjaParser *p, Slice tag, JinjaNode *node)
{
    static const struct {
        const char *tag;
        bool (*parse)(JinjaParser *p, JinjaNode *node);
    } statements[] = {{"if", parse_if},           {"for", parse_for},
                      {"set", parse_set},         {"macro", parse_macro},
                      {"call", parse_call_block}, {"filter", parse_filter_block},
                      {"with", parse_with},       {"block", parse_block},
                      {"print", parse_print},     {"autoescape", parse_autoescape}};
    static const char *const loading[] = {"include", "import", "from", "extends"};
    for (size_t i = 0; i < ARRAY_COUNT(statements); i++) {
        if (slice_equal(tag, slice_of(statements[i].tag)))
            return statements[i].parse(p, node);
    }
    if (slice_equal(tag, SLICE("generation")))
        return parse_scope(p, node, "endgeneration");
    if (slice_equal(tag, SLICE("break")))
        return parse_jump(p, node, NODE_BREAK);
    if (slice_equal(tag, SLICE("continue")))
        return parse_jump(p, node, NODE_CONTINUE);
    for (size_t i = 0; i < ARRAY_COUNT(loading); i++) {
        if (slice_equal(tag, slice_of(loading[i])))
            return jinja_parser_fail(p, node->line, "'%s' needs other templates; there are none",
                                     loading[i]);
    }
    return jinja_parser_fail(p, node->line, "Encountered unknown tag '%.*s'.", SLICE_ARG(tag));
}

static bool parse_statement(JinjaParser *p, JinjaNode **out)
{
    if (p->token.kind != TOKEN_NAME)
        return jinja_parser_fail(p, p->token.line, "tag name expected");
    Slice tag = p->token.text;
    *out = jinja_parser_node(p, NODE_SCOPE, p->token.line);
    if (!*out || !jinja_parser_advance(p) || !jinja_parser_enter(p))
        return false;
    bool ok = dispatch_statement(p, tag, *out);
    p->depth--;
    return ok && jinja_parser_expect(p, TOKEN_BLOCK_END);
}

static bool at_end_tag(const JinjaParser *p, const char *const *ends)
{
    for (size_t i = 0; ends && ends[i]; i++) {
        if (jinja_parser_is_name(p, ends[i]))
            return true;
    }
    return false;
}

static bool parse_text_or_print(JinjaParser *p, JinjaNodes *out)
{
    bool is_text = p->token.kind == TOKEN_TEXT;
    JinjaNode *node = jinja_parser_node(p, is_text ? NODE_TEXT : NODE_PRINT, p->token.line);
    if (!node || !jinja_parser_push(p, out, node))
        return false;
    if (is_text) {
        node->as.text = p->token.text;
        return jinja_parser_advance(p);
    }
    JinjaNode *value;
    return jinja_parser_advance(p) && parse_checked_tuple(p, 0, &value) &&
           jinja_parser_push(p, &node->as.nodes, value) && jinja_parser_expect(p, TOKEN_PRINT_END);
}

/* Statements up to one of the end tags, which stays current; to the end of the source when ends is
 * NULL. */
static bool parse_statements(JinjaParser *p, const char *const *ends, JinjaNodes *out)
{
    while (p->token.kind != TOKEN_END) {
        if (p->token.kind != TOKEN_BLOCK_BEGIN) {
            if (!parse_text_or_print(p, out))
                return false;
            continue;
        }
        if (!jinja_parser_advance(p))
            return false;
        if (at_end_tag(p, ends))
            return true;
        JinjaNode *node = NULL;
        if (!parse_statement(p, &node) || !jinja_parser_push(p, out, node))
            return false;
    }
    if (ends)
        return jinja_parser_fail(p, p->token.line, "Unexpected end of template. Expected '%s'.",
                                 ends[0]);
    return true;
}

/* The rest of the opening tag, then the body. */
static bool parse_body(JinjaParser *p, const char *const *ends, JinjaNodes *out)
{
    if (p->token.kind == TOKEN_COLON && !jinja_parser_advance(p))
        return false;
    return jinja_parser_expect(p, TOKEN_BLOCK_END) && parse_statements(p, ends, out);
}

bool jinja_parse(JinjaTemplate *tmpl, Slice source, Error *err)
{
    JinjaParser p = {.tmpl = tmpl, .err = err};
    p.lexer = (JinjaLexer){
        .source = source, .line = 1, .arena = &tmpl->arena, .name = tmpl->name, .err = err};
    return jinja_parser_advance(&p) && parse_statements(&p, NULL, &tmpl->body);
}
