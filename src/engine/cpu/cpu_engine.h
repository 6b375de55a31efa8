/* Private to engine/cpu: what the files of the CPU engine share.
 *
 * A call of forward is cut into passes of at most max_batch_tokens tokens. A pass is a flat list of
 * tokens, grouped in slices (a run of one sequence's tokens); every buffer of the scratch has a row
 * per token. Beside the pass that forward runs there is one that forward_begin holds: between two
 * of its layers it needs no more than its list, its angles and the residual stream, so those it has
 * for itself. All memory is taken when the engine opens and when a sequence is created; a pass
 * takes none. */
#ifndef ENGINE_CPU_ENGINE_H
#define ENGINE_CPU_ENGINE_H

#include "attention.h"
#include "engine.h"
#include "kv.h"
#include "matrix.h"
#include "ops.h"

enum {
    CPU_BATCH_TOKENS_DEFAULT = 512,
    CPU_BATCH_TOKENS_MAX = 1 << 16,
    CPU_THREADS_MAX = 1024,
    CPU_ROWS_PER_PART = 8, /* tokens of a row section's part, at most */
};

/* The matrices of one layer in the kernels' order; norms and biases stay in the model. */
typedef struct CpuLayer {
    PackedMatrix *q, *k, *v, *o;
    PackedMatrix *gate, *up, *down;                         /* dense */
    PackedMatrix *router;                                   /* sparse */
    PackedMatrix **expert_gate, **expert_up, **expert_down; /* sparse: [num_experts] */
    /* What the products of those are multiplied by (nvfp4's global scales): [num_experts], or NULL
     * for 1. Applied to results, so that packed weights stay exact. */
    float *gate_factor, *up_factor, *down_factor;
} CpuLayer;

/* Rows are tokens of the pass unless said otherwise. */
typedef struct CpuScratch {
    void *memory;
    size_t bytes;
    float *normed;       /* [B, hidden] input of the next products */
    float *block_out;    /* [B, hidden] what attention or the MLP adds to x */
    float *q, *attended; /* [B, heads * head_dim] */
    float *k, *v;        /* [B, kv_heads * head_dim] */
    float *gate, *up;    /* [B, inner] inner: the larger of the dense and the experts' */
    float *router;       /* [B, experts] */
    float *gathered;     /* [B, hidden] an expert's tokens */
    float *expert_share; /* [B, experts_per_tok] */
    uint32_t *expert_id; /* [B, experts_per_tok] */
    uint32_t *members;   /* [B] tokens that chose an expert */
    float *member_share; /* [B] */
    Activations activations;
    /* Of 12 or 16 bits where the others have 8, for the head, whose error goes straight into the
     * logits, and, in models with experts, for all that a router's input is made of but the experts
     * themselves: near a tie a small error picks another expert. */
    Activations fine_activations;
    AttentionScratch *attention;
} CpuScratch;

typedef struct CpuPass {
    void *memory;
    size_t bytes;
    size_t n_tokens, n_slices, n_wanted;
    size_t layer; /* the next; num_hidden_layers: only the head is left */
    float *x;     /* [B, hidden] the residual stream */
    float *cosines[MODEL_ROPE_TABLES], *sines[MODEL_ROPE_TABLES]; /* [B, rotary_dims / 2] */
    int32_t *tokens;                                              /* [B] */
    uint32_t *token_slice;                                        /* [B] */
    uint32_t *wanted; /* [B] tokens whose logits are wanted, ascending */
    AttentionSlice *slices;
    EngineSequence **slice_sequence;
} CpuPass;

typedef struct CpuEngine {
    Engine base;
    const Model *model;
    const CpuOps *ops;
    InstructionSet instruction_set;
    CpuPool *pool;
    size_t threads, max_batch_tokens;
    ActivationPrecision precision;
    PackedMatrix *embedding, *head; /* the same when tied */
    CpuLayer *layers;               /* [num_hidden_layers] */
    PackedStore store;              /* of the matrices' memory */
    size_t weight_bytes;
    CpuScratch scratch;
    KvPool kv;
    CpuPass whole, held; /* what forward runs; what forward_begin holds, if it has tokens */
    CpuPass *pass;       /* the one of them that is being computed */
    uint64_t call;       /* counts calls, to find a sequence that comes twice */
} CpuEngine;

struct EngineSequence {
    KvCache cache;
    uint64_t last_call;
    bool is_held; /* has a slice in the held pass */
};

/* As the instruction set has them. */
KvType cpu_kv_type(EnginePrecision precision, unsigned kv_bits, const CpuOps *ops);

/* Uses the best available instruction set up to best_set: tests ask for less than all. */
bool cpu_engine_open(const Model *model, const EngineOptions *options, InstructionSet best_set,
                     Engine **out, Error *err) WARN_UNUSED;

/* load.c: repacks the model's matrices, giving the file's pages back layer by layer. */
bool cpu_weights_load(CpuEngine *engine, Error *err) WARN_UNUSED;
void cpu_weights_free(CpuEngine *engine);

/* scratch.c */
bool cpu_scratch_create(CpuEngine *engine, Error *err) WARN_UNUSED;
void cpu_scratch_free(CpuScratch *scratch);
/* Where inputs of products go that deserve more than 8 bits; of up to hidden_size columns. */
Activations *cpu_fine_activations(CpuEngine *engine);
bool cpu_pass_create(const CpuEngine *engine, CpuPass *pass, Error *err) WARN_UNUSED;
void cpu_pass_free(CpuPass *pass);

/* forward.c: the whole of engine->pass; logits of the wanted tokens to logits [n_wanted, vocab].
 * Cannot fail. */
void cpu_forward_pass(CpuEngine *engine, float *logits);
/* Its next part: a layer, or the head. Other passes may run before the next one. */
void cpu_forward_part(CpuEngine *engine, float *logits);
/* How many there are still. */
size_t cpu_parts_left(const CpuEngine *engine, const CpuPass *pass);
/* Runs task(context, first, end) over ranges of rows [0, n_rows), of CPU_ROWS_PER_PART at most. Few
 * rows stay on the caller, where they cost less than waking the workers; neighbours stay with the
 * same thread from section to section, since their memory is near it then. */
typedef void (*CpuRowTask)(void *context, size_t first, size_t end);
void cpu_run_rows(const CpuEngine *engine, size_t n_rows, CpuRowTask task, void *context);

/* experts.c: the sparse MLP of a layer: from normed, also in the fine activations, to block_out. */
void cpu_experts_forward(CpuEngine *engine, const CpuLayer *layer);

#endif
