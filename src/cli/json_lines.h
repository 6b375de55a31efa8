/* json_lines: one JSON object a line on stdin, one on stdout, in order. A bad line is answered with
 * {"error": ...} and the next one is served. */
#ifndef CLI_JSON_LINES_H
#define CLI_JSON_LINES_H

#include "json.h"

enum { JSON_LINES_BYTES_MAX = 1 << 30 }; /* of an answer */

/* Answers one request object by writing the members of the result object. */
typedef bool (*AnswerLine)(void *context, const JsonValue *request, JsonWriter *writer,
                           Arena *arena, Error *err);

/* Until stdin ends or a signal asks to stop. */
bool json_lines_answer(AnswerLine answer, void *context, Error *err) WARN_UNUSED;

#endif
