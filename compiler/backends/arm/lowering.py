"""What our own TIR ops become on 64-bit ARM: LLVM does not find sqrdmulh by itself."""

from tvm.script import tirx as T

from intformer.relay_ops import expr
from intformer.relay_ops.expr import as_type

HALVES = 8  # int16 lanes of a register


def rounded_product(call):
    """Lower MUL_ROUND: sqrdmulh where the lanes fill registers.

    It doubles the product and takes the rounded high half, (2 a b + 2^15) >> 16, which is the
    same number. It saturates where both are -2^15, which the op leaves out.
    """
    lanes = expr.lanes_of(call)
    if lanes % HALVES:
        return expr.rounded_product(call)
    index = T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sqrdmulh")
    return T.call_llvm_pure_intrin(index, *call.args, dtype=f"int16x{lanes}")


def sum32(call):
    """Lower ADD32: in uint32, so that LLVM keeps the sum in 32 bits and the product after it too.

    smull multiplies 32 x 32 bits; there is no product of 64-bit lanes.
    """
    a, b = (as_type(x, "uint32") for x in call.args)
    return as_type(a + b, "int32")


def shift32(call):
    """Lower SHIFT32, in uint32 for the same reason."""
    x, bits = (as_type(arg, "uint32") for arg in call.args)
    return as_type(x << bits, "int32")


LOWERING = {
    expr.MUL_HIGH: expr.high_product,  # smull, smull2, uzp2
    expr.MUL_ROUND: rounded_product,
    expr.ADD32: sum32,
    expr.SHIFT32: shift32,
}
