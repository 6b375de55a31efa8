/* What filters and methods share. Private. */
#ifndef JINJA_FILTERS_H
#define JINJA_FILTERS_H

#include "jinja_machine.h"

#include <utf8proc.h>

/* The filters over text and numbers; NULL when there is none of that name. */
const JinjaBuiltin *jinja_text_filter_find(Slice name);

/* Methods of everything but strings; see jinja_method_find. */
const JinjaBuiltin *jinja_container_method_find(const JinjaValue *self, Slice name, bool *unsafe);

/* The methods of strings that ask about their characters (isdigit, isupper ...). */
const JinjaBuiltin *jinja_character_method_find(Slice name);

/* Of letters and of what Unicode counts as such: LU, LL or LT; CN for all others. */
utf8proc_category_t jinja_case_of(uint32_t code_point);
bool jinja_is_cased(uint32_t code_point);     /* has an upper and a lower case */
bool jinja_is_printable(uint32_t code_point); /* repr shows it as it is */
/* text without white space, or without the characters of chars, at its ends. */
Slice jinja_text_strip(Slice text, bool left, bool right);
bool jinja_text_strip_chars(JinjaMachine *m, Slice text, Slice chars, bool left, bool right,
                            Slice *out) WARN_UNUSED;
/* count < 0: every occurrence. */
bool jinja_text_replace(JinjaMachine *m, Slice text, Slice old, Slice replacement, int64_t count,
                        JinjaValue *out) WARN_UNUSED;
/* The line at *at without its break, and the break; *at moves behind. false at the end. */
bool jinja_text_next_line(Slice text, size_t *at, Slice *line, Slice *line_break);
/* left and right fills around text; and how many text lacks to width. */
bool jinja_text_pad(JinjaMachine *m, Slice text, size_t left, size_t right, Slice fill,
                    JinjaValue *out) WARN_UNUSED;
size_t jinja_text_missing(Slice text, int64_t width);
bool jinja_text_center(JinjaMachine *m, Slice text, int64_t width, Slice fill,
                       JinjaValue *out) WARN_UNUSED;
/* A character of a word: letters, digits and the underscore, as \w; a decimal digit, as \d. */
bool jinja_is_word(uint32_t code_point);
bool jinja_is_decimal(uint32_t code_point);

/* The attribute of an item: a path like "a.0.b", whose parts of digits are indices; another key;
 * or, with none, the item itself. A fallback that is not none replaces what is missing. */
bool jinja_item_attribute(JinjaMachine *m, const JinjaValue *item, const JinjaValue *attribute,
                          const JinjaValue *fallback, JinjaValue *out) WARN_UNUSED;

/* Filters with a file of their own. */
bool jinja_filter_wordwrap(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_pprint(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_urlize(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);

/* jinja_filters_order.c */
bool jinja_filter_sort(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_dictsort(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_groupby(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_min(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_max(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
bool jinja_filter_unique(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);

#endif
