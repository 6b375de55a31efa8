/* The chain: logit_bias, bans, constraint, repetition, presence, frequency; then greedy or
 * temperature, top_k, top_p, min_p, draw.
 *
 * Weights are exp((logit - best) / temperature), so the best token has weight 1 and nothing
 * overflows. The exponential is our own polynomial of additions and multiplications: the same bits
 * on every machine and with every libm, and compilers vectorise it.
 *
 * The vocabulary is never sorted, and mostly not even weighed. The largest logit of each block of
 * tokens tells which blocks matter:
 *   top_k        no token below the k-th largest of those maxima is among the k best; the rest
 *                is cut back to its best k whenever twice as many have piled up;
 *   min_p        only blocks whose best token reaches it are opened;
 *   top_p        needs the sum of all weights, which is one pass. Mostly a few heavy tokens fill
 *                the nucleus, in few blocks; else the weight at which it ends is searched by
 *                sums of ranges of weights (nucleus.h);
 *   neither      a walk over sums of blocks.
 * top_k, top_p and min_p each keep a prefix of the tokens in descending order, so the shortest one
 * decides, with the nucleus measured on what top_k left. A draw walks the kept tokens in ascending
 * order of ids, behind top_k in descending order of weights. */
#include "sampler.h"

#include "exponential.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    SAMPLER_ENDS_KEPT = 64,   /* end tokens that a constraint leaves possible; models have few */
    SAMPLER_HEAVY_MAX = 8192, /* tokens that are gathered and searched one by one */
};

/* Weights from which the search for a nucleus starts (the best token has 1), and its steps. */
static const float NUCLEUS_FIRST_THRESHOLD = 0x1p-6f, NUCLEUS_THRESHOLD_STEP = 0x1p-4f;
/* The weight of a block's largest logit may be this much below that of another one in it: the
 * exponential is as exact as a float, but not monotonous to the last bit. */
static const float WEIGHT_SLACK = 1.0f + 0x1p-16f;

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

static size_t block_end(const Sampler *sampler, size_t block)
{
    size_t end = (block + 1) * VOCABULARY_BLOCK;
    return end < sampler->vocab_size ? end : sampler->vocab_size;
}

/* The lowest id with the largest logit. */
static int32_t find_first(const Sampler *sampler, const float *logits, float best)
{
    size_t block = 0;
    while (block + 1 < vocabulary_blocks(sampler->vocab_size) && sampler->maxima[block] != best)
        block++;
    for (size_t i = block * VOCABULARY_BLOCK; i < block_end(sampler, block); i++) {
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

/* ---- The k best ---- */

/* Whether a comes before b in descending order; equal weights by id, so that the order is total. */
static bool comes_before(Candidate a, Candidate b)
{
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

/* Restores the heap below at, whose root is the worst candidate. */
static void heap_sift(Candidate *heap, size_t count, size_t at)
{
    Candidate moved = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && !comes_before(heap[child + 1], heap[child]))
            child++;
        if (comes_before(heap[child], moved))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static void heap_build(Candidate *heap, size_t count)
{
    for (size_t i = count / 2; i-- > 0;)
        heap_sift(heap, count, i);
}

/* Brings the k best of list to its front, in any order. Pivots are taken from the middle, which
 * orders nothing badly that comes in ascending ids. */
static void select_front(Candidate *list, size_t count, size_t k)
{
    size_t low = 0, high = count; /* list[k - 1] and list[k] are not parted yet in [low, high) */
    while (high - low > 1) {
        Candidate pivot = list[low + (high - low - 1) / 2];
        size_t i = low, j = high - 1;
        for (;;) {
            while (comes_before(list[i], pivot))
                i++;
            while (comes_before(pivot, list[j]))
                j--;
            if (i >= j)
                break;
            Candidate swapped = list[i];
            list[i++] = list[j];
            list[j--] = swapped;
        }
        size_t middle = j + 1; /* all before come before, or are, the pivot */
        if (k == middle)
            return;
        if (k < middle)
            high = middle;
        else
            low = middle;
    }
}

static size_t top_k_room(size_t k)
{
    enum { SPARE = 2048 };
    return k + (k > SPARE ? k : SPARE);
}

/* The k best logits, as weights, best first. Candidates pile up until there is no room, and are
 * cut back to the best k then. */
static size_t select_top_k(Sampler *sampler, const float *logits, float best, size_t k)
{
    Candidate *list = sampler->candidates;
    size_t blocks = vocabulary_blocks(sampler->vocab_size), count = 0;
    float least = -INFINITY; /* k tokens are known that are at least this */
    bool found = false;      /* in the list, so that ids behind them have to be better */
    for (size_t block = 0; k < blocks && block < blocks; block++)
        list[block] = (Candidate){sampler->maxima[block], (int32_t)block};
    if (k < blocks) {
        select_front(list, blocks, k);
        least = list[0].weight;
        for (size_t i = 1; i < k; i++)
            least = list[i].weight < least ? list[i].weight : least;
    }
    for (size_t block = 0; block < blocks; block++) {
        if (sampler->maxima[block] < least)
            continue;
        for (size_t i = block * VOCABULARY_BLOCK; i < block_end(sampler, block); i++) {
            if (logits[i] < least || (found && logits[i] == least))
                continue;
            list[count++] = (Candidate){logits[i], (int32_t)i};
            if (count < top_k_room(k))
                continue;
            select_front(list, count, k);
            least = list[0].weight;
            for (count = 1; count < k; count++)
                least = list[count].weight < least ? list[count].weight : least;
            found = true;
        }
    }
    select_front(list, count, k);
    heap_build(list, k);
    for (size_t left = k; left > 1; left--) {
        Candidate worst = list[0];
        list[0] = list[left - 1];
        list[left - 1] = worst;
        heap_sift(list, left - 1, 0);
    }
    for (size_t i = 0; i < k; i++)
        list[i].weight = exp_negative((list[i].weight - best) * sampler->scale);
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

/* Draws from sorted candidates. */
static int32_t draw_sorted(Sampler *sampler, size_t count)
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

/* Draws from the first count candidates, as far as the cut keeps them. */
static int32_t draw_kept(Sampler *sampler, size_t count, NucleusCut cut)
{
    const Candidate *list = sampler->candidates;
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += nucleus_keeps(&cut, list[i].weight, list[i].id) ? (double)list[i].weight : 0;
    double target = random_uniform(&sampler->random) * total;
    int32_t last = 0; /* rounding may leave the target past the end */
    for (size_t i = 0; i < count; i++) {
        if (!nucleus_keeps(&cut, list[i].weight, list[i].id))
            continue;
        last = list[i].id;
        target -= (double)list[i].weight;
        if (target < 0)
            break;
    }
    return last;
}

/* Draws from all weights that the cut keeps; block_sums are the sums of those. */
static int32_t draw_from_all(Sampler *sampler, const float *weights, NucleusCut cut)
{
    size_t blocks = vocabulary_blocks(sampler->vocab_size), block = 0;
    double total = 0;
    for (size_t i = 0; i < blocks; i++)
        total += sampler->block_sums[i];
    double target = random_uniform(&sampler->random) * total;
    while (block + 1 < blocks && target >= sampler->block_sums[block])
        target -= sampler->block_sums[block++];
    int32_t last = -1;
    for (size_t i = block * VOCABULARY_BLOCK; i < sampler->vocab_size; i++) {
        if (weights[i] <= 0 || !nucleus_keeps(&cut, weights[i], (int32_t)i))
            continue;
        last = (int32_t)i;
        target -= (double)weights[i];
        if (target < 0)
            return last;
    }
    /* Rounding may leave the target past the end: then the last with any weight. */
    for (size_t i = sampler->vocab_size; last < 0 && i-- > 0;) {
        if (weights[i] > 0 && nucleus_keeps(&cut, weights[i], (int32_t)i))
            last = (int32_t)i;
    }
    return last;
}

/* All tokens that weigh at least least, in ascending order of ids, and their sum, as far as there
 * is room. false: there are more. values are weights, or logits when they are not weighed yet. */
static bool gather_heavy(const Sampler *sampler, const float *values, bool weighed, float best,
                         float least, size_t *count, double *sum)
{
    Candidate *found = sampler->candidates;
    *count = 0;
    *sum = 0;
    for (size_t block = 0; block < vocabulary_blocks(sampler->vocab_size); block++) {
        float heaviest = exp_negative((sampler->maxima[block] - best) * sampler->scale);
        if (heaviest * WEIGHT_SLACK < least)
            continue;
        if (*count > SAMPLER_HEAVY_MAX)
            return false;
        for (size_t i = block * VOCABULARY_BLOCK; i < block_end(sampler, block); i++) {
            float weight = weighed ? values[i] : exp_negative((values[i] - best) * sampler->scale);
            if (weight < least || weight <= 0)
                continue;
            found[(*count)++] = (Candidate){weight, (int32_t)i};
            *sum += (double)weight;
        }
    }
    return true;
}

/* Weights with bits in [low, high), in ascending order of ids. Without a branch: there is room for
 * one more than the vocabulary has. */
static size_t gather_range(const Sampler *sampler, const float *weights, uint32_t low,
                           uint32_t high)
{
    Candidate *found = sampler->candidates;
    const uint32_t width = high - low;
    const size_t size = sampler->vocab_size;
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {
        found[count].id = (int32_t)i;
        count += nucleus_bits(weights[i]) - low < width;
    }
    for (size_t i = 0; i < count; i++)
        found[i].weight = weights[found[i].id];
    return count;
}

static double sum_blocks(const Sampler *sampler)
{
    double sum = 0;
    for (size_t i = 0; i < vocabulary_blocks(sampler->vocab_size); i++)
        sum += sampler->block_sums[i];
    return sum;
}

/* A nucleus of many tokens: the range of weights that its end lies in is found by their sums, then
 * the end among those of the range; the sums of blocks follow. */
static int32_t draw_wide_nucleus(Sampler *sampler, const float *weights, double nucleus)
{
    uint32_t least = nucleus_bits(sampler->min_p), low, high;
    float from;
    least = least > 0 ? least : 1; /* no weight at all is never kept */
    nucleus_narrow(weights, sampler->vocab_size, nucleus, least, &low, &high);
    memcpy(&from, &high, sizeof(from));
    sampler->passes->sum_from(weights, sampler->vocab_size, from, sampler->block_sums);
    size_t count = gather_range(sampler, weights, low, high);
    NucleusCut cut =
        nucleus_find(sampler->candidates, count, low, high, sum_blocks(sampler), nucleus);
    for (size_t i = 0; i < count; i++) {
        const Candidate *found = &sampler->candidates[i];
        if (nucleus_keeps(&cut, found->weight, found->id))
            sampler->block_sums[(uint32_t)found->id / VOCABULARY_BLOCK] += (double)found->weight;
    }
    return draw_from_all(sampler, weights, cut);
}

static int32_t draw_nucleus(Sampler *sampler, float *logits, float best)
{
    size_t count;
    double sum;
    sampler->passes->weigh(logits, sampler->vocab_size, best, sampler->scale, sampler->block_sums);
    double nucleus = (double)sampler->top_p * sum_blocks(sampler);
    for (float threshold = NUCLEUS_FIRST_THRESHOLD;; threshold *= NUCLEUS_THRESHOLD_STEP) {
        if (threshold < sampler->min_p)
            threshold = sampler->min_p;
        if (threshold < FLT_MIN ||
            !gather_heavy(sampler, logits, true, best, threshold, &count, &sum))
            return draw_wide_nucleus(sampler, logits, nucleus);
        /* A little more than enough, for the rounding of the sums. */
        if (threshold > sampler->min_p && sum < nucleus * (1.0 + 1e-9))
            continue;
        return draw_kept(sampler, count,
                         nucleus_find(sampler->candidates, count, nucleus_bits(threshold),
                                      nucleus_bits(1.0f) + 1, 0, nucleus));
    }
}

static int32_t draw_by_min_p(Sampler *sampler, float *logits, float best)
{
    const NucleusCut all = {0, INT32_MAX};
    size_t count;
    double sum;
    if (gather_heavy(sampler, logits, false, best, sampler->min_p, &count, &sum))
        return draw_kept(sampler, count, all);
    sampler->passes->weigh(logits, sampler->vocab_size, best, sampler->scale, sampler->block_sums);
    sampler->passes->sum_from(logits, sampler->vocab_size, sampler->min_p, sampler->block_sums);
    return draw_from_all(sampler, logits, (NucleusCut){nucleus_bits(sampler->min_p), INT32_MAX});
}

static size_t effective_top_k(const Sampler *sampler)
{
    if (sampler->top_k <= 0 || (size_t)sampler->top_k >= sampler->vocab_size)
        return 0;
    return (size_t)sampler->top_k;
}

static bool prepare_scratch(Sampler *sampler, Error *err)
{
    size_t top_k = effective_top_k(sampler), blocks = vocabulary_blocks(sampler->vocab_size);
    if (!sampler->candidates && (top_k > 0 || sampler->top_p < 1 || sampler->min_p > 0)) {
        size_t count = top_k > 0 ? top_k_room(top_k) : sampler->vocab_size + 1;
        count = count < blocks ? blocks : count;
        sampler->candidates = memory_allocate_array(count, sizeof(*sampler->candidates));
        if (!sampler->candidates)
            return error_no_memory(err, "sampling candidates");
    }
    if (!sampler->block_sums && top_k == 0) {
        sampler->block_sums = memory_allocate_array(blocks, sizeof(*sampler->block_sums));
        if (!sampler->block_sums)
            return error_no_memory(err, "sampling sums");
    }
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

static bool sample(Sampler *sampler, float *logits, float best, int32_t *id, Error *err)
{
    const NucleusCut all = {0, INT32_MAX};
    if (!prepare_scratch(sampler, err))
        return false;
    size_t top_k = effective_top_k(sampler);
    if (top_k > 0) {
        size_t count = select_top_k(sampler, logits, best, top_k);
        *id = draw_sorted(sampler, cut_sorted(sampler, count));
    } else if (sampler->top_p < 1) {
        *id = draw_nucleus(sampler, logits, best);
    } else if (sampler->min_p > 0) {
        *id = draw_by_min_p(sampler, logits, best);
    } else {
        sampler->passes->weigh(logits, sampler->vocab_size, best, sampler->scale,
                               sampler->block_sums);
        *id = draw_from_all(sampler, logits, all);
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
        .min_p = options->min_p,
        .top_k = options->top_k,
        .repetition_penalty = options->repetition_penalty,
        .presence_penalty = options->presence_penalty,
        .frequency_penalty = options->frequency_penalty,
        .vocab_size = vocab_size,
        .passes = vocabulary_passes(),
    };
    /* A reciprocal that is not finite would make the best token's weight no number. */
    if (options->temperature > 0)
        sampler->scale = fminf(1.0f / options->temperature, FLT_MAX);
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
    return prepare_penalties(sampler, err) && prepare_maxima(sampler, err) &&
           choose_id(sampler, logits, id, err) && sampler_force(sampler, *id, err);
}

bool sampler_is_plain(const Sampler *sampler)
{
    bool is_argmax = sampler->temperature <= 0;
    return (is_argmax || (effective_top_k(sampler) == 0 && sampler->top_p >= 1 &&
                          sampler->min_p <= 0)) &&
           sampler->n_bias == 0 && sampler->n_banned == 0 && !sampler->constraint &&
           sampler->window_size == 0 && !counts_tokens(sampler);
}
