"""Read the tensor programs (TIR) of a library: do they hold integers alone?

Three faults are looked for, each with its function and expression:
  * a float type anywhere;
  * a division or remainder by what is not a constant: GPUs compute it in float;
  * below AVX2, a left shift by a variable amount in a vector loop, or of a vector: LLVM turns it
    into float there.
"""

import lzma
import warnings
from typing import TYPE_CHECKING

from intformer.proof.finding import Finding

if TYPE_CHECKING:
    import tvm

DIVISIONS = {"prim.Div", "prim.Mod", "prim.FloorDiv", "prim.FloorMod"}
VECTORIZED = 2  # tirx.ForKind


def load(compressed: bytes) -> "tvm.IRModule":
    """Return the module that a library carries in a section tir/VARIANT.json.xz."""
    import tvm

    from intformer.relay_ops import expr  # noqa: F401 (registers the operators of our own)

    module = tvm.ir.load_json(lzma.decompress(compressed).decode())
    if not isinstance(module, tvm.IRModule):
        raise TypeError(f"{type(module).__name__} in place of an IRModule")
    return module


def programs(module: "tvm.IRModule") -> set[str]:
    """Return the names of a module's functions, as symbols where they are PrimFuncs with one."""
    import tvm

    return {
        str(function.attrs["global_symbol"])
        if isinstance(function, tvm.tirx.PrimFunc) and "global_symbol" in (function.attrs or {})
        else f"{var.name_hint} ({type(function).__name__} without a symbol)"
        for var, function in module.functions.items()
    }


def check(module: "tvm.IRModule", *, vector_shifts: bool) -> list[Finding]:
    """Return every fault in the PrimFuncs of a module, each expression once.

    vector_shifts  the target can shift every lane by its own amount (AVX2 and newer)
    """
    from tvm_ffi import structural_walk

    found: dict[Finding, None] = {}  # in order, without repetition
    for var, function in module.functions.items():
        name = var.name_hint

        def look(node: object, name: str = name) -> None:
            if is_float(node):
                found[Finding(name, f"float type: {shown(node)}")] = None
            elif kind(node) in DIVISIONS and not is_constant(node.b):
                found[Finding(name, f"division by a variable: {shown(node)}")] = None
            elif not vector_shifts and kind(node) == "tirx.For" and node.kind == VECTORIZED:
                structural_walk(node.body, look_for_shift)
            elif not vector_shifts and is_vector_shift(node):
                look_for_shift(node)

        def look_for_shift(node: object, name: str = name) -> None:
            if kind(node) == "prim.LShift" and not is_constant(node.b):
                found[Finding(name, f"vector shift by a variable: {shown(node)}")] = None

        structural_walk(function, look)
    return list(found)


def kind(node: object) -> str:
    """Return the TVM type key of a node, "" for plain Python values."""
    info = getattr(type(node), "__tvm_ffi_type_info__", None)
    return info.type_key if info else ""


def is_float(node: object) -> bool:
    """Is it a float type, a buffer of floats, or an expression with a float value?"""
    dtype = getattr(node, "dtype", None) or getattr(getattr(node, "ty", None), "dtype", None)
    return "float" in str(dtype)


def is_vector_shift(node: object) -> bool:
    """Is it a left shift of more than one lane?"""
    return kind(node) == "prim.LShift" and node.ty.dtype.lanes != 1


def is_constant(node: object) -> bool:
    """Is it an integer constant, in one lane or in all?"""
    return kind(node) == "ir.IntImm" or (
        kind(node) == "prim.Broadcast" and kind(node.value) == "ir.IntImm"
    )


def shown(node: object) -> str:
    """Return a node as one short line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = " ".join(str(node).split())
    return line if len(line) <= 100 else f"{line[:97]}..."
