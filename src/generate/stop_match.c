#include "stop_match.h"

#include "generate.h"

#include <string.h>

/* The held text is shorter than the longest stop string; the pushed piece is appended while it is
 * searched, and one piece is the text of one token. */
enum { STOP_MATCH_HELD_BYTES_MAX = 64 << 20 };

static void build_borders(StopString *stop)
{
    stop->border[0] = 0;
    uint32_t length = 0;
    for (size_t i = 1; i < stop->text.len; i++) {
        while (length > 0 && stop->text.ptr[i] != stop->text.ptr[length])
            length = stop->border[length - 1];
        if (stop->text.ptr[i] == stop->text.ptr[length])
            length++;
        stop->border[i] = length;
    }
}

static bool check_strings(const Slice *strings, size_t count, size_t *total, Error *err)
{
    *total = 0;
    if (count > GENERATE_STOP_STRINGS_MAX)
        return error_set(err, ERROR_LIMIT, "%zu stop strings, at most %d are possible", count,
                         GENERATE_STOP_STRINGS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (strings[i].len > GENERATE_STOP_BYTES_MAX)
            return error_set(err, ERROR_LIMIT,
                             "stop string %zu has %zu bytes, at most %d are possible", i,
                             strings[i].len, GENERATE_STOP_BYTES_MAX);
        if (!utf8_is_valid(strings[i]))
            return error_set(err, ERROR_INVALID, "stop string %zu is not UTF-8", i);
        *total += strings[i].len;
    }
    return true;
}

bool stop_match_init(StopMatch *match, const Slice *strings, size_t count, Error *err)
{
    size_t total;
    *match = (StopMatch){0};
    buffer_init(&match->held, STOP_MATCH_HELD_BYTES_MAX);
    if (!check_strings(strings, count, &total, err))
        return false;
    if (total == 0)
        return true;
    match->strings = memory_allocate_zeroed(count, sizeof(*match->strings));
    match->bytes = memory_allocate(total);
    match->borders = memory_allocate_array(total, sizeof(*match->borders));
    if (!match->strings || !match->bytes || !match->borders) {
        stop_match_reset(match);
        return error_no_memory(err, "stop strings");
    }
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (strings[i].len == 0)
            continue;
        StopString *stop = &match->strings[match->count++];
        memcpy(match->bytes + at, strings[i].ptr, strings[i].len);
        stop->text = (Slice){match->bytes + at, strings[i].len};
        stop->border = match->borders + at;
        stop->index = (int32_t)i;
        build_borders(stop);
        at += strings[i].len;
    }
    return true;
}

void stop_match_reset(StopMatch *match)
{
    buffer_reset(&match->held);
    memory_free(match->borders);
    memory_free(match->bytes);
    memory_free(match->strings);
    *match = (StopMatch){0};
}

/* Advances one automaton by one byte; true when its string is complete. */
static bool step_string(StopString *stop, char byte)
{
    while (stop->state > 0 && stop->text.ptr[stop->state] != byte)
        stop->state = stop->border[stop->state - 1];
    if (stop->text.ptr[stop->state] == byte)
        stop->state++;
    return stop->state == stop->text.len;
}

/* Length of the longest stop string that ends with this byte, or 0. */
static size_t step_all(StopMatch *match, char byte)
{
    size_t longest = 0;
    for (size_t i = 0; i < match->count; i++) {
        const StopString *stop = &match->strings[i];
        if (step_string(&match->strings[i], byte) && stop->text.len > longest) {
            longest = stop->text.len;
            match->matched_index = stop->index;
        }
    }
    return longest;
}

bool stop_match_push(StopMatch *match, Slice text, Buffer *out, Error *err)
{
    if (match->matched)
        return true;
    if (match->count == 0) {
        buffer_append_slice(out, text);
        return true;
    }
    size_t start = match->held.len;
    buffer_append_slice(&match->held, text);
    if (!buffer_check(&match->held, "text held back for stop strings", err))
        return false;
    for (size_t i = start; i < match->held.len; i++) {
        size_t length = step_all(match, match->held.ptr[i]);
        if (length > 0) {
            match->matched = true;
            buffer_append(out, match->held.ptr, i + 1 - length);
            buffer_clear(&match->held);
            return true;
        }
    }
    size_t keep = 0;
    for (size_t i = 0; i < match->count; i++) {
        if (match->strings[i].state > keep)
            keep = match->strings[i].state;
    }
    size_t release = match->held.len - keep;
    buffer_append(out, match->held.ptr, release);
    buffer_remove_front(&match->held, release);
    return true;
}

void stop_match_flush(StopMatch *match, Buffer *out)
{
    buffer_append_slice(out, buffer_view(&match->held));
    buffer_clear(&match->held);
    for (size_t i = 0; i < match->count; i++)
        match->strings[i].state = 0;
}
