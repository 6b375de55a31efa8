/* tokenize, detokenize, render: one JSON object a line in, one out, in order. A bad line is
 * answered with {"error": ...} and the next one is served. */
#include "cli.h"

#include "chat.h"
#include "json.h"
#include "json_lines.h"
#include "loaded_model.h"
#include "tokenizer.h"

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

static bool answer_tokenize(void *context, const JsonValue *request, JsonWriter *writer,
                            Arena *arena, Error *err)
{
    (void)arena;
    Slice text = SLICE_EMPTY;
    bool add_special = false;
    TokenList list = {0};
    if (!json_get_present(request, "text"))
        return error_set(err, ERROR_INVALID, "text is missing");
    if (!json_read_string(request, "text", &text, err) ||
        !json_read_bool(request, "add_special", &add_special, err))
        return false;
    bool ok = tokenizer_encode(context, text, add_special, &list, err);
    if (ok) {
        json_write_key(writer, "ids");
        json_write_array_begin(writer);
        for (size_t i = 0; i < list.count; i++)
            json_write_int(writer, list.ids[i]);
        json_write_array_end(writer);
    }
    token_list_reset(&list);
    return ok;
}

static bool read_ids(const JsonValue *request, TokenList *list, Error *err)
{
    const JsonValue *ids = json_get(request, SLICE("ids"));
    if (!json_is(ids, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "ids must be an array of integers");
    for (size_t i = 0; i < ids->as.array.count; i++) {
        int64_t id;
        if (!json_to_int64(&ids->as.array.items[i], &id) || id < 0 || id > INT32_MAX)
            return error_set(err, ERROR_INVALID, "ids[%zu] is not a token id", i);
        if (!token_list_append(list, (int32_t)id, err))
            return false;
    }
    return true;
}

/* "chunks": what each id appended, and what the end flushed. */
static bool write_chunks(const Tokenizer *tokenizer, const TokenList *list, bool skip_special,
                         JsonWriter *writer, Error *err)
{
    TokenDecoder decoder;
    Buffer piece;
    bool ok = true;
    buffer_init(&piece, JSON_LINES_BYTES_MAX);
    token_decoder_init(&decoder, tokenizer, skip_special);
    json_write_key(writer, "chunks");
    json_write_array_begin(writer);
    for (size_t i = 0; i <= list->count && ok; i++) {
        buffer_clear(&piece);
        ok = i < list->count ? token_decoder_push(&decoder, list->ids[i], &piece, err)
                             : token_decoder_finish(&decoder, &piece, err);
        if (ok)
            json_write_string(writer, buffer_view(&piece));
    }
    json_write_array_end(writer);
    buffer_reset(&piece);
    return ok;
}

static bool answer_detokenize(void *context, const JsonValue *request, JsonWriter *writer,
                              Arena *arena, Error *err)
{
    (void)arena;
    const Tokenizer *tokenizer = context;
    bool skip_special = false, stream = false;
    TokenList list = {0};
    Buffer text;
    buffer_init(&text, JSON_LINES_BYTES_MAX);
    bool ok = json_read_bool(request, "skip_special", &skip_special, err) &&
              json_read_bool(request, "stream", &stream, err) && read_ids(request, &list, err);
    if (ok && stream) {
        ok = write_chunks(tokenizer, &list, skip_special, writer, err);
    } else if (ok) {
        ok = tokenizer_decode(tokenizer, list.ids, list.count, skip_special, &text, err);
        if (ok) {
            json_write_key(writer, "text");
            json_write_string(writer, buffer_view(&text));
        }
    }
    buffer_reset(&text);
    token_list_reset(&list);
    return ok;
}

/* An array member or NULL; null counts as absent. */
static bool read_array(const JsonValue *request, const char *key, const JsonValue **out, Error *err)
{
    *out = json_get_present(request, key);
    if (*out && (*out)->kind != JSON_ARRAY)
        return error_set(err, ERROR_INVALID, "%s must be an array", key);
    return true;
}

static bool answer_render(void *context, const JsonValue *request, JsonWriter *writer, Arena *arena,
                          Error *err)
{
    /* A template alone has no tokens of its own; with a model, absent means the model's. */
    ChatRequest chat = {
        .kwargs = json_get_present(request, "kwargs"),
        .bos_token = json_get(request, SLICE("bos_token")),
        .eos_token = json_get(request, SLICE("eos_token")),
    };
    if (!read_array(request, "messages", &chat.messages, err) ||
        !read_array(request, "tools", &chat.tools, err) ||
        !read_array(request, "documents", &chat.documents, err) ||
        !json_read_bool(request, "add_generation_prompt", &chat.add_generation_prompt, err))
        return false;
    if (!chat.messages)
        return error_set(err, ERROR_INVALID, "messages is missing");
    if (chat.kwargs && chat.kwargs->kind != JSON_OBJECT)
        return error_set(err, ERROR_INVALID, "kwargs must be an object");
    Slice now = SLICE_EMPTY;
    if (!json_read_string(request, "now", &now, err))
        return false;
    chat.now_text = now.ptr;
    Buffer prompt;
    buffer_init(&prompt, JSON_LINES_BYTES_MAX);
    bool ok = chat_template_render(context, &chat, arena, &prompt, err);
    if (ok) {
        json_write_key(writer, "prompt");
        json_write_string(writer, buffer_view(&prompt));
    }
    buffer_reset(&prompt);
    return ok;
}

static int run_with_tokenizer(const Arguments *arguments, AnswerLine answer)
{
    Error err = {0};
    Tokenizer *tokenizer;
    if (!tokenizer_open(arguments->model, &tokenizer, &err))
        return report_error(&err);
    bool ok = json_lines_answer(answer, tokenizer, &err);
    tokenizer_free(tokenizer);
    return ok ? EXIT_DONE : report_error(&err);
}

int command_tokenize(const Arguments *arguments)
{
    return run_with_tokenizer(arguments, answer_tokenize);
}

int command_detokenize(const Arguments *arguments)
{
    return run_with_tokenizer(arguments, answer_detokenize);
}

static bool open_template(const Arguments *arguments, ChatTemplate **out, Error *err)
{
    if (!arguments->template_file) {
        char type[MODEL_TYPE_BYTES_MAX];
        read_model_type(arguments->model, type);
        return chat_template_open(arguments->model, slice_of(type), out, err);
    }
    Buffer source;
    buffer_init(&source, TEMPLATE_BYTES_MAX);
    bool ok = file_read(arguments->template_file, TEMPLATE_BYTES_MAX, &source, err) &&
              chat_template_create(buffer_view(&source), arguments->template_file, SLICE_EMPTY,
                                   SLICE_EMPTY, out, err);
    buffer_reset(&source);
    return ok;
}

int command_render(const Arguments *arguments)
{
    Error err = {0};
    ChatTemplate *tmpl;
    if (!open_template(arguments, &tmpl, &err))
        return report_error(&err);
    bool ok = json_lines_answer(answer_render, tmpl, &err);
    chat_template_free(tmpl);
    return ok ? EXIT_DONE : report_error(&err);
}
