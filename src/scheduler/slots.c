/* Slots: how a waiting choice gets one, and how it gives it back.
 *
 * A choice is admitted when there is a slot and KV memory for its whole length, so that nothing is
 * served by half. Its sequence starts as a fork of whatever running sequence shares the longest
 * prefix of tokens with its prompt. When an older choice is still computing a prefix that is longer
 * than what can be had now, admission waits for it: the same tokens are never prefilled twice side
 * by side. Choices of one job always wait for their first, whose prompt is theirs. */
#include "state.h"

#include <string.h>

/* A prefix still being computed must be longer by so much to be worth the wait. */
enum { WORTH_WAITING_TOKENS = 16 };

/* ---- End ---- */

/* Publishes scheduler->text as the choice's last, and its end. */
void choice_end(Scheduler *scheduler, Job *job, size_t index, FinishReason reason,
                const Error *error)
{
    Error err;
    JobChoice *choice = &job->choices[index];
    Buffer *text = &scheduler->text;
    size_t certain = text->len;
    /* Text held back for a stop string belongs to the reply, as far as it came; but not behind a
     * gap. */
    if (choice->progress.finish == FINISH_NONE && choice->generation &&
        !generation_end(choice->generation, reason, text, &err))
        text->len = certain;
    choice->progress.finish = reason;
    if (error)
        choice->progress.error = *error;
    job_publish(job, index, buffer_view(text));
    buffer_clear(text);
    generation_free(choice->generation);
    choice->generation = NULL;
    if (choice->progress.finish == FINISH_CANCELLED && !job->cancel_is_counted) {
        job->cancel_is_counted = true;
        scheduler->tally.cancelled_total++;
    }
    if (++job->choices_ended == job->n_choices)
        job_drop_reference(job);
}

static void free_slot(Scheduler *scheduler, Slot *slot)
{
    if (--slot->job->slots_used == 0)
        scheduler->running_jobs--;
    engine_sequence_free(scheduler->engine, slot->sequence);
    memory_free(slot->tokens);
    *slot = (Slot){0};
    scheduler->used_slots--;
    scheduler->memory_short = false;
}

void slot_end(Scheduler *scheduler, Slot *slot, FinishReason reason, const Error *error)
{
    Job *job = slot->job;
    size_t index = slot->choice;
    JobChoice *choice = &job->choices[index];
    double now = clock_monotonic_seconds();
    if (choice->first_token_at > 0)
        choice->progress.decode_seconds = now - choice->first_token_at;
    else
        choice->progress.prompt_seconds = now - choice->admitted_at;
    /* The KV memory is free before the owner learns of the end: what it submits next finds room. */
    free_slot(scheduler, slot);
    choice_end(scheduler, job, index, reason, error);
}

void slots_drop_released(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (slot->job && atomic_load(&slot->job->released))
            slot_end(scheduler, slot, FINISH_CANCELLED, NULL);
    }
}

bool slot_decodes(const Slot *slot)
{
    return slot->job && slot->fed >= slot->job->n_prompt;
}

/* ---- Prefixes ---- */

static size_t common_prefix(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b)
{
    size_t n = n_a < n_b ? n_a : n_b, i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* Where a new sequence can begin: the first `length` tokens of `sequence`. */
typedef struct Source {
    EngineSequence *sequence;
    size_t length;
} Source;

/* The last token of a prompt is always computed: its logits are wanted. */
static Source find_source(const Scheduler *scheduler, const Job *job)
{
    Source best = {0};
    const EngineOps *ops = scheduler->engine->ops;
    if (!ops->sequence_fork)
        return best;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        const Slot *slot = &scheduler->slots[i];
        if (!slot->job)
            continue;
        size_t length = common_prefix(slot->tokens, slot->fed, job->prompt, job->n_prompt - 1);
        if (length > best.length && ops->sequence_holds_prefix(slot->sequence, length))
            best = (Source){slot->sequence, length};
    }
    return best;
}

/* Is a longer prefix than `have` being computed right now? */
static bool should_wait(const Scheduler *scheduler, const Job *job, size_t index, size_t have)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        const Slot *slot = &scheduler->slots[i];
        if (!slot->job || slot_decodes(slot))
            continue;
        if (slot->job == job && index > 0)
            return scheduler->engine->ops->sequence_fork != NULL;
        if (job->wants_prompt_logprobs)
            continue;
        size_t length =
            common_prefix(slot->tokens, slot->job->n_prompt, job->prompt, job->n_prompt - 1);
        if (length >= have + WORTH_WAITING_TOKENS)
            return true;
    }
    return false;
}

/* ---- Admission ---- */

static bool make_sequence(Scheduler *scheduler, const Job *job, Source source, Slot *slot,
                          Error *err)
{
    size_t n_tokens = job->n_prompt + job->max_tokens;
    slot->tokens = memory_allocate_array(n_tokens, sizeof(*slot->tokens));
    if (!slot->tokens)
        return error_no_memory(err, "tokens of a sequence");
    memcpy(slot->tokens, job->prompt, job->n_prompt * sizeof(*slot->tokens));
    slot->n_tokens = job->n_prompt;
    bool ok =
        source.length > 0
            ? scheduler->engine->ops->sequence_fork(scheduler->engine, source.sequence,
                                                    source.length, n_tokens, &slot->sequence, err)
            : engine_sequence_create(scheduler->engine, n_tokens, &slot->sequence, err);
    if (!ok)
        memory_free(slot->tokens);
    slot->fed = source.length;
    return ok;
}

typedef enum Admission { ADMISSION_DONE, ADMISSION_WAITS } Admission;

/* Gives the front job's next choice the slot, or ends it. */
static Admission admit(Scheduler *scheduler, Slot *slot, Job *job, size_t index)
{
    Error err = {0};
    JobChoice *choice = &job->choices[index];
    bool is_empty = job->max_tokens == 0 && !(job->wants_prompt_logprobs && index == 0);
    if (is_empty && index > 0 && job->wants_prompt_logprobs && job->choices_ended == 0)
        return ADMISSION_WAITS; /* its end would come before the prompt's log-probabilities */
    if (is_empty) {
        queue_advance(scheduler);
        choice_end(scheduler, job, index, FINISH_LENGTH, NULL);
        return ADMISSION_DONE;
    }
    Source source = {0};
    if (index > 0 || !job->wants_prompt_logprobs)
        source = find_source(scheduler, job);
    if (should_wait(scheduler, job, index, source.length))
        return ADMISSION_WAITS;
    Slot fresh = {.job = job, .choice = index, .order = scheduler->admissions};
    if (!make_sequence(scheduler, job, source, &fresh, &err)) {
        if (scheduler->used_slots > 0 && (err.code == ERROR_MEMORY || err.code == ERROR_LIMIT)) {
            scheduler->memory_short = true;
            return ADMISSION_WAITS;
        }
        queue_advance(scheduler);
        choice_end(scheduler, job, index, FINISH_ERROR, &err);
        return ADMISSION_DONE;
    }
    choice->admitted_at = clock_monotonic_seconds();
    choice->progress.queue_seconds = choice->admitted_at - job->submitted_at;
    if (index == 0)
        job->cached_tokens = source.length;
    choice->progress.cached_tokens = job->cached_tokens;
    *slot = fresh;
    scheduler->admissions++;
    scheduler->used_slots++;
    if (job->slots_used++ == 0)
        scheduler->running_jobs++;
    queue_advance(scheduler);
    return ADMISSION_DONE;
}

static Slot *find_free_slot(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (!scheduler->slots[i].job)
            return &scheduler->slots[i];
    }
    return NULL;
}

void slots_admit(Scheduler *scheduler)
{
    Slot *slot;
    Job *job;
    while (!scheduler->memory_short && (slot = find_free_slot(scheduler)) &&
           (job = queue_front(scheduler))) {
        if (admit(scheduler, slot, job, job->next_choice) == ADMISSION_WAITS)
            return;
    }
}
