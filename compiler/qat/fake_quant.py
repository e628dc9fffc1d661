"""What training simulates, as autograd functions: the value of the integers, a float's gradient.

Every rounding is a straight-through estimator as in Q8BERT: its gradient is 1, also where it
clips. All of it is float32; under autocast to bfloat16 only the matrix products are not, whose
integer operands it holds exactly. float16 holds those too, but not the sums of their products
(above 65504 from 5 terms on): autocast to it changes nothing.
"""

import numpy as np
import torch
from torch.autograd import Function
from torch.nn import functional

from intformer.ir.graph import TANH_GELU
from intformer.qat.ranges import largest
from intformer.quantize.native.emitter import TANH_LIMIT
from intformer.quantize.native.scales import INT8_MAX
from intformer.relay_ops import attention, i_gelu, i_tanh

TINY = 1e-20
HALF = 2**15  # places of an int16 table below its zero


class FakeQuant(Function):
    """clamp(round(x / scale)) * scale, 8 bits; x [r, C], scale [C] or [r, 1]."""

    @staticmethod
    def forward(ctx, x, scale):
        """Round to the grid."""
        return (x / scale).round_().clamp_(-INT8_MAX, INT8_MAX).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        """Pass the gradient through."""
        return grad, None


def fake_rows(x, scale=None):
    """Fake-quantize rows of a table, each with its own scale (or all with `scale`), 8 bits."""
    if scale is None:
        scale = largest(x.detach(), 1)[:, None].clamp(min=TINY) / INT8_MAX
    return FakeQuant.apply(x, scale)


class QuantLinear(Function):
    """x @ weight.T + bias with both operands in 8 bits.

    x [r, K], weight [N, K], bias [N]; scale [K] of x; factors [K]: scale = unit * factors, and
    weight * factors is rounded with one scale per row, or per part of the rows.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, scale, factors, grain, parts, half):
        """Multiply integers.

        grain  "channel" or "tensor"; parts  tensors the rows are; half  bfloat16 or None
        """
        q = (x / scale).round_().clamp_(-INT8_MAX, INT8_MAX)
        rows = weight * factors
        steps = largest(rows, 1).clamp_(min=TINY) / INT8_MAX
        if grain == "tensor":
            steps = steps.view(parts, -1).amax(1).repeat_interleave(len(steps) // parts)
        integers = rows.div_(steps[:, None]).round_()
        unit = scale[0] / factors[0]
        if half is None:
            scaled = integers.mul_((steps * unit)[:, None])
            ctx.save_for_backward(q, scaled, scale)
            return functional.linear(q, scaled, bias)
        q, integers = q.to(half), integers.to(half)
        out = functional.linear(q, integers).float()
        ctx.save_for_backward(q, integers, scale, steps * unit)
        return out.mul_(steps * unit).add_(bias)

    @staticmethod
    def backward(ctx, grad):
        """Gradients as if nothing had been rounded but the values."""
        q, weight, scale, *row = ctx.saved_tensors
        scaled = (grad * row[0]).to(q.dtype) if row else grad
        to_x = (scaled @ weight).float() / scale if ctx.needs_input_grad[0] else None
        to_weight = (grad.to(q.dtype).T @ q).float() * scale if ctx.needs_input_grad[1] else None
        return to_x, to_weight, grad.sum(0), None, None, None, None, None


def gelu_tables(form: str) -> torch.Tensor:
    """Return i_gelu of every int16 with every number of fraction bits, real, float32 [k 2^16].

    form  a key of i_gelu.FORMS
    Place (k - 9) 2^16 + 2^15 + x; NaN at x = -2^15, which no integer is.
    """
    x = np.arange(-HALF, HALF)
    x[0] = -i_gelu.LIMIT
    rows = []
    least, most = i_gelu.FORMS[form].bits
    for k in range(least, most + 1):
        y = i_gelu.reference(x.astype(np.int16)[:, None], i_gelu.point(k, form), form=form)
        rows.append(y[:, 0] * np.float32(2.0**-k))
        rows[-1][0] = np.nan
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))


def gelu_bits(top: torch.Tensor, form: str) -> torch.Tensor:
    """i_gelu.fraction_bits of a tensor, float32 scalar, without leaving its device."""
    least, most = i_gelu.FORMS[form].bits
    return (i_gelu.LIMIT / top.clamp(min=TINY)).log2().floor().clamp(least, most)


class IntGelu(Function):
    """i-GELU: the integer function by table, with GELU's gradient."""

    @staticmethod
    def forward(ctx, x, table, bits, kind):
        """x float32, any shape; table of gelu_tables; bits of gelu_bits."""
        ctx.save_for_backward(x)
        ctx.kind = kind
        form, stretch = i_gelu.FUNCTIONS[kind]
        place = (x * (torch.exp2(bits) * stretch)).round_().clamp_(-i_gelu.LIMIT, i_gelu.LIMIT)
        place.nan_to_num_(-HALF)  # else it is no place, and the GPU ends the process
        place += HALF + (bits - i_gelu.FORMS[form].bits[0]) * 2 * HALF
        y = table.index_select(0, place.to(torch.int32).view(-1)).view(x.shape)
        return y if stretch == 1 else y / stretch

    @staticmethod
    def backward(ctx, grad):
        """Gradient of the float function."""
        (x,) = ctx.saved_tensors
        form, stretch = i_gelu.FUNCTIONS[ctx.kind]
        if form == "silu":  # silu(s x) / s
            return torch.ops.aten.silu_backward(grad, x * stretch), None, None, None
        form = "tanh" if ctx.kind == TANH_GELU else "none"
        grad = torch.ops.aten.gelu_backward(grad.contiguous(), x, approximate=form)
        return grad, None, None, None


def int_tanh(x):
    """i-tanh of a few rows: Q12 in, Q15 out, with tanh's gradient; x float32."""
    from intformer.qat.integer_ops import i_tanh as integer

    y = torch.tanh(x)
    with torch.no_grad():
        q12 = (x / i_tanh.INPUT_SCALE).round().clamp(-TANH_LIMIT, TANH_LIMIT).to(torch.int64)
        exact = integer(q12).to(x.dtype) * i_tanh.OUTPUT_SCALE
    return y + (exact - y).detach()


class Attention(Function):
    """Softmax attention over packed rows, with the integer recipe's 12-bit numerators.

    The numerators are round(4096 e^(s - max)), what the integers make up to 1.9e-4; row sums and
    the context are not rounded here.
    """

    @staticmethod
    def forward(ctx, qkv, grid, heads, dropout, integers, bias, factor):
        """qkv float32 [n, 3C], grid a Grid -> [n, C].

        bias    added to the scores: [heads, longest, longest], [batch, ...] of these, or None
        factor  of q . k
        """
        n = qkv.shape[0]
        q, k, v = grid.unpack(qkv).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        p = torch.matmul(q, k.transpose(-1, -2)).mul_(factor)
        if bias is not None:
            p += bias
        if grid.hidden is not None:
            p.masked_fill_(grid.hidden, -torch.inf)
        p -= p.amax(-1, keepdim=True)
        p.exp_()
        if integers:
            p.mul_(attention.TOP).round_()
        p /= p.sum(-1, keepdim=True)
        kept = None
        if dropout:
            kept = torch.empty_like(p).bernoulli_(1 - dropout).div_(1 - dropout)
        ctx.save_for_backward(qkv, p, kept)
        ctx.grid, ctx.heads, ctx.factor = grid, heads, factor
        ctx.by_sequence = bias is not None and bias.dim() == 4
        out = torch.matmul(p if kept is None else p * kept, v)
        return grid.pack(out.transpose(1, 2).flatten(2))[:n]

    @staticmethod
    def backward(ctx, grad):
        """Gradient of softmax attention at the probabilities of the forward pass."""
        qkv, p, kept = ctx.saved_tensors
        q, k, v = ctx.grid.unpack(qkv).unflatten(-1, (3, ctx.heads, -1)).permute(2, 0, 3, 1, 4)
        g = ctx.grid.unpack(grad).unflatten(-1, (ctx.heads, -1)).transpose(1, 2)
        to_p = torch.matmul(g, v.transpose(-1, -2))
        if kept is not None:
            to_p *= kept
        to_v = torch.matmul((p if kept is None else p * kept).transpose(-1, -2), g)
        to_p -= (to_p * p).sum(-1, keepdim=True)
        to_p.mul_(p)
        to_bias = None
        if ctx.needs_input_grad[5]:
            to_bias = to_p.clone() if ctx.by_sequence else to_p.sum(0)
        to_p.mul_(ctx.factor)
        parts = torch.matmul(to_p, k), torch.matmul(to_p.transpose(-1, -2), q), to_v
        whole = torch.stack(parts, 2)  # [B, H, 3, S, D]
        whole = whole.permute(0, 3, 2, 1, 4).flatten(2)
        return ctx.grid.pack(whole), None, None, None, None, to_bias, None
