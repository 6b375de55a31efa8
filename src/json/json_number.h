/* json_number: number texts to values and back (private to the room; see json_number.c). */
#ifndef JSON_NUMBER_H
#define JSON_NUMBER_H

#include "json.h"

/* text obeys JSON's number grammar: the reader checked. */
JsonValue json_number_parse(Slice text);
/* As json_format_double, for a finite float. */
size_t json_number_format_float(float value, char out[JSON_NUMBER_TEXT_MAX]);
/* Decimal digits of value. Returns the length, at most 20. */
size_t json_number_format_uint(uint64_t value, char out[JSON_NUMBER_TEXT_MAX]);

#endif
