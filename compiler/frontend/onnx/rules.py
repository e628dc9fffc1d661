"""One rule per operator: what its output stands for, from what its inputs stand for.

A rule takes (walk, node, args), where an argument is a View, a Known value or None, and returns a
View, or a list of them for several outputs.
"""

from dataclasses import replace

import numpy as np

from intformer.frontend.onnx import attention, norms, pooling
from intformer.frontend.onnx.program import Node
from intformer.frontend.onnx.values import POINTS, Known, Product, Rows, View

FLOATS = (1, 10, 11, 16)  # onnx.TensorProto: float32, float16, float64, bfloat16


def table_rows(walk, node: Node, args: list) -> View | None:
    """Rows of a table that an input, or what is computed from it, picks; None: no such thing."""
    if node.op != "Gather" or not (args[0].constant and not args[1].constant):
        return None
    table, index = args[0].value, args[1].value
    if table.dtype != np.float32 or table.ndim != 2 or int(node.attrs.get("axis", 0)) != 0:
        return None
    kind, table = picked(walk, table, index)
    if kind == "position":
        walk.builder.places.add(args[1].name)
    stored = walk.program.stored.get(args[0].name)
    kept = {kind: stored} if stored is not None and kind != "one" else {}
    return View.of(Rows(walk.shape(node), {kind: table}, kept, node))


def picked(walk, table: np.ndarray, index: np.ndarray) -> tuple[str, np.ndarray]:
    """Return what picks rows, see values.Rows, and the table or its one row."""
    probe = walk.probe
    try:
        real = np.broadcast_to(index, probe.ids.shape)[probe.real]
    except ValueError:
        return "other", table
    if np.array_equal(real, probe.ids[probe.real]):
        return "word", table
    if probe.types.any() and np.array_equal(real, probe.types[probe.real]):
        return "type", table
    if (real == real[0]).all():
        return "one", table[int(real[0])][None]
    columns = np.broadcast_to(np.arange(probe.ids.shape[1]), probe.ids.shape)[probe.real]
    first = int(real[0] - columns[0])
    if np.array_equal(real, columns + first) and first >= 0:
        # column: 0, 1, ...; padding: from behind the padding id on, which later probes confirm
        rule = ("padding", first - 1) if first else ("column", 0)
        if walk.builder.position in (None, rule):
            walk.builder.position = rule
            return "position", table
    return "other", table


# -- elements change their places ------------------------------------------------------------------


def move(walk, node: Node, args: list) -> list[View]:
    """Reshape, Transpose and the like, over the numbers of elements."""
    first, *others = args
    if not isinstance(first, View) or any(isinstance(one, View) for one in others):
        raise walk.program.refusal("moves elements by computed indices", node)
    arrays = [first.index, *(None if one is None else one.value for one in others)]
    moved = walk.program.apply(node, arrays)
    return [View(first.base, index, first.curve, first.grid) for index in moved]


def cast(walk, node: Node, args: list) -> View:
    """Change of the floating-point type."""
    if int(node.attrs["to"]) not in FLOATS:
        raise walk.program.refusal("activations are cast to integers", node)
    return args[0]


def concat(walk, node: Node, args: list) -> View:
    """Concatenation of a single value."""
    if len(args) != 1:
        raise walk.program.refusal("joins several values", node)
    return args[0]


def same(walk, node: Node, args: list) -> View:
    """Identity, and Dropout as it is at inference."""
    return args[0]


# -- elementwise functions -------------------------------------------------------------------------


def sampled(function):
    """Return the rule of an operator that goes element by element."""

    def rule(walk, node: Node, args: list) -> View:
        x = args[0]
        with np.errstate(all="ignore"):
            return View(x.base, x.index, function(x.at, node))

    return rule


def _erf(x: np.ndarray, node: Node) -> np.ndarray:
    import torch

    return torch.erf(torch.tensor(x)).numpy()


def _gelu(x: np.ndarray, node: Node) -> np.ndarray:
    import torch

    kind = node.attrs.get("approximate", b"none").decode()
    return torch.nn.functional.gelu(torch.tensor(x), approximate=kind).numpy()


ARITHMETIC = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}


def binary(walk, node: Node, args: list) -> View:
    """Add, Sub, Mul, Div and Pow of two values."""
    for rules in (norms, pooling, attention):
        if (made := rules.binary(walk, node, *args)) is not None:
            return made
    a, b = args
    function = ARITHMETIC[node.op]
    if isinstance(a, View) and isinstance(b, View):
        if a.base is b.base and np.array_equal(a.index, b.index):
            return View(a.base, a.index, _curve(function, a.at, b.at))
        if node.op == "Add":
            return total(walk, node, a, b)
        raise walk.program.refusal("combines two activations other than by adding them", node)
    x, known = (a, b) if isinstance(a, View) else (b, a)
    if known.value.size == 1:
        number = float(known.value.ravel()[0])
        operands = (x.at, number) if x is a else (number, x.at)
        index = x.index.reshape(walk.shape(node))
        return View(x.base, index, _curve(function, *operands))
    made = linear(walk, node, x, known)
    if made is None:
        raise walk.program.refusal(f"{known.name!r} has no place in an encoder", node)
    return made


def _curve(function, a, b) -> np.ndarray:
    with np.errstate(all="ignore"):
        curve = function(a, b)
    return np.broadcast_to(curve, POINTS.shape)


def total(walk, node: Node, a: View, b: View) -> View:
    """Sum of looked-up rows, or of a term and the residual."""
    if isinstance(a.base, Rows) and isinstance(b.base, Rows) and a.curve is b.curve is None:
        return embeddings(walk, node, a, b)
    if a.index.shape != b.index.shape:
        raise walk.program.refusal("adds values of different shapes", node)
    # the residual was read before; the term is a linear layer that only this sum reads
    term, stream = (a, b) if isinstance(a.base, Product) and not walk.builder.made(a) else (b, a)
    if not isinstance(term.base, Product) or term.curve is not None:
        raise walk.program.refusal("adds two values, neither of them a linear layer", node)
    edges = tuple(walk.builder.edge(one, node) for one in (term, stream))
    channels = walk.builder.channels(edges[1])
    if channels != walk.builder.channels(edges[0]):
        raise walk.program.refusal("adds values of different widths", node)
    edge = walk.builder.add("add", edges, channels)
    return walk.builder.view(edge, walk.rows_shape(channels, a.index.size))


def embeddings(walk, node: Node, a: View, b: View) -> View:
    """Sum of the rows of tables."""
    both = set(a.base.tables) & set(b.base.tables)
    shape = walk.shape(node)
    if both or a.base.shape[-1] != b.base.shape[-1] or len(shape) != 3:
        raise walk.program.refusal("adds rows of tables that do not go together", node)
    tables, stored = a.base.tables | b.base.tables, a.base.stored | b.base.stored
    return View.of(Rows(shape, tables, stored, node))


# -- matrix products -------------------------------------------------------------------------------


def matmul(walk, node: Node, args: list) -> View:
    """Rows times a constant; queries times keys; probabilities times values."""
    a, b = args
    if isinstance(a, View) and isinstance(b, View):
        return attention.matmul(walk, node, a, b)
    if not isinstance(a, View) or not b.constant or b.value.ndim != 2:
        raise walk.program.refusal("is not a product of rows and a constant", node)
    return product(walk, node, a, b.value.T, _stored(walk, node, b.name, transposed=True), b.name)


def gemm(walk, node: Node, args: list) -> View:
    """alpha a @ b + beta c, b constant."""
    a, b, *c = args
    plain = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    if not isinstance(a, View) or not b.constant or node.attrs.get("transA") or not plain:
        raise walk.program.refusal("is not a product of rows and a constant", node)
    turned = not node.attrs.get("transB")
    weight = b.value.T if turned else b.value
    made = product(walk, node, a, weight, _stored(walk, node, b.name, turned), b.name)
    return linear(walk, node, made, c[0]) if c and c[0] is not None else made


def product(walk, node: Node, x: View, weight: np.ndarray, stored, key: str) -> View:
    """Rows times a weight [N, K]."""
    edge = walk.builder.edge(x, node)
    outputs, inputs = weight.shape
    if x.index.shape[-1] != inputs or walk.builder.channels(edge) != inputs:
        raise walk.program.refusal(f"the weight {key!r} does not multiply with channels", node)
    shape = walk.rows_shape(outputs, x.index.size // inputs * outputs)
    base = Product(shape, edge, np.ascontiguousarray(weight), None, stored, (key, ""))
    return View(base, View.of(base).index.reshape(walk.shape(node)))


def _stored(walk, node: Node, name: str, transposed: bool):
    """Return the integers of a weight [N, K] and their scales, a number or [N]."""
    stored = walk.program.stored.get(name)
    if stored is None:
        return None
    scale = np.atleast_2d(stored.scale)
    integers, scale = (stored.integers.T, scale.T) if transposed else (stored.integers, scale)
    if scale.shape[1] != 1:
        raise walk.program.refusal(f"the weight {name!r} has a scale per input channel", node)
    return replace(stored, integers=integers, scale=np.ravel(scale))


def linear(walk, node: Node, x: View, known: Known) -> View | None:
    """A product with its bias, or with its scale."""
    base, value = x.base, known.value
    channels = base.shape[-1]
    if (
        not isinstance(base, Product)
        or x.factor is None
        or not x.in_order
        or not known.constant
        or value.shape[-1:] != (channels,)
        or value.size != channels
    ):
        return None
    vector = np.ravel(value).astype(np.float32)
    if base.bias is None and x.factor != 1:  # a scale of the weight that came before
        base = times(base, np.float32(x.factor))
    elif x.factor != 1:
        return None
    if node.op in ("Add", "Gemm") and base.bias is None:
        more = {"bias": vector, "keys": (base.keys[0], known.name)}
    elif node.op == "Mul" and base.bias is None:
        return View(times(base, vector), x.index.reshape(walk.shape(node)))
    else:
        return None
    changed = Product(**{**vars(base), **more})
    return View(changed, x.index.reshape(walk.shape(node)))


def times(base: Product, factor: np.ndarray) -> Product:
    """Return a product without bias whose weight is multiplied, by one number or one per row."""
    stored = base.stored
    if stored is not None:
        stored = replace(stored, scale=np.ravel(stored.scale * factor))
    weight = base.weight * np.reshape(factor, (-1, 1))
    return Product(**{**vars(base), "weight": weight, "stored": stored})


RULES = {
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"), move),
    **dict.fromkeys(("Slice", "Split", "Gather"), move),
    **dict.fromkeys(("Identity", "Dropout"), same),
    **dict.fromkeys(ARITHMETIC, binary),
    "Cast": cast,
    "Concat": concat,
    "MatMul": matmul,
    "Gemm": gemm,
    "LayerNormalization": norms.layer_norm,
    "ReduceMean": norms.reduce_mean,
    "Sqrt": norms.square_root,
    "Softmax": attention.softmax,
    "Where": attention.where,
    "IsNaN": attention.missing,
    "ReduceSum": pooling.reduce_sum,
    "ReduceL2": pooling.length,
    "Clip": pooling.clip,
    "Expand": pooling.expand,
    "Erf": sampled(_erf),
    "Gelu": sampled(_gelu),
    "Tanh": sampled(lambda x, node: np.tanh(x)),
    "Sigmoid": sampled(lambda x, node: 1 / (1 + np.exp(-x))),
    "Relu": sampled(lambda x, node: np.maximum(x, 0)),
    "Neg": sampled(lambda x, node: -x),
}
