/* Any bytes as a GGUF file: refused with a message, or accepted; never a read outside the image. */
#include <stdlib.h>

#include "weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Error err = {0};
    bool ok = gguf_check((Slice){(const char *)data, size}, "fuzz", &err);
    if (ok != (err.code == ERROR_NONE) || (!ok && err.message[0] == '\0'))
        abort(); /* libFuzzer's way to report */
    return 0;
}
