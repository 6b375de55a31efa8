/* Tokens and the parsed template. Private to the room; all of it lives in the template's arena. */
#ifndef JINJA_TREE_H
#define JINJA_TREE_H

#include "jinja_value.h"

typedef enum JinjaTokenKind {
    TOKEN_END,
    TOKEN_TEXT,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_ADD,
    TOKEN_SUB,
    TOKEN_MUL,
    TOKEN_DIV,
    TOKEN_FLOORDIV,
    TOKEN_MOD,
    TOKEN_POW,
    TOKEN_TILDE,
    TOKEN_LBRACKET,
    TOKEN_RBRACKET,
    TOKEN_LPAREN,
    TOKEN_RPAREN,
    TOKEN_LBRACE,
    TOKEN_RBRACE,
    TOKEN_EQ,
    TOKEN_NE,
    TOKEN_GT,
    TOKEN_GE,
    TOKEN_LT,
    TOKEN_LE,
    TOKEN_IN, /* operators of NODE_COMPARE only; the lexer gives TOKEN_NAME */
    TOKEN_NOT_IN,
    TOKEN_ASSIGN,
    TOKEN_DOT,
    TOKEN_COLON,
    TOKEN_PIPE,
    TOKEN_COMMA,
    TOKEN_SEMICOLON
} JinjaTokenKind;

typedef struct JinjaToken {
    JinjaTokenKind kind;
    uint32_t line;
    Slice text; /* TEXT and STRING: the content; NAME: the name; operators: as written */
    union {
        int64_t integer;
        double number;
    } as;
} JinjaToken;

const char *jinja_token_name(JinjaTokenKind kind);

typedef enum JinjaNodeKind {
    /* expressions */
    NODE_CONST,
    NODE_NAME,
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT, /* items alternate key, value */
    NODE_CONCAT,
    NODE_ATTRIBUTE,
    NODE_ITEM,
    NODE_SLICE, /* only as the index of NODE_ITEM */
    NODE_CALL,
    NODE_FILTER,
    NODE_TEST,
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY, /* op: TOKEN_ADD .. TOKEN_POW */
    NODE_AND,
    NODE_OR,
    NODE_COMPARE,
    NODE_CONDITION,
    NODE_NAMESPACE_TARGET, /* `ns.name` on the left of set */
    /* statements */
    NODE_TEXT,
    NODE_PRINT,
    NODE_IF,
    NODE_FOR,
    NODE_SET,
    NODE_SET_BLOCK,
    NODE_MACRO,
    NODE_CALL_BLOCK,
    NODE_FILTER_BLOCK,
    NODE_WITH,
    NODE_SCOPE,      /* generation, block: a body with variables of its own */
    NODE_AUTOESCAPE, /* the same, and what the filter of its block evaluates to decides */
    NODE_BREAK,
    NODE_CONTINUE
} JinjaNodeKind;

/* What the autoescape block around a place in the source says: nothing or no, yes, or what its
 * expression gives when it is reached. */
typedef enum JinjaEscape { JINJA_ESCAPE_NEVER, JINJA_ESCAPE_ALWAYS, JINJA_ESCAPE_ASK } JinjaEscape;

typedef struct JinjaNodes {
    JinjaNode **items;
    size_t count, capacity;
} JinjaNodes;

typedef struct JinjaKeywordNode {
    Slice name;
    JinjaNode *value;
} JinjaKeywordNode;

typedef struct JinjaCallNodes {
    JinjaNodes positional;
    JinjaKeywordNode *keywords;
    size_t keyword_count, keyword_capacity;
    JinjaNode *star, *star_star; /* *args and **kwargs, or NULL */
} JinjaCallNodes;

typedef struct JinjaOperand {
    JinjaTokenKind op; /* TOKEN_EQ .. TOKEN_NOT_IN */
    JinjaNode *value;
} JinjaOperand;

typedef struct JinjaParameter {
    uint32_t name;
    Slice text;
    JinjaNode *fallback; /* default value, or NULL */
} JinjaParameter;

/* A macro, or the body of a call block (whose name is empty). */
typedef struct JinjaMacroNode {
    uint32_t name;
    Slice text;
    JinjaParameter *parameters;
    size_t count, capacity;
    bool wants_caller, wants_varargs, wants_kwargs; /* the body reads these names */
    JinjaNodes body;
} JinjaMacroNode;

typedef struct JinjaForNode {
    JinjaNode *target, *iterable, *filter; /* filter: the inline if, or NULL */
    JinjaNodes body, otherwise;
    bool recursive;
    JinjaEscape escape;
} JinjaForNode;

typedef struct JinjaBranch {
    JinjaNode *test; /* NULL: else */
    JinjaNodes body;
} JinjaBranch;

struct JinjaNode {
    JinjaNodeKind kind;
    JinjaEscape escape;
    uint32_t line;
    union {
        JinjaValue constant;
        struct {
            uint32_t id;
            Slice text;
        } name;
        JinjaNodes nodes; /* LIST, TUPLE, DICT, CONCAT, PRINT */
        struct {
            JinjaNode *object;
            Slice name;
        } attribute;
        struct {
            JinjaNode *object, *index;
        } item;
        struct {
            JinjaNode *start, *stop, *step; /* each may be NULL */
        } slice;
        struct {
            JinjaNode *callee;
            JinjaCallNodes *arguments;
        } call;
        struct {
            JinjaNode *subject;          /* NULL inside a filter block or filtered set */
            const JinjaBuiltin *builtin; /* NULL: no such name, an error when reached */
            Slice name;
            JinjaCallNodes *arguments;
        } apply;            /* FILTER, TEST */
        JinjaNode *operand; /* NOT, NEGATE, PLUS */
        struct {
            JinjaTokenKind op;
            JinjaNode *left, *right;
        } binary; /* BINARY, AND, OR */
        struct {
            JinjaNode *first;
            JinjaOperand *operands;
            size_t count, capacity;
        } compare;
        struct {
            JinjaNode *test, *yes, *no; /* no may be NULL */
        } condition;
        struct {
            uint32_t id;
            Slice object, attribute;
        } target;
        Slice text;
        struct {
            JinjaBranch *branches;
            size_t count, capacity;
        } branches;
        JinjaForNode *loop;
        struct {
            JinjaNode *target, *value;
        } set;
        struct {
            JinjaNode *target,
                *filter; /* FILTER_BLOCK has no target; filter may be NULL in SET_BLOCK */
            JinjaNodes body;
        } block; /* SET_BLOCK, FILTER_BLOCK, SCOPE, AUTOESCAPE */
        JinjaMacroNode *macro;
        struct {
            JinjaNode *call;
            JinjaMacroNode *body;
        } call_block;
        struct {
            JinjaNodes targets, values, body;
        } with;
    } as;
};

/* Names that occur as variables, numbered densely so that a scope can compare numbers. */
typedef struct JinjaNames {
    Slice *items;
    size_t count, capacity;
    uint32_t *index; /* open addressing, name number + 1 */
    size_t index_size;
} JinjaNames;

struct JinjaTemplate {
    Arena arena;
    char *name;
    JinjaNodes body;
    JinjaNames names;
};

/* SIZE_MAX when the name occurs nowhere in the template. */
size_t jinja_names_find(const JinjaNames *names, Slice name);

/* ---- Lexer ---- */

enum { JINJA_BRACKETS_MAX = JINJA_NESTING_MAX };

typedef struct JinjaLexer {
    Slice source; /* newlines normalised */
    size_t at;
    uint32_t line;
    enum { LEXER_TEXT, LEXER_PRINT, LEXER_BLOCK } mode;
    char brackets[JINJA_BRACKETS_MAX]; /* closing characters that are due */
    size_t bracket_count;
    Arena *arena;
    const char *name;
    Error *err;
} JinjaLexer;

bool jinja_lexer_next(JinjaLexer *lexer, JinjaToken *out) WARN_UNUSED;

/* ---- Parser ---- */

/* Parses source (newlines normalised, in tmpl's arena) into tmpl's body and names. */
bool jinja_parse(JinjaTemplate *tmpl, Slice source, Error *err) WARN_UNUSED;

typedef struct JinjaParser {
    JinjaTemplate *tmpl;
    JinjaLexer lexer;
    JinjaToken token, ahead; /* ahead is valid when has_ahead */
    bool has_ahead;
    unsigned depth;
    unsigned loop_depth;      /* loops around this point within the same function body */
    bool soft;                /* inside an if: unknown filters fail only when reached */
    const JinjaNode *unknown; /* first unknown filter or test not yet excused */
    JinjaMacroNode *macro;    /* innermost macro, whose wants_ flags the names set */
    JinjaEscape escape;       /* here */
    Error *err;
} JinjaParser;

/* Shared by the two halves of the parser. */
bool jinja_parser_advance(JinjaParser *p) WARN_UNUSED;
bool jinja_parser_look(JinjaParser *p, const JinjaToken **ahead) WARN_UNUSED;
bool jinja_parser_fail(JinjaParser *p, uint32_t line, const char *format, ...) PRINTF_LIKE(3, 4);
bool jinja_parser_expect(JinjaParser *p, JinjaTokenKind kind) WARN_UNUSED;
bool jinja_parser_expect_name(JinjaParser *p, Slice *name) WARN_UNUSED;
bool jinja_parser_is_name(const JinjaParser *p, const char *name);
bool jinja_parser_enter(JinjaParser *p) WARN_UNUSED; /* counts nesting; pair with p->depth-- */
bool jinja_parser_intern(JinjaParser *p, Slice name, uint32_t *id) WARN_UNUSED;
JinjaNode *jinja_parser_node(JinjaParser *p, JinjaNodeKind kind, uint32_t line) WARN_UNUSED;
/* Grows an arena array by doubling; items are moved by copy. */
bool jinja_parser_grow(JinjaParser *p, void **items, size_t count, size_t *capacity,
                       size_t item_size) WARN_UNUSED;
bool jinja_parser_push(JinjaParser *p, JinjaNodes *nodes, JinjaNode *node) WARN_UNUSED;

enum {
    PARSE_NO_CONDITION = 1, /* an `if` ends the expression */
    PARSE_SIMPLE = 2,       /* primaries only: assignment targets */
    PARSE_NAMESPACE = 4,    /* with PARSE_SIMPLE: ns.name is a target */
    PARSE_PARENTHESES = 8,  /* () is a tuple */
    PARSE_END_IN = 16,      /* `in` ends the tuple */
    PARSE_END_RECURSIVE = 32
};
bool jinja_parse_expression(JinjaParser *p, unsigned flags, JinjaNode **out) WARN_UNUSED;
bool jinja_parse_tuple(JinjaParser *p, unsigned flags, JinjaNode **out) WARN_UNUSED;
/* A chain of filters on subject, beginning at the current `|`, or at a name when start_inline. */
bool jinja_parse_filters(JinjaParser *p, JinjaNode *subject, bool start_inline,
                         JinjaNode **out) WARN_UNUSED;

#endif
