/* job: one request's meeting point between its owner and the inference thread.
 *
 * Two references: the owner's (until job_release) and the scheduler's (until its last choice has
 * ended). Whoever drops the last one frees the job, so a job stays readable after its scheduler is
 * gone. */
#ifndef SCHEDULER_JOB_H
#define SCHEDULER_JOB_H

#include "scheduler.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct JobChoice {
    /* Guarded by the job's mutex. */
    Buffer text;          /* produced and not yet read */
    LogprobList logprobs; /* the same */
    JobStatus status;
    bool has_ended, end_was_read;

    /* The inference thread's own (before that, the submitting thread's). */
    Generation *generation; /* NULL once ended */
    JobStatus progress;     /* what job_publish copies into status */
    double admitted_at, first_token_at, last_token_at;
} JobChoice;

struct Job {
    atomic_int references;
    atomic_bool
        released; /* the owner is gone: the inference thread drops the job at its next step */

    /* mutex guards the choices as said there, and the prompt's entries; changed is signalled when
     * they change. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    LogprobList prompt_logprobs;
    bool prompt_logprobs_complete;

    /* notify_mutex guards notify, and is held while it runs: once job_release has cleared it, no
     * call is under way. Never taken together with mutex. */
    pthread_mutex_t notify_mutex;
    void (*notify)(void *context);
    void *notify_context;
    size_t notify_bytes; /* constant */

    /* Constant after submit. */
    int32_t *prompt;
    size_t n_prompt;
    size_t max_tokens; /* clamped to the context */
    bool wants_prompt_logprobs;
    uint32_t top_logprobs;
    double submitted_at;
    size_t n_choices;
    JobChoice *choices; /* [n_choices] */

    size_t next_choice; /* to be admitted; guarded by the scheduler's mutex, like next */
    Job *next;          /* in the queue */

    /* The inference thread's own. */
    size_t slots_used, choices_ended;
    size_t cached_tokens;                      /* of the first choice */
    bool prompt_is_counted, cancel_is_counted; /* in the statistics */
    LogprobList prompt_list;                   /* the prompt's entries so far */
    TokenDecoder prompt_decoder;               /* has seen the tokens of those */
    bool owner_has_news;                       /* to be told by job_wake_owner */
};

/* With both references taken. No choice has a generation yet. */
bool job_create(const JobRequest *request, Job **out, Error *err) WARN_UNUSED;
void job_drop_reference(Job *job);
/* Inference thread: adds text, the choice's new log-probabilities and its progress. The owner is
 * woken at once where the choice has ended (the job may be freed after that), else by
 * job_wake_owner. More unread output than the maximum ends the choice as cancelled (the caller sees
 * progress.finish). */
void job_publish(Job *job, size_t choice, Slice text);
/* Inference thread: tells the owner of what was published since the last call, if anything was. */
void job_wake_owner(Job *job);
/* Inference thread: the prompt's entries are complete. */
void job_publish_prompt_logprobs(Job *job);

#endif
