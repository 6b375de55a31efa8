/* What the passes of a step consist of.
 *
 * Rows of decoding slots carry one token each, or several that were certain. Prompts have what is
 * left of the time that a step may take, so that nobody's stream stalls because somebody brings a
 * long one. Those that are short enough go along in the decoding slots' pass: the weights are read
 * once for both. Others go into a pass that is held: of its layers each step computes as many as it
 * has time for. So a long prompt is computed in chunks that are worth reading its keys for, however
 * short the steps are. An engine that cannot hold a pass gets as many tokens of them along as fit.
 *
 * The oldest prompt has at least half of a held pass; in the other half those go ahead that have
 * much less left. While nothing decodes, prompts go whole, oldest first. */
#include "state.h"

#include <string.h>

static void add_row(Batch *batch, Slot *slot, size_t count, EngineLogits logits)
{
    batch->rows[batch->n_rows] =
        (EngineRow){slot->sequence, slot->tokens + slot->fed, count, logits};
    batch->slots[batch->n_rows++] = slot;
}

static void clear_batch(Batch *batch)
{
    *batch = (Batch){.rows = batch->rows, .slots = batch->slots};
}

/* ---- Prompts ---- */

bool slot_wants_all_logits(const Slot *slot)
{
    return slot->job->wants_prompt_logprobs && slot->choice == 0;
}

static size_t prompt_left(const Slot *slot)
{
    return slot->job->n_prompt - slot->fed;
}

/* Does it wait for a pass to take tokens of its prompt? */
static bool wants_prefill(const Slot *slot)
{
    return slot->job && !slot_decodes(slot) && slot->held == 0;
}

/* The slot with a prompt that was admitted first after `after`, or NULL. */
static Slot *next_prefill(const Scheduler *scheduler, uint64_t after)
{
    Slot *found = NULL;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (wants_prefill(slot) && slot->order >= after && (!found || slot->order < found->order))
            found = slot;
    }
    return found;
}

/* The one with the least left of its prompt, if that is at most `most`. */
static Slot *shortest_prefill(const Scheduler *scheduler, size_t most)
{
    Slot *found = NULL;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (!wants_prefill(slot) || prompt_left(slot) > most)
            continue;
        if (!found || prompt_left(slot) < prompt_left(found) ||
            (prompt_left(slot) == prompt_left(found) && slot->order < found->order))
            found = slot;
    }
    return found;
}

/* Tokens that a pass can take of the prompt: to its end or its checkpoint, and not many where the
 * logits of each are wanted. */
static size_t prompt_piece(const Slot *slot)
{
    size_t piece = prompt_left(slot);
    if (slot->checkpoint > slot->fed && slot->checkpoint - slot->fed < piece)
        piece = slot->checkpoint - slot->fed;
    if (slot_wants_all_logits(slot) && piece > SCHEDULER_ECHO_CHUNK)
        piece = SCHEDULER_ECHO_CHUNK;
    return piece;
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

static bool has_echo(const Batch *batch)
{
    for (size_t i = 0; i < batch->n_rows; i++) {
        if (batch->rows[i].logits == ENGINE_LOGITS_ALL)
            return true;
    }
    return false;
}

/* Adds at most `room` tokens of the slot's prompt; how many. There is room for the logits of one
 * slot that wants them all; where there is no memory for it, the slot ends. */
static size_t add_prompt(Scheduler *scheduler, Batch *batch, Slot *slot, size_t room)
{
    size_t piece = prompt_piece(slot), count = piece < room ? piece : room;
    bool all = slot_wants_all_logits(slot);
    Error err;
    if (all && has_echo(batch))
        return 0;
    if (all && !reserve_echo_rows(scheduler, &err)) {
        slot_end(scheduler, slot, FINISH_ERROR, &err);
        return 0;
    }
    add_row(batch, slot, count,
            all                          ? ENGINE_LOGITS_ALL
            : count == prompt_left(slot) ? ENGINE_LOGITS_LAST
                                         : ENGINE_LOGITS_NONE);
    batch->n_prefill += count;
    return count;
}

/* ---- The pass of the decoding slots ---- */

static size_t count_decoding(const Scheduler *scheduler)
{
    size_t count = 0;
    for (size_t i = 0; i < scheduler->slot_count; i++)
        count += slot_decodes(&scheduler->slots[i]);
    return count;
}

/* Each decoding slot's next token; where several are certain, the others count as prefill. */
static void add_decode(Scheduler *scheduler, size_t extra)
{
    Batch *pass = &scheduler->pass;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        Slot *slot = &scheduler->slots[i];
        if (!slot_decodes(slot))
            continue;
        size_t left = slot->n_tokens - slot->fed - 1;
        size_t more = left < extra ? left : extra;
        add_row(pass, slot, 1 + more, more == left ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE);
        pass->n_prefill += more;
        extra -= more;
    }
    pass->n_decode = pass->n_rows;
}

/* Is there a prompt that cannot go along in one piece? */
static bool long_prompt_waits(const Scheduler *scheduler, size_t budget)
{
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        const Slot *slot = &scheduler->slots[i];
        if (slot->held > 0 || (wants_prefill(slot) && prompt_piece(slot) > budget))
            return true;
    }
    return false;
}

static void add_prefill(Scheduler *scheduler, size_t budget, bool whole)
{
    Batch *pass = &scheduler->pass;
    uint64_t after = 0;
    Slot *slot;
    while (pass->n_prefill < budget && (slot = next_prefill(scheduler, after))) {
        size_t room = budget - pass->n_prefill;
        after = slot->order + 1;
        if (!whole || prompt_piece(slot) <= room)
            add_prompt(scheduler, pass, slot, room);
    }
}

void batch_build(Scheduler *scheduler)
{
    size_t n_decode = count_decoding(scheduler), budget = SCHEDULER_PREFILL_CHUNK_ALONE;
    bool whole = n_decode > 0 && engine_can_hold(scheduler->engine);
    clear_batch(&scheduler->pass);
    scheduler->pass.is_beside_prompts = scheduler->used_slots > n_decode;
    if (n_decode > 0)
        budget = costs_ride_tokens(&scheduler->costs, n_decode);
    if (whole && long_prompt_waits(scheduler, budget))
        budget /= 2; /* the other half is the held pass's */
    /* Alone, a slot holds nobody up. */
    add_decode(scheduler, n_decode > 1 ? budget : SCHEDULER_PREFILL_CHUNK_ALONE);
    if (n_decode > 0 || scheduler->held.n_rows == 0)
        add_prefill(scheduler, budget, whole);
}

/* ---- The held pass ---- */

static size_t hold_prompt(Scheduler *scheduler, Slot *slot, size_t room)
{
    size_t count = add_prompt(scheduler, &scheduler->held, slot, room);
    if (count > 0)
        slot->held = count;
    return count;
}

void batch_build_held(Scheduler *scheduler, size_t n_decode)
{
    Batch *held = &scheduler->held;
    Slot *slot = next_prefill(scheduler, 0);
    uint64_t after = 0;
    clear_batch(held);
    if (!slot)
        return;
    size_t budget = costs_held_tokens(&scheduler->costs, n_decode);
    if (budget > scheduler->max_batch_tokens)
        budget = scheduler->max_batch_tokens;
    /* The oldest one's half, as far as it wants it; then who goes ahead, then all in order. */
    size_t much_less = prompt_left(slot) / 2, piece = prompt_piece(slot);
    size_t others = budget - (piece < budget - budget / 2 ? piece : budget - budget / 2);
    while (held->n_prefill < others && (slot = shortest_prefill(scheduler, much_less)) &&
           hold_prompt(scheduler, slot, others - held->n_prefill) > 0)
        ;
    while (held->n_prefill < budget && (slot = next_prefill(scheduler, after))) {
        after = slot->order + 1;
        hold_prompt(scheduler, slot, budget - held->n_prefill);
    }
}

size_t batch_clear_held(Scheduler *scheduler)
{
    Batch *held = &scheduler->held;
    size_t n_rows = held->n_rows;
    for (size_t i = 0; i < n_rows; i++)
        held->slots[i]->held = 0;
    clear_batch(held);
    return n_rows;
}

void batch_leave_held(Scheduler *scheduler, Slot *slot)
{
    Batch *held = &scheduler->held;
    size_t i = 0;
    if (slot->held == 0)
        return;
    while (held->slots[i] != slot)
        i++;
    held->has_lost_rows = true;
    held->n_rows--;
    held->n_prefill -= slot->held;
    memmove(held->rows + i, held->rows + i + 1, (held->n_rows - i) * sizeof(*held->rows));
    memmove(held->slots + i, held->slots + i + 1, (held->n_rows - i) * sizeof(*held->slots));
    slot->held = 0;
}
