/* Expressions of the tree to values, and the variables they see.
 *
 * Every node counts a step and, while it is being evaluated, a level of depth: the first bounds
 * time, the second the C stack, whatever the template does. */
#include "jinja_machine.h"

#include <string.h>

bool jinja_enter(JinjaMachine *m)
{
    if (m->depth >= JINJA_DEPTH_MAX)
        return jinja_fail_limit(m, "evaluation depth", JINJA_DEPTH_MAX);
    m->depth++;
    return jinja_charge(m, 1) || (m->depth--, false);
}

/* ---- Variables ---- */

enum { SCOPE_SCAN = 32 }; /* variables of a scope that a step looks at */

JinjaScope *jinja_scope_push(JinjaMachine *m)
{
    JinjaScope *scope = jinja_allocate(m, 1, sizeof(*scope));
    if (!scope)
        return NULL;
    *scope = (JinjaScope){.parent = m->scope};
    m->scope = scope;
    return scope;
}

bool jinja_scope_set(JinjaMachine *m, uint32_t name, const JinjaValue *value)
{
    JinjaScope *scope = m->scope;
    if (!scope) {
        m->variables[name] = *value;
        return true;
    }
    for (size_t i = 0; i < scope->count; i++) {
        if (scope->items[i].name == name) {
            scope->items[i].value = *value;
            return jinja_charge(m, i / SCOPE_SCAN);
        }
    }
    if (!jinja_charge(m, scope->count / SCOPE_SCAN))
        return false;
    if (scope->count == scope->capacity) {
        size_t capacity = scope->capacity ? scope->capacity * 2 : 4;
        JinjaVariable *items = jinja_allocate(m, capacity, sizeof(*items));
        if (!items)
            return false;
        if (scope->count)
            memcpy(items, scope->items, scope->count * sizeof(*items));
        scope->items = items;
        scope->capacity = capacity;
    }
    scope->items[scope->count++] = (JinjaVariable){name, *value};
    return true;
}

/* ABSENT when unset. */
static JinjaValue get_variable(JinjaMachine *m, uint32_t name)
{
    for (const JinjaScope *scope = m->scope; scope; scope = scope->parent) {
        for (size_t i = 0; i < scope->count; i++) {
            if (scope->items[i].name == name) {
                jinja_note_work(m, i / SCOPE_SCAN);
                return scope->items[i].value;
            }
        }
        jinja_note_work(m, scope->count / SCOPE_SCAN);
    }
    return m->variables[name];
}

/* Gives the parts of value to the parts of a tuple target. */
static bool assign_tuple(JinjaMachine *m, const JinjaNodes *targets, const JinjaValue *value)
{
    JinjaIterator it;
    if (!jinja_iterate(m, value, &it))
        return jinja_is_undefined(value) ||
               jinja_fail(m, "cannot unpack non-iterable %s object", jinja_type_name(value));
    for (size_t i = 0;; i++) {
        JinjaValue item;
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more && i < targets->count)
            return jinja_fail(m, "not enough values to unpack (expected %zu, got %zu)",
                              targets->count, i);
        if (!more)
            return true;
        if (i == targets->count)
            return jinja_fail(m, "too many values to unpack (expected %zu)", targets->count);
        if (!jinja_assign(m, targets->items[i], &item))
            return false;
    }
}

bool jinja_assign(JinjaMachine *m, const JinjaNode *target, const JinjaValue *value)
{
    if (target->kind == NODE_NAME)
        return jinja_scope_set(m, target->as.name.id, value);
    if (target->kind == NODE_TUPLE)
        return assign_tuple(m, &target->as.nodes, value);
    m->line = target->line;
    JinjaValue object = get_variable(m, target->as.target.id);
    if (object.kind != JINJA_NAMESPACE)
        return jinja_fail(m, "cannot assign attribute on non-namespace object");
    if (slice_starts_with(target->as.target.attribute, SLICE("_")))
        return jinja_fail(m, "namespace attributes cannot begin with an underscore: '%.*s'",
                          SLICE_ARG(target->as.target.attribute));
    JinjaValue key = jinja_string(target->as.target.attribute);
    return jinja_dict_set(m, object.as.dict, &key, value);
}

/* ---- Arguments ---- */

static bool add_keyword(JinjaMachine *m, JinjaKeyword *keywords, size_t *count, Slice name,
                        const JinjaValue *value)
{
    for (size_t i = 0; i < *count; i++) {
        if (slice_equal(keywords[i].name, name))
            return jinja_fail(m, "got multiple values for keyword argument '%.*s'",
                              SLICE_ARG(name));
    }
    keywords[(*count)++] = (JinjaKeyword){name, *value};
    return jinja_charge(m, *count);
}

static bool evaluate_keywords(JinjaMachine *m, const JinjaCallNodes *nodes, JinjaArguments *out)
{
    JinjaValue more = JINJA_VALUE_ABSENT;
    size_t room = nodes->keyword_count;
    JinjaKeyword *keywords = NULL;
    if (nodes->star_star) {
        if (!jinja_evaluate(m, nodes->star_star, &more))
            return false;
        if (more.kind != JINJA_DICT)
            return jinja_fail(m, "argument after ** must be a mapping, not %s",
                              jinja_type_name(&more));
        room += more.as.dict->count;
    }
    if (room == 0)
        return true;
    keywords = jinja_allocate(m, room, sizeof(*keywords));
    if (!keywords)
        return false;
    out->keywords = keywords;
    for (size_t i = 0; i < nodes->keyword_count; i++) {
        JinjaValue value;
        if (!jinja_evaluate(m, nodes->keywords[i].value, &value) ||
            !add_keyword(m, keywords, &out->keyword_count, nodes->keywords[i].name, &value))
            return false;
    }
    for (size_t i = 0; more.kind == JINJA_DICT && i < more.as.dict->count; i++) {
        const JinjaEntry *entry = &more.as.dict->entries[i];
        if (entry->key.kind != JINJA_STRING)
            return jinja_fail(m, "keywords must be strings");
        if (out->keyword_count < room &&
            !add_keyword(m, keywords, &out->keyword_count, entry->key.as.string, &entry->value))
            return false;
    }
    return true;
}

bool jinja_evaluate_arguments(JinjaMachine *m, const JinjaCallNodes *nodes, JinjaArguments *out)
{
    *out = (JinjaArguments){0};
    if (!nodes)
        return true;
    JinjaValue list;
    if (nodes->positional.count > 0 || nodes->star) {
        if (!jinja_list_new(m, JINJA_LIST, nodes->positional.count, &list))
            return false;
        for (size_t i = 0; i < nodes->positional.count; i++) {
            JinjaValue value;
            if (!jinja_evaluate(m, nodes->positional.items[i], &value) ||
                !jinja_list_append(m, list.as.list, &value))
                return false;
        }
        if (nodes->star) {
            JinjaValue more, items;
            if (!jinja_evaluate(m, nodes->star, &more) || !jinja_to_list(m, &more, &items))
                return false;
            for (size_t i = 0; i < items.as.list->count; i++) {
                if (!jinja_list_append(m, list.as.list, &items.as.list->items[i]))
                    return false;
            }
        }
        out->items = list.as.list->items;
        out->count = list.as.list->count;
    }
    return evaluate_keywords(m, nodes, out);
}

/* ---- Calling ---- */

bool jinja_call_value(JinjaMachine *m, const JinjaValue *callee, const JinjaArguments *given,
                      JinjaValue *out)
{
    switch (callee->kind) {
    case JINJA_MACRO:
        return jinja_macro_call(m, callee->as.macro, given, out);
    case JINJA_METHOD:
        return jinja_builtin_call(m, callee->as.method->builtin, &callee->as.method->self, given,
                                  out);
    case JINJA_FUNCTION:
        return jinja_builtin_call(m, callee->as.function, &JINJA_VALUE_NONE, given, out);
    case JINJA_LOOP:
        return jinja_loop_recurse(m, callee->as.loop, given, out);
    case JINJA_JOINER: { /* nothing the first time, the separator afterwards */
        JinjaValue *state = callee->as.list->items;
        *out = state[1].as.boolean ? state[0] : jinja_string(SLICE_EMPTY);
        state[1] = jinja_bool(true);
        return true;
    }
    case JINJA_UNDEFINED:
        return jinja_fail_value(m, callee, "is not callable");
    default:
        return jinja_fail(m, "'%s' object is not callable", jinja_type_name(callee));
    }
}

/* A method called in place needs no bound value. */
static bool evaluate_callee(JinjaMachine *m, const JinjaNode *node, JinjaValue *self,
                            JinjaValue *callee)
{
    if (node->kind != NODE_ATTRIBUTE) {
        *self = JINJA_VALUE_ABSENT;
        return jinja_evaluate(m, node, callee);
    }
    if (!jinja_evaluate(m, node->as.attribute.object, self))
        return false;
    m->line = node->line;
    bool unsafe;
    const JinjaBuiltin *method = NULL;
    if (self->kind != JINJA_LOOP && self->kind != JINJA_NAMESPACE && self->kind != JINJA_UNDEFINED)
        method = jinja_method_find(self, node->as.attribute.name, &unsafe);
    if (method) {
        *callee = (JinjaValue){.kind = JINJA_FUNCTION, .as.function = method};
        return true;
    }
    if (!jinja_get_attribute(m, self, node->as.attribute.name, callee))
        return false;
    *self = JINJA_VALUE_ABSENT;
    return true;
}

static bool evaluate_call(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue self, callee;
    JinjaArguments given;
    if (!evaluate_callee(m, node->as.call.callee, &self, &callee) ||
        !jinja_evaluate_arguments(m, node->as.call.arguments, &given))
        return false;
    m->line = node->line;
    if (self.kind != JINJA_ABSENT)
        return jinja_builtin_call(m, callee.as.function, &self, &given, out);
    return jinja_call_value(m, &callee, &given, out);
}

/* A filter or test. One without a subject begins the chain of a filter block and takes its text. */
static bool evaluate_apply(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue subject = m->captured;
    JinjaArguments given;
    if (node->as.apply.subject && !jinja_evaluate(m, node->as.apply.subject, &subject))
        return false;
    m->line = node->line;
    if (!node->as.apply.builtin)
        return jinja_fail(m, "No %s named '%.*s'.", node->kind == NODE_FILTER ? "filter" : "test",
                          SLICE_ARG(node->as.apply.name));
    if (!jinja_evaluate_arguments(m, node->as.apply.arguments, &given))
        return false;
    m->line = node->line;
    return jinja_builtin_call(m, node->as.apply.builtin, &subject, &given, out);
}

/* ---- The kinds of expression ---- */

static bool evaluate_name(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    *out = get_variable(m, node->as.name.id);
    if (out->kind == JINJA_ABSENT)
        *out = jinja_undefined(JINJA_MISSING_VARIABLE, node->as.name.text);
    return true;
}

static bool evaluate_list(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue list;
    if (!jinja_list_new(m, node->kind == NODE_TUPLE ? JINJA_TUPLE : JINJA_LIST,
                        node->as.nodes.count, &list))
        return false;
    for (size_t i = 0; i < node->as.nodes.count; i++) {
        JinjaValue item;
        if (!jinja_evaluate(m, node->as.nodes.items[i], &item) ||
            !jinja_list_append(m, list.as.list, &item))
            return false;
    }
    *out = list;
    return true;
}

static bool evaluate_dict(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue dict;
    if (!jinja_dict_new(m, node->as.nodes.count / 2, &dict))
        return false;
    for (size_t i = 0; i + 1 < node->as.nodes.count; i += 2) {
        JinjaValue key, value;
        if (!jinja_evaluate(m, node->as.nodes.items[i], &key) ||
            !jinja_evaluate(m, node->as.nodes.items[i + 1], &value) ||
            !jinja_dict_set(m, dict.as.dict, &key, &value))
            return false;
    }
    *out = dict;
    return true;
}

static bool evaluate_concat(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    if (node->escape == JINJA_ESCAPE_ALWAYS) {
        JinjaValue parts;
        return evaluate_list(m, node, &parts) && jinja_join_markup(m, parts.as.list, out);
    }
    JinjaValue joined = jinja_string(SLICE_EMPTY);
    for (size_t i = 0; i < node->as.nodes.count; i++) {
        JinjaValue part;
        Slice text;
        if (!jinja_evaluate(m, node->as.nodes.items[i], &part) || !jinja_to_text(m, &part, &text))
            return false;
        if (joined.as.string.len == 0)
            joined = jinja_string(text);
        else if (text.len > 0 && !jinja_concatenate(m, joined.as.string, text, &joined))
            return false;
    }
    *out = joined;
    return true;
}

static bool evaluate_slice_part(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    *out = JINJA_VALUE_ABSENT;
    return !node || jinja_evaluate(m, node, out);
}

static bool evaluate_item(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    const JinjaNode *index = node->as.item.index;
    JinjaValue object, key, parts[3];
    if (!jinja_evaluate(m, node->as.item.object, &object))
        return false;
    if (index->kind != NODE_SLICE) {
        if (!jinja_evaluate(m, index, &key))
            return false;
        m->line = node->line;
        return jinja_get_item(m, &object, &key, out);
    }
    if (!evaluate_slice_part(m, index->as.slice.start, &parts[0]) ||
        !evaluate_slice_part(m, index->as.slice.stop, &parts[1]) ||
        !evaluate_slice_part(m, index->as.slice.step, &parts[2]))
        return false;
    m->line = node->line;
    return jinja_get_slice(m, &object, parts, out);
}

static bool evaluate_binary(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue left, right;
    if (!jinja_evaluate(m, node->as.binary.left, &left) ||
        !jinja_evaluate(m, node->as.binary.right, &right))
        return false;
    m->line = node->line;
    return jinja_operate(m, node->as.binary.op, &left, &right, out);
}

/* The operand that decides is the result, as in Python. */
static bool evaluate_logical(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    if (!jinja_evaluate(m, node->as.binary.left, out))
        return false;
    if (jinja_truth(out) != (node->kind == NODE_AND))
        return true;
    return jinja_evaluate(m, node->as.binary.right, out);
}

static bool compare_pair(JinjaMachine *m, JinjaTokenKind op, const JinjaValue *a,
                         const JinjaValue *b, bool *out)
{
    int order = 0;
    switch (op) {
    case TOKEN_EQ:
        return jinja_equal(m, a, b, out);
    case TOKEN_NE:
        if (!jinja_equal(m, a, b, out))
            return false;
        *out = !*out;
        return true;
    case TOKEN_IN:
        return jinja_contains(m, b, a, out);
    case TOKEN_NOT_IN:
        if (!jinja_contains(m, b, a, out))
            return false;
        *out = !*out;
        return true;
    default:
        if (!jinja_compare(m, a, b, jinja_token_name(op), &order))
            return false;
        *out = op == TOKEN_LT   ? order == -1
               : op == TOKEN_GT ? order == 1
               : op == TOKEN_LE ? order == -1 || order == 0
                                : order == 1 || order == 0;
        return true;
    }
}

/* a < b < c: each value once, stopping at the first that does not hold. */
static bool evaluate_compare(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue left, right;
    bool holds = true;
    if (!jinja_evaluate(m, node->as.compare.first, &left))
        return false;
    for (size_t i = 0; holds && i < node->as.compare.count; i++) {
        const JinjaOperand *operand = &node->as.compare.operands[i];
        if (!jinja_evaluate(m, operand->value, &right))
            return false;
        m->line = node->line;
        if (!compare_pair(m, operand->op, &left, &right, &holds))
            return false;
        left = right;
    }
    *out = jinja_bool(holds);
    return true;
}

static bool evaluate_condition(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue test;
    if (!jinja_evaluate(m, node->as.condition.test, &test))
        return false;
    if (jinja_truth(&test))
        return jinja_evaluate(m, node->as.condition.yes, out);
    if (node->as.condition.no)
        return jinja_evaluate(m, node->as.condition.no, out);
    *out = jinja_undefined(JINJA_MISSING_HINT,
                           SLICE("the inline if-expression evaluated to false and no "
                                 "else section was defined."));
    return true;
}

static bool evaluate_unary(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue operand;
    if (!jinja_evaluate(m, node->as.operand, &operand))
        return false;
    m->line = node->line;
    if (node->kind != NODE_NOT)
        return jinja_negate(m, node->kind == NODE_NEGATE, &operand, out);
    *out = jinja_bool(!jinja_truth(&operand));
    return true;
}

static bool evaluate_attribute(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    JinjaValue object;
    if (!jinja_evaluate(m, node->as.attribute.object, &object))
        return false;
    m->line = node->line;
    return jinja_get_attribute(m, &object, node->as.attribute.name, out);
}

static bool evaluate_node(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    switch (node->kind) {
    case NODE_CONST:
        *out = node->as.constant;
        return true;
    case NODE_NAME:
        return evaluate_name(m, node, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return evaluate_list(m, node, out);
    case NODE_DICT:
        return evaluate_dict(m, node, out);
    case NODE_CONCAT:
        return evaluate_concat(m, node, out);
    case NODE_ATTRIBUTE:
        return evaluate_attribute(m, node, out);
    case NODE_ITEM:
        return evaluate_item(m, node, out);
    case NODE_CALL:
        return evaluate_call(m, node, out);
    case NODE_FILTER:
    case NODE_TEST:
        return evaluate_apply(m, node, out);
    case NODE_NOT:
    case NODE_NEGATE:
    case NODE_PLUS:
        return evaluate_unary(m, node, out);
    case NODE_BINARY:
        return evaluate_binary(m, node, out);
    case NODE_AND:
    case NODE_OR:
        return evaluate_logical(m, node, out);
    case NODE_COMPARE:
        return evaluate_compare(m, node, out);
    case NODE_CONDITION:
        return evaluate_condition(m, node, out);
    default:
        return error_set(m->err, ERROR_INTERNAL, "jinja: node kind %d is no expression",
                         (int)node->kind);
    }
}

bool jinja_evaluate(JinjaMachine *m, const JinjaNode *node, JinjaValue *out)
{
    if (!jinja_enter(m))
        return false;
    bool ok = evaluate_node(m, node, out);
    m->depth--;
    return ok;
}
