"""Weighted sum over each sequence's tokens, divided by a number of the length.

    y = RHE(sum_t w_t x_t 2^shift / divisor[n])         w_t = 1, or t + 1 for rising weights

The divisors are constants: n (n + 1) / 2 makes rising weights a mean, and 2^24 sqrt(n) the sum
over the square root of the length. Where every weight and every divisor is plain, `mean_pool` does.
"""

import math

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import LIMITS, check_fits, round_divide
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "weighted_pool"
ROOT_BITS = 24  # of the root of a length
MEAN_SQRT, WEIGHTED_MEAN = "mean_sqrt", "weighted_mean"  # forms
DIVIDEND_BITS = 62


def divisors(form: str, longest: int) -> np.ndarray:
    """Return the divisor of every length, int32 [longest + 1]; that of 0 is never read.

    form  MEAN_SQRT: round(2^ROOT_BITS sqrt(n)); WEIGHTED_MEAN: the sum of rising weights
    """
    lengths = range(1, longest + 1)
    if form == MEAN_SQRT:
        found = [(math.isqrt(n << (2 * ROOT_BITS + 2)) + 1) >> 1 for n in lengths]
    else:
        found = [total_weight(n, True) for n in lengths]
    if found[-1] > LIMITS["int32"][1]:
        raise RangeError(f"a divisor is {found[-1]}, which does not fit int32", where=NAME)
    return np.array([1, *found], np.int32)


def total_weight(length: int, rising: bool) -> int:
    """Return the sum of the weights."""
    return length * (length + 1) // 2 if rising else length


def dividend_bits(longest: int, rising: bool, shift: int) -> int:
    """Return the bits of the largest |sum 2^shift|."""
    return (total_weight(longest, rising) << 15).bit_length() + shift


def reference(
    x: np.ndarray, cu_seqlens: np.ndarray, divisor: np.ndarray, *, shift: int, rising: bool
) -> np.ndarray:
    """x int16 [n, C], cu_seqlens int32 [s + 1], divisor int32 [longest + 1] -> int32 [s, C].

    The sum is int64, shifted or not. Sequences are not empty.
    """
    offsets = np.asarray(cu_seqlens, np.int64)
    lengths = np.diff(offsets)
    terms = x.astype(np.int64)
    if rising:
        terms *= (np.arange(len(x)) - np.repeat(offsets[:-1], lengths) + 1)[:, None]
    total = np.add.reduceat(terms, offsets[:-1], axis=0)
    pooled = round_divide(total << shift, divisor.astype(np.int64)[lengths][:, None])
    return check_fits(pooled, "int32", NAME, "result").astype(np.int32)


def bounds(
    x: Interval, cu_seqlens: Interval, divisor: np.ndarray, *, shift: int, rising: bool
) -> Interval:
    """Interval of the result: what the length with the largest quotient makes of the largest |x|.

    cu_seqlens  interval of the sequence lengths
    """
    longest = cu_seqlens.max
    if longest >= len(divisor):
        raise RangeError(f"{len(divisor) - 1} divisors for {longest} tokens", where=NAME)
    if divisor.min() < 1:
        raise RangeError(f"a divisor is {divisor.min()}, below 1", where=NAME)
    if dividend_bits(longest, rising, shift) > DIVIDEND_BITS:
        raise RangeError(f"sums of {longest} tokens, 2^{shift} times, leave int64", where=NAME)
    most = 0  # of RHE(|x| total 2^shift / divisor) over all lengths: rounded up
    top = int(x.magnitude.max())
    for length in range(1, longest + 1):
        dividend = top * total_weight(length, rising) << shift
        most = max(most, -(-dividend // int(divisor[length])))
    return Interval.of(-most, most).fits("int32", NAME, "result")


OP = IntOp(
    NAME,
    reference,
    bounds,
    by_sequence=True,
    clears=True,
    unpadded=3,
    source="sentence-transformers pooling modes mean_sqrt_len_tokens and weightedmean",
)
