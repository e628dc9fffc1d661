"""The epilogue of a product on tiles: several rows at a time, in parts between tile products.

A core takes up to six instructions a cycle in order, and starts those whose operands are there. The
long chains of one row's epilogue would fill its queues, so that no tile product starts beside them.
So each stage takes several rows, one after the other, and the stages are dealt out to the tile
products of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.s_tir import SBlockRealize
from tvm_ffi import structural_map, structural_walk

from intformer.ir.constants import BLOCK, LANES
from intformer.schedules import tir_edit


@dataclass(frozen=True)
class Epilogue:
    """What follows a product, scheduled row by row.

    stages  statements of one row, first to last
    row     variable of the block of eight rows
    inner   variable of the row in it
    column  variable of the tile of columns
    acc     buffer of the product [blocks, 8, N / 16, 16]
    own     buffers between the stages [blocks, 8, N]
    width   columns of a tile
    """

    stages: tuple
    row: tirx.Var
    inner: tirx.Var
    column: tirx.Var
    acc: tirx.Buffer
    own: tuple
    width: int

    def buffers(self, count: int) -> list[tirx.Buffer]:
        """Return buffers that hold what is between the stages of `count` rows."""
        shape = (count, self.width)
        return [tirx.decl_buffer(shape, own.dtype, own.name, data_alignment=64) for own in self.own]

    def of_rows(self, first, count: int, base, scratch: tirx.Buffer, between: list) -> list:
        """Return the stages for `count` rows, from row `first` of a tile on.

        base     the tile's first block of rows
        scratch  sums of the tile [blocks, 8, columns]
        between  `buffers` of at least as many rows
        """
        return [self._stage(stage, first, count, base, scratch, between) for stage in self.stages]

    def _stage(self, stage, first, count: int, base, scratch, between: list):
        number = tirx.Var("number", "int32")
        row = first + number
        place = {
            self.row: base + tirx.floordiv(row, BLOCK),
            self.inner: tirx.floormod(row, BLOCK),
        }

        def local(*indices):
            return [number, indices[-1] - self.column * self.width]

        def sums(*indices):
            start = self.column * (self.width // LANES)
            column = (indices[-2] - start) * LANES + indices[-1]
            return [tirx.floordiv(row, BLOCK), tirx.floormod(row, BLOCK), column]

        moved = {self.acc: (scratch, sums)}
        moved |= {old: (new, local) for old, new in zip(self.own, between, strict=True)}
        body = _moved(_renewed(_placed(stage, place)), moved)
        return tirx.For(number, 0, count, tirx.ForKind.UNROLLED, body)


def epilogue(func: tirx.PrimFunc, parts: tir_edit.Separate, width: int) -> Epilogue:
    """Return the epilogue of a function whose product is a nest of its own.

    width  columns of a tile
    """
    acc = tir_edit.allocated(func, "matmul")
    own = [b for b in tir_edit.root_block(func).alloc_buffers if not b.same_as(acc)]
    body = parts.inner.body
    stages = tuple(body) if isinstance(body, tirx.SeqStmt) else (body,)
    row, column = parts.epilogue.row.loop_var, parts.epilogue.column.loop_var
    return Epilogue(stages, row, parts.inner.loop_var, column, acc, tuple(own), width)


def dealt(stages: Sequence, parts: int) -> list[list]:
    """Deal stages out to so many parts, in order, so that the parts have about the same work."""
    costs = [_cost(stage) for stage in stages]
    share, total, found = sum(costs) / parts, 0.0, [[] for _ in range(parts)]
    for stage, cost in zip(stages, costs, strict=True):
        middle = total + cost / 2
        found[min(int(middle / share), parts - 1)].append(stage)
        total += cost
    return found


def _cost(stage) -> int:
    """Return how many vector operations a stage takes, about."""
    found = []
    operations = ir.Call, tirx.Add, tirx.Sub, tirx.Mul, tirx.Min, tirx.Max
    structural_walk(stage, (operations, found.append))
    return len(found)


def _placed(stage, place: dict):
    """Return a statement out of its blocks, with other expressions for some variables."""

    def inside(node):
        block = node.block
        values = dict(zip((it.var for it in block.iter_vars), node.iter_values, strict=True))
        return _replaced(block.body, values)

    return _replaced(structural_map(stage, (SBlockRealize, inside)), place)


def _renewed(stmt):
    """Return a statement with variables of its own: a function defines each of them once."""
    defined = []
    structural_walk(stmt, (tirx.For, lambda loop: defined.append(loop.loop_var)))
    structural_walk(stmt, (tirx.Bind, lambda bind: defined.append(bind.var)))
    return _replaced(stmt, {old: tirx.Var(old.name, old.ty) for old in defined})


def _replaced(stmt, values: dict):
    def replace(var):
        return next((new for old, new in values.items() if old.same_as(var)), var)

    return structural_map(stmt, (ir.Var, replace))


def _moved(stmt, moved: dict):
    """Return the statement with other buffers; moved: buffer -> (its place, indices there)."""

    def find(buffer):
        return next((to for old, to in moved.items() if old.same_as(buffer)), None)

    def load(node):
        if (to := find(node.source)) is None:
            return node
        return tirx.BufferLoad(to[0], to[1](*node.indices))

    def store(node):
        if (to := find(node.buffer)) is None:
            return node
        return tirx.BufferStore(to[0], node.value, to[1](*node.indices))

    return structural_map(stmt, [(ir.TensorLoad, load), (tirx.BufferStore, store)])
