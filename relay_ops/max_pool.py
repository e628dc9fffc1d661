"""Maximum over each sequence's tokens, channel by channel."""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "max_pool"


def reference(x: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """x int16 or int32 [n, C], cu_seqlens int32 [batch + 1] -> as x, [batch, C]; none is empty."""
    return np.maximum.reduceat(x, np.asarray(cu_seqlens[:-1], np.int64), axis=0)


def bounds(x: Interval, cu_seqlens: Interval) -> Interval:
    """Interval of the maximum: one of its terms.

    cu_seqlens  interval of the sequence lengths
    """
    return x


OP = IntOp(NAME, reference, bounds, clears=True, source="sentence-transformers max pooling")
