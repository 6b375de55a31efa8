/* What the parser (regex_parse.c) hands to the compiler (regex.c). */
#ifndef GRAMMAR_REGEX_TREE_H
#define GRAMMAR_REGEX_TREE_H

#include "regex.h"

typedef enum RegexKind {
    REGEX_EMPTY,
    REGEX_SET,    /* one character of set */
    REGEX_ALL_OF, /* children one after the other */
    REGEX_ONE_OF, /* any of the children */
    REGEX_REPEAT, /* child, min..max times; max REGEX_NO_END: no end */
    REGEX_BEGIN,  /* ^ */
    REGEX_END,    /* $ */
} RegexKind;

#define REGEX_NO_END UINT32_MAX

typedef struct RegexNode RegexNode;
struct RegexNode {
    RegexKind kind;
    RegexNode *children, *sibling; /* first child; next child of the same parent */
    uint32_t min, max;
    uint32_t set;
};

typedef struct RegexSet {
    CharRange *ranges; /* ascending, apart */
    size_t count;
} RegexSet;

typedef struct RegexTree {
    Arena arena;
    RegexNode *root;
    RegexSet *sets; /* memory_allocate'd */
    size_t n_sets, sets_capacity;
} RegexTree;

bool regex_parse(Slice source, RegexTree *out, Error *err) WARN_UNUSED;
void regex_tree_reset(RegexTree *tree);

#endif
