"""Residual sum at a wide scale: clamp(a + RHE(b * mult / 2^shift), lo, hi).

Source: I-BERT FixedPointMul with identity: both branches are rounded before the sum. `a` is
already at the output's scale (its requantize comes before).
"""

import numpy as np

from intformer.relay_ops.fixedpoint import check_fits, clamp, dyadic
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "residual_add"


def reference(
    a: np.ndarray, b: np.ndarray, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int
) -> np.ndarray:
    """a int32 [r, C], b int8|int16|int32 [r, C], mult and shift int32 [1] -> int32 [r, C].

    Both terms and the sum are int32.
    """
    total = a.astype(np.int64) + check_fits(dyadic(b, mult, shift), "int32", NAME, "residual")
    return clamp(check_fits(total, "int32", NAME, "sum"), lo, hi, "int32")


def bounds(
    a: Interval, b: Interval, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int
) -> Interval:
    """Interval after the clamp; both terms and the sum must fit int32."""
    b = b.dyadic(mult, shift).fits("int32", NAME, "scaled residual")
    return (a + b).fits("int32", NAME, "sum").clamp(lo, hi)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te

    from intformer.relay_ops import expr

    a, b, mult, shift = args
    read_a, read_b = expr.load(a, attrs, 0), expr.load(b, attrs, 1)

    def out(i, r, c):
        share = expr.round_shift(
            expr.product(read_b(i, r, c), mult[0]), shift[0].astype("int64")
        ).astype("int32")
        return expr.clamp(read_a(i, r, c) + share, attrs["lo"], attrs["hi"])

    return [te.compute(a.shape, out, name="residual_add")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    by_row=True,
    source="transformers ibert FixedPointMul with identity",
)
