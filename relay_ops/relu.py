"""ReLU: max(x, 0)."""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "relu"


def reference(x: np.ndarray) -> np.ndarray:
    """x int32 [r, C] -> int32 [r, C]."""
    return np.maximum(x, 0)


def bounds(x: Interval) -> Interval:
    """Interval of max(x, 0)."""
    return Interval(np.maximum(x.low, 0), np.maximum(x.high, 0))


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te, tirx

    (x,) = args
    zero = tirx.const(0, "int32")
    return [te.compute(x.shape, lambda i, r, c: te.max(x[i, r, c], zero), name="relu")]


OP = IntOp(NAME, reference, bounds, define, elementwise=True, source="max(x, 0)")
