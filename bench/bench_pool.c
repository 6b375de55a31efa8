/* The worker pool beside processes that use the processor. CSV on stdout: for sections like those
 * of a small and of a large model's decoding, the sections a second, idle and beside so many
 * endless loops, and the share that is kept. On c cores, c threads beside n loops have a fair share
 * of c / (c + n). Usage: bench_pool [threads [seconds a figure]] */
#include "cpu/pool.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Section {
    const char *name;
    double part_seconds, serial_seconds;
    size_t n_parts;
} Section;

static const Section sections[] = {
    {"small", 1.2e-6, 2e-6, 16},
    {"large", 20e-6, 2e-6, 16},
};

enum { LOOPS_MAX = 8 };

/* Work, and not waiting: time in which the thread is off the processor does not count as done. */
static void work(uint64_t steps)
{
    volatile uint64_t sink = 0;
    for (uint64_t i = 0; i < steps; i++)
        sink = sink + i;
}

static double measure_step(void)
{
    double best = 1;
    for (int round = 0; round < 20; round++) {
        double start = clock_monotonic_seconds();
        work(100000);
        double seconds = (clock_monotonic_seconds() - start) / 100000;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void run_part(void *context, size_t part, size_t n_parts)
{
    (void)part;
    (void)n_parts;
    work(*(const uint64_t *)context);
}

static double measure_sections(CpuPool *pool, const Section *section, double step, double seconds)
{
    uint64_t part_steps = (uint64_t)(section->part_seconds / step);
    uint64_t serial_steps = (uint64_t)(section->serial_seconds / step);
    uint64_t count = 0;
    double start = clock_monotonic_seconds(), now;
    do {
        for (int i = 0; i < 16; i++, count++) {
            work(serial_steps);
            cpu_pool_run(pool, run_part, &part_steps, section->n_parts);
        }
        now = clock_monotonic_seconds();
    } while (now - start < seconds);
    return (double)count / (now - start);
}

static pid_t start_loop(void)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(600); /* ends by itself, should the parent die */
        for (;;)
            work(1000000);
    }
    return child;
}

static double measure_beside(CpuPool *pool, const Section *section, double step, double seconds,
                             size_t n_loops)
{
    pid_t loops[LOOPS_MAX];
    for (size_t i = 0; i < n_loops; i++)
        loops[i] = start_loop();
    usleep(200000);
    double rate = measure_sections(pool, section, step, seconds);
    for (size_t i = 0; i < n_loops; i++) {
        if (loops[i] > 0) {
            kill(loops[i], SIGKILL);
            waitpid(loops[i], NULL, 0);
        }
    }
    return rate;
}

int main(int argc, char **argv)
{
    size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : process_usable_cores();
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 3;
    CpuPool *pool = NULL;
    Error err = {0};
    if (!cpu_pool_create(threads, &pool, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    double step = measure_step();
    printf("sections,threads,loops,sections_per_second,share_of_idle\n");
    for (size_t s = 0; s < ARRAY_COUNT(sections); s++) {
        double idle = 0;
        for (size_t loops = 0; loops <= 4; loops += 2) {
            double rate = measure_beside(pool, &sections[s], step, seconds, loops);
            idle = loops == 0 ? rate : idle;
            printf("%s,%zu,%zu,%.0f,%.3f\n", sections[s].name, threads, loops, rate, rate / idle);
            fflush(stdout);
        }
    }
    cpu_pool_free(pool);
    return 0;
}
