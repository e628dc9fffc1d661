"""One row per sequence: means over tokens, and vectors of length 1."""

import numpy as np

from intformer.frontend.onnx.norms import axes_of, is_stage, stage
from intformer.frontend.onnx.program import Node
from intformer.frontend.onnx.values import Known, Stage, View
from intformer.ir.graph import SEQUENCES

AXES = "sums over axes other than the tokens"
SMALLEST = 1e-6  # limits that keep a division from 0


def binary(walk, node: Node, a, b) -> View | None:
    """A mask, the count of tokens or the length of a vector; None for anything else."""
    if node.op == "Mul":
        x, known = (a, b) if isinstance(a, View) else (b, a)
        if isinstance(known, Known) and _is_mask(walk, x, known.value):
            return stage(walk, node, "masked", x)
    if node.op == "Div" and is_stage(a, "total") and isinstance(b, Known):
        return _mean(walk, node, a, b.value)
    if node.op == "Div" and is_stage(b, "length") and b.base.x.base is getattr(a, "base", None):
        return stage(walk, node, "unit", a)
    return None


def _is_mask(walk, x: View, value: np.ndarray) -> bool:
    """Say whether a value is 1 at tokens and 0 at padding, for rows of tokens."""
    if x.index.ndim != 3 or value.size == 1 or value.ndim != 3 or not x.plain:
        return False
    mask = np.broadcast_to(walk.probe.mask[:, :, None], x.index.shape)
    return bool((np.broadcast_to(value, x.index.shape) == mask).all())


def reduce_sum(walk, node: Node, args: list) -> View:
    """Sum over tokens."""
    x = args[0]
    if axes_of(args) != [1] or not is_stage(x, "masked"):
        raise walk.program.refusal(AXES, node)
    return stage(walk, node, "total", x.base.x)


def _mean(walk, node: Node, total: View, count: np.ndarray) -> View:
    counts = walk.probe.mask.sum(1).astype(np.float64)
    wanted = counts.reshape(-1, *([1] * (total.index.ndim - 1)))
    if not (np.broadcast_to(count, total.index.shape) == wanted).all():
        raise walk.program.refusal(
            "divides a sum by something other than the number of tokens", node
        )
    edge = walk.builder.edge(total.base.x, node)
    channels = walk.builder.channels(edge)
    made = walk.builder.add("mean", (edge, SEQUENCES), channels)
    view = walk.builder.view(made, (len(counts), channels))
    return View(view.base, view.index.reshape(walk.shape(node)))


def length(walk, node: Node, args: list) -> View:
    """Euclidean length of a row."""
    x = args[0]
    if axes_of(args) != [x.index.ndim - 1]:
        raise walk.program.refusal("takes a norm over axes other than the channels", node)
    return stage(walk, node, "length", x)


def clip(walk, node: Node, args: list) -> View:
    """A limit that keeps a length from 0."""
    x, low, high = (*args, None, None)[:3]
    small = isinstance(low, Known) and 0 <= float(low.value.ravel()[0]) <= SMALLEST
    if not is_stage(x, "length") or not small or high is not None:
        raise walk.program.refusal("clips something other than the norm of a vector", node)
    return x


def expand(walk, node: Node, args: list) -> View:
    """A length for each channel; or a bias of attention for each sequence."""
    x, shape = args
    if isinstance(x, View) and isinstance(x.base, Stage) and x.base.kind == "length":
        return stage(walk, node, "length", x.base.x)
    return View(x.base, walk.program.apply(node, [x.index, shape.value])[0], x.curve)
