/* The tokenizer's parts and the order in which they run; private to this room.
 *
 *   text -> added tokens of the raw text (added_tokens.c)
 *        -> per piece between them: normalizer.c
 *        -> added tokens of the normalised text
 *        -> per piece between them: pre_tokenizer.c -> words
 *        -> bpe.c -> ids -> the post-processor's template
 *   ids  -> decoder.c -> text */
#ifndef TOKENIZER_INTERNAL_H
#define TOKENIZER_INTERNAL_H

#include "bpe.h"
#include "json.h"
#include "pattern.h"
#include "tokenizer.h"
#include "unicode.h"
#include "vocabulary.h"

enum {
    COMPONENTS_MAX = 32, /* normalisers, pre-tokenisers or decoders after flattening sequences */
    COMPONENT_DEPTH_MAX = 8,  /* nested sequences */
    COMPONENT_TEXT_MAX = 256, /* bytes of a replacement or prefix */
    TEMPLATE_ITEMS_MAX = 256, /* ids of a post-processor */
    NORMALIZED_BYTES_MAX = 1 << 30,
};

typedef enum NormalizerKind {
    NORMALIZER_NFC,
    NORMALIZER_LOWERCASE,
    NORMALIZER_REPLACE,
    NORMALIZER_PREPEND,
    NORMALIZER_PIECES
} NormalizerKind;

typedef struct NormalizerStep {
    NormalizerKind kind;
    Pattern pattern;               /* REPLACE */
    char text[COMPONENT_TEXT_MAX]; /* REPLACE, PREPEND */
    size_t text_len;
} NormalizerStep;

struct AddedSet;

#define PIECE_SPACE "\xe2\x96\x81" /* what SentencePiece writes for a space: "▁" */

/* NORMALIZER_PIECES: that of a SentencePiece model. */
typedef struct PieceNormalizer {
    bool add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    char *charsmap; /* the compiled map of characters, or NULL */
    size_t units;   /* of its trie */
    size_t replacements_len;
    const struct AddedSet *user_defined; /* borrowed */
} PieceNormalizer;

typedef struct Normalizer {
    NormalizerStep steps[COMPONENTS_MAX];
    size_t count;
    PieceNormalizer pieces;
} Normalizer;

typedef enum SplitBehavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
} SplitBehavior;

typedef enum PrependScheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } PrependScheme;

/* The pre-tokenisers of the file are made of these. */
typedef enum PreTokenizerKind {
    PRE_SPLIT,
    PRE_PREFIX_SPACE, /* a space before a piece that has none */
    PRE_METASPACE,    /* spaces become the replacement, which may also be prepended */
    PRE_BYTE_MAP      /* bytes become characters of the byte-level alphabet */
} PreTokenizerKind;

typedef struct PreTokenizerStep {
    PreTokenizerKind kind;
    Pattern pattern;
    SplitBehavior behavior;
    bool invert;
    PrependScheme scheme;
    char replacement[UTF8_MAX];
    size_t replacement_len;
} PreTokenizerStep;

typedef struct PreTokenizer {
    PreTokenizerStep steps[COMPONENTS_MAX];
    size_t count;
    bool byte_level; /* a last BYTE_MAP, left to BPE */
} PreTokenizer;

typedef struct AddedToken {
    Slice content; /* as searched for; borrowed from the vocabulary or normalized_contents */
    int32_t id;
    uint32_t order; /* of precedence among equal contents */
    bool single_word, lstrip, rstrip, is_normalized, special;
} AddedToken;

/* Tokens sorted by content, which makes a trie of the array: a prefix is a range. */
typedef struct AddedSet {
    AddedToken *tokens;
    size_t count;
    uint32_t first[257]; /* range of the tokens that start with a byte */
    uint32_t pairs[65536 /
                   32]; /* which two bytes begin a token; all pairs of the byte of a 1-byte token */
} AddedSet;

/* An added token whose normalised content is not its content: the reference decodes it to the
 * former, and tells by the former whether it is special. */
typedef struct RespeltToken {
    int32_t id;
    Slice text; /* in Tokenizer.normalized_contents */
} RespeltToken;

typedef struct AddedSegment {
    int32_t id; /* -1: plain text */
    size_t start, end;
} AddedSegment;

typedef struct AddedScan {
    size_t search_at;  /* where the next match may start */
    size_t text_start; /* behind what was handed out */
    bool has_token;    /* a token waits behind the plain text just handed out */
    bool skip_special; /* special tokens are text like any other */
    AddedSegment token;
} AddedScan;

typedef enum DecoderKind {
    DECODER_NONE, /* tokens joined by spaces */
    DECODER_BYTE_LEVEL,
    DECODER_STEPS
} DecoderKind;

typedef struct DecoderReplace {
    char from[COMPONENT_TEXT_MAX], to[COMPONENT_TEXT_MAX];
    size_t from_len, to_len;
} DecoderReplace;

/* DECODER_STEPS run in this order: replacements, Metaspace, byte fallback on each token, Strip on
 * the text. */
typedef struct Decoder {
    DecoderKind kind;
    DecoderReplace replaces[4];
    size_t replace_count;
    bool metaspace, metaspace_strips_first;
    char metaspace_character[UTF8_MAX];
    size_t metaspace_len;
    bool byte_fallback;
    size_t
        strip_start; /* at most so many of strip_character are taken from the start of the text */
    char strip_character[UTF8_MAX];
    size_t strip_len;
} Decoder;

enum { TEMPLATE_SEQUENCE = -1 };

struct Tokenizer {
    Vocabulary vocabulary;
    UnicodeTable unicode;
    Bpe bpe;
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    AddedSet raw_added, normalized_added;
    Buffer normalized_contents; /* contents of normalized_added */
    RespeltToken *respelt;      /* by id */
    size_t respelt_count;
    Decoder decoder;
    int32_t
        template_items[TEMPLATE_ITEMS_MAX]; /* ids, or TEMPLATE_SEQUENCE where the text's ids go */
    size_t template_count;
};

/* What one encode call writes to. */
typedef struct EncodeContext {
    const Tokenizer *tokenizer;
    TokenList *out;
    Error *err;
    bool skip_special; /* text of special tokens is not recognised */
    PatternScratch patterns;
    BpeScratch bpe;
    Buffer repaired, normalized[2];
    Buffer steps[COMPONENTS_MAX]; /* text made by each pre-tokeniser step */
} EncodeContext;

/* nfc.c. Appends s in NFC to out. Errors: ERROR_MEMORY. */
bool nfc_is_normal(const UnicodeTable *unicode, Slice s);
bool nfc_append(const UnicodeTable *unicode, Slice s, Buffer *out, Error *err) WARN_UNUSED;

/* normalizer.c. *out is text itself or lies in one of the two buffers. */
bool normalizer_load(Normalizer *normalizer, const JsonValue *config, Error *err) WARN_UNUSED;
void normalizer_reset(Normalizer *normalizer);
bool normalizer_run(const Normalizer *normalizer, const UnicodeTable *unicode,
                    PatternScratch *scratch, Buffer buffers[2], Slice text, Slice *out,
                    Error *err) WARN_UNUSED;

/* piece_normalizer.c. Appends the normal form of text to out, whose failure is sticky. */
bool piece_normalizer_set_charsmap(PieceNormalizer *normalizer, Slice charsmap,
                                   Error *err) WARN_UNUSED;
void piece_normalizer_reset(PieceNormalizer *normalizer);
void piece_normalizer_run(const PieceNormalizer *normalizer, const UnicodeTable *unicode,
                          Slice text, Buffer *out);

/* pre_tokenizer.c. at_start: the piece begins where the whole text does. */
bool pre_tokenizer_load(PreTokenizer *pre, const JsonValue *config, Error *err) WARN_UNUSED;
void pre_tokenizer_reset(PreTokenizer *pre);
/* Refuses a normaliser that moves the start of the text where a step asks for it. */
bool pre_tokenizer_check(const PreTokenizer *pre, const Normalizer *normalizer,
                         Error *err) WARN_UNUSED;
bool pre_tokenizer_run(EncodeContext *context, Slice piece, bool at_start) WARN_UNUSED;

/* added_tokens.c. Takes ownership of tokens (count of them) and sorts them. */
void added_set_build(AddedSet *set, AddedToken *tokens, size_t count);
void added_set_reset(AddedSet *set);
/* The next segment of text, plain or token; false at the end. Segments may overlap where a token
 * with rstrip swallowed what begins another: the reference does the same. */
bool added_scan_next(AddedScan *scan, const AddedSet *set, const UnicodeTable *unicode, Slice text,
                     AddedSegment *segment);

/* post_processor.c */
bool post_processor_load(Tokenizer *tokenizer, const JsonValue *config, Error *err) WARN_UNUSED;

/* decoder.c */
bool decoder_load(Decoder *decoder, const JsonValue *config, Error *err) WARN_UNUSED;

/* extra_tokens.c: what a directory lists beside the tokenizer's file. */
typedef struct ExtraTokens {
    Arena arena; /* of tokens and contents */
    AddedToken *tokens;
    size_t count;
} ExtraTokens;

bool extra_tokens_read(const char *directory, ExtraTokens *out, Error *err) WARN_UNUSED;
void extra_tokens_reset(ExtraTokens *extra);
/* Enters the token unless the file has it as an added token already, or another one of its id or
 * content. */
bool extra_token_add(Vocabulary *vocabulary, const AddedToken *token, bool *added,
                     Error *err) WARN_UNUSED;

/* load.c */
bool tokenizer_load(Tokenizer *tokenizer, Slice json, const ExtraTokens *extra,
                    Error *err) WARN_UNUSED;

/* sentencepiece.c. Extra tokens are searched for in the raw text, whatever they say. */
bool tokenizer_load_pieces(Tokenizer *tokenizer, Slice model, const ExtraTokens *extra,
                           Error *err) WARN_UNUSED;

/* component.c: reading the small objects of the file. */
typedef bool ComponentVisitor(void *to, Slice type, const JsonValue *config, Error *err);
/* Calls visit for config, or, if its type is Sequence, for each item of its list, nested too. null:
 * none. */
bool component_visit(const JsonValue *config, const char *what, const char *list,
                     ComponentVisitor *visit, void *to, Error *err) WARN_UNUSED;
bool component_unknown(const char *what, Slice type, Error *err);
/* A string of at most COMPONENT_TEXT_MAX bytes; required. */
bool component_read_text(const JsonValue *config, const char *key, char out[COMPONENT_TEXT_MAX],
                         size_t *len, Error *err) WARN_UNUSED;
/* A string that is one character. */
bool component_read_character(const JsonValue *config, const char *key, char out[UTF8_MAX],
                              size_t *len, Error *err) WARN_UNUSED;
/* {"String": s} or {"Regex": s} */
bool component_read_pattern(const JsonValue *config, Pattern *out, Error *err) WARN_UNUSED;

#endif
