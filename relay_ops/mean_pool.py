"""Mean over each sequence's tokens, kept fine: RHE(sum * 2^k / length).

k >= 8 fraction bits: the mean is never rounded to int8.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import check_fits, round_divide
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "mean_pool"
MIN_FRACTION_BITS = 8


def reference(x: np.ndarray, cu_seqlens: np.ndarray, *, fraction_bits: int) -> np.ndarray:
    """x int16 [n, C], cu_seqlens int32 [batch + 1] -> int32 [batch, C] at scale / 2^fraction_bits.

    The sum is int32, the shifted sum int64. Sequences are not empty.
    """
    offsets = np.asarray(cu_seqlens, np.int64)
    total = np.add.reduceat(x.astype(np.int64), offsets[:-1], axis=0)
    check_fits(total, "int32", NAME, "sum")
    mean = round_divide(total << fraction_bits, np.diff(offsets)[:, None])
    return check_fits(mean, "int32", NAME, "mean").astype(np.int32)


def bounds(x: Interval, cu_seqlens: Interval, *, fraction_bits: int) -> Interval:
    """Interval of the mean: min x <= mean <= max x (lemma: a mean lies between its terms).

    cu_seqlens  interval of the sequence lengths
    """
    if fraction_bits < MIN_FRACTION_BITS:
        raise RangeError(f"fraction_bits {fraction_bits} is below {MIN_FRACTION_BITS}", where=NAME)
    longest = cu_seqlens.max
    sums = Interval(np.minimum(x.low, 0) * longest, np.maximum(x.high, 0) * longest)
    sums.fits("int32", NAME, "sum")
    scale = 2**fraction_bits
    return Interval(x.low * scale, x.high * scale).fits("int32", NAME, "mean")


OP = IntOp(
    NAME,
    reference,
    bounds,
    by_sequence=True,
    clears=True,
    source="sentence-transformers mean pooling",
)
