/* Log-probabilities: measuring a row of logits, and lists of what was measured. */
#include "generate.h"
#include "vocabulary.h"

#include <math.h>

/* ---- Lists ---- */

void logprob_list_init(LogprobList *list)
{
    buffer_init(&list->entries, GENERATE_LOGPROB_BYTES_MAX);
    buffer_init(&list->bytes, GENERATE_LOGPROB_BYTES_MAX);
}

void logprob_list_reset(LogprobList *list)
{
    buffer_reset(&list->entries);
    buffer_reset(&list->bytes);
}

void logprob_list_clear(LogprobList *list)
{
    buffer_clear(&list->entries);
    buffer_clear(&list->bytes);
}

size_t logprob_list_count(const LogprobList *list)
{
    return list->entries.len / sizeof(LogprobEntry);
}

/* Buffers come from malloc and hold whole entries only, so they are aligned. */
const LogprobEntry *logprob_list_get(const LogprobList *list, size_t index)
{
    return (const LogprobEntry *)(const void *)list->entries.ptr + index;
}

Slice logprob_list_bytes(const LogprobList *list, const LogprobEntry *entry)
{
    return (Slice){list->bytes.ptr + entry->bytes_at, entry->n_bytes};
}

void logprob_list_append(LogprobList *list, const LogprobEntry *entry, Slice bytes)
{
    LogprobEntry copy = *entry;
    copy.bytes_at = list->bytes.len;
    copy.n_bytes = bytes.len;
    buffer_append_slice(&list->bytes, bytes);
    if (list->bytes.failed)
        list->entries.failed = true; /* never an entry without its bytes */
    buffer_append(&list->entries, &copy, sizeof(copy));
}

void logprob_list_move(LogprobList *list, LogprobList *from)
{
    for (size_t i = 0; i < logprob_list_count(from); i++) {
        const LogprobEntry *entry = logprob_list_get(from, i);
        logprob_list_append(list, entry, logprob_list_bytes(from, entry));
    }
    logprob_list_clear(from);
}

bool logprob_list_check(const LogprobList *list, Error *err)
{
    return buffer_check(&list->bytes, "log-probabilities", err) &&
           buffer_check(&list->entries, "log-probabilities", err);
}

/* ---- Measuring ---- */

enum { CHUNK_BLOCKS = 2048 }; /* whose maxima are kept at a time: more than a vocabulary has */

/* Insertion into a list of at most n_top, best first. Ids ascend, so an equal logit comes after
 * those in the list. */
static void offer(LogprobEntry *out, uint32_t n_top, size_t id, float logit)
{
    if (out->n_top == n_top && !(logit > out->top[n_top - 1].logprob))
        return;
    size_t at = out->n_top < n_top ? out->n_top++ : n_top - 1;
    for (; at > 0 && logit > out->top[at - 1].logprob; at--)
        out->top[at] = out->top[at - 1];
    out->top[at] = (TokenLogprob){(int32_t)id, logit};
}

/* The n-th largest of the maxima: as many logits are no less. */
static float nth_largest(const float *maxima, size_t count, uint32_t n)
{
    LogprobEntry found = {.n_top = 0};
    for (size_t i = 0; i < count; i++)
        offer(&found, n, i, maxima[i]);
    return found.n_top == n ? found.top[n - 1].logprob : -INFINITY;
}

/* Offers the logits from start to end, whose blocks' maxima are given: few blocks hold one of the
 * best. */
static void select_top(const float *logits, size_t start, size_t end, const float *maxima,
                       uint32_t n_top, LogprobEntry *out)
{
    float least = nth_largest(maxima, vocabulary_blocks(end - start), n_top);
    for (; start < end; start += VOCABULARY_BLOCK, maxima++) {
        size_t stop = start + VOCABULARY_BLOCK < end ? start + VOCABULARY_BLOCK : end;
        if (*maxima < least || (out->n_top == n_top && !(*maxima > out->top[n_top - 1].logprob)))
            continue;
        for (size_t i = start; i < stop; i++) {
            if (logits[i] >= least)
                offer(out, n_top, i, logits[i]);
        }
    }
}

/* The largest logit; the n_top best go to out. A NaN is ignored. */
static float find_top(const float *logits, size_t count, uint32_t n_top, LogprobEntry *out)
{
    const VocabularyPasses *passes = vocabulary_passes();
    const size_t chunk = (size_t)CHUNK_BLOCKS * VOCABULARY_BLOCK;
    float maxima[CHUNK_BLOCKS], best = -INFINITY;
    for (size_t start = 0; start < count; start += chunk) {
        size_t end = count - start < chunk ? count : start + chunk;
        (void)passes->find_maxima(logits + start, end - start, maxima);
        for (size_t i = 0; i < vocabulary_blocks(end - start); i++)
            best = maxima[i] > best ? maxima[i] : best;
        if (n_top > 0)
            select_top(logits, start, end, maxima, n_top, out);
    }
    return best;
}

static float logprob_of(float logit, float best, double sum)
{
    if (best == INFINITY)
        return logit == INFINITY ? 0.0f : -INFINITY;
    double value = (double)logit - (double)best - sum;
    return value < 0 ? (float)value : 0.0f;
}

void logprob_measure(const float *logits, size_t count, int32_t id, uint32_t n_top,
                     LogprobEntry *out)
{
    if (n_top > GENERATE_TOP_LOGPROBS_MAX)
        n_top = GENERATE_TOP_LOGPROBS_MAX;
    *out = (LogprobEntry){.id = id};
    float best = find_top(logits, count, n_top, out);
    double sum =
        isfinite(best) ? log(vocabulary_passes()->sum_exponentials(logits, count, best)) : 0;
    out->logprob = logprob_of(logits[id], best, sum);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = logprob_of(out->top[i].logprob, best, sum);
}
