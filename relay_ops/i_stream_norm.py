"""LayerNorm or RMSNorm of a residual stream, whose numbers are wider than those of i_layernorm.

    S2 = sum x^2,  k = max(0, half the bits of S2, rounded up, - B)    a shift for each row
    x' = (x + 2^k / 2) >> k                                            |x'| <= 2^B
    out = clamp((((y mult) >> 32) + bias) >> 7)                        y of i_layernorm, from x'

RMSNorm is the same with S1 = 0. A row of few large channels, as pre-LN models have, loses its
lowest bits and no other row does; x' keeps so many that y has the error of i_layernorm. There is
one output, since most of these norms feed a matrix product and nothing else.
Source: own; arXiv 1910.07467 (RMSNorm).
"""

import math

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops import i_layernorm
from intformer.relay_ops.fixedpoint import clamp
from intformer.relay_ops.i_layernorm import LIMIT8, LIMIT16, Y_BITS
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "i_stream_norm"
INPUT_LIMIT = 2**25  # |x|; with n <= 4096 keeps S2 <= 2^62
LIMITS = {"int8": LIMIT8, "int16": LIMIT16}


def kept_bits(n: int) -> int:
    """B: then n x' fits int32, and n sum x'^2 is at most 2^34 n^2, as in i_layernorm."""
    return min(30 - math.ceil(math.log2(n)), 17 + math.floor(math.log2(n) / 2))


def narrowed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x' int64 [r, n] and k int64 [r, 1], from x int64."""
    squares = np.maximum((x * x).sum(1, keepdims=True), 1)
    half = (i_layernorm.bit_length(squares) + 1) // 2
    k = np.maximum(half - kept_bits(x.shape[1]), 0)
    return (x + ((1 << k) >> 1)) >> k, k


def reference(
    x: np.ndarray, eps: np.ndarray, mult: np.ndarray, bias: np.ndarray, *, rms: bool, dtype: str
) -> np.ndarray:
    """x int16|int32 [r, C], |x| <= 2^25, C <= 4096 -> int8 or int16 [r, C].

    eps   int64 [1], mult and bias int32 [C]: as in i_layernorm
    rms   of RMSNorm, which subtracts no mean
    """
    _check(x.shape[1], int(np.abs(x.astype(np.int64)).max(initial=0)), int(eps[0]), bias)
    short, k = narrowed(x.astype(np.int64))
    y = i_layernorm.scaled(short, eps[0] >> (2 * k), rms)
    limit = LIMITS[dtype]
    return clamp(i_layernorm.affine(y, mult, bias), -limit, limit, dtype)


def _check(n: int, peak: int, eps: int, bias: np.ndarray) -> None:
    if peak > INPUT_LIMIT:
        raise RangeError(f"|x| can be {peak}, above {INPUT_LIMIT}", where=NAME)
    i_layernorm.check_domain(n, 0, eps, NAME)
    i_layernorm.check_affine(bias, where=NAME)


def bounds(
    x: Interval, eps: np.ndarray, mult: np.ndarray, bias: np.ndarray, *, rms: bool, dtype: str
) -> Interval:
    """Interval of the output from |y| <= sqrt(n).

    Lemma: |x| <= sqrt(S2) < 2^(k + B), so |x'| <= 2^B; and sum x'^2 <= 2^2B up to the rounding,
    which n 2^2B 2^f <= 2^60 has room for. |n x' - S1| <= n sqrt(sum x'^2) < 2^31 wherever d is
    shifted down, and |d| < sqrt(n) 2^25 <= 2^31 as V < 2^2h: as in i_layernorm, n for n - 1.
    """
    n = len(mult)
    _check(n, int(x.magnitude.max()), int(eps[0]), bias)
    y = math.isqrt(n << (2 * Y_BITS)) + 4
    limit = LIMITS[dtype]
    return i_layernorm.affine_bounds(y, mult, bias).clamp(-limit, limit)


def tables(
    scale_in: float, gamma: np.ndarray, beta: np.ndarray, eps: float, scale: float | np.ndarray
) -> dict[str, np.ndarray]:
    """The three constants of `reference`, in its order, from real numbers; see i_layernorm."""
    mult, bias = i_layernorm.affine_tables(gamma, beta, scale)
    return {
        "eps": i_layernorm.whole_eps(len(gamma), eps, scale_in, NAME),
        "mult": mult,
        "bias": bias,
    }


def define(args: list, attrs: dict) -> list:
    """Tensor expressions over [b, 8, W]; n is attrs["channels"], the padding columns hold 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    source, eps, mult, bias = args
    n, rows = attrs["channels"], source.shape[:2]

    def const(value):
        return tirx.const(value, "int64")

    def x(*i):
        return source[i].astype("int32")

    squares = expr.row_sum(lambda *i: expr.product(x(*i), x(*i)), source.shape, "int64", "ln_wide")
    positive = te.compute(rows, lambda *i: te.max(squares[i], const(1)), name="ln_positive")
    bits = expr.bit_length(positive, "ln_wide_bits")

    def drop(*i):
        return te.max(((bits[i] + const(1)) >> const(1)) - const(kept_bits(n)), const(0))

    k = te.compute(rows, drop, name="ln_dropped")
    step = te.compute(
        rows, lambda *i: (expr.power_of_two(k[i]) >> const(1)).astype("int32"), name="ln_step"
    )
    down = te.compute(rows, lambda *i: k[i].astype("int32"), name="ln_narrowing")
    short = te.compute(
        source.shape, lambda i, r, c: (x(i, r, c) + step[i, r]) >> down[i, r], name="ln_narrow"
    )
    fine = te.compute(rows, lambda *i: eps[0] >> (k[i] + k[i]), name="ln_eps")
    y = i_layernorm.normalised(short, n, lambda *i: fine[i], attrs["rms"])
    limit = LIMITS[attrs["dtype"]]
    return [i_layernorm.output(y, mult, bias, limit, attrs, 0)]


OP = IntOp(NAME, reference, bounds, define, by_row=True, source="own; arXiv 1910.07467")
