"""Residual sum of two int16 values of one scale, in int32 (native recipe)."""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "add"


def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, int16 [r, C] both -> int32 [r, C]."""
    return a.astype(np.int32) + b


def bounds(a: Interval, b: Interval) -> Interval:
    """Interval of the sum; both terms are int16."""
    return a.fits("int16", NAME, "first term") + b.fits("int16", NAME, "second term")


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te

    a, b = args
    return [te.compute(a.shape, lambda *i: a[i].astype("int32") + b[i].astype("int32"), name="add")]


def clamp(attrs: dict, limits: list[int]) -> tuple[int, int]:
    """Return what the sum is within: its terms are clamped."""
    return -sum(limits), sum(limits)


OP = IntOp(NAME, reference, bounds, define, by_row=True, clamp=clamp, source="a + b")
