"""LayerNorm: the operator, and what older exporters make of it."""

import numpy as np

from intformer.frontend.onnx.program import Node
from intformer.frontend.onnx.values import Known, Stage, View

GEOMETRY = "normalises over more than the channels"


def layer_norm(walk, node: Node, args: list) -> list[View]:
    """The operator LayerNormalization over the last axis."""
    x, *affine = args
    axis = int(node.attrs.get("axis", -1))
    if not isinstance(x, View) or axis not in (-1, x.index.ndim - 1) or len(node.outputs) > 1:
        raise walk.program.refusal(GEOMETRY, node)
    gamma, beta = (_vector(walk, node, one) for one in (*affine, None)[:2])
    edge = walk.builder.norm(x, gamma, beta, float(node.attrs.get("epsilon", 1e-5)), node)
    channels = walk.builder.channels(edge)
    made = walk.builder.view(edge, walk.rows_shape(channels, x.index.size))
    return [View(made.base, made.index.reshape(walk.shape(node)))]


def _vector(walk, node: Node, known) -> np.ndarray | None:
    if known is None:
        return None
    if not isinstance(known, Known) or not known.constant:
        raise walk.program.refusal("gamma or beta is not constant", node)
    return known.value


def reduce_mean(walk, node: Node, args: list) -> View:
    """Mean over the channels: of x, or of its squared deviations."""
    x = args[0]
    if axes_of(args) != [x.index.ndim - 1] or not node.attrs.get("keepdims", 1):
        raise walk.program.refusal("takes a mean over axes other than the channels", node)
    if is_stage(x, "squares"):
        return stage(walk, node, "variance", x.base.x)
    return stage(walk, node, "mean", x)


def axes_of(args: list) -> list[int] | None:
    """Return the axes that a reduction goes over, counted from 0; None where it names none."""
    x, *axes = args
    if not axes or not isinstance(axes[0], Known):
        return None
    return [int(axis) % x.index.ndim for axis in axes[0].value.ravel()]


def square_root(walk, node: Node, args: list) -> View:
    """Square root: of a variance with its epsilon."""
    (x,) = args
    if not is_stage(x, "variance"):
        raise walk.program.refusal("takes the square root of something other than a variance", node)
    return stage(walk, node, "deviation", x.base.x, eps=x.base.eps)


def stage(walk, node: Node, kind: str, x: View, **more) -> View:
    """Return the whole of a stage with the shape of a node's output."""
    return View.of(Stage(walk.shape(node), kind, x, **more))


def is_stage(x, kind: str) -> bool:
    """Say whether a value is the whole of a stage of this kind, as it is."""
    return isinstance(x, View) and isinstance(x.base, Stage) and x.base.kind == kind and x.plain


def same(a, b) -> bool:
    """Say whether two views are of the same elements."""
    return (
        isinstance(a, View)
        and isinstance(b, View)
        and a.base is b.base
        and np.array_equal(a.index, b.index)
        and np.array_equal(a.at, b.at)
    )


def _number(known) -> float | None:
    if isinstance(known, Known) and known.value.size == 1:
        return float(known.value.ravel()[0])
    return None


def binary(walk, node: Node, a, b) -> View | None:
    """The steps of a LayerNorm with two operands; None for anything else."""
    if node.op == "Sub" and is_stage(b, "mean") and same(a, b.base.x):
        return stage(walk, node, "centred", a)
    if is_stage(a, "centred") and (
        (node.op == "Pow" and _number(b) == 2) or (node.op == "Mul" and same(a, b))
    ):
        return stage(walk, node, "squares", a.base.x)
    if node.op == "Div" and is_stage(a, "centred") and is_stage(b, "deviation"):
        if not same(a.base.x, b.base.x):
            return None
        return stage(walk, node, "normal", a.base.x, eps=b.base.eps)
    if isinstance(a, Known):
        a, b = b, a
    if node.op == "Add" and is_stage(a, "variance") and _number(b) is not None:
        return stage(walk, node, "variance", a.base.x, eps=a.base.eps + _number(b))
    if is_stage(a, "normal") and isinstance(b, Known) and b.constant:
        return _affine(walk, node, a.base, b.value)
    return None


def _affine(walk, node: Node, base: Stage, value: np.ndarray) -> View | None:
    """Gamma, then beta."""
    if value.size != base.shape[-1]:
        return None
    more = {"eps": base.eps, "gamma": base.gamma, "beta": base.beta}
    if node.op == "Mul" and base.gamma is None and base.beta is None:
        return stage(walk, node, "normal", base.x, **{**more, "gamma": value})
    if node.op == "Add" and base.beta is None:
        return stage(walk, node, "normal", base.x, **{**more, "beta": value})
    return None
