/* What the scheduler tells about itself. The inference thread counts in a tally of its own and
 * publishes it between steps, so that a reader never waits for an engine pass. */
#include "state.h"

const double SCHEDULER_FIRST_TOKEN_BOUNDS[SCHEDULER_HISTOGRAM_BUCKETS] = {
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120};
const double SCHEDULER_INTER_TOKEN_BOUNDS[SCHEDULER_HISTOGRAM_BUCKETS] = {
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5};

void histogram_add(SchedulerHistogram *histogram, const double *bounds, double seconds)
{
    size_t bucket = 0;
    while (bucket < SCHEDULER_HISTOGRAM_BUCKETS && seconds > bounds[bucket])
        bucket++;
    histogram->counts[bucket]++;
    histogram->count++;
    histogram->sum += seconds;
}

void statistics_publish(Scheduler *scheduler)
{
    SchedulerStatistics *tally = &scheduler->tally;
    const EngineOps *ops = scheduler->engine->ops;
    tally->running = scheduler->running_jobs;
    tally->cache_entries = scheduler->cache.count;
    tally->cache_evictions_total = scheduler->cache.evictions_total;
    tally->kv_used_bytes = ops->kv_bytes_used ? ops->kv_bytes_used(scheduler->engine) : 0;
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->published = *tally;
    for (size_t i = 0; i < scheduler->slot_count; i++) {
        const Slot *slot = &scheduler->slots[i];
        size_t n_prompt = slot->job ? slot->job->n_prompt : 0;
        scheduler->published_slots[i] = (SchedulerSlot){
            .is_processing = slot->job != NULL,
            .prompt_tokens = slot->fed < n_prompt ? slot->fed : n_prompt,
            .generated_tokens = slot->n_tokens - n_prompt,
        };
    }
    pthread_mutex_unlock(&scheduler->mutex);
}

void scheduler_statistics(Scheduler *scheduler, SchedulerStatistics *out)
{
    pthread_mutex_lock(&scheduler->mutex);
    *out = scheduler->published;
    out->waiting = scheduler->queue_length;
    out->cancelled_total += scheduler->purged_total;
    double started = scheduler->step_started_at;
    out->step_age_seconds = started > 0 ? clock_monotonic_seconds() - started : 0;
    pthread_mutex_unlock(&scheduler->mutex);
    EngineDescription engine;
    engine_describe(scheduler->engine, &engine);
    out->device_bytes = engine.device_bytes;
    out->device_peak_bytes = engine.device_peak_bytes;
}

size_t scheduler_slots(Scheduler *scheduler, SchedulerSlot *out, size_t max)
{
    size_t count = max < scheduler->slot_count ? max : scheduler->slot_count;
    pthread_mutex_lock(&scheduler->mutex);
    for (size_t i = 0; i < count; i++)
        out[i] = scheduler->published_slots[i];
    pthread_mutex_unlock(&scheduler->mutex);
    return count;
}
