"""The float heads of transformers' IBert models, in integers.

transformers runs them in float32 on the dequantized features. Here: int8 weights and operands, one
scale per output row; tanh, GELU and LayerNorm are the native recipe's. Nothing needs data but the
masked-LM head's LayerNorm output: its scale is calibrated, or the weights' bound where it is not.
"""

import numpy as np

from intformer.frontend.checkpoint import Checkpoint
from intformer.quantize.ibert.rules import Rules
from intformer.quantize.native.emitter import BIAS_MAX, TANH_LIMIT
from intformer.quantize.native.scales import INT8_MAX
from intformer.relay_ops import i_gelu, i_layernorm, i_tanh

LOGIT_MAX = 2**23 - 1
POOL_FRACTION_BITS = 12
TINY = 1e-30
HEADROOM = 1.1  # of a LayerNorm output over its calibrated peak, per channel
GELU_HEADROOM = 2.0  # of 16-bit GELU over its calibrated peak
LEAST_SIGMAS = 4  # few tokens do not show the peak of every channel
ROWS = {"sequence-classification": "sequence", "masked-lm": "position"}
INDEX = {"sequence": "cu_seqlens", "position": "positions"}


class Head:
    """Adds one head's nodes.

    seen  last hidden states of calibration text for a masked-LM head, real [rows, C], or None
    """

    def __init__(self, checkpoint: Checkpoint, reader: Rules, seen: np.ndarray | None):
        """Add to the nodes of `reader`."""
        self.checkpoint, self.reader, self.seen = checkpoint, reader, seen

    def build(self, head: str, pooling: str, x: str) -> str:
        """Emit the head over the last hidden state x; return the output's name."""
        reader = self.reader
        if head == "sentence-embedding" and pooling == "mean":
            return self.mean(x)
        rows = "sequence" if head == "sentence-embedding" else ROWS.get(head, "token")
        if rows != "token":
            x = self.take(x, rows)
        if head in ("features", "sentence-embedding"):
            v = reader.values[x]
            return reader.requantize_to(
                x, "output", v.scale, v.origin, (-INT8_MAX - 1, INT8_MAX), "int32"
            )
        if head == "sequence-classification":
            x = self.tanh(self.matmul("head0", x, "classifier.dense"))
            return self.logits(self.matmul("head1", x, "classifier.out_proj"))
        if head == "masked-lm":
            x = self.gelu_norm(self.matmul("head0", x, "lm_head.dense"))
            return self.logits(self.decoder(x))
        key = "classifier" if head == "token-classification" else "qa_outputs"
        return self.logits(self.matmul("head0", x, key))

    def take(self, x: str, rows: str) -> str:
        """Pick the rows the head works on."""
        v = self.reader.values[x]
        taken = self.reader.value("head.rows", v.dtype, v.channels, v.scale, v.origin, rows)
        self.reader.node("take_rows", (x, INDEX[rows]), taken, rows=rows)
        return taken

    def mean(self, x: str) -> str:
        """Mean of the features, kept fine."""
        v = self.reader.values[x]
        limits = (-INT8_MAX - 1, INT8_MAX)
        wide = self.reader.requantize_to(x, "head.wide", v.scale, v.origin, limits, "int16")
        scale = v.scale / 2**POOL_FRACTION_BITS
        origin = "bound: exact mean"
        out = self.reader.value("output", "int32", v.channels, scale, origin, "sequence")
        self.reader.node("mean_pool", (wide, "cu_seqlens"), out, fraction_bits=POOL_FRACTION_BITS)
        return out

    def matmul(self, name: str, x: str, key: str) -> str:
        """nn.Linear at `key`."""
        weight = self.checkpoint.tensor(key + ".weight", (None, self.reader.values[x].channels))
        bias = self.checkpoint.tensor(key + ".bias", weight.shape[:1])
        return self.linear(name, x, weight, bias)

    def decoder(self, x: str) -> str:
        """lm_head.decoder, whose weight and bias may be tied (and then are not saved twice)."""
        checkpoint, word = self.checkpoint, self.reader.graph.tables.word
        keys = ("lm_head.decoder.weight", "lm_head.decoder.bias")
        weight = checkpoint.tensor(keys[0]) if keys[0] in checkpoint else word
        bias = checkpoint.tensor(keys[1] if keys[1] in checkpoint else "lm_head.bias")
        return self.linear("head1", x, weight, bias)

    def linear(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Matmul with int8 weights; a scale of x per channel moves into the columns."""
        reader = self.reader
        x_scale = reader.channel_scale(x)
        unit = x_scale.max()
        columns = weight * (x_scale / unit)
        # a row too small for its bias gets the scale its bias needs
        floor = np.maximum(np.abs(bias) / (BIAS_MAX * unit), TINY)
        steps = np.maximum(np.abs(columns).max(1) / INT8_MAX, floor)
        scale = steps * unit
        integers, bias = np.rint(columns / steps[:, None]).astype(np.int8), np.rint(bias / scale)
        names = (
            reader.constant(name + ".weight", integers),
            reader.constant(name + ".bias", bias.astype(np.int32)),
        )
        origin = "bound: product of its operands' scales"
        rows = reader.values[x].rows
        acc = reader.value(name + ".acc", "int32", len(bias), scale, origin, rows)
        reader.node("matmul", (x, *names), acc)
        reader.reach[acc] = (INT8_MAX + 1) * np.abs(integers.astype(np.int64)).sum(1) + np.abs(bias)
        return acc

    def tanh(self, acc: str) -> str:
        """Tanh of an accumulator, int8 with scale 1 / 127."""
        reader, v = self.reader, self.reader.values[acc]
        origin = "bound: |tanh| <= 1"
        out = reader.value("head0.tanh", "int32", v.channels, i_tanh.OUTPUT_SCALE, origin, v.rows)
        limits, domain = (-TANH_LIMIT, TANH_LIMIT), "bound: Q12, the domain of tanh"
        x = reader.requantize_to(acc, "head0.q12", i_tanh.INPUT_SCALE, domain, limits, "int32")
        reader.node("i_tanh", (x,), out)
        limits = (-INT8_MAX, INT8_MAX)
        return reader.requantize_to(out, "head0.int8", 1 / INT8_MAX, origin, limits)

    def reach(self, acc: str) -> float:
        """Return the largest |real| that a channel of a head's matmul can have."""
        return float((self.reader.reach[acc] * self.reader.channel_scale(acc)).max())

    def gelu_norm(self, acc: str) -> str:
        """lm_head: GELU, then LayerNorm to int8 with a scale per channel."""
        reader, v = self.reader, self.reader.values[acc]
        top, origin = self.reach(acc), "bound: L1 norm of the weights"
        if self.seen is not None:
            top = min(top, GELU_HEADROOM * float(np.abs(self.float_dense()).max()))
            origin = f"calibration: {GELU_HEADROOM:g} times the peak of {len(self.seen)} tokens"
        bits = i_gelu.fraction_bits(top)
        scale, origin = 2.0**-bits, f"{origin}; {bits} fraction bits"
        x = reader.rescale(acc, "head0.in", "int16", scale, origin, i_gelu.LIMIT)
        point = reader.constant("head0.point", i_gelu.point(bits))
        out = reader.value("head0.gelu", "int16", v.channels, scale, origin, v.rows)
        reader.node("i_gelu", (x, point), out, form="erf")

        checkpoint, n = self.checkpoint, v.channels
        gamma = checkpoint.tensor("lm_head.layer_norm.weight", (n,))
        beta = checkpoint.tensor("lm_head.layer_norm.bias", (n,))
        eps = checkpoint.setting("layer_norm_eps", float, 1e-12, least=0)
        gain, offset = np.abs(gamma), np.abs(beta)
        peaks, origin = gain * np.sqrt(n - 1) + offset, "bound: |gamma| sqrt(n - 1) + |beta|"
        if self.seen is None:
            reader.warnings.append(
                "the masked-LM head's LayerNorm has no range: a loose bound is used; calibrate it"
            )
        else:
            found = HEADROOM * np.abs(self.float_norm(gamma, beta, eps)).max(0)
            peaks = np.minimum(peaks, np.maximum(found, LEAST_SIGMAS * gain + offset))
            origin = (
                f"calibration: {HEADROOM} times the peak of {len(self.seen)} tokens, "
                f"{LEAST_SIGMAS} |gamma| + |beta| at least"
            )
        peaks = np.maximum(peaks, max(float(peaks.max()), TINY) * 1e-3)
        least = i_layernorm.least_scale(gamma, beta)
        scale8 = np.maximum(peaks / INT8_MAX, least)
        scale16 = max(float(peaks.max()) / 2**15, float(least.max()))
        tables = i_layernorm.tables(scale, gamma, beta, eps, scale8, scale16)
        names = [reader.constant(f"head0.norm.{key}", t) for key, t in tables.items()]
        out8 = reader.value("head0.norm", "int8", n, scale8, origin, v.rows)
        out16 = reader.value("head0.norm16", "int16", n, scale16, origin, v.rows)
        reader.node("i_layernorm", (out, *names), (out8, out16))
        return out8

    def float_dense(self) -> np.ndarray:
        """What the float head's dense layer gives on the features seen, [rows, C]."""
        weight, bias = (
            self.checkpoint.tensor(f"lm_head.dense.{part}") for part in ("weight", "bias")
        )
        return self.seen.astype(np.float32) @ weight.T + bias

    def float_norm(self, gamma: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
        """What the float head's LayerNorm gives on the features seen, [rows, C]."""
        import torch
        from torch.nn import functional

        x = functional.gelu(torch.from_numpy(self.float_dense()))
        parts = torch.from_numpy(gamma), torch.from_numpy(beta)
        return functional.layer_norm(x, gamma.shape, *parts, eps).numpy()

    def logits(self, acc: str) -> str:
        """One scale for all logits, the finest at which the largest possible one fits 24 bits."""
        scale = max(self.reach(acc), TINY) / (LOGIT_MAX - 1)
        origin = "bound: largest logit the weights allow"
        limits = (-LOGIT_MAX, LOGIT_MAX)
        return self.reader.requantize_to(acc, "output", scale, origin, limits, "int32")
