/* Private to the AVX-512 files of attention. */
#ifndef ENGINE_CPU_ATTENTION_AVX512_H
#define ENGINE_CPU_ATTENTION_AVX512_H

/* Calls call(..., n) with a constant for n. */
#define FOR_QUERY_COUNT(n, call, ...)                                                              \
    do {                                                                                           \
        switch (n) {                                                                               \
        case 1:                                                                                    \
            call(__VA_ARGS__, 1);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            call(__VA_ARGS__, 2);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            call(__VA_ARGS__, 3);                                                                  \
            break;                                                                                 \
        case 4:                                                                                    \
            call(__VA_ARGS__, 4);                                                                  \
            break;                                                                                 \
        case 5:                                                                                    \
            call(__VA_ARGS__, 5);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            call(__VA_ARGS__, 6);                                                                  \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

#endif
