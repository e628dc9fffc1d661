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
    columns, _ = extents(kernel)
    block_x = T.thread_binding(columns // tile.columns, thread="blockIdx.x")
    block_y = T.thread_binding(65535, thread="blockIdx.y")
    threads = T.thread_binding(tile.threads, thread="threadIdx.x")
    with block_x as across, block_y as down, threads as thread:
        with T.If(down * tile.rows < kernel.count(rows)), T.Then():
            product = _Product(kernel, tile, depth, down, across, thread)
            product.emit()
            product.finish()


class _Product:
    """One tile of the result under construction.

    wide    8-wide tiles of a warp that are neighbours
    down    16-high tiles of a warp
    across  groups of `wide` 8-wide tiles of a warp
    """

    def __init__(self, kernel: Kernel, tile: Tile, depth: int, block_down, block_across, thread):
        """Bind where the tile is, and allocate its memory (arguments: body)."""
        self.kernel, self.tile, self.depth = kernel, tile, depth
        x, w = (kernel.buffers[p] for p in kernel.func.params[:2])
        _, self.length = extents(kernel)
        self.wide = min(4, tile.columns // tile.warps_across // 8)
        self.down = tile.rows // tile.warps_down // 16
        self.across = tile.columns // tile.warps_across // 8 // self.wide
        self.pieces = depth // PIECE
        self.first_row = T.bind(block_down * tile.rows)
        self.first_column = T.bind(block_across * tile.columns)
        self.lane = T.bind(thread % 32)
        self.warp_row = T.bind(thread // 32 // tile.warps_across * (self.down * 16))
        self.warp_column = T.bind(thread // 32 % tile.warps_across * (self.across * self.wide * 8))
        self.x = T.alloc_buffer((2 * tile.rows * depth,), "uint8", scope="shared")
        self.w = T.alloc_buffer((2 * tile.columns * depth,), "int8", scope="shared")
        size = self.down * self.across * self.wide * 4
        self.acc = T.alloc_buffer((size,), "int32", scope="local")
        share = tile.threads, thread, self.pieces, self.length
        self.loads = [
            _Load(x, self.first_row, tile.rows, self.x, self._turn_x, *share),
            _Load(w, self.first_column, tile.columns, self.w, self._turn_w, *share),
        ]
        with T.unroll(size) as i:
            T.buffer_store(self.acc, 0, [i])

    def emit(self) -> None:
        """Emit the product: the next step is on its way while this one is computed."""
        steps = -(-self.length // self.depth)
        self._fetch(0)
        self._keep(0)
        gpu.synchronise()
        with T.serial(steps - 1) as step:
            self._fetch(step + 1)
            self._products(step)
            self._keep(step + 1)
            gpu.synchronise()
        self._products(steps - 1)

    def finish(self) -> None:
        """Emit all that is elementwise behind the product, and store the results."""
        with T.unroll(self.down) as i, T.unroll(self.across) as group, T.unroll(2) as half:
            row = T.bind(self.first_row + self.warp_row + i * 16 + half * 8 + self.lane // 4)
            start = T.bind(
                self.first_column
                + self.warp_column
                + group * (self.wide * 8)
                + self.lane % 4 * (2 * self.wide)
            )

            def result(_block, _row, *column):
                place = column[0] - start
                tile = (i * self.across + group) * self.wide + place // 2
                return self.acc[tile * 4 + half * 2 + place % 2]

            made = {self.kernel.stages[0].stores[0][0]: result}
            values = Values(self.kernel, made)
            store(self.kernel, values, self.kernel.outputs[0], row, start, 2 * self.wide)

    def _turn_x(self, row):
        """Return by how many pieces a row of x is rotated."""
        return row // (8 // self.pieces)

    def _turn_w(self, row):
        """Return by how many pieces a row of the weights is rotated."""
        return row // (2 * self.wide)

    def _place(self, row, piece, turn):
        """Return where a piece of a row lies in a tile."""
        return row * self.depth + ((piece ^ (turn % self.pieces)) * PIECE)

    def _fetch(self, step) -> None:
        for load in self.loads:
            load.fetch(step, self.depth, self.length % self.depth == 0)

    def _keep(self, step) -> None:
        for load in self.loads:
            load.keep(step % 2, self._place)

    def _products(self, step) -> None:
        """Emit the products of one step, whose operands are in shared memory."""
        a = T.alloc_buffer((self.down * 4,), "uint32", scope="local")
        b = T.alloc_buffer((self.wide * 2,), "uint32", scope="local")
        with T.unroll(self.depth // STEP) as part:
            with T.unroll(self.down) as i:
                row = self.warp_row + i * 16 + self.lane % 16
                at = self._place(row, part * 2 + self.lane // 16, self._turn_x(row))
                half = step % 2 * (self.tile.rows * self.depth)
                gpu.call("ldmatrix", a.data, i * 4, self.x.data, half + at)
            with T.unroll(self.across) as group:
                self._load_weights(b, step, part, group)
                with T.unroll(self.down) as i, T.unroll(self.wide) as j:
                    place = ((i * self.across + group) * self.wide + j) * 4
                    gpu.call("mma_u8", self.acc.data, place, a.data, i * 4, b.data, j * 2)

    def _load_weights(self, b, step, part, group) -> None:
        """Emit the loads of a group's weights.

        Row r of the 8-wide tile j is neighbour r // 2 * 2 wide + 2 j + r % 2 of the group.
        """
        lane, wide = self.lane, self.wide
        with T.unroll(wide // 2) as pair:
            inside = lane % 8 // 2 * (2 * wide) + (pair * 2 + lane // 16) * 2 + lane % 2
            row = self.warp_column + group * (wide * 8) + inside
            at = self._place(row, part * 2 + lane // 8 % 2, self._turn_w(row))
            half = step % 2 * (self.tile.columns * self.depth)
            gpu.call("ldmatrix", b.data, pair * 4, self.w.data, half + at)


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
