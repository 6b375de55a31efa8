/* chat: a conversation to prompt text, by the model's own template or its architecture's default,
 * and a reply's text to its parts.
 *
 * Messages arrive as JSON (an array already checked by the caller for roles and content); this room
 * normalises them as transformers does (reasoning fields; on request content parts and tool-call
 * arguments too) and renders them through jinja. It knows nothing of HTTP or tokens. Threads: a
 * ChatTemplate is immutable, any thread. */
#ifndef CHAT_H
#define CHAT_H

#include "base.h"
#include "json.h"
#include "markup.h"

typedef struct ChatTemplate ChatTemplate;

/* Reads chat_template.jinja, else chat_template of tokenizer_config.json, and the template
 * "tool_use" for conversations with tools, where there is one; the special tokens (bos_token and
 * its like) of tokenizer_config.json, or in older directories special_tokens_map.json. A model with
 * no template gets the default of its architecture: model_type "gemma..." Gemma turns, all others
 * ChatML. */
bool chat_template_open(const char *model_directory, Slice model_type, ChatTemplate **out,
                        Error *err) WARN_UNUSED;
/* From source text alone (the `render` command); bos and eos may be empty. */
bool chat_template_create(Slice source, const char *name, Slice bos_token, Slice eos_token,
                          ChatTemplate **out, Error *err) WARN_UNUSED;
void chat_template_free(ChatTemplate *tmpl);

/* Borrowed; empty when the model has none. */
Slice chat_template_bos_token(const ChatTemplate *tmpl);
Slice chat_template_eos_token(const ChatTemplate *tmpl);
Slice chat_template_source(const ChatTemplate *tmpl);    /* of conversations without tools */
bool chat_template_is_default(const ChatTemplate *tmpl); /* the model brought none */
/* The marks of the model's replies, as its template tells; begins_in_think and only_at_start are
 * not set. Of static lifetime. */
const Markup *chat_template_markup(const ChatTemplate *tmpl);
/* The template takes one call in a message only. */
bool chat_template_takes_one_call(const ChatTemplate *tmpl);

typedef struct ChatRequest {
    const JsonValue *messages;  /* array of objects with role and content */
    const JsonValue *tools;     /* array or NULL */
    const JsonValue *documents; /* array or NULL */
    const JsonValue *kwargs;    /* object of further template variables, or NULL */
    bool add_generation_prompt;
    /* For the server: content that is an array of text parts becomes their concatenation,
     * tool-call arguments that are JSON text become values, and where the template knows no tools
     * they are written into the messages. false: messages reach the template as given. */
    bool for_reply;
    /* For the `render` command: override the template's own tokens when not NULL. */
    const JsonValue *bos_token, *eos_token;
    const char *now_text; /* see JinjaContext */
} ChatRequest;

/* Appends the prompt. Errors: ERROR_INVALID with a message the template raised or with where it
 * failed; ERROR_LIMIT. scratch holds the normalised messages and is the caller's to reset. */
bool chat_template_render(const ChatTemplate *tmpl, const ChatRequest *request, Arena *scratch,
                          Buffer *out, Error *err) WARN_UNUSED;

/* ---- Replies ---- */

typedef enum ChatThinking {
    CHAT_THINKING_FREE,  /* the reply may open a block */
    CHAT_THINKING_OPEN,  /* the prompt has opened one */
    CHAT_THINKING_CLOSED /* the prompt has closed one, or the model has none */
} ChatThinking;

/* What a rendered prompt leaves to the reply. */
ChatThinking chat_prompt_thinking(const Markup *markup, Slice prompt);

typedef enum ChatPartKind {
    CHAT_PART_REASONING,
    CHAT_PART_CONTENT,
    CHAT_PART_CALL,     /* a call begins; text is the tool's name */
    CHAT_PART_ARGUMENTS /* JSON text, to be joined */
} ChatPartKind;

typedef struct ChatPart {
    ChatPartKind kind;
    Slice text;  /* not empty; valid during the call only */
    size_t at;   /* of content: where in the reply's text it stands */
    size_t call; /* of calls: 0, 1, ... */
} ChatPart;

typedef struct ChatPartTaker {
    void (*take)(void *context, const ChatPart *part);
    void *context;
} ChatPartTaker;

typedef enum ChatCallState {
    CHAT_CALL_LIST,
    CHAT_CALL_HEAD,
    CHAT_CALL_NAME,
    CHAT_CALL_NAME_END,
    CHAT_CALL_ARGUMENTS,
    CHAT_CALL_TAIL,
    CHAT_CALL_NEXT,
    CHAT_CALL_OVER
} ChatCallState;

/* Takes one reply apart while it comes. Caller-owned: init, reset. All text comes out in order, but
 * for the marks, white space that only stands between marks, and a call that breaks off before its
 * arguments. Text that opens a call and is none is content. */
typedef struct ChatReply {
    Markup markup;
    MarkupScan scan;
    Buffer held; /* read and not given out */
    Buffer name;
    ChatCallState state;
    size_t matched; /* of the text that the state expects */
    size_t depth;   /* of the arguments */
    bool in_string, escaped;
    size_t at, n_calls;
} ChatReply;

void chat_reply_init(ChatReply *reply, const Markup *markup);
void chat_reply_reset(ChatReply *reply);
/* text: whole characters. The taker is called for every part that is certain now. */
bool chat_reply_push(ChatReply *reply, Slice text, const ChatPartTaker *taker,
                     Error *err) WARN_UNUSED;
/* No more comes: what was held back goes out. */
void chat_reply_finish(ChatReply *reply, const ChatPartTaker *taker);
/* Has a call begun that is not complete? */
bool chat_reply_is_in_call(const ChatReply *reply);

#endif
