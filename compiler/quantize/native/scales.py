"""Which scale every edge gets, in recipe native, from ranges and factors."""

import numpy as np

from intformer.errors import CheckpointError
from intformer.ir.graph import Graph, Grid, Node, Operand, taken
from intformer.progress import progress
from intformer.quantize.methods import TINY, channel_peaks, equalise, peak
from intformer.quantize.observe import Seen
from intformer.relay_ops import gate, i_gelu, i_layernorm, i_stream_norm, requantize16

INT8_MAX = 127
INT16_MAX = 2**15 - 1
HEADROOM = 2.0  # of 16 and 17-bit scales over the calibrated peak
GRAINS = ("channel", "tensor")  # what has one weight scale
TERM_MAX = 2**20  # of a term of a residual stream: 20 bits and a sign
GATE_SPAN = 64.0  # largest over smallest int16 scale of the factors of activations


def split_scales(q, k, v):
    """Return s_q, s_k, s_v [C] and s_q * s_k, which is the same in every channel.

    q, k, v  peaks [C], positive; NumPy or torch
    Only the product matters to a score, so each channel splits it to fit its own q and k; v has a
    scale per channel, which the context's requantize takes out again.
    """
    product = (q * k).max() / INT8_MAX**2
    s_q = (product * q / k) ** 0.5
    return s_q, product / s_q, v / INT8_MAX, product


def paired(peaks, heads: int):
    """Return peaks [C] of queries or keys, both channels of a rotary pair with the larger.

    peaks  NumPy or torch; what turns into one another has one scale
    """
    mine = peaks.reshape(heads, 2, -1)
    other = mine[:, [1, 0]]
    return ((mine + other + abs(mine - other)) / 2).reshape(-1)


def equalisation(graph: Graph, seen: dict[str, Seen]) -> dict[str, np.ndarray]:
    """Return weight stem -> channel factors f [K] of its operand."""
    return {
        operand.stem: np.ones(operand.linear.weight.shape[1])
        if operand.fixed or any(on_grid(graph, edge) for edge in operand.edges)
        else equalise([seen[edge] for edge in operand.edges], operand.linear.weight)
        for operand in progress(graph.operands(), "equalising channels")
    }


def neutral(graph: Graph) -> dict[str, np.ndarray]:
    """Return channel factors that change nothing: weight stem -> ones [K]."""
    return {o.stem: np.ones(o.linear.weight.shape[1]) for o in graph.operands()}


def on_grid(graph: Graph, edge: str) -> Grid | None:
    """Return the grid of an edge's int8 operand, where the source has one."""
    return graph[graph.source(edge)].attrs.get("grid")


class Scales:
    """Scales of one graph.

    factors  weight stem -> [K]; raised where a channel's producer cannot express less
    """

    def __init__(self, graph: Graph, seen: dict[str, Seen], factors: dict, method: str):
        """Choose the scale of every int8 operand."""
        self.graph, self.seen, self.factors, self.method = graph, seen, dict(factors), method
        # (weight stem, edge) -> int8 scale of the operand there over its channel factors
        self.units: dict[tuple[str, str], float] = {}
        for operand in graph.operands():
            for edge in operand.edges:
                self.units[operand.stem, edge] = self._unit(operand, edge)
            self._raise(operand)

    def operand(self, edge: str) -> np.ndarray:
        """Return the int8 scale of each channel of an edge, [C]; of its peak if no linear reads it.

        A linear behind a `take` reads it too.
        """
        reader = self.graph.linear_reader(edge)
        if reader is None:
            top = peak(self.seen[edge], self.method)
            return np.full(self.graph[edge].channels, max(top, TINY) / INT8_MAX)
        return self.factors[reader.stem] * self.units[reader.stem, self.graph.source(edge)]

    def zero(self, edge: str) -> int:
        """Return the zero point of the int8 operand of an edge."""
        grid = on_grid(self.graph, edge)
        return grid.zero if grid else 0

    def origin(self, edge: str, calibrated: str) -> str:
        """Return where the scale of an edge's int8 operand comes from."""
        grid = on_grid(self.graph, edge)
        if grid is None:
            return calibrated
        return f"checkpoint: scale of {grid.name}, zero point {grid.zero}"

    def stream(self, edge: str) -> float:
        """Return the int16 scale of an edge that a sum or the output reads.

        It holds what the edge and the sums it goes into saw, and what a LayerNorm can make. It is
        also that of the other term of the sum: where a sum and its residual are within half of the
        range, the other term is within the whole.
        """
        edges = [edge, *(node.name for node in self.graph.adds(edge))]
        top = max(float(self.seen[name].peaks.max()) for name in edges)
        scale = HEADROOM * max(top, TINY) / INT16_MAX
        made_by = self.graph[edge]
        if made_by.kind == "norm":
            least = i_layernorm.least_scale(made_by.params.weight, made_by.params.bias)
            scale = max(scale, float(least.max()))
        return scale

    def residual(self, edge: str) -> tuple[float, int]:
        """Return the int32 scale of the residual stream that a sum belongs to, and its limit.

        limit  largest |integer| of a term, so that norms have room for the sum of all of them. A
               term is the difference of two sums, so that HEADROOM holds it where it holds these.
        """
        sums = self.graph.residual(edge)
        edges = [self.graph[sums[0]].inputs[1], *sums]
        top = max(float(self.seen[name].peaks.max()) for name in edges)
        limit = min(TERM_MAX, i_stream_norm.INPUT_LIMIT // len(edges))
        return HEADROOM * max(top, TINY) / limit, limit

    def attention(self, edge: str, relative: tuple | None = None):
        """Return split_scales of queries, keys and values.

        relative  keys and queries of distances [2 L - 1, C], which the scales hold too
        """
        grids = self.graph[edge].attrs.get("grids")
        if grids:
            q, k, v = (np.full(self.graph[edge].channels // 3, grid.scale) for grid in grids)
            q = q * grids[0].reach / INT8_MAX  # its zero point has no place: all of its range has
            return q, k, v, q[0] * k[0]
        q, k, v = np.split(channel_peaks(self.seen[edge], self.method), 3)
        if (node := self.graph[edge]).kind == "rotary":
            q, k = (paired(peaks, node.attrs["heads"]) for peaks in (q, k))
        if relative is not None:
            keys, queries = (np.abs(rows).max(0) for rows in relative)
            q, k = np.maximum(q, queries), np.maximum(k, keys)
        return split_scales(q, k, v)

    def gate(self, node: Node) -> np.ndarray:
        """Return the int16 scale of each channel of what a mul multiplies an activation with."""
        peaks = self.seen[node.inputs[1]].peaks.max(0)[taken(node)].astype(np.float64)
        top = max(float(peaks.max()), TINY)
        return HEADROOM * np.maximum(peaks, top / GATE_SPAN) / INT16_MAX

    def gelu_top(self, edge: str) -> float:
        """Return the largest output of an activation that is no operand itself."""
        return HEADROOM * float(self.seen[edge].peaks.max())

    # -- how the operands' are chosen -----------------------------------------------------------

    def _unit(self, operand: Operand, edge: str) -> float:
        if grid := on_grid(self.graph, edge):
            return grid.scale
        f = self.factors[operand.stem]
        importance = np.square(operand.linear.weight).sum(0) * np.square(f)
        return max(peak(self.seen[edge], self.method, f, importance), TINY) / INT8_MAX

    def _raise(self, operand: Operand) -> None:
        """Raise the scales of channels too small for what their producer can express.

        A raised channel reaches less of its int8 than it could and clips nothing.
        """
        missing = np.ones(1)
        for edge in operand.edges:
            scale = self.factors[operand.stem] * self.units[operand.stem, edge]
            missing = np.maximum(missing, self._least(edge, scale) / scale)
        if missing.max() == 1:
            return
        for edge in operand.edges:
            if grid := on_grid(self.graph, edge):
                raise CheckpointError(
                    f"the scale {grid.scale:.3g} of {grid.name!r} is too small for what makes it",
                    hint="quantize the model again with more calibration data",
                )
        if operand.fixed:  # its factors are 1: all channels get what the smallest one needs
            for edge in operand.edges:
                self.units[operand.stem, edge] *= float(missing.max())
        else:
            self.factors[operand.stem] = self.factors[operand.stem] * missing

    def _least(self, edge: str, scale: np.ndarray) -> np.ndarray | float:
        """Return the smallest int8 scale, [K] or one, that an edge can be brought to.

        scale  those chosen so far, [K]: the fraction bits of GELU follow the largest
        """
        maker = self.graph[edge]
        if maker.kind == "norm":
            return i_layernorm.least_scale(maker.params.weight, maker.params.bias)
        if "grid" in maker.attrs:
            return 0.0
        if maker.kind == "mul":
            act = self.graph[maker.inputs[0]]
            _, step = i_gelu.scale(self.gelu_top(act.name), act.attrs["function"])
            return step * self.gate(maker) / gate.MAX_RATIO * (1 + 1e-6)
        if maker.kind != "act" or maker.attrs["function"] in ("relu", "tanh"):
            return 0.0
        _, step = i_gelu.scale(INT8_MAX * float(scale.max()), maker.attrs["function"])
        return step / requantize16.MAX_RATIO * (1 + 1e-6)
