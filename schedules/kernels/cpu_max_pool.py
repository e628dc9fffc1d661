"""Maximum over the tokens of a sequence on CPUs: relay_ops.max_pool."""

from tvm import tirx
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK
from intformer.schedules.isa import Isa

TILE = 1024  # channels of one task: a row of them is read in one piece, and the maxima stay cached


def build(attrs: dict, isa: Isa, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel (x [b, 8, W], cu_seqlens, out [s, 8, W]), int16 or int32."""
    width, lanes, dtype = attrs["width"], isa.lanes, attrs["dtypes_out"][0]
    tiles = -(-width // TILE)

    @T.prim_func(s_tir=True)
    def pool(x_: T.handle, cu_: T.handle, out_: T.handle):
        blocks = T.int32()
        offsets = T.int32()
        sequences = T.int32()
        x = T.match_buffer(x_, (blocks, BLOCK, width), dtype)
        cu = T.match_buffer(cu_, (offsets,), "int32")
        out = T.match_buffer(out_, (sequences, BLOCK, width), dtype)
        rows = T.decl_buffer((blocks * BLOCK, width), dtype, data=x.data)
        pooled = T.decl_buffer((sequences * BLOCK, width), dtype, data=out.data)
        for task in T.parallel(sequences * BLOCK * tiles):
            s: T.let = task // tiles
            start: T.let = task % tiles * TILE
            chunks: T.let = T.min(width - start, TILE) // lanes
            if s < offsets - 1:
                for chunk in T.serial(chunks):
                    for lane in T.vectorized(lanes):
                        pooled[s, start + chunk * lanes + lane] = rows[
                            cu[s], start + chunk * lanes + lane
                        ]
                for t in T.serial(cu[s + 1] - cu[s] - 1):
                    for chunk in T.serial(chunks):
                        for lane in T.vectorized(lanes):
                            pooled[s, start + chunk * lanes + lane] = T.max(
                                pooled[s, start + chunk * lanes + lane],
                                rows[cu[s] + 1 + t, start + chunk * lanes + lane],
                            )
            else:
                for chunk in T.serial(chunks):
                    for lane in T.vectorized(lanes):
                        pooled[s, start + chunk * lanes + lane] = T.cast(0, dtype)

    return pool
