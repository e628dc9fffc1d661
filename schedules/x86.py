"""Schedule rules for x86 CPUs: one per kind of kernel, found by block name.

    matmul   weights stay in the first-level cache for one tile of columns while all rows pass by;
             the register tile (8 rows x 2 vectors with VNNI: 16 accumulators, 2 weight vectors, one
             broadcast) is finished with its whole epilogue before it is stored
    ln_sum   one block of eight rows at a time; statistics of the eight rows side by side
    else     eight rows at a time, one vector of channels after the other

Tried and dropped for matmul: 4 x 4 and 8 x 3 tiles (within 3 % of 8 x 2, and more spills around the
epilogue); a 64-bit clamp before the narrowing (two more operations per eight numbers).
"""

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule, TensorIntrin
from tvm.script import tirx as T

# input of the row blocks that pass by one tile of columns: it stays in the second-level cache while
# the weights come from further away once per chunk, not once per block
CHUNK_BYTES = 1 << 20
DEPTH = 4  # int8 products that a dot adds to one lane, on every chip


def register_dot(isa, name: str) -> str:
    """Register the chip's dot product as a tensor intrinsic (once) and return its name."""
    lanes, depth = isa.lanes, DEPTH
    u8 = f"uint8x{lanes * depth}"

    @T.prim_func(s_tir=True)
    def description(
        a: T.Buffer((depth,), "uint8", offset_factor=1),
        w: T.Buffer((lanes, depth), "int8", offset_factor=1),
        c: T.Buffer((lanes,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(c[0:lanes], a[0:depth], w[0:lanes, 0:depth])
            T.writes(c[0:lanes])
            for i, k in T.grid(lanes, depth):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    c[vi] = c[vi] + T.cast(a[vk], "int32") * T.cast(w[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(
        a: T.Buffer((depth,), "uint8", offset_factor=1),
        w: T.Buffer((lanes, depth), "int8", offset_factor=1),
        c: T.Buffer((lanes,), "int32", offset_factor=1),
    ):
        with T.sblock("root"):
            T.reads(c[0:lanes], a[0:depth], w[0:lanes, 0:depth])
            T.writes(c[0:lanes])
            c[T.ramp(T.int32(0), 1, lanes)] = isa.dot(
                c.vload([0], dtype=f"int32x{lanes}"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(a.vload([0], "uint8x4"), dtype="int32"), lanes),
                    dtype=u8,
                ),
                w.vload([0, 0], dtype=f"int8x{lanes * depth}"),
            )

    TensorIntrin.register(name, description, implementation, override=True)
    return name


def schedule(func: tirx.PrimFunc, isa) -> tirx.PrimFunc:
    """Apply the rule that the function's blocks call for; return the scheduled function."""
    sch = Schedule(func)
    names = [sch.get(block).name_hint for block in _blocks(sch)]
    if "matmul" in names:
        depth = _matmul(sch, isa)
        return _chunked(sch.mod["main"], max(1, CHUNK_BYTES // (8 * depth)))
    if "ln_sum" in names:
        _layernorm(sch, isa)
    else:
        _rows(sch, isa)
    return sch.mod["main"]


def _blocks(sch: Schedule) -> list:
    (name,) = (gv.name_hint for gv in sch.mod.functions)
    return sch.get_child_blocks(sch.get_sblock("root", func_name=name))


def _matmul(sch: Schedule, isa) -> int:
    """Schedule all but the chunks of rows; return the length of the dot products."""
    rows, vectors = isa.matmul_tile
    matmul, *epilogue = _blocks(sch)
    i, r, j = sch.get_loops(epilogue[-1])
    columns = sch.get(j).extent.value // isa.lanes
    vectors = max(v for v in range(1, vectors + 1) if columns % v == 0)
    outer, inner, lane = sch.split(j, [None, vectors, isa.lanes])
    row_outer, row = sch.split(r, [None, rows])
    sch.reorder(outer, i, row_outer, row, inner, lane)
    sch.parallel(outer)  # before decompose_reduction, which refuses it afterwards
    for block in reversed(epilogue[:-1]):
        sch.compute_at(block, inner)
    sch.compute_at(matmul, row_outer, preserve_unit_loops=True)
    *_, r2, j2, lane2, ko, ki = sch.get_loops(matmul)
    part, lane2 = sch.split(lane2, [None, isa.lanes])  # of the sixteen rows that lie together
    length = sch.get(ko).extent.value * DEPTH
    sch.reorder(ko, r2, j2, part, lane2, ki)
    for block in epilogue:
        sch.vectorize(sch.get_loops(block)[-1])
    for loop in (row, inner, r2, j2, part):
        sch.unroll(loop)
    init = sch.get_loops(sch.decompose_reduction(matmul, ko))
    sch.vectorize(init[-1])
    for loop in init[-4:-1]:
        sch.unroll(loop)
    sch.tensorize(sch.get_loops(matmul)[-2], register_dot(isa, f"intformer.dot_{isa.lanes}"))
    return length


def _chunked(func: tirx.PrimFunc, chunk: int) -> tirx.PrimFunc:
    """Let `chunk` row blocks pass by all tiles of columns before the next ones come.

        parallel c in columns: i in blocks
        -> parallel f in columns * ceil(blocks / chunk): j in what is left of the chunk

    Schedule.split would guard every block with a condition, which tensorize refuses.
    """
    root = func.body
    column = root.block.body
    row = column.body
    columns, blocks = column.extent, row.extent
    fused = tirx.Var("task", column.loop_var.ty)
    inner = tirx.Var("block", row.loop_var.ty)
    first = tirx.floordiv(fused, columns) * chunk
    body = tirx.SeqStmt(
        [
            tirx.Bind(column.loop_var, tirx.floormod(fused, columns)),
            tirx.Bind(row.loop_var, first + inner),
            row.body,
        ]
    )
    loop = tirx.For(inner, 0, tirx.min(blocks - first, chunk), row.kind, body)
    chunks = tirx.floordiv(blocks + (chunk - 1), chunk)
    loop = tirx.For(fused, 0, columns * chunks, column.kind, loop)
    block = root.block
    block = SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        loop,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
    return func.with_body(SBlockRealize(root.iter_values, root.predicate, block))


def _layernorm(sch: Schedule, isa) -> None:
    blocks = _blocks(sch)
    names = [sch.get(block).name_hint for block in blocks]
    # the block under whose loop the others go: the last one, or what two outputs are made from
    anchor = names.index("ln_normalised") if "ln_normalised" in names else len(names) - 1
    loop = sch.get_loops(blocks[anchor])[0]
    for block in blocks[anchor + 1 :]:
        sch.reverse_compute_at(block, loop)
    for block, name in zip(reversed(blocks[:anchor]), reversed(names[:anchor]), strict=True):
        # 16 channels are one chunk, whose loop would vanish
        sch.compute_at(block, loop, preserve_unit_loops=name.endswith("_partial"))
    sch.parallel(loop)
    for block, name in zip(blocks, names, strict=True):
        _vectorize_rows(sch, block, name, isa)


def _vectorize_rows(sch: Schedule, block, name: str, isa) -> None:
    _, *loops = sch.get_loops(block)
    if name.endswith("_partial"):  # [8, lanes, chunk]
        *_, row, lane, chunk = loops
        sch.reorder(row, chunk, lane)
        inner = sch.split(lane, [None, isa.lanes])[1] if isa.lanes < 16 else lane
        sch.vectorize(inner)
        init = sch.decompose_reduction(block, chunk)
        sch.vectorize(sch.get_loops(init)[-1])
    elif name in ("ln_bits", "ln_root", "ln_factor"):  # [8, bit]
        row, bit = loops
        sch.reorder(bit, row)
        sch.vectorize(row)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(block, bit))[-1])
    elif name in ("ln_sum", "ln_squares"):
        sch.decompose_reduction(block, loops[-1])
    elif len(loops) == 1:  # [8]
        sch.vectorize(loops[0])
    else:
        sch.vectorize(sch.split(loops[-1], [None, isa.lanes])[1])


def _rows(sch: Schedule, isa) -> None:
    *stages, out = _blocks(sch)
    i, _, c = sch.get_loops(out)
    outer, lane = sch.split(c, [None, isa.lanes])
    for block in reversed(stages):
        sch.compute_at(block, outer)
        sch.vectorize(sch.get_loops(block)[-1])
    sch.vectorize(lane)
    sch.parallel(i)
