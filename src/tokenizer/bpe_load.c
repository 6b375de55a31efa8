/* From a list of merges and a vocabulary to the tables that bpe.c merges by. */
#include "bpe_pairs.h"

#include "unicode.h"

enum {
    PENDING_TEXT_MAX = BPE_PENDING_MAX * (2 * VOCABULARY_TOKEN_BYTES_MAX + 1),
    PREFETCH_AHEAD = 16, /* merges */
};

/* ---- The byte-level alphabet ---- */

static bool is_printable_byte(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards in
 * order. */
uint32_t byte_level_character(unsigned char byte)
{
    if (is_printable_byte(byte))
        return byte;
    if (byte < 0x21)
        return 0x100U + byte;
    return byte == 0xad ? 0x143 : 0x121U + (byte - 0x7fU);
}

int byte_level_byte(uint32_t c)
{
    if (c < 0x100)
        return is_printable_byte(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c < 0x143)
        return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

/* ---- Loading ---- */

void bpe_init(Bpe *bpe, const Vocabulary *vocabulary)
{
    *bpe = (Bpe){.vocabulary = vocabulary, .unk_id = -1};
    buffer_init(&bpe->pending_text, PENDING_TEXT_MAX);
}

static bool unknown_merge(Error *err, uint32_t rank, Slice text)
{
    int shown = text.len < 80 ? (int)text.len : 80;
    return error_set(err, ERROR_INVALID, "merge %u: token '%.*s' is not in the vocabulary", rank,
                     shown, text.ptr ? text.ptr : "");
}

static void pending_slices(const Bpe *bpe, const PendingMerge *pending, Slice out[3])
{
    const char *text = bpe->pending_text.ptr + pending->start;
    out[0] = (Slice){text, pending->left_len};
    out[1] = (Slice){text + pending->left_len, pending->len - pending->left_len};
    out[2] = (Slice){text, pending->len};
}

bool bpe_add_merge_ids(Bpe *bpe, Merge merge, Error *err)
{
    if (bpe->merge_count >= BPE_MERGES_MAX)
        return error_set(err, ERROR_LIMIT, "more than %d merges", BPE_MERGES_MAX);
    if (!memory_grow_array((void **)&bpe->merges, bpe->merge_count, &bpe->merge_capacity,
                           sizeof(Merge)))
        return error_no_memory(err, "merges");
    bpe->merges[bpe->merge_count++] = merge;
    return true;
}

static bool resolve_merge(Bpe *bpe, const PendingMerge *pending, Error *err)
{
    Slice texts[3];
    int32_t ids[3];
    pending_slices(bpe, pending, texts);
    for (size_t i = 0; i < 3; i++) {
        ids[i] = vocabulary_find_hashed(bpe->vocabulary, texts[i], pending->hashes[i], TOKEN_MODEL);
        if (ids[i] < 0)
            return unknown_merge(err, pending->rank, texts[i]);
    }
    return bpe_add_merge_ids(bpe, (Merge){ids[0], ids[1], ids[2], pending->rank}, err);
}

/* Half a million merges are a million and a half look-ups in tables far larger than the cache: they
 * are done in batches whose misses overlap, which halves the time to load. */
static bool resolve_pending(Bpe *bpe, Error *err)
{
    for (size_t i = 0; i < bpe->pending_count; i++) {
        Slice texts[3];
        pending_slices(bpe, &bpe->pending[i], texts);
        for (size_t k = 0; k < 3; k++) {
            bpe->pending[i].hashes[k] = vocabulary_hash(texts[k].ptr, texts[k].len);
            vocabulary_prefetch_slot(bpe->vocabulary, bpe->pending[i].hashes[k]);
        }
    }
    for (size_t i = 0; i < bpe->pending_count; i++) {
        for (size_t k = 0; k < 3; k++)
            vocabulary_prefetch_entry(bpe->vocabulary, bpe->pending[i].hashes[k]);
    }
    for (size_t i = 0; i < bpe->pending_count; i++) {
        for (size_t k = 0; k < 3; k++)
            vocabulary_prefetch_bytes(bpe->vocabulary, bpe->pending[i].hashes[k]);
    }
    for (size_t i = 0; i < bpe->pending_count; i++) {
        if (!resolve_merge(bpe, &bpe->pending[i], err))
            return false;
    }
    bpe->pending_count = 0;
    buffer_clear(&bpe->pending_text);
    return true;
}

bool bpe_add_merge(Bpe *bpe, Slice left, Slice right, uint32_t rank, Error *err)
{
    if (bpe->merge_count >= BPE_MERGES_MAX)
        return error_set(err, ERROR_LIMIT, "more than %d merges", BPE_MERGES_MAX);
    if (left.len > VOCABULARY_TOKEN_BYTES_MAX)
        return unknown_merge(err, rank, left);
    if (right.len > VOCABULARY_TOKEN_BYTES_MAX)
        return unknown_merge(err, rank, right);
    bpe->pending[bpe->pending_count++] =
        (PendingMerge){bpe->pending_text.len, left.len, left.len + right.len, rank, {0}};
    buffer_append_slice(&bpe->pending_text, left);
    buffer_append_slice(&bpe->pending_text, right);
    buffer_append_byte(&bpe->pending_text,
                       '\0'); /* so that there are bytes even when both are empty */
    if (!buffer_check(&bpe->pending_text, "merges", err))
        return false;
    return bpe->pending_count < BPE_PENDING_MAX || resolve_pending(bpe, err);
}

static int32_t find_character(const Vocabulary *vocabulary, uint32_t c)
{
    char text[UTF8_MAX];
    return vocabulary_find(vocabulary, (Slice){text, utf8_encode(c, text)}, TOKEN_MODEL);
}

static bool build_characters(Bpe *bpe, Error *err)
{
    bpe->characters = memory_allocate_array(0x10000, sizeof(*bpe->characters));
    if (!bpe->characters)
        return error_no_memory(err, "character table");
    for (size_t c = 0; c < 0x10000; c++)
        bpe->characters[c] = -1;
    for (size_t id = 0; id < bpe->vocabulary->size; id++) {
        if (!(vocabulary_flags(bpe->vocabulary, (int64_t)id) & TOKEN_MODEL))
            continue;
        Slice text = vocabulary_content(bpe->vocabulary, (int32_t)id);
        uint32_t c;
        if (text.len > 0 && text.len <= 3 && unicode_length(text.ptr[0]) == text.len) {
            unicode_decode(text.ptr, &c);
            bpe->characters[c] = (int32_t)id;
        }
    }
    return true;
}

static void find_byte_tokens(Bpe *bpe)
{
    static const char digits[] = "0123456789ABCDEF";
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        uint32_t character = byte_level_character((unsigned char)byte);
        char spelt[UTF8_MAX] = {0};
        utf8_encode(character, spelt);
        memcpy(bpe->spelling[byte], spelt, sizeof(bpe->spelling[byte]));
        bpe->byte_ids[byte] = find_character(bpe->vocabulary, character);
        bpe->fallback_ids[byte] =
            vocabulary_find(bpe->vocabulary, (Slice){name, sizeof(name)}, TOKEN_MODEL);
    }
}

static inline void prefetch_pair(const Bpe *bpe, const Merge *merge)
{
#if defined(__GNUC__)
    uint64_t at = pair_hash(pair_key(merge->left, merge->right)) >> 20 & bpe->pair_mask;
    __builtin_prefetch(&bpe->pair_keys[at], 1);
    __builtin_prefetch(&bpe->pair_results[at], 1);
#else
    (void)bpe, (void)merge;
#endif
}

static bool build_pairs(Bpe *bpe, Error *err)
{
    uint64_t size = 64;
    while (size < (uint64_t)bpe->merge_count * 2)
        size *= 2;
    bpe->pair_keys = memory_allocate_array((size_t)size, sizeof(*bpe->pair_keys));
    bpe->pair_results = memory_allocate_array((size_t)size, sizeof(*bpe->pair_results));
    if (!bpe->pair_keys || !bpe->pair_results)
        return error_no_memory(err, "merge table");
    memset(bpe->pair_keys, 0xff, (size_t)size * sizeof(*bpe->pair_keys));
    bpe->pair_mask = size - 1;
    for (size_t i = 0; i < bpe->merge_count; i++) {
        const Merge *merge = &bpe->merges[i];
        if (i + PREFETCH_AHEAD < bpe->merge_count)
            prefetch_pair(bpe, merge + PREFETCH_AHEAD);
        uint64_t key = pair_key(merge->left, merge->right);
        uint64_t at = pair_hash(key) >> 20 & bpe->pair_mask;
        while (bpe->pair_keys[at] != BPE_FREE_KEY && bpe->pair_keys[at] != key)
            at = (at + 1) & bpe->pair_mask;
        bpe->pair_keys[at] = key; /* of two equal merges the later one counts */
        bpe->pair_results[at] = (BpePairResult){merge->rank, merge->result};
    }
    return true;
}

/* When the tokens of single bytes lie close together, their pairs get a table of their own: these
 * are the most frequent look-ups, and most of them find nothing. */
static bool build_byte_pairs(Bpe *bpe, Error *err)
{
    int32_t low = INT32_MAX, high = -1;
    for (size_t i = 0; i < 256; i++) {
        if (bpe->byte_ids[i] >= 0 && bpe->byte_ids[i] < low)
            low = bpe->byte_ids[i];
        if (bpe->byte_ids[i] > high)
            high = bpe->byte_ids[i];
    }
    if (!bpe->byte_level || high < 0 || high - low > 255)
        return true;
    bpe->byte_pairs = memory_allocate_array(65536, sizeof(*bpe->byte_pairs));
    if (!bpe->byte_pairs)
        return error_no_memory(err, "merge table");
    for (uint32_t left = 0; left < 256; left++) {
        for (uint32_t right = 0; right < 256; right++)
            bpe->byte_pairs[left << 8 | right] =
                find_pair(bpe, low + (int32_t)left, low + (int32_t)right);
    }
    bpe->byte_base = low;
    bpe->byte_span = 256;
    return true;
}

/* The symbol that a token's text begins or ends with, or -1. */
static int32_t edge_symbol(const Bpe *bpe, int32_t id, bool last)
{
    Slice text = vocabulary_content(bpe->vocabulary, id);
    if (text.len == 0)
        return -1;
    uint32_t c;
    unicode_decode(text.ptr + (last ? unicode_previous(text.ptr, text.len) : 0), &c);
    return c < 0x10000 ? bpe->characters[c] : find_character(bpe->vocabulary, c);
}

static bool build_joins(Bpe *bpe, Error *err)
{
    bpe->joins = memory_allocate_zeroed((1U << BPE_JOIN_BITS) / 64, sizeof(*bpe->joins));
    uint8_t *special = memory_allocate_zeroed(bpe->vocabulary->size, 1);
    bool ok = bpe->joins && special;
    for (size_t i = 0; ok && i < 256; i++) {
        if (bpe->byte_fallback && bpe->fallback_ids[i] >= 0)
            special[bpe->fallback_ids[i]] = 1;
    }
    if (ok && bpe->unk_id >= 0)
        special[bpe->unk_id] = 1;
    for (size_t i = 0; ok && i < bpe->merge_count; i++) {
        const Merge *merge = &bpe->merges[i];
        if (special[merge->left] || special[merge->right])
            bpe->never_cut = true;
        int32_t left = edge_symbol(bpe, merge->left, true);
        int32_t right = edge_symbol(bpe, merge->right, false);
        if (left < 0 || right < 0)
            continue; /* never made from symbols */
        size_t bit = join_bit(left, right);
        bpe->joins[bit >> 6] |= UINT64_C(1) << (bit & 63);
    }
    memory_free(special);
    return ok || error_no_memory(err, "merge filter");
}

bool bpe_finish(Bpe *bpe, Error *err)
{
    if (!resolve_pending(bpe, err))
        return false;
    buffer_reset(&bpe->pending_text);
    find_byte_tokens(bpe);
    if (!build_characters(bpe, err) || !build_pairs(bpe, err) || !build_byte_pairs(bpe, err) ||
        !build_joins(bpe, err))
        return false;
    bpe->verdicts = memory_allocate_zeroed(bpe->vocabulary->size, sizeof(*bpe->verdicts));
    if (!bpe->verdicts)
        return error_no_memory(err, "vocabulary");
    memory_free(bpe->merges);
    bpe->merges = NULL;
    return true;
}

void bpe_reset(Bpe *bpe)
{
    buffer_reset(&bpe->pending_text);
    memory_free(bpe->merges);
    memory_free(bpe->pair_keys);
    memory_free(bpe->pair_results);
    memory_free(bpe->byte_pairs);
    memory_free(bpe->joins);
    memory_free(bpe->characters);
    memory_free((void *)bpe->verdicts);
    *bpe = (Bpe){.unk_id = -1};
}
