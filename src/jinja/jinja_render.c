/* Templates and renderings: creation, the machine's limits and messages, and the entry point. */
#include "jinja_machine.h"

#include <stdio.h>
#include <string.h>

/* ---- Failing and limits ---- */

bool jinja_fail(JinjaMachine *m, const char *format, ...)
{
    char message[ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    return error_set(m->err, ERROR_INVALID, "%s:%u: %s", m->tmpl->name, m->line, message);
}

bool jinja_fail_value(JinjaMachine *m, const JinjaValue *value, const char *what)
{
    if (!jinja_is_undefined(value))
        return jinja_fail(m, "'%s' object %s", jinja_type_name(value), what);
    Slice name = value->as.string;
    JinjaValue object = {.kind = (JinjaKind)(value->detail >> 8)};
    const char *type = jinja_type_name(&object);
    switch ((JinjaMissing)(value->detail & 0xFF)) {
    case JINJA_MISSING_VARIABLE:
        return jinja_fail(m, "'%.*s' is undefined", SLICE_ARG(name));
    case JINJA_MISSING_ATTRIBUTE:
        if (object.kind == JINJA_NONE)
            return jinja_fail(m, "'None' has no attribute '%.*s'", SLICE_ARG(name));
        return jinja_fail(m, "'%s object' has no attribute '%.*s'", type, SLICE_ARG(name));
    case JINJA_MISSING_ELEMENT:
        return jinja_fail(m, "%s object has no element %.*s", type, SLICE_ARG(name));
    case JINJA_MISSING_PARAMETER:
        return jinja_fail(m, "parameter '%.*s' was not provided", SLICE_ARG(name));
    case JINJA_MISSING_UNSAFE:
        return jinja_fail(m, "access to attribute '%.*s' is unsafe.", SLICE_ARG(name));
    default:
        return jinja_fail(m, "%.*s", SLICE_ARG(name));
    }
}

bool jinja_fail_limit(JinjaMachine *m, const char *what, size_t limit)
{
    return error_set(m->err, ERROR_LIMIT, "%s:%u: %s exceeds %zu", m->tmpl->name, m->line, what,
                     limit);
}

bool jinja_charge(JinjaMachine *m, size_t steps)
{
    if (steps > m->steps_max - m->steps)
        return jinja_fail_limit(m, "steps of one rendering", (size_t)m->steps_max);
    m->steps += steps;
    return true;
}

void jinja_note_work(JinjaMachine *m, size_t steps)
{
    m->steps = steps < m->steps_max - m->steps ? m->steps + steps : m->steps_max;
}

void *jinja_allocate(JinjaMachine *m, size_t count, size_t size)
{
    size_t bytes;
    void *memory = NULL;
    if (size_multiply(count, size, &bytes) && bytes <= JINJA_MEMORY_BYTES_MAX) {
        memory = arena_allocate(&m->arena, bytes);
        if (memory)
            return memory;
        if (m->arena.total <= JINJA_MEMORY_BYTES_MAX - bytes) {
            error_no_memory(m->err, "template rendering");
            return NULL;
        }
    }
    jinja_fail_limit(m, "memory of one rendering", JINJA_MEMORY_BYTES_MAX);
    return NULL;
}

/* Cuts a stack-like buffer back to mark and copies what stood there. */
static bool cut_text(JinjaMachine *m, Buffer *buffer, size_t mark, JinjaValue *out)
{
    if (buffer->failed) {
        if (buffer->over_limit)
            return jinja_fail_limit(m, "text", buffer->max);
        return error_no_memory(m->err, "template text");
    }
    if (buffer->len == mark) {
        *out = jinja_string(SLICE_EMPTY);
        return true;
    }
    bool ok = jinja_string_copy(m, (Slice){buffer->ptr + mark, buffer->len - mark}, out);
    buffer->len = mark;
    return ok;
}

bool jinja_text_finish(JinjaMachine *m, size_t mark, JinjaValue *out)
{
    return cut_text(m, &m->text, mark, out);
}

bool jinja_capture_finish(JinjaMachine *m, size_t mark, JinjaValue *out)
{
    return cut_text(m, &m->out, mark, out);
}

/* ---- Templates ---- */

/* CRLF and CR become LF, and one newline at the end goes. */
static bool normalise_source(JinjaTemplate *tmpl, Slice source, Slice *out, Error *err)
{
    char *text = arena_allocate(&tmpl->arena, source.len + 1);
    if (!text)
        return error_no_memory(err, "template");
    size_t len = 0;
    for (size_t i = 0; i < source.len; i++) {
        char c = source.ptr[i];
        if (c == '\r' && i + 1 < source.len && source.ptr[i + 1] == '\n')
            continue;
        text[len++] = c == '\r' ? '\n' : c;
    }
    if (len > 0 && text[len - 1] == '\n')
        len--;
    *out = (Slice){text, len};
    return true;
}

bool jinja_template_create(Slice source, const char *name, JinjaTemplate **out, Error *err)
{
    *out = NULL;
    if (source.len > JINJA_SOURCE_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "%s: template of %zu bytes exceeds %d", name, source.len,
                         JINJA_SOURCE_BYTES_MAX);
    if (!utf8_is_valid(source))
        return error_set(err, ERROR_INVALID, "%s: template is not valid UTF-8", name);
    JinjaTemplate *tmpl = memory_allocate_zeroed(1, sizeof(*tmpl));
    if (!tmpl)
        return error_no_memory(err, "template");
    /* A byte of source makes at most one node and a few list places. */
    arena_init(&tmpl->arena, (size_t)1 << 30);
    Slice text;
    tmpl->name = arena_copy_string(&tmpl->arena, slice_of(name));
    if (!tmpl->name)
        error_no_memory(err, "template");
    else if (normalise_source(tmpl, source, &text, err) && jinja_parse(tmpl, text, err))
        *out = tmpl;
    if (!*out)
        jinja_template_free(tmpl);
    return *out != NULL;
}

void jinja_template_free(JinjaTemplate *tmpl)
{
    if (!tmpl)
        return;
    arena_reset(&tmpl->arena);
    memory_free(tmpl);
}

/* ---- Rendering ---- */

static bool define_globals(JinjaMachine *m)
{
    size_t count = m->tmpl->names.count;
    m->variables = jinja_allocate(m, count + 1, sizeof(JinjaValue));
    if (!m->variables)
        return false;
    for (size_t i = 0; i < count; i++)
        m->variables[i] = JINJA_VALUE_ABSENT;
    const JinjaBuiltin *global;
    for (size_t i = 0; (global = jinja_global_at(i)) != NULL; i++) {
        size_t id = jinja_names_find(&m->tmpl->names, slice_of(global->name));
        if (id != SIZE_MAX)
            m->variables[id] = (JinjaValue){.kind = JINJA_FUNCTION, .as.function = global};
    }
    return true;
}

/* Only the variables whose names occur in the template are converted. */
static bool define_variables(JinjaMachine *m, const JsonValue *object)
{
    for (size_t i = 0; json_is(object, JSON_OBJECT) && i < object->as.object.count; i++) {
        const JsonMember *member = &object->as.object.members[i];
        size_t id = jinja_names_find(&m->tmpl->names, member->key);
        if (id != SIZE_MAX && !jinja_value_from_json(m, &member->value, &m->variables[id]))
            return false;
    }
    return true;
}

bool jinja_template_render(const JinjaTemplate *tmpl, const JinjaContext *context, Buffer *out,
                           Error *err)
{
    JinjaMachine m = {.tmpl = tmpl, .context = context, .err = err, .line = 1};
    m.steps_max = JINJA_STEPS_MAX;
    if (context->steps_max > 0 && context->steps_max < m.steps_max)
        m.steps_max = context->steps_max;
    arena_init(&m.arena, JINJA_MEMORY_BYTES_MAX);
    buffer_init(&m.out, JINJA_OUTPUT_BYTES_MAX);
    buffer_init(&m.text, JINJA_OUTPUT_BYTES_MAX);
    bool ok = define_globals(&m) && define_variables(&m, context->variables) &&
              define_variables(&m, context->more) && jinja_execute(&m, &tmpl->body);
    if (ok) {
        size_t before = out->len;
        buffer_append_slice(out, buffer_view(&m.out));
        ok = buffer_check(out, "rendered template", err);
        out->len = ok ? out->len : before;
    }
    buffer_reset(&m.text);
    buffer_reset(&m.out);
    arena_reset(&m.arena);
    return ok;
}
