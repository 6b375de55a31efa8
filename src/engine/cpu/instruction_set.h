/* Private to engine/cpu: the instruction sets that kernels are written for, and which can be used.
 *
 * One table of kernels a set. Results differ between sets by rounding only; within one they do not
 * depend on how many tokens a product has. INSTRUCTIONS_AVX512 and INSTRUCTIONS_AMX give the same
 * bits. */
#ifndef ENGINE_CPU_INSTRUCTION_SET_H
#define ENGINE_CPU_INSTRUCTION_SET_H

#if defined(__x86_64__) && defined(__GNUC__)
#define CPU_HAS_X86_KERNELS 1
#else
#define CPU_HAS_X86_KERNELS 0
#endif

/* Instruction sets in order of preference; each contains those before it. */
typedef enum InstructionSet {
    INSTRUCTIONS_PLAIN,  /* portable C */
    INSTRUCTIONS_AVX2,   /* with FMA and F16C */
    INSTRUCTIONS_AVX512, /* F, BW, VL, DQ and VNNI */
    INSTRUCTIONS_AMX,    /* AVX-512 with 8-bit tiles, which the system must allow */
    INSTRUCTION_SETS
} InstructionSet;

const char *instruction_set_name(InstructionSet set); /* "plain", "avx2", "avx512", "amx" */
/* The best that this build, processor and system have. MLX_SERVE_INSTRUCTIONS=NAME in the
 * environment lowers it, for measuring and tests; a name that is unknown or not available is as if
 * it were not set. */
InstructionSet cpu_instructions_available(void);

#endif
