"""What may be decided about a kernel, per kind: name -> values, the written-down rule first.

matmul   tile      register tile: 10 * rows + vectors of columns, what fits the registers
         steps     dot products of one turn of the innermost loop
         columns   tiles of columns that one parallel task computes
         order     0: all rows of a chunk pass by one tile of columns, 1: the other way round
         chunk     KiB of input rows that stay in the second-level cache
         prefetch  bytes ahead at which weights are asked for; 0: never
ln_squares unroll  vectors of channels side by side
else     unroll    as above
         rows      rows of one parallel task: a block of eight, or one

The first values are the default rule, which was found by hand on a Cascade Lake class core; what
tuning finds beyond it is in `tuning_logs`. All values are integers: they go into records.
"""

from tvm import tirx
from tvm.s_tir import Schedule

from intformer.ir.constants import BLOCK, DEPTH, LANES

LINE = LANES * DEPTH  # bytes of weights that one step of the dot products reads
CHUNK_BYTES = 1 << 20  # default: half of a second-level cache, the other half for weights


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return every decision about an unscheduled kernel with its candidates, the default first."""
    sch = Schedule(func)
    names = {sch.get(block).name_hint: block for block in blocks(sch)}
    if "matmul" in names:
        columns = sch.get(sch.get_loops(names["matmul"])[2]).extent
        depth = sch.get(sch.get_loops(names["matmul"])[-2]).extent
        return _matmul(isa, int(columns) * LANES, int(depth))
    vectors = sch.get(sch.get_loops(list(names.values())[-1])[-1]).extent // isa.lanes
    unroll = [n for n in (isa.unroll, *{1, 2, 4} - {isa.unroll}) if int(vectors) % n == 0]
    if "ln_squares" in names:
        return {"unroll": unroll}
    return {"unroll": unroll, "rows": [BLOCK, 1]}


def decide(candidates: dict[str, list[int]], decisions: dict[str, int] | None) -> dict[str, int]:
    """Return a value for every name: the decision where it is a candidate, else the default."""
    decisions = decisions or {}
    return {
        name: decisions[name] if decisions.get(name) in values else values[0]
        for name, values in candidates.items()
    }


def blocks(sch: Schedule) -> list:
    """Return the blocks of a schedule's only function, in order."""
    (name,) = (gv.name_hint for gv in sch.mod.functions)
    return sch.get_child_blocks(sch.get_sblock("root", func_name=name))


def _matmul(isa, columns: int, depth: int) -> dict[str, list[int]]:
    rows, most = isa.matmul_tile
    tiles = _tiles(isa, columns)
    # the hand-picked tile; where it does not fit, the next narrower one
    default = max(tile for tile in tiles if tile // 10 == rows and tile % 10 <= most)
    steps = [n for n in (isa.steps, *{1, 2, 4} - {isa.steps}) if depth % n == 0]
    return {
        "tile": [default, *(tile for tile in tiles if tile != default)],
        "steps": steps,
        "columns": [1, 2, 4, 8],
        "order": [0, 1],
        "chunk": [CHUNK_BYTES >> 10, 256, 512, 2048],
        "prefetch": [0, 512, 2048, 8192],
    }


def _tiles(isa, columns: int) -> list[int]:
    """Return the tiles whose accumulators, weights and one broadcast fill the registers well."""
    registers, lanes = isa.registers, isa.lanes
    return [
        10 * rows + vectors
        for rows in (8, 4, 2)
        for vectors in range(1, 9)
        if registers / 4 <= rows * vectors and (rows + 1) * vectors < registers
        if vectors * lanes % LANES == 0 and columns % (vectors * lanes) == 0
    ]
