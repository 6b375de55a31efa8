/* The measuring loops for AVX-512. The multiply-add loop is vpdpbusd from registers, which a tile
 * of weights needs once for 64 products; nothing is loaded or unpacked. */
#include "machine_limits.h"

#include <immintrin.h>

enum { SUMS = 12, REPEAT = 8, VECTOR_PRODUCTS = 64, READ_STREAMS = 4, STEP_BYTES = 256 };

uint64_t avx512_read_bytes(const uint8_t *data, size_t size)
{
    const size_t stream_bytes = size / READ_STREAMS;
    __m512i sums[READ_STREAMS];
    for (int s = 0; s < READ_STREAMS; s++)
        sums[s] = _mm512_setzero_si512();
    for (size_t i = 0; i + STEP_BYTES <= stream_bytes; i += STEP_BYTES) {
        for (size_t s = 0; s < READ_STREAMS; s++) {
            const uint8_t *at = data + s * stream_bytes + i;
            for (size_t k = 0; k < STEP_BYTES; k += 64)
                sums[s] = _mm512_xor_si512(sums[s], _mm512_load_si512(at + k));
        }
    }
    __m512i all =
        _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
    return (uint64_t)_mm512_reduce_add_epi64(all);
}

static uint64_t multiply_bytes(uint64_t n, uint64_t *done)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8((char)(n & 1)), sums[SUMS];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_setzero_si512();
    for (*done = 0; *done < n; *done += SUMS * REPEAT * VECTOR_PRODUCTS) {
        for (int j = 0; j < REPEAT; j++) {
            /* Makes a unknown, so that no product can be taken out of the loop. */
            __asm__ volatile("" : "+v"(a));
            _Pragma("GCC unroll 16") for (int i = 0; i < SUMS; i++) sums[i] =
                _mm512_dpbusd_epi32(sums[i], a, b);
        }
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    return (uint64_t)_mm512_reduce_add_epi64(sums[0]);
}

const LimitLoops limit_loops_avx512 = {"avx512", avx512_read_bytes, multiply_bytes};
