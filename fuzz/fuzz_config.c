/* config.json and generation_config.json from strangers: split at the first NUL byte. */
#include "model.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Slice input = {(const char *)data, size};
    size_t split = 0;
    while (split < size && data[split] != 0)
        split++;
    Slice config = {input.ptr, split};
    Slice generation = SLICE_EMPTY;
    if (split < size)
        generation = (Slice){input.ptr + split + 1, size - split - 1};
    Arena arena;
    arena_init(&arena, 64 << 20);
    ModelConfig parsed;
    Error err = {0};
    if (model_config_parse(config, generation, &arena, &parsed, &err)) {
        /* A description that was accepted must be safe to walk. */
        double sum = 0;
        for (uint32_t i = 0; i < parsed.num_hidden_layers; i++)
            sum += parsed.rope[parsed.layers[i].rope].inverse_frequencies[0];
        for (uint32_t d = 0; d < parsed.rope[0].rotary_dims / 2; d++)
            sum += parsed.rope[0].inverse_frequencies[d];
        if (!(sum >= 0.0) || model_is_eos(&parsed, -1))
            abort(); /* libFuzzer's way to report */
    }
    arena_reset(&arena);
    return 0;
}
