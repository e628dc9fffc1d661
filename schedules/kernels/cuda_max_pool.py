"""Maximum over the tokens of a sequence on GPUs: relay_ops.max_pool."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.schedules.isa import Gpu

THREADS = 128  # of a block: so many channels


def build(attrs: dict, isa: Gpu, decisions: dict | None = None) -> tirx.PrimFunc:
    """PrimFunc (x, cu_seqlens, out, counts): one thread per channel of a sequence."""
    width, dtype = attrs["width"], attrs["dtypes_out"][0]
    across = -(-width // THREADS)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        rows = tirx.Var("rows", "int32")
        x = gpu.argument(0, (rows, width), dtype)
        cu = gpu.argument(1, (rows,), "int32")
        out = gpu.argument(2, (rows, width), dtype)
        counts = gpu.argument(3, (len(gpu.COUNTS),), "int32")
        gpu.launch([["sequence", 1, 1], ["one", 1, across], ["one", 1, 1]], THREADS, "sequence")
        block_x = T.thread_binding(gpu.UNBOUNDED // 4 // width, thread="blockIdx.x")
        block_y = T.thread_binding(across, thread="blockIdx.y")
        thread_x = T.thread_binding(THREADS, thread="threadIdx.x")
        with block_x as s, block_y as part, thread_x as thread:
            column = T.bind(part * THREADS + thread)
            with T.If(tirx.all(s < counts[1], column < width)), T.Then():
                first = T.bind(cu[s])
                top = gpu.local(1, dtype)
                T.buffer_store(top, x[first, column], [0])
                with T.serial(cu[s + 1] - first - 1) as t:
                    T.buffer_store(top, T.max(top[0], x[first + 1 + t, column]), [0])
                T.buffer_store(out, top[0], [s, column])
    return builder.get()
