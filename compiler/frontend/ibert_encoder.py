"""I-BERT's encoder as nodes: embeddings and layers from float weights and recorded ranges.

Every scale and constant is worked out in float32 and in the order of transformers' quant_modules.
"""

import numpy as np

from intformer.errors import CheckpointError, RangeError
from intformer.frontend import ibert_diagnostics as diagnostics
from intformer.frontend.builder import MAX_LAYERS
from intformer.frontend.checkpoint import Checkpoint
from intformer.quantize.emit import Emitter
from intformer.relay_ops import attention_ibert, i_gelu_ibert, i_layernorm_ibert
from intformer.relay_ops.attention import MAX_KEYS
from intformer.relay_ops.fixedpoint import INT8, INT16, INT32

SUM22 = (-(2**21), 2**21 - 1)  # ln_input_act
LEAKED = "checkpoint: the embedding's scale instead of the input's (hf_compat)"
WIDE = (-(2**30), 2**30)  # a term of a 22-bit sum: beyond it the sum is clamped anyway


def act_scale(peak: float, bits: int) -> np.float32:
    """Return the scale of a QuantAct whose largest |x_min|, |x_max| is `peak`."""
    return np.maximum(np.float32(peak), np.float32(1e-8)) / np.float32(2 ** (bits - 1) - 1)


def quantize(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """SymmetricQuantFunction: clamp(RHE((1 / scale) * x), -n, n - 1), n = 2^(bits-1) - 1; int64."""
    n = 2 ** (bits - 1) - 1
    rounded = np.rint((np.float32(1) / scale) * x).astype(np.float64)
    return np.clip(rounded, -n, n - 1).astype(np.int64)


class Reader(Emitter):
    """Builds the encoder's nodes; ibert_head adds the head to the same lists.

    Scales are float32, as transformers computes them.
    """

    def __init__(self, checkpoint: Checkpoint, mode: str):
        """Take sizes from config.json; nothing else is read yet."""
        super().__init__()
        self.checkpoint, self.mode = checkpoint, mode
        self.prefix = "ibert." if "ibert.embeddings.word_embeddings.weight" in checkpoint else ""
        self.hidden, self.heads = checkpoint.heads_of("hidden_size", "num_attention_heads")
        self.ffn = checkpoint.setting("intermediate_size", int, least=1)
        self.layers = checkpoint.setting("num_hidden_layers", int, least=1, most=MAX_LAYERS)
        self.pad = checkpoint.setting("pad_token_id", int, 1, least=0)
        self.first_position = self.pad + 1
        self.head_dim = self.hidden // self.heads

    def requantize_to(self, x: str, name: str, scale, origin: str, limits, dtype="int8") -> str:
        """Bring x to `scale` (one number, or one per channel), clamped to limits (lo, hi)."""
        source = self.values[x]
        self.value(name, dtype, source.channels, scale, origin, source.rows)
        ratio = self.channel_scale(x) / self.channel_scale(name)
        lo, hi = limits
        self.node("requantize", (x, *self.dyadic(name, ratio)), name, lo=lo, hi=hi, dtype=dtype)
        return name

    def tables(self, name: str, keys: str, module, *args) -> tuple[str, ...]:
        """Keep what an op's `tables` gives; a refusal names the checkpoint keys."""
        try:
            found = module.tables(*args)
        except RangeError as error:
            raise CheckpointError(
                error.what, where=f"{self.checkpoint.path}, {keys}", hint=error.hint
            ) from error
        return tuple(self.constant(f"{name}.{key}", table) for key, table in found.items())

    # -- pieces of transformers' modules --------------------------------------------------------

    def weight(self, key: str, *shape: int | None) -> np.ndarray:
        """Read a float weight of the encoder."""
        return self.checkpoint.tensor(self.prefix + key, shape)

    def act(self, key: str, bits: int) -> tuple[np.float32, str]:
        """Return (scale, origin) of the QuantAct at `key`."""
        return act_scale(self.act_range(key), bits), f"checkpoint: {self.prefix}{key}.x_min, x_max"

    def act_range(self, key: str) -> float:
        """Return the largest |x_min|, |x_max| of a calibrated QuantAct."""
        low, high = (self.weight(f"{key}.{end}", 1) for end in ("x_min", "x_max"))
        return diagnostics.check_range(self.checkpoint, self.prefix + key, low[0], high[0])

    def quant_act(self, x: str, name: str, key: str) -> str:
        """QuantAct(8) of x."""
        return self.requantize_to(x, name, *self.act(key, 8), INT8)

    def linear_integers(self, key: str, n: int, k: int, scale_x: np.float32):
        """Return QuantLinear's (weight int8 [n, k], bias int32 [n], accumulator scale [n])."""
        weight, bias = self.weight(key + ".weight", n, k), self.weight(key + ".bias", n)
        scale_w = act_scale(np.abs(weight).max(1), 8)
        scale = scale_w * scale_x
        integers = quantize(bias, scale, 32)
        diagnostics.check_bias(self.checkpoint, self.prefix + key, integers, scale, k)
        return (
            quantize(weight, scale_w[:, None], 8).astype(np.int8),
            integers.astype(np.int32),
            scale,
        )

    def matmul(self, name: str, x: str, keys: list[str], n: int, scale_x=None) -> str:
        """Several QuantLinears of the same input side by side, each with n outputs.

        scale_x  what transformers takes for the scale of x, where that is not x's own: then the
                 product is brought to scale_x first, and the bias added after.
        """
        k, true = self.values[x].channels, np.float32(self.scale(x))
        read_as = true if scale_x is None else scale_x
        parts = [self.linear_integers(key, n, k, read_as) for key in keys]
        weight, bias, scale = (np.concatenate(part) for part in zip(*parts, strict=True))
        self.constant(name + ".weight", weight)
        origin = "bound: product of its operands' scales"
        width, acc = n * len(keys), name + ".acc"
        if read_as == true:
            self.value(acc, "int32", width, scale, origin)
            self.node("matmul", (x, name + ".weight", self.constant(name + ".bias", bias)), acc)
            return acc
        rho = np.float64(true) / np.float64(read_as)
        product = self.value(name + ".product", "int32", width, scale * rho, origin)
        zero = self.constant(name + ".no_bias", np.zeros_like(bias))
        self.node("matmul", (x, name + ".weight", zero), product)
        moved = self.requantize_to(product, name + ".moved", scale, LEAKED, INT32, "int32")
        self.value(acc, "int32", width, scale, LEAKED)
        self.node("add_bias", (moved, self.constant(name + ".bias", bias)), acc)
        return acc

    def residual(self, acc: str, identity: str, name: str, key: str) -> str:
        """ln_input_act: both terms rounded to 22 bits' scale, then added."""
        scale, origin = self.act(key, 22)
        channels = self.values[acc].channels
        term = self.requantize_to(acc, name + ".term", scale, origin, WIDE, "int32")
        out = self.value(name, "int32", channels, scale, origin)
        ratio = self.dyadic(name, self.scale(identity) / np.float64(scale))
        self.node("residual_add", (term, identity, *ratio), out, lo=SUM22[0], hi=SUM22[1])
        return out

    def layernorm(self, x: str, name: str, key: str, act: str) -> str:
        """IntLayerNorm at `key`, then the QuantAct(8) at `act`."""
        gamma, beta = (self.weight(f"{key}.{part}", self.hidden) for part in ("weight", "bias"))
        diagnostics.check_layernorm(self.checkpoint, self.prefix + key, gamma, beta)
        scale, origin = self.act(act, 8)
        names = self.tables(
            name, f"{self.prefix}{key}, {act}", i_layernorm_ibert, gamma, beta, scale
        )
        saved = self.weight(key + ".shift", 1).astype(np.int32)
        out = self.value(name, "int8", self.hidden, scale, origin)
        prescale = self.constant(name + ".prescale", saved)
        self.node("i_layernorm_ibert", (x, *names, prescale), out, lo=INT8[0], hi=INT8[1])
        return out

    # -- the encoder ----------------------------------------------------------------------------

    def embeddings(self) -> str:
        """QuantEmbeddings summed by embeddings_act1 (which runs twice), then LayerNorm."""
        scale, origin = self.act("embeddings.embeddings_act1", 16)
        constants = []
        for part, dtype in (("word", np.int8), ("token_type", np.int16), ("position", np.int16)):
            table = self.weight(f"embeddings.{part}_embeddings.weight", None, self.hidden)
            if part == "position":
                table = table[: self.first_position + MAX_KEYS]
            step = act_scale(np.abs(table).max(), 8)
            integers = quantize(table, step, 8).astype(dtype)
            name = "embed." + part.removeprefix("token_")
            ratio = np.full(len(table), np.float64(step) / np.float64(scale))
            constants += [self.constant(name + ".weight", integers), *self.dyadic(name, ratio)]
        total = self.value("embed.sum", "int32", self.hidden, scale, origin)
        ids = ("input_ids", "token_type_ids", "position_ids")
        self.node("embed", (*ids, *constants), total, lo=INT16[0], hi=INT16[1], types=1)
        return self.layernorm(
            total, "embed.norm", "embeddings.LayerNorm", "embeddings.output_activation"
        )

    def encoder(self) -> str:
        """Emit embeddings and layers; return the last hidden state (int8)."""
        x = self.embeddings()
        embedding_scale = np.float32(self.scale(x))
        for i in range(self.layers):
            leaked = embedding_scale if self.mode == "hf_compat" and i > 0 else None
            x = self.layer(i, x, leaked)
        return x

    def layer(self, i: int, x: str, leaked: np.float32 | None) -> str:
        """IBertLayer; leaked is the scale transformers takes x to have, None for its own."""
        at, key = f"layer{i}.", f"encoder.layer.{i}."
        context = self.attention(at, key + "attention.self.", x, leaked)
        acc = self.matmul(at + "out", context, [key + "attention.output.dense"], self.hidden)
        identity = x
        if leaked is not None and leaked != np.float32(self.scale(x)):
            identity = self.requantize_to(x, at + "identity", leaked, LEAKED, WIDE, "int32")
        total = self.residual(acc, identity, at + "sum1", key + "attention.output.ln_input_act")
        x = self.layernorm(
            total,
            at + "norm1",
            key + "attention.output.LayerNorm",
            key + "attention.output.output_activation",
        )
        x = self.quant_act(x, at + "ffn_in", key + "pre_intermediate_act")

        acc = self.matmul(at + "ffn1", x, [key + "intermediate.dense"], self.ffn)
        scale, origin = self.act(key + "intermediate.output_activation", 8)
        names = self.tables(
            at + "gelu",
            f"{self.prefix}{key}intermediate.dense",
            i_gelu_ibert,
            np.float32(self.channel_scale(acc)),
            scale,
        )
        act = self.value(at + "gelu", "int8", self.ffn, scale, origin)
        self.node("i_gelu_ibert", (acc, *names), act, lo=INT8[0], hi=INT8[1])
        act = self.quant_act(act, at + "act", key + "pre_output_act")
        acc = self.matmul(at + "ffn2", act, [key + "output.dense"], self.hidden)
        total = self.residual(acc, x, at + "sum2", key + "output.ln_input_act")
        return self.layernorm(
            total, at + "norm2", key + "output.LayerNorm", key + "output.output_activation"
        )

    def attention(self, at: str, key: str, x: str, leaked: np.float32 | None) -> str:
        """IBertSelfAttention: one matmul for Q, K and V, their QuantActs, softmax, context."""
        parts, c = ("query", "key", "value"), self.hidden
        acc = self.matmul(at + "qkv", x, [key + part for part in parts], c, leaked)
        acts = [self.act(f"{key}{part}_activation", 8)[0] for part in parts]
        origin = f"checkpoint: {self.prefix}{key}" + "{query,key,value}_activation.x_min, x_max"
        qkv = self.requantize_to(acc, at + "qkv", np.repeat(acts, c), origin, INT8)
        s_q, s_k, s_v = acts
        score = s_q * s_k / np.float32(np.sqrt(self.head_dim))
        scale, origin = self.act(key + "output_activation", 8)
        names = self.tables(
            at + "context",
            f"{self.prefix}{key}{{query_activation,key_activation,softmax.act}}",
            attention_ibert,
            score,
            self.act_range(key + "softmax.act"),
            s_v,
            scale,
            c,
        )
        context = self.value(at + "context", "int8", c, scale, origin)
        self.node(
            "attention_ibert",
            (qkv, "cu_seqlens", *names),
            context,
            heads=self.heads,
            head_dim=self.head_dim,
        )
        return context
