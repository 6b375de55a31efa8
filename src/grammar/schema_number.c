/* Numbers between bounds, digit by digit.
 *
 * A side (what may follow the sign) is an automaton that compares the digits read with those of
 * both bounds: how many were read, whether the part before or behind the point is being read, and
 * per bound whether the text so far is less, equal or greater. Whole numbers are the same without a
 * point. Numbers with an exponent are accepted as programs print them (one digit, fraction, e-05
 * and below or e+16 and above): an automaton for the mantissa, then the exponents that fit.
 *
 * Bounds are doubles and texts are decimal: 0.99999999999999999 reads back as 1. So x < 1 is
 * compared as x <= the double below 1; reading is monotonous, so what is within decimal bounds
 * reads back within. */
#include "schema.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DIGITS_MAX = 360, MULTIPLE_MAX = 10000 };

typedef struct Decimal {
    size_t n_whole,
        n_fraction; /* at least one digit before the point; no zeros at the end behind it */
    char whole[DIGITS_MAX], fraction[DIGITS_MAX];
} Decimal;

typedef struct Side {
    bool has_low, has_high, low_is_exclusive, high_is_exclusive;
    Decimal low, high;
    bool may_have_point;
    bool is_mantissa; /* one digit from 1 to 9 before the point */
} Side;

/* ---- Decimal texts ---- */

static void trim_decimal(Decimal *d)
{
    while (d->n_fraction > 0 && d->fraction[d->n_fraction - 1] == '0')
        d->n_fraction--;
    size_t zeros = 0;
    while (zeros + 1 < d->n_whole && d->whole[zeros] == '0')
        zeros++;
    memmove(d->whole, d->whole + zeros, d->n_whole - zeros);
    d->n_whole -= zeros;
    if (d->n_whole == 0)
        d->whole[d->n_whole++] = '0';
}

/* -1, 0, 1; both with one digit before the point. */
static int decimal_order(const Decimal *a, const Decimal *b)
{
    if (a->whole[0] != b->whole[0])
        return a->whole[0] < b->whole[0] ? -1 : 1;
    return slice_compare((Slice){a->fraction, a->n_fraction}, (Slice){b->fraction, b->n_fraction});
}

/* The magnitude of a finite number. */
static void decimal_of(const JsonValue *value, Decimal *out)
{
    char text[JSON_NUMBER_TEXT_MAX];
    size_t len;
    *out = (Decimal){0};
    if (value->kind == JSON_DOUBLE) {
        len = json_format_double(fabs(value->as.number), text);
    } else {
        uint64_t magnitude = value->kind == JSON_UINT ? value->as.unsigned_integer
                             : value->as.integer < 0  ? 0 - (uint64_t)value->as.integer
                                                      : (uint64_t)value->as.integer;
        char reversed[JSON_NUMBER_TEXT_MAX];
        size_t n = 0;
        do
            reversed[n++] = (char)('0' + magnitude % 10);
        while (magnitude /= 10);
        for (len = 0; n > 0; len++)
            text[len] = reversed[--n];
    }
    char digits[JSON_NUMBER_TEXT_MAX];
    size_t n = 0, i = 0;
    int point = -1, exponent = 0;
    for (; i < len && text[i] != 'e'; i++) {
        if (text[i] == '.')
            point = (int)n;
        else
            digits[n++] = text[i];
    }
    if (i < len) {
        bool is_negative = text[++i] == '-';
        for (i += text[i] == '-' || text[i] == '+'; i < len; i++)
            exponent = exponent * 10 + (text[i] - '0');
        exponent = is_negative ? -exponent : exponent;
    }
    point = (point < 0 ? (int)n : point) + exponent;
    for (int k = point < 0 ? point : 0; k < (int)n || k < point; k++) {
        char digit = k >= 0 && k < (int)n ? digits[k] : '0';
        if (k < point && out->n_whole < DIGITS_MAX)
            out->whole[out->n_whole++] = digit;
        else if (k >= point && out->n_fraction < DIGITS_MAX)
            out->fraction[out->n_fraction++] = digit;
    }
    trim_decimal(out);
}

/* ---- The automaton of a side ---- */

typedef enum Phase { PHASE_START, PHASE_WHOLE, PHASE_ZERO, PHASE_POINT, PHASE_FRACTION } Phase;
typedef enum Order { LESS, EQUAL, GREATER } Order;

typedef struct Reading { /* what a state of the automaton knows */
    Phase phase;
    size_t n; /* digits of this part read, up to a cap */
    Order low, high;
} Reading;

typedef struct SideBuilder {
    const Side *side;
    CharDfa *dfa;
    Buffer readings; /* Reading[] by state */
    int32_t *found;  /* state of a reading + 1, by reading_index */
    size_t whole_cap, fraction_cap;
    Error *err;
} SideBuilder;

enum { READINGS = (PHASE_FRACTION + 1) * (DIGITS_MAX + 2) * 9, CLASS_POINT = 1, CLASS_DIGIT = 2 };

/* Classes of a number's characters: 0 any other, 1 the point, 2.. the digits. */
static bool number_classes(CharDfa *dfa, Error *err)
{
    enum { RANGES = 14 };
    *dfa = (CharDfa){.lows = memory_allocate_zeroed(RANGES, sizeof(*dfa->lows)),
                     .class_of = memory_allocate_zeroed(RANGES, sizeof(*dfa->class_of)),
                     .n_ranges = RANGES,
                     .n_classes = 12};
    if (!dfa->lows || !dfa->class_of)
        return error_no_memory(err, "numbers");
    dfa->lows[1] = '.';
    dfa->class_of[1] = CLASS_POINT;
    dfa->lows[2] = '/';
    for (uint32_t digit = 0; digit < 10; digit++) {
        dfa->lows[3 + digit] = '0' + digit;
        dfa->class_of[3 + digit] = CLASS_DIGIT + digit;
    }
    dfa->lows[13] = ':';
    return true;
}

static Order order_of(char a, char b)
{
    return a < b ? LESS : a > b ? GREATER : EQUAL;
}

/* The order of a number whose part before the point is over, n digits of it in order `prefix`. */
static Order whole_order(const Decimal *bound, size_t n, Order prefix)
{
    if (n != bound->n_whole)
        return n < bound->n_whole ? LESS : GREATER;
    return prefix;
}

static Order end_order(const Decimal *bound, const Reading *r, Order order)
{
    size_t n_fraction = r->phase == PHASE_FRACTION ? r->n : 0;
    if (r->phase != PHASE_FRACTION)
        order = whole_order(bound, r->n, order);
    return order == EQUAL && n_fraction < bound->n_fraction ? LESS : order;
}

static bool reading_accepts(const Side *side, const Reading *r)
{
    if (r->phase == PHASE_START || r->phase == PHASE_POINT)
        return false;
    Order low = end_order(&side->low, r, r->low), high = end_order(&side->high, r, r->high);
    return (!side->has_low || low == GREATER || (low == EQUAL && !side->low_is_exclusive)) &&
           (!side->has_high || high == LESS || (high == EQUAL && !side->high_is_exclusive));
}

static Order next_order(const Decimal *bound, const Reading *r, Order order, char digit)
{
    if (order != EQUAL)
        return order;
    bool is_fraction = r->phase == PHASE_POINT || r->phase == PHASE_FRACTION;
    const char *digits = is_fraction ? bound->fraction : bound->whole;
    size_t n = is_fraction ? bound->n_fraction : bound->n_whole;
    size_t at = r->phase == PHASE_WHOLE || r->phase == PHASE_FRACTION ? r->n : 0;
    return order_of(digit, at < n ? digits[at] : '0');
}

/* The state for a reading; -2 on failure. */
static int32_t state_of(SideBuilder *b, const Reading *r)
{
    size_t index = ((size_t)r->phase * (DIGITS_MAX + 2) + r->n) * 9 + (size_t)r->low * 3 + r->high;
    if (b->found[index])
        return b->found[index] - 1;
    int32_t state = char_dfa_add_state(b->dfa, reading_accepts(b->side, r), b->err);
    if (state < 0)
        return -2;
    buffer_append(&b->readings, r, sizeof(*r));
    if (b->readings.failed) {
        error_no_memory(b->err, "numbers");
        return -2;
    }
    b->found[index] = state + 1;
    return state;
}

static int32_t step_digit(SideBuilder *b, const Reading *r, char digit)
{
    const Side *side = b->side;
    if (r->phase == PHASE_ZERO ||
        (side->is_mantissa &&
         (r->phase == PHASE_WHOLE || (r->phase == PHASE_START && digit == '0'))))
        return CHAR_DFA_DEAD;
    Reading next = {.low = next_order(&side->low, r, r->low, digit),
                    .high = next_order(&side->high, r, r->high, digit)};
    switch (r->phase) {
    case PHASE_START:
        next.phase = digit == '0' ? PHASE_ZERO : PHASE_WHOLE;
        next.n = 1;
        break;
    case PHASE_WHOLE:
        next.phase = PHASE_WHOLE;
        next.n = r->n < b->whole_cap ? r->n + 1 : r->n;
        break;
    default:
        next.phase = PHASE_FRACTION;
        next.n = r->phase == PHASE_POINT ? 1 : r->n < b->fraction_cap ? r->n + 1 : r->n;
    }
    return state_of(b, &next);
}

static int32_t step_point(SideBuilder *b, const Reading *r)
{
    const Side *side = b->side;
    if (!side->may_have_point || (r->phase != PHASE_WHOLE && r->phase != PHASE_ZERO))
        return CHAR_DFA_DEAD;
    Reading next = {.phase = PHASE_POINT,
                    .low = whole_order(&side->low, r->n, r->low),
                    .high = whole_order(&side->high, r->n, r->high)};
    return state_of(b, &next);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool side_dfa(const Side *side, CharDfa *out, Error *err)
{
    SideBuilder b = {.side = side, .dfa = out, .err = err};
    b.whole_cap = larger(side->low.n_whole, side->high.n_whole) + 1;
    b.fraction_cap = larger(side->low.n_fraction, side->high.n_fraction) + 1;
    buffer_init(&b.readings, SIZE_MAX);
    b.found = memory_allocate_zeroed(READINGS, sizeof(*b.found));
    Reading start = {.phase = PHASE_START, .low = EQUAL, .high = EQUAL};
    bool ok = number_classes(out, err) && (b.found || error_no_memory(err, "numbers")) &&
              state_of(&b, &start) == 0;
    for (size_t i = 0; ok && i < out->n_states; i++) {
        Reading r;
        memcpy(&r, b.readings.ptr + i * sizeof(r), sizeof(r));
        int32_t to = step_point(&b, &r);
        ok = to >= CHAR_DFA_DEAD;
        if (ok)
            out->steps[i * out->n_classes + CLASS_POINT] = to;
        for (unsigned digit = 0; ok && digit < 10; digit++) {
            to = step_digit(&b, &r, (char)('0' + digit));
            ok = to >= CHAR_DFA_DEAD;
            if (ok)
                out->steps[i * out->n_classes + CLASS_DIGIT + digit] = to;
        }
    }
    buffer_reset(&b.readings);
    memory_free(b.found);
    if (!ok)
        char_dfa_reset(out);
    return ok;
}

/* Digits whose number is a multiple of m. */
static bool multiple_dfa(uint64_t m, CharDfa *out, Error *err)
{
    bool ok = number_classes(out, err) && char_dfa_add_state(out, false, err) == 0;
    for (uint64_t rest = 0; ok && rest < m; rest++)
        ok = char_dfa_add_state(out, rest == 0, err) >= 0;
    for (uint64_t rest = 0; ok && rest <= m; rest++) {
        for (unsigned digit = 0; digit < 10; digit++) { /* state 0 starts like rest 0 */
            uint64_t next = ((rest == 0 ? 0 : rest - 1) * 10 + digit) % m;
            out->steps[rest * out->n_classes + CLASS_DIGIT + digit] = (int32_t)(next + 1);
        }
    }
    if (!ok)
        char_dfa_reset(out);
    return ok;
}

static uint32_t add_side(SchemaCompiler *c, const Side *side, uint64_t multiple, uint32_t next)
{
    CharDfa dfa = {0}, factor = {0}, product = {0};
    bool is_empty;
    uint32_t result = AUTOMATON_FAIL;
    bool ok = side_dfa(side, &dfa, c->err);
    if (ok && multiple > 1) {
        ok = multiple_dfa(multiple, &factor, c->err) &&
             char_dfa_multiply(&dfa, &factor, &product, c->err);
        char_dfa_reset(&factor);
        char_dfa_reset(&dfa);
        dfa = product;
    }
    if (ok && char_dfa_trim(&dfa, &is_empty, c->err)) {
        if (!is_empty)
            result = char_dfa_add(c->text, &dfa, TEXT_RAW, next);
    } else {
        c->automaton->failed = true; /* err is set */
    }
    char_dfa_reset(&dfa);
    return result;
}

/* ---- Both sides ---- */

static void set_low(Side *side, const JsonValue *value, bool is_exclusive)
{
    side->has_low = true;
    side->low_is_exclusive = is_exclusive;
    decimal_of(value, &side->low);
}

static void set_high(Side *side, const JsonValue *value, bool is_exclusive)
{
    side->has_high = true;
    side->high_is_exclusive = is_exclusive;
    decimal_of(value, &side->high);
}

/* m = rest * 10^zeros: the multiples of m are those of rest with zeros behind. */
static uint32_t add_multiples(SchemaCompiler *c, Side *side, uint64_t multiple, bool allows_zero,
                              uint32_t next)
{
    Automaton *a = c->automaton;
    size_t zeros = 0;
    while (multiple % 10 == 0) {
        multiple /= 10;
        zeros++;
    }
    if (zeros == 0)
        return add_side(c, side, multiple, next);
    /* Bounds of the number without its zeros; a digit cut off counts as a fraction. */
    Decimal *bounds[] = {&side->low, &side->high};
    for (size_t i = 0; i < ARRAY_COUNT(bounds); i++) {
        Decimal *d = bounds[i];
        for (size_t k = 0; k < zeros; k++) {
            if (d->n_fraction < DIGITS_MAX)
                d->n_fraction++;
            memmove(d->fraction + 1, d->fraction, d->n_fraction - 1);
            d->fraction[0] = d->n_whole > 0 ? d->whole[d->n_whole - 1] : '0';
            if (d->n_whole > 0)
                d->n_whole--;
        }
        trim_decimal(d);
    }
    uint32_t at = next;
    for (size_t i = 0; i < zeros; i++)
        at = automaton_add_bytes(a, '0', '0', at);
    JsonValue one = {.kind = JSON_INT, .as.integer = 1};
    bool starts_at_zero = !side->has_low || (side->low.n_whole == 1 && side->low.whole[0] == '0' &&
                                             side->low.n_fraction == 0);
    if (starts_at_zero)
        set_low(side, &one, false); /* 0 has no zeros behind it */
    uint32_t result = add_side(c, side, multiple, at);
    if (allows_zero)
        result = automaton_add_either(a, result, automaton_add_bytes(a, '0', '0', next));
    return result;
}

static int sign_of(const JsonValue *value)
{
    JsonValue zero = {.kind = JSON_INT};
    return schema_compare_numbers(value, &zero);
}

/* ---- With an exponent ---- */

enum {
    EXPONENT_LEAST = -324,
    EXPONENT_MOST = 308,
    EXPONENT_PLAIN_FROM = -4,
    EXPONENT_PLAIN_TO = 15
};

/* value = mantissa * 10^exponent with one digit before the point; value is not 0. */
static int normalise(const Decimal *value, Decimal *mantissa)
{
    char digits[2 * DIGITS_MAX];
    size_t n = value->n_whole + value->n_fraction, zeros = 0;
    memcpy(digits, value->whole, value->n_whole);
    memcpy(digits + value->n_whole, value->fraction, value->n_fraction);
    while (zeros + 1 < n && digits[zeros] == '0')
        zeros++;
    *mantissa = (Decimal){.n_whole = 1};
    mantissa->whole[0] = digits[zeros];
    for (size_t i = zeros + 1; i < n && mantissa->n_fraction < DIGITS_MAX; i++)
        mantissa->fraction[mantissa->n_fraction++] = digits[i];
    trim_decimal(mantissa);
    return (int)value->n_whole - 1 - (int)zeros;
}

static bool is_zero(const Decimal *d)
{
    return d->n_whole == 1 && d->whole[0] == '0' && d->n_fraction == 0;
}

/* e-05, e+16: those from `from` to `to` that are printed so. */
static uint32_t add_exponents(SchemaCompiler *c, int from, int to, uint32_t next)
{
    Slice names[EXPONENT_MOST - EXPONENT_LEAST + 1];
    char text[EXPONENT_MOST - EXPONENT_LEAST + 1][8];
    size_t n = 0;
    for (int e = from; e <= to; e++) {
        if (e >= EXPONENT_PLAIN_FROM && e <= EXPONENT_PLAIN_TO)
            continue;
        int len = snprintf(text[n], sizeof(text[n]), "e%c%02d", e < 0 ? '-' : '+', e < 0 ? -e : e);
        names[n] = (Slice){text[n], (size_t)len};
        n++;
    }
    return n == 0 ? AUTOMATON_FAIL : text_add_choice(c->text, names, n, next);
}

/* Mantissas on one side of both bounds' mantissas, and the exponents that suit them all. */
static uint32_t add_mantissas(SchemaCompiler *c, const Side *side, bool reaches_low,
                              bool within_high, Side *part, uint32_t next)
{
    int from = EXPONENT_LEAST, to = EXPONENT_MOST - 1; /* 9e+308 is infinite */
    *part = (Side){.may_have_point = true, .is_mantissa = true};
    if (!is_zero(&side->low)) {
        Decimal low;
        from = normalise(&side->low, &low) + !reaches_low;
        part->has_low = reaches_low;
        part->has_high = !reaches_low;
        part->high_is_exclusive = !reaches_low;
        *(reaches_low ? &part->low : &part->high) = low;
    } else if (!reaches_low) {
        return AUTOMATON_FAIL;
    }
    if (side->has_high) {
        Decimal high;
        to = normalise(&side->high, &high) - !within_high;
        /* Of two bounds on the same end, the tighter: an intersection of two automata says which.
         */
        Side other = {.may_have_point = true, .is_mantissa = true};
        other.has_high = within_high;
        other.has_low = other.low_is_exclusive = !within_high;
        *(within_high ? &other.high : &other.low) = high;
        if (part->has_low && other.has_low) {
            if (decimal_order(&other.low, &part->low) >= 0) {
                part->low = other.low;
                part->low_is_exclusive = true;
            }
        } else if (part->has_high && other.has_high) {
            if (decimal_order(&other.high, &part->high) < 0) {
                part->high = other.high;
                part->high_is_exclusive = false;
            }
        } else if (other.has_low) {
            part->has_low = part->low_is_exclusive = true;
            part->low = other.low;
        } else {
            part->has_high = true;
            part->high_is_exclusive = false;
            part->high = other.high;
        }
    } else if (!within_high) {
        return AUTOMATON_FAIL;
    }
    from = from < EXPONENT_LEAST ? EXPONENT_LEAST : from;
    to = to > EXPONENT_MOST ? EXPONENT_MOST : to;
    uint32_t exponents = add_exponents(c, from, to, next);
    return exponents == AUTOMATON_FAIL ? exponents : add_side(c, part, 1, exponents);
}

static uint32_t add_scientific(SchemaCompiler *c, const Side *side, uint32_t next)
{
    uint32_t result = AUTOMATON_FAIL;
    if (side->has_high && is_zero(&side->high))
        return result;
    Side *part = memory_allocate(sizeof(*part));
    if (!part)
        return automaton_fail(c->automaton, ERROR_MEMORY, "out of memory: numbers");
    for (unsigned i = 0; i < 4; i++)
        result = automaton_add_either(c->automaton, result,
                                      add_mantissas(c, side, i & 1, i >> 1 & 1, part, next));
    memory_free(part);
    return result;
}

static uint32_t add_one_side(SchemaCompiler *c, const SchemaLimits *limits, bool is_negative,
                             Side *side, uint32_t next)
{
    const SchemaBounds *b = &limits->bounds;
    const JsonValue zero = {.kind = JSON_INT}, one = {.kind = JSON_INT, .as.integer = 1};
    bool is_whole = !(limits->types & SCHEMA_NUMBER);
    /* As magnitudes: near is towards zero, far away from it. */
    bool has_near = is_negative ? b->has_high : b->has_low;
    bool has_far = is_negative ? b->has_low : b->has_high;
    const JsonValue *near = is_negative ? &b->high : &b->low;
    const JsonValue *far = is_negative ? &b->low : &b->high;
    bool near_is_exclusive = is_negative ? b->high_is_exclusive : b->low_is_exclusive;
    bool far_is_exclusive = is_negative ? b->low_is_exclusive : b->high_is_exclusive;
    int outward = is_negative ? -1 : 1;
    if (has_far &&
        (sign_of(far) * outward < 0 || (sign_of(far) == 0 && (is_negative || far_is_exclusive))))
        return AUTOMATON_FAIL;
    *side = (Side){.may_have_point = !is_whole};
    bool near_counts = has_near && sign_of(near) * outward >= 0;
    bool near_is_zero = !near_counts || sign_of(near) == 0;
    if (near_counts && (!near_is_zero || near_is_exclusive))
        set_low(side, near, near_is_exclusive);
    else
        set_low(side, is_negative && is_whole ? &one : &zero, false);
    if (has_far)
        set_high(side, far, far_is_exclusive);
    bool allows_zero = !is_negative && near_is_zero && !(near_counts && near_is_exclusive);
    if (b->multiple > 1)
        return add_multiples(c, side, b->multiple, allows_zero, next);
    uint32_t plain = add_side(c, side, 1, next);
    return is_whole ? plain
                    : automaton_add_either(c->automaton, plain, add_scientific(c, side, next));
}

/* x < bound as x <= the double below it, and the same for x > bound. */
static void close_bounds(SchemaBounds *b)
{
    if (b->has_low && b->low_is_exclusive) {
        b->low = (JsonValue){.kind = JSON_DOUBLE,
                             .as.wide = {nextafter(json_to_double(&b->low), HUGE_VAL), NULL}};
        b->low_is_exclusive = false;
    }
    if (b->has_high && b->high_is_exclusive) {
        b->high = (JsonValue){.kind = JSON_DOUBLE,
                              .as.wide = {nextafter(json_to_double(&b->high), -HUGE_VAL), NULL}};
        b->high_is_exclusive = false;
    }
}

uint32_t schema_add_numbers(SchemaCompiler *c, const SchemaLimits *limits, uint32_t next)
{
    Automaton *a = c->automaton;
    const SchemaBounds *b = &limits->bounds;
    bool is_whole = !(limits->types & SCHEMA_NUMBER);
    if (!b->has_low && !b->has_high && b->multiple <= 1)
        return is_whole ? text_add_integer(c->text, next) : text_add_number(c->text, true, next);
    if (!is_whole && b->has_low && !b->low_is_exclusive && sign_of(&b->low) == 0 && !b->has_high)
        return text_add_number(c->text, false, next);
    if (b->has_low && b->has_high) {
        int order = schema_compare_numbers(&b->low, &b->high);
        if (order > 0 || (order == 0 && (b->low_is_exclusive || b->high_is_exclusive))) {
            schema_note_contradiction(c, limits->place, "minimum", "above the maximum");
            return AUTOMATON_FAIL;
        }
    }
    SchemaLimits closed = *limits;
    if (!is_whole)
        close_bounds(&closed.bounds);
    limits = &closed;
    uint64_t multiple = b->multiple;
    while (multiple > 0 && multiple % 10 == 0)
        multiple /= 10;
    if (multiple > MULTIPLE_MAX) {
        a->failed = true;
        schema_fail(c, limits->place, "multipleOf", "too large to be enforced");
        return AUTOMATON_FAIL;
    }
    Side *side = memory_allocate(sizeof(*side)); /* large */
    if (!side)
        return automaton_fail(a, ERROR_MEMORY, "out of memory: numbers");
    uint32_t result = add_one_side(c, limits, false, side, next);
    uint32_t negative = add_one_side(c, limits, true, side, next);
    memory_free(side);
    if (negative != AUTOMATON_FAIL)
        result = automaton_add_either(a, result, automaton_add_bytes(a, '-', '-', negative));
    if (result == AUTOMATON_FAIL)
        schema_note_contradiction(c, limits->place, NULL, "no number is within the limits");
    return result;
}
