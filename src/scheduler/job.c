#include "job.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { NANOSECONDS_PER_SECOND = 1000 * 1000 * 1000 };

/* A day: longer waits are cut, the caller loops anyway. */
static const double JOB_WAIT_SECONDS_MAX = 86400;

static bool init_condition(pthread_cond_t *condition)
{
#if defined(__APPLE__)
    return pthread_cond_init(condition, NULL) == 0;
#else
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return false;
    bool ok = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
              pthread_cond_init(condition, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return ok;
#endif
}

/* Waits at most seconds; spurious wakes are the caller's loop. */
static void wait_condition(pthread_cond_t *condition, pthread_mutex_t *mutex, double seconds)
{
    struct timespec time;
    double whole = floor(seconds);
#if defined(__APPLE__)
    time.tv_sec = (time_t)whole;
    time.tv_nsec = (long)((seconds - whole) * NANOSECONDS_PER_SECOND);
    pthread_cond_timedwait_relative_np(condition, mutex, &time);
#else
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_sec += (time_t)whole;
    time.tv_nsec += (long)((seconds - whole) * NANOSECONDS_PER_SECOND);
    if (time.tv_nsec >= NANOSECONDS_PER_SECOND) {
        time.tv_nsec -= NANOSECONDS_PER_SECOND;
        time.tv_sec++;
    }
    pthread_cond_timedwait(condition, mutex, &time);
#endif
}

static bool init_locks(Job *job)
{
    if (pthread_mutex_init(&job->mutex, NULL) != 0)
        return false;
    if (pthread_mutex_init(&job->notify_mutex, NULL) != 0) {
        pthread_mutex_destroy(&job->mutex);
        return false;
    }
    if (!init_condition(&job->changed)) {
        pthread_mutex_destroy(&job->notify_mutex);
        pthread_mutex_destroy(&job->mutex);
        return false;
    }
    return true;
}

bool job_create(const JobRequest *request, Job **out, Error *err)
{
    *out = NULL;
    Job *job = memory_allocate_zeroed(1, sizeof(*job));
    int32_t *prompt = memory_allocate_array(request->n_prompt, sizeof(*prompt));
    if (!job || !prompt || !init_locks(job)) {
        memory_free(prompt);
        memory_free(job);
        return error_no_memory(err, "job");
    }
    atomic_init(&job->references, 2);
    atomic_init(&job->released, false);
    buffer_init(&job->text, SCHEDULER_JOB_TEXT_BYTES_MAX);
    memcpy(prompt, request->prompt, request->n_prompt * sizeof(*prompt));
    job->prompt = prompt;
    job->n_prompt = request->n_prompt;
    job->progress.prompt_tokens = job->status.prompt_tokens = request->n_prompt;
    job->notify = request->notify;
    job->notify_context = request->notify_context;
    job->notify_bytes = request->notify_bytes;
    job->submitted_at = clock_monotonic_seconds();
    *out = job;
    return true;
}

void job_drop_reference(Job *job)
{
    if (atomic_fetch_sub(&job->references, 1) != 1)
        return;
    generation_free(job->generation);
    memory_free(job->prompt);
    buffer_reset(&job->text);
    pthread_cond_destroy(&job->changed);
    pthread_mutex_destroy(&job->notify_mutex);
    pthread_mutex_destroy(&job->mutex);
    memory_free(job);
}

void job_publish(Job *job, Slice text)
{
    pthread_mutex_lock(&job->mutex);
    buffer_append_slice(&job->text, text);
    if (job->text.failed) {
        job->progress.finish = job->text.over_limit ? FINISH_CANCELLED : FINISH_ERROR;
        error_set(&job->progress.error, job->text.over_limit ? ERROR_CANCELLED : ERROR_MEMORY,
                  job->text.over_limit ? "the reply was not read and grew beyond %d bytes"
                                       : "out of memory for %d bytes of unread text",
                  SCHEDULER_JOB_TEXT_BYTES_MAX);
        job->text.failed = job->text.over_limit = false; /* what arrived before stays readable */
    }
    job->status = job->progress;
    job->has_ended = job->progress.finish != FINISH_NONE;
    bool wanted = job->has_ended || job->text.len >= (job->notify_bytes ? job->notify_bytes : 1);
    pthread_cond_broadcast(&job->changed);
    pthread_mutex_unlock(&job->mutex);
    if (!wanted)
        return;
    pthread_mutex_lock(&job->notify_mutex);
    if (job->notify)
        job->notify(job->notify_context);
    pthread_mutex_unlock(&job->notify_mutex);
}

void job_read(Job *job, Buffer *out, JobStatus *status)
{
    pthread_mutex_lock(&job->mutex);
    buffer_append_slice(out, buffer_view(&job->text));
    buffer_clear(&job->text);
    *status = job->status;
    pthread_mutex_unlock(&job->mutex);
}

bool job_wait(Job *job, double timeout_seconds)
{
    double limit = timeout_seconds;
    if (!(limit > 0)) /* NaN too */
        limit = 0;
    if (limit > JOB_WAIT_SECONDS_MAX)
        limit = JOB_WAIT_SECONDS_MAX;
    double deadline = clock_monotonic_seconds() + limit;
    pthread_mutex_lock(&job->mutex);
    while (job->text.len == 0 && !job->has_ended) {
        double left = deadline - clock_monotonic_seconds();
        if (left <= 0)
            break;
        wait_condition(&job->changed, &job->mutex, left);
    }
    bool news = job->text.len > 0 || job->has_ended;
    pthread_mutex_unlock(&job->mutex);
    return news;
}

void job_release(Job *job)
{
    if (!job)
        return;
    pthread_mutex_lock(&job->notify_mutex);
    job->notify = NULL;
    pthread_mutex_unlock(&job->notify_mutex);
    atomic_store(&job->released, true);
    job_drop_reference(job);
}
