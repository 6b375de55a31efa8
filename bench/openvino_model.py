"""Random weights in a known shape as an OpenVINO model: the peer of write_mlx and write_gguf in shapes.py.

The graph is the one that optimum-intel exports for a model of Llama, Qwen3 or Gemma 3 and nncf compresses: a stateful
decoder, every matrix symmetric 4-bit integers in groups of 64 with float16 scales (8 bits: one scale a row, as nncf
has it), the embedding included. OpenVINO's passes look for these very patterns (normalisation, rotary embedding,
attention over a growing state), so the order of operations below matters more than it looks. Needs numpy and openvino,
no torch.
"""
import json
import pathlib

import numpy
import openvino
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

import shapes

GROUP = 64


def integers(values):
    return op.constant(numpy.array(values, numpy.int64))


def floats(values):
    return op.constant(numpy.array(values, numpy.float32))


class Weights:
    """Constants, each with contents of its own: equal ones would be stored, and kept in the cache, once."""

    def __init__(self, bits):
        self.bits = bits
        self.random = numpy.random.default_rng(0)

    def matrix(self, rows, columns):
        """[rows, columns], decompressed as nncf writes it."""
        groups = columns // GROUP if self.bits == 4 else 1
        dims = [rows, groups, columns // groups] if self.bits == 4 else [rows, columns]
        codes = numpy.frombuffer(self.random.bytes(rows * columns * self.bits // 8), numpy.uint8)
        kind = openvino.Type.i4 if self.bits == 4 else openvino.Type.i8
        codes = openvino.op.Constant(openvino.Tensor(codes, openvino.Shape(dims), kind), shared_memory=False)
        scales = self.random.uniform(0.9, 1.1, dims[:-1] + [1]) * 2.0 ** -(self.bits + 2)
        weights = op.multiply(op.convert(codes, "f16"), op.constant(scales.astype(numpy.float16)))
        if self.bits == 4:
            weights = op.reshape(weights, integers([rows, columns]), special_zero=False)
        return op.convert(weights, "f32")

    def norm(self, x, length, epsilon):
        variance = op.reduce_mean(op.power(x, floats(2)), integers([-1]), keep_dims=True)
        x = op.multiply(x, op.divide(floats(1), op.sqrt(op.add(variance, floats(epsilon)))))
        return op.multiply(floats(self.random.uniform(0.9, 1.1, length)), x)


def rotary_tables(positions, dim, base):
    """Cosines and sines [batch, 1, tokens, dim]. Scaled frequencies would differ in these constants only."""
    frequencies = (1.0 / base ** (numpy.arange(0, dim, 2) / dim)).reshape(1, -1, 1)
    angles = op.matmul(floats(frequencies), op.convert(op.unsqueeze(positions, integers(1)), "f32"), False, False)
    angles = op.transpose(angles, integers([0, 2, 1]))
    angles = op.concat([angles, angles], -1)
    return [op.unsqueeze(f(angles), integers(1)) for f in (op.cos, op.sin)]


def rotate(x, dim, tables):
    def part(first, last):
        return op.slice(x, integers([first]), integers([last]), integers([1]), integers([3]))

    half = op.concat([op.multiply(part(dim // 2, 2 ** 63 - 1), floats(-1)), part(0, dim // 2)], -1)
    return op.add(op.multiply(x, tables[0]), op.multiply(half, tables[1]))


def length(x, axis):
    return op.gather(op.shape_of(x), integers(axis), integers(0))


def attention_mask(tokens, used, window):
    """[batch, 1, tokens, context]: 0 where a key may be seen. The chain of BitwiseAnd with its neutral first operand
    is how a window is told from any other mask."""
    context = length(used, 1)
    keys = op.range(integers(0), context, integers(1), "i64")
    queries = op.range(op.subtract(context, length(tokens, 1)), context, integers(1), "i64")
    keys, queries = op.unsqueeze(keys, integers([0, 1, 2])), op.unsqueeze(queries, integers([0, 1, 3]))
    seen = op.constant(numpy.array(True))
    if window:
        seen = op.bitwise_and(seen, op.greater(keys, op.add(queries, integers(-window))))
    seen = op.bitwise_and(seen, op.less_equal(keys, queries))
    seen = op.bitwise_and(op.constant(numpy.array(True)), seen)
    seen = op.bitwise_and(seen, op.convert(op.unsqueeze(used, integers([1, 2])), "boolean"))
    seen = op.broadcast(seen, integers([1, 1, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return op.select(seen, floats(0), floats(-65504))


class Decoder:
    def __init__(self, shape, bits):
        self.c = shape
        self.is_gemma3 = shape["model_type"] == "gemma3_text"
        self.weights = Weights(bits)
        self.sinks = []

    def linear(self, x, rows, columns):
        return op.matmul(x, self.weights.matrix(rows, columns), False, True)

    def remember(self, x, name, kv_heads, dim):
        """x behind what earlier calls left: the state that becomes the cache of keys and values."""
        start = op.concat([op.gather(op.shape_of(self.tokens), integers([0]), integers(0)), integers([kv_heads]),
                           integers([0]), integers([dim])], 0)
        info = VariableInfo()
        info.variable_id, info.data_type = name, openvino.Type.f32
        info.data_shape = openvino.PartialShape([-1, kv_heads, -1, dim])
        state = Variable(info)
        past = op.read_value(op.broadcast(floats(0), start), state)
        whole = op.concat([op.gather(past, self.beams, integers(0)), x], -2)
        self.sinks.append(op.assign(whole, state))
        return whole

    def attention(self, x, i):
        c = self.c
        hidden, heads, kv_heads, dim = (c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads",
                                                       "head_dim"))

        def project(count, has_norm):
            y = op.reshape(self.linear(x, count * dim, hidden), integers([0, 0, count, dim]), special_zero=True)
            if has_norm:
                y = self.weights.norm(y, dim, c["rms_norm_eps"])
            return op.transpose(y, integers([0, 2, 1, 3]))

        def spread(y):
            """Each head of keys or values once for every query head that reads it."""
            if heads == kv_heads:
                return y
            y = op.broadcast(op.unsqueeze(y, integers(2)), integers([1, 1, heads // kv_heads, 1, 1]),
                             broadcast_spec="BIDIRECTIONAL")
            return op.reshape(y, integers([0, heads, -1, dim]), special_zero=True)

        has_norm = c["model_type"] != "llama"
        is_local = "sliding_window" in c and (i + 1) % c["sliding_window_pattern"] != 0
        mask, tables = self.local if is_local else self.everywhere
        q = rotate(project(heads, has_norm), dim, tables)
        k = rotate(project(kv_heads, has_norm), dim, tables)
        k = self.remember(k, "past_key_values.%d.keypresent.%d.key" % (i, i), kv_heads, dim)
        v = self.remember(project(kv_heads, False), "past_key_values.%d.valuepresent.%d.value" % (i, i), kv_heads, dim)
        y = op.scaled_dot_product_attention(q, spread(k), spread(v), mask,
                                            floats(c.get("query_pre_attn_scalar", dim) ** -0.5))
        y = op.reshape(op.transpose(y, integers([0, 2, 1, 3])), integers([0, 0, heads * dim]), special_zero=True)
        return self.linear(y, hidden, heads * dim)

    def mlp(self, x):
        hidden, inner = self.c["hidden_size"], self.c["intermediate_size"]
        gate = self.linear(x, inner, hidden)
        gate = op.gelu(gate, "tanh") if self.is_gemma3 else op.swish(gate)
        return self.linear(op.multiply(gate, self.linear(x, inner, hidden)), hidden, inner)

    def layer(self, x, i):
        """Gemma 3 normalises what the halves of a layer take and give, the others only what they take."""
        for half in (lambda y: self.attention(y, i), self.mlp):
            y = half(self.norm(x))
            x = op.add(x, self.norm(y) if self.is_gemma3 else y)
        return x

    def norm(self, x):
        return self.weights.norm(x, self.c["hidden_size"], self.c["rms_norm_eps"])

    def build(self):
        c = self.c
        parameters = []
        for name, dims, kind in (("input_ids", [-1, -1], numpy.int64), ("attention_mask", [-1, -1], numpy.int64),
                                 ("position_ids", [-1, -1], numpy.int64), ("beam_idx", [-1], numpy.int32)):
            parameters.append(op.parameter(dims, kind, name=name))
            parameters[-1].output(0).set_names({name})
        self.tokens, used, positions, self.beams = parameters
        self.everywhere = (attention_mask(self.tokens, used, None),
                           rotary_tables(positions, c["head_dim"], c["rope_theta"]))
        if "sliding_window" in c:
            self.local = (attention_mask(self.tokens, used, c["sliding_window"]),
                          rotary_tables(positions, c["head_dim"], c["rope_local_base_freq"]))
        table = self.weights.matrix(c["vocab_size"], c["hidden_size"])
        x = op.gather(table, op.convert(self.tokens, "i32"), integers(0))
        if self.is_gemma3:
            x = op.multiply(x, floats(c["hidden_size"] ** 0.5))
        for i in range(c["num_hidden_layers"]):
            x = self.layer(x, i)
        head = table if c["tie_word_embeddings"] else self.weights.matrix(c["vocab_size"], c["hidden_size"])
        logits = op.matmul(self.norm(x), head, False, True)
        logits.output(0).set_names({"logits"})
        return openvino.Model([op.result(logits, name="logits")], self.sinks, parameters, "decoder")


def write(name, directory, bits):
    """config.json, openvino_model.xml and .bin, for openvino_genai.LLMPipeline. There is no tokenizer."""
    shape = shapes.SHAPES[name]
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape, indent=1))
    openvino.save_model(Decoder(shape, bits).build(), directory / "openvino_model.xml", compress_to_fp16=False)
