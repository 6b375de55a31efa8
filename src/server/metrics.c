#include "metrics.h"

#include "route.h"

#include <math.h>

/* Statuses that have a counter; the last stands for all others, of which there should be none. */
static const unsigned CODES[] = {200, 204, 400, 401, 403, 404, 405,
                                 408, 411, 413, 414, 415, 431, METRICS_CLIENT_GONE,
                                 500, 501, 503, 505, 529, 0};
_Static_assert(ARRAY_COUNT(CODES) <= METRICS_CODES_MAX, "every code has a counter");

static const double SECONDS_BOUNDS[METRICS_BUCKETS] = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                                       2.5,  5,     10,   30,  60,   120, 300};

void metrics_count_reply(Metrics *metrics, const struct Route *route, unsigned status)
{
    size_t code = 0, index = route_index(route);
    while (code + 1 < ARRAY_COUNT(CODES) && CODES[code] != status)
        code++;
    if (index < METRICS_ROUTES_MAX)
        atomic_fetch_add_explicit(&metrics->replies[index][code], 1, memory_order_relaxed);
}

void metrics_observe_seconds(Metrics *metrics, double seconds)
{
    size_t bucket = 0;
    while (bucket < METRICS_BUCKETS && seconds > SECONDS_BOUNDS[bucket])
        bucket++;
    atomic_fetch_add_explicit(&metrics->seconds_counts[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&metrics->seconds_microseconds, (uint64_t)(seconds * 1e6),
                              memory_order_relaxed);
}

/* ---- Text format 0.0.4 ---- */

static void write_head(Buffer *out, const char *name, const char *type, const char *help)
{
    buffer_append_format(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void write_counter(Buffer *out, const char *name, const char *help, uint64_t value)
{
    write_head(out, name, "counter", help);
    buffer_append_format(out, "%s %llu\n", name, (unsigned long long)value);
}

static void write_gauge(Buffer *out, const char *name, const char *help, double value)
{
    write_head(out, name, "gauge", help);
    buffer_append_format(out, "%s %.9g\n", name, value);
}

static void write_histogram(Buffer *out, const char *name, const char *help, const double *bounds,
                            const uint64_t *counts, size_t buckets, double sum)
{
    uint64_t total = 0;
    write_head(out, name, "histogram", help);
    for (size_t i = 0; i < buckets; i++) {
        total += counts[i];
        buffer_append_format(out, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i],
                             (unsigned long long)total);
    }
    total += counts[buckets];
    buffer_append_format(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.9g\n%s_count %llu\n", name,
                         (unsigned long long)total, name, sum, name, (unsigned long long)total);
}

static void write_replies(const Metrics *metrics, Buffer *out)
{
    static const char NAME[] = "mlx_serve_requests_total";
    char label[ROUTE_LABEL_MAX];
    write_head(out, NAME, "counter", "Requests by route and status; 499: the client left.");
    for (size_t route = 0; route <= route_count(); route++) {
        for (size_t code = 0; code < ARRAY_COUNT(CODES); code++) {
            uint64_t count = atomic_load(&metrics->replies[route][code]);
            if (count > 0)
                buffer_append_format(out, "%s{route=\"%s\",code=\"%u\"} %llu\n", NAME,
                                     route_label(route_at(route), label), CODES[code],
                                     (unsigned long long)count);
        }
    }
}

static void write_scheduler(const SchedulerStatistics *statistics, Buffer *out)
{
    write_counter(out, "mlx_serve_requests_cancelled_total",
                  "Generation requests whose client left or did not read.",
                  statistics->cancelled_total);
    write_counter(out, "mlx_serve_prompt_tokens_total", "Prompt tokens, cached ones included.",
                  statistics->prompt_tokens_total);
    write_counter(out, "mlx_serve_prompt_tokens_cached_total",
                  "Prompt tokens that were found in the cache.", statistics->cached_tokens_total);
    write_counter(out, "mlx_serve_generation_tokens_total", "Sampled tokens.",
                  statistics->generated_tokens_total);
    write_counter(out, "mlx_serve_steps_total", "Passes of the engine.", statistics->steps_total);
    write_gauge(out, "mlx_serve_requests_running", "Generation requests in a slot.",
                (double)statistics->running);
    write_gauge(out, "mlx_serve_requests_waiting", "Generation requests that wait for a slot.",
                (double)statistics->waiting);
    write_gauge(out, "mlx_serve_slots", "Replies that can be generated at once.",
                (double)statistics->slots);
    write_gauge(out, "mlx_serve_kv_usage_ratio",
                "Share of the KV memory in use, by running replies and by the prefix cache.",
                statistics->kv_max_bytes > 0
                    ? (double)statistics->kv_used_bytes / (double)statistics->kv_max_bytes
                    : 0.0);
    if (statistics->device_peak_bytes > 0) {
        write_gauge(out, "mlx_serve_device_bytes", "Memory in use on the device.",
                    (double)statistics->device_bytes);
        write_gauge(out, "mlx_serve_device_peak_bytes", "Most memory that was in use there.",
                    (double)statistics->device_peak_bytes);
    }
    write_gauge(out, "mlx_serve_step_age_seconds", "How long the present step has taken so far.",
                statistics->step_age_seconds);
    write_histogram(out, "mlx_serve_time_to_first_token_seconds",
                    "From the arrival of a request to its first token.",
                    SCHEDULER_FIRST_TOKEN_BOUNDS, statistics->first_token.counts,
                    SCHEDULER_HISTOGRAM_BUCKETS, statistics->first_token.sum);
    write_histogram(out, "mlx_serve_inter_token_seconds", "Between two tokens of one reply.",
                    SCHEDULER_INTER_TOKEN_BOUNDS, statistics->inter_token.counts,
                    SCHEDULER_HISTOGRAM_BUCKETS, statistics->inter_token.sum);
}

void metrics_handle(HttpRequest *request)
{
    Server *server = request->server;
    Buffer *out = &request->reply;
    SchedulerStatistics statistics = {0};
    uint64_t counts[METRICS_BUCKETS + 1];
    if (atomic_load(&server->is_ready))
        scheduler_statistics(server->model.scheduler, &statistics);
    write_replies(&server->metrics, out);
    write_scheduler(&statistics, out);
    for (size_t i = 0; i <= METRICS_BUCKETS; i++)
        counts[i] = atomic_load(&server->metrics.seconds_counts[i]);
    write_histogram(out, "mlx_serve_request_seconds", "Generation requests from head to end.",
                    SECONDS_BOUNDS, counts, METRICS_BUCKETS,
                    (double)atomic_load(&server->metrics.seconds_microseconds) * 1e-6);
    write_gauge(out, "mlx_serve_connections", "Open connections.",
                (double)atomic_load(&server->connection_count));
    write_gauge(out, "mlx_serve_resident_bytes", "Resident memory of the process.",
                (double)process_resident_bytes());
    write_gauge(out, "mlx_serve_uptime_seconds", "Since the server was started.",
                clock_monotonic_seconds() - server->started_clock);
    http_reply(request, 200, "text/plain; version=0.0.4");
}
