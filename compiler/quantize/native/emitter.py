"""Nodes of recipe native: matrix products, changes of scale, activations; and their constants."""

import numpy as np

from intformer.errors import CheckpointError
from intformer.ir.graph import WORD_STEM, Integers, Linear, Node, Norm
from intformer.quantize.emit import Emitter
from intformer.quantize.methods import TINY, round_rows, row_peaks
from intformer.quantize.native.scales import INT8_MAX, INT16_MAX, Scales
from intformer.relay_ops import gate, i_gelu, i_layernorm, i_stream_norm, i_tanh, rescale

BIAS_MAX = 2**24  # of a row that is almost zero; leaves `rescale` its precision
TANH_LIMIT = 2**18 - 1  # 64 in Q12
FLUSH = 2.0**-12  # a row this far below its table's largest is stored as zeros


class NativeEmitter(Emitter):
    """An Emitter that knows how recipe native writes things.

    scales      of the graph
    calibrated  origin of the scales that ranges decide
    rounded     weight stem -> (factors, scale of each row, integers), kept from method to method
    grain       "channel" or "tensor": what has one weight scale
    largest     |integer| that an int8 operand may be: 128 for operands of recipe ibert
    """

    def __init__(
        self, scales: Scales, calibrated: str, rounded: dict, grain: str, largest: int = INT8_MAX
    ):
        """Start empty."""
        super().__init__()
        self.scales, self.graph = scales, scales.graph
        self.calibrated, self.rounded, self.grain = calibrated, rounded, grain
        self.largest = largest
        self.steps: dict[str, np.ndarray] = {}  # weight stem -> real scale of each row [N]
        self.weight_sums: dict[str, np.ndarray] = {}  # weight stem -> sum of |integers| [N]

    # -- weights --------------------------------------------------------------------------------

    def matmul(self, name: str, x: str, stem: str, linear: Linear) -> str:
        """x int8 times the weight stored at `stem`; bias at this place's scales."""
        f, scale = self.scales.factors[stem], self.channel_scale(x)
        s_x = float(np.mean(scale / f))
        if stem not in self.steps and linear.given is not None:
            self.kept(stem, linear.given)
        if stem not in self.steps:
            steps = self.grained(row_peaks(linear.weight, f) / INT8_MAX, linear.parts)
            # a row too small for its bias (or all zero) gets the scale its bias needs
            floor = np.maximum(
                np.abs(linear.bias) / (BIAS_MAX * s_x), steps.max(initial=TINY) * FLUSH
            )
            steps = np.maximum(steps, np.maximum(floor, TINY))
            self.weight(stem, linear.weight, f, steps, np.int8)
        acc_scale = s_x * self.steps[stem]
        bias = np.rint(linear.bias / acc_scale) - self.zero_share(name, stem)
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
        self.stands_for(name, acc)
        self.reach[acc] = self.largest * self.weight_sums[stem] + np.abs(bias)
        return acc

    def zero_share(self, name: str, stem: str) -> np.ndarray | int:
        """Return what the zero point of an operand adds to a product, [N]."""
        zero = self.scales.zero(self.graph[name].inputs[0])
        if zero == 0:
            return 0
        return zero * self.tensors[stem + ".weight"].sum(1, dtype=np.int64)

    def grained(self, steps: np.ndarray, parts: int) -> np.ndarray:
        """Return a scale per row: its own, or the largest of its part's where tensors have one."""
        if self.grain == "channel":
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

    def kept(self, stem: str, given: Integers) -> None:
        """Keep the integers that the source has."""
        self.steps[stem] = given.steps
        self.constant(stem + ".weight", given.values)
        self.weight_sums[stem] = np.abs(given.values, dtype=np.int16).sum(1, dtype=np.int64)

    def table(
        self, stem: str, table: np.ndarray, limit: int, scale: float, given: Integers | None
    ) -> tuple[str, ...]:
        """Store an embedding table with one scale per row; returns (table, mult, shift) names.

        A tied decoder multiplies with the same rows, so their scales hold its bias too.
        """
        if given is not None:
            self.kept(stem, given)
            return (stem + ".weight", *self.dyadic(stem, given.steps / scale))
        top = np.abs(table).max(1)
        steps = np.maximum(top, max(float(top.max()), TINY) * FLUSH) / limit
        if limit == INT8_MAX:  # the others have bits to spare
            steps = self.grained(steps, 1)
        for node in self.graph.of_kind("linear"):
            if node.stem == stem == WORD_STEM:
                s_x = float(self.scales.operand(node.inputs[0])[0])
                steps = np.maximum(steps, np.abs(node.params.bias) / (BIAS_MAX * s_x))
        self.weight(stem, table, 1.0, steps, np.int8 if limit == INT8_MAX else np.int16)
        return (stem + ".weight", *self.dyadic(stem, steps / scale))

    # -- steps ----------------------------------------------------------------------------------

    def norm(self, x: str, name: str, norm: Norm, s8: np.ndarray, s16: float) -> tuple[str, str]:
        """LayerNorm of x; returns (int8 at scale s8, int16 residual at scale s16)."""
        zero = self.scales.zero(name)
        channels, rows = self.values[x].channels, self.values[x].rows
        scale = float(self.scale(x))
        tables = i_layernorm.tables(scale, norm.weight, norm.bias, norm.eps, s8, s16, zero)
        names = [self.constant(f"{name}.{key}", table) for key, table in tables.items()]
        origin = self.scales.origin(name, self.calibrated)
        out8 = self.value(name + ".int8", "int8", channels, s8, origin, rows)
        out16 = self.value(name + ".int16", "int16", channels, s16, self.calibrated, rows)
        self.node("i_layernorm", (x, *names), (out8, out16))
        self.stands_for(name, out8, out16)
        return out8, out16

    def stream_norm(self, x: str, edge: str, norm: Norm, dtype: str, scale) -> str:
        """Norm of wide rows, such as a residual stream; returns int8 or int16 at `scale`."""
        channels, rows = self.values[x].channels, self.values[x].rows
        tables = i_stream_norm.tables(float(self.scale(x)), norm.weight, norm.bias, norm.eps, scale)
        name = f"{edge}.{dtype}"
        names = [self.constant(f"{name}.{key}", table) for key, table in tables.items()]
        out = self.value(name, dtype, channels, scale, self.calibrated, rows)
        self.node(i_stream_norm.NAME, (x, *names), out, rms=norm.rms, dtype=dtype)
        self.stands_for(edge, out)
        return out

    def term(self, x: str, name: str, scale: float, limit: int) -> str:
        """Bring a value to the int32 scale of a residual stream, +-limit."""
        ratio = self.channel_scale(x) / scale
        if x not in self.reach or not rescale.holds(ratio, self.reach[x]):
            return self.requantize(x, name, "int32", scale, self.calibrated, limit)
        return self.rescale(x, name, "int32", scale, self.calibrated, limit)

    def gelu(self, acc: str, name: str, kind: str, top: float) -> str:
        """A function of i_gelu of an accumulator, int16, as fine as `top` leaves."""
        (bits, scale), source = i_gelu.scale(top, kind), self.values[acc]
        form, _ = i_gelu.FUNCTIONS[kind]
        origin = f"{self.calibrated}; {bits} fraction bits, which hold the output's range"
        x = self.rescale(acc, name + ".in", "int16", scale, origin, i_gelu.LIMIT)
        point = self.constant(name + ".point", i_gelu.point(bits, form))
        out = self.value(name, "int16", source.channels, scale, origin, source.rows)
        self.node("i_gelu", (x, point), out, form=form)
        self.stands_for(name, out)
        return out

    def relu(self, acc: str, name: str) -> str:
        """ReLU of an accumulator, at its scale."""
        source, origin = self.values[acc], "bound: its input's"
        out = self.value(name, "int32", source.channels, source.scale, origin, source.rows)
        self.node("relu", (acc,), out)
        self.stands_for(name, out)
        self.reach[out] = self.reach[acc]
        return out

    def tanh(self, acc: str, name: str) -> str:
        """Tanh of an accumulator, int32 in Q15."""
        source, origin = self.values[acc], f"bound: Q{i_tanh.INPUT_BITS}, the domain of tanh"
        x = self.requantize(acc, name + ".q12", "int32", i_tanh.INPUT_SCALE, origin, TANH_LIMIT)
        origin = "bound: |tanh| <= 1, Q15"
        out = self.value(name, "int32", source.channels, i_tanh.OUTPUT_SCALE, origin, source.rows)
        self.node("i_tanh", (x,), out)
        self.stands_for(name, out)
        return out

    def gate(self, acc: str, node: Node, s8: np.ndarray) -> str:
        """Activate half of an accumulator, times the other half; returns int8 at scale s8 [F].

        node  of kind mul
        """
        act, edge = self.graph[node.inputs[0]], node.inputs[1]
        kind, active = act.attrs["function"], act.attrs["half"]
        bits, step = i_gelu.scale(self.scales.gelu_top(act.name), kind)
        form, _ = i_gelu.FUNCTIONS[kind]
        factor = self.scales.gate(node)
        halves = [factor, factor]
        halves[active] = np.full(node.channels, step)
        origin = f"{self.calibrated}; {bits} fraction bits of the activation"
        x = self.rescale(acc, edge + ".int16", "int16", np.concatenate(halves), origin, INT16_MAX)
        tables = {"point": i_gelu.point(bits, form)}
        tables["mult"], tables["offset"] = gate.tables(step * factor / s8)
        names = [self.constant(f"{node.name}.{key}", table) for key, table in tables.items()]
        rows = self.values[acc].rows
        out = self.value(node.name, "int8", node.channels, s8, self.calibrated, rows)
        self.node("gate", (x, *names), out, form=form, active=active)
        self.stands_for(node.name, out)
        return out

    def activation8(self, acc: str, name: str, kind: str, s8: np.ndarray) -> str:
        """Apply the activation to an accumulator; returns int8 at scale s8 [C]."""
        out = name + ".int8"
        if "grid" in self.graph[name].attrs:
            return self.on_grid(acc, name, kind, s8)
        if kind == "relu":
            return self.rescale(self.relu(acc, name), out, "int8", s8, self.calibrated, INT8_MAX)
        if kind == "tanh":
            wide = self.tanh(acc, name)
            return self.requantize(wide, out, "int8", s8, self.calibrated, INT8_MAX)
        wide = self.gelu(acc, name, kind, INT8_MAX * float(np.max(s8)))
        return self.requantize16(wide, out, s8, self.calibrated)

    def on_grid(self, acc: str, name: str, kind: str, s8: np.ndarray) -> str:
        """Apply the activation to an accumulator; returns int8 on the grid that the source has."""
        grid = self.graph[name].attrs["grid"]
        if kind == "relu":
            wide = self.relu(acc, name)
        elif kind == "tanh":
            wide = self.tanh(acc, name)
        else:
            wide = self.gelu(acc, name, kind, grid.reach * grid.scale)
        self.reach.setdefault(wide, np.full(self.values[wide].channels, 2.0**15))
        origin = self.scales.origin(name, self.calibrated)
        return self.rescale(wide, name + ".int8", "int8", s8, origin, INT8_MAX, grid.zero)

    def activation(self, acc: str, name: str, kind: str) -> str:
        """Apply the activation to an accumulator; returns what a LayerNorm reads."""
        if kind == "relu":
            wide, scale = self.relu(acc, name), self.scales.stream(name)
            return self.rescale(wide, name + ".int16", "int16", scale, self.calibrated, INT16_MAX)
        if kind == "tanh":
            return self.tanh(acc, name)
        return self.gelu(acc, name, kind, self.scales.gelu_top(name))
