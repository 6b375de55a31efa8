/* generate: logits to tokens to text, for one sequence.
 *
 * A Generation holds what one reply needs between two forward passes: the sampling chain with its
 * random state, the token history that penalties look at, end-of-text and stop-string detection,
 * and the incremental decoder. It is fed logits and yields ids and text; it never calls an engine.
 * Threads: a Generation belongs to one thread at a time. */
#ifndef GENERATE_H
#define GENERATE_H

#include "base.h"
#include "grammar.h"
#include "markup.h"
#include "tokenizer.h"

enum {
    GENERATE_STOP_STRINGS_MAX = 16,
    GENERATE_STOP_BYTES_MAX = 4096, /* of one stop string */
    GENERATE_LOGIT_BIAS_MAX = 4096,
    GENERATE_MAX_TOKENS_DEFAULT = 256,
    GENERATE_TOP_LOGPROBS_MAX = 20,
    GENERATE_LOGPROB_BYTES_MAX = 256 << 20, /* of one list */
};

typedef struct LogitBias {
    int32_t id;
    float bias;
} LogitBias;

/* ---- Constraint: what a reply may consist of ---- */

/* A grammar's place in the chain. An implementation's struct begins with Constraint; it sees ids
 * only. Every pointer is required unless it says optional. Threads: one at a time. */
typedef struct Constraint Constraint;
typedef struct ConstraintOps {
    /* Sets the logits of the tokens that cannot come next to -INFINITY and leaves the others alone.
     * End-of-text tokens are the caller's: what is done to them here has no effect. */
    bool (*fill_mask)(Constraint *constraint, float *logits, size_t vocab_size, Error *err);
    /* Optional: may id come next? Asked about the best token of a greedy step, to spare the mask.
     */
    bool (*allows_token)(Constraint *constraint, int32_t id);
    /* id was chosen (never an end-of-text token). */
    bool (*accept_token)(Constraint *constraint, int32_t id, Error *err);
    /* May the text end here? Else end-of-text tokens are banned. */
    bool (*can_end)(const Constraint *constraint);
    /* Nothing can follow: the reply ends without a further step. */
    bool (*is_finished)(const Constraint *constraint);
    /* Optional: appends tokens that come next whatever the logits say; none where there is a
     * choice. They are not accepted yet. */
    bool (*append_forced)(Constraint *constraint, TokenList *out, Error *err);
    bool (*copy)(const Constraint *constraint, Constraint **out, Error *err);
    void (*free)(Constraint *constraint);
} ConstraintOps;

struct Constraint {
    const ConstraintOps *ops;
};

void constraint_free(Constraint *constraint); /* accepts NULL */

/* Keeps a reply inside the grammar, which it holds a reference to. The grammar's vocabulary must be
 * the tokenizer's, which outlives the constraint. */
bool constraint_from_grammar(Grammar *grammar, const Tokenizer *tokenizer, Constraint **out,
                             Error *err) WARN_UNUSED;
/* The bytes of all tokens but those that texts leave out. */
bool grammar_vocabulary_from_tokenizer(const Tokenizer *tokenizer, GrammarVocabulary **out,
                                       Error *err) WARN_UNUSED;

/* ---- Options ---- */

/* The defaults (generation_options_init) are greedy. Ranges are checked by the caller's dialect.
 * Order of the chain: logit_bias, constraint, repetition, presence, frequency, temperature, top_k,
 * top_p, min_p, draw. */
typedef struct GenerationOptions {
    float temperature;        /* 0: argmax, lowest id wins ties */
    float top_p;              /* 1: off */
    int32_t top_k;            /* 0: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 1: off */
    int32_t repetition_context_size;
    float presence_penalty, frequency_penalty; /* 0: off */
    const LogitBias *logit_bias;               /* copied; the last entry of an id wins; -100 bans */
    size_t n_logit_bias;
    uint64_t seed;
    bool has_seed;   /* else the generator is seeded from the system */
    uint32_t choice; /* which of several replies to one request: each has a stream of its own */
    size_t max_tokens;
    bool ignore_eos;   /* the end tokens are never chosen */
    const Slice *stop; /* UTF-8, copied; empty ones are ignored */
    size_t n_stop;
    bool skip_special;            /* leave special tokens out of the text */
    bool logprobs;                /* collect a LogprobEntry for every token of the text */
    uint32_t top_logprobs;        /* alternatives of an entry, at most GENERATE_TOP_LOGPROBS_MAX */
    const Constraint *constraint; /* copied by its own operation; NULL: none */
    /* Where reasoning and calls stand, in which no stop string is looked for. Copied; its texts
     * live as long as the generation. */
    Markup markup;
    int64_t reasoning_budget; /* tokens of reasoning, then its end is written; -1: no limit */
} GenerationOptions;

void generation_options_init(GenerationOptions *options);

typedef enum FinishReason {
    FINISH_NONE,   /* still running */
    FINISH_STOP,   /* end-of-text token or stop string */
    FINISH_LENGTH, /* max_tokens, or the context is full (set by the caller) */
    FINISH_CANCELLED,
    FINISH_ERROR
} FinishReason;

/* ---- Log-probabilities ---- */

typedef struct TokenLogprob {
    int32_t id;
    float logprob; /* natural logarithm, <= 0; may be -INFINITY */
} TokenLogprob;

/* Of the raw logits: before bias, constraint, penalties and temperature. */
typedef struct LogprobEntry {
    int32_t id;
    float logprob;            /* NaN: there is none (the first token of a prompt) */
    size_t text_end;          /* of a reply's token: the reply's text up to its end, in bytes */
    size_t bytes_at, n_bytes; /* what the token adds to the text, maybe a part of a character */
    uint32_t n_top;
    TokenLogprob top[GENERATE_TOP_LOGPROBS_MAX]; /* [n_top] descending, lower ids first on ties */
} LogprobEntry;

/* Caller-owned: init, reset. The concatenated bytes of a reply's entries are its text, except where
 * bytes that are no UTF-8 became U+FFFD in the text. */
typedef struct LogprobList {
    Buffer entries; /* LogprobEntry[] */
    Buffer bytes;
} LogprobList;

void logprob_list_init(LogprobList *list);
void logprob_list_reset(LogprobList *list);
void logprob_list_clear(LogprobList *list);
size_t logprob_list_count(const LogprobList *list);
const LogprobEntry *logprob_list_get(const LogprobList *list, size_t index);
Slice logprob_list_bytes(const LogprobList *list, const LogprobEntry *entry);
/* Copies the entry with these bytes to the end; sticky like a Buffer (logprob_list_check). */
void logprob_list_append(LogprobList *list, const LogprobEntry *entry, Slice bytes);
/* Moves all entries of from to the end of list. */
void logprob_list_move(LogprobList *list, LogprobList *from);
bool logprob_list_check(const LogprobList *list, Error *err) WARN_UNUSED;

/* The entry of token id under raw logits [count] with its n_top (<= GENERATE_TOP_LOGPROBS_MAX, and
 * at most count) best alternatives; no bytes. */
void logprob_measure(const float *logits, size_t count, int32_t id, uint32_t n_top,
                     LogprobEntry *out);

/* ---- One reply ---- */

typedef struct Generation Generation;

/* eos: ids that end the text (copied). prompt: its ids, for the penalties (copied as far as
 * needed). ERROR_INVALID: a logit_bias id outside the vocabulary, a stop string that is not UTF-8.
 * ERROR_LIMIT: one of the maxima above. With max_tokens 0 the reason is FINISH_LENGTH from the
 * start. */
bool generation_create(const Tokenizer *tokenizer, const GenerationOptions *options,
                       const int32_t *eos, size_t n_eos, const int32_t *prompt, size_t n_prompt,
                       size_t vocab_size, Generation **out, Error *err) WARN_UNUSED;
void generation_free(Generation *generation); /* accepts NULL */

/* Chooses the next token from logits [vocab_size] (clobbered), appends the text that is certain now
 * to text, and updates the finish reason. After FINISH_STOP or FINISH_LENGTH all text is out. *id
 * gets the token, to be fed to the engine while the reason is FINISH_NONE. A NaN among the logits
 * is ERROR_INTERNAL; ERROR_INVALID when logit_bias and constraint leave no token. Only while the
 * reason is FINISH_NONE. */
bool generation_step(Generation *generation, float *logits, int32_t *id, Buffer *text,
                     Error *err) WARN_UNUSED;
/* May somebody else choose the next token: the argmax of the logits (temperature 0), or where the
 * first of the draws, uniform in [0, 1), falls among the shares of softmax(logits / temperature) in
 * the order of ids? The second draw will be the next token's. Then generation_accept takes that
 * token as generation_step would. */
bool generation_is_plain(const Generation *generation, float *temperature, double draws[2]);
bool generation_accept(Generation *generation, int32_t id, Buffer *text, Error *err) WARN_UNUSED;
/* Where it is certain what comes next, takes that token as generation_step would, without logits:
 * *took, and *id to be fed to the engine with the others. To be called until it takes none. Only
 * while the reason is FINISH_NONE. */
bool generation_take_forced(Generation *generation, int32_t *id, bool *took, Buffer *text,
                            Error *err) WARN_UNUSED;
/* Ends from outside (context full, cancelled): flushes held-back text. Does nothing when it has
 * ended. */
bool generation_end(Generation *generation, FinishReason reason, Buffer *text,
                    Error *err) WARN_UNUSED;
FinishReason generation_finish_reason(const Generation *generation);
/* Sampled tokens, the end token not counted. */
size_t generation_token_count(const Generation *generation);
/* Of them, those between the marks of reasoning. */
size_t generation_reasoning_count(const Generation *generation);
/* Index in options.stop of the stop string that ended the reply, or -1. */
int32_t generation_stop_index(const Generation *generation);
/* Moves the entries of the tokens whose text has been given out since the last call to the end of
 * out. Tokens of a matched stop string have none; one that only ends in it keeps the bytes before
 * it. */
void generation_take_logprobs(Generation *generation, LogprobList *out);
const char *
finish_reason_name(FinishReason reason); /* "stop", "length", ... as OpenAI names them */

/* Argmax with the lowest id on ties; ignores NaN unless all are. */
int32_t logits_argmax(const float *logits, size_t count);

#endif
