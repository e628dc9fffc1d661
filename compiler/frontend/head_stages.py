"""What a builder adds behind the last hidden state: rows, poolings, stages and the decoder.

Keys of these weights are complete: heads lie beside the encoder.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.ir.graph import POSITIONS, SEQUENCES, WORD_STEM, Linear, Norm

TIE = "tie_word_embeddings"  # of config.json
POOLED = {  # mode of pooling -> (kind, attributes) of the node that makes it
    "first": ("take", {"rows": "sequence"}),
    "last": ("take", {"rows": "sequence", "last": True}),
    "max": ("max", {}),
    "mean": ("mean", {}),
    "mean_sqrt": ("mean", {"form": "mean_sqrt"}),
    "weighted_mean": ("mean", {"form": "weighted_mean"}),
}


class HeadStages:
    """The part of Builder that heads are made of."""

    def pool(self, x: str, mode: str, name: str = "") -> str:
        """One row per sequence, by one mode of POOLED."""
        kind, attrs = POOLED[mode]
        name = name or ("head.rows" if kind == "take" else f"head.{mode}")
        return self._add(kind, name, (x, SEQUENCES), self.channels(x), attrs=dict(attrs))

    def pooled(self, x: str, pooling: str) -> str:
        """One row per sequence, by modes with "+" between (float_run.pooled)."""
        modes = pooling.split("+")
        if len(modes) == 1:
            return self.pool(x, pooling)
        parts = tuple(self.pool(x, mode, f"head.{mode}") for mode in modes)
        return self._add("concat", "head.pooled", parts, len(parts) * self.channels(x))

    def first(self, x: str) -> str:
        """The first row of every sequence."""
        return self.pool(x, "first")

    def mean(self, x: str) -> str:
        """The mean of every sequence's rows."""
        return self.pool(x, "mean")

    def max(self, x: str) -> str:
        """The largest of every sequence's rows, channel by channel."""
        return self.pool(x, "max")

    def asked(self, x: str) -> str:
        """The rows that the caller asks for."""
        attrs = {"rows": "position"}
        return self._add("take", "head.rows", (x, POSITIONS), self.channels(x), attrs=attrs)

    def dense(
        self,
        x: str,
        key: str,
        function: str | None = None,
        norm: str | None = None,
        bias: bool = True,
        norm_bias: bool = True,
    ) -> str:
        """One stage: linear, activation and LayerNorm, the latter two where they are named."""
        at = self._stage()
        x = self._linear(at, x, (key,), bias=bias)
        if function:
            x = self.act(f"{at}.act", x, function)
        return self._norm(f"{at}.norm", x, norm, norm_bias) if norm else x

    def module(self, x: str, weights: Linear | Norm, function: str | None) -> str:
        """One stage with weights from elsewhere: linear, and an activation where one is named.

        Or a LayerNorm.
        """
        at, channels = self._stage(), self.channels(x)
        check_reads(weights, channels, str(self.checkpoint.root))
        if isinstance(weights, Norm):
            return self._add("norm", at, (x,), channels, params=weights)
        outputs = len(weights.weight)
        x = self._add("linear", at, (x,), outputs, params=weights, stem=at)
        return self.act(f"{at}.act", x, function) if function else x

    def decoder(self, x: str, key: str, bias: bool = True) -> str:
        """Masked-LM decoder; tied where its weight is absent or equals the word table.

        Raises where it, or its bias, is absent and config.json, or the family, says that it is not
        tied: transformers would draw a new one.
        """
        word = self._nodes["embed.sum"].params.word
        weight, own = f"{key}.weight", f"{key}.bias"
        present, ties = (
            weight in self.checkpoint,
            self.checkpoint.setting(TIE, bool, self.family.tied),
        )
        other = f"{key.rpartition('.')[0]}.bias"  # of the head, which the decoder's is tied to
        taken = other if bias and own not in self.checkpoint and other in self.checkpoint else own
        for name, known in ((weight, present), (own, taken == own)):
            if not (known or ties):
                raise CheckpointError(
                    f"weight {name!r} is missing, and config key {TIE!r} is not true",
                    where=str(self.checkpoint.path / "config.json"),
                    hint="save the model with its decoder, or say that it is the word table",
                )
        table = self.checkpoint.tensor(weight, word.shape) if present else word
        added = self.bias(taken, len(word), bias)
        tied, at = np.array_equal(table, word), self._stage()
        return self._add(
            "linear",
            at,
            (x,),
            len(word),
            params=Linear(table, added, keys=(key,)),
            stem=WORD_STEM if tied else at,
            attrs={"tied": tied},
        )

    def _stage(self) -> str:
        count = sum(1 for name in self._nodes if name.startswith("head") and "." not in name)
        return f"head{count}"


def check_reads(weights: Linear | Norm, channels: int, where: str) -> None:
    """Raise CheckpointError unless a module reads the channels that an embedding has."""
    reads = weights.weight.shape[-1]
    if reads != channels:
        key = weights.key if isinstance(weights, Norm) else weights.keys[0]
        raise CheckpointError(
            f"{key} reads {reads} channels, the embedding has {channels}", where=where
        )
