/* The parts of a reply.
 *
 * Up to the first call the scan of the marks decides: text goes out as far as it cannot be part of
 * a mark. Calls are then read by their description, piece after piece:
 *
 *     LIST -> HEAD -> NAME -> NAME_END -> ARGUMENTS -> TAIL -> NEXT -> HEAD ... or OVER
 *
 * A constrained reply fits by construction. One that does not is given back as content from the
 * mark on, unless the call was already announced; then only the rest is. */
#include "chat.h"

#include <string.h>

enum { REPLY_HELD_BYTES_MAX = 64 << 20 };

void chat_reply_init(ChatReply *reply, const Markup *markup)
{
    *reply = (ChatReply){.markup = *markup};
    markup_scan_init(&reply->scan, markup);
    buffer_init(&reply->held, REPLY_HELD_BYTES_MAX);
    buffer_init(&reply->name, REPLY_HELD_BYTES_MAX);
}

void chat_reply_reset(ChatReply *reply)
{
    buffer_reset(&reply->held);
    buffer_reset(&reply->name);
}

bool chat_reply_is_in_call(const ChatReply *reply)
{
    return reply->scan.region == MARKUP_CALLS && reply->state < CHAT_CALL_NEXT;
}

/* ---- Giving out ---- */

static void give(const ChatReply *reply, ChatPartKind kind, Slice text, size_t at,
                 const ChatPartTaker *taker)
{
    ChatPart part = {.kind = kind, .text = text, .at = at, .call = reply->n_calls - 1};
    if (text.len > 0)
        taker->take(taker->context, &part);
}

/* The first `length` held bytes go out as text of the kind. The held bytes end at reply->at. */
static void give_held(ChatReply *reply, ChatPartKind kind, size_t length,
                      const ChatPartTaker *taker)
{
    Slice text = {reply->held.ptr, length};
    give(reply, kind, text, reply->at - reply->held.len, taker);
    buffer_remove_front(&reply->held, length);
}

static ChatPartKind kind_of(MarkupRegion region)
{
    return region == MARKUP_REASONING ? CHAT_PART_REASONING : CHAT_PART_CONTENT;
}

/* White space before anything else may turn out to be what a template puts before a call. */
static bool waits_for_call(const ChatReply *reply)
{
    return reply->scan.region == MARKUP_CONTENT && !reply->scan.has_begun &&
           markup_has_calls(&reply->markup);
}

/* ---- Calls ---- */

/* What stands where: the rest of the text that the state expects. */
static Slice expected(const ChatReply *reply)
{
    const MarkupCalls *calls = &reply->markup.calls;
    switch (reply->state) {
    case CHAT_CALL_LIST:
        return calls->before_calls;
    case CHAT_CALL_HEAD:
        return calls->before_name;
    case CHAT_CALL_NAME_END:
        return calls->after_name;
    case CHAT_CALL_TAIL:
        return calls->after_arguments;
    case CHAT_CALL_NAME:
    case CHAT_CALL_ARGUMENTS:
    case CHAT_CALL_NEXT:
    case CHAT_CALL_OVER:
        break;
    }
    return SLICE_EMPTY;
}

static void enter(ChatReply *reply, ChatCallState state)
{
    reply->state = state;
    reply->matched = 0;
}

/* Moves on from states whose text is complete. */
static void settle_call(ChatReply *reply, const ChatPartTaker *taker)
{
    for (;;) {
        bool is_text = reply->state == CHAT_CALL_LIST || reply->state == CHAT_CALL_HEAD ||
                       reply->state == CHAT_CALL_NAME_END || reply->state == CHAT_CALL_TAIL;
        if (!is_text || reply->matched < expected(reply).len)
            return;
        if (reply->state == CHAT_CALL_NAME_END) {
            reply->n_calls++;
            give(reply, CHAT_PART_CALL, buffer_view(&reply->name), reply->at, taker);
            buffer_clear(&reply->held);
            reply->depth = 0;
            reply->in_string = reply->escaped = false;
        }
        if (reply->state == CHAT_CALL_TAIL)
            buffer_clear(&reply->held);
        enter(reply, (ChatCallState)(reply->state + 1));
        if (reply->state == CHAT_CALL_NAME)
            buffer_clear(&reply->name);
    }
}

static void begin_calls(ChatReply *reply, size_t trigger, const ChatPartTaker *taker)
{
    const MarkupCalls *calls = &reply->markup.calls;
    size_t skip = calls->triggers[trigger].name_bytes;
    enter(reply, CHAT_CALL_LIST);
    reply->matched = skip < calls->before_calls.len ? skip : calls->before_calls.len;
    skip -= reply->matched;
    settle_call(reply, taker);
    if (skip > 0 && reply->state == CHAT_CALL_HEAD) {
        reply->matched = skip;
        settle_call(reply, taker);
    }
}

static bool is_name_byte(char byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= '0' && byte <= '9') || byte == '_' || byte == '-';
}

/* True while the arguments go on after this byte; the object's end is its last byte. */
static bool step_arguments(ChatReply *reply, char byte)
{
    if (reply->in_string) {
        bool ends = byte == '"' && !reply->escaped;
        reply->escaped = byte == '\\' && !reply->escaped;
        reply->in_string = !ends;
        return true;
    }
    if (byte == '"')
        reply->in_string = true;
    else if (byte == '{' || byte == '[')
        reply->depth++;
    else if (byte == '}' || byte == ']')
        return --reply->depth > 0;
    return true;
}

/* Between two calls: the held bytes are a beginning of what separates or of what ends them. */
static bool step_next(ChatReply *reply)
{
    const MarkupCalls *calls = &reply->markup.calls;
    Slice held = buffer_view(&reply->held);
    if (held.len > 0 && slice_equal(held, calls->after_calls)) {
        enter(reply, CHAT_CALL_OVER);
        buffer_clear(&reply->held);
    } else if (slice_equal(held, calls->between_calls) && held.len > 0) {
        enter(reply, CHAT_CALL_HEAD);
    } else if (!slice_starts_with(calls->between_calls, held) &&
               !slice_starts_with(calls->after_calls, held)) {
        return false;
    }
    return true;
}

/* One byte of the calls, which is in held already. False when it does not fit. */
static bool step_call(ChatReply *reply, char byte, const ChatPartTaker *taker)
{
    if (reply->state == CHAT_CALL_NAME) {
        if (is_name_byte(byte)) {
            buffer_append_byte(&reply->name, byte);
            return true;
        }
        if (reply->name.len == 0)
            return false;
        enter(reply, CHAT_CALL_NAME_END);
        settle_call(reply, taker); /* an empty text is complete at once */
        if (reply->state == CHAT_CALL_ARGUMENTS)
            buffer_append_byte(&reply->held, byte);
    }
    if (reply->state == CHAT_CALL_NEXT) {
        bool fits = step_next(reply);
        settle_call(reply, taker);
        return fits;
    }
    if (reply->state == CHAT_CALL_OVER)
        return false;
    if (reply->state == CHAT_CALL_ARGUMENTS) {
        if (reply->depth == 0 && byte != '{')
            return false;
        if (!step_arguments(reply, byte)) {
            give_held(reply, CHAT_PART_ARGUMENTS, reply->held.len, taker);
            enter(reply, CHAT_CALL_TAIL);
            settle_call(reply, taker);
        }
        return true;
    }
    Slice text = expected(reply);
    if (reply->matched >= text.len || text.ptr[reply->matched] != byte)
        return false;
    reply->matched++;
    settle_call(reply, taker);
    return true;
}

/* Nothing is a mark from here on. */
static void become_content(ChatReply *reply)
{
    reply->scan = (MarkupScan){.region = MARKUP_CONTENT, .has_begun = true};
    reply->markup = (Markup){0};
}

/* ---- Public ---- */

static void step(ChatReply *reply, char byte, const ChatPartTaker *taker)
{
    buffer_append_byte(&reply->held, byte);
    reply->at++;
    if (reply->held.failed)
        return;
    if (reply->scan.region == MARKUP_CALLS) {
        if (!step_call(reply, byte, taker))
            become_content(reply);
        return;
    }
    MarkupRegion region = (MarkupRegion)reply->scan.region;
    bool drops_space = waits_for_call(reply);
    size_t trigger = 0;
    size_t length = markup_scan_step(&reply->markup, &reply->scan, byte, &trigger);
    if (length == 0)
        return;
    size_t before = reply->held.len - length;
    if (reply->scan.region != MARKUP_CALLS) {
        give_held(reply, kind_of(region), before, taker);
        buffer_clear(&reply->held);
        return;
    }
    if (!drops_space)
        give_held(reply, kind_of(region), before, taker);
    begin_calls(reply, trigger, taker);
}

bool chat_reply_push(ChatReply *reply, Slice text, const ChatPartTaker *taker, Error *err)
{
    for (size_t i = 0; i < text.len; i++)
        step(reply, text.ptr[i], taker);
    if (!buffer_check(&reply->held, "the reply", err) ||
        !buffer_check(&reply->name, "the reply", err))
        return false;
    if (reply->scan.region == MARKUP_CALLS) {
        if (reply->state == CHAT_CALL_ARGUMENTS)
            give_held(reply, CHAT_PART_ARGUMENTS, reply->held.len, taker);
    } else if (!waits_for_call(reply)) {
        give_held(reply, kind_of((MarkupRegion)reply->scan.region),
                  reply->held.len - markup_scan_held(&reply->scan), taker);
    }
    return true;
}

void chat_reply_finish(ChatReply *reply, const ChatPartTaker *taker)
{
    if (reply->scan.region != MARKUP_CALLS)
        give_held(reply, kind_of((MarkupRegion)reply->scan.region), reply->held.len, taker);
    buffer_clear(&reply->held);
}
