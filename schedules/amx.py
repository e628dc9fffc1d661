"""Schedule rule for Intel AMX: int8 matrix products on tiles; all else as in x86.py.

The layouts are the tiles' own: 16 rows of x [blocks, 8, K] are an A tile (one row every K bytes),
and 64 products of a packed weight [N / 16, K / 4, 16, 4] are 16 lines of 64 bytes, a B tile.
"""

from tvm import tirx
from tvm.s_tir import Schedule

from intformer.ir.constants import DEPTH, LANES
from intformer.schedules import tir_edit, x86
from intformer.schedules.amx_product import TILE_BYTES, Product
from intformer.schedules.space import blocks, decide
from intformer.schedules.space import space as x86_space

COLUMNS, TASKS = 8, 6  # by default: the most groups of columns at a time, the fewest tasks
SHORTEST = 32  # bytes of a row of an A tile below which the tiles do not pay


def schedule(func: tirx.PrimFunc, isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Apply the tile rule to a matmul whose shape suits it, the x86 rule to all else.

    decisions  of `space`; what is missing or no candidate is decided by default
    """
    sch = Schedule(func)
    depth = _tile_depth(sch)
    if not depth:
        return x86.schedule(func, isa, decisions)
    return _matmul(sch, depth, **decide(space(func, isa), decisions))


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return what may be decided: the x86 space, and for a product on tiles, the default first:

    columns  groups of columns that pass by 32 rows, which stay in the first-level cache
    chunk    KiB of input rows that stay in the second-level cache while columns pass by
    """
    sch = Schedule(func)
    if not _tile_depth(sch):
        return x86_space(func, isa)
    (_, _, j, _, *_) = sch.get_loops(blocks(sch)[0])
    vectors = int(sch.get(j).extent)
    groups = vectors // 2 if vectors % 2 == 0 else vectors
    fit = [c for c in (8, 4, 2, 1, 3) if groups % c == 0]
    default = max((c for c in fit if c <= COLUMNS and groups // c >= TASKS), default=1)
    return {
        "columns": [default, *(c for c in fit if c != default)],
        "chunk": [1024, 256, 512, 2048],
    }


def _tile_depth(sch: Schedule) -> int:
    """Return how many products one tile takes, 0 where tiles do not suit."""
    block = sch.get(blocks(sch)[0])
    if block.name_hint != "matmul":
        return 0
    depth = _depth(int(tir_edit.operands(block).x.shape[2]))
    return depth if depth >= SHORTEST else 0


def _depth(length: int) -> int:
    """Return how many products of `length` one tile takes: the most that divide it evenly."""
    return next(d for d in range(TILE_BYTES, 0, -DEPTH) if length % d == 0)


def _matmul(sch: Schedule, depth: int, columns: int, chunk: int) -> tirx.PrimFunc:
    _, *epilogue = blocks(sch)
    i, r, j = sch.get_loops(epilogue[-1])
    vectors = 2 if sch.get(j).extent.value % 32 == 0 else 1
    outer, tile = sch.split(j, [None, vectors * LANES])
    sch.reorder(outer, i, r, tile)
    x86.finish(sch, epilogue, r, LANES)
    return Product(sch.mod["main"], depth, vectors).func(columns, chunk << 10)
