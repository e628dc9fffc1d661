"""Attention with a bias of its scores by head and distance (MPNet, T5, ALiBi), native recipe.

    s = q . k + bias[head, L - 1 + j - i]        query i, key j, L the most tokens
    and from the scores on as in attention

The bias is an integer at the scale of the scores: rounding it costs half of their LSB.
Source: arXiv 1910.10683 (T5), 2004.09297 (MPNet).
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops import attention
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "attention_bias"
BIAS = 5  # which argument it is
ROOM = 128  # columns behind a row that a kernel may read: keys past the sequence


def reference(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    bias: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> np.ndarray:
    """Attend inside each sequence; int8 [n, C].

    bias  int32 [heads, 2 L - 1]; sequences have at most L tokens
    The others are those of attention.reference.
    """
    longest = (bias.shape[1] + 1) // 2

    def shift(head: int, rows: slice, queries: slice, keys: slice) -> np.ndarray:
        at = np.arange(rows.stop - rows.start)
        return bias[head, longest - 1 + at[keys] - at[queries, None]].astype(np.int64)

    return attention.attend(qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim, shift)


def bounds(
    qkv: Interval,
    cu_seqlens: Interval,
    exp: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_offset: np.ndarray,
    bias: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> Interval:
    """Interval of the output: only the range of the scores differs from attention.bounds."""
    longest = (bias.shape[1] + 1) // 2
    if bias.shape != (heads, 2 * longest - 1) or cu_seqlens.max != longest:
        raise RangeError(
            f"a bias of shape {list(bias.shape)} for {heads} heads and {cu_seqlens.max} tokens",
            where=NAME,
        )
    largest = int(np.abs(bias.astype(np.int64)).max())
    args = qkv, cu_seqlens, exp, ctx_mult, ctx_offset, heads, head_dim
    return attention.bounds_of(*args, largest)


def columns(longest: int) -> int:
    """Return the columns of a row in memory, for sequences of at most `longest` tokens."""
    return 2 * longest - 1 + ROOM


def table(bias: np.ndarray, scale_q: float, scale_k: float, head_dim: int) -> np.ndarray:
    """Return the bias as int32 at the scale of the scores.

    bias  real numbers, added after 1 / sqrt(head_dim)
    """
    steps = np.rint(
        bias.astype(np.float64) * (np.sqrt(head_dim) / (float(scale_q) * float(scale_k)))
    )
    if np.abs(steps).max() >= 2**30:
        raise RangeError(
            f"a bias of {np.abs(bias).max():.3g} is {np.abs(steps).max():.3g} steps of the scores",
            where=NAME,
            hint="queries and keys are almost zero",
        )
    return steps.astype(np.int32)


OP = IntOp(
    NAME,
    reference,
    bounds,
    heads=True,
    by_sequence=True,
    unpadded=3,
    room={BIAS: ROOM},
    clears=True,
    work=attention.work,
    source="own; arXiv 1910.10683, 2004.09297",
)
