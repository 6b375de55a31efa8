/* tokenizer.json from the input, then a short text through whatever loads: encoded, decoded, and
 * streamed, where the joined pieces must equal the whole. Text after a NUL byte in the input is
 * encoded too. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { OUTPUT_BYTES = 16 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void decode_both_ways(const Tokenizer *tokenizer, const TokenList *ids)
{
    Buffer whole, joined;
    TokenDecoder decoder;
    buffer_init(&whole, OUTPUT_BYTES);
    buffer_init(&joined, OUTPUT_BYTES);
    token_decoder_init(&decoder, tokenizer, false);
    bool ok = tokenizer_decode(tokenizer, ids->ids, ids->count, false, &whole, NULL);
    for (size_t i = 0; ok && i < ids->count; i++) {
        ok = token_decoder_push(&decoder, ids->ids[i], &joined, NULL);
        check(!ok || utf8_is_valid(buffer_view(&joined)));
    }
    if (ok && token_decoder_finish(&decoder, &joined, NULL) &&
        ids->count < TOKEN_DECODER_PENDING_MAX)
        check(slice_equal(buffer_view(&whole), buffer_view(&joined)));
    buffer_reset(&whole);
    buffer_reset(&joined);
}

static void encode_and_decode(const Tokenizer *tokenizer, Slice text)
{
    TokenList ids = {0};
    Error err;
    if (tokenizer_encode(tokenizer, text, true, &ids, &err))
        decode_both_ways(tokenizer, &ids);
    token_list_reset(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello  world, it's 123\n\n\xc3\xa9"
                               "e\xcc\x81 \xe2\x96\x81<0x0A>\xf0\x9f\x98\x80 \xff<s>ab";
    Tokenizer *tokenizer;
    Error err;
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json = nul ? (size_t)(nul - data) : size;
    if (!tokenizer_create((Slice){(const char *)data, json}, "fuzz", &tokenizer, &err))
        return 0;
    encode_and_decode(tokenizer, (Slice){text, sizeof(text) - 1});
    if (nul)
        encode_and_decode(tokenizer, (Slice){(const char *)nul + 1, size - json - 1});
    TokenList all = {0};
    for (int32_t id = -1; id < 100; id++)
        check(token_list_append(&all, id, NULL));
    decode_both_ways(tokenizer, &all);
    token_list_reset(&all);
    tokenizer_free(tokenizer);
    return 0;
}
