/* Ids to text. Byte-level models: each token is bytes, the bytes of all tokens together are the
 * text, and every maximal ill-formed part becomes U+FFFD. Models with byte fallback: tokens are
 * text, but a run of <0xHH> tokens is one byte string, text if it is well-formed as a whole, else
 * one U+FFFD for each of its bytes.
 *
 * The streaming decoder therefore holds a run of <0xHH> back until another token or the end: only
 * then is it known what its bytes mean. A run longer than TOKEN_DECODER_PENDING_MAX is given out
 * character by character.
 *
 * The steps of the file's decoder must come in an order that leaves each token's text independent
 * of the others (Replace, Metaspace, ByteFallback, Fuse) with Strip on the fused text last; other
 * orders do not occur and are refused. */
#include "internal.h"

#include <stdlib.h>

#define REPLACEMENT_CHARACTER "\xef\xbf\xbd"

/* ---- Loading ---- */

typedef enum DecoderStage {
    STAGE_START,
    STAGE_REPLACE,
    STAGE_METASPACE,
    STAGE_BYTE_FALLBACK,
    STAGE_FUSE,
    STAGE_STRIP
} DecoderStage;

typedef struct DecoderLoader {
    Decoder *decoder;
    DecoderStage stage;
} DecoderLoader;

static bool load_replace(Decoder *decoder, const JsonValue *config, Error *err)
{
    if (decoder->replace_count == ARRAY_COUNT(decoder->replaces))
        return error_set(err, ERROR_LIMIT, "more than %zu replacements",
                         ARRAY_COUNT(decoder->replaces));
    DecoderReplace *replace = &decoder->replaces[decoder->replace_count];
    const JsonValue *pattern = json_get_present(config, "pattern");
    if (!json_get_present(pattern, "String"))
        return error_set(err, ERROR_UNSUPPORTED, "only a pattern 'String' is supported");
    if (!component_read_text(pattern, "String", replace->from, &replace->from_len, err) ||
        !component_read_text(config, "content", replace->to, &replace->to_len, err))
        return false;
    if (replace->from_len == 0)
        return error_set(err, ERROR_UNSUPPORTED, "an empty pattern is not supported");
    decoder->replace_count++;
    return true;
}

static bool load_metaspace(Decoder *decoder, const JsonValue *config, Error *err)
{
    Slice scheme = SLICE_EMPTY;
    bool add_prefix_space = true;
    if (!component_read_character(config, "replacement", decoder->metaspace_character,
                                  &decoder->metaspace_len, err) ||
        !json_read_string(config, "prepend_scheme", &scheme, err) ||
        !json_read_bool(config, "add_prefix_space", &add_prefix_space, err))
        return false;
    decoder->metaspace = true;
    decoder->metaspace_strips_first = add_prefix_space && !slice_equal(scheme, SLICE("never"));
    return true;
}

static bool load_strip(Decoder *decoder, const JsonValue *config, Error *err)
{
    int64_t start = 0, stop = 0;
    if (!component_read_character(config, "content", decoder->strip_character, &decoder->strip_len,
                                  err) ||
        !json_read_int(config, "start", 0, INT32_MAX, &start, err) ||
        !json_read_int(config, "stop", 0, INT32_MAX, &stop, err))
        return false;
    if (stop != 0)
        return error_set(err, ERROR_UNSUPPORTED, "a 'stop' other than 0 is not supported");
    decoder->strip_start = (size_t)start;
    return true;
}

static DecoderStage stage_of(Slice type)
{
    static const struct {
        const char *name;
        DecoderStage stage;
    } stages[] = {{"Replace", STAGE_REPLACE},
                  {"Metaspace", STAGE_METASPACE},
                  {"ByteFallback", STAGE_BYTE_FALLBACK},
                  {"Fuse", STAGE_FUSE},
                  {"Strip", STAGE_STRIP}};
    for (size_t i = 0; i < ARRAY_COUNT(stages); i++) {
        if (slice_equal(type, slice_of(stages[i].name)))
            return stages[i].stage;
    }
    return STAGE_START;
}

static bool load_stage(Decoder *decoder, DecoderStage stage, const JsonValue *config, Error *err)
{
    switch (stage) {
    case STAGE_REPLACE:
        return load_replace(decoder, config, err);
    case STAGE_METASPACE:
        return load_metaspace(decoder, config, err);
    case STAGE_BYTE_FALLBACK:
        decoder->byte_fallback = true;
        return true;
    case STAGE_STRIP:
        return load_strip(decoder, config, err);
    case STAGE_START:
    case STAGE_FUSE:
        break;
    }
    return true;
}

static bool load_component(void *to, Slice type, const JsonValue *config, Error *err)
{
    DecoderLoader *loader = to;
    Decoder *decoder = loader->decoder;
    if (slice_equal(type, SLICE("ByteLevel")) && loader->stage == STAGE_START) {
        decoder->kind = DECODER_BYTE_LEVEL;
        loader->stage = STAGE_BYTE_FALLBACK; /* its result is one text: only Fuse may follow */
        return true;
    }
    DecoderStage stage = stage_of(type);
    if (stage == STAGE_START)
        return component_unknown("a decoder", type, err);
    bool repeated = stage == loader->stage && stage != STAGE_REPLACE && stage != STAGE_FUSE;
    bool strips_tokens = stage == STAGE_STRIP && loader->stage != STAGE_FUSE;
    if (stage < loader->stage || repeated || strips_tokens ||
        (decoder->kind == DECODER_BYTE_LEVEL && stage != STAGE_FUSE))
        return error_set(err, ERROR_UNSUPPORTED, "decoder %.*s is not supported at its place",
                         SLICE_ARG(type));
    loader->stage = stage;
    if (decoder->kind == DECODER_NONE)
        decoder->kind = DECODER_STEPS;
    return load_stage(decoder, stage, config, err) ||
           error_prefix(err, "decoder %.*s", SLICE_ARG(type));
}

bool decoder_load(Decoder *decoder, const JsonValue *config, Error *err)
{
    DecoderLoader loader = {decoder, STAGE_START};
    return component_visit(config, "decoder", "decoders", load_component, &loader, err);
}

/* ---- Text out ---- */

/* Appends finished text, less what Strip takes from its start. */
static void put_text(TokenDecoder *decoder, Slice text, Buffer *out)
{
    const Decoder *config = &decoder->tokenizer->decoder;
    Slice unwanted = {config->strip_character, config->strip_len};
    while (decoder->strip_left > 0 && text.len > 0) {
        if (!slice_starts_with(text, unwanted)) {
            decoder->strip_left = 0;
            break;
        }
        decoder->strip_left--;
        text = (Slice){text.ptr + unwanted.len, text.len - unwanted.len};
    }
    buffer_append_slice(out, text);
}

/* Appends the whole characters of the pending bytes and keeps an incomplete one. each_byte: an
 * ill-formed part is one U+FFFD for each byte. */
static void put_characters(TokenDecoder *decoder, bool each_byte, Buffer *out)
{
    size_t at = 0;
    while (at < decoder->pending_len) {
        uint32_t c;
        bool incomplete = false;
        size_t len = utf8_decode(decoder->pending + at, decoder->pending_len - at, &c);
        if (len > 0) {
            put_text(decoder, (Slice){decoder->pending + at, len}, out);
            at += len;
            continue;
        }
        len = utf8_ill_formed_length(decoder->pending + at, decoder->pending_len - at, &incomplete);
        if (incomplete)
            break;
        for (size_t i = 0; i < (each_byte ? len : 1); i++)
            put_text(decoder, SLICE(REPLACEMENT_CHARACTER), out);
        at += len;
    }
    decoder->pending_len = (uint16_t)(decoder->pending_len - at);
    memmove(decoder->pending, decoder->pending + at, decoder->pending_len);
}

/* ---- Byte-level ---- */

static bool is_spelt_in_bytes(Slice content)
{
    for (size_t at = 0; at < content.len;) {
        uint32_t c;
        at += unicode_decode(content.ptr + at, &c);
        if (byte_level_byte(c) < 0)
            return false;
    }
    return true;
}

static void put_byte(TokenDecoder *decoder, char byte, Buffer *out)
{
    if (decoder->pending_len == 0 && (unsigned char)byte < 0x80) {
        buffer_append_byte(out, byte);
        return;
    }
    decoder->pending[decoder->pending_len++] = byte;
    put_characters(decoder, false, out); /* leaves at most three bytes */
}

static void push_byte_level(TokenDecoder *decoder, Slice content, Buffer *out)
{
    if (!is_spelt_in_bytes(content)) {
        for (size_t i = 0; i < content.len; i++)
            put_byte(decoder, content.ptr[i], out);
        return;
    }
    for (size_t at = 0; at < content.len;) {
        uint32_t c;
        at += unicode_decode(content.ptr + at, &c);
        put_byte(decoder, (char)byte_level_byte(c), out);
    }
}

/* ---- Decoder steps ---- */

static void replace_all(Slice text, Slice from, Slice to, Buffer *out)
{
    size_t done = 0;
    for (size_t at; (at = slice_find(text, from, done)) != SIZE_MAX; done = at + from.len) {
        buffer_append(out, text.ptr + done, at - done);
        buffer_append_slice(out, to);
    }
    buffer_append(out, text.ptr + done, text.len - done);
}

/* The token's text after the replacements; it lies in the vocabulary or in one of the two buffers.
 */
static Slice replaced_text(const TokenDecoder *decoder, Slice text, Buffer buffers[2])
{
    const Decoder *config = &decoder->tokenizer->decoder;
    size_t turn = 0;
    for (size_t i = 0; i <= config->replace_count; i++) {
        Slice from, to;
        if (i < config->replace_count) {
            from = (Slice){config->replaces[i].from, config->replaces[i].from_len};
            to = (Slice){config->replaces[i].to, config->replaces[i].to_len};
        } else if (config->metaspace) {
            from = (Slice){config->metaspace_character, config->metaspace_len};
            to = config->metaspace_strips_first && !decoder->started ? SLICE_EMPTY : SLICE(" ");
        } else {
            break;
        }
        if (slice_find(text, from, 0) == SIZE_MAX)
            continue;
        buffer_clear(&buffers[turn]);
        replace_all(text, from, to, &buffers[turn]);
        if (buffers[turn].failed)
            break;
        text = buffer_view(&buffers[turn]);
        turn = 1 - turn;
    }
    return text;
}

/* The byte that a token like <0x0A> stands for, or -1. The reference parses the digits as a number,
 * which may have a plus sign. */
static int fallback_byte(Slice text)
{
    if (text.len != 6 || memcmp(text.ptr, "<0x", 3) != 0 || text.ptr[5] != '>')
        return -1;
    int high = text.ptr[3] == '+' ? 0 : hex_digit_value(text.ptr[3]),
        low = hex_digit_value(text.ptr[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* A run of fallback bytes has ended. */
static void put_run(TokenDecoder *decoder, Slice run, Buffer *out)
{
    if (utf8_is_valid(run)) {
        put_text(decoder, run, out);
        return;
    }
    for (size_t i = 0; i < run.len; i++)
        put_text(decoder, SLICE(REPLACEMENT_CHARACTER), out);
}

static void end_pending_run(TokenDecoder *decoder, Buffer *out)
{
    put_run(decoder, (Slice){decoder->pending, decoder->pending_len}, out);
    decoder->pending_len = 0;
    decoder->run_overflowed = false;
}

/* run: takes fallback bytes instead of the pending ones, for callers that see all tokens. */
static bool push_steps(TokenDecoder *decoder, Slice content, Buffer *run, Buffer *out, Error *err)
{
    Buffer buffers[2];
    buffer_init(&buffers[0], NORMALIZED_BYTES_MAX);
    buffer_init(&buffers[1], NORMALIZED_BYTES_MAX);
    Slice text = replaced_text(decoder, content, buffers);
    bool ok = buffer_check(&buffers[0], "decoded text", err) &&
              buffer_check(&buffers[1], "decoded text", err);
    int byte = ok && decoder->tokenizer->decoder.byte_fallback ? fallback_byte(text) : -1;
    if (ok && byte >= 0 && run) {
        buffer_append_byte(run, (char)byte);
        ok = buffer_check(run, "decoded text", err);
    } else if (ok && byte >= 0) {
        decoder->run_overflowed |= decoder->pending_len == TOKEN_DECODER_PENDING_MAX - 1;
        decoder->pending[decoder->pending_len++] = (char)byte;
        if (decoder->run_overflowed)
            put_characters(decoder, true, out);
    } else if (ok) {
        if (run) {
            put_run(decoder, buffer_view(run), out);
            buffer_clear(run);
        } else {
            end_pending_run(decoder, out);
        }
        put_text(decoder, text, out);
    }
    buffer_reset(&buffers[0]);
    buffer_reset(&buffers[1]);
    return ok;
}

/* ---- Public ---- */

void token_decoder_init(TokenDecoder *decoder, const Tokenizer *tokenizer, bool skip_special)
{
    *decoder = (TokenDecoder){.tokenizer = tokenizer,
                              .skip_special = skip_special,
                              .strip_left = (uint32_t)tokenizer->decoder.strip_start};
}

static int compare_id(const void *key, const void *item)
{
    int32_t id = *(const int32_t *)key, other = ((const RespeltToken *)item)->id;
    return id < other ? -1 : id > other;
}

/* The content that a token decodes from; false if there is none, or it is to be left out. */
static bool find_content(const TokenDecoder *decoder, int32_t id, Slice *content)
{
    const Tokenizer *tokenizer = decoder->tokenizer;
    unsigned flags = vocabulary_flags(&tokenizer->vocabulary, id);
    if (!flags)
        return false;
    *content = vocabulary_content(&tokenizer->vocabulary, id);
    if (flags & TOKEN_RESPELT) {
        const RespeltToken *token =
            bsearch(&id, tokenizer->respelt, tokenizer->respelt_count, sizeof(*token), compare_id);
        *content = token->text;
        flags = vocabulary_find(&tokenizer->vocabulary, *content, TOKEN_SPECIAL) >= 0
                    ? TOKEN_SPECIAL
                    : 0;
    }
    return !decoder->skip_special || (flags & (TOKEN_SPECIAL | TOKEN_SHOWN)) != TOKEN_SPECIAL;
}

static bool push_token(TokenDecoder *decoder, int32_t id, Buffer *run, Buffer *out, Error *err)
{
    const Tokenizer *tokenizer = decoder->tokenizer;
    Slice content;
    bool ok = true;
    if (!find_content(decoder, id, &content))
        return true;
    switch (tokenizer->decoder.kind) {
    case DECODER_NONE:
        if (decoder->started)
            buffer_append_byte(out, ' ');
        buffer_append_slice(out, content);
        break;
    case DECODER_BYTE_LEVEL:
        push_byte_level(decoder, content, out);
        break;
    case DECODER_STEPS:
        ok = push_steps(decoder, content, run, out, err);
        break;
    }
    decoder->started = true;
    return ok && buffer_check(out, "decoded text", err);
}

bool token_decoder_push(TokenDecoder *decoder, int32_t id, Buffer *out, Error *err)
{
    return push_token(decoder, id, NULL, out, err);
}

bool token_decoder_finish(TokenDecoder *decoder, Buffer *out, Error *err)
{
    if (decoder->tokenizer->decoder.kind == DECODER_STEPS)
        end_pending_run(decoder, out);
    else if (decoder->pending_len > 0)
        put_text(decoder, SLICE(REPLACEMENT_CHARACTER), out);
    decoder->pending_len = 0;
    return buffer_check(out, "decoded text", err);
}

static void append_byte_level(Slice content, Buffer *out)
{
    if (!is_spelt_in_bytes(content)) {
        buffer_append_slice(out, content);
        return;
    }
    for (size_t at = 0; at < content.len;) {
        uint32_t c;
        at += unicode_decode(content.ptr + at, &c);
        buffer_append_byte(out, (char)byte_level_byte(c));
    }
}

/* Will Strip take this byte of a run that has not ended? Only behind bytes that it takes too. */
static bool is_stripped_byte(const TokenDecoder *decoder, char byte)
{
    const Decoder *config = &decoder->tokenizer->decoder;
    if (config->strip_len != 1 || decoder->pending_len >= decoder->strip_left ||
        byte != config->strip_character[0])
        return false;
    for (size_t i = 0; i < decoder->pending_len; i++) {
        if (decoder->pending[i] != byte)
            return false;
    }
    return true;
}

/* copy: of the caller's decoder, since Strip counts what it takes: first from the run that this
 * token ends. */
static bool append_steps(TokenDecoder *copy, Slice content, Buffer *out, Error *err)
{
    Buffer buffers[2], run;
    buffer_init(&buffers[0], NORMALIZED_BYTES_MAX);
    buffer_init(&buffers[1], NORMALIZED_BYTES_MAX);
    buffer_init(&run, NORMALIZED_BYTES_MAX);
    Slice text = replaced_text(copy, content, buffers);
    bool ok = buffer_check(&buffers[0], "decoded text", err) &&
              buffer_check(&buffers[1], "decoded text", err);
    int byte = ok && copy->tokenizer->decoder.byte_fallback ? fallback_byte(text) : -1;
    if (ok && byte >= 0) {
        if (!is_stripped_byte(copy, (char)byte))
            buffer_append_byte(out, (char)byte);
    } else if (ok) {
        if (copy->strip_left > 0 && copy->pending_len > 0)
            end_pending_run(copy, &run);
        put_text(copy, text, out);
        ok = buffer_check(&run, "decoded text", err);
    }
    buffer_reset(&run);
    buffer_reset(&buffers[0]);
    buffer_reset(&buffers[1]);
    return ok;
}

bool token_decoder_append_bytes(const TokenDecoder *decoder, int32_t id, Buffer *out, Error *err)
{
    TokenDecoder copy = *decoder;
    Slice content;
    bool ok = true;
    if (!find_content(decoder, id, &content))
        return true;
    switch (decoder->tokenizer->decoder.kind) {
    case DECODER_NONE:
        if (decoder->started)
            buffer_append_byte(out, ' ');
        buffer_append_slice(out, content);
        break;
    case DECODER_BYTE_LEVEL:
        append_byte_level(content, out);
        break;
    case DECODER_STEPS:
        ok = append_steps(&copy, content, out, err);
        break;
    }
    return ok && buffer_check(out, "bytes of a token", err);
}

bool tokenizer_append_token_bytes(const Tokenizer *tokenizer, int32_t id, Buffer *out, Error *err)
{
    TokenDecoder decoder = {.tokenizer = tokenizer, .started = true};
    return token_decoder_append_bytes(&decoder, id, out, err);
}

bool tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count,
                      bool skip_special, Buffer *out, Error *err)
{
    TokenDecoder decoder;
    Buffer run;
    bool ok = true;
    token_decoder_init(&decoder, tokenizer, skip_special);
    buffer_init(&run, NORMALIZED_BYTES_MAX);
    for (size_t i = 0; ok && i < count; i++)
        ok = push_token(&decoder, ids[i], &run, out, err);
    if (ok)
        put_run(&decoder, buffer_view(&run), out);
    ok = ok && token_decoder_finish(&decoder, out, err);
    buffer_reset(&run);
    return ok;
}
