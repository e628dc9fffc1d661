"""Integer tanh, both recipes (I-BERT has none): Q12 in, Q15 out, odd by construction.

tanh(t) on [0, 4] = v * (c1 + c2 v + ... + c7 v^6), v = t / 4: minimax with slope 0 at 4, error
4.9e-4; constant from 4 on. It runs on pooled rows only, so int64 products are cheap enough.
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
        -15.115260262154395,
        63.932030902251626,
        -108.45484341868641,
        91.44750723560765,
        -35.69279647201995,
        0.8940463835299397,
        3.9891212215723613,
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


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W], int64 inside."""
    from tvm import te, tirx

    (x,) = args

    def const(value):
        return tirx.const(value, "int64")

    def near(*index):  # limited before it is negated: -2^31 has no negative in int32
        edge = tirx.const(EDGE, "int32")
        t = te.max(te.min(x[index], edge), tirx.const(-EDGE, "int32"))
        return te.max(t, tirx.const(0, "int32") - t).astype("int64")

    v = te.compute(x.shape, near, name="tanh_v")

    def out(*index):
        h = const(COEFFICIENTS[0])
        for c in COEFFICIENTS[1:]:
            h = ((h * v[index]) >> const(14)) + const(c)
        shift = COEFFICIENT_BITS + 14 - OUTPUT_BITS
        y = ((h * v[index] + const(1 << (shift - 1))) >> const(shift)).astype("int32")
        return tirx.Select(x[index] < 0, tirx.const(0, "int32") - y, y)

    return [te.compute(x.shape, out, name="i_tanh")]


OP = IntOp(NAME, reference, bounds, define, elementwise=True, source="own")
