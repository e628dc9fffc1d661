"""One rule per kind of node: what it becomes in recipe ibert, step by step as in transformers."""

import numpy as np

from intformer.errors import CheckpointError, RangeError
from intformer.ir.graph import Graph, Node
from intformer.quantize.emit import Emitter
from intformer.quantize.ibert import diagnostics
from intformer.quantize.ibert.scales import Recorded, act_scale, quantize
from intformer.relay_ops import attention_ibert, i_gelu_ibert, i_layernorm_ibert
from intformer.relay_ops.fixedpoint import INT8, INT16, INT32

SUM22 = (-(2**21), 2**21 - 1)  # ln_input_act
LEAKED = "checkpoint: the embedding's scale instead of the input's (hf_compat)"
WIDE = (-(2**30), 2**30)  # a term of a 22-bit sum: beyond it the sum is clamped anyway


class Rules(Emitter):
    """The state of one lowering. Scales are float32, as transformers computes them.

    recorded  ranges of the checkpoint
    compat    mode hf_compat: layers take the embedding's scale for that of their input
    held      edge -> its value: int8, or the accumulator of a linear
    """

    def __init__(self, graph: Graph, recorded: Recorded, compat: bool):
        """Start empty."""
        super().__init__()
        self.graph, self.recorded, self.compat = graph, recorded, compat
        self.held: dict[str, str] = {}

    def encoder(self) -> str:
        """Run the rule of every node up to the last that has recorded ranges; return its edge."""
        nodes = self.graph.nodes
        last = max(i for i, node in enumerate(nodes) if "ranges" in node.attrs)
        for node in nodes[: last + 1]:
            RULES[node.kind](self, node)
        return nodes[last].name

    def requantize_to(self, x: str, name: str, scale, origin: str, limits, dtype="int8") -> str:
        """Bring x to `scale` (one number, or one per channel), clamped to limits (lo, hi)."""
        source = self.values[x]
        self.value(name, dtype, source.channels, scale, origin, source.rows)
        ratio = self.channel_scale(x) / self.channel_scale(name)
        lo, hi = limits
        self.node("requantize", (x, *self.dyadic(name, ratio)), name, lo=lo, hi=hi, dtype=dtype)
        if origin != LEAKED and not (ratio == 1).all():  # else no other rounding of the edge
            self.same_edge(x, name)
        return name

    def quant_act(self, x: str, name: str, key: str) -> str:
        """QuantAct(8) of x."""
        return self.requantize_to(x, name, *self.recorded.scale(key, 8), INT8)

    def tables(self, name: str, keys: tuple[str, ...], module, *args) -> tuple[str, ...]:
        """Keep what an op's `tables` gives; a refusal names the checkpoint keys."""
        try:
            found = module.tables(*args)
        except RangeError as error:
            where = self.recorded.at(*keys)
            raise CheckpointError(error.what, where=where, hint=error.hint) from error
        return tuple(self.constant(f"{name}.{key}", table) for key, table in found.items())

    def read_as(self, edge: str) -> np.float32:
        """Return what transformers takes for the scale of an edge.

        In mode hf_compat that is the embedding's for the input of every layer: what the linear
        before an attention reads, and the residual beside it.
        """
        own = np.float32(self.scale(self.held[edge]))
        readers = (r for node in self.graph.readers(edge) for r in self.graph.readers(node.name))
        if not self.compat or all(reader.kind != "attention" for reader in readers):
            return own
        (embed,) = self.graph.of_kind("embed")
        (norm,) = self.graph.readers(embed.name)
        return np.float32(self.scale(self.held[norm.name]))


def beside(node: Node, name: str) -> str:
    """Return a name in the layer of a node."""
    return f"{node.name.rpartition('.')[0]}.{name}"


def embed(e: Rules, node: Node) -> None:
    """QuantEmbeddings, summed by embeddings_act1 (which runs twice)."""
    scale, origin = e.recorded.scale(*node.attrs["ranges"], 16)
    constants, t = [], node.params
    tables = {"word": (t.word, np.int8), "type": (t.types, np.int16)}
    for part, (table, dtype) in {**tables, "position": (t.position, np.int16)}.items():
        step = act_scale(np.abs(table).max(), 8)
        name = f"embed.{part}"
        integers = e.constant(f"{name}.weight", quantize(table, step, 8).astype(dtype))
        ratio = np.full(len(table), np.float64(step) / np.float64(scale))
        constants += [integers, *e.dyadic(name, ratio)]
    out = e.value(node.name, "int32", node.channels, scale, origin)
    e.node("embed", (*node.inputs, *constants), out, lo=INT16[0], hi=INT16[1], types=1)
    e.stands_for(node.name, out)
    e.held[node.name] = out


def norm(e: Rules, node: Node) -> None:
    """IntLayerNorm with its QuantAct, then another QuantAct where one stands before a linear."""
    ln, (key, *more) = node.params, node.attrs["ranges"]
    diagnostics.check_layernorm(e.recorded.at(ln.key), ln.weight, ln.bias)
    scale, origin = e.recorded.scale(key, 8)
    names = e.tables(node.name, (ln.key, key), i_layernorm_ibert, ln.weight, ln.bias, scale)
    prescale = e.constant(node.name + ".prescale", e.recorded.shift(ln.key))
    out = e.value(node.name, "int8", node.channels, scale, origin)
    inputs = (e.held[node.inputs[0]], *names, prescale)
    e.node("i_layernorm_ibert", inputs, out, lo=INT8[0], hi=INT8[1])
    e.stands_for(node.name, out)
    for key in more:
        out = e.quant_act(out, beside(node, "ffn_in"), key)
    e.held[node.name] = out


def linear(e: Rules, node: Node) -> None:
    """QuantLinears of one input side by side.

    Where transformers takes another scale for the input's, the product is first brought to it, and
    the bias added after.
    """
    x, name = e.held[node.inputs[0]], node.name
    true, read_as = np.float32(e.scale(x)), e.read_as(node.inputs[0])
    integers, bias, scale = e.recorded.integers(node.params, read_as)
    weight = e.constant(name + ".weight", integers)
    bias_name = e.constant(name + ".bias", bias)
    origin = "bound: product of its operands' scales"
    acc = e.held[node.name] = name + ".acc"
    e.stands_for(name, acc)
    if read_as == true:
        e.value(acc, "int32", node.channels, scale, origin)
        e.node("matmul", (x, weight, bias_name), acc)
        return
    rho = np.float64(true) / np.float64(read_as)
    product = e.value(name + ".product", "int32", node.channels, scale * rho, origin)
    e.node("matmul", (x, weight, e.constant(name + ".no_bias", np.zeros_like(bias))), product)
    moved = e.requantize_to(product, name + ".moved", scale, LEAKED, INT32, "int32")
    e.value(acc, "int32", node.channels, scale, LEAKED)
    e.node("add_bias", (moved, bias_name), acc)


def act(e: Rules, node: Node) -> None:
    """IntGELU with its QuantAct, then the QuantAct before the next linear."""
    acc, (key, last) = e.held[node.inputs[0]], node.attrs["ranges"]
    scale, origin = e.recorded.scale(key, 8)
    gelu, keys = beside(node, "gelu"), e.graph[node.inputs[0]].params.keys
    names = e.tables(gelu, keys, i_gelu_ibert, np.float32(e.channel_scale(acc)), scale)
    e.value(gelu, "int8", node.channels, scale, origin)
    e.node("i_gelu_ibert", (acc, *names), gelu, lo=INT8[0], hi=INT8[1])
    e.stands_for(node.name, gelu)
    e.held[node.name] = e.quant_act(gelu, node.name, last)


def add(e: Rules, node: Node) -> None:
    """ln_input_act: both terms rounded to the scale of 22 bits, then added."""
    name, (term, stream) = node.name, node.inputs
    identity, read_as = e.held[stream], e.read_as(stream)
    if read_as != np.float32(e.scale(identity)):
        to = beside(node, "identity")
        identity = e.requantize_to(identity, to, read_as, LEAKED, WIDE, "int32")
    scale, origin = e.recorded.scale(*node.attrs["ranges"], 22)
    moved = e.requantize_to(e.held[term], name + ".term", scale, origin, WIDE, "int32")
    out = e.value(name, "int32", node.channels, scale, origin)
    ratio = e.dyadic(name, e.scale(identity) / np.float64(scale))
    e.node("residual_add", (moved, identity, *ratio), out, lo=SUM22[0], hi=SUM22[1])
    e.stands_for(name, out)
    e.held[name] = out


def attend(e: Rules, node: Node) -> None:
    """QuantActs of queries, keys and values, IntSoftmax, and the QuantAct of the context."""
    edge, c, heads = node.inputs[0], node.channels, node.attrs["heads"]
    keys = e.graph[edge].attrs["ranges"]
    s_q, s_k, s_v = acts = [e.recorded.scale(key, 8)[0] for key in keys]
    stem = keys[0].removesuffix("query_activation")
    origin = f"checkpoint: {stem}{{query,key,value}}_activation.x_min, x_max"
    qkv = e.requantize_to(e.held[edge], edge, np.repeat(acts, c), origin, INT8)
    softmax, output = node.attrs["ranges"]
    score = s_q * s_k / np.float32(np.sqrt(c // heads))
    scale, origin = e.recorded.scale(output, 8)
    args = score, e.recorded.peak(softmax), s_v, scale, c
    names = e.tables(node.name, (*keys[:2], softmax), attention_ibert, *args)
    out = e.value(node.name, "int8", c, scale, origin)
    attrs = {"heads": heads, "head_dim": c // heads}
    e.node("attention_ibert", (qkv, node.inputs[1], *names), out, **attrs)
    e.stands_for(node.name, out)
    e.held[node.name] = out


RULES = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "act": act,
    "add": add,
    "attention": attend,
}
