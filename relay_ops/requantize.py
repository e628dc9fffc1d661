"""Change of scale: clamp(RHE(x * mult[c] / 2^shift[c]), lo, hi).

Source: I-BERT QuantAct / FixedPointMul (transformers, models/ibert/quant_modules.py).
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import LIMITS, clamp, dyadic
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "requantize"


def reference(
    x: np.ndarray, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int, dtype: str
) -> np.ndarray:
    """x int8|int16|int32 [r, C], mult int32 [C], shift int32 [C] (1..62) -> dtype [r, C].

    The product is exact in int64: |x * mult| < 2^62.
    """
    return clamp(dyadic(x, mult, shift), lo, hi, dtype)


def bounds(
    x: Interval, mult: np.ndarray, shift: np.ndarray, *, lo: int, hi: int, dtype: str
) -> Interval:
    """Interval after the clamp; lo and hi must fit dtype."""
    low, high = LIMITS[dtype]
    if lo < low or hi > high or lo > hi:
        raise RangeError(f"clamp {lo}..{hi} does not fit {dtype}", where=NAME)
    return x.fits("int32", NAME, "input").dyadic(mult, shift).clamp(lo, hi)


OP = IntOp(NAME, reference, bounds, source="transformers ibert FixedPointMul")
