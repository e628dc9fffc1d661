"""I-BERT's IntGELU on int32 accumulators followed by QuantAct(8), to the last rounding.

    t = min(|x|, -b),  z = sign(x) ((t + b)^2 + c) >> 14,  out = RHE(x (z + one) mult / 2^shift)

b, c, one per channel, all negative (the scale of the product is negative too, so is mult). Source:
transformers, models/ibert/quant_modules.py IntGELU.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import clamp, in_blocks, make_split_dyadic, split_dyadic
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "i_gelu_ibert"
K, A, B = 1.4142, -0.2888, -1.769  # IntGELU.k and coeff; c = 1 / a
CONST = 14  # IntGELU.const
SPLIT = 32  # low word of the product with mult
MIN_SCALE = 2.0**-20  # of the accumulator: below it `one` = 1 / (2366 scale^2) nears int32


def _erf_limits(b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Range of (t + b)^2 + c, t in 0..-b: c at t = -b, b^2 + c at t = 0."""
    return exact(c), exact(b) ** 2 + exact(c)


def reference(
    acc: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    one: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> np.ndarray:
    """Acc int32 [r, C], b int32 [C], c int64 [C], one, mult, shift int32 [C] -> int8 [r, C].

    (t + b)^2 + c is int64, z + one int32, x (z + one) int64, its product with mult two words.
    shift is 33..93 (see fixedpoint.split_dyadic).
    """
    _check_tables(b, c, one, shift)

    def rows(x: np.ndarray) -> np.ndarray:
        return clamp(split_dyadic(product(x, b, c, one), mult, shift, SPLIT), lo, hi, "int8")

    return in_blocks(rows, acc)


def product(acc: np.ndarray, b: np.ndarray, c: np.ndarray, one: np.ndarray) -> np.ndarray:
    """x (z + one) as int64, before QuantAct; its scale is `product_scale`."""
    x = acc.astype(np.int64)
    u = np.minimum(np.abs(x), -b.astype(np.int64)) + b
    z = (np.sign(x) * (u * u + c)) >> CONST
    return x * (z + one)


def _check_tables(b: np.ndarray, c: np.ndarray, one: np.ndarray, shift: np.ndarray) -> None:
    low, high = _erf_limits(b, c)
    peak = np.maximum(np.abs(low), np.abs(high))
    wide = (peak >= 2**62) | ((peak >> CONST) + 1 + np.abs(exact(one)) >= 2**31)
    if wide.any() or b.max() > 0:
        channel = int(np.argmax(wide | (exact(b) > 0)))
        raise RangeError(f"b, c, one do not fit (channel {channel})", where=NAME)
    if shift.min() <= SPLIT or shift.max() > SPLIT + 61:
        raise RangeError(f"shift outside {SPLIT + 1}..{SPLIT + 61}", where=NAME)


def bounds(
    acc: Interval,
    b: np.ndarray,
    c: np.ndarray,
    one: np.ndarray,
    mult: np.ndarray,
    shift: np.ndarray,
    *,
    lo: int,
    hi: int,
) -> Interval:
    """Interval of the output.

    z takes its extremes at t = 0 and t = -b (the square is monotone between); x (z + one) is then
    bounded by |x| times the largest |z + one|, below 2^31 2^31.
    """
    _check_tables(b, c, one, shift)
    acc.fits("int32", NAME, "input")
    low, high = _erf_limits(b, c)
    peak = (np.maximum(np.abs(low), np.abs(high)) >> CONST) + 1 + np.abs(exact(one))
    product = acc.magnitude * peak
    if product.max() >= 2**61:
        raise RangeError(f"x * (z + one) reaches {product.max()}, above 2^61", where=NAME)
    return Interval(-product, product).dyadic(mult, shift).clamp(lo, hi)


def _erf_scale(scale: np.ndarray) -> np.ndarray:
    s = scale / np.float32(K)
    return s * s * np.float32(A) * np.float32(2**CONST)


def product_scale(scale: np.ndarray) -> np.ndarray:
    """Real units (negative) per LSB of `product`, from the accumulator's scale; float32."""
    return scale * _erf_scale(scale) / np.float32(2)


def tables(scale_acc: np.ndarray, scale_out: float) -> dict[str, np.ndarray]:
    """b, c, one, mult, shift of `reference` from the accumulator's float32 scales [C].

    Float32 steps in the module's order (a number over a tensor is its reciprocal times the number).
    """
    f32 = np.float32
    scale = np.asarray(scale_acc, f32)
    if not (scale >= MIN_SCALE).all():
        raise RangeError(
            f"accumulator scale {scale.min():.3g} (channel {int(np.argmin(scale))}) is below "
            f"{MIN_SCALE:.3g}",
            where=NAME,
            hint="raise the weight scale of that channel",
        )
    s = scale / f32(K)
    b = np.floor(f32(1) / s * f32(B))
    c = np.floor(f32(1) / (s * s) * f32(1 / A))
    erf_scale = _erf_scale(scale)
    one = np.floor_divide(f32(1), erf_scale)
    ratio = product_scale(scale).astype(np.float64) / np.float64(f32(scale_out))
    mult, shift = make_split_dyadic(ratio, SPLIT)
    return {
        "b": b.astype(np.int32),
        "c": c.astype(np.int64),
        "one": one.astype(np.int32),
        "mult": mult,
        "shift": shift,
    }


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]; the product with mult in two words (split_dyadic)."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    acc, b, c, one, mult, shift = args

    def const(value):
        return tirx.const(value, "int64")

    def gated(i, r, j):
        x = acc[i, r, j].astype("int64")
        low = b[j].astype("int64")
        u = te.min(te.max(x, const(0) - x), const(0) - low) + low
        q = u * u + c[j]
        signed = tirx.Select(x > const(0), q, tirx.Select(x < const(0), const(0) - q, const(0)))
        return x * ((signed >> const(CONST)) + one[j].astype("int64"))

    x = te.compute(acc.shape, gated, name="gelu_gated")

    def words(i, r, j):
        m = mult[j].astype("int64")
        low = (x[i, r, j] & const((1 << SPLIT) - 1)) * m
        high = (x[i, r, j] >> const(SPLIT)) * m + (low >> const(SPLIT))
        sticky = tirx.Select((low & const((1 << SPLIT) - 1)) > const(0), const(1), const(0))
        return high * const(2) + sticky

    p = te.compute(acc.shape, words, name="gelu_product")

    def out(i, r, j):
        y = expr.round_shift(p[i, r, j], shift[j].astype("int64") - const(SPLIT - 1))
        return expr.store(expr.clamp(y, attrs["lo"], attrs["hi"]), attrs)

    return [te.compute(acc.shape, out, name="i_gelu_ibert")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    elementwise=True,
    fill={5: 33},  # shift
    source="transformers ibert IntGELU + QuantAct(8)",
)
