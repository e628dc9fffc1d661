"""Softmax attention: heads, scores, masks."""

import numpy as np

from intformer.frontend.onnx.program import Node
from intformer.frontend.onnx.values import Context, Known, Part, Product, Rows, Scores, Stage, View

NEVER = -1e3  # a score below it gets no attention
SAME = 1e-6


def matmul(walk, node: Node, a: View, b: View) -> View:
    """Queries times keys, or probabilities times values."""
    shape = walk.shape(node)
    if isinstance(a.base, Scores):
        if not (a.base.soft and a.in_order and a.curve is None):
            raise walk.program.refusal("multiplies scores without a softmax", node)
        part = _part(walk, node, b, len(a.base.q.channels), turned=False)
        context = Context(_heads_shape(walk, part), a.base, part)
        return View(context, View.of(context).index.reshape(shape))
    heads = a.index.size // max(1, walk.probe.ids.size * a.index.shape[-1])
    q = _part(walk, node, a, heads, turned=False)
    k = _part(walk, node, b, heads, turned=True)
    if q.channels.shape != k.channels.shape:
        raise walk.program.refusal("queries and keys have different heads", node)
    batch, length = walk.probe.ids.shape
    scores = Scores((batch, heads, length, length), q, k)
    return View(scores, View.of(scores).index.reshape(shape))


def _heads_shape(walk, part: Part) -> tuple[int, ...]:
    batch, length = walk.probe.ids.shape
    heads, width = part.channels.shape
    return batch, heads, length, width


def _part(walk, node: Node, view: View, heads: int, turned: bool) -> Part:
    """Return which channels of a product are the heads of a view, [batch, heads, length, width].

    turned  its last two axes are exchanged, as keys have them
    """
    batch, length = walk.probe.ids.shape
    base = view.base
    fault = "multiplies something other than the heads of a linear layer"
    if not isinstance(base, Product) or len(base.shape) != 3 or view.factor is None:
        raise walk.program.refusal(fault, node)
    index, outputs = view.index, base.shape[-1]
    if heads == 0 or index.size % (batch * heads * length):
        raise walk.program.refusal(fault, node)
    width = index.size // (batch * heads * length)
    index = index.reshape(
        (batch, heads, width, length) if turned else (batch, heads, length, width)
    )
    index = index.swapaxes(2, 3) if turned else index
    channels = index[0, :, 0, :] % outputs
    rows = np.arange(batch * length).reshape(batch, 1, length, 1)
    if not np.array_equal(index, rows * outputs + channels[None, :, None, :]):
        raise walk.program.refusal(fault, node)
    return Part(base, channels, view.factor, view.grid)


def binary(walk, node: Node, a, b) -> View | None:
    """Scores and what is added to them; None for anything else."""
    if isinstance(b, View) and isinstance(b.base, Scores):
        a, b = b, a
    if node.op != "Add" or not isinstance(a, View) or not isinstance(a.base, Scores):
        return None
    if isinstance(b, View) and isinstance(b.base, Rows) and b.curve is None:
        return _biased(walk, node, a, b)
    if not isinstance(b, Known) or b.value.size == 1:
        return None
    added = np.broadcast_to(b.value, a.index.shape).reshape(a.base.shape)
    _check_mask(walk, node, added)
    walk.builder.masks[b.name] = 0.0
    return _changed(walk, node, a, masked=True)


def _check_mask(walk, node: Node, added: np.ndarray) -> None:
    """Refuse what is added to scores unless it leaves out padding and nothing else."""
    real = walk.probe.real
    rows = np.broadcast_to(real[:, None, :, None], added.shape)
    keys = np.broadcast_to(real[:, None, None, :], added.shape)
    if np.abs(added[rows & keys]).max(initial=0) > SAME or (added[rows & ~keys] > NEVER).any():
        raise walk.program.refusal("adds something other than a padding mask to scores", node)


def _changed(walk, node: Node, view: View, **more) -> View:
    """Return scores with something done to them."""
    base = view.base
    if base.soft or view.factor is None or not view.in_order:
        raise walk.program.refusal("changes scores in a way that is not understood", node)
    about = {**vars(base), "factor": base.factor * view.factor, **more}
    if base.bias is not None and view.factor != 1:
        raise walk.program.refusal("multiplies scores after a bias was added", node)
    changed = Scores(**about)
    return View(changed, view.index.reshape(walk.shape(node)))


def _biased(walk, node: Node, scores: View, rows: View) -> View:
    """Scores with a bias by head and distance."""
    name = next(name for name in node.inputs if walk.views.get(name) is rows)
    if scores.base.bias is not None:
        raise walk.program.refusal("adds a second bias to scores", node)
    return _changed(walk, node, scores, bias=name)


def softmax(walk, node: Node, args: list) -> View:
    """Softmax over the keys."""
    (x,) = args
    axis = int(node.attrs.get("axis", -1))
    if not isinstance(x.base, Scores) or axis not in (-1, x.index.ndim - 1):
        raise walk.program.refusal("applies softmax to something other than attention scores", node)
    made = _changed(walk, node, x, soft=True)
    if not made.base.masked and not walk.probe.real.all():
        raise walk.program.refusal("attention is not masked against padding", node)
    return made


def where(walk, node: Node, args: list) -> View:
    """Scores of padding replaced, or rows without any key."""
    test, yes, no = args
    if isinstance(test, View):
        if isinstance(test.base, Stage) and test.base.kind == "missing" and test.base.x is no:
            return no
        raise walk.program.refusal("chooses by a computed condition", node)
    x, other = (no, yes) if isinstance(no, View) else (yes, no)
    if not isinstance(x, View) or not isinstance(x.base, Scores) or not isinstance(other, Known):
        raise walk.program.refusal("chooses between values that are not scores", node)
    kept = np.broadcast_to(test.value == (x is yes), x.index.shape)
    added = np.where(kept, 0.0, np.broadcast_to(other.value, x.index.shape))
    _check_mask(walk, node, added.reshape(x.base.shape))
    walk.builder.masks[test.name] = float(x is yes)
    return _changed(walk, node, x, masked=True)


def missing(walk, node: Node, args: list) -> View:
    """Where probabilities are no numbers: of rows without any key, which no real token has."""
    (x,) = args
    if not isinstance(x.base, Scores) or not x.base.soft:
        raise walk.program.refusal("looks for NaN outside of attention", node)
    return View.of(Stage(walk.shape(node), "missing", x))
