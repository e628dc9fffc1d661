"""Schedule rule for Intel AMX: int8 matrix products on tiles; all else as in x86.py.

The layouts are the tiles' own: 16 rows of x [blocks, 8, K] are an A tile (one row every K bytes),
and 64 K-products of a packed weight [N / 16, K / 4, 16, 4] are 16 lines of 64 bytes, a B tile.

A task takes a group of columns past a chunk of rows, 32 rows at a time: the tiles' accumulators go
to a scratch of int32 [4, 8, vectors, 16], from where the epilogue reads them.
"""

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.script import tirx as T

from intformer.schedules import x86

CHUNK_BYTES = 1 << 20  # of x: it stays in the second-level cache while columns pass by
TILE_ROWS, TILE_BYTES, TILES = 16, 64, 8
BLOCK = 8  # rows of a block
GROUP = 2 * TILE_ROWS // BLOCK  # blocks of two row tiles
A, B = 4, 6  # numbers of the first operand tiles; accumulators are 2 row + column
SHORTEST = 32  # bytes of a row of an A tile below which the tiles do not pay


def schedule(func: tirx.PrimFunc, isa) -> tirx.PrimFunc:
    """Apply the tile rule to a matmul whose shape suits it, the x86 rule to all else."""
    sch = Schedule(func)
    block = sch.get(x86._blocks(sch)[0])
    if block.name_hint == "matmul":
        x, _ = (region.source for region in block.reads)
        depth = _depth(int(x.shape[2]))
        if depth >= SHORTEST:
            return _matmul(sch, depth)
    return x86.schedule(func, isa)


def _depth(length: int) -> int:
    """Return how many products of `length` one tile takes: the most that divide it evenly."""
    return next(d for d in range(TILE_BYTES, 0, -4) if length % d == 0)


def _matmul(sch: Schedule, depth: int) -> tirx.PrimFunc:
    _, *epilogue = x86._blocks(sch)
    i, r, j = sch.get_loops(epilogue[-1])
    columns = sch.get(j).extent.value // 16
    vectors = 2 if columns % 2 == 0 else 1
    outer, inner, lane = sch.split(j, [None, vectors, 16])
    sch.reorder(outer, i, r, inner, lane)
    for block in reversed(epilogue[:-1]):
        sch.compute_at(block, inner)
    for block in epilogue:
        sch.vectorize(sch.get_loops(block)[-1])
    sch.unroll(inner)
    return _Tiled(sch.mod["main"], depth, vectors).func()


class _Tiled:
    """A scheduled matmul, its product replaced by tile instructions."""

    def __init__(self, func: tirx.PrimFunc, depth: int, vectors: int):
        """Take the parts of the function apart.

        depth    products of one tile
        vectors  of 16 columns in a group
        """
        self.whole, self.depth, self.vectors = func, depth, vectors
        root = func.body.block
        product, self.column = root.body
        self.row = self.column.body
        self.acc = next(b for b in root.alloc_buffers if b.name == "matmul")
        while not isinstance(product, SBlockRealize):
            product = product.body
        self.x, self.w = (region.source for region in product.block.reads)
        self.scratch = tirx.decl_buffer((GROUP, BLOCK, vectors, 16), "int32", "acc", scope="global")
        self.config = tirx.decl_buffer((TILE_BYTES,), "uint8", "config", data_alignment=64)

    def func(self) -> tirx.PrimFunc:
        """Return the function with tiles.

        parallel task in columns * chunks: group in the chunk's rows / 32:
            tiles -> scratch, epilogue of up to four row blocks
        """
        length = int(self.x.shape[2])
        chunk = max(1, CHUNK_BYTES // (GROUP * BLOCK * length)) * GROUP
        columns, blocks = self.column.extent, self.row.extent
        task, group, part = (tirx.Var(n, "int32") for n in ("task", "group", "part"))
        column, first, base = self.column.loop_var, tirx.Var("first", "int32"), None
        base, left = tirx.Var("base", "int32"), tirx.Var("left", "int32")
        inside = tirx.For(
            part,
            0,
            left,
            tirx.ForKind.SERIAL,
            tirx.SeqStmt([tirx.Bind(self.row.loop_var, base + part), self._epilogue(base)]),
        )
        body = tirx.SeqStmt(
            [
                tirx.Bind(base, first + group * GROUP),
                tirx.Bind(left, tirx.min(blocks - base, GROUP)),
                tirx.IfThenElse(tirx.any(group == 0, left < GROUP), self._configure(left), None),
                tirx.IfThenElse(
                    left > GROUP // 2, self._tiles(2, column, base), self._tiles(1, column, base)
                ),
                inside,
            ]
        )
        rows = tirx.min(blocks - first, chunk)
        body = tirx.SeqStmt(
            [
                *self._constant_configuration(),
                tirx.For(group, 0, tirx.ceildiv(rows, GROUP), tirx.ForKind.SERIAL, body),
                _intrinsic("tilerelease"),
            ]
        )
        inner = SBlock([], [], [], "tiles", body, None, [self.scratch, self.config])
        body = tirx.SeqStmt(
            [
                tirx.Bind(column, tirx.floormod(task, columns)),
                tirx.Bind(first, tirx.floordiv(task, columns) * chunk),
                SBlockRealize([], True, inner),
            ]
        )
        tasks = columns * tirx.ceildiv(blocks, chunk)
        loop = tirx.For(task, 0, tasks, tirx.ForKind.PARALLEL, body)
        root = self.whole.body.block
        kept = [b for b in root.alloc_buffers if not b.same_as(self.acc)]
        root = SBlock([], root.reads, root.writes, root.name_hint, loop, None, kept)
        return self.whole.with_body(SBlockRealize([], True, root))

    def _epilogue(self, base):
        """Return the body of one row block, reading the scratch in place of the product."""

        def load(node):
            if not node.source.same_as(self.acc):
                return node
            i, r, jo, ji = node.indices
            return tirx.BufferLoad(
                self.scratch, [i - base, r, jo - self.column.loop_var * self.vectors, ji]
            )

        def region(node):
            if not node.source.same_as(self.acc):
                return node
            whole = [ir.Range(0, extent) for extent in self.scratch.shape]
            return tirx.BufferRegion(self.scratch, whole)

        return tvm_ffi.structural_map(
            self.row.body, [(ir.TensorLoad, load), (ir.TensorRegion, region)]
        )

    def _constant_configuration(self) -> list:
        """Fill in all of the configuration but the rows that depend on the rows left."""
        numbers = {0: 1}  # palette
        for tile in range(TILES):
            operand = A <= tile < B
            numbers[16 + 2 * tile] = self.depth if operand else TILE_BYTES
            numbers[48 + tile] = self.depth // 4 if tile >= B else TILE_ROWS
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
            tirx.BufferStore(self.config, count.astype("uint8"), [48 + tile])
            for tile, count in rows.items()
        ]
        return tirx.SeqStmt([*stores, _intrinsic("ldtilecfg", _address(self.config, 0))])

    def _tiles(self, rows: int, column, base):
        """Compute `rows` row tiles of the column group into the scratch."""
        k = tirx.Var("k", "int32")
        stride = tirx.const(int(self.x.shape[2]), "int64")
        line = tirx.const(64, "int64")
        acc = [(a, j) for a in range(rows) for j in range(self.vectors)]
        step = [
            _intrinsic(
                "tileloadd64",
                _tile(A + a),
                _address(self.x, base + 2 * a, 0, k * self.depth),
                stride,
            )
            for a in range(rows)
        ]
        step += [
            _intrinsic(
                "tileloadd64",
                _tile(B + j),
                _address(self.w, column * self.vectors + j, k * (self.depth // 4), 0, 0),
                line,
            )
            for j in range(self.vectors)
        ]
        step += [
            _intrinsic("tdpbusd", _tile(2 * a + j), _tile(A + a), _tile(B + j)) for a, j in acc
        ]
        steps = int(self.x.shape[2]) // self.depth
        loop = tirx.For(k, 0, steps, tirx.ForKind.SERIAL, tirx.SeqStmt(step))
        pitch = tirx.const(self.vectors * 64, "int64")
        return tirx.SeqStmt(
            [
                *(_intrinsic("tilezero", _tile(2 * a + j)) for a, j in acc),
                loop,
                *(
                    _intrinsic(
                        "tilestored64",
                        _tile(2 * a + j),
                        _address(self.scratch, 2 * a, 0, j, 0),
                        pitch,
                    )
                    for a, j in acc
                ),
            ]
        )


def _tile(number: int):
    return tirx.const(number, "int8")


def _address(buffer, *indices):
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def _intrinsic(name: str, *args):
    number = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.Evaluate(tirx.call_llvm_intrin("void", number, *args))
