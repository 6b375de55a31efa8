/* tokenizer.model from the input, then a short text through whatever loads: encoded, decoded, and
 * streamed, where the joined pieces must equal the whole. */
#include "tokenizer.h"

#include <stdlib.h>

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = " Hello  world<sep>abab, it's 123\n\n\xc3\xa9"
                               "e\xcc\x81 \xe2\x96\x81<0x0A>\xef\xac\x81\xf0\x9f\x98\x80 \xff<s> ";
    Tokenizer *tokenizer;
    TokenList ids = {0};
    Error err;
    if (!tokenizer_create_pieces((Slice){(const char *)data, size}, "fuzz", &tokenizer, &err))
        return 0;
    if (tokenizer_encode(tokenizer, (Slice){text, sizeof(text) - 1}, true, &ids, &err))
        decode_both_ways(tokenizer, &ids);
    token_list_reset(&ids);
    for (int32_t id = -1; id < 100; id++)
        check(token_list_append(&ids, id, NULL));
    decode_both_ways(tokenizer, &ids);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
    return 0;
}
