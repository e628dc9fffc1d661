"""Weighted sum over the tokens of a sequence on GPUs: relay_ops.weighted_pool."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.relay_ops.weighted_pool import dividend_bits
from intformer.schedules.isa import Gpu
from intformer.schedules.kernels import cuda_pool
from intformer.schedules.kernels.cuda_mean_pool import divided


def build(attrs: dict, isa: Gpu, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel of cuda_pool."""
    shift, rising, longest = attrs["shift"], bool(attrs["rising"]), int(attrs["max_length"])
    quotient_bits = dividend_bits(longest, rising, shift)
    zero = tirx.const(0, "int64")

    def emit(x, cu, divisor, out, s, column) -> None:
        first = T.bind(cu[s])
        length = T.bind(cu[s + 1] - first)
        by = T.bind(tirx.Cast("int64", divisor[length]))
        total, rest, quotient = (gpu.local(1, "int64") for _ in range(3))
        T.buffer_store(total, zero, [0])
        with T.serial(length) as t:
            term = tirx.Cast("int32", x[first + t, column])
            term = term * (t + 1) if rising else term
            T.buffer_store(total, total[0] + tirx.Cast("int64", term), [0])
        size = T.bind(T.max(total[0], zero - total[0]) << shift)
        pooled = divided(rest, quotient, size, by, quotient_bits)
        signed = tirx.Select(total[0] < zero, zero - pooled, pooled)
        T.buffer_store(out, tirx.Cast("int32", signed), [s, column])

    return cuda_pool.pool(attrs["width"], "int16", "int32", emit, table=longest + 1)
