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
/* Index of the calling thread within the running section: 0 .. threads - 1 (for per-thread
 * scratch). */
size_t cpu_pool_worker_index(void);

#endif
