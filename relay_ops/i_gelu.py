"""Integer GELU of the native recipe, erf and tanh forms, in int32 only.

gelu(x) = relu(x) - g(|x|) with g(t) = t * Phi(-t), which holds for both forms because
gelu(x) - gelu(-x) = x. On t < 3.5, with v = (3.5 - t) / 4, g = v^2 (c2 + c3 v + ... + c6 v^4) with
g(0) = 0; from 3.5 on g is 0 (true value at most 8.2e-4). Minimax fit, then the integer constants
were searched over all 14336 points. Every factor of a product fits int16.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import in_blocks
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "i_gelu"
INPUT_BITS = 12  # input and output are Q12
SCALE = 2.0**-INPUT_BITS  # real units per LSB of input and output
LIMIT = 2**18 - 1  # |x|: 64 in real units; a requantize clamps to it
EDGE = 7 << (INPUT_BITS - 1)  # 3.5 in Q12; g is 0 from here on
# c6 in Q10, then c5, c4 in Q24, c3 in Q24, c2 in Q26, each with half of what the next shift drops
COEFFICIENTS = {
    "erf": (7549, -350359393, 293104939, -84722149, 47762059),
    "tanh": (7285, -337704255, 279646655, -78594898, 43776425),
}
SHIFTS = (14, 14, 12, 11)  # results in Q10, Q10, Q12, Q15 (v is Q14)


def tail(t: np.ndarray, form: str) -> np.ndarray:
    """g(t) in Q12 for t >= 0 in Q12, int32."""
    v = EDGE - np.minimum(t.astype(np.int32), EDGE)  # Q14 of v, because v has the 1/4
    c6, *rest = COEFFICIENTS[form]
    h = np.int32(c6)
    for c, shift in zip(rest, SHIFTS, strict=True):
        h = (h * v + c) >> shift
    return (h * ((v * v) >> 13) + (1 << 17)) >> 18


def reference(x: np.ndarray, *, form: str) -> np.ndarray:
    """x int32 [r, C] in Q12, |x| < 2^18 -> int32 [r, C] in Q12. form "erf" | "tanh"."""
    if x.size and max(-int(x.min()), int(x.max())) > LIMIT:
        raise RangeError(f"|x| reaches {np.abs(x).max()}, above {LIMIT}", where=NAME)
    return in_blocks(lambda rows: np.maximum(rows, 0) - tail(np.abs(rows), form), x)


def bounds(x: Interval, *, form: str) -> Interval:
    """Interval; the constants bound the int32 intermediates (tests run all 14336 points)."""
    x.within(-LIMIT, LIMIT, NAME, "input", f"is beyond {LIMIT}, 64 in Q12")
    g = tail(np.arange(EDGE + 1), form)
    return Interval(np.maximum(x.low, 0) - int(g.max()), np.maximum(x.high, 0) - int(g.min()))


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W], int32 throughout."""
    from tvm import te, tirx

    (x,) = args

    def const(value):
        return tirx.const(value, "int32")

    v = te.compute(
        x.shape,
        lambda i, r, c: (
            const(EDGE) - te.min(te.max(x[i, r, c], const(0) - x[i, r, c]), const(EDGE))
        ),
        name="gelu_v",
    )

    def out(*index):
        h, *rest = (const(value) for value in COEFFICIENTS[attrs["form"]])
        for c, shift in zip(rest, SHIFTS, strict=True):
            h = (h * v[index] + c) >> const(shift)
        square = (v[index] * v[index]) >> const(13)
        tail = (h * square + const(1 << 17)) >> const(18)
        return te.max(x[index], const(0)) - tail

    return [te.compute(x.shape, out, name="i_gelu")]


OP = IntOp(NAME, reference, bounds, define, source="own; Hendrycks and Gimpel, arXiv 1606.08415")
