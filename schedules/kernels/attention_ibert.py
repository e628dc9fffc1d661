"""The arithmetic of I-BERT attention (relay_ops/attention_ibert.py) as TIR, on any lanes."""

from tvm.script import tirx as T

from intformer.relay_ops import expr
from intformer.relay_ops.attention_ibert import (
    CONST,
    EXP_LIMIT,
    INVERSE_BITS,
    MAX_SHIFT,
    PROB_LIMIT,
    SPLIT,
)

PARAMETERS = ("int64", 6)  # x0, b, c, m, e, inverse of x0


def like64(scalar, x):
    """Return an int64 scalar expression with the lanes of x."""
    lanes = str(x.ty.dtype if hasattr(x, "ty") else x.dtype).partition("x")[2]
    wide = T.cast(scalar, "int64")
    return T.broadcast(wide, int(lanes)) if lanes else wide


def clipped(d, params):
    """-max(x, 30 x0) as int64 for d = -x >= 0."""
    wide = expr.as_type(d, "int64")
    return T.min(wide, like64(T.int64(0) - params[0], d) * expr.like(CONST, wide))


def quotient(x, params):
    """Q = floor(x / |x0|) of a clipped x."""
    return (x * like64(params[5], x)) >> expr.like(INVERSE_BITS, x)


def polynomial(x, q, params):
    """max((r + b) r + c, 0) for r = -x + |x0| q, x = clipped -score (int64 vectors)."""
    r = like64(T.int64(0) - params[0], x) * q - x
    poly = (r + like64(params[1], x)) * r + like64(params[2], x)
    return T.max(poly, expr.like(0, poly))


def quantized(poly, q, params):
    """E of QuantAct(16), 0..32767 as int32: relay_ops.attention_ibert.numerators."""
    mask = expr.like((1 << SPLIT) - 1, poly)
    bits, m = expr.like(SPLIT, poly), like64(params[3], poly)
    low = (poly & mask) * m
    high = (poly >> bits) * m + (low >> bits)
    sticky = T.Select((low & mask) > expr.like(0, poly), expr.like(1, poly), expr.like(0, poly))
    shift = T.min(
        like64(params[4] - T.int64(CONST), poly) + q, expr.like(MAX_SHIFT, poly)
    ) - expr.like(SPLIT - 1, poly)
    e = expr.round_shift(high * expr.like(2, poly) + sticky, shift)
    return expr.as_type(T.min(e, expr.like(EXP_LIMIT, e)), "int32")


def probability(e, factor):
    """min(floor(E F / 2^24), 255), int64."""
    wide = (expr.as_type(e, "int64") * like64(factor, e)) >> like64(T.int64(24), e)
    return T.min(wide, expr.like(PROB_LIMIT, wide))
