/* grammar: what a text may consist of, byte by byte, and which tokens may come next.
 *
 * A Grammar is compiled from a JSON Schema, a regular expression, a list of choices or a GBNF
 * grammar. A GrammarRun is one text's place in it: it takes bytes or tokens, says whether the text
 * may end here, which bytes must come, and which tokens of a vocabulary may. A token is allowed
 * exactly when its bytes are, across whatever borders. No run can get stuck: every place it reaches
 * leads to an accepted text, by bytes and by tokens (bytes without a token of their own are taken
 * out of the grammar).
 *
 * The room knows bytes only. Tokens come as a table of byte strings; end-of-text tokens are the
 * caller's. Threads: a Grammar and its runs may be used by any threads, one call at a time is
 * served (masks are shared by all runs of a grammar); a GrammarCache by any threads. */
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include "base.h"
#include "markup.h"

/* ---- Vocabulary ---- */

typedef struct GrammarVocabulary GrammarVocabulary;

enum {
    GRAMMAR_TOKENS_MAX = 1 << 22,
    GRAMMAR_TOKEN_BYTES_MAX = 4096,      /* longer tokens are never allowed */
    GRAMMAR_TOTAL_BYTES_MAX = 256 << 20, /* of all tokens */
};

/* tokens [count]: the bytes each id appends to the text; an empty one (control tokens) is never
 * allowed. Nothing of it is kept. Takes about 0.1 s for 150k tokens. */
bool grammar_vocabulary_create(const Slice *tokens, size_t count, GrammarVocabulary **out,
                               Error *err) WARN_UNUSED;
/* Gives up the caller's reference (accepts NULL); grammars made with it hold one each. */
void grammar_vocabulary_release(GrammarVocabulary *vocabulary);
size_t grammar_vocabulary_size(const GrammarVocabulary *vocabulary);
size_t grammar_vocabulary_bytes(const GrammarVocabulary *vocabulary); /* of memory */

/* ---- Grammar ---- */

typedef enum GrammarKind {
    GRAMMAR_JSON_OBJECT, /* any JSON object */
    GRAMMAR_JSON_SCHEMA, /* text: the schema, as JSON */
    GRAMMAR_REGEX,       /* text: the whole reply matches it */
    GRAMMAR_CHOICE,      /* choices: the reply is one of them */
    GRAMMAR_GBNF,        /* text: llama.cpp's notation, start rule `root` */
    GRAMMAR_REPLY,       /* reply: reasoning, content and tool calls */
} GrammarKind;

typedef struct GrammarReply GrammarReply;

typedef struct GrammarSource {
    GrammarKind kind;
    Slice text;
    const Slice *choices;
    size_t n_choices;
    bool ignores_unknown; /* schema keywords that are not known are reported and not errors */
    const GrammarReply *reply;
} GrammarSource;

typedef struct GrammarTool {
    Slice name;
    GrammarSource arguments; /* a schema of objects */
} GrammarTool;

/* A whole reply, as its markup divides it. Reasoning is any text. Free content is any text too;
 * where it opens calls, nothing but calls of these tools follow. Bound content is one text of the
 * source, or calls in its place. */
struct GrammarReply {
    const Markup *markup;         /* only_at_start: just when the content is bound, or a must */
    const GrammarSource *content; /* NULL: free; not a GRAMMAR_REPLY */
    const GrammarTool *tools;
    size_t n_tools;  /* 0: no calls */
    bool needs_call; /* a call in place of all content, which is then not looked at */
    bool one_call;   /* and not several in a row */
};

enum {
    GRAMMAR_SOURCE_BYTES_MAX = 4 << 20,
    GRAMMAR_IGNORED_MAX = 20,
};

typedef struct Grammar Grammar;

/* vocabulary may be NULL (no masks then). The caller owns one
 * reference. Errors: ERROR_INVALID and ERROR_UNSUPPORTED with the place (for schemas "#/...: why"),
 * ERROR_LIMIT when it would become too large, ERROR_MEMORY. Something that no text can satisfy is
 * ERROR_INVALID, also when it is one tool of a reply only. */
bool grammar_create(const GrammarSource *source, GrammarVocabulary *vocabulary, Grammar **out,
                    Error *err) WARN_UNUSED;
void grammar_retain(Grammar *grammar);
void grammar_release(Grammar *grammar); /* accepts NULL */
/* Names of schema keywords that were ignored, at most GRAMMAR_IGNORED_MAX; borrowed. */
const Slice *grammar_ignored(const Grammar *grammar, size_t *count);
size_t grammar_bytes(const Grammar *grammar); /* of memory, now */

/* ---- Cache ---- */

/* Compiled grammars by source: the last used, within a number and a memory limit. */
typedef struct GrammarCache GrammarCache;

/* vocabulary must outlive the cache. */
bool grammar_cache_create(GrammarVocabulary *vocabulary, GrammarCache **out,
                          Error *err) WARN_UNUSED;
void grammar_cache_free(GrammarCache *cache);
/* As grammar_create; the caller owns one reference to *out. */
bool grammar_cache_get(GrammarCache *cache, const GrammarSource *source, Grammar **out,
                       Error *err) WARN_UNUSED;

/* ---- Run ---- */

typedef struct GrammarRun GrammarRun;

/* At the start of the text. Holds a reference to the grammar. */
bool grammar_run_create(Grammar *grammar, GrammarRun **out, Error *err) WARN_UNUSED;
bool grammar_run_copy(const GrammarRun *run, GrammarRun **out, Error *err) WARN_UNUSED;
void grammar_run_free(GrammarRun *run); /* accepts NULL */

/* ERROR_INVALID: the bytes (or the token) cannot come here, and the run stays where it was.
 * ERROR_LIMIT: the grammar is too ambiguous for its memory and work limits. */
bool grammar_run_accept_bytes(GrammarRun *run, Slice bytes, Error *err) WARN_UNUSED;
bool grammar_run_accept_token(GrammarRun *run, int32_t id, Error *err) WARN_UNUSED;
/* How many bytes from the start of `bytes` can come; the run stays where it is. */
bool grammar_run_count_bytes(GrammarRun *run, Slice bytes, size_t *count, Error *err) WARN_UNUSED;

bool grammar_run_can_end(const GrammarRun *run);
/* The text can end and nothing can follow. */
bool grammar_run_is_finished(const GrammarRun *run);
/* The bytes that must come now, as long as there is no choice: at most `size`, 0 when there is one.
 */
bool grammar_run_forced_bytes(GrammarRun *run, char *out, size_t size, size_t *len,
                              Error *err) WARN_UNUSED;

/* Tokens that may come next: bit id % 64 of word id / 64, over the vocabulary's size. The words
 * belong to the grammar and hold until the next call on any run of it. Cost: a look-up where the
 * same place was met before; else a walk over the vocabulary, cut to what differs from ordinary
 * text. */
bool grammar_run_view_mask(GrammarRun *run, const uint64_t **words, Error *err) WARN_UNUSED;
/* Writes -INFINITY to the logits [count] of all tokens that may not come next, those beyond the
 * vocabulary included. */
bool grammar_run_mask_logits(GrammarRun *run, float *logits, size_t count, Error *err) WARN_UNUSED;
bool grammar_run_allows_token(GrammarRun *run, int32_t id);

#endif
