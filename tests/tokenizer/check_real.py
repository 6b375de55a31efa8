#!/usr/bin/env python3
"""Compares a binary with real tokenizers, which are too large (and not ours) to be committed.

    check_real.py --bin build/release/mlx-serve --cache DIR [--expect DIR] [--random N] [NAME ...]

--cache   holds NAME/tokenizer.json
--expect  holds tok-NAME.json with `encode` and `decode` cases, recorded from Hugging Face's library
--random  N random strings for each tokenizer, compared with the installed `tokenizers` package
The binary answers `tokenize` and `detokenize`, one JSON object a line.
"""
import argparse
import json
import os
import random
import subprocess
import sys


def ask(binary, command, model, requests):
    text = "".join(json.dumps(r) + "\n" for r in requests).encode()
    run = subprocess.run([binary, command, "--model", model, "--json"], input=text,
                         stdout=subprocess.PIPE, timeout=600)
    if run.returncode:
        sys.exit("%s %s --model %s failed" % (binary, command, model))
    answers = [json.loads(line) for line in run.stdout.decode().split("\n") if line]
    assert len(answers) == len(requests), (len(answers), len(requests))
    return answers


class Score:
    def __init__(self):
        self.passed = self.failed = 0

    def add(self, ok, *note):
        self.passed += ok
        self.failed += not ok
        if not ok and self.failed <= 20:
            print("FAIL", *[json.dumps(n)[:400] for n in note])


def check_encode(binary, model, cases, score):
    """cases: (text, ids, ids with special tokens)"""
    answers = ask(binary, "tokenize", model,
                  [{"text": c[0], "add_special": s} for c in cases for s in (False, True)])
    for i, (text, ids, special) in enumerate(cases):
        got = [answers[2 * i].get("ids"), answers[2 * i + 1].get("ids")]
        score.add(got == [ids, special], model, text, ids, special, answers[2 * i:2 * i + 2])


def check_decode(binary, model, cases, score):
    """cases: (ids, text, text without special tokens); whole and streamed"""
    requests = [{"ids": c[0], "skip_special": skip, "stream": stream}
                for c in cases for skip in (False, True) for stream in (False, True)]
    answers = iter(ask(binary, "detokenize", model, requests))
    for ids, text, plain in cases:
        for want in (text, plain):
            whole, stream = next(answers), next(answers)
            score.add(whole.get("text") == want, model, ids, want, whole)
            score.add("".join(stream.get("chunks", ["?"])) == want and len(stream["chunks"]) == len(ids) + 1,
                      model, ids, want, stream)


def expected_cases(path):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    encode = [(x["text"], x["ids"], x.get("ids_special", x["ids"])) for x in data["encode"]]
    decode = [(x.get("ids_special", x["ids"]), x["decode"], x.get("decode_skip_special", x["decode"]))
              for x in data["encode"]]
    decode += [(x["ids"], x["text"], x["text_skip_special"]) for x in data["decode"]]
    return encode, decode


SCRIPTS = [(0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF),
           (0x900, 0xDFF), (0xE00, 0xEFF), (0x1100, 0x11FF), (0x1680, 0x1680), (0x180B, 0x180E),
           (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2460, 0x24FF), (0x2581, 0x2581),
           (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFEFF),
           (0x10400, 0x1044F), (0x11000, 0x11FFF), (0x1D400, 0x1D7FF), (0x1F100, 0x1F6FF),
           (0x20000, 0x2FA1F), (0x31350, 0x323AF)]
WORDS = ("the of and hello world it's they'LL I'VE 'S 'ſ don't x=1; return 0; 12345 3.14 café naïve "
         "München Привет мир こんにちは 世界 안녕하세요 สวัสดี नमस्ते مرحبا שלום \r\n \n\n \t    \u00a0 <b> </b> "
         "http://a.b/c?d=e&f camelCase XMLHttp snake_case \u3000 ー ''' !!! … — \u180e \u200d 👍🏽 ´ ``").split(" ")


def random_text(rng, extra):
    parts = []
    for _ in range(rng.randint(0, 14)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(WORDS))
        elif kind < 0.55:
            parts.append(rng.choice([" ", "  ", "\n", "\r\n", "\t", " \n ", "   "]))
        elif kind < 0.6:
            parts.append(rng.choice(extra))
        elif kind < 0.65:
            parts.append(chr(rng.choice([c for c in (rng.randrange(0x110000),) if not 0xD800 <= c < 0xE000] or [65])))
        else:
            low, high = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
        if rng.random() < 0.5:
            parts.append(" ")
    return "".join(parts)


def random_cases(path, count, seed):
    from tokenizers import Tokenizer
    rng = random.Random(seed)
    reference = Tokenizer.from_file(path)
    size = reference.get_vocab_size()
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    extra = [t["content"] for t in data["added_tokens"]] + ["▁", "Ġ"] or ["x"]
    bytes_ids = [i for t, i in data["model"]["vocab"].items() if t.startswith("<0x")]
    texts = [random_text(rng, extra) for _ in range(count)]
    encode = [(t, reference.encode(t, add_special_tokens=False).ids, reference.encode(t).ids) for t in texts]
    ids = [c[2] for c in encode]
    for _ in range(count // 4):
        ids.append([rng.randrange(size + 3) if rng.random() < 0.7 or not bytes_ids else rng.choice(bytes_ids)
                    for _ in range(rng.randint(0, 12))])
    decode = [(i, reference.decode(i, skip_special_tokens=False), reference.decode(i)) for i in ids]
    return encode, decode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--expect")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    failed = 0
    for name in args.names or sorted(os.listdir(args.cache)):
        model = os.path.join(args.cache, name, "tokenizer.json")
        score = Score()
        cases = []
        if args.expect and os.path.exists(os.path.join(args.expect, "tok-%s.json" % name)):
            cases.append(expected_cases(os.path.join(args.expect, "tok-%s.json" % name)))
        if args.random:
            cases.append(random_cases(model, args.random, args.seed))
        for encode, decode in cases:
            check_encode(args.bin, model, encode, score)
            check_decode(args.bin, model, decode, score)
        print("%-14s %d passed, %d failed" % (name, score.passed, score.failed), flush=True)
        failed += score.failed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
