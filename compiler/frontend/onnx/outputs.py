"""Which output of the file is the answer, and the graph that leads to it."""

from dataclasses import dataclass, replace

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.onnx.build import Builder
from intformer.frontend.onnx.program import Node as OnnxNode
from intformer.frontend.onnx.values import Edge, Product, Stage, View
from intformer.ir import heads
from intformer.ir.graph import POSITIONS, SEQUENCES, Graph, Node
from intformer.ir.heads import Head

ORDER = (  # where nothing says which of several answers is wanted
    heads.QUESTION_ANSWERING,
    heads.SEQUENCE_CLASSIFICATION,
    heads.MASKED_LM,
    heads.TOKEN_CLASSIFICATION,
    heads.SENTENCE_EMBEDDING,
    heads.FEATURES,
)


@dataclass(frozen=True, eq=False)
class Answer:
    """One output of the file, or two.

    names      of the outputs
    edge       that it is, of the graph
    pooling    of a sentence embedding, see Builder.pooled; "" elsewhere
    normalize  the file brings it to length 1
    rivals     outputs that answer the same head with other numbers
    """

    names: tuple[str, ...]
    edge: str
    pooling: str = ""
    normalize: bool = False
    rivals: tuple[str, ...] = ()


def answers(builder: Builder, outputs: dict[str, View]) -> dict[Head, Answer]:
    """Return what the outputs of a file answer."""
    several: dict[Head, list[Answer]] = {}
    for name, view in outputs.items():
        for head, answer in _of(builder, name, view):
            several.setdefault(head, []).append(answer)
    if (span := _span(builder, outputs)) is not None:
        several[heads.QUESTION_ANSWERING] = [span]
    return {head: _one(builder, head, each) for head, each in several.items()}


def _one(builder: Builder, head: Head, several: list[Answer]) -> Answer:
    """Return the answer of a head, with its rivals.

    Of the hidden states of all layers, the last is the answer, and the others are no rivals.
    """
    if head is heads.FEATURES:
        several = sorted(several, key=lambda one: -len(_needed(builder, one.edge)))
        behind = _needed(builder, several[0].edge)
        several = [several[0], *(one for one in several if one.edge not in behind)]
    first = several[0]
    said = (first.edge, first.pooling, first.normalize)
    rivals = [one for one in several if (one.edge, one.pooling, one.normalize) != said]
    return replace(first, rivals=tuple(name for one in rivals for name in one.names))


def _needed(builder: Builder, edge: str) -> set[str]:
    """Return an edge and all that it is made of."""
    needed = {edge}
    for node in reversed(list(builder.nodes.values())):
        if node.name in needed:
            needed.update(node.inputs)
    return needed


def check_single(answer: Answer, head: Head, where: str) -> None:
    """Raise where another output answers the same head."""
    if answer.rivals:
        named = ", ".join(map(repr, (*answer.names, *answer.rivals)))
        raise CheckpointError(
            f"the ONNX outputs {named} all give {head.name!r}",
            where=where,
            hint="export the one that is wanted alone",
        )


def _of(builder: Builder, name: str, view: View) -> list[tuple[Head, Answer]]:
    node = OnnxNode("output", name, (), ())
    normalize = isinstance(view.base, Stage) and view.base.kind == "unit" and view.plain
    view = view.base.x if normalize else view
    if view.curve is not None:
        return []
    if isinstance(view.base, Product) and view.in_order and not normalize:
        return [
            (head, Answer((name,), builder.edge(view, node))) for head in _logits(builder, view)
        ]
    if not isinstance(view.base, Edge):
        if not isinstance(view.base, Stage) or view.base.kind != "normal" or not view.in_order:
            return []
    edge = view.base.name if isinstance(view.base, Edge) else builder.edge(view, node)
    kind = builder.nodes[edge].kind
    if kind == "norm" and view.in_order and len(view.base.shape) == 3 and not normalize:
        return [(heads.FEATURES, Answer((name,), edge))]
    if kind == "mean":
        return [(heads.SENTENCE_EMBEDDING, Answer((name,), edge, "mean", normalize))]
    if kind == "norm" and view.index.size == len(builder.probe.ids) * builder.channels(edge):
        first = builder.edge(view, node)
        return [(heads.SENTENCE_EMBEDDING, Answer((name,), first, "first", normalize))]
    return []


def _logits(builder: Builder, view: View) -> list[Head]:
    if len(view.base.shape) == 2:
        return [heads.SEQUENCE_CLASSIFICATION]
    words = next(n for n in builder.nodes.values() if n.kind == "embed").params.word
    if len(words) == view.base.shape[-1]:
        return [heads.MASKED_LM]
    both = view.base.shape[-1] == 2
    return [heads.TOKEN_CLASSIFICATION, *([heads.QUESTION_ANSWERING] if both else [])]


def _span(builder: Builder, outputs: dict[str, View]) -> Answer | None:
    """Logits of starts and of ends, which are two outputs."""
    found = {}
    for name, view in outputs.items():
        shape = view.base.shape
        if isinstance(view.base, Product) and len(shape) == 3 and shape[-1] == 2:
            for channel in (0, 1):
                wanted = np.arange(channel, view.index.size * 2, 2)
                if view.curve is None and np.array_equal(view.index.ravel(), wanted):
                    found[channel] = name, view.base
    if len(found) < 2 or found[0][1] is not found[1][1]:
        return None
    node = OnnxNode("output", found[0][0], (), ())
    return Answer((found[0][0], found[1][0]), builder.edge(View.of(found[0][1]), node))


def other_embeddings(builder: Builder, outputs: dict[str, View], answer: Answer) -> list[str]:
    """Return the outputs with a vector for each sequence that an answer does not give.

    Not BERT's pooler, tanh of a product of the first token, which no embedding is made of.
    """
    found = []
    for name, view in outputs.items():
        unit = isinstance(view.base, Stage) and view.base.kind == "unit"
        inner = view.base.x if unit else view
        pooler = (
            not unit
            and inner.curve is not None
            and isinstance(inner.base, Product)
            and builder.nodes[inner.base.x].kind != "mean"
        )
        if view.index.ndim == 2 and not pooler and name not in answer.names:
            found.append(name)
    return found


def chosen(found: dict[Head, Answer], head: Head | None, named: Head | None, where: str) -> Head:
    """Return the head whose answer a graph gives.

    head   asked for; None: what the directory's config.json names, if the file has it, or the first
           of ORDER that the file has; a class without a head has no other answer than embeddings
    """
    if head is None:
        order = ORDER if named is not heads.FEATURES else (heads.SENTENCE_EMBEDDING,)
        head = named if named in found else next((one for one in order if one in found), None)
    if head is None or source(found, head) is None:
        wanted = "no supported head" if head is None else f"no head {head.name!r}"
        raise CheckpointError(
            f"the outputs of the ONNX file give {wanted}",
            where=where,
            hint="it has: " + (", ".join(one.name for one in found) or "none"),
        )
    return head


def source(found: dict[Head, Answer], head: Head) -> Answer | None:
    """Return the output that a head is made of; None where the file has none."""
    made_of = {
        heads.SENTENCE_EMBEDDING: heads.FEATURES,
        heads.SPARSE_EMBEDDING: heads.MASKED_LM,
    }
    return found.get(head) or found.get(made_of.get(head))


def graph(builder: Builder, edge: str, head: Head) -> Graph:
    """Return the graph that ends with an edge."""
    nodes = builder.nodes
    if head.fills_masks:
        edge = _asked(builder, edge)
    if head is heads.SPARSE_EMBEDDING:
        edge = builder.add("max", (edge, SEQUENCES), builder.channels(edge))
    needed = _needed(builder, edge)
    kept = [node for node in nodes.values() if node.name in needed]
    return Graph(tuple(named(kept)), head)


def _asked(builder: Builder, edge: str) -> str:
    """Take the rows that are asked for before the layers of a head; returns the new last edge."""
    layers, at = [], edge
    while builder.nodes[at].kind in ("linear", "act") or (
        builder.nodes[at].kind == "norm"
        and builder.nodes[builder.nodes[at].inputs[0]].kind == "act"
    ):
        layers.append(builder.nodes[at])
        at = builder.nodes[at].inputs[0]
    taken = builder.add("take", (at, POSITIONS), builder.channels(at), attrs={"rows": "position"})
    for node in reversed(layers):
        more = {"params": node.params, "stem": node.stem, "attrs": node.attrs}
        taken = builder.add(node.kind, (taken,), node.channels, **more)
    return taken


def named(nodes: list[Node]) -> list[Node]:
    """Return nodes with the names that other frontends give them: layer0.qkv, head0.act, ..."""
    names = _names(nodes)
    stems = {node.stem: names[node.name] for node in reversed(nodes) if node.stem}
    return [
        replace(
            node,
            name=names[node.name],
            inputs=tuple(names.get(edge, edge) for edge in node.inputs),
            stem=node.stem if node.attrs.get("tied") else stems.get(node.stem, ""),
        )
        for node in nodes
    ]


def _names(nodes: list[Node]) -> dict[str, str]:
    """Return edge -> name, by its place between the attentions."""
    found: dict[str, str] = {}
    fed = {n.inputs[0]: i for i, n in enumerate(n for n in nodes if n.kind == "attention")}
    last = max((i for i, n in enumerate(nodes) if n.kind == "add"), default=-1)
    encoder = last + 1  # the norm behind the last sum ends the encoder
    layer, counts = None, {}
    for i, node in enumerate(nodes):
        if node.name in fed:
            layer, counts = fed[node.name], {}
            found[node.name] = f"layer{layer}.qkv"
        elif i > encoder:
            found[node.name] = _head_name(node, found, counts)
        else:
            count = counts[node.kind] = counts.get(node.kind, -1) + 1
            found[node.name] = _layer_name(node.kind, layer, count)
    return found


LAYER_NAMES = {
    "linear": ("out", "ffn1", "ffn2"),
    "add": ("sum1", "sum2"),
    "norm": ("norm1", "norm2"),
    "attention": ("context",),
    "act": ("act",),
}


def _layer_name(kind: str, layer: int | None, count: int) -> str:
    if layer is None:
        name = {"embed": "embed.sum", "linear": "embed.project"}.get(kind, f"embed.{kind}")
        return name if count == 0 else f"{name}{count}"
    names = LAYER_NAMES.get(kind, ())
    return f"layer{layer}." + (names[count] if count < len(names) else f"{kind}{count}")


def _head_name(node: Node, found: dict[str, str], counts: dict) -> str:
    if node.kind in ("take", "mean", "max", "concat"):
        name = {"take": "head.rows", "concat": "head.pooled"}.get(node.kind, f"head.{node.kind}")
    elif node.kind == "linear":
        stage = counts["head"] = counts.get("head", -1) + 1
        name = f"head{stage}"
    else:
        name = f"head{counts.get('head', 0)}.{node.kind}"
    return name if name not in found.values() else f"{name}.{len(found)}"
