/* The CPU quota of this process's control groups.
 *
 * /proc/self/cgroup has a line for each hierarchy: "0::/a/b" for version 2, "4:cpu,cpuacct:/a/b"
 * for the CPU controller of version 1. A quota may stand at any level above the process, and the
 * smallest counts; inside a container the path may be one of the host, of which only the mount's
 * root is visible. So every level is tried, from the named one up, and what is missing is skipped.
 *
 *   version 2   MOUNT/a/b/cpu.max                   "50000 100000" or "max 100000"
 *   version 1   MOUNT/cpu/a/b/cpu.cfs_quota_us      -1: none, and cpu.cfs_period_us */
#include "base.h"

#include <stdio.h>
#include <string.h>

enum { LINE_BYTES_MAX = 4096 };

static bool read_number(const char *directory, const char *name, long *out)
{
    char path[PATH_BYTES_MAX];
    if (!path_join(path, sizeof(path), directory, name, NULL))
        return false;
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    bool ok = fscanf(file, "%ld", out) == 1;
    fclose(file);
    return ok;
}

/* Processors of one level, rounded up; 0: no quota there. */
static size_t read_level(const char *directory, bool is_v2)
{
    long quota = 0, period = 0;
    if (is_v2) {
        char path[PATH_BYTES_MAX];
        if (!path_join(path, sizeof(path), directory, "cpu.max", NULL))
            return 0;
        FILE *file = fopen(path, "r");
        if (!file)
            return 0;
        if (fscanf(file, "%ld %ld", &quota, &period) != 2) /* "max" is no number */
            quota = 0;
        fclose(file);
    } else if (!read_number(directory, "cpu.cfs_quota_us", &quota) ||
               !read_number(directory, "cpu.cfs_period_us", &period)) {
        return 0;
    }
    if (quota <= 0 || period <= 0)
        return 0;
    return (size_t)((quota - 1) / period + 1);
}

static size_t smaller_quota(size_t a, size_t b)
{
    if (a == 0 || b == 0)
        return a + b;
    return a < b ? a : b;
}

/* The smallest quota from mount + path up to mount. */
static size_t walk_up(const char *mount, const char *path, bool is_v2)
{
    char directory[PATH_BYTES_MAX];
    size_t root = strlen(mount), smallest = 0;
    int length = snprintf(directory, sizeof(directory), "%s%s", mount, path);
    if (length < 0 || (size_t)length >= sizeof(directory))
        return read_level(mount, is_v2);
    for (;;) {
        smallest = smaller_quota(smallest, read_level(directory, is_v2));
        char *slash = strrchr(directory, '/');
        if (!slash || (size_t)(slash - directory) < root || strlen(directory) <= root)
            return smallest;
        *slash = '\0';
    }
}

static bool names_cpu(const char *controllers)
{
    size_t length = strlen(controllers);
    for (size_t at = 0; at < length;) {
        size_t end = at + strcspn(controllers + at, ",");
        if (end - at == 3 && memcmp(controllers + at, "cpu", 3) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

size_t cgroup_quota_processors(const char *groups_file, const char *mount)
{
    FILE *file = fopen(groups_file, "r");
    if (!file)
        return 0;
    char line[LINE_BYTES_MAX], v1_mount[PATH_BYTES_MAX];
    size_t smallest = 0;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *controllers++ = '\0';
        *path++ = '\0';
        if (*controllers == '\0')
            smallest = smaller_quota(smallest, walk_up(mount, path, true));
        else if (names_cpu(controllers) &&
                 path_join(v1_mount, sizeof(v1_mount), mount, "cpu", NULL))
            smallest = smaller_quota(smallest, walk_up(v1_mount, path, false));
    }
    fclose(file);
    return smallest;
}
