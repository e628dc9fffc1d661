"""Mean over each sequence's tokens, kept fine: RHE(sum * 2^k / length).

k >= 8 fraction bits: the mean is never rounded to int8.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import check_fits, round_divide
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp, Kernel

NAME = "mean_pool"
MIN_FRACTION_BITS = 8


def reference(x: np.ndarray, cu_seqlens: np.ndarray, *, fraction_bits: int) -> np.ndarray:
    """x int16 [n, C], cu_seqlens int32 [batch + 1] -> int32 [batch, C] at scale / 2^fraction_bits.

    The sum is int32, the shifted sum int64. Sequences are not empty.
    """
    offsets = np.asarray(cu_seqlens, np.int64)
    total = np.add.reduceat(x.astype(np.int64), offsets[:-1], axis=0)
    check_fits(total, "int32", NAME, "sum")
    mean = round_divide(total << fraction_bits, np.diff(offsets)[:, None])
    return check_fits(mean, "int32", NAME, "mean").astype(np.int32)


def bounds(x: Interval, cu_seqlens: Interval, *, fraction_bits: int) -> Interval:
    """Interval of the mean: min x <= mean <= max x (lemma: a mean lies between its terms).

    cu_seqlens  interval of the sequence lengths
    """
    if fraction_bits < MIN_FRACTION_BITS:
        raise RangeError(f"fraction_bits {fraction_bits} is below {MIN_FRACTION_BITS}", where=NAME)
    longest = cu_seqlens.max
    sums = Interval(np.minimum(x.low, 0) * longest, np.maximum(x.high, 0) * longest)
    sums.fits("int32", NAME, "sum")
    scale = 2**fraction_bits
    return Interval(x.low * scale, x.high * scale).fits("int32", NAME, "mean")


def kernel(attrs: dict, isa, decisions: dict):
    """PrimFunc (x int16 [b, 8, W], cu_seqlens, out int32 [s, 8, W]); the quotient bit by bit."""
    from tvm.script import tirx as T

    width, lanes, bits = attrs["width"], isa.lanes, attrs["fraction_bits"]
    # |sum| < 2^15 * max_length, shifted by `bits`; rounded half to even below
    quotient_bits = 15 + int(attrs["max_length"]).bit_length() + bits

    @T.prim_func(s_tir=True)
    def pool(x_: T.handle, cu_: T.handle, out_: T.handle):
        blocks = T.int32()
        offsets = T.int32()
        sequences = T.int32()
        x = T.match_buffer(x_, (blocks, 8, width), "int16")
        cu = T.match_buffer(cu_, (offsets,), "int32")
        out = T.match_buffer(out_, (sequences, 8, width), "int32")
        rows = T.decl_buffer((blocks * 8, width), "int16", data=x.data)
        pooled = T.decl_buffer((sequences * 8, width), "int32", data=out.data)
        for s in T.parallel(sequences * 8):
            for chunk in T.serial(width // lanes):
                pooled[s, T.ramp(chunk * lanes, 1, lanes)] = T.broadcast(0, lanes)
            if s < offsets - 1:
                length: T.let = T.cast(cu[s + 1] - cu[s], "int64")
                for chunk in T.serial(width // lanes):
                    total = T.alloc_buffer((lanes,), "int32", scope="local")
                    size = T.alloc_buffer((lanes,), "int64", scope="local")
                    rest = T.alloc_buffer((lanes,), "int64", scope="local")
                    quotient = T.alloc_buffer((lanes,), "int64", scope="local")
                    for lane in T.vectorized(lanes):
                        total[lane] = 0
                    for t in T.serial(cu[s + 1] - cu[s]):
                        for lane in T.vectorized(lanes):
                            total[lane] = total[lane] + T.cast(
                                rows[cu[s] + t, chunk * lanes + lane], "int32"
                            )
                    for lane in T.vectorized(lanes):
                        size[lane] = T.cast(T.max(total[lane], 0 - total[lane]), "int64")
                        rest[lane] = T.int64(0)
                        quotient[lane] = T.int64(0)
                    for k in T.serial(quotient_bits):
                        for lane in T.vectorized(lanes):
                            rest[lane] = (
                                rest[lane]
                                + rest[lane]
                                + (
                                    (
                                        (size[lane] << T.int64(bits))
                                        >> T.int64(quotient_bits - 1 - k)
                                    )
                                    & T.int64(1)
                                )
                            )
                        for lane in T.vectorized(lanes):
                            quotient[lane] = (
                                quotient[lane]
                                + quotient[lane]
                                + T.Select(rest[lane] >= length, T.int64(1), T.int64(0))
                            )
                        for lane in T.vectorized(lanes):
                            rest[lane] = T.Select(
                                rest[lane] >= length, rest[lane] - length, rest[lane]
                            )
                    for lane in T.vectorized(lanes):  # half to even is symmetric in the sign
                        quotient[lane] = quotient[lane] + T.Select(
                            rest[lane] + rest[lane] > length,
                            T.int64(1),
                            T.Select(
                                rest[lane] + rest[lane] < length,
                                T.int64(0),
                                quotient[lane] & T.int64(1),
                            ),
                        )
                    for lane in T.vectorized(lanes):
                        pooled[s, chunk * lanes + lane] = T.cast(
                            T.Select(total[lane] < 0, T.int64(0) - quotient[lane], quotient[lane]),
                            "int32",
                        )

    return pool


def cuda(attrs: dict, decisions: dict):
    """PrimFunc for GPUs (x, cu_seqlens, out, counts): one thread per channel of a sequence."""
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    from intformer.backends.cuda import kernel as gpu

    width, bits = attrs["width"], attrs["fraction_bits"]
    quotient_bits = 15 + int(attrs["max_length"]).bit_length() + bits
    threads = 128
    across = -(-width // threads)
    zero, one = tirx.const(0, "int64"), tirx.const(1, "int64")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        rows = tirx.Var("rows", "int32")
        x = gpu.argument(0, (rows, width), "int16")
        cu = gpu.argument(1, (rows,), "int32")
        out = gpu.argument(2, (rows, width), "int32")
        counts = gpu.argument(3, (len(gpu.COUNTS),), "int32")
        gpu.launch([["sequence", 1, 1], ["one", 1, across], ["one", 1, 1]], threads, "sequence")
        block_x = T.thread_binding(gpu.UNBOUNDED // 4 // width, thread="blockIdx.x")
        block_y = T.thread_binding(across, thread="blockIdx.y")
        thread_x = T.thread_binding(threads, thread="threadIdx.x")
        with block_x as s, block_y as part, thread_x as thread:
            column = T.bind(part * threads + thread)
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


OP = IntOp(
    NAME,
    reference,
    bounds,
    kernels={"cpu": Kernel(kernel), "cuda": Kernel(cuda)},
    by_sequence=True,
    clears=True,
    source="sentence-transformers mean pooling",
)
