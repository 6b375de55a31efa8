#!/usr/bin/env python3
"""The engines side by side on the fixture models, against their golden float64 logits.

    python3 tests/reference/compare_engines.py [build/release/mlx-serve [MODEL...]]

Prints a table in Markdown: the largest KL divergence over all golden positions of a model, and the largest
difference in units of the golden logits' standard deviation, for each engine and precision.
"""
import array
import base64
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLUMNS = [("cpu", "f32"), ("cpu", "int16"), ("mlx", "f32"), ("mlx", "int16")]


def log_softmax(values):
    top = max(values)
    total = math.log(sum(math.exp(v - top) for v in values))
    return [v - top - total for v in values]


def divergence(golden, found):
    return sum(math.exp(p) * (p - q) for p, q in zip(log_softmax(golden), log_softmax(found)))


def measure(binary, directory, golden, backend, precision):
    worst = [0.0, 0.0]
    for prompt in golden["prompts"]:
        command = [binary, "logits", "--model", directory, "--tokens", ",".join(map(str, prompt["tokens"])),
                   "--positions", "all", "--backend", backend, "--precision", precision, "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            return result.stderr.strip()
        positions = json.loads(result.stdout)["positions"]
        for expected in prompt["positions"]:
            values = array.array("f", base64.b64decode(expected["logits_f32_b64"]))
            found = positions[expected["pos"]]["logits"]
            worst[0] = max(worst[0], divergence(values, found))
            worst[1] = max(worst[1], max(abs(a - b) for a, b in zip(values, found)) / expected["std"])
    return "%.0e / %.0e" % tuple(worst)


def main():
    binary = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "build/release/mlx-serve")
    print("| model | " + " | ".join("%s, %s" % c for c in COLUMNS) + " |\n|---" + "|---" * len(COLUMNS) + "|")
    for directory in sorted((ROOT / "tests/data/models").iterdir()):
        if not (directory / "golden.json").exists() or directory.name not in (sys.argv[2:] or [directory.name]):
            continue
        golden = json.loads((directory / "golden.json").read_text())
        cells = [measure(binary, directory, golden, *column) for column in COLUMNS]
        print("| %s | %s |" % (directory.name, " | ".join(cells)), flush=True)


main()
