"""A gated activation (GLU) in one step: half of the channels activated, times the other half.

    y[c] = clamp(floor((f(a[c]) g[c] + offset[c]) mult[c] / 2^32))

f is a function of i_gelu in its 16-bit lanes, the product of two int16 is exact in int32, and the
change of scale is that of `rescale`: one rounding from the product to the int8 operand.
Source: own; gated linear units as in arXiv 2002.05202.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops import i_gelu, rescale
from intformer.relay_ops.fixedpoint import in_blocks
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "gate"
LIMIT = 127
MAX_RATIO = 0.5  # of scales, product over result: mult is below 2^31


def reference(
    x: np.ndarray,
    point: np.ndarray,
    mult: np.ndarray,
    offset: np.ndarray,
    *,
    form: str,
    active: int,
) -> np.ndarray:
    """x int16 [r, 2F], above -2^15; mult and offset int32 [F], see rescale -> int8 [r, F].

    form, point  of i_gelu
    active       which half of the channels is activated: 0 or 1
    """
    width = x.shape[1] // 2

    def block(rows: np.ndarray) -> np.ndarray:
        halves = rows[:, :width], rows[:, width:]
        a = i_gelu.reference(halves[active], point, form=form)
        product = a.astype(np.int32) * halves[1 - active]
        limits = {"lift": 0, "lo": -LIMIT, "hi": LIMIT, "dtype": "int8"}
        return rescale.reference(product, mult, offset, **limits)

    return in_blocks(block, x)


def bounds(
    x: Interval,
    point: np.ndarray,
    mult: np.ndarray,
    offset: np.ndarray,
    *,
    form: str,
    active: int,
) -> Interval:
    """Interval after the clamp: the four products of the ends of both factors hold all others."""
    width = len(mult)
    ends = [np.broadcast_to(end, 2 * width) for end in (x.low, x.high)]
    halves = [Interval(*(end[part] for end in ends)) for part in (slice(width), slice(width, None))]
    a = i_gelu.bounds(halves[active], point, form=form)
    g = halves[1 - active].within(-(2**15) + 1, 2**15 - 1, NAME, "input", "is beyond +-32767")
    products = [one * other for one in (a.low, a.high) for other in (g.low, g.high)]
    product = Interval(np.minimum.reduce(products), np.maximum.reduce(products))
    limits = {"lift": 0, "lo": -LIMIT, "hi": LIMIT, "dtype": "int8"}
    return rescale.bounds(product, mult, offset, **limits)


def tables(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mult and offset, int32 [F], of ratio = scale of the product / scale of the result."""
    if ratio.max(initial=0) > MAX_RATIO:
        raise RangeError(
            f"a ratio of scales is {ratio.max():.3g}, above {MAX_RATIO}",
            where=NAME,
            hint="raise the output scale",
        )
    return rescale.tables(ratio, 0)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W] of x [b, 8, 2 W]: 16-bit lanes up to the product."""
    from tvm import te

    from intformer.relay_ops import expr

    x, point, mult, offset = args
    blocks, rows, both = x.shape
    width = int(both) // 2
    shape = blocks, rows, width

    def half(which):
        return lambda i, r, c: x[i, r, c + which * width]

    a = i_gelu.expression(half(attrs["active"]), shape, point, attrs["form"], "gate_act")
    g = half(1 - attrs["active"])

    def out(i, r, c):
        product = a[i, r, c].astype("int32") * g(i, r, c).astype("int32")
        y = expr.mul_high(expr.wrapping_add(product, offset[c]), mult[c])
        return expr.store(expr.clamp(y, -LIMIT, LIMIT), attrs)

    return [te.compute(shape, out, name="gate")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    halves=True,
    by_row=True,
    unpadded=2,
    source="own; arXiv 2002.05202",
)
