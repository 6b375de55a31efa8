/* Whole files, paths, the log, the clock and the process's facts. */
#include "base.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
/* cmocka needs what is above */
#include <cmocka.h>

static char directory[] = "/tmp/mlx-serve-test-XXXXXX";

static int directory_open(void **state)
{
    (void)state;
    return mkdtemp(directory) ? 0 : -1;
}

static int directory_close(void **state)
{
    (void)state;
    return rmdir(directory); /* fails when a test left something behind */
}

static const char *place(const char *name)
{
    static char path[PATH_BYTES_MAX];
    Error err = {0};
    if (!path_join(path, sizeof(path), directory, name, &err))
        fail_msg("%s", err.message);
    return path;
}

static void test_write_and_read(void **state)
{
    (void)state;
    const char *path = place("file");
    Error err = {0};
    Buffer out;
    buffer_init(&out, 1 << 20);
    static const Slice contents[] = {{"first\0with NUL", 14}, {"", 0}, {NULL, 0}, {"second", 6}};
    for (size_t i = 0; i < ARRAY_COUNT(contents); i++) {
        assert_true(file_write(path, contents[i], &err));
        buffer_append_text(&out, "what was there before");
        assert_true(file_read(path, 1000, &out, &err));
        assert_true(slice_equal(buffer_view(&out), contents[i]));
    }
    assert_true(file_exists(path));
    assert_false(directory_exists(path));
    assert_false(file_exists(place("file.partial")));
    assert_int_equal(unlink(place("file")), 0);
    assert_false(file_exists(place("file")));
    buffer_reset(&out);
}

static void test_read_limits(void **state)
{
    (void)state;
    const char *path = place("file");
    Error err = {0};
    Buffer out;
    buffer_init(&out, 1 << 20);
    assert_true(file_write(path, SLICE("0123456789"), &err));
    assert_true(file_read(path, 10, &out, &err));
    assert_false(file_read(path, 9, &out, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_int_equal(out.len, 0); /* nothing half-read stays */
    buffer_reset(&out);

    buffer_init(&out, 9);
    assert_false(file_read(path, 100, &out, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_false(out.failed);
    buffer_reset(&out);

    buffer_init(&out, 100);
    fault_fail_allocation(1);
    bool ok = file_read(path, 100, &out, &err);
    fault_fail_allocation(0);
    assert_false(ok);
    assert_int_equal(err.code, ERROR_MEMORY);
    buffer_reset(&out);
    assert_int_equal(unlink(path), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    Error err = {0};
    Buffer out;
    FileMap map;
    buffer_init(&out, 100);
    assert_false(file_read(place("missing"), 100, &out, &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    assert_false(file_map_open(place("missing"), &map, &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    assert_false(file_read(directory, 100, &out, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_false(file_map_open(directory, &map, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_null(map.data);
    assert_false(file_write(place("no/such/directory"), SLICE("x"), &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    file_map_close(&map);

    assert_true(file_write(place("pointer"),
                           SLICE("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                           &err));
    assert_false(file_map_open(place("pointer"), &map, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_non_null(strstr(err.message, "git lfs pull"));
    assert_null(map.data);
    assert_int_equal(unlink(place("pointer")), 0);

    /* A pipe nobody writes to is refused at once instead of waited for. */
    assert_int_equal(mkfifo(place("pipe"), 0600), 0);
    assert_false(file_read(place("pipe"), 100, &out, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_int_equal(unlink(place("pipe")), 0);

    /* A directory in the way: the temporary file goes. */
    assert_true(directory_create(place("taken"), &err));
    assert_true(directory_create(place("taken"), &err));
    assert_true(directory_exists(place("taken")));
    assert_false(file_write(place("taken"), SLICE("x"), &err));
    assert_int_equal(err.code, ERROR_IO);
    assert_false(file_exists(place("taken.partial")));
    assert_int_equal(rmdir(place("taken")), 0);
    assert_false(directory_create(place("a/b"), &err));
    assert_int_equal(err.code, ERROR_NOT_FOUND);
    buffer_reset(&out);
}

static void test_map(void **state)
{
    (void)state;
    const char *path = place("file");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = 5 * page + 123;
    unsigned char *content = memory_allocate(size);
    assert_non_null(content);
    for (size_t i = 0; i < size; i++)
        content[i] = (unsigned char)(i * 7 + i / page);
    Error err = {0};
    FileMap map;
    assert_true(file_write(path, (Slice){(const char *)content, size}, &err));
    assert_true(file_map_open(path, &map, &err));
    assert_int_equal(map.size, size);
    static const struct {
        size_t offset, size; /* in pages and, for sizes of 0, to the end */
    } ranges[] = {{0, 1}, {1, 2}, {0, 5}, {3, SIZE_MAX}, {6, 1}, {SIZE_MAX, 1}, {0, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++) {
        size_t offset = ranges[i].offset == SIZE_MAX ? SIZE_MAX : ranges[i].offset * page;
        size_t bytes = ranges[i].size == SIZE_MAX ? SIZE_MAX : ranges[i].size * page;
        file_map_release(&map, offset, bytes);
        assert_memory_equal(map.data, content, size);
    }
    file_map_close(&map);
    assert_null(map.data);
    file_map_close(&map);
    memory_free(content);

    assert_true(file_write(path, SLICE_EMPTY, &err));
    assert_true(file_map_open(path, &map, &err));
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    file_map_release(&map, 0, 100);
    file_map_close(&map);
    assert_int_equal(unlink(path), 0);
}

/* Releasing "to the end and more" leaves the memory behind the mapping alone. */
static void test_map_release_stays_inside(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    memset(memory, 'm', 4 * page);
    const FileMap map = {(const uint8_t *)memory, 2 * page - 10};
    file_map_release(&map, page, 3 * page);
    file_map_release(&map, 3 * page, page);
    file_map_release(&map, SIZE_MAX - page, 2 * page);
    for (size_t i = 2 * page; i < 4 * page; i++)
        assert_int_equal(memory[i], 'm');
    assert_int_equal(munmap(memory, 4 * page), 0);
}

/* A pattern shorter than the mapping repeats, one longer is cut, and releasing loses nothing. */
static void test_pattern(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = 2 * page;
    char *content = memory_allocate(size);
    assert_non_null(content);
    for (size_t i = 0; i < size; i++)
        content[i] = (char)(i * 31 + i / page);
    FilePattern pattern;
    Error err = {0};
    assert_true(file_pattern_open((Slice){content, size}, &pattern, &err));
    static const size_t extra[] = {0, 1, 100};
    for (size_t times = 0; times < 4; times++) {
        for (size_t e = 0; e < ARRAY_COUNT(extra); e++) {
            FileMap map;
            size_t bytes = times * size + extra[e];
            assert_true(file_pattern_map(&pattern, bytes, &map, &err));
            assert_int_equal(map.size, bytes);
            for (int round = 0; round < 2; round++) {
                for (size_t i = 0; i < bytes; i++)
                    assert_int_equal((char)map.data[i], content[i % size]);
                file_map_release(&map, 0, bytes);
            }
            file_map_close(&map);
        }
    }
    FileMap map;
    assert_true(file_pattern_map(&pattern, page, &map, &err));
    file_pattern_close(&pattern);
    file_pattern_close(&pattern);
    assert_memory_equal(map.data, content, page);
    file_map_close(&map);

    assert_false(file_pattern_open((Slice){content, page + 1}, &pattern, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_false(file_pattern_open(SLICE_EMPTY, &pattern, &err));
    file_pattern_close(&pattern);
    memory_free(content);
}

static void test_path_join(void **state)
{
    (void)state;
    char out[12];
    Error err = {0};
    assert_true(path_join(out, sizeof(out), "dir", "name", &err));
    assert_string_equal(out, "dir/name");
    assert_true(path_join(out, sizeof(out), "dir/", "name", &err));
    assert_string_equal(out, "dir/name");
    assert_true(path_join(out, sizeof(out), "/", "name", &err));
    assert_string_equal(out, "/name");
    assert_true(path_join(out, sizeof(out), "", "name", &err));
    assert_string_equal(out, "name");
    assert_true(path_join(out, sizeof(out), "dir", "1234567", &err));
    assert_string_equal(out, "dir/1234567");
    assert_false(path_join(out, sizeof(out), "dir", "12345678", &err));
    assert_int_equal(err.code, ERROR_LIMIT);
}

/* What log_write puts on stderr. */
static void capture_log(const char *text, char *out, size_t size)
{
    const char *path = place("stderr");
    fflush(stderr);
    int saved = dup(2);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(saved >= 0 && fd >= 0);
    dup2(fd, 2);
    log_write("%s", text);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    ssize_t len = pread(fd, out, size - 1, 0);
    assert_true(len >= 0);
    out[len] = '\0';
    close(fd);
    assert_int_equal(unlink(path), 0);
}

static void test_log(void **state)
{
    (void)state;
    char out[4096];
    capture_log("two\nlines \x1b[31m", out, sizeof(out));
    assert_string_equal(out, "mlx-serve: two?lines ?[31m\n");
    char big[3000];
    memset(big, 'x', sizeof(big));
    big[sizeof(big) - 1] = '\0';
    capture_log(big, out, sizeof(out));
    assert_true(strlen(out) < 1100 && out[strlen(out) - 1] == '\n');
}

static void test_clock_and_process(void **state)
{
    (void)state;
    double start = clock_monotonic_seconds();
    usleep(2000);
    double passed = clock_monotonic_seconds() - start;
    assert_true(passed >= 0.002 && passed < 10);
    assert_true(clock_unix_milliseconds() > INT64_C(1700000000000));
    assert_true(process_peak_resident_bytes() > 100 * 1024);
    assert_in_range(process_usable_cores(), 1, 100000);
    assert_true(process_available_bytes() > 1 << 20);
    assert_true((long)process_usable_cores() <= sysconf(_SC_NPROCESSORS_CONF));
}

/* A fake hierarchy: each case writes /proc/self/cgroup's text and some files below the mount. */
typedef struct GroupCase {
    const char *groups;
    const char *files[6][2]; /* name below the mount, content */
    size_t expected;
} GroupCase;

static const GroupCase quota_cases[] = {
    {"0::/a/b\n", {{"a/b/cpu.max", "max 100000\n"}}, 0},
    {"0::/a/b\n", {{"a/b/cpu.max", "150000 100000\n"}}, 2},
    {"0::/a/b\n", {{"a/b/cpu.max", "max 100000\n"}, {"a/cpu.max", "100000 100000\n"}}, 1},
    {"0::/a/b\n", {{"a/b/cpu.max", "50000 100000\n"}, {"a/cpu.max", "400000 100000\n"}}, 1},
    {"0::/not/here\n", {{"cpu.max", "300000 100000\n"}}, 3},
    {"0::/\n", {{"cpu.max", "garbage\n"}}, 0},
    {"4:cpu,cpuacct:/a\n0::/\n",
     {{"cpu/a/cpu.cfs_quota_us", "250000\n"}, {"cpu/a/cpu.cfs_period_us", "100000\n"}},
     3},
    {"4:cpuacct,cpu:/a\n",
     {{"cpu/a/cpu.cfs_quota_us", "-1\n"}, {"cpu/a/cpu.cfs_period_us", "100000\n"}},
     0},
    {"4:cpuset:/a\n",
     {{"cpu/a/cpu.cfs_quota_us", "100000\n"}, {"cpu/a/cpu.cfs_period_us", "100000\n"}},
     0},
    {"4:cpu:/x/y\n",
     {{"cpu/cpu.cfs_quota_us", "100000\n"}, {"cpu/cpu.cfs_period_us", "100000\n"}},
     1},
    {"no colon\n4:\n\n", {{"cpu.max", "100000 100000\n"}}, 0},
};

static const GroupCase memory_cases[] = {
    {"0::/a/b\n", {{"a/b/memory.max", "max\n"}, {"a/b/memory.current", "7\n"}}, SIZE_MAX},
    {"0::/a/b\n", {{"a/b/memory.max", "1000\n"}, {"a/b/memory.current", "700\n"}}, 300},
    {"0::/a/b\n", {{"a/b/memory.max", "1000\n"}, {"a/b/memory.current", "1001\n"}}, 0},
    {"0::/a/b\n", {{"a/b/memory.max", "1000\n"}}, SIZE_MAX},
    /* Pages of files are free, whatever lies in a tmpfs is not. */
    {"0::/a/b\n",
     {{"a/b/memory.max", "1000\n"},
      {"a/b/memory.current", "900\n"},
      {"a/b/memory.stat", "anon 100\nfile 800\nshmem 350\ninactive_file 400\nactive_file 50\n"}},
     550},
    {"0::/a/b\n",
     {{"a/b/memory.max", "1000\n"},
      {"a/b/memory.current", "900\n"},
      {"a/b/memory.stat", "inactive_file 901\n"}},
     1000},
    /* The narrowest level counts, wherever it stands. */
    {"0::/a/b\n",
     {{"a/b/memory.max", "1000\n"},
      {"a/b/memory.current", "100\n"},
      {"a/memory.max", "2000\n"},
      {"a/memory.current", "1900\n"}},
     100},
    {"0::/not/here\n", {{"memory.max", "1000\n"}, {"memory.current", "1\n"}}, 999},
    {"4:memory:/a\n0::/\n",
     {{"memory/a/memory.limit_in_bytes", "1000\n"},
      {"memory/a/memory.usage_in_bytes", "900\n"},
      {"memory/a/memory.stat", "active_file 1\ntotal_inactive_file 30\ntotal_active_file 20\n"}},
     150},
    {"4:cpu:/a\n",
     {{"memory/a/memory.limit_in_bytes", "1000\n"}, {"memory/a/memory.usage_in_bytes", "9\n"}},
     SIZE_MAX},
};

static void run_group_cases(const GroupCase *cases, size_t count, size_t none,
                            size_t (*read)(const char *groups_file, const char *mount))
{
    static const char *const directories[] = {"mount",        "mount/cpu",      "mount/cpu/a",
                                              "mount/memory", "mount/memory/a", "mount/a",
                                              "mount/a/b"};
    Error err = {0};
    char mount[PATH_BYTES_MAX], groups[PATH_BYTES_MAX], name[64];
    snprintf(mount, sizeof(mount), "%s", place("mount"));
    snprintf(groups, sizeof(groups), "%s", place("groups"));
    for (size_t i = 0; i < ARRAY_COUNT(directories); i++)
        assert_true(directory_create(place(directories[i]), &err));
    for (size_t i = 0; i < count; i++) {
        const GroupCase *c = &cases[i];
        assert_true(file_write(groups, slice_of(c->groups), &err));
        for (size_t f = 0; f < ARRAY_COUNT(c->files) && c->files[f][0]; f++) {
            snprintf(name, sizeof(name), "mount/%s", c->files[f][0]);
            assert_true(file_write(place(name), slice_of(c->files[f][1]), &err));
        }
        size_t found = read(groups, mount);
        if (found != c->expected)
            fail_msg("case %zu: %zu, expected %zu", i, found, c->expected);
        for (size_t f = 0; f < ARRAY_COUNT(c->files) && c->files[f][0]; f++) {
            snprintf(name, sizeof(name), "mount/%s", c->files[f][0]);
            assert_int_equal(unlink(place(name)), 0);
        }
    }
    assert_int_equal(unlink(groups), 0);
    assert_int_equal(read(groups, mount), none);
    for (size_t i = ARRAY_COUNT(directories); i-- > 0;)
        assert_int_equal(rmdir(place(directories[i])), 0);
}

static void test_cgroup_quota(void **state)
{
    (void)state;
    run_group_cases(quota_cases, ARRAY_COUNT(quota_cases), 0, cgroup_quota_processors);
}

static void test_cgroup_memory(void **state)
{
    (void)state;
    run_group_cases(memory_cases, ARRAY_COUNT(memory_cases), SIZE_MAX, cgroup_memory_rest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_and_read),
        cmocka_unit_test(test_read_limits),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_map_release_stays_inside),
        cmocka_unit_test(test_pattern),
        cmocka_unit_test(test_path_join),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_cgroup_quota),
        cmocka_unit_test(test_cgroup_memory),
        cmocka_unit_test(test_clock_and_process),
    };
    return cmocka_run_group_tests(tests, directory_open, directory_close);
}
