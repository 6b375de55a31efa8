/* Times how long a model takes to be ready (model_open and engine_open) beside what the machine
 * needs for the least of it: copying the same bytes from the mapped files to fresh memory with as
 * many threads. Rounds take turns with the copies. The first round pays for memory that the system
 * has to fetch first, on a virtual machine from its host. CSV on stdout, one line a round.
 * Usage: bench_load MODEL_DIR [threads [rounds]]. */
#include "cpu/pool.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_PART_BYTES = 1 << 20, ROUNDS = 5 };

/* Tensors one after the other, as if they were one run of bytes. */
typedef struct Copy {
    const TensorSet *tensors;
    size_t *starts; /* [tensors + 1] */
    uint8_t *to;
} Copy;

static void copy_part(void *context, size_t part, size_t n_parts)
{
    const Copy *copy = context;
    size_t begin = part * COPY_PART_BYTES, end = begin + COPY_PART_BYTES, i = 0;
    (void)n_parts;
    while (copy->starts[i + 1] <= begin)
        i++;
    for (; i < tensor_set_count(copy->tensors) && copy->starts[i] < end; i++) {
        size_t first = copy->starts[i] > begin ? copy->starts[i] : begin;
        size_t last = copy->starts[i + 1] < end ? copy->starts[i + 1] : end;
        if (first < last)
            memcpy(copy->to + first,
                   tensor_set_at(copy->tensors, i)->data + first - copy->starts[i], last - first);
    }
}

/* Seconds for one copy of all tensors; 0 when there is no memory. */
static double time_copy(const TensorSet *tensors, CpuPool *pool)
{
    size_t count = tensor_set_count(tensors), bytes = tensor_set_bytes(tensors);
    Copy copy = {tensors, memory_allocate_zeroed(count + 1, sizeof *copy.starts),
                 memory_allocate_huge(bytes)};
    double seconds = 0;
    if (copy.starts && copy.to) {
        for (size_t i = 0; i < count; i++)
            copy.starts[i + 1] = copy.starts[i] + tensor_set_at(tensors, i)->n_bytes;
        double start = clock_monotonic_seconds();
        cpu_pool_run_shares(pool, copy_part, &copy,
                            (bytes + COPY_PART_BYTES - 1) / COPY_PART_BYTES);
        seconds = clock_monotonic_seconds() - start;
    }
    memory_free(copy.to);
    memory_free(copy.starts);
    return seconds;
}

static bool run_round(const char *directory, const EngineOptions *options, CpuPool *pool,
                      size_t round, Error *err)
{
    Model *model = NULL;
    Engine *engine = NULL;
    bool ok = model_open(directory, &model, err);
    if (!ok)
        return false;
    double copy = time_copy(model->tensors, pool);
    model_close(model);

    double start = clock_monotonic_seconds();
    ok = model_open(directory, &model, err);
    double opened = clock_monotonic_seconds();
    if (ok && (ok = engine_open(model, options, &engine, err))) {
        double ready = clock_monotonic_seconds();
        printf("%zu,%zu,%.3f,%.3f,%.3f,%.2f,%.1f,%.1f\n", cpu_pool_threads(pool), round,
               opened - start, ready - start, copy, (ready - start) / copy,
               (double)tensor_set_bytes(model->tensors) * 1e-6,
               (double)process_resident_bytes() * 1e-6);
        fflush(stdout);
    }
    engine_close(engine);
    model_close(model);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_load MODEL_DIR [threads [rounds]]\n");
        return 2;
    }
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : process_usable_cores();
    size_t rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : ROUNDS;
    EngineOptions options = {.backend = ENGINE_BACKEND_CPU, .threads = threads};
    CpuPool *pool = NULL;
    Error err = {0};
    bool ok = cpu_pool_create(threads, &pool, &err);
    printf("threads,round,open_s,ready_s,copy_s,ready_per_copy,file_mb,resident_mb\n");
    for (size_t round = 0; ok && round < rounds; round++)
        ok = run_round(argv[1], &options, pool, round, &err);
    cpu_pool_free(pool);
    if (!ok)
        fprintf(stderr, "%s\n", err.message);
    return ok ? 0 : 1;
}
