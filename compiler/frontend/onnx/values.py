"""What an ONNX value stands for: elements of a base, each through the same function.

A base is a tensor that means something: an edge of the graph, a product with a weight, scores. A
view holds, in the shape that the value has on the probe, where in the base each of its elements
comes from. Reshapes, transposes and slices only change these numbers.
"""

from dataclasses import dataclass

import numpy as np

from intformer.frontend.onnx.program import Stored
from intformer.ir.graph import Grid

POINTS = np.linspace(-9.0, 9.0, 1801)  # at which elementwise functions are sampled
CLOSE = 2e-5  # what two curves that are the same may differ by, float32 constants and all


@dataclass(eq=False)
class Base:
    """shape: of its elements on the probe."""

    shape: tuple[int, ...]


@dataclass(eq=False)
class Edge(Base):
    """An edge of the graph; [batch, length, channels], or [batch, channels] of sequences."""

    name: str


@dataclass(eq=False)
class Product(Base):
    """x @ weight.T + bias of the rows of an edge, [batch, length, N] or [batch, N].

    weight  float32 [N, K]
    bias    float32 [N], or None as long as none is added
    stored  the weight's integers, [N, K], scale a number or [N]
    keys    of weight and bias in the file; "" where there is no bias
    """

    x: str
    weight: np.ndarray
    bias: np.ndarray | None
    stored: Stored | None
    keys: tuple[str, str]


@dataclass(eq=False)
class Rows(Base):
    """A sum of rows of tables.

    tables  what picks the rows ("word", "type", "position", "one", "other") -> its table
    stored  the same, integers of the table
    node    names the lookup for errors
    """

    tables: dict[str, np.ndarray]
    stored: dict[str, Stored]
    node: object


@dataclass(eq=False)
class Part:
    """Queries, keys or values: channels of a product, head by head.

    channels  int [heads, head_dim]
    factor    they are multiplied with
    grid      what the file rounds them to, multiplied
    """

    product: Product
    channels: np.ndarray
    factor: float
    grid: Grid | None


@dataclass(eq=False)
class Scores(Base):
    """q . k, [batch, heads, length, length].

    bias    name of the value that adds a bias by head and distance
    masked  padding is left out
    soft    a softmax went over them
    """

    q: Part
    k: Part
    factor: float = 1.0
    bias: str | None = None
    masked: bool = False
    soft: bool = False


@dataclass(eq=False)
class Context(Base):
    """The values' mean by attention, [batch, heads, length, head_dim]."""

    scores: Scores
    v: Part


@dataclass(eq=False)
class Stage(Base):
    """A part of a LayerNorm, a mean or a normalisation.

    kind  mean, centred, squares, variance, deviation, normal; masked, total; length; missing
    x     what it is a part of
    """

    kind: str
    x: "View"
    eps: float = 0.0
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """A value that depends on no table: a constant, or a shape, mask or position.

    value     on the probe
    constant  it is the same for every input
    """

    value: np.ndarray
    name: str
    constant: bool


@dataclass(frozen=True, eq=False)
class View:
    """Elements of a base.

    index  int, of the value's shape on the probe
    curve  the function each goes through, at POINTS; None: none
    grid   what the file rounds it to, until something is computed of it
    """

    base: Base
    index: np.ndarray
    curve: np.ndarray | None = None
    grid: Grid | None = None

    @classmethod
    def of(cls, base: Base) -> "View":
        """Return the whole of a base."""
        return cls(base, np.arange(int(np.prod(base.shape))).reshape(base.shape))

    @property
    def in_order(self) -> bool:
        """Whether these are all elements, in the base's order."""
        flat = self.index.ravel()
        return flat.size == np.prod(self.base.shape) and bool((flat == np.arange(flat.size)).all())

    @property
    def plain(self) -> bool:
        """Whether this is the base as it is."""
        return self.curve is None and self.index.shape == self.base.shape and self.in_order

    @property
    def at(self) -> np.ndarray:
        """The curve at POINTS."""
        return POINTS if self.curve is None else self.curve

    @property
    def factor(self) -> float | None:
        """The number that the curve multiplies with; None where it does something else."""
        slope = float(self.at[-1] / POINTS[-1])
        return slope if np.abs(self.at - slope * POINTS).max() <= CLOSE * abs(slope) else None
