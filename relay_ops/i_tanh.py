"""Integer tanh, both recipes (I-BERT has none): Q12 in, Q15 out, odd by construction.

tanh(t) on [0, 4] = v * (c1 + c2 v + ... + c7 v^6), v = t / 4: minimax, error 3.8e-4; constant
from 4 on. It runs on pooled rows only, so int64 products are cheap enough.
"""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "i_tanh"
INPUT_BITS, OUTPUT_BITS = 12, 15
INPUT_SCALE, OUTPUT_SCALE = 2.0**-INPUT_BITS, 2.0**-OUTPUT_BITS
EDGE = 4 << INPUT_BITS
COEFFICIENT_BITS = 24  # c < 2^7 and v <= 1 in Q14: products stay below 2^46
# c7 .. c1 of the minimax fit, in Q24
COEFFICIENTS = tuple(
    round(c * 2**COEFFICIENT_BITS)
    for c in (
        -16.68810136,
        69.13266902,
        -115.1776701,
        95.73200766,
        -37.08310241,
        1.10518099,
        3.97796691,
    )
)


def reference(x: np.ndarray) -> np.ndarray:
    """x int32 [r, C] in Q12 -> int32 [r, C] in Q15; intermediates int64."""
    x = x.astype(np.int64)
    v = np.minimum(np.abs(x), EDGE)  # t in Q12 is v in Q14
    h = np.int64(COEFFICIENTS[0])
    for c in COEFFICIENTS[1:]:
        h = ((h * v) >> 14) + c
    shift = COEFFICIENT_BITS + 14 - OUTPUT_BITS
    y = (h * v + (1 << (shift - 1))) >> shift
    return (np.sign(x) * y).astype(np.int32)


def bounds(x: Interval) -> Interval:
    """Every int32 is legal; |y| <= tanh(4) + 1e-3 in Q15, as tests over all of 0..EDGE show."""
    x.fits("int32", NAME, "input")
    peak = int(reference(np.arange(EDGE + 1)).max())
    one = np.ones_like(x.high)
    return Interval(np.where(x.low < 0, -peak, 0) * one, np.where(x.high > 0, peak, 0) * one)


OP = IntOp(NAME, reference, bounds, source="own")
