#!/usr/bin/env python3
"""The tokenizer beside Hugging Face's `tokenizers`, `tiktoken`, `gigatoken` and `fastokens`, in one run.

    python3 bench/compare_tokenizers.py DIR [--bench build/release/bench/bench_tokenizer] [--names qwen3 gemma3 ...]
                                            [--text FILE] [--megabytes 4] [--rounds 3] [--markdown]

DIR holds NAME/tokenizer.json. Without --text a mixed text is made of what this machine has: documentation and
manual pages (40 %), source code (30 %), translated messages of programs in all languages installed (30 %), cut into
pieces of a few KB and shuffled. Everything runs on one thread; the best of the rounds counts, for encoding also the
first pass, when no memo is filled. The ids must be those of `tokenizers` on the whole text, or the program fails.
tiktoken gets the same vocabulary and pattern where the model is byte-level without options it lacks.
Packages that are missing are left out."""
import argparse
import array
import glob
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
ROOT = pathlib.Path(__file__).resolve().parents[1]
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def decoded(raw):
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def read_documents():
    for pattern in ("/usr/share/doc/*/*.gz", "/usr/share/man/man*/*.gz", "/usr/share/common-licenses/*"):
        for path in glob.glob(pattern):
            with open(path, "rb") as f:
                raw = f.read(1 << 20)
            try:
                yield decoded(gzip.decompress(raw) if path.endswith(".gz") else raw)
            except (OSError, EOFError):
                continue


def read_sources():
    folders = [os.path.dirname(os.__file__), "/usr/include", "/usr/share/perl", str(ROOT / "src")]
    for folder in folders:
        for pattern in ("*.py", "*.h", "*.c", "*.pm"):
            for path in glob.glob(os.path.join(folder, "**", pattern), recursive=True):
                if os.path.isfile(path):
                    with open(path, "rb") as f:
                        yield decoded(f.read(1 << 18))


def read_translations():
    """Texts of compiled message files (GNU gettext), by language."""
    import gettext
    for path in glob.glob("/usr/share/**/LC_MESSAGES/*.mo", recursive=True):
        try:
            with open(path, "rb") as f:
                catalog = gettext.GNUTranslations(f)._catalog
        except (OSError, UnicodeDecodeError, ValueError, LookupError):
            continue
        yield "\n".join(v for v in catalog.values() if v and not v.isascii())


def make_text(megabytes):
    rng = random.Random(4)
    pieces = []
    for share, source in ((0.4, read_documents), (0.3, read_sources), (0.3, read_translations)):
        chunks, wanted = [], int(megabytes * 1e6 * share)
        for text in source():
            chunks += [text[i:i + 3000] for i in range(0, len(text), 3000)]
        chunks.sort()  # file systems list in any order
        rng.shuffle(chunks)
        for chunk in chunks:
            if wanted <= 0:
                break
            pieces.append(chunk)
            wanted -= len(chunk.encode())
    rng.shuffle(pieces)
    return "\n".join(pieces)


def best(rounds, call):
    seconds, first = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
        first = first or seconds[0]
    return result, min(seconds), first


def run_ours(args, path, text_file):
    with tempfile.NamedTemporaryFile() as ids_file:
        lines = subprocess.run([args.bench, path, text_file, str(args.rounds), ids_file.name], check=True,
                               stdout=subprocess.PIPE, text=True).stdout.split("\n")
        ids = array.array("i")
        ids.frombytes(pathlib.Path(ids_file.name).read_bytes())
    rows = {cells[0]: cells for cells in (line.split(",") for line in lines[1:] if line)}
    return {"ids": ids.tolist(), "load": float(rows["load"][2]), "held": int(rows["load"][4]),
            "seconds": float(rows["encode"][2]), "first": float(rows["encode_first"][2])}


def measure(load, encode, rounds):
    model, load_seconds, _ = best(1, load)
    ids, seconds, first = best(rounds, lambda: encode(model))
    return {"ids": ids, "load": load_seconds, "seconds": seconds, "first": first}


def run_hugging_face(args, path, text):
    from tokenizers import Tokenizer
    return measure(lambda: Tokenizer.from_file(path), lambda t: t.encode(text, add_special_tokens=False).ids, args.rounds)


def byte_of_character():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    table.update((chr(0x100 + i), b) for i, b in enumerate(b for b in range(256) if b not in plain))
    return table


def run_tiktoken(args, path, text):
    import tiktoken
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    split = data["pre_tokenizer"] or {}
    steps = split.get("pretokenizers", [split])
    if steps[-1].get("type") != "ByteLevel" or data["normalizer"] or len(steps) > 2:
        if not (data["normalizer"] or {}).get("type") == "NFC":
            return None
    pattern = steps[0]["pattern"]["Regex"] if steps[0]["type"] == "Split" else GPT2
    table = byte_of_character()
    added = {t["content"]: t["id"] for t in data["added_tokens"]}
    ranks = {bytes(table[c] for c in token): i for token, i in data["model"]["vocab"].items()
             if token not in added and all(c in table for c in token)}
    load = lambda: tiktoken.Encoding(name="x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added)
    return measure(load, lambda t: t.encode(text, allowed_special="all"), args.rounds)


def run_gigatoken(args, path, text):
    import gigatoken
    return measure(lambda: gigatoken.Tokenizer(path), lambda t: list(t.encode(text)), args.rounds)


def run_fastokens(args, path, text):
    import fastokens
    return measure(lambda: fastokens.Tokenizer.from_file(path), lambda t: t.encode(text, add_special_tokens=False).ids,
                   args.rounds)


PEERS = {"tokenizers": run_hugging_face, "tiktoken": run_tiktoken, "gigatoken": run_gigatoken, "fastokens": run_fastokens}


def compare(args, name, text, text_file, size):
    path = os.path.join(args.directory, name, "tokenizer.json")
    rows = {"mlx-serve": run_ours(args, path, text_file)}
    for peer, run in PEERS.items():
        try:
            rows[peer] = run(args, path, text)
        except Exception as error:  # a missing package, or a model that the peer cannot read
            print("# %s: %s: %s" % (name, peer, str(error).split("\n")[0][:150]), file=sys.stderr)
    want = rows["tokenizers"]["ids"]
    for who, row in rows.items():
        if row is None:
            continue
        equal = "equal" if row["ids"] == want else "DIFFER"
        print("%s,%s,%.2f,%.2f,%.2f,%.3f,%s,%d,%s" % (
            name, who, size / row["seconds"] / 1e6, size / row["first"] / 1e6,
            rows["tokenizers"]["seconds"] / row["seconds"], row["load"],
            "%.1f" % (row["held"] / 1e6) if "held" in row else "", len(row["ids"]), equal), flush=True)
    return rows["mlx-serve"]["ids"] == want


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--bench", default=str(ROOT / "build/release/bench/bench_tokenizer"))
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--text")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    text = pathlib.Path(args.text).read_text(encoding="utf-8") if args.text else make_text(args.megabytes)
    equal = True
    print("model,library,mb_per_s,first_mb_per_s,times_tokenizers,load_s,held_mb,tokens,ids")
    with tempfile.NamedTemporaryFile() as text_file:
        text_file.write(text.encode())
        text_file.flush()
        for name in args.names or sorted(os.listdir(args.directory)):
            equal &= compare(args, name, text, text_file.name, len(text.encode()))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
