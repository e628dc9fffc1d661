"""The float graph: one description of an encoder, walked by everything that comes after.

A graph is a list of nodes in the order of execution; each makes one edge, which has its name. Who
reads an edge decides how wide its integers are: a `linear` reads an int8 operand, `add` and `norm`
read 16 bits or more.

kind       inputs            parameters  attributes
input                                    rows that come from elsewhere
embed      ids of the batch  Tables
norm       x                 Norm
linear     x                 Linear      tied: the weight is the word table
act        x                             function: a value of ACTIVATIONS; half
add        term, stream                  the stream is the residual that goes past the term
mul        act, x                        half: of x, that the activation is multiplied with
rotary     qkv, position_ids Rotary      heads; queries and keys are turned, values pass
attention  qkv, cu_seqlens   None, Bias, heads; window: tokens seen on either side, else all
                             Relative
take       x, index                      rows: what a picked row stands for; last: of a sequence
mean       x, cu_seqlens                 one row per sequence; form: "mean_sqrt", the sum over the
                                         square root of the length, or "weighted_mean", where row t
                                         weighs t + 1; absent: the plain mean
max        x, cu_seqlens                 one row per sequence
concat     parts, 2 or more              channels side by side

An activation with the attribute `half`, 0 or 1, reads that half of the channels of x; a gated
activation is such an act, and a mul of it with the other half, which a linear reads.

norm, act and attention may have the attribute `grid`, a Grid that the int8 operand is on; a linear
that attention reads may have `grids`, those of queries, keys and values.
Every kind may have the attribute `ranges`: keys of what the checkpoint recorded of the edge, in the
order in which its integers are brought to these ranges.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from intformer.ir.heads import Head

TANH_GELU = "gelu_tanh"
ACTIVATIONS = {  # config value -> the function it names
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": TANH_GELU,
    "gelu_fast": TANH_GELU,
    "gelu_pytorch_tanh": TANH_GELU,
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "tanh": "tanh",
}
KINDS = (
    *("input", "embed", "norm", "linear", "act", "add", "mul", "rotary", "attention", "take"),
    *("mean", "max", "concat"),
)
TOKENS, SEQUENCES, POSITIONS = "input_ids", "cu_seqlens", "positions"  # program inputs
PLACES = "position_ids"  # another: of each token in its sequence
POOLING = ("mean", "max")  # kinds that make one row of a sequence's rows
WORD_STEM = "embed.word"  # where the word table is stored, which a tied decoder multiplies with


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight or table that the source holds as integers, which are kept: values * steps.

    values  int8 [N, K]; int16 of position and type tables
    steps   float64 [N], the scale of each row
    """

    values: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Grid:
    """What the source rounds an edge to, one grid per tensor: (integer - zero) * scale.

    zero  of integers from -128 to 127
    name  of the tensor in the source
    """

    scale: float
    zero: int
    name: str

    @property
    def reach(self) -> int:
        """The farthest step from zero."""
        return 128 + abs(self.zero)


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x @ weight.T + bias; weight float32 [N, K], bias float32 [N].

    parts  how many tensors of the checkpoint the rows are, all of one size
    keys   their keys in the checkpoint, without .weight and .bias
    given  the integers that the weight is, where the source has them
    """

    weight: np.ndarray
    bias: np.ndarray
    parts: int = 1
    keys: tuple[str, ...] = ()
    given: Integers | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the last axis; weight, bias float32 [C].

    key  of the module in the checkpoint
    rms  RMSNorm, which subtracts no mean
    """

    weight: np.ndarray
    bias: np.ndarray
    eps: float
    key: str = ""
    rms: bool = False


@dataclass(frozen=True, eq=False)
class Tables:
    """Embedding tables that are added up; word [V, E].

    position  [P, E], or None where embeddings have no positions
    types     [T, E], or None where there is nothing to choose
    given     field -> the integers that the table is, where the source has them
    """

    word: np.ndarray
    position: np.ndarray | None
    types: np.ndarray | None
    given: dict[str, Integers] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bias:
    """What attention adds to its scores, after 1 / sqrt(head_dim): by head and distance.

    table  float32 [heads, 2 L - 1], L the most tokens: column L - 1 + j - i is for query i, key j
    """

    table: np.ndarray


@dataclass(frozen=True, eq=False)
class Relative:
    """What attention adds to q . k for the embedding r of a distance: q . key(r) + k . query(r).

    The scale is then 1 / sqrt(head_dim * terms).

    rows    float32 [T, C]: embeddings, before their LayerNorm
    norm    their LayerNorm, or None
    key     projection to what queries multiply with, [C, C]; None: no such term
    query   projection to what keys multiply with
    bucket  int64 [2 L - 1], L the most tokens: column L - 1 + j - i says which row query i and
            key j take
    """

    rows: np.ndarray
    norm: Norm | None
    key: Linear | None
    query: Linear | None
    bucket: np.ndarray

    @property
    def reached(self) -> np.ndarray:
        """The rows that some distance takes, int64."""
        return np.unique(self.bucket)

    @property
    def terms(self) -> int:
        """How many products a score is the sum of."""
        return 1 + (self.key is not None) + (self.query is not None)


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions: channels j and j + d / 2 of a head of d are a pair, turned by an angle.

    Layers with the same angles share one object, whose table is then stored once.

    cos, sin  float64 [P, d / 2], of the angle of every position and pair
    """

    cos: np.ndarray
    sin: np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One step.

    kind      one of KINDS
    name      of the edge it makes
    inputs    edges, and names of program inputs
    channels  of the edge
    params    what the kind takes, see above
    stem      of a linear: where its weight is stored; layers that share a weight share the stem
    attrs     of the kind, see above
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    channels: int
    params: Linear | Norm | Tables | Bias | Relative | Rotary | None = None
    stem: str = ""
    attrs: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Operand:
    """One weight and everything that multiplies with it.

    stem    where the weight is stored
    linear  the float weight
    edges   what feeds it: one edge, or one per repetition of a shared layer
    tied    the weight is the word table, which has one scale per row and no more
    """

    stem: str
    linear: Linear
    edges: tuple[str, ...]
    tied: bool

    @property
    def fixed(self) -> bool:
        """Whether its columns take no channel factors: the integers are those of something else."""
        return self.tied or self.linear.given is not None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order of execution; the last one makes what the model returns.

    head  what the model answers
    """

    nodes: tuple[Node, ...]
    head: Head

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def __getitem__(self, edge: str) -> Node:
        """Return the node that makes an edge."""
        return self._by_name[edge]

    def __contains__(self, name: str) -> bool:
        """Say whether this is an edge, and not an input of the program."""
        return name in self._by_name

    @property
    def output(self) -> str:
        """The edge that the model returns."""
        return self.nodes[-1].name

    @property
    def tables(self) -> Tables:
        """The embedding tables."""
        return next(node.params for node in self.nodes if node.kind == "embed")

    def of_kind(self, kind: str) -> list[Node]:
        """Return all nodes of one kind."""
        return [node for node in self.nodes if node.kind == kind]

    def readers(self, edge: str) -> list[Node]:
        """Return the nodes that read an edge."""
        return self._readers.get(edge, [])

    def source(self, edge: str) -> str:
        """Return the edge whose values these are: that which a `take` picks rows from."""
        while self[edge].kind == "take":
            edge = self[edge].inputs[0]
        return edge

    def final_readers(self, edge: str) -> list[Node]:
        """Return the nodes that compute with an edge's values, past every `take`."""
        found = []
        for node in self.readers(edge):
            found += self.final_readers(node.name) if node.kind == "take" else [node]
        return found

    def linear_reader(self, edge: str) -> Node | None:
        """Return the linear node that reads an edge as int8; None where none does."""
        found = {n.stem: n for n in self.final_readers(edge) if n.kind == "linear"}
        if len(found) > 1:
            raise ValueError(f"{edge} is read by the weights {', '.join(found)}: join them")
        return next(iter(found.values()), None)

    def read_wide(self, edge: str) -> bool:
        """Say whether anything but a linear reads an edge, past every `take`: the caller too."""
        readers = self.readers(edge)
        return not readers or any(
            self.read_wide(node.name) if node.kind == "take" else node.kind != "linear"
            for node in readers
        )

    def parts(self, edge: str) -> int:
        """Return how many tensors an edge's channels are, of one size: q, k and v are three."""
        node = self[edge]
        if node.kind == "rotary":
            return self.parts(node.inputs[0])
        return node.params.parts if isinstance(node.params, Linear) else 1

    def adds(self, edge: str) -> list[Node]:
        """Return the sums in which an edge is the residual."""
        return [n for n in self.readers(edge) if n.kind == "add" and n.inputs[1] == edge]

    @cached_property
    def _residuals(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for node in self.of_kind("add"):
            sums = found.get(node.inputs[1], [])
            sums.append(node.name)
            found[node.name] = sums
        return found

    def residual(self, edge: str) -> list[str]:
        """Return all sums of the residual stream that a sum belongs to; none for other edges.

        In a stream sums are the residuals of further sums, as in pre-LN models. A sum that goes
        into a norm alone, as in post-LN models, is no stream.
        """
        sums = self._residuals.get(edge, [])
        return sums if len(sums) > 1 else []

    def operands(self) -> list[Operand]:
        """Return every weight of a linear once, in the order of first use."""
        nodes: dict[str, list[Node]] = {}
        for node in self.of_kind("linear"):
            nodes.setdefault(node.stem, []).append(node)
        return [
            Operand(
                stem,
                uses[0].params,
                tuple(self.source(node.inputs[0]) for node in uses),
                bool(uses[0].attrs.get("tied")),
            )
            for stem, uses in nodes.items()
        ]

    def ranged(self) -> dict[str, int]:
        """Return edge -> channels of all whose range decides a scale.

        The others follow: a sum of table entries has a bound, a term of a sum the scale of the sum,
        an input of an activation that of its output, what is turned that of the result, and logits
        the bound of their weights.
        """
        found = {}
        for node in self.nodes:
            if node.kind in ("norm", "act", "add", "mul", "rotary", "attention"):
                found[node.name] = node.channels
            elif node.kind == "embed" and self.adds(node.name):
                found[node.name] = node.channels
            elif node.kind in ("embed", *POOLING, "concat") and self.linear_reader(node.name):
                found[node.name] = node.channels
            elif node.kind == "linear":
                kinds = {reader.kind for reader in self.final_readers(node.name)}
                if self.adds(node.name) or kinds & {"attention", "linear", "mul", "norm"}:
                    found[node.name] = node.channels
        return found

    def cuts(self) -> list[str]:
        """Return the edges from which alone all that comes after can be computed, in order."""
        last = {node.inputs[i]: at for at, node in enumerate(self.nodes) for i in _edges(node)}
        found, reach = [], -1
        for at, node in enumerate(self.nodes[:-1]):
            # nothing made before this edge is read after it
            if reach <= at and node.kind not in ("take", *POOLING, "concat"):
                found.append(node.name)
            reach = max(reach, last.get(node.name, at))
        return found

    def replaced(self, changed: Iterable[Node]) -> "Graph":
        """Return the graph with the nodes of these names replaced."""
        new = {node.name: node for node in changed}
        return replace(self, nodes=tuple(new.get(node.name, node) for node in self.nodes))

    def with_weight(self, stem: str, weight: np.ndarray) -> "Graph":
        """Return the graph with one weight or table replaced, everywhere it is used.

        stem    Operand.stem, or embed.word, embed.type, embed.position
        weight  of the same shape; taken as float32
        """
        weight, changed = weight.astype(np.float32), []
        for node in self.nodes:
            if node.kind == "linear" and node.stem == stem:
                params = replace(node.params, weight=weight, given=None)
                changed.append(replace(node, params=params))
            if node.kind == "embed" and (table := TABLES.get(stem)):
                given = {k: v for k, v in node.params.given.items() if k != table}
                params = replace(node.params, **{table: weight}, given=given)
                changed.append(replace(node, params=params))
        return self.replaced(changed)


TABLES = {WORD_STEM: "word", "embed.type": "types", "embed.position": "position"}  # stem -> field


def _edges(node: Node) -> range:
    """Return which inputs of a node are edges: the first ones; embed has none."""
    every = {"add": 2, "mul": 2, "concat": len(node.inputs)}
    return range({"input": 0, "embed": 0, **every}.get(node.kind, 1))


def taken(node: Node) -> slice:
    """Return which channels an act reads of its input, a mul of its second one."""
    if (half := node.attrs.get("half")) is None:
        return slice(None)
    return slice(half * node.channels, (half + 1) * node.channels)
