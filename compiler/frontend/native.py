"""A float encoder plus observed ranges becomes an IntModel in the native recipe.

Every value has a scale (real = integer * scale) and an origin.
"""

from dataclasses import dataclass

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.calibration import Seen
from intformer.frontend.emit import Emitter
from intformer.frontend.encoder import POOLS, TANH_GELU, Dense, FloatEncoder, Layer, Linear, Norm
from intformer.frontend.progress import progress
from intformer.frontend.scales import TINY, channel_peaks, equalise, peak, round_rows, row_peaks
from intformer.model import IntModel
from intformer.relay_ops import attention, i_gelu, i_layernorm, i_tanh, requantize16

INT8_MAX = 127
INT16_MAX = 2**15 - 1
SUM_MAX = 2**17 - 1  # of the embedding sum, in int32
BIAS_MAX = 2**24  # of a row that is almost zero; leaves `rescale` its precision
TANH_LIMIT = 2**18 - 1  # 64 in Q12
LOGIT_BITS = 24  # logits fit this many bits whatever the input
HEADROOM = 2.0  # of 16 and 17-bit scales over the calibrated peak
POOL_FRACTION_BITS = 12
GRAINS = ("channel", "tensor")  # what has one weight scale
FLUSH = 2.0**-12  # a row this far below its table's largest is stored as zeros
WIDTHS = {
    "word embedding": "int8, one scale per row",
    "type and position embedding": "int16, one scale per row",
    "embedding sum": "int32 (18 bits)",
    "matmul operands": "int8",
    "weights": "int8, one scale per output channel",
    "bias": "int32",
    "accumulators": "int32",
    "residual sum": "int32 (17 bits), of two int16 terms",
    "LayerNorm output": "int8 operand and int16 residual",
    "GELU": "int16, 9 to 13 fraction bits",
    "tanh": "int32, Q12 in",
    "attention numerators": "int16, row maximum 4095",
    "context accumulator": "int32",
    "mean pooling": f"int32, {POOL_FRACTION_BITS} fraction bits of the int16 scale",
    "logits": "int32, one scale",
}


@dataclass(frozen=True, eq=False)
class Operand:
    """One weight and everything that multiplies with it.

    stem    where the weight is stored
    linear  the float weight
    taps    what feeds it: one place, or one per repetition of a shared layer
    tied    the weight is the word table, which has one scale per row and no more
    """

    stem: str
    linear: Linear
    taps: tuple[str, ...]
    tied: bool = False


class Plan:
    """Which weight is stored where, and what feeds it.

    layers  per layer, role ("qkv", "out", "ffn1", "ffn2") -> Operand; shared layers share them
    head    per stage of the head
    makers  tap -> the LayerNorm or the activation that makes the value there
    """

    def __init__(self, encoder: FloatEncoder):
        """Walk the encoder once."""
        self.inputs = encoder.streams()
        self.makers: dict[str, Norm | str] = {"embed.norm": encoder.norm}
        for i, layer in enumerate(encoder.layers):
            self.makers |= {f"layer{i}.norm1": layer.norm1, f"layer{i}.norm2": layer.norm2}
            self.makers[f"layer{i}.act"] = encoder.activation
        places: dict[int, list[int]] = {}
        for i, layer in enumerate(encoder.layers):
            places.setdefault(id(layer), []).append(i)
        self.layers = [self._layer(layer, places[id(layer)]) for layer in encoder.layers]
        self.projection = None
        if encoder.projection is not None:
            self.projection = Operand("embed.projection", encoder.projection, ("embed.norm",))
        self.head: list[Operand] = []
        tap = self.inputs[-1]
        for i, stage in enumerate(encoder.head.stages):
            stem = "embed.word" if stage.tied else f"head{i}"
            self.head.append(Operand(stem, stage.linear, (tap,), stage.tied))
            tap = f"head{i}." + ("norm" if stage.norm else "act")
            self.makers[tap] = stage.norm or stage.activation

    def _layer(self, layer: Layer, at: list[int]) -> dict[str, Operand]:
        stem, first = f"layer{at[0]}.", self.inputs
        return {
            "qkv": Operand(stem + "qkv", layer.qkv, tuple(first[i] for i in at)),
            "out": Operand(stem + "out", layer.out, tuple(f"layer{i}.context" for i in at)),
            "ffn1": Operand(stem + "ffn1", layer.ffn1, tuple(f"layer{i}.norm1" for i in at)),
            "ffn2": Operand(stem + "ffn2", layer.ffn2, tuple(f"layer{i}.act" for i in at)),
        }

    def operands(self) -> list[Operand]:
        """Return every weight once."""
        every = [operand for layer in self.layers for operand in layer.values()]
        every += [self.projection] if self.projection else []
        return list({operand.stem: operand for operand in every + self.head}.values())


def split_scales(q, k, v):
    """Return s_q, s_k, s_v [C] and s_q * s_k, which is the same in every channel.

    q, k, v  peaks [C], positive; NumPy or torch
    Only the product matters to a score, so each channel splits it to fit its own q and k; v has a
    scale per channel, which the context's requantize takes out again.
    """
    product = (q * k).max() / INT8_MAX**2
    s_q = (product * q / k) ** 0.5
    return s_q, product / s_q, v / INT8_MAX, product


def equalisation(encoder: FloatEncoder, seen: dict[str, Seen]) -> dict[str, np.ndarray]:
    """Return weight stem -> channel factors f [K] of its operand."""
    return {
        operand.stem: np.ones(operand.linear.weight.shape[1])
        if operand.tied
        else equalise([seen[tap] for tap in operand.taps], operand.linear.weight)
        for operand in progress(Plan(encoder).operands(), "equalising channels")
    }


def lower(
    encoder: FloatEncoder,
    seen: dict[str, Seen],
    factors: dict[str, np.ndarray],
    method: str,
    origin: str,
    rounded: dict[str, tuple] | None = None,
    weights: str = "channel",
) -> IntModel:
    """Return the IntModel (meta holds only what the numbers decide; the caller adds the rest).

    seen     what calibration saw at every tap of FloatEncoder.forward
    factors  of equalisation
    method   one of scales.METHODS
    origin   where the ranges in `seen` come from, as Value.origin says it
    rounded  what one method leaves for the next: weight stem -> (factors, scale of each row,
             integers)
    weights  "channel": a scale per weight and word row; "tensor": one per weight and word table
    """
    if weights not in GRAINS:
        raise CheckpointError(
            f"weights = {weights!r} is not known", hint="one of " + ", ".join(GRAINS)
        )
    known = {} if rounded is None else rounded
    return _Lowering(encoder, seen, factors, method, origin, known, weights).model()


class _Lowering(Emitter):
    def __init__(self, encoder, seen, factors, method, origin, rounded, weights):
        super().__init__()
        self.encoder, self.seen, self.factors, self.method = encoder, seen, dict(factors), method
        self.rounded, self.calibrated, self.weights = rounded, origin, weights
        self.plan = Plan(encoder)
        # (weight stem, tap) -> int8 scale of the operand there over its channel factors
        self.units: dict[tuple[str, str], float] = {}
        for operand in self.plan.operands():
            for tap in operand.taps:
                self.units[operand.stem, tap] = self._unit(operand, tap)
            self._raise(operand)
        self.steps: dict[str, np.ndarray] = {}  # weight stem -> real scale of each row [N]
        self.weight_sums: dict[str, np.ndarray] = {}  # weight stem -> sum of |integers| [N]

    # -- pieces ---------------------------------------------------------------------------------

    def operand_scale(self, operand: Operand, tap: str) -> np.ndarray:
        """Return the int8 scale of each channel of the operand at the place `tap` saw, [K]."""
        return self.factors[operand.stem] * self.units[operand.stem, tap]

    def _unit(self, operand: Operand, tap: str) -> float:
        f = self.factors[operand.stem]
        importance = np.square(operand.linear.weight).sum(0) * np.square(f)
        return max(peak(self.seen[tap], self.method, f, importance), TINY) / INT8_MAX

    def _raise(self, operand: Operand) -> None:
        """Raise the scales of channels too small for what their producer can express.

        A raised channel reaches less of its int8 than it could and clips nothing.
        """
        missing = np.ones(1)
        for tap in operand.taps:
            scale = self.operand_scale(operand, tap)
            missing = np.maximum(missing, self.least_scale(tap, scale) / scale)
        if missing.max() == 1:
            return
        if operand.tied:  # its factors are 1: all channels get what the smallest one needs
            for tap in operand.taps:
                self.units[operand.stem, tap] *= float(missing.max())
        else:
            self.factors[operand.stem] = self.factors[operand.stem] * missing

    def least_scale(self, tap: str, scale: np.ndarray) -> np.ndarray | float:
        """Return the smallest int8 scale, [K] or one, that what `tap` saw can be brought to.

        scale  those chosen so far, [K]: the fraction bits of GELU follow the largest
        """
        maker = self.plan.makers.get(tap)
        if isinstance(maker, Norm):
            return i_layernorm.least_scale(maker.weight, maker.bias)
        if maker in (None, "relu", "tanh"):
            return 0.0
        step = 2.0 ** -i_gelu.fraction_bits(INT8_MAX * float(scale.max()))
        return step / requantize16.MAX_RATIO * (1 + 1e-6)

    def matmul(self, name: str, x: str, operand: Operand) -> str:
        """x int8 times the operand's weight; bias at this place's scales."""
        stem, linear = operand.stem, operand.linear
        f, scale = self.factors[stem], self.channel_scale(x)
        s_x = float(np.mean(scale / f))
        if stem not in self.steps:
            steps = self.grained(row_peaks(linear.weight, f) / INT8_MAX, linear.parts)
            # a row too small for its bias (or all zero) gets the scale its bias needs
            floor = np.maximum(
                np.abs(linear.bias) / (BIAS_MAX * s_x), steps.max(initial=TINY) * FLUSH
            )
            steps = np.maximum(steps, np.maximum(floor, TINY))
            self.weight(stem, linear.weight, f, steps, np.int8)
        acc_scale = s_x * self.steps[stem]
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
        self.reach[acc] = INT8_MAX * self.weight_sums[stem] + np.abs(bias)
        return acc

    def grained(self, steps: np.ndarray, parts: int) -> np.ndarray:
        """Return a scale per row: its own, or the largest of its part's where tensors have one."""
        if self.weights == "channel":
            return steps
        return np.repeat(steps.reshape(parts, -1).max(1), len(steps) // parts)

    def weight(self, stem: str, weight: np.ndarray, f, steps: np.ndarray, dtype) -> None:
        """Keep weight * f rounded at the scale of each row."""
        known = self.rounded.get(stem)
        if known is None or not (np.array_equal(known[0], f) and np.array_equal(known[1], steps)):
            known = self.rounded[stem] = f, steps, round_rows(weight, f, steps, dtype)
        _, self.steps[stem], integers = known
        self.constant(stem + ".weight", integers)
        self.weight_sums[stem] = np.abs(integers, dtype=np.int16).sum(1, dtype=np.int64)

    def norm(self, x: str, name: str, norm: Norm, s8: np.ndarray, s16: float) -> tuple[str, str]:
        """LayerNorm of x; returns (int8 at scale s8, int16 residual at scale s16)."""
        channels, rows = self.values[x].channels, self.values[x].rows
        scale = float(self.scale(x))
        tables = i_layernorm.tables(scale, norm.weight, norm.bias, norm.eps, s8, s16)
        names = [self.constant(f"{name}.{key}", table) for key, table in tables.items()]
        out8 = self.value(name + ".int8", "int8", channels, s8, self.calibrated, rows)
        out16 = self.value(name + ".int16", "int16", channels, s16, self.calibrated, rows)
        self.node("i_layernorm", (x, *names), (out8, out16))
        return out8, out16

    def scale16(self, *taps: str) -> float:
        """Return the int16 scale that holds what all of the taps saw and a LayerNorm can make."""
        top = max(float(self.seen[tap].peaks.max()) for tap in taps)
        scale = HEADROOM * max(top, TINY) / INT16_MAX
        for norm in (self.plan.makers.get(tap) for tap in taps):
            if isinstance(norm, Norm):
                scale = max(scale, float(i_layernorm.least_scale(norm.weight, norm.bias).max()))
        return scale

    def residual_scale(self, i: int) -> float:
        """Return the int16 scale of what enters layer i, or the head after the last layer.

        It is also that of the other term of the sum in layer i: where a sum and its residual are
        within half of the range, the other term is within the whole.
        """
        sums = [f"layer{i}.sum1"] if i < len(self.plan.layers) else []
        return self.scale16(self.plan.inputs[i], *sums)

    def gelu(self, acc: str, name: str, kind: str, top: float) -> str:
        """GELU of an accumulator, int16 with as many fraction bits as `top` leaves."""
        bits, source = i_gelu.fraction_bits(top), self.values[acc]
        origin = f"{self.calibrated}; {bits} fraction bits, which hold the output's range"
        x = self.rescale(acc, name + ".in", "int16", 2.0**-bits, origin, i_gelu.LIMIT)
        point = self.constant(name + ".point", i_gelu.point(bits))
        out = self.value(name, "int16", source.channels, 2.0**-bits, origin, source.rows)
        self.node("i_gelu", (x, point), out, form="tanh" if kind == TANH_GELU else "erf")
        return out

    def relu(self, acc: str, name: str) -> str:
        source, origin = self.values[acc], "bound: its input's"
        out = self.value(name, "int32", source.channels, source.scale, origin, source.rows)
        self.node("relu", (acc,), out)
        self.reach[out] = self.reach[acc]
        return out

    def tanh(self, acc: str, name: str) -> str:
        source, origin = self.values[acc], f"bound: Q{i_tanh.INPUT_BITS}, the domain of tanh"
        x = self.requantize(acc, name + ".q12", "int32", i_tanh.INPUT_SCALE, origin, TANH_LIMIT)
        origin = "bound: |tanh| <= 1, Q15"
        out = self.value(name, "int32", source.channels, i_tanh.OUTPUT_SCALE, origin, source.rows)
        self.node("i_tanh", (x,), out)
        return out

    def activation8(self, acc: str, name: str, kind: str, s8: np.ndarray) -> str:
        """Apply the activation to an accumulator; returns int8 at scale s8 [C]."""
        out = name + ".int8"
        if kind == "relu":
            return self.rescale(self.relu(acc, name), out, "int8", s8, self.calibrated, INT8_MAX)
        if kind == "tanh":
            wide = self.tanh(acc, name)
            return self.requantize(wide, out, "int8", s8, self.calibrated, INT8_MAX)
        wide = self.gelu(acc, name, kind, INT8_MAX * float(np.max(s8)))
        return self.requantize16(wide, out, s8, self.calibrated)

    def activation(self, acc: str, name: str, kind: str) -> str:
        """Apply the activation to an accumulator; returns what a LayerNorm reads."""
        if kind == "relu":
            wide, scale = self.relu(acc, name), self.scale16(name)
            return self.rescale(wide, name + ".int16", "int16", scale, self.calibrated, INT16_MAX)
        if kind == "tanh":
            return self.tanh(acc, name)
        return self.gelu(acc, name, kind, HEADROOM * float(self.seen[name].peaks.max()))

    # -- the model ------------------------------------------------------------------------------

    def table(self, stem: str, table: np.ndarray, limit: int, scale: float) -> tuple[str, ...]:
        """Store an embedding table with one scale per row; returns (table, mult, shift) names.

        A tied decoder multiplies with the same rows, so their scales hold its bias too.
        """
        top = np.abs(table).max(1)
        steps = np.maximum(top, max(float(top.max()), TINY) * FLUSH) / limit
        if limit == INT8_MAX:  # the others have bits to spare
            steps = self.grained(steps, 1)
        stages = self.encoder.head.stages
        if stem == "embed.word" and stages and stages[-1].tied:
            s_x = float(self.head_operand(len(stages) - 1)[0])
            steps = np.maximum(steps, np.abs(stages[-1].linear.bias) / (BIAS_MAX * s_x))
        self.weight(stem, table, 1.0, steps, np.int8 if limit == INT8_MAX else np.int16)
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

    def layer_operand(self, i: int) -> np.ndarray:
        """Return the int8 scale of what feeds layer i, or the head after the last layer, [C]."""
        if i == len(self.plan.layers):
            return self.head_operand(0)
        return self.operand_scale(self.plan.layers[i]["qkv"], self.plan.inputs[i])

    def head_operand(self, i: int) -> np.ndarray:
        """Return the int8 scale of what feeds stage i of the head, [C]."""
        if not self.plan.head:  # nothing reads the int8
            top = peak(self.seen[self.plan.inputs[-1]], self.method)
            return np.full(self.encoder.hidden, max(top, TINY) / INT8_MAX)
        return self.operand_scale(self.plan.head[i], *self.plan.head[i].taps)

    def layer(self, i: int, x8: str, x16: str) -> tuple[str, str]:
        e, at = self.encoder, f"layer{i}."
        layer, operands = e.layers[i], self.plan.layers[i]
        c, head_dim = e.hidden, e.hidden // e.heads

        acc = self.matmul(at + "qkv", x8, operands["qkv"])
        s_q, s_k, s_v, product = self.qkv_scales(self.seen[at + "qkv"])
        qkv = self.rescale(
            acc, at + "qkv", "int8", np.concatenate([s_q, s_k, s_v]), self.calibrated, INT8_MAX
        )
        s_context = self.operand_scale(operands["out"], at + "context")
        tables = attention.tables(product, 1.0, s_v, head_dim, s_context)
        names = [self.constant(f"{at}context.{key}", table) for key, table in tables.items()]
        context = self.value(at + "context", "int8", c, s_context, self.calibrated)
        self.node(
            "attention", (qkv, "cu_seqlens", *names), context, heads=e.heads, head_dim=head_dim
        )
        acc = self.matmul(at + "out", context, operands["out"])
        total = self.residual(acc, x16, at + "out", at + "sum1")
        s8 = self.operand_scale(operands["ffn1"], at + "norm1")
        s16 = self.scale16(at + "norm1", at + "sum2")
        x8, x16 = self.norm(total, at + "norm1", layer.norm1, s8, s16)

        acc = self.matmul(at + "ffn1", x8, operands["ffn1"])
        s_act = self.operand_scale(operands["ffn2"], at + "act")
        act = self.activation8(acc, at + "act", e.activation, s_act)
        acc = self.matmul(at + "ffn2", act, operands["ffn2"])
        total = self.residual(acc, x16, at + "ffn2", at + "sum2")
        s8, s16 = self.layer_operand(i + 1), self.residual_scale(i + 1)
        return self.norm(total, at + "norm2", layer.norm2, s8, s16)

    def residual(self, acc: str, x16: str, name: str, out: str) -> str:
        """acc + x16 at the scale of x16, which is that of the sum."""
        scale = float(self.scale(x16))
        term = self.rescale(acc, name, "int16", scale, self.calibrated, INT16_MAX)
        self.value(out, "int32", self.values[acc].channels, scale, self.calibrated)
        self.node("add", (term, x16), out)
        return out

    def qkv_scales(self, seen: Seen):
        """Return split_scales of what calibration saw."""
        return split_scales(*np.split(channel_peaks(seen, self.method), 3))

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
        name = f"head{len(head.stages) - 1}"
        acc = self.matmul(name, x, self.plan.head[-1])
        limit = 2 ** (LOGIT_BITS - 1) - 1
        scale = max(float((self.reach[acc] * self.channel_scale(acc)).max()), TINY) / (limit - 1)
        origin = "bound: largest logit the weights allow"
        return self.requantize(acc, "output", "int32", scale, origin, limit)

    def stage(self, i: int, x: str, stage: Dense) -> str:
        at = f"head{i}"
        acc = self.matmul(at, x, self.plan.head[i])
        s8 = self.head_operand(i + 1)
        if not stage.norm:
            return self.activation8(acc, at + ".act", stage.activation, s8)
        wide = self.activation(acc, at + ".act", stage.activation)
        s16 = self.scale16(at + ".norm")
        return self.norm(wide, at + ".norm", stage.norm, s8, s16)[0]

    def model(self) -> IntModel:
        e = self.encoder
        total = self.embeddings()
        if e.projection is None:
            s8, s16 = self.layer_operand(0), self.residual_scale(0)
            x8, x16 = self.norm(total, "embed.norm", e.norm, s8, s16)
        else:
            s8 = self.operand_scale(self.plan.projection, "embed.norm")
            s16 = self.scale16("embed.norm")
            x8, _ = self.norm(total, "embed.norm", e.norm, s8, s16)
            acc = self.matmul("embed.projection", x8, self.plan.projection)
            name, s8 = "embed.projection", self.layer_operand(0)
            x8 = self.rescale(acc, name + ".int8", "int8", s8, self.calibrated, INT8_MAX)
            s16 = self.residual_scale(0)
            x16 = self.rescale(acc, name + ".int16", "int16", s16, self.calibrated, INT16_MAX)
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
