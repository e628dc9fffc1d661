"""First pass over an IntModel: rows that nobody reads are not computed.

A `take_rows` moves up through every op that works row by row, as far as attention. A model whose
head reads the first token so computes, in its last layer, everything behind attention for that
token alone. Exact: what is left computes what it did.
"""

from dataclasses import replace

from intformer.ir.model import IntModel, Node
from intformer.relay_ops import OPS

TAKE = "take_rows"


def drop_unread_rows(model: IntModel) -> IntModel:
    """Return the model with every take_rows as early as it can be."""
    nodes, values, output = list(model.nodes), dict(model.values), model.output
    while move := _movable(nodes, values, output):
        producer, takes = move
        index, rows = takes[0].inputs[1], takes[0].attrs["rows"]
        renamed = {take.outputs[0]: take.inputs[0] for take in takes}
        taken = {
            name: f"{name}.{rows}"
            for name in producer.inputs
            if name in values and values[name].rows == "token"
        }
        for name, rest in taken.items():
            if rest not in values:
                values[rest] = replace(values[name], rows=rows)
                take = Node(TAKE, (name, index), (rest,), dict(takes[0].attrs))
                maker = next(i for i, node in enumerate(nodes) if name in node.outputs)
                nodes.insert(maker + 1, take)
        nodes[nodes.index(producer)] = _renamed(producer, taken)
        nodes = [_renamed(node, renamed) for node in nodes if node not in takes]
        output = renamed.get(output, output)
        for name in producer.outputs:
            values[name] = replace(values[name], rows=rows)
        for name in renamed:
            del values[name]
    meta = model.meta | {"output_rows": values[output].rows} if "output_rows" in model.meta else {}
    return replace(model, nodes=nodes, values=values, output=output, meta=meta or model.meta)


def _renamed(node: Node, names: dict[str, str]) -> Node:
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))


def _movable(nodes: list[Node], values: dict, output: str) -> tuple[Node, list[Node]] | None:
    """Return a node that works row by row and the takes that alone read what it makes."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    for producer in nodes:
        if not OPS[producer.op].by_row or output in producer.outputs:
            continue
        reading = [node for name in producer.outputs for node in readers.get(name, ())]
        same = {
            (node.op, node.inputs[1:], *map(node.attrs.get, ("rows", "last"))) for node in reading
        }
        if len(same) == 1 and reading[0].op == TAKE:
            return producer, reading
    return None
