/* Private to engine/mlx: the one thread that calls MLX.
 *
 * MLX binds streams to the thread that made them, so loading, computing and freeing must happen on
 * one thread, whoever calls the engine. A runner is that thread; runner_run hands it a task and
 * waits. Threads: callers serialise. */
#ifndef ENGINE_MLX_RUNNER_H
#define ENGINE_MLX_RUNNER_H

#include "base.h"

typedef struct Runner Runner;

bool runner_create(Runner **out, Error *err) WARN_UNUSED;
void runner_run(Runner *runner, void (*task)(void *context), void *context);
void runner_free(Runner *runner); /* accepts NULL */

#endif
