"""Attention over packed tokens, native recipe: one softmax row at a time, never normalised to int8.

    s = q . k,  d = min(rowmax - s, most),  z = (d 2^lift mult) >> 32     d / ln 2 in Q12, floor
    E = round(4096 * 2^-z)  in 0..4096, 4096 at the row maximum  i-exp: 2^-n times a quartic in f
    acc = sum E v,  rec = 2^(48 - up) / sum E,  u = (acc 2^up rec) >> 32  mean of v in Q16
    out = clamp(((u + offset) mult) >> 32)                       rescale

With a window, query i sees the keys j with |i - j| <= window; all of the above is about those.
Where a row may see more than PART keys, acc would not fit int32: floor(acc / 2) and 2^49 / sum E
take the places of acc and 2^48 / sum E.

Source: own (base 2 after Softermax, arXiv 2103.09301). Rows stay unnormalised because uint8
probabilities vanish on long flat rows. E has 12 bits because 8 lose what many small keys add up to:
512 keys of Gaussian logits, sigma 2, lost up to 8 % of the mass (a constant V came back 10 LSB
low, the context had 27 dB). E and v fit int16, so that one 16-bit dot product takes both; all of
i-exp from z on runs in 16-bit lanes.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops import rescale
from intformer.relay_ops.fixedpoint import BLOCK, check_fits, clamp, mul_round
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "attention"
Z_BITS = 12  # of d / ln 2
TOP = 4096  # numerator of the row maximum
PART = 4096  # keys up to which sum E v is int32
MAX_KEYS = 2 * PART
FAR = 13.25  # halvings after which E is 0: d is limited there, so that z stays below 14
MAX_RATIO = 2.0**11  # z per LSB of a score; beyond, one step would leave [FAR, 14)
MOST = 2**30  # the limit of d where scores are too fine to reach FAR
T_BITS = 16  # u is a mean of v in Q16
LIMIT8 = 127
ROWS = 32  # that the reference takes at a time, at least
# 2^-f = 1 + c0 + f (c1 + f (c2 + f (c3 + f c4))) on [0, 1), aimed at the middle of a floored z:
# minimax, then searched as Q15 integers over all f
C4, C3, C2, C1, C0 = 222, -1739, 7843, -22707, -4
# 1 / m on [1/2, 1): 48 / 17 - 32 / 17 m is within 1 / 17, three Newton steps bring that to 2^-29
SEED, SLOPE = 3031741621, 2021161080  # Q30


def exp2_fraction(f: np.ndarray) -> np.ndarray:
    """2^-f in Q15 (16384..32768) for f in Q12, 0..4095; factors of products fit int16."""
    f = f << 3  # Q15
    h = np.full_like(f, C4)
    for c in (C3, C2, C1):
        h = mul_round(h, f) + c
    return mul_round(h, f) + (2**15 + C0)


def numerators(d: np.ndarray, mult: int, lift: int, most: int) -> np.ndarray:
    """E = round(4096 * 2^-z), 0..4096 as int64, from d >= 0, any shape."""
    return of_halvings(((np.minimum(d.astype(np.int64), most) << lift) * mult) >> 32)


def of_halvings(z: np.ndarray) -> np.ndarray:
    """E = round(4096 * 2^-z), int64, from z >= 0 in Q12, int64, below 14 halvings."""
    p = exp2_fraction(z & (2**Z_BITS - 1)).astype(np.int64)
    return ((p >> ((z >> Z_BITS) + 2)) + 1) >> 1


def inverse(m: np.ndarray) -> np.ndarray:
    """1 / m in Q30, int64, below 2^31; m int64 in [2^31, 2^32), Q32."""
    y = SEED - ((m * SLOPE) >> 32)
    for _ in range(3):
        y = (y * (2**31 - ((m * y) >> 32))) >> 30
    return np.minimum(y, 2**31 - 1)


def mean_of_values(e: np.ndarray, v: np.ndarray, halved: int = 0) -> np.ndarray:
    """sum E v / sum E in Q16, int64 [r, head_dim], from E [r, L] and v float64 [L, head_dim].

    halved  1 where rows may see more than PART keys, see `halvings_of`
    """
    acc = (e.astype(np.float64) @ v).astype(np.int64) >> halved  # exact: below 2^20 * L
    check_fits(acc, "int32", NAME, "context accumulator")
    total = e.sum(1, keepdims=True)
    bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)  # 13..26, exact
    most = 18 + halved
    rec = inverse(total << (32 - bits)) >> np.maximum(bits - most, 0)
    return ((acc << np.maximum(most - bits, 0)) * rec) >> 32


def seen_keys(length: int, window: int | None) -> int:
    """Return the most keys that a row of a sequence may see."""
    return length if window is None else min(length, 2 * window + 1)


def halvings_of(length: int, window: int | None) -> int:
    """Return how often the context accumulator of a sequence is halved: 0 or 1."""
    return int(seen_keys(length, window) > PART)


def operands(qkv: np.ndarray, span: slice, head: int, heads: int, head_dim: int) -> list:
    """q, k and v of one sequence and head, float64 [L, head_dim]."""
    width = heads * head_dim
    return [
        qkv[span, part * width + head * head_dim : part * width + (head + 1) * head_dim].astype(
            np.float64
        )
        for part in range(3)
    ]


def products(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q . k as int64 [rows, keys]; exact: head_dim * 2^14 is far below 2^53."""
    return check_fits((q @ k.T).astype(np.int64), "int32", NAME, "scores")


def scores(qkv: np.ndarray, span: slice, head: int, heads: int, head_dim: int) -> tuple:
    """q . k as int64 [L, L] and v as float64 [L, head_dim] of one sequence and head."""
    q, k, v = operands(qkv, span, head, heads, head_dim)
    return products(q, k), v


def reference(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    *,
    heads: int,
    head_dim: int,
    window: int | None = None,
) -> np.ndarray:
    """Attend inside each sequence; int8 [n, C], C = heads * head_dim.

    qkv         int8 [n, 3C]: q, k, v side by side, each head by head
    cu_seqlens  int32 [batch + 1]
    exp         int32 [3]: (mult, lift, most) of score difference -> Q12 of log2 units
    ctx_mult    int32 [C], ctx_offset int32 [C]: Q16 mean of v -> output, see rescale
    window      tokens that a query sees on either side; None: all
    Scores, row sums, E v sums and u are int32, products int64.
    """
    return attend(qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim, window=window)


def attend(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    heads: int,
    head_dim: int,
    shift: Callable | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Attend as `reference` does.

    shift  (head, rows, queries, keys) -> int64 [queries, keys], added to scores: all are slices,
           of the sequence in qkv, and of its rows
    """
    mult, lift, most = (int(e) for e in exp)
    _check_exp(mult, lift, most)
    u = np.empty((len(qkv), heads * head_dim), np.int64)
    for start, stop in pairwise(cu_seqlens.tolist()):
        span, length = slice(start, stop), stop - start
        halved = halvings_of(length, window)
        for head in range(heads):
            q, k, v = operands(qkv, span, head, heads, head_dim)
            columns = slice(head * head_dim, (head + 1) * head_dim)
            for queries, keys in blocks(length, window):
                s = products(q[queries], k[keys])
                if shift is not None:
                    s = check_fits(s + shift(head, span, queries, keys), "int32", NAME, "scores")
                inside = in_window(queries, keys, window)
                top = np.where(inside, s, s.min()).max(1, keepdims=True)
                e = numerators(np.maximum(top - s, 0), mult, lift, most) * inside
                rows = slice(start + queries.start, start + queries.stop)
                u[rows, columns] = mean_of_values(e, v[keys], halved)
    y = ((u + ctx_offset) * ctx_mult.astype(np.int64)) >> 32
    return clamp(y, -LIMIT8, LIMIT8, "int8")


def blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield rows of a sequence that fit the cache together, and the keys that they see."""
    rows = max(ROWS, BLOCK // length)
    for first in range(0, length, rows):
        last = min(first + rows, length)
        if window is None:
            yield slice(first, last), slice(0, length)
        else:
            yield slice(first, last), slice(max(0, first - window), min(length, last + window))


def in_window(queries: slice, keys: slice, window: int | None) -> np.ndarray:
    """Say which keys each query sees: bool [queries, keys], or [1, 1] where it is all."""
    if window is None:
        return np.ones((1, 1), bool)
    i, j = np.arange(queries.start, queries.stop), np.arange(keys.start, keys.stop)
    return np.abs(i[:, None] - j) <= window


def _check_exp(mult: int, lift: int, most: int) -> None:
    z = ((most << lift) * mult) >> 32
    if not (0 <= mult < 2**31 and 0 <= lift <= 30 and 1 <= most <= MOST and most << lift < 2**31):
        raise RangeError(f"exp is ({mult}, {lift}, {most}), beyond 31 bits", where=NAME)
    if z >= 14 << Z_BITS or (most < MOST and z <= 13 << Z_BITS):
        raise RangeError(f"exp ends at z = {z}, not between 13 and 14 halvings", where=NAME)


def score_bounds(qkv: Interval, heads: int, head_dim: int) -> tuple[int, Interval]:
    """Largest |q . k| of any head, and v's interval per channel."""
    width = heads * head_dim
    low, high = np.broadcast_to(qkv.low, 3 * width), np.broadcast_to(qkv.high, 3 * width)
    peak = Interval(low, high).magnitude
    products = (peak[:width] * peak[width : 2 * width]).reshape(heads, head_dim)
    return int(products.sum(1).max()), Interval(low[2 * width :], high[2 * width :])


def bounds(
    qkv: Interval,
    cu_seqlens: Interval,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    *,
    heads: int,
    head_dim: int,
    window: int | None = None,
) -> Interval:
    """Interval of the output; cu_seqlens is the interval of the sequence lengths.

    Lemma: the row maximum gives E = 4096, so 4096 <= sum E <= 4096 L. Lemma (convex combination):
    with E >= 0, sum E v lies in sum E * [min v, max v]. Lemma (Newton): y (2 - m y) <= 1 / m for
    every y, so only floors raise rec: by 2 in Q30 at most, 2^-28 of itself (rec >> k floors). Hence
    u lies in 2^16 * [min(v, 0), max(v, 0)], one LSB wider. |acc 2^up| <= 127 * 2^18. Halving acc
    floors it, by 2^17 / sum E <= 2^5 in u at most.
    """
    return bounds_of(qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim, window=window)


def bounds_of(
    qkv: Interval,
    cu_seqlens: Interval,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    heads: int,
    head_dim: int,
    shift: int = 0,
    window: int | None = None,
) -> Interval:
    """Interval of `bounds`, with at most |shift| added to every score."""
    _check_exp(*(int(e) for e in exp))
    peak, v = score_bounds(qkv, heads, head_dim)
    peak += shift
    longest = cu_seqlens.max
    if peak + 2**30 > 2**31 - 1:  # 2^30 stands for a score past the end
        raise RangeError(f"scores reach {peak}, beyond 2^30", where=NAME)
    if longest > MAX_KEYS:
        raise RangeError(f"sequences have up to {longest} tokens, above {MAX_KEYS}", where=NAME)
    if window is not None and window < 0:
        raise RangeError(f"window is {window}, below 0", where=NAME)
    total, halved = TOP * seen_keys(longest, window), halvings_of(longest, window)
    acc = Interval((v.low * total) >> halved, (v.high * total) >> halved)
    acc.fits("int32", NAME, "context accumulator")
    one, floor = 1 << T_BITS, 1 + (halved << 5)
    u = Interval(np.minimum(v.low, 0) * one - floor, np.maximum(v.high, 0) * one + 1)
    return rescale.bounds(u, ctx_mult, ctx_offset, lift=0, lo=-LIMIT8, hi=LIMIT8, dtype="int8")


def tables(
    scale_q: float,
    scale_k: float,
    scale_v: float,
    head_dim: int,
    scale_out: np.ndarray,
    zero_v: int = 0,
    zero_out: int = 0,
) -> dict[str, np.ndarray]:
    """exp, ctx_mult, ctx_offset of `reference` from real scales.

    scale_v, scale_out  broadcast to [C]
    zero_v, zero_out    zero points; that of keys cancels in a softmax, queries have none
    """
    score = float(scale_q) * float(scale_k) / math.sqrt(head_dim)
    ratio = score * math.log2(math.e) * 2**Z_BITS
    if not ratio <= MAX_RATIO:
        raise RangeError(
            f"one step of a score is {ratio / 2**Z_BITS:.3g} halvings, above 0.5",
            where=NAME,
            hint="the scales of q and k are far too coarse for a softmax",
        )
    most = min(MOST, math.ceil(FAR * 2**Z_BITS / max(ratio, 1e-30)))
    lift = max(0, 30 - most.bit_length())
    mult = math.floor(ratio * 2.0 ** (32 - lift))
    ctx_ratio = np.asarray(scale_v, np.float64) / np.asarray(scale_out, np.float64)
    ctx_mult, ctx_offset = rescale.tables(ctx_ratio / 2**T_BITS, 0, zero_out - zero_v * ctx_ratio)
    return {
        "exp": np.array([mult, lift, most], np.int32),
        "ctx_mult": ctx_mult,
        "ctx_offset": ctx_offset,
    }


def work(attrs: dict, rows: int, lengths: np.ndarray, shapes: dict) -> int:
    """Multiply-adds of scores and context: two per pair of query and key, and channel."""
    window = attrs.get("window")
    side = lengths - 1 if window is None else np.minimum(lengths - 1, window)
    pairs = lengths * (2 * side + 1) - side * (side + 1)
    return 2 * int(pairs.sum()) * attrs["heads"] * attrs["head_dim"]


OP = IntOp(
    NAME,
    reference,
    bounds,
    heads=True,
    by_sequence=True,
    unpadded=3,
    clears=True,
    work=work,
    source="own; arXiv 2103.09301",
)
