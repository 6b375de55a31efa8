"""What the workers of bench/compare share: one program each, which prints for its engine what `mlx-serve bench --json`
prints for ours, one JSON object for every prompt length and depth, in fields of the same names."""
import argparse
import json
import os


def numbers(text):
    return [int(item) for item in text.split(",")]


def parser(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prefill", type=numbers, default=[512])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--depth", type=numbers, default=[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def token(i, vocabulary):
    """The ith of a prompt: any, but spread over the embedding."""
    return (i * 7919 + 11) % vocabulary


def peak_bytes():
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def print_rows(options, backend, prefill, decode, load_seconds, weight_bytes):
    """prefill: tokens/s by prompt length; decode: (depth, batch, tokens/s)."""
    for count in options.prefill:
        for depth, batch, rate in decode:
            print(json.dumps({"model": options.model, "backend": backend, "threads": options.threads, "prefill": count,
                              "decode": options.decode, "depth": depth, "batch": batch,
                              "prefill_tps": prefill[count], "decode_tps": rate, "peak_rss_bytes": peak_bytes(),
                              "load_seconds": load_seconds, "weight_bytes": weight_bytes}))
