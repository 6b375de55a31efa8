/* Template source from the input, rendered with a small fixed context and few steps. */
#include "jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char variables_text[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"hi "
    "\\u00e9\"},{\"role\":\"assistant\",\"content\":null,"
    "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1.5}}}]}],\"tools\":null,"
    "\"n\":7,\"s\":\"a "
    "b\\nc\",\"xs\":[3,1,2],\"d\":{\"k\":[true,{}]},\"big\":18446744073709551615}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    JinjaTemplate *tmpl;
    Error err;
    const JsonValue *variables;
    Arena arena;
    if (!jinja_template_create((Slice){(const char *)data, size}, "fuzz", &tmpl, &err))
        return 0;
    arena_init(&arena, 1 << 20);
    if (json_parse(slice_of(variables_text), &arena, &variables, &err)) {
        Buffer out;
        buffer_init(&out, JINJA_OUTPUT_BYTES_MAX);
        JinjaContext context = {
            .variables = variables, .now_text = "2026-01-02T03:04:05", .steps_max = 20000};
        if (jinja_template_render(tmpl, &context, &out, &err) && !utf8_is_valid(buffer_view(&out)))
            __builtin_trap(); /* texts are valid in and must be valid out */
        buffer_reset(&out);
    }
    arena_reset(&arena);
    jinja_template_free(tmpl);
    return 0;
}
