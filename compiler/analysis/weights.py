"""Weights as the compiled model holds them, beside the float ones."""

from dataclasses import dataclass

import numpy as np

from intformer.analysis.tensors import BINS, REACH
from intformer.ir.graph import TABLES, Graph, Linear
from intformer.ir.model import IntModel


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight matrix or embedding table.

    name      stem of the tensor in IntModel.tensors
    real      float32 [N, K]
    integers  int8 or int16 [N, K]
    steps     float64 [N]: real units per LSB of each row, at the mean of the channel factors
    back      float64 [N, K]: the integers in real units
    """

    name: str
    real: np.ndarray
    integers: np.ndarray
    steps: np.ndarray
    back: np.ndarray

    @property
    def limit(self) -> int:
        """The largest integer."""
        return 2 ** (8 * self.integers.dtype.itemsize - 1) - 1

    def energies(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (signal, noise): sums of squares of each row, float64 [N]."""
        real = self.real.astype(np.float64)
        return np.square(real).sum(1), np.square(self.back - real).sum(1)

    def counts(self) -> np.ndarray:
        """Return the histogram of the integers over their limit (as Tally.counts)."""
        return np.histogram(self.integers / (self.limit * REACH), BINS, (-1, 1))[0]


def weights(graph: Graph, model: IntModel) -> list[Weight]:
    """Return every table and matmul weight once, in the order of execution."""
    linears = {operand.stem: operand.linear for operand in graph.operands()}
    linears |= {node.name: node.params for node in graph.of_kind("linear")}  # ibert ties nothing
    found: dict[str, Weight] = {}
    for node in model.nodes:
        if node.op == "embed":
            unit = float(model.values[node.outputs[0]].scale)
            for name in (n.removesuffix(".weight") for n in node.inputs if n.endswith(".weight")):
                found[name] = _table(graph, model, name, unit)
        if node.op == "matmul":
            stem = node.inputs[1].removesuffix(".weight")
            if stem not in found:
                found[stem] = _matrix(model, node, stem, linears[stem])
    return list(found.values())


def _table(graph: Graph, model: IntModel, name: str, unit: float) -> Weight:
    integers = model.tensors[name + ".weight"]
    mult, shift = (model.tensors[f"{name}.{part}"] for part in ("mult", "shift"))
    steps = mult / np.exp2(shift.astype(np.float64)) * unit
    real = getattr(graph.tables, TABLES[name])
    return Weight(name, real, integers, steps, integers * steps[:, None])


def _matrix(model: IntModel, node, stem: str, linear: Linear) -> Weight:
    """acc = integers . x; so one unit of weight [n, k] is scale(acc)[n] / scale(x)[k]."""
    integers = model.tensors[stem + ".weight"]
    x, acc = model.values[node.inputs[0]], model.values[node.outputs[0]]
    columns = np.broadcast_to(np.asarray(x.scale, np.float64), x.channels)
    rows = np.broadcast_to(np.asarray(acc.scale, np.float64), acc.channels)
    middle = float(np.exp(np.log(columns).mean()))
    back = integers * (rows[:, None] / columns)
    return Weight(stem, linear.weight, integers, rows / middle, back)
