"""Named parts of TIR, for the rules that rewrite what `Schedule` has no primitive for.

An accessor checks the form it relies on: where a rule or TVM changes it, compiling fails here, and
says what was expected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm_ffi import structural_map


def _expect(node, kind: type, what: str):
    """Return the node; AssertionError if it is of another kind."""
    if not isinstance(node, kind):
        raise AssertionError(f"{what}: expected {kind.__name__}, found {type(node).__name__}")
    return node


def root_block(func: tirx.PrimFunc) -> SBlock:
    """Return the block around all of a function."""
    block = _expect(func.body, SBlockRealize, "body of a kernel").block
    if block.name_hint != "root" or block.iter_vars or block.init is not None:
        raise AssertionError(
            f"root block: expected one without iterations, found {block.name_hint}"
        )
    return block


def with_root_body(
    func: tirx.PrimFunc, body: tirx.Stmt, allocated: Sequence[tirx.Buffer] | None = None
) -> tirx.PrimFunc:
    """Return the function with another body in its root block.

    allocated  buffers of the root block; those it has by default
    """
    root = root_block(func)
    buffers = root.alloc_buffers if allocated is None else allocated
    block = SBlock([], root.reads, root.writes, root.name_hint, body, None, buffers)
    return func.with_body(SBlockRealize([], True, block))


def allocated(func: tirx.PrimFunc, name: str) -> tirx.Buffer:
    """Return the buffer of this name that the root block allocates."""
    found = [buffer for buffer in root_block(func).alloc_buffers if buffer.name == name]
    if len(found) != 1:
        raise AssertionError(f"buffer {name}: expected one in the root block, found {len(found)}")
    return found[0]


@dataclass(frozen=True)
class Operands:
    """What a matrix product multiplies: x [blocks, 8, K], weights [N / 16, K / 4, 16, 4]."""

    x: tirx.Buffer
    weights: tirx.Buffer


def operands(block: SBlock) -> Operands:
    """Return the operands of the block of a matrix product."""
    buffers = [region.source for region in block.reads]
    if [len(buffer.shape) for buffer in buffers] != [3, 4]:
        raise AssertionError(f"block {block.name_hint}: expected to read x and weights")
    return Operands(*buffers)


def weights(func: tirx.PrimFunc) -> tirx.Buffer:
    """Return the weights of a kernel that begins with a matrix product: its second argument."""
    buffer = func.params[1]
    if len(buffer.shape) != 4:
        raise AssertionError(f"{buffer.name}: expected weights [N / 16, K / 4, 16, 4]")
    return buffer


@dataclass(frozen=True)
class Panels:
    """The loops of a kernel that makes tiles of columns, each for all blocks of rows.

    column  over tiles of columns; its body is `row`
    row     over blocks of eight rows
    """

    column: tirx.For
    row: tirx.For


def panels(stmt: tirx.Stmt) -> Panels:
    """Return the two outermost loops of a statement."""
    column = _expect(stmt, tirx.For, "loop over tiles of columns")
    return Panels(column, _expect(column.body, tirx.For, "loop over blocks of rows"))


@dataclass(frozen=True)
class PackedPanels:
    """The loops of a kernel that packs the weights of each tile of columns before its rows.

    column  over tiles of columns; its body is `pack` and `row`
    pack    what packs them
    row     over blocks of eight rows
    """

    column: tirx.For
    pack: tirx.Stmt
    row: tirx.For


def packed_panels(stmt: tirx.Stmt) -> PackedPanels:
    """Return the two outermost loops of a statement, and what is between them."""
    column = _expect(stmt, tirx.For, "loop over tiles of columns")
    both = _expect(column.body, tirx.SeqStmt, "packing and rows")
    if len(both) != 2:
        raise AssertionError(f"packing and rows: expected 2 statements, found {len(both)}")
    return PackedPanels(column, both[0], _expect(both[1], tirx.For, "loop over blocks of rows"))


@dataclass(frozen=True)
class Separate:
    """A kernel whose matrix product is a nest of its own.

    product   block of the product
    epilogue  all that follows
    inner     loop of the epilogue over the eight rows of a block
    """

    product: SBlock
    epilogue: Panels
    inner: tirx.For


def separate(func: tirx.PrimFunc) -> Separate:
    """Return the two nests of a kernel: a product, then its epilogue by tiles of columns."""
    both = _expect(root_block(func).body, tirx.SeqStmt, "product and epilogue")
    if len(both) != 2:
        raise AssertionError(f"product and epilogue: expected 2 statements, found {len(both)}")
    product, rest = both
    while isinstance(product, tirx.For):
        product = product.body
    block = _expect(product, SBlockRealize, "innermost statement of the product").block
    epilogue = panels(rest)
    return Separate(block, epilogue, _expect(epilogue.row.body, tirx.For, "loop over rows"))


def mapped_loops(func: tirx.PrimFunc, mark: str, edit: Callable) -> tirx.PrimFunc:
    """Return the function with `edit` (loop, annotation) in place of the loops annotated `mark`."""

    def replace(loop):
        return edit(loop, loop.annotations[mark]) if mark in loop.annotations else loop

    return func.with_body(structural_map(func.body, (tirx.For, replace)))


def redirected(stmt: tirx.Stmt, old: tirx.Buffer, new: tirx.Buffer, place: Callable) -> tirx.Stmt:
    """Return the statement reading `new` where it read `old`; place: indices in old -> in new."""

    def load(node):
        return tirx.BufferLoad(new, place(*node.indices)) if node.source.same_as(old) else node

    def region(node):
        if not node.source.same_as(old):
            return node
        return tirx.BufferRegion(new, [ir.Range(0, extent) for extent in new.shape])

    return structural_map(stmt, [(ir.TensorLoad, load), (ir.TensorRegion, region)])
