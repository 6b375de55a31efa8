/* Marks are few and short, so each is matched by itself; after a mismatch the longest border is
 * found by comparing. */
#include "markup.h"

#include <string.h>

enum { MARK_THINK_OPEN, MARK_THINK_CLOSE, MARK_STRAY, MARK_TRIGGERS };

static Slice mark_text(const Markup *markup, size_t mark)
{
    if (mark == MARK_THINK_OPEN)
        return markup->think_open;
    if (mark == MARK_THINK_CLOSE)
        return markup->think_close;
    if (mark == MARK_STRAY)
        return markup->calls.stray;
    return markup->calls.triggers[mark - MARK_TRIGGERS].text;
}

bool markup_has_calls(const Markup *markup)
{
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++) {
        if (markup->calls.triggers[i].text.len > 0)
            return true;
    }
    return false;
}

bool markup_has_marks(const Markup *markup)
{
    return markup->think_close.len > 0 || markup_has_calls(markup);
}

void markup_texts(const Markup *markup, Slice out[MARKUP_TEXTS])
{
    const MarkupCalls *calls = &markup->calls;
    const Slice texts[] = {markup->think_open,   markup->think_close, calls->before_calls,
                           calls->before_name,   calls->after_name,   calls->after_arguments,
                           calls->between_calls, calls->after_calls,  calls->stray};
    size_t n = 0;
    for (; n < ARRAY_COUNT(texts); n++)
        out[n] = texts[n];
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++)
        out[n++] = calls->triggers[i].text;
}

void markup_scan_init(MarkupScan *scan, const Markup *markup)
{
    *scan = (MarkupScan){.region = markup->begins_in_think ? MARKUP_REASONING : MARKUP_CONTENT};
}

size_t markup_scan_held(const MarkupScan *scan)
{
    size_t held = 0;
    for (size_t i = 0; i < MARKUP_MARKS_MAX; i++)
        held = scan->matched[i] > held ? scan->matched[i] : held;
    return held;
}

/* Does the mark count where the scan is? */
static bool is_looked_for(const Markup *markup, const MarkupScan *scan, size_t mark)
{
    if (mark_text(markup, mark).len == 0 || scan->region == MARKUP_CALLS)
        return false;
    if (scan->region == MARKUP_REASONING)
        return mark < MARK_STRAY;
    if (markup->only_at_start)
        return !scan->has_begun &&
               (mark >= MARK_TRIGGERS || (mark == MARK_THINK_OPEN && !scan->has_thought));
    return !scan->has_begun || mark < MARK_TRIGGERS ||
           !markup->calls.triggers[mark - MARK_TRIGGERS].at_start;
}

/* The longest beginning of the mark that its first `matched` bytes and byte end with. */
static size_t extend_match(Slice mark, size_t matched, char byte)
{
    for (size_t length = matched + 1; length > 0; length--) {
        if (mark.ptr[length - 1] == byte &&
            memcmp(mark.ptr, mark.ptr + matched + 1 - length, length - 1) == 0)
            return length;
    }
    return 0;
}

static bool is_white_space(char byte)
{
    return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
}

/* The mark is complete. */
static void enter_region(const Markup *markup, MarkupScan *scan, size_t mark)
{
    memset(scan->matched, 0, sizeof(scan->matched));
    if (mark >= MARK_TRIGGERS) {
        scan->region = MARKUP_CALLS;
    } else if (mark != MARK_STRAY) {
        scan->region = mark == MARK_THINK_OPEN ? MARKUP_REASONING : MARKUP_CONTENT;
        scan->has_begun = scan->has_begun && mark == MARK_THINK_CLOSE;
        scan->has_thought = markup->only_at_start && mark == MARK_THINK_CLOSE;
    }
}

/* Content that can no longer be part of a mark was met: what counts only at the start is over. */
static void begin_content(const Markup *markup, MarkupScan *scan)
{
    scan->has_begun = true;
    for (size_t i = 0; i < MARKUP_MARKS_MAX; i++) {
        if (!is_looked_for(markup, scan, i))
            scan->matched[i] = 0;
    }
}

size_t markup_scan_step(const Markup *markup, MarkupScan *scan, char byte, size_t *trigger)
{
    size_t held = markup_scan_held(scan), longest = 0, found = 0;
    for (size_t i = 0; i < MARKUP_MARKS_MAX; i++) {
        if (!is_looked_for(markup, scan, i))
            continue;
        Slice mark = mark_text(markup, i);
        size_t matched = extend_match(mark, scan->matched[i], byte);
        scan->matched[i] = (uint8_t)matched;
        if (matched == mark.len && matched > longest) {
            longest = matched;
            found = i;
        }
    }
    if (longest > 0) {
        if (trigger && found >= MARK_TRIGGERS)
            *trigger = found - MARK_TRIGGERS;
        enter_region(markup, scan, found);
        return longest;
    }
    bool releases = held + 1 > markup_scan_held(scan);
    if (scan->region == MARKUP_CONTENT && !scan->has_begun && releases &&
        (held > 0 || !is_white_space(byte)))
        begin_content(markup, scan);
    return 0;
}
