/* chat_response: chat completions as JSON, whole and in chunks. */
#ifndef SERVER_CHAT_RESPONSE_H
#define SERVER_CHAT_RESPONSE_H

#include "reply.h"

extern const ReplyDialect CHAT_DIALECT;

#endif
