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
 * Beside its ticket a share has fields that say what its parts are, written only between sections.
 * A worker may read them while they change, but then the ticket it read before was of an ended
 * section, with no part left, and it throws them away. That the ticket itself says how many are
 * left is what makes this safe: comparing with a number of parts would not be, since a late worker
 * could see the next section's beside the last one's ticket. They are atomic because such a read
 * and the write are concurrent.
 *
 * A busy server runs 2^40 sections in half a year, so their numbers wrap; they begin shortly before
 * that point, so that every process has passed it.
 *
 * Cores may lie far apart: on processors of several dies a cache line that another core has written
 * takes 170 ns, a good part of a section of a small model. So a thread waits for, and finds all
 * about its work in, one line of its own; nobody counts on a common line part by part; and what is
 * counted goes on from section to section, so that the caller needs no line back to begin one.
 *
 * Waiting is a bounded spin, then sleep on a condition variable. The spin covers the gaps between
 * the sections of a forward pass; it is bounded in time because the machine may be shared, where a
 * spinning thread keeps a core from somebody who has work. A thread about to sleep announces itself
 * (sleepers, caller_waits_for) and then looks once more at what it waits for; its waker first
 * changes that, then looks for announcements. Both sides are sequentially consistent, so one of
 * them sees the other. */
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

static const uint64_t PART_MASK = ((uint64_t)1 << PART_BITS) - 1;
static const uint64_t SECTION_MASK = UINT64_MAX >> PART_BITS;
static const uint64_t FIRST_SECTION = (UINT64_MAX >> PART_BITS) - 100;
static const size_t NOT_ASLEEP = SIZE_MAX;

typedef struct Share {
    _Alignas(64) _Atomic uint64_t ticket; /* section << PART_BITS | parts left */
    _Atomic(CpuTask) task;
    _Atomic(void *) context;
    _Atomic size_t end;               /* of its parts, the last to be handed out */
    _Atomic size_t n_parts, n_shares; /* of the section */
} Share;

typedef struct Worker {
    CpuPool *pool;
    pthread_t thread;
    size_t index;
} Worker;

struct CpuPool {
    _Alignas(64) _Atomic size_t done; /* parts that workers have ended, of all sections */
    _Alignas(64) size_t done_at_end; /* what done is when the section has ended: the caller's own */
    _Atomic uint64_t section;        /* the live one's number, or the last one's */
    _Alignas(64) _Atomic size_t sleepers;
    _Atomic size_t caller_waits_for; /* so many done, asleep; NOT_ASLEEP otherwise */
    _Atomic bool stop;
    pthread_mutex_t mutex; /* guards no field: makes announcing and sleeping one step */
    pthread_cond_t work;   /* a section has begun, or stop */
    pthread_cond_t ended;  /* what the caller waits for is done */
    Share *shares;         /* one for each thread, which waits for its ticket */
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

/* Takes and runs parts of one share until none is left in it. Returns how many. */
static size_t share_work(Share *share, uint64_t section)
{
    uint64_t ticket = atomic_load(&share->ticket);
    size_t taken = 0;

    while (ticket >> PART_BITS == section && (ticket & PART_MASK) > 0) {
        CpuTask task = atomic_load_explicit(&share->task, memory_order_relaxed);
        void *context = atomic_load_explicit(&share->context, memory_order_relaxed);
        size_t end = atomic_load_explicit(&share->end, memory_order_relaxed);
        size_t n_parts = atomic_load_explicit(&share->n_parts, memory_order_relaxed);
        if (!atomic_compare_exchange_weak(&share->ticket, &ticket, ticket - 1))
            continue;
        task(context, end - (size_t)(ticket & PART_MASK), n_parts);
        taken++;
        ticket = atomic_load(&share->ticket);
    }
    return taken;
}

static void report_done(CpuPool *pool, size_t taken)
{
    if (taken == 0)
        return;
    size_t done = atomic_fetch_add(&pool->done, taken) + taken;
    if (done == atomic_load(&pool->caller_waits_for)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->ended);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Helps with the section until no part of it is left: with the own share, then with the others. */
static void worker_work(CpuPool *pool, uint64_t section)
{
    size_t share = worker_index;
    size_t n_shares = atomic_load_explicit(&pool->shares[share].n_shares, memory_order_relaxed);
    for (size_t i = 0; i < n_shares; i++) {
        share = share < n_shares ? share : 0;
        report_done(pool, share_work(&pool->shares[share], section));
        share++;
    }
}

static uint64_t own_section(const CpuPool *pool)
{
    return atomic_load(&pool->shares[worker_index].ticket) >> PART_BITS;
}

static bool pool_has_news(const CpuPool *pool, uint64_t seen_section)
{
    return own_section(pool) != seen_section || atomic_load(&pool->stop);
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
    while (atomic_load(&pool->section) == seen_section && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->work, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

/* Until workers have ended so many parts, of all sections. */
static void caller_wait(CpuPool *pool, size_t done)
{
    double deadline = clock_monotonic_seconds() + SPIN_SECONDS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK_READ; i++) {
            if (atomic_load(&pool->done) == done)
                return;
            spin_pause();
        }
    } while (clock_monotonic_seconds() < deadline);

    pthread_mutex_lock(&pool->mutex);
    /* Exchanged, not stored: QEMU lets a later load overtake Arm's storing instruction. */
    (void)atomic_exchange(&pool->caller_waits_for, done);
    while (atomic_load(&pool->done) != done)
        pthread_cond_wait(&pool->ended, &pool->mutex);
    atomic_store(&pool->caller_waits_for, NOT_ASLEEP);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument)
{
    Worker *worker = argument;
    CpuPool *pool = worker->pool;
    uint64_t seen_section = FIRST_SECTION;

    worker_index = worker->index;
    while (!atomic_load(&pool->stop)) {
        uint64_t section = own_section(pool);
        if (section == seen_section) {
            worker_wait(pool, seen_section);
            continue;
        }
        seen_section = section;
        worker_work(pool, section);
    }
    return NULL;
}

static void share_init(Share *share)
{
    atomic_init(&share->ticket, FIRST_SECTION << PART_BITS);
    atomic_init(&share->task, NULL);
    atomic_init(&share->context, NULL);
    atomic_init(&share->end, 0);
    atomic_init(&share->n_parts, 0);
    atomic_init(&share->n_shares, 0);
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
        share_init(&pool->shares[i]);
    atomic_init(&pool->done, 0);
    pool->done_at_end = 0;
    atomic_init(&pool->section, FIRST_SECTION);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->caller_waits_for, NOT_ASLEEP);
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

/* Shares past n_shares are empty: their threads begin with the first, so that one has to be there
 * before they are told. */
static uint64_t publish(CpuPool *pool, CpuTask task, void *context, size_t n_parts, size_t n_shares)
{
    uint64_t section = atomic_load_explicit(&pool->section, memory_order_relaxed) + 1;
    section &= SECTION_MASK;
    for (size_t i = 0, begin = 0, end; i <= pool->n_workers; i++, begin = end) {
        Share *share = &pool->shares[i];
        end = i < n_shares ? cpu_pool_share_begin(n_parts, n_shares, i + 1) : begin;
        atomic_store_explicit(&share->task, task, memory_order_relaxed);
        atomic_store_explicit(&share->context, context, memory_order_relaxed);
        atomic_store_explicit(&share->end, end, memory_order_relaxed);
        atomic_store_explicit(&share->n_parts, n_parts, memory_order_relaxed);
        atomic_store_explicit(&share->n_shares, n_shares, memory_order_relaxed);
        atomic_store_explicit(&share->ticket, section << PART_BITS | (end - begin),
                              memory_order_release);
    }
    atomic_store(&pool->section, section);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);
    }
    return section;
}

static void run_section(CpuPool *pool, CpuTask task, void *context, size_t n_parts, size_t n_shares)
{
    if (!pool || pool->n_workers == 0 || n_parts <= 1) {
        for (size_t part = 0; part < n_parts; part++)
            task(context, part, n_parts);
        return;
    }
    assert(n_parts < (size_t)1 << PART_BITS);
    uint64_t section = publish(pool, task, context, n_parts, n_shares);
    size_t taken = 0;
    for (size_t i = 0; i < n_shares; i++)
        taken += share_work(&pool->shares[i], section);
    pool->done_at_end += n_parts - taken;
    caller_wait(pool, pool->done_at_end);
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
