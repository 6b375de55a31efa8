/* request_log: one line for each request, in key=value form:
 *
 *   mlx-serve: request id=req_0123456789abcdef method="POST" route=/v1/chat/completions status=200
 *     ms=812.4 choices=1 prompt_tokens=37 cached_tokens=0 completion_tokens=64 queue_ms=0.1
 *     ttft_ms=71.0 finish=stop
 *
 * all of it on one line. A refused request has error=CODE and, if one field is to blame,
 * param="NAME"; a client that left has cut=true. Nothing of a prompt or a reply is ever written.
 * The log never holds a request up: a line that the descriptor does not take at once is dropped. */
#ifndef SERVER_REQUEST_LOG_H
#define SERVER_REQUEST_LOG_H

#include "http.h"

/* completed: the whole response was handed to the client. */
void request_log_write(const HttpRequest *request, double seconds, bool completed);

#endif
