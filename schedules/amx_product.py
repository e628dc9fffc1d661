"""Matrix products on AMX tiles: what one task computes, in turns of 32 rows times 32 columns.

A turn begins with the sums of the turn before: each accumulator is stored just before it is
cleared, so that the tile unit never waits for all of them. While the steps of the turn compute,
the vector units run the epilogue of those sums. Rows are read through the first-level cache, where
they stay while a few groups of columns pass by; weights come from the second-level cache past it
(tileloaddt1), as they would push the rows out.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.script import tirx as T

from intformer.ir.constants import BLOCK, DEPTH, LANES
from intformer.schedules import tir_edit
from intformer.schedules.amx_epilogue import dealt, epilogue

TILE_ROWS, TILE_BYTES, TILES = 16, 64, 8
# bytes of the tile configuration: the palette, then per tile COLSB (16 bits) and ROWS (8 bits)
PALETTE, COLSB, ROWS = 0, 16, 48
GROUP = 2 * TILE_ROWS // BLOCK  # blocks of two row tiles
A, B = 4, 6  # numbers of the first operand tiles; accumulators are 2 row + column
FEW = 4  # rows of an epilogue at a time where there are conditions
RESIDENT = 40 << 10  # bytes of rows that stay in the first-level cache


@dataclass(frozen=True)
class Turn:
    """Variables of one turn.

    number            of the turn in its task
    inside            whether it has products: one turn more finishes the last ones
    column            group of columns
    base, left        first block of rows, and blocks of this turn, at most GROUP
    before, finished  the same of the turn before, whose epilogue this one runs
    width             groups of columns of a task
    """

    number: tirx.Var
    inside: tirx.Var
    column: tirx.Var
    base: tirx.Var
    left: tirx.Var
    before: tirx.Var
    finished: tirx.Var
    width: int


class Product:
    """A scheduled matmul, its product replaced by tile instructions."""

    def __init__(self, func: tirx.PrimFunc, depth: int, vectors: int):
        """Take the parts of the function apart.

        depth    products of one tile
        vectors  of 16 columns in a group
        """
        self.whole, self.depth, self.vectors = func, depth, vectors
        parts = tir_edit.separate(func)
        self.columns, self.blocks = parts.epilogue.column.extent, parts.epilogue.row.extent
        self.epilogue = epilogue(func, parts, vectors * LANES)
        operands = tir_edit.operands(parts.product)
        self.x, self.w = operands.x, operands.weights
        self.length = int(self.x.shape[2])
        self.steps = self.length // depth
        self.products = [(a, v) for a in range(2) for v in range(vectors)]
        rows = GROUP * BLOCK
        self.part = -(-rows // (self.steps - 1)) if self.steps > 1 else FEW
        self.several, self.few = self.epilogue.buffers(self.part), self.epilogue.buffers(FEW)
        shape = (GROUP, BLOCK, vectors * LANES)
        self.sums = tirx.decl_buffer(shape, "int32", "acc", scope="global", data_alignment=64)
        self.config = tirx.decl_buffer((TILE_BYTES,), "uint8", "config", data_alignment=64)

    def func(self, width: int, chunk_bytes: int) -> tirx.PrimFunc:
        """Return the function with tiles; width groups of columns and so much of x to a task.

        parallel task in chunks of rows x chunks of columns:
            number in its tiles + 1: products of this tile, epilogue of the one before
        """
        chunk = max(1, chunk_bytes // (GROUP * BLOCK * self.length)) * GROUP
        task, number, first, start, groups = _variables(
            "task", "number", "first", "start", "groups"
        )
        parts = self.columns // width
        tasks = parts * tirx.ceildiv(self.blocks, chunk)
        turn = self._turn(number, first, start, groups, width)
        body = tirx.SeqStmt(
            [
                *self._constant_configuration(),
                _for(number, groups * width + 1, turn),
                _intrinsic("tilerelease"),
            ]
        )
        own = [self.sums, self.config, *self.several, *self.few]
        rows = tirx.min(self.blocks - first, chunk)
        body = tirx.SeqStmt(
            [
                tirx.Bind(start, tirx.floormod(task, parts) * width),
                tirx.Bind(first, tirx.floordiv(task, parts) * chunk),
                tirx.Bind(groups, tirx.ceildiv(rows, GROUP)),
                SBlockRealize([], True, SBlock([], [], [], "tiles", body, None, own)),
            ]
        )
        loop = _for(task, tasks, body, tirx.ForKind.PARALLEL)
        return tir_edit.with_root_body(self.whole, loop, [])

    def _turn(self, number, first, start, groups, width: int):
        """Bind the variables of a turn; with 32 rows behind 32 others it has no conditions."""
        column, base, left, before, finished = _variables(
            "column", "base", "left", "before", "finished"
        )
        inside, last = number < groups * width, tirx.max(number - 1, 0)
        turn = Turn(
            *(number, inside, column, base, left, before, finished, width),
        )
        full = tirx.all(number > 0, inside, left == GROUP)
        return tirx.SeqStmt(
            [
                tirx.Bind(column, start + tirx.floormod(number, width)),
                tirx.Bind(base, first + tirx.floordiv(number, width) * GROUP),
                tirx.Bind(left, tirx.min(self.blocks - base, GROUP)),
                tirx.Bind(self.epilogue.column, start + tirx.floormod(last, width)),
                tirx.Bind(before, first + tirx.floordiv(last, width) * GROUP),
                tirx.Bind(finished, tirx.min(self.blocks - before, GROUP)),
                tirx.IfThenElse(full, self._full(turn), self._partial(turn)),
            ]
        )

    # -- a turn of 32 rows -------------------------------------------------------------------------

    def _full(self, turn: Turn):
        """Stores and products of the first step; then steps with rows of the epilogue, and rest."""
        body = [*self._first_operands(turn)]
        for slot, (a, v) in enumerate(self.products):
            body += [
                self._store(a, v),
                _intrinsic("tilezero", _tile(2 * a + v)),
                *self._product(turn, slot, 0),
            ]
        rows, step = GROUP * BLOCK, 1
        rounds = rows // self.part if self.steps == 1 else min(rows // self.part, self.steps - 1)
        for count, times in ((self.part, rounds), (rows - rounds * self.part, 1)):
            if count:
                done = 0 if count == self.part else rounds * self.part
                body.append(self._beside(turn, step, times, done, count))
                step += times
        if step < self.steps:
            (k,) = _variables("k")
            plain = [s for slot in self._slots for s in self._product(turn, slot, k + step)]
            body.append(_for(k, self.steps - step, tirx.SeqStmt(plain)))
        return tirx.SeqStmt(body)

    @property
    def _slots(self) -> range:
        return range(len(self.products))

    def _beside(self, turn: Turn, step: int, times: int, done: int, count: int):
        """Return `times` steps from `step` on, each with `count` rows of the epilogue."""
        (k,) = _variables("k")
        stages = self.epilogue.of_rows(
            done + k * count, count, turn.before, self.sums, self.several
        )
        body = []
        for slot, some in enumerate(dealt(stages, len(self.products))):
            products = self._product(turn, slot, k + step) if self.steps > 1 else []
            body += [*products, *some]
        return _for(k, times, _together(body))

    # -- any other turn ----------------------------------------------------------------------------

    def _partial(self, turn: Turn):
        """A turn with fewer rows, the first one, or the one behind the last."""
        k, q = _variables("k", "q")
        both, were_both = turn.left > GROUP // 2, turn.finished > GROUP // 2
        stores = [[self._store(a, v) for v in range(self.vectors)] for a in range(2)]
        some = tirx.SeqStmt([*stores[0], tirx.IfThenElse(were_both, _together(stores[1]), None)])
        width = turn.width
        fresh = tirx.any(
            turn.number == 0, tirx.all(turn.left < GROUP, tirx.floormod(turn.number, width) == 0)
        )
        zero = [_intrinsic("tilezero", _tile(2 * a + v)) for a, v in self.products]
        begin = [
            tirx.IfThenElse(fresh, self._configure(turn.left), None),
            *zero,
            *self._first_operands(turn),
        ]
        step = [s for slot in self._slots for s in self._product(turn, slot, k, both)]
        part = -(-GROUP * BLOCK // FEW // self.steps)
        stages = self.epilogue.of_rows((q + k * part) * FEW, FEW, turn.before, self.sums, self.few)
        parts = tirx.Select(turn.number > 0, turn.finished * (BLOCK // FEW), tirx.const(0, "int32"))
        beside = _for(q, tirx.min(parts - k * part, part), _together(stages))
        steps = tirx.SeqStmt([tirx.IfThenElse(turn.inside, _together(step), None), beside])
        return tirx.SeqStmt(
            [
                tirx.IfThenElse(turn.number > 0, some, None),
                tirx.IfThenElse(turn.inside, _together(begin), None),
                _for(k, self.steps, steps),
            ]
        )

    # -- tiles -------------------------------------------------------------------------------------

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

    def _load_a(self, tile: int, turn: Turn, k):
        resident = GROUP * BLOCK * self.length <= RESIDENT
        address = _address(self.x, turn.base + 2 * tile, 0, k * self.depth)
        name = "tileloadd64" if resident else "tileloaddt164"
        return _intrinsic(name, _tile(A + tile), address, _long(self.length))

    def _load_b(self, tile: int, turn: Turn, k):
        vector = turn.column * self.vectors + tile
        address = _address(self.w, vector, k * (self.depth // DEPTH), 0, 0)
        return _intrinsic("tileloaddt164", _tile(B + tile), address, _long(TILE_BYTES))

    def _first_operands(self, turn: Turn) -> list:
        """Load what the first step begins with."""
        return [self._load_a(0, turn, 0), *(self._load_b(v, turn, 0) for v in range(self.vectors))]

    def _product(self, turn: Turn, slot: int, k, both=True) -> list:
        """One product of a step; then operands of this step or the next after their last use.

        both  whether there is a second tile of rows
        """
        a, v = self.products[slot]
        more = k + 1 < self.steps
        loads = []
        if slot == 0:
            loads.append((both, self._load_a(1, turn, k)))
        if (a, v) == (0, self.vectors - 1):
            loads.append((more, self._load_a(0, turn, k + 1)))
        if a == 1:
            loads.append((more, self._load_b(v, turn, k + 1)))
        product = _intrinsic("tdpbusd", _tile(2 * a + v), _tile(A + a), _tile(B + v))
        return [_if(both if a else True, product), *(_if(when, load) for when, load in loads)]

    def _store(self, a: int, v: int):
        """Store an accumulator."""
        address = _address(self.sums, 2 * a, 0, v * LANES)
        pitch = _long(self.vectors * TILE_BYTES)
        return _intrinsic("tilestored64", _tile(2 * a + v), address, pitch)


def _together(stmts: list):
    return tirx.SeqStmt(stmts) if len(stmts) > 1 else stmts[0]


def _if(condition, stmt):
    return stmt if condition is True else tirx.IfThenElse(condition, stmt, None)


def _variables(*names):
    return [tirx.Var(name, "int32") for name in names]


def _for(var, extent, body, kind=tirx.ForKind.SERIAL):
    return tirx.For(var, 0, extent, kind, body)


def _long(number: int):
    return tirx.const(number, "int64")


def _tile(number: int):
    return tirx.const(number, "int8")


def _address(buffer, *indices):
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def _intrinsic(name: str, *args):
    number = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.Evaluate(tirx.call_llvm_intrin("void", number, *args))
