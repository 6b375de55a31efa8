/* job: one request's meeting point between its owner and the inference thread.
 *
 * Two references: the owner's (until job_release) and the scheduler's (until it has ended). Whoever
 * drops the last one frees the job, so a job stays readable after its scheduler is gone. */
#ifndef SCHEDULER_JOB_H
#define SCHEDULER_JOB_H

#include "scheduler.h"

#include <pthread.h>
#include <stdatomic.h>

struct Job {
    atomic_int references;
    atomic_bool
        released; /* the owner is gone: the inference thread drops the job at its next step */

    /* mutex guards text, status, has_ended; changed is signalled when they change. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Buffer text; /* produced and not yet read */
    JobStatus status;
    bool has_ended;

    /* notify_mutex guards notify, and is held while it runs: once job_release has cleared it, no
     * call is under way. Never taken together with mutex. */
    pthread_mutex_t notify_mutex;
    void (*notify)(void *context);
    void *notify_context;
    size_t notify_bytes; /* constant */

    /* The inference thread's own (before that, the submitting thread's). */
    Generation *generation;
    int32_t *prompt;
    size_t n_prompt;
    size_t max_tokens;  /* clamped to the context */
    JobStatus progress; /* what job_publish copies into status */
    double submitted_at, admitted_at, first_token_at;
    Job *next; /* in the queue; guarded by the scheduler's mutex */
};

/* With both references taken. text and status are empty. */
bool job_create(const JobRequest *request, Job **out, Error *err) WARN_UNUSED;
void job_drop_reference(Job *job);
/* Inference thread: adds text and the job's progress, wakes the owner. A text beyond the maximum
 * ends the job as cancelled (the caller sees progress.finish). */
void job_publish(Job *job, Slice text);

#endif
