/* Private to engine/cpu: the inner loops that measure a machine. One pair an instruction set. */
#ifndef ENGINE_CPU_MACHINE_LIMITS_H
#define ENGINE_CPU_MACHINE_LIMITS_H

#include "base.h"

typedef struct LimitLoops {
    const char *name;
    /* Reads size bytes (a multiple of 4096); the result keeps the reads alive. */
    uint64_t (*read_bytes)(const uint8_t *data, size_t size);
    /* Does at least n 8-bit multiply-adds from registers; *done says how many. */
    uint64_t (*multiply_bytes)(uint64_t n, uint64_t *done);
} LimitLoops;

extern const LimitLoops limit_loops_plain;
extern const LimitLoops limit_loops_avx2, limit_loops_avxvnni, limit_loops_avx512, limit_loops_amx;
extern const LimitLoops limit_loops_neon, limit_loops_dotprod, limit_loops_i8mm;

/* The read loop of AVX-512, which AMX machines have too. */
uint64_t avx512_read_bytes(const uint8_t *data, size_t size);

#endif
