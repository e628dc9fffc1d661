"""Embedding lookup and sum: clamp(clamp(dy(word) + dy(type)) + dy(position)).

dy(row) = RHE(row * mult[id] / 2^shift[id]): one scale per table row. Source: IBertEmbeddings
(transformers), whose embeddings_act1 runs twice; DESIGN section 2a for the scale per row.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import check_fits, clamp, dyadic
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "embed"


def _rows(ids: np.ndarray, table: np.ndarray, mult: np.ndarray, shift: np.ndarray) -> np.ndarray:
    if ids.size and not (0 <= ids.min() and ids.max() < len(table)):
        raise RangeError(f"id {ids.min()}..{ids.max()} outside 0..{len(table) - 1}", where=NAME)
    return dyadic(table[ids], mult[ids][:, None], shift[ids][:, None])


def _lookups(arrays: tuple, types: int) -> list[tuple]:
    """Group the flat argument list: (ids, table, mult, shift) of word, [type,] position."""
    count = 2 + types
    ids, tables = arrays[:count], arrays[count:]
    return [(ids[i], *tables[3 * i : 3 * i + 3]) for i in range(count)]


def reference(*arrays: np.ndarray, lo: int, hi: int, types: int) -> np.ndarray:
    """Look up and add; int32 [n, C]. The sums are int32.

    arrays  input_ids int32 [n], [token_type_ids int32 [n] if types], position_ids int32 [n],
            word int8 [V, C], word_mult int32 [V], word_shift int32 [V],
            [type int16 [T, C], type_mult, type_shift int32 [T] if types],
            position int16 [P, C], position_mult, position_shift int32 [P]
    """
    *first, last = [_rows(*lookup) for lookup in _lookups(arrays, types)]
    total = clamp(check_fits(sum(first), "int32", NAME, "sum"), lo, hi, "int64")
    total = check_fits(total + last, "int32", NAME, "sum")
    return clamp(total, lo, hi, "int32")


def bounds(*arrays, lo: int, hi: int, types: int) -> Interval:
    """Interval per channel over every row of every table (ids may be anything legal)."""
    parts = []
    for _, table, mult, shift in _lookups(arrays, types):
        rows = dyadic(table, mult[:, None], shift[:, None])  # int64: |table| < 2^15
        parts.append(Interval(exact(rows.min(0)), exact(rows.max(0))).fits("int32", NAME, "row"))
    *first, last = parts
    total = first[0] if len(first) == 1 else first[0] + first[1]
    total = total.fits("int32", NAME, "sum").clamp(lo, hi)
    return (total + last).fits("int32", NAME, "sum").clamp(lo, hi)


OP = IntOp(NAME, reference, bounds, source="transformers ibert IBertEmbeddings")
