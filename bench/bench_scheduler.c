/* Times what callers of the scheduler see, on a real model. CSV on stdout, one line a figure:
 *
 *   gap       seconds between two tokens of a stream, alone and while a long prompt enters: median
 *             and 99th percentile, and the ratio of the latter to the median alone; seconds to that
 *             prompt's first token, then and alone. Other streams run beside it if asked for
 *   ttft      seconds to the first token of a long prompt: not cached, and cached but for its end
 *   together  tokens a second of 1 and of 16 streams, and their ratio
 *
 * Usage: bench_scheduler MODEL_DIR [threads [streams]]. */
#include "scheduler.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    LONG_PROMPT = 4096,
    CACHED_PROMPT = 2048,
    TIMES_MAX = 8192,
    STREAMS = 16,
    STREAM_TOKENS = 64,
    GAPS_ALONE = 100,
};

typedef struct World {
    Model *model;
    Tokenizer *tokenizer;
    Engine *engine;
    Scheduler *scheduler;
} World;

/* When each token of a job came; written on the inference thread. */
typedef struct Times {
    double at[TIMES_MAX];
    atomic_size_t count;
} Times;

static void note_time(void *context)
{
    Times *times = context;
    size_t count = atomic_load(&times->count);
    if (count < TIMES_MAX) {
        times->at[count] = clock_monotonic_seconds();
        atomic_store(&times->count, count + 1);
    }
}

static void fail(const Error *err)
{
    fprintf(stderr, "bench_scheduler: %s\n", err->message);
    exit(1);
}

static void fill_prompt(const World *w, uint32_t seed, size_t n, int32_t *out)
{
    uint32_t vocab = (uint32_t)tokenizer_vocabulary_size(w->tokenizer);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        out[i] = (int32_t)(100 + (seed >> 8) % (vocab - 200));
    }
}

static Job *start(const World *w, const int32_t *prompt, size_t n, size_t max_tokens, Times *times)
{
    JobRequest request = {.prompt = prompt, .n_prompt = n};
    Error err = {0};
    Job *job;
    generation_options_init(&request.generation);
    request.generation.max_tokens = max_tokens;
    request.generation.ignore_eos = true;
    if (times) {
        request.notify = note_time;
        request.notify_context = times;
    }
    if (!scheduler_submit(w->scheduler, &request, &job, &err))
        fail(&err);
    return job;
}

static JobStatus finish(Job *job)
{
    JobStatus status = {0};
    Buffer text;
    buffer_init(&text, 1 << 24);
    while (status.finish == FINISH_NONE && job_wait(job, 600))
        job_read(job, &text, &status);
    if (status.finish != FINISH_LENGTH)
        fail(&status.error);
    buffer_reset(&text);
    job_release(job);
    return status;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorted gaps between the times [first, end). */
static size_t sort_gaps(const Times *times, size_t first, size_t end, double *out)
{
    size_t count = 0;
    for (size_t i = first + 1; i < end; i++)
        out[count++] = times->at[i] - times->at[i - 1];
    qsort(out, count, sizeof(*out), compare_doubles);
    return count;
}

static void wait_for_count(const Times *times, size_t count)
{
    while (atomic_load(&times->count) < count) {
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
}

static void measure_gaps(const World *w, size_t n_streams)
{
    static Times times;
    static double gaps[TIMES_MAX];
    static int32_t prompt[LONG_PROMPT];
    Job *streams[STREAMS];
    for (size_t i = n_streams; i-- > 0;) {
        fill_prompt(w, (uint32_t)(50 + i), 64, prompt);
        streams[i] = start(w, prompt, 64, 4000, i == 0 ? &times : NULL);
    }
    wait_for_count(&times, GAPS_ALONE + 10);
    size_t count = sort_gaps(&times, 10, GAPS_ALONE + 10, gaps);
    double normal = gaps[count / 2];
    printf("gap,alone_median,%.6f\ngap,alone_p99,%.6f\n", normal, gaps[count * 99 / 100]);
    fill_prompt(w, 2, LONG_PROMPT, prompt);
    size_t first = atomic_load(&times.count);
    JobStatus entered = finish(start(w, prompt, LONG_PROMPT, 1, NULL));
    size_t end = atomic_load(&times.count);
    count = sort_gaps(&times, first, end, gaps);
    double p99 = gaps[count * 99 / 100];
    printf("gap,beside_prefill_median,%.6f\ngap,beside_prefill_p99,%.6f\n", gaps[count / 2], p99);
    printf("gap,beside_prefill_worst,%.6f\ngap,p99_to_alone_median,%.3f\n", gaps[count - 1],
           p99 / normal);
    for (size_t i = 0; i < n_streams; i++)
        job_release(streams[i]);
    fill_prompt(w, 5, LONG_PROMPT, prompt);
    JobStatus alone = finish(start(w, prompt, LONG_PROMPT, 1, NULL));
    printf("gap,prompt_ttft_beside,%.6f\ngap,prompt_ttft_alone,%.6f\ngap,beside_to_alone,%.3f\n",
           entered.first_token_seconds, alone.first_token_seconds,
           entered.first_token_seconds / alone.first_token_seconds);
}

static void measure_first_tokens(const World *w)
{
    static int32_t prompt[CACHED_PROMPT];
    fill_prompt(w, 3, CACHED_PROMPT, prompt);
    JobStatus cold = finish(start(w, prompt, CACHED_PROMPT, 1, NULL));
    fill_prompt(w, 4, 16, prompt + CACHED_PROMPT - 16);
    JobStatus warm = finish(start(w, prompt, CACHED_PROMPT, 1, NULL));
    printf("ttft,uncached,%.6f\nttft,cached,%.6f\n", cold.first_token_seconds,
           warm.first_token_seconds);
    printf("ttft,cached_tokens,%zu\nttft,cached_to_uncached,%.4f\n", warm.cached_tokens,
           warm.first_token_seconds / cold.first_token_seconds);
}

/* Tokens a second of n streams; prefill is short and counted. */
static double measure_rate(const World *w, size_t n)
{
    Job *jobs[STREAMS];
    int32_t prompts[STREAMS][32];
    double begin = clock_monotonic_seconds();
    for (size_t i = 0; i < n; i++) {
        fill_prompt(w, (uint32_t)(100 + i), 32, prompts[i]);
        jobs[i] = start(w, prompts[i], 32, STREAM_TOKENS, NULL);
    }
    for (size_t i = 0; i < n; i++)
        finish(jobs[i]);
    return (double)(n * STREAM_TOKENS) / (clock_monotonic_seconds() - begin);
}

int main(int argc, char **argv)
{
    World w = {0};
    Error err = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: bench_scheduler MODEL_DIR [threads [streams]]\n");
        return 2;
    }
    EngineOptions options = {.threads = argc > 2 ? strtoull(argv[2], NULL, 10) : 0};
    SchedulerOptions scheduling = {.slots = STREAMS};
    size_t n_streams = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    if (n_streams < 1 || n_streams >= STREAMS) {
        fprintf(stderr, "bench_scheduler: 1 to %d streams beside the prompt\n", STREAMS - 1);
        return 2;
    }
    if (!model_open(argv[1], &w.model, &err) || !tokenizer_open(argv[1], &w.tokenizer, &err) ||
        !engine_open(w.model, &options, &w.engine, &err) ||
        !scheduler_create(w.engine, w.tokenizer, &w.model->config, &scheduling, &w.scheduler, &err))
        fail(&err);
    printf("figure,name,value\n");
    measure_first_tokens(&w);
    measure_gaps(&w, n_streams);
    double one = measure_rate(&w, 1), many = measure_rate(&w, STREAMS);
    printf("together,1,%.1f\ntogether,%d,%.1f\ntogether,ratio,%.2f\n", one, STREAMS, many,
           many / one);
    scheduler_free(w.scheduler);
    engine_close(w.engine);
    tokenizer_free(w.tokenizer);
    model_close(w.model);
    return 0;
}
