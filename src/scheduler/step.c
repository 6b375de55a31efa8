/* One step: rows for every slot, an engine pass, and what it means for the slots.
 *
 * Rows of decoding slots carry one token each, or several that were certain. Prompts share a budget
 * of tokens, oldest first, after what those took of it. While others decode, the budget is what
 * keeps the pass within a multiple of a pass without prefill, by the costs of the passes before:
 * nobody's stream stalls because somebody brings a long prompt. A pass that fails is tried again
 * row by row, so that an error ends only the choice that causes it. */
#include "state.h"

#include <math.h>

/* A pass with prefill may take so many times what it takes without. Streams are promised 4. */
static const double STEP_STRETCH = 2.5;
/* How far a measurement moves an estimate. A prompt token costs what it cost in the worst of the
 * recent passes, a pass without prefill what it took in the good ones: a neighbour's noise must not
 * pass for the normal step that streams are measured by. */
static const double TOKEN_RISE = 0.5, TOKEN_FALL = 0.1;
static const double DECODE_RISE = 0.05, DECODE_FALL = 0.3;

/* The first chunk, and the least: kernels for many rows may cost a whole tile for one row more, and
 * only fewer tokens still go through those for few. */
enum { PREFILL_CHUNK_FIRST = 4, PREFILL_CHUNK_LEAST = 1 };

/* ---- Costs ---- */

static size_t cost_class(size_t rows)
{
    size_t class = 0;
    while (class + 1 < SCHEDULER_COST_CLASSES && (size_t)1 << class < rows)
        class ++;
    return class;
}

static void learn(double *estimate, double measured, double rise, double fall)
{
    if (*estimate <= 0)
        *estimate = measured;
    else
        *estimate += (measured - *estimate) * (measured > *estimate ? rise : fall);
}

static void learn_costs(Scheduler *scheduler, size_t n_decode, size_t n_prefill, double seconds)
{
    StepCosts *costs = &scheduler->costs;
    double *decode = &costs->decode[cost_class(n_decode)];
    if (n_decode == 0)
        return;
    if (n_prefill == 0)
        learn(decode, seconds, DECODE_RISE, DECODE_FALL);
    else if (*decode > 0 && seconds > *decode)
        learn(&costs->prefill_token, (seconds - *decode) / (double)n_prefill, TOKEN_RISE,
              TOKEN_FALL);
}

/* Prompt tokens for a pass with n_decode decoding rows. */
static size_t prefill_budget(const Scheduler *scheduler, size_t n_decode)
{
    const StepCosts *costs = &scheduler->costs;
    if (n_decode == 0)
        return SCHEDULER_PREFILL_CHUNK_ALONE;
    double decode = costs->decode[cost_class(n_decode)];
    if (decode <= 0)
        return 0; /* this pass measures it */
    if (costs->prefill_token <= 0)
        return PREFILL_CHUNK_FIRST;
    double tokens = (STEP_STRETCH - 1) * decode / costs->prefill_token;
    if (tokens >= SCHEDULER_PREFILL_CHUNK)
        return SCHEDULER_PREFILL_CHUNK;
    return tokens > PREFILL_CHUNK_LEAST ? (size_t)tokens : PREFILL_CHUNK_LEAST;
}

/* ---- Rows ---- */

typedef struct Step {
    size_t n_rows, n_decode, n_prefill;
} Step;

static void add_row(Scheduler *scheduler, Step *step, Slot *slot, size_t count, EngineLogits logits)
{
    scheduler->rows[step->n_rows] =
        (EngineRow){slot->sequence, slot->tokens + slot->fed, count, logits};
    scheduler->row_slots[step->n_rows++] = slot;
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

static bool wants_all_logits(const Slot *slot)
{
    return slot->job->wants_prompt_logprobs && slot->choice == 0;
}

/* Room for the logits of one chunk more; stays, once it was needed. */
static bool reserve_echo_rows(Scheduler *scheduler, Error *err)
{
    size_t rows = scheduler->slot_count + SCHEDULER_ECHO_CHUNK, values;
    if (scheduler->logit_rows == rows)
        return true;
    if (!size_multiply(rows, scheduler->vocab_size, &values))
        return error_no_memory(err, "logits");
    float *logits = memory_allocate_array(values, sizeof(*logits));
    if (!logits)
        return error_no_memory(err, "logits");
    memory_free(scheduler->logits);
    scheduler->logits = logits;
    scheduler->logit_rows = rows;
    return true;
}

static void add_prefill(Scheduler *scheduler, Step *step, size_t budget)
{
    uint64_t after = 0;
    bool has_echo = false;
    Slot *slot;
    while (step->n_prefill < budget && (slot = next_prefill(scheduler, after))) {
        size_t left = slot->job->n_prompt - slot->fed;
        size_t count = left < budget - step->n_prefill ? left : budget - step->n_prefill;
        bool all = wants_all_logits(slot);
        if (slot->checkpoint > slot->fed && slot->checkpoint - slot->fed < count)
            count = slot->checkpoint - slot->fed;
        after = slot->order + 1;
        if (all) {
            Error err;
            if (has_echo)
                continue;
            if (!reserve_echo_rows(scheduler, &err)) {
                slot_end(scheduler, slot, FINISH_ERROR, &err);
                continue;
            }
            has_echo = true;
            count = count < SCHEDULER_ECHO_CHUNK ? count : SCHEDULER_ECHO_CHUNK;
        }
        add_row(scheduler, step, slot, count,
                all             ? ENGINE_LOGITS_ALL
                : count == left ? ENGINE_LOGITS_LAST
                                : ENGINE_LOGITS_NONE);
        step->n_prefill += count;
    }
}

static size_t count_decoding(const Scheduler *scheduler)
{
    size_t count = 0;
    for (size_t i = 0; i < scheduler->slot_count; i++)
        count += slot_decodes(&scheduler->slots[i]);
    return count;
}

/* Each decoding slot's next token; where several are certain, the others count as prefill. */
static void add_decode(Scheduler *scheduler, Step *step, size_t extra)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (!slot_decodes(slot))
            continue;
        size_t left = slot->n_tokens - slot->fed - 1;
        size_t more = left < extra ? left : extra;
        add_row(scheduler, step, slot, 1 + more,
                more == left ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE);
        step->n_prefill += more;
        extra -= more;
    }
    step->n_decode = step->n_rows;
}

static Step build_rows(Scheduler *scheduler)
{
    Step step = {0};
    size_t n_decode = count_decoding(scheduler);
    size_t budget = prefill_budget(scheduler, n_decode);
    /* Alone, a slot holds nobody up. */
    add_decode(scheduler, &step, n_decode > 1 ? budget : SCHEDULER_PREFILL_CHUNK_ALONE);
    add_prefill(scheduler, &step, budget);
    return step;
}

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
    if (wants_all_logits(slot))
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

/* Can the engine choose all tokens of the step? */
static bool engine_chooses(Scheduler *scheduler, const Step *step)
{
    EngineChoice *choice = scheduler->choices;
    if (!engine_has_forward_choose(scheduler->engine))
        return false;
    for (size_t i = 0; i < step->n_rows; i++) {
        const Slot *slot = scheduler->row_slots[i];
        if (scheduler->rows[i].logits == ENGINE_LOGITS_NONE)
            continue;
        if (scheduler->rows[i].logits == ENGINE_LOGITS_ALL ||
            !generation_is_plain(slot->job->choices[slot->choice].generation, &choice->temperature,
                                 choice->draws))
            return false;
        choice++;
    }
    return true;
}

static bool forward_rows(Scheduler *scheduler, const Step *step, bool chooses, Error *err)
{
    if (chooses)
        return engine_forward_choose(scheduler->engine, scheduler->rows, step->n_rows,
                                     scheduler->choices, scheduler->ids, err);
    return engine_forward(scheduler->engine, scheduler->rows, step->n_rows, scheduler->logits, err);
}

static void run_rows(Scheduler *scheduler, const Step *step)
{
    Error err = {0};
    double start = clock_monotonic_seconds();
    scheduler->tally.steps_total++;
    bool chooses = engine_chooses(scheduler, step);
    if (forward_rows(scheduler, step, chooses, &err)) {
        finish_rows(scheduler, scheduler->rows, scheduler->row_slots, step->n_rows,
                    chooses ? scheduler->ids : NULL);
        learn_costs(scheduler, step->n_decode, step->n_prefill, clock_monotonic_seconds() - start);
        return;
    }
    /* No sequence has changed, so each row can be tried alone. */
    for (size_t i = 0; i < step->n_rows; i++) {
        const EngineRow *row = &scheduler->rows[i];
        bool ok =
            step->n_rows > 1 && engine_forward(scheduler->engine, row, 1, scheduler->logits, &err);
        if (ok)
            finish_rows(scheduler, row, &scheduler->row_slots[i], 1, NULL);
        else
            slot_end(scheduler, scheduler->row_slots[i], FINISH_ERROR, &err);
    }
}

/* All owners in a row, when the whole step is published: threads that are woken token by token
 * would find one at a time, and take the processor from the sampling. */
static void wake_owners(Scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        if (scheduler->slots[i].job)
            job_wake_owner(scheduler->slots[i].job);
    }
}

void step_run(Scheduler *scheduler)
{
    Step step = build_rows(scheduler);
    if (step.n_rows == 0)
        return;
    run_rows(scheduler, &step);
    wake_owners(scheduler);
}
