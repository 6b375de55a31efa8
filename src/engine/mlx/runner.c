#include "runner.h"

#include <pthread.h>

struct Runner {
    pthread_t thread;
    /* mutex guards the following; changed is signalled when they change. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    void (*task)(void *context); /* NULL: nothing to do, or done */
    void *context;
    bool stopping;
};

static void *runner_thread(void *argument)
{
    Runner *runner = argument;
    pthread_mutex_lock(&runner->mutex);
    for (;;) {
        while (!runner->task && !runner->stopping)
            pthread_cond_wait(&runner->changed, &runner->mutex);
        if (!runner->task)
            break;
        pthread_mutex_unlock(&runner->mutex);
        runner->task(runner->context);
        pthread_mutex_lock(&runner->mutex);
        runner->task = NULL;
        pthread_cond_broadcast(&runner->changed);
    }
    pthread_mutex_unlock(&runner->mutex);
    return NULL;
}

bool runner_create(Runner **out, Error *err)
{
    *out = NULL;
    Runner *runner = memory_allocate_zeroed(1, sizeof *runner);
    if (!runner)
        return error_no_memory(err, "MLX thread");
    if (pthread_mutex_init(&runner->mutex, NULL) != 0)
        goto free_runner;
    if (pthread_cond_init(&runner->changed, NULL) != 0)
        goto destroy_mutex;
    if (pthread_create(&runner->thread, NULL, runner_thread, runner) != 0)
        goto destroy_condition;
    *out = runner;
    return true;
destroy_condition:
    pthread_cond_destroy(&runner->changed);
destroy_mutex:
    pthread_mutex_destroy(&runner->mutex);
free_runner:
    memory_free(runner);
    return error_set(err, ERROR_IO, "the MLX thread cannot be started");
}

void runner_run(Runner *runner, void (*task)(void *context), void *context)
{
    pthread_mutex_lock(&runner->mutex);
    runner->context = context;
    runner->task = task;
    pthread_cond_broadcast(&runner->changed);
    while (runner->task)
        pthread_cond_wait(&runner->changed, &runner->mutex);
    pthread_mutex_unlock(&runner->mutex);
}

void runner_free(Runner *runner)
{
    if (!runner)
        return;
    pthread_mutex_lock(&runner->mutex);
    runner->stopping = true;
    pthread_cond_broadcast(&runner->changed);
    pthread_mutex_unlock(&runner->mutex);
    pthread_join(runner->thread, NULL);
    pthread_cond_destroy(&runner->changed);
    pthread_mutex_destroy(&runner->mutex);
    memory_free(runner);
}
