"""The head on top of the integer encoder: lowered by the rules of recipe native.

transformers runs the heads of I-BERT in float32 on the dequantized features. Their operands are the
features, at the scale that training recorded, and edges of their own, whose ranges are

* what calibration text shows when the float head runs on the integer encoder's features; of a
  LayerNorm MARGIN times that, and SIGMAS |gamma| + |beta| at least; of tanh always 1;
* bounds, without text and wherever they are less: 1 of tanh, the L1 norm of the weights before
  GELU, |gamma| sqrt(n - 1) + |beta| of LayerNorm, per channel.
"""

from dataclasses import replace

import numpy as np

from intformer.ir.graph import Graph, Node
from intformer.quantize.ibert.rules import Rules
from intformer.quantize.methods import SMALLEST, TINY
from intformer.quantize.native.rules import POOL_FRACTION_BITS
from intformer.quantize.native.rules import Rules as NativeRules
from intformer.quantize.native.scales import HEADROOM, INT8_MAX, Scales, equalisation, neutral
from intformer.quantize.observe import Seen, observe
from intformer.relay_ops.fixedpoint import INT8

METHOD = "minmax"  # clips nothing that was seen
MARGIN = 1.1  # of a LayerNorm output over its calibrated peak, per channel
SIGMAS = 4  # standard deviations that a LayerNorm output's range holds
BOUNDS = "bound: of tanh, LayerNorm and the L1 norm of the weights"
LOOSE = "the masked-LM head's LayerNorm has no range: a loose bound is used; calibrate it"


def head_graph(graph: Graph, features: str) -> Graph:
    """Return the nodes behind the features, which become its input.

    A tied decoder gets a weight of its own: the word table has one scale for all rows here.
    """
    at = graph.nodes.index(graph[features])
    nodes: list[Node] = [Node("input", features, (), graph[features].channels)]
    for node in graph.nodes[at + 1 :]:
        if node.attrs.get("tied"):
            node = replace(node, stem=node.name, attrs={**node.attrs, "tied": False})
        nodes.append(node)
    return Graph(tuple(nodes), graph.head)


def lower_head(e: Rules, features: str, inputs: list[dict], shown: list[np.ndarray]) -> str:
    """Add the head's ops behind an edge; return the name of the output.

    inputs, shown  calibration batches, and the features of each, float32 [tokens, channels]
    """
    graph, x = head_graph(e.graph, features), e.held[features]
    if not graph.of_kind("linear"):
        return pooled(e, graph, x)
    known, origin = bounds(graph, features, float(e.scale(x))), BOUNDS
    if shown:
        batches = [one | {features: rows} for one, rows in zip(inputs, shown, strict=True)]
        seen = widened(observe(graph, batches), graph, known)
        seen[features] = Seen(known[features][None], np.concatenate(shown))
        tokens = sum(len(rows) for rows in shown)
        origin = f"calibration: {METHOD}, {tokens} tokens, within bounds of the weights"
        factors = equalisation(graph, seen)
    else:
        seen = {edge: Seen.known(peak) for edge, peak in known.items()}
        factors = neutral(graph)
        for operand in graph.operands():
            (edge,) = operand.edges
            if graph[edge].kind == "norm":  # channels are as wide as their bounds
                factors[operand.stem] = known[edge] / np.exp(np.log(known[edge]).mean())
                e.warnings.append(LOOSE)
    (first,) = {o.stem for o in graph.operands() if features in o.edges}
    factors[first] = np.ones_like(factors[first])  # the features have one scale
    native = NativeRules(Scales(graph, seen, factors, METHOD), origin, {}, "channel", -INT8[0])
    native.share(e)
    native.operands[features] = x
    return native.run(graph.nodes[1:])


def pooled(e: Rules, graph: Graph, x: str) -> str:
    """Return the output where it is the features themselves, or their mean or maximum."""
    value = e.values[x]
    last = graph[graph.output]
    if last.kind == "mean":
        wide = e.requantize_to(x, "head.wide", value.scale, value.origin, INT8, "int16")
        scale = value.scale / 2**POOL_FRACTION_BITS
        e.value("output", "int32", value.channels, scale, "bound: exact mean", "sequence")
        e.node("mean_pool", (wide, last.inputs[1]), "output", fraction_bits=POOL_FRACTION_BITS)
        return "output"
    if last.kind == "max":
        wide = e.requantize_to(x, "head.wide", value.scale, value.origin, INT8, "int16")
        x = e.value(last.name, "int16", value.channels, value.scale, value.origin, "sequence")
        e.node("max_pool", (wide, last.inputs[1]), x)
    if last.kind == "take":
        rows = last.attrs["rows"]
        taken = e.value(last.name, value.dtype, value.channels, value.scale, value.origin, rows)
        e.node("take_rows", (x, last.inputs[1]), taken, **last.attrs)
        x = taken
    return e.requantize_to(x, "output", value.scale, value.origin, INT8, "int32")


def bounds(graph: Graph, features: str, scale: float) -> dict[str, np.ndarray]:
    """Return the largest |x| that a head's edges can have: edge -> [channels].

    scale  of the features
    """
    peaks = {features: np.full(graph[features].channels, scale * INT8_MAX)}
    for node in graph.nodes[1:]:
        if node.kind == "act" and node.attrs["function"] == "tanh":
            peaks[node.name] = np.ones(node.channels)
        elif node.kind == "act":
            before = graph[node.inputs[0]].params
            reach = np.abs(before.weight).sum(1) * (-INT8[0] * scale) + np.abs(before.bias)
            peaks[node.name] = reach / HEADROOM  # a bound needs none
        elif node.kind == "norm":
            gain, offset = np.abs(node.params.weight), np.abs(node.params.bias)
            peaks[node.name] = gain * np.sqrt(node.channels - 1) + offset
    return {name: np.maximum(p, max(float(p.max()), TINY) * SMALLEST) for name, p in peaks.items()}


def widened(seen: dict[str, Seen], graph: Graph, known: dict[str, np.ndarray]) -> dict[str, Seen]:
    """Return what was seen, made to hold what few tokens do not show, and no more than bounds.

    known  bounds of the edges
    """
    found = {}
    for edge, one in seen.items():
        node, peaks = graph[edge], one.peaks
        if node.kind == "norm":
            least = SIGMAS * np.abs(node.params.weight) + np.abs(node.params.bias)
            peaks = np.maximum(MARGIN * peaks, least)
        elif node.attrs.get("function") == "tanh":
            peaks = np.ones_like(peaks)
        found[edge] = replace(one, peaks=np.minimum(peaks, known[edge]))
    return found
