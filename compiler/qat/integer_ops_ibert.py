"""The integer ops of recipe ibert in torch; see integer_ops."""

import torch

from intformer.qat import integer_ops as ops
from intformer.relay_ops import attention_ibert as softmax
from intformer.relay_ops import i_gelu_ibert as erf


def split_dyadic(x, mult, shift, split):
    """fixedpoint.split_dyadic: RHE(x mult / 2^shift) of a product beyond int64."""
    mask = (1 << split) - 1
    low = (x & mask) * mult
    high = (x >> split) * mult + (low >> split)
    sticky = ((low & mask) != 0).long()
    return ops.round_shift(high * 2 + sticky, shift - (split - 1))


def isqrt(x):
    """floor(sqrt(x)), 0 <= x < 2^62."""
    root = x.double().sqrt().long()
    root = root - (root * root > x).long()
    return root + ((root + 1) * (root + 1) <= x).long()


def residual_add(a, b, mult, shift, *, lo, hi):
    """relay_ops.residual_add."""
    return (a + ops.dyadic(b, mult, shift)).clamp_(lo, hi)


def add_bias(x, bias):
    """relay_ops.add_bias."""
    return x + bias


def gelu(acc, b, c, one, mult, shift, *, lo, hi):
    """relay_ops.i_gelu_ibert."""
    u = torch.minimum(acc.abs(), -b) + b
    z = (acc.sign() * (u * u + c)) >> erf.CONST
    return split_dyadic(acc * (z + one), mult, shift, erf.SPLIT).clamp_(lo, hi)


def layernorm(x, bias, mult, shift, prescale, *, lo, hi):
    """relay_ops.i_layernorm_ibert."""
    mean = ops.round_divide(x.sum(1, keepdim=True), torch.full_like(prescale, x.shape[1]))
    y = x - mean
    scaled = y >> prescale
    std = isqrt((scaled * scaled).sum(1, keepdim=True)) << prescale
    factor = ops.floor_divide(torch.full_like(std, 2**31), std.clamp(min=1)) * (std > 0)
    z = ((y * factor) >> 1) + bias
    return ops.round_shift(z * mult, shift).clamp_(lo, hi)


def attend(qkv, cu_seqlens, p, ctx_mult, ctx_shift, *, heads, head_dim):
    """relay_ops.attention_ibert."""
    x0, b, c, m, e, inverse = p.tolist()

    def row(s, _first):
        x = (s - s.amax(-1, keepdim=True)).clamp_(min=softmax.CONST * x0)
        q = (-x * inverse) >> softmax.INVERSE_BITS
        r = x - x0 * q
        poly = ((r + b) * r + c).clamp_(min=0)
        shift = (q + (e - softmax.CONST)).clamp_(max=softmax.MAX_SHIFT)
        e16 = split_dyadic(poly, m, shift, softmax.SPLIT).clamp_(max=softmax.EXP_LIMIT)
        total = e16.sum(-1, keepdim=True)
        factor = ops.floor_divide(torch.full_like(total, 2**32), total.clamp(min=1)) * (total > 0)
        return ((e16 * factor) >> 24).clamp_(max=softmax.PROB_LIMIT)

    acc = ops.by_sequence(
        qkv, cu_seqlens, heads, head_dim, row, lambda e, v: torch.matmul(e.double(), v).long()
    )
    return ops.dyadic(acc, ctx_mult, ctx_shift).clamp_(softmax.LOW8, softmax.HIGH8)


OPS = {
    "residual_add": residual_add,
    "add_bias": add_bias,
    "i_gelu_ibert": gelu,
    "i_layernorm_ibert": layernorm,
    "attention_ibert": attend,
}
