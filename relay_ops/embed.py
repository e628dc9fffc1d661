"""Embedding lookup and sum: clamp(clamp(dy(word) + dy(type)) + dy(position)).

Types and positions may be absent; the sum is clamped before its last term and after it.

dy(row) = RHE(row * mult[id] / 2^shift[id]): one scale per table row. Source: transformers,
models/ibert/modeling_ibert.py IBertEmbeddings, whose embeddings_act1 runs twice. Ours: the scale
per row.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.ir.constants import BLOCK
from intformer.relay_ops.fixedpoint import check_fits, clamp, dyadic
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "embed"


def _rows(ids: np.ndarray, table: np.ndarray, mult: np.ndarray, shift: np.ndarray) -> np.ndarray:
    if ids.size and not (0 <= ids.min() and ids.max() < len(table)):
        raise RangeError(f"id {ids.min()}..{ids.max()} outside 0..{len(table) - 1}", where=NAME)
    rows = dyadic(table[ids], mult[ids][:, None], shift[ids][:, None])
    return check_fits(rows, "int32", NAME, "row")


def _lookups(arrays: tuple, types: int, positions: int) -> list[tuple]:
    """Group the flat argument list: (ids, table, mult, shift) of word, [type,] [position]."""
    count = 1 + types + positions
    ids, tables = arrays[:count], arrays[count:]
    return [(ids[i], *tables[3 * i : 3 * i + 3]) for i in range(count)]


def reference(*arrays: np.ndarray, lo: int, hi: int, types: int, positions: int = 1) -> np.ndarray:
    """Look up and add; int32 [n, C]. Rows and sums are int32.

    arrays  input_ids int32 [n], [token_type_ids int32 [n] if types],
            [position_ids int32 [n] if positions],
            word int8 [V, C], word_mult int32 [V], word_shift int32 [V],
            [type int16 [T, C], type_mult, type_shift int32 [T] if types],
            [position int16 [P, C], position_mult, position_shift int32 [P] if positions]
    """
    *first, last = [_rows(*lookup) for lookup in _lookups(arrays, types, positions)]
    total = check_fits(sum(first, np.zeros_like(last)), "int32", NAME, "sum")
    total = check_fits(clamp(total, lo, hi, "int64") + last, "int32", NAME, "sum")
    return clamp(total, lo, hi, "int32")


def bounds(*arrays, lo: int, hi: int, types: int, positions: int = 1) -> Interval:
    """One interval over every row of every table (ids may be anything legal), all channels."""
    parts = []
    for _, table, mult, shift in _lookups(arrays, types, positions):
        rows = Interval(exact(table.min(1)), exact(table.max(1))).dyadic(mult, shift)
        parts.append(Interval.of(rows.min, rows.max).fits("int32", NAME, "row"))
    *first, last = parts
    total = sum(first, Interval.of(0, 0)).fits("int32", NAME, "sum").clamp(lo, hi)
    return (total + last).fits("int32", NAME, "sum").clamp(lo, hi)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]; rows past the last token are 0.

    The word table is [V, W], or packed as the tied decoder's weight, [V / 16, W / 4, 16, 4].
    """
    from tvm import te, tirx

    from intformer.relay_ops import expr

    *first, last = _lookups(args, attrs["types"], attrs.get("positions", 1))
    tokens = args[0].shape[0]

    def entry(table, row, c):
        if len(table.shape) == 2:
            return table[row, c]
        lanes, depth = int(table.shape[2]), int(table.shape[3])
        return table[row // lanes, c // depth, row % lanes, c % depth]

    def share(lookup, t, c):
        ids, table, mult, shift = lookup
        p = expr.product(entry(table, ids[t], c), mult[ids[t]])
        return expr.round_shift(p, shift[ids[t]].astype("int64")).astype("int32")

    def out(i, r, c):
        t = i * BLOCK + r
        total = share(last, t, c)
        if first:
            before = sum(share(lookup, t, c) for lookup in first)
            total = expr.clamp(before, attrs["lo"], attrs["hi"]) + total
        total = expr.clamp(total, attrs["lo"], attrs["hi"])
        return tirx.if_then_else(t < tokens, total, tirx.const(0, "int32"))

    return [te.compute((attrs["blocks"], BLOCK, attrs["width"]), out, name="embed")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    lookup=True,
    clears=True,
    source="transformers ibert IBertEmbeddings",
)
