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
    CPUID_LEAF7_1_EAX_AVX_VNNI = 1 << 4,
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

static bool has_avxvnni(void)
{
    unsigned eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & CPUID_LEAF7_1_EAX_AVX_VNNI) != 0;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

/* AMD's processors have four units for vectors, of which two multiply; Intel's with AVX-512 have
 * two for everything. */
static bool is_zen(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx &&
           ecx == signature_AMD_ecx && edx == signature_AMD_edx;
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

static bool detect(InstructionSet set)
{
    switch (set) {
    case INSTRUCTIONS_AVX2:
        return has_avx2();
    case INSTRUCTIONS_AVXVNNI:
        return has_avx2() && has_avxvnni();
    case INSTRUCTIONS_AVX512:
        return has_avx2() && has_avx512();
    case INSTRUCTIONS_ZEN4:
        return has_avx2() && has_avx512() && is_zen();
    case INSTRUCTIONS_AMX:
        return has_avx2() && has_avx512() && has_amx();
    default:
        return true;
    }
}

#elif CPU_HAS_ARM_KERNELS
#if defined(__linux__)
#include <sys/auxv.h>

static bool has_dotprod(void)
{
    const unsigned long hwcap_asimddp = 1UL << 20;
    return (getauxval(AT_HWCAP) & hwcap_asimddp) != 0;
}

static bool has_i8mm(void)
{
    const unsigned long hwcap2_i8mm = 1UL << 13;
    return (getauxval(AT_HWCAP2) & hwcap2_i8mm) != 0;
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static bool has_feature(const char *name)
{
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

static bool has_dotprod(void)
{
    return has_feature("hw.optional.arm.FEAT_DotProd");
}

static bool has_i8mm(void)
{
    return has_feature("hw.optional.arm.FEAT_I8MM");
}
#else
static bool has_dotprod(void)
{
    return false;
}

static bool has_i8mm(void)
{
    return false;
}
#endif

static bool detect(InstructionSet set)
{
    switch (set) {
    case INSTRUCTIONS_DOTPROD:
        return has_dotprod();
    case INSTRUCTIONS_I8MM:
        return has_dotprod() && has_i8mm();
    default:
        return true;
    }
}
#else
static bool detect(InstructionSet set)
{
    return set == INSTRUCTIONS_PLAIN;
}
#endif

const char *instruction_set_name(InstructionSet set)
{
    static const char *const names[INSTRUCTION_SETS] = {
        "plain",
#if CPU_HAS_X86_KERNELS
        "avx2",
        "avxvnni",
        "avx512",
        "zen4",
        "amx",
#elif CPU_HAS_ARM_KERNELS
        "neon",
        "dotprod",
        "i8mm",
#endif
    };
    return names[set];
}

bool cpu_has_instructions(InstructionSet set)
{
    const char *wanted = getenv("MLX_SERVE_INSTRUCTIONS");
    for (int lower = 0; wanted && lower < (int)set; lower++) {
        if (strcmp(wanted, instruction_set_name((InstructionSet)lower)) == 0 &&
            detect((InstructionSet)lower))
            return false;
    }
    return detect(set);
}

InstructionSet cpu_best_instructions(InstructionSet most)
{
    while (!cpu_has_instructions(most))
        most = (InstructionSet)((int)most - 1);
    return most;
}
