"""Our own TIR ops on CPUs: each back end has an op in the place of ours, which LLVM's rule lowers.

TVM keeps one rule per op for all that LLVM compiles for, so the ops themselves have none there: an
op that a back end forgets fails in code generation, and never becomes another chip's instruction.
"""

from functools import cache
from typing import TYPE_CHECKING

import tvm
from tvm import tirx
from tvm.ir import Call, Op
from tvm.tirx.op import register_intrin_lowering
from tvm_ffi import structural_map

from intformer.relay_ops.expr import register_op

if TYPE_CHECKING:
    from intformer.backends.cpu.backend import CpuBackend


def lowered(module: tvm.IRModule, backend: "CpuBackend") -> tvm.IRModule:
    """Return kernels that call the back end's ops in place of ours."""
    ops = _ops(backend)

    def exchange(call: Call) -> Call:
        name = ops.get(call.op.name) if isinstance(call.op, Op) else None
        return tirx.call_intrin(call.ty.dtype, name, *call.args) if name else call

    functions = {
        var: function.with_body(structural_map(function.body, (Call, exchange)))
        for var, function in module.functions.items()
    }
    return tvm.IRModule(functions)


@cache
def _ops(backend: "CpuBackend") -> dict[str, str]:
    """Register the ops of a back end, once; return our op -> its op."""
    ops = {}
    for name, lower in backend.lowering().items():
        ops[name] = f"{name}_{backend.name}"
        register_op(ops[name])
        register_intrin_lowering(ops[name], "llvm", f=lower)
    return ops
