"""I-BERT's IntLayerNorm followed by QuantAct(8), to the last rounding.

Source: transformers, models/ibert/quant_modules.py IntLayerNorm.
Ours: the square root is exact; a constant row (std = 0, NaN there) gives y = 0, hence beta.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import (
    INT32,
    check_fits,
    clamp,
    isqrt,
    make_dyadic,
    round_divide,
    round_shift,
)
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "i_layernorm_ibert"
INPUT_LIMIT = 2**22  # |x|; 22-bit residual sums
MAX_CHANNELS = 4096
Y_LIMIT = 2**31  # see bounds


def reference(
    x: np.ndarray,
    bias: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    prescale: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> np.ndarray:
    """x int32 [r, C] -> int8 [r, C]; sums, y * F and y * mult are int64.

    bias      int32 [C] floor((beta / gamma) / (sqrt(n) / 2^30)); mult, shift int32 [C] signed
    prescale  int32 [1], the checkpoint's `shift` buffer
    """
    _check_affine(bias, mult, shift)
    z = normalise(x, int(prescale[0])) + bias
    return clamp(round_shift(z * mult, shift), lo, hi, "int8")


def normalise(x: np.ndarray, prescale: int) -> np.ndarray:
    """(x - mean) / std in units of sqrt(n) / 2^30, int64 [r, n]."""
    x = x.astype(np.int64)
    n = x.shape[1]
    _check_domain(n, int(np.abs(x).max(initial=0)), prescale)
    y = x - round_divide(x.sum(1, keepdims=True), n)
    scaled = y >> prescale
    std = isqrt((scaled * scaled).sum(1, keepdims=True)) << prescale
    factor = np.where(std == 0, 0, 2**31 // np.maximum(std, 1))
    return (y * factor) >> 1


def _check_domain(n: int, peak: int, prescale: int) -> None:
    if n > MAX_CHANNELS:
        raise RangeError(f"{n} channels, above {MAX_CHANNELS}", where=NAME)
    if peak > INPUT_LIMIT:
        raise RangeError(f"|x| can be {peak}, above {INPUT_LIMIT}", where=NAME)
    if not 0 <= prescale <= 16:
        raise RangeError(f"saved shift {prescale} is outside 0..16", where=NAME)


def _check_affine(bias: np.ndarray, mult: np.ndarray, shift: np.ndarray) -> None:
    """|(y + bias) mult| + rounding < 2^63 for every |y| <= 2^31."""
    reach = (Y_LIMIT + np.abs(exact(bias))) * np.abs(exact(mult)) + (1 << (exact(shift) - 1))
    if reach.max() >= 2**63:
        channel = int(np.argmax(reach >= 2**63))
        raise RangeError(f"(y + bias) * mult can wrap int64 (channel {channel})", where=NAME)


def bounds(
    x: Interval,
    bias: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    prescale: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> Interval:
    """Interval of the output.

    Lemma: |y * F| / 2 <= 2^31. Proof: if std > 0 then std >= 2^p, and every |y >> p| <= isqrt(sum)
    = std / 2^p, so |y| < std + 2^p <= 2 std (y >> p is floor: y < ((y >> p) + 1) 2^p, and
    y >= (y >> p) 2^p); F <= 2^31 / std. Squares: |y| <= 2^23, n <= 2^12, so their sum is at most
    2^58 and y * F at most 2^32.
    """
    _check_domain(len(bias), int(x.magnitude.max()), int(prescale[0]))
    _check_affine(bias, mult, shift)
    y = Interval(exact(bias) - Y_LIMIT, exact(bias) + Y_LIMIT)
    return y.dyadic(mult, shift).clamp(lo, hi)


def tables(gamma: np.ndarray, beta: np.ndarray, scale_out: float) -> dict[str, np.ndarray]:
    """bias, mult, shift of `reference` from float32 gamma, beta [C] and the QuantAct's scale.

    Float32 steps as the module takes them. gamma = 0 and |beta / gamma| > sqrt(n) have no integers
    there (infinity, and a bias beyond int32): RangeError names the channels.
    """
    gamma, beta = np.asarray(gamma, np.float32), np.asarray(beta, np.float32)
    unit = np.float32(np.sqrt(np.float32(len(gamma)))) / np.float32(2**30)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = np.floor(beta / gamma / unit).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(bias) <= INT32[1]))
    if wrong.size:
        c = int(wrong[0])
        raise RangeError(
            f"gamma {gamma[c]:.3g}, beta {beta[c]:.3g} (channel {c}, {wrong.size} in all): "
            "|beta / gamma| exceeds 2 sqrt(n)",
            where=NAME,
            hint="the ibert recipe has no integers for it; use the native recipe",
        )
    ratio = (unit * gamma).astype(np.float64) / np.float64(np.float32(scale_out))
    mult, shift = make_dyadic(ratio)
    bias = check_fits(bias, "int32", NAME, "bias").astype(np.int32)
    return {"bias": bias, "mult": mult, "shift": shift}


def define(args: list, attrs: dict) -> list:
    """Tensor expressions over [b, 8, W]; n is attrs["channels"], the padding columns hold 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    x, bias, mult, shift, prescale = args
    n = attrs["channels"]

    def const(value):
        return tirx.const(value, "int64")

    rows = x.shape[:2]
    s1 = expr.row_sum(lambda *i: x[i], x.shape, "int64", "ln_sum")
    floor = te.compute(rows, lambda i, r: te.floordiv(s1[i, r], const(n)), name="ln_floor")

    def rounded(i, r):  # fixedpoint.round_divide
        twice = (s1[i, r] - floor[i, r] * const(n)) * const(2)
        odd = floor[i, r] & const(1)
        up = tirx.Select(twice > const(n), const(1), tirx.Select(twice < const(n), const(0), odd))
        return (floor[i, r] + up).astype("int32")

    mean = te.compute(rows, rounded, name="ln_mean")
    inside = te.compute(
        x.shape,
        lambda i, r, c: tirx.Select(c < n, x[i, r, c] - mean[i, r], tirx.const(0, "int32")),
        name="ln_centred",
    )
    p = prescale[0]
    s2 = expr.row_sum(
        lambda *i: expr.product(inside[i] >> p, inside[i] >> p), x.shape, "int64", "ln_squares"
    )
    root = expr.isqrt(s2, 31, "ln_root")
    std = te.compute(
        rows, lambda i, r: root[i, r] * expr.power_of_two(p.astype("int64")), name="ln_std"
    )
    positive = te.compute(rows, lambda i, r: te.max(std[i, r], const(1)), name="ln_positive")
    factor = expr.reciprocal(positive, 31, 0, "ln_factor")

    def out(i, r, c):
        # floor(2^31 / std) is one more than floor((2^31 - 1) / std) where std is a power of two
        d = std[i, r]
        whole = tirx.Select((d & (d - const(1))) > const(0), const(0), const(1))
        f = tirx.Select(d > const(0), factor[i, r] + whole, const(0))
        z = ((inside[i, r, c].astype("int64") * f) >> const(1)) + bias[c].astype("int64")
        y = expr.round_shift(z * mult[c].astype("int64"), shift[c].astype("int64"))
        return expr.store(expr.clamp(y, attrs["lo"], attrs["hi"]), attrs)

    return [te.compute(x.shape, out, name="i_layernorm_ibert")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    by_row=True,
    fill={3: 1},  # shift
    source="transformers ibert IntLayerNorm + QuantAct(8)",
)
