/* A list of blocks, newest first; allocation bumps `used` in the newest. Blocks double from 4 KiB
 * to 1 MiB; a larger request gets a block of its own behind the newest, so that the newest's free
 * tail is not lost. Under AddressSanitizer the bytes not yet handed out are poisoned. */
#include "base.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_POISONS 1
#endif
#endif
#ifdef ARENA_POISONS
#include <sanitizer/asan_interface.h>
#define POISON(ptr, size) ASAN_POISON_MEMORY_REGION(ptr, size)
#define UNPOISON(ptr, size) ASAN_UNPOISON_MEMORY_REGION(ptr, size)
#else
#define POISON(ptr, size) ((void)(ptr), (void)(size))
#define UNPOISON(ptr, size) ((void)(ptr), (void)(size))
#endif

enum { ARENA_ALIGNMENT = 16, ARENA_BLOCK_MIN = 4096, ARENA_BLOCK_MAX = 1 << 20 };

struct ArenaBlock {
    ArenaBlock *next;
    size_t size; /* bytes after this header */
    _Alignas(16) char data[];
};

void arena_init(Arena *arena, size_t max_bytes)
{
    *arena = (Arena){.max = max_bytes};
}

void arena_reset(Arena *arena)
{
    for (ArenaBlock *block = arena->blocks; block;) {
        ArenaBlock *next = block->next;
        UNPOISON(block->data, block->size);
        memory_free(block);
        block = next;
    }
    arena_init(arena, arena->max);
}

static ArenaBlock *add_block(Arena *arena, size_t size)
{
    if (size > arena->max || arena->total > arena->max - size)
        return NULL;
    ArenaBlock *block = memory_allocate(sizeof(ArenaBlock) + size);
    if (!block)
        return NULL;
    block->size = size;
    block->next = NULL;
    POISON(block->data, size);
    arena->total += size;
    return block;
}

/* Gives a large request its own block, placed second so that the newest stays in use. */
static void *allocate_alone(Arena *arena, size_t size)
{
    ArenaBlock *block = add_block(arena, size);
    if (!block)
        return NULL;
    if (arena->blocks) {
        block->next = arena->blocks->next;
        arena->blocks->next = block;
    } else {
        arena->blocks = block;
        arena->used = size;
    }
    UNPOISON(block->data, size);
    return block->data;
}

void *arena_allocate(Arena *arena, size_t size)
{
    if (size > SIZE_MAX / 2)
        return NULL;
    size_t rounded = (size + ARENA_ALIGNMENT - 1) & ~(size_t)(ARENA_ALIGNMENT - 1);
    if (rounded == 0)
        rounded = ARENA_ALIGNMENT;
    if (!arena->blocks || rounded > arena->blocks->size - arena->used) {
        if (rounded > ARENA_BLOCK_MAX / 4)
            return allocate_alone(arena, rounded);
        size_t wanted = arena->total < ARENA_BLOCK_MIN ? ARENA_BLOCK_MIN : arena->total;
        if (wanted > ARENA_BLOCK_MAX)
            wanted = ARENA_BLOCK_MAX;
        if (wanted < rounded)
            wanted = rounded;
        size_t room = arena->max - arena->total; /* total never exceeds max */
        if (wanted > room && rounded <= room)
            wanted = room & ~(size_t)(ARENA_ALIGNMENT - 1);
        if (wanted < rounded)
            return NULL;
        ArenaBlock *block = add_block(arena, wanted);
        if (!block)
            return NULL;
        block->next = arena->blocks;
        arena->blocks = block;
        arena->used = 0;
    }
    char *result = arena->blocks->data + arena->used;
    arena->used += rounded;
    UNPOISON(result, size);
    return result;
}

void *arena_allocate_array(Arena *arena, size_t count, size_t size)
{
    size_t bytes;
    return size_multiply(count, size, &bytes) ? arena_allocate(arena, bytes) : NULL;
}

char *arena_copy_string(Arena *arena, Slice s)
{
    size_t bytes;
    if (!size_add(s.len, 1, &bytes))
        return NULL;
    char *copy = arena_allocate(arena, bytes);
    if (!copy)
        return NULL;
    if (s.len)
        memcpy(copy, s.ptr, s.len);
    copy[s.len] = '\0';
    return copy;
}

bool arena_copy_slice(Arena *arena, Slice s, Slice *out)
{
    char *copy = arena_copy_string(arena, s);
    if (!copy)
        return false;
    *out = (Slice){copy, s.len};
    return true;
}
