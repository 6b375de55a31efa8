/* A grammar's run as a constraint, and a tokenizer's tokens as its vocabulary.
 *
 * Where the grammar leaves no choice of bytes, the model is not asked how to cut them into tokens:
 * they come as the tokenizer cuts them behind the last few tokens of the reply, as far as no text
 * that may follow would change the cut. That is what the model saw in training, and the rule holds
 * whether or not the tokens then go to the engine together. */
#include "generate.h"

#include <string.h>

enum {
    RECENT_TOKENS = 8, /* of the reply, that the cut looks back on */
    FORCED_BYTES_MAX = 512,
};

/* Texts that may follow, one of a kind: letters, digits, punctuation, spaces, lines. The last token
 * of a stretch is never certain; the ones before it are, when none of these changes them. */
static const char *const FOLLOWERS[] = {"a", "0", "\"", " ", "\n"};

typedef struct GrammarConstraint {
    Constraint base; /* first */
    GrammarRun *run;
    const Tokenizer *tokenizer;
    int32_t recent[RECENT_TOKENS]; /* [n_recent] the last tokens, oldest first */
    size_t n_recent;
} GrammarConstraint;

static bool constraint_of_run(const GrammarConstraint *from, GrammarRun *run, Constraint **out,
                              Error *err);

static bool fill_mask(Constraint *constraint, float *logits, size_t vocab_size, Error *err)
{
    return grammar_run_mask_logits(((GrammarConstraint *)constraint)->run, logits, vocab_size, err);
}

static bool allows_token(Constraint *constraint, int32_t id)
{
    return grammar_run_allows_token(((GrammarConstraint *)constraint)->run, id);
}

static bool accept_token(Constraint *constraint, int32_t id, Error *err)
{
    GrammarConstraint *own = (GrammarConstraint *)constraint;
    if (!grammar_run_accept_token(own->run, id, err))
        return false;
    if (own->n_recent == RECENT_TOKENS)
        memmove(own->recent, own->recent + 1, --own->n_recent * sizeof(*own->recent));
    own->recent[own->n_recent++] = id;
    return true;
}

/* ---- Certain tokens ---- */

/* The tokens of text, marks of replies as tokens of their own. Where that makes a special token
 * which is no text (a caller's enum holds an end of turn), text is letters all through, as the
 * grammar's vocabulary has it. */
static bool encode_text(const Tokenizer *tokenizer, Slice text, TokenList *out, Error *err)
{
    if (!tokenizer_encode(tokenizer, text, false, out, err))
        return false;
    for (size_t i = 0; i < out->count; i++) {
        if (!tokenizer_is_skipped(tokenizer, out->ids[i]))
            continue;
        out->count = 0;
        return tokenizer_encode_plain(tokenizer, text, false, out, err);
    }
    return true;
}

/* How many tokens make the first `length` bytes of text, and *all: do the tokens spell text? A
 * tokenizer may put a space in front of it. SIZE_MAX: no token ends there. */
static bool find_cut(const Tokenizer *tokenizer, const TokenList *tokens, Slice text, size_t length,
                     size_t *cut, Error *err)
{
    Buffer bytes;
    buffer_init(&bytes, SIZE_MAX);
    bool ok = true, has_space = false;
    *cut = length == 0 ? 0 : SIZE_MAX;
    for (size_t i = 0; ok && i < tokens->count; i++) {
        ok = tokenizer_append_token_bytes(tokenizer, tokens->ids[i], &bytes, err);
        has_space = bytes.len > 0 && bytes.ptr[0] == ' ' && (text.len == 0 || text.ptr[0] != ' ');
        if (bytes.len - has_space == length && length > 0)
            *cut = i + 1;
    }
    Slice spelled = buffer_view(&bytes);
    if (has_space)
        spelled = (Slice){spelled.ptr + 1, spelled.len - 1};
    if ((has_space && length == 0) || !slice_equal(spelled, text))
        *cut = SIZE_MAX;
    buffer_reset(&bytes);
    return ok;
}

static size_t count_common(const TokenList *a, const TokenList *b)
{
    size_t n = 0;
    while (n < a->count && n < b->count && a->ids[n] == b->ids[n])
        n++;
    return n;
}

/* How many of the tokens of text stay whatever follows. */
static bool count_certain(const Tokenizer *tokenizer, Slice text, const TokenList *tokens,
                          size_t *certain, Error *err)
{
    Buffer longer;
    bool ok = true;
    *certain = tokens->count > 0 ? tokens->count - 1 : 0;
    buffer_init(&longer, SIZE_MAX);
    for (size_t i = 0; ok && i < ARRAY_COUNT(FOLLOWERS) && *certain > 0; i++) {
        TokenList other = {0};
        buffer_clear(&longer);
        buffer_append_slice(&longer, text);
        buffer_append_text(&longer, FOLLOWERS[i]);
        ok = buffer_check(&longer, "text of a constraint", err) &&
             encode_text(tokenizer, buffer_view(&longer), &other, err);
        size_t common = count_common(tokens, &other);
        *certain = common < *certain ? common : *certain;
        token_list_reset(&other);
    }
    buffer_reset(&longer);
    return ok;
}

/* The last tokens' text, and how long that is. */
static bool append_recent(const GrammarConstraint *own, Buffer *text, Error *err)
{
    for (size_t i = 0; i < own->n_recent; i++) {
        if (!tokenizer_append_token_bytes(own->tokenizer, own->recent[i], text, err))
            return false;
    }
    return buffer_check(text, "text of a constraint", err);
}

static bool append_forced(Constraint *constraint, TokenList *out, Error *err)
{
    GrammarConstraint *own = (GrammarConstraint *)constraint;
    char forced[FORCED_BYTES_MAX];
    size_t length, cut = SIZE_MAX, certain = 0;
    if (!grammar_run_forced_bytes(own->run, forced, sizeof(forced), &length, err))
        return false;
    if (length < 2)
        return true;
    Buffer text;
    TokenList tokens = {0};
    buffer_init(&text, SIZE_MAX);
    bool ok = append_recent(own, &text, err);
    size_t before = text.len;
    buffer_append(&text, forced, length);
    Slice whole = buffer_view(&text);
    ok = ok && buffer_check(&text, "text of a constraint", err);
    if (ok && utf8_is_valid(whole))
        ok = encode_text(own->tokenizer, whole, &tokens, err) &&
             find_cut(own->tokenizer, &tokens, whole, before, &cut, err) &&
             (cut == SIZE_MAX || count_certain(own->tokenizer, whole, &tokens, &certain, err));
    for (size_t i = cut; ok && i < certain; i++)
        ok = token_list_append(out, tokens.ids[i], err);
    token_list_reset(&tokens);
    buffer_reset(&text);
    return ok;
}

static bool can_end(const Constraint *constraint)
{
    return grammar_run_can_end(((const GrammarConstraint *)constraint)->run);
}

static bool is_finished(const Constraint *constraint)
{
    return grammar_run_is_finished(((const GrammarConstraint *)constraint)->run);
}

static bool copy(const Constraint *constraint, Constraint **out, Error *err)
{
    const GrammarConstraint *own = (const GrammarConstraint *)constraint;
    GrammarRun *run;
    *out = NULL;
    return grammar_run_copy(own->run, &run, err) && constraint_of_run(own, run, out, err);
}

static void free_constraint(Constraint *constraint)
{
    grammar_run_free(((GrammarConstraint *)constraint)->run);
    memory_free(constraint);
}

static const ConstraintOps GRAMMAR_OPS = {.fill_mask = fill_mask,
                                          .allows_token = allows_token,
                                          .accept_token = accept_token,
                                          .can_end = can_end,
                                          .is_finished = is_finished,
                                          .append_forced = append_forced,
                                          .copy = copy,
                                          .free = free_constraint};

/* Takes the run, on failure too; the rest is as in `from`. */
static bool constraint_of_run(const GrammarConstraint *from, GrammarRun *run, Constraint **out,
                              Error *err)
{
    GrammarConstraint *constraint = memory_allocate(sizeof(*constraint));
    *out = NULL;
    if (!constraint) {
        grammar_run_free(run);
        return error_no_memory(err, "constraint");
    }
    *constraint = *from;
    constraint->run = run;
    *out = &constraint->base;
    return true;
}

bool constraint_from_grammar(Grammar *grammar, const Tokenizer *tokenizer, Constraint **out,
                             Error *err)
{
    const GrammarConstraint fresh = {.base = {&GRAMMAR_OPS}, .tokenizer = tokenizer};
    GrammarRun *run;
    *out = NULL;
    return grammar_run_create(grammar, &run, err) && constraint_of_run(&fresh, run, out, err);
}

void constraint_free(Constraint *constraint)
{
    if (constraint)
        constraint->ops->free(constraint);
}

bool grammar_vocabulary_from_tokenizer(const Tokenizer *tokenizer, GrammarVocabulary **out,
                                       Error *err)
{
    size_t count = tokenizer_vocabulary_size(tokenizer);
    Slice *tokens = memory_allocate_zeroed(count, sizeof(*tokens));
    size_t *ends = memory_allocate_array(count, sizeof(*ends));
    Buffer bytes;
    *out = NULL;
    buffer_init(&bytes, GRAMMAR_TOTAL_BYTES_MAX);
    bool ok = (tokens && ends) || error_no_memory(err, "vocabulary of the grammar");
    for (size_t i = 0; ok && i < count; i++) {
        int32_t id = (int32_t)i;
        if (!tokenizer_is_skipped(tokenizer, id) && tokenizer_token_content(tokenizer, id).len > 0)
            ok = tokenizer_append_token_bytes(tokenizer, id, &bytes, err);
        ends[i] = bytes.len;
    }
    ok = ok && buffer_check(&bytes, "vocabulary of the grammar", err);
    for (size_t i = 0; ok && i < count; i++) { /* only now: the buffer moved while it grew */
        size_t start = i > 0 ? ends[i - 1] : 0;
        tokens[i] = (Slice){bytes.ptr + start, ends[i] - start};
    }
    ok = ok && grammar_vocabulary_create(tokens, count, out, err);
    buffer_reset(&bytes);
    memory_free(tokens);
    memory_free(ends);
    return ok;
}
