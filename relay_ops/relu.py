"""ReLU: max(x, 0)."""

import numpy as np

from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "relu"


def reference(x: np.ndarray) -> np.ndarray:
    """x int32 [r, C] -> int32 [r, C]."""
    return np.maximum(x, 0)


def bounds(x: Interval) -> Interval:
    """Interval of max(x, 0)."""
    return Interval(np.maximum(x.low, 0), np.maximum(x.high, 0))


OP = IntOp(NAME, reference, bounds, source="max(x, 0)")
