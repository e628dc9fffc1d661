"""One rule per kind of node: what it becomes in recipe native.

A rule reads the integers its inputs already have, and makes those its readers need: int8 for a
linear, int16 for the residual of a sum, an accumulator for what brings it to a scale of its own.
"""

from collections.abc import Iterable

import numpy as np

from intformer.ir.float_run import relative_operands, score_width
from intformer.ir.graph import POOLING, Node, Relative, Rotary
from intformer.ir.model import IntModel
from intformer.quantize.methods import TINY
from intformer.quantize.native.emitter import NativeEmitter
from intformer.quantize.native.scales import INT8_MAX, INT16_MAX, Scales
from intformer.relay_ops import (
    attention,
    attention_bias,
    attention_relative,
    rotary,
    weighted_pool,
)
from intformer.relay_ops import stream_add as stream_sum
from intformer.relay_ops.weighted_pool import MEAN_SQRT, WEIGHTED_MEAN

SUM_MAX = 2**17 - 1  # of the embedding sum, in int32
LOGIT_BITS = 24  # logits fit this many bits whatever the input
POOL_FRACTION_BITS = 12
# form of a mean -> (fraction bits, bits of its largest value at the scale of an int16 row)
POOLED = {
    "mean": (POOL_FRACTION_BITS, 15),
    WEIGHTED_MEAN: (POOL_FRACTION_BITS, 15),
    MEAN_SQRT: (9, 15 + (attention.MAX_KEYS.bit_length() + 1) // 2),
}
WIDTHS = {
    "word embedding": "int8, one scale per row",
    "type and position embedding": "int16, one scale per row",
    "embedding sum": "int32 (18 bits)",
    "matmul operands": "int8",
    "weights": "int8, one scale per output channel",
    "bias": "int32",
    "accumulators": "int32",
    "residual sum": "int32 (17 bits), of two int16 terms; a residual stream: int32, one scale",
    "LayerNorm output": "int8 operand and int16 residual",
    "GELU": "int16, 9 to 13 fraction bits",
    "tanh": "int32, Q12 in",
    "attention numerators": "int16, row maximum 4095",
    "context accumulator": "int32",
    "mean pooling": f"int32, {POOL_FRACTION_BITS} fraction bits of the int16 scale",
    "max pooling": "exact, at the width and scale of its input",
    "logits": "int32, one scale",
}


class Rules(NativeEmitter):
    """The state of one lowering: which values hold each edge.

    operands   edge -> int8 value
    streams    edge -> int16 value at the scale of the residual
    wide       edge -> int32 or int16 value that is brought to a scale by what reads it
    bits       pooled edge -> bits of its largest |value|; of the others 15
    angles     rotary positions -> the constants of their cos and sin, which layers share
    """

    def __init__(self, *args):
        """Start empty."""
        super().__init__(*args)
        self.operands: dict[str, str] = {}
        self.streams: dict[str, str] = {}
        self.wide: dict[str, str] = {}
        self.bits: dict[str, int] = {}
        self.angles: dict[Rotary, list[str]] = {}

    def model(self) -> IntModel:
        """Return the program of the whole graph."""
        output = self.run(self.graph.nodes)
        meta = {
            "recipe": "native",
            "output_rows": self.values[output].rows,
            "output_scale": self.values[output].scale,
            "widths": WIDTHS,
            "warnings": self.warnings,
        }
        return IntModel(self.nodes, self.tensors, self.values, output, meta, edges=self.edges)

    def run(self, nodes: Iterable[Node]) -> str:
        """Run the rules of nodes, then bring the last edge to the output; return its name."""
        for node in nodes:
            RULES[node.kind](self, node)
        return result(self, self.graph[self.graph.output])


def emit(scales: Scales, origin: str, rounded: dict, grain: str) -> IntModel:
    """Return the program (arguments: native.lower)."""
    return Rules(scales, origin, rounded, grain).model()


def embed(e: Rules, node: Node) -> None:
    """Sum of the tables' rows, at a scale that holds the largest sum."""
    t = node.params
    tables = [table for table in (t.word, t.types, t.position) if table is not None]
    reach = sum(float(np.abs(table).max()) for table in tables)
    scale = max(reach, TINY) * (1 + 1e-3) / SUM_MAX
    origin = "bound: largest sum of table entries"
    out = e.value(node.name, "int32", node.channels, scale, origin)
    constants = e.table("embed.word", t.word, INT8_MAX, scale, t.given.get("word"))
    if t.types is not None:
        constants += e.table("embed.type", t.types, INT16_MAX, scale, t.given.get("types"))
    attrs = {"types": int(t.types is not None)}
    if t.position is not None:
        constants += e.table(
            "embed.position", t.position, INT16_MAX, scale, t.given.get("position")
        )
    else:
        attrs["positions"] = 0
    e.node("embed", (*node.inputs, *constants), out, lo=-SUM_MAX, hi=SUM_MAX, **attrs)
    e.stands_for(node.name, out)
    e.wide[node.name] = out
    if e.graph.linear_reader(node.name):
        operand(e, node, out)


def norm(e: Rules, node: Node) -> None:
    """Norm to an int8 operand and an int16 residual at once; of a stream, to what is read."""
    if node.params.rms or e.graph.residual(node.inputs[0]):
        stream_norm(e, node)
        return
    s8, s16 = e.scales.operand(node.name), e.scales.stream(node.name)
    x8, x16 = e.norm(normable(e, node.inputs[0]), node.name, node.params, s8, s16)
    e.operands[node.name], e.streams[node.name] = x8, x16


def normable(e: Rules, edge: str) -> str:
    """Return an edge's value as a LayerNorm reads it: one scale, 18 bits at most."""
    kind = e.graph[edge].kind
    if kind == "linear" and edge not in e.streams:
        name, scale = f"{edge}.int16", e.scales.stream(edge)
        e.streams[edge] = e.rescale(e.wide[edge], name, "int16", scale, e.calibrated, INT16_MAX)
    x = e.streams[edge] if kind == "linear" or edge not in e.wide else e.wide[edge]
    if kind not in (*POOLING, "concat") or e.values[x].dtype == "int16":
        return x
    scale = float(e.scale(x)) * 2.0 ** (e.bits[edge] - SUM_MAX.bit_length())
    return e.requantize(x, f"{edge}.wide", "int32", scale, e.values[x].origin, SUM_MAX)


def stream_norm(e: Rules, node: Node) -> None:
    """Norm of wide rows: an int8 operand for a linear, int16 for whatever else reads it."""
    x, name = e.wide[node.inputs[0]], node.name
    if e.graph.linear_reader(name):
        scale = e.scales.operand(name)
        e.operands[name] = e.stream_norm(x, name, node.params, "int8", scale)
    if e.graph.read_wide(name):
        scale = e.scales.stream(name)
        e.streams[name] = e.stream_norm(x, name, node.params, "int16", scale)


def linear(e: Rules, node: Node) -> None:
    """Matrix product; its accumulator stays as it is where what reads it has a scale of its own."""
    acc = e.matmul(node.name, e.operands[node.inputs[0]], node.stem, node.params)
    e.wide[node.name] = acc
    if e.graph.linear_reader(node.name):
        name, scale = node.name + ".int8", e.scales.operand(node.name)
        e.operands[node.name] = e.rescale(acc, name, "int8", scale, e.calibrated, INT8_MAX)
    readers = e.graph.final_readers(node.name)
    normalised = any(reader.kind == "norm" for reader in readers)
    if e.graph.adds(node.name) or normalised:
        name, scale = node.name + ".int16", e.scales.stream(node.name)
        x16 = e.rescale(acc, name, "int16", scale, e.calibrated, INT16_MAX)
        e.streams[node.name] = x16
        if normalised:
            e.wide[node.name] = x16


def act(e: Rules, node: Node) -> None:
    """Activation of an accumulator: an int8 operand, or what a LayerNorm reads.

    One that is multiplied with the other half is computed there.
    """
    if any(reader.kind == "mul" for reader in e.graph.readers(node.name)):
        return
    acc, function = e.wide[node.inputs[0]], node.attrs["function"]
    if e.graph.linear_reader(node.name):
        scale = e.scales.operand(node.name)
        e.operands[node.name] = e.activation8(acc, node.name, function, scale)
    else:
        e.wide[node.name] = e.activation(acc, node.name, function)


def add(e: Rules, node: Node) -> None:
    """A term brought to the scale of the residual, which is that of the sum, and added to it."""
    if e.graph.residual(node.name):
        stream_add(e, node)
        return
    term, stream = node.inputs
    x16 = e.streams[stream]
    scale = float(e.scale(x16))
    y16 = e.rescale(e.wide[term], term, "int16", scale, e.calibrated, INT16_MAX)
    e.wide[node.name] = e.value(node.name, "int32", node.channels, scale, e.calibrated)
    e.node("add", (y16, x16), node.name)
    e.stands_for(node.name, node.name)


def stream_add(e: Rules, node: Node) -> None:
    """A term added to a residual stream, all of one int32 scale."""
    term, stream = node.inputs
    scale, limit = e.scales.residual(node.name)
    x = e.wide.get(stream)
    if not e.graph.residual(stream):  # what the stream starts with
        x = e.term(e.streams.get(stream, x), f"{stream}.stream", scale, limit)
    y = e.term(e.wide[term], term, scale, limit)
    e.wide[node.name] = e.value(node.name, "int32", node.channels, scale, e.calibrated)
    e.node(stream_sum.NAME, (y, x), node.name)
    e.stands_for(node.name, node.name)


def multiply(e: Rules, node: Node) -> None:
    """Half of an accumulator activated, times the other half, to an int8 operand."""
    scale = e.scales.operand(node.name)
    e.operands[node.name] = e.gate(e.wide[node.inputs[1]], node, scale)


def turn(e: Rules, node: Node) -> None:
    """Queries and keys to int16, turned by their positions to int8; values to int8."""
    (edge, index), c = node.inputs, node.channels // 3
    s_q, s_k, s_v, _ = e.scales.attention(node.name)
    finer = [s_q / 2**rotary.FRACTION_BITS, s_k / 2**rotary.FRACTION_BITS, s_v]
    qkv = e.rescale(e.wide[edge], edge, "int16", np.concatenate(finer), e.calibrated, INT16_MAX)
    if node.params not in e.angles:
        cos, sin = rotary.tables(node.params.cos, node.params.sin)
        named = {f"{node.name}.cos": cos, f"{node.name}.sin": sin}
        e.angles[node.params] = [e.constant(name, table) for name, table in named.items()]
    heads, scale = node.attrs["heads"], np.concatenate([s_q, s_k, s_v])
    out = e.value(node.name, "int8", 3 * c, scale, e.calibrated)
    e.node("rotary", (qkv, index, *e.angles[node.params]), out, heads=heads, head_dim=c // heads)
    e.stands_for(node.name, out)
    e.operands[node.name] = out


def attend(e: Rules, node: Node) -> None:
    """Queries, keys and values to int8, unless they are, then attention to an int8 operand."""
    edge, c, heads = node.inputs[0], node.channels, node.attrs["heads"]
    relative, zeros = relative_rows(node), (0, 0, 0)
    s_q, s_k, s_v, product = e.scales.attention(edge, relative)
    if (qkv := e.operands.get(edge)) is None:
        scale, origin = np.concatenate([s_q, s_k, s_v]), e.calibrated
        if grids := e.graph[edge].attrs.get("grids"):
            q, k, v = grids
            origin = f"checkpoint: range of {q.name}, scales of {k.name} and {v.name}"
            zeros = 0, k.zero, v.zero
        zero = np.repeat(zeros, c)
        qkv = e.rescale(e.wide[edge], edge, "int8", scale, origin, INT8_MAX, zero)
    s_context = e.scales.operand(node.name)
    zero = e.scales.zero(node.name)
    tables = attention.tables(product, 1.0, s_v, score_width(node), s_context, zeros[2], zero)
    op = attention.NAME
    if relative is not None:
        op = attention_relative.NAME
        for name, rows, scale in zip(("keys", "queries"), relative, (s_k, s_q), strict=True):
            tables[name] = attention_relative.table(rows, scale)
    elif node.params is not None:
        op = attention_bias.NAME
        tables["bias"] = attention_bias.table(node.params.table, product, 1.0, c // heads)
    names = [e.constant(f"{node.name}.{key}", table) for key, table in tables.items()]
    out = e.value(node.name, "int8", c, s_context, e.scales.origin(node.name, e.calibrated))
    attrs = {"heads": heads, "head_dim": c // heads}
    if (window := node.attrs.get("window")) is not None:
        attrs["window"] = window
    e.node(op, (qkv, node.inputs[1], *names), out, **attrs)
    e.stands_for(node.name, out)
    e.operands[node.name] = out


def relative_rows(node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Return keys and queries of every distance, [2 L - 1, C]; zeros where there is no product.

    They are float64 sums rounded to float32, and so the same on every machine.
    """
    if not isinstance(node.params, Relative):
        return None
    at = node.params.bucket
    found = relative_operands(node.params, precise=True)
    empty = np.zeros((len(at), node.channels))
    return tuple(empty if rows is None else rows.float().double().numpy()[at] for rows in found)


def take(e: Rules, node: Node) -> None:
    """Rows of an operand, or of the residual where no linear reads them."""
    edge, index = node.inputs
    held = e.operands if e.graph.linear_reader(node.name) else e.streams
    v, rows = e.values[held[edge]], node.attrs["rows"]
    held[node.name] = e.value(node.name, v.dtype, v.channels, v.scale, v.origin, rows)
    e.node("take_rows", (held[edge], index), node.name, **node.attrs)


def mean(e: Rules, node: Node) -> None:
    """Mean of each sequence, with fraction bits: the output, or brought to an int8 operand."""
    edge, index = node.inputs
    x = e.streams[edge] if edge in e.streams else e.wide[edge]
    form = node.attrs.get("form", "mean")
    name = "output" if node.name == e.graph.output else node.name
    bits, most = POOLED[form]
    e.value(name, "int32", node.channels, e.scale(x) / 2**bits, "bound: exact mean", "sequence")
    if form == "mean":
        e.node("mean_pool", (x, index), name, fraction_bits=bits)
    else:
        rising = form == WEIGHTED_MEAN
        shift = bits + (0 if rising else weighted_pool.ROOT_BITS)
        table = weighted_pool.divisors(form, attention.MAX_KEYS)
        divisor = e.constant(f"{node.name}.divisor", table)
        e.node("weighted_pool", (x, index, divisor), name, shift=shift, rising=rising)
    e.stands_for(node.name, name)
    e.wide[node.name], e.bits[node.name] = name, bits + most
    if e.graph.linear_reader(node.name):
        operand(e, node, name)


def concat(e: Rules, node: Node) -> None:
    """Pooled rows side by side: parts of an int8 operand, or all at one scale."""
    parts = [e.wide[p] if p in e.wide else e.streams[p] for p in node.inputs]
    sizes = [e.values[x].channels for x in parts]
    if e.graph.linear_reader(node.name):
        scales = np.split(e.scales.operand(node.name), np.cumsum(sizes)[:-1])
        out = f"{node.name}.int8"
        about = "int8", INT8_MAX, e.calibrated
        e.operands[node.name] = out
    else:
        wide = [x for x in parts if e.values[x].dtype == "int32"]
        common = max(float(e.scale(x)) for x in wide or parts)
        scales = [np.full(size, common) for size in sizes]
        out = "output" if wide and node.name == e.graph.output else node.name
        about = "int32" if wide else "int16", 2**31 - 1, "bound: exact, at one scale"
        finer = [round(np.log2(float(e.scale(x)) / common)) for x in parts]
        bits = zip(node.inputs, finer, strict=True)
        e.bits[node.name] = max(e.bits.get(p, 15) + more for p, more in bits)
        e.wide[node.name] = out
    join(e, parts, scales, out, *about)
    e.stands_for(node.name, out)


def join(e: Rules, parts, scales, out: str, dtype: str, limit: int, origin: str) -> None:
    """Bring values to scales [channels of each], then put them side by side as `out`."""
    whole = ""
    for i, (x, scale) in enumerate(zip(parts, scales, strict=True)):
        if e.values[x].dtype != dtype or not np.array_equal(e.channel_scale(x), scale):
            x = e.requantize(x, f"{out}.part{i}", dtype, scale, origin, limit)
        if i:
            joined = np.concatenate(scales[: i + 1])
            name = out if i == len(parts) - 1 else f"{out}.parts{i}"
            e.value(name, dtype, len(joined), joined, origin, "sequence")
            e.node("concat", (whole, x), name, border=e.values[whole].channels)
            x = name
        whole = x


def operand(e: Rules, node: Node, x: str) -> None:
    """Bring the value of an edge to the int8 operand of the linear that reads it."""
    s8 = e.scales.operand(node.name)
    e.operands[node.name] = e.requantize(x, x + ".int8", "int8", s8, e.calibrated, INT8_MAX)


def maximum(e: Rules, node: Node) -> None:
    """Maximum of each sequence, exact at the scale of what it reads; an int8 operand of it."""
    edge, index = node.inputs
    x = e.streams[edge] if edge in e.streams else e.wide[edge]
    v = e.values[x]
    e.value(node.name, v.dtype, v.channels, v.scale, v.origin, "sequence")
    e.node("max_pool", (x, index), node.name)
    e.stands_for(node.name, node.name)
    e.wide[node.name] = node.name
    if x in e.reach:
        e.reach[node.name] = e.reach[x]
    if e.graph.linear_reader(node.name):
        operand(e, node, node.name)


def result(e: Rules, node: Node) -> str:
    """Return the int32 output that the last edge becomes."""
    if "output" in e.values:
        return "output"
    source = e.graph[node.inputs[0]] if node.kind == "max" else node
    if source.kind == "linear":
        acc, limit = e.wide[node.name], 2 ** (LOGIT_BITS - 1) - 1
        top = float((e.reach[acc] * e.channel_scale(acc)).max())
        scale = max(top, TINY) / (limit - 1)
        origin = "bound: largest logit the weights allow"
        return e.requantize(acc, "output", "int32", scale, origin, limit)
    x = e.wide[node.name] if node.kind in ("act", "max", "concat") else e.streams[node.name]
    return e.requantize(x, "output", "int32", e.scale(x), e.values[x].origin, INT16_MAX)


RULES = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "act": act,
    "add": add,
    "mul": multiply,
    "rotary": turn,
    "attention": attend,
    "take": take,
    "mean": mean,
    "max": maximum,
    "concat": concat,
}
