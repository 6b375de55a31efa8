/* Reading tokenizer.model, the protobuf of SentencePiece, for models that have no tokenizer.json.
 *
 * Only the BPE kind is read. There a piece is made of any two neighbours whose joined text is a
 * piece, best score first, leftmost on ties; so each way to cut a piece into two pieces is a merge,
 * and pieces of equal score share a rank. Pieces that are control symbols (<s>, </s>) are searched
 * for in the raw text as special added tokens are, since prompts are written with them; the library
 * itself would spell them out. User-defined pieces stand apart in normalised text, as there.
 *
 * Wire format, as far as it matters: a message is a series of (number << 3 | type) varints, each
 * followed by a varint (type 0), 8 bytes (1), a varint length and bytes (2) or 4 bytes (5). */
#include "internal.h"

#include <math.h>
#include <stdlib.h>

/* Field numbers of sentencepiece_model.proto. */
enum {
    MODEL_PIECES = 1,
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    MODEL_DENORMALIZER = 5,
    PIECE_TEXT = 1,
    PIECE_SCORE = 2,
    PIECE_TYPE = 3,
    TRAINER_MODEL_TYPE = 3,
    TRAINER_SPACE_AS_SUFFIX = 24,
    TRAINER_BYTE_FALLBACK = 35,
    TRAINER_BOS_ID = 41,
    NORMALIZER_CHARSMAP = 2,
    NORMALIZER_DUMMY_PREFIX = 3,
    NORMALIZER_REMOVE_SPACES = 4,
    NORMALIZER_ESCAPE_SPACES = 5,
};

typedef enum PieceType {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN = 2,
    PIECE_CONTROL = 3,
    PIECE_USER_DEFINED = 4,
    PIECE_UNUSED = 5,
    PIECE_BYTE = 6
} PieceType;

enum { MODEL_TYPE_UNIGRAM = 1, MODEL_TYPE_BPE = 2 };

typedef struct Piece {
    float score;
    uint8_t type;
    uint32_t rank; /* of the merges that make it */
} Piece;

typedef struct SentencePiece {
    Tokenizer *tokenizer;
    Error *err;
    Piece *pieces; /* by id */
    size_t count, capacity;
    uint64_t model_type;
    int64_t bos_id;
    AddedToken *extra; /* tokens of the directory, which go with the control pieces */
    size_t extra_count;
} SentencePiece;

/* ---- Wire format ---- */

typedef struct ProtoField {
    uint64_t number;
    unsigned type;
    uint64_t value; /* of types 0, 1 and 5 */
    Slice bytes;    /* of type 2 */
} ProtoField;

static bool malformed(Error *err)
{
    return error_set(err, ERROR_INVALID, "not a SentencePiece model: the file is damaged");
}

static bool read_varint(Slice *rest, uint64_t *out, Error *err)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && rest->len > 0; shift += 7) {
        unsigned char byte = (unsigned char)rest->ptr[0];
        *rest = (Slice){rest->ptr + 1, rest->len - 1};
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return malformed(err);
}

static bool read_fixed(Slice *rest, size_t size, uint64_t *out, Error *err)
{
    *out = 0;
    if (rest->len < size)
        return malformed(err);
    for (size_t i = 0; i < size; i++)
        *out |= (uint64_t)(unsigned char)rest->ptr[i] << (8 * i);
    *rest = (Slice){rest->ptr + size, rest->len - size};
    return true;
}

/* Takes the next field off rest, which is not empty. */
static bool read_field(Slice *rest, ProtoField *field, Error *err)
{
    uint64_t key, len;
    *field = (ProtoField){0};
    if (!read_varint(rest, &key, err))
        return false;
    field->number = key >> 3;
    field->type = (unsigned)(key & 7);
    switch (field->type) {
    case 0:
        return read_varint(rest, &field->value, err);
    case 1:
        return read_fixed(rest, 8, &field->value, err);
    case 5:
        return read_fixed(rest, 4, &field->value, err);
    case 2:
        if (!read_varint(rest, &len, err))
            return false;
        if (len > rest->len)
            return malformed(err);
        field->bytes = (Slice){rest->ptr, (size_t)len};
        *rest = (Slice){rest->ptr + len, rest->len - (size_t)len};
        return true;
    default:
        return malformed(err);
    }
}

/* ---- Pieces ---- */

static float float_of(uint64_t bits)
{
    uint32_t low = (uint32_t)bits;
    float value;
    memcpy(&value, &low, sizeof(value));
    return value;
}

static unsigned flags_of(PieceType type)
{
    switch (type) {
    case PIECE_CONTROL:
        return TOKEN_ADDED | TOKEN_SPECIAL;
    case PIECE_USER_DEFINED:
        return TOKEN_ADDED | TOKEN_MODEL;
    case PIECE_UNKNOWN:
        return TOKEN_MODEL | TOKEN_SPECIAL;
    default:
        return TOKEN_MODEL;
    }
}

static bool read_piece(SentencePiece *sp, Slice message)
{
    Piece piece = {.type = PIECE_NORMAL};
    Slice text = SLICE_EMPTY;
    ProtoField field;
    while (message.len > 0) {
        if (!read_field(&message, &field, sp->err))
            return false;
        if (field.number == PIECE_TEXT && field.type == 2)
            text = field.bytes;
        else if (field.number == PIECE_SCORE && field.type == 5)
            piece.score = float_of(field.value);
        else if (field.number == PIECE_TYPE && field.type == 0)
            piece.type = field.value <= PIECE_BYTE ? (uint8_t)field.value : 0;
    }
    if (piece.type == 0 || piece.type == PIECE_UNUSED)
        return error_set(sp->err, ERROR_UNSUPPORTED, "piece %zu is of a type that is not supported",
                         sp->count);
    if (text.len == 0 || !utf8_is_valid(text) || isnan(piece.score))
        return error_set(sp->err, ERROR_INVALID, "piece %zu has no valid text or score", sp->count);
    if (!vocabulary_add(&sp->tokenizer->vocabulary, text, (int64_t)sp->count, flags_of(piece.type),
                        sp->err))
        return false;
    if (piece.type == PIECE_UNKNOWN) {
        sp->tokenizer->bpe.has_unk = true;
        sp->tokenizer->bpe.unk_id = (int32_t)sp->count;
    }
    if (!memory_grow_array((void **)&sp->pieces, sp->count, &sp->capacity, sizeof(piece)))
        return error_no_memory(sp->err, "pieces");
    sp->pieces[sp->count++] = piece;
    return true;
}

static bool read_trainer(SentencePiece *sp, Slice message)
{
    ProtoField field;
    while (message.len > 0) {
        if (!read_field(&message, &field, sp->err))
            return false;
        if (field.number == TRAINER_MODEL_TYPE)
            sp->model_type = field.value;
        else if (field.number == TRAINER_BYTE_FALLBACK)
            sp->tokenizer->bpe.byte_fallback = field.value != 0;
        else if (field.number == TRAINER_BOS_ID)
            sp->bos_id = (int32_t)field.value;
        else if (field.number == TRAINER_SPACE_AS_SUFFIX && field.value != 0)
            return error_set(sp->err, ERROR_UNSUPPORTED,
                             "treat_whitespace_as_suffix is not supported");
    }
    return true;
}

static bool read_normalizer(SentencePiece *sp, Slice message)
{
    PieceNormalizer *normalizer = &sp->tokenizer->normalizer.pieces;
    Slice charsmap = SLICE_EMPTY;
    ProtoField field;
    while (message.len > 0) {
        if (!read_field(&message, &field, sp->err))
            return false;
        if (field.number == NORMALIZER_CHARSMAP && field.type == 2)
            charsmap = field.bytes;
        else if (field.number == NORMALIZER_DUMMY_PREFIX)
            normalizer->add_dummy_prefix = field.value != 0;
        else if (field.number == NORMALIZER_REMOVE_SPACES)
            normalizer->remove_extra_whitespaces = field.value != 0;
        else if (field.number == NORMALIZER_ESCAPE_SPACES)
            normalizer->escape_whitespaces = field.value != 0;
    }
    return piece_normalizer_set_charsmap(normalizer, charsmap, sp->err);
}

/* Decoding with a map of characters would need the text of the whole answer. */
static bool check_denormalizer(SentencePiece *sp, Slice message)
{
    ProtoField field;
    while (message.len > 0) {
        if (!read_field(&message, &field, sp->err))
            return false;
        if (field.number == NORMALIZER_CHARSMAP && field.bytes.len > 0)
            return error_set(sp->err, ERROR_UNSUPPORTED, "a denormalizer is not supported");
    }
    return true;
}

static bool read_model(SentencePiece *sp, Slice rest)
{
    ProtoField field;
    while (rest.len > 0) {
        bool ok = read_field(&rest, &field, sp->err);
        if (ok && field.type == 2 && field.number == MODEL_PIECES)
            ok = read_piece(sp, field.bytes);
        else if (ok && field.type == 2 && field.number == MODEL_TRAINER)
            ok = read_trainer(sp, field.bytes);
        else if (ok && field.type == 2 && field.number == MODEL_NORMALIZER)
            ok = read_normalizer(sp, field.bytes);
        else if (ok && field.type == 2 && field.number == MODEL_DENORMALIZER)
            ok = check_denormalizer(sp, field.bytes);
        if (!ok)
            return false;
    }
    if (sp->model_type != MODEL_TYPE_BPE)
        return error_set(sp->err, ERROR_UNSUPPORTED,
                         "a SentencePiece model of kind '%s'; only BPE is supported. Put a "
                         "tokenizer.json of type BPE beside it, or use a model that has one",
                         sp->model_type == MODEL_TYPE_UNIGRAM ? "unigram" : "word or char");
    return sp->count > 0 && sp->tokenizer->bpe.has_unk
               ? true
               : error_set(sp->err, ERROR_INVALID, "the model has no piece for unknown characters");
}

/* ---- Merges ---- */

typedef struct ScoredPiece {
    float score;
    uint32_t id;
} ScoredPiece;

static int compare_scores(const void *a, const void *b)
{
    const ScoredPiece *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static bool rank_pieces(SentencePiece *sp)
{
    ScoredPiece *sorted = memory_allocate_array(sp->count, sizeof(*sorted));
    if (!sorted)
        return error_no_memory(sp->err, "pieces");
    for (size_t i = 0; i < sp->count; i++)
        sorted[i] = (ScoredPiece){sp->pieces[i].score, (uint32_t)i};
    qsort(sorted, sp->count, sizeof(*sorted), compare_scores);
    uint32_t rank = 0;
    for (size_t i = 0; i < sp->count; i++) {
        rank += i > 0 && sorted[i].score != sorted[i - 1].score;
        sp->pieces[sorted[i].id].rank = rank;
    }
    memory_free(sorted);
    return true;
}

/* The piece that BPE can have as a symbol with this text, or -1. */
static int32_t find_symbol(const SentencePiece *sp, Slice text)
{
    int32_t id = vocabulary_find(&sp->tokenizer->vocabulary, text, TOKEN_MODEL);
    bool plain = id >= 0 &&
                 (sp->pieces[id].type == PIECE_NORMAL || sp->pieces[id].type == PIECE_USER_DEFINED);
    return plain ? id : -1;
}

static bool add_merges(SentencePiece *sp)
{
    const Vocabulary *vocabulary = &sp->tokenizer->vocabulary;
    for (size_t id = 0; id < sp->count; id++) {
        Slice text = vocabulary_content(vocabulary, (int32_t)id);
        if (sp->pieces[id].type != PIECE_NORMAL && sp->pieces[id].type != PIECE_USER_DEFINED)
            continue;
        for (size_t at = unicode_length(text.ptr[0]); at < text.len;
             at += unicode_length(text.ptr[at])) {
            int32_t left = find_symbol(sp, (Slice){text.ptr, at});
            int32_t right = left < 0 ? -1 : find_symbol(sp, (Slice){text.ptr + at, text.len - at});
            Merge merge = {left, right, (int32_t)id, sp->pieces[id].rank};
            if (right >= 0 && !bpe_add_merge_ids(&sp->tokenizer->bpe, merge, sp->err))
                return false;
        }
    }
    return true;
}

/* ---- Added tokens, decoder ---- */

static bool add_extra_tokens(SentencePiece *sp, const ExtraTokens *extra)
{
    sp->extra = memory_allocate_array(extra->count + 1, sizeof(*sp->extra));
    if (!sp->extra)
        return error_no_memory(sp->err, "added tokens");
    for (size_t i = 0; i < extra->count; i++) {
        bool added;
        if (!extra_token_add(&sp->tokenizer->vocabulary, &extra->tokens[i], &added, sp->err))
            return false;
        if (added)
            sp->extra[sp->extra_count++] = extra->tokens[i];
    }
    return true;
}

static bool build_set(SentencePiece *sp, PieceType type, AddedSet *set)
{
    AddedToken *tokens = memory_allocate_array(sp->count + sp->extra_count, sizeof(*tokens));
    size_t count = 0;
    if (!tokens)
        return error_no_memory(sp->err, "added tokens");
    for (size_t i = 0; i < sp->count; i++) {
        if (sp->pieces[i].type == type)
            tokens[count++] =
                (AddedToken){.content = vocabulary_content(&sp->tokenizer->vocabulary, (int32_t)i),
                             .id = (int32_t)i,
                             .order = (uint32_t)i,
                             .special = type == PIECE_CONTROL};
    }
    for (size_t i = 0; type == PIECE_CONTROL && i < sp->extra_count; i++) {
        tokens[count] = sp->extra[i];
        tokens[count].content = vocabulary_content(&sp->tokenizer->vocabulary, sp->extra[i].id);
        tokens[count++].order = (uint32_t)(sp->count + i);
    }
    added_set_build(set, tokens, count);
    return true;
}

/* As tokenizer.json of such models says: Replace, ByteFallback, Fuse, Strip. Where extra white
 * space is removed from the input, the library drops all of it from the start of the output. */
static void set_decoder(const PieceNormalizer *normalizer, Decoder *decoder)
{
    decoder->kind = DECODER_STEPS;
    decoder->byte_fallback = true;
    if (normalizer->escape_whitespaces) {
        DecoderReplace *replace = &decoder->replaces[decoder->replace_count++];
        memcpy(replace->from, PIECE_SPACE, sizeof(PIECE_SPACE) - 1);
        replace->from_len = sizeof(PIECE_SPACE) - 1;
        replace->to[0] = ' ';
        replace->to_len = 1;
    }
    if (normalizer->add_dummy_prefix || normalizer->remove_extra_whitespaces) {
        decoder->strip_start = normalizer->remove_extra_whitespaces ? UINT32_MAX : 1;
        decoder->strip_character[0] = ' ';
        decoder->strip_len = 1;
    }
}

static bool build_tokenizer(SentencePiece *sp)
{
    Tokenizer *tokenizer = sp->tokenizer;
    tokenizer->bpe.fuse_unk = true;
    if (!rank_pieces(sp) || !add_merges(sp) || !bpe_finish(&tokenizer->bpe, sp->err) ||
        !build_set(sp, PIECE_CONTROL, &tokenizer->raw_added) ||
        !build_set(sp, PIECE_USER_DEFINED, &tokenizer->normalized_added))
        return false;
    set_decoder(&tokenizer->normalizer.pieces, &tokenizer->decoder);
    tokenizer->normalizer.pieces.user_defined = &tokenizer->normalized_added;
    if (sp->bos_id >= 0 && (uint64_t)sp->bos_id < sp->count)
        tokenizer->template_items[tokenizer->template_count++] = (int32_t)sp->bos_id;
    tokenizer->template_items[tokenizer->template_count++] = TEMPLATE_SEQUENCE;
    return true;
}

bool tokenizer_load_pieces(Tokenizer *tokenizer, Slice model, const ExtraTokens *extra, Error *err)
{
    enum { BYTES_PER_PIECE = 16 }; /* a guess at the vocabulary's size */
    SentencePiece sp = {
        .tokenizer = tokenizer, .err = err, .model_type = MODEL_TYPE_UNIGRAM, .bos_id = 1};
    NormalizerStep *step = &tokenizer->normalizer.steps[tokenizer->normalizer.count++];
    step->kind = NORMALIZER_PIECES;
    tokenizer->normalizer.pieces = (PieceNormalizer){
        .add_dummy_prefix = true, .remove_extra_whitespaces = true, .escape_whitespaces = true};
    bpe_init(&tokenizer->bpe, &tokenizer->vocabulary);
    buffer_init(&tokenizer->normalized_contents, NORMALIZED_BYTES_MAX);
    bool ok = vocabulary_init(&tokenizer->vocabulary, model.len / BYTES_PER_PIECE, err) &&
              unicode_table_init(&tokenizer->unicode, err) && read_model(&sp, model) &&
              add_extra_tokens(&sp, extra) && build_tokenizer(&sp);
    memory_free(sp.extra);
    memory_free(sp.pieces);
    return ok;
}
