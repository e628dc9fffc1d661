"""Kernels as plain functions of C, for static libraries: no packed arguments, threads or heap.

A kernel becomes `void SYMBOL(pointers, sizes, scratch)`: a pointer for each argument of its step,
an int32 for each size that differs from run to run, and memory that the caller lends it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm_ffi import structural_map

from intformer.backends.cpu import codegen
from intformer.backends.cpu.backend import CpuTarget
from intformer.backends.cpu.lowering import lowered
from intformer.errors import CompileError
from intformer.relay_ops.expr import APART, STACK

ON_STACK = 1024  # bytes: TVM's limit too; larger arrays of a kernel are in the memory it is lent
# the end of TVM's pipeline, which makes packed arguments out of the buffers
PACKED = ("tirx.MakePackedAPI", "tirx.FP8StorageLegalize", "tirx.BF16StorageLegalize")
ENTRY = "tirx.is_entry_func"  # of a function that TVM would look for by another name


@dataclass(frozen=True)
class PlainKernel:
    """A kernel as a function of C.

    symbol   its name
    object   its object file
    sizes    (argument, dimension) of each int32 parameter
    scratch  bytes of the memory that it is lent
    """

    symbol: str
    object: Path
    sizes: tuple[tuple[int, int], ...]
    scratch: int


def generate(
    module: tvm.IRModule,
    spec: CpuTarget,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, PlainKernel]:
    """Write the object file of every scheduled kernel into `folder`; return kernels by symbol.

    tell  called with a line of text for every kernel that is compiled
    """
    made = {}
    for number, (var, function) in enumerate(module.functions.items(), 1):
        name = var.name_hint
        made[name] = _generated(function, spec, folder, name)
        tell(f"kernel {number}/{len(module.functions)}: {name}")
    return made


def _generated(function: tirx.PrimFunc, spec: CpuTarget, folder: Path, name: str) -> PlainKernel:
    function = _on_one_thread(function).with_attr("global_symbol", name)
    module = lowered(tvm.IRModule({name: function}), spec.backend)
    target = tvm.target.Target(dict(spec.tvm))
    config = {"tirx.disable_storage_rewrite": APART in function.attrs}
    with tvm.transform.PassContext(config=config, disabled_pass=list(PACKED)):
        pipeline, finish, _ = tirx.get_tir_pipeline("s_tir")
        (flat,) = pipeline(
            tirx.transform.BindTarget(target.with_host(target))(module)
        ).functions.values()
        sizes = _sizes(function)
        body, scratch, bytes_lent = _with_scratch(flat.body, spec.backend.align)
        plain = _with_pointers(flat, body, list(sizes), scratch)
        module = finish()(tvm.IRModule({name: plain}))
    built = tvm.get_global_func("target.build.llvm")(module, target)
    path = folder / f"{name}.o"
    codegen.write(path, codegen.object_of(built))
    return PlainKernel(name, path, tuple(sizes.values()), bytes_lent)


def _on_one_thread(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a kernel whose tasks follow one another."""

    def serial(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        about = (loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
        return tirx.For(*about, annotations=loop.annotations)

    return function.with_body(structural_map(function.body, (tirx.For, serial)))


def _sizes(function: tirx.PrimFunc) -> dict[tirx.Var, tuple[int, int]]:
    """Return the sizes that differ from run to run, each with where it is found first."""
    found: dict[tirx.Var, tuple[int, int]] = {}
    for argument, buffer in enumerate(function.params):
        for dimension, size in enumerate(buffer.ty.shape):
            if isinstance(size, tirx.Var):
                if str(size.ty.dtype) != "int32":
                    raise CompileError(
                        f"size {size} does not fit into int32", where=f"argument {argument}"
                    )
                found.setdefault(size, (argument, dimension))
    return found


def _with_scratch(body: tirx.Stmt, align: int) -> tuple[tirx.Stmt, tirx.Var, int]:
    """Return the body with its large arrays in memory that is lent, that memory, and its bytes."""
    scratch = tirx.Var("scratch", PointerType(PrimType("uint8"), "global"))
    on_stack = {name: tirx.const(value, "bool") for name, value in STACK.items()}
    end = 0

    def placed(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        nonlocal end
        kind, elements = allocation.buffer.ty, 1
        for size in kind.shape:
            elements *= int(size)
        needed = elements * tvm.DataType(str(kind.dtype)).bits // 8
        if needed <= ON_STACK or allocation.annotations.keys() & STACK.keys():
            return tirx.AllocBuffer(allocation.buffer, annotations=on_stack)
        at, end = end, end + -(-needed // align) * align
        pointer = PointerType(kind.dtype, "global")
        lent = tirx.call_intrin(pointer, "tirx.handle_add_byte_offset", scratch, at)
        return tirx.DeclBuffer(allocation.buffer, data=lent)

    return structural_map(body, (tirx.AllocBuffer, placed)), scratch, end


def _with_pointers(
    function: tirx.PrimFunc, body: tirx.Stmt, sizes: list[tirx.Var], scratch: tirx.Var
) -> tirx.PrimFunc:
    """Return a function of pointers and numbers in the place of one of buffers."""
    pointers = [
        tirx.Var(f"{buffer.name}_data", PointerType(buffer.ty.dtype, "global"))
        for buffer in function.params
    ]
    declared = [
        tirx.DeclBuffer(buffer, data=pointer)
        for buffer, pointer in zip(function.params, pointers, strict=True)
    ]
    plain = tirx.PrimFunc([*pointers, *sizes, scratch], tirx.SeqStmt([*declared, body]))
    for name, value in function.attrs.items():
        if name != ENTRY:
            plain = plain.with_attr(name, value)
    return plain
