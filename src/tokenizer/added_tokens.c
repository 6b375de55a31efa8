/* Search for added tokens: leftmost, then longest. The tokens are sorted, so that the array serves
 * as a trie: all tokens with a given prefix are a range, which each further byte of the text
 * narrows. A table of the two-byte beginnings passes over places where nothing can start. */
#include "internal.h"

#include <stdlib.h>

static int compare_tokens(const void *a, const void *b)
{
    const AddedToken *x = a, *y = b;
    int order = slice_compare(x->content, y->content);
    return order ? order : x->order < y->order ? -1 : x->order > y->order;
}

static void set_pair(AddedSet *set, unsigned pair)
{
    set->pairs[pair >> 5] |= 1U << (pair & 31);
}

static bool has_pair(const AddedSet *set, unsigned pair)
{
    return set->pairs[pair >> 5] >> (pair & 31) & 1;
}

void added_set_build(AddedSet *set, AddedToken *tokens, size_t count)
{
    *set = (AddedSet){.tokens = tokens};
    if (count > 0)
        qsort(tokens, count, sizeof(*tokens), compare_tokens);
    for (size_t i = 0; i < count; i++) {
        Slice content = tokens[i].content;
        bool again = set->count > 0 && slice_equal(tokens[set->count - 1].content, content);
        if (content.len > 0 && !again)
            tokens[set->count++] = tokens[i];
    }
    for (size_t i = 0; i < set->count; i++) {
        const unsigned char *text = (const unsigned char *)tokens[i].content.ptr;
        set->first[text[0] + 1] = (uint32_t)i + 1;
        for (unsigned second = 0; second < 256 && tokens[i].content.len == 1; second++)
            set_pair(set, (unsigned)text[0] << 8 | second);
        if (tokens[i].content.len > 1)
            set_pair(set, (unsigned)text[0] << 8 | text[1]);
    }
    for (size_t byte = 1; byte <= 256; byte++) {
        if (set->first[byte] == 0)
            set->first[byte] = set->first[byte - 1];
    }
}

void added_set_reset(AddedSet *set)
{
    memory_free(set->tokens);
    *set = (AddedSet){0};
}

/* First index in [low, high) whose byte at depth is at least `byte`; all have that many bytes. */
static size_t lower_bound(const AddedSet *set, size_t low, size_t high, size_t depth, unsigned byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)set->tokens[middle].content.ptr[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token at text[at], or NULL. */
static const AddedToken *match_at(const AddedSet *set, Slice text, size_t at)
{
    unsigned byte = (unsigned char)text.ptr[at];
    size_t low = set->first[byte], high = set->first[byte + 1];
    const AddedToken *longest = NULL;
    for (size_t depth = 1; low < high; depth++) {
        /* Of tokens with a common prefix the one that is the prefix itself sorts first. */
        if (set->tokens[low].content.len == depth)
            longest = &set->tokens[low++];
        if (at + depth == text.len)
            break;
        byte = (unsigned char)text.ptr[at + depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return longest;
}

static const AddedToken *find_match(const AddedSet *set, Slice text, size_t from, size_t *start)
{
    for (size_t at = from; at < text.len; at++) {
        unsigned pair = (unsigned)(unsigned char)text.ptr[at] << 8;
        /* The last byte of the text has no second: only a token of one byte fits there. */
        pair |= at + 1 < text.len ? (unsigned char)text.ptr[at + 1] : 0;
        if (!has_pair(set, pair))
            continue;
        const AddedToken *token = match_at(set, text, at);
        if (token) {
            *start = at;
            return token;
        }
    }
    return NULL;
}

static bool is_word_at(const UnicodeTable *unicode, Slice text, size_t at)
{
    uint32_t c;
    unicode_decode(text.ptr + at, &c);
    return unicode_class(unicode, c) & UNICODE_WORD;
}

static bool stands_alone(const UnicodeTable *unicode, Slice text, size_t start, size_t end)
{
    return (start == 0 || !is_word_at(unicode, text, unicode_previous(text.ptr, start))) &&
           (end == text.len || !is_word_at(unicode, text, end));
}

static bool is_space_at(const UnicodeTable *unicode, Slice text, size_t at)
{
    uint32_t c;
    unicode_decode(text.ptr + at, &c);
    return unicode_class(unicode, c) & UNICODE_SPACE;
}

static void swallow_space(const UnicodeTable *unicode, Slice text, const AddedToken *token,
                          size_t floor, AddedSegment *segment)
{
    /* A match inside of what the one before swallowed: nothing of it may be left. */
    if (token->lstrip && segment->start < floor)
        segment->start = floor;
    while (token->lstrip && segment->start > floor) {
        size_t before = unicode_previous(text.ptr, segment->start);
        if (!is_space_at(unicode, text, before))
            break;
        segment->start = before;
    }
    while (token->rstrip && segment->end < text.len && is_space_at(unicode, text, segment->end))
        segment->end += unicode_length(text.ptr[segment->end]);
}

bool added_scan_next(AddedScan *scan, const AddedSet *set, const UnicodeTable *unicode, Slice text,
                     AddedSegment *segment)
{
    if (scan->has_token) {
        *segment = scan->token;
        scan->has_token = false;
        scan->text_start = segment->end;
        return true;
    }
    size_t start = 0;
    const AddedToken *token = NULL;
    AddedSegment found = {0};
    while (set->count > 0 && (token = find_match(set, text, scan->search_at, &start))) {
        scan->search_at = start + token->content.len;
        if (scan->skip_special && token->special)
            continue;
        if (token->single_word && !stands_alone(unicode, text, start, scan->search_at))
            continue;
        found = (AddedSegment){token->id, start, scan->search_at};
        swallow_space(unicode, text, token, scan->text_start, &found);
        if (found.start < found.end)
            break;
    }
    if (!token) {
        scan->search_at = text.len;
        *segment = (AddedSegment){-1, scan->text_start, text.len};
        scan->text_start = text.len;
        return segment->start < segment->end;
    }
    if (scan->text_start < found.start) {
        *segment = (AddedSegment){-1, scan->text_start, found.start};
        scan->token = found;
        scan->has_token = true;
        return true;
    }
    *segment = found;
    scan->text_start = found.end;
    return true;
}
