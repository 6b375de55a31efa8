/* How many processors are really ours: the smallest of the affinity mask, the physical cores in it,
 * and the cgroup's CPU quota rounded up. Reads /proc and /sys on Linux; elsewhere asks sysconf. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#ifdef __linux__
static const char GROUPS_FILE[] = "/proc/self/cgroup", GROUPS_MOUNT[] = "/sys/fs/cgroup";

/* A line of /proc/self/status in bytes, VmHWM (peak) or VmRSS; 0 if it cannot be read. getrusage
 * would count the memory of the process that started this one: the kernel keeps its maximum across
 * fork and exec. */
static size_t read_memory_line(const char *name)
{
    FILE *file = fopen("/proc/self/status", "r");
    if (!file)
        return 0;
    char line[128];
    size_t length = strlen(name);
    unsigned long kilobytes = 0;
    while (kilobytes == 0 && fgets(line, sizeof(line), file)) {
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            kilobytes = strtoul(line + length + 1, NULL, 10);
    }
    fclose(file);
    return (size_t)kilobytes * 1024;
}
#endif

size_t process_peak_resident_bytes(void)
{
#ifdef __linux__
    size_t peak = read_memory_line("VmHWM");
    if (peak > 0)
        return peak;
#endif
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
#ifdef __APPLE__
    return (size_t)usage.ru_maxrss;
#else
    return (size_t)usage.ru_maxrss * 1024;
#endif
}

size_t process_resident_bytes(void)
{
#ifdef __linux__
    return read_memory_line("VmRSS");
#else
    return process_peak_resident_bytes(); /* nothing better without the system's own calls */
#endif
}

#ifdef __linux__
/* First processor of the group of siblings that share a core with this one; -1 if unknown. */
static int first_sibling(int processor)
{
    char path[128];
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             processor);
    FILE *file = fopen(path, "r");
    if (!file)
        return -1;
    int first = -1;
    if (fscanf(file, "%d", &first) != 1)
        first = -1;
    fclose(file);
    return first;
}

/* A core counts once: at the first of its siblings that the affinity mask allows. */
static size_t count_allowed_cores(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return 0;
    cpu_set_t seen;
    CPU_ZERO(&seen);
    size_t cores = 0;
    for (int i = 0; i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &allowed))
            continue;
        int core = first_sibling(i);
        if (core < 0 || core >= CPU_SETSIZE)
            core = i;
        if (!CPU_ISSET(core, &seen)) {
            CPU_SET(core, &seen);
            cores++;
        }
    }
    return cores;
}

static size_t read_available(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file)
        return 0;
    char line[128];
    unsigned long long kilobytes = 0;
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "MemAvailable: %llu", &kilobytes) == 1)
            break;
    }
    fclose(file);
    return kilobytes < SIZE_MAX / 1024 ? (size_t)kilobytes * 1024 : 0;
}
#endif

size_t process_available_bytes(void)
{
#ifdef __linux__
    size_t available = read_available();
    size_t rest = cgroup_memory_rest(GROUPS_FILE, GROUPS_MOUNT);
    rest = rest > 0 ? rest : 1; /* 0 would say unknown */
    if (available > 0)
        return available < rest ? available : rest;
#endif
#if defined(_SC_PHYS_PAGES)
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t bytes;
    if (pages > 0 && page > 0 && size_multiply((size_t)pages, (size_t)page, &bytes))
        return bytes;
#endif
    return 0;
}

size_t process_usable_cores(void)
{
    size_t cores = 0;
#ifdef __linux__
    cores = count_allowed_cores();
    size_t quota = cgroup_quota_processors(GROUPS_FILE, GROUPS_MOUNT);
    if (quota > 0 && quota < cores)
        cores = quota;
#endif
    if (cores == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        cores = online > 0 ? (size_t)online : 1;
    }
    return cores;
}
