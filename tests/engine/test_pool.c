/* The worker pool: every part runs exactly once, sections do not leak into each other, sleepers
 * wake. */
#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

enum { PARTS_MAX = 5000, THREADS = 4 };

typedef struct Tally {
    _Atomic uint32_t runs[PARTS_MAX];
    _Atomic uint32_t by_worker[THREADS];
    uint32_t plain[PARTS_MAX]; /* not atomic: sections must order accesses by themselves */
    _Atomic bool wrong;
    size_t expected_parts;
} Tally;

static void count_part(void *context, size_t part, size_t n_parts)
{
    Tally *tally = context;
    if (n_parts != tally->expected_parts || part >= n_parts || cpu_pool_worker_index() >= THREADS) {
        atomic_store(&tally->wrong, true);
        return;
    }
    atomic_fetch_add(&tally->runs[part], 1);
    atomic_fetch_add(&tally->by_worker[cpu_pool_worker_index()], 1);
    tally->plain[part]++;
}

static void check_sections(CpuPool *pool)
{
    static Tally tally;
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, 1000, PARTS_MAX};

    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        for (size_t i = 0; i < PARTS_MAX; i++) {
            atomic_store(&tally.runs[i], 0);
            tally.plain[i] = 0;
        }
        tally.expected_parts = counts[c];
        enum { ROUNDS = 20 };
        for (int round = 0; round < ROUNDS; round += 2) {
            cpu_pool_run(pool, count_part, &tally, counts[c]);
            cpu_pool_run_shares(pool, count_part, &tally, counts[c]);
        }
        assert_false(atomic_load(&tally.wrong));
        for (size_t i = 0; i < PARTS_MAX; i++) {
            assert_int_equal(atomic_load(&tally.runs[i]), i < counts[c] ? ROUNDS : 0);
            assert_int_equal(tally.plain[i], i < counts[c] ? ROUNDS : 0);
        }
    }
}

static void test_every_part_runs_once(void **state)
{
    (void)state;
    check_sections(NULL);
    for (size_t threads = 1; threads <= THREADS; threads++) {
        CpuPool *pool;
        Error err;
        assert_true(cpu_pool_create(threads, &pool, &err));
        assert_int_equal(cpu_pool_threads(pool), threads);
        check_sections(pool);
        cpu_pool_free(pool);
    }
    assert_int_equal(cpu_pool_threads(NULL), 1);
    assert_int_equal(cpu_pool_worker_index(), 0);
}

/* Contexts on the stack of each call: a part that ran after its section would touch a dead one. */
typedef struct Small {
    size_t sum;
    _Atomic size_t atomic_sum;
    size_t values[3];
} Small;

static void add_small(void *context, size_t part, size_t n_parts)
{
    Small *small = context;
    (void)n_parts;
    small->values[part] = part + 1;
    atomic_fetch_add(&small->atomic_sum, part + 1);
}

static void test_many_short_sections(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(3, &pool, &err));
    for (int i = 0; i < 20000; i++) {
        Small small = {0};
        cpu_pool_run(pool, add_small, &small, 3);
        size_t sum = small.values[0] + small.values[1] + small.values[2];
        if (sum != 6 || atomic_load(&small.atomic_sum) != 6)
            fail_msg("section %d: %zu", i, sum);
    }
    cpu_pool_free(pool);
}

static void count_run(void *context, size_t part, size_t n_parts)
{
    _Atomic uint32_t *runs = context;
    (void)n_parts;
    atomic_fetch_add(&runs[part], 1);
}

/* Few parts, then many, over and over: a worker that was interrupted between reading the state of
 * one section and taking a part must not take a part of the next one by mistake. */
static void test_sections_of_changing_size(void **state)
{
    (void)state;
    enum { SECTIONS = 200000, PARTS = 9 };
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(3, &pool, &err));
    for (int i = 0; i < SECTIONS; i++) {
        _Atomic uint32_t runs[PARTS] = {0};
        size_t n_parts = i % 2 ? PARTS : 2;
        if (i % 3 == 0)
            cpu_pool_run(pool, count_run, runs, n_parts);
        else
            cpu_pool_run_shares(pool, count_run, runs, n_parts);
        for (size_t part = 0; part < PARTS; part++) {
            uint32_t expected = part < n_parts;
            if (atomic_load(&runs[part]) != expected)
                fail_msg("section %d part %zu of %zu ran %u times", i, part, n_parts,
                         atomic_load(&runs[part]));
        }
    }
    cpu_pool_free(pool);
}

/* Parts that wait for each other need as many threads at the same time: sleepers must wake, and
 * who is awake before others are told must not go without a part. */
typedef struct Meeting {
    _Atomic int arrived;
    _Atomic bool gave_up;
} Meeting;

static void meet(void *context, size_t part, size_t n_parts)
{
    Meeting *meeting = context;
    (void)part;
    atomic_fetch_add(&meeting->arrived, 1);
    double deadline = clock_monotonic_seconds() + 20;
    while (atomic_load(&meeting->arrived) < (int)n_parts) {
        sched_yield();
        if (clock_monotonic_seconds() > deadline) {
            atomic_store(&meeting->gave_up, true);
            return;
        }
    }
}

static void meet_often(size_t threads, int times, long nap_ns)
{
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(threads, &pool, &err));
    for (int i = 0; i < times; i++) {
        struct timespec nap = {0, i % 5 * nap_ns};
        if (nap_ns > 0)
            nanosleep(&nap, NULL);
        Meeting meeting = {0};
        cpu_pool_run(pool, meet, &meeting, threads);
        assert_false(atomic_load(&meeting.gave_up));
    }
    cpu_pool_free(pool);
}

static void test_all_threads_come(void **state)
{
    (void)state;
    for (size_t threads = 2; threads <= THREADS; threads++) {
        meet_often(threads, 100, 50000); /* around the end of the spin and beyond */
        meet_often(threads, 5000, 0);
    }
}

/* Parts that wait for each other, one for each thread: nobody can take two. */
typedef struct Shares {
    Meeting meeting;
    size_t worker[THREADS];
} Shares;

static void meet_in_share(void *context, size_t part, size_t n_parts)
{
    Shares *shares = context;
    shares->worker[part] = cpu_pool_worker_index();
    atomic_fetch_add(&shares->meeting.arrived, 1);
    double deadline = clock_monotonic_seconds() + 20;
    while (atomic_load(&shares->meeting.arrived) < (int)n_parts &&
           !atomic_load(&shares->meeting.gave_up)) {
        if (clock_monotonic_seconds() > deadline)
            atomic_store(&shares->meeting.gave_up, true);
    }
}

static void test_threads_begin_with_their_share(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(THREADS, &pool, &err));
    for (int i = 0; i < 50; i++) {
        Shares shares = {0};
        cpu_pool_run_shares(pool, meet_in_share, &shares, THREADS);
        assert_false(atomic_load(&shares.meeting.gave_up));
        for (size_t part = 0; part < THREADS; part++)
            assert_int_equal(shares.worker[part], part);
    }
    cpu_pool_free(pool);
}

static void test_shares_cover_the_parts(void **state)
{
    (void)state;
    for (size_t n_parts = 0; n_parts < 40; n_parts++) {
        for (size_t n_shares = 1; n_shares < 12; n_shares++) {
            assert_int_equal(cpu_pool_share_begin(n_parts, n_shares, 0), 0);
            assert_int_equal(cpu_pool_share_begin(n_parts, n_shares, n_shares), n_parts);
            for (size_t i = 0; i < n_shares; i++) {
                size_t size = cpu_pool_share_begin(n_parts, n_shares, i + 1) -
                              cpu_pool_share_begin(n_parts, n_shares, i);
                assert_in_range(size, n_parts / n_shares, (n_parts + n_shares - 1) / n_shares);
            }
        }
    }
}

static void sleep_in_part(void *context, size_t part, size_t n_parts)
{
    _Atomic size_t *done = context;
    (void)n_parts;
    if (part == 1) {
        struct timespec nap = {0, 2000000};
        nanosleep(&nap, NULL);
    }
    atomic_fetch_add(done, 1);
}

/* The caller outlasts its spin, sleeps, and is woken by the last part. */
static void test_caller_sleeps(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(2, &pool, &err));
    for (int i = 0; i < 20; i++) {
        _Atomic size_t done = 0;
        cpu_pool_run(pool, sleep_in_part, &done, 2);
        assert_int_equal(atomic_load(&done), 2);
    }
    cpu_pool_free(pool);
}

/* An idle pool must not use the processor: its spin is bounded. */
static void test_idle_pool_sleeps(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_true(cpu_pool_create(THREADS, &pool, &err));
    struct timespec nap = {0, 100000000}, before, after;
    nanosleep(&nap, NULL); /* threads started and settled */
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    nanosleep(&nap, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    double used =
        (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
    assert_true(used < 0.05); /* THREADS that spin would use 0.1 and more */
    cpu_pool_free(pool);
}

static void test_limits_and_faults(void **state)
{
    (void)state;
    CpuPool *pool;
    Error err;
    assert_false(cpu_pool_create(0, &pool, &err));
    assert_null(pool);
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_false(cpu_pool_create((size_t)1 << 40, &pool, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    fault_fail_allocation(1);
    assert_false(cpu_pool_create(2, &pool, &err));
    fault_fail_allocation(0);
    assert_null(pool);
    assert_int_equal(err.code, ERROR_MEMORY);
    cpu_pool_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_part_runs_once),
        cmocka_unit_test(test_many_short_sections),
        cmocka_unit_test(test_sections_of_changing_size),
        cmocka_unit_test(test_all_threads_come),
        cmocka_unit_test(test_threads_begin_with_their_share),
        cmocka_unit_test(test_shares_cover_the_parts),
        cmocka_unit_test(test_caller_sleeps),
        cmocka_unit_test(test_idle_pool_sleeps),
        cmocka_unit_test(test_limits_and_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
