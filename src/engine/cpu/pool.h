/* Private to engine/cpu: a persistent pool of worker threads for parallel sections.
 *
 * The caller is worker 0; threads - 1 workers wait, spinning briefly before they sleep. A section
 * runs task(context, part, n_parts) for every part; parts are handed out dynamically, so a part
 * should be some tens of microseconds of work. cpu_pool_run returns when all parts are done.
 * Threads: one caller at a time. */
#ifndef ENGINE_CPU_POOL_H
#define ENGINE_CPU_POOL_H

#include "base.h"

typedef struct CpuPool CpuPool;
typedef void (*CpuTask)(void *context, size_t part, size_t n_parts);

bool cpu_pool_create(size_t threads, CpuPool **out, Error *err) WARN_UNUSED;
void cpu_pool_free(CpuPool *pool);            /* joins the workers; accepts NULL */
size_t cpu_pool_threads(const CpuPool *pool); /* 1 for NULL */
/* pool may be NULL: all parts run on the caller. Sections do not nest: a task must not call this.
 */
void cpu_pool_run(CpuPool *pool, CpuTask task, void *context, size_t n_parts);
/* The same, but worker i begins with share i of the parts, a run of neighbours, and helps with
 * other shares when its own is used up. What a thread touched in one section it will mostly touch
 * in another of as many parts: memory stays near it. */
void cpu_pool_run_shares(CpuPool *pool, CpuTask task, void *context, size_t n_parts);
/* Share i of n_shares: parts [begin(i), begin(i + 1)). Sizes differ by at most 1. */
size_t cpu_pool_share_begin(size_t n_parts, size_t n_shares, size_t share);
/* Index of the calling thread within the running section: 0 .. threads - 1 (for per-thread
 * scratch). */
size_t cpu_pool_worker_index(void);

#endif
