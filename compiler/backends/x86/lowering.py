"""What our own TIR ops become on x86-64: LLVM does not find the instructions by itself."""

from tvm.script import tirx as T

from intformer.backends.cpu import in_32_bits
from intformer.relay_ops import expr
from intformer.relay_ops.expr import as_type, like

PMULHRSW = {  # lanes -> LLVM intrinsic; 8 lanes would need SSSE3
    16: "llvm.x86.avx2.pmul.hr.sw",
    32: "llvm.x86.avx512.pmul.hr.sw.512",
}


def high_product(call):
    """Lower MUL_HIGH: products of even and of odd lanes, then their high halves side by side."""
    a, b = call.args
    lanes = expr.lanes_of(call)
    if lanes % 2:
        return expr.high_product(call)
    wide = f"int64x{lanes // 2}"
    a, b = T.reinterpret(a, dtype=wide), T.reinterpret(b, dtype=wide)
    half = like(32, a)
    even = ((a << half) >> half) * ((b << half) >> half)
    odd = (a >> half) * (b >> half)
    even = as_type(as_type(even, "uint64") >> as_type(half, "uint64"), "int64")
    return T.reinterpret(even | (odd & like(-(1 << 32), odd)), dtype=f"int32x{lanes}")


def rounded_product(call):
    """Lower MUL_ROUND: one instruction where the lanes fill a register that has it."""
    lanes = expr.lanes_of(call)
    if name := PMULHRSW.get(lanes):
        index = T.llvm_lookup_intrinsic_id(name)
        return T.call_llvm_pure_intrin(index, *call.args, dtype=f"int16x{lanes}")
    return expr.rounded_product(call)


LOWERING = {
    expr.MUL_HIGH: high_product,
    expr.MUL_ROUND: rounded_product,
    expr.ADD32: in_32_bits.total,
    expr.SHIFT32: in_32_bits.shifted,
}
