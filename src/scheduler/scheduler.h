/* scheduler: many requests, one inference thread.
 *
 * submit() puts a Job into a bounded queue; the inference thread admits jobs to slots, and each
 * step carries the next token of every running job plus a bounded chunk of waiting prefill
 * (continuous batching). Text comes back through a bounded buffer per job; the owner drains it with
 * job_read, woken by the notify callback or job_wait. The scheduler is the only caller of the
 * engine while it lives. It knows nothing of HTTP or chat. Threads: submit, job_* and statistics
 * are any thread (a Job has one owner at a time). */
#ifndef SCHEDULER_H
#define SCHEDULER_H

#include "base.h"
#include "engine.h"
#include "generate.h"

enum {
    SCHEDULER_QUEUE_MAX = 256, /* jobs waiting for a slot */
    SCHEDULER_JOB_TEXT_BYTES_MAX =
        8 << 20,                   /* unread text of one job; beyond it the job is cancelled */
    SCHEDULER_PREFILL_CHUNK = 256, /* prompt tokens a step while others decode */
    SCHEDULER_PREFILL_CHUNK_ALONE = 512, /* and while none does */
    SCHEDULER_SLOTS_MAX = 1024,
};

typedef struct Scheduler Scheduler;
typedef struct Job Job;

typedef struct SchedulerOptions {
    size_t slots;       /* jobs that run at once, 1..SCHEDULER_SLOTS_MAX */
    size_t max_context; /* tokens of one job, prompt and reply; 0 or more than the model's: the
                           model's */
} SchedulerOptions;

/* Starts the inference thread. engine, tokenizer and config outlive the scheduler. */
bool scheduler_create(Engine *engine, const Tokenizer *tokenizer, const ModelConfig *config,
                      const SchedulerOptions *options, Scheduler **out, Error *err) WARN_UNUSED;
/* Cancels what runs, waits for the inference thread, frees. Jobs not yet released stay readable. */
void scheduler_free(Scheduler *scheduler);
/* No new jobs from now on (submit fails with ERROR_BUSY); running ones continue. */
void scheduler_drain(Scheduler *scheduler);

typedef struct JobRequest {
    const int32_t
        *prompt; /* copied; n_prompt >= 1; at least one token of the context must be left */
    size_t n_prompt;
    GenerationOptions
        generation; /* copied with what it points at; max_tokens is clamped to the context */
    /* Called on the inference thread whenever there is something new to read; must not block, and
     * must not call into the scheduler. May be NULL. Not called any more after job_release
     * returned. */
    void (*notify)(void *context);
    void *notify_context;
    /* Notify only when that many unread bytes have gathered, or at the end. 0: always. For owners
     * who want the whole reply and not each token. */
    size_t notify_bytes;
} JobRequest;

/* ERROR_LIMIT: the prompt does not fit the context (the message names both counts).
 * ERROR_BUSY: the queue is full, or draining. ERROR_INVALID: a token outside the vocabulary, or
 * what generation_create refuses. *out is NULL on failure. notify may be called before submit
 * returns. */
bool scheduler_submit(Scheduler *scheduler, const JobRequest *request, Job **out,
                      Error *err) WARN_UNUSED;

typedef struct JobStatus {
    FinishReason finish; /* FINISH_NONE while running; final only once all text was read */
    size_t prompt_tokens, completion_tokens;
    double queue_seconds, prompt_seconds, decode_seconds;
    Error error; /* when finish is FINISH_ERROR */
} JobStatus;

/* Moves the text produced since the last call to the end of out (whose failure loses it). Never
 * blocks. */
void job_read(Job *job, Buffer *out, JobStatus *status);
/* Blocks until job_read would bring text or the end, or timeout; false on timeout. Any thread. */
bool job_wait(Job *job, double timeout_seconds);
/* Gives the job back; one that still runs is cancelled at the next step. Waits for a notify call
 * that is under way, so the caller holds no lock that notify takes. */
void job_release(Job *job); /* accepts NULL */

typedef struct SchedulerStatistics {
    size_t running, waiting, slots;
    /* Jobs released or overflowed before their end; tokens prefilled; tokens sampled. */
    uint64_t cancelled_total, prompt_tokens_total, generated_tokens_total;
} SchedulerStatistics;
void scheduler_statistics(Scheduler *scheduler, SchedulerStatistics *out);

#endif
