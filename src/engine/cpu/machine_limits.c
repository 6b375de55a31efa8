/* What this machine can do: streaming reads and 8-bit multiply-adds, all threads at once.
 *
 * Each thread reads a slice of one buffer that is far larger than the last-level cache, in the
 * order in which a decode kernel reads weights; then runs multiply-adds that never leave the
 * registers, as the matrix kernels issue them. Each figure is the best of some rounds: other work
 * on the machine can only lower one. */
#include "machine_limits.h"
#include "engine.h"
#include "instruction_set.h"
#include "pool.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
    READ_ROUNDS = 5,
    MULTIPLY_ROUNDS = 5,
};
static const size_t READ_BYTES = (size_t)256 << 20;
static const double MULTIPLY_SECONDS = 0.02; /* of a round; the first calibrates */

typedef struct Measurement {
    const LimitLoops *loops;
    uint8_t *data;
    size_t slice; /* bytes of a part */
    uint64_t multiplies;
    _Atomic uint64_t multiplied;
    _Atomic uint64_t sink;
} Measurement;

/* ---- Plain C ---- */

static uint64_t read_bytes(const uint8_t *data, size_t size)
{
    uint64_t sums[4] = {0};
    for (size_t i = 0; i + 32 <= size; i += 32) {
        uint64_t words[4];
        memcpy(words, data + i, 32);
        for (size_t k = 0; k < 4; k++)
            sums[k] ^= words[k];
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

static uint64_t multiply_bytes(uint64_t n, uint64_t *done)
{
    enum { LANES = 64 };
    int32_t sums[LANES] = {0};
    int8_t a[LANES], b[LANES];
    for (size_t i = 0; i < LANES; i++) {
        a[i] = (int8_t)i;
        b[i] = (int8_t)(n >> (i % 8));
    }
    *done = 0;
    while (*done < n) {
        for (size_t i = 0; i < LANES; i++)
            sums[i] += a[i] * b[i];
        a[*done / LANES % LANES] ^= 1; /* so that no product can be taken out of the loop */
        *done += LANES;
    }
    uint64_t total = 0;
    for (size_t i = 0; i < LANES; i++)
        total += (uint64_t)sums[i];
    return total;
}

const LimitLoops limit_loops_plain = {"plain", read_bytes, multiply_bytes};

/* ---- Measuring ---- */

static void fill_part(void *context, size_t part, size_t n_parts)
{
    Measurement *m = context;
    (void)n_parts;
    memset(m->data + part * m->slice, (int)(part + 1), m->slice);
}

static void read_part(void *context, size_t part, size_t n_parts)
{
    Measurement *m = context;
    (void)n_parts;
    atomic_fetch_xor(&m->sink, m->loops->read_bytes(m->data + part * m->slice, m->slice));
}

static void multiply_part(void *context, size_t part, size_t n_parts)
{
    Measurement *m = context;
    uint64_t done;
    (void)part;
    (void)n_parts;
    atomic_fetch_xor(&m->sink, m->loops->multiply_bytes(m->multiplies, &done));
    atomic_fetch_add(&m->multiplied, done);
}

static double measure_reads(Measurement *m, CpuPool *pool, size_t n_parts)
{
    double best = 0;
    for (int round = 0; round < READ_ROUNDS; round++) {
        double start = clock_monotonic_seconds();
        cpu_pool_run(pool, read_part, m, n_parts);
        double rate = (double)(m->slice * n_parts) / (clock_monotonic_seconds() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static double measure_multiplies(Measurement *m, CpuPool *pool, size_t n_parts)
{
    double best = 0;
    m->multiplies = 1 << 20;
    for (int round = 0; round <= MULTIPLY_ROUNDS; round++) {
        atomic_store(&m->multiplied, 0);
        double start = clock_monotonic_seconds();
        cpu_pool_run(pool, multiply_part, m, n_parts);
        double seconds = clock_monotonic_seconds() - start;
        double rate = (double)atomic_load(&m->multiplied) / (seconds + 1e-9);
        if (round == 0)
            m->multiplies = (uint64_t)(rate * MULTIPLY_SECONDS / (double)n_parts);
        else
            best = rate > best ? rate : best;
    }
    return best;
}

static const LimitLoops *select_loops(void)
{
    static const LimitLoops *const loops[INSTRUCTION_SETS] = {
        [INSTRUCTIONS_PLAIN] = &limit_loops_plain,
#if CPU_HAS_X86_KERNELS
        [INSTRUCTIONS_AVX2] = &limit_loops_avx2,
        [INSTRUCTIONS_AVXVNNI] = &limit_loops_avxvnni,
        [INSTRUCTIONS_AVX512] = &limit_loops_avx512,
        [INSTRUCTIONS_ZEN4] = &limit_loops_avx512,
        [INSTRUCTIONS_AMX] = &limit_loops_amx,
#elif CPU_HAS_ARM_KERNELS
        [INSTRUCTIONS_NEON] = &limit_loops_neon,
        [INSTRUCTIONS_DOTPROD] = &limit_loops_dotprod,
        [INSTRUCTIONS_I8MM] = &limit_loops_i8mm,
#endif
    };
    return loops[cpu_best_instructions(INSTRUCTIONS_BEST)];
}

bool engine_measure_machine(size_t threads, MachineLimits *out, Error *err)
{
    Measurement m = {.loops = select_loops()};
    CpuPool *pool = NULL;
    bool ok = false;

    memset(out, 0, sizeof(*out));
    if (threads == 0)
        threads = process_usable_cores();
    if (!cpu_pool_create(threads, &pool, err))
        goto cleanup;
    m.data = memory_allocate_huge(READ_BYTES);
    if (!m.data) {
        error_no_memory(err, "bandwidth measurement");
        goto cleanup;
    }
    /* Some parts a thread, so that one that is held up does not decide the figure. */
    size_t n_parts = threads * 8;
    m.slice = READ_BYTES / n_parts / 4096 * 4096;
    cpu_pool_run(pool, fill_part, &m, n_parts);
    out->read_bytes_per_second = measure_reads(&m, pool, n_parts);
    out->int8_macs_per_second = measure_multiplies(&m, pool, threads);
    snprintf(out->instruction_set, sizeof(out->instruction_set), "%s", m.loops->name);
    ok = true;

cleanup:
    memory_free(m.data);
    cpu_pool_free(pool);
    return ok;
}
