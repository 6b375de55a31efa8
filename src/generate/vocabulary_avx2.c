/* The passes once more, compiled for AVX2: the same operations on twice as many values at a time.
 * Without FMA, whose single rounding would change the bits. */
#include "vocabulary_passes.h"

const VocabularyPasses vocabulary_passes_avx2 = {find_maxima, weigh, sum_from, find_from,
                                                 sum_exponentials};
