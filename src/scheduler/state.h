/* Private to the scheduler: what its files share.
 *
 *   submit -> queue (bounded, guarded by mutex) -> slots (inference thread only) -> ended
 *
 * scheduler.c has the thread, the queue and the public functions; slots.c admits choices and ends
 * them; batch.c says what the passes of a step consist of, by what costs.c has learnt; step.c runs
 * them. Unless a comment says otherwise everything here belongs to the inference thread. */
#ifndef SCHEDULER_STATE_H
#define SCHEDULER_STATE_H

#include "job.h"
#include "prefix_cache.h"

enum { SCHEDULER_COST_CLASSES = 12 };

/* One running choice. tokens are the prompt and what was sampled; the first `fed` of them are in
 * the sequence. In decode one is not, or several where they were certain. */
typedef struct Slot {
    Job *job; /* NULL: free */
    size_t choice;
    EngineSequence *sequence;
    int32_t *tokens; /* [n_prompt + max_tokens] */
    size_t n_tokens, fed;
    /* Of a prompt in a model whose layers forget: the next position whose keys another prompt will
     * want. Prefill stops there and leaves an entry in the prefix cache. 0: none. */
    size_t checkpoint;
    size_t held;    /* tokens behind `fed` that are in the held pass */
    uint64_t order; /* of admission */
} Slot;

/* What a step costs, learnt from the steps before, in seconds; 0: not known. */
typedef struct StepCosts {
    /* A pass that only decodes, by the logarithm of its rows. */
    double decode[SCHEDULER_COST_CLASSES];
    double token;      /* what a prompt token adds to such a pass, or takes in a held one */
    double part_token; /* a part of a held pass, for each of the pass's tokens */
} StepCosts;

/* The rows of a pass and whose they are. */
typedef struct Batch {
    EngineRow *rows; /* [slot_count] */
    Slot **slots;    /* [slot_count] */
    size_t n_rows;
    size_t n_decode;        /* rows that decode */
    size_t n_prefill;       /* prompt tokens, and tokens of decoding rows beyond the first */
    bool is_beside_prompts; /* some slot has tokens of its prompt left */
    /* That the parts of a held pass have taken, but for what may be bringing memory. */
    double seconds;
    size_t parts_left;  /* of a held pass; 0: not known yet */
    bool has_waited;    /* the held pass had no part in the last step */
    bool has_lost_rows; /* since it began */
} Batch;

struct Scheduler {
    Engine *engine;
    const Tokenizer *tokenizer;
    const ModelConfig *config;
    size_t slot_count, max_context, vocab_size;
    size_t max_batch_tokens; /* of the engine's pass */
    pthread_t thread;

    /* mutex guards the queue, stopping and what statistics reads; work is signalled when they
     * change. */
    pthread_mutex_t mutex;
    pthread_cond_t work;
    Job *queue_head, *queue_tail;
    size_t queue_length; /* jobs of which no choice was admitted yet */
    bool stopping;
    uint64_t purged_total; /* jobs cancelled while they waited */
    SchedulerStatistics published;
    SchedulerSlot *published_slots; /* [slot_count] */
    double step_started_at;         /* 0: nothing to do */

    Slot *slots;           /* [slot_count] */
    Batch pass;            /* what runs at once */
    Batch held;            /* what runs in parts, a few in each step; without rows: nothing */
    float *logits;         /* [logit_rows, vocab_size] */
    int32_t *ids;          /* [slot_count] where the engine chooses the tokens */
    EngineChoice *choices; /* [slot_count] how it does */
    size_t logit_rows;     /* slot_count, and SCHEDULER_ECHO_CHUNK more once they were needed */
    Buffer text;           /* of one token; empty between jobs */
    uint64_t admissions;
    size_t used_slots, running_jobs;
    bool memory_short; /* admission waits until a choice ends, or the front job's owner goes */
    bool kv_slides;    /* the engine's layers forget */
    PrefixCache cache;
    StepCosts costs;
    SchedulerStatistics tally; /* published between steps */
};

/* ---- scheduler.c ---- */

/* The oldest job with a choice that has no slot, or NULL. The jobs of owners that have gone are
 * dropped on the way. */
Job *queue_front(Scheduler *scheduler);
/* A choice of the front job was given a slot or has ended. */
void queue_advance(Scheduler *scheduler);

/* ---- slots.c ---- */

bool slot_decodes(const Slot *slot);
/* Gives free slots to waiting choices, in order, as far as memory reaches. */
void slots_admit(Scheduler *scheduler);
/* Ends the choices whose owner has gone. */
void slots_drop_released(Scheduler *scheduler);
/* Frees the slot, publishes the end of its choice and, after the last one, lets go of the job. */
void slot_end(Scheduler *scheduler, Slot *slot, FinishReason reason, const Error *error);
/* The slot has come to its checkpoint or the end of its prompt: keeps the prefix for others. */
void slot_keep_prefix(Scheduler *scheduler, Slot *slot);
/* Ends a choice that has no slot. */
void choice_end(Scheduler *scheduler, Job *job, size_t choice, FinishReason reason,
                const Error *error);

/* ---- costs.c ---- */

/* Of a pass that only decodes so many rows. */
double costs_decode(const StepCosts *costs, size_t n_decode);
/* Seconds that a step with so many decoding rows may take while prompts enter. */
double costs_step(const StepCosts *costs, size_t n_decode);
/* Prompt tokens that may go along in a pass with so many decoding rows. */
size_t costs_ride_tokens(const StepCosts *costs, size_t n_decode);
/* Tokens of a held pass of which some parts fit into a step. */
size_t costs_held_tokens(const StepCosts *costs, size_t n_decode);
double costs_part(const StepCosts *costs, size_t n_tokens);
void costs_learn_pass(StepCosts *costs, const Batch *pass, double seconds);
void costs_learn_part(StepCosts *costs, size_t n_tokens, double seconds);
/* A held pass as a whole. */
void costs_learn_held(StepCosts *costs, size_t n_tokens, double seconds);

/* ---- batch.c ---- */

/* Fills scheduler->pass: every decoding slot, and the prompts that go along. */
void batch_build(Scheduler *scheduler);
/* Fills scheduler->held from the prompts that are left; n_decode > 0 others decode. */
void batch_build_held(Scheduler *scheduler, size_t n_decode);
/* The held pass is over, or is not to be: forgets its rows, which stay readable; how many. */
size_t batch_clear_held(Scheduler *scheduler);
/* The slot ends; the engine takes its row out of the pass with its sequence. */
void batch_leave_held(Scheduler *scheduler, Slot *slot);
bool slot_wants_all_logits(const Slot *slot);

/* ---- step.c ---- */

/* One engine pass over all slots, and parts of another one, if there is anything to do. */
void step_run(Scheduler *scheduler);

/* ---- statistics.c ---- */

void histogram_add(SchedulerHistogram *histogram, const double *bounds, double seconds);
/* Copies the tally and the state of the slots to where scheduler_statistics finds them. */
void statistics_publish(Scheduler *scheduler);

#endif
