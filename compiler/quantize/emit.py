"""Building an IntModel node by node: names, constants and scales in one place."""

import numpy as np

from intformer.ir.model import Node, Value
from intformer.relay_ops import requantize16, rescale
from intformer.relay_ops.fixedpoint import make_dyadic


class Emitter:
    """Collects the nodes, tensors and values of one IntModel, and warnings for its user."""

    def __init__(self):
        """Start empty."""
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.values: dict[str, Value] = {}
        self.warnings: list[str] = []
        self.reach: dict[str, np.ndarray] = {}  # accumulator -> largest |value| [channels]
        self.edges: dict[str, str] = {}  # value -> edge of the float graph that it stands for

    def share(self, other: "Emitter") -> None:
        """Add to the same model as another emitter from now on."""
        self.nodes, self.tensors, self.values = other.nodes, other.tensors, other.values
        self.warnings, self.reach, self.edges = other.warnings, other.reach, other.edges

    def stands_for(self, edge: str, *names: str) -> None:
        """Record that values are an edge of the float graph, as integers."""
        self.edges.update(dict.fromkeys(names, edge))

    def same_edge(self, x: str, name: str) -> None:
        """Record that a value is the edge that x is, at another scale."""
        if x in self.edges:
            self.edges[name] = self.edges[x]

    def value(self, name: str, dtype: str, channels: int, scale, origin: str, rows="token") -> str:
        """Declare a value; scale is one number or one per channel."""
        scale = np.asarray(scale, np.float64)
        if scale.ndim and (scale == scale[0]).all():
            scale = scale[0]
        shown = tuple(scale.tolist()) if scale.ndim else float(scale)
        self.values[name] = Value(dtype, rows, channels, shown, origin)
        return name

    def node(self, op: str, inputs, outputs, **attrs) -> None:
        """Append a node; outputs is a name or several."""
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        self.nodes.append(Node(op, tuple(inputs), outputs, attrs))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Keep a tensor."""
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def dyadic(self, name: str, ratio) -> tuple[str, str]:
        """Keep a ratio, one or one per channel, as (mult, shift)."""
        mult, shift = make_dyadic(np.atleast_1d(np.asarray(ratio, np.float64)))
        return self.constant(name + ".mult", mult), self.constant(name + ".shift", shift)

    def scale(self, name: str) -> np.ndarray:
        """Return a value's scale: a scalar, or [channels]."""
        return np.asarray(self.values[name].scale, np.float64)

    def channel_scale(self, name: str) -> np.ndarray:
        """Return a value's scale per channel, [channels]."""
        return np.broadcast_to(self.scale(name), self.values[name].channels)

    def requantize(self, x: str, name: str, dtype: str, scale, origin: str, limit: int) -> str:
        """Bring x to `scale` (one, or one per channel); clamps to +-limit."""
        source = self.values[x]
        ratio = self.channel_scale(x) / scale
        self.value(name, dtype, source.channels, scale, origin, source.rows)
        self.same_edge(x, name)
        self.node(
            "requantize", (x, *self.dyadic(name, ratio)), name, lo=-limit, hi=limit, dtype=dtype
        )
        return name

    def rescale(self, x: str, name: str, dtype: str, scale, origin: str, limit: int, zero=0) -> str:
        """Bring an accumulator to `scale` (one, or one per channel), +-limit; native recipe.

        zero  zero point of the result, one or one per channel; with any, int8 reaches from -128 on
        """
        source = self.values[x]
        ratio = self.channel_scale(x) / scale
        lift = rescale.lift_bits(ratio, self.reach[x], dtype)
        mult, offset = rescale.tables(ratio, lift, zero)
        least = -limit - 1 if np.any(zero) else -limit
        self.value(name, dtype, source.channels, scale, origin, source.rows)
        self.same_edge(x, name)
        tables = self.constant(name + ".mult", mult), self.constant(name + ".offset", offset)
        self.node("rescale", (x, *tables), name, lift=lift, lo=least, hi=limit, dtype=dtype)
        return name

    def requantize16(self, x: str, name: str, scale: np.ndarray, origin: str) -> str:
        """Bring an int16 value to int8 at `scale` (one, or one per channel)."""
        source = self.values[x]
        mult, down = requantize16.tables(self.channel_scale(x) / scale)
        self.value(name, "int8", source.channels, scale, origin, source.rows)
        self.same_edge(x, name)
        tables = self.constant(name + ".mult", mult), self.constant(name + ".down", down)
        self.node("requantize16", (x, *tables), name)
        return name
