"""The arithmetic of native attention (relay_ops/attention.py) as TIR, on vectors and scalars."""

from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as B

from intformer.relay_ops import expr
from intformer.relay_ops.attention import C0, C1, C2, C3, C4, SEED, SLOPE, Z_BITS

PARAMETERS = ("int32", 3)  # mult, lift, most


def halvings(d, params):
    """Z in Q12 of d = rowmax - score >= 0 (int32 vector), below 14."""
    lanes = int(str(d.ty.dtype).partition("x")[2])
    most, up = T.broadcast(params[2], lanes), T.broadcast(T.int32(1) << params[1], lanes)
    return expr.mul_high(T.min(d, most) * up, T.broadcast(params[0], lanes))


def numerator(z):
    """E in 0..4096 of z (uint16 vector): relay_ops.attention.of_halvings."""
    f = expr.as_type((z << expr.like(3, z)) & expr.like(0x7FFF, z), "int16")
    h = expr.like(C4, f)
    for c in (C3, C2, C1):
        h = expr.mul_round(h, f) + expr.like(c, f)
    p = expr.as_type(expr.mul_round(h, f), "uint16") + expr.like(2**15 + C0, z)
    p = p >> ((z >> expr.like(Z_BITS, z)) + expr.like(2, z))
    return expr.as_type((p + expr.like(1, z)) >> expr.like(1, z), "int16")


def bound_numerator(z):
    """E in 0..4096 of z (int32), its steps bound to variables of the kernel under construction."""
    f = B.bind((z & ((1 << Z_BITS) - 1)) << (15 - Z_BITS))
    h = C4
    for c in (C3, C2, C1):
        h = B.bind(((h * f + (1 << 14)) >> 15) + c)
    p = B.bind(((h * f + (1 << 14)) >> 15) + (2**15 + C0))
    return ((p >> ((z >> Z_BITS) + 2)) + 1) >> 1


def inverse(m):
    """1 / m in Q30 of m in Q32 (int64): relay_ops.attention.inverse."""
    y = expr.like(SEED, m) - ((m * expr.like(SLOPE, m)) >> expr.like(32, m))
    for _ in range(3):
        y = (y * (expr.like(1 << 31, m) - ((m * y) >> expr.like(32, m)))) >> expr.like(30, m)
    return T.min(y, expr.like(2**31 - 1, m))
