/* Private to the chat room. */
#ifndef CHAT_INTERNAL_H
#define CHAT_INTERNAL_H

#include "chat.h"

/* Templates for models that bring none. */
Slice chat_default_source(Slice model_type);

/* The messages as the template sees them, in scratch. join_content: text parts become one string
 * and tool-call arguments that are JSON text become values; else only the reasoning fields are
 * filled in. */
bool chat_messages_prepare(const JsonValue *messages, bool join_content, Arena *scratch,
                           JsonValue *out, Error *err) WARN_UNUSED;

#endif
