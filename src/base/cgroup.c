/* What the control groups of this process leave it: processors and memory.
 *
 * /proc/self/cgroup has a line for each hierarchy: "0::/a/b" for version 2, "4:cpu,cpuacct:/a/b"
 * for the CPU controller of version 1. A limit may stand at any level above the process, and the
 * smallest rest counts; inside a container the path may be one of the host, of which only the
 * mount's root is visible. So every level is tried, from the named one up, and what is missing is
 * skipped.
 *
 *   version 2   MOUNT/a/b/cpu.max                   "50000 100000" or "max 100000"
 *               MOUNT/a/b/memory.max                bytes or "max"; memory.current, memory.stat
 *   version 1   MOUNT/cpu/a/b/cpu.cfs_quota_us      -1: none, and cpu.cfs_period_us
 *               MOUNT/memory/a/b/memory.limit_in_bytes, memory.usage_in_bytes, memory.stat */
#include "base.h"

#include <stdio.h>
#include <string.h>

enum { LINE_BYTES_MAX = 4096 };

/* What one level leaves; SIZE_MAX: it has no limit. */
typedef size_t (*ReadLevel)(const char *directory, bool is_v2);

static FILE *open_file(const char *directory, const char *name)
{
    char path[PATH_BYTES_MAX];
    return path_join(path, sizeof(path), directory, name, NULL) ? fopen(path, "r") : NULL;
}

/* ---- Processors ---- */

static bool read_number(const char *directory, const char *name, long *out)
{
    FILE *file = open_file(directory, name);
    if (!file)
        return false;
    bool ok = fscanf(file, "%ld", out) == 1;
    fclose(file);
    return ok;
}

/* Rounded up. */
static size_t read_processors(const char *directory, bool is_v2)
{
    long quota = 0, period = 0;
    if (is_v2) {
        FILE *file = open_file(directory, "cpu.max");
        if (!file)
            return SIZE_MAX;
        if (fscanf(file, "%ld %ld", &quota, &period) != 2) /* "max" is no number */
            quota = 0;
        fclose(file);
    } else if (!read_number(directory, "cpu.cfs_quota_us", &quota) ||
               !read_number(directory, "cpu.cfs_period_us", &period)) {
        return SIZE_MAX;
    }
    if (quota <= 0 || period <= 0)
        return SIZE_MAX;
    return (size_t)((quota - 1) / period + 1);
}

/* ---- Memory ---- */

/* SIZE_MAX: not there, or no number. */
static size_t read_bytes(const char *directory, const char *name)
{
    unsigned long long value = 0;
    FILE *file = open_file(directory, name);
    if (!file)
        return SIZE_MAX;
    bool ok = fscanf(file, "%llu", &value) == 1 && value < SIZE_MAX;
    fclose(file);
    return ok ? (size_t)value : SIZE_MAX;
}

/* Pages of files, which the system takes back before it fails an allocation. Those of a tmpfs stand
 * elsewhere. Version 1 counts the levels below only in the total. */
static size_t read_file_pages(const char *directory, bool is_v2)
{
    const char *const active = is_v2 ? "active_file" : "total_active_file";
    const char *const inactive = is_v2 ? "inactive_file" : "total_inactive_file";
    char line[LINE_BYTES_MAX], name[64];
    size_t sum = 0;
    FILE *file = open_file(directory, "memory.stat");
    if (!file)
        return 0;
    while (fgets(line, sizeof(line), file)) {
        unsigned long long value;
        if (sscanf(line, "%63s %llu", name, &value) == 2 && value < SIZE_MAX - sum &&
            (strcmp(name, active) == 0 || strcmp(name, inactive) == 0))
            sum += (size_t)value;
    }
    fclose(file);
    return sum;
}

static size_t read_memory(const char *directory, bool is_v2)
{
    size_t max = read_bytes(directory, is_v2 ? "memory.max" : "memory.limit_in_bytes");
    size_t used = read_bytes(directory, is_v2 ? "memory.current" : "memory.usage_in_bytes");
    if (max == SIZE_MAX || used == SIZE_MAX)
        return SIZE_MAX;
    size_t files = read_file_pages(directory, is_v2);
    used -= files < used ? files : used;
    return used < max ? max - used : 0;
}

/* ---- The walk ---- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The least that a level leaves, from mount + path up to mount. */
static size_t walk_up(const char *mount, const char *path, bool is_v2, ReadLevel read_level)
{
    char directory[PATH_BYTES_MAX];
    size_t root = strlen(mount), least = SIZE_MAX;
    int length = snprintf(directory, sizeof(directory), "%s%s", mount, path);
    if (length < 0 || (size_t)length >= sizeof(directory))
        return read_level(mount, is_v2);
    for (;;) {
        least = smaller(least, read_level(directory, is_v2));
        char *slash = strrchr(directory, '/');
        if (!slash || (size_t)(slash - directory) < root || strlen(directory) <= root)
            return least;
        *slash = '\0';
    }
}

static bool names(const char *controllers, const char *controller)
{
    size_t length = strlen(controllers), wanted = strlen(controller);
    for (size_t at = 0; at < length;) {
        size_t end = at + strcspn(controllers + at, ",");
        if (end - at == wanted && memcmp(controllers + at, controller, wanted) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

static size_t walk_groups(const char *groups_file, const char *mount, const char *controller,
                          ReadLevel read_level)
{
    FILE *file = fopen(groups_file, "r");
    if (!file)
        return SIZE_MAX;
    char line[LINE_BYTES_MAX], v1_mount[PATH_BYTES_MAX];
    size_t least = SIZE_MAX;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *controllers++ = '\0';
        *path++ = '\0';
        if (*controllers == '\0')
            least = smaller(least, walk_up(mount, path, true, read_level));
        else if (names(controllers, controller) &&
                 path_join(v1_mount, sizeof(v1_mount), mount, controller, NULL))
            least = smaller(least, walk_up(v1_mount, path, false, read_level));
    }
    fclose(file);
    return least;
}

size_t cgroup_quota_processors(const char *groups_file, const char *mount)
{
    size_t least = walk_groups(groups_file, mount, "cpu", read_processors);
    return least < SIZE_MAX ? least : 0;
}

size_t cgroup_memory_rest(const char *groups_file, const char *mount)
{
    return walk_groups(groups_file, mount, "memory", read_memory);
}
