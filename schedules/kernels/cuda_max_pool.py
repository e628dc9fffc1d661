"""Maximum over the tokens of a sequence on GPUs: relay_ops.max_pool."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import kernel as gpu
from intformer.schedules.isa import Gpu
from intformer.schedules.kernels import cuda_pool


def build(attrs: dict, isa: Gpu, decisions: dict | None = None) -> tirx.PrimFunc:
    """Return the kernel of cuda_pool."""
    dtype = attrs["dtypes_out"][0]

    def emit(x, cu, out, s, column) -> None:
        first = T.bind(cu[s])
        top = gpu.local(1, dtype)
        T.buffer_store(top, x[first, column], [0])
        with T.serial(cu[s + 1] - first - 1) as t:
            T.buffer_store(top, T.max(top[0], x[first + 1 + t, column]), [0])
        T.buffer_store(out, top[0], [s, column])

    return cuda_pool.pool(attrs["width"], dtype, dtype, emit)
