"""Schedule rule for Intel AMX: int8 matrix products on tiles; all else as in x86.py.

The layouts are the tiles' own: 16 rows of x [blocks, 8, K] are an A tile (one row every K bytes),
and 64 products of a packed weight [N / 16, K / 4, 16, 4] are 16 lines of 64 bytes, a B tile.

32 rows times 32 columns are one turn: four accumulators, of 16 x 16 each. They go to a scratch of
int32; while the tiles compute the next turn, the vector units run the epilogue of the last one, a
few rows with every step of the product. The rows stay in the first-level cache while a few groups
of columns pass by, whose weights stay in the second-level cache for the next rows.
"""

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH, LANES
from intformer.schedules import tir_edit, x86
from intformer.schedules.space import blocks, decide
from intformer.schedules.space import space as x86_space

TILE_ROWS, TILE_BYTES, TILES = 16, 64, 8
# bytes of the tile configuration: the palette, then per tile COLSB (16 bits) and ROWS (8 bits)
PALETTE, COLSB, ROWS = 0, 16, 48
GROUP = 2 * TILE_ROWS // BLOCK  # blocks of two row tiles
A, B = 4, 6  # numbers of the first operand tiles; accumulators are 2 row + column
COLUMNS, TASKS = 4, 6  # by default: the most groups of columns at a time, the fewest tasks
FIRST_LEVEL, SECOND_LEVEL = 3, 2  # of the caches, as llvm.prefetch counts locality
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

    columns   groups of columns that pass by 32 rows, which stay in the first-level cache
    chunk     KiB of input rows that stay in the second-level cache while columns pass by
    prefetch  1: ask for the next weights, rows and output lines beside each step; 0: never
    """
    sch = Schedule(func)
    if not _tile_depth(sch):
        return x86_space(func, isa)
    (_, _, j, _, *_) = sch.get_loops(blocks(sch)[0])
    vectors = int(sch.get(j).extent)
    groups = vectors // 2 if vectors % 2 == 0 else vectors
    fit = [c for c in (4, 2, 1, 3, 8) if groups % c == 0]
    default = max((c for c in fit if c <= COLUMNS and groups // c >= TASKS), default=1)
    return {
        "columns": [default, *(c for c in fit if c != default)],
        "chunk": [1024, 256, 512, 2048],
        "prefetch": [1, 0],
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


def _matmul(sch: Schedule, depth: int, columns: int, chunk: int, prefetch: int) -> tirx.PrimFunc:
    _, *epilogue = blocks(sch)
    i, r, j = sch.get_loops(epilogue[-1])
    vectors = 2 if sch.get(j).extent.value % 32 == 0 else 1
    outer, tile = sch.split(j, [None, vectors * LANES])
    sch.reorder(outer, i, r, tile)
    x86.finish(sch, epilogue, r, LANES)
    out = sch.get(epilogue[-1]).writes[0].source
    return _Tiled(sch.mod["main"], out, depth, vectors, bool(prefetch)).func(columns, chunk << 10)


class _Tiled:
    """A scheduled matmul, its product replaced by tile instructions."""

    def __init__(self, func: tirx.PrimFunc, out, depth: int, vectors: int, prefetch: bool):
        """Take the parts of the function apart.

        out      the buffer that the epilogue ends in
        depth    products of one tile
        vectors  of 16 columns in a group
        """
        self.prefetch = prefetch
        self.whole, self.out, self.depth, self.vectors = func, out, depth, vectors
        parts = tir_edit.separate(func)
        self.column, self.row, self.inner = parts.epilogue.column, parts.epilogue.row, parts.inner
        self.acc = tir_edit.allocated(func, "matmul")
        operands = tir_edit.operands(parts.product)
        self.x, self.w = operands.x, operands.weights
        self.length = int(self.x.shape[2])
        self.steps = self.length // depth
        shape = (2, GROUP, BLOCK, vectors * LANES)  # this tile and the one before
        self.scratch = tirx.decl_buffer(shape, "int32", "acc", scope="global", data_alignment=64)
        self.config = tirx.decl_buffer((TILE_BYTES,), "uint8", "config", data_alignment=64)

    def func(self, width: int, chunk_bytes: int) -> tirx.PrimFunc:
        """Return the function with tiles; width groups of columns and so much of x to a task.

        parallel task in chunks of rows x chunks of columns:
            number in its tiles + 1: products of this tile, epilogue of the one before
        """
        columns, blocks = self.column.extent, self.row.extent
        chunk = max(1, chunk_bytes // (GROUP * BLOCK * self.length)) * GROUP
        task, number, first, start = _variables("task", "number", "first", "start")
        groups = tirx.ceildiv(tirx.min(blocks - first, chunk), GROUP)
        body = tirx.SeqStmt(
            [
                *self._constant_configuration(),
                _for(number, groups * width + 1, self._tile(number, first, start, groups, width)),
                _intrinsic("tilerelease"),
            ]
        )
        inner = SBlock([], [], [], "tiles", body, None, [self.scratch, self.config])
        parts = columns // width
        body = tirx.SeqStmt(
            [
                tirx.Bind(start, tirx.floormod(task, parts) * width),
                tirx.Bind(first, tirx.floordiv(task, parts) * chunk),
                SBlockRealize([], True, inner),
            ]
        )
        loop = _for(task, parts * tirx.ceildiv(blocks, chunk), body, tirx.ForKind.PARALLEL)
        buffers = tir_edit.root_block(self.whole).alloc_buffers
        kept = [buffer for buffer in buffers if not buffer.same_as(self.acc)]
        return tir_edit.with_root_body(self.whole, loop, kept)

    def _tile(self, number, first, start, groups, width: int):
        """Return one turn: tile `number` into the scratch, the epilogue of the tile before."""
        column, base, left, before, rows, k, q = _variables(
            "column", "base", "left", "before", "rows", "k", "q"
        )
        active, both = number < groups * width, left > GROUP // 2
        last = tirx.max(number - 1, 0)  # not negative, so that row buffers need no index
        part = -(-GROUP * BLOCK // self.steps)  # rows whose epilogue goes with one step
        row = q + k * part
        ahead = [
            self._prefetch_weights(
                tirx.min(start + width, self.column.extent - width), number, k, groups
            ),
            self._prefetch_rows(base + GROUP, k, column - start, width),
            self._prefetch_output(base, k, part, column),
        ]
        epilogue = tirx.SeqStmt(
            [
                tirx.Bind(self.row.loop_var, before + tirx.floordiv(row, BLOCK)),
                tirx.Bind(self.inner.loop_var, tirx.floormod(row, BLOCK)),
                self._epilogue(before, tirx.floormod(last, 2)),
            ]
        )
        products = self._step(k, column, base, both)
        step = [
            tirx.IfThenElse(active, products, None),
            *(ahead if self.prefetch else []),
            _for(q, tirx.min(rows - k * part, part), epilogue),
        ]
        fresh = tirx.any(number == 0, tirx.all(left < GROUP, tirx.floormod(number, width) == 0))
        begin = tirx.SeqStmt(
            [tirx.IfThenElse(fresh, self._configure(left), None), *self._begin(column, base, both)]
        )
        end = tirx.SeqStmt(self._end(tirx.floormod(number, 2), both))
        return tirx.SeqStmt(
            [
                tirx.Bind(column, start + tirx.floormod(number, width)),
                tirx.Bind(base, first + tirx.floordiv(number, width) * GROUP),
                tirx.Bind(left, tirx.min(self.row.extent - base, GROUP)),
                tirx.Bind(self.column.loop_var, start + tirx.floormod(last, width)),
                tirx.Bind(before, first + tirx.floordiv(last, width) * GROUP),
                tirx.Bind(
                    rows,
                    tirx.Select(
                        number > 0,
                        tirx.min(self.row.extent - before, GROUP) * BLOCK,
                        tirx.const(0, "int32"),
                    ),
                ),
                tirx.IfThenElse(active, begin, None),
                _for(k, self.steps, tirx.SeqStmt(step)),
                tirx.IfThenElse(active, end, None),
            ]
        )

    def _epilogue(self, before, half):
        """Return the body of one row, reading the scratch in place of the product."""

        def place(i, r, jo, ji):
            j = (jo - self.column.loop_var * self.vectors) * LANES + ji
            return [half, i - before, r, j]

        return tir_edit.redirected(self.inner.body, self.acc, self.scratch, place)

    def _constant_configuration(self) -> list:
        """Fill in all of the configuration but the rows that depend on the rows left."""
        numbers = {PALETTE: 1}
        for tile in range(TILES):
            operand = A <= tile < B
            numbers[COLSB + 2 * tile] = self.depth if operand else TILE_BYTES
            numbers[ROWS + tile] = self.depth // DEPTH if tile >= B else TILE_ROWS
        return [
            tirx.BufferStore(self.config, tirx.const(numbers.get(at, 0), "uint8"), [at])
            for at in range(TILE_BYTES)
        ]

    def _configure(self, left):
        """Give the tiles as many rows as are left, and load the configuration."""
        upper = tirx.min(left, 2) * BLOCK
        lower = tirx.max(left - 2, 1) * BLOCK
        rows = {0: upper, 1: upper, A: upper, 2: lower, 3: lower, A + 1: lower}
        stores = [
            tirx.BufferStore(self.config, count.astype("uint8"), [ROWS + tile])
            for tile, count in rows.items()
        ]
        return tirx.SeqStmt([*stores, _intrinsic("ldtilecfg", _address(self.config, 0))])

    def _load_a(self, tile: int, base, k):
        address = _address(self.x, base + 2 * tile, 0, k * self.depth)
        return _intrinsic("tileloadd64", _tile(A + tile), address, _long(self.length))

    def _load_b(self, tile: int, column, k):
        vector = column * self.vectors + tile
        address = _address(self.w, vector, k * (self.depth // DEPTH), 0, 0)
        return _intrinsic("tileloadd64", _tile(B + tile), address, _long(TILE_BYTES))

    def _begin(self, column, base, both) -> list:
        """Clear the accumulators; load what the first step begins with."""
        zero = [_intrinsic("tilezero", _tile(t)) for t in range(A)]
        loads = [self._load_b(0, column, 0), self._load_a(0, base, 0)]
        if self.vectors == 2:
            return [*zero, *loads, self._load_b(1, column, 0)]
        return [zero[0], zero[2], *loads]

    def _step(self, k, column, base, both):
        """One product of every accumulator; an operand of the next step after its last use."""
        more = k + 1 < self.steps
        body = [
            _dot(0, 0),
            tirx.IfThenElse(both, self._load_a(1, base, k), None),
            *([_dot(0, 1)] if self.vectors == 2 else []),
            tirx.IfThenElse(more, self._load_a(0, base, k + 1), None),
            tirx.IfThenElse(both, _dot(1, 0), None),
            tirx.IfThenElse(more, self._load_b(0, column, k + 1), None),
        ]
        if self.vectors == 2:
            body += [
                tirx.IfThenElse(both, _dot(1, 1), None),
                tirx.IfThenElse(more, self._load_b(1, column, k + 1), None),
            ]
        return tirx.SeqStmt(body)

    def _prefetch_weights(self, start, number, k, groups):
        """The weights of the next task, spread over the steps of this one.

        Some lines may lie past the last weight: a prefetch of what is not there does nothing.
        """
        (line,) = _variables("line")
        count = tirx.const(self.vectors * LANES, "int32")
        for power in range(1, 6):  # no division by a variable
            share = max(1, self.vectors * LANES >> power)
            count = tirx.Select(groups >= 1 << power, tirx.const(share, "int32"), count)
        at = (number * self.steps + k) * count + line
        address = _address(self.w, start * self.vectors, at, 0, 0)
        return _for(line, count, _prefetch(address, SECOND_LEVEL))

    def _prefetch_rows(self, base, k, turn, turns: int):
        """One line of each of the next 32 rows of x, spread over the turns of these rows."""
        (line,) = _variables("line")
        count = -(-GROUP * BLOCK // turns)
        row = turn * count + line
        address = _row_address(self.x, base, row, k * self.depth)
        return _for(line, count, _prefetch(address, SECOND_LEVEL))

    def _prefetch_output(self, base, k, count: int, column):
        """Where the epilogue of this turn will write."""
        (line,) = _variables("line")
        row = k * count + line
        address = _row_address(self.out, base, row, column * self.vectors * LANES)
        return _for(line, count, _prefetch(address, FIRST_LEVEL))

    def _end(self, half, both) -> list:
        """Store the accumulators."""
        pitch = _long(self.vectors * TILE_BYTES)

        def store(a, j):
            address = _address(self.scratch, half, 2 * a, 0, j * LANES)
            return _intrinsic("tilestored64", _tile(2 * a + j), address, pitch)

        upper, lower = ([store(a, j) for j in range(self.vectors)] for a in (0, 1))
        return [
            *upper,
            tirx.IfThenElse(both, tirx.SeqStmt(lower) if len(lower) > 1 else lower[0], None),
        ]


def _variables(*names):
    return [tirx.Var(name, "int32") for name in names]


def _for(var, extent, body, kind=tirx.ForKind.SERIAL):
    return tirx.For(var, 0, extent, kind, body)


def _long(number: int):
    return tirx.const(number, "int64")


def _prefetch(address, level: int):
    number = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    args = (tirx.const(n, "int32") for n in (0, level, 1))  # to read, data
    return tirx.Evaluate(tirx.call_llvm_intrin("void", number, address, *args))


def _dot(a: int, j: int):
    return _intrinsic("tdpbusd", _tile(2 * a + j), _tile(A + a), _tile(B + j))


def _tile(number: int):
    return tirx.const(number, "int8")


def _address(buffer, *indices):
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def _row_address(buffer, base, row, column):
    """Address in a row counted from a block; 64-bit, or LLVM sign-extends every line anew."""
    block = base + tirx.floordiv(row, BLOCK)
    indices = block, tirx.floormod(row, BLOCK), column
    return _address(buffer, *(index.astype("int64") for index in indices))


def _intrinsic(name: str, *args):
    number = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.Evaluate(tirx.call_llvm_intrin("void", number, *args))
