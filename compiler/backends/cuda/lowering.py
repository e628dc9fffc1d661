"""What our own TIR ops become in CUDA C."""

from tvm import tirx
from tvm.tirx.op import register_intrin_lowering

from intformer.relay_ops import expr


def high_product(call):
    """Lower MUL_HIGH: one instruction."""
    return tirx.call_pure_extern("int32", "__mulhi", *call.args)


register_intrin_lowering(expr.MUL_HIGH, "cuda", f=high_product)
register_intrin_lowering(expr.MUL_ROUND, "cuda", f=expr.rounded_product)
register_intrin_lowering(expr.ADD32, "cuda", f=expr.sum32)
register_intrin_lowering(expr.SHIFT32, "cuda", f=expr.shift32)
