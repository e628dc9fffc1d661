"""What all families of CPUs have in common: kernels are functions of the library, made by LLVM."""

import platform
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intformer.backends.backend import Backend, TargetSpec
from intformer.backends.cpu.machine_code import MachineCode
from intformer.errors import CompileError
from intformer.ir.plan import Plan, Variant, symbol
from intformer.link.elf import Elf

HOOKS = {  # weak variables in TVM's objects that link/c/pool.c fills
    "__TVMBackendParallelLaunch",
    "__TVMBackendAllocWorkspace",
    "__TVMBackendFreeWorkspace",
}


class CpuBackend(Backend):
    """A family of CPUs.

    elf_machine e_machine of its machine code
    machines    what platform.machine() calls them, lower case; the first is the name for people
    probes      CPU feature, by LLVM's name -> the numbers of link/c/plan.h that find it
    detect      names the features of this machine, which is of the family
    baseline    features, as the reader of machine code names them, that every such CPU has
    looked_for  function of the C sources -> features that those look for before they call it
    imported    types of relocations that fill in the address of an import
    needed      libraries that its code may need beside libc, libm and libpthread
    loose_sections  of its ELF files that are not mapped, beside those of every machine
    cflags      for the C sources of a library
    static_imports  functions that its static libraries may need beside memcpy and memset
    """

    weight_packing = "weight"
    any_rows = True
    listing_suffix = "s"
    runtime = ("runtime", "input", "crc", "host", "pool", "cpu")
    align = 64
    elf_machine: int
    machines: tuple[str, ...]
    probes: Mapping[str, tuple[int, ...]]
    detect: Callable[[], set[str]]
    baseline: frozenset[str]
    looked_for: Mapping[str, frozenset[str]]
    imported: frozenset[int]
    needed: frozenset[str] = frozenset()
    loose_sections: frozenset[str] = frozenset()
    cflags: tuple[str, ...] = ()
    static_imports: frozenset[str] = frozenset()

    @property
    def code(self):
        """Return itself."""
        return self

    # -- kernels ----

    def written_kernel(self, op):
        """Return the kernel for CPUs, which asks the instruction set for its dot products."""
        from intformer.schedules.kernels import table

        return table.CPU.get(op)

    def functions(self, kernel, versions, scheduled):
        """Return one function, which chooses its version by the rows it is called for."""
        from intformer.backends.cpu.versions import join

        joined = scheduled[-1]
        for (limit, _), function in zip(versions[-2::-1], scheduled[-2::-1], strict=True):
            joined = join(function, joined, limit)
        return {kernel: joined.with_attr("global_symbol", kernel)}, []

    def named_for(self, variant, module):
        """Return the kernels as functions of their variant."""
        import tvm

        functions = {symbol(var.name_hint, variant): f for var, f in module.functions.items()}
        return tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})

    def symbols(self, kernel, variant, launches):
        """Return the name of the one function."""
        return {symbol(kernel, variant)}

    # -- code ----

    @abstractmethod
    def lowering(self) -> dict[str, Callable]:
        """Return what our own TIR ops become: name -> function (Call) -> expression."""

    def listing(self, spec, module):
        """Return the assembly."""
        from intformer.backends.cpu import codegen

        return codegen.assembly(module, spec)

    def generate(self, spec, module, folder, cache, tell):
        """Return object files, one per kernel."""
        from intformer.backends.cpu import codegen

        objects = codegen.generate(module, spec, Path(folder), cache, tell)
        return Variant(spec.name, objects, spec.features)

    def check_variant(self, plan: Plan, variant: Variant) -> None:
        """Read the symbols of the object files."""
        where = f"target {variant.name}"
        if unknown := [f for f in variant.features if f not in self.probes]:
            raise CompileError(f"unknown CPU feature {unknown[0]!r}", where=where)
        defined: set[str] = set()
        for path in variant.objects:
            symbols = Elf(path).symbols()
            defined |= {s for s, here in symbols.items() if here}
            hooks = {s for s, here in symbols.items() if here and s.startswith(("__TVM", "TVM"))}
            if hooks - HOOKS:
                raise CompileError(
                    f"kernels call {min(hooks - HOOKS)}, which a library without TVM does not have",
                    where=str(path),
                )
        for number, step in enumerate(plan.steps):
            if f"__tvm_ffi_{symbol(step.kernel, variant.name)}" not in defined:
                raise CompileError(
                    "kernel is in no object file",
                    where=f"{where}, step {number}, kernel {step.kernel}",
                )

    def static_fault(self, spec):
        """Return that one library has one chip's kernels, where there are several."""
        if spec.variants:
            return f"it holds one chip's kernels; name one of {', '.join(spec.variants)}"
        return None

    # -- proof ----

    @abstractmethod
    def read_code(self, path: Path) -> MachineCode:
        """Decode all machine code of an ELF file, and judge it."""

    def spelling(self, feature: str) -> str:
        """Return a feature's name without what LLVM and the reader of code spell differently."""
        return feature

    # -- this machine ----

    def runs_here(self) -> bool:
        """Tell whether this machine is of the family."""
        return platform.machine().lower() in self.machines

    def host_features(self) -> set[str]:
        """Return the LLVM names of this machine's features; empty on other families."""
        return self.detect() if self.runs_here() else set()

    def missing(self, features: Sequence[str]) -> list[str]:
        """Compare with what the system says of its CPU."""
        if not self.runs_here():
            return [f"a CPU of kind {self.machines[0]}"]
        have = self.host_features()
        return [feature for feature in features if feature not in have]

    def needs(self, variant: Mapping) -> str:
        """Return the features, or that any CPU of the family will do."""
        return " ".join(variant["cpu_features"]) or f"any {self.machines[0].replace('_', '-')}"

    def multiplies_bf16(self) -> bool:
        """Tell whether this machine has instructions for bf16, as training takes them."""
        return False

    def peak_meters(self) -> dict[str, tuple[str, Path]]:
        """Return what measures a unit for int8 products: unit -> (feature it needs, C source)."""
        return {}

    def peak_unit(self, features: Sequence[str]) -> str | None:
        """Return the unit that a library which needs these features is compared with."""
        return None

    def prepare_thread(self) -> None:
        """Ask the system for what kernels of the family may use, before they run in Python."""


@dataclass(frozen=True)
class CpuTarget(TargetSpec):
    """One chip of a family.

    chip  name of its instruction set in schedules.isa
    """

    rules: str = "x86"
    chip: str = ""

    def isa(self) -> object:
        """Return its instruction set."""
        from intformer.schedules import isa

        return getattr(isa, self.chip)
