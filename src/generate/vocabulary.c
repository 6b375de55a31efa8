/* The passes for any machine, and the choice. */
#include "vocabulary_passes.h"

const VocabularyPasses vocabulary_passes_plain = {find_maxima, weigh, sum_from, sum_weights};

const VocabularyPasses *vocabulary_passes(void)
{
#ifdef GENERATE_HAS_AVX2
    if (__builtin_cpu_supports("avx2"))
        return &vocabulary_passes_avx2;
#endif
    return &vocabulary_passes_plain;
}
