/* base: what every room would otherwise write for itself.
 *
 * Error (a code and one line), memory that can be made to fail in tests, Slice (bytes with a
 * length), Arena (one lifetime, one free), Buffer (growing bytes with a mandatory maximum), checked
 * size arithmetic, log, clock, whole files. It knows nothing of JSON, models or sockets.
 *
 * Threads: an Error, Arena or Buffer belongs to one thread at a time; everything else is any
 * thread. Text is bytes: a Slice may hold NUL and incomplete UTF-8. */
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WARN_UNUSED __attribute__((warn_unused_result))
#define PRINTF_LIKE(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#define WARN_UNUSED
#define PRINTF_LIKE(format_at, first_at)
#endif

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- Slice ---- */

/* Borrowed bytes. ptr may be NULL only when len is 0. Not NUL-terminated. */
typedef struct Slice {
    const char *ptr;
    size_t len;
} Slice;

#define SLICE(literal) ((Slice){("" literal ""), sizeof(literal) - 1})
#define SLICE_EMPTY ((Slice){NULL, 0})
/* For printf's "%.*s", cut at what an int holds; printf also stops at a NUL. */
#define SLICE_ARG(s) (int)((s).len < INT32_MAX ? (s).len : INT32_MAX), ((s).ptr ? (s).ptr : "")

Slice slice_of(const char *c_string);
bool slice_equal(Slice a, Slice b);
int slice_compare(Slice a, Slice b); /* bytewise, like memcmp, shorter first */
bool slice_starts_with(Slice s, Slice prefix);
bool slice_ends_with(Slice s, Slice suffix);
/* Offset of the first occurrence of needle at or after from, or SIZE_MAX. An empty needle is at
 * from. */
size_t slice_find(Slice s, Slice needle, size_t from);
/* 0 to 15 for a hexadecimal digit of either case, else -1. */
int hex_digit_value(char c);
/* FNV-1a with a final avalanche; for hash tables, not for security. */
uint64_t slice_hash(Slice s);

/* ---- Error ---- */

typedef enum ErrorCode {
    ERROR_NONE = 0,
    ERROR_INVALID,     /* input breaks its format */
    ERROR_UNSUPPORTED, /* well-formed, but not something this program does */
    ERROR_NOT_FOUND,   /* a file, tensor or name is missing */
    ERROR_LIMIT,       /* a named limit was exceeded */
    ERROR_MEMORY,      /* an allocation failed */
    ERROR_IO,          /* the operating system refused */
    ERROR_USAGE,       /* wrong command line */
    ERROR_BUSY,        /* a bounded queue is full */
    ERROR_CANCELLED,   /* the caller asked to stop */
    ERROR_INTERNAL     /* our own bug, reported instead of a crash */
} ErrorCode;

enum { ERROR_MESSAGE_MAX = 512 };

/* Filled once where the fault is found. A function that succeeds does not touch it. */
typedef struct Error {
    ErrorCode code;
    char message[ERROR_MESSAGE_MAX]; /* one line, NUL-terminated, no trailing newline */
} Error;

/* Both return false, so that `return error_set(err, ...)` reads well. err may be NULL.
 * Control characters in the formatted text become '?', since parts of it come from strangers. */
bool error_set(Error *err, ErrorCode code, const char *format, ...) PRINTF_LIKE(3, 4);
bool error_no_memory(Error *err, const char *what);
/* Puts "context: " before the message. */
bool error_prefix(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* ---- Checked sizes ---- */

/* Each returns false and leaves *out alone when the result does not fit. */
bool size_add(size_t a, size_t b, size_t *out) WARN_UNUSED;
bool size_multiply(size_t a, size_t b, size_t *out) WARN_UNUSED;
/* Product of count dimensions; negative dimensions do not fit. */
bool size_product(const int64_t *dims, size_t count, size_t *out) WARN_UNUSED;

/* ---- Memory ---- */

/* malloc and friends, behind the fault hook. NULL on failure or overflow. memory_free accepts NULL.
 * memory_allocate_zeroed(0, n) and friends return a unique pointer or NULL only on failure. */
void *memory_allocate(size_t size) WARN_UNUSED;
void *memory_allocate_zeroed(size_t count, size_t size) WARN_UNUSED;
void *memory_allocate_array(size_t count, size_t size) WARN_UNUSED;
void *memory_resize_array(void *old, size_t count, size_t size) WARN_UNUSED;
/* alignment: a power of two, at least sizeof(void *). Free with memory_free. */
void *memory_allocate_aligned(size_t alignment, size_t size) WARN_UNUSED;
/* For large blocks that are read in streams: aligned to huge pages, and the system is asked to use
 * them, which it may decline. Below MEMORY_HUGE_PAYS_BYTES, where rounding the start up would waste
 * too much, aligned to 64 bytes. Free with memory_free. */
void *memory_allocate_huge(size_t size) WARN_UNUSED;
enum { MEMORY_HUGE_PAGE_BYTES = 2 << 20, MEMORY_HUGE_PAYS_BYTES = 4 * MEMORY_HUGE_PAGE_BYTES };
/* The whole pages within [start, start + size) may lose their content and their memory. */
void memory_release_pages(void *start, size_t size);
void memory_free(void *ptr);

/* Grows *items (count used, *capacity allocated, item_size each) so that one more fits.
 * Returns false on failure and leaves everything as it was. */
bool memory_grow_array(void **items, size_t count, size_t *capacity, size_t item_size) WARN_UNUSED;

/* Test hook: the nth allocation from now on (1 = next) fails once; 0 switches the hook off.
 * fault_allocation_count counts allocations since the last fault_fail_allocation call.
 * Any thread may allocate while it is armed. */
void fault_fail_allocation(uint64_t nth);
uint64_t fault_allocation_count(void);

/* ---- Arena ---- */

/* Memory with one lifetime: hand out, never give back singly. Caller-owned struct: init, use,
 * reset. reset frees everything and leaves a usable empty arena with the same maximum. */
typedef struct ArenaBlock ArenaBlock;
typedef struct Arena {
    ArenaBlock *blocks; /* newest first */
    size_t used;        /* bytes in the newest block */
    size_t total;       /* bytes allocated in all blocks */
    size_t max;
} Arena;

void arena_init(Arena *arena, size_t max_bytes);
void arena_reset(Arena *arena);
/* 16-byte aligned, not zeroed; NULL when memory or the maximum is exhausted. */
void *arena_allocate(Arena *arena, size_t size) WARN_UNUSED;
void *arena_allocate_array(Arena *arena, size_t count, size_t size) WARN_UNUSED;
/* Copies of bytes; the C string gets a NUL after its len bytes. NULL / false on failure. */
char *arena_copy_string(Arena *arena, Slice s) WARN_UNUSED;
bool arena_copy_slice(Arena *arena, Slice s, Slice *out) WARN_UNUSED;

/* ---- Buffer ---- */

/* Growing bytes with a maximum. Appends are sticky: after the first failure (memory or maximum) all
 * further appends do nothing, and the writer checks `failed` once at the end. */
typedef struct Buffer {
    char *ptr;
    size_t len;
    size_t capacity;
    size_t max;
    bool failed;
    bool over_limit; /* the failure was the maximum, not memory */
} Buffer;

void buffer_init(Buffer *buffer, size_t max_bytes);
void buffer_reset(Buffer *buffer); /* frees; the buffer is empty, usable, and not failed */
void buffer_clear(Buffer *buffer); /* keeps the memory; the buffer is empty and not failed */
void buffer_append(Buffer *buffer, const void *bytes, size_t len);
void buffer_append_slice(Buffer *buffer, Slice s);
void buffer_append_text(Buffer *buffer, const char *c_string);
void buffer_append_byte(Buffer *buffer, char byte);
void buffer_append_format(Buffer *buffer, const char *format, ...) PRINTF_LIKE(2, 3);
/* Appends len uninitialised bytes and returns where they start, or NULL when failed. */
char *buffer_extend(Buffer *buffer, size_t len);
/* Removes the first len bytes (len <= buffer->len). */
void buffer_remove_front(Buffer *buffer, size_t len);
Slice buffer_view(const Buffer *buffer);
/* Ownership of the bytes moves to the caller (memory_free); the buffer becomes empty. */
char *buffer_take(Buffer *buffer, size_t *len);
/* false with ERROR_LIMIT or ERROR_MEMORY, naming what, if an append failed. */
bool buffer_check(const Buffer *buffer, const char *what, Error *err) WARN_UNUSED;

/* ---- UTF-8 ---- */

enum { UTF8_MAX = 4 };

/* Decodes one code point at s[0..len), len >= 1. Returns its length 1..4, or 0 if the bytes are
 * ill-formed or cut off (surrogates, overlong forms and > U+10FFFF are ill-formed). */
size_t utf8_decode(const char *s, size_t len, uint32_t *code_point);
/* Writes 1..4 bytes; code_point must be a Unicode scalar value. */
size_t utf8_encode(uint32_t code_point, char out[UTF8_MAX]);
bool utf8_is_valid(Slice s);
/* Bytes that begin a character: the characters of s, where it is well-formed. */
size_t utf8_count(Slice s);
/* For ill-formed bytes at s[0..len): length of the maximal ill-formed part (>= 1), one U+FFFD each,
 * as Unicode chapter 3.9 recommends and Python and Rust do. *incomplete tells that the part is a
 * proper prefix of some character that ends with the input. */
size_t utf8_ill_formed_length(const char *s, size_t len, bool *incomplete);
/* Appends s, each maximal ill-formed part replaced by U+FFFD. */
void utf8_append_repaired(Buffer *out, Slice s);

/* ---- Log and clock ---- */

/* One line to stderr, "mlx-serve: " in front. */
void log_write(const char *format, ...) PRINTF_LIKE(1, 2);

double clock_monotonic_seconds(void);
int64_t clock_unix_milliseconds(void);

/* ---- Files ---- */

/* A whole file mapped read-only. An empty file has data NULL and size 0; a Git LFS pointer, which
 * stands for a file, is refused. */
typedef struct FileMap {
    const uint8_t *data;
    size_t size;
} FileMap;

bool file_map_open(const char *path, FileMap *out, Error *err) WARN_UNUSED;
void file_map_close(FileMap *map);
/* Tells the system that the pages inside [offset, offset + size) are not needed soon: they leave
 * this process's resident memory and are read again if touched. */
void file_map_release(const FileMap *map, size_t offset, size_t size);

/* Some bytes in memory (a whole number of pages) that can be mapped many times: each mapping
 * repeats them to any size and costs addresses, but no memory of its own. Caller-owned struct;
 * mappings outlive the pattern and end with file_map_close. */
typedef struct FilePattern {
    int fd;
    size_t size; /* 0: none */
} FilePattern;

bool file_pattern_open(Slice content, FilePattern *out, Error *err) WARN_UNUSED;
void file_pattern_close(FilePattern *pattern);
bool file_pattern_map(const FilePattern *pattern, size_t size, FileMap *out,
                      Error *err) WARN_UNUSED;

/* Reads a whole regular file of at most max_bytes into out (replacing its content). */
bool file_read(const char *path, size_t max_bytes, Buffer *out, Error *err) WARN_UNUSED;
/* The text of directory/name, copied to arena; out->ptr is NULL when there is no such file. */
bool file_read_optional(const char *directory, const char *name, size_t max_bytes, Arena *arena,
                        Slice *out, Error *err) WARN_UNUSED;
/* Writes a whole file through a temporary name and a rename, so that a reader never sees half of
 * it. */
bool file_write(const char *path, Slice content, Error *err) WARN_UNUSED;
bool file_exists(const char *path);
bool directory_exists(const char *path);
bool directory_create(const char *path, Error *err) WARN_UNUSED; /* existing is fine */
/* "directory/name"; ERROR_LIMIT when it exceeds size. */
bool path_join(char *out, size_t size, const char *directory, const char *name,
               Error *err) WARN_UNUSED;
enum { PATH_BYTES_MAX = 4096 };

/* Peak resident memory of this process in bytes (0 where unknown). */
size_t process_peak_resident_bytes(void);
/* And now (the peak where only that is known). */
size_t process_resident_bytes(void);
/* Bytes that this process could still take without swapping: what the system calls available, and
 * what its cgroup leaves (0 where unknown). */
size_t process_available_bytes(void);
/* Processors this process may use: affinity and cgroup quota respected, hyperthread siblings of one
 * core counted once; at least 1. */
size_t process_usable_cores(void);
/* The smallest CPU quota of the control groups in groups_file (/proc/self/cgroup) whose hierarchy
 * is mounted at mount (/sys/fs/cgroup), in processors, rounded up; 0 when there is none. Versions 1
 * and 2. */
size_t cgroup_quota_processors(const char *groups_file, const char *mount);
/* Bytes that they leave of their memory limits, likewise, the pages of files counted as free;
 * SIZE_MAX when there is no limit. */
size_t cgroup_memory_rest(const char *groups_file, const char *mount);

#endif
