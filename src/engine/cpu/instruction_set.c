/* Which instruction sets this build, processor and system have. */
#include "instruction_set.h"

#include "base.h"

#include <stdlib.h>
#include <string.h>

#if CPU_HAS_X86_KERNELS
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum {
    CPUID_LEAF7_EDX_AMX_TILE = 1 << 24,
    CPUID_LEAF7_EDX_AMX_INT8 = 1 << 25,
    ARCH_REQUEST_STATE = 0x1023, /* Linux: ARCH_REQ_XCOMP_PERM */
    STATE_TILE_DATA = 18,
};

/* The builtins know that the system saves the wide registers, but not F16C in every compiler. */
static bool has_avx2(void)
{
    unsigned eax, ebx, ecx = 0, edx;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

/* Tiles enlarge what the system saves of a thread by 8 KiB, so Linux wants to be asked, once a
 * process and before the threads that will use them start. */
static bool has_amx(void)
{
#if defined(__linux__)
    unsigned eax, ebx, ecx, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & CPUID_LEAF7_EDX_AMX_TILE) ||
        !(edx & CPUID_LEAF7_EDX_AMX_INT8))
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQUEST_STATE, STATE_TILE_DATA) == 0;
#else
    return false;
#endif
}

static InstructionSet detect(void)
{
    if (!has_avx2())
        return INSTRUCTIONS_PLAIN;
    if (!has_avx512())
        return INSTRUCTIONS_AVX2;
    return has_amx() ? INSTRUCTIONS_AMX : INSTRUCTIONS_AVX512;
}
#else
static InstructionSet detect(void)
{
    return INSTRUCTIONS_PLAIN;
}
#endif

const char *instruction_set_name(InstructionSet set)
{
    static const char *const names[INSTRUCTION_SETS] = {"plain", "avx2", "avx512", "amx"};
    return names[set];
}

InstructionSet cpu_instructions_available(void)
{
    InstructionSet available = detect();
    const char *wanted = getenv("MLX_SERVE_INSTRUCTIONS");
    for (int set = 0; wanted && set < (int)available; set++) {
        if (strcmp(wanted, instruction_set_name((InstructionSet)set)) == 0)
            return (InstructionSet)set;
    }
    return available;
}
