"""int8 matrix product with int32 bias: y[r, n] = sum_k x[r, k] * w[n, k] + bias[n].

Source: I-BERT QuantLinear (arXiv 2101.01321, section 3.1); every recipe uses it.
"""

import numpy as np

from intformer.ir.constants import ZERO_POINT
from intformer.relay_ops.fixedpoint import check_fits
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "matmul"
# float32 holds every integer up to 2^24 = 1024 * 128 * 128, so a BLAS product of this many int8
# terms has no rounding in any order of summation
EXACT_TERMS = 1024
BOUND_TERMS = 512  # the same for the range analysis, whose factors reach 256 and 128
CHUNK = 256  # rows of w widened at a time: they stay in the second-level cache


def reference(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x int8 [r, K], w int8 [N, K], bias int32 [N] -> int32 [r, N]; accumulator int32."""
    acc = bias.astype(np.int64)
    for k in range(0, x.shape[1], EXACT_TERMS):
        part = slice(k, k + EXACT_TERMS)
        acc = acc + (x[:, part].astype(np.float32) @ w[:, part].astype(np.float32).T).astype(
            np.int64
        )
    return check_fits(acc, "int32", NAME, "accumulator").astype(np.int32)


def bounds(x: Interval, w: np.ndarray, bias: np.ndarray) -> Interval:
    """Exact interval per output channel, from the weights.

    Lemma: whatever the order, a partial sum takes some of the terms, each between its own ends, so
    it lies in [sum min(0, low_k), sum max(0, high_k)], with the bias added first or last. Checked
    for both forms of the product that kernels use: s8 x s8, and u8 x s8 with x + 128 and the
    bias less 128 sum_k w[n, k].
    """
    k = w.shape[1]
    x = x.fits("int8", NAME, "input")
    low, high = (np.broadcast_to(end, k).astype(np.float32) for end in (x.low, x.high))
    zero = np.zeros(k, np.float32)
    # columns: the sum itself, partial sums signed, partial sums unsigned
    lows = np.stack([low, np.minimum(low, 0), zero], 1)
    highs = np.stack([high, np.maximum(high, 0), high + ZERO_POINT], 1)
    sums = [_ends(w[i : i + CHUNK], lows, highs) for i in range(0, len(w), CHUNK)]
    least, most = (exact(np.concatenate(end)) for end in zip(*sums, strict=True))
    b = exact(bias)
    folded = b - ZERO_POINT * exact(w.sum(1, dtype=np.int64))
    for column, start in ((1, b), (2, folded)):
        partial_low = np.minimum(0, start) + least[:, column]
        partial_high = np.maximum(0, start) + most[:, column]
        Interval(partial_low, partial_high).fits("int32", NAME, "accumulator")
    return Interval(least[:, 0] + b, most[:, 0] + b)


def _ends(w: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and most of sum_k w[n, k] x[k], int64 [N, columns].

    The ends of w x are (w (high + low) -+ |w| (high - low)) / 2. Exact in float32: high + low is
    within -256..254 and high - low within 0..255, so 512 terms stay within 2^24.
    """
    middle = np.zeros((len(w), lows.shape[1]), np.int64)
    reach = np.zeros_like(middle)
    for k in range(0, w.shape[1], BOUND_TERMS):
        part = slice(k, k + BOUND_TERMS)
        terms = w[:, part].astype(np.float32)
        middle += (terms @ (highs[part] + lows[part])).astype(np.int64)
        reach += (np.abs(terms, out=terms) @ (highs[part] - lows[part])).astype(np.int64)
    return (middle - reach) // 2, (middle + reach) // 2


def define(args: list, attrs: dict) -> list:
    """Tensor expression: x uint8 [b, 8, K] (zero point 128), w int8 packed for a chip.

    w  [N / 16, K / 4, 16, 4] for dot products of four numbers, [N, K] for tensor cores
    The bias holds the column sum's share of the zero point, so that the result is the logical one.
    """
    from tvm import te

    from intformer.relay_ops.expr import wrapping_add

    x, w, bias = args
    blocks, rows, _ = x.shape
    if len(w.shape) == 2:
        columns, depth = (int(extent) for extent in w.shape)
        k = te.reduce_axis((0, depth), "k")
        acc = te.compute(
            (blocks, rows, columns),
            lambda i, r, j: te.sum(x[i, r, k].astype("int32") * w[j, k].astype("int32"), axis=k),
            name="matmul",
        )
        shape, at = acc.shape, lambda j: (j,)
    else:
        columns, depths, lanes, depth = (int(extent) for extent in w.shape)
        ko, ki = te.reduce_axis((0, depths), "ko"), te.reduce_axis((0, depth), "ki")
        acc = te.compute(
            (blocks, rows, columns, lanes),
            lambda i, r, jo, ji: te.sum(
                x[i, r, ko * depth + ki].astype("int32") * w[jo, ko, ji, ki].astype("int32"),
                axis=[ko, ki],
            ),
            name="matmul",
        )
        shape, at = (blocks, rows, columns * lanes), lambda j: (j // lanes, j % lanes)
    return [
        te.compute(shape, lambda i, r, j: wrapping_add(acc[i, r, *at(j)], bias[j]), name="add_bias")
    ]


def work(attrs: dict, rows: int, lengths: np.ndarray, shapes: dict) -> int:
    """Multiply-adds: one per row and weight."""
    width, depth = shapes[1]
    return rows * width * depth


OP = IntOp(
    NAME,
    reference,
    bounds,
    define,
    by_row=True,
    work=work,
    accumulates=True,
    source="arXiv 2101.01321 section 3.1",
)
