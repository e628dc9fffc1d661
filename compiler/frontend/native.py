"""A float encoder plus observed ranges becomes an IntModel in the native recipe.

Every value has a scale (real = integer * scale) and an origin; DESIGN section 2a gives the widths.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.calibration import Seen
from intformer.frontend.encoder import POOLS, TANH_GELU, Dense, FloatEncoder, Linear, Norm
from intformer.frontend.scales import TINY, channel_peaks, equalise, peak
from intformer.model import IntModel, Node, Value
from intformer.relay_ops import attention, i_gelu, i_layernorm, i_tanh
from intformer.relay_ops.fixedpoint import make_dyadic

INT8_MAX = 127
INT16_MAX = 2**15 - 1
SUM_MAX = 2**17 - 1  # residual sums and everything a LayerNorm reads, in int32
BIAS_MAX = 2**30
LOGIT_BITS = 24  # logits fit this many bits whatever the input
HEADROOM = 2.0  # of 16 and 17-bit scales over the calibrated peak
POOL_FRACTION_BITS = 12
FLUSH = 2.0**-12  # a row this far below its table's largest is stored as zeros
WIDTHS = {
    "word embedding": "int8, one scale per row",
    "type and position embedding": "int16, one scale per row",
    "embedding sum": "int32 (18 bits)",
    "matmul operands": "int8",
    "weights": "int8, one scale per output channel",
    "bias": "int32",
    "accumulators": "int32",
    "residual sum": "int32 (18 bits)",
    "LayerNorm output": "int8 operand and int16 residual",
    "GELU and tanh": "int32, Q12 in",
    "attention numerators": "uint8, row maximum 255",
    "context accumulator": "int32",
    "mean pooling": f"int32, {POOL_FRACTION_BITS} fraction bits of the int16 scale",
    "logits": "int32, one scale",
}


def lower(encoder: FloatEncoder, seen: dict[str, Seen], method: str, note: str) -> IntModel:
    """Return the IntModel (meta holds only what the numbers decide; the caller adds the rest).

    seen    what calibration saw at every tap of FloatEncoder.forward
    method  one of scales.METHODS
    note    how calibration went, for the origin of every calibrated scale
    """
    return _Lowering(encoder, seen, method, note).model()


class _Lowering:
    def __init__(self, encoder: FloatEncoder, seen: dict[str, Seen], method: str, note: str):
        self.encoder, self.seen, self.method = encoder, seen, method
        self.calibrated = f"calibration: {method}, {note}"
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.values: dict[str, Value] = {}
        self.warnings: list[str] = []
        self.shared: dict[int, str] = {}  # id of a Layer -> the stem of its weights
        self.factors: dict[str, np.ndarray] = {}  # weight stem -> equalisation f
        self.quantized: dict[str, np.ndarray] = {}  # weight stem -> real scale of each row

    # -- emitting -------------------------------------------------------------------------------

    def value(self, name: str, dtype: str, channels: int, scale, origin: str, rows="token") -> str:
        scale = np.asarray(scale, np.float64)
        if scale.ndim and (scale == scale[0]).all():
            scale = scale[0]
        shown = tuple(scale.tolist()) if scale.ndim else float(scale)
        self.values[name] = Value(dtype, rows, channels, shown, origin)
        return name

    def node(self, op: str, inputs, outputs, **attrs) -> None:
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        self.nodes.append(Node(op, tuple(inputs), outputs, attrs))

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def dyadic(self, name: str, ratio) -> tuple[str, str]:
        mult, shift = make_dyadic(np.atleast_1d(np.asarray(ratio, np.float64)))
        return self.constant(name + ".mult", mult), self.constant(name + ".shift", shift)

    def scale(self, name: str) -> np.ndarray:
        return np.asarray(self.values[name].scale)

    def channel_scale(self, name: str) -> np.ndarray:
        return np.broadcast_to(self.scale(name), self.values[name].channels)

    def requantize(self, x: str, name: str, dtype: str, scale, origin: str, limit: int) -> str:
        """Requantize x to `scale` (one, or one per channel); clamps to +-limit."""
        source = self.values[x]
        ratio = self.channel_scale(x) / scale
        self.value(name, dtype, source.channels, scale, origin, source.rows)
        self.node(
            "requantize", (x, *self.dyadic(name, ratio)), name, lo=-limit, hi=limit, dtype=dtype
        )
        return name

    # -- pieces ---------------------------------------------------------------------------------

    def plan_operand(self, stem: str, taps: list[str], weight: np.ndarray, fixed=False) -> None:
        """Choose the equalisation of one weight over all the places that feed it."""
        self.factors[stem] = (
            np.ones(weight.shape[1])
            if fixed
            else equalise([self.seen[tap] for tap in taps], weight)
        )

    def operand_scale(self, tap: str, stem: str, weight: np.ndarray) -> np.ndarray:
        """Return the int8 scale of each channel of the operand that `tap` saw, [K]."""
        f = self.factors[stem]
        importance = np.square(weight).sum(0) * np.square(f)
        top = peak(self.seen[tap], self.method, f, importance)
        return f * max(top, TINY) / INT8_MAX

    def matmul(self, name: str, x: str, stem: str, linear: Linear, tied=False) -> str:
        """x int8 times the weight stored under `stem`; bias at this place's scales."""
        f, scale = self.factors[stem], self.channel_scale(x)
        s_x = float(np.mean(scale / f))
        if stem not in self.quantized:
            weight = linear.weight * f
            steps = np.abs(weight).max(1) / INT8_MAX
            # a row too small for its bias (or all zero) gets the scale its bias needs
            floor = np.maximum(
                np.abs(linear.bias) / (BIAS_MAX * s_x), steps.max(initial=TINY) * FLUSH
            )
            steps = np.maximum(steps, np.maximum(floor, TINY))
            integers = np.rint(weight / steps[:, None])
            self.constant(stem + ".weight", integers.astype(np.int8))
            self.quantized[stem] = steps
        acc_scale = s_x * self.quantized[stem]
        bias = np.rint(linear.bias / acc_scale)
        if np.abs(bias).max(initial=0) > 2**31 - 2**27:
            raise CheckpointError(
                f"a bias of {name} is {np.abs(linear.bias).max():.3g}, too large for its scale",
                hint="the weight row and the input are almost zero",
            )
        self.constant(name + ".bias", bias.astype(np.int32))
        acc = self.value(
            name + ".acc",
            "int32",
            len(bias),
            acc_scale,
            "bound: product of its operands' scales",
            self.values[x].rows,
        )
        self.node("matmul", (x, stem + ".weight", name + ".bias"), acc)
        return acc

    def norm(self, x: str, name: str, tap: str, norm: Norm, s8: np.ndarray) -> tuple[str, str]:
        """LayerNorm of x; returns (int8 at scale s8, int16 residual)."""
        channels, rows = self.values[x].channels, self.values[x].rows
        s16 = HEADROOM * max(float(self.seen[tap].peaks.max()), TINY) / INT16_MAX
        scale = float(self.scale(x))
        tables = i_layernorm.tables(scale, norm.weight, norm.bias, norm.eps, s8, s16)
        names = [self.constant(f"{name}.{key}", table) for key, table in tables.items()]
        out8 = self.value(name + ".int8", "int8", channels, s8, self.calibrated, rows)
        out16 = self.value(name + ".int16", "int16", channels, s16, self.calibrated, rows)
        self.node("i_layernorm", (x, *names), (out8, out16))
        return out8, out16

    def sum_scale(self, tap: str) -> float:
        return HEADROOM * max(float(self.seen[tap].peaks.max()), TINY) / SUM_MAX

    def activation(self, acc: str, name: str, kind: str) -> str:
        """Apply the activation to an accumulator; returns a wide int32 value."""
        source = self.values[acc]
        if kind == "relu":
            out = self.value(
                name, "int32", source.channels, source.scale, "bound: its input's", source.rows
            )
            self.node("relu", (acc,), out)
            return out
        origin = f"bound: Q{i_gelu.INPUT_BITS}, the domain of {kind}"
        q12 = self.requantize(acc, name + ".q12", "int32", i_gelu.SCALE, origin, i_gelu.LIMIT)
        if kind == "tanh":
            out = self.value(
                name,
                "int32",
                source.channels,
                i_tanh.OUTPUT_SCALE,
                "bound: |tanh| <= 1, Q15",
                source.rows,
            )
            self.node("i_tanh", (q12,), out)
            return out
        out = self.value(name, "int32", source.channels, i_gelu.SCALE, origin, source.rows)
        self.node("i_gelu", (q12,), out, form="tanh" if kind == TANH_GELU else "erf")
        return out

    # -- the model ------------------------------------------------------------------------------

    def table(self, stem: str, table: np.ndarray, limit: int, scale: float) -> tuple[str, ...]:
        """Store an embedding table with one scale per row; returns (table, mult, shift) names.

        A tied decoder multiplies with the same rows, so their scales hold its bias too.
        """
        top = np.abs(table).max(1)
        steps = np.maximum(top, max(float(top.max()), TINY) * FLUSH) / limit
        stages = self.encoder.head.stages
        if stem == "embed.word" and stages and stages[-1].tied:
            s_x = float(self.head_operand(len(stages) - 1)[0])
            steps = np.maximum(steps, np.abs(stages[-1].linear.bias) / (BIAS_MAX * s_x))
        integers = np.rint(table / steps[:, None])
        self.quantized[stem] = steps
        self.constant(stem + ".weight", integers.astype(np.int8 if limit == 127 else np.int16))
        return (stem + ".weight", *self.dyadic(stem, steps / scale))

    def embeddings(self) -> str:
        e = self.encoder
        tables = [e.word, e.position] if e.types is None else [e.word, e.types, e.position]
        reach = sum(float(np.abs(t).max()) for t in tables)
        scale = max(reach, TINY) * (1 + 1e-3) / SUM_MAX
        width = e.word.shape[1]
        out = self.value("embed.sum", "int32", width, scale, "bound: largest sum of table entries")
        ids = ["input_ids", "position_ids"]
        constants = self.table("embed.word", e.word, INT8_MAX, scale)
        if e.types is not None:
            ids.insert(1, "token_type_ids")
            constants += self.table("embed.type", e.types, INT16_MAX, scale)
        constants += self.table("embed.position", e.position, INT16_MAX, scale)
        types = int(e.types is not None)
        self.node("embed", (*ids, *constants), out, lo=-SUM_MAX, hi=SUM_MAX, types=types)
        return out

    def plan(self) -> None:
        """Choose every weight's equalisation before anything is emitted."""
        e = self.encoder
        inputs = ["embed.norm" if e.projection is None else "embed.projection"]
        inputs += [f"layer{i}.norm2" for i in range(len(e.layers) - 1)]
        places: dict[int, list[int]] = {}
        for i, layer in enumerate(e.layers):
            places.setdefault(id(layer), []).append(i)
        self.stems = {}
        for at in places.values():
            layer, stem = e.layers[at[0]], f"layer{at[0]}"
            self.stems.update(dict.fromkeys(at, stem))
            self.plan_operand(f"{stem}.qkv", [inputs[i] for i in at], layer.qkv.weight)
            self.plan_operand(f"{stem}.out", [f"layer{i}.context" for i in at], layer.out.weight)
            self.plan_operand(f"{stem}.ffn1", [f"layer{i}.norm1" for i in at], layer.ffn1.weight)
            self.plan_operand(f"{stem}.ffn2", [f"layer{i}.act" for i in at], layer.ffn2.weight)
        if e.projection is not None:
            self.plan_operand("embed.projection", ["embed.norm"], e.projection.weight)
        last = f"layer{len(e.layers) - 1}.norm2"
        self.head_taps = [last]
        for i, stage in enumerate(e.head.stages):
            stem = "embed.word" if stage.tied else f"head{i}"
            self.plan_operand(stem, [self.head_taps[i]], stage.linear.weight, fixed=stage.tied)
            self.head_taps.append(f"head{i}." + ("norm" if stage.norm else "act"))

    def next_operand(self, i: int) -> np.ndarray:
        """Return the int8 scale of what feeds layer i, or the head after the last layer, [C]."""
        e = self.encoder
        if i < len(e.layers):
            tap = f"layer{i - 1}.norm2"
            if i == 0:
                tap = "embed.norm" if e.projection is None else "embed.projection"
            return self.operand_scale(tap, f"{self.stems[i]}.qkv", e.layers[i].qkv.weight)
        return self.head_operand(0)

    def head_operand(self, i: int) -> np.ndarray:
        tap, stages = self.head_taps[i], self.encoder.head.stages
        if not stages:  # nothing reads the int8
            return np.full(self.encoder.hidden, peak(self.seen[tap], self.method) / INT8_MAX)
        stem = "embed.word" if stages[i].tied else f"head{i}"
        return self.operand_scale(tap, stem, stages[i].linear.weight)

    def layer(self, i: int, x8: str, x16: str) -> tuple[str, str]:
        e, at, stem = self.encoder, f"layer{i}.", self.stems[i] + "."
        layer = e.layers[i]
        c, head_dim = e.hidden, e.hidden // e.heads

        acc = self.matmul(at + "qkv", x8, stem + "qkv", layer.qkv)
        s_q, s_k, s_v, product = self.qkv_scales(self.seen[at + "qkv"], c)
        qkv = self.requantize(
            acc, at + "qkv", "int8", np.concatenate([s_q, s_k, s_v]), self.calibrated, INT8_MAX
        )
        s_context = self.operand_scale(at + "context", stem + "out", layer.out.weight)
        tables = attention.tables(product, 1.0, s_v, head_dim, s_context)
        names = [self.constant(f"{at}context.{key}", table) for key, table in tables.items()]
        context = self.value(at + "context", "int8", c, s_context, self.calibrated)
        self.node(
            "attention", (qkv, "cu_seqlens", *names), context, heads=e.heads, head_dim=head_dim
        )
        acc = self.matmul(at + "out", context, stem + "out", layer.out)
        total = self.residual(acc, x16, at + "out", at + "sum1")
        s8 = self.operand_scale(at + "norm1", stem + "ffn1", layer.ffn1.weight)
        x8, x16 = self.norm(total, at + "norm1", at + "norm1", layer.norm1, s8)

        acc = self.matmul(at + "ffn1", x8, stem + "ffn1", layer.ffn1)
        wide = self.activation(acc, at + "act", e.activation)
        if (
            e.activation != "relu"
            and self.seen[at + "ffn1"].peaks.max() > i_gelu.LIMIT * i_gelu.SCALE
        ):
            self.warnings.append(f"{at}ffn1 exceeds 64, where GELU's input is clamped")
        s_act = self.operand_scale(at + "act", stem + "ffn2", layer.ffn2.weight)
        act = self.requantize(wide, at + "act.int8", "int8", s_act, self.calibrated, INT8_MAX)
        acc = self.matmul(at + "ffn2", act, stem + "ffn2", layer.ffn2)
        total = self.residual(acc, x16, at + "ffn2", at + "sum2")
        return self.norm(total, at + "norm2", at + "norm2", layer.norm2, self.next_operand(i + 1))

    def residual(self, acc: str, x16: str, name: str, tap: str) -> str:
        """acc + x16 at the scale of the sum."""
        scale, channels = self.sum_scale(tap), self.values[acc].channels
        wide = self.requantize(acc, name, "int32", scale, self.calibrated, SUM_MAX)
        out = self.value(tap, "int32", channels, scale, self.calibrated)
        ratio = self.dyadic(tap, self.scale(x16) / scale)
        self.node("residual_add", (wide, x16, *ratio), out, lo=-SUM_MAX, hi=SUM_MAX)
        return out

    def qkv_scales(self, seen: Seen, c: int):
        """Return s_q, s_k, s_v [C] and s_q * s_k, which is the same in every channel.

        Only the product matters to a score, so each channel splits it to fit its own q and k; v has
        a scale per channel, which the context's requantize takes out again.
        """
        q, k, v = np.split(channel_peaks(seen, self.method), 3)
        product = float((q * k).max()) / INT8_MAX**2
        s_q = np.sqrt(product * q / k)
        return s_q, product / s_q, v / INT8_MAX, product

    def head(self, x8: str, x16: str) -> str:
        head = self.encoder.head
        rows = POOLS[head.pool]
        index = {"first": "cu_seqlens", "positions": "positions"}.get(head.pool)
        x = x8 if head.stages else x16
        if head.pool == "mean":
            scale = self.scale(x) / 2**POOL_FRACTION_BITS
            channels = self.values[x].channels
            out = self.value("output", "int32", channels, scale, "bound: exact mean", rows)
            self.node("mean_pool", (x, "cu_seqlens"), out, fraction_bits=POOL_FRACTION_BITS)
            return out
        if index:
            v = self.values[x]
            taken = self.value("head.rows", v.dtype, v.channels, v.scale, v.origin, rows)
            self.node("take_rows", (x, index), taken, rows=rows)
            x = taken
        if not head.stages:
            return self.requantize(
                x, "output", "int32", self.scale(x), self.values[x].origin, INT16_MAX
            )
        for i, stage in enumerate(head.stages[:-1]):
            x = self.stage(i, x, stage)
        last = head.stages[-1]
        stem = "embed.word" if last.tied else f"head{len(head.stages) - 1}"
        name = f"head{len(head.stages) - 1}"
        acc = self.matmul(name, x, stem, last.linear)
        weight, bias = self.tensors[stem + ".weight"], self.tensors[name + ".bias"]
        reach = INT8_MAX * np.abs(weight.astype(np.int64)).sum(1) + np.abs(bias.astype(np.int64))
        limit = 2 ** (LOGIT_BITS - 1) - 1
        scale = max(float((reach * self.channel_scale(acc)).max()), TINY) / (limit - 1)
        origin = "bound: largest logit the weights allow"
        return self.requantize(acc, "output", "int32", scale, origin, limit)

    def stage(self, i: int, x: str, stage: Dense) -> str:
        at = f"head{i}"
        acc = self.matmul(at, x, at, stage.linear)
        wide = self.activation(acc, at + ".act", stage.activation)
        s8 = self.head_operand(i + 1)
        if not stage.norm:
            return self.requantize(wide, at + ".int8", "int8", s8, self.calibrated, INT8_MAX)
        scale = self.sum_scale(at + ".act")
        x = self.requantize(wide, at + ".sum", "int32", scale, self.calibrated, SUM_MAX)
        return self.norm(x, at + ".norm", at + ".norm", stage.norm, s8)[0]

    def model(self) -> IntModel:
        e = self.encoder
        self.plan()
        total = self.embeddings()
        if e.projection is None:
            x8, x16 = self.norm(total, "embed.norm", "embed.norm", e.norm, self.next_operand(0))
        else:
            s8 = self.operand_scale("embed.norm", "embed.projection", e.projection.weight)
            x8, _ = self.norm(total, "embed.norm", "embed.norm", e.norm, s8)
            acc = self.matmul("embed.projection", x8, "embed.projection", e.projection)
            s16 = HEADROOM * float(self.seen["embed.projection"].peaks.max()) / INT16_MAX
            x8 = self.requantize(
                acc,
                "embed.projection.int8",
                "int8",
                self.next_operand(0),
                self.calibrated,
                INT8_MAX,
            )
            x16 = self.requantize(
                acc, "embed.projection.int16", "int16", s16, self.calibrated, INT16_MAX
            )
        for i in range(len(e.layers)):
            x8, x16 = self.layer(i, x8, x16)
        output = self.head(x8, x16)
        meta = {
            "recipe": "native",
            "output_rows": self.values[output].rows,
            "output_scale": self.values[output].scale,
            "widths": WIDTHS,
            "warnings": self.warnings,
        }
        return IntModel(self.nodes, self.tensors, self.values, output, meta)
