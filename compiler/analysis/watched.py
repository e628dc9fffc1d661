"""Which integer values are edges of the float graph, and what their integers can hold."""

from dataclasses import dataclass

import numpy as np

from intformer.ir.graph import Graph
from intformer.ir.model import IntModel, Node
from intformer.relay_ops import OPS

OUTPUT = "output"  # the tap of what the float run returns
LIMITS = {"int8": 127, "int16": 2**15 - 1}
STREAM, OPERAND = "stream", "operand"


@dataclass(frozen=True)
class Watched:
    """One integer value, or a part of its channels, and the float tensor it stands for.

    name       of the value; with the part's name after a space
    value      in IntModel.values
    tap        edge of the float graph, or OUTPUT
    kind       of the node that makes the edge, "for attention", "for rotary" or "for act" where
               one of these reads it, or OUTPUT
    path       STREAM: all that come after read it; OPERAND: only the matmul at this tap
    columns    the part
    low, high  what the integers are clamped to; None where nothing clamps them
    """

    name: str
    value: str
    tap: str
    kind: str
    path: str
    columns: slice
    low: int | None
    high: int | None

    def scale(self, model: IntModel) -> np.ndarray:
        """Return real units per LSB of each channel, float64 [channels]."""
        value = model.values[self.value]
        return np.broadcast_to(np.asarray(value.scale, np.float64), value.channels)[self.columns]


def watched(graph: Graph, model: IntModel) -> list[Watched]:
    """Return every value that is an edge rounded to integers, in the order of execution."""
    readers: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.nodes:
        for name in node.outputs:
            edge = OUTPUT if name == model.output else model.edges.get(name)
            unread = name not in readers and name != model.output
            if edge is None or unread or OPS[node.op].accumulates:
                continue
            kind = OUTPUT if edge == OUTPUT else _kind(graph, edge)
            path = OPERAND if _feeds_products(name, readers) else STREAM
            low, high = _limits(name, node, model)
            found += [
                Watched(name + part, name, edge, kind, path, columns, low, high)
                for part, columns in _parts(name, readers, model).items()
            ]
    return found


def _kind(graph: Graph, edge: str) -> str:
    """Return the kind of node that makes an edge; of a linear, that which its values are for."""
    kind = graph[edge].kind
    kinds = {reader.kind for reader in graph.readers(edge)}
    return next((f"for {k}" for k in ("attention", "rotary", "act") if k in kinds), kind)


def _feeds_products(name: str, readers: dict[str, list[Node]]) -> bool:
    """Say whether matrix products alone read a value, or picked rows of it."""
    return name in readers and all(
        node.op == "matmul"
        or (node.op == "take_rows" and _feeds_products(node.outputs[0], readers))
        for node in readers[name]
    )


def _parts(name: str, readers: dict[str, list[Node]], model: IntModel) -> dict[str, slice]:
    """Return the parts of a value's channels: queries, keys and values where attention reads it."""
    channels = model.values[name].channels
    if not any(OPS[node.op].heads and node.inputs[0] == name for node in readers.get(name, [])):
        return {"": slice(0, channels)}
    third = channels // 3
    return {f" {part}": slice(i * third, (i + 1) * third) for i, part in enumerate("QKV")}


def _limits(name: str, node: Node, model: IntModel) -> tuple[int | None, int | None]:
    dtype = model.values[name].dtype
    if {"lo", "hi"} <= node.attrs.keys():
        return node.attrs["lo"], node.attrs["hi"]
    clamp = OPS[node.op].clamp
    if clamp:
        return clamp(
            node.attrs, [LIMITS.get(model.values[x].dtype, 0) for x in _values(node, model)]
        )
    if dtype in LIMITS:
        return -LIMITS[dtype], LIMITS[dtype]
    return None, None


def _values(node: Node, model: IntModel) -> list[str]:
    return [name for name in node.inputs if name in model.values]
