#!/usr/bin/env python3
"""Writes tests/data/tokenizer/pipelines.json: small tokenizers, one for each option of the pipeline, with what
Hugging Face's `tokenizers` (0.23) makes of a few texts.

    python3 make_pipeline_cases.py [--texts N] > tests/data/tokenizer/pipelines.json
    python3 make_pipeline_cases.py --random N --seed S --texts 20 > FILE && test_tokenizer FILE

--random writes N tokenizers of randomly combined components instead, for a check by hand.
"""
import argparse
import json
import random
import sys
import unicodedata

from tokenizers import Tokenizer

import check_real


def byte_alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = {b: chr(b) for b in plain}
    for i, b in enumerate(b for b in range(256) if b not in chars):
        chars[b] = chr(0x100 + i)
    return [chars[b] for b in range(256)]


def model(symbols, merges, **flags):
    vocab = {}
    for token in symbols + ["".join(m) for m in merges]:
        vocab.setdefault(token, len(vocab))
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            **flags, "vocab": vocab, "merges": [list(m) for m in merges]}


def pairs(*texts):
    """Merges that build each text from the left."""
    out = []
    for text in texts:
        for i in range(1, len(text)):
            if (text[:i], text[i]) not in out:
                out.append((text[:i], text[i]))
    return out


BYTES = model(byte_alphabet(), pairs("Ġhello", "the", "Ġworld", "ing", "ĊĊ", "12", "ĠĠ", "Ã©", "ab", "ba"))
LETTERS = list("▁ abcdefghijklmnopqrstuvwxyz0123456789.,!'éα\n") + ["<x>"]
SPM_MERGES = pairs("▁hello", "▁the", "▁▁", "ing", "ab", "ba", "▁w", "12", "or")
FALLBACK = ["<unk>"] + ["<0x%02X>" % b for b in range(256)]
SPM = model(FALLBACK + LETTERS, SPM_MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
SPM_DECODER = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_level(pre_tokenizer, **more):
    return {"model": BYTES, "pre_tokenizer": pre_tokenizer, "decoder": BYTE_LEVEL, **more}


def sequence(*items):
    return {"type": "Sequence", "pretokenizers": list(items)}


def split(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def spm(pre_tokenizer=None, **more):
    return {"model": SPM, "pre_tokenizer": pre_tokenizer, "decoder": SPM_DECODER, **more}


def metaspace(scheme, do_split=True):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": do_split}


def added(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False, **flags}


def pipelines():
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield ("split regex %s %s" % (behavior, invert),
                   byte_level(sequence(split({"Regex": "[aeiou]|\\d+"}, behavior, invert), BYTE_LEVEL)))
        yield "split string " + behavior, byte_level(sequence(split({"String": "l"}, behavior), BYTE_LEVEL))
        yield "punctuation " + behavior, byte_level(
            sequence({"type": "Punctuation", "behavior": behavior}, BYTE_LEVEL))
    yield "empty matches", byte_level(sequence(split({"Regex": "x*"}, "Isolated"), BYTE_LEVEL))
    yield "line anchors", byte_level(sequence(split({"Regex": "^.|.$"}, "Isolated"), BYTE_LEVEL))
    for regex in (r"\w+", r"\W", r"[\w.]+", r"[^\s\S]|\S+", r"\b", r"\B", r"\h+", r"a{,2}b", r"\v|\u00e9"):
        yield "regex " + regex, byte_level(sequence(split({"Regex": regex}, "Isolated"), BYTE_LEVEL))
    yield "digits", byte_level(sequence({"type": "Digits", "individual_digits": False}, BYTE_LEVEL))
    yield "prefix space", byte_level({**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True})
    yield "split then prefix space", byte_level(
        sequence(split({"String": ","}, "Removed"), {**BYTE_LEVEL, "add_prefix_space": True}))
    yield "bytes before digits", byte_level(
        sequence({"type": "Punctuation", "behavior": "Contiguous"}, {**BYTE_LEVEL, "use_regex": True},
                 {"type": "Digits", "individual_digits": True}, split({"Regex": "[0-9][0-9][0-9]"}, "Isolated")))
    for scheme in ("always", "first", "never"):
        for do_split in (False, True):
            yield "metaspace %s %s" % (scheme, do_split), spm(
                metaspace(scheme, do_split), decoder=metaspace(scheme, do_split),
                added_tokens=[added("<x>", special=True)])
    yield "prepend and replace", spm(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        decoder={"type": "Sequence", "decoders": SPM_DECODER["decoders"] + [
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
    yield "lowercase, regex", spm(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": "▁"}]})
    yield "nfc", byte_level({**BYTE_LEVEL, "use_regex": True}, normalizer={"type": "NFC"})
    flags = dict(unk_token="<unk>")
    for fuse in (False, True):
        for fallback in (None, 128, 256):
            symbols = FALLBACK[:1 + (fallback or 0)] + LETTERS
            yield "unk fuse %s fallback %s" % (fuse, fallback), spm(model=model(
                symbols, SPM_MERGES, fuse_unk=fuse, byte_fallback=fallback is not None, **flags))
    yield "no unk", spm(model=model(LETTERS, SPM_MERGES + [("a", "c")]), decoder=None)
    yield "merges of fallback tokens", spm(model=model(
        FALLBACK + LETTERS, SPM_MERGES + [("<0xC3>", "<0xA4>"), ("<unk>", "a"), ("<0xC3><0xA4>", "b")],
        fuse_unk=True, byte_fallback=True, **flags))
    yield "ignore merges", spm(model={**model(FALLBACK + LETTERS + ["hellos", "abba"], SPM_MERGES, fuse_unk=True,
                                              byte_fallback=True, **flags), "ignore_merges": True},
                               pre_tokenizer=split({"String": " "}, "Isolated"))
    yield "added tokens", byte_level(
        {**BYTE_LEVEL, "use_regex": True},
        added_tokens=[added("<x>"), added("<xy>", special=True), added("hello", single_word=True),
                      added("[L]", lstrip=True), added("[R]", rstrip=True), added("[B]", lstrip=True, rstrip=True),
                      added("\n"), added("world", normalized=True), added("wor", single_word=True)],
        post_processor={"type": "Sequence", "processors": [{**BYTE_LEVEL, "trim_offsets": False}, {
            "type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "E", "type_id": 0}}], "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"B": {"id": "B", "ids": [1, 2], "tokens": ["x", "y"]},
                               "E": {"id": "E", "ids": [3], "tokens": ["z"]}}}]})
    yield "spaces that are swallowed", byte_level({**BYTE_LEVEL, "use_regex": True}, added_tokens=[
        added(" ", lstrip=True, rstrip=True), added("wor", lstrip=True, single_word=True), added("\n", rstrip=True)])
    yield "added tokens, normalised", spm(
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        added_tokens=[added("Hello The", normalized=True), added("<X>"), added("ING", normalized=True,
                                                                                single_word=True)])


class Composer:
    """Random tokenizers over everything that the reader takes."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def pick(self, *choices):
        return self.rng.choice(choices)

    def chance(self, p):
        return self.rng.random() < p

    def pattern(self):
        if self.chance(0.5):
            return {"String": self.pick(" ", "l", "ab", "▁", ",", "\n", "é", "the")}
        return {"Regex": self.pick("\\s+", "[aeiou]", "\\d+", "\\p{L}+", " ?\\p{L}+| ?\\p{N}+", "x*", "(?i:the)", "\\s+(?!\\S)|\\s+", "[^a-z]",
                                   "'s|'t|'re| ?\\w+|[^\\w\\s]+", "^.", ".$", "\\r?\\n", "\\p{Lu}", "a|ab|abc", "\\p{N}{1,3}")}

    def normalizer(self):
        if self.chance(0.35):
            return None
        steps = [self.pick({"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": self.pick("▁", "x ", "é")},
                           {"type": "Replace", "pattern": self.pattern(), "content": self.pick("", "▁", "a", " ", "ab")},
                           {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}) for _ in range(self.rng.randint(1, 3))]
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}

    def pre_tokenizer(self):
        steps = []
        for _ in range(self.rng.randint(0, 3)):
            behavior = self.pick("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
            steps.append(self.pick(split(self.pattern(), behavior, self.chance(0.3)), split(self.pattern(), behavior), {"type": "Punctuation", "behavior": behavior},
                                   {"type": "Digits", "individual_digits": self.chance(0.5)},
                                   metaspace(self.pick("always", "first", "never"), self.chance(0.5))))
        if self.chance(0.6):
            steps.append({**BYTE_LEVEL, "add_prefix_space": self.chance(0.4), "use_regex": self.chance(0.5)})
        if not steps:
            return None
        return steps[0] if len(steps) == 1 else sequence(*steps)

    def model(self, byte_level):
        if byte_level:
            return {**BYTES, "ignore_merges": self.chance(0.3)}
        fallback = self.pick(0, 128, 256)
        unknown = self.chance(0.8)
        return {**model(FALLBACK[:1 + fallback] + LETTERS + self.pick([], ["hellos", "abba", "▁the▁"]), SPM_MERGES, unk_token="<unk>" if unknown else None,
                        fuse_unk=self.chance(0.5), byte_fallback=fallback > 0 and self.chance(0.8)), "ignore_merges": self.chance(0.3)}

    def added(self):
        contents = self.rng.sample(["<x>", "<xy>", "hello", "Hello The", "[L]", "\n", " ", "world", "wor", "ab", "▁▁", "é", "12", "  ", "E\u0301"], self.rng.randint(0, 5))
        flags = lambda: {k: self.chance(0.25) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        return [added(c, **flags()) for c in contents]

    def decoder(self, byte_level):
        if byte_level and self.chance(0.8):
            return BYTE_LEVEL
        steps = [s for s in SPM_DECODER["decoders"]] + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * self.chance(0.5)
        return self.pick(None, {"type": "Sequence", "decoders": steps}, metaspace(self.pick("always", "first", "never"), True),
                         {"type": "Sequence", "decoders": steps[1:]})

    def post_processor(self):
        special = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"B": {"id": "B", "ids": [1, 2], "tokens": ["x", "y"]}}}
        return self.pick(None, BYTE_LEVEL, special, {"type": "Sequence", "processors": [BYTE_LEVEL, special]})

    def parts(self):
        pre = self.pre_tokenizer()
        byte_level = "ByteLevel" in json.dumps(pre)
        normalizer = self.normalizer()
        if '"first"' in json.dumps(pre) and ("Prepend" in json.dumps(normalizer) or "Replace" in json.dumps(normalizer)):
            normalizer = None  # mostly refused
        return {"model": self.model(byte_level), "normalizer": normalizer, "pre_tokenizer": pre, "decoder": self.decoder(byte_level),
                "post_processor": self.post_processor(), "added_tokens": self.added()}


TEXTS = ["", " ", "hello world", "Hello the  THE hello,the", "a1b22c333", "naïve café, ab-ba!", "<x>hi</x> <xy>yo",
         "  lead", "trail  ", "a\n\nb\r\nc", "x[L]y [R] z  [B]  \n[R]\n\nworld worlds hello hellos", "²³½ ①",
         "ä§日本 äb", "e\u0301 \u0323\u0307a", "\ud7b0 가각", "wor world", "ſ 'S's", "Hello The<X>ing sing",
         "a\u1ace\u0345\u0323 \u0301\u0323 \U00011935\U00011930"]


def decode_both(tokenizer, ids):
    return [tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids)]


def encode_case(tokenizer, text):
    special = tokenizer.encode(text).ids
    return [text, tokenizer.encode(text, add_special_tokens=False).ids, special, *decode_both(tokenizer, special)]


def add_case(cases, args, make):
    try:
        cases.append(make())
    except BaseException as fault:  # the library panics on some random tokenizers
        if not args.random or "Panic" not in type(fault).__name__:
            raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=0, help="random texts beside the fixed ones")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    out = []
    composed = [("random %d" % i, Composer(args.seed * 10 ** 6 + i).parts()) for i in range(args.random)]
    for name, parts in composed or pipelines():
        data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": None, "post_processor": None, "decoder": None, **parts}
        vocab = data["model"]["vocab"]
        size = max(vocab.values()) + 1
        for token in data["added_tokens"]:
            token["id"] = vocab.get(token["content"], size)
            size = max(size, token["id"] + 1)
        tokenizer = Tokenizer.from_str(json.dumps(data))
        cases = []
        extra = [t["content"] for t in data["added_tokens"]] + ["▁", " ", "hello", "ab", "12"]
        texts = TEXTS + [check_real.random_text(rng, extra) for _ in range(args.texts)]
        if "Regex" in json.dumps(parts):  # PCRE2 may know fewer characters; this Python's are common ground
            texts = [t for t in texts if not any(unicodedata.category(c) == "Cn" or c == "\u180e" for c in t)]
        for text in texts:
            add_case(cases, args, lambda: encode_case(tokenizer, text))
        for _ in range(4 + args.texts):
            ids = [rng.randrange(size + 2) for _ in range(rng.randint(1, 9))]
            add_case(cases, args, lambda: [None, ids, ids, *decode_both(tokenizer, ids)])
        out.append({"name": name, "tokenizer": data, "cases": cases})
    sys.stdout.write("[\n")
    for i, item in enumerate(out):
        sys.stdout.write(json.dumps(item, ensure_ascii=True, separators=(",", ":")) + (",\n" if i + 1 < len(out) else "\n"))
    sys.stdout.write("]\n")


main()
