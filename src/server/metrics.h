/* metrics: what the server counts, and GET /metrics, which shows it to Prometheus together with the
 * scheduler's statistics. Counting is any thread and does not wait. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include "base.h"

#include <stdatomic.h>

enum {
    METRICS_CLIENT_GONE = 499, /* the "status" of a request whose client left before its answer */
    METRICS_ROUTES_MAX = 64,
    METRICS_CODES_MAX = 24,
    METRICS_BUCKETS = 14,
};

struct Route;
struct HttpRequest;

/* Zero-initialised. */
typedef struct Metrics {
    _Atomic uint64_t replies[METRICS_ROUTES_MAX][METRICS_CODES_MAX];
    _Atomic uint64_t seconds_counts[METRICS_BUCKETS + 1]; /* not cumulated */
    _Atomic uint64_t seconds_microseconds;                /* their sum */
} Metrics;

/* route: NULL when the request came to none. */
void metrics_count_reply(Metrics *metrics, const struct Route *route, unsigned status);
/* A generation request's time from its first byte to its last. */
void metrics_observe_seconds(Metrics *metrics, double seconds);

#endif
