"""The integer ops in torch: the same integers as their NumPy references, on a CPU or a GPU.

Every function takes and returns int64 tensors (constants too) in the order of the reference; tests
compare them with tolerance 0. What a reference checks at run time (that nothing leaves its type) is
proved before a model runs here, by ranges.check.
"""

import numpy as np
import torch

from intformer.ir.float_run import beyond, by_distance, relative_scores
from intformer.relay_ops import (
    attention,
    i_gelu,
    i_layernorm,
    i_stream_norm,
    max_pool,
    mean_pool,
    requantize16,
)
from intformer.relay_ops import gate as gating
from intformer.relay_ops import i_tanh as tanh
from intformer.relay_ops import matmul as product
from intformer.relay_ops import rotary as turning

LIMITS = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1), "int32": (-(2**31), 2**31 - 1)}


# -- fixed point (relay_ops.fixedpoint) ---------------------------------------------------------


def round_shift(x, shift):
    """RHE(x / 2^shift), shift >= 1."""
    odd = (x >> shift) & 1
    return (x + ((torch.ones_like(shift) << (shift - 1)) - 1) + odd) >> shift


def dyadic(x, mult, shift):
    """RHE(x mult / 2^shift)."""
    return round_shift(x * mult, shift)


def mul_round(a, b):
    """(a b + 2^14) >> 15."""
    return (a * b + (1 << 14)) >> 15


def floor_divide(a, b):
    """Floor of a / b."""
    return torch.div(a, b, rounding_mode="floor")


def round_divide(x, divisor):
    """RHE(x / divisor)."""
    floor = floor_divide(x, divisor)
    twice = 2 * (x - floor * divisor)
    return floor + ((twice > divisor) | ((twice == divisor) & (floor & 1 == 1))).long()


def bit_length(v):
    """Bits of v >= 1."""
    bits = torch.frexp(v.double())[1].long()
    return bits - ((v >> (bits - 1)) == 0).long()


# -- ops of both recipes ------------------------------------------------------------------------


def embed(*arrays, lo, hi, types, positions=1):
    """relay_ops.embed."""
    count = 1 + types + positions
    ids, tables = arrays[:count], arrays[count:]
    rows = []
    for i in range(count):
        table, mult, shift = tables[3 * i : 3 * i + 3]
        at = ids[i]
        rows.append(dyadic(table[at].long(), mult[at][:, None].long(), shift[at][:, None].long()))
    total = sum(rows[:-1], torch.zeros_like(rows[-1])).clamp_(lo, hi)
    return (total + rows[-1]).clamp_(lo, hi)


def matmul(x, w, bias):
    """relay_ops.matmul; w is float32 [N, K].

    float32 holds every partial sum of EXACT_TERMS products of 8 bits, in any order.
    """
    acc = bias
    for k in range(0, x.shape[1], product.EXACT_TERMS):
        part = slice(k, k + product.EXACT_TERMS)
        acc = acc + (x[:, part].float() @ w[:, part].T).long()
    return acc


def requantize(x, mult, shift, *, lo, hi, dtype):
    """relay_ops.requantize."""
    return dyadic(x, mult, shift).clamp_(lo, hi)


def add(a, b):
    """relay_ops.add, and relay_ops.stream_add."""
    return a + b


def relu(x):
    """relay_ops.relu."""
    return x.clamp(min=0)


def i_tanh(x):
    """relay_ops.i_tanh."""
    v = x.abs().clamp_(max=tanh.EDGE)
    h = torch.full_like(x, tanh.COEFFICIENTS[0])
    for c in tanh.COEFFICIENTS[1:]:
        h = ((h * v) >> 14) + c
    shift = tanh.COEFFICIENT_BITS + 14 - tanh.OUTPUT_BITS
    return x.sign() * ((h * v + (1 << (shift - 1))) >> shift)


def take_rows(x, index, *, rows, last=False):
    """relay_ops.take_rows."""
    if last:
        return x[index[1:] - 1]
    return x[index[:-1] if rows == "sequence" else index]


def mean(x, cu_seqlens, *, fraction_bits):
    """relay_ops.mean_pool."""
    sizes = cu_seqlens.diff()
    row = torch.arange(len(sizes), device=x.device).repeat_interleave(sizes)
    total = x.new_zeros(len(sizes), x.shape[1]).index_add_(0, row, x)
    return round_divide(total << fraction_bits, sizes[:, None])


def weighted_pool(x, cu_seqlens, divisor, *, shift, rising):
    """relay_ops.weighted_pool."""
    sizes = cu_seqlens.diff()
    row = torch.arange(len(sizes), device=x.device).repeat_interleave(sizes)
    if rising:
        x = x * (torch.arange(len(x), device=x.device) - cu_seqlens[row] + 1)[:, None]
    total = x.new_zeros(len(sizes), x.shape[1]).index_add_(0, row, x)
    return round_divide(total << shift, divisor[sizes][:, None])


def concat(a, b, *, border):
    """relay_ops.concat."""
    return torch.cat([a, b], dim=1)


def maximum(x, cu_seqlens):
    """relay_ops.max_pool."""
    return torch.segment_reduce(x.double(), "max", offsets=cu_seqlens, axis=0).long()


# -- recipe native ------------------------------------------------------------------------------


def rescale(x, mult, offset, *, lift, lo, hi, dtype):
    """relay_ops.rescale."""
    return ((((x << lift) + offset) * mult) >> 32).clamp_(lo, hi)


def requantize_16(x, mult, down):
    """relay_ops.requantize16."""
    return mul_round(mul_round(x, mult), down).clamp_(-requantize16.LIMIT, requantize16.LIMIT)


def gelu(x, point, *, form):
    """relay_ops.i_gelu: by a table of every int16 where there are more numbers than those."""
    if x.numel() > 2 * i_gelu.LIMIT + 1:
        every = torch.arange(-i_gelu.LIMIT, i_gelu.LIMIT + 1, device=x.device)
        return gelu(every, point, form=form)[x + i_gelu.LIMIT]
    edge, scale = point
    t = torch.minimum(x.abs(), edge)
    u = (t - (edge >> 1)) * scale
    h, *rest = i_gelu.FORMS[form].coefficients
    h = torch.full_like(u, h)
    for c in rest:
        h = mul_round(h, u).add_(c)
    return x.clamp(min=0) - mul_round(t, h)


def gate(x, point, mult, offset, *, form, active):
    """relay_ops.gate."""
    halves = x.chunk(2, 1)
    product = gelu(halves[active], point, form=form) * halves[1 - active]
    limits = {"lift": 0, "lo": -gating.LIMIT, "hi": gating.LIMIT, "dtype": "int8"}
    return rescale(product, mult, offset, **limits)


def rotary(qkv, position_ids, cos, sin, *, heads, head_dim):
    """relay_ops.rotary."""
    x = qkv.unflatten(1, (3, heads, 2, head_dim // 2))
    first, second = x[:, :2, :, 0], x[:, :2, :, 1]
    c, s = (table[position_ids][:, None, None] for table in (cos, sin))
    both = torch.stack([first * c - second * s, second * c + first * s], 3)
    both = (both + 2 ** (turning.SHIFT - 1)) >> turning.SHIFT
    out = torch.cat([both, x[:, 2:]], 1).flatten(1)
    return out.clamp_(-turning.LIMIT, turning.LIMIT)


def layernorm(x, eps, g_mult, g_bias, r_mult, r_bias):
    """relay_ops.i_layernorm: (int8, int16)."""
    y = normalised(x, eps)
    return (
        affine(y, g_mult, g_bias, i_layernorm.LIMIT8),
        affine(y, r_mult, r_bias, i_layernorm.LIMIT16),
    )


def stream_norm(x, eps, mult, bias, *, rms, dtype):
    """relay_ops.i_stream_norm."""
    squares = (x * x).sum(1, keepdim=True).clamp_(min=1)
    half = (bit_length(squares) + 1) >> 1
    k = (half - i_stream_norm.kept_bits(x.shape[1])).clamp_(min=0)
    short = (x + ((torch.ones_like(k) << k) >> 1)) >> k
    return affine(normalised(short, eps >> (2 * k), rms), mult, bias, i_stream_norm.LIMITS[dtype])


def affine(y, mult, bias, limit):
    """relay_ops.i_layernorm.affine, clamped."""
    return (((y * mult) >> 32).add_(bias) >> i_layernorm.OUT_BITS).clamp_(-limit, limit)


def normalised(x, eps, rms=False):
    """relay_ops.i_layernorm.scaled."""
    n = x.shape[1]
    f = i_layernorm.fraction_bits(n)
    s2 = (x * x).sum(1, keepdim=True)
    s1 = torch.zeros_like(s2) if rms else x.sum(1, keepdim=True)
    v = (((n * s2 - s1 * s1) << f) + eps).clamp_(min=1)
    half = (bit_length(v) + 1) >> 1
    m = (v << (62 - 2 * half)) >> 30
    rho = i_layernorm.SEED - ((m * i_layernorm.SLOPE) >> 30)
    for _ in range(3):
        rho = (rho * (3 * 2**30 - ((m * ((rho * rho) >> 32)) >> 30))) >> 31
    rho.clamp_(max=2**31 - 1)
    shift = i_layernorm.Y_BITS + 2 + f // 2 - half
    return (((n * x - s1) << shift.clamp(min=0)) >> (-shift).clamp(min=0)) * rho >> 32


def _numerators() -> np.ndarray:
    z = np.arange(14 << attention.Z_BITS)
    return attention.of_halvings(z)


NUMERATORS = torch.from_numpy(_numerators())  # of every z
SCORES = 2**21  # at a time


def attend_relative(qkv, cu_seqlens, exp, ctx_mult, ctx_offset, keys, queries, *, heads, head_dim):
    """relay_ops.attention_relative."""
    rows = torch.arange(len(keys), device=keys.device)
    keys, queries = (t.double().unflatten(1, (heads, head_dim)) for t in (keys, queries))

    def shift(q, k):
        return relative_scores(q, k, keys, queries, by_distance(rows, q.shape[-2])).long()

    tables = exp, ctx_mult, ctx_offset
    return attend(qkv, cu_seqlens, *tables, heads=heads, head_dim=head_dim, shift=shift)


def attend(
    qkv,
    cu_seqlens,
    exp,
    ctx_mult,
    ctx_offset,
    bias=None,
    *,
    heads,
    head_dim,
    window=None,
    shift=None,
):
    """relay_ops.attention, and relay_ops.attention_bias; shift: see by_sequence."""
    mult, lift, most = (int(e) for e in exp)
    table = NUMERATORS.to(qkv.device)

    def row(s, first):
        queries, length = s.shape[-2:]
        if bias is not None:
            s = s + by_distance(bias, length)[:, first : first + queries]
        outside = None
        if window is not None:
            outside = beyond(window, length, s.device)[first : first + queries]
            s = s.masked_fill(outside, torch.iinfo(s.dtype).min)
        d = (s.amax(-1, keepdim=True) - s).clamp_(0, most)
        e = table[(d.mul_(mult << lift)) >> 32]
        return e if outside is None else e.masked_fill_(outside, 0)

    def combine(e, v):
        halved = attention.halvings_of(e.shape[-1], window)
        acc = torch.matmul(e.double(), v).long() >> halved
        total = e.sum(-1, keepdim=True)
        bits, up = torch.frexp(total.double())[1].long(), 18 + halved
        m = total << (32 - bits)
        y = attention.SEED - ((m * attention.SLOPE) >> 32)
        for _ in range(3):
            y = (y * (2**31 - ((m * y) >> 32))) >> 30
        rec = y.clamp_(max=2**31 - 1) >> (bits - up).clamp(min=0)
        return ((acc << (up - bits).clamp(min=0)) * rec) >> 32

    u = by_sequence(qkv, cu_seqlens, heads, head_dim, row, combine, shift)
    limit = attention.LIMIT8
    return (((u + ctx_offset) * ctx_mult) >> 32).clamp_(-limit, limit)


def by_sequence(qkv, cu_seqlens, heads, head_dim, row, combine, shift=None):
    """Attention of any recipe inside each sequence; int64 [n, C].

    row      (scores int64 [..., queries, L], number of the first query) -> numerators
    combine  (numerators, v float64 [..., L, head_dim]) -> int64 [..., queries, head_dim]
    shift    (q, k float64 [..., L, head_dim]) -> int64 [..., L, L] that is added to the scores
    Sequences of one length run together, so that no padding is ever computed; of long ones, some
    queries at a time.
    """
    sizes = cu_seqlens.diff()
    out = qkv.new_empty(len(qkv), heads * head_dim)
    for length in sizes.unique().tolist():
        starts = cu_seqlens[:-1][sizes == length]
        queries = min(length, max(1, SCORES // (heads * length)))
        step = max(1, SCORES // (heads * length * length))
        for begin in range(0, len(starts), step):
            at = starts[begin : begin + step, None] + torch.arange(length, device=qkv.device)
            parts = qkv[at].double().unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)
            q, k, v = parts
            added = None if shift is None else shift(q, k)
            for first in range(0, length, queries):
                some = slice(first, first + queries)
                s = torch.matmul(q[:, :, some], k.transpose(-1, -2)).long()
                if added is not None:
                    s += added[:, :, some]
                context = combine(row(s, first), v).transpose(1, 2).flatten(2)
                out[at[:, some].flatten()] = context.flatten(0, 1)
    return out


OPS = {
    "embed": embed,
    "matmul": matmul,
    "requantize": requantize,
    "add": add,
    "relu": relu,
    "i_tanh": i_tanh,
    "take_rows": take_rows,
    mean_pool.NAME: mean,
    max_pool.NAME: maximum,
    "weighted_pool": weighted_pool,
    "concat": concat,
    "rescale": rescale,
    "requantize16": requantize_16,
    "i_gelu": gelu,
    "gate": gate,
    "rotary": rotary,
    "i_layernorm": layernorm,
    "i_stream_norm": stream_norm,
    "stream_add": add,
    "attention": attend,
    "attention_bias": attend,
    "attention_relative": attend_relative,
}
