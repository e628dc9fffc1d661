"""Builds the float graph of a directory: a family's functions call it, it reads the weights.

Edges get their names here, and weights are checked against each other's shapes. Weights that are
read twice (ALBERT's shared layers) are one weight.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.family import Family
from intformer.frontend.head_stages import HeadStages
from intformer.ir.graph import (
    ACTIVATIONS,
    PLACES,
    SEQUENCES,
    TOKENS,
    Bias,
    Graph,
    Linear,
    Node,
    Norm,
    Relative,
    Rotary,
    Tables,
)
from intformer.ir.heads import Head
from intformer.relay_ops.attention import MAX_KEYS
from intformer.relay_ops.i_gelu import FUNCTIONS

POSITION = "embeddings.position_embeddings"
TYPES = "embeddings.token_type_embeddings"
MAX_LAYERS = 1024  # ALBERT repeats its layers as often as config.json says


class Builder(HeadStages):
    """Adds nodes, whose weights it reads by their keys; those of heads are in HeadStages.

    hidden, heads, activation, pad  as config.json says
    first_position                  row of the position table that the first token takes
    """

    def __init__(self, checkpoint: Checkpoint, family: Family):
        """Read the sizes; raise CheckpointError for what does not fit."""
        self.checkpoint, self.family = checkpoint, family
        keys = family.config_keys
        self.hidden, self.heads = checkpoint.heads_of(keys["hidden"], keys["heads"])
        self.eps = family.eps
        if (key := keys.get("eps", "layer_norm_eps")) is not None:
            self.eps = checkpoint.setting(key, float, family.eps, least=0)
        self.activation = activation_of(checkpoint, keys["activation"], family.act)
        self.pad = checkpoint.setting("pad_token_id", int, family.pad, least=0)
        self.first_position = self.pad + 1 if family.positions == "padding" else 0
        prefixes = (family.prefix, family.hub_prefix)
        word = f"{family.word}.weight"
        self.prefix = next((p for p in prefixes if f"{p}{word}" in checkpoint), "")
        self.at, self.path = "", self.prefix  # before the names of edges, and of keys
        self._nodes: dict[str, Node] = {}
        self._linears: dict[tuple[str, ...], tuple[str, Linear]] = {}  # keys -> stem, weight
        self._norms: dict[str, Norm] = {}

    def graph(self, head: Head) -> Graph:
        """Return what was built."""
        return Graph(tuple(self._nodes.values()), head)

    def channels(self, edge: str) -> int:
        """Return the width of an edge."""
        return self._nodes[edge].channels

    def _add(self, kind: str, name: str, inputs: tuple[str, ...], channels: int, **more) -> str:
        self._nodes[name] = Node(kind, name, inputs, channels, **more)
        return name

    # -- where names and keys start -------------------------------------------------------------

    def scope(self, at: str, path: str) -> "Builder":
        """Return this builder with other beginnings of names and keys; it adds to the same graph.

        path  below the encoder's prefix
        """
        inner = object.__new__(Builder)
        inner.__dict__ = {**self.__dict__, "at": at, "path": f"{self.prefix}{path}"}
        return inner

    def layers(self, paths: list[str]) -> "Iterator[Builder]":
        """Yield a builder per layer, in the order of execution; equal paths share weights."""
        for i, path in enumerate(paths):
            yield self.scope(f"layer{i}.", f"{path}.")

    def numbered(self, stem: str) -> list[str]:
        """Return the path of every layer: stem.0, stem.1, ..."""
        count = self.checkpoint.setting(
            self.family.config_keys["layers"], int, least=1, most=MAX_LAYERS
        )
        return [f"{stem}.{i}" for i in range(count)]

    def has(self, key: str) -> bool:
        """Say whether the directory has a weight below the present path."""
        return f"{self.path}{key}.weight" in self.checkpoint

    # -- weights --------------------------------------------------------------------------------

    def table(self, key: str, width: int | None = None) -> np.ndarray:
        """Read an embedding table [rows, width]."""
        return self.checkpoint.tensor(f"{self.path}{key}.weight", (None, width))

    def weight(
        self, key: str, inputs: int, outputs: int | None = None, bias: bool = True
    ) -> Linear:
        """Read one linear layer; `key` is complete. Without a bias there must be none."""
        weight = self.checkpoint.tensor(key + ".weight", (outputs, inputs))
        return Linear(weight, self.bias(f"{key}.bias", len(weight), bias), keys=(key,))

    def bias(self, key: str, count: int, wanted: bool) -> np.ndarray:
        """Read a bias [count]; zeros where a model has none, which there must not be either."""
        if wanted:
            return self.checkpoint.tensor(key, (count,))
        if key in self.checkpoint:
            raise CheckpointError(
                f"weight {key!r} is there, but layers of this model have no bias",
                where=str(self.checkpoint.path),
                hint="config.json and the weights belong to different models",
            )
        return self.checkpoint.zeros(count)

    def joined(
        self, keys: tuple[str, ...], inputs: int, outputs: int | None, bias: bool = True
    ) -> Linear:
        """Read linear layers of one input, their rows one below the other."""
        parts = [self.weight(key, inputs, outputs, bias) for key in keys]
        if len(parts) == 1:
            return parts[0]
        weight = self.checkpoint.join([part.weight for part in parts])
        whole = self.checkpoint.join([part.bias for part in parts])
        return Linear(weight, whole, len(parts), keys)

    def recorded(self, edge: str, *keys: str) -> str:
        """Say which keys hold the recorded ranges of an edge; returns the edge."""
        node = self._nodes[edge]
        ranges = tuple(f"{self.path}{key}" for key in keys)
        self._nodes[edge] = replace(node, attrs={**node.attrs, "ranges": ranges})
        return edge

    def agree(self, key: str, found: int, what: str) -> None:
        """Raise where config.json says another number than the weights have.

        The hub's own code rounds some of them up: its files may.
        """
        given = self.checkpoint.setting(key, int, found)
        if given != found and not self.checkpoint.unlike:
            raise CheckpointError(
                f"config key {key!r} = {given}, the weights have {found} {what}",
                where=str(self.checkpoint.path / "config.json"),
                hint="config.json and the weights belong to different models",
            )

    def _agree_ffn(self, channels: int) -> None:
        key = self.family.config_keys.get("ffn", "intermediate_size")
        self.agree(key, channels, "channels in a feed-forward layer")

    # -- nodes ----------------------------------------------------------------------------------

    def embed(self, positions: bool = True, types: bool | None = None) -> str:
        """Sum of word, position and type rows.

        positions  false: the embeddings have none
        types      whether they have types; None: where the directory has a table
        """
        word = self.table(self.family.word)
        self.agree("vocab_size", len(word), "rows of words")
        width = word.shape[1]
        position, kinds = self.positions(width) if positions else None, None
        if self._has_types() if types is None else types:
            kinds = self.table(TYPES, width)
            self.agree("type_vocab_size", len(kinds), "rows of types")
            if len(kinds) == 1 and positions and self.family.fold:  # nothing to choose
                position, kinds = position + kinds[0], None
        tables = Tables(word, position, kinds)
        taken = {TOKENS: word, "token_type_ids": kinds, PLACES: position}
        inputs = tuple(name for name, table in taken.items() if table is not None)
        return self._add("embed", "embed.sum", inputs, width, params=tables)

    def _has_types(self) -> bool:
        """Whether there is a table of types; without one config.json must say so, or nothing."""
        found = self.has(TYPES)
        rows = 0 if found else self.checkpoint.setting("type_vocab_size", int, 0, least=0)
        if rows:
            raise CheckpointError(
                f"config key 'type_vocab_size' = {rows}, the weights have no {TYPES}.weight",
                where=str(self.checkpoint.path / "config.json"),
                hint="0 says that the model has no token types",
            )
        return found

    def positions(self, width: int) -> np.ndarray:
        """Read the position table, as many rows as the kernels of attention can use."""
        table = self.table(POSITION, width)
        self.agree("max_position_embeddings", len(table), "rows of positions")
        if len(table) <= self.first_position:
            raise CheckpointError(
                f"config key 'pad_token_id' = {self.pad} leaves none of the {len(table)} positions",
                where=str(self.checkpoint.path / "config.json"),
            )
        return table[: self.first_position + MAX_KEYS]

    def norm(self, name: str, x: str, key: str, bias: bool = True, rms: bool = False) -> str:
        """LayerNorm or RMSNorm of x. Without a bias there must be none."""
        return self._norm(name, x, f"{self.path}{key}", bias, rms)

    def _norm(self, name: str, x: str, key: str, bias: bool = True, rms: bool = False) -> str:
        channels = self.channels(x)
        norm = self._norm_of(key, channels, bias, rms)
        return self._add("norm", self.at + name, (x,), channels, params=norm)

    def _norm_of(self, key: str, channels: int, bias: bool = True, rms: bool = False) -> Norm:
        if key not in self._norms:
            names = ("weight", "bias")
            if f"{key}.gamma" in self.checkpoint:  # checkpoints converted from TensorFlow
                names = ("gamma", "beta")
            weight = self.checkpoint.tensor(f"{key}.{names[0]}", (channels,))
            added = self.bias(f"{key}.{names[1]}", channels, bias)
            self._norms[key] = Norm(weight, added, self.eps, key, rms)
        return self._norms[key]

    def linear(
        self,
        name: str,
        x: str,
        *keys: str,
        outputs: int | None = None,
        bias: bool = True,
        parts: int = 1,
    ) -> str:
        """Linear layers of x, side by side; `outputs` of each of them.

        parts  how many layers of one size a single key holds, one below the other
        """
        whole = tuple(f"{self.path}{key}" for key in keys)
        return self._linear(self.at + name, x, whole, outputs, bias, parts)

    def _linear(
        self,
        name: str,
        x: str,
        keys: tuple[str, ...],
        outputs: int | None = None,
        bias: bool = True,
        parts: int = 1,
    ) -> str:
        if keys not in self._linears:
            each = outputs if outputs is None else outputs * parts
            joined = self.joined(keys, self.channels(x), each, bias)
            if joined.weight.shape[0] % parts:
                raise CheckpointError(
                    f"weight '{keys[0]}.weight' has {joined.weight.shape[0]} rows, which are not "
                    f"{parts} layers of one size",
                    where=str(self.checkpoint.path),
                )
            self._linears[keys] = name, replace(joined, parts=joined.parts * parts)
        stem, linear = self._linears[keys]
        return self._add("linear", name, (x,), linear.weight.shape[0], params=linear, stem=stem)

    def grouped(
        self, name: str, x: str, keys: tuple[str, str, str], groups: int, bias: bool
    ) -> str:
        """Queries, keys and values of x, side by side, where groups of heads share the latter two.

        Their rows are repeated for every head, which changes no number: attention has no groups.
        """
        size, repeats = self.hidden // self.heads, self.heads // groups
        rows = np.arange(groups * size).reshape(groups, size).repeat(repeats, axis=0).ravel()
        whole = tuple(f"{self.path}{key}" for key in keys)
        q, *shared = (
            self.weight(key, self.channels(x), outputs, bias)
            for key, outputs in zip(whole, (self.hidden, *[groups * size] * 2), strict=True)
        )
        parts = [q, *(Linear(one.weight[rows], one.bias[rows]) for one in shared)]
        name = self.at + name
        joined = Linear(
            self.checkpoint.join([part.weight for part in parts]),
            self.checkpoint.join([part.bias for part in parts]),
            len(parts),
            whole,
        )
        return self._add("linear", name, (x,), 3 * self.hidden, params=joined, stem=name)

    def act(self, name: str, x: str, function: str | None = None) -> str:
        """Activation of x; None: the one of config.json, of a feed-forward layer."""
        if function is None:
            self._agree_ffn(self.channels(x))
        function = function or self.activation
        name = self.at + name
        return self._add("act", name, (x,), self.channels(x), attrs={"function": function})

    def gate(self, name: str, x: str, active: int, function: str | None = None) -> str:
        """Half of x activated (0 or 1), times the other half; None: the function of config.json."""
        function, channels = function or self.activation, self.channels(x) // 2
        self._agree_ffn(channels)
        if function not in FUNCTIONS:
            key = self.family.config_keys["activation"]
            raise CheckpointError(
                f"config key {key!r} = {function!r} is not supported where it gates",
                where=str(self.checkpoint.path / "config.json"),
                hint="supported: " + ", ".join(FUNCTIONS),
            )
        attrs = {"function": function, "half": active}
        act = self._add("act", f"{self.at}{name}.act", (x,), channels, attrs=attrs)
        attrs = {"half": 1 - active}
        return self._add("mul", self.at + name, (act, x), channels, attrs=attrs)

    def rotary(self, name: str, qkv: str, table: Rotary) -> str:
        """Queries and keys, which are side by side with the values in qkv, turned by position."""
        attrs, channels = {"heads": self.heads}, self.channels(qkv)
        inputs = (qkv, PLACES)
        return self._add("rotary", self.at + name, inputs, channels, params=table, attrs=attrs)

    def add(self, name: str, term: str, stream: str) -> str:
        """Sum of a term and the residual stream."""
        return self._add("add", self.at + name, (term, stream), self.channels(stream))

    def attention(
        self,
        name: str,
        qkv: str,
        bias: Bias | Relative | None = None,
        window: int | None = None,
    ) -> str:
        """Softmax attention of queries, keys and values, which are side by side in qkv.

        bias    what is added to its scores
        window  tokens that a query sees on either side; None: all
        """
        channels, attrs = self.channels(qkv) // 3, {"heads": self.heads}
        if window is not None:
            attrs["window"] = window
        inputs = (qkv, SEQUENCES)
        return self._add("attention", self.at + name, inputs, channels, params=bias, attrs=attrs)

    def relative_bias(self, key: str, buckets: int, bucket: Callable) -> Bias:
        """Read a bias of attention that distances share in buckets: weight [buckets, heads].

        bucket  distances int64 [N], key less query -> rows of the weight, int64 [N]
        """
        table = self.checkpoint.tensor(f"{self.path}{key}.weight", (buckets, self.heads))
        return Bias(table[bucket(self.distances())].T)

    def distances(self) -> np.ndarray:
        """Return every distance that two tokens can have, key less query, int64 [2 limit - 1]."""
        longest = self.limit - 1
        return np.arange(-longest, longest + 1)

    def relative(
        self,
        rows: np.ndarray,
        norm: str | None,
        key: str | None,
        query: str | None,
        bucket: np.ndarray,
    ) -> Relative:
        """Read what attention adds to its scores for the embedding of a distance (ir.Relative).

        rows        the embeddings
        norm        of their LayerNorm, below the encoder's prefix
        key, query  of their projections, below the present path; None: there is no such term
        """
        width = rows.shape[1]
        norm = None if norm is None else self._norm_of(f"{self.prefix}{norm}", width)
        projections = (
            None if name is None else self.weight(f"{self.path}{name}", width, self.hidden)
            for name in (key, query)
        )
        return Relative(rows, norm, *projections, bucket)

    @property
    def limit(self) -> int:
        """The most tokens of a sequence: as many as there are positions."""
        table = self._nodes["embed.sum"].params.position
        if table is None:
            rows = self.checkpoint.setting("max_position_embeddings", int, least=1)
            return min(rows, MAX_KEYS)
        return len(table) - self.first_position


def activation_of(checkpoint: Checkpoint, key: str, default: str) -> str:
    """Return the activation that a key of config.json names, a value of ACTIVATIONS."""
    name = checkpoint.setting(key, str, default)
    if name not in ACTIVATIONS or name == "tanh":
        raise CheckpointError(
            f"config key {key!r} = {name!r} is not supported",
            where=str(checkpoint.path / "config.json"),
            hint="supported: " + ", ".join(sorted(set(ACTIVATIONS) - {"tanh"})),
        )
    return ACTIVATIONS[name]
