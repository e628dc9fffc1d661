"""Rows by index: first token of each sequence, or the tokens at requested positions."""

import numpy as np

from intformer.ir.constants import BLOCK
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


def define(args: list, attrs: dict) -> list:
    """Tensor expression: x [b, 8, W] -> [rows / 8, 8, W]; rows past the last one are 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    x, index = args
    read = expr.load(x, attrs)
    count = index.shape[0] - (1 if attrs["rows"] == "sequence" else 0)

    def out(i, r, c):
        row = i * BLOCK + r
        value = tirx.if_then_else(
            row < count, read(index[row] // BLOCK, index[row] % BLOCK, c), tirx.const(0, "int32")
        )
        return expr.store(value, attrs)

    return [te.compute((attrs["blocks"], BLOCK, attrs["width"]), out, name="take_rows")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    clears=True,
    source="first-token pooling; masked positions",
)
