"""Integer LayerNorm of the native recipe: int8 for the next matmul, int16 for the residual.

    S1 = sum x, S2 = sum x^2, V = ((n S2 - S1^2) << f) + eps      variance * n^2 * 2^f, below 2^62
    2 h = bits(V) rounded up to even, m = V 2^(62 - 2 h) / 2^30   in [2^30, 2^32): Q30 of [1, 4)
    rho = 1 / sqrt(m) in Q31, three Newton steps                  one multiplication per element
    d = (n x - S1) 2^(25 + f/2 - h)                               deviation, about 2^24 std; int32
    y = (d rho) >> 32                                             (x - mean) / std in Q23
    out = clamp((((y mult) >> 32) + bias) >> 7)                   gamma and beta, twice

f keeps eps exact enough when it competes with a variance of few LSB. Every product per element is
a high half of 32 x 32 bits. Source: own arithmetic of I-BERT's i-LayerNorm (arXiv 2101.01321,
section 3.6), with eps and without division.
"""

import math
from collections.abc import Callable

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import clamp
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "i_layernorm"
INPUT_LIMIT = 2**17  # |x|; with n <= 4096 keeps n S2 <= 2^58 and |n x - S1| <= 2^30
MAX_CHANNELS = 4096
Y_BITS = 23  # |y| <= sqrt(n - 1) < 2^6, so that Q23 stays below 2^29 and d below 2^31
EPS_LIMIT = 2**61  # V << f <= 2^61, so V + eps < 2^62
OUT_BITS = 7  # fraction bits of an output before its last shift
MULT_BITS = 32 - Y_BITS + OUT_BITS  # mult is gamma / scale in units of 2^-16
GAIN_LIMIT = 2.0 ** (31 - MULT_BITS)  # |gamma| / scale below this
BIAS_LIMIT = 2**30  # |bias|: with |y mult / 2^32| < 2^28 the sum is int32
LIMIT8, LIMIT16 = 127, 32767
# 1.066 - 0.152 v is within 8.7 % of 1 / sqrt(v) on [1, 4); three Newton steps bring that to 6e-8
SEED, SLOPE = 2289217569, 326417514  # Q31


def fraction_bits(n: int) -> int:
    """Even f such that n^2 2^34 2^f <= 2^61; at most 14."""
    return min(14, (61 - 34 - math.ceil(2 * math.log2(n))) // 2 * 2)


def inverse_root(m: np.ndarray) -> np.ndarray:
    """1 / sqrt(m) in Q31, int64, below 2^31; m int64 in [2^30, 2^32), Q30."""
    y = SEED - ((m * SLOPE) >> 30)
    for _ in range(3):
        y = (y * (3 * 2**30 - ((m * ((y * y) >> 32)) >> 30))) >> 31
    return np.minimum(y, 2**31 - 1)


def normalise(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) in Q23, int64 [r, n]; x int32 [r, n], eps int64 [1]."""
    x = x.astype(np.int64)
    check_domain(x.shape[1], int(np.abs(x).max(initial=0)), int(eps[0]))
    return scaled(x, eps[0])


def scaled(x: np.ndarray, eps: np.ndarray, rms: bool = False) -> np.ndarray:
    """`normalise` of x int64 [r, n] with eps int64 [] or [r, 1]; rms: without the mean."""
    n = x.shape[1]
    f = fraction_bits(n)
    s1 = 0 if rms else x.sum(1, keepdims=True)
    s2 = (x * x).sum(1, keepdims=True)
    v = np.maximum(((n * s2 - s1 * s1) << f) + eps, 1)
    half = (bit_length(v) + 1) // 2
    rho = inverse_root((v << (62 - 2 * half)) >> 30)
    shift = Y_BITS + 2 + f // 2 - half
    d = ((n * x - s1) << np.maximum(shift, 0)) >> np.maximum(-shift, 0)
    return (d * rho) >> 32


def bit_length(v: np.ndarray) -> np.ndarray:
    """Bits of v >= 1, int64; exact where float64 would round up to the next power of two."""
    bits = np.frexp(v.astype(np.float64))[1].astype(np.int64)
    return bits - ((v >> (bits - 1)) == 0)


def affine(y: np.ndarray, mult: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Gamma and beta over the output scale, int64, before the clamp."""
    return (((y * mult.astype(np.int64)) >> 32) + bias) >> OUT_BITS


def reference(
    x: np.ndarray,
    eps: np.ndarray,
    g_mult: np.ndarray,
    g_bias: np.ndarray,
    r_mult: np.ndarray,
    r_bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """x int16|int32 [r, C], |x| <= 2^17, C <= 4096 -> (int8 [r, C], int16 [r, C]).

    eps     int64 [1]: round(n^2 2^f eps / scale^2), below 2^61
    *_mult  int32 [C], *_bias int32 [C]: gamma and beta over the output scale, in units of 2^-16 and
            2^-7 (with half an output step); g for the int8 output, r for the int16 one. mult = 0
            gives beta.
    """
    check_affine(g_bias, r_bias)
    y = normalise(x, eps)
    out8 = clamp(affine(y, g_mult, g_bias), -LIMIT8, LIMIT8, "int8")
    return out8, clamp(affine(y, r_mult, r_bias), -LIMIT16, LIMIT16, "int16")


def check_domain(n: int, peak: int, eps: int, where: str = NAME) -> None:
    """Raise RangeError for what the arithmetic has no room for."""
    if n > MAX_CHANNELS:
        raise RangeError(f"{n} channels, above {MAX_CHANNELS}", where=where)
    if peak > INPUT_LIMIT:
        raise RangeError(f"|x| can be {peak}, above {INPUT_LIMIT}", where=where)
    if not 0 <= eps < EPS_LIMIT:
        raise RangeError(
            f"eps is {eps} in squared units of the input scale, outside 0..2^61 - 1",
            where=where,
            hint="the input scale is too small for eps; raise it",
        )


def check_affine(*biases: np.ndarray, where: str = NAME) -> None:
    """Raise RangeError for a bias that is too large."""
    for bias in biases:
        worst = int(np.abs(bias.astype(np.int64)).max(initial=0))
        if worst > BIAS_LIMIT:
            channel = int(np.abs(bias.astype(np.int64)).argmax())
            raise RangeError(f"|bias| is {worst}, above 2^30 (channel {channel})", where=where)


def bounds(
    x: Interval,
    eps: np.ndarray,
    g_mult: np.ndarray,
    g_bias: np.ndarray,
    r_mult: np.ndarray,
    r_bias: np.ndarray,
) -> tuple[Interval, Interval]:
    """Intervals of both outputs from |y| <= sqrt(n - 1).

    Lemma (Samuelson): (x_i - m)^2 <= (n - 1) var. Proof: the other n - 1 deviations sum to
    -(x_i - m), so by Cauchy-Schwarz their squares sum to at least (x_i - m)^2 / (n - 1); adding
    (x_i - m)^2 gives n var >= (x_i - m)^2 n / (n - 1). Hence d'^2 <= (n - 1)(n S2 - S1^2) for
    d' = n x - S1, and as V < 2^(2 h), |d| <= sqrt(n - 1) 2^(h - f/2) 2^(25 + f/2 - h) < 2^31.
    Lemma (Newton): y (3 - m y^2) / 2 <= 1 / sqrt(m) for every y > 0 (its maximum over y), so only
    the floors raise rho: y^2 by 2^-30 of itself at most, and m times that by 2^-30 more, hence
    rho <= 2^31 / sqrt(m) (1 + 2^-28), and |y| <= sqrt(n - 1) 2^23 (1 + 2^-28) + 1.
    Products: m y^2 < 2^32 2^30, y t < 2^31 2^32, d rho < 2^62. S2 <= n 2^34, so n S2 <= 2^58.
    """
    n = len(g_mult)
    check_domain(n, int(x.magnitude.max()), int(eps[0]))
    check_affine(g_bias, r_bias)
    y = math.isqrt((n - 1) << (2 * Y_BITS)) + 4  # 2^-28 of 2^29 is 2, the root and the floor 2 more
    out8 = affine_bounds(y, g_mult, g_bias).clamp(-LIMIT8, LIMIT8)
    return out8, affine_bounds(y, r_mult, r_bias).clamp(-LIMIT16, LIMIT16)


def affine_bounds(y: int, mult: np.ndarray, bias: np.ndarray) -> Interval:
    """Interval of `affine` for |y| at most `y`."""
    reach = np.abs(exact(mult)) * y
    ends = (((end >> 32) + exact(bias)) >> OUT_BITS for end in (-reach, reach))
    return Interval(*ends)


def least_scale(gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return the smallest output scale of every channel that the constants can express, [C]."""
    gain = np.abs(gamma) / (GAIN_LIMIT * (1 - 2.0**-20))
    return np.maximum(gain, np.abs(beta) * 2.0**OUT_BITS / (BIAS_LIMIT - 2**OUT_BITS))


def affine_tables(gamma: np.ndarray, beta: np.ndarray, scale) -> tuple[np.ndarray, np.ndarray]:
    """Mult and bias int32 [C] of gamma and beta over `scale`.

    Both round away from zero at halves, so that negating gamma and beta negates both (bias but for
    its half step).
    """
    gain = np.asarray(gamma, np.float64) / scale
    offset = np.broadcast_to(np.asarray(beta, np.float64) / scale, gain.shape)
    if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
        raise RangeError("gamma or beta over the output scale is not finite", where=NAME)
    mult = _round_half_away(gain * 2.0**MULT_BITS)
    bias = _round_half_away(offset * 2.0**OUT_BITS) + (1 << (OUT_BITS - 1))
    if np.abs(mult).max() >= 2**31 or np.abs(bias).max() > BIAS_LIMIT:
        raise RangeError(
            f"gamma or beta is {max(np.abs(gain).max(), np.abs(offset).max()):.3g} output LSB",
            where=NAME,
            hint="the output scale is far too small",
        )
    return mult.astype(np.int32), bias.astype(np.int32)


def _round_half_away(x: np.ndarray) -> np.ndarray:
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int64)


def min_scale(n: int, eps: float) -> float:
    """Smallest input scale for which eps still fits: below it eps exceeds 2^61."""
    return math.sqrt(eps * n * n * 2 ** fraction_bits(n) / (EPS_LIMIT - 1))


def whole_eps(n: int, eps: float, scale_in: float, where: str = NAME) -> np.ndarray:
    """Eps in units of V, int64 [1]."""
    whole = round(n * n * 2 ** fraction_bits(n) * eps / scale_in**2)
    check_domain(n, 0, whole, where)
    return np.array([whole], np.int64)


def tables(
    scale_in: float,
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    scale8: float | np.ndarray,
    scale16: float | np.ndarray,
    zero8: int = 0,
) -> dict[str, np.ndarray]:
    """The five constants of `reference`, in its order, from real numbers.

    scale_in  real units per LSB of x; gamma, beta [C] real; eps the float model's
    scale8    of the int8 output, one number or [C]; scale16 of the int16 output
    zero8     zero point of the int8 output
    """
    n = len(gamma)
    g = affine_tables(gamma, beta + zero8 * np.asarray(scale8), scale8)
    r = affine_tables(gamma, beta, scale16)
    names = ("g_mult", "g_bias", "r_mult", "r_bias")
    return {
        "eps": whole_eps(n, eps, scale_in),
        **dict(zip(names, (*g, *r), strict=True)),
    }


def define(args: list, attrs: dict) -> list:
    """Tensor expressions over [b, 8, W]; n is attrs["channels"], the padding columns hold 0."""
    source, eps, *constants = args
    y = normalised(source, attrs["channels"], lambda *_: eps[0])
    pairs = (constants[:2], LIMIT8), (constants[2:], LIMIT16)
    return [output(y, *both, limit, attrs, i) for i, (both, limit) in enumerate(pairs)]


def normalised(source, n: int, eps: Callable, rms: bool = False):
    """`scaled` as tensor expressions: int32 [b, 8, W].

    source  int16 or int32 [b, 8, W]; eps(block, row) int64
    """
    from tvm import te, tirx

    from intformer.relay_ops import expr

    f = fraction_bits(n)

    def const(value):
        return tirx.const(value, "int64")

    def row(name, value):
        return te.compute(source.shape[:2], value, name=name)

    def x(*i):
        return source[i].astype("int32")

    def newton(step, y):
        def error(*i):
            return (m[i] * ((y[i] * y[i]) >> const(32))) >> const(30)

        e = row(f"ln_error_{step}", error)
        return row(f"ln_newton_{step}", lambda *i: (y[i] * (const(3 << 30) - e[i])) >> const(31))

    s1 = None if rms else expr.row_sum(x, source.shape, "int32", "ln_sum")
    s2 = expr.row_sum(lambda *i: expr.product(x(*i), x(*i)), source.shape, "int64", "ln_squares")

    def variance(i, r):
        v = s2[i, r] * const(n)
        if not rms:
            total = s1[i, r].astype("int64")
            v = v - total * total
        return te.max((v << const(f)) + eps(i, r), const(1))

    v = row("ln_variance", variance)
    bits = expr.bit_length(v, "ln_bits")
    half = row("ln_half", lambda i, r: (bits[i, r] + const(1)) >> const(1))
    m = row(
        "ln_mantissa",
        lambda i, r: (
            (v[i, r] * expr.power_of_two(const(62) - half[i, r] - half[i, r])) >> const(30)
        ),
    )
    rho = row("ln_seed", lambda *i: const(SEED) - ((m[i] * const(SLOPE)) >> const(30)))
    for step in range(3):
        rho = newton(step, rho)
    root = row("ln_rho", lambda *i: te.min(rho[i], const(2**31 - 1)).astype("int32"))
    shift = row("ln_shift", lambda *i: const(Y_BITS + 2 + f // 2) - half[i])
    up = row("ln_up", lambda *i: expr.power_of_two(te.max(shift[i], const(0))))
    # both wrap when a row is constant, and d is 0 then
    gain = row("ln_gain", lambda *i: (up[i] * const(n)).astype("uint32"))
    mean = None
    if not rms:
        mean = row("ln_mean", lambda *i: (up[i] * s1[i].astype("int64")).astype("uint32"))
    down = row("ln_down", lambda *i: te.max(const(0) - shift[i], const(0)).astype("int32"))

    def deviation(i, r, c):
        d = x(i, r, c).astype("uint32") * gain[i, r]
        d = (d if rms else d - mean[i, r]).astype("int32")
        return expr.mul_high(d >> down[i, r], root[i, r])

    return te.compute(source.shape, deviation, name="ln_normalised")


def output(y, mult, bias, limit: int, attrs: dict, which: int):
    """Output `which` of an op, [b, 8, W], from `normalised` and its constants."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    def out(i, r, c):
        t = expr.mul_high(y[i, r, c], mult[c]) + bias[c]
        q = t >> tirx.const(OUT_BITS, "int32")
        return expr.store(expr.clamp(q, -limit, limit), attrs, which)

    return te.compute(y.shape, out, name=f"i_layernorm_{which}")


OP = IntOp(NAME, reference, bounds, define, by_row=True, source="own; arXiv 2101.01321 section 3.6")
