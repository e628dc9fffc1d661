"""Intervals for the range analysis: per-channel [low, high] of an activation, as Python integers.

Object arrays of Python integers cannot wrap, so the analysis itself cannot be wrong that way.
"""

from dataclasses import dataclass

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import LIMITS, round_shift


def exact(x) -> np.ndarray:
    """X as an array of Python integers, any shape."""
    return np.asarray(x).astype(object)


@dataclass(frozen=True)
class Interval:
    """Where an activation [rows, C] can be: low and high, object arrays [C] or scalars []."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, low, high) -> "Interval":
        """Build from numbers or arrays of any integer dtype."""
        return cls(exact(low), exact(high))

    @property
    def min(self) -> int:
        """Lowest value of any channel."""
        return int(np.min(self.low))

    @property
    def max(self) -> int:
        """Highest value of any channel."""
        return int(np.max(self.high))

    @property
    def magnitude(self) -> np.ndarray:
        """Largest absolute value per channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def fits(self, dtype: str, op: str, what: str) -> "Interval":
        """Return self, or raise RangeError naming op and the first channel beyond `dtype`."""
        return self.within(*LIMITS[dtype], op, what, f"does not fit {dtype}")

    def within(self, low: int, high: int, op: str, what: str, why: str) -> "Interval":
        """Return self if inside [low, high], else raise RangeError naming op and channel."""
        if self.min < low or self.max > high:
            beyond = np.atleast_1d((self.low < low) | (self.high > high))
            channel = int(np.argmax(beyond))
            at = f" (channel {channel})" if beyond.size > 1 else ""
            raise RangeError(f"{what}{at} can be {self.min}..{self.max}, which {why}", where=op)
        return self

    def clamp(self, low: int, high: int) -> "Interval":
        """Interval of clamp(x, low, high)."""
        return Interval(np.clip(self.low, low, high), np.clip(self.high, low, high))

    def dyadic(self, mult, shift) -> "Interval":
        """Interval of RHE(x * mult / 2^shift): monotone in x, so the ends decide."""
        mult, shift = exact(mult), exact(shift)
        ends = [_round_shift(end * mult, shift) for end in (self.low, self.high)]
        return Interval(np.minimum(*ends), np.maximum(*ends))

    def __add__(self, other: "Interval") -> "Interval":
        """Interval of the sum."""
        return Interval(self.low + other.low, self.high + other.high)


def _round_shift(product: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """RHE(product / 2^shift) of Python integers; in int64 where every step of it fits."""
    if np.max(np.abs(product)) + (1 << (int(np.max(shift)) - 1)) < 2**63:
        return exact(round_shift(product, shift))
    return _round_shift_any(product, shift)


def _rhe(product: int, shift: int) -> int:
    floor, rest = product >> shift, product & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    return floor + (rest > half or (rest == half and floor & 1))


_round_shift_any = np.frompyfunc(_rhe, 2, 1)
