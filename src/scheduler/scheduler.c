/* The inference thread's loop.
 *
 *   submit -> queue (bounded, guarded by mutex) -> slots (inference thread only) -> ended
 *
 * One step: take the queue's next jobs into free slots; drop slots whose owner has gone; one engine
 * pass with the next token of every slot that decodes and a share of the prompt of those that do
 * not, oldest first; sample every row that ended in logits; publish. A step that fails is tried
 * again row by row, so that an error ends only the job that causes it. Nothing runs and nothing
 * waits: the thread sleeps.
 *
 * KV memory is reserved at admission. When it is short, the job goes back to the head of the queue
 * until a running one has ended; if none runs, it fails. */
#include "job.h"

#include <string.h>

typedef struct Slot {
    Job *job; /* NULL: free */
    EngineSequence *sequence;
    size_t prefilled; /* prompt tokens given to the engine */
    int32_t token;    /* sampled, not yet given to the engine; valid once the prompt is through */
    uint64_t order;   /* of admission */
} Slot;

struct Scheduler {
    Engine *engine;
    const Tokenizer *tokenizer;
    const ModelConfig *config;
    size_t slot_count, max_context, vocab_size;
    pthread_t thread;

    /* mutex guards the queue, draining, stopping and statistics; work is signalled when they
     * change. */
    pthread_mutex_t mutex;
    pthread_cond_t work;
    Job *queue_head, *queue_tail;
    size_t queue_length;
    bool draining, stopping;
    SchedulerStatistics statistics;

    /* The inference thread's own. */
    Slot *slots;      /* [slot_count] */
    EngineRow *rows;  /* [slot_count] of one step */
    Slot **row_slots; /* [slot_count] whose row it is */
    float *logits;    /* [slot_count, vocab_size] */
    Buffer text;      /* of one token; empty between jobs */
    uint64_t admissions;
    size_t running;
    bool memory_short; /* admission waits until a job ends */
};

/* ---- Queue ---- */

static void queue_append(Scheduler *scheduler, Job *job)
{
    job->next = NULL;
    if (scheduler->queue_tail)
        scheduler->queue_tail->next = job;
    else
        scheduler->queue_head = job;
    scheduler->queue_tail = job;
    scheduler->queue_length++;
}

static void queue_put_back(Scheduler *scheduler, Job *job)
{
    job->next = scheduler->queue_head;
    scheduler->queue_head = job;
    if (!scheduler->queue_tail)
        scheduler->queue_tail = job;
    scheduler->queue_length++;
}

static Job *queue_take(Scheduler *scheduler)
{
    Job *job = scheduler->queue_head;
    if (!job)
        return NULL;
    scheduler->queue_head = job->next;
    if (!scheduler->queue_head)
        scheduler->queue_tail = NULL;
    scheduler->queue_length--;
    job->next = NULL;
    return job;
}

/* Drops jobs whose owner has gone while they waited. Nobody reads them, so they need no status. */
static void queue_purge(Scheduler *scheduler)
{
    Job *job = scheduler->queue_head;
    scheduler->queue_head = scheduler->queue_tail = NULL;
    scheduler->queue_length = 0;
    while (job) {
        Job *next = job->next;
        if (atomic_load(&job->released)) {
            scheduler->statistics.cancelled_total++;
            job_drop_reference(job);
        } else {
            queue_append(scheduler, job);
        }
        job = next;
    }
}

/* ---- Slots ---- */

/* Publishes scheduler->text as the job's last, and its end; gives the scheduler's reference back.
 */
static void end_job(Scheduler *scheduler, Job *job, FinishReason reason, const Error *error)
{
    Error err;
    Buffer *text = &scheduler->text;
    size_t certain = text->len;
    /* Text held back for a stop string belongs to the reply, as far as it came; but not behind a
     * gap. */
    if (job->progress.finish == FINISH_NONE && job->generation &&
        !generation_end(job->generation, reason, text, &err))
        text->len = certain;
    job->progress.finish = reason;
    if (error)
        job->progress.error = *error;
    generation_free(job->generation);
    job->generation = NULL;
    job_publish(job, buffer_view(text));
    buffer_clear(text);
    if (job->progress.finish == FINISH_CANCELLED) {
        pthread_mutex_lock(&scheduler->mutex);
        scheduler->statistics.cancelled_total++;
        pthread_mutex_unlock(&scheduler->mutex);
    }
    job_drop_reference(job);
}

static void free_slot(Scheduler *scheduler, Slot *slot)
{
    engine_sequence_free(scheduler->engine, slot->sequence);
    *slot = (Slot){0};
    scheduler->running--;
    scheduler->memory_short = false;
}

static void end_slot(Scheduler *scheduler, Slot *slot, FinishReason reason, const Error *error)
{
    Job *job = slot->job;
    double now = clock_monotonic_seconds();
    if (job->first_token_at > 0)
        job->progress.decode_seconds = now - job->first_token_at;
    else
        job->progress.prompt_seconds = now - job->admitted_at;
    /* The KV memory is free before the owner learns of the end: what it submits next finds room. */
    free_slot(scheduler, slot);
    end_job(scheduler, job, reason, error);
}

static bool slot_decodes(const Slot *slot)
{
    return slot->job && slot->prefilled == slot->job->n_prompt;
}

/* False when memory is short and the job should wait. */
static bool admit_job(Scheduler *scheduler, Slot *slot, Job *job)
{
    Error err = {0};
    double now = clock_monotonic_seconds();
    if (job->max_tokens == 0) {
        end_job(scheduler, job, FINISH_LENGTH, NULL);
        return true;
    }
    EngineSequence *sequence;
    size_t tokens = job->n_prompt + job->max_tokens;
    if (!engine_sequence_create(scheduler->engine, tokens, &sequence, &err)) {
        if (scheduler->running > 0 && (err.code == ERROR_MEMORY || err.code == ERROR_LIMIT))
            return false;
        end_job(scheduler, job, FINISH_ERROR, &err);
        return true;
    }
    job->admitted_at = now;
    job->progress.queue_seconds = now - job->submitted_at;
    *slot = (Slot){.job = job, .sequence = sequence, .order = scheduler->admissions++};
    scheduler->running++;
    return true;
}

static Slot *find_free_slot(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (!scheduler->slots[i].job)
            return &scheduler->slots[i];
    }
    return NULL;
}

static void admit_jobs(Scheduler *scheduler)
{
    Slot *slot;
    while (!scheduler->memory_short && (slot = find_free_slot(scheduler))) {
        pthread_mutex_lock(&scheduler->mutex);
        queue_purge(scheduler);
        Job *job = queue_take(scheduler);
        /* Counted at once, so that a job is never seen neither waiting nor running. */
        if (job)
            scheduler->statistics.running = scheduler->running + 1;
        pthread_mutex_unlock(&scheduler->mutex);
        if (!job)
            return;
        if (!admit_job(scheduler, slot, job)) {
            scheduler->memory_short = true;
            pthread_mutex_lock(&scheduler->mutex);
            queue_put_back(scheduler, job);
            pthread_mutex_unlock(&scheduler->mutex);
        }
    }
}

static void drop_released_slots(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (slot->job && atomic_load(&slot->job->released))
            end_slot(scheduler, slot, FINISH_CANCELLED, NULL);
    }
}

/* ---- One step ---- */

static void add_row(Scheduler *scheduler, size_t *n_rows, Slot *slot, const int32_t *tokens,
                    size_t count, EngineLogits logits)
{
    scheduler->rows[*n_rows] = (EngineRow){slot->sequence, tokens, count, logits};
    scheduler->row_slots[(*n_rows)++] = slot;
}

/* The slot in prefill that was admitted first after `after`, or NULL. */
static Slot *next_prefill(Scheduler *scheduler, uint64_t after)
{
    Slot *found = NULL;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (!slot->job || slot_decodes(slot) || slot->order < after)
            continue;
        if (!found || slot->order < found->order)
            found = slot;
    }
    return found;
}

static size_t build_rows(Scheduler *scheduler)
{
    size_t n_rows = 0;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (slot_decodes(slot))
            add_row(scheduler, &n_rows, slot, &slot->token, 1, ENGINE_LOGITS_LAST);
    }
    size_t budget = n_rows > 0 ? SCHEDULER_PREFILL_CHUNK : SCHEDULER_PREFILL_CHUNK_ALONE;
    uint64_t after = 0;
    Slot *slot;
    while (budget > 0 && (slot = next_prefill(scheduler, after))) {
        size_t left = slot->job->n_prompt - slot->prefilled;
        size_t count = left < budget ? left : budget;
        add_row(scheduler, &n_rows, slot, slot->job->prompt + slot->prefilled, count,
                count == left ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE);
        budget -= count;
        after = slot->order + 1;
    }
    return n_rows;
}

/* Samples the next token of a slot from its logits and publishes the text. */
static void sample_slot(Scheduler *scheduler, Slot *slot, float *logits)
{
    Job *job = slot->job;
    Error err = {0};
    if (job->first_token_at <= 0) {
        job->first_token_at = clock_monotonic_seconds();
        job->progress.prompt_seconds = job->first_token_at - job->admitted_at;
    }
    if (!generation_step(job->generation, logits, &slot->token, &scheduler->text, &err)) {
        buffer_clear(&scheduler->text);
        end_slot(scheduler, slot, FINISH_ERROR, &err);
        return;
    }
    job->progress.completion_tokens = generation_token_count(job->generation);
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->statistics.generated_tokens_total++;
    pthread_mutex_unlock(&scheduler->mutex);
    FinishReason finish = generation_finish_reason(job->generation);
    if (finish != FINISH_NONE) {
        end_slot(scheduler, slot, finish, NULL);
        return;
    }
    job->progress.decode_seconds = clock_monotonic_seconds() - job->first_token_at;
    job_publish(job, buffer_view(&scheduler->text));
    buffer_clear(&scheduler->text);
    if (job->progress.finish != FINISH_NONE) /* the owner does not read */
        end_slot(scheduler, slot, job->progress.finish, &job->progress.error);
}

/* What a successful pass over rows[0..n) means for their slots. */
static void finish_rows(Scheduler *scheduler, const EngineRow *rows, Slot **slots, size_t n_rows)
{
    size_t prefilled = 0;
    for (size_t i = 0; i < n_rows; i++) {
        if (slots[i]->prefilled < slots[i]->job->n_prompt) {
            slots[i]->prefilled += rows[i].n_tokens;
            prefilled += rows[i].n_tokens;
        }
    }
    if (prefilled > 0) {
        pthread_mutex_lock(&scheduler->mutex);
        scheduler->statistics.prompt_tokens_total += prefilled;
        pthread_mutex_unlock(&scheduler->mutex);
    }
    size_t wanted = 0;
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i].logits == ENGINE_LOGITS_LAST)
            sample_slot(scheduler, slots[i], scheduler->logits + wanted++ * scheduler->vocab_size);
    }
}

static void run_step(Scheduler *scheduler)
{
    size_t n_rows = build_rows(scheduler);
    if (n_rows == 0)
        return;
    Error err = {0};
    if (engine_forward(scheduler->engine, scheduler->rows, n_rows, scheduler->logits, &err)) {
        finish_rows(scheduler, scheduler->rows, scheduler->row_slots, n_rows);
        return;
    }
    /* No sequence has changed, so each row can be tried alone. */
    for (size_t i = 0; i < n_rows; i++) {
        const EngineRow *row = &scheduler->rows[i];
        bool ok = n_rows > 1 && engine_forward(scheduler->engine, row, 1, scheduler->logits, &err);
        if (ok)
            finish_rows(scheduler, row, &scheduler->row_slots[i], 1);
        else
            end_slot(scheduler, scheduler->row_slots[i], FINISH_ERROR, &err);
    }
}

/* ---- Thread ---- */

/* Sleeps until there is something to do; false when the scheduler stops. */
static bool wait_for_work(Scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->statistics.running = scheduler->running;
    while (!scheduler->stopping && scheduler->running == 0 && !scheduler->queue_head)
        pthread_cond_wait(&scheduler->work, &scheduler->mutex);
    bool go_on = !scheduler->stopping;
    pthread_mutex_unlock(&scheduler->mutex);
    return go_on;
}

static void end_everything(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (scheduler->slots[i].job)
            end_slot(scheduler, &scheduler->slots[i], FINISH_CANCELLED, NULL);
    }
    for (;;) {
        pthread_mutex_lock(&scheduler->mutex);
        Job *job = queue_take(scheduler);
        pthread_mutex_unlock(&scheduler->mutex);
        if (!job)
            return;
        end_job(scheduler, job, FINISH_CANCELLED, NULL);
    }
}

static void *inference_thread(void *argument)
{
    Scheduler *scheduler = argument;
    while (wait_for_work(scheduler)) {
        drop_released_slots(scheduler);
        admit_jobs(scheduler);
        run_step(scheduler);
    }
    end_everything(scheduler);
    return NULL;
}

/* ---- Public ---- */

static bool allocate_step_memory(Scheduler *scheduler, Error *err)
{
    size_t slots = scheduler->slot_count, values;
    if (!size_multiply(slots, scheduler->vocab_size, &values))
        return error_no_memory(err, "logits");
    scheduler->slots = memory_allocate_zeroed(slots, sizeof(*scheduler->slots));
    scheduler->rows = memory_allocate_array(slots, sizeof(*scheduler->rows));
    scheduler->row_slots = memory_allocate_array(slots, sizeof(*scheduler->row_slots));
    scheduler->logits = memory_allocate_array(values, sizeof(*scheduler->logits));
    if (!scheduler->slots || !scheduler->rows || !scheduler->row_slots || !scheduler->logits)
        return error_no_memory(err, "scheduler");
    return true;
}

static void free_memory(Scheduler *scheduler)
{
    buffer_reset(&scheduler->text);
    memory_free(scheduler->logits);
    memory_free(scheduler->row_slots);
    memory_free(scheduler->rows);
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
    size_t limit = config->max_position_embeddings;
    scheduler->engine = engine;
    scheduler->tokenizer = tokenizer;
    scheduler->config = config;
    scheduler->slot_count = scheduler->statistics.slots = options->slots;
    scheduler->max_context = options->max_context;
    if (scheduler->max_context == 0 || scheduler->max_context > limit)
        scheduler->max_context = limit;
    scheduler->vocab_size = config->vocab_size;
    buffer_init(&scheduler->text, SCHEDULER_JOB_TEXT_BYTES_MAX);
    if (!allocate_step_memory(scheduler, err) || !start_thread(scheduler, err)) {
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
    scheduler->stopping = scheduler->draining = true;
    pthread_cond_signal(&scheduler->work);
    pthread_mutex_unlock(&scheduler->mutex);
    pthread_join(scheduler->thread, NULL);
    pthread_cond_destroy(&scheduler->work);
    pthread_mutex_destroy(&scheduler->mutex);
    free_memory(scheduler);
}

void scheduler_drain(Scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->draining = true;
    pthread_mutex_unlock(&scheduler->mutex);
}

static bool check_request(const Scheduler *scheduler, const JobRequest *request, Error *err)
{
    if (request->n_prompt == 0)
        return error_set(err, ERROR_INVALID, "the prompt is empty");
    if (request->n_prompt >= scheduler->max_context)
        return error_set(
            err, ERROR_LIMIT,
            "the prompt has %zu tokens, but the context holds %zu tokens, prompt and reply "
            "together",
            request->n_prompt, scheduler->max_context);
    for (size_t i = 0; i < request->n_prompt; i++) {
        if (request->prompt[i] < 0 || (size_t)request->prompt[i] >= scheduler->vocab_size)
            return error_set(err, ERROR_INVALID, "prompt token %zu: id %d is not below %zu", i,
                             request->prompt[i], scheduler->vocab_size);
    }
    return true;
}

/* Fails with ERROR_BUSY when the queue is full or closed; else the queue has the scheduler's
 * reference. */
static bool enqueue(Scheduler *scheduler, Job *job, Error *err)
{
    bool ok = false;
    pthread_mutex_lock(&scheduler->mutex);
    if (scheduler->queue_length >= SCHEDULER_QUEUE_MAX)
        queue_purge(scheduler);
    if (scheduler->draining) {
        error_set(err, ERROR_BUSY, "the server is shutting down");
    } else if (scheduler->queue_length >= SCHEDULER_QUEUE_MAX) {
        error_set(err, ERROR_BUSY, "%d requests are waiting already", SCHEDULER_QUEUE_MAX);
    } else {
        queue_append(scheduler, job);
        pthread_cond_signal(&scheduler->work);
        ok = true;
    }
    pthread_mutex_unlock(&scheduler->mutex);
    return ok;
}

bool scheduler_submit(Scheduler *scheduler, const JobRequest *request, Job **out, Error *err)
{
    *out = NULL;
    Job *job;
    if (!check_request(scheduler, request, err) || !job_create(request, &job, err))
        return false;
    const ModelConfig *config = scheduler->config;
    GenerationOptions options = request->generation;
    size_t room = scheduler->max_context - request->n_prompt;
    if (options.max_tokens > room)
        options.max_tokens = room;
    job->max_tokens = options.max_tokens;
    if (!generation_create(scheduler->tokenizer, &options, config->eos_token_ids,
                           config->n_eos_token_ids, request->prompt, request->n_prompt,
                           scheduler->vocab_size, &job->generation, err) ||
        !enqueue(scheduler, job, err)) {
        job_drop_reference(job);
        job_drop_reference(job);
        return false;
    }
    *out = job;
    return true;
}

void scheduler_statistics(Scheduler *scheduler, SchedulerStatistics *out)
{
    pthread_mutex_lock(&scheduler->mutex);
    *out = scheduler->statistics;
    out->waiting = scheduler->queue_length;
    pthread_mutex_unlock(&scheduler->mutex);
}
