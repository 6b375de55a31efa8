/* Private to cli: what the files of the bench command share. */
#ifndef BENCH_H
#define BENCH_H

#include "cli.h"

/* Repeats of one measurement, in tokens a second. */
typedef struct BenchRate {
    double median, least, most;
    double share; /* of the machine's limit */
} BenchRate;

typedef struct BenchPrefill {
    size_t tokens;
    BenchRate rate;
} BenchPrefill;

typedef struct BenchDecode {
    size_t depth, batch;
    BenchRate rate; /* of all sequences together */
} BenchDecode;

typedef struct BenchReport {
    const Arguments *arguments;
    EngineDescription engine;
    MachineLimits limits;
    double load_seconds;
    size_t peak_bytes; /* resident, before the machine was measured, which takes memory too */
    BenchPrefill prefill[LIST_ITEMS_MAX];
    size_t n_prefill;
    BenchDecode decode[LIST_ITEMS_MAX * LIST_ITEMS_MAX];
    size_t n_decode;
} BenchReport;

/* Prints one entry for each pair of a prefill and a decode measurement, or tables for people, as
 * the arguments ask. */
bool bench_report_print(const BenchReport *report, Error *err) WARN_UNUSED;

/* The text of a config.json with a known model's shape; ERROR_USAGE lists the names. */
bool bench_shape_find(const char *name, Slice *config, Error *err) WARN_UNUSED;

#endif
