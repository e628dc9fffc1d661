"""The fixed-point primitives of fixedpoint.py as TIR expressions, integers only.

Every function works on scalars and on vectors (lanes are taken from the operand), and holds no
division and no float: a quotient is worked out bit by bit.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T


def like(value: int, x, dtype: str | None = None):
    """Return `value` as a constant with the lanes of x, in x's element type or `dtype`."""
    kind = x.ty.dtype if hasattr(x, "ty") else x.dtype
    element, _, lanes = str(kind).partition("x")
    scalar = tirx.const(value, dtype or element)
    return T.broadcast(scalar, int(lanes)) if lanes else scalar


def as_type(x, dtype: str):
    """Cast to the element type `dtype`, keeping the lanes of x."""
    _, _, lanes = str(x.ty.dtype if hasattr(x, "ty") else x.dtype).partition("x")
    return T.cast(x, f"{dtype}x{lanes}" if lanes else dtype)


def let(value, body: Callable):
    """Return body(name) with `name` bound to value: the way to use a value twice."""
    name = tirx.Var("t", value.ty if hasattr(value, "ty") else value.dtype)
    return tirx.Let(name, value, body(name))


def clamp(x, lo: int, hi: int):
    """Return x limited to [lo, hi]."""
    return T.max(T.min(x, like(hi, x)), like(lo, x))


def wrapping_add(a, b):
    """Return a + b of two int32 known not to overflow.

    Written in uint32 so that LLVM keeps the sum in 32 bits: a widened sum would turn the 32 x 32
    bit product that follows (vpmuldq, one instruction) into a 64 x 64 bit one (vpmullq, three).
    """
    return as_type(as_type(a, "uint32") + as_type(b, "uint32"), "int32")


def round_shift(p, shift):
    """Return p / 2^shift rounded half to even. p int64, shift int64 in 1..62."""
    one = like(1, p)
    half_less_one = (one << (shift - one)) - one
    return (p + half_less_one + ((p >> shift) & one)) >> shift


def dyadic(x, mult, shift):
    """Return x * mult / 2^shift, rounded half to even, as int32: fixedpoint.dyadic.

    x, mult, shift int32; the range analysis has shown that the result fits int32.
    """
    p = as_type(x, "int64") * as_type(mult, "int64")
    return as_type(round_shift(p, as_type(shift, "int64")), "int32")


def reciprocal(numerator_bits: int, d, floor_bits: int = 0):
    """Return floor(2^numerator_bits / d), d > 0, by restoring division.

    floor_bits  d >= 2^floor_bits is known: the quotient's leading zeros are skipped
    The remainder stays below 2 * d, so d < 2^30 suffices for int32, d < 2^62 for int64.
    """
    remainder, quotient = like(1 << max(floor_bits - 1, 0), d), like(0, d)
    steps = numerator_bits - max(floor_bits - 1, 0)

    def step(k: int, r, q):
        if k == 0:
            return q
        return let(
            r + r,
            lambda r2: let(
                T.Select(r2 >= d, like(1, d), like(0, d)),
                lambda bit: let(
                    r2 - bit * d, lambda r3: let(q + q + bit, lambda q2: step(k - 1, r3, q2))
                ),
            ),
        )

    if floor_bits <= 1:  # the first numerator bit may already reach d = 1
        first = T.Select(remainder >= d, like(1, d), like(0, d))
        return let(first, lambda bit: let(remainder - bit * d, lambda r: step(steps, r, bit)))
    return step(steps, remainder, quotient)


def isqrt(v, result_bits: int):
    """Return floor(sqrt(v)), v int64 >= 0, known to be below 2^(2 * result_bits)."""

    def step(k: int, root):
        if k < 0:
            return root
        return let(
            root | like(1 << k, root),
            lambda trial: let(T.Select(trial * trial <= v, trial, root), lambda r: step(k - 1, r)),
        )

    return step(result_bits - 1, like(0, v))


def bit_length(v):
    """Return the number of bits of v, int64 > 0, as int64."""

    def step(k: int, x, n):
        if k == 0:
            return n + like(1, v)
        return let(
            T.Select(x >= like(1 << k, v), like(k, v), like(0, v)),
            lambda s: let(x >> s, lambda y: let(n + s, lambda m: step(k // 2, y, m))),
        )

    return step(32, v, like(0, v))
