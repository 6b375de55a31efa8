/* Allocation with checked products and a fault hook. The hook is one atomic counter: tests set it
 * to n, each allocation takes one, and the one that takes the last fails. While it is 0 the cost is
 * one relaxed load. */
#include "base.h"

#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

static _Atomic uint64_t fault_countdown;
static _Atomic uint64_t fault_counted;
static _Atomic bool fault_armed;

void fault_fail_allocation(uint64_t nth)
{
    atomic_store(&fault_countdown, nth);
    atomic_store(&fault_counted, 0);
    atomic_store(&fault_armed, nth != 0);
}

uint64_t fault_allocation_count(void)
{
    return atomic_load(&fault_counted);
}

static bool fault_strikes(void)
{
    if (!atomic_load_explicit(&fault_armed, memory_order_relaxed))
        return false;
    atomic_fetch_add(&fault_counted, 1);
    uint64_t left = atomic_load(&fault_countdown);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&fault_countdown, &left, left - 1))
            return left == 1;
    }
    return false;
}

void *memory_allocate(size_t size)
{
    if (fault_strikes())
        return NULL;
    return malloc(size ? size : 1);
}

void *memory_allocate_zeroed(size_t count, size_t size)
{
    size_t bytes; /* calloc checks too, but AddressSanitizer's ends the program */
    if (!size_multiply(count, size, &bytes) || fault_strikes())
        return NULL;
    return calloc(bytes ? bytes : 1, 1);
}

void *memory_allocate_array(size_t count, size_t size)
{
    size_t bytes;
    if (!size_multiply(count, size, &bytes))
        return NULL;
    return memory_allocate(bytes);
}

void *memory_resize_array(void *old, size_t count, size_t size)
{
    size_t bytes;
    if (!size_multiply(count, size, &bytes) || fault_strikes())
        return NULL;
    return realloc(old, bytes ? bytes : 1);
}

void *memory_allocate_aligned(size_t alignment, size_t size)
{
    if (fault_strikes())
        return NULL;
    void *ptr = NULL;
    return posix_memalign(&ptr, alignment, size ? size : 1) == 0 ? ptr : NULL;
}

void *memory_allocate_huge(size_t size)
{
    bool pays = size >= MEMORY_HUGE_PAYS_BYTES;
    void *data = memory_allocate_aligned(pays ? MEMORY_HUGE_PAGE_BYTES : 64, size);
#if defined(__linux__)
    /* Streaming through 4 KiB pages loses some of the bandwidth to page walks. Advice: may fail. */
    if (data && pays)
        (void)madvise(data, size / MEMORY_HUGE_PAGE_BYTES * MEMORY_HUGE_PAGE_BYTES, MADV_HUGEPAGE);
#endif
    return data;
}

void memory_release_pages(void *start, size_t size)
{
#if defined(__linux__)
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)start + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)start + size) / page * page;
    if (first < end)
        (void)madvise((uint8_t *)start + (first - (uintptr_t)start), end - first, MADV_DONTNEED);
#else
    (void)start;
    (void)size;
#endif
}

void memory_free(void *ptr)
{
    free(ptr);
}

bool memory_grow_array(void **items, size_t count, size_t *capacity, size_t item_size)
{
    if (count < *capacity)
        return true;
    size_t wanted;
    if (!size_multiply(*capacity, 2, &wanted))
        return false;
    if (wanted < 8)
        wanted = 8;
    void *grown = memory_resize_array(*items, wanted, item_size);
    if (!grown)
        return false;
    *items = grown;
    *capacity = wanted;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    if (b > SIZE_MAX - a)
        return false;
    *out = a + b;
    return true;
}

bool size_multiply(size_t a, size_t b, size_t *out)
{
    if (a != 0 && b > SIZE_MAX / a)
        return false;
    *out = a * b;
    return true;
}

bool size_product(const int64_t *dims, size_t count, size_t *out)
{
    size_t product = 1;
    bool empty = false; /* one 0 makes the product 0, however large the others are */
    bool fits = true;
    for (size_t i = 0; i < count; i++) {
        if (dims[i] < 0)
            return false;
        empty = empty || dims[i] == 0;
        fits = fits && (uint64_t)dims[i] <= SIZE_MAX &&
               size_multiply(product, (size_t)dims[i], &product);
    }
    if (!fits && !empty)
        return false;
    *out = empty ? 0 : product;
    return true;
}
