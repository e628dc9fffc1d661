"""Sums and shifts of int32 that LLVM does not widen: they are made in uint32, which may wrap.

A widened sum would turn the 32 x 32 bit product that follows, one instruction on most chips, into a
64 x 64 bit one.
"""

from intformer.relay_ops.expr import as_type


def total(call):
    """Lower ADD32."""
    a, b = (as_type(x, "uint32") for x in call.args)
    return as_type(a + b, "int32")


def shifted(call):
    """Lower SHIFT32."""
    x, bits = (as_type(arg, "uint32") for arg in call.args)
    return as_type(x << bits, "int32")
