/* tokenizer.json from the input, then a short text through whatever loads: encoded, decoded, and
 * streamed, where the joined pieces must equal the whole. Text after a NUL byte in the input is
 * encoded too. */
#include "tokenizer_checks.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
    decode_any_ids(tokenizer);
    tokenizer_free(tokenizer);
    return 0;
}
