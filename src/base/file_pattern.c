/* Patterns: a few pages of memory without a name in any directory, mapped over and over.
 *
 *   pattern      [ A ]
 *   a mapping    [ A | A | A | A ... ]     every A is the same physical memory
 *
 * A mapping is first reserved in one piece, so that the address range is ours, and then covered
 * copy by copy. */
#define _GNU_SOURCE /* memfd_create */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool system_error(Error *err, const char *action)
{
    return error_set(err, ERROR_IO, "cannot %s: %s", action, strerror(errno));
}

static int open_nameless(void)
{
#if defined(__linux__)
    return memfd_create("pattern", MFD_CLOEXEC);
#else
    FILE *file = tmpfile();
    if (!file)
        return -1;
    int fd = fcntl(fileno(file), F_DUPFD_CLOEXEC, 0);
    fclose(file);
    return fd;
#endif
}

bool file_pattern_open(Slice content, FilePattern *out, Error *err)
{
    *out = (FilePattern){-1, 0};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (content.len == 0 || content.len % page != 0)
        return error_set(err, ERROR_INVALID, "a pattern of %zu bytes, expected whole pages of %zu",
                         content.len, page);
    int fd = open_nameless();
    if (fd < 0)
        return system_error(err, "create a pattern");
    for (size_t done = 0; done < content.len;) {
        ssize_t n = pwrite(fd, content.ptr + done, content.len - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            system_error(err, "write a pattern");
            close(fd);
            return false;
        }
        done += (size_t)n;
    }
    *out = (FilePattern){fd, content.len};
    return true;
}

void file_pattern_close(FilePattern *pattern)
{
    if (pattern->size > 0)
        close(pattern->fd);
    *pattern = (FilePattern){-1, 0};
}

bool file_pattern_map(const FilePattern *pattern, size_t size, FileMap *out, Error *err)
{
    *out = (FileMap){0};
    if (size == 0)
        return true;
    uint8_t *data = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return system_error(err, "reserve addresses");
    for (size_t at = 0; at < size; at += pattern->size) {
        size_t left = size - at;
        void *piece = mmap(data + at, left < pattern->size ? left : pattern->size, PROT_READ,
                           MAP_SHARED | MAP_FIXED, pattern->fd, 0);
        if (piece == MAP_FAILED) {
            system_error(err, "map a pattern");
            munmap(data, size);
            return false;
        }
    }
    *out = (FileMap){data, size};
    return true;
}
