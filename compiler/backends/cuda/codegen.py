"""Scheduled kernels for a GPU -> CUDA C -> machine code.

TVM's code generator writes the functions; what they call beside plain C is in prelude.cuh.
"""

import re
from pathlib import Path

import tvm

from intformer import knobs
from intformer.backends.cuda import (
    lowering,  # noqa: F401 (of our own ops)
    toolchain,
)
from intformer.backends.cuda.code import GpuCode
from intformer.backends.object_cache import ObjectCache
from intformer.errors import CompileError

PRELUDE = Path(__file__).parent / "prelude.cuh"
HEAD = re.compile(r'extern "C" __global__ void (__launch_bounds__\(\d+\)) (\w+)_kernel\(([^)]*)\)')
ARGUMENT = re.compile(r"a(\d+)_ptr$")


def generate(scheduled: tvm.IRModule, arch: str, cache: ObjectCache | None = None) -> GpuCode:
    """Return the code of all kernels; raise CompileError where none can be made.

    arch   such as "sm_75"
    cache  where results are kept from one compilation to the next; None: nowhere
    """
    text = source(scheduled, arch)
    built = toolchain.build(text, arch, cache)
    return GpuCode(text, built.cubin, built.ptx)


def source(scheduled: tvm.IRModule, arch: str) -> str:
    """Return the CUDA C of all kernels, prelude first."""
    parts = [PRELUDE.read_text()]
    parts += [_function(v.name_hint, f, arch) for v, f in scheduled.functions.items()]
    return "\n".join(parts)


def _function(name: str, func: tvm.tirx.PrimFunc, arch: str) -> str:
    """Return one kernel. It is called NAME and takes every argument of the PrimFunc, in order."""
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
    loops = {"tirx.UnrollLoop": {"explicit_unroll": False}}  # nvcc unrolls
    with tvm.transform.PassContext(config=loops), knobs.tvm_keeps_sources():
        built = tvm.compile(tvm.IRModule({name: func}), target=target).mod
    text = built.imports[0].inspect_source()
    head, *others = HEAD.finditer(text)
    text = text[others[-1].start() if others else head.start() :]  # definition, not declaration
    bounds, symbol, arguments = head.groups()
    if symbol != name or len(others) > 1:
        raise CompileError(
            f"TVM made {1 + len(others)} functions, {symbol}", where=f"kernel {name}"
        )
    given = {}
    for argument in arguments.split(","):
        given[int(ARGUMENT.search(argument.strip())[1])] = argument.strip()
    # TVM leaves out what a kernel does not use
    every = (given.get(i, f"void* __restrict__ a{i:02}_ptr") for i in range(len(func.params)))
    start = f'extern "C" __global__ void {bounds} {name}({", ".join(every)})'
    return HEAD.sub(lambda _: start, text, count=1)
