/* The passes once more, compiled for AVX-512: the same operations on four times as many values at a
 * time. Its fused multiply-adds stay unused (-ffp-contract=off). */
#include "vocabulary_passes.h"

const VocabularyPasses vocabulary_passes_avx512 = {find_maxima, weigh, sum_from, find_from,
                                                   sum_exponentials};
