/* Every kind of source builds one rule; a reply builds one for its content and one for each tool's
 * arguments, and joins them. */
#include "source.h"

#include "gbnf.h"
#include "json.h"
#include "regex.h"
#include "schema.h"

#include <string.h>

enum { SCHEMA_TREE_BYTES_MAX = 64 << 20 };

static bool keep_ignored(SourceCompiler *c, const SchemaCompiler *schema, Error *err)
{
    for (size_t i = 0; i < schema->n_ignored && c->n_ignored < GRAMMAR_IGNORED_MAX; i++) {
        Slice name = schema->ignored[i];
        bool is_known = false;
        for (size_t k = 0; k < c->n_ignored; k++)
            is_known |= slice_equal(c->ignored[k], name);
        if (is_known)
            continue;
        if (!arena_copy_slice(c->ignored_arena, name, &c->ignored[c->n_ignored]))
            return error_no_memory(err, "grammar");
        c->n_ignored++;
    }
    return true;
}

/* Each of the following sets the automaton's root. */

static bool build_schema(SourceCompiler *c, const GrammarSource *source,
                         char contradiction[SOURCE_CONTRADICTION_BYTES_MAX], Error *err)
{
    Arena arena;
    SchemaCompiler compiler;
    const JsonValue *schema;
    arena_init(&arena, SCHEMA_TREE_BYTES_MAX);
    if (!json_parse(source->text, &arena, &schema, err)) {
        arena_reset(&arena);
        return false;
    }
    schema_compiler_init(&compiler, c->text, schema, !source->ignores_unknown);
    bool ok = schema_compile(&compiler, err) && keep_ignored(c, &compiler, err);
    memcpy(contradiction, compiler.contradiction, sizeof(compiler.contradiction));
    schema_compiler_reset(&compiler);
    arena_reset(&arena);
    return ok;
}

static bool build_regex(Text *text, const GrammarSource *source, Error *err)
{
    Automaton *a = text->automaton;
    uint32_t start;
    a->root = automaton_add_rule(a, SLICE_EMPTY);
    if (!regex_add(text, source->text, REGEX_WHOLE, TEXT_RAW, AUTOMATON_RETURN, &start, err))
        return false;
    automaton_set_rule(a, a->root, start);
    return true;
}

static bool build_choice(Text *text, const GrammarSource *source, Error *err)
{
    Automaton *a = text->automaton;
    Slice *copy = memory_allocate_array(source->n_choices, sizeof(*copy));
    if (!copy)
        return error_no_memory(err, "choices");
    if (source->n_choices > 0)
        memcpy(copy, source->choices, source->n_choices * sizeof(*copy));
    a->root = automaton_add_rule(a, SLICE_EMPTY);
    automaton_set_rule(a, a->root,
                       text_add_choice(text, copy, source->n_choices, AUTOMATON_RETURN));
    memory_free(copy);
    return true;
}

/* A rule of what the source accepts, not for GRAMMAR_REPLY. contradiction gets what makes a schema
 * impossible, if anything is found to. */
static bool add_rule(SourceCompiler *c, const GrammarSource *source, uint32_t *rule,
                     char contradiction[SOURCE_CONTRADICTION_BYTES_MAX], Error *err)
{
    Automaton *a = c->text->automaton;
    bool ok = false;
    contradiction[0] = '\0';
    if (source->text.len > GRAMMAR_SOURCE_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "%zu bytes, at most %d", source->text.len,
                         GRAMMAR_SOURCE_BYTES_MAX);
    switch (source->kind) {
    case GRAMMAR_JSON_OBJECT:
        a->root = text_get_rule(c->text, TEXT_RULE_OBJECT);
        ok = true;
        break;
    case GRAMMAR_JSON_SCHEMA:
        ok = build_schema(c, source, contradiction, err);
        break;
    case GRAMMAR_REGEX:
        ok = build_regex(c->text, source, err);
        break;
    case GRAMMAR_CHOICE:
        ok = build_choice(c->text, source, err);
        break;
    case GRAMMAR_GBNF:
        ok = gbnf_compile(source->text, c->text, err);
        break;
    case GRAMMAR_REPLY:
        error_set(err, ERROR_INTERNAL, "a reply within a grammar");
        break;
    }
    *rule = a->root;
    return ok;
}

/* Nothing is accepted: say what was found to be impossible, if anything was. */
static bool fail_empty(const GrammarSource *source, const char *contradiction, Error *err)
{
    if (contradiction[0])
        return error_set(err, ERROR_INVALID, "%s", contradiction);
    return error_set(err, ERROR_INVALID,
                     source->kind == GRAMMAR_JSON_SCHEMA ? "#: no document can satisfy this schema"
                                                         : "no text can satisfy this");
}

/* ---- Replies ---- */

typedef struct ReplyPart {
    const GrammarSource *source;
    uint32_t rule;
    char contradiction[SOURCE_CONTRADICTION_BYTES_MAX];
} ReplyPart;

static bool compile_parts(SourceCompiler *c, const GrammarReply *reply, ReplyPart *parts,
                          size_t n_parts, uint32_t *tool_rules, const bool *allowed, Error *err)
{
    Automaton *a = c->text->automaton;
    uint32_t content_rule = 0;
    bool is_empty;
    for (size_t i = 0; i < n_parts; i++) {
        ReplyPart *part = &parts[i];
        bool is_tool = i < reply->n_tools;
        part->source = is_tool ? &reply->tools[i].arguments : reply->content;
        if (!add_rule(c, part->source, &part->rule, part->contradiction, err))
            return is_tool ? error_prefix(err, "tool %.*s", SLICE_ARG(reply->tools[i].name))
                           : false;
        if (is_tool)
            tool_rules[i] = part->rule;
        else
            content_rule = part->rule;
    }
    a->root = automaton_add_rule(a, SLICE_EMPTY);
    automaton_set_rule(a, a->root, reply_add(c->text, reply, tool_rules, content_rule));
    if (!automaton_finish(a, allowed, &is_empty, err))
        return false;
    for (size_t i = 0; i < n_parts; i++) {
        if (a->states[a->rules[parts[i].rule].start].is_live)
            continue;
        fail_empty(parts[i].source, parts[i].contradiction, err);
        return i < reply->n_tools ? error_prefix(err, "tool %.*s", SLICE_ARG(reply->tools[i].name))
                                  : false;
    }
    return !is_empty || error_set(err, ERROR_INVALID, "no reply is possible");
}

static bool compile_reply(SourceCompiler *c, const GrammarReply *reply, const bool *allowed,
                          Error *err)
{
    size_t n_parts = reply->n_tools + (reply->content && !reply->needs_call);
    if (reply->n_tools > SOURCE_TOOLS_MAX)
        return error_set(err, ERROR_LIMIT, "%zu tools, at most %d", reply->n_tools,
                         SOURCE_TOOLS_MAX);
    ReplyPart *parts = memory_allocate_zeroed(n_parts, sizeof(*parts));
    uint32_t *tool_rules = memory_allocate_zeroed(reply->n_tools, sizeof(*tool_rules));
    bool ok = (parts && tool_rules) || error_no_memory(err, "grammar of a reply");
    ok = ok && compile_parts(c, reply, parts, n_parts, tool_rules, allowed, err);
    memory_free(tool_rules);
    memory_free(parts);
    return ok;
}

bool source_compile(SourceCompiler *c, const GrammarSource *source, const bool *allowed, Error *err)
{
    char contradiction[SOURCE_CONTRADICTION_BYTES_MAX];
    uint32_t rule;
    bool is_empty;
    if (source->kind == GRAMMAR_REPLY)
        return compile_reply(c, source->reply, allowed, err);
    if (!add_rule(c, source, &rule, contradiction, err) ||
        !automaton_finish(c->text->automaton, allowed, &is_empty, err))
        return false;
    return !is_empty || fail_empty(source, contradiction, err);
}
