"""An ONNX graph as plain data, and its evaluation with NumPy."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.folder import reason
from intformer.ir.graph import Grid

INSTEAD = "compile the directory that the file was exported from"
MOST_NUMBERS = 1 << 28  # that a node may make of a shape


def _expanded(x: np.ndarray, shape: np.ndarray) -> np.floating:
    """Return how many numbers Expand makes of x: the larger extents, aligned at the right."""
    extents = [(1,) * (max(x.ndim, len(shape)) - len(one)) + (*one,) for one in (x.shape, shape)]
    return np.prod(np.maximum(*extents), dtype=np.float64)


MADE = {  # operator -> how many numbers it makes, whatever the size of its inputs
    "ConstantOfShape": lambda shape: np.prod(shape, dtype=np.float64),
    "Expand": _expanded,
    "Tile": lambda x, repeats: x.size * np.prod(repeats, dtype=np.float64),
    "Range": lambda start, end, step: abs((float(end) - float(start)) / (float(step) or 1.0)),
}


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the default domain; a missing input is ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant that the file holds as integers: integers * scale.

    integers  zero point taken off; int16, or int32 where that is too small
    scale     float32, of a shape that broadcasts to the integers
    zero      what was taken off, 0 if nothing
    low       the least integer of the file's type
    name      of the tensor in the file
    """

    integers: np.ndarray
    scale: np.ndarray
    zero: int
    low: int
    name: str


@dataclass(eq=False)
class Program:
    """A graph.

    where      the file, for errors
    inputs     name -> extents, None where they are free
    stored     constant -> its integers in the file, where it has some
    grids      value -> what QuantizeLinear and DequantizeLinear round it to
    """

    where: str
    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: dict[str, tuple[int | None, ...]]
    outputs: list[str]
    stored: dict[str, Stored] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def refusal(self, what: str, node: Node, hint: str = INSTEAD) -> CheckpointError:
        """Return the error that names a node."""
        return CheckpointError(
            f"{what}, node {node.name!r} ({node.op})", where=self.where, hint=hint
        )

    def apply(self, node: Node, arrays: Collection) -> list[np.ndarray]:
        """Return what one node makes of arrays (None: an input left out)."""
        if (size := MADE.get(node.op)) and size(*arrays) > MOST_NUMBERS:
            raise self.refusal(f"makes more than {MOST_NUMBERS} numbers", node)
        try:
            evaluator, names = _evaluator(node)
            feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
            with np.errstate(all="ignore"):  # masks hold infinities
                return [np.asarray(one) for one in evaluator.run(None, feeds)]
        except Exception as error:  # of onnx's reference implementation: anything
            raise self.refusal(f"cannot be evaluated: {reason(error)}", node) from error

    def evaluate(
        self, feeds: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> dict[str, np.ndarray]:
        """Return values by name, with the inputs `feeds`."""
        nodes = self.ancestors(wanted)
        last = {name: i for i, node in enumerate(nodes) for name in node.inputs}
        found = dict(feeds)
        for i, node in enumerate(nodes):
            arrays = [self.constants.get(n, found.get(n)) if n else None for n in node.inputs]
            found.update(zip(node.outputs, self.apply(node, arrays), strict=False))
            for name in node.inputs:
                if last[name] == i and name not in wanted:
                    found.pop(name, None)
        return {
            name: self.constants[name] if name in self.constants else found[name] for name in wanted
        }

    def ancestors(self, wanted: Collection[str]) -> list[Node]:
        """Return the nodes that these values need, in order."""
        needed, found = set(wanted), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                found.append(node)
        return found[::-1]

    def with_nodes(self, nodes: list[Node]) -> "Program":
        """Return the program with other nodes."""
        return replace(self, nodes=nodes)


@lru_cache(maxsize=4096)
def _evaluator(node: Node):
    """Return onnx's evaluator of one node and the names of its inputs."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [f"in{i}" for i in range(len(node.inputs))]
    attrs = {
        key: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in node.attrs.items()
    }
    proto = onnx.helper.make_node(
        node.op,
        [name if given else "" for name, given in zip(names, node.inputs, strict=True)],
        [f"out{i}" for i in range(len(node.outputs))],
        **attrs,
    )
    return ReferenceEvaluator(proto, new_ops=_operators()), names


@lru_cache(maxsize=1)
def _operators() -> list:
    """Return what onnx's evaluator does number by number, or not at all, done by torch."""
    import torch
    from onnx.reference.op_run import OpRun

    class Erf(OpRun):
        op_domain = ""

        def _run(self, x):
            return (torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy(),)

    class Gelu(OpRun):
        op_domain = ""

        def _run(self, x, approximate="none"):
            x = torch.from_numpy(np.ascontiguousarray(x))
            return (torch.nn.functional.gelu(x, approximate=approximate or "none").numpy(),)

    return [Erf, Gelu]
