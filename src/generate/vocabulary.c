/* The passes for any machine, and the choice. */
#include "vocabulary_passes.h"

const VocabularyPasses vocabulary_passes_plain = {find_maxima, weigh, sum_from, find_from,
                                                  sum_exponentials};

const VocabularyPasses *vocabulary_passes_at(size_t index)
{
    const VocabularyPasses *found[4] = {NULL}; /* with a NULL at the end */
    size_t count = 0;
#ifdef GENERATE_HAS_X86_PASSES
    /* The builtins know whether the system saves the wide registers. */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        found[count++] = &vocabulary_passes_avx512;
    if (__builtin_cpu_supports("avx2"))
        found[count++] = &vocabulary_passes_avx2;
#endif
    found[count++] = &vocabulary_passes_plain;
    return index < count ? found[index] : NULL;
}

const VocabularyPasses *vocabulary_passes(void)
{
    return vocabulary_passes_at(0);
}
