"""The float heads of transformers' IBert models, in integers, and what the edge has to know.

transformers runs them in float32 on the dequantized features. Here: int8 weights and operands, one
scale per output row; tanh, GELU and LayerNorm are the native recipe's. Nothing needs data but the
masked-LM head's LayerNorm output: its scale is calibrated, or the weights' bound where it is not.
"""

from itertools import pairwise

import numpy as np

from intformer.frontend import calibration
from intformer.frontend.calibrated import mask_token_id, sequences
from intformer.frontend.ibert import DEVIATIONS, LEAK, WIDTHS, Reader
from intformer.model import IntModel
from intformer.relay_ops import attention_ibert, i_gelu, i_layernorm, i_tanh
from intformer.relay_ops.attention import scores

INT8_MAX = 127
LN_INPUT_MAX = 2**17 - 1
LOGIT_MAX = 2**23 - 1
POOL_FRACTION_BITS = 12
CALIBRATION_SENTENCES = 64  # run through the NumPy reference
TINY = 1e-30
ROWS = {"sequence-classification": "sequence", "masked-lm": "position"}
INDEX = {"sequence": "cu_seqlens", "position": "positions"}


def finish(reader: Reader, features: str, head: str, pooling: str, calibrate) -> IntModel:
    """Add the head to the reader's encoder and return the whole model."""
    checkpoint = reader.checkpoint
    files = checkpoint.files()
    meta = _meta(reader, head, pooling)
    if head == "masked-lm":
        meta["mask_token_id"] = mask_token_id(files)
    seen = None
    if calibrate is not None:
        chosen, _ = calibration.choose(sequences(calibrate, files, meta))
        every = -(-len(chosen) // CALIBRATION_SENTENCES)
        batches = calibration.batches(chosen[::every], meta, meta.get("mask_token_id"))
        seen, meta["calibration"] = _observe(reader, features, head, batches)
    output = _Head(reader, seen).build(head, pooling, features)
    value = reader.values[output]
    meta |= {
        "output_rows": value.rows,
        "output_channels": value.channels,
        "output_scale": value.scale,
        "warnings": reader.warnings,
    }
    if head.endswith("-classification"):
        names = {int(i): name for i, name in (checkpoint.config.get("id2label") or {}).items()}
        meta["labels"] = [names.get(i, f"LABEL_{i}") for i in range(value.channels)]
    return IntModel(reader.nodes, reader.tensors, reader.values, output, meta, files)


def _meta(reader: Reader, head: str, pooling: str) -> dict:
    checkpoint = reader.checkpoint
    pad = checkpoint.config.get("pad_token_id")
    pad = 1 if pad is None else pad
    limit = len(reader.tensors["embed.position.weight"]) - (pad + 1)
    sentence = checkpoint.read_json("sentence_bert_config.json") or {}
    leak, said = LEAK[reader.mode]
    return {
        "family": "ibert",
        "head": head,
        "recipe": "ibert",
        "mode": reader.mode,
        "labels": [],
        "problem_type": checkpoint.config.get("problem_type"),
        "vocab_size": len(reader.tensors["embed.word.weight"]),
        "type_vocab_size": len(reader.tensors["embed.type.weight"]),
        "max_length": limit,
        "truncate_length": min(sentence.get("max_seq_length") or limit, limit),
        "pad_token_id": pad,
        "position_rule": "padding",
        "hidden": reader.hidden,
        "heads": reader.heads,
        "layers": reader.layers,
        "ffn": reader.ffn,
        "activation": "gelu",
        "pooling": pooling,
        "widths": WIDTHS,
        "deviations": {**DEVIATIONS, leak: said},
        "calibration": {},
    }


def _observe(reader: Reader, features: str, head: str, batches: list[dict]):
    """Run the encoder's reference; return (features real [rows, C] or None, what attention kept).

    Warns where a layer's attention rows keep less than half their mass: floor(256 p) drops every
    probability below 1/256.
    """
    encoder = IntModel(reader.nodes, reader.tensors, reader.values, features, {})
    rows, kept = [], {f"layer{i}": [] for i in range(reader.layers)}
    for batch in batches:
        values = encoder.run(batch)
        if head == "masked-lm":
            rows.append(values[features][batch["positions"]])
        for layer, shares in kept.items():
            p = reader.tensors[layer + ".context.p"]
            shares += _kept(values[layer + ".qkv"], batch["cu_seqlens"], p, reader)
    least = {layer: float(min(shares)) for layer, shares in kept.items()}
    for layer, shares in kept.items():
        poor = float(np.mean(np.asarray(shares) < 0.5))
        if poor:
            reader.warnings.append(
                f"{layer}: {poor:.2%} of the calibration rows' attention keeps less than half its "
                f"mass (least {least[layer]:.2f}); floor(256 p) drops what is below 1/256"
            )
    said = {
        "sequences": sum(len(batch["cu_seqlens"]) - 1 for batch in batches),
        "tokens": sum(len(batch["input_ids"]) for batch in batches),
        "least attention mass": {layer: round(share, 3) for layer, share in least.items()},
    }
    seen = np.concatenate(rows) * reader.scale(features) if rows else None
    return seen, said


def _kept(qkv: np.ndarray, cu_seqlens: np.ndarray, p: np.ndarray, reader: Reader) -> list[float]:
    shares = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        for h in range(reader.heads):
            s, _ = scores(qkv, slice(start, stop), h, reader.heads, reader.head_dim)
            exponentials = attention_ibert.numerators(s - s.max(1, keepdims=True), p)
            shares += (attention_ibert.probabilities(exponentials).sum(1) / 256).tolist()
    return shares


class _Head:
    """Adds one head's nodes.

    seen  features that reach a masked-LM head on calibration text, real [rows, C], or None
    """

    def __init__(self, reader: Reader, seen: np.ndarray | None):
        self.reader, self.seen = reader, seen

    def build(self, head: str, pooling: str, x: str) -> str:
        reader = self.reader
        if head == "sentence-embedding" and pooling == "mean":
            return self.mean(x)
        rows = "sequence" if head == "sentence-embedding" else ROWS.get(head, "token")
        if rows != "token":
            x = self.take(x, rows)
        if head in ("features", "sentence-embedding"):
            v = reader.values[x]
            return reader.requantize(
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
        v = self.reader.values[x]
        taken = self.reader.value("head.rows", v.dtype, v.channels, v.scale, v.origin, rows)
        self.reader.node("take_rows", (x, INDEX[rows]), taken, rows=rows)
        return taken

    def mean(self, x: str) -> str:
        v = self.reader.values[x]
        limits = (-INT8_MAX - 1, INT8_MAX)
        wide = self.reader.requantize(x, "head.wide", v.scale, v.origin, limits, "int16")
        scale = v.scale / 2**POOL_FRACTION_BITS
        origin = "bound: exact mean"
        out = self.reader.value("output", "int32", v.channels, scale, origin, "sequence")
        self.reader.node("mean_pool", (wide, "cu_seqlens"), out, fraction_bits=POOL_FRACTION_BITS)
        return out

    def matmul(self, name: str, x: str, key: str) -> str:
        weight = self.reader.checkpoint.tensor(key + ".weight", (None, self.reader.hidden))
        bias = self.reader.checkpoint.tensor(key + ".bias", weight.shape[:1])
        return self.linear(name, x, weight, bias)

    def decoder(self, x: str) -> str:
        """lm_head.decoder, whose weight and bias may be tied (and then are not saved twice)."""
        checkpoint, prefix = self.reader.checkpoint, self.reader.prefix
        words = prefix + "embeddings.word_embeddings.weight"
        keys = ("lm_head.decoder.weight", "lm_head.decoder.bias")
        weight = checkpoint.tensor(keys[0] if keys[0] in checkpoint else words)
        bias = checkpoint.tensor(keys[1] if keys[1] in checkpoint else "lm_head.bias")
        return self.linear("head1", x, weight, bias)

    def linear(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Matmul with int8 weights; x may have a scale per channel, which moves into the columns."""
        reader = self.reader
        x_scale = np.broadcast_to(reader.scale(x), weight.shape[1])
        unit = x_scale.max()
        columns = weight * (x_scale / unit)
        # a row too small for its bias gets the scale its bias needs
        floor = np.maximum(np.abs(bias) / (2**30 * unit), TINY)
        steps = np.maximum(np.abs(columns).max(1) / INT8_MAX, floor)
        scale = steps * unit
        names = (
            reader.constant(name + ".weight", np.rint(columns / steps[:, None]).astype(np.int8)),
            reader.constant(name + ".bias", np.rint(bias / scale).astype(np.int32)),
        )
        origin = "bound: product of its operands' scales"
        rows = reader.values[x].rows
        acc = reader.value(name + ".acc", "int32", len(bias), scale, origin, rows)
        reader.node("matmul", (x, *names), acc)
        return acc

    def q12(self, acc: str, name: str) -> str:
        limits = (-i_gelu.LIMIT, i_gelu.LIMIT)
        origin = "bound: Q12, the function's domain"
        return self.reader.requantize(acc, name, i_gelu.SCALE, origin, limits, "int32")

    def tanh(self, acc: str) -> str:
        reader, v = self.reader, self.reader.values[acc]
        origin = "bound: |tanh| <= 1"
        out = reader.value("head0.tanh", "int32", v.channels, i_tanh.OUTPUT_SCALE, origin, v.rows)
        reader.node("i_tanh", (self.q12(acc, "head0.q12"),), out)
        limits = (-INT8_MAX, INT8_MAX)
        return reader.requantize(out, "head0.int8", 1 / INT8_MAX, origin, limits)

    def reach(self, acc: str, x_max: int) -> np.ndarray:
        """Return the largest |real| that each channel of a head's matmul can have."""
        name = acc.removesuffix(".acc")
        weight = np.abs(self.reader.tensors[name + ".weight"].astype(np.int64)).sum(1)
        bias = np.abs(self.reader.tensors[name + ".bias"].astype(np.int64))
        return (x_max * weight + bias) * self.reader.scale(acc)

    def gelu_norm(self, acc: str) -> str:
        """lm_head: GELU, then LayerNorm to int8 with a scale per channel."""
        reader, v = self.reader, self.reader.values[acc]
        out = reader.value("head0.gelu", "int32", v.channels, i_gelu.SCALE, "bound: Q12", v.rows)
        reader.node("i_gelu", (self.q12(acc, "head0.q12"),), out, form="erf")
        reach = min(float(self.reach(acc, 128).max()), i_gelu.LIMIT * i_gelu.SCALE)
        scale = max(i_gelu.SCALE, reach * (1 + 1e-3) / LN_INPUT_MAX)
        limits = (-LN_INPUT_MAX, LN_INPUT_MAX)
        x = reader.requantize(
            out, "head0.sum", scale, "bound: L1 norm of the weights", limits, "int32"
        )

        checkpoint, n = reader.checkpoint, reader.hidden
        gamma = checkpoint.tensor("lm_head.layer_norm.weight", (n,))
        beta = checkpoint.tensor("lm_head.layer_norm.bias", (n,))
        eps = float(checkpoint.config.get("layer_norm_eps", 1e-12))
        if self.seen is None:
            peaks = np.abs(gamma) * np.sqrt(n - 1) + np.abs(beta)
            origin = "bound: |gamma| sqrt(n - 1) + |beta|"
            reader.warnings.append(
                "the masked-LM head's LayerNorm has no range: a loose bound is used; calibrate it"
            )
        else:
            peaks = np.abs(self.float_norm(gamma, beta, eps)).max(0)
            peaks = np.maximum(peaks, max(float(peaks.max()), TINY) * 1e-3) * 1.1
            origin = f"calibration: 1.1 times the peak of {len(self.seen)} positions"
        scale8 = np.maximum(peaks, TINY) / INT8_MAX
        tables = i_layernorm.tables(scale, gamma, beta, eps, scale8, peaks.max() / 2**15)
        names = [reader.constant(f"head0.norm.{key}", t) for key, t in tables.items()]
        out8 = reader.value("head0.norm", "int8", n, scale8, origin, v.rows)
        out16 = reader.value("head0.norm16", "int16", n, peaks.max() / 2**15, origin, v.rows)
        reader.node("i_layernorm", (x, *names), (out8, out16))
        return out8

    def float_norm(self, gamma: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
        """What the float head's LayerNorm gives on the features seen, [rows, C]."""
        import torch
        from torch.nn import functional

        weight, bias = (
            torch.from_numpy(self.reader.checkpoint.tensor(f"lm_head.dense.{part}"))
            for part in ("weight", "bias")
        )
        x = torch.from_numpy(self.seen.astype(np.float32))
        x = functional.gelu(functional.linear(x, weight, bias))
        parts = torch.from_numpy(gamma), torch.from_numpy(beta)
        return functional.layer_norm(x, gamma.shape, *parts, eps).numpy()

    def logits(self, acc: str) -> str:
        """One scale for all logits, the finest at which the largest possible one fits 24 bits."""
        scale = max(float(self.reach(acc, 128).max()), TINY) / (LOGIT_MAX - 1)
        origin = "bound: largest logit the weights allow"
        limits = (-LOGIT_MAX, LOGIT_MAX)
        return self.reader.requantize(acc, "output", scale, origin, limits, "int32")
