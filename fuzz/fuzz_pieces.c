/* tokenizer.model from the input, then a short text through whatever loads: encoded, decoded, and
 * streamed, where the joined pieces must equal the whole. */
#include "tokenizer_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
    decode_any_ids(tokenizer);
    tokenizer_free(tokenizer);
    return 0;
}
