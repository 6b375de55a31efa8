/* scheduler: many requests, one inference thread.
 *
 * submit() puts a Job into a bounded queue; the inference thread admits its choices to slots, and
 * each step carries the next token of every running choice plus a bounded chunk of waiting prefill
 * (continuous batching). A job's choices share one prompt, which is prefilled once. Sequences that
 * have ended stay in a prefix cache as long as KV memory reaches, so that a prompt which begins
 * like an earlier one (the next turn of a chat, a common system prompt) computes only the rest. A
 * choice is admitted when there is KV memory for all it may need; until then it waits. Text comes
 * back through a bounded buffer per choice; the owner drains it with job_read, woken by the notify
 * callback or job_wait. The scheduler is the only caller of the engine while it lives. It knows
 * nothing of HTTP or chat. Threads: submit, job_* and statistics are any thread (a Job has one
 * owner at a time). */
#ifndef SCHEDULER_H
#define SCHEDULER_H

#include "base.h"
#include "engine.h"
#include "generate.h"

enum {
    SCHEDULER_QUEUE_MAX = 256, /* jobs waiting for a slot */
    SCHEDULER_JOB_TEXT_BYTES_MAX =
        8 << 20, /* unread text of one choice; beyond it the job is cancelled */
    SCHEDULER_JOB_LOGPROB_BYTES_MAX = 64 << 20, /* the same for unread log-probabilities */
    SCHEDULER_CHOICES_MAX = 128,
    SCHEDULER_PREFILL_CHUNK = 256,       /* prompt tokens of a pass while others decode */
    SCHEDULER_PREFILL_CHUNK_ALONE = 512, /* and while none does */
    SCHEDULER_ECHO_CHUNK = 32,           /* and where each of their logits is wanted */
    SCHEDULER_SLOTS_MAX = 1024,
    SCHEDULER_CONTEXT_LEAST = 2, /* a prompt's token and a reply's */
    SCHEDULER_HISTOGRAM_BUCKETS = 14,
    SCHEDULER_KV_BYTES_LEAST = 256 << 20, /* of a limit that nobody chose, if so much is of use */
};

typedef struct Scheduler Scheduler;
typedef struct Job Job;

typedef struct SchedulerOptions {
    size_t slots;       /* choices that run at once, 1..SCHEDULER_SLOTS_MAX */
    size_t max_context; /* tokens of one choice, prompt and reply; 0 or more than what the model or
                           KV memory can hold: that */
    bool no_prefix_cache;
} SchedulerOptions;

/* The limit of KV memory where nobody chose one: a whole context, of context_bytes, for each slot,
 * but at most half of what weight_bytes leave of available_bytes (0: not known). Where they leave
 * next to nothing, the least with which serving makes sense: the system may count too little as
 * available, and what no request needs is not touched. */
size_t scheduler_kv_bytes(size_t context_bytes, size_t slots, size_t weight_bytes,
                          size_t available_bytes);

/* Starts the inference thread. engine, tokenizer and config outlive the scheduler. ERROR_LIMIT when
 * KV memory cannot hold a single short sequence. */
bool scheduler_create(Engine *engine, const Tokenizer *tokenizer, const ModelConfig *config,
                      const SchedulerOptions *options, Scheduler **out, Error *err) WARN_UNUSED;
/* Cancels what runs, waits for the inference thread, frees. Jobs not yet released stay readable. */
void scheduler_free(Scheduler *scheduler);
/* Tokens of one choice: what options.max_context came to. */
size_t scheduler_max_context(const Scheduler *scheduler);

/* ---- Jobs ---- */

typedef struct JobRequest {
    const int32_t
        *prompt; /* copied; n_prompt >= 1; at least one token of the context must be left */
    size_t n_prompt;
    GenerationOptions generation; /* copied with what it points at; max_tokens is clamped to the
                                     context; choice is that of the first choice, usually 0 */
    size_t n;                     /* choices, at most SCHEDULER_CHOICES_MAX; 0 is 1. Choice i
                                     draws from the stream of (seed, choice + i) */
    bool prompt_logprobs;         /* with generation.logprobs: also those of the prompt's tokens */
    /* Called on the inference thread at the end of every step that left something new to read (and
     * at once for the end of a choice); must not block, and must not call into the scheduler. May
     * be NULL. Not called any more after job_release returned. */
    void (*notify)(void *context);
    void *notify_context;
    /* Notify only when that many unread bytes of a choice have gathered, or at the end of a choice.
     * 0: always. For owners who want the whole reply and not each token. */
    size_t notify_bytes;
} JobRequest;

/* ERROR_LIMIT: the prompt does not fit the context (the message names both counts).
 * ERROR_BUSY: the queue is full. ERROR_INVALID: a token outside the vocabulary, too
 * many choices, or what generation_create refuses. *out is NULL on failure. notify may be called
 * before submit returns. */
bool scheduler_submit(Scheduler *scheduler, const JobRequest *request, Job **out,
                      Error *err) WARN_UNUSED;

/* Of one choice. */
typedef struct JobStatus {
    FinishReason finish;  /* FINISH_NONE while running; final only once all text was read */
    size_t prompt_tokens; /* the same for all choices of a job */
    size_t cached_tokens; /* of them, those that were not computed for the first choice */
    size_t completion_tokens;
    size_t reasoning_tokens; /* of them */
    int32_t stop_index;      /* of the stop string that ended the text, or -1 */
    /* From submit to a slot, from there to the first token, from there to now. */
    double queue_seconds, prompt_seconds, decode_seconds;
    double first_token_seconds; /* from submit; 0: there is none yet */
    Error error;                /* when finish is FINISH_ERROR */
} JobStatus;

size_t job_choice_count(const Job *job);
/* Moves what a choice has produced since the last call to the end of text and logprobs (whose
 * failure loses it). logprobs may be NULL: then they are dropped. An entry comes together with the
 * last byte of its token's text. Never blocks. */
void job_read_choice(Job *job, size_t choice, Buffer *text, LogprobList *logprobs,
                     JobStatus *status);
/* The same for a job of one choice without log-probabilities. */
void job_read(Job *job, Buffer *text, JobStatus *status);
/* Moves the entries of the prompt's tokens to the end of out; false while they are not complete.
 * They are before the first text of any choice can be read. */
bool job_read_prompt_logprobs(Job *job, LogprobList *out);
/* Blocks until job_read would bring text or the end of a choice, or timeout; false on timeout. Once
 * all choices have ended it returns at once. Any thread. */
bool job_wait(Job *job, double timeout_seconds);
/* Gives the job back; one that still runs is cancelled at the next step. Waits for a notify call
 * that is under way, so the caller holds no lock that notify takes. */
void job_release(Job *job); /* accepts NULL */

/* ---- Statistics ---- */

/* Observations by upper bound, as Prometheus wants them but not yet cumulated: counts[i] are those
 * above bounds[i - 1] and at most bounds[i]; the last has no upper bound. */
typedef struct SchedulerHistogram {
    uint64_t counts[SCHEDULER_HISTOGRAM_BUCKETS + 1];
    uint64_t count;
    double sum; /* seconds */
} SchedulerHistogram;
/* Upper bounds in seconds of both histograms, ascending. */
extern const double SCHEDULER_FIRST_TOKEN_BOUNDS[SCHEDULER_HISTOGRAM_BUCKETS];
extern const double SCHEDULER_INTER_TOKEN_BOUNDS[SCHEDULER_HISTOGRAM_BUCKETS];

typedef struct SchedulerStatistics {
    size_t running, waiting; /* jobs: with a choice in a slot, and with none */
    size_t slots;
    /* Jobs released or overflowed before their end; prompt tokens of jobs whose prompt is through,
     * and those of them that were not computed; tokens sampled; engine passes. */
    uint64_t cancelled_total, prompt_tokens_total, cached_tokens_total, generated_tokens_total;
    uint64_t steps_total;
    /* Bytes of KV memory in use, the cache's too, and their limit (0: none); sequences in the
     * prefix cache; jobs that found a prefix; entries that had to go. */
    size_t kv_used_bytes, kv_max_bytes, cache_entries;
    size_t device_bytes, device_peak_bytes; /* as EngineDescription has them */
    uint64_t cache_hits_total, cache_evictions_total;
    /* The inference thread: does it run, and for how long has it been in its present step (0 while
     * it has nothing to do)? */
    bool thread_alive;
    double step_age_seconds;
    SchedulerHistogram first_token; /* from submit to a choice's first token */
    SchedulerHistogram inter_token; /* between two tokens of a choice */
} SchedulerStatistics;
void scheduler_statistics(Scheduler *scheduler, SchedulerStatistics *out);

typedef struct SchedulerSlot {
    bool is_processing;
    size_t prompt_tokens;    /* given to the engine or found there */
    size_t generated_tokens; /* sampled */
} SchedulerSlot;
/* As of the last step: fills at most max slots and returns how many. */
size_t scheduler_slots(Scheduler *scheduler, SchedulerSlot *out, size_t max);

#endif
