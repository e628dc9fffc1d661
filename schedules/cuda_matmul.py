"""int8 matrix products on tensor cores, with all that is elementwise behind them.

A block of threads makes one tile of the result. Tiles of both operands, `depth` bytes wide, come to
shared memory in turns, the next one on its way in registers while tensor cores work on this one.
The 16-byte pieces of a row lie rotated by its number, so that the eight rows that a warp reads at
once have different banks.

The rows of the weights (columns of the result) that one 8-wide tile takes are picked so that a
thread's results of four tiles are eight neighbours: it stores them at once.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.ir.constants import BLOCK
from intformer.schedules.cuda_values import Kernel, Values

STEP = 32  # products that one instruction adds up
PIECE = 16  # bytes


@dataclass(frozen=True)
class Tile:
    """What one block of threads makes: rows x columns, by warps_down x warps_across warps."""

    rows: int
    columns: int
    warps_down: int
    warps_across: int

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return 32 * self.warps_down * self.warps_across


TILES = {  # by what decisions call them, the largest first
    0: Tile(128, 128, 2, 2),
    1: Tile(64, 64, 2, 2),
    2: Tile(32, 64, 1, 2),
    3: Tile(16, 32, 1, 1),
    4: Tile(64, 16, 4, 1),
}


def extents(kernel: Kernel) -> tuple[int, int]:
    """Return columns of the result and length of a dot product."""
    weights = kernel.func.params[1]
    columns, depth = (int(extent) for extent in weights.shape)
    return columns, depth


def body(kernel: Kernel, tile: Tile, depth: int, rows: str) -> None:
    """Emit the kernel's body.

    depth  bytes of a row in shared memory at a time, 32 or 64
    rows   what the rows are, for the count of them
    """
    x, w = (kernel.buffers[p] for p in kernel.func.params[:2])
    columns, length = extents(kernel)
    wide = min(4, tile.columns // tile.warps_across // 8)  # 8-wide tiles of neighbours
    down = tile.rows // tile.warps_down // 16  # 16-high tiles of a warp
    across = tile.columns // tile.warps_across // 8 // wide  # groups of 8-wide tiles
    pieces = depth // PIECE
    steps = -(-length // depth)
    whole = length % depth == 0

    def place(row, piece, rotate):
        """Where a piece of a row lies in a tile."""
        return row * depth + ((piece ^ (rotate % pieces)) * PIECE)

    block_x = T.thread_binding(columns // tile.columns, thread="blockIdx.x")
    block_y = T.thread_binding(65535, thread="blockIdx.y")
    threads = T.thread_binding(tile.threads, thread="threadIdx.x")
    with block_x as across_grid, block_y as down_grid, threads as thread:
        with T.If(down_grid * tile.rows < kernel.count(rows)), T.Then():
            first_row = T.bind(down_grid * tile.rows)
            first_column = T.bind(across_grid * tile.columns)
            lane = T.bind(thread % 32)
            warp_row = T.bind(thread // 32 // tile.warps_across * (down * 16))
            warp_column = T.bind(thread // 32 % tile.warps_across * (across * wide * 8))
            shared_x = T.alloc_buffer((2 * tile.rows * depth,), "uint8", scope="shared")
            shared_w = T.alloc_buffer((2 * tile.columns * depth,), "int8", scope="shared")
            acc = T.alloc_buffer((down * across * wide * 4,), "int32", scope="local")
            share = tile.threads, thread, pieces, length
            loads = [
                _Load(x, first_row, tile.rows, shared_x, lambda row: row // (8 // pieces), *share),
                _Load(
                    w, first_column, tile.columns, shared_w, lambda row: row // (2 * wide), *share
                ),
            ]
            with T.unroll(down * across * wide * 4) as i:
                T.buffer_store(acc, 0, [i])

            def fetch(step):
                for load in loads:
                    load.fetch(step, depth, whole)

            def keep(step):
                for load in loads:
                    load.keep(step % 2, place)

            def products(step):
                a = T.alloc_buffer((down * 4,), "uint32", scope="local")
                b = T.alloc_buffer((wide * 2,), "uint32", scope="local")
                with T.unroll(depth // STEP) as part:
                    with T.unroll(down) as i:
                        row = warp_row + i * 16 + lane % 16
                        at = place(row, part * 2 + lane // 16, row // (8 // pieces))
                        gpu.call(
                            "ldmatrix",
                            a.data,
                            i * 4,
                            shared_x.data,
                            step % 2 * (tile.rows * depth) + at,
                        )
                    with T.unroll(across) as group:
                        with T.unroll(wide // 2) as pair:
                            # column r of 8-wide tile j: neighbour r // 2 * 2 wide + 2 j + r % 2
                            inside = (
                                lane % 8 // 2 * (2 * wide) + (pair * 2 + lane // 16) * 2 + lane % 2
                            )
                            row = warp_column + group * (wide * 8) + inside
                            at = place(row, part * 2 + lane // 8 % 2, row // (2 * wide))
                            gpu.call(
                                "ldmatrix",
                                b.data,
                                pair * 4,
                                shared_w.data,
                                step % 2 * (tile.columns * depth) + at,
                            )
                        with T.unroll(down) as i, T.unroll(wide) as j:
                            gpu.call(
                                "mma_u8",
                                acc.data,
                                ((i * across + group) * wide + j) * 4,
                                a.data,
                                i * 4,
                                b.data,
                                j * 2,
                            )

            fetch(0)
            keep(0)
            gpu.synchronise()
            with T.serial(steps - 1) as step:
                fetch(step + 1)
                products(step)
                keep(step + 1)
                gpu.synchronise()
            products(steps - 1)

            with T.unroll(down) as i, T.unroll(across) as group, T.unroll(2) as half:
                row = T.bind(first_row + warp_row + i * 16 + half * 8 + lane // 4)
                start = T.bind(
                    first_column + warp_column + group * (wide * 8) + lane % 4 * (2 * wide)
                )

                def result(_block, _row, *column):
                    place = column[0] - start
                    return acc[
                        ((i * across + group) * wide + place // 2) * 4 + half * 2 + place % 2
                    ]

                values = Values(kernel, {kernel.stages[0].stores[0][0]: result})
                store(kernel, values, kernel.outputs[0], row, start, 2 * wide)


class _Load:
    """A tile of one operand on its way to shared memory, in pieces of 16 bytes."""

    def __init__(
        self,
        source,
        first,
        rows: int,
        shared,
        rotate,
        threads: int,
        thread,
        pieces: int,
        length: int,
    ):
        """Share the pieces out among the threads."""
        self.source, self.first, self.rows = source, first, rows
        self.shared, self.rotate = shared, rotate
        self.threads, self.thread, self.pieces, self.length = threads, thread, pieces, length
        self.turns = -(-self.rows * pieces // threads)
        self.even = self.rows * pieces % threads == 0
        self.held = T.alloc_buffer((self.turns * 4,), "uint32", scope="local")

    def _each(self, emit) -> None:
        with T.unroll(self.turns) as turn:
            number = turn * self.threads + self.thread
            row, piece = number // self.pieces, number % self.pieces
            if self.even:
                emit(turn, row, piece)
            else:
                with T.If(number < self.rows * self.pieces), T.Then():
                    emit(turn, row, piece)

    def fetch(self, step, depth: int, whole: bool) -> None:
        """Read the tile number `step` of the depth into registers."""

        def emit(turn, row, piece):
            column = step * depth + piece * PIECE
            offset = (self.first + row) * self.length + column
            if whole:
                gpu.call("read16", self.held.data, turn * 4, self.source.data, offset)
                return
            with T.unroll(4) as word:  # past the end: nothing to add
                T.buffer_store(self.held, tirx.const(0, "uint32"), [turn * 4 + word])
            with T.If(column < self.length), T.Then():
                gpu.call("read16", self.held.data, turn * 4, self.source.data, offset)

        self._each(emit)

    def keep(self, half, place) -> None:
        """Write the registers to one half of the shared memory."""

        def emit(turn, row, piece):
            at = half * (self.rows * self.pieces * PIECE) + place(row, piece, self.rotate(row))
            gpu.call("write16", self.shared.data, at, self.held.data, turn * 4)

        self._each(emit)


def store(kernel: Kernel, values: Values, output, row, start, count: int, place=None) -> None:
    """Emit the results of one thread: `count` neighbouring columns of a row, from `start` on.

    values  what is computed already
    output  the plain kernel's buffer
    place   the row as two indices, where `values` knows numbers of the row by them
    """
    dtype = str(output.dtype)
    place = place or (row // BLOCK, row % BLOCK)
    values = Values(kernel, outer=values)
    made = [values.at(output, (*place, start + i)) for i in range(count)]
    offset = (row * int(output.shape[-1]) + start) * gpu.SIZES[dtype]
    gpu.write(kernel.buffers[output], offset, made, dtype)
