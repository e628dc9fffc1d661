"""What the blocks of an unscheduled kernel compute, as expressions inside a kernel for a GPU.

A block that a plain kernel keeps in memory becomes a value bound to a variable where it is asked
for: `Values.at(buffer, indices)` emits what is missing into the scope under construction, once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.ir.expr import TensorLoad
from tvm.script.ir_builder import tirx as T
from tvm_ffi import structural_walk

from intformer.backends.cuda.kernel import COUNTS, argument
from intformer.ir.constants import BLOCK
from intformer.schedules.space import blocks


@dataclass(frozen=True)
class Stage:
    """One block: what it is called, where it writes and what.

    space    iteration variables of the result
    reduce   iteration variables that are summed over, with their extents
    stores   (buffer, value); several for a reduction of a tuple
    initial  what a reduction starts from, one per store
    lets     variables the values use, in order
    """

    name: str
    space: tuple
    reduce: tuple
    stores: tuple
    initial: tuple
    lets: tuple

    @property
    def reads(self) -> set:
        """Buffers that the values read."""
        found = set()
        for expr in (value for _, value in (*self.stores, *self.lets)):
            structural_walk(
                expr, lambda node: found.add(node.source) if isinstance(node, TensorLoad) else None
            )
        return found

    @property
    def row(self) -> bool:
        """One number per row."""
        return len(self.space) == 2


def stages(func: tirx.PrimFunc) -> list[Stage]:
    """Return the blocks of a plain kernel, in order."""
    found = []
    for block in _blocks(func):
        space = tuple(v.var for v in block.iter_vars if v.iter_type == tirx.IterVar.DataPar)
        reduce = tuple(
            (v.var, int(v.dom.extent))
            for v in block.iter_vars
            if v.iter_type == tirx.IterVar.CommReduce
        )
        lets, stores = _statements(block.body)
        _, initial = _statements(block.init) if block.init is not None else ((), ())
        found.append(
            Stage(
                block.name_hint, space, reduce, stores, tuple(value for _, value in initial), lets
            )
        )
    return found


def _blocks(func: tirx.PrimFunc) -> list:
    from tvm.s_tir import Schedule

    sch = Schedule(func)
    return [sch.get(block) for block in blocks(sch)]


def _statements(stmt) -> tuple[tuple, tuple]:
    """Return the bindings and the stores of a block's body."""
    lets, stores = [], []
    for one in stmt.seq if isinstance(stmt, tirx.SeqStmt) else [stmt]:
        if isinstance(one, tirx.Bind):
            lets.append((one.var, one.value))
        elif isinstance(one, tirx.BufferStore):
            stores.append((one.buffer, one.value))
        else:
            raise TypeError(f"{type(one).__name__} in a block")
    return tuple(lets), tuple(stores)


class Kernel:
    """A kernel for a GPU under construction: its arguments, and the counts of the run.

    func     the plain kernel
    buffers  argument of `func` -> argument of the new kernel; where its extents are known at run
             time only, they are the largest that int32 offsets allow
    counts   int32 [4], in the order of COUNTS
    """

    def __init__(self, func: tirx.PrimFunc):
        """Declare the arguments; call it inside I.prim_func()."""
        self.func = func
        self.stages = stages(func)
        self.buffers = {
            old: argument(number, old.shape, str(old.dtype))
            for number, old in enumerate(func.params)
        }
        self.counts = argument(len(func.params), (len(COUNTS),), "int32")
        self.producers = {s: stage for stage in self.stages for s, _ in stage.stores}
        self.outputs = [buffer for buffer in self.buffers if buffer in self.producers]

    def count(self, rows: str) -> Expr:
        """Return how many tokens, sequences, positions this run has, or tokens of the longest."""
        return self.counts[COUNTS.index(rows)]

    def extent(self, name: str) -> Expr:
        """Return the value of an extent of the plain kernel, from its name."""
        kind, _, what = name.rpartition("_")
        if what == "blocks":
            return (self.count(kind) + BLOCK - 1) // BLOCK
        if what == "length":
            return {
                "cu_seqlens": self.count("sequence") + 1,
                "positions": self.count("position"),
            }.get(kind, self.count("token"))
        raise KeyError(name)


class Values:
    """Values of a plain kernel's buffers at given places, bound in the scope under construction.

    given  buffer -> function of the indices, for what the new kernel computes in its own way
    """

    def __init__(self, kernel: Kernel, given: dict | None = None, outer: "Values | None" = None):
        """Start a scope; it sees what an outer one has bound."""
        self.kernel = kernel
        self.given: dict[object, Callable] = {**(outer.given if outer else {}), **(given or {})}
        # by the identity of the indices, which are kept alive beside the value
        self.known: dict[tuple, tuple] = dict(outer.known) if outer else {}

    def at(self, buffer, indices: Sequence) -> Expr:
        """Return buffer[indices]."""
        if buffer in self.given:
            return self.given[buffer](*indices)
        if buffer not in self.kernel.producers:
            return self.kernel.buffers[buffer][tuple(indices)]
        key = (buffer, *(id(i) for i in indices))
        if key not in self.known:
            stage = self.kernel.producers[buffer]
            here = dict(zip(stage.space, indices, strict=True))
            if stage.reduce:
                self._reduce(stage, here, indices)
            else:
                ((_, value),) = stage.stores
                self.known[key] = T.bind(self.of(value, here)), indices
        return self.known[key][0]

    def of(self, expr: Expr, here: dict) -> Expr:
        """Return an expression of a block with its variables replaced."""
        if isinstance(expr, tirx.IntImm):
            return expr
        if isinstance(expr, tirx.Var):
            return here[expr] if expr in here else self.kernel.extent(expr.name)
        if isinstance(expr, TensorLoad):
            return self.at(expr.source, [self.of(i, here) for i in expr.indices])
        if isinstance(expr, tirx.Cast):
            return tirx.Cast(str(expr.ty.dtype), self.of(expr.value, here))
        if isinstance(expr, tirx.Select):
            parts = (expr.condition, expr.true_value, expr.false_value)
            return tirx.Select(*(self.of(part, here) for part in parts))
        if hasattr(expr, "args"):
            args = [self.of(arg, here) for arg in expr.args]
            return tirx.call_intrin(str(expr.ty.dtype), expr.op, *args)
        if hasattr(expr, "b"):
            return type(expr)(self.of(expr.a, here), self.of(expr.b, here))
        return type(expr)(self.of(expr.a, here))

    def _reduce(self, stage: Stage, here: dict, indices: Sequence) -> None:
        """Emit the loop of a small reduction, whose states live in registers."""
        ((step, extent),) = stage.reduce
        state = {}
        for (buffer, _), value in zip(stage.stores, stage.initial, strict=True):
            state[buffer] = T.alloc_buffer((1,), str(buffer.dtype), scope="local")
            T.buffer_store(state[buffer], self.of(value, here), [0])
        given = {buffer: lambda *_, s=s: s[0] for buffer, s in state.items()}
        with T.serial(extent) as k:
            inner = Values(self.kernel, given, self)
            inside = {**here, step: k}
            for var, value in stage.lets:
                inside[var] = T.bind(inner.of(value, inside))
            made = [T.bind(inner.of(value, inside)) for _, value in stage.stores]
            for (buffer, _), value in zip(stage.stores, made, strict=True):
                T.buffer_store(state[buffer], value, [0])
        for buffer, _ in stage.stores:
            self.known[buffer, *map(id, indices)] = T.bind(state[buffer][0]), indices
