#include "generate_fixture.h"

#include <string.h>

const int32_t EOS[1] = {END};
Tokenizer *tokenizer;

int setup(void **state)
{
    (void)state;
    Error err;
    return tokenizer_open(TEST_DATA_DIR "/generate/bytes-tokenizer.json", &tokenizer, &err) ? 0
                                                                                            : -1;
}

int teardown(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

Generation *create(const GenerationOptions *options)
{
    Generation *generation;
    Error err = {0};
    if (!generation_create(tokenizer, options, EOS, 1, NULL, 0, VOCAB, &generation, &err))
        fail_msg("%s", err.message);
    return generation;
}

void flat(float *logits)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 0;
}

size_t feed(Generation *generation, const char *bytes, size_t count, Buffer *text)
{
    float logits[VOCAB];
    Error err;
    size_t i = 0;
    while (i < count && generation_finish_reason(generation) == FINISH_NONE) {
        int32_t id;
        flat(logits);
        logits[(unsigned char)bytes[i++]] = 50;
        assert_true(generation_step(generation, logits, &id, text, &err));
        assert_true(utf8_is_valid(buffer_view(text)));
    }
    return i;
}

int32_t choose(Generation *generation, float *logits)
{
    int32_t id;
    Error err = {0};
    Buffer text;
    buffer_init(&text, 1 << 20);
    if (!generation_step(generation, logits, &id, &text, &err))
        fail_msg("%s", err.message);
    buffer_reset(&text);
    return id;
}

void assert_text(const Buffer *text, const char *expected)
{
    assert_int_equal(text->len, strlen(expected));
    if (text->len > 0)
        assert_memory_equal(text->ptr, expected, text->len);
}
