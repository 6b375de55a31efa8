/* Log-probabilities: measuring a row of logits, and lists of what was measured. */
#include "exponential.h"
#include "generate.h"

#include <math.h>

enum { LOGPROB_LANES = 8, LOGPROB_BLOCK = 512 };

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

static float largest(const float *logits, size_t count)
{
    float lanes[LOGPROB_LANES];
    for (size_t l = 0; l < LOGPROB_LANES; l++)
        lanes[l] = -INFINITY;
    size_t i = 0;
    for (; i + LOGPROB_LANES <= count; i += LOGPROB_LANES) {
        for (size_t l = 0; l < LOGPROB_LANES; l++)
            lanes[l] = logits[i + l] > lanes[l] ? logits[i + l] : lanes[l];
    }
    for (; i < count; i++)
        lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
    for (size_t l = 1; l < LOGPROB_LANES; l++)
        lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
    return lanes[0];
}

/* Logarithm of the sum of e^(logit - best): floats in lanes within a block, doubles across. */
static double log_sum(const float *logits, size_t count, float best)
{
    double total = 0;
    for (size_t start = 0; start < count; start += LOGPROB_BLOCK) {
        float lanes[LOGPROB_LANES] = {0};
        size_t end = start + LOGPROB_BLOCK < count ? start + LOGPROB_BLOCK : count;
        size_t i = start;
        for (; i + LOGPROB_LANES <= end; i += LOGPROB_LANES) {
            for (size_t l = 0; l < LOGPROB_LANES; l++)
                lanes[l] += exp_negative(logits[i + l] - best);
        }
        for (; i < end; i++)
            lanes[0] += exp_negative(logits[i] - best);
        for (size_t l = 0; l < LOGPROB_LANES; l++)
            total += (double)lanes[l];
    }
    return log(total);
}

/* Insertion into a list of at most n_top: nearly every logit fails the first comparison. */
static void select_top(const float *logits, size_t count, uint32_t n_top, LogprobEntry *out)
{
    out->n_top = 0;
    if (n_top == 0)
        return;
    for (size_t i = 0; i < count; i++) {
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
    float best = largest(logits, count);
    double sum = isfinite(best) ? log_sum(logits, count, best) : 0;
    *out = (LogprobEntry){.id = id, .logprob = logprob_of(logits[id], best, sum)};
    if (n_top > GENERATE_TOP_LOGPROBS_MAX)
        n_top = GENERATE_TOP_LOGPROBS_MAX;
    select_top(logits, count, n_top, out);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = logprob_of(out->top[i].logprob, best, sum);
}
