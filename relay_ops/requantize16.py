"""int16 to int8 in 16-bit lanes: y = clamp(mul_round(mul_round(x, mult[c]), down[c])).

mul_round(a, b) = (a * b + 2^14) >> 15, one instruction on most chips. mult has 14 to 15 bits of the
ratio of the scales, down = 2^(15 - d) divides by 2^d and rounds. Source: own.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import clamp, in_blocks, mul_round
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "requantize16"
LIMIT = 127
MAX_RATIO = 0.5  # d >= 1, as 2^15 does not fit int16
MAX_DOWN = 14


def reference(x: np.ndarray, mult: np.ndarray, down: np.ndarray) -> np.ndarray:
    """x int16 [r, C], above -2^15; mult and down int16 [C], 0 <= down <= 2^14 -> int8 [r, C]."""

    def block(rows: np.ndarray) -> np.ndarray:
        return clamp(mul_round(mul_round(rows, mult), down), -LIMIT, LIMIT, "int8")

    return in_blocks(block, x)


def bounds(x: Interval, mult: np.ndarray, down: np.ndarray) -> Interval:
    """Interval after the clamp: monotone in x, as mult and down are not negative."""
    x.within(-(2**15) + 1, 2**15 - 1, NAME, "input", "is beyond +-32767")
    if mult.min(initial=0) < 0 or down.min(initial=0) < 0:
        raise RangeError(f"mult or down is {min(mult.min(), down.min())}, below 0", where=NAME)
    low, high = (
        mul_round(mul_round(np.broadcast_to(end, mult.shape).astype(np.int64), mult), down)
        for end in (x.low, x.high)
    )
    return Interval.of(low, high).clamp(-LIMIT, LIMIT)


def tables(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mult and down, int16 [C], of ratio = input scale / output scale, below 0.5."""
    ratio = np.asarray(ratio, np.float64)
    if not np.isfinite(ratio).all() or ratio.max(initial=0) >= MAX_RATIO:
        raise RangeError(
            f"a ratio of scales is {ratio.max():.3g}, not below {MAX_RATIO}",
            where=NAME,
            hint="raise the output scale",
        )
    d = np.clip(-np.frexp(ratio)[1], 1, MAX_DOWN)  # brings mult to 2^14 .. 2^15
    mult = np.rint(np.ldexp(ratio, 15 + d))
    carried = (mult == 2**15) & (d > 1)
    mult = np.where(carried, 2**14, np.minimum(mult, 2**15 - 1))
    d = d - carried
    return mult.astype(np.int16), (1 << (15 - d)).astype(np.int16)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W], 16-bit lanes throughout."""
    from tvm import te

    from intformer.relay_ops import expr

    x, mult, down = args

    def out(i, r, c):
        y = expr.mul_round(expr.mul_round(x[i, r, c], mult[c]), down[c])
        return expr.store(expr.clamp(y, -LIMIT, LIMIT), attrs)

    return [te.compute(x.shape, out, name="requantize16")]


OP = IntOp(NAME, reference, bounds, define, elementwise=True, source="own")
