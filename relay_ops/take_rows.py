"""Rows by index: first or last token of each sequence, or the tokens at requested positions."""

import numpy as np

from intformer.ir.constants import BLOCK
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "take_rows"


def reference(x: np.ndarray, index: np.ndarray, *, rows: str, last: bool = False) -> np.ndarray:
    """x [n, C] -> [r, C], same dtype.

    index  int32; rows "sequence": cu_seqlens [batch + 1], of which each sequence's first token is
           taken, or its last one; rows "position": positions [r]
    """
    if last:
        return x[index[1:] - 1]
    return x[index[:-1] if rows == "sequence" else index]


def bounds(x: Interval, index: Interval, *, rows: str, last: bool = False) -> Interval:
    """A row of x is in x's interval."""
    return x


def define(args: list, attrs: dict) -> list:
    """Tensor expression: x [b, 8, W] -> [rows / 8, 8, W]; rows past the last one are 0."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    x, index = args
    read = expr.load(x, attrs)
    count = index.shape[0] - (1 if attrs["rows"] == "sequence" else 0)

    def at(row):
        return index[row + 1] - 1 if attrs.get("last") else index[row]

    def out(i, r, c):
        row = i * BLOCK + r
        value = tirx.if_then_else(
            row < count, read(at(row) // BLOCK, at(row) % BLOCK, c), tirx.const(0, "int32")
        )
        return expr.store(value, attrs)

    return [te.compute((attrs["blocks"], BLOCK, attrs["width"]), out, name="take_rows")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    clears=True,
    source="pooling by first or last token; masked positions",
)
