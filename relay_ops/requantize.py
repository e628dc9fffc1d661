"""Change of scale: clamp(RHE(x * mult[c] / 2^shift[c]), lo, hi).

Source: I-BERT QuantAct / FixedPointMul (transformers, models/ibert/quant_modules.py).
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import LIMITS, check_fits, clamp, dyadic, in_blocks
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "requantize"


def reference(
    x: np.ndarray, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int, dtype: str
) -> np.ndarray:
    """x int8|int16|int32 [r, C], mult int32 [C], shift int32 [C] (1..62) -> dtype [r, C].

    The product is exact in int64: |x * mult| < 2^62; before the clamp the result is int32.
    """

    def block(rows: np.ndarray) -> np.ndarray:
        scaled = check_fits(dyadic(rows, mult, shift), "int32", NAME, "result")
        return clamp(scaled, lo, hi, dtype)

    return in_blocks(block, x)


def bounds(
    x: Interval, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int, dtype: str
) -> Interval:
    """Interval after the clamp; lo and hi must fit dtype."""
    low, high = LIMITS[dtype]
    if lo < low or hi > high or lo > hi:
        raise RangeError(f"clamp {lo}..{hi} does not fit {dtype}", where=NAME)
    return (
        x.fits("int32", NAME, "input")
        .dyadic(mult, shift)
        .fits("int32", NAME, "result")
        .clamp(lo, hi)
    )


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]; int32 holds the unclamped result (see bounds)."""
    from tvm import te

    from intformer.relay_ops import expr

    x, mult, shift = args
    read = expr.load(x, attrs)
    p = te.compute(
        x.shape, lambda i, r, c: expr.product(read(i, r, c), mult[c]), name="requantize_product"
    )

    def out(i, r, c):
        y = expr.round_shift(p[i, r, c], shift[c].astype("int64")).astype("int32")
        return expr.store(expr.clamp(y, attrs["lo"], attrs["hi"]), attrs)

    return [te.compute(x.shape, out, name="requantize")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    elementwise=True,
    fill={2: 1},  # shift
    source="transformers ibert FixedPointMul",
)
