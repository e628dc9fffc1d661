"""Rows by index: first token of each sequence, or the tokens at requested positions."""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "take_rows"


def reference(x: np.ndarray, index: np.ndarray, *, rows: str) -> np.ndarray:
    """x [n, C] -> [r, C], same dtype.

    index  int32; rows "sequence": cu_seqlens [batch + 1], its last entry dropped;
           rows "position": positions [r]
    """
    return x[index[:-1] if rows == "sequence" else index]


def bounds(x: Interval, index: Interval, *, rows: str) -> Interval:
    """A row of x is in x's interval."""
    return x


OP = IntOp(NAME, reference, bounds, source="first-token pooling; masked positions")
