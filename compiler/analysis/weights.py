"""Weights as the compiled model holds them, beside the float ones."""

from dataclasses import dataclass, replace

import numpy as np

from intformer.analysis.tensors import BINS, REACH
from intformer.frontend.encoder import FloatEncoder, Linear
from intformer.frontend.native import Plan
from intformer.model import IntModel

TABLES = {"embed.word": "word", "embed.type": "types", "embed.position": "position"}


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


def weights(encoder: FloatEncoder, model: IntModel) -> list[Weight]:
    """Return every table and matmul weight once, in the order of execution."""
    linears = {operand.stem: operand.linear for operand in Plan(encoder).operands()}
    linears |= {f"head{i}": stage.linear for i, stage in enumerate(encoder.head.stages)}
    found: dict[str, Weight] = {}
    for node in model.nodes:
        if node.op == "embed":
            unit = float(model.values[node.outputs[0]].scale)
            for name in (n.removesuffix(".weight") for n in node.inputs if n.endswith(".weight")):
                found[name] = _table(encoder, model, name, unit)
        if node.op == "matmul":
            stem = node.inputs[1].removesuffix(".weight")
            if stem not in found:
                found[stem] = _matrix(model, node, stem, linears[stem])
    return list(found.values())


def _table(encoder: FloatEncoder, model: IntModel, name: str, unit: float) -> Weight:
    integers = model.tensors[name + ".weight"]
    mult, shift = (model.tensors[f"{name}.{part}"] for part in ("mult", "shift"))
    steps = mult / np.exp2(shift.astype(np.float64)) * unit
    real = getattr(encoder, TABLES[name])
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


def with_weight(encoder: FloatEncoder, name: str, weight: np.ndarray) -> FloatEncoder:
    """Return the encoder with one weight replaced, everywhere it is used."""
    weight = weight.astype(np.float32)
    if name in TABLES:
        changed = replace(encoder, **{TABLES[name]: weight})
        stages = encoder.head.stages
        if name == "embed.word" and stages and stages[-1].tied:
            return _with_stage(changed, len(stages) - 1, weight)
        return changed
    if name == "embed.projection":
        return replace(encoder, projection=replace(encoder.projection, weight=weight))
    if name.startswith("head"):
        return _with_stage(encoder, int(name.removeprefix("head")), weight)
    at, _, role = name.partition(".")
    old = encoder.layers[int(at.removeprefix("layer"))]
    new = replace(old, **{role: replace(getattr(old, role), weight=weight)})
    return replace(encoder, layers=tuple(new if one is old else one for one in encoder.layers))


def _with_stage(encoder: FloatEncoder, i: int, weight: np.ndarray) -> FloatEncoder:
    stages = list(encoder.head.stages)
    stages[i] = replace(stages[i], linear=replace(stages[i].linear, weight=weight))
    return replace(encoder, head=replace(encoder.head, stages=tuple(stages)))
