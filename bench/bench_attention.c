/* Attention alone, as decoding and as prefill do it. CSV on stdout: for 16-bit and 8-bit keys and
 * values, one layer after the other over a cache that no processor cache holds; the best and the
 * median of the rounds, and the rate at which keys and values were read.
 * Usage: bench_attention [heads kv_heads head_dim layers [context [tokens [threads]]]] */
#include "cpu/attention_codes.h"
#include "cpu/matrix.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 200 };
static const double SECONDS = 3; /* at most, of a figure */

typedef struct Bench {
    size_t n_heads, n_kv_heads, head_dim, layers, context, n_tokens, threads;
} Bench;

static float *random_floats(size_t n)
{
    float *x = memory_allocate_array(n, sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return x;
}

static void fill(const Bench *b, const CpuOps *ops, const KvCache *cache, const float *row)
{
    const KvPool *pool = cache->pool;
    for (size_t i = 0; i < b->layers * b->n_kv_heads * b->context; i++) {
        size_t position = i % b->context, head = i / b->context % b->n_kv_heads;
        const KvLayer *layer = &pool->layers[i / b->context / b->n_kv_heads];
        const float *k = row + i % 1000, *v = row + i % 997;
        if (kv_is_codes(pool->type)) {
            attention_store_codes(
                ops, pool->type, k, v, b->head_dim, kv_cache_keys(cache, layer, head, position),
                kv_cache_values(cache, layer, head, position), position % KV_BLOCK);
            continue;
        }
        ops->store_half(k, b->head_dim, (void *)kv_cache_key(cache, layer, head, position),
                        KV_KEY_TILE);
        ops->store_half(v, b->head_dim, (void *)kv_cache_value(cache, layer, head, position), 1);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* All that one figure needs. */
typedef struct Case {
    LayerConfig *layers;
    ModelConfig config;
    KvPool kv;
    KvCache cache;
    AttentionScratch *scratch;
    float *q, *out;
} Case;

static bool case_open(Case *c, const Bench *b, KvType type, const CpuOps *ops, Error *err)
{
    AttentionShape shape = {b->n_heads, b->n_kv_heads, b->head_dim, 0.1f, 0.0f, type};
    size_t cols = b->n_heads * b->head_dim, end = b->context + b->n_tokens;
    *c = (Case){.layers = memory_allocate_zeroed(b->layers, sizeof *c->layers)};
    c->config = (ModelConfig){.num_hidden_layers = (uint32_t)b->layers,
                              .num_attention_heads = (uint32_t)b->n_heads,
                              .num_key_value_heads = (uint32_t)b->n_kv_heads,
                              .head_dim = (uint32_t)b->head_dim,
                              .layers = c->layers};
    c->q = random_floats(b->n_tokens * cols + 2048);
    c->out = random_floats(b->n_tokens * cols);
    if (!c->layers || !c->q || !c->out)
        return error_no_memory(err, "queries");
    if (!kv_pool_init(&c->kv, &c->config, type, b->n_tokens, 0, err) ||
        !kv_cache_create(&c->kv, end, &c->cache, err) ||
        !attention_scratch_create(shape, b->n_tokens, end, b->threads, &c->scratch, err))
        return false;
    fill(b, ops, &c->cache, c->q);
    return true;
}

static void case_close(Case *c)
{
    attention_scratch_free(c->scratch);
    kv_cache_free(&c->cache);
    kv_pool_reset(&c->kv);
    memory_free(c->q);
    memory_free(c->out);
    memory_free(c->layers);
}

/* Seconds of each round over all layers, ascending; how many rounds. */
static size_t time_rounds(const Case *c, const Bench *b, const CpuOps *ops, CpuPool *pool,
                          double times[ROUNDS])
{
    size_t cols = b->n_heads * b->head_dim, rounds = 0;
    AttentionSlice slice = {&c->cache, 0, b->n_tokens, b->context - b->n_tokens};
    attention_plan(c->scratch, &slice, 1);
    double start = clock_monotonic_seconds();
    for (; rounds < ROUNDS && clock_monotonic_seconds() - start < SECONDS; rounds++) {
        double began = clock_monotonic_seconds();
        for (size_t i = 0; i < b->layers; i++)
            attention_run(c->scratch, ops, i, c->q, cols, c->out, cols, NULL, pool);
        times[rounds] = clock_monotonic_seconds() - began;
    }
    qsort(times, rounds, sizeof *times, compare);
    return rounds;
}

static bool measure(const Bench *b, KvType type, CpuPool *pool, Error *err)
{
    const CpuOps *ops = cpu_ops(cpu_best_instructions(INSTRUCTIONS_BEST));
    Case c;
    bool ok = case_open(&c, b, type, ops, err);
    if (ok) {
        double times[ROUNDS];
        size_t rounds = time_rounds(&c, b, ops, pool, times);
        double bytes = (double)kv_bytes_per_token(&c.config, type) * (double)b->context;
        printf("%s,%zu,%zu,%.3f,%.3f,%.1f\n",
               type == KV_INT8    ? "int8"
               : type == KV_INT16 ? "int16"
                                  : "fp16",
               b->context, b->n_tokens, times[0] * 1e3, times[rounds / 2] * 1e3,
               bytes / times[0] * 1e-9);
    }
    case_close(&c);
    return ok;
}

int main(int argc, char **argv)
{
    size_t n[] = {9, 3, 64, 30, 4096, 1, process_usable_cores()};
    for (int i = 1; i < argc && i <= (int)ARRAY_COUNT(n); i++)
        n[i - 1] = strtoul(argv[i], NULL, 10);
    Bench b = {n[0], n[1], n[2], n[3], n[4], n[5], n[6]};
    Error err = {0};
    CpuPool *pool = NULL;
    cpu_kernels_select(INSTRUCTIONS_BEST);
    printf("type,context,tokens,best_ms,median_ms,read_gbps\n");
    if (!cpu_pool_create(b.threads, &pool, &err) ||
        !measure(&b, cpu_ops(cpu_best_instructions(INSTRUCTIONS_BEST))->kv16, pool, &err) ||
        !measure(&b, KV_INT8, pool, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    cpu_pool_free(pool);
    return 0;
}
