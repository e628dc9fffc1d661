"""The chips a model can be compiled for."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from intformer.errors import CompileError


@dataclass(frozen=True)
class TargetSpec:
    """One chip family, or several in one library.

    name      as in `--target`
    title     what it is, for people
    features  CPU features the code needs; a library refuses to run without them
    tvm       TVM target description
    isa       () -> Isa, its dot products (imports TVM)
    schedule  () -> rule (PrimFunc, isa, decisions) -> PrimFunc
    space     () -> (PrimFunc, isa) -> what may be decided: name -> values, the default first
    vector_shifts  lanes can be shifted by different amounts without float
    variants  names of the targets whose kernels one library holds, the fastest first; such a target
              has no code of its own
    arch      of a GPU, such as "sm_75"; "" for CPUs
    """

    name: str
    title: str
    features: tuple[str, ...]
    tvm: Mapping[str, str | list[str]] = field(default_factory=dict)
    isa: Callable | None = None
    schedule: Callable | None = None
    space: Callable | None = None
    vector_shifts: bool = False
    variants: tuple[str, ...] = ()
    arch: str = ""


# what LLVM takes for granted on these chips, as far as the kernels can use it
AVX2_FEATURES = ("sse4.1", "sse4.2", "popcnt", "movbe", "lzcnt", "bmi", "bmi2", "avx", "avx2")
VNNI_FEATURES = (
    *AVX2_FEATURES,
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"),
)


def _vnni():
    from intformer.schedules.isa import VNNI

    return VNNI


def _avx_vnni():
    from intformer.schedules.isa import AVX_VNNI

    return AVX_VNNI


def _avx2():
    from intformer.schedules.isa import AVX2

    return AVX2


def _sse2():
    from intformer.schedules.isa import SSE2

    return SSE2


def _x86():
    from intformer.schedules.x86 import schedule

    return schedule


def _x86_space():
    from intformer.schedules.space import space

    return space


def _amx():
    from intformer.schedules.amx import schedule

    return schedule


def _gpu(multiprocessors: int) -> Callable:
    def isa():
        from intformer.schedules.isa import Gpu

        return Gpu(multiprocessors)

    return isa


def _cuda():
    from intformer.schedules.cuda import schedule

    return schedule


def _cuda_space():
    from intformer.schedules.cuda import space

    return space


def _gpu_target(name: str, title: str, arch: str, multiprocessors: int) -> TargetSpec:
    return TargetSpec(
        name=name,
        title=title,
        features=(),
        tvm={"kind": "cuda", "arch": arch},
        isa=_gpu(multiprocessors),
        schedule=_cuda,
        space=_cuda_space,
        vector_shifts=True,
        arch=arch,
    )


def _amx_space():
    from intformer.schedules.amx import space

    return space


TARGETS: dict[str, TargetSpec] = {  # the fastest first
    "sapphirerapids": TargetSpec(
        name="sapphirerapids",
        title="Xeon with AMX (Sapphire Rapids and newer)",
        features=(*VNNI_FEATURES, "amx-tile", "amx-int8"),
        tvm={"kind": "llvm", "mcpu": "cascadelake", "mattr": ["+amx-tile", "+amx-int8"]},
        isa=_vnni,
        schedule=_amx,
        space=_amx_space,
        vector_shifts=True,
    ),
    "cascadelake": TargetSpec(
        name="cascadelake",
        title="Xeon with AVX512-VNNI (Cascade Lake and newer)",
        features=VNNI_FEATURES,
        tvm={"kind": "llvm", "mcpu": "cascadelake"},
        isa=_vnni,
        schedule=_x86,
        space=_x86_space,
        vector_shifts=True,
    ),
    "avxvnni": TargetSpec(
        name="avxvnni",
        title="CPU with AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and newer)",
        features=(*AVX2_FEATURES, "avxvnni"),
        tvm={"kind": "llvm", "mcpu": "haswell", "mattr": ["+avxvnni"]},
        isa=_avx_vnni,
        schedule=_x86,
        space=_x86_space,
        vector_shifts=True,
    ),
    "avx2": TargetSpec(
        name="avx2",
        title="CPU with AVX2 (Haswell, Zen and newer)",
        features=AVX2_FEATURES,
        tvm={"kind": "llvm", "mcpu": "haswell"},
        isa=_avx2,
        schedule=_x86,
        space=_x86_space,
        vector_shifts=True,
    ),
    "x86-64": TargetSpec(
        name="x86-64",
        title="any x86-64 CPU (SSE2)",
        features=(),
        tvm={"kind": "llvm", "mcpu": "x86-64"},
        isa=_sse2,
        schedule=_x86,
        space=_x86_space,
        vector_shifts=False,
    ),
    "x86-auto": TargetSpec(
        name="x86-auto",
        title="any x86-64 CPU, with kernels for all the others",
        features=(),
        variants=("sapphirerapids", "cascadelake", "avxvnni", "avx2", "x86-64"),
    ),
    "t4": _gpu_target("t4", "NVIDIA T4", "sm_75", 40),
    "cuda:sm_75": _gpu_target("cuda:sm_75", "NVIDIA GPU with sm_75 (Turing)", "sm_75", 40),
    "cuda:sm_80": _gpu_target("cuda:sm_80", "NVIDIA GPU with sm_80 (A100)", "sm_80", 108),
    "cuda:sm_86": _gpu_target("cuda:sm_86", "NVIDIA GPU with sm_86 (A10, RTX 30)", "sm_86", 72),
    "cuda:sm_89": _gpu_target("cuda:sm_89", "NVIDIA GPU with sm_89 (L4, L40)", "sm_89", 58),
    "cuda:sm_90": _gpu_target("cuda:sm_90", "NVIDIA GPU with sm_90 (H100, H200)", "sm_90", 132),
}


def weight_packing(spec: TargetSpec) -> str:
    """Return how the chips of a target read weights, see intformer.passes.packing."""
    return "rows" if spec.arch else "weight"


def get(name: str) -> TargetSpec:
    """Return the target called `name`; "host" is this machine's. Raise CompileError if unknown."""
    if name == "host":
        name = host_target()
    if name not in TARGETS:
        raise CompileError(
            f"target {name!r} is unknown",
            where="--target",
            hint=f"known: host, {', '.join(TARGETS)}",
        )
    return TARGETS[name]


def chips(spec: TargetSpec) -> list[TargetSpec]:
    """Return the targets whose kernels a library for `spec` holds, the fastest first."""
    return [TARGETS[name] for name in spec.variants] or [spec]


def host_target() -> str:
    """Return the fastest single target this CPU can run; raise CompileError if none does."""
    from intformer.backends.x86.features import host_features

    if platform.machine() not in ("x86_64", "AMD64"):
        raise CompileError(
            f"no target is for this machine, {platform.machine()}",
            where="--target host",
            hint=f"name the chip the library is for: {', '.join(TARGETS)}",
        )
    have = host_features()
    fitting = (
        t for t in TARGETS.values() if have.issuperset(t.features) and not t.variants and not t.arch
    )
    return next(t.name for t in fitting)
