"""int8 matrix product with int32 bias: y[r, n] = sum_k x[r, k] * w[n, k] + bias[n].

Source: I-BERT QuantLinear (arXiv 2101.01321, section 3.1); every recipe uses it.
"""

import numpy as np

from intformer.relay_ops.fixedpoint import check_fits
from intformer.relay_ops.interval import Interval, exact
from intformer.relay_ops.op import IntOp

NAME = "matmul"
# float32 holds every integer up to 2^24 = 1024 * 128 * 128, so a BLAS product of this many int8
# terms has no rounding in any order of summation
EXACT_TERMS = 1024


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
    """Exact interval per output channel from the weights; also holds for any part of the sum.

    Lemma: a partial sum (any subset of k, bias first or last) lies in the interval of
    [sum_k min(0, low_k), sum_k max(0, high_k)] with bias added or not, so checking that one
    proves every order of accumulation, the u8 x s8 form apart (see `unsigned_bounds`).
    """
    k = w.shape[1]
    low = np.broadcast_to(x.low, k).astype(np.float64)
    high = np.broadcast_to(x.high, k).astype(np.float64)
    positive, negative = np.maximum(w, 0).astype(np.float64), np.minimum(w, 0).astype(np.float64)
    # exact: |terms| <= 2^14, far fewer than 2^39 of them
    lowest = exact((positive @ low + negative @ high).astype(np.int64))
    highest = exact((positive @ high + negative @ low).astype(np.int64))
    partial_low = exact(
        (positive @ np.minimum(low, 0) + negative @ np.maximum(high, 0)).astype(np.int64)
    )
    partial_high = exact(
        (positive @ np.maximum(high, 0) + negative @ np.minimum(low, 0)).astype(np.int64)
    )
    b = exact(bias)
    Interval(np.minimum(0, b) + partial_low, np.maximum(0, b) + partial_high).fits(
        "int32", NAME, "accumulator"
    )
    return Interval(lowest + b, highest + b)


OP = IntOp(NAME, reference, bounds, source="arXiv 2101.01321 section 3.1")
