#include "vocabulary.h"

enum { BYTES_MAX = 1 << 30 }; /* offsets are 32 bits; the file's own limit is lower */

static bool resize_slots(Vocabulary *v, size_t count, Error *err)
{
    VocabularySlot *slots = memory_allocate_array(count, sizeof(*slots));
    if (!slots)
        return error_no_memory(err, "vocabulary");
    for (size_t i = 0; i < count; i++)
        slots[i].id = -1;
    for (size_t i = 0; v->slots && i <= v->slot_mask; i++) {
        if (v->slots[i].id < 0)
            continue;
        size_t at = v->slots[i].hash & (count - 1);
        while (slots[at].id >= 0)
            at = (at + 1) & (count - 1);
        slots[at] = v->slots[i];
    }
    memory_free(v->slots);
    v->slots = slots;
    v->slot_mask = count - 1;
    return true;
}

bool vocabulary_init(Vocabulary *v, size_t expected, Error *err)
{
    *v = (Vocabulary){0};
    buffer_init(&v->bytes, BYTES_MAX);
    if (expected > VOCABULARY_SIZE_MAX)
        expected = VOCABULARY_SIZE_MAX;
    size_t slots = 1024;
    while (slots < expected * 2)
        slots *= 2;
    return resize_slots(v, slots, err);
}

void vocabulary_reset(Vocabulary *v)
{
    buffer_reset(&v->bytes);
    memory_free(v->entries);
    memory_free(v->slots);
    *v = (Vocabulary){0};
}

static bool reserve_id(Vocabulary *v, size_t id, Error *err)
{
    if (id >= v->capacity) {
        size_t capacity = v->capacity ? v->capacity : 1024;
        while (capacity <= id)
            capacity *= 2;
        TokenEntry *entries = memory_resize_array(v->entries, capacity, sizeof(*entries));
        if (!entries)
            return error_no_memory(err, "vocabulary");
        memset(entries + v->capacity, 0, (capacity - v->capacity) * sizeof(*entries));
        v->entries = entries;
        v->capacity = capacity;
    }
    if (id >= v->size)
        v->size = id + 1;
    return true;
}

int32_t vocabulary_find_hashed(const Vocabulary *v, Slice content, uint64_t hash, unsigned flags)
{
    uint32_t wanted = (uint32_t)hash;
    for (size_t at = wanted & v->slot_mask;; at = (at + 1) & v->slot_mask) {
        VocabularySlot slot = v->slots[at];
        if (slot.id < 0)
            return -1;
        if (slot.hash != wanted)
            continue;
        const TokenEntry *entry = &v->entries[slot.id];
        if (entry->len == content.len &&
            memcmp(v->bytes.ptr + entry->offset, content.ptr, content.len) == 0)
            return entry->flags & flags ? slot.id : -1;
    }
}

static bool check_addition(const Vocabulary *v, Slice content, int64_t id, int32_t found,
                           Error *err)
{
    int shown = content.len < 60 ? (int)content.len : 60;
    if (id < 0 || id >= VOCABULARY_SIZE_MAX)
        return error_set(err, ERROR_INVALID, "token '%.*s': id %lld, expected 0 to %d", shown,
                         content.ptr, (long long)id, VOCABULARY_SIZE_MAX - 1);
    if (content.len > VOCABULARY_TOKEN_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "token %lld is %zu bytes long, at most %d are taken",
                         (long long)id, content.len, VOCABULARY_TOKEN_BYTES_MAX);
    if (found >= 0 && found != id)
        return error_set(err, ERROR_INVALID, "token '%.*s' has two ids: %d and %lld", shown,
                         content.ptr, (int)found, (long long)id);
    if (found < 0 && vocabulary_flags(v, id)) {
        Slice other = vocabulary_content(v, (int32_t)id);
        return error_set(err, ERROR_INVALID, "id %lld is given to two tokens: '%.*s' and '%.*s'",
                         (long long)id, other.len < 60 ? (int)other.len : 60, other.ptr, shown,
                         content.ptr);
    }
    return true;
}

bool vocabulary_add(Vocabulary *v, Slice content, int64_t id, unsigned flags, Error *err)
{
    if (!content.ptr)
        content.ptr = "";
    uint64_t hash = vocabulary_hash(content.ptr, content.len);
    int32_t found = vocabulary_find_hashed(v, content, hash, ~0U);
    if (!check_addition(v, content, id, found, err))
        return false;
    if (found < 0) {
        if (v->used * 2 > v->slot_mask && !resize_slots(v, (v->slot_mask + 1) * 2, err))
            return false;
        if (!reserve_id(v, (size_t)id, err))
            return false;
        uint32_t offset = (uint32_t)v->bytes.len;
        buffer_append_slice(&v->bytes, content);
        if (!buffer_check(&v->bytes, "token contents", err))
            return false;
        v->entries[id] = (TokenEntry){.offset = offset, .len = (uint32_t)content.len & 0xffffff};
        size_t at = hash & v->slot_mask;
        while (v->slots[at].id >= 0)
            at = (at + 1) & v->slot_mask;
        v->slots[at] = (VocabularySlot){(uint32_t)hash, (int32_t)id};
        v->used++;
    }
    v->entries[id].flags = (v->entries[id].flags | flags) & 0xff;
    if ((flags & TOKEN_MODEL) && content.len > v->model_bytes_max)
        v->model_bytes_max = content.len;
    return true;
}
