/* Private to engine/cpu: the instruction sets that kernels are written for, and which can be used.
 *
 * One table of kernels a set. Results differ between sets by rounding only; within one they do not
 * depend on how many tokens a product has. AVX2 and AVX-VNNI give the same bits, so do
 * AVX-512, Zen 4 and AMX, and so do the three sets for Arm. */
#ifndef ENGINE_CPU_INSTRUCTION_SET_H
#define ENGINE_CPU_INSTRUCTION_SET_H

#include <stdbool.h>

/* CPU_PLAIN_ONLY: a build without kernels for this processor (CMake's MLX_SERVE_PLAIN_KERNELS). */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(CPU_PLAIN_ONLY)
#define CPU_HAS_X86_KERNELS 1
#else
#define CPU_HAS_X86_KERNELS 0
#endif

#if defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__) && !defined(CPU_PLAIN_ONLY)
#define CPU_HAS_ARM_KERNELS 1
#else
#define CPU_HAS_ARM_KERNELS 0
#endif

/* What this build has kernels for, in order of preference. */
typedef enum InstructionSet {
    INSTRUCTIONS_PLAIN, /* portable C */
#if CPU_HAS_X86_KERNELS
    INSTRUCTIONS_AVX2,    /* with FMA and F16C */
    INSTRUCTIONS_AVXVNNI, /* AVX2 with its own form of VNNI; machines with AVX-512 may lack it */
    INSTRUCTIONS_AVX512,  /* F, BW, VL, DQ and VNNI */
    INSTRUCTIONS_ZEN4,    /* the same where vectors are added beside being multiplied */
    INSTRUCTIONS_AMX,     /* AVX-512 with 8-bit tiles, which the system must allow */
#elif CPU_HAS_ARM_KERNELS
    INSTRUCTIONS_NEON,    /* every 64-bit Arm processor */
    INSTRUCTIONS_DOTPROD, /* with FEAT_DotProd: SDOT */
    INSTRUCTIONS_I8MM,    /* with FEAT_I8MM too: USDOT, USMMLA */
#endif
    INSTRUCTION_SETS,
    INSTRUCTIONS_BEST = INSTRUCTION_SETS - 1
} InstructionSet;

/* "plain", "avx2", "avxvnni", "avx512", "zen4", "amx", "neon", "dotprod", "i8mm" */
const char *instruction_set_name(InstructionSet set);
/* Whether a set can be used here. MLX_SERVE_INSTRUCTIONS=NAME in the environment hides the sets
 * after NAME, for measuring and tests; a name that is unknown or not available is as if it were not
 * set. */
bool cpu_has_instructions(InstructionSet set);
/* The best usable set up to `most`. */
InstructionSet cpu_best_instructions(InstructionSet most);

#endif
