/* Private to engine/cpu: the element-wise operations of a transformer and the attention kernel, one
 * table an instruction set.
 *
 * Every entry of a table has the same meaning; ops.c states the formulas in plain C. Within one
 * table a result depends on its own row only, never on what is computed beside it. Threads: any;
 * each call touches only its arguments. Nothing fails; shapes are asserted where they could be
 * wrong. */
#ifndef ENGINE_CPU_OPS_H
#define ENGINE_CPU_OPS_H

#include "base.h"
#include "instruction_set.h"
#include "kv.h"

typedef struct AttentionTile AttentionTile;

typedef struct CpuOps {
    const char *name; /* "plain", "avx2", ... */
    /* out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; out may be x. */
    void (*rms_norm)(const float *x, const float *weight, size_t n, float eps, float *out);
    /* x[i] += y[i] */
    void (*add)(float *x, const float *y, size_t n);
    /* x[i] += y[i] * scale */
    void (*add_scaled)(float *x, const float *y, size_t n, float scale);
    /* out[i] = x[i] * scale; out may be x. */
    void (*scale)(const float *x, size_t n, float scale, float *out);
    /* gate[i] = silu(gate[i]) * up[i] and gate[i] = gelu_tanh(gate[i]) * up[i] */
    void (*silu_multiply)(float *gate, const float *up, size_t n);
    void (*gelu_tanh_multiply)(float *gate, const float *up, size_t n);
    /* x[i] = cap * tanh(x[i] / cap) */
    void (*soft_cap)(float *x, size_t n, float cap);
    /* Rotates one head in place: pairs (d, d + half), angles as cosines and sines [half]. */
    void (*rotate)(float *x, const float *cosines, const float *sines, size_t half);
    /* Codes of 16 bits of a row: what one counts so that the codes' Euclidean norm is at most
     * norm_max before they are rounded, and none is above code_max. 0 for zeros, NaN where x is not
     * finite. */
    float (*code_scale)(const float *x, size_t n, float norm_max, float code_max);
    /* codes[i] = x[i] * inverse, to nearest even; zeros where inverse is 0. */
    void (*to_codes)(const float *x, size_t n, float inverse, int16_t *codes);
    /* What keys and values of 16 bits are: KV_F16 or KV_INT16. */
    KvType kv16;
    /* With KV_F16, else NULL: float32 to fp16, to nearest even, what is finite kept finite; to
     * out[i * stride]. */
    void (*store_half)(const float *x, size_t n, uint16_t *out, size_t stride);
    /* The same for rows x [n_rows, n], row_stride apart, side by side: row r to out[r + i *
     * stride]. */
    void (*store_half_rows)(const float *x, size_t row_stride, size_t n_rows, size_t n,
                            uint16_t *out, size_t stride);
    /* Attention of a tile of queries over keys of one segment, of float32, or KV_F16 where kv16 is
     * that. */
    void (*attention_segment)(const AttentionTile *tile);
    /* The loops over codes (attention_codes.h). Optional (NULL): in plain C. */
    const struct CodeLoops *int8_loops, *int16_loops;
} CpuOps;

extern const CpuOps ops_plain;
#if CPU_HAS_X86_KERNELS
extern const CpuOps ops_avx2, ops_avx512;
#elif CPU_HAS_ARM_KERNELS
extern const CpuOps ops_neon;
#endif
/* Shared by the sets that have nothing better. */
float code_scale_plain(const float *x, size_t n, float norm_max, float code_max);
void to_codes_plain(const float *x, size_t n, float inverse, int16_t *codes);
/* code_scale, from the sum of squares (NaN where x has one) and the largest magnitude. */
float code_scale_of(double squares, float peak, size_t n, float norm_max, float code_max);
/* Rows, and blocks of weights, whose largest magnitude is below this count as zero: a code over it
 * must stay finite. */
#define CODE_ZERO_BELOW 1e-30f
/* The table for an instruction set that is available. */
const CpuOps *cpu_ops(InstructionSet set);

/* In place, in double where it is cheap: the router's probabilities. */
void ops_softmax(float *x, size_t n);

#endif
