"""Takes quantization off a program: what is left computes in float, and integers are kept apart.

    constant -> DequantizeLinear; Cast of int8 and a product    Program.stored
    Gather of int8 rows -> DequantizeLinear                     the same, the product comes first
    QuantizeLinear -> DequantizeLinear                          Program.grids
    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul       MatMul with the stored integers

Whatever is constant is evaluated; a constant that is moved keeps its integers.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from intformer.frontend.onnx.program import Node, Program, Stored
from intformer.ir.graph import Grid

INTEGERS = (np.int8, np.uint8)
FLOAT = (1, 10, 11, 16)  # onnx.TensorProto: float32, float16, float64, bfloat16


def rewritten(program: Program) -> Program:
    """Return the program in float."""
    program = _dynamic(program)
    program = _gathered(program)
    program = _rounded(program)
    program = _folded(program)
    return program.with_nodes(program.ancestors(program.outputs))


# -- dynamic quantization --------------------------------------------------------------------------


def _dynamic(p: Program) -> Program:
    """Multiply with unrounded activations: their scale is 1 and their zero point 0."""
    unrounded, nodes = set(), []
    for node in p.nodes:
        if node.op == "DynamicQuantizeLinear":
            out, scale, zero = node.outputs
            p.constants[scale], p.constants[zero] = (
                np.float32(1).reshape(()),
                np.zeros((), np.uint8),
            )
            unrounded.add(out)
            nodes.append(Node("Identity", node.name, node.inputs, (out,)))
        elif node.op == "MatMulInteger":
            nodes.append(_product(p, node, unrounded))
        else:
            nodes.append(node)
    return p.with_nodes(nodes)


def _product(p: Program, node: Node, unrounded: set[str]) -> Node:
    x, weight = node.inputs[:2]
    array = p.constants.get(weight)
    if x not in unrounded or array is None:
        raise p.refusal("its operands are not an activation and a constant", node)
    zero = p.constants.get(node.inputs[3], 0) if len(node.inputs) > 3 and node.inputs[3] else 0
    name = f"{weight} less its zero point"
    _keep(p, name, array, np.float32(1), zero, weight, node)
    return Node("MatMul", node.name, (x, name), node.outputs)


def _keep(p: Program, name: str, array, scale, zero, source: str, node: Node) -> None:
    """Make a constant of integers and their scale."""
    if np.unique(zero).size > 1:
        raise p.refusal(f"{source!r} has several zero points", node)
    zero = int(np.ravel(zero)[0])
    integers, low = array.astype(np.int16) - zero, int(np.iinfo(array.dtype).min)
    p.stored[name] = Stored(integers, np.asarray(scale, np.float32), zero, low, source)
    p.constants[name] = integers * p.stored[name].scale


# -- tables ----------------------------------------------------------------------------------------


def _gathered(p: Program) -> Program:
    """Dequantize tables before their rows are taken."""
    made = {node.outputs[0]: node for node in p.nodes}
    nodes = []
    for node in p.nodes:
        source = made.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if (
            source is not None
            and source.op == "Gather"
            and source.inputs[0] in p.constants
            and p.constants[node.inputs[1]].size == 1
        ):
            table = f"{source.inputs[0]} as float"
            nodes.append(
                replace(node, inputs=(source.inputs[0], *node.inputs[1:]), outputs=(table,))
            )
            nodes.append(replace(source, inputs=(table, source.inputs[1]), outputs=node.outputs))
        else:
            nodes.append(node)
    return p.with_nodes(nodes)


# -- static quantization ---------------------------------------------------------------------------


def _rounded(p: Program) -> Program:
    """Take off pairs of QuantizeLinear and DequantizeLinear behind activations."""
    made = {node.outputs[0]: node for node in p.nodes}
    nodes = []
    for node in p.nodes:
        source = made.get(node.inputs[0])
        if node.op == "DequantizeLinear" and source is not None and source.op == "QuantizeLinear":
            p.grids[node.outputs[0]] = _grid(p, source, node)
            nodes.append(Node("Identity", node.name, source.inputs[:1], node.outputs))
        else:
            nodes.append(node)
    return p.with_nodes(nodes)


def _grid(p: Program, q: Node, dq: Node) -> Grid:
    """Return the grid of a pair; raise where it is not one grid of 8 bits."""
    known = [_parameters(p, node) for node in (q, dq)]
    (scale, zero), (other, its_zero) = known
    if scale.size != 1 or other.size != 1:
        raise p.refusal("activations with a scale per channel are not supported", q)
    if scale != other or zero != its_zero or zero.dtype != its_zero.dtype:
        raise p.refusal(f"{dq.name!r} undoes another scale than was applied", q)
    if zero.dtype not in INTEGERS:
        raise p.refusal(f"activations of {zero.dtype} are not supported, only of 8 bits", q)
    if not (np.isfinite(scale) and scale > 0):
        raise p.refusal(f"the scale {float(scale)} is not above 0", q)
    unsigned = np.iinfo(zero.dtype).min - np.iinfo(np.int8).min
    return Grid(float(scale), int(zero) - int(unsigned), q.inputs[0])


def _parameters(p: Program, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point, whose type is that of the integers."""
    scale = p.constants.get(node.inputs[1])
    zero = np.zeros((), np.uint8)
    if len(node.inputs) > 2 and node.inputs[2]:
        zero = p.constants.get(node.inputs[2])
    if scale is None or zero is None:
        raise p.refusal("its scale or zero point is not constant", node)
    if node.attrs.get("block_size"):
        raise p.refusal("quantization in blocks is not supported", node)
    return scale, zero


# -- constants -------------------------------------------------------------------------------------


def _folded(p: Program) -> Program:
    """Evaluate what is constant."""
    nodes = []
    for node in p.nodes:
        if not all(name in p.constants for name in node.inputs if name) or not node.inputs:
            nodes.append(node)
            continue
        if (fold := FOLDS.get(node.op)) and fold(p, node):
            continue
        arrays = [p.constants[name] if name else None for name in node.inputs]
        p.constants.update(zip(node.outputs, p.apply(node, arrays), strict=False))
    return p.with_nodes(nodes)


def _dequantize(p: Program, node: Node) -> bool:
    source, array = node.inputs[0], p.constants[node.inputs[0]]
    scale, zero = _parameters(p, node)
    if array.ndim != 2 or array.dtype not in INTEGERS:
        return False
    if scale.size > 1:
        axis = int(node.attrs.get("axis", 1)) % array.ndim
        if scale.ndim != 1 or scale.size != array.shape[axis]:
            raise p.refusal(f"scales {list(scale.shape)} do not fit {list(array.shape)}", node)
        scale = np.expand_dims(scale, 1 - axis)
    _keep(
        p,
        node.outputs[0],
        array,
        scale.reshape(scale.shape if scale.size > 1 else ()),
        zero,
        source,
        node,
    )
    return True


def _cast(p: Program, node: Node) -> bool:
    array = p.constants[node.inputs[0]]
    if array.dtype not in INTEGERS or array.ndim != 2 or int(node.attrs["to"]) not in FLOAT:
        return False
    _keep(p, node.outputs[0], array, np.float32(1), 0, node.inputs[0], node)
    return True


def _scaled(p: Program, node: Node) -> bool:
    """Product of stored integers and a scale."""
    for name, other in (node.inputs, node.inputs[::-1]):
        kept, factor = p.stored.get(name), p.constants[other]
        if kept is not None and (factor.size == 1 or factor.ndim <= kept.integers.ndim):
            factor = factor.reshape(()) if factor.size == 1 else np.atleast_2d(factor)
            scale = (kept.scale * factor).astype(np.float32)
            p.stored[node.outputs[0]] = replace(kept, scale=scale)
            p.constants[node.outputs[0]] = kept.integers * scale
            return True
    return False


def _recentred(p: Program, node: Node) -> bool:
    """Stored integers less a zero point."""
    kept, zero = p.stored.get(node.inputs[0]), p.constants[node.inputs[1]]
    if kept is None or zero.size != 1 or kept.zero or kept.scale.size > 1 or kept.scale != 1:
        return False
    number = float(zero.ravel()[0])
    if number != int(number):
        return False
    integers = kept.integers - np.int16(number)
    p.stored[node.outputs[0]] = replace(kept, integers=integers, zero=int(number))
    p.constants[node.outputs[0]] = integers.astype(np.float32)
    return True


def _transposed(p: Program, node: Node) -> bool:
    kept = p.stored.get(node.inputs[0])
    if kept is None:
        return False
    scale = kept.scale.T if kept.scale.ndim else kept.scale
    p.stored[node.outputs[0]] = replace(kept, integers=kept.integers.T, scale=scale)
    p.constants[node.outputs[0]] = p.constants[node.inputs[0]].T
    return True


def _same(p: Program, node: Node) -> bool:
    name, out = node.inputs[0], node.outputs[0]
    p.constants[out] = p.constants[name]
    if name in p.stored:
        p.stored[out] = p.stored[name]
    return True


FOLDS: dict[str, Callable[[Program, Node], bool]] = {
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
    "Mul": _scaled,
    "Sub": _recentred,
    "Transpose": _transposed,
    "Identity": _same,
}
