/* The end of the chain: temperature, top_k, top_p, min_p, draw.
 *
 * Weights are 2^((logit - best) * scale), so the best token has weight 1 and nothing overflows. The
 * exponential is our own polynomial of additions and multiplications: the same bits on every
 * machine and with every libm, and compilers vectorise it.
 *
 * top_k, top_p and min_p each keep a prefix of the tokens in descending order, so the shortest one
 * decides, with the nucleus measured on what top_k left. Yet nothing is sorted:
 *
 * - top_k: no token below the k-th largest of the blocks' largest logits is among the k best; the
 *   rest piles up in a list, which is cut back to its best k whenever there is no more room.
 * - min_p: only blocks whose best token reaches it are weighed.
 * - top_p: where the nucleus ends is not searched for. A token is drawn from all; it is in the
 *   nucleus when what comes before it weighs less than top_p of everything, which a look at few
 *   blocks tells, or one pass. If it is not, the next is drawn from what comes before it. The
 *   nucleus is among that, so the first draw that lies in it has the distribution of a draw from it
 *   alone. The first is refused with a chance of 1 - top_p, and each leaves a random share.
 *
 * A draw walks the kept tokens in ascending order of ids. */
#include "sampler.h"

#include "exponential.h"

#include <math.h>
#include <string.h>

/* The weight of a block's largest logit may be this much below that of another one in it: the
 * exponential is as exact as a float, but not monotonous to the last bit. */
static const float WEIGHT_SLACK = 1.0f + 0x1p-16f;

/* Whether a comes before b in descending order; equal weights by id, so that the order is total. */
static bool comes_before(Candidate a, Candidate b)
{
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

/* All that weighs anything comes before this. */
static const Candidate NO_LIMIT = {0, -1};

static bool may_be_drawn(const Sampler *sampler, Candidate token, Candidate limit)
{
    return token.weight >= sampler->min_p && comes_before(token, limit);
}

/* ---- The k best ---- */

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

/* Cuts a list to its k best, which stay in ascending order of ids, by way of a copy behind its
 * room. The last of them in descending order. */
static Candidate keep_best(Candidate *list, size_t count, size_t k)
{
    Candidate *copy = list + top_k_room(k), last;
    size_t kept = 0;
    memcpy(copy, list, count * sizeof(*list));
    select_front(copy, count, k);
    last = copy[0];
    for (size_t i = 1; i < k; i++)
        last = comes_before(last, copy[i]) ? copy[i] : last;
    for (size_t i = 0; i < count; i++) {
        list[kept] = list[i];
        kept += !comes_before(last, list[i]);
    }
    return last;
}

/* As many logits as there are blocks, and so the k best, are no less than the k-th of the maxima.
 */
static float kth_maximum(Sampler *sampler, size_t k)
{
    Candidate *list = sampler->candidates;
    size_t blocks = vocabulary_blocks(sampler->vocab_size);
    if (k >= blocks)
        return -INFINITY;
    for (size_t block = 0; block < blocks; block++)
        list[block] = (Candidate){sampler->maxima[block], (int32_t)block};
    select_front(list, blocks, k);
    float least = list[0].weight;
    for (size_t i = 1; i < k; i++)
        least = list[i].weight < least ? list[i].weight : least;
    return least;
}

/* The k best logits, as weights in ascending order of ids. Candidates pile up until there is no
 * room, and are cut back to the best k then. */
static void select_top_k(Sampler *sampler, const float *logits, float best, size_t k)
{
    Candidate *list = sampler->candidates;
    Candidate limit = {kth_maximum(sampler, k), INT32_MAX}; /* the k best come before it */
    size_t words = (sampler->vocab_size + 63) / 64, count = 0;
    uint64_t bits[VOCABULARY_WORDS];
    for (size_t word = 0; word < words; word++) {
        size_t start = word * 64, block = start / VOCABULARY_BLOCK;
        if (sampler->maxima[block] < limit.weight)
            continue;
        if (word % VOCABULARY_WORDS == 0)
            sampler->passes->find_from(logits + start,
                                       vocabulary_block_end(sampler->vocab_size, block) - start,
                                       limit.weight, bits);
        if (count + 64 > top_k_room(k)) {
            limit = keep_best(list, count, k);
            count = k;
        }
        for (uint64_t left = bits[word % VOCABULARY_WORDS]; left != 0; left &= left - 1) {
            size_t id = start + (size_t)__builtin_ctzll(left);
            list[count] = (Candidate){logits[id], (int32_t)id};
            count += comes_before(list[count], limit);
        }
    }
    keep_best(list, count, k);
    for (size_t i = 0; i < k; i++)
        list[i].weight = exp2_negative((list[i].weight - best) * sampler->scale);
}

/* The sum of those that may be drawn. */
static double sum_list(const Sampler *sampler, size_t count, Candidate limit)
{
    const Candidate *list = sampler->candidates;
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += may_be_drawn(sampler, list[i], limit) ? (double)list[i].weight : 0;
    return sum;
}

static Candidate draw_listed(Sampler *sampler, size_t count, Candidate limit)
{
    const Candidate *list = sampler->candidates;
    double target = random_uniform(&sampler->random) * sum_list(sampler, count, limit);
    Candidate drawn = {0, 0}; /* rounding may leave the target past the end: then the last */
    for (size_t i = 0; i < count && target >= 0; i++) {
        if (!may_be_drawn(sampler, list[i], limit))
            continue;
        drawn = list[i];
        target -= (double)drawn.weight;
    }
    return drawn;
}

static int32_t draw_from_best(Sampler *sampler, const float *logits, float best, size_t k)
{
    Candidate token = NO_LIMIT;
    double total = 0, before;
    select_top_k(sampler, logits, best, k);
    for (size_t i = 0; i < k; i++)
        total += (double)sampler->candidates[i].weight;
    do {
        token = draw_listed(sampler, k, token);
        before = sum_list(sampler, k, token);
    } while (sampler->top_p < 1 && before > 0 && before >= (double)sampler->top_p * total);
    return token.id;
}

/* ---- Whole vocabulary ---- */

static double sum_blocks(const Sampler *sampler)
{
    double sum = 0;
    for (size_t i = 0; i < vocabulary_blocks(sampler->vocab_size); i++)
        sum += sampler->block_sums[i];
    return sum;
}

/* Logits become weights, as far as something of them may be kept; block_sums tell how much each
 * block weighs. */
static void weigh_blocks(Sampler *sampler, float *logits, float best)
{
    const VocabularyPasses *passes = sampler->passes;
    size_t size = sampler->vocab_size;
    if (sampler->top_p < 1 || sampler->min_p <= 0) {
        passes->weigh(logits, size, best, sampler->scale, sampler->block_sums);
        return;
    }
    for (size_t block = 0; block < vocabulary_blocks(size); block++) {
        size_t start = block * VOCABULARY_BLOCK;
        float heaviest = exp2_negative((sampler->maxima[block] - best) * sampler->scale);
        if (heaviest * WEIGHT_SLACK < sampler->min_p)
            sampler->block_sums[block] = 0;
        else
            passes->weigh(logits + start, vocabulary_block_end(size, block) - start, best,
                          sampler->scale, &sampler->block_sums[block]);
    }
}

/* Draws from the tokens that reach min_p and come before limit, whose sums are block_sums. */
static Candidate draw_before(Sampler *sampler, const float *weights, Candidate limit)
{
    size_t blocks = vocabulary_blocks(sampler->vocab_size), chosen = 0;
    double target = random_uniform(&sampler->random) * sum_blocks(sampler);
    /* Rounding may leave the target past the end: then the last with any weight. */
    for (size_t block = 0; block < blocks; block++) {
        if (sampler->block_sums[block] <= 0)
            continue;
        chosen = block;
        if (target < sampler->block_sums[block])
            break;
        target -= sampler->block_sums[block];
    }
    Candidate drawn = {0, 0};
    size_t end = vocabulary_block_end(sampler->vocab_size, chosen);
    for (size_t i = chosen * VOCABULARY_BLOCK; i < end; i++) {
        const Candidate token = {weights[i], (int32_t)i};
        if (!may_be_drawn(sampler, token, limit))
            continue;
        drawn = token;
        target -= (double)token.weight;
        if (target < 0)
            break;
    }
    return drawn;
}

/* What comes before a token weighs this much; block_sums become the sums of that. */
static double sum_before(Sampler *sampler, const float *weights, Candidate token)
{
    const VocabularyPasses *passes = sampler->passes;
    size_t size = sampler->vocab_size, block = (uint32_t)token.id / VOCABULARY_BLOCK;
    size_t start = block * VOCABULARY_BLOCK, end = vocabulary_block_end(size, block);
    /* Of equal weights, those of lower ids come before it. */
    passes->sum_from(weights, start, token.weight, sampler->block_sums);
    passes->sum_from(weights + end, size - end, nextafterf(token.weight, 2),
                     sampler->block_sums + block + 1);
    double own = 0;
    for (size_t i = start; i < end; i++) {
        if (comes_before((Candidate){weights[i], (int32_t)i}, token))
            own += (double)weights[i];
    }
    sampler->block_sums[block] = own;
    return sum_blocks(sampler);
}

static int32_t draw_from_all(Sampler *sampler, float *logits, float best)
{
    weigh_blocks(sampler, logits, best);
    double nucleus = (double)sampler->top_p * sum_blocks(sampler), before;
    if (sampler->min_p > 0)
        sampler->passes->sum_from(logits, sampler->vocab_size, sampler->min_p, sampler->block_sums);
    Candidate token = NO_LIMIT;
    do {
        token = draw_before(sampler, logits, token);
        before = sampler->top_p < 1 ? sum_before(sampler, logits, token) : 0;
    } while (before > 0 && before >= nucleus);
    return token.id;
}

/* The top_k that has an effect; 0: none. */
static size_t effective_top_k(const Sampler *sampler)
{
    if (sampler->top_k <= 0 || (size_t)sampler->top_k >= sampler->vocab_size)
        return 0;
    return (size_t)sampler->top_k;
}

bool sampler_keeps_all(const Sampler *sampler)
{
    return effective_top_k(sampler) == 0 && sampler->top_p >= 1 && sampler->min_p <= 0;
}

static bool prepare_scratch(Sampler *sampler, size_t top_k, Error *err)
{
    size_t blocks = vocabulary_blocks(sampler->vocab_size);
    if (top_k > 0 && !sampler->candidates) {
        size_t count = 2 * top_k_room(top_k);
        sampler->candidates =
            memory_allocate_array(count < blocks ? blocks : count, sizeof(*sampler->candidates));
        if (!sampler->candidates)
            return error_no_memory(err, "sampling candidates");
    }
    if (top_k == 0 && !sampler->block_sums) {
        sampler->block_sums = memory_allocate_array(blocks, sizeof(*sampler->block_sums));
        if (!sampler->block_sums)
            return error_no_memory(err, "sampling sums");
    }
    return true;
}

bool sampler_draw(Sampler *sampler, float *logits, float best, int32_t *id, Error *err)
{
    size_t top_k = effective_top_k(sampler);
    if (!prepare_scratch(sampler, top_k, err))
        return false;
    *id = top_k > 0 ? draw_from_best(sampler, logits, best, top_k)
                    : draw_from_all(sampler, logits, best);
    return true;
}
