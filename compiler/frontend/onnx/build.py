"""Adds nodes to the float graph for what ONNX values turn out to be."""

from dataclasses import replace

import numpy as np

from intformer.frontend.onnx import integers
from intformer.frontend.onnx.probe import Traced
from intformer.frontend.onnx.program import Node as OnnxNode
from intformer.frontend.onnx.values import (
    CLOSE,
    POINTS,
    Base,
    Context,
    Edge,
    Part,
    Product,
    Rows,
    Stage,
    View,
)
from intformer.ir.graph import (
    ACTIVATIONS,
    PLACES,
    SEQUENCES,
    TOKENS,
    WORD_STEM,
    Grid,
    Linear,
    Node,
    Norm,
    Tables,
)

DRAWN = 1e-5  # how far sqrt(head_dim) may be off to be taken for it


class Builder:
    """The graph so far.

    nodes     edge -> node
    position  (rule, padding id): how positions count; None until a table of them is read
    biases    attention edge -> value that adds its bias
    masks     value that hides keys -> what it is where none is hidden
    places    values that pick rows of positions
    """

    def __init__(self, traced: Traced):
        """Start empty."""
        self.traced, self.program, self.probe = traced, traced.program, traced.probe
        self.nodes: dict[str, Node] = {}
        self.position: tuple[str, int] | None = None
        self.biases: dict[str, str] = {}
        self.masks: dict[str, float] = {}
        self.places: set[str] = set()
        self._edges: dict[int, str] = {}  # id of a base -> its edge
        self._kept: list[Base] = []  # so that no id is used twice
        self._stems: dict[tuple, tuple[str, Linear]] = {}

    def channels(self, edge: str) -> int:
        """Return the width of an edge."""
        return self.nodes[edge].channels

    def view(self, edge: str, shape: tuple[int, ...]) -> View:
        """Return a whole edge."""
        return View.of(Edge(shape, edge))

    def add(self, kind: str, inputs: tuple[str, ...], channels: int, **more) -> str:
        """Add a node; its name says its kind and number until `named` gives it a better one."""
        name = f"{kind}.{len(self.nodes)}"
        self.nodes[name] = Node(kind, name, inputs, channels, **more)
        return name

    # -- edges ----------------------------------------------------------------------------------

    def edge(self, view: View, node: OnnxNode) -> str:
        """Return the edge that a value is, made where there is none yet.

        node  reads it, for errors
        """
        if isinstance(view.base, Context):
            edge = self._joined(view, node)
        elif view.in_order:
            edge = self._whole(view.base, node)
        else:
            edge = self._first(view, node)
        if view.curve is not None:
            edge = self._act(view, edge, node)
        if view.grid is not None:
            self._rounds(edge, view.grid, node)
        return edge

    def _rounds(self, edge: str, grid: Grid, node: OnnxNode) -> None:
        """Record the grid of an edge, if its operand can be on one."""
        maker = self.nodes[edge]
        while maker.kind == "take":
            maker = self.nodes[maker.inputs[0]]
        if maker.kind not in ("norm", "act", "attention"):
            return
        other = maker.attrs.get("grid", grid)
        if (other.scale, other.zero) != (grid.scale, grid.zero):
            raise self.program.refusal(
                f"{grid.name!r} and {other.name!r} are one value, rounded in two ways", node
            )
        self.nodes[maker.name] = replace(maker, attrs={**maker.attrs, "grid": other})

    def made(self, view: View) -> bool:
        """Say whether a value's edge was needed before."""
        return isinstance(view.base, Edge) or id(view.base) in self._edges

    def _whole(self, base: Base, node: OnnxNode) -> str:
        if isinstance(base, Edge):
            return base.name
        if id(base) not in self._edges:
            maker = MAKERS.get(type(base))
            made = maker(self, base, node) if maker else None
            if made is None:
                raise self.program.refusal(
                    "reads a value that is not a complete step of an encoder", node
                )
            self._edges[id(base)] = made
            self._kept.append(base)
        return self._edges[id(base)]

    def _first(self, view: View, node: OnnxNode) -> str:
        """The first row of every sequence."""
        shape = view.base.shape
        whole = np.arange(int(np.prod(shape))).reshape(shape)
        if len(shape) != 3 or not np.array_equal(view.index.ravel(), whole[:, 0].ravel()):
            raise self.program.refusal("reads elements in an order that is not understood", node)
        edge = self._whole(view.base, node)
        key = ("first", edge)
        if key not in self._stems:
            attrs = {"rows": "sequence"}
            taken = self.add("take", (edge, SEQUENCES), self.channels(edge), attrs=attrs)
            self._stems[key] = taken, None
        return self._stems[key][0]

    def _act(self, view: View, edge: str, node: OnnxNode) -> str:
        if self.nodes[edge].kind != "linear":
            raise self.program.refusal("activates something other than a linear layer", node)
        function = function_of(view.curve)
        if function is None:
            raise self.program.refusal(
                "the elementwise function that it reads is not supported",
                node,
                "supported: " + ", ".join(sorted(set(ACTIVATIONS.values()))),
            )
        key = ("act", edge, function)
        if key not in self._stems:
            made = self.add("act", (edge,), self.channels(edge), attrs={"function": function})
            self._stems[key] = made, None
        return self._stems[key][0]

    # -- linear layers --------------------------------------------------------------------------

    def linear(self, x: str, linear: Linear, key: tuple) -> str:
        """A linear layer; equal keys share a stem."""
        stem, kept = self._stems.get(key, ("", None))
        name = self.add("linear", (x,), len(linear.bias), params=kept or linear, stem=stem)
        if not stem:
            word = next((n.params.word for n in self.nodes.values() if n.kind == "embed"), None)
            tied = linear.given is None and np.array_equal(linear.weight, word)
            stem, attrs = (WORD_STEM, {"tied": True}) if tied else (name, {})
            self.nodes[name] = Node("linear", name, (x,), len(linear.bias), linear, stem, attrs)
            self._stems[key] = stem, linear
        return name

    def _product(self, base: Product, node: OnnxNode) -> str:
        return self.linear(base.x, linear_of(base), base.keys)

    def _rows(self, base: Rows, node: OnnxNode) -> str:
        if "word" not in base.tables or "position" not in base.tables:
            lacks = "word" if "word" not in base.tables else "position"
            raise self.program.refusal(
                f"the embeddings lack a {lacks} table: of encoders with other positions, rotary "
                "ones for instance, directories are read, and no ONNX files",
                base.node,
            )
        if "other" in base.tables:
            raise self.program.refusal(
                "picks rows by something other than ids, types or positions", base.node
            )
        word, position = base.tables["word"], base.tables["position"]
        if (one := base.tables.get("one")) is not None:
            position = position + one
        types = base.tables.get("type")
        inputs = (TOKENS, PLACES)
        if types is not None and len(types) == 1:
            position, types = position + types[0], None
        if types is not None:
            inputs = (TOKENS, "token_type_ids", PLACES)
        tables = integers.kept_tables(base, Tables(word, position, types))
        return self.add("embed", inputs, word.shape[1], params=tables)

    def _stage(self, base: Stage, node: OnnxNode) -> str | None:
        if base.kind != "normal":
            return None
        return self.norm(base.x, base.gamma, base.beta, base.eps, node)

    def norm(self, x: View, gamma, beta, eps: float, node: OnnxNode) -> str:
        """LayerNorm; gamma and beta may be left out."""
        edge = self.edge(x, node)
        channels = self.channels(edge)
        gamma = np.ones(channels, np.float32) if gamma is None else np.ravel(gamma)
        beta = np.zeros(channels, np.float32) if beta is None else np.ravel(beta)
        if gamma.size != channels or beta.size != channels:
            raise self.program.refusal(f"gamma or beta does not have {channels} numbers", node)
        params = Norm(gamma.astype(np.float32), beta.astype(np.float32), float(eps), node.name)
        return self.add("norm", (edge,), channels, params=params)

    # -- attention ------------------------------------------------------------------------------

    def _joined(self, view: View, node: OnnxNode) -> str:
        """The context, its heads side by side."""
        whole = View.of(view.base).index.swapaxes(1, 2)
        if not np.array_equal(view.index.ravel(), whole.ravel()):
            raise self.program.refusal("reads attention whose heads are not side by side", node)
        return self.attention(view.base, node)

    def attention(self, base: Context, node: OnnxNode) -> str:
        """Queries, keys and values side by side, and the attention that reads them."""
        if id(base) in self._edges:
            return self._edges[id(base)]
        scores = base.scores
        parts = (scores.q, scores.k, base.v)
        if len({part.product.x for part in parts}) != 1:
            raise self.program.refusal("queries, keys and values are not made of one edge", node)
        heads, width = scores.q.channels.shape
        factor = scores.factor * scores.q.factor * scores.k.factor * width**0.5
        factors = (1.0 if abs(factor - 1) < DRAWN else factor, 1.0, base.v.factor)
        joined = join([scaled(p, f) for p, f in zip(parts, factors, strict=True)])
        key = tuple(
            (*part.product.keys, part.channels.tobytes(), f)
            for part, f in zip(parts, factors, strict=True)
        )
        qkv = self.linear(parts[0].product.x, joined, key)
        if all(part.grid for part in parts):
            grids = tuple(on_part(p, f) for p, f in zip(parts, factors, strict=True))
            maker = self.nodes[qkv]
            self.nodes[qkv] = replace(maker, attrs={**maker.attrs, "grids": grids})
        attrs = {"heads": heads}
        made = self.add("attention", (qkv, SEQUENCES), heads * width, attrs=attrs)
        if scores.bias:
            self.biases[made] = scores.bias
        self._edges[id(base)] = made
        self._kept.append(base)
        return made


MAKERS = {
    Product: Builder._product,
    Rows: Builder._rows,
    Stage: Builder._stage,
}


def function_of(curve: np.ndarray) -> str | None:
    """Return the activation that a curve is."""
    import torch

    from intformer.ir.float_run import activate

    x = torch.from_numpy(POINTS)
    for function in dict.fromkeys(ACTIVATIONS.values()):
        if np.abs(activate(x, function).numpy() - curve).max() <= CLOSE:
            return function
    return None


def linear_of(base: Product) -> Linear:
    """Return the layer of a product."""
    bias = base.bias
    if bias is None:
        bias = np.zeros(len(base.weight), np.float32)
    return Linear(base.weight, bias, keys=base.keys[:1], given=integers.of_product(base))


def scaled(part: Part, factor: float) -> Linear:
    """Return the rows of a part, multiplied."""
    rows = part.channels.ravel()
    whole = linear_of(part.product)
    weight, bias, given = whole.weight[rows], whole.bias[rows], integers.rows_of(whole.given, rows)
    if factor != 1:
        weight, bias = weight * np.float32(factor), bias * np.float32(factor)
        given = given and replace(given, steps=given.steps * factor)
    return Linear(weight, bias, keys=whole.keys, given=given)


def on_part(part: Part, factor: float) -> Grid:
    """Return the grid of a part before what it is multiplied with, but for `factor`."""
    return replace(part.grid, scale=part.grid.scale * abs(factor / part.factor))


def join(parts: list[Linear]) -> Linear:
    """Return linear layers one below the other."""
    return Linear(
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.bias for part in parts]),
        len(parts),
        tuple(key for part in parts for key in part.keys),
        integers.joined(parts),
    )
