#include "nucleus.h"

#include <string.h>

enum {
    BINS = 1024,
    SORTED_MAX = 48, /* tokens that are ordered one by one */
    TABLES = 4,
    COARSE_SHIFT = 19,                              /* bits left out: 16 ranges to a power of two */
    COARSE_BINS = (0x3F800000 >> COARSE_SHIFT) + 1, /* up to a weight of 1 */
};

static bool comes_before(Candidate a, Candidate b)
{
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

/* At most SORTED_MAX tokens of the range: in order, until their sum is reached. */
static NucleusCut cut_few(const Candidate *list, size_t count, uint32_t low, uint32_t high,
                          double above, double target)
{
    Candidate sorted[SORTED_MAX];
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = nucleus_bits(list[i].weight);
        if (bits < low || bits >= high)
            continue;
        size_t at = n++;
        for (; at > 0 && comes_before(list[i], sorted[at - 1]); at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = list[i];
    }
    for (size_t i = 0; i < n; i++) {
        above += (double)sorted[i].weight;
        if (above >= target)
            return (NucleusCut){nucleus_bits(sorted[i].weight), sorted[i].id};
    }
    return (NucleusCut){low, INT32_MAX};
}

/* All weights of the range are equal: the first ids. */
static NucleusCut cut_equal(const Candidate *list, size_t count, uint32_t bits, double above,
                            double target)
{
    for (size_t i = 0; i < count; i++) {
        if (nucleus_bits(list[i].weight) != bits)
            continue;
        above += (double)list[i].weight;
        if (above >= target)
            return (NucleusCut){bits, list[i].id};
    }
    return (NucleusCut){bits, INT32_MAX};
}

NucleusCut nucleus_find(const Candidate *list, size_t count, uint32_t low, uint32_t high,
                        double above, double target)
{
    for (;;) {
        if (high - low <= 1)
            return cut_equal(list, count, low, above, target);
        double sums[BINS] = {0};
        uint32_t counts[BINS] = {0};
        uint32_t width = (high - low + BINS - 1) / BINS;
        for (size_t i = 0; i < count; i++) {
            uint32_t from_low = nucleus_bits(list[i].weight) - low;
            if (from_low >= high - low)
                continue;
            sums[from_low / width] += (double)list[i].weight;
            counts[from_low / width]++;
        }
        uint32_t bin = (high - low - 1) / width;
        while (bin > 0 && above + sums[bin] < target)
            above += sums[bin--];
        uint32_t base = low + bin * width;
        high = high - base > width ? base + width : high;
        low = base;
        if (counts[bin] <= SORTED_MAX)
            return cut_few(list, count, low, high, above, target);
    }
}

/* Neighbours go to tables of their own: most fall into the same few bins, and an addition would
 * wait for the one before it. */
void nucleus_narrow(const float *weights, size_t count, double target, uint32_t least,
                    uint32_t *low, uint32_t *high)
{
    static const double none[COARSE_BINS] = {0};
    double sums[TABLES][COARSE_BINS];
    for (size_t t = 0; t < TABLES; t++)
        memcpy(sums[t], none, sizeof(none));
    size_t i = 0;
    for (; i + TABLES <= count; i += TABLES) {
        for (size_t t = 0; t < TABLES; t++)
            sums[t][nucleus_bits(weights[i + t]) >> COARSE_SHIFT] += (double)weights[i + t];
    }
    for (; i < count; i++)
        sums[0][nucleus_bits(weights[i]) >> COARSE_SHIFT] += (double)weights[i];
    double above = 0;
    uint32_t bin = COARSE_BINS - 1;
    for (; bin > least >> COARSE_SHIFT; bin--) {
        above += (sums[0][bin] + sums[1][bin]) + (sums[2][bin] + sums[3][bin]);
        if (above >= target)
            break;
    }
    *low = bin << COARSE_SHIFT > least ? bin << COARSE_SHIFT : least;
    *high = (bin + 1) << COARSE_SHIFT;
}
