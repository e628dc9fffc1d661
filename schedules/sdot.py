"""The product of a register tile by ARM's sdot, which takes four numbers of any lane of a register.

Sixteen numbers of a row of x are one load and serve four steps. Four numbers that a load of their
own broadcasts cost a vector operation beside four products, on chips with two to four of those.
"""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from intformer.ir.constants import DEPTH, LANES


@cache
def register(isa, rows: int) -> str:
    """Register the product of a register tile as a tensor intrinsic (once) and return its name.

    rows  of the tile, which has sixteen columns
    """
    name = f"intformer.sdot_{rows}"
    lanes = steps = isa.lanes
    deep, parts = steps * DEPTH, LANES // lanes

    @T.prim_func(s_tir=True)
    def description(x_: T.handle, w_: T.handle, sums_: T.handle):
        s, t, u = T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (rows, deep), "int8", strides=[s, 1], offset_factor=1)
        w = T.match_buffer(w_, (steps, LANES, DEPTH), "int8", offset_factor=1)
        sums = T.match_buffer(sums_, (rows, 1, LANES), "int32", strides=[t, u, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:rows, 0:1, 0:LANES], x[0:rows, 0:deep], w[0:steps, 0:LANES, 0:DEPTH])
            T.writes(sums[0:rows, 0:1, 0:LANES])
            for step, r, part, lane, k in T.grid(steps, rows, parts, lanes, DEPTH):
                with T.sblock("update"):
                    vr = T.axis.spatial(rows, r)
                    vl = T.axis.spatial(LANES, part * lanes + lane)
                    vs, vk = T.axis.remap("RR", [step, k])
                    sums[vr, 0, vl] = sums[vr, 0, vl] + T.cast(
                        x[vr, vs * DEPTH + vk], "int32"
                    ) * T.cast(w[vs, vl, vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(x_: T.handle, w_: T.handle, sums_: T.handle):
        s, t, u = T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (rows, deep), "int8", strides=[s, 1], offset_factor=1)
        w = T.match_buffer(w_, (steps, LANES, DEPTH), "int8", offset_factor=1)
        sums = T.match_buffer(sums_, (rows, 1, LANES), "int32", strides=[t, u, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:rows, 0:1, 0:LANES], x[0:rows, 0:deep], w[0:steps, 0:LANES, 0:DEPTH])
            T.writes(sums[0:rows, 0:1, 0:LANES])
            for step in T.unroll(steps):
                for r in T.unroll(rows):
                    for part in T.unroll(parts):
                        sums[r, 0, T.ramp(part * lanes, 1, lanes)] = isa.dot(
                            sums.vload([r, 0, part * lanes], f"int32x{lanes}"),
                            w.vload([step, part * lanes, 0], f"int8x{lanes * DEPTH}"),
                            _lane(x.vload([r, 0], f"int8x{deep}"), step, lanes),
                        )

    TensorIntrin.register(name, description, implementation, override=True)
    return name


def _lane(x, number, lanes: int):
    """Return four of sixteen numbers, in every lane of a register."""
    words = T.reinterpret(x, dtype=f"int32x{lanes}")
    return T.reinterpret(T.Shuffle([words], [number] * lanes), dtype=f"int8x{lanes * DEPTH}")
