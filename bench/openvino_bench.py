#!/usr/bin/env python3
"""What `mlx-serve bench --json` measures, with OpenVINO GenAI: one JSON object a line, fields of the same names.

    python3 bench/openvino_bench.py MODEL_DIR [--prefill 512] [--decode 64] [--depth 0] [--threads N]

MODEL_DIR holds openvino_model.xml, as bench/openvino_model.py or optimum-intel writes it, and config.json. Figures
are LLMPipeline's own: prefill is the prompt's tokens by the time to the first token, decode one by the mean time of
each later one, of a greedy reply that ignores the end of text. Choosing the token is in them, which the others'
figures lack: 3% of decoding Gemma 3 270M with its vocabulary, 1% or less elsewhere. Depth 0 has a prompt of one
token, since there is no empty one.

Everything is OpenVINO's default (attention over a paged cache of 8-bit keys and values, activations quantised to 8
bits) but the number of threads, no cache of prefixes, a cache of keys and values that fits, prompts in one piece, and
groups of activations as large as those of the weights, which is faster. Each length runs once before it counts: the
first time OpenVINO makes kernels for it. Needs openvino-genai.
"""
import json
import pathlib
import time

import numpy
import openvino
import openvino_genai

import worker

BLOCK = 32  # tokens in a block of the CPU's paged cache


class Pipeline:
    def __init__(self, directory, threads, context):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = context
        scheduler.num_kv_blocks = context // BLOCK + 2
        start = time.perf_counter()
        self.pipeline = openvino_genai.LLMPipeline(
            str(directory), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads,
            PERFORMANCE_HINT="LATENCY", DYNAMIC_QUANTIZATION_GROUP_SIZE=64)
        self.load_seconds = time.perf_counter() - start
        self.vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]

    def generate(self, prompt, reply):
        """(tokens/s of a prompt so long, tokens/s of the reply's tokens but the first)."""
        ids = numpy.array([[worker.token(i, self.vocabulary) for i in range(prompt)]], numpy.int64)
        config = openvino_genai.GenerationConfig(max_new_tokens=reply, ignore_eos=True, do_sample=False)
        config.set_eos_token_id(0)  # it wants one, heeded or not
        result = self.pipeline.generate(
            openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids))), config)
        if len(result.tokens[0]) != reply:
            raise SystemExit("OpenVINO made %d tokens of %d" % (len(result.tokens[0]), reply))
        metrics = result.perf_metrics
        return 1000 * prompt / metrics.get_ttft().mean, 1000 / metrics.get_tpot().mean if reply > 1 else 0


def main():
    options = worker.parser(__doc__).parse_args()
    directory = pathlib.Path(options.model)
    pipeline = Pipeline(directory, options.threads, max(options.prefill + options.depth) + options.decode + 1)
    prefill, decode = {}, []
    for depth in options.depth:
        prompt = max(1, depth)
        pipeline.generate(prompt, min(4, options.decode))
        prefill[prompt], rate = pipeline.generate(prompt, options.decode + 1)
        decode.append((depth, 1, rate))
    for count in options.prefill:
        if count not in prefill:
            pipeline.generate(count, 1)
            prefill[count], _ = pipeline.generate(count, 1)
    worker.print_rows(options, "openvino", prefill, decode, pipeline.load_seconds,
                      (directory / "openvino_model.bin").stat().st_size)


if __name__ == "__main__":
    main()
