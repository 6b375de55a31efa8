/* Token contents and ids. All contents lie in one block of bytes; a token is a span of it, found by
 * id (array) or by content (open addressing, the hash kept beside the id so that a miss seldom
 * touches the bytes). Added tokens and the model's own vocabulary share the tables; a flag tells
 * them apart, because BPE must see the latter only. */
#ifndef TOKENIZER_VOCABULARY_H
#define TOKENIZER_VOCABULARY_H

#include "base.h"

#include <string.h>

enum {
    VOCABULARY_SIZE_MAX = 1 << 22,     /* ids are below this */
    VOCABULARY_TOKEN_BYTES_MAX = 4096, /* of one token's content */
};

enum {
    TOKEN_MODEL = 1,   /* in model.vocab */
    TOKEN_ADDED = 2,   /* in added_tokens */
    TOKEN_SPECIAL = 4, /* left out by skip_special */
    TOKEN_RESPELT = 8, /* decodes to its normalised content, which differs (Tokenizer.respelt) */
    TOKEN_SHOWN = 16,  /* special, but not left out (tokenizer_show_tokens) */
};

typedef struct TokenEntry {
    uint32_t offset;
    uint32_t len : 24;
    uint32_t flags : 8; /* 0: no such id */
} TokenEntry;

typedef struct VocabularySlot {
    uint32_t hash;
    int32_t id; /* -1: free */
} VocabularySlot;

typedef struct Vocabulary {
    Buffer bytes;
    TokenEntry *entries; /* by id */
    size_t size;         /* one more than the largest id */
    size_t capacity;
    VocabularySlot *slots;
    size_t slot_mask;
    size_t used;
    size_t model_bytes_max; /* longest content of model.vocab */
} Vocabulary;

/* expected: a guess at the number of tokens. */
bool vocabulary_init(Vocabulary *v, size_t expected, Error *err) WARN_UNUSED;
void vocabulary_reset(Vocabulary *v);

/* Adds a token, or its flags to the same token. A second content for an id, or a second id for a
 * content, is ERROR_INVALID. */
bool vocabulary_add(Vocabulary *v, Slice content, int64_t id, unsigned flags,
                    Error *err) WARN_UNUSED;

/* A look-up in three cache misses, which a caller with many may overlap: prefetch slot, then entry,
 * then find. */
static inline void vocabulary_prefetch_slot(const Vocabulary *v, uint64_t hash)
{
#if defined(__GNUC__)
    __builtin_prefetch(&v->slots[(uint32_t)hash & v->slot_mask]);
#else
    (void)v, (void)hash;
#endif
}

static inline void vocabulary_prefetch_entry(const Vocabulary *v, uint64_t hash)
{
#if defined(__GNUC__)
    VocabularySlot slot = v->slots[(uint32_t)hash & v->slot_mask];
    if (slot.hash == (uint32_t)hash && slot.id >= 0)
        __builtin_prefetch(&v->entries[slot.id]);
#else
    (void)v, (void)hash;
#endif
}

static inline void vocabulary_prefetch_bytes(const Vocabulary *v, uint64_t hash)
{
#if defined(__GNUC__)
    VocabularySlot slot = v->slots[(uint32_t)hash & v->slot_mask];
    if (slot.hash == (uint32_t)hash && slot.id >= 0)
        __builtin_prefetch(v->bytes.ptr + v->entries[slot.id].offset);
#else
    (void)v, (void)hash;
#endif
}

/* Id of this content with any of flags, or -1. */
int32_t vocabulary_find_hashed(const Vocabulary *v, Slice content, uint64_t hash, unsigned flags);

static inline Slice vocabulary_content(const Vocabulary *v, int32_t id)
{
    const TokenEntry *entry = &v->entries[id];
    return (Slice){v->bytes.ptr + entry->offset, entry->len};
}

static inline unsigned vocabulary_flags(const Vocabulary *v, int64_t id)
{
    return id >= 0 && (uint64_t)id < v->size ? v->entries[id].flags : 0;
}

/* Eight bytes at a time; token contents are short, so FNV's byte steps would be the larger part of
 * a look-up. */
static inline uint64_t vocabulary_hash(const char *s, size_t len)
{
    const uint64_t k = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t h = len * k, word;
    for (; len >= 8; s += 8, len -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * k;
        h ^= h >> 32;
    }
    if (len >= 4) {
        uint32_t a, b;
        memcpy(&a, s, 4);
        memcpy(&b, s + len - 4, 4);
        h = (h ^ ((uint64_t)a << 32 | b)) * k;
    } else if (len > 0) {
        const unsigned char *u = (const unsigned char *)s;
        h = (h ^ ((uint64_t)u[0] << 16 | (uint64_t)u[len / 2] << 8 | u[len - 1])) * k;
    }
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

static inline int32_t vocabulary_find(const Vocabulary *v, Slice content, unsigned flags)
{
    return vocabulary_find_hashed(v, content, vocabulary_hash(content.ptr, content.len), flags);
}

#endif
