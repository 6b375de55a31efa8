#!/usr/bin/env python3
"""mlx-serve and llama.cpp side by side on one model, in one run.

    python3 bench/compare_llama.py MODEL_DIR MODEL.gguf [--prefill 512] [--decode 64] [--rounds 5] [--threads N]

The GGUF file is re-quantised to Q4_0 (llama.cpp's fastest 4-bit format) beside the original. The two take
turns; each figure is the median over the rounds, with the smallest and largest. Both decode `decode` tokens
after `prefill` tokens of context, greedy choice and text excluded. Needs numpy and llama-cpp-python built on
this machine (pip install --no-binary llama-cpp-python llama-cpp-python). Prints a table, and CSV with --csv.
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import time

import llama_cpp as lc

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUIET = lc.llama_log_callback(lambda level, text, data: None)  # ctypes needs a reference that stays


def requantise(source):
    target = str(source) + ".Q4_0.gguf"
    if not os.path.exists(target):
        parameters = lc.llama_model_quantize_default_params()
        parameters.ftype = lc.LLAMA_FTYPE_MOSTLY_Q4_0
        parameters.allow_requantize = True
        partial = target + ".partial"
        if lc.llama_model_quantize(str(source).encode(), partial.encode(), ctypes.byref(parameters)):
            raise SystemExit("llama.cpp could not re-quantise " + str(source))
        os.replace(partial, target)
    return target


class Llama:
    def __init__(self, path, threads, context):
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        parameters = lc.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, parameters)
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))

    def feed(self, tokens):
        array = (lc.llama_token * len(tokens))(*tokens)
        if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp failed to decode")
        lc.llama_synchronize(self.context)

    def measure(self, prefill, decode):
        tokens = [(i * 7919 + 11) % self.vocabulary for i in range(prefill)]
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        start = time.perf_counter()
        for at in range(0, prefill, 512):
            self.feed(tokens[at:at + 512])
        middle = time.perf_counter()
        for i in range(decode):
            self.feed([tokens[i % prefill]])
        return prefill / (middle - start), decode / (time.perf_counter() - middle)


def measure_ours(binary, model, options):
    command = [binary, "bench", model, "--prefill", str(options.prefill), "--decode", str(options.decode),
               "--depth", str(options.prefill),
               "--repeat", "1", "--threads", str(options.threads), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def describe(values):
    return "%8.1f (%.1f to %.1f)" % (statistics.median(values), min(values), max(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("gguf")
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()

    lc.llama_log_set(QUIET, None)
    theirs = Llama(requantise(options.gguf), options.threads, options.prefill + options.decode + 64)
    theirs.measure(options.prefill, 2)
    rows = []
    for _ in range(options.rounds):
        ours = measure_ours(options.binary, options.model, options)
        prefill, decode = theirs.measure(options.prefill, options.decode)
        rows.append((ours, prefill, decode))
        if options.csv:
            print("%.1f,%.1f,%.1f,%.1f" % (ours["prefill_tps"], prefill, ours["decode_tps"], decode))
    if options.csv:
        return
    print("%d threads, prefill %d, then decode %d; median (smallest to largest) of %d rounds"
          % (options.threads, options.prefill, options.decode, options.rounds))
    for name, key, column in (("prefill", "prefill_tps", 1), ("decode", "decode_tps", 2)):
        ours = [row[0][key] for row in rows]
        llama = [row[column] for row in rows]
        ratios = [a / b for a, b in zip(ours, llama)]
        print("%-8s mlx-serve %s  llama.cpp %s  tokens/s, ratio %.2f (%.2f to %.2f)"
              % (name, describe(ours), describe(llama), statistics.median(ratios), min(ratios), max(ratios)))
    last = rows[-1][0]
    print("machine  reads %.1f GB/s, int8 %.1f G multiply-adds/s; shares: prefill %.0f%%, decode %.0f%%; peak %.0f MB"
          % (last["read_gbps"], last["int8_gmacs"], 100 * last["prefill_share"], 100 * last["decode_share"],
             last["peak_rss_bytes"] * 1e-6))


if __name__ == "__main__":
    main()
