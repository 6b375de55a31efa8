/* markup: the marks that divide a model's reply into reasoning, content and tool calls.
 *
 * A Markup describes one model family's marks as plain text; a MarkupScan follows a reply byte by
 * byte and says in which region it is and which mark has just been completed. Whoever constrains a
 * reply, counts its tokens or takes it apart uses the same scan, so that they always agree on where
 * a region ends. It knows nothing of what stands inside a region. Threads: a Markup is constant, a
 * MarkupScan belongs to one thread. */
#ifndef MARKUP_H
#define MARKUP_H

#include "base.h"

enum {
    MARKUP_TRIGGERS_MAX = 2,
    MARKUP_MARKS_MAX = 3 + MARKUP_TRIGGERS_MAX,
    MARKUP_BYTES_MAX = 64, /* of a mark */
    MARKUP_TEXTS = 9 + MARKUP_TRIGGERS_MAX,
};

/* What opens the calls of a reply. */
typedef struct MarkupTrigger {
    Slice text;        /* empty: there is no such trigger */
    bool at_start;     /* counts only before any content but white space */
    size_t name_bytes; /* so much of before_calls and before_name is part of text */
} MarkupTrigger;

/* How calls are written:
 *   trigger before_calls CALL (between_calls CALL)* after_calls
 *   CALL: before_name NAME after_name ARGUMENTS after_arguments       ARGUMENTS: a JSON object */
typedef struct MarkupCalls {
    MarkupTrigger triggers[MARKUP_TRIGGERS_MAX];
    Slice before_calls, before_name, after_name, after_arguments, between_calls, after_calls;
    Slice stray; /* a mark of calls that means nothing in content, and is left out there */
} MarkupCalls;

/* All slices are borrowed and live as long as whoever uses the description. Marks are UTF-8, begin
 * with no white space and have at most MARKUP_BYTES_MAX bytes. between_calls is not empty. */
typedef struct Markup {
    Slice think_open, think_close; /* both empty: the model does not think aloud */
    MarkupCalls calls;
    bool begins_in_think; /* the prompt has opened the block */
    /* Content is bound to a form of its own: once it has begun, nothing in it is a mark; before,
     * only what opens calls and, if there was no reasoning yet, what opens that. */
    bool only_at_start;
} Markup;

/* Whether there is any mark to look for. */
bool markup_has_marks(const Markup *markup);
bool markup_has_calls(const Markup *markup);

/* Everything that the description writes, in a fixed order; some are empty. */
void markup_texts(const Markup *markup, Slice out[MARKUP_TEXTS]);

typedef enum MarkupRegion { MARKUP_CONTENT, MARKUP_REASONING, MARKUP_CALLS } MarkupRegion;

/* Equal scans of one Markup behave equally ever after. MARKUP_CALLS is never left. */
typedef struct MarkupScan {
    uint8_t region;                    /* MarkupRegion */
    uint8_t has_begun;                 /* content that is no white space was met */
    uint8_t has_thought;               /* with only_at_start: reasoning is over */
    uint8_t matched[MARKUP_MARKS_MAX]; /* bytes of each mark that the text ends with */
} MarkupScan;

void markup_scan_init(MarkupScan *scan, const Markup *markup);
/* Takes one byte. Returns the length of the mark that ends with it, or 0; *trigger, which may be
 * NULL, is its index when it opens calls. */
size_t markup_scan_step(const Markup *markup, MarkupScan *scan, char byte, size_t *trigger);
/* How many of the last bytes may be the beginning of a mark. */
size_t markup_scan_held(const MarkupScan *scan);

#endif
