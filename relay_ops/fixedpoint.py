"""Fixed-point primitives every op and every table shares: exact integers, NumPy only.

RHE is round half to even. A dyadic number is `mult / 2^shift` with a signed 31-bit `mult`: I-BERT's
batch_frexp (transformers, models/ibert/quant_modules.py), normalised so that a kernel always gets
|mult| < 2^31 and a shift of 1..62.
"""

from collections.abc import Callable

import numpy as np

from intformer.errors import RangeError

INT8 = (-(2**7), 2**7 - 1)
INT16 = (-(2**15), 2**15 - 1)
INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
LIMITS = {"int8": INT8, "int16": INT16, "int32": INT32, "int64": INT64}

MULT_BITS = 31  # an int32 holds the sign and 31 bits
MAX_SHIFT = 62  # the rounding constant 2^(shift - 1) must leave room in int64
BLOCK = 2**14  # elements at a time
ZERO_RATIO = 2.0**-40  # ratios below this are 0: |x| < 2^31 times it is below 2^-9


def check_fits(x: np.ndarray, dtype: str, op: str, what: str) -> np.ndarray:
    """Return x, any integers, unless one does not fit `dtype`: then RangeError naming the op."""
    low, high = LIMITS[dtype]
    if x.size and not (low <= int(x.min()) and int(x.max()) <= high):
        worst = max(int(x.max()), -int(x.min()), key=abs)
        raise RangeError(f"{what} reaches {worst}, which does not fit {dtype}", where=op)
    return x


def in_blocks(function: Callable, x: np.ndarray) -> np.ndarray:
    """Return function(x), x [r, C], by blocks of rows whose temporaries stay in the cache."""
    rows = max(1, BLOCK // max(1, x.shape[1]))
    if len(x) <= rows:
        return function(x)
    return np.concatenate([function(x[i : i + rows]) for i in range(0, len(x), rows)])


def _normalised(ratio, shifts: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """mult and shift, int32 of the shape of ratio; shift within `shifts`, 2^31 renormalised."""
    ratio = np.asarray(ratio, np.float64)
    if not np.isfinite(ratio).all():
        raise RangeError("a ratio of scales is not finite", hint="check the scales for 0 and NaN")
    fraction, exponent = np.frexp(ratio)
    shift = MULT_BITS - exponent.astype(np.int64)
    # a shift above the largest costs low bits of mult
    scaled = np.ldexp(np.abs(fraction), MULT_BITS - np.maximum(shift - shifts[1], 0))
    mult = np.floor(scaled + 0.5).astype(np.int64)  # ROUND_HALF_UP of the magnitude, exact
    shift = np.minimum(shift, shifts[1])
    carried = mult == 2**MULT_BITS
    mult, shift = np.where(carried, mult // 2, mult), np.where(carried, shift - 1, shift)
    zero = mult == 0
    shift = np.where(zero, shifts[0], shift)
    if shift.size and shift.min() < shifts[0]:
        raise RangeError(
            f"a ratio of scales is {np.abs(ratio).max():.3g}, above 2^{MULT_BITS - shifts[0]}",
            hint="the output scale is far too small for its input",
        )
    mult = np.where(np.signbit(ratio), -mult, mult)
    return mult.astype(np.int32), shift.astype(np.int32)


def make_dyadic(ratio) -> tuple[np.ndarray, np.ndarray]:
    """(mult int32, shift int32) with mult / 2^shift = ratio to 31 bits; shapes as ratio's.

    ratio  real, any shape, |ratio| < 2^30; below 2^-40 it becomes (0, 1)
    """
    ratio = np.asarray(ratio, np.float64)
    return _normalised(np.where(np.abs(ratio) < ZERO_RATIO, 0.0, ratio), (1, MAX_SHIFT))


def make_split_dyadic(ratio, split: int) -> tuple[np.ndarray, np.ndarray]:
    """make_dyadic for `split_dyadic`: shift split + 1 .. split + 61."""
    return _normalised(ratio, (split + 1, split + 61))


def round_shift(product: np.ndarray, shift) -> np.ndarray:
    """RHE(product / 2^shift), int64; |product| + 2^(shift - 1) < 2^63, shift 1..62.

    Adding half - 1, and one more where the floor is odd, carries exactly when RHE rounds up.
    """
    shift = np.asarray(shift, np.int64)
    product = np.asarray(product, np.int64)
    odd = (product >> shift) & 1
    return (product + ((np.int64(1) << (shift - 1)) - 1) + odd) >> shift


def dyadic(x: np.ndarray, mult, shift) -> np.ndarray:
    """RHE(x * mult / 2^shift) as int64; |x| <= 2^31, |mult| < 2^31, shift 1..62 (broadcast)."""
    return round_shift(np.asarray(x, np.int64) * np.asarray(mult, np.int64), shift)


def split_dyadic(x: np.ndarray, mult, shift, split: int) -> np.ndarray:
    """RHE(x * mult / 2^shift) as int64 where x * mult exceeds int64: a two-word product.

    x int64, |mult| < 2^31, |x * mult| < 2^(61 + split); split 1..32; shift split + 1 .. split + 61.
    x * mult = high * 2^split + low with 0 <= low < 2^split; `low` counts only as "not zero"
    (sticky), because it lies below the rounding bit.
    """
    x, mult = np.asarray(x, np.int64), np.asarray(mult, np.int64)
    mask = (1 << split) - 1
    low = (x & mask) * mult  # |low| < 2^63
    high = (x >> split) * mult + (low >> split)
    sticky = ((low & mask) != 0).astype(np.int64)
    return round_shift(high * 2 + sticky, np.asarray(shift, np.int64) - (split - 1))


def mul_round(a, b) -> np.ndarray:
    """(a * b + 2^14) >> 15 as int32, of int16 numbers but not two of -2^15; x86 has pmulhrsw."""
    return (np.asarray(a, np.int32) * np.asarray(b, np.int32) + (1 << 14)) >> 15


def isqrt(x: np.ndarray) -> np.ndarray:
    """floor(sqrt(x)), exact, int64; 0 <= x < 2^62."""
    x = np.asarray(x, np.int64)
    # the float is within one of the answer: sqrt is correctly rounded and x < 2^62 has its float
    # within 2^-53 of it, so the float root is within 2^31 * 2^-52 of the true one
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return root + ((root + 1) * (root + 1) <= x)


def reciprocal(x: np.ndarray, bits: int) -> np.ndarray:
    """floor((2^bits - 1) / x) as int64, x >= 1, bits <= 62; floor(2^bits / x) unless x divides it.

    The -1 keeps x = 2^j from giving 2^(bits - j), one bit more than any other x >= 2^j gives.
    """
    return (2**bits - 1) // np.asarray(x, np.int64)


def round_divide(x: np.ndarray, divisor) -> np.ndarray:
    """RHE(x / divisor) as int64, divisor >= 1, |x| + divisor < 2^62."""
    x, divisor = np.asarray(x, np.int64), np.asarray(divisor, np.int64)
    floor = x // divisor
    twice = 2 * (x - floor * divisor)
    return floor + ((twice > divisor) | ((twice == divisor) & (floor & 1 == 1)))


def clamp(x: np.ndarray, low: int, high: int, dtype: str) -> np.ndarray:
    """X limited to [low, high], as `dtype`."""
    return np.clip(x, low, high).astype(dtype)
