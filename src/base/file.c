#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool io_error(Error *err, const char *path, const char *action)
{
    int number = errno;
    ErrorCode code = number == ENOENT || number == ENOTDIR ? ERROR_NOT_FOUND : ERROR_IO;
    return error_set(err, code, "%s: cannot %s: %s", path, action, strerror(number));
}

/* Opens a regular file for reading and tells its size; -1 on error. */
static int open_regular(const char *path, size_t *size, Error *err)
{
    /* Without O_NONBLOCK, opening a pipe would wait for a writer before it could be refused. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        io_error(err, path, "open");
        return -1;
    }
    struct stat info;
    if (fstat(fd, &info) != 0) {
        io_error(err, path, "stat");
    } else if (!S_ISREG(info.st_mode)) {
        error_set(err, ERROR_INVALID, "%s: not a regular file", path);
    } else {
        *size = (size_t)info.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

/* What "git clone" leaves in a large file's place where Git LFS is not installed. */
static bool is_lfs_pointer(const FileMap *map)
{
    enum { POINTER_BYTES_MAX = 1024 };
    Slice text = {(const char *)map->data, map->size};
    return map->size < POINTER_BYTES_MAX &&
           slice_starts_with(text, SLICE("version https://git-lfs.github.com/spec/"));
}

bool file_map_open(const char *path, FileMap *out, Error *err)
{
    *out = (FileMap){0};
    size_t size = 0;
    int fd = open_regular(path, &size, err);
    if (fd < 0)
        return false;
    void *data = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (data == MAP_FAILED) {
        io_error(err, path, "map");
        close(fd);
        return false;
    }
    close(fd);
    *out = (FileMap){data, size};
    if (!is_lfs_pointer(out))
        return true;
    file_map_close(out);
    return error_set(err, ERROR_INVALID,
                     "%s: a Git LFS pointer in place of the file (\"git lfs pull\" fetches it)",
                     path);
}

void file_map_close(FileMap *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    *map = (FileMap){0};
}

void file_map_release(const FileMap *map, size_t offset, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t start = (offset + page - 1) / page * page;
    /* Only whole pages, and never one beyond the mapping: it may be someone else's. */
    if (offset > map->size || size > map->size - offset)
        size = offset < map->size ? map->size - offset : 0;
    size_t end = offset + size;
    if (end < map->size)
        end = end / page * page;
    if (map->data && start < end)
        madvise((void *)(uintptr_t)(map->data + start), end - start, MADV_DONTNEED);
}

bool file_read(const char *path, size_t max_bytes, Buffer *out, Error *err)
{
    size_t size = 0;
    int fd = open_regular(path, &size, err);
    if (fd < 0)
        return false;
    bool ok = false;
    buffer_clear(out);
    if (size > max_bytes) {
        error_set(err, ERROR_LIMIT, "%s: %zu bytes, at most %zu are read", path, size, max_bytes);
        goto cleanup;
    }
    char *to = buffer_extend(out, size);
    if (!buffer_check(out, path, err))
        goto cleanup;
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, to + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            io_error(err, path, "read");
            goto cleanup;
        }
        if (n == 0) {
            error_set(err, ERROR_IO, "%s: shrank while it was read", path);
            goto cleanup;
        }
        done += (size_t)n;
    }
    ok = true;
cleanup:
    close(fd);
    if (!ok)
        buffer_clear(out);
    return ok;
}

bool file_read_optional(const char *directory, const char *name, size_t max_bytes, Arena *arena,
                        Slice *out, Error *err)
{
    char path[PATH_BYTES_MAX];
    Buffer text;
    *out = SLICE_EMPTY;
    if (!path_join(path, sizeof(path), directory, name, err))
        return false;
    if (!file_exists(path))
        return true;
    buffer_init(&text, max_bytes);
    bool ok = file_read(path, max_bytes, &text, err);
    if (ok && !arena_copy_slice(arena, buffer_view(&text), out))
        ok = error_no_memory(err, name);
    buffer_reset(&text);
    return ok;
}

bool file_write(const char *path, Slice content, Error *err)
{
    char temporary[PATH_BYTES_MAX + 16];
    snprintf(temporary, sizeof(temporary), "%s.partial", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return io_error(err, temporary, "create");
    for (size_t done = 0; done < content.len;) {
        ssize_t n = write(fd, content.ptr + done, content.len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            io_error(err, temporary, "write");
            close(fd);
            unlink(temporary);
            return false;
        }
        done += (size_t)n;
    }
    if (close(fd) != 0 || rename(temporary, path) != 0) {
        io_error(err, path, "write");
        unlink(temporary);
        return false;
    }
    return true;
}

bool file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

bool directory_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool directory_create(const char *path, Error *err)
{
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && directory_exists(path)))
        return true;
    return io_error(err, path, "create directory");
}

bool path_join(char *out, size_t size, const char *directory, const char *name, Error *err)
{
    size_t len = strlen(directory);
    const char *separator = len == 0 || directory[len - 1] == '/' ? "" : "/";
    int written = snprintf(out, size, "%s%s%s", directory, separator, name);
    if (written < 0 || (size_t)written >= size)
        return error_set(err, ERROR_LIMIT, "%.200s: path too long", directory);
    return true;
}
