#!/usr/bin/env python3
"""The tables of docs/fidelity.md that need nothing but this repository and the small model.

    python3 tests/reference/fidelity.py [--binary PATH] [--model DIR --text FILE...]

Fixtures: every tests/data/models/NAME with golden.json, in each precision, and with keys and values of 8 bits: the worst KL divergence of the golden
from the computed distribution and the worst difference in units of the golden logits' standard deviation over all
golden positions; how many of the greedy tokens agree, computed step by step after the golden ids.
With --model and --text: perplexity in each precision.
"""
import argparse
import array
import base64
import json
import math
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANTS = {  # name in the tables: options
    "f32": ("--precision", "f32"),
    "int12": ("--precision", "int12"),
    "int16": ("--precision", "int16"),
    "int8": ("--precision", "int8"),
    "f32, 8-bit KV": ("--precision", "f32", "--kv-bits", "8"),
    "int16, 8-bit KV": ("--precision", "int16", "--kv-bits", "8"),
}


def ask(binary, *arguments):
    return json.loads(subprocess.run([binary, *map(str, arguments), "--json"], check=True, capture_output=True,
                                     text=True).stdout)


def log_softmax(values):
    top = max(values)
    total = top + math.log(sum(math.exp(v - top) for v in values))
    return [v - total for v in values]


def divergence(golden, found):
    p, q = log_softmax(golden), log_softmax(found)
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q))


def compare(binary, directory, variant):
    golden = json.loads((directory / "golden.json").read_text())
    worst_kl = worst = 0.0
    same = total = top_errors = 0
    for prompt in golden["prompts"]:
        ids, steps = prompt["tokens"], prompt["greedy"]["ids"]
        found = ask(binary, "logits", directory, "--tokens", ",".join(map(str, ids + steps[:-1])), "--positions", "all",
                    *variant)["positions"]
        for expected in prompt["positions"]:
            values = array.array("f", base64.b64decode(expected["logits_f32_b64"]))
            logits = found[expected["pos"]]["logits"]
            worst_kl = max(worst_kl, divergence(values, logits))
            worst = max(worst, max(abs(a - b) for a, b in zip(values, logits)) / expected["std"])
            gap = values[expected["argmax"]] - values[logits.index(max(logits))]
            top_errors += gap > 0.05 * expected["std"]
        for i, step in enumerate(steps):
            logits = found[len(ids) - 1 + i]["logits"]
            same += logits.index(max(logits)) == step
            total += 1
    return worst_kl, worst, same, total, top_errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    parser.add_argument("--model")
    parser.add_argument("--text", nargs="*", default=[])
    options = parser.parse_args()
    print("| model | " + " | ".join("%s: KL, difference, greedy" % p for p in VARIANTS) + " |")
    print("|---|" + "---|" * len(VARIANTS))
    for path in sorted((ROOT / "tests/data/models").glob("*/golden.json")):
        cells = []
        for variant in VARIANTS.values():
            kl, worst, same, total, wrong = compare(options.binary, path.parent, variant)
            cells.append("%.0e, %.0e std, %d/%d%s" % (kl, worst, same, total, " TOP TOKEN" if wrong else ""))
        print("| %s | %s |" % (path.parent.name, " | ".join(cells)))
    for text in options.text:
        figures = [ask(options.binary, "perplexity", options.model, "--file", text, *v)
                   for v in VARIANTS.values()]
        print("\n%s: %d tokens, " % (pathlib.Path(text).name, figures[0]["tokens"])
              + ", ".join("%s %.4f (%+.3f%%)" % (p, f["perplexity"], 100 * (f["perplexity"] / figures[0]["perplexity"] - 1))
                          for p, f in zip(VARIANTS, figures)))


if __name__ == "__main__":
    main()
