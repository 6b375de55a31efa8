/* Markup: strings that are HTML already, as MarkupSafe has them.
 *
 * `safe`, `escape` and, where autoescape is on, captured blocks and macros make them. What plain
 * text is joined to them is escaped, and what their methods cut from them is markup again. Without
 * autoescape, which is how chat templates are rendered, printing does not tell them from text. */
#include "jinja_filters.h"

#include <string.h>

bool jinja_is_markup(const JinjaValue *value)
{
    return value->kind == JINJA_STRING && value->detail;
}

bool jinja_append_escaped(JinjaMachine *m, Buffer *out, Slice text)
{
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    static const char marks[] = "&<>'\"";
    for (size_t i = 0; i < text.len; i++) {
        const char *mark = text.ptr[i] ? strchr(marks, text.ptr[i]) : NULL;
        if (mark)
            buffer_append_text(out, entities[mark - marks]);
        else
            buffer_append_byte(out, text.ptr[i]);
    }
    return jinja_charge(m, text.len / 16);
}

bool jinja_append_as_markup(JinjaMachine *m, Buffer *out, const JinjaValue *value)
{
    Slice text;
    if (jinja_is_markup(value))
        return jinja_append_text(m, out, value);
    return jinja_to_text(m, value, &text) && jinja_append_escaped(m, out, text);
}

bool jinja_to_markup(JinjaMachine *m, const JinjaValue *value, JinjaValue *out)
{
    if (jinja_is_markup(value)) {
        *out = *value;
        return true;
    }
    size_t mark = m->text.len;
    if (!jinja_append_as_markup(m, &m->text, value) || !jinja_text_finish(m, mark, out))
        return false;
    out->detail = 1;
    return true;
}

void jinja_mark_all(JinjaValue *value)
{
    if (value->kind == JINJA_STRING)
        value->detail = 1;
    if (value->kind != JINJA_LIST && value->kind != JINJA_TUPLE)
        return;
    for (size_t i = 0; i < value->as.list->count; i++) {
        if (value->as.list->items[i].kind == JINJA_STRING)
            value->as.list->items[i].detail = 1;
    }
}

bool jinja_join_markup(JinjaMachine *m, const JinjaList *parts, JinjaValue *out)
{
    bool markup = false;
    for (size_t i = 0; i < parts->count; i++)
        markup |= jinja_is_markup(&parts->items[i]);
    size_t mark = m->text.len;
    for (size_t i = 0; i < parts->count; i++) {
        if (!(markup ? jinja_append_as_markup(m, &m->text, &parts->items[i])
                     : jinja_append_text(m, &m->text, &parts->items[i])))
            return false;
    }
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = markup;
    return true;
}
