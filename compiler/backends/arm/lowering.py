"""What our own TIR ops become on 64-bit ARM: LLVM does not find sqrdmulh by itself."""

from tvm import tirx
from tvm.script import tirx as T

from intformer.backends.cpu import in_32_bits
from intformer.relay_ops import expr

REGISTER = 8  # int16 lanes; LLVM ends the process at vectors of more


def rounded_product(call):
    """Lower MUL_ROUND: sqrdmulh, on vectors of a register and less.

    It doubles the product and takes the rounded high half, (2 a b + 2^15) >> 16, which is the
    same number. It saturates where both are -2^15, which the op leaves out.
    """
    lanes = expr.lanes_of(call)
    if lanes < REGISTER // 2 or lanes & (lanes - 1):
        return expr.rounded_product(call)
    return _sqrdmulh(*call.args, lanes)


def _sqrdmulh(a, b, lanes: int):
    if lanes > REGISTER:
        parts = []
        for half in ("tirx.vectorlow", "tirx.vectorhigh"):
            x, y = (tirx.call_intrin(f"int16x{lanes // 2}", half, whole) for whole in (a, b))
            parts.append(_sqrdmulh(x, y, lanes // 2))
        return tirx.call_intrin(f"int16x{lanes}", "tirx.vectorcombine", *parts)
    index = T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sqrdmulh")
    return T.call_llvm_pure_intrin(index, a, b, dtype=f"int16x{lanes}")


LOWERING = {
    expr.MUL_HIGH: expr.high_product,  # smull, smull2, uzp2
    expr.MUL_ROUND: rounded_product,
    expr.ADD32: in_32_bits.total,
    expr.SHIFT32: in_32_bits.shifted,
}
