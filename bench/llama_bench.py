#!/usr/bin/env python3
"""What `mlx-serve bench --json` measures, with llama.cpp: one JSON object a line, fields of the same names.

    python3 bench/llama_bench.py MODEL.gguf [--prefill 512] [--decode 64] [--depth 0] [--batch 1] [--threads N]

One repeat a run; bench/compare starts it again and again. Everything is llama.cpp's default but the number of
threads, the batch of 512 tokens and a context that fits. Needs llama-cpp-python built on this machine.
"""
import time

import llama_cpp as lc

import worker

QUIET = lc.llama_log_callback(lambda level, text, data: None)  # ctypes needs a reference that stays
CHUNK = 512


class Llama:
    def __init__(self, path, threads, context, sequences):
        lc.llama_log_set(QUIET, None)
        lc.llama_backend_init()
        start = time.perf_counter()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self.model:
            raise SystemExit("llama.cpp cannot load " + path)
        parameters = lc.llama_context_default_params()
        parameters.n_ctx = context * sequences
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.n_batch = parameters.n_ubatch = CHUNK
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context of %d tokens" % (context * sequences))
        self.load_seconds = time.perf_counter() - start
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.batch = lc.llama_batch_init(CHUNK, 0, 1)

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def decode(self, rows):
        """rows: (token, position, sequence, wants logits)"""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        if lc.llama_decode(self.context, self.batch):
            raise SystemExit("llama.cpp failed to decode")
        lc.llama_synchronize(self.context)

    def token(self, i):
        return worker.token(i, self.vocabulary)

    def feed(self, count, sequence=0):
        """Seconds for a prompt of count tokens."""
        start = time.perf_counter()
        for at in range(0, count, CHUNK):
            end = min(at + CHUNK, count)
            self.decode([(self.token(i), i, sequence, i + 1 == count) for i in range(at, end)])
        return time.perf_counter() - start

    def generate(self, depth, steps, sequences):
        """Seconds for steps tokens of each sequence."""
        start = time.perf_counter()
        for i in range(steps):
            self.decode([(self.token(i + s), depth + i, s, True) for s in range(sequences)])
        return time.perf_counter() - start


def main():
    parser = worker.parser(__doc__)
    parser.add_argument("--batch", type=worker.numbers, default=[1])
    options = parser.parse_args()
    context = max(max(options.prefill), max(options.depth) + options.decode)
    llama = Llama(options.model, options.threads, (context + 255) // 256 * 256, max(options.batch))
    llama.feed(min(128, max(options.prefill)))
    llama.clear()
    prefill, rows = {}, []
    for depth in options.depth:
        for batch in options.batch:
            llama.clear()
            for sequence in range(batch):
                seconds = llama.feed(depth, sequence)
                if sequence == 0 and depth > 0:
                    prefill.setdefault(depth, depth / seconds)
            if depth == 0:
                llama.generate(0, min(4, options.decode), batch)
                llama.clear()
            rows.append((depth, batch, batch * options.decode / llama.generate(depth, options.decode, batch)))
    for count in options.prefill:
        if count not in prefill:
            llama.clear()
            prefill[count] = count / llama.feed(count)
    worker.print_rows(options, "llama.cpp", prefill, rows, llama.load_seconds, lc.llama_model_size(llama.model))


if __name__ == "__main__":
    main()
