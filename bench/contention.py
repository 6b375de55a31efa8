#!/usr/bin/env python3
"""How much of its speed decoding keeps beside processes that use the processor.

    python3 bench/contention.py [--shape smollm2-135m] [--busy 0,2,4] [--rounds 3] [--gguf FILE]

Decodes with mlx-serve, and with llama.cpp where a GGUF file of the shape is given (bench/shapes.py writes one; needs
llama-cpp-python), beside so many endless loops. On 2 cores and with 2 threads a fair share is 2 / (2 + n) * 2 / 2: half
beside 2 loops, a third beside 4. Prints tokens/s and the share of the idle speed of the same round, as CSV.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKER = pathlib.Path(__file__).resolve().parent / "llama_bench.py"
LOOP = "import signal\nsignal.alarm(600)\nwhile True: pass"  # ends by itself, should this script die


def measure(command, busy):
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(busy)]
    try:
        if busy:
            time.sleep(0.3)
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(output.splitlines()[0])["decode_tps"]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--busy", default="0,2,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--gguf")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    options = parser.parse_args()
    common = ["--prefill", "16", "--threads", str(options.threads), "--decode"]
    programs = {"mlx-serve": [options.binary, "bench", "--shape", options.shape, "--repeat", "1", "--json"] + common
                + [str(options.decode)]}
    if options.gguf:  # fewer tokens: beside others it may take a second each
        programs["llama.cpp"] = [sys.executable, str(WORKER), options.gguf] + common + [str(max(8, options.decode // 8))]
    counts = [int(n) for n in options.busy.split(",")]
    shares = {}
    print("program,busy,tokens_per_second,share_of_idle")
    for _ in range(options.rounds):
        for name, command in programs.items():
            idle = None
            for busy in counts:
                rate = measure(command, busy)
                idle = rate if idle is None else idle
                shares.setdefault((name, busy), []).append(rate / idle)
                print("%s,%d,%.1f,%.3f" % (name, busy, rate, rate / idle), flush=True)
    for (name, busy), values in shares.items():
        print("# %s beside %d: %.0f%% (%.0f to %.0f)" % (name, busy, 100 * statistics.median(values), 100 * min(values),
                                                         100 * max(values)))


if __name__ == "__main__":
    main()
