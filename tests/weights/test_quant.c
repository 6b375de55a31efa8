/* Float conversions exhaustively against their definitions; quantised layouts and the affine
 * quantiser against golden data from MLX (quant-vectors.json, affine-quantize.json). */
#include "weights_builder.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

/* ---- Floats ---------------------------------------------------------------------------------- */

/* Any small float format out of its definition, in double. */
static double small_float(uint32_t bits, int exponent_bits, int mantissa_bits, int bias)
{
    uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    int exponent = (int)(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
    double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
}

static void test_f16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float value = float_from_f16((uint16_t)i);
        if ((i >> 10 & 31) == 31) {
            assert_true((i & 1023) ? isnan(value) : isinf(value));
            assert_int_equal(signbit(value) != 0, i >> 15);
            if ((i & 1023) == 0)
                assert_int_equal(float_to_f16(value), i);
            else
                assert_true(isnan(float_from_f16(float_to_f16(value))));
            continue;
        }
        if ((double)value != small_float(i, 5, 10, 15))
            fail_msg("f16 %04x is %a", (unsigned)i, (double)value);
        assert_int_equal(float_to_f16(value), i);
        /* Between two neighbours: the nearer one, and the even one from the middle. */
        if ((i & 0x7fff) >= 0x7bff)
            continue;
        float next = float_from_f16((uint16_t)(i + 1));
        float middle = (value + next) / 2;
        assert_int_equal(float_to_f16(middle), i & 1 ? i + 1 : i);
        assert_int_equal(float_to_f16(nextafterf(middle, value)), i);
        assert_int_equal(float_to_f16(nextafterf(middle, next)), i + 1);
    }
    assert_int_equal(float_to_f16(65519.99f), 0x7bff);
    assert_int_equal(float_to_f16(65520.0f), 0x7c00);
    assert_int_equal(float_to_f16(-1e30f), 0xfc00);
    assert_int_equal(float_to_f16(0x1p-25f), 0);
    assert_int_equal(float_to_f16(0x1.000002p-25f), 1);
    assert_int_equal(float_to_f16(-0x1p-26f), 0x8000);
    assert_int_equal(float_to_f16(1e-45f), 0);
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float value = float_from_bf16((uint16_t)i);
        if ((i >> 7 & 255) == 255) {
            assert_true((i & 127) ? isnan(value) && isnan(float_from_bf16(float_to_bf16(value)))
                                  : isinf(value) && float_to_bf16(value) == i);
            continue;
        }
        assert_true((double)value == small_float(i, 8, 7, 127));
        assert_int_equal(float_to_bf16(value), i);
        if ((i & 0x7fff) >= 0x7f7f)
            continue;
        float next = float_from_bf16((uint16_t)(i + 1));
        float middle = value + (next - value) / 2;
        assert_int_equal(float_to_bf16(middle), i & 1 ? i + 1 : i);
        assert_int_equal(float_to_bf16(nextafterf(middle, value)), i);
        assert_int_equal(float_to_bf16(nextafterf(middle, next)), i + 1);
    }
}

static void test_small_floats(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 256; i++) {
        float e4m3 = float_from_e4m3((uint8_t)i);
        if ((i & 0x7f) == 0x7f)
            assert_true(isnan(e4m3));
        else
            assert_true((double)e4m3 == small_float(i, 4, 3, 7));
        float e8m0 = float_from_e8m0((uint8_t)i);
        if (i == 255)
            assert_true(isnan(e8m0));
        else
            assert_true((double)e8m0 == ldexp(1, (int)i - 127));
    }
    assert_true(float_from_e4m3(0x7e) == 448.0f);
    for (uint32_t i = 0; i < 16; i++)
        assert_true((double)float_from_e2m1((uint8_t)i) == small_float(i, 2, 1, 1));
}

/* ---- Golden vectors -------------------------------------------------------------------------- */

typedef struct Golden {
    Buffer text;
    Arena arena;
    const JsonValue *cases;
} Golden;

static void golden_open(Golden *golden, const char *name)
{
    Error err = {0};
    char path[PATH_BYTES_MAX];
    snprintf(path, sizeof(path), "%s/weights/%s", TEST_DATA_DIR, name);
    buffer_init(&golden->text, 1 << 24);
    arena_init(&golden->arena, 1 << 26);
    if (!file_read(path, 1 << 24, &golden->text, &err) ||
        !json_parse(buffer_view(&golden->text), &golden->arena, &golden->cases, &err))
        fail_msg("%s", err.message);
    assert_true(json_is(golden->cases, JSON_ARRAY) && golden->cases->as.array.count > 10);
}

static void golden_close(Golden *golden)
{
    arena_reset(&golden->arena);
    buffer_reset(&golden->text);
}

static int64_t get_int(const JsonValue *object, const char *key)
{
    int64_t value = 0;
    Error err = {0};
    if (!json_read_int(object, key, 0, INT32_MAX, &value, &err))
        fail_msg("%s", err.message);
    return value;
}

static const JsonValue *get_array(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get(object, slice_of(key));
    assert_true(json_is(value, JSON_ARRAY));
    return value;
}

static double item(const JsonValue *array, size_t index)
{
    assert_true(index < array->as.array.count);
    return json_to_double(&array->as.array.items[index]);
}

enum { ROWS = 2, COLS = 128, GROUPS_MAX = 8 };

/* Appends one tensor's JSON and its data. */
static void put_tensor(Buffer *header, Buffer *data, const char *name, const char *dtype,
                       size_t cols, size_t begin)
{
    buffer_append_format(header,
                         ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%zu],\"data_offsets\":[%zu,%zu]}",
                         name, dtype, ROWS, cols, begin, data->len);
}

static void put_scales(Buffer *data, const JsonValue *rows, const char *dtype)
{
    for (size_t r = 0; r < ROWS; r++) {
        const JsonValue *row = &rows->as.array.items[r];
        for (size_t g = 0; g < row->as.array.count; g++) {
            float value = (float)item(row, g);
            if (strcmp(dtype, "BF16") == 0)
                put_u16(data, float_to_bf16(value));
            else if (strcmp(dtype, "F16") == 0)
                put_f16(data, value);
            else
                buffer_append_byte(data, (char)(int)value);
        }
    }
}

static void build_case(const JsonValue *c, Buffer *image)
{
    Buffer header, data;
    buffer_init(&header, 1 << 16);
    buffer_init(&data, 1 << 16);
    Slice scale_dtype = json_get(c, SLICE("scale_dtype"))->as.string;
    const char *dtype = slice_equal(scale_dtype, SLICE("bfloat16"))  ? "BF16"
                        : slice_equal(scale_dtype, SLICE("float16")) ? "F16"
                                                                     : "U8";
    size_t bits = (size_t)get_int(c, "bits"), groups = COLS / (size_t)get_int(c, "group_size");
    /* An odd byte first, so that everything after it is unaligned. */
    buffer_append_byte(&data, 0);
    buffer_append_text(&header, "{\"__metadata__\":{\"format\":\"mlx\"},\"odd\":{\"dtype\":\"U8\","
                                "\"shape\":[1],\"data_offsets\":[0,1]}");
    const JsonValue *words = get_array(c, "weight_u32_hex");
    for (size_t r = 0; r < ROWS; r++) {
        const JsonValue *row = &words->as.array.items[r];
        for (size_t i = 0; i < row->as.array.count; i++)
            put_u32(&data, (uint32_t)strtoul(row->as.array.items[i].as.string.ptr, NULL, 16));
    }
    put_tensor(&header, &data, "m.weight", "U32", COLS * bits / 32, 1);
    size_t begin = data.len;
    put_scales(&data, get_array(c, "scales"), dtype);
    put_tensor(&header, &data, "m.scales", dtype, groups, begin);
    if (json_get(c, SLICE("biases"))) {
        begin = data.len;
        put_scales(&data, get_array(c, "biases"), dtype);
        put_tensor(&header, &data, "m.biases", dtype, groups, begin);
    }
    buffer_append_text(&header, "}");
    buffer_append_byte(&header, '\0');
    safetensors_image(image, header.ptr, data.ptr, data.len);
    buffer_reset(&data);
    buffer_reset(&header);
}

static void check_row(const WeightMatrix *m, const JsonValue *c, size_t row)
{
    float values[COLS], scales[GROUPS_MAX], biases[GROUPS_MAX];
    uint8_t codes[COLS], packed[COLS];
    const JsonValue *expected = &get_array(c, "expected")->as.array.items[row];
    weight_matrix_read_row(m, 0, row, values);
    for (size_t i = 0; i < COLS; i++) {
        if (values[i] != (float)item(expected, i))
            fail_msg("bits %u group %u row %zu value %zu: %a, expected %a", m->bits, m->group_size,
                     row, i, (double)values[i], item(expected, i));
    }
    weight_matrix_read_codes(m, 0, row, codes);
    if (row == 0) {
        for (size_t i = 0; i < COLS; i++)
            assert_int_equal(codes[i], (int)item(get_array(c, "codes_first_row"), i));
    }
    affine_pack_codes(codes, COLS, m->bits, packed);
    assert_memory_equal(packed, m->weight->data + row * COLS * m->bits / 8, COLS * m->bits / 8);
    weight_matrix_read_scales(m, 0, row, scales, biases);
    for (size_t g = 0; m->mode == QUANT_AFFINE && g < COLS / m->group_size; g++) {
        assert_true(scales[g] == (float)item(&get_array(c, "scales")->as.array.items[row], g));
        assert_true(biases[g] == (float)item(&get_array(c, "biases")->as.array.items[row], g));
    }
}

static void test_golden_vectors(void **state)
{
    (void)state;
    Golden golden;
    golden_open(&golden, "quant-vectors.json");
    static const char *const modes[] = {"none", "affine", "mxfp4", "mxfp8", "nvfp4"};
    for (size_t i = 0; i < golden.cases->as.array.count; i++) {
        const JsonValue *c = &golden.cases->as.array.items[i];
        Buffer image;
        buffer_init(&image, 1 << 20);
        build_case(c, &image);
        Error err = {0};
        TensorSet *set;
        WeightMatrix m;
        if (!tensor_set_create(buffer_view(&image), "case", &set, &err) ||
            !weight_matrix_bind(set, "m", 1, ROWS, COLS, NULL, &m, &err))
            fail_msg("case %zu: %s", i, err.message);
        assert_int_equal(m.bits, get_int(c, "bits"));
        assert_int_equal(m.group_size, get_int(c, "group_size"));
        assert_true(slice_equal(json_get(c, SLICE("mode"))->as.string, slice_of(modes[m.mode])));
        assert_int_equal(weight_matrix_bytes(&m), tensor_set_bytes(set) - 1);
        for (size_t r = 0; r < ROWS; r++)
            check_row(&m, c, r);
        WeightMatrix second = weight_matrix_slice_rows(&m, 1, 1);
        float whole[COLS], part[COLS];
        weight_matrix_read_row(&m, 0, 1, whole);
        weight_matrix_read_row(&second, 0, 0, part);
        assert_memory_equal(whole, part, sizeof(whole));
        QuantSpec spec = {true, m.mode, m.bits, m.group_size};
        assert_true(weight_matrix_bind(set, "m", 1, ROWS, COLS, &spec, &m, &err));
        spec.bits++;
        assert_false(weight_matrix_bind(set, "m", 1, ROWS, COLS, &spec, &m, &err));
        assert_int_equal(err.code, ERROR_INVALID);
        assert_null(m.weight);
        tensor_set_close(set);
        buffer_reset(&image);
    }
    golden_close(&golden);
}

static void test_affine_quantize(void **state)
{
    (void)state;
    Golden golden;
    golden_open(&golden, "affine-quantize.json");
    for (size_t i = 0; i < golden.cases->as.array.count; i++) {
        const JsonValue *c = &golden.cases->as.array.items[i];
        const JsonValue *values = get_array(c, "values"), *words = get_array(c, "words");
        uint32_t bits = (uint32_t)get_int(c, "bits");
        size_t count = values->as.array.count;
        float in[COLS], scale, bias;
        uint8_t codes[COLS], packed[COLS];
        for (size_t j = 0; j < count; j++)
            in[j] = (float)item(values, j);
        affine_quantize_group(in, count, bits, codes, &scale, &bias);
        if (scale !=
            (float)item(
                &(JsonValue){.kind = JSON_ARRAY, .as.array = {json_get(c, SLICE("scale")), 1}}, 0))
            fail_msg("case %zu: scale %a", i, (double)scale);
        assert_true(bias == (float)json_to_double(json_get(c, SLICE("bias"))));
        affine_pack_codes(codes, count, bits, packed);
        for (size_t w = 0; w < words->as.array.count; w++) {
            uint32_t expected = (uint32_t)item(words, w);
            uint32_t found = packed[4 * w] | (uint32_t)packed[4 * w + 1] << 8 |
                             (uint32_t)packed[4 * w + 2] << 16 | (uint32_t)packed[4 * w + 3] << 24;
            assert_int_equal(found, expected);
        }
    }
    golden_close(&golden);
}

/* ---- Binding --------------------------------------------------------------------------------- */

typedef struct BindCase {
    const char *header;
    ErrorCode code;
    const char *message; /* a part of it */
} BindCase;

/* Module m is bound as one expert of 2 x 64; 1024 zero bytes of data are more than any header uses.
 */
static const BindCase bind_cases[] = {
    {"{\"m.weight\":{\"dtype\":\"F16\",\"shape\":[2,64],\"data_offsets\":[0,256]}}", ERROR_NONE,
     ""},
    {"{\"m.weight\":{\"dtype\":\"F16\",\"shape\":[1,2,64],\"data_offsets\":[0,256]}}", ERROR_NONE,
     ""},
    {"{\"m.weight\":{\"dtype\":\"F16\",\"shape\":[64,2],\"data_offsets\":[0,256]}}", ERROR_INVALID,
     "m.weight: shape [64, 2], expected [2, 64]"},
    {"{\"m.weight\":{\"dtype\":\"I16\",\"shape\":[2,64],\"data_offsets\":[0,256]}}", ERROR_INVALID,
     "expected F32, F16 or BF16"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]}}", ERROR_NOT_FOUND,
     "m.scales"},
    {"{\"x.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]}}", ERROR_NOT_FOUND,
     "m.weight: missing"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[64,68]}}",
     ERROR_NOT_FOUND, "m.biases"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[64,68]},"
     "\"m.biases\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[68,72]}}",
     ERROR_INVALID, "m.biases: dtype BF16, expected F16"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[64,68]},"
     "\"m.biases\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[68,72]}}",
     ERROR_INVALID, "m.biases: shape [1, 2], expected [2, 1]"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[64,76]}}",
     ERROR_INVALID, "m.scales: shape [2, 3]"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[24,28]}}",
     ERROR_INVALID, "m.weight: shape [2, 3]"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,14],\"data_offsets\":[0,112]},"
     "\"m.scales\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[112,116]}}",
     ERROR_UNSUPPORTED, "7 bits in groups of 64"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"U8\",\"shape\":[2,1],\"data_offsets\":[64,66]}}",
     ERROR_UNSUPPORTED, "U8 scales"},
    {"{\"m.weight\":{\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[64,68]}}",
     ERROR_INVALID, "m.weight: dtype F32, expected U32"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[64,65]}}",
     ERROR_INVALID, "m.scales: shape []"},
    {"{\"m.weight\":{\"dtype\":\"U32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
     "\"m.scales\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[64,68]}}",
     ERROR_NONE, ""},
};

static size_t data_size(const char *header)
{
    size_t largest = 0;
    for (const char *at = header; (at = strstr(at, "data_offsets\":[")); at++) {
        const char *comma = strchr(at, ',');
        size_t end = strtoul(comma + 1, NULL, 10);
        largest = end > largest ? end : largest;
    }
    return largest;
}

static void test_bind_refusals(void **state)
{
    (void)state;
    static const uint8_t zeros[1024];
    for (size_t i = 0; i < ARRAY_COUNT(bind_cases); i++) {
        Buffer image;
        buffer_init(&image, 1 << 16);
        safetensors_image(&image, bind_cases[i].header, zeros, data_size(bind_cases[i].header));
        Error err = {0};
        TensorSet *set;
        WeightMatrix m;
        if (!tensor_set_create(buffer_view(&image), "case", &set, &err))
            fail_msg("case %zu: %s", i, err.message);
        bool ok = weight_matrix_bind(set, "m", 1, 2, 64, NULL, &m, &err);
        if (ok != (bind_cases[i].code == ERROR_NONE) || err.code != bind_cases[i].code ||
            !strstr(err.message, bind_cases[i].message))
            fail_msg("case %zu: %d %s", i, (int)err.code, err.message);
        tensor_set_close(set);
        buffer_reset(&image);
    }
}

static void test_experts(void **state)
{
    (void)state;
    Buffer image, data;
    buffer_init(&image, 1 << 16);
    buffer_init(&data, 1 << 16);
    for (uint32_t i = 0; i < 3 * 4 * 32; i++)
        put_u16(&data, float_to_bf16((float)(i % 251)));
    safetensors_image(
        &image, "{\"m.weight\":{\"dtype\":\"BF16\",\"shape\":[3,4,32],\"data_offsets\":[0,768]}}",
        data.ptr, data.len);
    Error err = {0};
    TensorSet *set;
    WeightMatrix m;
    assert_true(tensor_set_create(buffer_view(&image), "case", &set, &err));
    assert_false(weight_matrix_bind(set, "m", 4, 3, 32, NULL, &m, &err));
    assert_false(weight_matrix_bind(set, "m", 1, 12, 32, NULL, &m, &err));
    assert_true(weight_matrix_bind(set, "m", 3, 4, 32, NULL, &m, &err));
    assert_int_equal(weight_matrix_bytes(&m), 768);
    WeightMatrix part = weight_matrix_slice_rows(&m, 2, 2);
    assert_int_equal(weight_matrix_bytes(&part), 384);
    float row[32];
    weight_matrix_read_row(&part, 1, 1, row); /* expert 1, row 3 */
    for (size_t i = 0; i < 32; i++)
        assert_true(row[i] == (float)((128 + 96 + i) % 251));
    tensor_set_close(set);
    buffer_reset(&data);
    buffer_reset(&image);
}

/* Values spread evenly around zero, in every layout, and the tensors' sizes are the layout's. */
static void check_random(uint32_t bits, uint32_t group_size)
{
    enum { EXPERTS = 2, HEIGHT = 70, WIDTH = 384 };
    Error err = {0};
    TensorSet *set;
    WeightMatrix m;
    float row[WIDTH];
    double sum = 0, squares = 0;
    assert_true(tensor_set_create_random(bits, group_size, &set, &err));
    assert_true(tensor_set_is_random(set));
    assert_true(weight_matrix_create_random(set, EXPERTS, HEIGHT, WIDTH, &m, &err));
    size_t expected = EXPERTS * HEIGHT * WIDTH * bits / 8;
    if (bits < 16)
        expected += EXPERTS * HEIGHT * (WIDTH / group_size) * 4;
    assert_int_equal(weight_matrix_bytes(&m), expected);
    assert_int_equal(tensor_set_bytes(set), expected);
    for (size_t e = 0; e < EXPERTS; e++) {
        for (size_t r = 0; r < HEIGHT; r++) {
            weight_matrix_read_row(&m, e, r, row);
            for (size_t i = 0; i < WIDTH; i++) {
                sum += (double)row[i];
                squares += (double)row[i] * (double)row[i];
            }
        }
    }
    double n = EXPERTS * HEIGHT * WIDTH, deviation = sqrt(squares / n);
    if (!(fabs(sum / n) < 6 * deviation / sqrt(n)) || !(deviation > 0.01 && deviation < 0.1))
        fail_msg("%u bits: mean %g, deviation %g", bits, sum / n, deviation);
    tensor_set_close(set);
}

static void test_random(void **state)
{
    (void)state;
    static const uint32_t bits[] = {2, 3, 4, 5, 6, 8, 16}, groups[] = {32, 64, 128};
    for (size_t i = 0; i < ARRAY_COUNT(bits); i++) {
        for (size_t g = 0; g < ARRAY_COUNT(groups); g++)
            check_random(bits[i], groups[g]);
    }
    static const uint32_t wrong[][2] = {{7, 64}, {1, 64}, {4, 16}, {4, 0}, {32, 64}};
    TensorSet *set;
    WeightMatrix m;
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        Error err = {0};
        assert_false(tensor_set_create_random(wrong[i][0], wrong[i][1], &set, &err));
        assert_null(set);
        assert_int_equal(err.code, ERROR_UNSUPPORTED);
    }
    Error err = {0};
    assert_true(tensor_set_create_random(4, 128, &set, &err));
    assert_false(weight_matrix_create_random(set, 1, 4, 192, &m, &err));
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    tensor_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_small_floats),
        cmocka_unit_test(test_golden_vectors),
        cmocka_unit_test(test_affine_quantize),
        cmocka_unit_test(test_bind_refusals),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
