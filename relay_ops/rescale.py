"""Change of scale by a fixed point multiplication whose high half is the result (native recipe).

    y = clamp(floor((x * 2^lift + offset[c]) * mult[c] / 2^32), lo, hi)

mult is the ratio of the scales in units of 2^(lift - 32); offset = round(2^31 / mult) is half an
output step, so that the floor rounds to nearest. A larger lift makes offset finer and mult coarser.
Next to `requantize` it has no shift per channel and no tie to break, so that one instruction
multiplies and one picks the high halves: the epilogue of every matrix product is made of it.
Source: own; the rounding offset as in gemmlowp's output pipeline (quantize down by fixed point).
"""

import math

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import LIMITS, check_fits, clamp, in_blocks
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "rescale"
BITS = 32
ROOM = 2**30  # for x 2^lift, beside the offset
USUAL_LIFT = {
    "int8": 0,
    "int16": 4,
    "int32": 4,
}  # one for all layers, so that they share their kernels
# steps of the output that the rounding of mult and offset may cost before a lift is searched
WELL = {"int8": 1 / 16, "int16": 1 / 4, "int32": 1 / 4}


def reference(
    x: np.ndarray,
    mult: np.ndarray,
    offset: np.ndarray,
    *,
    lift: int,
    lo: int,
    hi: int,
    dtype: str,
) -> np.ndarray:
    """x int32 [r, C], mult int32 [C] >= 0, offset int32 [C] -> dtype [r, C].

    x * 2^lift + offset is int32, the product int64, its high half int32.
    """

    def block(rows: np.ndarray) -> np.ndarray:
        lifted = (rows.astype(np.int64) << lift) + offset
        check_fits(lifted, "int32", NAME, "x * 2^lift + offset")
        return clamp((lifted * mult.astype(np.int64)) >> BITS, lo, hi, dtype)

    return in_blocks(block, x)


def bounds(
    x: Interval, mult: np.ndarray, offset: np.ndarray, *, lift: int, lo: int, hi: int, dtype: str
) -> Interval:
    """Interval after the clamp: monotone in x, as mult >= 0."""
    low, high = LIMITS[dtype]
    if lo < low or hi > high or lo > hi:
        raise RangeError(f"clamp {lo}..{hi} does not fit {dtype}", where=NAME)
    if mult.min(initial=0) < 0:
        raise RangeError(f"mult is {mult.min()}, below 0", where=NAME)
    mult, offset = exact(mult), exact(offset)
    lifted = Interval(x.low * 2**lift + offset, x.high * 2**lift + offset)
    lifted.fits("int32", NAME, "x * 2^lift + offset")
    return Interval(lifted.low * mult >> BITS, lifted.high * mult >> BITS).clamp(lo, hi)


def holds(ratio: np.ndarray, reach: np.ndarray) -> bool:
    """Say whether there is a lift for x of |x| <= reach [C] by `ratio`, as in `tables`."""
    return float(reach.max()) * 2 ** _lowest(float(ratio.max())) < ROOM


def _lowest(ratio: float) -> int:
    return max(0, math.frexp(ratio)[1] + 1)


def lift_bits(ratio: np.ndarray, reach: np.ndarray, dtype: str) -> int:
    """Return the lift for x of |x| <= reach [C] and a result of `dtype`; ratio as in `tables`.

    Half a unit of offset is ratio / 2^(lift + 1) output steps, half a unit of mult is
    |x| 2^(lift - 33).
    """
    ratio, reach = float(ratio.max()), float(reach.max())
    lowest = _lowest(ratio)
    fitting = [b for b in range(lowest, BITS) if reach * 2**b < ROOM] or [lowest]

    def error(lift: int) -> float:
        return ratio * 2.0 ** -(lift + 1) + reach * 2.0 ** (lift - 33)

    usual = USUAL_LIFT[dtype]
    return usual if usual in fitting and error(usual) <= WELL[dtype] else min(fitting, key=error)


def tables(ratio: np.ndarray, lift: int, zero=0) -> tuple[np.ndarray, np.ndarray]:
    """Return mult and offset, int32 [C], of ratio = input scale / output scale, [C] real, >= 0.

    zero  what is added to the result, one or one per channel
    """
    ratio = np.asarray(ratio, np.float64)
    scaled = np.rint(ratio * 2.0 ** (BITS - lift))
    if not np.isfinite(scaled).all() or scaled.max(initial=0) > 2**31:
        raise RangeError(
            f"a ratio of scales is {ratio.max():.3g}, above {2.0 ** (lift - 1):g}",
            where=NAME,
            hint="the output scale is far too small for its input",
        )
    scaled = np.where(scaled < 2, 0, np.minimum(scaled, 2**31 - 1))  # 1 is below half a step
    offset = np.where(scaled > 0, np.rint(2.0**31 / np.maximum(scaled, 1)), 0)
    offset = offset + np.rint(np.asarray(zero) * 2.0**BITS / np.maximum(scaled, 1))
    if np.abs(offset).max(initial=0) > 2**30:
        raise RangeError(
            f"a zero point of {np.abs(zero).max()} takes {np.abs(offset).max():.3g} input LSB",
            where=NAME,
            hint="the output scale is far too large for its input",
        )
    return scaled.astype(np.int32), offset.astype(np.int32)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]."""
    from tvm import te

    from intformer.relay_ops import expr

    x, mult, offset = args
    read = expr.load(x, attrs)

    def out(i, r, c):
        lifted = expr.wrapping_add(expr.lifted(read(i, r, c), attrs["lift"]), offset[c])
        y = expr.mul_high(lifted, mult[c])
        return expr.store(expr.clamp(y, attrs["lo"], attrs["hi"]), attrs)

    return [te.compute(x.shape, out, name="rescale")]


OP = IntOp(
    NAME, reference, bounds, define, elementwise=True, source="own; gemmlowp, doc/quantization.md"
)
