"""NVIDIA GPUs with int8 tensor cores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intformer.backends.backend import Backend, CarriedForm, TargetSpec
from intformer.backends.cuda.code import capability
from intformer.backends.x86 import backend as x86
from intformer.errors import CompileError, IntformerError
from intformer.ir.constants import BLOCK
from intformer.ir.plan import COUNTS, Launch, Plan, Variant
from intformer.passes.memory import ROWS

SHARED_BYTES = 48 << 10  # shared memory that a block has without asking for more


class Cuda(Backend):
    """NVIDIA GPUs: kernels are data of a library, which the driver loads and launches."""

    name = "cuda"
    weight_packing = "rows"
    any_rows = False
    launched = True
    listing_suffix = "cu"
    runtime = ("runtime", "input", "crc", "cuda", "cuda_driver", "cuda_kernels", "cuda_memory")
    imports = frozenset({"dlerror", "dlopen", "dlsym"})  # the driver is opened at the first run
    align = 128  # bytes of a cache line
    zig_triple = "x86_64-linux-gnu.2.34"  # dlopen is in libc
    code = x86.BACKEND

    # -- kernels ----

    def written_kernel(self, op):
        """Return the kernel for GPUs."""
        from intformer.schedules.kernels import table

        return table.CUDA.get(op)

    def versions(self, plain, isa):
        """Return the tiles that keep every multiprocessor busy."""
        from intformer.schedules import cuda

        return cuda.versions(plain(), isa)

    def functions(self, kernel, versions, scheduled):
        """Return every version by itself: the library chooses what it launches."""
        from intformer.backends.cuda.kernel import LAUNCH

        functions, launches = {}, []
        for number, ((limit, _), function) in enumerate(zip(versions, scheduled, strict=True)):
            name, about = f"{kernel}_v{number}", function.attrs[LAUNCH]
            launches.append(
                Launch(
                    function=name,
                    limit=None if limit is None else limit * BLOCK,
                    rows=str(about["rows"]),
                    grid=tuple((str(count), int(d), int(f)) for count, d, f in about["grid"]),
                    threads=int(about["threads"]),
                )
            )
            functions[name] = function.with_attr("global_symbol", name)
        return functions, launches

    def named_for(self, variant, module):
        """Return the kernels as they are: each variant has code of its own."""
        return module

    def symbols(self, kernel, variant, launches):
        """Return the functions of all versions."""
        return {version["function"] for version in launches}

    # -- code ----

    def listing(self, spec, module):
        """Return the CUDA C."""
        from intformer.backends.cuda import codegen

        return codegen.source(module, spec.arch)

    def generate(self, spec, module, folder, cache, tell):
        """Return cubin, PTX and source."""
        from intformer.backends.cuda import codegen

        code = codegen.generate(module, spec.arch, cache)
        return Variant(spec.name, arch=spec.arch, carried=code.carried(spec.name))

    def check_variant(self, plan: Plan, variant: Variant) -> None:
        """Check the launches of every kernel, and that the code has their functions."""
        where = f"target {variant.name}"
        if not plan.launches:
            raise CompileError("the plan says of no kernel how it is launched", where=where)
        forms = {form.portable: form.section for form in self.carried_forms(_described(variant))}
        if not set(forms.values()) <= variant.carried.keys():
            raise CompileError("the plan has launches, the variant no code for a GPU", where=where)
        if not variant.carried[forms[False]].startswith(b"\x7fELF"):
            raise CompileError("the cubin is no ELF file", where=where)
        entries = set(re.findall(rb"\.entry\s+([\w$]+)", variant.carried[forms[True]]))
        for number, step in enumerate(plan.steps):
            where = f"target {variant.name}, step {number}, kernel {step.kernel}"
            versions = plan.launches.get(step.kernel, [])
            _check_limits([v.limit for v in versions], where)
            for version in versions:
                if fault := _launch_fault(version):
                    raise CompileError(fault, where=f"{where}, function {version.function}")
                if version.function.encode() not in entries:
                    raise CompileError(
                        f"function {version.function!r} is not in the PTX", where=where
                    )

    # -- proof ----

    def vector_shifts(self, features: Sequence[str]) -> bool:
        """A thread shifts one number."""
        return True

    def carried_forms(self, variant: Mapping) -> list[CarriedForm]:
        """Return the cubin of one generation of chips, and the PTX that newer drivers compile."""
        name, at = variant["name"], capability(variant["arch"])
        return [
            CarriedForm(f"{name} {form}", f"{self.name}/{name}.{form}", at, form == "ptx")
            for form in ("cubin", "ptx")
        ]

    def check_carried(self, library, variant):
        """Read every instruction of PTX and SASS."""
        from intformer.backends.cuda import code_check

        where = f"{self.name}/{variant['name']}"
        cubin, ptx = (library.section(f.section) for f in self.carried_forms(variant))
        launches = library.plan["launches"]
        return code_check.check(cubin, ptx, variant["arch"], launches, where)

    # -- this machine ----

    def missing_compiler(self) -> list[str]:
        """Look for nvcc and for NVRTC."""
        from intformer.backends.cuda import toolchain

        return [] if toolchain.usable_nvcc() or toolchain.nvrtc_library() else ["nvcc or NVRTC"]

    def missing(self, features: Sequence[str]) -> list[str]:
        """Targets know better: what a GPU can do is no feature of a CPU."""
        return []

    def needs(self, variant: Mapping) -> str:
        """Return the generation of chips."""
        return f"GPU, {variant['arch']} or newer"


def _described(variant: Variant) -> dict[str, str]:
    return {"name": variant.name, "arch": variant.arch}


def _check_limits(limits: list[int | None], where: str) -> None:
    if not limits or limits[-1] is not None or None in limits[:-1]:
        raise CompileError(f"limits {limits}: the last version alone has none", where=where)
    if limits[:-1] != sorted(set(limits[:-1])):
        raise CompileError(f"limits {limits} do not grow", where=where)


def _launch_fault(launch: Launch) -> str | None:
    """Return what a GPU would refuse, or None."""
    if launch.rows not in ROWS:
        return f"limit counts {launch.rows!r} rows"
    if len(launch.grid) != 3 or any(c not in COUNTS or min(d, f) < 1 for c, d, f in launch.grid):
        return f"grid {launch.grid}"
    if not 1 <= launch.threads <= 1024:
        return f"{launch.threads} threads of a block - 1 to 1024 are possible"
    if not 0 <= launch.shared <= SHARED_BYTES:
        return f"{launch.shared} bytes of shared memory - at most {SHARED_BYTES} are possible"
    return None


BACKEND = Cuda()


@dataclass(frozen=True)
class CudaTarget(TargetSpec):
    """One generation of GPUs.

    arch             such as "sm_75"
    multiprocessors  of the chip, each of which should have a block of threads
    """

    backend: Cuda = BACKEND
    rules: str = "cuda"
    arch: str = ""
    multiprocessors: int = 0

    def isa(self) -> object:
        """Return what schedules need to know."""
        from intformer.schedules.isa import Gpu

        return Gpu(self.multiprocessors)

    def missing_here(self) -> list[str]:
        """Ask the driver; newer GPUs run it, too."""
        from intformer.backends.cuda.device import Device

        try:
            have = Device().capability
        except IntformerError as error:
            return [f"a GPU: {error.what}"]
        return [] if have >= capability(self.arch) else [f"a GPU with {self.arch} or newer"]


def _target(name: str, title: str, arch: str, multiprocessors: int) -> CudaTarget:
    return CudaTarget(
        name=name,
        title=title,
        tvm={"kind": "cuda", "arch": arch},
        arch=arch,
        multiprocessors=multiprocessors,
    )


TARGETS = (
    _target("t4", "NVIDIA T4", "sm_75", 40),
    _target("cuda:sm_75", "NVIDIA GPU with sm_75 (Turing)", "sm_75", 40),
    _target("cuda:sm_80", "NVIDIA GPU with sm_80 (A100)", "sm_80", 108),
    _target("cuda:sm_86", "NVIDIA GPU with sm_86 (A10, RTX 30)", "sm_86", 72),
    _target("cuda:sm_89", "NVIDIA GPU with sm_89 (L4, L40)", "sm_89", 58),
    _target("cuda:sm_90", "NVIDIA GPU with sm_90 (H100, H200)", "sm_90", 132),
)
