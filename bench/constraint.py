#!/usr/bin/env python3
"""What constraints cost while decoding: the same server, the same prompt, free and bound in turn.

    python3 bench/constraint.py MODEL_DIR [--threads 2] [--tokens 128] [--rounds 5]

MODEL_DIR may hold random weights (bench/shapes.py with a real --tokenizer). Prints tokens/s of the decode phase as
the server measures it, the medians over the rounds and of the rounds' ratios to free text:

  strings   an array of long free strings: every token takes a pass and a mask
  records   an array of records with fixed keys: what leaves no choice takes no pass
  tools     free text while two tools could be called, beside the same prompt with tool_choice none (no calls)
"""
import argparse
import http.client
import json
import pathlib
import statistics

from serve import ROOT, Served, free_port

STRINGS = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 200}
RECORDS = {"type": "array", "minItems": 200, "items": {
    "type": "object", "additionalProperties": False, "required": ["identifier", "category", "is_active", "quantity", "created_at"],
    "properties": {"identifier": {"type": "integer", "minimum": 0, "maximum": 99999},
                   "category": {"enum": ["electronics", "furniture", "groceries"]}, "is_active": {"type": "boolean"},
                   "quantity": {"type": "integer", "minimum": 0, "maximum": 999},
                   "created_at": {"type": "string", "format": "date-time"}}}}


def tool(name):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}


def bound_to(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


TOOLS = {"tools": [tool("get_weather"), tool("get_forecast")]}
KINDS = {"free": {}, "strings": bound_to(STRINGS), "records": bound_to(RECORDS),
         "no calls": {**TOOLS, "tool_choice": "none"}, "tools": TOOLS}
BASES = {"tools": "no calls"}  # of the others: free


def measure(port, tokens, temperature, kind):
    body = {"messages": [{"role": "user", "content": "Describe the weather of every city that you know."}],
            "max_tokens": tokens, "ignore_eos": True, "temperature": temperature, "seed": 1, **KINDS[kind]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    assert answer["usage"]["completion_tokens"] == tokens, answer
    return answer["timings"]["predicted_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    port = free_port()
    server = Served("mlx-serve", [str(ROOT / "build/release/mlx-serve"), "serve", str(options.model), "--port", str(port),
                                  "--threads", str(options.threads)], port)
    try:
        for temperature in (0, 1):
            rates = {kind: [] for kind in KINDS}
            for turn in range(options.rounds + 1):
                for kind in KINDS:
                    rate = measure(port, options.tokens, temperature, kind)
                    if turn > 0:  # the first one compiles schemas and fills caches of masks
                        rates[kind].append(rate)
            print(f"temperature {temperature}")
            for kind, own in rates.items():
                base = BASES.get(kind, "free")
                ratios = [one / other for one, other in zip(own, rates[base])]
                print(f"  {kind:8} {statistics.median(own):8.1f} tokens/s   {statistics.median(ratios):.3f} of {base}"
                      f" ({min(ratios):.3f} to {max(ratios):.3f})")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
