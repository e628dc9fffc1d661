"""Reads an ONNX file: one graph without subgraphs, its constants inside the directory."""

from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError, require
from intformer.frontend.folder import Folder, read_regular, reason
from intformer.frontend.onnx.program import Node, Program

MOST_BYTES = 2 << 30  # protobuf takes no more; larger models keep their weights beside the file
OPSETS = (11, 26)  # of the default domain: from axes of any sign on, to the newest known
FLOAT, FLOAT16 = 1, 10  # onnx.TensorProto
INPUTS = {  # operator -> attribute that became its last input
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum", "ReduceMean", "ReduceL2"), "axes"),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd"), "axes"),
    "Split": "split",
}
EXPORT = "export the model again with optimum or torch.onnx, without ONNX Runtime's optimisations"


def read(path: Path) -> Program:
    """Return the program of a file; raise CheckpointError for what cannot be read."""
    require("onnx")
    import onnx

    where = str(path)
    try:
        model = onnx.load_model_from_string(read_regular(path, MOST_BYTES))
    except CheckpointError:
        raise
    except Exception as error:  # of protobuf
        raise CheckpointError(f"not an ONNX file: {reason(error)}", where=where) from error
    opset = _check(model, where)
    constants = {t.name: _array(t, path) for t in model.graph.initializer}
    nodes = []
    for i, proto in enumerate(model.graph.node):
        node = _node(proto, i, path)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node, where)
        else:
            nodes.append(_modern(node, opset, constants))
    given = [v for v in model.graph.input if v.name not in constants]
    return Program(
        where=where,
        nodes=nodes,
        constants=constants,
        inputs={value.name: _shape(value) for value in given},
        outputs=[value.name for value in model.graph.output],
    )


def _check(model, where: str) -> int:
    """Refuse files of other dialects; returns the opset."""
    versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    opset = versions.get("ai.onnx", 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise CheckpointError(
            f"ONNX opset {opset} is not supported",
            where=where,
            hint=f"export with an opset from {OPSETS[0]} to {OPSETS[1]}",
        )
    if not model.graph.output:
        raise CheckpointError("the ONNX graph has no output", where=where)
    if model.functions:
        raise CheckpointError(
            f"ONNX function {model.functions[0].name!r} is not supported", where=where, hint=EXPORT
        )
    if model.graph.sparse_initializer:
        raise CheckpointError("sparse ONNX initializers are not supported", where=where)
    return opset


def _node(proto, number: int, path: Path) -> Node:
    import onnx

    name = proto.name or f"node {number}"
    if proto.domain not in ("", "ai.onnx"):
        raise CheckpointError(
            f"operator {proto.domain}.{proto.op_type} is not understood, node {name!r}",
            where=str(path),
            hint=EXPORT,
        )
    attrs = {}
    for a in proto.attribute:
        if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise CheckpointError(
                f"operator {proto.op_type} has a subgraph, node {name!r}: not supported",
                where=str(path),
            )
        value = onnx.helper.get_attribute_value(a)
        attrs[a.name] = _array(value, path) if isinstance(value, onnx.TensorProto) else value
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attrs)


def _modern(node: Node, opset: int, constants: dict[str, np.ndarray]) -> Node:
    """Return a node as the newest opset has it: lists of axes are inputs."""
    attrs, inputs = dict(node.attrs), node.inputs
    key = INPUTS.get(node.op)
    if key in attrs:
        name = f"{key} of {node.outputs[0]}"
        constants[name] = np.array(attrs.pop(key), np.int64)
        inputs = (*inputs, name)
    if node.op == "Softmax" and opset < 13:
        attrs.setdefault("axis", 1)
    return Node(node.op, node.name, inputs, node.outputs, attrs)


def _constant(node: Node, where: str) -> np.ndarray:
    for key, kind in (("value", None), ("value_float", np.float32), ("value_int", np.int64)):
        if key in node.attrs:
            return np.asarray(node.attrs[key], kind)
    for key, kind in (("value_floats", np.float32), ("value_ints", np.int64)):
        if key in node.attrs:
            return np.array(node.attrs[key], kind)
    raise CheckpointError(f"constant of node {node.name!r} is not a tensor", where=where)


def _array(tensor, path: Path) -> np.ndarray:
    """Return a tensor of the file, or of a file beside it, as NumPy; float16 as float32."""
    import onnx

    where = f"{path}, tensor {tensor.name!r}"
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = _external(tensor, path)
        array = np.array(onnx.numpy_helper.to_array(tensor))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot read it: {reason(error)}", where=where) from error
    if array.dtype.kind not in "fiub" or array.dtype.name not in np.sctypeDict:
        raise CheckpointError(
            f"its type {onnx.TensorProto.DataType.Name(tensor.data_type)} is not supported",
            where=where,
        )
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _external(tensor, path: Path):
    """Return a tensor with the bytes that lie in another file of the directory."""
    import onnx

    about = {entry.key: entry.value for entry in tensor.external_data}
    name = about.get("location", "")
    file = Folder(path.parent).file(name, named_by=str(path))
    if file is None:
        raise CheckpointError(f"no file {name!r}, which holds weights", where=str(path))
    start = int(about.get("offset", 0))
    length = int(about.get("length", file.stat().st_size - start))
    if start < 0 or length < 0 or start + length > file.stat().st_size:
        raise CheckpointError(f"tensor {tensor.name!r} lies beyond the end of it", where=str(file))
    with file.open("rb") as stream:
        stream.seek(start)
        data = stream.read(length)
    whole = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    whole.raw_data = data
    return whole


def _shape(value) -> tuple[int | None, ...]:
    """Return the extents of an input; None where they are free."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
