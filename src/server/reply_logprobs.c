/* Entries and content meet in the reply's text: each entry says where its token's text ends, each
 * piece of content where it stands. An entry whose text is content to its end is told with it; one
 * that leaves content in the middle waits for what comes next. Of a character that several tokens
 * make, the first has all the text and the others none; they go the way of the first. */
#include "reply.h"

void content_logprobs_init(ContentLogprobs *logprobs)
{
    *logprobs = (ContentLogprobs){0};
    logprob_list_init(&logprobs->pending);
}

void content_logprobs_reset(ContentLogprobs *logprobs)
{
    logprob_list_reset(&logprobs->pending);
}

/* The front entry is decided. */
static void finish_entry(ContentLogprobs *logprobs, LogprobList *out)
{
    const LogprobEntry *entry = logprob_list_get(&logprobs->pending, logprobs->done);
    Slice bytes = logprob_list_bytes(&logprobs->pending, entry);
    bool has_text = entry->text_end > logprobs->at;
    bool is_content = has_text ? logprobs->last > logprobs->first : logprobs->was_content;
    /* Where the text is the bytes themselves, the part that is content can be cut out. */
    if (has_text && is_content && bytes.len == entry->text_end - logprobs->at) {
        bytes.ptr += logprobs->first - logprobs->at;
        bytes.len = logprobs->last - logprobs->first;
    }
    if (is_content)
        logprob_list_append(out, entry, bytes);
    logprobs->was_content = is_content;
    logprobs->at = entry->text_end;
    logprobs->first = logprobs->last = 0;
    logprobs->done++;
}

/* What of [start, end) lies in the front entry's text, which goes to text_end, is content. */
static void mark_content(ContentLogprobs *logprobs, size_t text_end, size_t start, size_t end)
{
    if (text_end <= start || logprobs->at >= end)
        return;
    if (logprobs->last == logprobs->first)
        logprobs->first = logprobs->at > start ? logprobs->at : start;
    logprobs->last = text_end < end ? text_end : end;
}

void content_logprobs_take(ContentLogprobs *logprobs, size_t start, size_t end, LogprobList *out)
{
    while (logprobs->done < logprob_list_count(&logprobs->pending)) {
        const LogprobEntry *entry = logprob_list_get(&logprobs->pending, logprobs->done);
        mark_content(logprobs, entry->text_end, start, end);
        if (entry->text_end > end)
            return;
        finish_entry(logprobs, out);
    }
    logprob_list_clear(&logprobs->pending);
    logprobs->done = 0;
    /* The rest is of a token whose entry comes with the end of its text. */
    mark_content(logprobs, SIZE_MAX, start, end);
}
