"""IntModel -> Relax: one function `main` whose body is the integer ops, one call each.

Parameters are the program inputs, then the constants in their physical layout, then the numbers of
row blocks. Ops carry their IntModel attributes and the physical form of their arguments.
"""

import tvm
from tvm import relax, tirx
from tvm.ir import Op

from intformer.ir.constants import BLOCK
from intformer.ir.model import INPUTS, IntModel, Node
from intformer.passes.layout import Layout
from intformer.relay_ops import OPS

BLOCKS = {"token": "token_blocks", "sequence": "sequence_blocks", "position": "position_blocks"}
PREFIX = "intformer."


def register_ops() -> None:
    """Make every integer op a Relax op, once: type inference and purity."""
    for name in OPS:
        if f"{PREFIX}{name}" not in Op.list_op_names():
            tvm.ir.register_op_attr(f"{PREFIX}{name}", "FInferType", _infer)
            tvm.ir.register_op_attr(f"{PREFIX}{name}", "FPurity", True)


def _infer(call: relax.Call, _context) -> "tvm.ir.Type":
    """The result types are decided by the layout; the call carries them in type_args."""
    types = list(call.ty_args)
    return types[0] if len(types) == 1 else relax.TupleType(types)


def to_relax(model: IntModel, layout: Layout, constants: dict) -> tvm.IRModule:
    """Return the module; variables keep the names of the IntModel's values."""
    register_ops()
    blocks = {rows: tirx.Var(name, "int64") for rows, name in BLOCKS.items()}
    used = {name for node in model.nodes for name in node.inputs}
    extents = {name: tirx.Var(f"{name}_length", "int64") for name in INPUTS if name in used}
    known = {
        name: relax.Var(name, relax.TensorType((extent,), "int32"))
        for name, extent in extents.items()
    }
    known |= {
        name: relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        for name, array in constants.items()
    }
    shape = relax.Var("blocks", relax.ShapeType(list(blocks.values())))
    builder = relax.BlockBuilder()
    with builder.function("main", [*known.values(), shape]):
        with builder.dataflow():
            for index, node in enumerate(model.nodes):
                _emit(builder, model, layout, node, index, known, blocks)
            result = builder.emit_output(known[model.output])
        builder.emit_func_output(result)
    return builder.finalize()


def _emit(builder, model: IntModel, layout: Layout, node: Node, index: int, known, blocks) -> None:
    names = [layout.names.get((index, i), name) for i, name in enumerate(node.inputs)]
    types = [
        relax.TensorType((blocks[b.rows], BLOCK, b.width), b.dtype)
        for b in (layout.buffers[name] for name in node.outputs)
    ]
    call = relax.Call(
        Op.get(f"{PREFIX}{node.op}"),
        [known[name] for name in names],
        attrs=tvm.ir.make_node("ir.DictAttrs", **physical_attrs(model, layout, node)),
        ty_args=types,
    )
    result = builder.emit(call, node.outputs[0] if len(types) == 1 else f"{node.outputs[0]}_all")
    if len(types) == 1:
        known[node.outputs[0]] = result
    else:
        for i, name in enumerate(node.outputs):
            known[name] = builder.emit(relax.TupleGetItem(result, i), name)


def physical_attrs(model: IntModel, layout: Layout, node: Node) -> dict:
    """Return the op's attributes and the physical form of its arguments, plain Python values."""
    outputs = [layout.buffers[name] for name in node.outputs]
    zero_points = [
        layout.buffers[name].zero_point if name in layout.buffers else 0 for name in node.inputs
    ]
    attrs = {
        **node.attrs,
        "zero_points_in": zero_points,
        "zero_points_out": [buffer.zero_point for buffer in outputs],
        "dtypes_out": [buffer.dtype for buffer in outputs],
        "width": outputs[0].width,
        "channels": outputs[0].channels,
        "results": list(node.outputs),
    }
    if OPS[node.op].heads or OPS[node.op].pairs:
        groups, _, padded = layout.maps[node.outputs[0]]
        parts = 3 if OPS[node.op].pairs else 1  # queries, keys and values
        attrs["head_dim"] = groups // (parts * node.attrs["heads"]) * padded
    if OPS[node.op].by_sequence:
        attrs["max_length"] = model.meta["max_length"]
    return attrs
