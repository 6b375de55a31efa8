/* The promise that greedy output depends on the prompt alone, held against the CPU engine: whatever
 * shares the batch, however prefill is cut, whatever the prefix cache holds, tokens and their
 * log-probabilities have the bits that one sequence alone gets. */
#include "scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PROMPT = 300, REPLY = 24, TEXT_MAX = 1000, PARTING = 150 };

static const char *const MODELS[] = {"llama3-q4-g64",    "gemma3-text-q4-g64", "gemma3-mm-q4-g64",
                                     "gemma2-q4-g64",    "qwen2-q6-g64",       "qwen3-q4-g32",
                                     "qwen3-moe-q4-g64", "phi3-q4-g64",        "smollm2-bf16"};

static Tokenizer *tokenizer; /* of bytes: other ids have no text */

typedef struct World {
    Model *model;
    Engine *alone;  /* runs the references */
    Engine *engine; /* small passes */
    Scheduler *scheduler;
    size_t vocab;
    bool slides;
} World;

typedef struct Greedy {
    int32_t ids[REPLY];
    float logprobs[REPLY];
} Greedy;

static int setup(void **state)
{
    (void)state;
    Error err;
    return tokenizer_open(TEST_DATA_DIR "/generate/bytes-tokenizer.json", &tokenizer, &err) ? 0
                                                                                            : -1;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

static void world_open(const char *name, size_t slots, bool cached, World *w)
{
    char path[512];
    Error err = {0};
    EngineDescription description;
    EngineOptions whole = {.threads = 2}, small = {.threads = 2, .max_batch_tokens = 48};
    SchedulerOptions options = {
        .slots = slots, .max_context = TEXT_MAX, .no_prefix_cache = !cached};
    if (!path_join(path, sizeof path, TEST_DATA_DIR "/models", name, &err) ||
        !model_open(path, &w->model, &err) || !engine_open(w->model, &whole, &w->alone, &err) ||
        !engine_open(w->model, &small, &w->engine, &err) ||
        !scheduler_create(w->engine, tokenizer, &w->model->config, &options, &w->scheduler, &err))
        fail_msg("%s: %s", name, err.message);
    w->vocab = w->model->config.vocab_size;
    engine_describe(w->engine, &description);
    w->slides = description.kv_slides;
}

static void world_close(World *w)
{
    scheduler_free(w->scheduler);
    assert_int_equal(w->engine->ops->kv_bytes_used(w->engine), 0);
    engine_close(w->engine);
    engine_close(w->alone);
    model_close(w->model);
}

static void make_tokens(uint32_t number, size_t first, size_t end, int32_t *out)
{
    for (size_t i = 0; i < end; i++) {
        number = number * 1664525u + 1013904223u;
        if (i >= first)
            out[i] = (int32_t)(3 + (number >> 16) % 500);
    }
}

static void ban_ends(const World *w, float *logits)
{
    for (size_t i = 0; i < w->model->config.n_eos_token_ids; i++)
        logits[w->model->config.eos_token_ids[i]] = -1e30f;
}

/* The prompt in one piece, then token by token, nothing beside it. */
static void run_alone(const World *w, const int32_t *prompt, size_t n_prompt, Greedy *out)
{
    float *logits = malloc(w->vocab * sizeof *logits);
    EngineSequence *sequence;
    Error err = {0};
    assert_true(engine_sequence_create(w->alone, n_prompt + REPLY, &sequence, &err));
    EngineRow row = {sequence, prompt, n_prompt, ENGINE_LOGITS_LAST};
    for (size_t i = 0; i < REPLY; i++) {
        LogprobEntry entry;
        if (!engine_forward(w->alone, &row, 1, logits, &err))
            fail_msg("%s", err.message);
        float *copy = malloc(w->vocab * sizeof *copy);
        memcpy(copy, logits, w->vocab * sizeof *copy);
        ban_ends(w, copy);
        out->ids[i] = logits_argmax(copy, w->vocab);
        free(copy);
        logprob_measure(logits, w->vocab, out->ids[i], 0, &entry);
        out->logprobs[i] = entry.logprob;
        row = (EngineRow){sequence, &out->ids[i], 1, ENGINE_LOGITS_LAST};
    }
    engine_sequence_free(w->alone, sequence);
    free(logits);
}

static Job *start(const World *w, const int32_t *prompt, size_t n_prompt)
{
    JobRequest request = {.prompt = prompt, .n_prompt = n_prompt};
    Error err = {0};
    Job *job;
    generation_options_init(&request.generation);
    request.generation.max_tokens = REPLY;
    request.generation.ignore_eos = true;
    request.generation.logprobs = true;
    if (!scheduler_submit(w->scheduler, &request, &job, &err))
        fail_msg("%s", err.message);
    return job;
}

/* Reads to the end and compares with the reference; how many tokens were cached. */
static size_t finish(const World *w, Job *job, const int32_t *prompt, size_t n_prompt,
                     Greedy *reply)
{
    JobStatus status = {0};
    LogprobList list;
    Buffer text;
    Greedy expected;
    run_alone(w, prompt, n_prompt, &expected);
    buffer_init(&text, 1 << 20);
    logprob_list_init(&list);
    while (status.finish == FINISH_NONE && job_wait(job, 60))
        job_read_choice(job, 0, &text, &list, &status);
    assert_int_equal(status.finish, FINISH_LENGTH);
    assert_int_equal(logprob_list_count(&list), REPLY);
    for (size_t i = 0; i < REPLY; i++) {
        reply->ids[i] = logprob_list_get(&list, i)->id;
        reply->logprobs[i] = logprob_list_get(&list, i)->logprob;
    }
    assert_memory_equal(reply->ids, expected.ids, sizeof expected.ids);
    assert_memory_equal(reply->logprobs, expected.logprobs, sizeof expected.logprobs);
    logprob_list_reset(&list);
    buffer_reset(&text);
    job_release(job);
    return status.cached_tokens;
}

static size_t run(const World *w, const int32_t *prompt, size_t n_prompt, Greedy *reply)
{
    return finish(w, start(w, prompt, n_prompt), prompt, n_prompt, reply);
}

/* Misses, hits, the next turn of a chat, and prompts that part in the middle. */
static void check_cache(const char *name)
{
    World w;
    Greedy reply, again;
    int32_t prompt[TEXT_MAX], other[TEXT_MAX];
    world_open(name, 4, true, &w);
    make_tokens(1, 0, PROMPT, prompt);
    assert_int_equal(run(&w, prompt, PROMPT, &reply), 0);
    assert_int_equal(run(&w, prompt, PROMPT, &again), PROMPT - 1);
    /* The last token of a reply was never fed. */
    memcpy(prompt + PROMPT, reply.ids, sizeof reply.ids);
    make_tokens(2, PROMPT + REPLY, PROMPT + REPLY + 20, prompt);
    assert_int_equal(run(&w, prompt, PROMPT + REPLY + 20, &again), PROMPT + REPLY - 1);
    /* A reply that is rewritten: parts at the end of the prompt, of which one token was left out.
     */
    memcpy(other, prompt, sizeof other);
    make_tokens(3, PROMPT, PROMPT + 50, other);
    assert_in_range(run(&w, other, PROMPT + 50, &again), PROMPT - 1, PROMPT);
    /* Where the windows of what is cached have moved on, the second prompt to part there is the
     * first to gain. */
    make_tokens(4, PARTING, PROMPT, other);
    assert_int_equal(run(&w, other, PROMPT, &again), w.slides ? 0 : PARTING);
    make_tokens(5, PARTING, PROMPT, other);
    assert_int_equal(run(&w, other, PROMPT, &again), PARTING);
    world_close(&w);
}

/* Prompts of all lengths at once, some with common beginnings, more than there are slots. */
static void check_batch(const char *name, bool cached)
{
    enum { JOBS = 9 };
    static const size_t lengths[JOBS] = {1, 7, 64, 65, 200, 333, 200, 90, 500};
    World w;
    Greedy reply;
    static int32_t prompts[JOBS][TEXT_MAX];
    Job *jobs[JOBS];
    world_open(name, 5, cached, &w);
    for (size_t i = 0; i < JOBS; i++) {
        make_tokens(i % 2 ? 7 : (uint32_t)i, 0, lengths[i], prompts[i]);
        jobs[i] = start(&w, prompts[i], lengths[i]);
    }
    for (size_t i = 0; i < JOBS; i++)
        finish(&w, jobs[i], prompts[i], lengths[i], &reply);
    world_close(&w);
}

static void greedy_output_is_the_prompts_alone(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(MODELS); i++) {
        check_cache(MODELS[i]);
        check_batch(MODELS[i], true);
        check_batch(MODELS[i], false);
    }
}

/* With memory for little more than one sequence everything waits its turn, the cache makes room,
 * and what comes out is the same. */
static void capped_memory_changes_nothing(void **state)
{
    (void)state;
    static const char *const models[] = {"llama3-q4-g64", "gemma3-text-q4-g64"};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        enum { JOBS = 6 };
        World w;
        Error err = {0};
        size_t bytes;
        static int32_t prompts[JOBS][TEXT_MAX];
        Job *jobs[JOBS];
        Greedy reply;
        SchedulerStatistics statistics;
        world_open(models[m], 4, true, &w);
        scheduler_free(w.scheduler);
        engine_close(w.engine);
        assert_true(engine_kv_bytes(&w.model->config, ENGINE_PRECISION_INT12, 0, PROMPT + 100,
                                    &bytes, &err));
        EngineOptions options = {.threads = 2, .kv_bytes_max = bytes};
        assert_true(engine_open(w.model, &options, &w.engine, &err));
        SchedulerOptions scheduling = {.slots = 4, .max_context = TEXT_MAX};
        assert_true(scheduler_create(w.engine, tokenizer, &w.model->config, &scheduling,
                                     &w.scheduler, &err));
        size_t context = scheduler_max_context(w.scheduler);
        assert_in_range(context, PROMPT + 100, TEXT_MAX - 1);
        JobRequest request = {.prompt = prompts[0], .n_prompt = context};
        Job *job;
        assert_false(scheduler_submit(w.scheduler, &request, &job, &err));
        assert_int_equal(err.code, ERROR_LIMIT);
        for (size_t i = 0; i < JOBS; i++) {
            make_tokens((uint32_t)i, 0, PROMPT, prompts[i]);
            jobs[i] = start(&w, prompts[i], PROMPT);
        }
        for (size_t i = 0; i < JOBS; i++)
            finish(&w, jobs[i], prompts[i], PROMPT, &reply);
        scheduler_statistics(w.scheduler, &statistics);
        assert_true(statistics.kv_used_bytes <= bytes);
        assert_int_equal(statistics.kv_max_bytes, bytes);
        assert_true(statistics.cache_evictions_total > 0);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_output_is_the_prompts_alone),
        cmocka_unit_test(capped_memory_changes_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
