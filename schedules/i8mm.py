"""Schedule rule for ARM's smmla, which multiplies matrices of 2 x 8 numbers; all else as in x86.py.

smmla adds to 2 x 2 sums the products of two rows of x with two columns, eight numbers deep.
Weights lie as every CPU reads them, four numbers of sixteen columns together [N / 16, K / 4, 16, 4].
So each task first lays the sixteen columns of its tile out anew [K / 8, 16, 8]: two loads, two zips
and two stores for 32 bytes. Then all rows of the task pass by, and take each of them as it is.

Sums stay in their squares while a tile is computed: of four columns, a register has rows 0 and 1 of
columns 0 and 1, the next one those of columns 2 and 3. Where their rows are read, they are taken
apart.
"""

from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, LANES
from intformer.schedules import tir_edit, x86
from intformer.schedules.space import blocks, decide
from intformer.schedules.space import space as x86_space

PAIR = 2  # rows, and columns, of a square of sums
DEPTH = 8  # numbers that a product takes of each row and column
WIDTH = 2 * PAIR  # columns of two squares: one vector of int32 a row
HALF = 4  # numbers of a column that lie together in the weights


def schedule(func: tirx.PrimFunc, isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Apply the rule for squares to a matmul, the x86 rule to all else.

    decisions  of `space`; what is missing or no candidate is decided by default
    """
    sch = Schedule(func)
    if not _is_matmul(sch):
        return x86.schedule(func, isa, decisions)
    chosen = decide(space(func, isa), decisions)
    rows, vectors = divmod(chosen["tile"], 10)
    length = int(tir_edit.operands(sch.get(blocks(sch)[0])).x.shape[2])
    _matmul(sch, isa, rows, vectors, chosen["steps"])
    return _tasks(sch.mod["main"], max(1, (chosen["chunk"] << 10) // (BLOCK * length)))


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return what may be decided: the x86 space, and for a product, the default first:

    tile   as in space.py; rows come in pairs
    steps  products of one turn of the innermost loop
    chunk  KiB of input rows that pass by the columns of a task
    """
    found = x86_space(func, isa)
    if not _is_matmul(Schedule(func)):
        return found
    return {"tile": found["tile"], "steps": [1, 2], "chunk": found["chunk"]}


def _is_matmul(sch: Schedule) -> bool:
    return sch.get(blocks(sch)[0]).name_hint == "matmul"


def _matmul(sch: Schedule, isa, rows: int, vectors: int, steps: int) -> None:
    """Schedule all but the tasks."""
    product, *epilogue = blocks(sch)
    apart = sch.cache_read(epilogue[0], 0, "global")  # the sums, row by row
    panel = sch.cache_read(product, 1, "global")  # the weights of a tile
    sch.transform_layout(
        panel,
        ("write", 0),
        lambda jo, ko, ji, ki: [jo, ko // 2, ji, ko % 2 * HALF + ki],
    )
    i, r, j = sch.get_loops(epilogue[-1])
    outer, tile = sch.split(j, [None, vectors * isa.lanes])
    row_outer, row = sch.split(r, [None, rows])
    sch.reorder(outer, i, row_outer, row, tile)
    sch.parallel(outer)
    x86.finish(sch, epilogue, row, isa.lanes)
    sch.unroll(row)
    sch.compute_at(apart, row_outer, preserve_unit_loops=True)
    sch.compute_at(product, row_outer, preserve_unit_loops=True)
    sch.compute_at(panel, outer, preserve_unit_loops=True)
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


def _tasks(func: tirx.PrimFunc, chunk: int) -> tirx.PrimFunc:
    """Make parallel tasks of a tile of columns and `chunk` row blocks.

    parallel c in columns: panel, i in blocks
    -> parallel f in columns * ceil(blocks / chunk): panel, i in the chunk
    """
    nest = tir_edit.packed_panels(tir_edit.root_block(func).body)
    column, row = nest.column, nest.row
    task = tirx.Var("task", column.loop_var.ty)
    inner = tirx.Var("block", row.loop_var.ty)
    first = tirx.floordiv(task, column.extent) * chunk
    body = tirx.SeqStmt([tirx.Bind(row.loop_var, first + inner), row.body])
    body = tirx.SeqStmt(
        [
            tirx.Bind(column.loop_var, tirx.floormod(task, column.extent)),
            nest.pack,
            tirx.For(inner, 0, tirx.min(row.extent - first, chunk), row.kind, body),
        ]
    )
    chunks = tirx.floordiv(row.extent + (chunk - 1), chunk)
    return tir_edit.with_root_body(
        func, tirx.For(task, 0, column.extent * chunks, column.kind, body)
    )


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
