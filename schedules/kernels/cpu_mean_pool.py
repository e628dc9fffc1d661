"""Mean over the tokens of a sequence on CPUs: relay_ops.mean_pool, the quotient bit by bit."""

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK
from intformer.schedules.isa import Isa

# Stages of the kernel, as macros of TVMScript: loops here are loops of the kernel. Buffers hold one
# number per lane.


@T.macro
def add_up(lanes, rows, total, first, count, column):
    """Sum of `count` rows from `first` on."""
    for lane in T.vectorized(lanes):
        total[lane] = 0
    for t in T.serial(count):
        for lane in T.vectorized(lanes):
            total[lane] = total[lane] + T.cast(rows[first + t, column + lane], "int32")


@T.macro
def divide(lanes, size, rest, quotient, length, bits, quotient_bits):
    """floor(size 2^bits / length) and what is left."""
    for k in T.serial(quotient_bits):
        for lane in T.vectorized(lanes):
            rest[lane] = (
                rest[lane]
                + rest[lane]
                + (((size[lane] << T.int64(bits)) >> T.int64(quotient_bits - 1 - k)) & T.int64(1))
            )
        for lane in T.vectorized(lanes):
            quotient[lane] = (
                quotient[lane]
                + quotient[lane]
                + T.Select(rest[lane] >= length, T.int64(1), T.int64(0))
            )
        for lane in T.vectorized(lanes):
            rest[lane] = T.Select(rest[lane] >= length, rest[lane] - length, rest[lane])


@T.macro
def round_half_even(lanes, rest, quotient, length):
    """Round up above one half, and to even at one half; it is symmetric in the sign."""
    for lane in T.vectorized(lanes):
        quotient[lane] = quotient[lane] + T.Select(
            rest[lane] + rest[lane] > length,
            T.int64(1),
            T.Select(rest[lane] + rest[lane] < length, T.int64(0), quotient[lane] & T.int64(1)),
        )


def build(attrs: dict, isa: Isa, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel (x int16 [b, 8, W], cu_seqlens, out int32 [s, 8, W])."""
    width, lanes, bits = attrs["width"], isa.lanes, attrs["fraction_bits"]
    # |sum| < 2^15 * max_length, shifted by `bits`
    quotient_bits = 15 + int(attrs["max_length"]).bit_length() + bits

    @T.prim_func(s_tir=True)
    def pool(x_: T.handle, cu_: T.handle, out_: T.handle):
        blocks = T.int32()
        offsets = T.int32()
        sequences = T.int32()
        x = T.match_buffer(x_, (blocks, BLOCK, width), "int16")
        cu = T.match_buffer(cu_, (offsets,), "int32")
        out = T.match_buffer(out_, (sequences, BLOCK, width), "int32")
        rows = T.decl_buffer((blocks * BLOCK, width), "int16", data=x.data)
        pooled = T.decl_buffer((sequences * BLOCK, width), "int32", data=out.data)
        for s in T.parallel(sequences * BLOCK):
            for chunk in T.serial(width // lanes):
                pooled[s, T.ramp(chunk * lanes, 1, lanes)] = T.broadcast(0, lanes)
            if s < offsets - 1:
                length: T.let = T.cast(cu[s + 1] - cu[s], "int64")
                for chunk in T.serial(width // lanes):
                    total = T.alloc_buffer((lanes,), "int32", scope="local")
                    size = T.alloc_buffer((lanes,), "int64", scope="local")
                    rest = T.alloc_buffer((lanes,), "int64", scope="local")
                    quotient = T.alloc_buffer((lanes,), "int64", scope="local")
                    add_up(lanes, rows, total, cu[s], cu[s + 1] - cu[s], chunk * lanes)
                    for lane in T.vectorized(lanes):
                        size[lane] = T.cast(T.max(total[lane], 0 - total[lane]), "int64")
                        rest[lane] = T.int64(0)
                        quotient[lane] = T.int64(0)
                    divide(lanes, size, rest, quotient, length, bits, quotient_bits)
                    round_half_even(lanes, rest, quotient, length)
                    for lane in T.vectorized(lanes):
                        pooled[s, chunk * lanes + lane] = T.cast(
                            T.Select(total[lane] < 0, T.int64(0) - quotient[lane], quotient[lane]),
                            "int32",
                        )

    return pool
