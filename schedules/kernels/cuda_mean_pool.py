"""Mean over the tokens of a sequence on GPUs: relay_ops.mean_pool."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.schedules.isa import Gpu
from intformer.schedules.kernels import cuda_pool


def divided(rest, quotient, size, by, bits: int):
    """Emit size / by, rounded half to even, bit by bit; all int64, and size has `bits` bits.

    rest, quotient  registers
    """
    zero, one = tirx.const(0, "int64"), tirx.const(1, "int64")
    T.buffer_store(rest, zero, [0])
    T.buffer_store(quotient, zero, [0])
    with T.serial(bits) as k:
        bit = (size >> tirx.Cast("int64", bits - 1 - k)) & one
        T.buffer_store(rest, rest[0] + rest[0] + bit, [0])
        fits = T.bind(tirx.Select(rest[0] >= by, one, zero))
        T.buffer_store(quotient, quotient[0] + quotient[0] + fits, [0])
        T.buffer_store(rest, rest[0] - fits * by, [0])
    twice = T.bind(rest[0] + rest[0])  # half to even is symmetric in the sign
    tie = tirx.Select(twice < by, zero, quotient[0] & one)
    return T.bind(quotient[0] + tirx.Select(twice > by, one, tie))


def build(attrs: dict, isa: Gpu, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel of cuda_pool."""
    bits = attrs["fraction_bits"]
    quotient_bits = 15 + int(attrs["max_length"]).bit_length() + bits
    zero = tirx.const(0, "int64")

    def emit(x, cu, out, s, column) -> None:
        first = T.bind(cu[s])
        length = T.bind(tirx.Cast("int64", cu[s + 1] - first))
        total = gpu.local(1, "int32")
        rest, quotient = gpu.local(1, "int64"), gpu.local(1, "int64")
        T.buffer_store(total, 0, [0])
        with T.serial(cu[s + 1] - first) as t:
            term = tirx.Cast("int32", x[first + t, column])
            T.buffer_store(total, total[0] + term, [0])
        size = T.bind(tirx.Cast("int64", T.max(total[0], 0 - total[0])) << bits)
        mean = divided(rest, quotient, size, length, quotient_bits)
        signed = tirx.Select(total[0] < 0, zero - mean, mean)
        T.buffer_store(out, tirx.Cast("int32", signed), [s, column])

    return cuda_pool.pool(attrs["width"], "int16", "int32", emit)
