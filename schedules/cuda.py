"""Schedule rules for NVIDIA GPUs: one per kind of kernel, found by block name.

    matmul   tiles of the result on tensor cores, see cuda_matmul.py
    ln_sum   one warp per row, its channels in registers, see cuda_layernorm.py
    else     one thread per four channels of a row

Every kernel takes the device addresses of its tensors and of the counts of a run (COUNTS), and says
in the attribute LAUNCH what to start: the grid is a bound, blocks past the counts leave at once.
"""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.schedules import cuda_layernorm, cuda_matmul
from intformer.schedules.cuda_matmul import TILES
from intformer.schedules.cuda_values import UNBOUNDED, Kernel, Values, stages
from intformer.schedules.space import decide

LAUNCH = "intformer.launch"
THREADS = 128  # of a block of an elementwise kernel
CHANNELS = 4  # that one thread of it makes
BLOCKS = "_blocks"  # ending of the extents that count blocks of eight rows


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return every decision about an unscheduled kernel with its candidates, the default first.

    tile   of a matrix product, a key of TILES
    depth  bytes of a row of its operands that shared memory takes at a time
    """
    if stages(func)[0].name != "matmul":
        return {}
    columns = int(func.params[1].shape[0])
    tiles = [n for n, tile in TILES.items() if columns % tile.columns == 0]
    return {"tile": tiles, "depth": [64, 32]}


def versions(func: tirx.PrimFunc, isa) -> list[tuple[int | None, dict[str, int]]]:
    """Return the written-down rule: up to how many row blocks, which decisions.

    The largest tile that gives every multiprocessor of the chip a block of threads.
    """
    candidates = space(func, isa)
    if not candidates:
        return [(None, {})]
    columns = int(func.params[1].shape[0])
    found = []
    for number in reversed(candidates["tile"]):
        tile = TILES[number]
        enough = -(-isa.multiprocessors * tile.columns // columns) * tile.rows  # rows
        if found and enough >= found[-1][1]:
            continue
        found.append((number, enough))
    # found: from small tiles on, each with the rows from which it is large enough
    found.sort(key=lambda one: TILES[one[0]].rows * TILES[one[0]].columns)
    result = []
    for (number, _), (_, enough) in zip(found, [*found[1:], (None, None)], strict=True):
        limit = None if enough is None else max(1, (enough - 1) // 8)
        result.append((limit, {"tile": number}))
    return result


def schedule(func: tirx.PrimFunc, isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Return the kernel for a GPU."""
    chosen = decide(space(func, isa), decisions)
    names = [stage.name for stage in stages(func)]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        kernel = Kernel(func)
        rows = row_kind(func)
        if names[0] == "matmul":
            tile = TILES[chosen["tile"]]
            columns, _ = cuda_matmul.extents(kernel)
            cuda_matmul.body(kernel, tile, chosen["depth"], rows)
            grid = [["one", 1, columns // tile.columns], [rows, tile.rows, 1], ["one", 1, 1]]
            threads = tile.threads
        elif "ln_sum" in names:
            threads = cuda_layernorm.body(kernel, rows)
            grid = [[rows, threads // 32, 1], ["one", 1, 1], ["one", 1, 1]]
        else:
            threads = THREADS
            grid = elementwise(kernel, rows)
        T.func_attr({LAUNCH: {"grid": grid, "threads": threads, "rows": rows}})
    return builder.get()


def row_kind(func: tirx.PrimFunc) -> str:
    """Return what the rows of the result are: token, sequence or position."""
    result = func.params[-1]
    return result.shape[0].name.removesuffix(BLOCKS)


def elementwise(kernel: Kernel, rows: str) -> list:
    """Emit one thread per four channels; return the grid."""
    (output,) = kernel.outputs
    width = int(output.shape[-1])
    across = -(-width // (THREADS * CHANNELS))
    block_x = T.thread_binding(UNBOUNDED // 4 // width, thread="blockIdx.x")
    block_y = T.thread_binding(across, thread="blockIdx.y")
    threads = T.thread_binding(THREADS, thread="threadIdx.x")
    with block_x as row, block_y as part, threads as thread:
        with T.If(row < kernel.count(rows)), T.Then():
            start = T.bind((part * THREADS + thread) * CHANNELS)
            with T.If(start < width), T.Then():
                cuda_matmul.store(kernel, Values(kernel), output, row, start, CHANNELS)
    return [[rows, 1, 1], ["one", 1, across], ["one", 1, 1]]


