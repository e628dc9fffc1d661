"""Channels of two values side by side, at the scales they have."""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "concat"


def reference(a: np.ndarray, b: np.ndarray, *, border: int) -> np.ndarray:
    """a [r, A], b [r, B] of one dtype -> [r, A + B]; border is A."""
    if a.shape[1] != border:
        raise RangeError(f"{a.shape[1]} channels before a border of {border}", where=NAME)
    return np.concatenate([a, b], axis=1)


def bounds(a: Interval, b: Interval, *, border: int) -> Interval:
    """Each channel keeps its interval where both are known by channel; else one holds both."""
    if np.ndim(a.low) and np.ndim(b.low):
        return Interval(np.concatenate([a.low, b.low]), np.concatenate([a.high, b.high]))
    return Interval.of(min(a.min, b.min), max(a.max, b.max))


def define(args: list, attrs: dict) -> list:
    """Tensor expression: [b, 8, A], [b, 8, B] -> [b, 8, W]; columns past the channels hold 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    a, b = args
    first, second = expr.load(a, attrs), expr.load(b, attrs, 1)
    border, end = attrs["border"], attrs["channels"]

    def out(i, r, c):
        right = tirx.if_then_else(c < end, second(i, r, c - border), tirx.const(0, "int32"))
        return expr.store(tirx.if_then_else(c < border, first(i, r, c), right), attrs)

    return [te.compute((attrs["blocks"], a.shape[1], attrs["width"]), out, name="concat")]


OP = IntOp(NAME, reference, bounds, define, by_row=True, source="pooling by several modes")
