"""Rotary positions: queries and keys turned by their position, pair by pair; values pass by.

    y1 = clamp((x1 cos[p, j] - x2 sin[p, j] + half) >> SHIFT)      channels j, j + d / 2 of a head
    y2 = clamp((x2 cos[p, j] + x1 sin[p, j] + half) >> SHIFT)

x of queries and keys is int16 with FRACTION_BITS more than the int8 result, which have room for the
length of a pair; cos and sin are Q15. Both channels of a pair have one scale, so that one shift
rounds everything once. Values come at the scale of the result and are clamped alone.
Source: arXiv 2104.09864 (RoFormer), the halves as in GPT-NeoX.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.ir.constants import BLOCK
from intformer.relay_ops.fixedpoint import check_fits, clamp
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "rotary"
FRACTION_BITS = 7  # of an int8 step: 127 2^7 sqrt(2), a whole pair in one channel, fits int16
TABLE_BITS = 15
SHIFT = TABLE_BITS + FRACTION_BITS
LIMIT = 127
TABLES = 2  # the first argument that is a table


def tables(cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin as Q15, int16 [P, d / 2]; 1 is 32767 / 32768."""
    top = 2**TABLE_BITS
    return tuple(np.clip(np.rint(x * top), -top + 1, top - 1).astype(np.int16) for x in (cos, sin))


def reference(
    qkv: np.ndarray,
    position_ids: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> np.ndarray:
    """Turn the pairs of queries and keys; int8 [n, 3C], C = heads * head_dim.

    qkv           int16 [n, 3C]: q, k, v side by side, each head by head
    position_ids  int32 [n]: rows of the tables
    cos, sin      int16 [P, head_dim / 2]
    Sums of two products are int32.
    """
    _check(cos, sin, head_dim)
    if position_ids.size and not (0 <= position_ids.min() and position_ids.max() < len(cos)):
        raise RangeError(
            f"position {position_ids.min()}..{position_ids.max()} outside 0..{len(cos) - 1}",
            where=NAME,
        )
    x = qkv.reshape(len(qkv), 3, heads, 2, head_dim // 2).astype(np.int64)
    first, second = x[:, :2, :, 0], x[:, :2, :, 1]
    c, s = (table[position_ids][:, None, None].astype(np.int64) for table in (cos, sin))
    turned = np.stack([first * c - second * s, second * c + first * s], 3) + 2 ** (SHIFT - 1)
    out = x.copy()
    out[:, :2] = check_fits(turned, "int32", NAME, "sum") >> SHIFT
    return clamp(out, -LIMIT, LIMIT, "int8").reshape(qkv.shape)


def _check(cos: np.ndarray, sin: np.ndarray, head_dim: int) -> None:
    if head_dim % 2 or cos.shape != sin.shape or cos.shape[1:] != (head_dim // 2,):
        raise RangeError(
            f"tables of shape {list(cos.shape)} and {list(sin.shape)} for heads of {head_dim}",
            where=NAME,
        )


def bounds(
    qkv: Interval,
    position_ids: Interval,
    cos: np.ndarray,
    sin: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> Interval:
    """Interval of the result: the largest sum of both products over all positions.

    The signs of the table's entries may be any, so the interval of a turned channel is symmetric
    but for the rounding, which is upwards.
    """
    _check(cos, sin, head_dim)
    width = heads * head_dim
    low, high = (np.broadcast_to(end, 3 * width) for end in (qkv.low, qkv.high))
    Interval(low, high).fits("int16", NAME, "input")
    peak = Interval(low, high).magnitude[: 2 * width].astype(np.int64)
    peak = peak.reshape(2 * heads, 2, head_dim // 2)
    c, s = (np.abs(table.astype(np.int64)) for table in (cos, sin))
    peaks, which = np.unique(peak, axis=0, return_inverse=True)  # most heads have the same
    reach = np.stack([(c * one + s * one[::-1]).max(1) for one in peaks[:, :, None]])
    reach = exact(reach[which.ravel()])
    half = 2 ** (SHIFT - 1)
    turned = Interval((half - reach).ravel(), (half + reach).ravel())
    turned = turned.fits("int32", NAME, "sum")
    ends = (
        np.concatenate([end >> SHIFT, rest[2 * width :]])
        for end, rest in ((turned.low, low), (turned.high, high))
    )
    return Interval(*ends).clamp(-LIMIT, LIMIT)


def define(args: list, attrs: dict) -> list:
    """Tensor expression over [b, 8, W]; the halves of a head are padded apart to whole vectors."""
    from tvm import te, tirx

    from intformer.relay_ops import expr

    x, position_ids, cos, sin = args
    read, tokens = expr.load(x, attrs), position_ids.shape[0]
    half = attrs["head_dim"] // 2
    values = 2 * attrs["heads"] * attrs["head_dim"]  # where they begin

    def out(i, r, c):
        t = i * BLOCK + r
        p = tirx.if_then_else(t < tokens, position_ids[t], tirx.const(0, "int32"))
        second = tirx.floormod(tirx.floordiv(c, half), 2)
        mine, other = read(i, r, c), read(i, r, c + half - second * (2 * half))
        turned = mine * cos[p, tirx.floormod(c, half)].astype("int32")
        across = other * sin[p, tirx.floormod(c, half)].astype("int32")
        turned = turned + tirx.Select(second > 0, across, 0 - across)
        y = (turned + 2 ** (SHIFT - 1)) >> SHIFT
        y = tirx.Select(c < values, y, mine)
        return expr.store(expr.clamp(y, -LIMIT, LIMIT), attrs)

    return [te.compute(x.shape, out, name="rotary")]


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    pairs=True,
    source="own; arXiv 2104.09864",
)
