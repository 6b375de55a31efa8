/* Attention over a KV cache against the plain formula in double: every head shape, windows,
 * soft-caps, rings that have wrapped, long contexts that are split over threads. And bit for bit:
 * chunks, single steps and thread counts against the whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/attention_codes.h"
#include "cpu/matrix.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Case {
    size_t n_heads, n_kv_heads, head_dim, n_tokens, max_chunk;
    uint32_t sliding_window;
    float soft_cap;
    KvType type;
} Case;

typedef struct World {
    Case c;
    ModelConfig config;
    LayerConfig layer;
    float *q, *k,
        *v; /* [n_tokens, heads * head_dim], all tokens; k and v as the cache rounds them */
} World;

static float random_value(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / (float)(1 << 23) - 1.0f;
}

/* n values, as a cache of that type holds them: with 8 bits, rows of head_dim whose runs of 64 have
 * codes up to 127 and a scale. */
static float *random_rows(size_t n, uint32_t seed, float range, KvType type, size_t head_dim)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        x[i] = random_value(&seed) * range;
        if (type == KV_F16)
            x[i] = float_from_f16(float_to_f16(x[i]));
        if (type == KV_INT8) {
            size_t row = i / head_dim, d = i % head_dim, run = row * 7 + d / KV_SCALE_DIMS;
            float scale = range * (float)(run % 5 + 1) / 5.0f / 127.0f;
            x[i] = (d % KV_SCALE_DIMS == 0 ? 127.0f : rintf(x[i] / range * 127.0f)) * scale;
        }
    }
    return x;
}

static void make_world(Case c, World *w)
{
    *w = (World){.c = c};
    w->layer.sliding_window = c.sliding_window;
    w->config = (ModelConfig){.num_hidden_layers = 1,
                              .num_attention_heads = (uint32_t)c.n_heads,
                              .num_key_value_heads = (uint32_t)c.n_kv_heads,
                              .head_dim = (uint32_t)c.head_dim};
    w->q = random_rows(c.n_tokens * c.n_heads * c.head_dim, 1, 2.0f, KV_F32, 1);
    w->k = random_rows(c.n_tokens * c.n_kv_heads * c.head_dim, 2, 2.0f, c.type, c.head_dim);
    w->v = random_rows(c.n_tokens * c.n_kv_heads * c.head_dim, 3, 2.0f, c.type, c.head_dim);
}

static void free_world(World *w)
{
    free(w->q);
    free(w->k);
    free(w->v);
}

static void store_token(const World *w, const CpuOps *ops, const KvCache *cache, size_t position)
{
    for (size_t h = 0; h < w->c.n_kv_heads; h++) {
        size_t at = (position * w->c.n_kv_heads + h) * w->c.head_dim;
        if (kv_is_codes(w->c.type)) {
            attention_store_codes(ops, w->c.type, w->k + at, w->v + at, w->c.head_dim,
                                  kv_cache_keys(cache, &cache->pool->layers[0], h, position),
                                  kv_cache_values(cache, &cache->pool->layers[0], h, position),
                                  position % KV_BLOCK);
            continue;
        }
        void *key = kv_cache_key(cache, &cache->pool->layers[0], h, position);
        void *value = kv_cache_value(cache, &cache->pool->layers[0], h, position);
        if (w->c.type == KV_F16) {
            ops->store_half(w->k + at, w->c.head_dim, key, KV_KEY_TILE);
            ops->store_half(w->v + at, w->c.head_dim, value, 1);
            memset((uint16_t *)value + w->c.head_dim, 0,
                   (cache->pool->value_stride - w->c.head_dim) * 2);
            continue;
        }
        for (size_t d = 0; d < w->c.head_dim; d++)
            ((float *)key)[d * KV_KEY_TILE] = w->k[at + d];
        memcpy(value, w->v + at, w->c.head_dim * sizeof(float));
        memset((float *)value + w->c.head_dim, 0, (cache->pool->value_stride - w->c.head_dim) * 4);
    }
}

/* What is not written must not matter. */
static void spoil_blocks(const KvCache *cache)
{
    for (size_t i = 0; i < cache->n_blocks && cache->blocks[KV_FULL]; i++) {
        KvBlock *block = cache->blocks[KV_FULL][i];
        memset(block->content, 0xFF, cache->pool->block_bytes[KV_FULL]);
    }
    for (KvBlock *spare = cache->spares; spare; spare = spare->next)
        memset(spare->content, 0xFF, cache->pool->block_bytes[KV_SLIDING]);
}

/* All tokens in chunks; out is [n_tokens, heads * head_dim]. */
static void attend(World *w, const CpuOps *ops, size_t threads, size_t chunk, float *out)
{
    Error err = {0};
    KvPool kv;
    KvCache cache;
    CpuPool *pool = NULL;
    AttentionScratch *scratch;
    size_t cols = w->c.n_heads * w->c.head_dim;
    AttentionShape shape = {w->c.n_heads,  w->c.n_kv_heads,
                            w->c.head_dim, 1.0f / sqrtf((float)w->c.head_dim),
                            w->c.soft_cap, w->c.type};
    w->config.layers = &w->layer;
    assert_true(kv_pool_init(&kv, &w->config, w->c.type, w->c.max_chunk, 0, &err));
    assert_true(kv_cache_create(&kv, w->c.n_tokens, &cache, &err));
    spoil_blocks(&cache);
    assert_true(cpu_pool_create(threads, &pool, &err));
    assert_true(attention_scratch_create(shape, chunk, w->c.n_tokens, threads, &scratch, &err));
    for (size_t at = 0; at < w->c.n_tokens; at += chunk) {
        size_t left = w->c.n_tokens - at, n = left < chunk ? left : chunk;
        kv_cache_prepare(&cache, n);
        for (size_t t = 0; t < n; t++)
            store_token(w, ops, &cache, at + t);
        AttentionSlice slice = {&cache, 0, n, at};
        attention_plan(scratch, &slice, 1);
        attention_run(scratch, ops, 0, w->q + at * cols, cols, out + at * cols, cols, NULL, pool);
        kv_cache_advance(&cache, n);
    }
    attention_scratch_free(scratch);
    cpu_pool_free(pool);
    kv_cache_free(&cache);
    kv_pool_reset(&kv);
}

/* One query head at one position, in double. */
static void expect(const World *w, size_t position, size_t head, double *out)
{
    const Case *c = &w->c;
    size_t kv_head = head / (c->n_heads / c->n_kv_heads);
    size_t first =
        c->sliding_window && position >= c->sliding_window ? position - c->sliding_window + 1 : 0;
    const float *q = w->q + (position * c->n_heads + head) * c->head_dim;
    double *scores = malloc((position + 1) * sizeof *scores), max = (double)-INFINITY, sum = 0;
    assert_non_null(scores);
    for (size_t j = first; j <= position; j++) {
        const float *k = w->k + (j * c->n_kv_heads + kv_head) * c->head_dim;
        double dot = 0;
        for (size_t d = 0; d < c->head_dim; d++)
            dot += (double)q[d] * (double)k[d];
        dot /= sqrt((double)c->head_dim);
        scores[j] = c->soft_cap > 0 ? (double)c->soft_cap * tanh(dot / (double)c->soft_cap) : dot;
        max = fmax(max, scores[j]);
    }
    memset(out, 0, c->head_dim * sizeof *out);
    for (size_t j = first; j <= position; j++) {
        const float *v = w->v + (j * c->n_kv_heads + kv_head) * c->head_dim;
        double p = exp(scores[j] - max);
        sum += p;
        for (size_t d = 0; d < c->head_dim; d++)
            out[d] += p * (double)v[d];
    }
    for (size_t d = 0; d < c->head_dim; d++)
        out[d] /= sum;
    free(scores);
}

static void check_values(const World *w, const float *found)
{
    double *expected = malloc(w->c.head_dim * sizeof *expected);
    assert_non_null(expected);
    for (size_t t = 0; t < w->c.n_tokens; t += t < 70 ? 1 : 37) {
        for (size_t h = 0; h < w->c.n_heads; h++) {
            expect(w, t, h, expected);
            const float *row = found + (t * w->c.n_heads + h) * w->c.head_dim;
            /* Values are at most 2; scores up to 4 sqrt(head_dim) carry errors of about 1e-6. With
             * 8 bits queries are rounded to 2 / 65278, which moves a score by about 2e-5; with
             * codes of 16 bits keys are too, to 1 / 45800 of their norm: 2e-4 and more. */
            double allowed = w->c.type == KV_INT8 ? 2e-4 : w->c.type == KV_INT16 ? 1e-3 : 2e-5;
            for (size_t d = 0; d < w->c.head_dim; d++) {
                if (!(fabs((double)row[d] - expected[d]) <= allowed))
                    fail_msg("token %zu head %zu dim %zu: %.9g, expected %.9g", t, h, d,
                             (double)row[d], expected[d]);
            }
        }
    }
    free(expected);
}

static const Case CASES[] = {
    {.n_heads = 9, .n_kv_heads = 3, .head_dim = 64, .n_tokens = 150, .type = KV_F16},
    {.n_heads = 4, .n_kv_heads = 4, .head_dim = 48, .n_tokens = 130, .type = KV_F16},
    {.n_heads = 8, .n_kv_heads = 2, .head_dim = 16, .n_tokens = 97, .type = KV_F32},
    {.n_heads = 2, .n_kv_heads = 1, .head_dim = 10, .n_tokens = 70, .type = KV_F16},
    {.n_heads = 5, .n_kv_heads = 1, .head_dim = 2, .n_tokens = 66, .type = KV_F32},
    {.n_heads = 64, .n_kv_heads = 1, .head_dim = 24, .n_tokens = 70, .type = KV_F16},
    {.n_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 32,
     .n_tokens = 300,
     .soft_cap = 2.0f,
     .type = KV_F16},
    {.n_heads = 4,
     .n_kv_heads = 1,
     .head_dim = 32,
     .n_tokens = 300,
     .sliding_window = 16,
     .type = KV_F16},
    {.n_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 40,
     .n_tokens = 700,
     .sliding_window = 100,
     .type = KV_F32},
    {.n_heads = 6, .n_kv_heads = 1, .head_dim = 72, .n_tokens = 600, .type = KV_F16},
    {.n_heads = 2,
     .n_kv_heads = 2,
     .head_dim = 8,
     .n_tokens = 290,
     .sliding_window = 1,
     .type = KV_F16},
    {.n_heads = 3, .n_kv_heads = 1, .head_dim = 10, .n_tokens = 300, .type = KV_INT16},
    {.n_heads = 4, .n_kv_heads = 1, .head_dim = 128, .n_tokens = 600, .type = KV_INT16},
    {.n_heads = 5, .n_kv_heads = 1, .head_dim = 80, .n_tokens = 130, .type = KV_INT16},
    {.n_heads = 6,
     .n_kv_heads = 1,
     .head_dim = 96,
     .n_tokens = 700,
     .sliding_window = 100,
     .soft_cap = 2.0f,
     .type = KV_INT16},
    {.n_heads = 9, .n_kv_heads = 3, .head_dim = 64, .n_tokens = 150, .type = KV_INT8},
    {.n_heads = 2, .n_kv_heads = 1, .head_dim = 10, .n_tokens = 70, .type = KV_INT8},
    {.n_heads = 4, .n_kv_heads = 1, .head_dim = 128, .n_tokens = 600, .type = KV_INT8},
    {.n_heads = 5, .n_kv_heads = 1, .head_dim = 80, .n_tokens = 130, .type = KV_INT8},
    {.n_heads = 64, .n_kv_heads = 1, .head_dim = 24, .n_tokens = 70, .type = KV_INT8},
    {.n_heads = 6,
     .n_kv_heads = 1,
     .head_dim = 96,
     .n_tokens = 300,
     .soft_cap = 2.0f,
     .type = KV_INT8},
    {.n_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 40,
     .n_tokens = 700,
     .sliding_window = 100,
     .type = KV_INT8},
    {.n_heads = 2,
     .n_kv_heads = 2,
     .head_dim = 8,
     .n_tokens = 290,
     .sliding_window = 1,
     .type = KV_INT8},
};

static void check_case(Case c, const CpuOps *ops)
{
    c.type = c.type == KV_F16 ? ops->kv16 : c.type;
    static const size_t chunks[] = {1, 5, 16, 64, 90};
    static const size_t threads[] = {1, 2, 5};
    World w;
    c.max_chunk = 90;
    make_world(c, &w);
    size_t bytes = c.n_tokens * c.n_heads * c.head_dim * sizeof(float);
    float *whole = malloc(bytes), *parts = malloc(bytes);
    assert_true(whole && parts);
    attend(&w, ops, 1, 90, whole);
    check_values(&w, whole);
    for (size_t i = 0; i < ARRAY_COUNT(chunks); i++) {
        for (size_t j = 0; j < ARRAY_COUNT(threads); j += TEST_EMULATED ? 2 : 1) {
            memset(parts, 0, bytes);
            attend(&w, ops, threads[j], chunks[i], parts);
            if (memcmp(whole, parts, bytes) != 0)
                fail_msg("%s: chunks of %zu with %zu threads differ from the whole", ops->name,
                         chunks[i], threads[j]);
        }
    }
    free(whole);
    free(parts);
    free_world(&w);
}

static void test_set(void **state)
{
    const CpuOps *ops = cpu_ops(*(const InstructionSet *)*state);
    if (!cpu_has_instructions(*(const InstructionSet *)*state)) {
        print_message("skipped: no %s here\n", ops->name);
        skip();
    }
    for (size_t i = 0; i < ARRAY_COUNT(CASES); i++)
        check_case(CASES[i], ops);
}

/* A key that is no number spoils the tokens that see it, and no other. */
static void test_codes_not_finite(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * INSTRUCTION_SETS; i++) {
        const InstructionSet set = (InstructionSet)(i / 2);
        World w;
        if (!cpu_has_instructions(set))
            continue;
        make_world((Case){.n_heads = 3,
                          .n_kv_heads = 1,
                          .head_dim = 16,
                          .n_tokens = 40,
                          .max_chunk = 40,
                          .type = i % 2 ? KV_INT16 : KV_INT8},
                   &w);
        w.v[38 * 16 + 3] = INFINITY;
        w.k[39 * 16 + 3] = NAN;
        float out[40 * 48];
        attend(&w, cpu_ops(set), 1, 40, out);
        for (size_t k = 0; k < 38 * 48; k++)
            assert_true(fabsf(out[k]) <= 2.0f);
        for (size_t k = 38 * 48; k < 40 * 48; k++)
            assert_true(isnan(out[k]));
        free_world(&w);
    }
}

/* Sums at their bounds, of either sign: all inputs of one magnitude, and equal weights of the keys
 * that count, which are those along the queries. */
static void test_largest_sums(void **state)
{
    (void)state;
    enum { TOKENS = 130 };
    for (int i = 0; i < 4 * INSTRUCTION_SETS; i++) {
        const InstructionSet set = (InstructionSet)(i / 4);
        const size_t dim = i % 2 ? 256 : 80;
        const float sign = i / 2 % 2 ? -1.0f : 1.0f;
        static float out[TOKENS * 256];
        World w;
        if (!cpu_has_instructions(set))
            continue;
        make_world((Case){.n_heads = 1,
                          .n_kv_heads = 1,
                          .head_dim = dim,
                          .n_tokens = TOKENS,
                          .max_chunk = TOKENS,
                          .type = KV_INT16},
                   &w);
        for (size_t k = 0; k < TOKENS * dim; k++) {
            float side = k / dim % 2 ? -sign : sign;
            w.q[k] = 2.0f;
            w.k[k] = 3.0f * side;
            w.v[k] = 7.0f * side;
        }
        attend(&w, cpu_ops(set), 1, TOKENS, out);
        for (size_t k = 0; k < TOKENS * dim; k++) /* the first token sees but one key */
            assert_true(fabsf(out[k] - (k < dim ? 7.0f * sign : 7.0f)) <= 2e-3f);
        free_world(&w);
    }
}

/* Keys beyond fp16 are kept finite, so that a hidden one cannot turn a sum into NaN. */
static void test_huge_values(void **state)
{
    (void)state;
    const CpuOps *ops = cpu_ops(cpu_best_instructions(INSTRUCTIONS_BEST));
    World w;
    make_world((Case){.n_heads = 3,
                      .n_kv_heads = 1,
                      .head_dim = 16,
                      .n_tokens = 40,
                      .max_chunk = 40,
                      .type = ops->kv16},
               &w);
    for (size_t d = 0; d < 16; d++)
        w.v[39 * 16 + d] = 1e30f;
    float out[40 * 48];
    attend(&w, ops, 1, 40, out);
    for (size_t i = 0; i < 39 * 48; i++)
        assert_true(fabsf(out[i]) <= 2.0f);
    for (size_t i = 39 * 48; i < 40 * 48; i++)
        assert_true(isfinite(out[i]));
    free_world(&w);
}

static void test_no_memory(void **state)
{
    (void)state;
    AttentionShape shape = {4, 2, 32, 1.0f, 0.0f, KV_INT8};
    AttentionScratch *scratch = NULL;
    for (uint64_t nth = 1; !scratch; nth++) {
        Error err = {0};
        fault_fail_allocation(nth);
        bool ok = attention_scratch_create(shape, 64, 1000, 2, &scratch, &err);
        fault_fail_allocation(0);
        assert_int_equal(ok, scratch != NULL);
        if (!ok)
            assert_int_equal(err.code, ERROR_MEMORY);
        assert_true(nth < 50);
    }
    attention_scratch_free(scratch);
}

int main(void)
{
    static InstructionSet sets[] = {
        INSTRUCTIONS_PLAIN,
#if CPU_HAS_X86_KERNELS
        INSTRUCTIONS_AVX2,
        INSTRUCTIONS_AVX512,
#elif CPU_HAS_ARM_KERNELS
        INSTRUCTIONS_NEON,
#endif
    };
    const struct CMUnitTest tests[] = {
#if !TEST_EMULATED
        {"plain", test_set, NULL, NULL, &sets[0]},
#endif
#if CPU_HAS_X86_KERNELS
        {"avx2", test_set, NULL, NULL, &sets[1]},
        {"avx512", test_set, NULL, NULL, &sets[2]},
#elif CPU_HAS_ARM_KERNELS
        {"neon", test_set, NULL, NULL, &sets[1]},
#endif
        cmocka_unit_test(test_huge_values),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_codes_not_finite),
        cmocka_unit_test(test_largest_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
