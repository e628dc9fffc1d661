"""Weighted sum over the tokens of a sequence on CPUs: relay_ops.weighted_pool."""

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK
from intformer.relay_ops.weighted_pool import dividend_bits
from intformer.schedules.isa import Isa
from intformer.schedules.kernels.cpu_mean_pool import divide, round_half_even


@T.macro
def add_up(lanes, rows, total, first, count, column, step):
    """Sum of `count` rows from `first` on; weights 1, 1 + step, 1 + 2 step, ..."""
    for lane in T.vectorized(lanes):
        total[lane] = T.int64(0)
    for t in T.serial(count):
        for lane in T.vectorized(lanes):
            total[lane] = total[lane] + T.cast(
                T.cast(rows[first + t, column + lane], "int32") * (t * step + 1), "int64"
            )


def build(attrs: dict, isa: Isa, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel (x int16 [b, 8, W], cu_seqlens, divisor, out int32 [s, 8, W])."""
    width, lanes, shift = attrs["width"], isa.lanes, attrs["shift"]
    step = int(attrs["rising"])
    quotient_bits = dividend_bits(int(attrs["max_length"]), bool(step), shift)

    @T.prim_func(s_tir=True)
    def pool(x_: T.handle, cu_: T.handle, divisor_: T.handle, out_: T.handle):
        blocks = T.int32()
        offsets = T.int32()
        divisors = T.int32()
        sequences = T.int32()
        x = T.match_buffer(x_, (blocks, BLOCK, width), "int16")
        cu = T.match_buffer(cu_, (offsets,), "int32")
        divisor = T.match_buffer(divisor_, (divisors,), "int32")
        out = T.match_buffer(out_, (sequences, BLOCK, width), "int32")
        rows = T.decl_buffer((blocks * BLOCK, width), "int16", data=x.data)
        pooled = T.decl_buffer((sequences * BLOCK, width), "int32", data=out.data)
        for s in T.parallel(sequences * BLOCK):
            for chunk in T.serial(width // lanes):
                pooled[s, T.ramp(chunk * lanes, 1, lanes)] = T.broadcast(0, lanes)
            if s < offsets - 1:
                by: T.let = T.cast(divisor[cu[s + 1] - cu[s]], "int64")
                for chunk in T.serial(width // lanes):
                    total = T.alloc_buffer((lanes,), "int64", scope="local")
                    size = T.alloc_buffer((lanes,), "int64", scope="local")
                    rest = T.alloc_buffer((lanes,), "int64", scope="local")
                    quotient = T.alloc_buffer((lanes,), "int64", scope="local")
                    add_up(lanes, rows, total, cu[s], cu[s + 1] - cu[s], chunk * lanes, step)
                    for lane in T.vectorized(lanes):
                        size[lane] = T.max(total[lane], T.int64(0) - total[lane])
                        rest[lane] = T.int64(0)
                        quotient[lane] = T.int64(0)
                    divide(lanes, size, rest, quotient, by, shift, quotient_bits)
                    round_half_even(lanes, rest, quotient, by)
                    for lane in T.vectorized(lanes):
                        pooled[s, chunk * lanes + lane] = T.cast(
                            T.Select(
                                total[lane] < T.int64(0),
                                T.int64(0) - quotient[lane],
                                quotient[lane],
                            ),
                            "int32",
                        )

    return pool
