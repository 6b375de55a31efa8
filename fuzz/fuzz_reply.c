/* A reply of a family of models, taken apart in one piece and byte by byte: both must give the same
 * parts, and no more text than went in. The first byte says which family, whether the prompt opened
 * the reasoning, and whether marks count at the start only. */
#include "chat.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const SIGNS[] = {"<tool_call> <think>",
                                    "[TOOL_CALLS]",
                                    "[TOOL_CALLS] [ARGS] [THINK]",
                                    "\"parameters\": ipython </think>",
                                    "<start_of_turn>",
                                    "<|tool_call> <tool_call|>",
                                    "<｜tool▁calls▁begin｜> ```json <think>",
                                    "<｜tool▁calls▁begin｜>"};

static void take(void *context, const ChatPart *part)
{
    static const char names[] = "rcfa";
    Buffer *out = context;
    if (part->text.len == 0)
        __builtin_trap();
    for (size_t i = 0; i < part->text.len; i++) { /* so that cuts do not show */
        buffer_append_byte(out, part->kind == CHAT_PART_CALL && i == 0 ? 'F' : names[part->kind]);
        buffer_append_byte(out, part->text.ptr[i]);
    }
}

static void take_apart(const Markup *markup, Slice text, size_t step, Buffer *out)
{
    ChatReply reply;
    Error err;
    const ChatPartTaker taker = {take, out};
    chat_reply_init(&reply, markup);
    for (size_t at = 0; at < text.len; at += step) {
        Slice piece = {text.ptr + at, text.len - at < step ? text.len - at : step};
        if (!chat_reply_push(&reply, piece, &taker, &err))
            __builtin_trap();
    }
    chat_reply_finish(&reply, &taker);
    if (reply.at != text.len || out->len > 2 * text.len)
        __builtin_trap();
    chat_reply_reset(&reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ChatTemplate *tmpl;
    Error err;
    Buffer source, whole, bytes;
    if (size == 0)
        return 0;
    buffer_init(&source, 1 << 10);
    buffer_init(&whole, SIZE_MAX);
    buffer_init(&bytes, SIZE_MAX);
    buffer_append_format(&source, "{# %s #}", SIGNS[data[0] % ARRAY_COUNT(SIGNS)]);
    if (!chat_template_create(buffer_view(&source), "fuzz", SLICE_EMPTY, SLICE_EMPTY, &tmpl, &err))
        __builtin_trap();
    Markup markup = *chat_template_markup(tmpl);
    markup.begins_in_think = markup.think_close.len > 0 && data[0] & 0x40;
    markup.only_at_start = data[0] & 0x80;
    Slice text = {(const char *)data + 1, size - 1};
    take_apart(&markup, text, text.len + 1, &whole);
    take_apart(&markup, text, 1, &bytes);
    if (!slice_equal(buffer_view(&whole), buffer_view(&bytes)))
        __builtin_trap();
    chat_template_free(tmpl);
    buffer_reset(&bytes);
    buffer_reset(&whole);
    buffer_reset(&source);
    return 0;
}
