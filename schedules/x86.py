"""Schedule rules for x86 CPUs: one per kind of kernel, found by block name.

    matmul   weights stay in the first-level cache for one tile of columns while all rows pass by;
             the register tile (8 rows x 3 vectors with VNNI: 24 accumulators, 3 weight vectors, one
             broadcast) is finished with its whole epilogue before it is stored
    ln_squares one block of eight rows at a time; statistics of the eight rows side by side
    else     eight rows at a time, one vector of channels after the other

These are the defaults; `space.py` lists what may be decided otherwise. Tried and dropped for
matmul: a 64-bit clamp before the narrowing (two more operations per eight numbers).
"""

import math
from functools import cache

import tvm
from tvm import tirx
from tvm.s_tir import SBlock, Schedule, TensorIntrin
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH, LANES
from intformer.schedules import sdot, tir_edit
from intformer.schedules.space import LINE, blocks, decide, space

STEPS = "intformer.steps"  # marks the loop over the dot products, with how many one turn does


@cache
def register_dot(isa) -> str:
    """Register the chip's dot product as a tensor intrinsic (once) and return its name."""
    name = f"intformer.dot_{type(isa).__name__}_{isa.lanes}"
    lanes, depth = isa.lanes, DEPTH
    operand, vector = isa.operand, f"{isa.operand}x{lanes * depth}"

    @T.prim_func(s_tir=True)
    def description(
        a: T.Buffer((depth,), operand, offset_factor=1),
        w: T.Buffer((lanes, depth), "int8", offset_factor=1),
        c: T.Buffer((lanes,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(c[0:lanes], a[0:depth], w[0:lanes, 0:depth])
            T.writes(c[0:lanes])
            for i, k in T.grid(lanes, depth):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    c[vi] = c[vi] + T.cast(a[vk], "int32") * T.cast(w[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(
        a: T.Buffer((depth,), operand, offset_factor=1),
        w: T.Buffer((lanes, depth), "int8", offset_factor=1),
        c: T.Buffer((lanes,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(c[0:lanes], a[0:depth], w[0:lanes, 0:depth])
            T.writes(c[0:lanes])
            c[T.ramp(T.int32(0), 1, lanes)] = isa.dot(
                c.vload([0], dtype=f"int32x{lanes}"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(a.vload([0], f"{operand}x4"), dtype="int32"), lanes),
                    dtype=vector,
                ),
                w.vload([0, 0], dtype=f"int8x{lanes * depth}"),
            )

    TensorIntrin.register(name, description, implementation, override=True)
    return name


def schedule(func: tirx.PrimFunc, isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Apply the rule that the function's blocks call for; return the scheduled function.

    decisions  of `space`; what is missing or no candidate is decided by default
    """
    chosen = decide(space(func, isa), decisions)
    sch = Schedule(func)
    names = [sch.get(block).name_hint for block in blocks(sch)]
    if "matmul" in names:
        rows, vectors = divmod(chosen["tile"], 10)
        panels, length = _matmul(sch, isa, rows, vectors, chosen["steps"])
        func = sch.mod["main"]
        if chosen["prefetch"]:
            func = _prefetched(func, chosen["prefetch"] // LINE, vectors * isa.lanes)
        chunk = max(1, (chosen["chunk"] << 10) // (BLOCK * length))
        return _tasks(func, chunk, math.gcd(chosen["columns"], panels), bool(chosen["order"]))
    if "ln_squares" in names:
        _layernorm(sch, isa, chosen["unroll"])
    else:
        _rows(sch, isa, **chosen)
    return sch.mod["main"]


def _matmul(sch: Schedule, isa, rows: int, vectors: int, steps: int) -> tuple[int, int]:
    """Schedule all but the tasks; return the tiles of columns and the length of a dot product."""
    matmul, *epilogue = blocks(sch)
    i, r, j = sch.get_loops(epilogue[-1])
    outer, tile = sch.split(j, [None, vectors * isa.lanes])
    row_outer, row = sch.split(r, [None, rows])
    sch.reorder(outer, i, row_outer, row, tile)
    sch.parallel(outer)  # before decompose_reduction, which refuses it afterwards
    finish(sch, epilogue, row, isa.lanes)
    sch.compute_at(matmul, row_outer, preserve_unit_loops=True)
    sch.unroll(row)
    *_, r2, j2, lane2, ko, ki = sch.get_loops(matmul)
    length = sch.get(ko).extent.value * DEPTH
    ko, step = sch.split(ko, [None, steps])
    part, lane2 = sch.split(lane2, [None, isa.lanes])  # of the sixteen rows that lie together
    sch.reorder(ko, step, r2, j2, part, lane2, ki)
    init = sch.get_loops(sch.decompose_reduction(matmul, ko))
    sch.vectorize(init[-1])
    for loop in init[-4:-1]:
        sch.unroll(loop)
    if isa.by_lane and steps == isa.lanes:
        sch.reorder(j2, step, r2)
        sch.unroll(j2)
        sch.tensorize(step, sdot.register(isa, rows))
    else:
        for loop in (step, r2, j2, part):
            sch.unroll(loop)
        sch.tensorize(sch.get_loops(matmul)[-2], register_dot(isa))
    sch.annotate(ko, STEPS, steps)
    return sch.get(outer).extent.value, length


def finish(sch: Schedule, epilogue: list, row, lanes: int) -> None:
    """Take the blocks behind a product along with each row of its tile, in vectors.

    lanes  of int32; blocks of 16-bit numbers have twice as many as far as the tile has room
    """
    for block in reversed(epilogue[:-1]):
        sch.compute_at(block, row)
    for block in epilogue:
        loop = sch.get_loops(block)[-1]
        width = sch.get(loop).extent.value
        narrow = _is_narrow(sch.get(block)) and width > lanes
        if narrow and width % (2 * lanes):
            loop, rest = sch.loop_partition(loop, [width - lanes, None])
            sch.vectorize(rest)
        part, lane = sch.split(loop, [None, 2 * lanes if narrow else lanes])
        sch.unroll(part)
        sch.vectorize(lane)


def _is_narrow(block: SBlock) -> bool:
    """Say whether a block computes in 16-bit lanes: nothing that it touches is wider."""
    buffers = [region.source for region in (*block.reads, *block.writes)]
    return max(tvm.DataType(buffer.dtype).bits for buffer in buffers) == 16


def _prefetched(func: tirx.PrimFunc, ahead: int, width: int) -> tirx.PrimFunc:
    """Let every turn of the dot products ask for the weights `ahead` steps further on.

    width  columns of one tile; a step reads one line of sixteen of them
    What lies behind the last weight is asked for too: that is allowed, and fetches nothing.
    """
    column = tir_edit.panels(tir_edit.root_block(func).body).column.loop_var
    weights, streams = tir_edit.weights(func), width // LANES

    def ask(loop, steps):
        steps = int(steps)
        first = loop.loop_var * steps + ahead
        calls = [
            tirx.Evaluate(
                T.call_intrin(
                    "void",
                    "tirx.prefetch",
                    T.address_of(weights[column * streams + n, first + step, 0, 0]),
                    0,  # to read
                    3,  # into all levels of cache
                    1,  # data
                )
            )
            for n in range(streams)
            for step in range(steps)
        ]
        body = tirx.SeqStmt([*calls, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)

    return tir_edit.mapped_loops(func, STEPS, ask)


def _tasks(func: tirx.PrimFunc, chunk: int, panel: int, rows_first: bool) -> tirx.PrimFunc:
    """Make parallel tasks of `chunk` row blocks times `panel` tiles of columns.

        parallel c in columns: i in blocks
        -> parallel f in columns / panel * ceil(blocks / chunk): c in panel: i in the chunk

    so that `chunk` row blocks pass by all tiles of columns before the next ones come. rows_first
    swaps the two inner loops. Schedule.split would guard every block with a condition, which
    tensorize refuses.
    """
    nest = tir_edit.panels(tir_edit.root_block(func).body)
    column, row = nest.column, nest.row
    panels, blocks = column.extent // panel, row.extent
    task = tirx.Var("task", column.loop_var.ty)
    tile = tirx.Var("tile", column.loop_var.ty)
    inner = tirx.Var("block", row.loop_var.ty)
    first = tirx.floordiv(task, panels) * chunk
    body = tirx.SeqStmt(
        [
            tirx.Bind(column.loop_var, tirx.floormod(task, panels) * panel + tile),
            tirx.Bind(row.loop_var, first + inner),
            row.body,
        ]
    )

    def tiles(body):
        return tirx.For(tile, 0, panel, row.kind, body)

    def rows(body):
        return tirx.For(inner, 0, tirx.min(blocks - first, chunk), row.kind, body)

    loop = rows(tiles(body)) if rows_first else tiles(rows(body))
    chunks = tirx.floordiv(blocks + (chunk - 1), chunk)
    loop = tirx.For(task, 0, panels * chunks, column.kind, loop)
    return tir_edit.with_root_body(func, loop)


def _layernorm(sch: Schedule, isa, unroll: int) -> None:
    stages = blocks(sch)
    names = [sch.get(block).name_hint for block in stages]
    # the block under whose loop the others go: the last one, or what two outputs are made from
    anchor = names.index("ln_normalised") if "ln_normalised" in names else len(names) - 1
    loop = sch.get_loops(stages[anchor])[0]
    for block in stages[anchor + 1 :]:
        sch.reverse_compute_at(block, loop)
    for block, name in zip(reversed(stages[:anchor]), reversed(names[:anchor]), strict=True):
        # 16 channels are one chunk, whose loop would vanish
        sch.compute_at(block, loop, preserve_unit_loops=name.endswith("_partial"))
    sch.parallel(loop)
    for block, name in zip(stages, names, strict=True):
        _vectorize_rows(sch, block, name, isa, unroll)


def _vectorize_rows(sch: Schedule, block, name: str, isa, unroll: int) -> None:
    _, *loops = sch.get_loops(block)
    if name.endswith("_partial"):  # [8, lanes, chunk]
        *_, row, lane, chunk = loops
        sch.reorder(row, chunk, lane)
        inner = sch.split(lane, [None, isa.lanes])[1] if isa.lanes < LANES else lane
        sch.vectorize(inner)
        init = sch.decompose_reduction(block, chunk)
        sch.vectorize(sch.get_loops(init)[-1])
    elif name in ("ln_bits", "ln_wide_bits", "ln_root", "ln_factor"):  # [8, bit]
        row, bit = loops
        sch.reorder(bit, row)
        sch.vectorize(row)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(block, bit))[-1])
    elif name in ("ln_sum", "ln_squares", "ln_wide"):
        sch.decompose_reduction(block, loops[-1])
    elif len(loops) == 1:  # [8]
        sch.vectorize(loops[0])
    else:
        _, several, lane = sch.split(loops[-1], [None, unroll, isa.lanes])
        sch.unroll(several)
        sch.vectorize(lane)


def _rows(sch: Schedule, isa, unroll: int, rows: int) -> None:
    *stages, out = blocks(sch)
    i, r, c = sch.get_loops(out)
    _, several, lane = sch.split(c, [None, unroll, isa.lanes])
    for block in reversed(stages):
        sch.compute_at(block, several)
        sch.vectorize(sch.get_loops(block)[-1])
    sch.vectorize(lane)
    sch.unroll(several)
    sch.parallel(i if rows == BLOCK else sch.fuse(i, r))
