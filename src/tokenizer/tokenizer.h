/* tokenizer: text to token ids and back, as Hugging Face's tokenizer.json or a SentencePiece model
 * describes it.
 *
 * A Tokenizer is loaded once and immutable: pipeline of added-token search, normaliser,
 * pre-tokeniser, BPE, post-processor, decoder. Ids and text equal those of the `tokenizers`
 * library; a component we do not know is an error at load that names it, never an approximation. It
 * knows nothing of chat templates. Threads: a Tokenizer may be used by
 * any number of threads at once; a TokenDecoder belongs to one. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "base.h"

typedef struct Tokenizer Tokenizer;

/* Growing list of ids, owned by the caller: zero-initialise, token_list_reset when done. */
typedef struct TokenList {
    int32_t *ids;
    size_t count;
    size_t capacity;
} TokenList;

void token_list_reset(TokenList *list);
bool token_list_append(TokenList *list, int32_t id, Error *err) WARN_UNUSED;

enum {
    TOKENIZER_FILE_BYTES_MAX = 256 << 20,
    TOKENIZER_TEXT_BYTES_MAX = 256 << 20, /* of one encode call */
};

/* path: a tokenizer.json, or a SentencePiece model of the BPE kind whose name ends in .model, or a
 * directory that holds a tokenizer.json or else a tokenizer.model. Of the latter the ids are those
 * of the `sentencepiece` library, but control pieces (<s>) are recognised in the text, and BOS is
 * what add_special adds. */
bool tokenizer_open(const char *path, Tokenizer **out, Error *err) WARN_UNUSED;
/* A model's directory: the same, and the added tokens that added_tokens_decoder of its
 * tokenizer_config.json, or else its added_tokens.json, lists and the tokenizer's file lacks. */
bool tokenizer_open_model(const char *directory, Tokenizer **out, Error *err) WARN_UNUSED;
/* From bytes of a tokenizer.json; name is for messages. Nothing of json is kept. */
bool tokenizer_create(Slice json, const char *name, Tokenizer **out, Error *err) WARN_UNUSED;
/* From bytes of a tokenizer.model. */
bool tokenizer_create_pieces(Slice model, const char *name, Tokenizer **out,
                             Error *err) WARN_UNUSED;
void tokenizer_free(Tokenizer *tokenizer);

/* One more than the largest id. The model's vocabulary may be larger. */
size_t tokenizer_vocabulary_size(const Tokenizer *tokenizer);
/* Content of a token as tokenizer.json writes it (byte-level alphabet, "▁"); empty slice when there
 * is no such id. Borrowed. */
Slice tokenizer_token_content(const Tokenizer *tokenizer, int32_t id);
/* Id of exactly this content (added tokens first), or -1. */
int32_t tokenizer_find_token(const Tokenizer *tokenizer, Slice content);
bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);
/* Does skip_special leave it out of the text? */
bool tokenizer_is_skipped(const Tokenizer *tokenizer, int32_t id);
/* From now on skip_special leaves the special tokens that occur in text in their place: marks in
 * replies that the reader needs. Before the tokenizer is shared. */
bool tokenizer_show_tokens(Tokenizer *tokenizer, Slice text, Error *err) WARN_UNUSED;

/* Appends the ids of text to out. add_special applies the post-processor (BOS and the like). Text
 * of added tokens inside text is recognised always. Ill-formed UTF-8 becomes U+FFFD. On failure out
 * is as before. */
bool tokenizer_encode(const Tokenizer *tokenizer, Slice text, bool add_special, TokenList *out,
                      Error *err) WARN_UNUSED;

/* The same, but the text of special tokens is text like any other (that of other added tokens is
 * recognised): nothing in it controls the model. */
bool tokenizer_encode_plain(const Tokenizer *tokenizer, Slice text, bool add_special,
                            TokenList *out, Error *err) WARN_UNUSED;

/* Appends the text of ids. Ids without a token are skipped; skip_special leaves special tokens out.
 */
bool tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count,
                      bool skip_special, Buffer *out, Error *err) WARN_UNUSED;

enum { TOKEN_DECODER_PENDING_MAX = 240 };

/* Incremental decoding: what push appends over all ids, then finish, equals tokenizer_decode of all
 * at once, and every appended piece is valid UTF-8. A piece is emitted as soon as it is settled:
 * byte-level tokens with their last byte; a run of byte-fallback tokens (<0xHH>) with the next
 * other token, since one bad byte changes what the whole run means. Only a run of
 * TOKEN_DECODER_PENDING_MAX bytes or more is given out early, and then may differ from
 * tokenizer_decode if it is ill-formed. Caller-owned, small, copyable. */
typedef struct TokenDecoder {
    const Tokenizer *tokenizer;
    bool skip_special;
    bool started;        /* a token was decoded */
    bool run_overflowed; /* the current run of fallback bytes is too long to be held back */
    uint16_t pending_len;
    uint32_t strip_left; /* characters that may still be stripped from the start of the text */
    char pending[TOKEN_DECODER_PENDING_MAX]; /* an incomplete character, or a run of fallback bytes
                                              */
} TokenDecoder;

void token_decoder_init(TokenDecoder *decoder, const Tokenizer *tokenizer, bool skip_special);
bool token_decoder_push(TokenDecoder *decoder, int32_t id, Buffer *out, Error *err) WARN_UNUSED;
bool token_decoder_finish(TokenDecoder *decoder, Buffer *out, Error *err) WARN_UNUSED;
/* Appends the exact bytes that pushing id would add to the text, held back or not: they may be a
 * part of a character, and are not repaired. A token that is left out has none. */
bool token_decoder_append_bytes(const TokenDecoder *decoder, int32_t id, Buffer *out,
                                Error *err) WARN_UNUSED;

/* The same for a token in the middle of a text, special ones too. */
bool tokenizer_append_token_bytes(const Tokenizer *tokenizer, int32_t id, Buffer *out,
                                  Error *err) WARN_UNUSED;

#endif
