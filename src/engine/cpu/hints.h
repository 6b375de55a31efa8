/* Private to engine/cpu: what the compilers are told about kernels. */
#ifndef ENGINE_CPU_HINTS_H
#define ENGINE_CPU_HINTS_H

#if defined(__GNUC__)
#define FORCE_INLINE inline __attribute__((always_inline))
#else
#define FORCE_INLINE inline
#endif

/* Kernels count on loops over registers being unrolled: an array in a rolled loop lives in memory.
 * clang unrolls early enough for that only when told to do so in full. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define KEEP_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define KEEP_ROLLED _Pragma("GCC unroll 1")
#endif

#endif
