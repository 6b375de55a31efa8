/* Statements: output, branches, loops, macros and captured blocks.
 *
 * Output goes to one buffer. What a macro or block captures is cut off the buffer's end again, so
 * no buffers nest. break and continue travel up as a signal that every body passes on until a loop
 * takes it. Scopes: a loop iteration, macro, with and captured block have their own; an if has
 * none. */
#include "jinja_machine.h"

#include <string.h>

static bool check_output(JinjaMachine *m)
{
    if (!m->out.failed)
        return true;
    if (m->out.over_limit)
        return jinja_fail_limit(m, "output bytes", JINJA_OUTPUT_BYTES_MAX);
    return error_no_memory(m->err, "template output");
}

/* Whether a place in the source escapes now. */
static bool escapes(const JinjaMachine *m, JinjaEscape place)
{
    return place == JINJA_ESCAPE_ALWAYS || (place == JINJA_ESCAPE_ASK && m->autoescape);
}

static bool execute_print(JinjaMachine *m, const JinjaNode *node)
{
    for (size_t i = 0; i < node->as.nodes.count; i++) {
        JinjaValue value;
        if (!jinja_evaluate(m, node->as.nodes.items[i], &value))
            return false;
        m->line = node->line;
        if (!(escapes(m, node->escape) ? jinja_append_as_markup(m, &m->out, &value)
                                       : jinja_append_text(m, &m->out, &value)))
            return false;
    }
    return check_output(m);
}

static bool execute_if(JinjaMachine *m, const JinjaNode *node)
{
    for (size_t i = 0; i < node->as.branches.count; i++) {
        const JinjaBranch *branch = &node->as.branches.branches[i];
        JinjaValue test;
        if (branch->test && !jinja_evaluate(m, branch->test, &test))
            return false;
        if (!branch->test || jinja_truth(&test))
            return jinja_execute(m, &branch->body);
    }
    return true;
}

/* ---- Loops ---- */

/* The next item that passes the inline if; the test sees the target in the scope around the loop.
 */
static bool loop_fetch(JinjaMachine *m, JinjaLoop *loop, JinjaValue *item, bool *more)
{
    for (;;) {
        if (!jinja_next(m, &loop->it, item, more))
            return false;
        if (!*more || !loop->node->filter)
            return true;
        JinjaScope *saved = m->scope;
        JinjaValue passes = JINJA_VALUE_ABSENT;
        m->scope = loop->outer;
        bool ok = jinja_scope_push(m) && jinja_assign(m, loop->node->target, item) &&
                  jinja_evaluate(m, loop->node->filter, &passes);
        m->scope = saved;
        if (!ok)
            return false;
        if (jinja_truth(&passes))
            return true;
    }
}

/* Looks one item ahead; *after is ABSENT at the end. */
static bool loop_peek(JinjaMachine *m, JinjaLoop *loop, JinjaValue *after)
{
    if (!loop->has_after) {
        bool more;
        if (!loop_fetch(m, loop, &loop->after, &more))
            return false;
        if (!more)
            loop->after = JINJA_VALUE_ABSENT;
        loop->has_after = true;
    }
    *after = loop->after;
    return true;
}

/* The number of items; of a filtered or generated sequence only known by fetching the rest. */
static bool loop_length(JinjaMachine *m, JinjaLoop *loop, int64_t *out)
{
    size_t length;
    if (loop->length.kind == JINJA_INT) {
        *out = loop->length.as.integer;
        return true;
    }
    if (loop->node->filter || !jinja_length(&loop->it.source, &length)) {
        JinjaValue rest, after;
        if (!jinja_list_new(m, JINJA_LIST, 0, &rest) || !loop_peek(m, loop, &after))
            return false;
        for (bool more = after.kind != JINJA_ABSENT; more;) {
            JinjaValue item;
            if (!loop_fetch(m, loop, &item, &more) ||
                (more && !jinja_list_append(m, rest.as.list, &item)))
                return false;
        }
        length = rest.as.list->count + (size_t)(loop->index0 + 1) + (after.kind != JINJA_ABSENT);
        JinjaForNode *unfiltered = jinja_allocate(m, 1, sizeof(*unfiltered));
        if (!unfiltered || !jinja_iterate(m, &rest, &loop->it))
            return false;
        *unfiltered = *loop->node;
        unfiltered->filter = NULL; /* the rest has passed the test already */
        loop->node = unfiltered;
    }
    loop->length = jinja_int((int64_t)length);
    *out = (int64_t)length;
    return true;
}

static bool loop_neighbour(JinjaMachine *m, JinjaLoop *loop, bool next, JinjaValue *out)
{
    if (next) {
        if (!loop_peek(m, loop, out))
            return false;
        if (out->kind == JINJA_ABSENT)
            *out = jinja_undefined(JINJA_MISSING_HINT, SLICE("there is no next item"));
        return true;
    }
    *out = loop->index0 > 0
               ? loop->before
               : jinja_undefined(JINJA_MISSING_HINT, SLICE("there is no previous item"));
    return true;
}

bool jinja_loop_attribute(JinjaMachine *m, JinjaLoop *loop, Slice name, JinjaValue *out,
                          bool *found)
{
    int64_t length;
    JinjaValue after;
    *found = true;
    if (slice_equal(name, SLICE("index0"))) {
        *out = jinja_int(loop->index0);
    } else if (slice_equal(name, SLICE("index"))) {
        *out = jinja_int(loop->index0 + 1);
    } else if (slice_equal(name, SLICE("first"))) {
        *out = jinja_bool(loop->index0 == 0);
    } else if (slice_equal(name, SLICE("last"))) {
        if (!loop_peek(m, loop, &after))
            return false;
        *out = jinja_bool(after.kind == JINJA_ABSENT);
    } else if (slice_equal(name, SLICE("previtem")) || slice_equal(name, SLICE("nextitem"))) {
        return loop_neighbour(m, loop, name.ptr[0] == 'n', out);
    } else if (slice_equal(name, SLICE("length")) || slice_equal(name, SLICE("revindex")) ||
               slice_equal(name, SLICE("revindex0"))) {
        if (!loop_length(m, loop, &length))
            return false;
        bool from_zero = slice_equal(name, SLICE("revindex0"));
        *out = jinja_int(name.ptr[0] == 'l' ? length : length - loop->index0 - from_zero);
    } else if (slice_equal(name, SLICE("depth")) || slice_equal(name, SLICE("depth0"))) {
        *out = jinja_int((int64_t)loop->depth0 + (name.len == 5));
    } else {
        *found = false;
    }
    return true;
}

/* One iteration's body in its own scope, which the next one reuses unless a macro holds on to it.
 */
static bool loop_iterate(JinjaMachine *m, JinjaLoop *loop, const JinjaForNode *node,
                         uint32_t loop_name, const JinjaValue *item)
{
    JinjaValue self = {.kind = JINJA_LOOP, .as.loop = loop};
    if (m->scope == loop->outer || m->scope->captured) {
        m->scope = loop->outer;
        if (!jinja_scope_push(m))
            return false;
    }
    m->scope->count = 0;
    if ((loop_name != UINT32_MAX && !jinja_scope_set(m, loop_name, &self)) ||
        !jinja_assign(m, node->target, item))
        return false;
    return jinja_execute(m, &node->body);
}

/* Runs a loop over value; used for the statement and for loop(value) of a recursive one. */
static bool run_loop(JinjaMachine *m, const JinjaForNode *node, const JinjaValue *value,
                     unsigned depth0)
{
    JinjaLoop *loop = jinja_allocate(m, 1, sizeof(*loop));
    if (!loop)
        return false;
    *loop = (JinjaLoop){.node = node, .outer = m->scope, .index0 = -1, .depth0 = depth0};
    if (!jinja_iterate(m, value, &loop->it))
        return false;
    size_t known = jinja_names_find(&m->tmpl->names, SLICE("loop"));
    uint32_t loop_name = known == SIZE_MAX ? UINT32_MAX : (uint32_t)known;
    /* As in jinja2, the else part runs unless some body reached its end: break and continue do not
     * count. */
    bool ok = true, completed = false;
    while (ok) {
        JinjaValue item;
        ok = loop_peek(m, loop, &item);
        if (!ok || item.kind == JINJA_ABSENT)
            break;
        loop->has_after = false;
        loop->index0++;
        loop->before = loop->current;
        loop->current = item;
        ok = loop_iterate(m, loop, node, loop_name, &item);
        JinjaSignal signal = m->signal;
        m->signal = JINJA_SIGNAL_NONE;
        completed |= signal == JINJA_SIGNAL_NONE;
        if (signal == JINJA_SIGNAL_BREAK)
            break;
    }
    m->scope = loop->outer;
    if (!ok || completed || node->otherwise.count == 0)
        return ok;
    ok = jinja_scope_push(m) && jinja_execute(m, &node->otherwise);
    m->scope = loop->outer;
    return ok;
}

static bool execute_for(JinjaMachine *m, const JinjaNode *node)
{
    JinjaValue value;
    if (!jinja_evaluate(m, node->as.loop->iterable, &value))
        return false;
    m->line = node->line;
    return run_loop(m, node->as.loop, &value, 0);
}

static bool enter_call(JinjaMachine *m)
{
    if (m->call_depth >= JINJA_CALL_DEPTH_MAX)
        return jinja_fail_limit(m, "call depth", JINJA_CALL_DEPTH_MAX);
    m->call_depth++;
    return true;
}

bool jinja_loop_recurse(JinjaMachine *m, JinjaLoop *loop, const JinjaArguments *given,
                        JinjaValue *out)
{
    if (!loop->node->recursive)
        return jinja_fail(m, "The loop must have the 'recursive' marker to be called recursively.");
    if (given->count != 1 || given->keyword_count != 0)
        return jinja_fail(m, "loop() takes one argument");
    if (!enter_call(m))
        return false;
    JinjaScope *saved = m->scope;
    size_t mark = m->out.len;
    m->scope = loop->outer;
    bool ok = run_loop(m, loop->node, &given->items[0], loop->depth0 + 1);
    m->scope = saved;
    m->call_depth--;
    if (!ok || !jinja_capture_finish(m, mark, out))
        return false;
    out->detail = escapes(m, loop->node->escape);
    return true;
}

/* ---- Macros ---- */

/* Takes the keyword out of the list of those not yet used. */
static const JinjaValue *take_keyword(JinjaMachine *m, const JinjaArguments *given, bool *used,
                                      Slice name)
{
    jinja_note_work(m, given->keyword_count / 8);
    for (size_t i = 0; i < given->keyword_count; i++) {
        if (!used[i] && slice_equal(given->keywords[i].name, name)) {
            used[i] = true;
            return &given->keywords[i].value;
        }
    }
    return NULL;
}

static bool bind_parameters(JinjaMachine *m, const JinjaMacroNode *node,
                            const JinjaArguments *given, bool *used)
{
    for (size_t i = 0; i < node->count; i++) {
        const JinjaParameter *parameter = &node->parameters[i];
        const JinjaValue *value =
            i < given->count ? &given->items[i] : take_keyword(m, given, used, parameter->text);
        JinjaValue fallback = jinja_undefined(JINJA_MISSING_PARAMETER, parameter->text);
        if (!value && parameter->fallback && !jinja_evaluate(m, parameter->fallback, &fallback))
            return false;
        if (!jinja_scope_set(m, parameter->name, value ? value : &fallback))
            return false;
    }
    return true;
}

static bool set_by_text(JinjaMachine *m, Slice name, const JinjaValue *value)
{
    size_t id = jinja_names_find(&m->tmpl->names, name);
    return id == SIZE_MAX || jinja_scope_set(m, (uint32_t)id, value);
}

static bool has_parameter(const JinjaMacroNode *node, Slice name)
{
    for (size_t i = 0; i < node->count; i++) {
        if (slice_equal(node->parameters[i].text, name))
            return true;
    }
    return false;
}

/* caller, varargs and kwargs exist in a macro whose body names them; what nothing takes is an
 * error. */
static bool bind_extras(JinjaMachine *m, const JinjaMacroNode *node, const JinjaArguments *given,
                        bool *used)
{
    JinjaValue none = jinja_undefined(JINJA_MISSING_HINT, SLICE("No caller defined"));
    if (node->wants_caller && !has_parameter(node, SLICE("caller"))) {
        const JinjaValue *caller = take_keyword(m, given, used, SLICE("caller"));
        if (!set_by_text(m, SLICE("caller"), caller ? caller : &none))
            return false;
    }
    JinjaValue rest;
    if (!jinja_dict_new(m, 0, &rest))
        return false;
    for (size_t i = 0; i < given->keyword_count; i++) {
        JinjaValue key = jinja_string(given->keywords[i].name);
        if (!used[i] && !node->wants_kwargs)
            return jinja_fail(m, "macro '%.*s' takes no keyword argument '%.*s'",
                              SLICE_ARG(node->text), SLICE_ARG(key.as.string));
        if (!used[i] && !jinja_dict_set(m, rest.as.dict, &key, &given->keywords[i].value))
            return false;
    }
    if (node->wants_kwargs && !set_by_text(m, SLICE("kwargs"), &rest))
        return false;
    if (given->count > node->count && !node->wants_varargs)
        return jinja_fail(m, "macro '%.*s' takes not more than %zu argument(s)",
                          SLICE_ARG(node->text), node->count);
    if (!node->wants_varargs)
        return true;
    JinjaValue varargs;
    if (!jinja_list_new(m, JINJA_TUPLE, 0, &varargs))
        return false;
    for (size_t i = node->count; i < given->count; i++) {
        if (!jinja_list_append(m, varargs.as.list, &given->items[i]))
            return false;
    }
    return set_by_text(m, SLICE("varargs"), &varargs);
}

bool jinja_macro_call(JinjaMachine *m, JinjaMacro *macro, const JinjaArguments *given,
                      JinjaValue *out)
{
    const JinjaMacroNode *node = macro->node;
    bool *used = jinja_allocate(m, given->keyword_count + 1, sizeof(*used));
    if (!used || !enter_call(m))
        return false;
    memset(used, 0, (given->keyword_count + 1) * sizeof(*used));
    JinjaScope *saved = m->scope;
    size_t mark = m->out.len;
    m->scope = macro->scope;
    bool ok = jinja_scope_push(m) && bind_parameters(m, node, given, used) &&
              bind_extras(m, node, given, used) && jinja_execute(m, &node->body);
    m->scope = saved;
    m->call_depth--;
    if (!ok || !jinja_capture_finish(m, mark, out))
        return false;
    out->detail = m->autoescape;
    return true;
}

static bool new_macro(JinjaMachine *m, const JinjaMacroNode *node, JinjaValue *out)
{
    JinjaMacro *macro = jinja_allocate(m, 1, sizeof(*macro));
    if (!macro)
        return false;
    *macro = (JinjaMacro){node, m->scope};
    for (JinjaScope *scope = m->scope; scope && !scope->captured; scope = scope->parent)
        scope->captured = true;
    *out = (JinjaValue){.kind = JINJA_MACRO, .as.macro = macro};
    return true;
}

static bool execute_macro(JinjaMachine *m, const JinjaNode *node)
{
    JinjaValue macro;
    return new_macro(m, node->as.macro, &macro) && jinja_scope_set(m, node->as.macro->name, &macro);
}

/* {% call f(x) %}body{% endcall %}: f gets the body as its keyword `caller`. */
static bool execute_call_block(JinjaMachine *m, const JinjaNode *node)
{
    const JinjaNode *call = node->as.call_block.call;
    JinjaArguments given;
    JinjaValue callee, result;
    if (!jinja_evaluate(m, call->as.call.callee, &callee) ||
        !jinja_evaluate_arguments(m, call->as.call.arguments, &given))
        return false;
    JinjaKeyword *keywords = jinja_allocate(m, given.keyword_count + 1, sizeof(*keywords));
    if (!keywords)
        return false;
    if (given.keyword_count)
        memcpy(keywords, given.keywords, given.keyword_count * sizeof(*keywords));
    keywords[given.keyword_count].name = SLICE("caller");
    if (!new_macro(m, node->as.call_block.body, &keywords[given.keyword_count].value))
        return false;
    given.keywords = keywords;
    given.keyword_count++;
    m->line = node->line;
    return jinja_call_value(m, &callee, &given, &result) &&
           jinja_append_text(m, &m->out, &result) && check_output(m);
}

/* ---- Blocks with a scope or a captured body ---- */

static bool execute_scoped(JinjaMachine *m, const JinjaNodes *body)
{
    JinjaScope *saved = m->scope;
    bool ok = jinja_scope_push(m) && jinja_execute(m, body);
    m->scope = saved;
    return ok;
}

/* set blocks and filter blocks: the body's text, filtered, is assigned or printed. */
static bool execute_captured(JinjaMachine *m, const JinjaNode *node)
{
    size_t mark = m->out.len;
    JinjaValue text;
    if (!execute_scoped(m, &node->as.block.body) || !jinja_capture_finish(m, mark, &text))
        return false;
    if (m->signal != JINJA_SIGNAL_NONE)
        return true;
    text.detail = escapes(m, node->escape);
    m->captured = text;
    if (node->as.block.filter && !jinja_evaluate(m, node->as.block.filter, &text))
        return false;
    if (node->kind == NODE_SET_BLOCK) {
        Slice marked;
        if (m->autoescape && !jinja_is_markup(&text)) {
            if (!jinja_to_text(m, &text, &marked))
                return false;
            text = jinja_string(marked);
        }
        if (text.kind == JINJA_STRING && (m->autoescape || !node->as.block.filter))
            text.detail = m->autoescape;
        return jinja_assign(m, node->as.block.target, &text);
    }
    if (!jinja_is_string(&text))
        return jinja_fail(m, "a filter block's filter gave %s, expected str",
                          jinja_type_name(&text));
    return jinja_append_text(m, &m->out, &text) && check_output(m);
}

/* jinja2 restores the setting behind the body, so a jump out of the body leaves it as it is. */
static bool execute_autoescape(JinjaMachine *m, const JinjaNode *node)
{
    JinjaValue setting;
    bool around = m->autoescape;
    if (!jinja_evaluate(m, node->as.block.filter, &setting))
        return false;
    m->autoescape = jinja_truth(&setting);
    if (!execute_scoped(m, &node->as.block.body))
        return false;
    if (m->signal == JINJA_SIGNAL_NONE)
        m->autoescape = around;
    return true;
}

/* The values are evaluated outside, then all targets are set inside. */
static bool execute_with(JinjaMachine *m, const JinjaNode *node)
{
    size_t count = node->as.with.targets.count;
    JinjaValue *values = jinja_allocate(m, count + 1, sizeof(*values));
    if (!values)
        return false;
    for (size_t i = 0; i < count; i++) {
        if (!jinja_evaluate(m, node->as.with.values.items[i], &values[i]))
            return false;
    }
    JinjaScope *saved = m->scope;
    bool ok = jinja_scope_push(m) != NULL;
    for (size_t i = 0; ok && i < count; i++)
        ok = jinja_assign(m, node->as.with.targets.items[i], &values[i]);
    ok = ok && jinja_execute(m, &node->as.with.body);
    m->scope = saved;
    return ok;
}

static bool execute_set(JinjaMachine *m, const JinjaNode *node)
{
    JinjaValue value;
    if (!jinja_evaluate(m, node->as.set.value, &value))
        return false;
    m->line = node->line;
    return jinja_assign(m, node->as.set.target, &value);
}

static bool execute_node(JinjaMachine *m, const JinjaNode *node)
{
    m->line = node->line;
    switch (node->kind) {
    case NODE_TEXT:
        buffer_append_slice(&m->out, node->as.text);
        return jinja_charge(m, node->as.text.len / 256) && check_output(m);
    case NODE_PRINT:
        return execute_print(m, node);
    case NODE_IF:
        return execute_if(m, node);
    case NODE_FOR:
        return execute_for(m, node);
    case NODE_SET:
        return execute_set(m, node);
    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
        return execute_captured(m, node);
    case NODE_MACRO:
        return execute_macro(m, node);
    case NODE_CALL_BLOCK:
        return execute_call_block(m, node);
    case NODE_WITH:
        return execute_with(m, node);
    case NODE_SCOPE:
        return execute_scoped(m, &node->as.block.body);
    case NODE_AUTOESCAPE:
        return execute_autoescape(m, node);
    case NODE_BREAK:
        m->signal = JINJA_SIGNAL_BREAK;
        return true;
    case NODE_CONTINUE:
        m->signal = JINJA_SIGNAL_CONTINUE;
        return true;
    default:
        return error_set(m->err, ERROR_INTERNAL, "jinja: node kind %d is no statement",
                         (int)node->kind);
    }
}

bool jinja_execute(JinjaMachine *m, const JinjaNodes *body)
{
    bool ok = true;
    for (size_t i = 0; ok && i < body->count && m->signal == JINJA_SIGNAL_NONE; i++) {
        ok = jinja_enter(m);
        if (ok) {
            ok = execute_node(m, body->items[i]);
            m->depth--;
        }
    }
    return ok;
}
