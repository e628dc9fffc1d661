"""Attention to contents and to distances apart (DeBERTa v2 and v3), native recipe.

    s = q . k + q . keys[r] + k . queries[r]    r = L - 1 + j - i, query i, key j, L the most tokens
    and from the scores on as in attention

A channel of `keys` has the scale of that channel of k, one of `queries` that of q: so all three
products are integers of one scale. Which distances share an embedding was decided before: there is
a row for every distance. Source: arXiv 2006.03654.
"""

from functools import lru_cache

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops import attention
from intformer.relay_ops.attention import LIMIT8
from intformer.relay_ops.attention_bias import ROOM
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "attention_relative"
KEYS, QUERIES = 5, 6  # which arguments they are
MAX_KEYS = attention.PART


def reference(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    keys: np.ndarray,
    queries: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> np.ndarray:
    """Attend inside each sequence; int8 [n, C].

    keys, queries  int8 [2 L - 1, C], head by head; sequences have at most L tokens
    The others are those of attention.reference.
    """
    width = heads * head_dim

    def part(rows: np.ndarray, number: int, head: int) -> np.ndarray:
        start = number * width + head * head_dim
        return rows[:, start : start + head_dim].astype(np.float64)

    @lru_cache(1)  # of the sequence and head at hand, whose scores are made part by part
    def whole(head: int, first: int, stop: int) -> np.ndarray:
        rows = qkv[first:stop]
        operands = part(rows, 0, head), part(rows, 1, head), part(keys, 0, head)
        found = products(*operands, part(queries, 0, head))
        return found.astype(np.int64)  # exact: head_dim * 2^14 is far below 2^53

    def shift(head: int, rows: slice, asking: slice, asked: slice) -> np.ndarray:
        return whole(head, rows.start, rows.stop)[asking, asked]

    return attention.attend(qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim, shift)


def products(q: np.ndarray, k: np.ndarray, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return q . keys[r] + k . queries[r], [L, L], of one sequence and head."""
    at = np.arange(len(q))
    row = len(keys) // 2 + at[None, :] - at[:, None]
    return (q @ keys.T)[at[:, None], row] + (k @ queries.T)[at[None, :], row]


def bounds(
    qkv: Interval,
    cu_seqlens: Interval,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    keys: np.ndarray,
    queries: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> Interval:
    """Interval of the output: only the range of the scores differs from attention.bounds.

    To |q . k| comes what a row of the tables makes of the largest queries and keys.
    """
    width, longest = heads * head_dim, cu_seqlens.max
    if longest > MAX_KEYS:
        raise RangeError(f"sequences have up to {longest} tokens, above {MAX_KEYS}", where=NAME)
    for table in (keys, queries):
        if table.shape != (2 * longest - 1, width):
            raise RangeError(
                f"a table of shape {list(table.shape)} for {width} channels and {longest} tokens",
                where=NAME,
            )
    peak = np.broadcast_to(Interval(qkv.low, qkv.high).magnitude, 3 * width)
    most = 0
    for table, peaks in ((keys, peak[:width]), (queries, peak[width : 2 * width])):
        products = np.abs(table.astype(np.int64)) * peaks
        most += int(products.reshape(len(table), heads, head_dim).sum(2).max())
    args = qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim
    return attention.bounds_of(*args, most)


def table(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return real rows [2 L - 1, C] as int8, each channel at its scale [C].

    Raises RangeError where a scale does not hold its channel: nothing is clipped.
    """
    steps = np.rint(rows.astype(np.float64) / scale)
    if np.abs(steps).max() > LIMIT8:
        raise RangeError(f"a distance is {np.abs(steps).max():.0f} steps, above 127", where=NAME)
    return steps.astype(np.int8)


def work(attrs: dict, rows: int, lengths: np.ndarray, shapes: dict) -> int:
    """Multiply-adds: two more products for every score."""
    return 2 * attention.work(attrs, rows, lengths, shapes)


OP = IntOp(
    NAME,
    reference,
    bounds,
    heads=True,
    by_sequence=True,
    unpadded=3,
    by_distance={KEYS: True, QUERIES: False},
    room={KEYS: ROOM, QUERIES: ROOM},
    clears=True,
    work=work,
    source="own; arXiv 2006.03654",
)
