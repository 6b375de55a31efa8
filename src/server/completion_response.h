/* completion_response: completions as JSON, whole and in chunks. */
#ifndef SERVER_COMPLETION_RESPONSE_H
#define SERVER_COMPLETION_RESPONSE_H

#include "reply.h"

extern const ReplyDialect COMPLETION_DIALECT;

#endif
