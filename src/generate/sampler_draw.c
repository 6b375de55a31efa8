/* The end of the chain: temperature, top_k, top_p, min_p, draw.
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

enum { SAMPLER_HEAVY_MAX = 8192 }; /* tokens that are gathered and searched one by one */

/* Weights from which the search for a nucleus starts (the best token has 1), and its steps. */
static const float NUCLEUS_FIRST_THRESHOLD = 0x1p-6f, NUCLEUS_THRESHOLD_STEP = 0x1p-4f;
/* The weight of a block's largest logit may be this much below that of another one in it: the
 * exponential is as exact as a float, but not monotonous to the last bit. */
static const float WEIGHT_SLACK = 1.0f + 0x1p-16f;

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
        for (size_t i = block * VOCABULARY_BLOCK;
             i < vocabulary_block_end(sampler->vocab_size, block); i++) {
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
        for (size_t i = block * VOCABULARY_BLOCK;
             i < vocabulary_block_end(sampler->vocab_size, block); i++) {
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

size_t sampler_top_k(const Sampler *sampler)
{
    if (sampler->top_k <= 0 || (size_t)sampler->top_k >= sampler->vocab_size)
        return 0;
    return (size_t)sampler->top_k;
}

static bool prepare_scratch(Sampler *sampler, Error *err)
{
    size_t top_k = sampler_top_k(sampler), blocks = vocabulary_blocks(sampler->vocab_size);
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

bool sampler_draw(Sampler *sampler, float *logits, float best, int32_t *id, Error *err)
{
    const NucleusCut all = {0, INT32_MAX};
    if (!prepare_scratch(sampler, err))
        return false;
    size_t top_k = sampler_top_k(sampler);
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
