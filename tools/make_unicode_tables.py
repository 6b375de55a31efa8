#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_tables.c: Unicode 16.0 character classes as ranges.

    pip install unicodedata2==16.0.0
    python3 tools/make_unicode_tables.py > src/tokenizer/unicode_tables.c

The bits are those of UnicodeClass in src/tokenizer/unicode.h.
"""
import sys

import unicodedata2 as ucd

assert ucd.unidata_version == "16.0.0", ucd.unidata_version

LETTER, NUMBER, MARK, UPPER, LOWER, SPACE, PUNCTUATION, WORD, NFC, NFC_LATER, NUMERIC = (1 << i for i in range(11))

WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
               0x202F, 0x205F, 0x3000}
# Other_Alphabetic outside of the marks, and Join_Control: they belong to \w.
OTHER_WORD = {0x200C, 0x200D, *range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A),
              *range(0x1F150, 0x1F16A), *range(0x1F170, 0x1F18A)}
# What Hugging Face's Punctuation takes differs from category P of Unicode 16.0, its tables being older,
# and its Digits knows the numbers of Unicode 17.0.
OLD_PUNCTUATION = [(0x166D, 0x166D), (0x111C9, 0x111C9)]
NEW_PUNCTUATION = [
    (0x61D, 0x61D), (0x9FD, 0x9FD), (0xA76, 0xA76), (0xC77, 0xC77), (0xC84, 0xC84), (0x1B4E, 0x1B4F),
    (0x1B7D, 0x1B7F), (0x2E43, 0x2E4F), (0x2E52, 0x2E5D), (0x10D6E, 0x10D6E), (0x10EAD, 0x10EAD),
    (0x10F55, 0x10F59), (0x10F86, 0x10F89), (0x113D4, 0x113D5), (0x113D7, 0x113D8), (0x1144B, 0x1144F),
    (0x1145A, 0x1145B), (0x1145D, 0x1145D), (0x11660, 0x1166C), (0x116B9, 0x116B9), (0x1183B, 0x1183B),
    (0x11944, 0x11946), (0x119E2, 0x119E2), (0x11A3F, 0x11A46), (0x11A9A, 0x11A9C), (0x11A9E, 0x11AA2),
    (0x11B00, 0x11B09), (0x11BE1, 0x11BE1), (0x11C41, 0x11C45), (0x11C70, 0x11C71), (0x11EF7, 0x11EF8),
    (0x11F43, 0x11F4F), (0x11FFF, 0x11FFF), (0x12FF1, 0x12FF2), (0x16D6D, 0x16D6F), (0x16E97, 0x16E9A),
    (0x16FE2, 0x16FE2), (0x1E5FF, 0x1E5FF), (0x1E95E, 0x1E95F)]
NEW_NUMBERS = [(0x11DE0, 0x11DE9), (0x16FF4, 0x16FF6)]
# Hugging Face normalises with the data of Unicode 9.0. These characters came later and take part in
# normalisation today: combining marks, compositions, and (last line) the parts of compositions.
LATER = [(0x7FD, 0x7FD), (0x897, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C),
         (0xD3B, 0xD3C), (0xEBA, 0xEBA), (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA),
         (0xA82C, 0xA82C), (0x105C9, 0x105C9), (0x105E4, 0x105E4), (0x10D24, 0x10D27),
         (0x10D69, 0x10D6D), (0x10EAB, 0x10EAC), (0x10EFD, 0x10EFF), (0x10F46, 0x10F50),
         (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B), (0x11383, 0x11383),
         (0x11385, 0x11385), (0x1138E, 0x1138E), (0x11391, 0x11391), (0x113C5, 0x113C5),
         (0x113C7, 0x113C8), (0x113CE, 0x113D0), (0x1145E, 0x1145E), (0x11839, 0x1183A),
         (0x11938, 0x11938), (0x1193D, 0x1193E), (0x11943, 0x11943), (0x119E0, 0x119E0),
         (0x11A34, 0x11A34), (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D42),
         (0x11D44, 0x11D45), (0x11D97, 0x11D97), (0x11F41, 0x11F42), (0x16121, 0x16128),
         (0x1612F, 0x1612F), (0x16D68, 0x16D6A), (0x16FF0, 0x16FF1), (0x1E08F, 0x1E08F),
         (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF), (0x1E4EC, 0x1E4EF),
         (0x1E5EE, 0x1E5EF)]


def within(c, ranges):
    return any(low <= c <= high for low, high in ranges)


def canonical_parts(c):
    text = ucd.decomposition(chr(c))
    return [int(p, 16) for p in text.split()] if text and not text.startswith("<") else []


def nfc_characters():
    """Those before which, or in which, normalisation may change something (not NFC_QC=Yes, or ccc != 0)."""
    later = {c for low, high in LATER for c in range(low, high + 1)}
    for c in list(later):
        later.update(p for p in canonical_parts(c) if p >= 0x10000 and not (0x11080 <= p < 0x11130))
    some = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and final consonants
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        if ucd.combining(chr(c)) or ucd.normalize("NFC", chr(c)) != chr(c):
            some.add(c)
        parts = canonical_parts(c)
        if len(parts) == 2 and ucd.normalize("NFC", chr(parts[0]) + chr(parts[1])) == chr(c):
            some.add(parts[1])
    return some - later, later


def class_of(c, nfc, later):
    kind = ucd.category(chr(c))
    bits = 0
    if kind[0] == "L":
        bits |= LETTER | WORD
    if kind[0] == "N":
        bits |= NUMBER
    if kind[0] == "M":
        bits |= MARK | WORD
    if kind in ("Lu", "Lt", "Lm", "Lo") or kind[0] == "M":
        bits |= UPPER
    if kind in ("Ll", "Lm", "Lo") or kind[0] == "M":
        bits |= LOWER
    if kind in ("Nd", "Nl", "Pc") or c in OTHER_WORD:
        bits |= WORD
    if kind[0] == "N" or within(c, NEW_NUMBERS):
        bits |= NUMERIC
    if (kind[0] == "P" and not within(c, NEW_PUNCTUATION)) or (c < 0x80 and kind[0] == "S") or \
            within(c, OLD_PUNCTUATION):
        bits |= PUNCTUATION
    if c in WHITE_SPACE:
        bits |= SPACE
    if c in nfc:
        bits |= NFC
    if c in later:
        bits |= NFC_LATER
    return bits


def main():
    nfc, later = nfc_characters()
    ranges = []
    for c in range(0x110000):
        bits = class_of(c, nfc, later) if not 0xD800 <= c < 0xE000 else 0
        if ranges and ranges[-1][2] == bits:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, bits])
    classes = sorted({r[2] for r in ranges})
    out = sys.stdout
    out.write("/* Made by tools/make_unicode_tables.py from Unicode 16.0. Do not edit.\n"
              " *\n"
              " * Every code point in order, as runs of one class: length * UNICODE_RUN_CLASSES + index into\n"
              " * unicode_run_classes. */\n"
              '#include "unicode.h"\n\n/* clang-format off */\n')
    assert len(classes) <= 64
    out.write("const uint16_t unicode_run_classes[UNICODE_RUN_CLASSES] = {\n    %s};\n\n"
              % ", ".join(str(c) for c in classes))
    out.write("const uint32_t unicode_runs[] = {\n")
    line = "   "
    for first, last, bits in ranges:
        item = " %d," % ((last - first + 1) * 64 + classes.index(bits))
        if len(line) + len(item) > 100:
            out.write(line + "\n")
            line = "   "
        line += item
    out.write(line + "\n};\nconst size_t unicode_run_count = %d;\n" % len(ranges))


main()
