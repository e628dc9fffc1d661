"""What pooling kernels of GPUs share: one thread per channel of a sequence."""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu

THREADS = 128  # of a block: so many channels


def pool(
    width: int, read: str, written: str, emit: Callable, table: int | None = None
) -> tirx.PrimFunc:
    """Return the kernel (x, cu_seqlens, out, counts); with a table (x, cu_seqlens, table, ...).

    read, written  types of x and out
    emit           emits what a thread does: (x, cu_seqlens, out, sequence, its channel), with a
                   table (x, cu_seqlens, table, ...)
    table          its entries, int32
    """
    across = -(-width // THREADS)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        rows = tirx.Var("rows", "int32")
        x = gpu.argument(0, (rows, width), read)
        cu = gpu.argument(1, (rows,), "int32")
        tables = [] if table is None else [gpu.argument(2, (table,), "int32")]
        out = gpu.argument(2 + len(tables), (rows, width), written)
        counts = gpu.argument(3 + len(tables), (len(gpu.COUNTS),), "int32")
        gpu.launch([["sequence", 1, 1], ["one", 1, across], ["one", 1, 1]], THREADS, "sequence")
        block_x = T.thread_binding(gpu.UNBOUNDED // 4 // width, thread="blockIdx.x")
        block_y = T.thread_binding(across, thread="blockIdx.y")
        thread_x = T.thread_binding(THREADS, thread="threadIdx.x")
        with block_x as s, block_y as part, thread_x as thread:
            column = T.bind(part * THREADS + thread)
            with T.If(tirx.all(s < counts[1], column < width)), T.Then():
                emit(x, cu, *tables, out, s, column)
    return builder.get()
