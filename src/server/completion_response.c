#include "completion_response.h"

#include "openai_json.h"

#include <math.h>

static const OpenaiNames NAMES = {"cmpl-", "text_completion", "text_completion"};

/* Entries that follow each other in a choice's text: those of the prompt, those of the reply. */
typedef struct Part {
    const LogprobList *list;
    size_t offset; /* characters of the choice's text before it */
    /* Of a prompt: the text that it is echoed as. */
    Slice echo;
    bool skips_first; /* the first token is no part of the text (a BOS before a string) */
    /* Of a reply, whose entries say where their text ends: bytes that are no UTF-8 stand in it as
     * U+FFFD, and count as that. ptr NULL: of a prompt, whose entries have nothing but bytes. */
    Slice text;
    size_t text_at; /* where text begins among all of the reply's */
    size_t ahead;   /* characters before text that the first of the entries make, too */
} Part;

enum { COMPLETION_PARTS_MAX = 2 };

/* ---- Log-probabilities ---- */

/* The reply fails as a whole, not silently in part. */
static void fail_with(bool failed, JsonWriter *writer)
{
    if (failed)
        writer->out->failed = true;
}

/* A token's text; a part of a character is named by its bytes, as the original API does. */
static Slice make_name(Slice bytes, Buffer *name, JsonWriter *writer)
{
    if (utf8_is_valid(bytes))
        return bytes;
    buffer_clear(name);
    buffer_append_text(name, "bytes:");
    for (size_t i = 0; i < bytes.len; i++)
        buffer_append_format(name, "\\x%02x", (unsigned char)bytes.ptr[i]);
    fail_with(name->failed, writer);
    return buffer_view(name);
}

/* Names that an object has already: their bytes in text, one behind the other. */
typedef struct Names {
    Buffer text;
    size_t ends[GENERATE_TOP_LOGPROBS_MAX + 1];
    size_t count;
} Names;

static Slice cut_text(const Buffer *text, size_t start, size_t end)
{
    return end > start ? (Slice){text->ptr + start, end - start} : SLICE_EMPTY;
}

/* What stands in text behind the names becomes one, unless there is such a name. */
static bool add_name(Names *names, Slice *out)
{
    size_t start = names->count > 0 ? names->ends[names->count - 1] : 0, at = 0;
    *out = cut_text(&names->text, start, names->text.len);
    for (size_t i = 0; i < names->count; at = names->ends[i++]) {
        if (slice_equal(*out, cut_text(&names->text, at, names->ends[i]))) {
            names->text.len = start;
            return false;
        }
    }
    names->ends[names->count++] = names->text.len;
    return true;
}

static void write_named(Names *names, float logprob, Buffer *name, JsonWriter *writer)
{
    Slice bytes;
    if (!add_name(names, &bytes))
        return;
    json_write_key_slice(writer, make_name(bytes, name, writer));
    openai_write_logprob(logprob, writer);
}

/* The token's own probability and the best ones, each name once: several tokens can have the same
 * bytes. */
static void write_top(const Reply *reply, const LogprobList *list, const LogprobEntry *entry,
                      Buffer *name, JsonWriter *writer)
{
    Error err;
    Names names = {0};
    if (isnan(entry->logprob)) {
        json_write_null(writer);
        return;
    }
    buffer_init(&names.text, TOKENIZER_TEXT_BYTES_MAX);
    json_write_object_begin(writer);
    buffer_append_slice(&names.text, logprob_list_bytes(list, entry));
    write_named(&names, entry->logprob, name, writer);
    for (size_t i = 0; i < entry->n_top; i++) {
        const TokenLogprob *top = &entry->top[i];
        size_t before = names.text.len;
        if (top->id == entry->id)
            continue;
        if (tokenizer_append_token_bytes(reply->tokenizer, top->id, &names.text, &err)) {
            write_named(&names, top->logprob, name, writer);
        } else {
            names.text.len = before;
            fail_with(err.code == ERROR_MEMORY, writer); /* else it is none of the tokenizer's */
        }
    }
    json_write_object_end(writer);
    fail_with(names.text.failed, writer);
    buffer_reset(&names.text);
}

typedef enum Column { COLUMN_TOKENS, COLUMN_LOGPROBS, COLUMN_TOP, COLUMN_OFFSETS } Column;

static void write_cell(const Reply *reply, Column column, const Part *part,
                       const LogprobEntry *entry, size_t offset, Buffer *name, JsonWriter *writer)
{
    switch (column) {
    case COLUMN_TOKENS:
        json_write_string(writer, make_name(logprob_list_bytes(part->list, entry), name, writer));
        break;
    case COLUMN_LOGPROBS:
        if (isnan(entry->logprob))
            json_write_null(writer);
        else
            openai_write_logprob(entry->logprob, writer);
        break;
    case COLUMN_TOP:
        write_top(reply, part->list, entry, name, writer);
        break;
    case COLUMN_OFFSETS:
        json_write_uint(writer, offset);
        break;
    }
}

/* Where the walk over a part's entries is. */
typedef struct Walk {
    size_t offset;  /* of the next entry, in characters */
    size_t done;    /* bytes of the part's text or echo that entries have made for certain */
    size_t counted; /* their end as an offset */
    size_t ahead;   /* as in Part; 0 behind its first entries */
} Walk;

/* Tokenizers that put a blank before a text leave it out again where they decode. */
static void step_prompt(const Part *part, size_t index, Walk *walk)
{
    Slice bytes = logprob_list_bytes(part->list, logprob_list_get(part->list, index));
    Slice rest = SLICE_EMPTY;
    if (walk->done < part->echo.len)
        rest = (Slice){part->echo.ptr + walk->done, part->echo.len - walk->done};
    if (index == 0 && part->skips_first)
        return;
    if (bytes.len > 0 && bytes.ptr[0] == ' ' && !slice_starts_with(rest, bytes) &&
        slice_starts_with(rest, (Slice){bytes.ptr + 1, bytes.len - 1})) {
        bytes.ptr++;
        bytes.len--;
    }
    walk->done += bytes.len < rest.len ? bytes.len : rest.len;
    walk->offset += utf8_count(bytes);
}

/* The next entry with bytes that became certain together with this one, or SIZE_MAX. Entries
 * without are tokens that are no text. */
static size_t next_of_group(const LogprobList *list, size_t index)
{
    size_t end = logprob_list_get(list, index)->text_end;
    while (++index < logprob_list_count(list)) {
        const LogprobEntry *entry = logprob_list_get(list, index);
        if (entry->text_end != end)
            break;
        if (entry->n_bytes > 0)
            return index;
    }
    return SIZE_MAX;
}

/* Steps from an entry to the next of its group, whose text ends at the offset `most`: by the bytes,
 * but a last one that is whole characters ends where the text does. */
static void step_within_group(const Part *part, size_t next, size_t most, size_t by_bytes,
                              Walk *walk)
{
    Slice bytes = logprob_list_bytes(part->list, logprob_list_get(part->list, next));
    size_t characters = utf8_count(bytes);
    bool is_certain = characters <= most - walk->counted && utf8_is_valid(bytes) &&
                      next_of_group(part->list, next) == SIZE_MAX;
    walk->offset = is_certain ? most - characters : by_bytes < most ? by_bytes : most;
}

/* Steps over an entry. Tokens that became certain together have one end; within such a group their
 * bytes tell, and at its end the text does, whatever had to be replaced in it. What is no text does
 * not belong to a group: whether it comes in the same event as the text before is chance. */
static void step_entry(const Part *part, size_t index, Walk *walk)
{
    const LogprobEntry *entry = logprob_list_get(part->list, index);
    size_t by_bytes = walk->offset + utf8_count(logprob_list_bytes(part->list, entry));
    if (!part->text.ptr) {
        step_prompt(part, index, walk);
        return;
    }
    bool has_more = index + 1 < logprob_list_count(part->list) &&
                    logprob_list_get(part->list, index + 1)->text_end == entry->text_end;
    if (has_more && entry->n_bytes == 0)
        return;
    size_t next = has_more ? next_of_group(part->list, index) : SIZE_MAX;
    size_t end = entry->text_end > part->text_at ? entry->text_end - part->text_at : 0;
    end = end < part->text.len ? end : part->text.len;
    end = end > walk->done ? end : walk->done;
    size_t group = utf8_count((Slice){part->text.ptr + walk->done, end - walk->done});
    size_t most = walk->counted + walk->ahead + group;
    if (next != SIZE_MAX) {
        step_within_group(part, next, most, by_bytes, walk);
        return;
    }
    walk->offset = walk->counted = most;
    walk->done = end;
    walk->ahead = 0;
}

static void write_column(const Reply *reply, Column column, const Part *parts, size_t n_parts,
                         JsonWriter *writer)
{
    static const char *const KEYS[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    Buffer name;
    buffer_init(&name, TOKENIZER_TEXT_BYTES_MAX);
    json_write_key(writer, KEYS[column]);
    json_write_array_begin(writer);
    for (size_t p = 0; p < n_parts; p++) {
        Walk walk = {parts[p].offset, 0, parts[p].offset, parts[p].ahead};
        for (size_t i = 0; i < logprob_list_count(parts[p].list); i++) {
            const LogprobEntry *entry = logprob_list_get(parts[p].list, i);
            write_cell(reply, column, &parts[p], entry, walk.offset, &name, writer);
            step_entry(&parts[p], i, &walk);
        }
    }
    json_write_array_end(writer);
    buffer_reset(&name);
}

static void write_logprobs(const Reply *reply, const Part *parts, size_t n_parts,
                           JsonWriter *writer)
{
    json_write_key(writer, "logprobs");
    if (!reply->logprobs || n_parts == 0) {
        json_write_null(writer);
        return;
    }
    json_write_object_begin(writer);
    for (Column column = COLUMN_TOKENS; column <= COLUMN_OFFSETS; column++)
        write_column(reply, column, parts, n_parts, writer);
    json_write_object_end(writer);
}

/* Is the first token one that the tokenizer has put before the text? Then there is one more of it
 * than the text begins with. */
static bool is_put_before(const Reply *reply, const LogprobList *list, Slice echo)
{
    const LogprobEntry *first = logprob_list_get(list, 0);
    Slice bytes = logprob_list_bytes(list, first);
    size_t n = 0;
    if (!tokenizer_is_special(reply->tokenizer, first->id))
        return false;
    while (n < logprob_list_count(list) && logprob_list_get(list, n)->id == first->id)
        n++;
    for (; n > 0 && bytes.len > 0 && slice_starts_with(echo, bytes); n--)
        echo = (Slice){echo.ptr + bytes.len, echo.len - bytes.len};
    return n > 0;
}

static Part prompt_part(const Reply *reply, const ReplyChoice *choice)
{
    const ReplyPrompt *prompt = &reply->prompts[choice->prompt];
    Part part = {.list = &prompt->logprobs, .echo = prompt->echo};
    part.skips_first =
        logprob_list_count(part.list) > 0 && is_put_before(reply, part.list, prompt->echo);
    return part;
}

static Part reply_part(const Reply *reply, const ReplyChoice *choice)
{
    size_t before = utf8_count(reply->prompts[choice->prompt].echo) + choice->entry_characters;
    return (Part){.list = &choice->logprobs,
                  .offset = before,
                  .text = buffer_view(&choice->text),
                  .text_at = choice->bytes,
                  .ahead = choice->characters - choice->entry_characters};
}

/* ---- Whole ---- */

static void write_text(const Reply *reply, const ReplyChoice *choice, JsonWriter *writer)
{
    Slice echo = reply->prompts[choice->prompt].echo;
    json_write_key(writer, "text");
    if (echo.len == 0) {
        json_write_string(writer, buffer_view(&choice->text));
        return;
    }
    Buffer both;
    buffer_init(&both, SERVER_REPLY_BYTES_MAX);
    buffer_append_slice(&both, echo);
    buffer_append_slice(&both, buffer_view(&choice->text));
    json_write_string(writer, buffer_view(&both));
    fail_with(both.failed, writer);
    buffer_reset(&both);
}

static void write_whole(const Reply *reply, Buffer *out)
{
    JsonWriter writer;
    openai_begin_whole(reply, &NAMES, &writer, out);
    for (size_t i = 0; i < reply->n_choices; i++) {
        const ReplyChoice *choice = &reply->choices[i];
        Part parts[COMPLETION_PARTS_MAX] = {prompt_part(reply, choice), reply_part(reply, choice)};
        size_t first = reply->echo ? 0 : 1;
        json_write_object_begin(&writer);
        json_write_key(&writer, "index");
        json_write_uint(&writer, choice->index);
        write_text(reply, choice, &writer);
        write_logprobs(reply, parts + first, COMPLETION_PARTS_MAX - first, &writer);
        openai_write_finish(reply_finish_name(choice), &writer);
        json_write_object_end(&writer);
    }
    openai_end_whole(reply, &writer);
}

/* ---- Chunks ---- */

static void write_chunk(const Reply *reply, const ReplyChoice *choice, Slice text, const Part *part,
                        const char *finish, Buffer *out)
{
    JsonWriter writer;
    bool has_list = part && logprob_list_count(part->list) > 0;
    openai_begin_chunk(reply, &NAMES, &writer, out);
    json_write_object_begin(&writer);
    json_write_key(&writer, "index");
    json_write_uint(&writer, choice->index);
    json_write_key(&writer, "text");
    json_write_string(&writer, text);
    write_logprobs(reply, part, has_list ? 1 : 0, &writer);
    openai_write_finish(finish, &writer);
    json_write_object_end(&writer);
    openai_end_chunk(reply, &writer, out);
}

static void stream_begin(const Reply *reply, Buffer *out)
{
    for (size_t i = 0; i < reply->n_choices && reply->echo; i++) {
        const ReplyChoice *choice = &reply->choices[i];
        Part part = prompt_part(reply, choice);
        write_chunk(reply, choice, reply->prompts[choice->prompt].echo, &part, NULL, out);
    }
}

static void stream_delta(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    Part part = reply_part(reply, choice);
    write_chunk(reply, choice, buffer_view(&choice->text), &part, NULL, out);
}

static void stream_choice_end(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    Part part = reply_part(reply, choice);
    write_chunk(reply, choice, SLICE(""), &part, reply_finish_name(choice), out);
}

static void stream_end(const Reply *reply, Buffer *out)
{
    openai_end_stream(reply, &NAMES, out);
}

const ReplyDialect COMPLETION_DIALECT = {
    .begin = stream_begin,
    .delta = stream_delta,
    .choice_end = stream_choice_end,
    .end = stream_end,
    .error = openai_write_error_event,
    .keep_alive = openai_write_keep_alive,
    .whole = write_whole,
};
