/* The measuring loops for AMX: whole tiles multiplied in registers, 16 * 16 * 64 products each. */
#include "machine_limits.h"

#include <immintrin.h>

enum { TILE_PRODUCTS = 16 * 16 * 64, TILES_A_ROUND = 8 };

static uint64_t multiply_bytes(uint64_t n, uint64_t *done)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    _Alignas(64) uint8_t bytes[16][64] = {{(uint8_t)n}};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = 16;
        config.row_bytes[i] = 64;
    }
    _tile_loadconfig(&config);
    _tile_loadd(4, bytes, 64);
    _tile_loadd(5, bytes, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (*done = 0; *done < n; *done += (uint64_t)TILES_A_ROUND * TILE_PRODUCTS) {
        for (int i = 0; i < TILES_A_ROUND / 4; i++) {
            _tile_dpbsud(0, 4, 5);
            _tile_dpbsud(1, 4, 5);
            _tile_dpbsud(2, 4, 5);
            _tile_dpbsud(3, 4, 5);
        }
    }
    _tile_stored(0, bytes, 64);
    _tile_release();
    return bytes[0][0];
}

const LimitLoops limit_loops_amx = {"amx", avx512_read_bytes, multiply_bytes};
