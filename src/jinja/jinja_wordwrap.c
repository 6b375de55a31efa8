/* The filter wordwrap: Python's textwrap over each line of a text.
 *
 * A line is cut into chunks (runs of blanks, words, parts of words up to a hyphen, dashes between
 * words), which then fill output lines up to the width, counted in code points. Chunks follow each
 * other in the text, so an output line is always one piece of it. */
#include "jinja_filters.h"

#include <string.h>

typedef struct Chunk {
    Slice text;
    size_t count; /* code points */
} Chunk;

typedef struct Wrapping {
    JinjaMachine *m;
    Chunk *chunks; /* of the line at hand, reused */
    size_t count, capacity;
    size_t width;
    bool break_words, break_hyphens;
    Slice separator;
    bool markup; /* the separator is: it escapes what it joins */
} Wrapping;

/* ---- Chunks ---- */

static bool is_blank_byte(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The code point that begins before, or at, a byte of the line; 0 outside of it. */
static uint32_t code_point_before(Slice line, size_t at)
{
    size_t len;
    if (at == 0)
        return 0;
    do
        at--;
    while (at > 0 && ((unsigned char)line.ptr[at] & 0xC0) == 0x80);
    return jinja_text_at(line, at, &len);
}

static uint32_t code_point_at(Slice line, size_t at, size_t *len)
{
    *len = 0;
    return at < line.len ? jinja_text_at(line, at, len) : 0;
}

static bool is_letter(uint32_t c)
{
    return c != 0 && jinja_is_word(c) && !jinja_is_decimal(c);
}

/* What may stand before a dash that parts words. */
static bool is_word_or_punctuation(uint32_t c)
{
    return c != 0 && (jinja_is_word(c) || (c < 0x80 && strchr("!\"'&.,?", (int)c)));
}

/* End of two or more dashes at `at` that a word follows, or `at`. */
static size_t dashes_end(Slice line, size_t at)
{
    size_t end = at, len;
    while (end < line.len && line.ptr[end] == '-')
        end++;
    uint32_t next = code_point_at(line, end, &len);
    return end - at >= 2 && next != 0 && jinja_is_word(next) ? end : at;
}

/* A hyphen at `at` ends a chunk between letters: two before it (or a letter, a hyphen and a
 * character of a word), two behind it (or a letter, a hyphen and a letter). */
static bool hyphen_parts_word(Slice line, size_t at)
{
    if (line.ptr[at] != '-')
        return false;
    size_t before = at, len;
    uint32_t last[3];
    for (size_t i = 0; i < 3; i++) {
        last[i] = code_point_before(line, before);
        do
            before -= before > 0;
        while (before > 0 && ((unsigned char)line.ptr[before] & 0xC0) == 0x80);
    }
    bool letters = is_letter(last[0]) && is_letter(last[1]);
    bool again = is_word_or_punctuation(last[0]) && last[1] == '-' && is_letter(last[2]);
    if (!letters && !again)
        return false;
    size_t next = at + 1;
    if (!is_letter(code_point_at(line, next, &len)))
        return false;
    next += len;
    next += next < line.len && line.ptr[next] == '-';
    return is_letter(code_point_at(line, next, &len));
}

static size_t chunk_end(Slice line, size_t at, bool break_hyphens)
{
    size_t end = at, len;
    if (is_blank_byte(line.ptr[at])) {
        while (end < line.len && is_blank_byte(line.ptr[end]))
            end++;
        return end;
    }
    if (break_hyphens && is_word_or_punctuation(code_point_before(line, at)) &&
        dashes_end(line, at) > at)
        return dashes_end(line, at);
    do {
        uint32_t c = jinja_text_at(line, end, &len);
        end += len;
        if (end == line.len || is_blank_byte(line.ptr[end]))
            return end;
        if (break_hyphens && hyphen_parts_word(line, end))
            return end + 1;
        if (break_hyphens && line.ptr[end] == '-' && is_word_or_punctuation(c) &&
            dashes_end(line, end) > end)
            return end;
    } while (true);
}

static bool split_chunks(Wrapping *w, Slice line)
{
    w->count = 0;
    for (size_t at = 0; at < line.len;) {
        if (w->count == w->capacity) {
            size_t capacity = w->capacity ? w->capacity * 2 : 64;
            Chunk *chunks = jinja_allocate(w->m, capacity, sizeof(*chunks));
            if (!chunks)
                return false;
            if (w->count)
                memcpy(chunks, w->chunks, w->count * sizeof(*chunks));
            w->chunks = chunks;
            w->capacity = capacity;
        }
        size_t end = chunk_end(line, at, w->break_hyphens);
        Slice text = {line.ptr + at, end - at};
        w->chunks[w->count++] = (Chunk){text, utf8_count(text)};
        at = end;
    }
    return jinja_charge(w->m, w->count + line.len / 8);
}

/* ---- Lines ---- */

static bool is_blank(Slice text)
{
    return jinja_text_strip(text, true, false).len == 0;
}

/* How many code points of a word wider than the line go into the space that is left. */
static size_t long_word_cut(const Wrapping *w, const Chunk *chunk, size_t space)
{
    if (!w->break_hyphens || chunk->count <= space)
        return space;
    size_t hyphen = 0, at = 0, len;
    bool other = false, found = false; /* a hyphen counts behind something that is none */
    for (size_t i = 0; i < space; i++, at += len) {
        bool is_hyphen = jinja_text_at(chunk->text, at, &len) == '-';
        if (is_hyphen) {
            hyphen = i;
            found = other;
        }
        other |= !is_hyphen;
    }
    return found ? hyphen + 1 : space;
}

static bool append_line(Wrapping *w, Slice line, bool first)
{
    if (!first)
        buffer_append_slice(&w->m->text, w->separator);
    if (w->markup)
        return jinja_append_escaped(w->m, &w->m->text, line);
    buffer_append_slice(&w->m->text, line);
    return jinja_charge(w->m, 1 + w->separator.len / 64);
}

/* Moves the front of a chunk that does not fit any line into this one. */
static void take_long_word(const Wrapping *w, Chunk *chunk, size_t used, Slice *piece, bool *whole)
{
    size_t count = long_word_cut(w, chunk, w->width - used);
    size_t bytes = jinja_text_offset(chunk->text, count);
    *piece = (Slice){chunk->text.ptr, bytes};
    chunk->text = (Slice){chunk->text.ptr + bytes, chunk->text.len - bytes};
    chunk->count -= count;
    *whole = chunk->count == 0;
}

static bool wrap_chunks(Wrapping *w)
{
    bool first = true;
    for (size_t i = 0; i < w->count;) {
        if (!first && is_blank(w->chunks[i].text) && ++i == w->count)
            break;
        const char *start = w->chunks[i].text.ptr;
        size_t used = 0, pieces = 0;
        Slice last = {start, 0};
        for (; i < w->count && w->chunks[i].count <= w->width - used; i++, pieces++) {
            last = w->chunks[i].text;
            used += w->chunks[i].count;
        }
        if (i < w->count && w->chunks[i].count > w->width) {
            bool whole = false;
            if (w->break_words) {
                take_long_word(w, &w->chunks[i], used, &last, &whole);
                i += whole;
                pieces++;
            } else if (pieces == 0) {
                last = w->chunks[i++].text;
                pieces++;
            }
        }
        const char *end = last.ptr + last.len;
        if (pieces > 0 && is_blank(last)) {
            end = last.ptr;
            pieces--;
        }
        if (pieces == 0)
            continue;
        if (!append_line(w, (Slice){start, (size_t)(end - start)}, first))
            return false;
        first = false;
    }
    return true;
}

/* wordwrap(width, break_long_words, wrapstring, break_on_hyphens) */
bool jinja_filter_wordwrap(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Wrapping w = {.m = m};
    const JinjaValue *separator = &call->args[2];
    int64_t width;
    Slice line, line_break;
    w.break_words = jinja_arg_truth(call, 1, true);
    w.break_hyphens = jinja_arg_truth(call, 3, true);
    w.markup = separator->kind == JINJA_STRING && separator->detail;
    if (!jinja_arg_integer(m, call, 0, 79, &width) ||
        !jinja_arg_string(m, call, 2, SLICE("\n"), &w.separator))
        return false;
    if (call->self.kind != JINJA_STRING)
        return jinja_fail_value(m, &call->self, "cannot be wrapped");
    if (width <= 0 && call->self.as.string.len > 0)
        return jinja_fail(m, "invalid width %lld (must be > 0)", (long long)width);
    w.width = (size_t)width;
    size_t mark = m->text.len;
    for (size_t at = 0; jinja_text_next_line(call->self.as.string, &at, &line, &line_break);) {
        if (line.ptr != call->self.as.string.ptr)
            buffer_append_slice(&m->text, w.separator);
        if (!jinja_charge(m, 1) || !split_chunks(&w, line) || !wrap_chunks(&w))
            return false;
    }
    if (!jinja_text_finish(m, mark, out))
        return false;
    out->detail = w.markup;
    return true;
}
