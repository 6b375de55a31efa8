/* A whole reply as an automaton.
 *
 *     free content    every place of the markup's scan is a state; a mark that opens calls leads
 *                     into them, all else stays. The text may end in any of them.
 *     bound content   [reasoning] then the source, or a trigger and calls; a trigger may follow a
 *                     line break or two, as templates write it behind reasoning. What begins with
 *                     a mark is what the mark opens, even where the source could write it too.
 *
 * The states of a scan are few (one for each beginning of a mark) and found by trying all bytes,
 * so the automaton and whoever runs the scan over the same text cannot disagree. */
#include "source.h"

#include <string.h>

enum { SCAN_STATES_MAX = 1024 };

typedef struct ScanState {
    MarkupScan scan;
    uint32_t split; /* the state of the automaton; both ways are set when it is expanded */
} ScanState;

typedef struct ScanBuilder {
    Automaton *automaton;
    const Markup *markup;
    ScanState *states; /* [SCAN_STATES_MAX] */
    size_t count;
    const uint32_t *entries; /* [MARKUP_TRIGGERS_MAX] */
    uint32_t after_thinking; /* where reasoning leads; AUTOMATON_FAIL: back to content */
    bool can_end;
} ScanBuilder;

/* The automaton's state for a place of the scan, made when first met. */
static uint32_t find_scan(ScanBuilder *b, const MarkupScan *scan)
{
    for (size_t i = 0; i < b->count; i++) {
        if (memcmp(&b->states[i].scan, scan, sizeof(*scan)) == 0)
            return b->states[i].split;
    }
    if (b->count == SCAN_STATES_MAX)
        return automaton_fail(b->automaton, ERROR_LIMIT, "the marks of a reply are too long");
    uint32_t split = automaton_add_split(b->automaton, AUTOMATON_FAIL, AUTOMATON_FAIL);
    b->states[b->count++] = (ScanState){*scan, split};
    return split;
}

static uint32_t step_scan(ScanBuilder *b, const MarkupScan *from, unsigned byte)
{
    MarkupScan scan = *from;
    size_t trigger = 0;
    markup_scan_step(b->markup, &scan, (char)(unsigned char)byte, &trigger);
    if (scan.region == MARKUP_CALLS)
        return b->entries[trigger];
    if (scan.region == MARKUP_CONTENT && b->after_thinking != AUTOMATON_FAIL)
        return b->after_thinking;
    return find_scan(b, &scan);
}

static void expand_scan(ScanBuilder *b, size_t at)
{
    Automaton *a = b->automaton;
    ScanState state = b->states[at];
    uint32_t ways = AUTOMATON_FAIL;
    for (unsigned low = 0; low < 256;) {
        uint32_t target = step_scan(b, &state.scan, low);
        unsigned high = low;
        while (high < 255 && step_scan(b, &state.scan, high + 1) == target)
            high++;
        ways = automaton_add_either(a, ways,
                                    automaton_add_bytes(a, (uint8_t)low, (uint8_t)high, target));
        low = high + 1;
    }
    automaton_set_split(a, state.split, ways, b->can_end ? AUTOMATON_RETURN : AUTOMATON_FAIL);
}

/* The automaton of all text that the scan passes from `region` on. */
static uint32_t add_scan(Automaton *a, const GrammarReply *reply, MarkupRegion region,
                         const uint32_t *entries, uint32_t after_thinking, bool can_end)
{
    ScanBuilder builder = {.automaton = a,
                           .markup = reply->markup,
                           .states = memory_allocate_array(SCAN_STATES_MAX, sizeof(ScanState)),
                           .entries = entries,
                           .after_thinking = after_thinking,
                           .can_end = can_end};
    MarkupScan scan = {.region = (uint8_t)region};
    if (!builder.states)
        return automaton_fail(a, ERROR_MEMORY, "out of memory: grammar of a reply");
    uint32_t start = find_scan(&builder, &scan);
    for (size_t i = 0; i < builder.count && !a->failed; i++)
        expand_scan(&builder, i);
    memory_free(builder.states);
    return start;
}

/* ---- Calls ---- */

/* From the first byte of a tool's name on, to the end of the reply. */
static uint32_t add_names(Automaton *a, const GrammarReply *reply, const uint32_t *rules)
{
    const MarkupCalls *calls = &reply->markup->calls;
    uint32_t over = automaton_add_literal(a, calls->after_calls, AUTOMATON_RETURN);
    uint32_t loop = reply->one_call ? over : automaton_add_split(a, AUTOMATON_FAIL, AUTOMATON_FAIL);
    uint32_t after = automaton_add_literal(a, calls->after_arguments, loop);
    uint32_t names = AUTOMATON_FAIL;
    for (size_t i = 0; i < reply->n_tools; i++) {
        uint32_t one = automaton_add_call(a, rules[i], after);
        one = automaton_add_literal(a, calls->after_name, one);
        one = automaton_add_literal(a, reply->tools[i].name, one);
        names = automaton_add_either(a, names, one);
    }
    if (!reply->one_call) {
        uint32_t again = automaton_add_literal(a, calls->before_name, names);
        automaton_set_split(a, loop, automaton_add_literal(a, calls->between_calls, again), over);
    }
    return names;
}

/* What follows each trigger. */
static void add_entries(Automaton *a, const GrammarReply *reply, const uint32_t *rules,
                        uint32_t entries[MARKUP_TRIGGERS_MAX])
{
    const MarkupCalls *calls = &reply->markup->calls;
    uint32_t names = reply->n_tools > 0 ? add_names(a, reply, rules) : AUTOMATON_FAIL;
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++) {
        size_t skip = calls->triggers[i].name_bytes, before = calls->before_calls.len;
        size_t skip_name = skip > before ? skip - before : 0;
        Slice name = calls->before_name, list = calls->before_calls;
        name = (Slice){name.ptr + skip_name, name.len - skip_name};
        list = skip < before ? (Slice){list.ptr + skip, before - skip} : SLICE_EMPTY;
        entries[i] = AUTOMATON_FAIL;
        if (calls->triggers[i].text.len > 0)
            entries[i] = automaton_add_literal(a, list, automaton_add_literal(a, name, names));
    }
}

/* A trigger and its calls, with up to two line breaks before it. */
static uint32_t add_trigger(Automaton *a, const GrammarReply *reply, const uint32_t *entries)
{
    uint32_t start = AUTOMATON_FAIL;
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++) {
        Slice text = reply->markup->calls.triggers[i].text;
        if (text.len > 0)
            start = automaton_add_either(a, start, automaton_add_mark(a, text, entries[i]));
    }
    uint32_t line = automaton_add_either(a, start, automaton_add_literal(a, SLICE("\n"), start));
    return automaton_add_either(a, start, automaton_add_literal(a, SLICE("\n"), line));
}

uint32_t reply_add(Text *text, const GrammarReply *reply, const uint32_t *tool_rules,
                   uint32_t content_rule)
{
    Automaton *a = text->automaton;
    const Markup *markup = reply->markup;
    uint32_t entries[MARKUP_TRIGGERS_MAX];
    add_entries(a, reply, tool_rules, entries);
    if (!reply->content && !reply->needs_call)
        return add_scan(a, reply, markup->begins_in_think ? MARKUP_REASONING : MARKUP_CONTENT,
                        entries, AUTOMATON_FAIL, true);
    uint32_t after = add_trigger(a, reply, entries);
    if (!reply->needs_call)
        after =
            automaton_add_either(a, after, automaton_add_call(a, content_rule, AUTOMATON_RETURN));
    if (markup->think_close.len == 0)
        return after;
    uint32_t thinking = add_scan(a, reply, MARKUP_REASONING, entries, after, false);
    if (markup->begins_in_think)
        return thinking;
    return automaton_add_either(a, after, automaton_add_mark(a, markup->think_open, thinking));
}
