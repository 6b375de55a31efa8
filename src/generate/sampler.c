/* The chain: logit_bias, bans, constraint, repetition, presence, frequency; then greedy or
 * temperature, top_k, top_p, min_p, draw.
 *
 * Weights are exp((logit - best) / temperature), so the best token has weight 1 and nothing
 * overflows. The exponential is our own polynomial of additions and multiplications: the same bits
 * on every machine and with every libm, and compilers vectorise it.
 *
 * The full vocabulary is never sorted:
 *   top_k        a heap of the k best seen so far; most logits fail one comparison with its root;
 *   top_p        tokens below (1 - top_p) * total / vocab_size weigh less than 1 - top_p together,
 *                so they are outside the nucleus, and a higher threshold will do if what is above
 *                it already fills the nucleus; the few others become a heap from which the best
 *                is taken until the nucleus is full;
 *   neither      one pass for the weights and sums of blocks, then a walk over the blocks.
 * top_k, top_p and min_p each keep a prefix of the tokens in descending order, so the shortest one
 * decides, with the nucleus measured on what top_k left. */
#include "sampler.h"

#include "exponential.h"

#include <math.h>
#include <string.h>

enum {
    SAMPLER_BLOCK = 512,
    SAMPLER_LANES = 8,
    SAMPLER_ENDS_KEPT = 64, /* end tokens that a constraint leaves possible; models have few */
};

/* Weights from which the search for a nucleus starts (the best token has 1), and its steps. */
static const float NUCLEUS_FIRST_THRESHOLD = 0x1p-6f, NUCLEUS_THRESHOLD_STEP = 0x1p-4f;

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

/* Largest value, in lanes so that it vectorises. A NaN anywhere gives false. */
static bool find_best(const float *logits, size_t count, float *best)
{
    float lanes[SAMPLER_LANES];
    uint32_t nan[SAMPLER_LANES] = {0};
    for (size_t l = 0; l < SAMPLER_LANES; l++)
        lanes[l] = -INFINITY;
    size_t i = 0;
    for (; i + SAMPLER_LANES <= count; i += SAMPLER_LANES) {
        for (size_t l = 0; l < SAMPLER_LANES; l++) {
            float value = logits[i + l];
            lanes[l] = value > lanes[l] ? value : lanes[l];
            nan[l] |= value != value;
        }
    }
    for (; i < count; i++) {
        lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
        nan[0] |= isnan(logits[i]);
    }
    uint32_t any = 0;
    *best = -INFINITY;
    for (size_t l = 0; l < SAMPLER_LANES; l++) {
        any |= nan[l];
        *best = lanes[l] > *best ? lanes[l] : *best;
    }
    return any == 0;
}

static int32_t find_first(const float *logits, size_t count, float value)
{
    for (size_t i = 0; i < count; i++) {
        if (logits[i] == value)
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

/* ---- Candidates ---- */

/* Whether a comes before b in descending order; equal weights by id, so that the order is total. */
static bool comes_before(Candidate a, Candidate b)
{
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

/* Restores the heap below at. With last_on_top the root is the worst candidate, else the best. */
static void heap_sift(Candidate *heap, size_t count, size_t at, bool last_on_top)
{
    Candidate moved = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && comes_before(heap[child + 1], heap[child]) != last_on_top)
            child++;
        if (comes_before(heap[child], moved) == last_on_top)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static void heap_build(Candidate *heap, size_t count, bool last_on_top)
{
    for (size_t i = count / 2; i-- > 0;)
        heap_sift(heap, count, i, last_on_top);
}

/* The k best logits, as weights, best first. */
static size_t select_top_k(Sampler *sampler, const float *logits, float best, size_t k)
{
    Candidate *heap = sampler->candidates;
    for (size_t i = 0; i < k; i++)
        heap[i] = (Candidate){logits[i], (int32_t)i};
    heap_build(heap, k, true);
    for (size_t i = k; i < sampler->vocab_size; i++) {
        /* Ids ascend, so an equal logit is already worse than the root. */
        if (logits[i] <= heap[0].weight)
            continue;
        heap[0] = (Candidate){logits[i], (int32_t)i};
        heap_sift(heap, k, 0, true);
    }
    for (size_t left = k; left > 1; left--) {
        Candidate worst = heap[0];
        heap[0] = heap[left - 1];
        heap[left - 1] = worst;
        heap_sift(heap, left - 1, 0, true);
    }
    for (size_t i = 0; i < k; i++)
        heap[i].weight = exp_negative((heap[i].weight - best) / sampler->temperature);
    return k;
}

/* Cuts sorted candidates to the nucleus and to min_p; at least one stays. */
static size_t cut_sorted(const Sampler *sampler, size_t count)
{
    const Candidate *sorted = sampler->candidates;
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += (double)sorted[i].weight;
    double nucleus = (double)sampler->top_p * total;
    double sum = 0;
    size_t kept = 0;
    while (kept < count) {
        if (kept > 0 && (sorted[kept].weight < sampler->min_p || sorted[kept].weight <= 0))
            break;
        if (kept > 0 && sampler->top_p < 1 && sum >= nucleus)
            break;
        sum += (double)sorted[kept].weight;
        kept++;
    }
    return kept;
}

/* All tokens that weigh at least threshold; their sum. */
static size_t gather_candidates(const Sampler *sampler, const float *weights, float threshold,
                                double *sum)
{
    Candidate *found = sampler->candidates;
    size_t count = 0;
    *sum = 0;
    for (size_t i = 0; i < sampler->vocab_size; i++) {
        if (weights[i] >= threshold && weights[i] > 0) {
            found[count++] = (Candidate){weights[i], (int32_t)i};
            *sum += (double)weights[i];
        }
    }
    return count;
}

/* Candidates of the nucleus over the whole vocabulary, best first. weights [vocab_size] sum to
 * total. */
static size_t select_nucleus(const Sampler *sampler, const float *weights, double total)
{
    Candidate *heap = sampler->candidates;
    double nucleus = (double)sampler->top_p * total;
    double floor = (1.0 - (double)sampler->top_p) * total / (double)sampler->vocab_size;
    /* A little below, for the rounding of the sums. */
    float least = (float)(floor * 0.999);
    if (least < sampler->min_p)
        least = sampler->min_p;
    /* Mostly a few heavy tokens are enough, and the rest need not be looked at one by one. */
    double sum = 0;
    size_t count = 0;
    float threshold = NUCLEUS_FIRST_THRESHOLD;
    for (;; threshold *= NUCLEUS_THRESHOLD_STEP) {
        if (threshold < least)
            threshold = least;
        count = gather_candidates(sampler, weights, threshold, &sum);
        if (threshold <= least || sum >= nucleus * (1.0 + 1e-9))
            break;
    }
    heap_build(heap, count, false);
    /* Popping puts the best at the end of the shrinking heap: the sorted prefix grows from the
     * back. */
    sum = 0;
    size_t left = count;
    while (left > 0 && (left == count || sum < nucleus)) {
        Candidate top = heap[0];
        heap[0] = heap[--left];
        heap[left] = top;
        heap_sift(heap, left, 0, false);
        sum += (double)top.weight;
    }
    for (size_t i = 0; i < (count - left) / 2; i++) {
        Candidate other = heap[count - 1 - i];
        heap[count - 1 - i] = heap[left + i];
        heap[left + i] = other;
    }
    memmove(heap, heap + left, (count - left) * sizeof(*heap));
    return count - left;
}

static int32_t draw_candidate(Sampler *sampler, size_t count)
{
    const Candidate *kept = sampler->candidates;
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += (double)kept[i].weight;
    double target = random_uniform(&sampler->random) * total;
    for (size_t i = 0; i + 1 < count; i++) {
        target -= (double)kept[i].weight;
        if (target < 0)
            return kept[i].id;
    }
    return kept[count - 1].id;
}

/* ---- Whole vocabulary ---- */

/* Turns logits into weights in place (those below min_p become 0 unless a nucleus is still to be
 * measured) and sums them by blocks; the sum of all. */
static double weigh_all(const Sampler *sampler, float *logits, float best, float floor)
{
    float temperature = sampler->temperature;
    double total = 0;
    for (size_t start = 0; start < sampler->vocab_size; start += SAMPLER_BLOCK) {
        size_t end = start + SAMPLER_BLOCK;
        if (end > sampler->vocab_size)
            end = sampler->vocab_size;
        for (size_t i = start; i < end; i++) {
            float weight = exp_negative((logits[i] - best) / temperature);
            logits[i] = weight >= floor ? weight : 0.0f;
        }
        double sum = 0;
        for (size_t i = start; i < end; i++)
            sum += (double)logits[i];
        sampler->block_sums[start / SAMPLER_BLOCK] = sum;
        total += sum;
    }
    return total;
}

static int32_t draw_from_all(Sampler *sampler, const float *weights, double total)
{
    double target = random_uniform(&sampler->random) * total;
    size_t blocks = (sampler->vocab_size + SAMPLER_BLOCK - 1) / SAMPLER_BLOCK;
    size_t block = 0;
    while (block + 1 < blocks && target >= sampler->block_sums[block])
        target -= sampler->block_sums[block++];
    size_t last =
        SIZE_MAX; /* rounding may leave the target past the end: then the last with any weight */
    for (size_t i = block * SAMPLER_BLOCK; i < sampler->vocab_size; i++) {
        if (weights[i] <= 0)
            continue;
        last = i;
        target -= (double)weights[i];
        if (target < 0)
            return (int32_t)i;
    }
    if (last == SIZE_MAX) {
        for (last = sampler->vocab_size - 1; last > 0 && weights[last] <= 0;)
            last--;
    }
    return (int32_t)last;
}

static size_t effective_top_k(const Sampler *sampler)
{
    if (sampler->top_k <= 0 || (size_t)sampler->top_k >= sampler->vocab_size)
        return 0;
    return (size_t)sampler->top_k;
}

static bool prepare_scratch(Sampler *sampler, Error *err)
{
    size_t top_k = effective_top_k(sampler);
    if (!sampler->candidates && (top_k > 0 || sampler->top_p < 1)) {
        size_t count = top_k > 0 ? top_k : sampler->vocab_size;
        sampler->candidates = memory_allocate_array(count, sizeof(*sampler->candidates));
        if (!sampler->candidates)
            return error_no_memory(err, "sampling candidates");
    }
    if (!sampler->block_sums && top_k == 0) {
        size_t count = sampler->vocab_size / SAMPLER_BLOCK + 1;
        sampler->block_sums = memory_allocate_array(count, sizeof(*sampler->block_sums));
        if (!sampler->block_sums)
            return error_no_memory(err, "sampling sums");
    }
    return true;
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

static bool sample(Sampler *sampler, float *logits, float best, int32_t *id, Error *err)
{
    if (!prepare_scratch(sampler, err))
        return false;
    size_t top_k = effective_top_k(sampler);
    if (top_k > 0) {
        size_t count = select_top_k(sampler, logits, best, top_k);
        *id = draw_candidate(sampler, cut_sorted(sampler, count));
        return true;
    }
    if (sampler->top_p < 1) {
        double total = weigh_all(sampler, logits, best, 0);
        *id = draw_candidate(sampler, select_nucleus(sampler, logits, total));
        return true;
    }
    double total = weigh_all(sampler, logits, best, sampler->min_p);
    *id = draw_from_all(sampler, logits, total);
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
        .min_p = options->min_p,
        .top_k = options->top_k,
        .repetition_penalty = options->repetition_penalty,
        .presence_penalty = options->presence_penalty,
        .frequency_penalty = options->frequency_penalty,
        .vocab_size = vocab_size,
    };
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
    if (!find_best(logits, sampler->vocab_size, &best) || best == -INFINITY)
        return false;
    *id = find_first(logits, sampler->vocab_size, best);
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
    if (!find_best(logits, sampler->vocab_size, &best))
        return error_set(err, ERROR_INTERNAL, "the engine returned a NaN among the logits");
    if (best == -INFINITY)
        return error_set(err, ERROR_INVALID,
                         sampler->constraint ? "no token of the vocabulary fits the constraint"
                                             : "logit_bias bans every token of the vocabulary");
    /* An infinite logit leaves no differences to weigh. */
    if (sampler->temperature <= 0 || best == INFINITY) {
        *id = find_first(logits, sampler->vocab_size, best);
        return true;
    }
    return sample(sampler, logits, best, id, err);
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
    return prepare_penalties(sampler, err) && choose_id(sampler, logits, id, err) &&
           sampler_force(sampler, *id, err);
}

bool sampler_is_plain(const Sampler *sampler)
{
    bool is_argmax = sampler->temperature <= 0;
    return (is_argmax || (effective_top_k(sampler) == 0 && sampler->top_p >= 1 &&
                          sampler->min_p <= 0)) &&
           sampler->n_bias == 0 && sampler->n_banned == 0 && !sampler->constraint &&
           sampler->window_size == 0 && !counts_tokens(sampler);
}
