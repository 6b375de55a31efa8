"""make_vocabulary.py TOKENIZER.json OUT: a vocabulary for grammar_walk and bench_grammar.

Each token as a uint32 length and the bytes that it appends; special tokens are empty.
"""
import json
import struct
import sys


def byte_alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in printable]
    return table | {chr(256 + i): b for i, b in enumerate(others)}


def main(path, out):
    tokenizer = json.load(open(path))
    vocab = tokenizer["model"]["vocab"]
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    has_byte_tokens = "<0x00>" in vocab
    alphabet = byte_alphabet()
    tokens = [b""] * (max([*vocab.values(), *added]) + 1)
    for text, i in vocab.items():
        if has_byte_tokens and len(text) == 6 and text.startswith("<0x"):
            tokens[i] = bytes([int(text[3:5], 16)])
        elif has_byte_tokens:
            tokens[i] = text.replace("\u2581", " ").encode()
        elif all(c in alphabet for c in text):
            tokens[i] = bytes(alphabet[c] for c in text)
        else:
            tokens[i] = text.encode()
    for i, token in added.items():
        tokens[i] = b"" if token["special"] else token["content"].encode()
    with open(out, "wb") as file:
        for token in tokens:
            file.write(struct.pack("<I", len(token)) + token)
    print(len(tokens), "tokens")


main(*sys.argv[1:3])
