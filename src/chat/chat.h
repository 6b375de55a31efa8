/* chat: a conversation to prompt text, by the model's own template or its architecture's default.
 *
 * Messages arrive as JSON (an array already checked by the caller for roles and content); this room
 * normalises them as transformers does (reasoning fields; on request content parts and tool-call
 * arguments too) and renders them through jinja. It knows nothing of HTTP or tokens. Threads: a
 * ChatTemplate is immutable, any thread. */
#ifndef CHAT_H
#define CHAT_H

#include "base.h"
#include "json.h"

typedef struct ChatTemplate ChatTemplate;

/* Reads chat_template.jinja, else chat_template of tokenizer_config.json (a string, or a list of
 * named templates of which "default" is taken), and bos_token and eos_token (strings or objects
 * with content) of tokenizer_config.json. A model with no template gets the default of its
 * architecture: model_type "gemma..." Gemma turns, all others ChatML. */
bool chat_template_open(const char *model_directory, Slice model_type, ChatTemplate **out,
                        Error *err) WARN_UNUSED;
/* From source text alone (the `render` command); bos and eos may be empty. */
bool chat_template_create(Slice source, const char *name, Slice bos_token, Slice eos_token,
                          ChatTemplate **out, Error *err) WARN_UNUSED;
void chat_template_free(ChatTemplate *tmpl);

/* Borrowed; empty when the model has none. */
Slice chat_template_bos_token(const ChatTemplate *tmpl);
Slice chat_template_eos_token(const ChatTemplate *tmpl);
Slice chat_template_source(const ChatTemplate *tmpl);
bool chat_template_is_default(const ChatTemplate *tmpl); /* the model brought none */

typedef struct ChatRequest {
    const JsonValue *messages;  /* array of objects with role and content */
    const JsonValue *tools;     /* array or NULL */
    const JsonValue *documents; /* array or NULL */
    const JsonValue *kwargs;    /* object of further template variables, or NULL */
    bool add_generation_prompt;
    /* For the server: content that is an array of text parts becomes their concatenation, and
     * tool-call arguments that are JSON text become values. false: messages reach the template as
     * given. */
    bool join_content;
    /* For the `render` command: override the template's own tokens when not NULL. */
    const JsonValue *bos_token, *eos_token;
    const char *now_text; /* see JinjaContext */
} ChatRequest;

/* Appends the prompt. Errors: ERROR_INVALID with a message the template raised or with where it
 * failed; ERROR_LIMIT. scratch holds the normalised messages and is the caller's to reset. */
bool chat_template_render(const ChatTemplate *tmpl, const ChatRequest *request, Arena *scratch,
                          Buffer *out, Error *err) WARN_UNUSED;

#endif
