"""Which op has a kernel written by hand: one whose loops no tensor expression can state.

They take the constants of their op's arithmetic from relay_ops; nothing else in schedules may.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from intformer.schedules.isa import Gpu, Isa, Vnni
from intformer.schedules.kernels import (
    cpu_attention,
    cpu_attention_amx,
    cpu_attention_relative,
    cpu_attention_tiled,
    cpu_max_pool,
    cpu_mean_pool,
    cpu_weighted_pool,
    cuda_attention,
    cuda_attention_recipes,
    cuda_attention_relative,
    cuda_max_pool,
    cuda_mean_pool,
    cuda_weighted_pool,
)
from intformer.schedules.kernels.cpu_attention_recipes import IBERT, NATIVE


def _nothing(attrs: dict, isa: Isa | Gpu) -> dict[str, list[int]]:
    return {}


@dataclass(frozen=True)
class Kernel:
    """The kernel of one op for one kind of chip.

    build  (attrs, isa, decisions) -> PrimFunc over physical buffers, results last; one for GPUs
           begins like the kernels of schedules/cuda.py. A decision that is missing or no candidate
           takes its default
    space  (attrs, isa) -> what may be decided: name -> values (integers), the default first
    """

    build: Callable
    space: Callable = _nothing


def _attention(build: str, attrs: dict, isa: Isa, decisions: dict | None = None):
    if cpu_attention_tiled.needed(attrs):
        return getattr(cpu_attention_tiled, build)(NATIVE, attrs, isa, decisions)
    if isinstance(isa, Vnni) and isa.tiles:
        return getattr(cpu_attention_amx, build)(attrs, isa, decisions)
    return getattr(cpu_attention, build)(NATIVE, attrs, isa, decisions)


def _on_gpu(kind: type[cuda_attention.Attention]) -> Kernel:
    return Kernel(lambda *args: kind(*args).build(), cuda_attention.space)


CPU: dict[str, Kernel] = {  # op -> kernel
    "attention": Kernel(partial(_attention, "build"), cpu_attention.space),
    "attention_bias": Kernel(partial(_attention, "build_biased"), cpu_attention.space),
    "attention_ibert": Kernel(partial(cpu_attention.build, IBERT), cpu_attention.space),
    "attention_relative": Kernel(
        partial(cpu_attention_relative.build, NATIVE), cpu_attention.space
    ),
    "mean_pool": Kernel(cpu_mean_pool.build),
    "max_pool": Kernel(cpu_max_pool.build),
    "weighted_pool": Kernel(cpu_weighted_pool.build),
}
CUDA: dict[str, Kernel] = {
    "attention": _on_gpu(cuda_attention_recipes.Native),
    "attention_bias": _on_gpu(cuda_attention_recipes.NativeBiased),
    "attention_ibert": _on_gpu(cuda_attention_recipes.Ibert),
    "attention_relative": _on_gpu(cuda_attention_relative.NativeRelative),
    "mean_pool": Kernel(cuda_mean_pool.build),
    "max_pool": Kernel(cuda_max_pool.build),
    "weighted_pool": Kernel(cuda_weighted_pool.build),
}
