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

static bool allocate_choices(Job *job, const JobRequest *request, Error *err)
{
    size_t count = request->n > 0 ? request->n : 1;
    job->choices = memory_allocate_zeroed(count, sizeof(*job->choices));
    job->prompt = memory_allocate_array(request->n_prompt, sizeof(*job->prompt));
    if (!job->choices || !job->prompt)
        return error_no_memory(err, "job");
    job->n_choices = count;
    memcpy(job->prompt, request->prompt, request->n_prompt * sizeof(*job->prompt));
    job->n_prompt = request->n_prompt;
    for (size_t i = 0; i < count; i++) {
        JobChoice *choice = &job->choices[i];
        buffer_init(&choice->text, SCHEDULER_JOB_TEXT_BYTES_MAX);
        logprob_list_init(&choice->logprobs);
        choice->logprobs.entries.max = SCHEDULER_JOB_LOGPROB_BYTES_MAX;
        choice->progress.prompt_tokens = job->n_prompt;
        choice->progress.stop_index = -1;
        choice->status = choice->progress;
    }
    return true;
}

bool job_create(const JobRequest *request, Job **out, Error *err)
{
    *out = NULL;
    Job *job = memory_allocate_zeroed(1, sizeof(*job));
    if (!job)
        return error_no_memory(err, "job");
    if (!allocate_choices(job, request, err) || !init_locks(job)) {
        memory_free(job->prompt);
        memory_free(job->choices);
        memory_free(job);
        return error_no_memory(err, "job");
    }
    atomic_init(&job->references, 2);
    atomic_init(&job->released, false);
    logprob_list_init(&job->prompt_logprobs);
    logprob_list_init(&job->prompt_list);
    job->wants_prompt_logprobs = request->prompt_logprobs && request->generation.logprobs;
    job->top_logprobs = request->generation.top_logprobs;
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
    for (size_t i = 0; i < job->n_choices; i++) {
        generation_free(job->choices[i].generation);
        logprob_list_reset(&job->choices[i].logprobs);
        buffer_reset(&job->choices[i].text);
    }
    logprob_list_reset(&job->prompt_list);
    logprob_list_reset(&job->prompt_logprobs);
    memory_free(job->choices);
    memory_free(job->prompt);
    pthread_cond_destroy(&job->changed);
    pthread_mutex_destroy(&job->notify_mutex);
    pthread_mutex_destroy(&job->mutex);
    memory_free(job);
}

/* What did not fit was lost; what arrived before stays readable. */
static void end_overflow(JobChoice *choice)
{
    Buffer *parts[] = {&choice->text, &choice->logprobs.bytes, &choice->logprobs.entries};
    const Buffer *over = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        over = parts[i]->over_limit ? parts[i] : over;
        parts[i]->failed = parts[i]->over_limit = false;
    }
    choice->progress.finish = over ? FINISH_CANCELLED : FINISH_ERROR;
    if (over)
        error_set(&choice->progress.error, ERROR_CANCELLED, "%s not read and grew beyond %zu bytes",
                  over == &choice->text ? "the reply was" : "log-probabilities were", over->max);
    else
        error_no_memory(&choice->progress.error, "what was not read of the reply");
}

void job_wake_owner(Job *job)
{
    if (!job->owner_has_news)
        return;
    job->owner_has_news = false;
    pthread_mutex_lock(&job->notify_mutex);
    if (job->notify)
        job->notify(job->notify_context);
    pthread_mutex_unlock(&job->notify_mutex);
}

void job_publish(Job *job, size_t index, Slice text)
{
    JobChoice *choice = &job->choices[index];
    pthread_mutex_lock(&job->mutex);
    buffer_append_slice(&choice->text, text);
    if (choice->generation)
        generation_take_logprobs(choice->generation, &choice->logprobs);
    if (choice->text.failed || choice->logprobs.bytes.failed || choice->logprobs.entries.failed)
        end_overflow(choice);
    choice->status = choice->progress;
    bool has_ended = choice->has_ended = choice->progress.finish != FINISH_NONE;
    size_t unread = choice->text.len + choice->logprobs.entries.len;
    bool wanted = has_ended || unread >= (job->notify_bytes ? job->notify_bytes : 1);
    pthread_cond_broadcast(&job->changed);
    pthread_mutex_unlock(&job->mutex);
    job->owner_has_news |= wanted;
    if (has_ended)
        job_wake_owner(job);
}

void job_publish_prompt_logprobs(Job *job)
{
    LogprobList empty = job->prompt_logprobs;
    pthread_mutex_lock(&job->mutex);
    job->prompt_logprobs = job->prompt_list; /* a copy might find no memory */
    job->prompt_list = empty;
    job->prompt_logprobs_complete = true;
    pthread_mutex_unlock(&job->mutex);
}

size_t job_choice_count(const Job *job)
{
    return job->n_choices;
}

void job_read_choice(Job *job, size_t index, Buffer *text, LogprobList *logprobs, JobStatus *status)
{
    JobChoice *choice = &job->choices[index];
    pthread_mutex_lock(&job->mutex);
    buffer_append_slice(text, buffer_view(&choice->text));
    buffer_clear(&choice->text);
    if (logprobs)
        logprob_list_move(logprobs, &choice->logprobs);
    else
        logprob_list_clear(&choice->logprobs);
    *status = choice->status;
    choice->end_was_read = choice->has_ended;
    pthread_mutex_unlock(&job->mutex);
}

void job_read(Job *job, Buffer *text, JobStatus *status)
{
    job_read_choice(job, 0, text, NULL, status);
}

bool job_read_prompt_logprobs(Job *job, LogprobList *out)
{
    pthread_mutex_lock(&job->mutex);
    bool complete = job->prompt_logprobs_complete;
    if (complete)
        logprob_list_move(out, &job->prompt_logprobs);
    pthread_mutex_unlock(&job->mutex);
    return complete;
}

/* With the job's mutex held. */
static bool has_news(const Job *job)
{
    size_t ended = 0;
    for (size_t i = 0; i < job->n_choices; i++) {
        const JobChoice *choice = &job->choices[i];
        if (choice->text.len > 0 || (choice->has_ended && !choice->end_was_read))
            return true;
        ended += choice->has_ended;
    }
    return ended == job->n_choices;
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
    while (!has_news(job)) {
        double left = deadline - clock_monotonic_seconds();
        if (left <= 0)
            break;
        wait_condition(&job->changed, &job->mutex, left);
    }
    bool news = has_news(job);
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
