"""Mean over the tokens of a sequence on GPUs: relay_ops.mean_pool."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.schedules.isa import Gpu

THREADS = 128  # of a block: so many channels


def build(attrs: dict, isa: Gpu, decisions: dict | None = None) -> tirx.PrimFunc:
    """PrimFunc (x, cu_seqlens, out, counts): one thread per channel of a sequence."""
    width, bits = attrs["width"], attrs["fraction_bits"]
    quotient_bits = 15 + int(attrs["max_length"]).bit_length() + bits
    across = -(-width // THREADS)
    zero, one = tirx.const(0, "int64"), tirx.const(1, "int64")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        rows = tirx.Var("rows", "int32")
        x = gpu.argument(0, (rows, width), "int16")
        cu = gpu.argument(1, (rows,), "int32")
        out = gpu.argument(2, (rows, width), "int32")
        counts = gpu.argument(3, (len(gpu.COUNTS),), "int32")
        gpu.launch([["sequence", 1, 1], ["one", 1, across], ["one", 1, 1]], THREADS, "sequence")
        block_x = T.thread_binding(gpu.UNBOUNDED // 4 // width, thread="blockIdx.x")
        block_y = T.thread_binding(across, thread="blockIdx.y")
        thread_x = T.thread_binding(THREADS, thread="threadIdx.x")
        with block_x as s, block_y as part, thread_x as thread:
            column = T.bind(part * THREADS + thread)
            with T.If(tirx.all(s < counts[1], column < width)), T.Then():
                first = T.bind(cu[s])
                length = T.bind(tirx.Cast("int64", cu[s + 1] - first))
                total = gpu.local(1, "int32")
                rest, quotient = gpu.local(1, "int64"), gpu.local(1, "int64")
                T.buffer_store(total, 0, [0])
                with T.serial(cu[s + 1] - first) as t:
                    term = tirx.Cast("int32", x[first + t, column])
                    T.buffer_store(total, total[0] + term, [0])
                size = T.bind(tirx.Cast("int64", T.max(total[0], 0 - total[0])) << bits)
                T.buffer_store(rest, zero, [0])
                T.buffer_store(quotient, zero, [0])
                with T.serial(quotient_bits) as k:
                    bit = (size >> tirx.Cast("int64", quotient_bits - 1 - k)) & one
                    T.buffer_store(rest, rest[0] + rest[0] + bit, [0])
                    fits = T.bind(tirx.Select(rest[0] >= length, one, zero))
                    T.buffer_store(quotient, quotient[0] + quotient[0] + fits, [0])
                    T.buffer_store(rest, rest[0] - fits * length, [0])
                twice = T.bind(rest[0] + rest[0])  # half to even is symmetric in the sign
                tie = tirx.Select(twice < length, zero, quotient[0] & one)
                mean = T.bind(quotient[0] + tirx.Select(twice > length, one, tie))
                signed = tirx.Select(total[0] < 0, zero - mean, mean)
                T.buffer_store(out, tirx.Cast("int32", signed), [s, column])
    return builder.get()
