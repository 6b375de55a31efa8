/* generate: logits to tokens to text, for one sequence.
 *
 * A Generation holds what one reply needs between two forward passes: the sampling chain with its
 * random state, the token history that penalties look at, end-of-text and stop-string detection,
 * and the incremental decoder. It is fed logits and yields ids and text; it never calls an engine.
 * Threads: a Generation belongs to one thread at a time. */
#ifndef GENERATE_H
#define GENERATE_H

#include "base.h"
#include "tokenizer.h"

enum {
    GENERATE_STOP_STRINGS_MAX = 16,
    GENERATE_STOP_BYTES_MAX = 4096, /* of one stop string */
    GENERATE_LOGIT_BIAS_MAX = 4096,
    GENERATE_MAX_TOKENS_DEFAULT = 256,
};

typedef struct LogitBias {
    int32_t id;
    float bias;
} LogitBias;

/* The defaults (generation_options_init) are greedy. Ranges are checked by the caller's dialect.
 * Order of the chain: logit_bias, repetition, presence, frequency, temperature, top_k, top_p,
 * min_p, draw. */
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
    bool skip_special; /* leave special tokens out of the text */
} GenerationOptions;

void generation_options_init(GenerationOptions *options);

typedef enum FinishReason {
    FINISH_NONE,   /* still running */
    FINISH_STOP,   /* end-of-text token or stop string */
    FINISH_LENGTH, /* max_tokens, or the context is full (set by the caller) */
    FINISH_CANCELLED,
    FINISH_ERROR
} FinishReason;

typedef struct Generation Generation;

/* eos: ids that end the text (copied). prompt: its ids, for the penalties (copied as far as
 * needed). ERROR_INVALID: a logit_bias id outside the vocabulary, a stop string that is not UTF-8.
 * ERROR_LIMIT: one of the maxima above. With max_tokens 0 the reason is FINISH_LENGTH from the
 * start. */
bool generation_create(const Tokenizer *tokenizer, const GenerationOptions *options,
                       const int32_t *eos, size_t n_eos, const int32_t *prompt, size_t n_prompt,
                       size_t vocab_size, Generation **out, Error *err) WARN_UNUSED;
void generation_free(Generation *generation);

/* Chooses the next token from logits [vocab_size] (clobbered), appends the text that is certain now
 * to text, and updates the finish reason. After FINISH_STOP or FINISH_LENGTH all text is out. *id
 * gets the token, to be fed to the engine while the reason is FINISH_NONE. A NaN among the logits
 * is ERROR_INTERNAL; ERROR_INVALID when logit_bias bans every token. Only while the reason is
 * FINISH_NONE. */
bool generation_step(Generation *generation, float *logits, int32_t *id, Buffer *text,
                     Error *err) WARN_UNUSED;
/* Ends from outside (context full, cancelled): flushes held-back text. Does nothing when it has
 * ended. */
bool generation_end(Generation *generation, FinishReason reason, Buffer *text,
                    Error *err) WARN_UNUSED;
FinishReason generation_finish_reason(const Generation *generation);
/* Sampled tokens, the end token not counted. */
size_t generation_token_count(const Generation *generation);
const char *
finish_reason_name(FinishReason reason); /* "stop", "length", ... as OpenAI names them */

/* Argmax with the lowest id on ties; ignores NaN unless all are. */
int32_t logits_argmax(const float *logits, size_t count);

#endif
