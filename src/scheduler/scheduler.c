/* The thread, the queue and the public functions.
 *
 * One step: take waiting choices into free slots; drop slots whose owner has gone; one engine pass
 * with the next token of every slot that decodes, and of the prompts of those that do not as much
 * as the step has time for; sample every row that ended in logits; publish. Nothing runs and
 * nothing waits: the thread sleeps.
 *
 * KV memory is reserved at admission. When it is short, the job stays at the head of the queue
 * until a running one has ended. A job that could never have it is refused at submit, since the
 * context is no longer than what KV memory holds. */
#include "state.h"

#include <string.h>

/* ---- Queue ---- */

static void queue_append(Scheduler *scheduler, Job *job)
{
    job->next = NULL;
    if (scheduler->queue_tail)
        scheduler->queue_tail->next = job;
    else
        scheduler->queue_head = job;
    scheduler->queue_tail = job;
    scheduler->queue_length += job->next_choice == 0;
}

/* Takes the jobs whose owner has gone out of the queue; with the mutex held. The inference thread
 * alone (is_owner) drops the front job, which it may just be admitting without the mutex, and jobs
 * of which some choices were admitted. */
static void queue_purge(Scheduler *scheduler, bool is_owner)
{
    Job *job = scheduler->queue_head;
    const Job *front = job;
    scheduler->queue_head = scheduler->queue_tail = NULL;
    scheduler->queue_length = 0;
    while (job) {
        Job *next = job->next;
        bool is_kept = !is_owner && (job == front || job->next_choice > 0);
        bool stays = is_kept || !atomic_load(&job->released);
        if (job == front && !stays)
            scheduler->memory_short = false; /* the next one may need less */
        if (stays) {
            queue_append(scheduler, job);
        } else if (job->next_choice == 0) {
            scheduler->purged_total++;
            job_drop_reference(job);
        } else {
            if (!job->cancel_is_counted)
                scheduler->purged_total++;
            job->cancel_is_counted = true;
            job->choices_ended += job->n_choices - job->next_choice;
            job->next_choice = job->n_choices;
            if (job->choices_ended == job->n_choices)
                job_drop_reference(job);
        }
        job = next;
    }
}

Job *queue_front(Scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->mutex);
    queue_purge(scheduler, true);
    Job *job = scheduler->queue_head;
    pthread_mutex_unlock(&scheduler->mutex);
    return job;
}

void queue_advance(Scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->mutex);
    Job *job = scheduler->queue_head;
    if (job->next_choice++ == 0)
        scheduler->queue_length--;
    if (job->next_choice == job->n_choices) {
        scheduler->queue_head = job->next;
        if (!scheduler->queue_head)
            scheduler->queue_tail = NULL;
        job->next = NULL;
    }
    /* At once, so that a job is never seen neither waiting nor running. */
    scheduler->published.running = scheduler->running_jobs;
    pthread_mutex_unlock(&scheduler->mutex);
}

/* ---- Thread ---- */

/* Sleeps until there is something to do; false when the scheduler stops. */
static bool wait_for_work(Scheduler *scheduler)
{
    statistics_publish(scheduler);
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->step_started_at = 0;
    while (!scheduler->stopping && scheduler->used_slots == 0 && !scheduler->queue_head)
        pthread_cond_wait(&scheduler->work, &scheduler->mutex);
    scheduler->step_started_at = clock_monotonic_seconds();
    bool go_on = !scheduler->stopping;
    pthread_mutex_unlock(&scheduler->mutex);
    return go_on;
}

static void end_everything(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (scheduler->slots[i].job)
            slot_end(scheduler, &scheduler->slots[i], FINISH_CANCELLED, NULL);
    }
    for (Job *job; (job = queue_front(scheduler));) {
        size_t index = job->next_choice;
        queue_advance(scheduler);
        choice_end(scheduler, job, index, FINISH_CANCELLED, NULL);
    }
    prefix_cache_reset(&scheduler->cache, scheduler->engine);
}

static void *inference_thread(void *argument)
{
    Scheduler *scheduler = argument;
    while (wait_for_work(scheduler)) {
        slots_drop_released(scheduler);
        slots_admit(scheduler);
        step_run(scheduler);
    }
    end_everything(scheduler);
    scheduler->tally.thread_alive = false;
    statistics_publish(scheduler);
    return NULL;
}

/* ---- Public ---- */

static bool allocate_batch(Batch *batch, size_t slots)
{
    batch->rows = memory_allocate_array(slots, sizeof(*batch->rows));
    batch->slots = memory_allocate_array(slots, sizeof(*batch->slots));
    return batch->rows && batch->slots;
}

static void free_batch(Batch *batch)
{
    memory_free(batch->slots);
    memory_free(batch->rows);
}

static bool allocate_step_memory(Scheduler *scheduler, Error *err)
{
    size_t slots = scheduler->slot_count, values;
    if (!size_multiply(slots, scheduler->vocab_size, &values))
        return error_no_memory(err, "logits");
    scheduler->slots = memory_allocate_zeroed(slots, sizeof(*scheduler->slots));
    bool has_batches = allocate_batch(&scheduler->pass, slots);
    has_batches = allocate_batch(&scheduler->held, slots) && has_batches;
    scheduler->logits = memory_allocate_array(values, sizeof(*scheduler->logits));
    scheduler->ids = memory_allocate_array(slots, sizeof(*scheduler->ids));
    scheduler->choices = memory_allocate_array(slots, sizeof(*scheduler->choices));
    scheduler->logit_rows = slots;
    scheduler->published_slots = memory_allocate_zeroed(slots, sizeof(SchedulerSlot));
    if (!scheduler->slots || !has_batches || !scheduler->logits || !scheduler->ids ||
        !scheduler->choices || !scheduler->published_slots)
        return error_no_memory(err, "scheduler");
    return true;
}

static void free_memory(Scheduler *scheduler)
{
    prefix_cache_reset(&scheduler->cache,
                       scheduler->engine); /* emptied by its thread, if there was one */
    buffer_reset(&scheduler->text);
    memory_free(scheduler->published_slots);
    memory_free(scheduler->ids);
    memory_free(scheduler->choices);
    memory_free(scheduler->logits);
    free_batch(&scheduler->held);
    free_batch(&scheduler->pass);
    memory_free(scheduler->slots);
    memory_free(scheduler);
}

static bool start_thread(Scheduler *scheduler, Error *err)
{
    if (pthread_mutex_init(&scheduler->mutex, NULL) != 0)
        return error_no_memory(err, "scheduler lock");
    if (pthread_cond_init(&scheduler->work, NULL) != 0) {
        pthread_mutex_destroy(&scheduler->mutex);
        return error_no_memory(err, "scheduler lock");
    }
    if (pthread_create(&scheduler->thread, NULL, inference_thread, scheduler) != 0) {
        pthread_cond_destroy(&scheduler->work);
        pthread_mutex_destroy(&scheduler->mutex);
        return error_set(err, ERROR_IO, "the inference thread cannot be started");
    }
    return true;
}

size_t scheduler_kv_bytes(size_t context_bytes, size_t slots, size_t weight_bytes,
                          size_t available_bytes)
{
    size_t wanted, left = available_bytes > weight_bytes ? available_bytes - weight_bytes : 0;
    size_t most = left / 2 > SCHEDULER_KV_BYTES_LEAST ? left / 2 : SCHEDULER_KV_BYTES_LEAST;
    if (!size_multiply(context_bytes, slots, &wanted))
        wanted = SIZE_MAX;
    return available_bytes == 0 || wanted < most ? wanted : most;
}

static bool choose_context(Scheduler *scheduler, size_t wanted, Error *err)
{
    EngineDescription engine;
    engine_describe(scheduler->engine, &engine);
    size_t limit = scheduler->config->max_position_embeddings;
    if (engine.max_sequence_tokens < limit)
        limit = engine.max_sequence_tokens;
    scheduler->max_context = wanted > 0 && wanted < limit ? wanted : limit;
    scheduler->kv_slides = engine.kv_slides;
    scheduler->max_batch_tokens = engine.max_batch_tokens;
    scheduler->tally.kv_max_bytes = engine.kv_bytes_max;
    if (limit < SCHEDULER_CONTEXT_LEAST)
        return error_set(err, ERROR_LIMIT,
                         "KV memory of %zu bytes holds %zu tokens, expected at least %d",
                         engine.kv_bytes_max, limit, SCHEDULER_CONTEXT_LEAST);
    return true;
}

bool scheduler_create(Engine *engine, const Tokenizer *tokenizer, const ModelConfig *config,
                      const SchedulerOptions *options, Scheduler **out, Error *err)
{
    *out = NULL;
    if (options->slots < 1 || options->slots > SCHEDULER_SLOTS_MAX)
        return error_set(err, ERROR_INVALID, "%zu slots, expected 1 to %d", options->slots,
                         SCHEDULER_SLOTS_MAX);
    Scheduler *scheduler = memory_allocate_zeroed(1, sizeof(*scheduler));
    if (!scheduler)
        return error_no_memory(err, "scheduler");
    scheduler->engine = engine;
    scheduler->tokenizer = tokenizer;
    scheduler->config = config;
    scheduler->slot_count = scheduler->tally.slots = options->slots;
    scheduler->tally.thread_alive = true;
    scheduler->published = scheduler->tally;
    scheduler->vocab_size = config->vocab_size;
    buffer_init(&scheduler->text, SCHEDULER_JOB_TEXT_BYTES_MAX);
    bool can_fork = engine->ops->sequence_fork && !options->no_prefix_cache;
    if (!choose_context(scheduler, options->max_context, err) ||
        (can_fork && !prefix_cache_init(&scheduler->cache, err)) ||
        !allocate_step_memory(scheduler, err) || !start_thread(scheduler, err)) {
        free_memory(scheduler);
        return false;
    }
    *out = scheduler;
    return true;
}

void scheduler_free(Scheduler *scheduler)
{
    if (!scheduler)
        return;
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->stopping = true;
    pthread_cond_signal(&scheduler->work);
    pthread_mutex_unlock(&scheduler->mutex);
    pthread_join(scheduler->thread, NULL);
    pthread_cond_destroy(&scheduler->work);
    pthread_mutex_destroy(&scheduler->mutex);
    free_memory(scheduler);
}

size_t scheduler_max_context(const Scheduler *scheduler)
{
    return scheduler->max_context;
}

static bool check_request(const Scheduler *scheduler, const JobRequest *request, Error *err)
{
    if (request->n_prompt == 0)
        return error_set(err, ERROR_INVALID, "the prompt is empty");
    if (request->n > SCHEDULER_CHOICES_MAX)
        return error_set(err, ERROR_INVALID, "%zu choices, at most %d are possible", request->n,
                         SCHEDULER_CHOICES_MAX);
    /* Libraries before this API know the case by the first words, which are OpenAI's. */
    if (request->n_prompt >= scheduler->max_context)
        return error_set(err, ERROR_LIMIT,
                         "this model's maximum context length is %zu tokens, prompt and reply "
                         "together, but the prompt has %zu tokens",
                         scheduler->max_context, request->n_prompt);
    for (size_t i = 0; i < request->n_prompt; i++) {
        if (request->prompt[i] < 0 || (size_t)request->prompt[i] >= scheduler->vocab_size)
            return error_set(err, ERROR_INVALID, "prompt token %zu: id %d is not below %zu", i,
                             request->prompt[i], scheduler->vocab_size);
    }
    return true;
}

/* Fails with ERROR_BUSY when the queue is full; else the queue has the scheduler's reference. */
static bool enqueue(Scheduler *scheduler, Job *job, Error *err)
{
    bool ok = false;
    pthread_mutex_lock(&scheduler->mutex);
    if (scheduler->queue_length >= SCHEDULER_QUEUE_MAX)
        queue_purge(scheduler, false);
    if (scheduler->queue_length >= SCHEDULER_QUEUE_MAX) {
        error_set(err, ERROR_BUSY, "%d requests are waiting already", SCHEDULER_QUEUE_MAX);
    } else {
        queue_append(scheduler, job);
        pthread_cond_signal(&scheduler->work);
        ok = true;
    }
    pthread_mutex_unlock(&scheduler->mutex);
    return ok;
}

static bool create_generations(const Scheduler *scheduler, const JobRequest *request, Job *job,
                               Error *err)
{
    const ModelConfig *config = scheduler->config;
    GenerationOptions options = request->generation;
    size_t room = scheduler->max_context - request->n_prompt;
    if (options.max_tokens > room)
        options.max_tokens = room;
    job->max_tokens = options.max_tokens;
    for (size_t i = 0; i < job->n_choices; i++) {
        options.choice = request->generation.choice + (uint32_t)i;
        if (!generation_create(scheduler->tokenizer, &options, config->eos_token_ids,
                               config->n_eos_token_ids, request->prompt, request->n_prompt,
                               scheduler->vocab_size, &job->choices[i].generation, err))
            return false;
    }
    return true;
}

bool scheduler_submit(Scheduler *scheduler, const JobRequest *request, Job **out, Error *err)
{
    *out = NULL;
    Job *job;
    if (!check_request(scheduler, request, err) || !job_create(request, &job, err))
        return false;
    token_decoder_init(&job->prompt_decoder, scheduler->tokenizer, false);
    if (!create_generations(scheduler, request, job, err) || !enqueue(scheduler, job, err)) {
        job_drop_reference(job);
        job_drop_reference(job);
        return false;
    }
    *out = job;
    return true;
}
