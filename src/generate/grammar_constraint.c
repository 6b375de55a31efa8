/* A grammar's run as a constraint, and a tokenizer's tokens as its vocabulary. */
#include "generate.h"

typedef struct GrammarConstraint {
    Constraint base; /* first */
    GrammarRun *run;
} GrammarConstraint;

static bool constraint_of_run(GrammarRun *run, Constraint **out, Error *err);

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
    return grammar_run_accept_token(((GrammarConstraint *)constraint)->run, id, err);
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
    GrammarRun *run;
    *out = NULL;
    return grammar_run_copy(((const GrammarConstraint *)constraint)->run, &run, err) &&
           constraint_of_run(run, out, err);
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
                                          .copy = copy,
                                          .free = free_constraint};

/* Takes the run, on failure too. */
static bool constraint_of_run(GrammarRun *run, Constraint **out, Error *err)
{
    GrammarConstraint *constraint = memory_allocate(sizeof(*constraint));
    *out = NULL;
    if (!constraint) {
        grammar_run_free(run);
        return error_no_memory(err, "constraint");
    }
    *constraint = (GrammarConstraint){{&GRAMMAR_OPS}, run};
    *out = &constraint->base;
    return true;
}

bool constraint_from_grammar(Grammar *grammar, Constraint **out, Error *err)
{
    GrammarRun *run;
    *out = NULL;
    return grammar_run_create(grammar, &run, err) && constraint_of_run(run, out, err);
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
