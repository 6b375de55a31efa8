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

static float largest_of_block(const VocabularyPasses *passes, const float *logits, size_t start,
                              size_t count)
{
    float most;
    size_t left = count - start;
    (void)passes->find_maxima(logits + start, left < VOCABULARY_BLOCK ? left : VOCABULARY_BLOCK,
                              &most);
    return most;
}

static float largest(const VocabularyPasses *passes, const float *logits, size_t count)
{
    float best = -INFINITY;
    for (size_t start = 0; start < count; start += VOCABULARY_BLOCK) {
        float most = largest_of_block(passes, logits, start, count);
        best = most > best ? most : best;
    }
    return best;
}

/* Insertion into a list of at most n_top: nearly every logit fails the first comparison, and of
 * nearly every block the largest one. */
static void select_top(const float *logits, size_t count, uint32_t n_top, LogprobEntry *out)
{
    const VocabularyPasses *passes = vocabulary_passes();
    out->n_top = 0;
    for (size_t i = 0; i < count && n_top > 0; i++) {
        if (i % VOCABULARY_BLOCK == 0 && out->n_top == n_top) {
            while (i < count &&
                   !(largest_of_block(passes, logits, i, count) > out->top[n_top - 1].logprob))
                i += VOCABULARY_BLOCK;
            if (i >= count)
                break;
        }
        /* Ids ascend, so an equal logit comes after those in the list. */
        if (out->n_top == n_top && !(logits[i] > out->top[n_top - 1].logprob))
            continue;
        size_t at = out->n_top < n_top ? out->n_top++ : n_top - 1;
        for (; at > 0 && logits[i] > out->top[at - 1].logprob; at--)
            out->top[at] = out->top[at - 1];
        out->top[at] = (TokenLogprob){(int32_t)i, logits[i]};
    }
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
    const VocabularyPasses *passes = vocabulary_passes();
    float best = largest(passes, logits, count);
    double sum = isfinite(best) ? log(passes->sum_weights(logits, count, best)) : 0;
    *out = (LogprobEntry){.id = id, .logprob = logprob_of(logits[id], best, sum)};
    if (n_top > GENERATE_TOP_LOGPROBS_MAX)
        n_top = GENERATE_TOP_LOGPROBS_MAX;
    select_top(logits, count, n_top, out);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = logprob_of(out->top[i].logprob, best, sum);
}
