"""What the rules have in common that lay the weights of a tile of columns out anew for a chip.

Weights lie as every CPU reads them [N / 16, K / 4, 16, 4]. A task copies those of its tile into a
panel of its own, in the order in which its products take them; then its rows pass by.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.s_tir import Schedule

from intformer.ir.constants import BLOCK
from intformer.schedules import tir_edit, x86
from intformer.schedules.space import blocks, decide
from intformer.schedules.space import space as x86_space


def schedule(
    func: tirx.PrimFunc, isa, decisions: dict[str, int] | None, rule: Callable
) -> tirx.PrimFunc:
    """Apply a rule with panels to a matmul, the x86 rule to all else.

    decisions  of `space`; what is missing or no candidate is decided by default
    rule       (Schedule, isa, rows, vectors, steps): schedules all but the tasks
    """
    sch = Schedule(func)
    if not _is_matmul(sch):
        return x86.schedule(func, isa, decisions)
    chosen = decide(space(func, isa), decisions)
    rows, vectors = divmod(chosen["tile"], 10)
    length = int(tir_edit.operands(sch.get(blocks(sch)[0])).x.shape[2])
    rule(sch, isa, rows, vectors, chosen["steps"])
    return _tasks(sch.mod["main"], max(1, (chosen["chunk"] << 10) // (BLOCK * length)))


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return what may be decided: the x86 space, and for a product, the default first:

    tile   as in space.py
    steps  products of one turn of the innermost loop
    chunk  KiB of input rows that pass by the columns of a task
    """
    found = x86_space(func, isa)
    if not _is_matmul(Schedule(func)):
        return found
    return {"tile": found["tile"], "steps": [1, 2], "chunk": found["chunk"]}


def _is_matmul(sch: Schedule) -> bool:
    return sch.get(blocks(sch)[0]).name_hint == "matmul"


def begin(
    sch: Schedule, isa, rows: int, vectors: int, place: Callable, apart: bool = False
) -> tuple:
    """Make tiles, the panel of each, and vectors of the epilogue; return what is left to schedule.

    place  (n, k / 4, column of sixteen, k % 4) of a weight -> where it is in the panel
    apart  the epilogue reads a copy of the sums

    Returns the blocks of the product and of the copy to the panel, and that of the copy of the sums
    or None.
    """
    product, *epilogue = blocks(sch)
    copy = sch.cache_read(epilogue[0], 0, "global") if apart else None
    panel = sch.cache_read(product, 1, "global")
    sch.transform_layout(panel, ("write", 0), place)
    i, r, j = sch.get_loops(epilogue[-1])
    outer, tile = sch.split(j, [None, vectors * isa.lanes])
    row_outer, row = sch.split(r, [None, rows])
    sch.reorder(outer, i, row_outer, row, tile)
    sch.parallel(outer)
    x86.finish(sch, epilogue, row, isa.lanes)
    sch.unroll(row)
    if apart:
        sch.compute_at(copy, row_outer, preserve_unit_loops=True)
    sch.compute_at(product, row_outer, preserve_unit_loops=True)
    sch.compute_at(panel, outer, preserve_unit_loops=True)
    return product, panel, copy


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
