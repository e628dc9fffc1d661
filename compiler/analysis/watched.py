"""Which integer value stands for which float tensor, and what its integers can hold."""

from dataclasses import dataclass

import numpy as np

from intformer.ir.model import IntModel, Node
from intformer.relay_ops import OPS

OUTPUT = "output"  # the tap of what the float run returns
LIMITS = {"int8": 127, "int16": 2**15 - 1}
STREAM, OPERAND = "stream", "operand"
# name of a value after "layerI.", "headI." or "embed." -> tap after the same, and who reads it
TAPS = {
    "sum": ("sum", STREAM),
    "projection.int8": ("projection", OPERAND),
    "projection.int16": ("projection", STREAM),
    "qkv": ("qkv", STREAM),
    "context": ("context", STREAM),
    "out": ("out", STREAM),
    "sum1": ("sum1", STREAM),
    "act.int8": ("act", OPERAND),
    "act.int16": ("act", STREAM),
    "act": ("act", STREAM),
    "ffn2": ("ffn2", STREAM),
    "sum2": ("sum2", STREAM),
    # recipe ibert
    "sum1.term": ("out", STREAM),
    "ffn_in": ("norm1", STREAM),
    "gelu": ("act", STREAM),
    "sum2.term": ("ffn2", STREAM),
    "tanh": ("act", STREAM),
    "int8": ("act", OPERAND),
} | {
    name + end: (name, path)
    for name in ("norm", "norm1", "norm2")
    for end, path in ((".int8", OPERAND), (".int16", STREAM), ("", STREAM))
}
GELU_INPUTS = ("act.in", "act.q12", "in", "q12")  # of a layer's ffn1 or of a head's dense


@dataclass(frozen=True)
class Watched:
    """One integer value, or a part of its channels, and the float tensor it stands for.

    name       of the value; with the part's name after a space
    value      in IntModel.values
    tap        edge of the float graph, or OUTPUT
    path       STREAM: all that come after read it; OPERAND: only the matmul at this tap
    columns    the part
    low, high  what the integers are clamped to; None where nothing clamps them
    """

    name: str
    value: str
    tap: str
    path: str
    columns: slice
    low: int | None
    high: int | None

    def scale(self, model: IntModel) -> np.ndarray:
        """Return real units per LSB of each channel, float64 [channels]."""
        value = model.values[self.value]
        return np.broadcast_to(np.asarray(value.scale, np.float64), value.channels)[self.columns]


def watched(model: IntModel) -> list[Watched]:
    """Return every value that stands for a tap, in the order of execution."""
    read = {name for node in model.nodes for name in node.inputs} | {model.output}
    makers = {name: node for node in model.nodes for name in node.outputs}
    found = []
    for name in makers:
        if name not in read or (place := _tap(name, model.output)) is None:
            continue
        tap, path = place
        low, high = _limits(name, makers, model)
        channels = model.values[name].channels
        parts = {"": slice(0, channels)}
        if tap.endswith("qkv"):
            third = channels // 3
            parts = {f" {p}": slice(i * third, (i + 1) * third) for i, p in enumerate("QKV")}
        found += [Watched(name + p, name, tap, path, c, low, high) for p, c in parts.items()]
    return found


def _tap(name: str, output: str) -> tuple[str, str] | None:
    if name == output:
        return OUTPUT, STREAM
    stem, _, rest = name.partition(".")
    if rest in GELU_INPUTS:
        return (stem if stem.startswith("head") else f"{stem}.ffn1"), STREAM
    if rest not in TAPS or not stem.startswith(("embed", "layer", "head")):
        return None
    tap, path = TAPS[rest]
    return f"{stem}.{tap}", path


def _limits(name: str, makers: dict[str, Node], model: IntModel) -> tuple[int | None, int | None]:
    node, dtype = makers[name], model.values[name].dtype
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
