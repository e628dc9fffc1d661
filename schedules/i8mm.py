"""Schedule rule for ARM's smmla, which multiplies matrices of 2 x 8 numbers; all else as in x86.py.

smmla adds to 2 x 2 sums the products of two rows of x with two columns, eight numbers deep. A panel
has the sixteen columns of a tile as [K / 8, 16, 8]: two zips for 32 bytes.

Sums stay in their squares while a tile is computed: of four columns, a register has rows 0 and 1 of
columns 0 and 1, the next one those of columns 2 and 3. Where their rows are read, they are taken
apart.
"""

from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import tirx as T

from intformer.ir.constants import LANES
from intformer.schedules import panels
from intformer.schedules.panels import space

__all__ = ["schedule", "space"]

PAIR = 2  # rows, and columns, of a square of sums
DEPTH = 8  # numbers that a product takes of each row and column
WIDTH = 2 * PAIR  # columns of two squares: one vector of int32 a row
HALF = 4  # numbers of a column that lie together in the weights


def schedule(func, isa, decisions: dict[str, int] | None = None):
    """Apply the rule for squares, see panels.schedule."""
    return panels.schedule(func, isa, decisions, _matmul)


def _matmul(sch: Schedule, isa, rows: int, vectors: int, steps: int) -> None:
    """Schedule all but the tasks."""

    def place(jo, ko, ji, ki):
        return [jo, ko // 2, ji, ko % 2 * HALF + ki]

    product, panel, apart = panels.begin(sch, isa, rows, vectors, place, apart=True)
    intrinsics = register(isa)
    _tile(sch, product, steps, intrinsics["product"])
    _squares(sch, apart, intrinsics["apart"])
    *_, ko, ji, ki = sch.get_loops(panel)
    ko, half = sch.split(ko, [None, 2])
    part, ji = sch.split(ji, [None, WIDTH])
    sch.reorder(ko, part, half, ji, ki)
    sch.unroll(part)
    sch.tensorize(half, intrinsics["panel"])


def _tile(sch: Schedule, product, steps: int, intrinsic: str) -> None:
    """Schedule the product of a tile."""
    *_, r, jo, ji, ko, ki = sch.get_loops(product)
    pair, r = sch.split(r, [None, PAIR])
    part, ji = sch.split(ji, [None, WIDTH])
    ko, step, half = sch.split(ko, [None, steps, 2])
    sch.reorder(ko, step, pair, jo, part, r, ji, half, ki)
    for loop in (step, pair, jo, part):
        sch.unroll(loop)
    init = sch.get_loops(sch.decompose_reduction(product, ko))
    sch.vectorize(init[-1])
    for loop in init[-5:-1]:
        sch.unroll(loop)
    sch.tensorize(r, intrinsic)


def _squares(sch: Schedule, apart, intrinsic: str) -> None:
    """Schedule what takes the squares of a tile apart."""
    *_, r, jo, ji = sch.get_loops(apart)
    pair, r = sch.split(r, [None, PAIR])
    part, ji = sch.split(ji, [None, WIDTH])
    sch.reorder(pair, jo, part, r, ji)
    for loop in (pair, jo, part):
        sch.unroll(loop)
    sch.tensorize(r, intrinsic)


# Tensor intrinsics: what a part of a block computes, and how. The sums of four columns are two
# squares to the first two, and rows to all that follows.


@cache
def register(isa) -> dict[str, str]:
    """Register the intrinsics of the rule (once); return their names."""
    made = {"product": _product(isa), "apart": _apart(), "panel": _panel()}
    names = {kind: f"intformer.i8mm_{kind}" for kind in made}
    for kind, functions in made.items():
        TensorIntrin.register(names[kind], *functions, override=True)
    return names


def _product(isa):
    @T.prim_func(s_tir=True)
    def description(x_: T.handle, w_: T.handle, sums_: T.handle):
        s, t, u = T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (PAIR, DEPTH), "int8", strides=[s, 1], offset_factor=1)
        w = T.match_buffer(w_, (WIDTH, DEPTH), "int8", offset_factor=1)
        sums = T.match_buffer(sums_, (PAIR, 1, WIDTH), "int32", strides=[t, u, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:PAIR, 0:1, 0:WIDTH], x[0:PAIR, 0:DEPTH], w[0:WIDTH, 0:DEPTH])
            T.writes(sums[0:PAIR, 0:1, 0:WIDTH])
            for r, j, h, k in T.grid(PAIR, WIDTH, 2, HALF):
                with T.sblock("update"):
                    vr, vj, vh, vk = T.axis.remap("SSRR", [r, j, h, k])
                    sums[vr, 0, vj] = sums[vr, 0, vj] + T.cast(
                        x[vr, vh * HALF + vk], "int32"
                    ) * T.cast(w[vj, vh * HALF + vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(x_: T.handle, w_: T.handle, sums_: T.handle):
        s, t, u = T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (PAIR, DEPTH), "int8", strides=[s, 1], offset_factor=1)
        w = T.match_buffer(w_, (WIDTH, DEPTH), "int8", offset_factor=1)
        sums = T.match_buffer(sums_, (PAIR, 1, WIDTH), "int32", strides=[t, u, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:PAIR, 0:1, 0:WIDTH], x[0:PAIR, 0:DEPTH], w[0:WIDTH, 0:DEPTH])
            T.writes(sums[0:PAIR, 0:1, 0:WIDTH])
            for n in T.unroll(PAIR):
                sums[n, 0, T.ramp(T.int32(0), 1, WIDTH)] = isa.product(
                    sums.vload([n, 0, 0], "int32x4"),
                    tirx.call_intrin(
                        "int8x16",
                        "tirx.vectorcombine",
                        x.vload([0, 0], "int8x8"),
                        x.vload([1, 0], "int8x8"),
                    ),
                    w.vload([n * PAIR, 0], "int8x16"),
                )

    return description, implementation


def _apart():
    @T.prim_func(s_tir=True)
    def description(sums_: T.handle, rows_: T.handle):
        s, t, u, v = T.int32(), T.int32(), T.int32(), T.int32()
        sums = T.match_buffer(sums_, (PAIR, 1, WIDTH), "int32", strides=[s, t, 1], offset_factor=1)
        rows = T.match_buffer(rows_, (PAIR, 1, WIDTH), "int32", strides=[u, v, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:PAIR, 0:1, 0:WIDTH])
            T.writes(rows[0:PAIR, 0:1, 0:WIDTH])
            for r, j in T.grid(PAIR, WIDTH):
                with T.sblock("copy"):
                    vr, vj = T.axis.remap("SS", [r, j])
                    rows[vr, 0, vj] = sums[vr, 0, vj]

    @T.prim_func(s_tir=True)
    def implementation(sums_: T.handle, rows_: T.handle):
        s, t, u, v = T.int32(), T.int32(), T.int32(), T.int32()
        sums = T.match_buffer(sums_, (PAIR, 1, WIDTH), "int32", strides=[s, t, 1], offset_factor=1)
        rows = T.match_buffer(rows_, (PAIR, 1, WIDTH), "int32", strides=[u, v, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:PAIR, 0:1, 0:WIDTH])
            T.writes(rows[0:PAIR, 0:1, 0:WIDTH])
            for n in T.unroll(PAIR):
                rows[n, 0, T.ramp(T.int32(0), 1, WIDTH)] = T.Shuffle(
                    [sums.vload([0, 0, 0], "int32x4"), sums.vload([1, 0, 0], "int32x4")],
                    [2 * n, 2 * n + 1, WIDTH + 2 * n, WIDTH + 2 * n + 1],
                )

    return description, implementation


def _panel():
    @T.prim_func(s_tir=True)
    def description(w_: T.handle, panel_: T.handle):
        s = T.int32()
        w = T.match_buffer(w_, (2, WIDTH, HALF), "int8", strides=[s, HALF, 1], offset_factor=1)
        panel = T.match_buffer(panel_, (WIDTH, DEPTH), "int8", offset_factor=1)
        with T.sblock("root"):
            T.reads(w[0:2, 0:WIDTH, 0:HALF])
            T.writes(panel[0:WIDTH, 0:DEPTH])
            for h, j, k in T.grid(2, WIDTH, HALF):
                with T.sblock("copy"):
                    vh, vj, vk = T.axis.remap("SSS", [h, j, k])
                    panel[vj, vh * HALF + vk] = w[vh, vj, vk]

    @T.prim_func(s_tir=True)
    def implementation(w_: T.handle, panel_: T.handle):
        s = T.int32()
        w = T.match_buffer(w_, (2, WIDTH, HALF), "int8", strides=[s, HALF, 1], offset_factor=1)
        panel = T.match_buffer(panel_, (WIDTH, DEPTH), "int8", offset_factor=1)
        with T.sblock("root"):
            T.reads(w[0:2, 0:WIDTH, 0:HALF])
            T.writes(panel[0:WIDTH, 0:DEPTH])
            for n in T.unroll(2):
                panel[n * 2, T.ramp(T.int32(0), 1, LANES)] = _zipped(
                    w.vload([0, 0, 0], "int8x16"), w.vload([1, 0, 0], "int8x16"), n * 2
                )

    return description, implementation


def _zipped(low, high, first):
    """Return columns first and first + 1: four numbers of low, four of high, of each."""
    words = [T.reinterpret(half, dtype="int32x4") for half in (low, high)]
    order = [first, WIDTH + first, first + 1, WIDTH + first + 1]
    return T.reinterpret(T.Shuffle(words, order), dtype="int8x16")
