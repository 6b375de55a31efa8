#include "random.h"

#include <unistd.h>
#if defined(__APPLE__)
#include <sys/random.h>
#endif

/* 2^64 divided by the golden ratio: successive counters land far apart. */
static const uint64_t RANDOM_GAMMA = 0x9e3779b97f4a7c15u;

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void random_init(RandomStream *random, uint64_t seed, uint32_t choice)
{
    /* Two rounds, so that seed 1 choice 0 and seed 0 choice 1 share nothing. */
    uint64_t key = mix(seed + RANDOM_GAMMA);
    random->key = mix(key + (uint64_t)choice * RANDOM_GAMMA);
    random->counter = 0;
}

bool random_system_seed(uint64_t *seed, Error *err)
{
    if (getentropy(seed, sizeof(*seed)) != 0)
        return error_set(err, ERROR_IO, "the system gives no random seed");
    return true;
}

double random_uniform(RandomStream *random)
{
    random->counter++;
    uint64_t bits = mix(random->key + random->counter * RANDOM_GAMMA);
    return (double)(bits >> 11) * 0x1.0p-53;
}
