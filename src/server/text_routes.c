/* Routes around the text of a prompt: /tokenize, /detokenize, /apply-template. */
#include "body.h"
#include "chat_request.h"
#include "fields.h"
#include "models.h"
#include "route.h"

#include <stdio.h>

/* `model` comes last of the fields: what else is wrong with a body is told before its name is. */
static const ServerModel *need_named_model(HttpRequest *request, const JsonValue *body,
                                           HttpError *error)
{
    Slice name = SLICE_EMPTY;
    if (!field_read_string(json_get(body, SLICE("model")), "model", &name, error) ||
        !models_select(request->server, name, error))
        return NULL;
    return http_need_model(request, error);
}

/* ---- Tokenise ---- */

static const char *const TOKENIZE_NAMES[] = {"content",       "prompt",      "add_special",
                                             "parse_special", "with_pieces", "model"};

typedef struct TokenizeCall {
    Slice content;
    bool add_special, parse_special, with_pieces;
} TokenizeCall;

static bool read_tokenize(const JsonValue *body, TokenizeCall *out, HttpError *error)
{
    *out = (TokenizeCall){.parse_special = true};
    const JsonValue *content = json_get_present(body, "content");
    const char *name = content ? "content" : "prompt";
    if (!content)
        content = json_get_present(body, "prompt");
    if (!content)
        return http_error_set(error, FAULT_MISSING, "content", "'content' is missing.");
    return field_read_string(content, name, &out->content, error) &&
           field_read_bool(json_get(body, SLICE("add_special")), "add_special", &out->add_special,
                           error) &&
           field_read_bool(json_get(body, SLICE("parse_special")), "parse_special",
                           &out->parse_special, error) &&
           field_read_bool(json_get(body, SLICE("with_pieces")), "with_pieces", &out->with_pieces,
                           error);
}

static void write_piece(Slice bytes, JsonWriter *writer)
{
    if (utf8_is_valid(bytes)) {
        json_write_string(writer, bytes);
        return;
    }
    json_write_array_begin(writer);
    for (size_t i = 0; i < bytes.len; i++)
        json_write_int(writer, (unsigned char)bytes.ptr[i]);
    json_write_array_end(writer);
}

static bool write_tokens(const ServerModel *model, const TokenList *tokens, bool with_pieces,
                         JsonWriter *writer, Error *err)
{
    Buffer piece;
    bool ok = true;
    buffer_init(&piece, 1 << 20);
    json_write_array_begin(writer);
    for (size_t i = 0; i < tokens->count && ok; i++) {
        if (!with_pieces) {
            json_write_int(writer, tokens->ids[i]);
            continue;
        }
        buffer_clear(&piece);
        ok = tokenizer_append_token_bytes(model->tokenizer, tokens->ids[i], &piece, err);
        json_write_object_begin(writer);
        json_write_key(writer, "id");
        json_write_int(writer, tokens->ids[i]);
        json_write_key(writer, "piece");
        write_piece(buffer_view(&piece), writer);
        json_write_object_end(writer);
    }
    json_write_array_end(writer);
    buffer_reset(&piece);
    return ok;
}

static bool answer_tokenize(HttpRequest *request, const ServerModel *model,
                            const TokenizeCall *call, HttpError *error)
{
    Error err;
    TokenList tokens = {0};
    JsonWriter writer;
    bool ok = call->parse_special ? tokenizer_encode(model->tokenizer, call->content,
                                                     call->add_special, &tokens, &err)
                                  : tokenizer_encode_plain(model->tokenizer, call->content,
                                                           call->add_special, &tokens, &err);
    json_writer_init(&writer, &request->reply, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "tokens");
    ok = ok && write_tokens(model, &tokens, call->with_pieces, &writer, &err);
    if (ok) {
        json_write_key(&writer, "count");
        json_write_uint(&writer, tokens.count);
        json_write_key(&writer, "max_model_len");
        json_write_uint(&writer, model->max_context);
        json_write_object_end(&writer);
        http_reply(request, 200, "application/json");
    }
    token_list_reset(&tokens);
    return ok || http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, "content");
}

void text_handle_tokenize(HttpRequest *request)
{
    static const BodyNames KNOWN = {TOKENIZE_NAMES, ARRAY_COUNT(TOKENIZE_NAMES)};
    HttpError error;
    const JsonValue *body;
    const ServerModel *model;
    TokenizeCall call;
    if (!body_read(request, &KNOWN, &body, &error) || !read_tokenize(body, &call, &error) ||
        !(model = need_named_model(request, body, &error)) ||
        !answer_tokenize(request, model, &call, &error))
        http_reply_error(request, &error);
}

/* ---- Detokenise ---- */

static const char *const DETOKENIZE_NAMES[] = {"tokens", "model"};

static bool answer_detokenize(HttpRequest *request, const ServerModel *model,
                              const JsonValue *array, HttpError *error)
{
    Error err;
    TokenList tokens = {0};
    Buffer text;
    JsonWriter writer;
    bool ok = fields_read_tokens(array, "tokens", model->vocab_size, &tokens, error);
    if (ok) {
        buffer_init(&text, SERVER_REPLY_BYTES_MAX);
        ok = tokenizer_decode(model->tokenizer, tokens.ids, tokens.count, false, &text, &err) ||
             http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, "tokens");
        json_writer_init(&writer, &request->reply, 0);
        json_write_object_begin(&writer);
        json_write_key(&writer, "content");
        json_write_string(&writer, buffer_view(&text));
        json_write_key(&writer, "prompt");
        json_write_string(&writer, buffer_view(&text));
        json_write_object_end(&writer);
        buffer_reset(&text);
    }
    token_list_reset(&tokens);
    if (ok)
        http_reply(request, 200, "application/json");
    return ok;
}

void text_handle_detokenize(HttpRequest *request)
{
    static const BodyNames KNOWN = {DETOKENIZE_NAMES, ARRAY_COUNT(DETOKENIZE_NAMES)};
    HttpError error;
    const JsonValue *body, *array;
    const ServerModel *model;
    bool ok = body_read(request, &KNOWN, &body, &error) &&
              field_read_array(json_get(body, SLICE("tokens")), "tokens", &array, &error);
    if (ok && !array)
        ok = http_error_set(&error, FAULT_MISSING, "tokens", "'tokens' is missing.");
    if (!ok || !(model = need_named_model(request, body, &error)) ||
        !answer_detokenize(request, model, array, &error))
        http_reply_error(request, &error);
}

/* ---- Template ---- */

static const char *const TEMPLATE_NAMES[] = {
    "messages",         "tools", "chat_template_kwargs", "add_generation_prompt", "enable_thinking",
    "reasoning_effort", "model"};

static bool read_template(const JsonValue *body, Arena *arena, ChatRequest *out, HttpError *error)
{
    *out = (ChatRequest){.add_generation_prompt = true, .for_reply = true};
    return chat_messages_read(json_get(body, SLICE("messages")), arena, &out->messages, error) &&
           fields_check_tools(body, arena, &out->tools, error) &&
           chat_kwargs_read(body, arena, &out->kwargs, error) &&
           field_read_bool(json_get(body, SLICE("add_generation_prompt")), "add_generation_prompt",
                           &out->add_generation_prompt, error);
}

void text_handle_apply_template(HttpRequest *request)
{
    static const BodyNames KNOWN = {TEMPLATE_NAMES, ARRAY_COUNT(TEMPLATE_NAMES)};
    HttpError error;
    Error err;
    const JsonValue *body;
    const ServerModel *model = NULL;
    ChatRequest chat;
    Buffer prompt;
    JsonWriter writer;
    buffer_init(&prompt, SERVER_REPLY_BYTES_MAX);
    bool ok = body_read(request, &KNOWN, &body, &error) &&
              read_template(body, &request->arena, &chat, &error) &&
              (model = need_named_model(request, body, &error));
    if (ok && !chat_template_render(model->chat, &chat, &request->arena, &prompt, &err))
        ok = http_error_from(&error, &err, FAULT_VALUE, FAULT_VALUE, "messages");
    if (ok) {
        json_writer_init(&writer, &request->reply, 0);
        json_write_object_begin(&writer);
        json_write_key(&writer, "prompt");
        json_write_string(&writer, buffer_view(&prompt));
        json_write_object_end(&writer);
        http_reply(request, 200, "application/json");
    } else {
        http_reply_error(request, &error);
    }
    buffer_reset(&prompt);
}
