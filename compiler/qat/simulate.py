"""The training forward pass of recipe native: float32 that has the integers' values.

Rounded as the integer program rounds, at the present ranges: every operand of a matrix product (8
bits), weights, word rows, q, k, v and the context; GELU and tanh are the integer functions, softmax
has its 12-bit numerators. Left in float32, because the integers differ from it by less than a tenth
of an int8 step: LayerNorm (0.01), the 16-bit residual stream and its sums (1/128), position and
type rows (16 bits), the embedding sum (18 bits), logits (24 bits), bias (32 bits).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from intformer.frontend.encoder import TANH_GELU, FloatEncoder, activate
from intformer.frontend.native import INT8_MAX, Operand, Plan, split_scales
from intformer.frontend.scales import SMALLEST
from intformer.qat import fake_quant
from intformer.qat.packing import Tokens
from intformer.qat.ranges import Ranges

TINY = 1e-20


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropout while training.

    hidden     of embeddings and of what is added to the residual
    attention  of softmax probabilities
    context    whether the attention's output is dropped too
    head       before each stage of the head
    """

    hidden: float = 0.0
    attention: float = 0.0
    context: bool = True
    head: tuple[float, ...] = ()


class Simulation:
    """One forward pass.

    encoder  of live parameters (torch tensors)
    ranges   read, and updated where `training`
    tables   kind of GELU -> fake_quant.gelu_tables
    grain    "channel" or "tensor": what has one weight scale
    integers false: GELU, softmax and tanh stay float (as in Q8BERT)
    half     bfloat16: dtype of the matrix products under autocast to it; None: float32
    """

    def __init__(self, encoder, ranges, tables, grain, integers, half, training, dropout):
        """Keep the parts."""
        self.encoder: FloatEncoder = encoder
        self.ranges: Ranges = ranges
        self.plan = Plan(encoder)
        self.tables, self.grain, self.integers, self.half = tables, grain, integers, half
        self.training, self.dropout = training, dropout if training else Dropout()

    def run(self, tokens: Tokens) -> torch.Tensor:
        """Return the head's output, float32 [rows, channels]."""
        e = self.encoder
        x = self.embeddings(tokens)
        keep = 1 - self.dropout.hidden
        x = functional.dropout(x, self.dropout.hidden) if keep < 1 else x
        if e.projection is not None:
            x = self.linear(x, self.plan.projection, "embed.projection", "embed.norm", keep)
            keep = 1.0
        for i in range(len(e.layers)):
            x = self.layer(i, x, tokens, keep)
            keep = 1.0
        return self.head(x, tokens)

    # -- pieces ---------------------------------------------------------------------------------

    def tap(self, name: str, x):
        """Let the ranges see x."""
        if self.training:
            self.ranges.observe(name, x)
        return x

    def linear(self, x, operand: Operand, name: str | None, tap: str, keep: float = 1.0):
        """Matrix product of x, whose range is that of `tap`.

        name  tap of the product itself, where it has one
        keep  1 - p of a dropout that x went through after it was seen
        """
        f = self.ranges.factor(operand.stem)
        unit = (self.ranges.peak(tap) / f).amax().clamp(min=TINY) / INT8_MAX
        scale = f * (unit / keep)
        linear = operand.linear
        y = fake_quant.QuantLinear.apply(
            x, linear.weight, linear.bias, scale, f, self.grain, linear.parts, self.half
        )
        return self.tap(name, y) if name else y

    def norm(self, x, norm):
        """Apply a LayerNorm, in float."""
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def activation(self, x, kind: str, name: str, operand: Operand | None):
        """Apply an activation; its operand's scale says how fine i-GELU is."""
        if not self.integers or kind == "relu":
            return self.tap(name, activate(x, kind))
        if kind == "tanh":
            return self.tap(name, fake_quant.int_tanh(x))
        if self.training:  # of the float function: the integer one needs the range first
            self.ranges.observe(name, activate(x.detach(), kind))
        peak = self.ranges.peak(name)
        if operand is None:
            top = 2 * peak.amax()
        else:
            f = self.ranges.factor(operand.stem)
            top = (peak / f).amax() * f.amax()
        form = "tanh" if kind == TANH_GELU else "erf"
        return fake_quant.IntGelu.apply(x, self.tables[form], fake_quant.gelu_bits(top), kind)

    def embeddings(self, tokens: Tokens):
        """Return what the first layer, or the projection, reads."""
        e = self.encoder
        rows = functional.embedding(tokens.ids, e.word)
        whole = None
        if self.grain == "tensor":
            whole = e.word.detach().abs().amax() / INT8_MAX
        x = fake_quant.fake_rows(rows, whole) + functional.embedding(tokens.positions, e.position)
        if e.types is not None:
            x = x + functional.embedding(tokens.types, e.types)
        return self.tap("embed.norm", self.norm(x, e.norm))

    def layer(self, i: int, x, tokens: Tokens, keep: float):
        """Run layer i; keep as in `linear`."""
        e, at, drop = self.encoder, f"layer{i}.", self.dropout
        layer, operands = e.layers[i], self.plan.layers[i]
        qkv = self.linear(x, operands["qkv"], at + "qkv", self.plan.inputs[i], keep)
        qkv = fake_quant.FakeQuant.apply(qkv, self.qkv_scale(at + "qkv"))
        context = fake_quant.Attention.apply(
            qkv, tokens.grid, e.heads, drop.attention, self.integers
        )
        self.tap(at + "context", context)
        y = self.linear(context, operands["out"], None, at + "context")
        if drop.hidden and drop.context:
            y = functional.dropout(y, drop.hidden)
        x = self.tap(at + "norm1", self.norm(self.tap(at + "sum1", y + x), layer.norm1))
        ffn = self.linear(x, operands["ffn1"], None, at + "norm1")
        ffn = self.activation(ffn, e.activation, at + "act", operands["ffn2"])
        y = self.linear(ffn, operands["ffn2"], None, at + "act")
        if drop.hidden:
            y = functional.dropout(y, drop.hidden)
        return self.tap(at + "norm2", self.norm(self.tap(at + "sum2", y + x), layer.norm2))

    def qkv_scale(self, tap: str):
        """Return the int8 scale of every channel of q, k and v, [3C]."""
        peaks = self.ranges.peak(tap)
        peaks = torch.maximum(peaks, peaks.amax().clamp(min=TINY) * SMALLEST)
        s_q, s_k, s_v, _ = split_scales(*peaks.chunk(3))
        return torch.cat([s_q, s_k, s_v])

    def head(self, x, tokens: Tokens):
        """Pick or pool rows, then run the stages of the head."""
        head, tap = self.encoder.head, self.plan.inputs[-1]
        if head.pool == "first":
            x = x.index_select(0, tokens.cu_seqlens[:-1])
        elif head.pool == "mean":
            grid = tokens.grid.unpack(x)
            x = grid.sum(1) / tokens.cu_seqlens.diff()[:, None]
        for i, stage in enumerate(head.stages):
            p = self.dropout.head[i] if self.dropout.head else 0.0
            x = functional.dropout(x, p) if p else x
            x = self.linear(x, self.plan.head[i], None, tap, 1 - p)
            if stage.activation:
                tap = f"head{i}.act"
                following = self.plan.head[i + 1] if not stage.norm else None
                x = self.activation(x, stage.activation, tap, following)
            if stage.norm:
                tap = f"head{i}.norm"
                x = self.tap(tap, self.norm(x, stage.norm))
        return x
