#include "tokenizer_checks.h"

#include <stdlib.h>

enum { OUTPUT_BYTES = 16 << 20 };

void check(bool holds)
{
    if (!holds)
        abort();
}

void decode_both_ways(const Tokenizer *tokenizer, const TokenList *ids)
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

void decode_any_ids(const Tokenizer *tokenizer)
{
    TokenList all = {0};
    for (int32_t id = -1; id < 100; id++)
        check(token_list_append(&all, id, NULL));
    decode_both_ways(tokenizer, &all);
    token_list_reset(&all);
}
