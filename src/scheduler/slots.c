/* Slots: how a waiting choice gets one, and how it gives it back.
 *
 * A choice is admitted when there is a slot and KV memory for its whole length, so that nothing is
 * served by half; entries of the prefix cache make room. Its sequence starts as a fork of whatever
 * sequence, running or in the cache, shares the longest prefix of tokens with its prompt. When an
 * older choice is still computing a prefix that is longer than what can be had now, admission waits
 * for it: the same tokens are never prefilled twice side by side. Choices of one job always wait
 * for their first, whose prompt is theirs. A slot that ends leaves its sequence to the cache.
 *
 * Sliding-window layers forget, so a prefix can only be forked where its window is still held. Two
 * kinds of checkpoint see to that: one at the end of every prompt, where the next turn of a chat
 * will part if the reply is rewritten; and one wherever a prompt was seen to part from an earlier
 * one whose window had moved on, since what two prompts share a third will share too. */
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

/* keep: what was computed is sound, and may serve others. */
static void free_slot(Scheduler *scheduler, Slot *slot, bool keep)
{
    if (--slot->job->slots_used == 0)
        scheduler->running_jobs--;
    batch_leave_held(scheduler, slot);
    if (keep && scheduler->cache.entries) {
        prefix_cache_add(&scheduler->cache, scheduler->engine, slot->sequence, slot->tokens,
                         slot->fed);
    } else {
        engine_sequence_free(scheduler->engine, slot->sequence);
        memory_free(slot->tokens);
    }
    *slot = (Slot){0};
    scheduler->used_slots--;
    scheduler->memory_short = false;
}

void slot_end(Scheduler *scheduler, Slot *slot, FinishReason reason, const Error *error)
{
    Job *job = slot->job;
    size_t index = slot->choice;
    JobChoice *choice = &job->choices[index];
    /* To the last token, not to now: a single one took no time, and no speed is told. */
    if (choice->first_token_at > 0)
        choice->progress.decode_seconds = choice->last_token_at - choice->first_token_at;
    else
        choice->progress.prompt_seconds = clock_monotonic_seconds() - choice->admitted_at;
    /* Before the owner learns of the end: what it submits next finds the room, or the prefix. */
    free_slot(scheduler, slot, reason != FINISH_ERROR);
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

/* Where a new sequence can begin: the first `length` tokens of a slot's sequence or an entry's. */
typedef struct Source {
    const Slot *slot;
    PrefixEntry *entry;
    size_t length;
    size_t parting; /* where the prompt parts from the sequence that is most like it */
} Source;

/* Without a prefix cache every prompt is computed from its start; a job's choices share their one.
 */
static bool may_share(const Scheduler *scheduler, const Slot *slot, const Job *job)
{
    return slot->job && (scheduler->cache.entries || slot->job == job);
}

/* The last token of a prompt is always computed: its logits are wanted. */
static Source find_source(const Scheduler *scheduler, const Job *job)
{
    Source best = {0};
    const EngineOps *ops = scheduler->engine->ops;
    if (!ops->sequence_fork)
        return best;
    best.entry = prefix_cache_find(&scheduler->cache, scheduler->engine, job->prompt,
                                   job->n_prompt - 1, &best.length, &best.parting);
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        const Slot *slot = &scheduler->slots[i];
        if (!may_share(scheduler, slot, job))
            continue;
        size_t common =
            tokens_common_prefix(slot->tokens, slot->fed, job->prompt, job->n_prompt - 1);
        if (common > best.parting)
            best.parting = common;
        if (common > best.length && ops->sequence_holds_prefix(slot->sequence, common)) {
            best.slot = slot;
            best.entry = NULL;
            best.length = common;
        }
    }
    return best;
}

/* Is this slot computing a prefix of the prompt that is worth waiting for? */
static bool will_share(const Scheduler *scheduler, Slot *slot, const Job *job, size_t have)
{
    size_t common =
        tokens_common_prefix(slot->tokens, slot->job->n_prompt, job->prompt, job->n_prompt - 1);
    if (common < have + WORTH_WAITING_TOKENS)
        return false;
    if (!scheduler->kv_slides)
        return true;
    if (slot->fed + slot->held > common)
        return false; /* its window will have moved on */
    if (slot->checkpoint == 0 || common < slot->checkpoint)
        slot->checkpoint = common;
    return true;
}

/* Is a longer prefix than `have` being computed right now? */
static bool should_wait(const Scheduler *scheduler, const Job *job, size_t index, size_t have)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (!may_share(scheduler, slot, job) || slot_decodes(slot) ||
            !scheduler->engine->ops->sequence_fork)
            continue;
        if (index > 0 ? slot->job == job
                      : !job->wants_prompt_logprobs && will_share(scheduler, slot, job, have))
            return true;
    }
    return false;
}

void slot_keep_prefix(Scheduler *scheduler, Slot *slot)
{
    const EngineOps *ops = scheduler->engine->ops;
    size_t n_prompt = slot->job->n_prompt;
    /* A prompt's last token is computed for each who has the same. */
    size_t length = slot->fed < n_prompt ? slot->fed : n_prompt - 1;
    EngineSequence *prefix;
    Error err;
    slot->checkpoint = 0;
    if (!scheduler->kv_slides || !scheduler->cache.entries || length < PREFIX_CACHE_TOKENS_LEAST)
        return;
    int32_t *tokens = memory_allocate_array(length, sizeof(*tokens));
    /* Without memory there is no entry; nobody depends on one. */
    if (!tokens ||
        !ops->sequence_fork(scheduler->engine, slot->sequence, length, length, &prefix, &err)) {
        memory_free(tokens);
        return;
    }
    memcpy(tokens, slot->tokens, length * sizeof(*tokens));
    prefix_cache_add(&scheduler->cache, scheduler->engine, prefix, tokens, length);
}

/* ---- Admission ---- */

/* A sequence for n_tokens that begins with the source's. */
static bool make_sequence(Scheduler *scheduler, const Source *source, size_t n_tokens,
                          EngineSequence **out, Error *err)
{
    Engine *engine = scheduler->engine;
    if (source->length == 0)
        return engine_sequence_create(engine, n_tokens, out, err);
    EngineSequence *from = source->entry ? source->entry->sequence : source->slot->sequence;
    return engine->ops->sequence_fork(engine, from, source->length, n_tokens, out, err);
}

/* The same, at the expense of the cache: its entries go one by one while memory is short, the
 * source last and only if nothing runs whose end could be waited for. */
static bool make_room_and_sequence(Scheduler *scheduler, Source *source, size_t n_tokens,
                                   EngineSequence **out, Error *err)
{
    while (!make_sequence(scheduler, source, n_tokens, out, err)) {
        if (err->code != ERROR_MEMORY)
            return false;
        if (prefix_cache_evict(&scheduler->cache, scheduler->engine, &source->entry))
            continue;
        if (scheduler->used_slots > 0 || !source->entry)
            return false;
        *source = (Source){0};
        if (!prefix_cache_evict(&scheduler->cache, scheduler->engine, NULL))
            return false;
    }
    return true;
}

static bool fill_slot(Scheduler *scheduler, const Job *job, Source *source, Slot *slot, Error *err)
{
    size_t n_tokens = job->n_prompt + job->max_tokens;
    slot->tokens = memory_allocate_array(n_tokens, sizeof(*slot->tokens));
    if (!slot->tokens)
        return error_no_memory(err, "tokens of a sequence");
    if (!make_room_and_sequence(scheduler, source, n_tokens, &slot->sequence, err)) {
        memory_free(slot->tokens);
        return false;
    }
    memcpy(slot->tokens, job->prompt, job->n_prompt * sizeof(*slot->tokens));
    slot->n_tokens = job->n_prompt;
    slot->fed = source->length;
    if (source->parting >= source->length + WORTH_WAITING_TOKENS)
        slot->checkpoint = source->parting;
    if (source->entry)
        prefix_cache_touch(&scheduler->cache, source->entry);
    return true;
}

static void start_choice(Scheduler *scheduler, Slot *slot, size_t cached)
{
    Job *job = slot->job;
    JobChoice *choice = &job->choices[slot->choice];
    choice->admitted_at = clock_monotonic_seconds();
    choice->progress.queue_seconds = choice->admitted_at - job->submitted_at;
    if (slot->choice == 0) {
        job->cached_tokens = cached;
        scheduler->tally.cache_hits_total += cached > 0;
    }
    choice->progress.cached_tokens = job->cached_tokens;
    scheduler->admissions++;
    scheduler->used_slots++;
    if (job->slots_used++ == 0)
        scheduler->running_jobs++;
}

typedef enum Admission { ADMISSION_DONE, ADMISSION_WAITS } Admission;

/* Gives the front job's next choice the slot, or ends it. */
static Admission admit(Scheduler *scheduler, Slot *slot, Job *job, size_t index)
{
    Error err = {0};
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
    if (!fill_slot(scheduler, job, &source, &fresh, &err)) {
        if (scheduler->used_slots > 0 && err.code == ERROR_MEMORY) {
            scheduler->memory_short = true;
            return ADMISSION_WAITS;
        }
        queue_advance(scheduler);
        choice_end(scheduler, job, index, FINISH_ERROR, &err);
        return ADMISSION_DONE;
    }
    *slot = fresh;
    start_choice(scheduler, slot, source.length);
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
    while ((slot = find_free_slot(scheduler)) && (job = queue_front(scheduler)) &&
           !scheduler->memory_short) {
        if (admit(scheduler, slot, job, job->next_choice) == ADMISSION_WAITS)
            return;
    }
}
