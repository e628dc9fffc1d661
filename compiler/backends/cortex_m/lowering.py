"""What our own TIR ops become on Cortex-M: LLVM finds smull and smmul in the plain expressions."""

from intformer.backends.cpu import in_32_bits
from intformer.relay_ops import expr

LOWERING = {
    expr.MUL_HIGH: expr.high_product,
    expr.MUL_ROUND: expr.rounded_product,
    expr.ADD32: in_32_bits.total,
    expr.SHIFT32: in_32_bits.shifted,
}
