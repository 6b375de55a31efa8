#!/usr/bin/env python3
"""Trains small SentencePiece models of the BPE kind and writes them, with what the `sentencepiece` package (0.2.3)
makes of a few texts, to tests/data/tokenizer/pieces: NAME.model and cases.json.

    python3 make_pieces.py [--random N]      N more random texts a model, for a check by hand
"""
import argparse
import io
import json
import os
import random
import tempfile

import sentencepiece as spm

import check_real

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "../data/tokenizer/pieces")
CORPUS = ["the quick brown fox jumps over the lazy dog", "hello world, hello there", "  two  spaces and\ttabs ", "it's 12345 and 3.14",
          "naïve café déjà vu", "Größe Straße über", "привет мир", "こんにちは世界 日本語のテスト", "def f(x): return x + 1",
          "the theory of the thing", "aaaa aaaaaaa aa a", "ＦＵＬＬ ｗｉｄｔｈ ﬁne ½", "<sep> one <sep>two", "x == y and z != w"] * 40
BASE = dict(model_type="bpe", vocab_size=420, hard_vocab_limit=False, minloglevel=2, num_threads=1)
# A map of characters in the compiled form of NFKC and the like, but small: code points, tab, code points.
RULES = "rules.tsv"
RULES_TEXT = "".join("%s\t%s\n" % (" ".join("%X" % ord(c) for c in a), " ".join("%X" % ord(c) for c in b)) for a, b in [
    ("Ｆ", "F"), ("ﬁ", "fi"), ("é", "e\u0301"), ("e\u0301", "é"), ("\u200b", ""), ("\u3000", " "), ("\t", " "), ("½", "1/2"),
    ("ab", "ba"), ("abc", "x"), ("ß", "s s"), ("\u00a0", "  ")])
MODELS = {
    "llama": dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, vocab_size=600),
    "gemma": dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
                  user_defined_symbols=["<sep>", "▁▁", "▁▁▁", "\n", "ab"], pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=700),
    "rules": dict(normalization_rule_tsv=RULES, character_coverage=0.98, control_symbols=["[CTL]"], user_defined_symbols=["<sep>"]),
    "plain": dict(normalization_rule_name="identity", split_by_whitespace=False, add_dummy_prefix=False, vocab_size=500, bos_id=-1),
}
# Compiled maps of 240 KB each, which are not committed.
LARGE_MODELS = {
    "nfkc": dict(normalization_rule_name="nmt_nfkc", character_coverage=0.98),
    "nfkc_cf": dict(normalization_rule_name="nmt_nfkc_cf", byte_fallback=True, vocab_size=600),
}
TEXTS = ["", " ", "hello world", " hello  world ", "Hello THE the theory", "a\tb\nc\r\n d", "naïve café e\u0301", "Ｆｕｌｌ ﬁ ½ ①  ²",
         "привет 日本語 世界 한국어 \U0001f600", "<sep>", "a<sep>b", " <sep> <sep>x  ", "aaaaaaaaaaaaaaaaaaaaaaaaa", "12345 67", "ab abab aab",
         "\u2581 \u2581\u2581x", "\u00a0nbsp\u3000wide\u200bzero", "\n\n\n", "   three", "the quick brown fox jumps over the lazy dog" * 3,
         "\u0000nul", "ẞ ß Σς ǅ", "ﷺ ㍿", "x\ufffdy"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--out", default=OUT)
    parser.add_argument("--large", action="store_true", help="also models with the maps of NFKC")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    args.out = os.path.abspath(args.out)
    os.chdir(tempfile.mkdtemp())  # the trainer reads the rules from a file
    with open(RULES, "w", encoding="utf-8") as f:
        f.write(RULES_TEXT)
    rng = random.Random(3)
    cases = []
    for name, options in {**MODELS, **(LARGE_MODELS if args.large else {})}.items():
        data = io.BytesIO()
        spm.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=data, **{**BASE, **options})
        with open(os.path.join(args.out, name + ".model"), "wb") as f:
            f.write(data.getvalue())
        model = spm.SentencePieceProcessor(model_proto=data.getvalue())
        texts = TEXTS + [check_real.random_text(rng, ["<sep>", "▁", "  ", "ab", "\t"]) for _ in range(args.random)]
        items = []
        for text in texts:
            ids = model.encode(text)
            # Unknown pieces and control symbols are spelt differently in decoded text: as Hugging Face does.
            plain = not any(model.is_unknown(i) or model.is_control(i) for i in ids)
            items.append([text, ids, model.decode(ids) if plain else None])
        cases.append({"name": name, "bos": model.bos_id(), "cases": items})
    unigram = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=unigram, **{**BASE, "model_type": "unigram", "vocab_size": 120, "normalization_rule_name": "identity"})
    with open(os.path.join(args.out, "unigram.model"), "wb") as f:
        f.write(unigram.getvalue())
    with open(os.path.join(args.out, "cases.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


main()
