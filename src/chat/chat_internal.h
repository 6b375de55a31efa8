/* Private to the chat room. */
#ifndef CHAT_INTERNAL_H
#define CHAT_INTERNAL_H

#include "chat.h"

/* Templates for models that bring none. */
Slice chat_default_source(Slice model_type);

/* Special tokens that templates may name. */
typedef enum ChatToken {
    CHAT_TOKEN_BOS,
    CHAT_TOKEN_EOS,
    CHAT_TOKEN_UNK,
    CHAT_TOKEN_SEP,
    CHAT_TOKEN_PAD,
    CHAT_TOKEN_CLS,
    CHAT_TOKEN_MASK,
    CHAT_TOKENS
} ChatToken;

const char *chat_token_name(ChatToken token); /* the variable: "bos_token" */

/* A template; text empty: there is none. */
typedef struct ChatSource {
    const char *name; /* for messages; of static lifetime or the caller's */
    Slice text;
} ChatSource;

/* What a ChatTemplate is made of. */
typedef struct ChatSources {
    ChatSource source;
    ChatSource tool_source;    /* for conversations with tools, when it is not the same */
    Slice tokens[CHAT_TOKENS]; /* empty: the model has none */
} ChatSources;

typedef struct ChatFiles {
    Arena arena; /* of the slices */
    ChatSources sources;
} ChatFiles;

/* Reads a model's directory; what is not there is empty. The files are the caller's to reset. */
bool chat_files_read(const char *directory, ChatFiles *out, Error *err) WARN_UNUSED;
void chat_files_reset(ChatFiles *files);

typedef struct ChatPreparation {
    bool join_content;    /* text parts become one string */
    bool parse_arguments; /* tool-call arguments that are JSON text become values */
} ChatPreparation;

/* The messages as the template sees them, in scratch. The reasoning fields are filled in always. */
bool chat_messages_prepare(const JsonValue *messages, ChatPreparation preparation, Arena *scratch,
                           JsonValue *out, Error *err) WARN_UNUSED;

/* The marks that a template's source tells. */
void chat_markup_find(Slice source, Markup *out);

/* How a template deals with tools. */
typedef struct ChatToolSupport {
    bool writes_tools;    /* it has a place for them */
    bool writes_calls;    /* and for calls of earlier turns and their results */
    bool refuses_system;  /* it has none for a system message */
    bool takes_one_call;  /* a message */
    bool wants_short_ids; /* ids of calls have nine letters or digits */
} ChatToolSupport;

void chat_tools_find_support(Slice source, ChatToolSupport *out);
/* Rewrites prepared messages for the template: ids where it wants them short; calls and their
 * results as text where it knows none; tools (an array or NULL) the same, *tools is NULL then. */
bool chat_tools_rewrite(const ChatToolSupport *support, const MarkupCalls *calls,
                        const JsonValue **tools, JsonValue *messages, Arena *scratch,
                        Error *err) WARN_UNUSED;

#endif
