"""First pass: where every value and constant lives, before any kernel is written.

Values get a Buffer: eight-row blocks, channels padded to whole vectors (inside every head for
attention), uint8 with zero point 128 where a matmul reads them. Constants get a packing spec.
"""

from dataclasses import dataclass, field

from intformer.ir.constants import LANES, ZERO_POINT
from intformer.ir.model import INPUTS, IntModel, Node
from intformer.ir.plan import Buffer
from intformer.passes.packing import columns
from intformer.relay_ops import OPS

TAKE = "take_rows"


@dataclass
class Layout:
    """Physical form of a model, on every chip.

    buffers  value name -> Buffer
    maps     value name -> (groups, size, padded) channel map
    names    (node index, argument index) -> name of the constant, for arguments that are tensors
    packing  constant name -> packing spec
    weight   packing of the weights
    zero_point  of the operands of matrix products, which are uint8 where it is not 0
    """

    buffers: dict[str, Buffer] = field(default_factory=dict)
    maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    packing: dict[str, dict] = field(default_factory=dict)
    weight: str = "weight"
    zero_point: int = ZERO_POINT


def plan_layout(model: IntModel, weight: str = "weight", zero_point: int = ZERO_POINT) -> Layout:
    """Return the layout of a model, for the chips of one family.

    weight      packing of the weights, see packing
    zero_point  of the operands of matrix products: 0 where the chip multiplies signed numbers
    """
    layout = Layout(maps=_channel_maps(model), weight=weight, zero_point=zero_point)
    unsigned = {node.inputs[0] for node in model.nodes if node.op == "matmul"}
    unsigned |= {n.inputs[0] for n in model.nodes if n.op == TAKE and n.outputs[0] in unsigned}
    for name, value in model.values.items():
        groups, size, padded = layout.maps[name]
        is_operand = zero_point and name in unsigned and value.dtype == "int8"
        layout.buffers[name] = Buffer(
            name=name,
            dtype="uint8" if is_operand else value.dtype,
            rows=value.rows,
            width=_round_up(groups * padded),
            channels=value.channels,
            zero_point=zero_point if is_operand else 0,
            channel_map=None if size == padded or groups == 1 else columns((groups, size, padded)),
        )
    tied = {node.inputs[1] for node in model.nodes if node.op == "matmul"}
    for index, node in enumerate(model.nodes):
        for argument, name in enumerate(node.inputs):
            if name in model.tensors:
                spec = _spec(model, layout, node, argument, tied)
                layout.names[index, argument] = _intern(layout, name, spec)
    return layout


def _round_up(n: int) -> int:
    return -(-n // LANES) * LANES


def _channel_maps(model: IntModel) -> dict[str, tuple[int, int, int]]:
    """Heads are padded where attention reads or writes them; all else is one run of channels.

    Where pairs are turned, each half of a head is padded; where a gate reads, each factor.
    """
    maps = {name: (1, v.channels, _round_up(v.channels)) for name, v in model.values.items()}
    turned = {node.outputs[0] for node in model.nodes if OPS[node.op].pairs}
    for node in model.nodes:
        op, (out, *_) = OPS[node.op], node.outputs
        if op.heads or op.pairs:
            x = node.inputs[0]
            parts = 2 if op.pairs or x in turned else 1
            groups, size = node.attrs["heads"] * parts, node.attrs["head_dim"] // parts
            maps[x] = (3 * groups, size, _round_up(size))
            maps[out] = maps[x] if op.pairs else (groups, size, _round_up(size))
        if op.halves:
            maps[node.inputs[0]] = (2, *maps[out][1:])
    for node in reversed(model.nodes):  # what is elementwise keeps its consumer's map
        if OPS[node.op].elementwise:
            maps[node.inputs[0]] = maps[node.outputs[0]]
    for node in model.nodes:
        if node.op == TAKE:
            maps[node.outputs[0]] = maps[node.inputs[0]]
    return maps


def _spec(model: IntModel, layout: Layout, node: Node, argument: int, tied: set) -> dict:
    name = node.inputs[argument]
    out = node.outputs[0]
    if node.op == "matmul":
        if argument == 1:
            return _weight(layout, name, node.inputs[0], out)
        return {
            "tensor": name,
            "kind": "bias",
            "weight": node.inputs[1],
            "zero_point": layout.zero_point,
            "map": layout.maps[out],
            "width": layout.buffers[out].width,
        }
    if OPS[node.op].lookup:
        if model.tensors[name].ndim == 1:
            return {"tensor": name, "kind": "raw"}
        if name in tied:  # one copy, as the decoder's matmul reads it
            user = next(n for n in model.nodes if n.op == "matmul" and n.inputs[1] == name)
            return _weight(layout, name, user.inputs[0], user.outputs[0])
        return _channels(layout, name, out, 0)
    op = OPS[node.op]
    if op.pairs:
        last = model.tensors[name].shape[-1]
        return _spread(name, (1, last, last), _round_up(last), 0)
    if argument in op.by_distance:
        return {
            "tensor": name,
            "kind": "distances",
            "map": layout.maps[out],
            "zero_point": layout.zero_point,
            "first": op.by_distance[argument],
            "room": op.room[argument],
        }
    if argument in op.room:
        last = model.tensors[name].shape[-1]
        return _spread(name, (1, last, last), last + op.room[argument], 0)
    per_channel = model.tensors[name].shape[-1] == model.values[out].channels
    if per_channel and argument >= op.unpadded:
        return _channels(layout, name, out, op.fill.get(argument, 0))
    return {"tensor": name, "kind": "raw"}


def _weight(layout: Layout, name: str, x: str, out: str) -> dict:
    return {
        "tensor": name,
        "kind": layout.weight,
        "map_in": layout.maps[x],
        "width_in": layout.buffers[x].width,
        "map_out": layout.maps[out],
        "width_out": layout.buffers[out].width,
    }


def _channels(layout: Layout, name: str, out: str, fill: int) -> dict:
    return _spread(name, layout.maps[out], layout.buffers[out].width, fill)


def _spread(name: str, channel_map: tuple[int, int, int], width: int, fill: int) -> dict:
    return {"tensor": name, "kind": "channels", "map": channel_map, "width": width, "fill": fill}


def _intern(layout: Layout, name: str, spec: dict) -> str:
    """Return the constant of this spec, made once; a second layout of a tensor gets a suffix."""
    for number in range(1, 100):
        key = name if number == 1 else f"{name}#{number}"
        if layout.packing.setdefault(key, spec) == spec:
            return key
    raise AssertionError(name)


def rows_of(name: str, layout: Layout) -> str:
    """Return what one row of a program input or value stands for."""
    return INPUTS[name] if name in INPUTS else layout.buffers[name].rows
