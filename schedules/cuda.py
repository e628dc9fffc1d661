"""Schedule rules for NVIDIA GPUs: one per kind of kernel, found by block name.

    matmul   tiles of the result on tensor cores, see cuda_matmul.py
    ln_squares one warp per row, its channels in registers, see cuda_layernorm.py
    else     one thread per four channels of a row

Every kernel takes the device addresses of its tensors and of the counts of a run (COUNTS), and says
in the attribute LAUNCH what to start: the grid is a bound, blocks past the counts leave at once.
"""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda.kernel import LAUNCH, UNBOUNDED, launch
from intformer.ir.constants import BLOCK
from intformer.schedules import cuda_layernorm, cuda_matmul
from intformer.schedules.cuda_matmul import TILES
from intformer.schedules.cuda_values import Kernel, Values, stages
from intformer.schedules.space import decide

THREADS = 128  # of a block of an elementwise kernel
CHANNELS = 4  # that one thread of it makes
NARROW = 16  # columns of a tile for results that have no more
BLOCKS = "_blocks"  # ending of the extents that count blocks of eight rows


def space(func: tirx.PrimFunc, isa) -> dict[str, list[int]]:
    """Return every decision about an unscheduled kernel with its candidates, the default first.

    tile   of a matrix product, a key of TILES
    depth  bytes of a row of its operands that shared memory takes at a time
    """
    if LAUNCH in (func.attrs or {}) or stages(func)[0].name != "matmul":
        return {}
    columns = int(func.params[1].shape[0])
    tiles = [n for n, tile in TILES.items() if columns % tile.columns == 0]
    tiles = [n for n in tiles if TILES[n].columns > NARROW] or tiles
    return {"tile": tiles, "depth": [64, 32]}


def versions(func: tirx.PrimFunc, isa) -> list[tuple[int | None, dict[str, int]]]:
    """Return the written-down rule: up to how many row blocks, which decisions.

    The largest tile that gives every multiprocessor of the chip a block of threads.
    """
    candidates = space(func, isa)
    if not candidates:
        return [(None, {})]
    columns = int(func.params[1].shape[0])
    found: list[tuple[int, int]] = []  # rows from which a tile is used, and the tile
    for number in candidates["tile"]:
        tile = TILES[number]
        rows = (-(-isa.multiprocessors * tile.columns // columns) - 1) * tile.rows + 1
        if not found or rows < found[-1][0]:
            found.append((rows, number))
    limits = [None, *(first // BLOCK for first, _ in found[:-1])]
    return [
        (limit, {"tile": number})
        for limit, (_, number) in reversed(list(zip(limits, found, strict=True)))
        if limit != 0
    ]


def schedule(func: tirx.PrimFunc, isa, decisions: dict[str, int] | None = None) -> tirx.PrimFunc:
    """Return the kernel for a GPU."""
    chosen = decide(space(func, isa), decisions)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        kernel = Kernel(func)
        names = [stage.name for stage in kernel.stages]
        rows = row_kind(func)
        if names[0] == "matmul":
            tile = TILES[chosen["tile"]]
            columns, _ = cuda_matmul.extents(kernel)
            cuda_matmul.body(kernel, tile, chosen["depth"], rows)
            grid = [["one", 1, columns // tile.columns], [rows, tile.rows, 1], ["one", 1, 1]]
            threads = tile.threads
        elif "ln_squares" in names:
            threads = cuda_layernorm.body(kernel, rows)
            grid = [[rows, threads // 32, 1], ["one", 1, 1], ["one", 1, 1]]
        else:
            threads = THREADS
            grid = elementwise(kernel, rows)
        launch(grid, threads, rows)
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
