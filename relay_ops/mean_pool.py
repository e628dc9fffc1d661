"""Mean over each sequence's tokens, kept fine: RHE(sum * 2^k / length).

k >= 8 fraction bits: the mean is never rounded to int8.
"""

import numpy as np

from intformer.errors import RangeError
from intformer.relay_ops.fixedpoint import check_fits, round_divide
from intformer.relay_ops.interval import Interval
from intformer.relay_ops.op import IntOp

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


OP = IntOp(NAME, reference, bounds, kernel=kernel, source="sentence-transformers mean pooling")
