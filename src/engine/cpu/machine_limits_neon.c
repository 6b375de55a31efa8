/* The measuring loops for Arm, compiled once a set like the kernels. The multiply-add loop is what
 * the kernels for many tokens issue, from registers: nothing is loaded or unpacked. */
#include "kernels_neon.h"
#include "machine_limits.h"

enum { SUMS = 16, REPEAT = 8, READ_STREAMS = 4, STEP_BYTES = 128 };

#if NEON_I8MM
enum { VECTOR_PRODUCTS = 32 };
static FORCE_INLINE int32x4_t multiply_vectors(int32x4_t sum, uint8x16_t a, int8x16_t b)
{
    return vusmmlaq_s32(sum, a, b);
}
#else
enum { VECTOR_PRODUCTS = 16 };
static FORCE_INLINE int32x4_t multiply_vectors(int32x4_t sum, uint8x16_t a, int8x16_t b)
{
    return add_products(sum, a, b, 0, PACKED_NIBBLES);
}
#endif

static uint64_t read_bytes(const uint8_t *data, size_t size)
{
    const size_t stream_bytes = size / READ_STREAMS;
    uint64x2_t sums[READ_STREAMS];
    UNROLL
    for (int s = 0; s < READ_STREAMS; s++)
        sums[s] = vdupq_n_u64(0);
    for (size_t i = 0; i + STEP_BYTES <= stream_bytes; i += STEP_BYTES) {
        UNROLL
        for (size_t s = 0; s < READ_STREAMS; s++) {
            const uint8_t *at = data + s * stream_bytes + i;
            UNROLL
            for (size_t k = 0; k < STEP_BYTES; k += 16)
                sums[s] = veorq_u64(sums[s], vreinterpretq_u64_u8(vld1q_u8(at + k)));
        }
    }
    uint64x2_t all = veorq_u64(veorq_u64(sums[0], sums[1]), veorq_u64(sums[2], sums[3]));
    return vgetq_lane_u64(all, 0) ^ vgetq_lane_u64(all, 1);
}

static uint64_t multiply_bytes(uint64_t n, uint64_t *done)
{
    uint8x16_t a = vdupq_n_u8(3);
    int8x16_t b = vdupq_n_s8((int8_t)(n & 1));
    int32x4_t sums[SUMS];
    UNROLL
    for (int i = 0; i < SUMS; i++)
        sums[i] = vdupq_n_s32(0);
    for (*done = 0; *done < n; *done += SUMS * REPEAT * VECTOR_PRODUCTS) {
        for (int j = 0; j < REPEAT; j++) {
            /* Makes a unknown, so that no product can be taken out of the loop. */
            __asm__ volatile("" : "+w"(a));
            UNROLL
            for (int i = 0; i < SUMS; i++)
                sums[i] = multiply_vectors(sums[i], a, b);
        }
    }
    UNROLL
    for (int i = 1; i < SUMS; i++)
        sums[0] = vaddq_s32(sums[0], sums[i]);
    return (uint64_t)vaddvq_s32(sums[0]);
}

#if NEON_I8MM
const LimitLoops limit_loops_i8mm = {"i8mm", read_bytes, multiply_bytes};
#elif NEON_DOTPROD
const LimitLoops limit_loops_dotprod = {"dotprod", read_bytes, multiply_bytes};
#else
const LimitLoops limit_loops_neon = {"neon", read_bytes, multiply_bytes};
#endif
