/* gbnf: llama.cpp's grammar notation to an automaton.
 *
 *     root  ::= object ws        # comment
 *     ws    ::= ([ \t\n] ws)?
 *     digit ::= [0-9]{1,3} | "\"" [^"\\]* "\"" | .
 *
 * Literals and classes are characters (UTF-8 in the text), quantifiers are * + ? {m} {m,} {m,n}. A
 * rule may stretch over lines inside parentheses, behind "::=" and around "|". As in llama.cpp the
 * start is the rule `root`, and left recursion is refused. Token references (<...>) are refused
 * too. */
#ifndef GRAMMAR_GBNF_H
#define GRAMMAR_GBNF_H

#include "text.h"

enum {
    GBNF_BYTES_MAX = 1 << 20,
    GBNF_DEPTH_MAX = 100,
    GBNF_REPEAT_MAX = 1 << 16,
};

/* Adds all rules to text's automaton and sets its root. source must outlive automaton_finish (rule
 * names). Errors name line and column. */
bool gbnf_compile(Slice source, Text *text, Error *err) WARN_UNUSED;

#endif
