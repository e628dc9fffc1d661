"""I-BERT attention over packed tokens: IntSoftmax to the last rounding, then P V and QuantAct(8).

    x = max(s - rowmax, 30 x0),  q = floor(x / x0),  r = x - x0 q,  p = (r + b) r + c
    E = min(RHE(p m / 2^(e - 30 + q)), 32767)                    QuantAct(16) of p 2^(30 - q)
    F = floor(2^32 / sum E),  prob = min((E F) >> 24, 255)
    out = clamp(RHE(sum prob v ctx_mult / 2^ctx_shift), -128, 127)

Source: transformers, models/ibert/quant_modules.py IntSoftmax.
Ours: 256, which no uint8 holds, is 255; a row whose E are all 0 gives 0.
"""

from itertools import pairwise

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.attention import score_bounds, scores, work
from intformer.relay_ops.fixedpoint import (
    clamp,
    dyadic,
    in_blocks,
    make_dyadic,
    make_split_dyadic,
    split_dyadic,
)
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

NAME = "attention_ibert"
X0 = -0.6931  # IntSoftmax.x0
A, B, C = 0.35815147, 0.96963238, 1.0  # IntSoftmax.coef
CONST = 30  # IntSoftmax.const: the largest number of halvings
EXP_LIMIT = 2**15 - 1  # QuantAct(16)
PROB_LIMIT = 255
LOW8, HIGH8 = -128, 127
SPLIT = 8  # low word of p * m: p needs up to 36 bits, m has 31
MAX_SHIFT = SPLIT + 61  # p m < 2^68, so that E is 0 from here on
P_LIMIT = 2**37
INVERSE_BITS = 48
X0_LIMIT = 2**21  # |x0|


def inverse(x0: int) -> int:
    """I with floor(x / x0) = (|x| I) >> 48 for 30 x0 <= x <= 0.

    I = floor(2^48 / |x0|) + 1 exceeds 2^48 / |x0| by at most 1, so |x| I / 2^48 exceeds x / x0 by
    at most 30 |x0| / 2^48, less than 1 / |x0| (the distance to the next integer) for |x0| <= 2^21.
    """
    return 2**INVERSE_BITS // -x0 + 1


def numerators(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """E (QuantAct(16) of i-exp), 0..32767 as int64, of x = s - rowmax <= 0; any shape.

    p  int64 [6], see reference
    """
    x0, b, c, m, e, inv = (int(value) for value in p)
    x = np.maximum(x.astype(np.int64), CONST * x0)
    q = (-x * inv) >> INVERSE_BITS
    r = x - x0 * q
    poly = np.maximum((r + b) * r + c, 0)
    shift = np.minimum(e - CONST + q, MAX_SHIFT)
    return np.minimum(split_dyadic(poly, m, shift, SPLIT), EXP_LIMIT)


def probabilities(e16: np.ndarray) -> np.ndarray:
    """min(floor(E F / 2^24), 255) per row, F = floor(2^32 / sum E); 0 where a row is all 0."""
    total = e16.sum(1, keepdims=True)
    factor = np.where(total == 0, 0, 2**32 // np.maximum(total, 1))
    return np.minimum((e16 * factor) >> 24, PROB_LIMIT)


def reference(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    p: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_shift: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> np.ndarray:
    """Attend inside each sequence; int8 [n, C], C = heads * head_dim.

    qkv         int8 [n, 3C]: q, k, v side by side, each head by head
    cu_seqlens  int32 [batch + 1]
    p           int64 [6]: x0 < 0, b, c of the polynomial; m, e of QuantAct(16); inverse(x0)
    ctx_mult    int32 [C], ctx_shift int32 [C]: sum of prob v -> output
    Scores, row sum and prob v sums are int32; p m two words, the rest int64.
    """
    _check_tables(p)
    acc = np.empty((len(qkv), heads * head_dim), np.int64)
    for start, stop in pairwise(cu_seqlens):
        span = slice(int(start), int(stop))
        for head in range(heads):
            s, v = scores(qkv, span, head, heads, head_dim)
            prob = in_blocks(
                lambda row: probabilities(numerators(row - row.max(1, keepdims=True), p)), s
            )
            context = (prob.astype(np.float64) @ v).astype(np.int64)  # exact: below 2^15
            acc[span, head * head_dim : (head + 1) * head_dim] = context
    return clamp(dyadic(acc, ctx_mult, ctx_shift), LOW8, HIGH8, "int8")


def _check_tables(p: np.ndarray) -> None:
    x0, b, c, m, e, inv = (int(value) for value in p)
    if not -X0_LIMIT <= x0 < 0 or inv != inverse(x0):
        raise RangeError(f"x0 is {x0}, outside -2^21..-1, or its inverse is wrong", where=NAME)
    if not 0 <= c < P_LIMIT or not 0 <= b < 2**31 or b * -x0 >= P_LIMIT:
        raise RangeError(f"b, c are {b}, {c}: the polynomial exceeds 2^37", where=NAME)
    if not 0 <= m < 2**31 or not SPLIT < e - CONST <= MAX_SHIFT:
        raise RangeError(f"QuantAct(16) is ({m}, {e}), shift not in 39..99", where=NAME)


def bounds(
    qkv: Interval,
    cu_seqlens: Interval,
    p: np.ndarray,
    ctx_mult: np.ndarray,
    ctx_shift: np.ndarray,
    *,
    heads: int,
    head_dim: int,
) -> Interval:
    """Interval of the output; cu_seqlens is the interval of the sequence lengths.

    Lemma: E_i <= sum E, so E_i F <= 2^32; and sum_i prob_i <= sum E F / 2^24 <= 2^8, so the context
    lies in 256 * [min(v, 0), max(v, 0)]. The polynomial lies below c + b |x0| + x0^2 < 2^38.
    """
    _check_tables(p)
    peak, v = score_bounds(qkv, heads, head_dim)
    if 2 * peak > 2**31 - 1:
        raise RangeError(f"score differences reach {2 * peak}, beyond int32", where=NAME)
    if EXP_LIMIT * cu_seqlens.max > 2**31 - 1:
        raise RangeError(f"row sum of {cu_seqlens.max} keys does not fit int32", where=NAME)
    acc = Interval(np.minimum(v.low, 0) * 256, np.maximum(v.high, 0) * 256)
    return acc.dyadic(ctx_mult, ctx_shift).clamp(LOW8, HIGH8)


def tables(
    scale_score: float, act_max: float, scale_v: float, scale_out: float, channels: int
) -> dict[str, np.ndarray]:
    """p, ctx_mult, ctx_shift of `reference` from float32 scales.

    scale_score  s_q * s_k / sqrt(head_dim), in float32 as the module computes it
    act_max      largest |x_min|, |x_max| of softmax.act, in integer units (transformers#11755)
    """
    f32 = np.float32
    s = f32(scale_score)
    x0 = np.floor(f32(1) / s * f32(X0))
    b = np.floor(f32(1) / s * f32(B / A))
    c = np.floor(f32(1) / (s * s) * f32(C / A))
    if not 1 <= -x0 <= X0_LIMIT or not c < P_LIMIT:
        raise RangeError(
            f"score scale {s:.3g} is outside 5e-6..0.69",
            where=NAME,
            hint="recalibrate query_activation and key_activation",
        )
    act = np.maximum(f32(act_max), f32(1e-8)) / f32(EXP_LIMIT)
    m, e = make_split_dyadic(2.0**CONST / np.float64(act), SPLIT)
    ratio = np.float64(f32(f32(2.0**-8) * f32(scale_v))) / np.float64(f32(scale_out))
    ctx_mult, ctx_shift = make_dyadic(np.full(channels, ratio))
    p = [int(x0), int(b), int(c), int(m), int(e) + CONST, inverse(int(x0))]
    return {"p": np.array(p, np.int64), "ctx_mult": ctx_mult, "ctx_shift": ctx_shift}


OP = IntOp(
    NAME,
    reference,
    bounds,
    heads=True,
    by_sequence=True,
    unpadded=3,
    clears=True,
    work=work,
    fill={4: 1},  # shift
    clamp=lambda attrs, limits: (LOW8, HIGH8),
    source="transformers ibert IntSoftmax + QuantAct(8)",
)
