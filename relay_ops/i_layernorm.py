"""Integer LayerNorm of the native recipe: int8 for the next matmul, int16 for the residual.

    S1 = sum x, S2 = sum x^2, V = ((n S2 - S1^2) << f) + eps      variance * n^2 * 2^f, below 2^62
    d = n x - S1                                                 deviation * n
    k = (62 - bits(V)) // 2, r = isqrt(V << 2k) in [2^30, 2^31), F = (2^61 - 1) // r
    y = (d F) >> (37 - k - f/2)                                  (x - mean) / std in Q24
    out = clamp(RHE((y mult + bias) / 2^shift))                  gamma and beta, twice

f keeps eps exact enough when it competes with a variance of few LSB. Source: own arithmetic of
I-BERT's i-LayerNorm (arXiv 2101.01321, section 3.6), with eps and without division per element.
"""

import math

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import clamp, isqrt, reciprocal, round_shift
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "i_layernorm"
INPUT_LIMIT = 2**17  # |x|; with n <= 4096 keeps n S2 <= 2^58 and |d| <= 2^30
MAX_CHANNELS = 4096
Y_BITS = 24  # |y| <= sqrt(n - 1) < 2^6, so that Q24 stays below 2^30
Y_LIMIT = 2**30
EPS_LIMIT = 2**61  # V << f <= 2^61, so V + eps < 2^62
BIAS_BITS = 61  # |bias| <= 2^61: with |y mult| < 2^61 and the rounding 2^61 the sum is below 2^63
LIMIT8, LIMIT16 = 127, 32767


def fraction_bits(n: int) -> int:
    """Even f such that n^2 2^34 2^f <= 2^61; at most 14, so that every shift stays >= 0."""
    return min(14, (61 - 34 - math.ceil(2 * math.log2(n))) // 2 * 2)


def normalise(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) in Q24, int64 [r, n]; x int32 [r, n], eps int64 [1]."""
    x = x.astype(np.int64)
    n = x.shape[1]
    _check_domain(n, int(np.abs(x).max(initial=0)), int(eps[0]))
    f = fraction_bits(n)
    s1 = x.sum(1, keepdims=True)
    s2 = (x * x).sum(1, keepdims=True)
    v = np.maximum(((n * s2 - s1 * s1) << f) + eps[0], 1)
    k = (62 - bit_length(v)) // 2
    factor = reciprocal(isqrt(v << (2 * k)), 61)
    return ((n * x - s1) * factor) >> (61 - Y_BITS - f // 2 - k)


def bit_length(v: np.ndarray) -> np.ndarray:
    """Bits of v >= 1, int64; exact where float64 would round up to the next power of two."""
    bits = np.frexp(v.astype(np.float64))[1].astype(np.int64)
    return bits - ((v >> (bits - 1)) == 0)


def _affine(y: np.ndarray, mult: np.ndarray, bias: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return round_shift(y * mult.astype(np.int64) + bias, shift)


def reference(
    x: np.ndarray,
    eps: np.ndarray,
    g_mult: np.ndarray,
    g_bias: np.ndarray,
    g_shift: np.ndarray,
    r_mult: np.ndarray,
    r_bias: np.ndarray,
    r_shift: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """x int32 [r, C], |x| <= 2^17, C <= 4096 -> (int8 [r, C], int16 [r, C]).

    eps     int64 [1]: round(n^2 2^f eps / scale^2), below 2^61
    *_mult  int32 [C], *_bias int64 [C], *_shift int32 [C] 1..62: gamma, beta over the output scale;
            g for the int8 output, r for the int16 one. mult = 0 gives beta.
    """
    _check_affine(g_mult, g_bias, g_shift)
    _check_affine(r_mult, r_bias, r_shift)
    y = normalise(x, eps)
    out8 = clamp(_affine(y, g_mult, g_bias, g_shift), -LIMIT8, LIMIT8, "int8")
    return out8, clamp(_affine(y, r_mult, r_bias, r_shift), -LIMIT16, LIMIT16, "int16")


def _check_domain(n: int, peak: int, eps: int) -> None:
    if n > MAX_CHANNELS:
        raise RangeError(f"{n} channels, above {MAX_CHANNELS}", where=NAME)
    if peak > INPUT_LIMIT:
        raise RangeError(f"|x| can be {peak}, above {INPUT_LIMIT}", where=NAME)
    if not 0 <= eps < EPS_LIMIT:
        raise RangeError(
            f"eps is {eps} in squared units of the input scale, outside 0..2^61 - 1",
            where=NAME,
            hint="the input scale is too small for eps; raise it",
        )


def _check_affine(mult: np.ndarray, bias: np.ndarray, shift: np.ndarray) -> None:
    """|y mult + bias| + rounding < 2^63 for every |y| <= 2^30."""
    top = np.abs(exact(mult)) * Y_LIMIT + np.abs(exact(bias)) + (1 << (exact(shift) - 1))
    if top.max() >= 2**63:
        channel = int(np.argmax(top >= 2**63))
        raise RangeError(f"y * mult + bias can wrap int64 (channel {channel})", where=NAME)


def bounds(
    x: Interval,
    eps: np.ndarray,
    g_mult: np.ndarray,
    g_bias: np.ndarray,
    g_shift: np.ndarray,
    r_mult: np.ndarray,
    r_bias: np.ndarray,
    r_shift: np.ndarray,
) -> tuple[Interval, Interval]:
    """Intervals of both outputs from |y| <= sqrt(n - 1).

    Lemma (Samuelson): (x_i - m)^2 <= (n - 1) var. Proof: the other n - 1 deviations sum to
    -(x_i - m), so by Cauchy-Schwarz their squares sum to at least (x_i - m)^2 / (n - 1); adding
    (x_i - m)^2 gives n var >= (x_i - m)^2 n / (n - 1). Hence d^2 <= (n - 1)(n S2 - S1^2).
    In integers: r >= sqrt(V 4^k) - 1 and r >= 2^30 raise y by at most 2^-29 of itself, the floor of
    F and of the last shift lower it; so |y| <= sqrt(n - 1) 2^24 (1 + 2^-29) + 1 < 2^30 for
    n <= 4096. d F: |d| <= n 2^18 <= 2^30, F < 2^31, so the product is below 2^61. S2 <= n 2^34.
    """
    n = len(g_mult)
    _check_domain(n, int(x.magnitude.max()), int(eps[0]))
    _check_affine(g_mult, g_bias, g_shift)
    _check_affine(r_mult, r_bias, r_shift)
    y = math.isqrt((n - 1) << (2 * Y_BITS)) + 4  # 2^-29 of 2^30 is 2, the floors are 2 more
    out8 = _affine_bounds(y, g_mult, g_bias, g_shift).clamp(-LIMIT8, LIMIT8)
    return out8, _affine_bounds(y, r_mult, r_bias, r_shift).clamp(-LIMIT16, LIMIT16)


def _affine_bounds(y: int, mult, bias, shift) -> Interval:
    reach = np.abs(exact(mult)) * y
    one = np.ones_like(reach)
    return Interval(exact(bias) - reach, exact(bias) + reach).dyadic(one, shift)


def _affine_tables(gamma: np.ndarray, beta: np.ndarray, scale) -> tuple[np.ndarray, ...]:
    """Mult int32, bias int64, shift int32 [C] of gamma and beta over `scale`, as fine as fits.

    The shift is the largest that keeps mult below 2^31 and bias below 2^61; mult rounds away from
    zero at halves and bias too, so that negating gamma and beta negates both.
    """
    ratio = np.asarray(gamma, np.float64) / scale / 2.0**Y_BITS
    offset = np.broadcast_to(np.asarray(beta, np.float64) / scale, ratio.shape)
    if not (np.isfinite(ratio).all() and np.isfinite(offset).all()):
        raise RangeError("gamma or beta over the output scale is not finite", where=NAME)
    shift = np.minimum(31 - np.frexp(ratio)[1], BIAS_BITS - np.frexp(offset)[1])
    shift = np.where(ratio == 0, BIAS_BITS - np.frexp(offset)[1], shift).clip(max=62)
    mult = _round_half_away(np.ldexp(ratio, shift))
    carried = np.abs(mult) == 2**31
    shift = shift - carried
    mult = np.where(carried, mult // 2, mult)
    if shift.min() < 1:
        raise RangeError(
            f"gamma or beta is {np.abs(offset).max():.3g} output LSB",
            where=NAME,
            hint="the output scale is far too small",
        )
    bias = _round_half_away(np.ldexp(offset, shift))
    return mult.astype(np.int32), bias, shift.astype(np.int32)


def _round_half_away(x: np.ndarray) -> np.ndarray:
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int64)


def min_scale(n: int, eps: float) -> float:
    """Smallest input scale for which eps still fits: below it eps exceeds 2^61."""
    return math.sqrt(eps * n * n * 2 ** fraction_bits(n) / (EPS_LIMIT - 1))


def tables(
    scale_in: float,
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    scale8: float | np.ndarray,
    scale16: float | np.ndarray,
) -> dict[str, np.ndarray]:
    """The seven constants of `reference`, in its order, from real numbers.

    scale_in  real units per LSB of x; gamma, beta [C] real; eps the float model's
    scale8    of the int8 output, one number or [C]; scale16 of the int16 output
    """
    n = len(gamma)
    whole_eps = round(n * n * 2 ** fraction_bits(n) * eps / scale_in**2)
    _check_domain(n, 0, whole_eps)
    g = _affine_tables(gamma, beta, scale8)
    r = _affine_tables(gamma, beta, scale16)
    names = ("g_mult", "g_bias", "g_shift", "r_mult", "r_bias", "r_shift")
    return {
        "eps": np.array([whole_eps], np.int64),
        **dict(zip(names, (*g, *r), strict=True)),
    }


def define(args: list, attrs: dict) -> list:
    """Tensor expressions over [b, 8, W]; n is attrs["channels"], the padding columns hold 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    x, eps, *affine = args
    n = attrs["channels"]
    f = fraction_bits(n)

    def const(value):
        return tirx.const(value, "int64")

    rows = x.shape[:2]
    s1 = expr.row_sum(lambda *i: x[i], x.shape, "int32", "ln_sum")
    s2 = expr.row_sum(lambda *i: expr.product(x[i], x[i]), x.shape, "int64", "ln_squares")

    def variance(i, r):
        total = s1[i, r].astype("int64")
        v = ((s2[i, r] * const(n) - total * total) << const(f)) + eps[0]
        return te.max(v, const(1))

    v = te.compute(rows, variance, name="ln_variance")
    bits = expr.bit_length(v, "ln_bits")
    k = te.compute(rows, lambda i, r: (const(62) - bits[i, r]) >> const(1), name="ln_k")
    scaled = te.compute(
        rows, lambda i, r: v[i, r] * expr.power_of_two(k[i, r] + k[i, r]), name="ln_scaled"
    )
    root = expr.isqrt(scaled, 31, "ln_root")
    factor = expr.reciprocal(root, 61, 29, "ln_factor")

    def normalised(i, r, c):
        d = x[i, r, c] * tirx.const(n, "int32") - s1[i, r]
        shift = const(61 - Y_BITS - f // 2) - k[i, r]
        return (expr.product(d, factor[i, r].astype("int32")) >> shift).astype("int32")

    y = te.compute(x.shape, normalised, name="ln_normalised")

    def output(which: int, limit: int):
        mult, bias, shift = affine[3 * which : 3 * which + 3]

        def out(i, r, c):
            p = expr.product(y[i, r, c], mult[c]) + bias[c]
            q = expr.round_shift(p, shift[c].astype("int64"))
            return expr.store(expr.clamp(q, -limit, limit), attrs, which)

        return te.compute(x.shape, out, name=f"i_layernorm_{which}")

    return [output(0, LIMIT8), output(1, LIMIT16)]


OP = IntOp(NAME, reference, bounds, define, source="own; arXiv 2101.01321 section 3.6")
