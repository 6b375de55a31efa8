/* source: a GrammarSource of any kind to one finished automaton. */
#ifndef GRAMMAR_SOURCE_H
#define GRAMMAR_SOURCE_H

#include "grammar.h"
#include "text.h"

enum {
    SOURCE_IGNORED_BYTES_MAX = 1 << 20,
    SOURCE_CONTRADICTION_BYTES_MAX = 400,
    SOURCE_TOOLS_MAX = 1024,
};

typedef struct SourceCompiler {
    Text *text;
    Slice ignored[GRAMMAR_IGNORED_MAX]; /* names of schema keywords, in the arena */
    size_t n_ignored;
    Arena *ignored_arena;
} SourceCompiler;

/* The text's automaton is initialised and empty. allowed [256]: the bytes that may occur at all, or
 * NULL. */
bool source_compile(SourceCompiler *c, const GrammarSource *source, const bool *allowed,
                    Error *err) WARN_UNUSED;

/* ---- reply.c ---- */

/* The start of a whole reply. tool_rules [reply->n_tools]: the rules of the tools' arguments;
 * content_rule: that of bound content. */
uint32_t reply_add(Text *text, const GrammarReply *reply, const uint32_t *tool_rules,
                   uint32_t content_rule);

#endif
