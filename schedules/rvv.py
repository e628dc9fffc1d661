"""Schedule rule for RISC-V's vectors: products without a dot product; all else as in x86.py.

A panel has the sixteen columns of a tile number by number [K, 16]: one load of sixteen bytes,
widened once, is multiplied by a number of each of four rows (vwmacc.vx), whose sums fill four
registers each. The vectors have as many lanes as fit the smallest registers, of 128 bits.
"""

from functools import cache

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import tirx as T

from intformer.ir.constants import DEPTH, LANES
from intformer.schedules import panels
from intformer.schedules.isa import wrapping_sum
from intformer.schedules.panels import space

__all__ = ["schedule", "space"]


def schedule(func, isa, decisions: dict[str, int] | None = None):
    """Apply the rule with panels, see panels.schedule."""
    return panels.schedule(func, isa, decisions, _matmul)


def _matmul(sch: Schedule, isa, rows: int, vectors: int, steps: int) -> None:
    """Schedule all but the tasks."""

    def place(jo, ko, ji, ki):
        return [jo, ko * DEPTH + ki, ji]

    product, panel, _ = panels.begin(sch, isa, rows, vectors, place)
    intrinsics = register()
    *_, r, jo, ji, ko, ki = sch.get_loops(product)
    ko, step = sch.split(ko, [None, steps])
    sch.reorder(ko, step, jo, r, ji, ki)
    for loop in (step, jo, r):
        sch.unroll(loop)
    init = sch.get_loops(sch.decompose_reduction(product, ko))
    sch.vectorize(init[-1])
    for loop in init[-3:-1]:
        sch.unroll(loop)
    sch.tensorize(ji, intrinsics["product"])
    *_, ji, _ = sch.get_loops(panel)
    sch.tensorize(ji, intrinsics["panel"])


@cache
def register() -> dict[str, str]:
    """Register the tensor intrinsics of the rule (once); return their names."""
    made = {"product": _product(), "panel": _panel()}
    names = {kind: f"intformer.rvv_{kind}" for kind in made}
    for kind, functions in made.items():
        TensorIntrin.register(names[kind], *functions, override=True)
    return names


def _product():
    """Four numbers of a row times four of each column, which are scalars times vectors.

    The scalars are shifted out of a word: of loaded bytes LLVM would make vectors first.
    """

    @T.prim_func(s_tir=True)
    def description(
        x: T.Buffer((DEPTH,), "int8", offset_factor=1),
        w: T.Buffer((DEPTH, LANES), "int8", offset_factor=1),
        sums: T.Buffer((LANES,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(sums[0:LANES], x[0:DEPTH], w[0:DEPTH, 0:LANES])
            T.writes(sums[0:LANES])
            for j, k in T.grid(LANES, DEPTH):
                with T.sblock("update"):
                    vj, vk = T.axis.remap("SR", [j, k])
                    sums[vj] = sums[vj] + T.cast(x[vk], "int32") * T.cast(w[vk, vj], "int32")

    @T.prim_func(s_tir=True)
    def implementation(
        x: T.Buffer((DEPTH,), "int8", offset_factor=1),
        w: T.Buffer((DEPTH, LANES), "int8", offset_factor=1),
        sums: T.Buffer((LANES,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(sums[0:LANES], x[0:DEPTH], w[0:DEPTH, 0:LANES])
            T.writes(sums[0:LANES])
            for k in T.unroll(DEPTH):
                sums[T.ramp(T.int32(0), 1, LANES)] = wrapping_sum(
                    sums.vload([0], "int32x16"),
                    T.broadcast(
                        (T.reinterpret(x.vload([0], "int8x4"), dtype="int32") << (24 - 8 * k))
                        >> 24,
                        LANES,
                    )
                    * T.cast(w.vload([k, 0], "int8x16"), "int32x16"),
                )

    return description, implementation


def _panel():
    """64 weights; the four numbers of each column are the bytes of a 32-bit lane."""

    @T.prim_func(s_tir=True)
    def description(
        w: T.Buffer((LANES, DEPTH), "int8", offset_factor=1),
        panel: T.Buffer((DEPTH, LANES), "int8", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(w[0:LANES, 0:DEPTH])
            T.writes(panel[0:DEPTH, 0:LANES])
            for j, k in T.grid(LANES, DEPTH):
                with T.sblock("copy"):
                    vj, vk = T.axis.remap("SS", [j, k])
                    panel[vk, vj] = w[vj, vk]

    @T.prim_func(s_tir=True)
    def implementation(
        w: T.Buffer((LANES, DEPTH), "int8", offset_factor=1),
        panel: T.Buffer((DEPTH, LANES), "int8", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(w[0:LANES, 0:DEPTH])
            T.writes(panel[0:DEPTH, 0:LANES])
            for k in T.unroll(DEPTH):
                panel[k, T.ramp(T.int32(0), 1, LANES)] = T.cast(
                    T.reinterpret(w.vload([0, 0], "int8x64"), dtype="int32x16")
                    >> T.broadcast(k * 8, LANES),
                    "int8x16",
                )

    return description, implementation
