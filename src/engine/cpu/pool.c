/* The worker pool.
 *
 * One section is live at a time. Its parts are cut into shares of neighbouring parts: one share
 * that all take from, or one for each thread, which then takes from its own first and from the next
 * ones when that is empty. The state of a share is one 64-bit word, the ticket: the section's
 * number in the upper 40 bits, how many parts of it are still to be handed out in the lower 24. A
 * thread takes a part by exchanging (section, left) for (section, left - 1), so that a part is
 * taken once, and a worker that wakes late, after the section has ended, takes nothing: either none
 * is left in the ticket it holds, or its exchange fails. Nobody waits for workers that took no
 * part; a section ends when its parts are done, whoever did them.
 *
 * task, context and the numbers of parts and shares are written only between sections. A worker may
 * read them while they change, but then the ticket it read before was of an ended section, with no
 * part left, and it throws them away. That the ticket itself says how many are left is what makes
 * this safe: comparing with n_parts would not be, since a late worker could see the next section's
 * n_parts beside the last one's ticket. They are atomic because such a read and the write are
 * concurrent. The number of the live section stands in a word of its own too, which waiting threads
 * look at; it changes when the tickets are there.
 *
 * Waiting is a bounded spin, then sleep on a condition variable. The spin covers the gaps between
 * the sections of a forward pass; it is bounded in time because the machine may be shared, where a
 * spinning thread keeps a core from somebody who has work. A thread about to sleep announces itself
 * (sleepers, caller_sleeps) and then looks once more at what it waits for; its waker first changes
 * that, then looks for announcements. Both sides are sequentially consistent, so one of them sees
 * the other. */
#include "pool.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
    PART_BITS = 24,
    SPINS_PER_CLOCK_READ = 16,
    POOL_THREADS_MAX = 1024,
};

/* A section gap of a forward pass is a few microseconds; waking a sleeper costs about 50. */
static const double SPIN_SECONDS = 50e-6;

typedef struct Share {
    _Alignas(64) _Atomic uint64_t ticket; /* section << PART_BITS | parts left */
} Share;

typedef struct Worker {
    CpuPool *pool;
    pthread_t thread;
    size_t index;
} Worker;

struct CpuPool {
    _Alignas(64) _Atomic uint64_t section; /* the live one's number, or the last one's */
    _Alignas(64) _Atomic size_t done;      /* parts of the live section that have ended */
    _Alignas(64) _Atomic(CpuTask) task;
    _Atomic(void *) context;
    _Atomic size_t n_parts, n_shares;
    _Atomic size_t sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    pthread_mutex_t mutex; /* guards no field: makes announcing and sleeping one step */
    pthread_cond_t work;   /* a section has begun, or stop */
    pthread_cond_t ended;  /* the live section's last part is done */
    Share *shares;         /* one for each thread */
    size_t n_workers;      /* threads that were started */
    Worker workers[];
};

static _Thread_local size_t worker_index;

static void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

size_t cpu_pool_share_begin(size_t n_parts, size_t n_shares, size_t share)
{
    size_t even = n_parts / n_shares, rest = n_parts % n_shares;
    return share * even + (share < rest ? share : rest);
}

/* Takes and runs parts of one share until none is left in it. */
static void share_work(CpuPool *pool, size_t share, uint64_t section)
{
    const uint64_t part_mask = ((uint64_t)1 << PART_BITS) - 1;
    _Atomic uint64_t *shared = &pool->shares[share].ticket;
    uint64_t ticket = atomic_load(shared);

    while (ticket >> PART_BITS == section) {
        CpuTask task = atomic_load_explicit(&pool->task, memory_order_relaxed);
        void *context = atomic_load_explicit(&pool->context, memory_order_relaxed);
        size_t n_parts = atomic_load_explicit(&pool->n_parts, memory_order_relaxed);
        size_t n_shares = atomic_load_explicit(&pool->n_shares, memory_order_relaxed);
        size_t left = (size_t)(ticket & part_mask);
        if (left == 0)
            return;
        if (!atomic_compare_exchange_weak(shared, &ticket, ticket - 1))
            continue;
        task(context, cpu_pool_share_begin(n_parts, n_shares, share + 1) - left, n_parts);
        if (atomic_fetch_add(&pool->done, 1) + 1 == n_parts && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->ended);
            pthread_mutex_unlock(&pool->mutex);
        }
        ticket = atomic_load(shared);
    }
}

/* Helps with the section until no part of it is left: with the own share, then with the others. */
static void pool_work(CpuPool *pool, uint64_t section)
{
    size_t n_shares = atomic_load_explicit(&pool->n_shares, memory_order_relaxed);
    size_t share = worker_index < n_shares ? worker_index : 0;
    for (size_t i = 0; i < n_shares; i++) {
        share_work(pool, share, section);
        share = share + 1 < n_shares ? share + 1 : 0;
    }
}

static bool pool_has_news(const CpuPool *pool, uint64_t seen_section)
{
    return atomic_load(&pool->section) != seen_section || atomic_load(&pool->stop);
}

static bool section_has_ended(const CpuPool *pool, size_t n_parts)
{
    return atomic_load(&pool->done) == n_parts;
}

static void worker_wait(CpuPool *pool, uint64_t seen_section)
{
    double deadline = clock_monotonic_seconds() + SPIN_SECONDS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK_READ; i++) {
            if (pool_has_news(pool, seen_section))
                return;
            spin_pause();
        }
    } while (clock_monotonic_seconds() < deadline);

    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!pool_has_news(pool, seen_section))
        pthread_cond_wait(&pool->work, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void caller_wait(CpuPool *pool, size_t n_parts)
{
    double deadline = clock_monotonic_seconds() + SPIN_SECONDS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK_READ; i++) {
            if (section_has_ended(pool, n_parts))
                return;
            spin_pause();
        }
    } while (clock_monotonic_seconds() < deadline);

    pthread_mutex_lock(&pool->mutex);
    /* Exchanged, not stored: QEMU lets a later load overtake Arm's storing instruction. */
    (void)atomic_exchange(&pool->caller_sleeps, true);
    while (!section_has_ended(pool, n_parts))
        pthread_cond_wait(&pool->ended, &pool->mutex);
    atomic_store(&pool->caller_sleeps, false);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument)
{
    Worker *worker = argument;
    CpuPool *pool = worker->pool;
    uint64_t seen_section = 0;

    worker_index = worker->index;
    while (!atomic_load(&pool->stop)) {
        uint64_t section = atomic_load(&pool->section);
        if (section == seen_section) {
            worker_wait(pool, seen_section);
            continue;
        }
        seen_section = section;
        pool_work(pool, section);
    }
    return NULL;
}

bool cpu_pool_create(size_t threads, CpuPool **out, Error *err)
{
    *out = NULL;
    if (threads < 1 || threads > POOL_THREADS_MAX)
        return error_set(err, ERROR_LIMIT, "%zu threads: expected 1 to %d", threads,
                         (int)POOL_THREADS_MAX);
    size_t bytes = sizeof(CpuPool) + (threads - 1) * sizeof(Worker);
    bytes = (bytes + 63) / 64 * 64;
    CpuPool *pool = memory_allocate_aligned(64, bytes);
    if (!pool)
        return error_no_memory(err, "worker pool");
    pool->shares = memory_allocate_aligned(64, threads * sizeof(Share));
    if (!pool->shares) {
        memory_free(pool);
        return error_no_memory(err, "worker pool");
    }
    for (size_t i = 0; i < threads; i++)
        atomic_init(&pool->shares[i].ticket, 0);
    atomic_init(&pool->section, 0);
    atomic_init(&pool->done, 0);
    atomic_init(&pool->task, NULL);
    atomic_init(&pool->context, NULL);
    atomic_init(&pool->n_parts, 0);
    atomic_init(&pool->n_shares, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->caller_sleeps, false);
    atomic_init(&pool->stop, false);
    pool->n_workers = 0;
    if (pthread_mutex_init(&pool->mutex, NULL) != 0)
        goto no_mutex;
    if (pthread_cond_init(&pool->work, NULL) != 0)
        goto no_work;
    if (pthread_cond_init(&pool->ended, NULL) != 0)
        goto no_ended;
    for (size_t i = 0; i + 1 < threads; i++) {
        Worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i + 1;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            cpu_pool_free(pool);
            return error_set(err, ERROR_IO, "cannot start thread %zu of %zu", i + 2, threads);
        }
        pool->n_workers++;
    }
    *out = pool;
    return true;

no_ended:
    pthread_cond_destroy(&pool->work);
no_work:
    pthread_mutex_destroy(&pool->mutex);
no_mutex:
    memory_free(pool->shares);
    memory_free(pool);
    return error_set(err, ERROR_IO, "cannot create the worker pool's locks");
}

void cpu_pool_free(CpuPool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (size_t i = 0; i < pool->n_workers; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->ended);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    memory_free(pool->shares);
    memory_free(pool);
}

size_t cpu_pool_threads(const CpuPool *pool)
{
    return pool ? pool->n_workers + 1 : 1;
}

static void run_section(CpuPool *pool, CpuTask task, void *context, size_t n_parts, size_t n_shares)
{
    if (!pool || pool->n_workers == 0 || n_parts <= 1) {
        for (size_t part = 0; part < n_parts; part++)
            task(context, part, n_parts);
        return;
    }
    assert(n_parts < (size_t)1 << PART_BITS);
    atomic_store_explicit(&pool->task, task, memory_order_relaxed);
    atomic_store_explicit(&pool->context, context, memory_order_relaxed);
    atomic_store_explicit(&pool->n_parts, n_parts, memory_order_relaxed);
    atomic_store_explicit(&pool->n_shares, n_shares, memory_order_relaxed);
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    uint64_t section = atomic_load_explicit(&pool->section, memory_order_relaxed) + 1;
    for (size_t i = 0; i < n_shares; i++) {
        size_t begin = cpu_pool_share_begin(n_parts, n_shares, i);
        size_t end = cpu_pool_share_begin(n_parts, n_shares, i + 1);
        atomic_store_explicit(&pool->shares[i].ticket, section << PART_BITS | (end - begin),
                              memory_order_release);
    }
    atomic_store(&pool->section, section);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);
    }
    pool_work(pool, section);
    caller_wait(pool, n_parts);
}

void cpu_pool_run(CpuPool *pool, CpuTask task, void *context, size_t n_parts)
{
    run_section(pool, task, context, n_parts, 1);
}

void cpu_pool_run_shares(CpuPool *pool, CpuTask task, void *context, size_t n_parts)
{
    run_section(pool, task, context, n_parts, cpu_pool_threads(pool));
}

size_t cpu_pool_worker_index(void)
{
    return worker_index;
}
