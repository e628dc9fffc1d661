"""Sum of a term and a residual stream, int32 of one scale (native recipe).

The terms of a stream are clamped; how many there are says how far the sum can get.
"""

import numpy as np

from intformer.relay_ops import add
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "stream_add"


def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, int32 [r, C] all three."""
    return a + b


def bounds(a: Interval, b: Interval) -> Interval:
    """Interval of the sum, which must fit int32."""
    return (a + b).fits("int32", NAME, "sum")


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te

    a, b = args
    return [te.compute(a.shape, lambda *i: a[i] + b[i], name=NAME)]


OP = IntOp(NAME, reference, bounds, define, by_row=True, clamp=add.clamp, source="a + b")
