/* engine: the seam between tokens and the machine.
 *
 * An Engine is one loaded model on one device. A sequence is a mutable timeline of tokens with its
 * KV cache. forward() advances any number of sequences at once: each row brings a sequence's next
 * tokens (one when decoding, a chunk when prefilling) and says for which of them logits are wanted.
 * A long forward can be held between its parts, so that others are not kept waiting by it. The
 * engine knows no text, HTTP or sampling. Greedy results of a sequence do not depend on what shares
 * the batch, nor on how its tokens were cut into chunks.
 *
 * Threads: every function on one thread (the inference thread) but engine_describe, which is any
 * thread. */
#ifndef ENGINE_H
#define ENGINE_H

#include "base.h"
#include "model.h"

typedef struct Engine Engine;
typedef struct EngineSequence EngineSequence;

typedef enum EngineBackend {
    ENGINE_BACKEND_AUTO,
    ENGINE_BACKEND_CPU,
    ENGINE_BACKEND_MLX
} EngineBackend;
typedef enum EnginePrecision {
    ENGINE_PRECISION_INT12, /* activations of 12 or 16 bits, KV of 16: the CPU's default */
    ENGINE_PRECISION_INT16, /* activations of 16 bits even where 12 are faster */
    ENGINE_PRECISION_INT8,  /* activations in 8 bits: faster prefill, visibly less exact */
    ENGINE_PRECISION_F32    /* float32 activations, products and KV: the reference */
} EnginePrecision;

typedef struct EngineOptions {
    EngineBackend backend;
    EnginePrecision precision;
    size_t threads;          /* 0: process_usable_cores() */
    size_t max_batch_tokens; /* most tokens in one forward; 0: the backend's choice */
    size_t kv_bytes_max;     /* of all sequences together; 0: no limit */
    unsigned kv_bits;        /* of keys and values: 8 or 16; 0: 16, with F32 32 */
} EngineOptions;

typedef enum EngineLogits {
    ENGINE_LOGITS_NONE,
    ENGINE_LOGITS_LAST, /* of the row's last token */
    ENGINE_LOGITS_ALL   /* of each token of the row */
} EngineLogits;

typedef struct EngineRow {
    EngineSequence *sequence; /* at most one row per sequence and call */
    const int32_t *tokens;    /* [n_tokens], ids within the vocabulary */
    size_t n_tokens;          /* >= 1 */
    EngineLogits logits;
} EngineRow;

/* How an engine that can chooses a token itself: the argmax (lowest id on ties), or by the share of
 * softmax(logits / temperature) that a draw falls into, shares cumulated in the order of ids. */
typedef struct EngineChoice {
    float temperature; /* 0: argmax */
    double draws[2];   /* uniform in [0, 1): for this token, and for the next one of the sequence,
                        * should that be begun ahead */
} EngineChoice;

typedef struct EngineDescription {
    const char *backend; /* "cpu" */
    char device[64];     /* "AVX2, 2 threads" */
    size_t weight_bytes; /* resident, as repacked */
    size_t scratch_bytes;
    /* In use now and at most; 0: the process's memory is it. */
    size_t device_bytes, device_peak_bytes;
    size_t
        kv_bytes_per_token; /* of one sequence, full-attention layers; sliding ones are bounded */
    size_t kv_bytes_max;    /* as in the options */
    bool kv_slides;         /* some layers forget keys: see sequence_truncate */
    size_t max_sequence_tokens; /* most tokens of a sequence that has all KV memory for itself */
    size_t max_batch_tokens;
    size_t vocab_size;
    size_t max_context; /* max_position_embeddings */
    size_t threads;
} EngineDescription;

/* Every pointer is required unless it says optional. */
typedef struct EngineOps {
    void (*close)(Engine *engine);
    void (*describe)(const Engine *engine, EngineDescription *out);
    /* Reserves KV memory for max_tokens tokens. ERROR_MEMORY when there is none for so many now,
     * ERROR_LIMIT when there never can be. */
    bool (*sequence_create)(Engine *engine, size_t max_tokens, EngineSequence **out, Error *err);
    void (*sequence_free)(Engine *engine, EngineSequence *sequence);
    /* Forgets all tokens from position length on. False when a sliding window has already dropped
     * keys that the shorter sequence would need: the caller starts afresh. */
    bool (*sequence_truncate)(Engine *engine, EngineSequence *sequence, size_t length, Error *err);
    /* A new sequence with the first length tokens of from, whose memory both share as far as can be
     * (at most one block of keys is copied). Fails like create and truncate. Optional (NULL): not
     * supported, and neither are the three below. */
    bool (*sequence_fork)(Engine *engine, EngineSequence *from, size_t length, size_t max_tokens,
                          EngineSequence **out, Error *err);
    /* No token will follow: what was reserved for them is given back. It can still be forked. */
    void (*sequence_seal)(Engine *engine, EngineSequence *sequence);
    /* Bytes of keys and values that all sequences hold or have reserved. */
    size_t (*kv_bytes_used)(const Engine *engine);
    /* Could it be truncated to length, or forked there? */
    bool (*sequence_holds_prefix)(const EngineSequence *sequence, size_t length);
    size_t (*sequence_length)(const EngineSequence *sequence);
    /* Appends each row's tokens to its sequence. logits: [wanted, vocab_size] float32, row-major,
     * for the wanted tokens in row order; may be NULL when none are wanted. Rows whose total
     * exceeds max_batch_tokens are cut into several passes by the engine. On failure (a token out
     * of range, a sequence full) no sequence has changed. */
    bool (*forward)(Engine *engine, const EngineRow *rows, size_t n_rows, float *logits,
                    Error *err);
    /* Brings memory for tokens to come, should the system have to: false when none was needed.
     * Optional (NULL: it never is). */
    bool (*sequence_touch)(Engine *engine, EngineSequence *sequence);
    /* Optional (NULL, and the one below: forward it is). forward in parts (a layer, the head) of
     * about the same cost, between which other calls may be made. begin checks the rows as forward
     * does and copies their tokens, at most max_batch_tokens. One pass is held at a time. Its
     * sequences have no row elsewhere until it is done, and keep their length; one that is freed,
     * truncated or sealed leaves the pass, one that is forked does not. A pass that all have left
     * is held no more. */
    bool (*forward_begin)(Engine *engine, const EngineRow *rows, size_t n_rows, Error *err);
    /* The next part, or first a piece of what it needs, say memory that the system has to bring;
     * how many parts are left then. 0: the sequences have advanced, and logits is filled as by
     * forward, for the rows that have stayed; before that it is not touched, but given every time.
     * On failure no sequence has changed and the pass is held no more. */
    bool (*forward_continue)(Engine *engine, float *logits, size_t *left, Error *err);
    /* Optional (NULL: take the logits). forward, but for each wanted token an id instead of logits,
     * chosen where the logits are; the engine may begin the next step on the assumption that the
     * sequences go on with these tokens. choices: [wanted], or NULL for the argmax everywhere.
     * ids: [wanted]. */
    bool (*forward_choose)(Engine *engine, const EngineRow *rows, size_t n_rows,
                           const EngineChoice *choices, int32_t *ids, Error *err);
} EngineOps;

/* A backend's struct begins with this. */
struct Engine {
    const EngineOps *ops;
};

enum { ENGINE_REASON_MAX = 512 };
/* What AUTO stands for: mlx where that engine is there and finds a GPU, else cpu. why gets one
 * line: the GPU's name, or what is missing. */
EngineBackend engine_choose_backend(EngineBackend wanted, char *why, size_t size);

/* Opens the backend on a model, which must outlive the engine. When it returns, pages of the
 * model's files that were copied have been given back. */
bool engine_open(const Model *model, const EngineOptions *options, Engine **out,
                 Error *err) WARN_UNUSED;
void engine_close(Engine *engine); /* accepts NULL */

/* Bytes that the KV cache of one sequence of max_tokens takes in the CPU engine, opened with its
 * default max_batch_tokens: what sequence_create would reserve, without an engine. Sliding-window
 * layers count with their bound. ERROR_LIMIT as sequence_create. Any thread. */
bool engine_kv_bytes(const ModelConfig *config, EnginePrecision precision, unsigned kv_bits,
                     size_t max_tokens, size_t *out, Error *err) WARN_UNUSED;
/* What one token takes there in one layer, sliding or not. Any thread. */
size_t engine_kv_layer_bytes(const ModelConfig *config, EnginePrecision precision,
                             unsigned kv_bits);

/* Shorthands for engine->ops->name(engine, ...). */
void engine_describe(const Engine *engine, EngineDescription *out);
bool engine_sequence_create(Engine *engine, size_t max_tokens, EngineSequence **out,
                            Error *err) WARN_UNUSED;
void engine_sequence_free(Engine *engine, EngineSequence *sequence); /* accepts NULL */
bool engine_sequence_truncate(Engine *engine, EngineSequence *sequence, size_t length,
                              Error *err) WARN_UNUSED;
bool engine_forward(Engine *engine, const EngineRow *rows, size_t n_rows, float *logits,
                    Error *err) WARN_UNUSED;
bool engine_can_hold(const Engine *engine); /* has forward_begin and forward_continue */
bool engine_sequence_touch(Engine *engine, EngineSequence *sequence);
bool engine_forward_begin(Engine *engine, const EngineRow *rows, size_t n_rows,
                          Error *err) WARN_UNUSED;
bool engine_forward_continue(Engine *engine, float *logits, size_t *left, Error *err) WARN_UNUSED;
bool engine_has_forward_choose(const Engine *engine);
bool engine_forward_choose(Engine *engine, const EngineRow *rows, size_t n_rows,
                           const EngineChoice *choices, int32_t *ids, Error *err) WARN_UNUSED;

/* What this machine can do with `threads` threads: the limits that decode and prefill are held
 * against. */
typedef struct MachineLimits {
    double read_bytes_per_second; /* streaming reads of memory far larger than the caches */
    double int8_macs_per_second;  /* 8-bit multiply-adds from registers, best instruction set */
    char instruction_set[32];     /* "avx2" */
} MachineLimits;
bool engine_measure_machine(size_t threads, MachineLimits *out, Error *err) WARN_UNUSED;

#endif
