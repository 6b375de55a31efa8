/* One step: an engine pass over all slots, parts of the held pass, and what they mean for the
 * slots.
 *
 * The held pass gets its parts behind the other, one by one, as long as the next one can be
 * expected to end within the time that the step may take. A step that has no such time at all, or
 * that brings memory for the streams, goes without; the next one then has a part in any case.
 * A pass that fails is tried again row by row, so that an error ends only the choice that causes
 * it. */
#include "state.h"

#include <math.h>

/* ---- Results ---- */

/* The prompt of a slot is through. */
static void note_prompt(Scheduler *scheduler, Slot *slot)
{
    Job *job = slot->job;
    if (job->prompt_is_counted)
        return;
    job->prompt_is_counted = true;
    scheduler->tally.prompt_tokens_total += job->n_prompt;
    scheduler->tally.cached_tokens_total += job->cached_tokens;
    if (slot_wants_all_logits(slot))
        job_publish_prompt_logprobs(job);
}

static void note_token(Scheduler *scheduler, JobChoice *choice, double submitted_at)
{
    double now = clock_monotonic_seconds();
    if (choice->first_token_at <= 0) {
        choice->first_token_at = now;
        choice->progress.prompt_seconds = now - choice->admitted_at;
        choice->progress.first_token_seconds = now - submitted_at;
        histogram_add(&scheduler->tally.first_token, SCHEDULER_FIRST_TOKEN_BOUNDS,
                      now - submitted_at);
    } else {
        histogram_add(&scheduler->tally.inter_token, SCHEDULER_INTER_TOKEN_BOUNDS,
                      now - choice->last_token_at);
    }
    choice->last_token_at = now;
    scheduler->tally.generated_tokens_total++;
}

/* The next token of a slot: chosen by the engine, or sampled from logits. */
static bool choose_token(Generation *generation, float *logits, const int32_t *chosen, int32_t *id,
                         Buffer *text, Error *err)
{
    if (!chosen)
        return generation_step(generation, logits, id, text, err);
    *id = *chosen;
    return generation_accept(generation, *id, text, err);
}

/* A token was taken; true while the reply goes on. */
static bool keep_token(Scheduler *scheduler, Slot *slot, int32_t id)
{
    JobChoice *choice = &slot->job->choices[slot->choice];
    const Generation *generation = choice->generation;
    note_token(scheduler, choice, slot->job->submitted_at);
    choice->progress.completion_tokens = generation_token_count(generation);
    choice->progress.reasoning_tokens = generation_reasoning_count(generation);
    choice->progress.stop_index = generation_stop_index(generation);
    if (generation_finish_reason(generation) != FINISH_NONE)
        return false;
    slot->tokens[slot->n_tokens++] = id;
    return true;
}

/* Takes the next token of a slot and all that are certain behind it, and publishes the text. The
 * engine gets them together in the next pass. */
static void sample_slot(Scheduler *scheduler, Slot *slot, float *logits, const int32_t *chosen)
{
    Job *job = slot->job;
    JobChoice *choice = &job->choices[slot->choice];
    Generation *generation = choice->generation;
    Error err = {0};
    int32_t id = 0;
    FinishReason finish = generation_finish_reason(generation);
    if (finish != FINISH_NONE) { /* no token was wanted, only the prompt's log-probabilities */
        slot_end(scheduler, slot, finish, NULL);
        return;
    }
    bool ok = choose_token(generation, logits, chosen, &id, &scheduler->text, &err), took = true;
    while (ok && took && keep_token(scheduler, slot, id))
        ok = generation_take_forced(generation, &id, &took, &scheduler->text, &err);
    if (!ok) {
        buffer_clear(&scheduler->text);
        slot_end(scheduler, slot, FINISH_ERROR, &err);
        return;
    }
    finish = generation_finish_reason(generation);
    if (finish != FINISH_NONE) {
        slot_end(scheduler, slot, finish, NULL);
        return;
    }
    choice->progress.decode_seconds = choice->last_token_at - choice->first_token_at;
    job_publish(job, slot->choice, buffer_view(&scheduler->text));
    buffer_clear(&scheduler->text);
    if (choice->progress.finish != FINISH_NONE) { /* the owner does not read */
        Error overflow = choice->progress.error;
        slot_end(scheduler, slot, choice->progress.finish, &overflow);
    }
}

/* Adds the entry of a prompt's token at a position, under the logits of the one before it. */
static bool add_prompt_entry(const Scheduler *scheduler, Job *job, size_t position,
                             const float *logits, Error *err)
{
    LogprobEntry entry = {.id = job->prompt[position], .logprob = NAN};
    Buffer bytes;
    buffer_init(&bytes, SCHEDULER_JOB_TEXT_BYTES_MAX);
    if (logits)
        logprob_measure(logits, scheduler->vocab_size, entry.id, job->top_logprobs, &entry);
    bool ok = token_decoder_append_bytes(&job->prompt_decoder, entry.id, &bytes, err);
    if (ok) {
        logprob_list_append(&job->prompt_list, &entry, buffer_view(&bytes));
        buffer_clear(&bytes);
        ok = logprob_list_check(&job->prompt_list, err) &&
             token_decoder_push(&job->prompt_decoder, entry.id, &bytes, err);
    }
    buffer_reset(&bytes);
    return ok;
}

/* Rows [count] of logits of the prompt's tokens from slot->fed - count on. */
static bool add_prompt_entries(const Scheduler *scheduler, const Slot *slot, size_t count,
                               const float *logits, Error *err)
{
    size_t first = slot->fed - count;
    if (first == 0 && !add_prompt_entry(scheduler, slot->job, 0, NULL, err))
        return false;
    for (size_t i = 0; i < count && first + i + 1 < slot->job->n_prompt; i++) {
        if (!add_prompt_entry(scheduler, slot->job, first + i + 1,
                              logits + i * scheduler->vocab_size, err))
            return false;
    }
    return true;
}

/* What a successful pass over rows[0..n) means for their slots. ids: what the engine chose for the
 * wanted tokens, or NULL when it gave logits. */
static void finish_rows(Scheduler *scheduler, const EngineRow *rows, Slot **slots, size_t n_rows,
                        const int32_t *ids)
{
    float *logits = scheduler->logits;
    for (size_t i = 0; i < n_rows; i++) {
        Slot *slot = slots[i];
        Error err;
        bool ok = true;
        bool is_prompt = !slot_decodes(slot);
        slot->fed += rows[i].n_tokens;
        if (is_prompt && (slot->fed == slot->checkpoint || slot->fed == slot->job->n_prompt))
            slot_keep_prefix(scheduler, slot);
        if (rows[i].logits == ENGINE_LOGITS_NONE)
            continue;
        if (rows[i].logits == ENGINE_LOGITS_ALL) {
            ok = add_prompt_entries(scheduler, slot, rows[i].n_tokens, logits, &err);
            logits += (rows[i].n_tokens - 1) * scheduler->vocab_size;
        }
        float *last = logits;
        const int32_t *chosen = ids;
        if (ids)
            ids++;
        else
            logits += scheduler->vocab_size;
        if (!ok) {
            slot_end(scheduler, slot, FINISH_ERROR, &err);
        } else if (slot->fed >= slot->job->n_prompt) {
            note_prompt(scheduler, slot);
            sample_slot(scheduler, slot, last, chosen);
        }
    }
}

/* ---- Passes ---- */

/* Can the engine choose all tokens of the pass? */
static bool engine_chooses(Scheduler *scheduler, const Batch *pass)
{
    EngineChoice *choice = scheduler->choices;
    if (!engine_has_forward_choose(scheduler->engine))
        return false;
    for (size_t i = 0; i < pass->n_rows; i++) {
        const Slot *slot = pass->slots[i];
        if (pass->rows[i].logits == ENGINE_LOGITS_NONE)
            continue;
        if (pass->rows[i].logits == ENGINE_LOGITS_ALL ||
            !generation_is_plain(slot->job->choices[slot->choice].generation, &choice->temperature,
                                 choice->draws))
            return false;
        choice++;
    }
    return true;
}

static bool forward_pass(Scheduler *scheduler, const Batch *pass, bool chooses, Error *err)
{
    if (chooses)
        return engine_forward_choose(scheduler->engine, pass->rows, pass->n_rows,
                                     scheduler->choices, scheduler->ids, err);
    return engine_forward(scheduler->engine, pass->rows, pass->n_rows, scheduler->logits, err);
}

/* After a pass of these rows has failed: no sequence has changed, so each can be tried alone. */
static void retry_rows(Scheduler *scheduler, const Batch *batch, size_t n_rows, Error *err)
{
    for (size_t i = 0; i < n_rows; i++) {
        bool ok = n_rows > 1 &&
                  engine_forward(scheduler->engine, &batch->rows[i], 1, scheduler->logits, err);
        if (ok)
            finish_rows(scheduler, &batch->rows[i], &batch->slots[i], 1, NULL);
        else
            slot_end(scheduler, batch->slots[i], FINISH_ERROR, err);
    }
}

static void run_pass(Scheduler *scheduler)
{
    const Batch *pass = &scheduler->pass;
    Error err = {0};
    double start = clock_monotonic_seconds();
    scheduler->tally.steps_total++;
    bool chooses = engine_chooses(scheduler, pass);
    if (!forward_pass(scheduler, pass, chooses, &err)) {
        retry_rows(scheduler, pass, pass->n_rows, &err);
        return;
    }
    finish_rows(scheduler, pass->rows, pass->slots, pass->n_rows, chooses ? scheduler->ids : NULL);
    costs_learn_pass(&scheduler->costs, pass, clock_monotonic_seconds() - start);
}

/* ---- The held pass ---- */

static bool wants_logits(const Batch *batch)
{
    for (size_t i = 0; i < batch->n_rows; i++) {
        if (batch->rows[i].logits != ENGINE_LOGITS_NONE)
            return true;
    }
    return false;
}

static bool begin_held(Scheduler *scheduler, size_t n_decode)
{
    Batch *held = &scheduler->held;
    Error err = {0};
    batch_build_held(scheduler, n_decode);
    if (held->n_rows == 0 ||
        engine_forward_begin(scheduler->engine, held->rows, held->n_rows, &err))
        return held->n_rows > 0;
    retry_rows(scheduler, held, batch_clear_held(scheduler), &err);
    return false;
}

static void end_held(Scheduler *scheduler)
{
    Batch *held = &scheduler->held;
    scheduler->tally.steps_total++;
    if (!held->has_lost_rows)
        costs_learn_held(&scheduler->costs, held->n_prefill, held->seconds);
    finish_rows(scheduler, held->rows, held->slots, batch_clear_held(scheduler), NULL);
}

/* Parts until the pass is done or the next one would end after `until`. */
static void run_parts(Scheduler *scheduler, size_t n_decode, double until)
{
    Batch *held = &scheduler->held;
    StepCosts *costs = &scheduler->costs;
    bool has_head = wants_logits(held);
    double now = clock_monotonic_seconds(), next;
    size_t left;
    do {
        Error err = {0};
        double start = now;
        if (!engine_forward_continue(scheduler->engine, scheduler->logits, &left, &err)) {
            retry_rows(scheduler, held, batch_clear_held(scheduler), &err);
            return;
        }
        now = clock_monotonic_seconds();
        bool is_part = left < held->parts_left; /* it may have been memory */
        held->seconds += is_part ? now - start : 0;
        if (is_part && !held->has_lost_rows && (left > 0 || !has_head))
            costs_learn_part(costs, held->n_prefill, now - start);
        held->parts_left = left;
        /* A pass that decodes has a head too. */
        next = has_head && left == 1 ? costs_decode(costs, n_decode)
                                     : costs_part(costs, held->n_prefill);
    } while (left > 0 && (n_decode == 0 || now + next <= until));
    if (left == 0)
        end_held(scheduler);
}

/* All owners in a row, when a whole pass is published: threads that are woken token by token would
 * find one at a time, and take the processor from the sampling. */
static void wake_owners(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (scheduler->slots[i].job)
            job_wake_owner(scheduler->slots[i].job);
    }
}

/* Memory that a stream will need is brought before it does, in a step without parts: otherwise both
 * would delay the same token. */
static bool touch_ahead(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (slot_decodes(slot) && engine_sequence_touch(scheduler->engine, slot->sequence))
            return true;
    }
    return false;
}

void step_run(Scheduler *scheduler)
{
    double start = clock_monotonic_seconds();
    batch_build(scheduler);
    size_t n_decode = scheduler->pass.n_decode;
    if (scheduler->pass.n_rows > 0) {
        run_pass(scheduler);
        wake_owners(scheduler);
    }
    bool begins = scheduler->held.n_rows == 0;
    bool may_begin = n_decode > 0 && engine_can_hold(scheduler->engine);
    if (begins && !(may_begin && begin_held(scheduler, n_decode)))
        return;
    double until = start + costs_step(&scheduler->costs, n_decode);
    double next = costs_part(&scheduler->costs, scheduler->held.n_prefill);
    bool waits = n_decode > 0 && !scheduler->held.has_waited;
    if (waits && (touch_ahead(scheduler) || clock_monotonic_seconds() + next > until)) {
        scheduler->held.has_waited = true;
        return;
    }
    scheduler->held.has_waited = false;
    run_parts(scheduler, n_decode, until);
    wake_owners(scheduler);
}
