/* The chain: logit_bias, bans, constraint, repetition, presence, frequency; then greedy or a draw
 * (sampler_draw.c). */
#include "sampler.h"

#include "exponential.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { SAMPLER_ENDS_KEPT = 64 }; /* end tokens that a constraint leaves possible; models have few */

/* ---- Logits ---- */

int32_t logits_argmax(const float *logits, size_t count)
{
    size_t best = 0;
    while (best + 1 < count && isnan(logits[best]))
        best++;
    if (count == 0 || isnan(logits[best]))
        return 0;
    for (size_t i = best + 1; i < count; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return (int32_t)best;
}

/* The largest logit, and that of each block. A NaN anywhere gives false. */
static bool find_best(Sampler *sampler, const float *logits, float *best)
{
    size_t blocks = vocabulary_blocks(sampler->vocab_size);
    if (!sampler->passes->find_maxima(logits, sampler->vocab_size, sampler->maxima))
        return false;
    *best = -INFINITY;
    for (size_t i = 0; i < blocks; i++)
        *best = sampler->maxima[i] > *best ? sampler->maxima[i] : *best;
    return true;
}

/* The lowest id with the largest logit. */
static int32_t find_first(const Sampler *sampler, const float *logits, float best)
{
    size_t block = 0;
    while (block + 1 < vocabulary_blocks(sampler->vocab_size) && sampler->maxima[block] != best)
        block++;
    for (size_t i = block * VOCABULARY_BLOCK; i < vocabulary_block_end(sampler->vocab_size, block);
         i++) {
        if (logits[i] == best)
            return (int32_t)i;
    }
    return 0;
}

/* ---- Penalties ---- */

static void apply_bias(const Sampler *sampler, float *logits)
{
    for (size_t i = 0; i < sampler->n_bias; i++) {
        float bias = sampler->bias[i].bias;
        if (bias <= -100.0f)
            logits[sampler->bias[i].id] = -INFINITY;
        else
            logits[sampler->bias[i].id] += bias;
    }
    for (size_t i = 0; i < sampler->n_banned; i++)
        logits[sampler->banned[i]] = -INFINITY;
}

static void apply_repetition(Sampler *sampler, float *logits)
{
    sampler->step++;
    for (size_t i = 0; i < sampler->window_count; i++) {
        int32_t id = sampler->window[i];
        if (sampler->marks[id] == sampler->step)
            continue; /* an id pays once, however often it occurred */
        sampler->marks[id] = sampler->step;
        if (logits[id] > 0)
            logits[id] /= sampler->repetition_penalty;
        else
            logits[id] *= sampler->repetition_penalty;
    }
}

static void apply_counts(const Sampler *sampler, float *logits)
{
    for (size_t i = 0; i < sampler->n_chosen; i++) {
        int32_t id = sampler->chosen[i];
        logits[id] -= sampler->presence_penalty;
        logits[id] -= sampler->frequency_penalty * (float)sampler->counts[id];
    }
}

static void window_push(Sampler *sampler, int32_t id)
{
    if (sampler->window_size == 0)
        return;
    sampler->window[sampler->window_at] = id;
    sampler->window_at = (sampler->window_at + 1) % sampler->window_size;
    if (sampler->window_count < sampler->window_size)
        sampler->window_count++;
}

static bool remember(Sampler *sampler, int32_t id, Error *err)
{
    window_push(sampler, id);
    if (!sampler->counts)
        return true;
    if (sampler->counts[id] == 0) {
        if (!memory_grow_array((void **)&sampler->chosen, sampler->n_chosen,
                               &sampler->chosen_capacity, sizeof(*sampler->chosen)))
            return error_no_memory(err, "chosen tokens");
        sampler->chosen[sampler->n_chosen++] = id;
    }
    if (sampler->counts[id] < UINT32_MAX)
        sampler->counts[id]++;
    return true;
}

static bool prepare_maxima(Sampler *sampler, Error *err)
{
    if (!sampler->maxima)
        sampler->maxima =
            memory_allocate_array(vocabulary_blocks(sampler->vocab_size), sizeof(*sampler->maxima));
    return sampler->maxima || error_no_memory(err, "largest logits");
}

static bool counts_tokens(const Sampler *sampler)
{
    return sampler->presence_penalty != 0 || sampler->frequency_penalty != 0;
}

static bool prepare_penalties(Sampler *sampler, Error *err)
{
    if (!sampler->marks && sampler->window_size > 0) {
        sampler->marks = memory_allocate_zeroed(sampler->vocab_size, sizeof(*sampler->marks));
        if (!sampler->marks)
            return error_no_memory(err, "repetition marks");
    }
    if (!sampler->counts && counts_tokens(sampler)) {
        sampler->counts = memory_allocate_zeroed(sampler->vocab_size, sizeof(*sampler->counts));
        if (!sampler->counts)
            return error_no_memory(err, "token counts");
    }
    return true;
}

/* ---- Public ---- */

/* Keeps the last entry of each id, in ascending order of ids. Insertion moves at most
 * GENERATE_LOGIT_BIAS_MAX entries, which is bearable even when a stranger chooses them. */
static bool copy_bias(Sampler *sampler, const GenerationOptions *options, Error *err)
{
    if (options->n_logit_bias > GENERATE_LOGIT_BIAS_MAX)
        return error_set(err, ERROR_LIMIT, "%zu logit_bias entries, at most %d are possible",
                         options->n_logit_bias, GENERATE_LOGIT_BIAS_MAX);
    if (options->n_logit_bias == 0)
        return true;
    sampler->bias = memory_allocate_array(options->n_logit_bias, sizeof(*sampler->bias));
    if (!sampler->bias)
        return error_no_memory(err, "logit_bias");
    for (size_t i = 0; i < options->n_logit_bias; i++) {
        LogitBias entry = options->logit_bias[i];
        if (entry.id < 0 || (size_t)entry.id >= sampler->vocab_size)
            return error_set(err, ERROR_INVALID, "logit_bias: token id %d is not below %zu",
                             entry.id, sampler->vocab_size);
        size_t low = 0, high = sampler->n_bias;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (sampler->bias[middle].id < entry.id)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == sampler->n_bias || sampler->bias[low].id != entry.id) {
            memmove(sampler->bias + low + 1, sampler->bias + low,
                    (sampler->n_bias - low) * sizeof(entry));
            sampler->n_bias++;
        }
        sampler->bias[low] = entry;
    }
    return true;
}

/* Keeps the end tokens in *list: those that are never chosen, or those that only a constraint bans.
 */
static bool copy_ends(Sampler *sampler, const int32_t *eos, size_t count, int32_t **list,
                      size_t *n_list, Error *err)
{
    if (count == 0)
        return true;
    *list = memory_allocate_array(count, sizeof(**list));
    if (!*list)
        return error_no_memory(err, "end tokens");
    for (size_t i = 0; i < count; i++) {
        if (eos[i] >= 0 && (size_t)eos[i] < sampler->vocab_size)
            (*list)[(*n_list)++] = eos[i];
    }
    return true;
}

static bool copy_constraint(Sampler *sampler, const GenerationOptions *options, const int32_t *eos,
                            size_t n_eos, Error *err)
{
    if (options->ignore_eos)
        return copy_ends(sampler, eos, n_eos, &sampler->banned, &sampler->n_banned, err) &&
               (!options->constraint ||
                options->constraint->ops->copy(options->constraint, &sampler->constraint, err));
    if (!options->constraint)
        return true;
    return copy_ends(sampler, eos, n_eos, &sampler->ends, &sampler->n_ends, err) &&
           options->constraint->ops->copy(options->constraint, &sampler->constraint, err);
}

static bool make_window(Sampler *sampler, const GenerationOptions *options, const int32_t *prompt,
                        size_t n_prompt, Error *err)
{
    if (options->repetition_penalty == 1.0f || options->repetition_context_size <= 0)
        return true;
    size_t size = (size_t)options->repetition_context_size;
    size_t longest = options->max_tokens;
    if (!size_add(longest, n_prompt, &longest) || size < longest)
        longest = size; /* no more tokens than there can be */
    if (longest == 0)
        return true;
    sampler->window = memory_allocate_array(longest, sizeof(*sampler->window));
    if (!sampler->window)
        return error_no_memory(err, "repetition window");
    sampler->window_size = longest;
    size_t start = n_prompt > longest ? n_prompt - longest : 0;
    for (size_t i = start; i < n_prompt; i++) {
        if (prompt[i] >= 0 && (size_t)prompt[i] < sampler->vocab_size)
            window_push(sampler, prompt[i]);
    }
    return true;
}

bool sampler_init(Sampler *sampler, const GenerationOptions *options, const int32_t *eos,
                  size_t n_eos, const int32_t *prompt, size_t n_prompt, size_t vocab_size,
                  Error *err)
{
    *sampler = (Sampler){
        .temperature = options->temperature,
        .top_p = options->top_p,
        .min_p = fminf(options->min_p, 1), /* the best token stays */
        .top_k = options->top_k,
        .repetition_penalty = options->repetition_penalty,
        .presence_penalty = options->presence_penalty,
        .frequency_penalty = options->frequency_penalty,
        .vocab_size = vocab_size,
        .passes = vocabulary_passes(),
    };
    /* A scale that is not finite would make the best token's weight no number. */
    if (options->temperature > 0)
        sampler->scale = fminf(EXPONENTIAL_PER_NATURAL / options->temperature, FLT_MAX);
    uint64_t seed = options->seed;
    if (!options->has_seed && options->temperature > 0 && !random_system_seed(&seed, err))
        return false;
    random_init(&sampler->random, seed, options->choice);
    if (!copy_bias(sampler, options, err) || !copy_constraint(sampler, options, eos, n_eos, err) ||
        !make_window(sampler, options, prompt, n_prompt, err)) {
        sampler_reset(sampler);
        return false;
    }
    return true;
}

void sampler_reset(Sampler *sampler)
{
    memory_free(sampler->maxima);
    memory_free(sampler->block_sums);
    memory_free(sampler->candidates);
    memory_free(sampler->chosen);
    memory_free(sampler->counts);
    memory_free(sampler->marks);
    memory_free(sampler->window);
    if (sampler->constraint)
        sampler->constraint->ops->free(sampler->constraint);
    memory_free(sampler->ends);
    memory_free(sampler->banned);
    memory_free(sampler->bias);
    *sampler = (Sampler){0};
}

/* Ends are ours: the mask does not decide about them. */
static bool apply_constraint(Sampler *sampler, float *logits, Error *err)
{
    Constraint *constraint = sampler->constraint;
    float kept[SAMPLER_ENDS_KEPT];
    size_t n_kept = sampler->n_ends < SAMPLER_ENDS_KEPT ? sampler->n_ends : SAMPLER_ENDS_KEPT;
    bool can_end = constraint->ops->can_end(constraint);
    for (size_t i = 0; i < n_kept; i++)
        kept[i] = logits[sampler->ends[i]];
    if (!constraint->ops->fill_mask(constraint, logits, sampler->vocab_size, err))
        return false;
    for (size_t i = 0; i < sampler->n_ends; i++)
        logits[sampler->ends[i]] = can_end && i < n_kept ? kept[i] : -INFINITY;
    return true;
}

static bool is_end(const Sampler *sampler, int32_t id)
{
    for (size_t i = 0; i < sampler->n_ends; i++) {
        if (sampler->ends[i] == id)
            return true;
    }
    return false;
}

/* A greedy step without penalties takes the best token that is allowed. When the best of all is
 * allowed, that is it, and the mask need not be made. */
static bool best_is_allowed(Sampler *sampler, const float *logits, int32_t *id)
{
    Constraint *constraint = sampler->constraint;
    if (sampler->temperature > 0 || sampler->marks || sampler->counts ||
        !constraint->ops->allows_token)
        return false;
    float best;
    if (!find_best(sampler, logits, &best) || best == -INFINITY)
        return false;
    *id = find_first(sampler, logits, best);
    if (is_end(sampler, *id))
        return constraint->ops->can_end(constraint);
    return constraint->ops->allows_token(constraint, *id);
}

static bool choose_id(Sampler *sampler, float *logits, int32_t *id, Error *err)
{
    apply_bias(sampler, logits);
    if (sampler->constraint) {
        if (best_is_allowed(sampler, logits, id))
            return true;
        if (!apply_constraint(sampler, logits, err))
            return false;
    }
    if (sampler->marks)
        apply_repetition(sampler, logits);
    if (sampler->counts)
        apply_counts(sampler, logits);
    float best;
    if (!find_best(sampler, logits, &best))
        return error_set(err, ERROR_INTERNAL, "the engine returned a NaN among the logits");
    if (best == -INFINITY)
        return error_set(err, ERROR_INVALID,
                         sampler->constraint ? "no token of the vocabulary fits the constraint"
                                             : "logit_bias bans every token of the vocabulary");
    /* An infinite logit leaves no differences to weigh. */
    if (sampler->temperature <= 0 || best == INFINITY) {
        *id = find_first(sampler, logits, best);
        return true;
    }
    return sampler_draw(sampler, logits, best, id, err);
}

bool sampler_append_forced(Sampler *sampler, TokenList *out, Error *err)
{
    Constraint *constraint = sampler->constraint;
    if (!constraint || !constraint->ops->append_forced || sampler->n_bias > 0)
        return true;
    return constraint->ops->append_forced(constraint, out, err);
}

bool sampler_force(Sampler *sampler, int32_t id, Error *err)
{
    Constraint *constraint = sampler->constraint;
    return prepare_penalties(sampler, err) &&
           (!constraint || is_end(sampler, id) ||
            constraint->ops->accept_token(constraint, id, err)) &&
           remember(sampler, id, err);
}

bool sampler_choose(Sampler *sampler, float *logits, int32_t *id, Error *err)
{
    return prepare_penalties(sampler, err) && prepare_maxima(sampler, err) &&
           choose_id(sampler, logits, id, err) && sampler_force(sampler, *id, err);
}

bool sampler_is_plain(const Sampler *sampler)
{
    bool is_argmax = sampler->temperature <= 0;
    return (is_argmax || sampler_keeps_all(sampler)) && sampler->n_bias == 0 &&
           sampler->n_banned == 0 && !sampler->constraint && sampler->window_size == 0 &&
           !counts_tokens(sampler);
}
