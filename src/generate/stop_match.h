/* stop_match: finds stop strings in text that arrives in pieces.
 *
 * One Knuth-Morris-Pratt automaton per stop string walks the bytes as they come. Its state is the
 * length of the longest suffix of the text so far that begins the stop string, so the bytes that
 * must be held back are just the largest state. The result depends on the text alone, not on how it
 * was cut into tokens: the match that is complete first wins, and the longest of those complete at
 * the same byte. */
#ifndef GENERATE_STOP_MATCH_H
#define GENERATE_STOP_MATCH_H

#include "base.h"

typedef struct StopString {
    Slice text;       /* owned by the matcher's storage */
    uint32_t *border; /* border[i]: longest proper prefix of text[0..i] that also ends it */
    size_t state;     /* bytes of text matched so far */
    int32_t index;    /* among the strings given, empty ones counted */
} StopString;

typedef struct StopMatch {
    StopString *strings;
    size_t count;
    char *bytes;           /* all texts */
    uint32_t *borders;     /* all tables */
    Buffer held;           /* text not yet released: a possible beginning of a match */
    bool matched;          /* a stop string was found: everything after is dropped */
    int32_t matched_index; /* which */
} StopMatch;

/* Copies the strings, skipping empty ones. ERROR_INVALID, ERROR_LIMIT, ERROR_MEMORY. */
bool stop_match_init(StopMatch *match, const Slice *strings, size_t count, Error *err) WARN_UNUSED;
void stop_match_reset(StopMatch *match);
/* Takes text; appends to out what can no longer belong to a match. */
bool stop_match_push(StopMatch *match, Slice text, Buffer *out, Error *err) WARN_UNUSED;
/* The text has ended, or goes on past the matcher: what was held back goes out too, unless a match
 * was found, and no match will begin in it. */
void stop_match_flush(StopMatch *match, Buffer *out);

#endif
