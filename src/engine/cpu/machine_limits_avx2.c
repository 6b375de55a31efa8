/* The measuring loops for AVX2 and AVX-VNNI. The multiply-add loop of AVX-VNNI is vpdpbusd from
 * registers; that of AVX2 is what a tile of 4-bit weights needs at
 * least: 8 vpmaddubsw added up in 16 bits, widened once and added up in 32 bits, 256 products in 17
 * instructions, nothing loaded. */
#include "machine_limits.h"

#include <immintrin.h>

enum { SUMS = 8, RUN = 8, VECTOR_PRODUCTS = 32, READ_STREAMS = 4 };

static uint64_t fold(__m256i v)
{
    return (uint64_t)_mm256_extract_epi64(v, 0) ^ (uint64_t)_mm256_extract_epi64(v, 1) ^
           (uint64_t)_mm256_extract_epi64(v, 2) ^ (uint64_t)_mm256_extract_epi64(v, 3);
}

/* Four streams side by side, as the row-vector kernels read tiles: one alone is slower. */
static uint64_t read_bytes(const uint8_t *data, size_t size)
{
    const size_t stream_bytes = size / READ_STREAMS;
    __m256i sums[READ_STREAMS];
    for (int s = 0; s < READ_STREAMS; s++)
        sums[s] = _mm256_setzero_si256();
    for (size_t i = 0; i + 128 <= stream_bytes; i += 128) {
        for (size_t s = 0; s < READ_STREAMS; s++) {
            const uint8_t *at = data + s * stream_bytes + i;
            for (size_t k = 0; k < 128; k += 32)
                sums[s] = _mm256_xor_si256(
                    sums[s], _mm256_load_si256((const __m256i *)(const void *)(at + k)));
        }
    }
    return fold(
        _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3])));
}

/* SUMS * RUN * VECTOR_PRODUCTS products. a is made unknown again and again, so that no product can
 * be taken out of the loop. */
#if AVX2_VNNI
static inline void multiply_round(__m256i a, __m256i b, __m256i sums[SUMS])
{
    for (int j = 0; j < RUN; j++) {
        __asm__ volatile("" : "+x"(a));
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
    }
}
#else
static inline void multiply_round(__m256i a, __m256i b, __m256i sums[SUMS])
{
    for (int i = 0; i < SUMS; i++) {
        __m256i run = _mm256_setzero_si256();
        for (int j = 0; j < RUN; j++) {
            __asm__ volatile("" : "+x"(a));
            run = _mm256_add_epi16(run, _mm256_maddubs_epi16(a, b));
        }
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(run, _mm256_set1_epi16(1)));
    }
}
#endif

static uint64_t multiply_bytes(uint64_t n, uint64_t *done)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8((char)(n & 1)), sums[SUMS];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_setzero_si256();
    for (*done = 0; *done < n; *done += SUMS * RUN * VECTOR_PRODUCTS)
        multiply_round(a, b, sums);
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    return fold(sums[0]);
}

#if AVX2_VNNI
const LimitLoops limit_loops_avxvnni = {"avxvnni", read_bytes, multiply_bytes};
#else
const LimitLoops limit_loops_avx2 = {"avx2", read_bytes, multiply_bytes};
#endif
