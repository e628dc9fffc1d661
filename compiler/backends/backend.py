"""What a family of chips decides: `Backend`, one object per folder here, and `TargetSpec`.

All other modules ask these two and never which chip it is. A new family is a folder with a
subclass of Backend and its targets (listed in targets.py), and a module of schedules.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from intformer.ir.constants import ZERO_POINT

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

    from intformer.backends.cpu.backend import CpuBackend
    from intformer.backends.object_cache import ObjectCache
    from intformer.ir.plan import Launch, Plan, Variant
    from intformer.proof.finding import Finding
    from intformer.runtime import LibraryFile
    from intformer.schedules.kernels.table import Kernel

Versions = list[tuple[int | None, dict[str, int]]]  # up to how many row blocks; None: the rest


@dataclass(frozen=True)
class TargetSpec(ABC):
    """One chip, or several in one library.

    name      as in `--target`
    title     what it is, for people
    backend   the family it belongs to
    features  CPU features the code needs, by LLVM's names; a library refuses to run without them
    tvm       TVM target description
    rules     module of schedules: its `schedule` is the rule (PrimFunc, isa, decisions) -> PrimFunc
              and its `space` tells what may be decided: (PrimFunc, isa) -> name -> values, the
              default first
    variants  names of the targets whose kernels one library holds, the fastest first; such a target
              has no code of its own
    """

    name: str
    title: str
    backend: "Backend"
    features: tuple[str, ...] = ()
    tvm: Mapping[str, str | list[str]] = field(default_factory=dict)
    rules: str = ""
    variants: tuple[str, ...] = ()

    @abstractmethod
    def isa(self) -> object:
        """Return what kernels need to know of the chip (schedules.isa; imports TVM)."""

    def schedule(self) -> Callable:
        """Return the schedule rule."""
        return import_module(f"intformer.schedules.{self.rules}").schedule

    def space(self) -> Callable:
        """Return what tells the decisions about a kernel."""
        return import_module(f"intformer.schedules.{self.rules}").space

    @property
    def vector_shifts(self) -> bool:
        """True if lanes can be shifted by different amounts without float."""
        return self.backend.vector_shifts(self.features)

    def missing_here(self) -> list[str]:
        """Return what this machine lacks to run it."""
        return self.backend.missing(self.features)


@dataclass(frozen=True)
class CarriedForm:
    """One form of a variant's kernels that a library carries as data and a driver loads.

    name        of the entry in the C table, such as "t4 cubin"
    section     of the library
    capability  (major, minor) that a device must have
    portable    newer devices take it too: their driver compiles it
    """

    name: str
    section: str
    capability: tuple[int, int]
    portable: bool


class Backend(ABC):
    """A family of chips.

    name            of the family, and the folder of its sections in a library
    code            family of the CPUs that run a library's own code: itself, if it is one of CPUs
    weight_packing  how its kernels read weights, see passes.packing
    zero_point      of the operands of matrix products: 0 where they are signed, as in the model
    any_rows        its loops do not ask what a row is: one kernel serves tokens and sequences
    launched        a kernel is launched on a device with memory of its own; the plan says how
    listing_suffix  of the file that `listing` fills
    runtime         C sources of link/c that its libraries are made of
    imports         functions that those import beside the ones in link/c/imports.txt
    align           bytes to which data in a library is aligned
    packages        modules that reading its code needs
    zig_triple      target of zig as the C compiler of a library, with the oldest glibc
    loads           its systems load shared libraries; elsewhere there are static ones alone
    """

    name: str
    weight_packing: str
    zero_point: int = ZERO_POINT
    any_rows: bool
    launched: bool = False
    listing_suffix: str
    runtime: tuple[str, ...]
    imports: frozenset[str] = frozenset()
    align: int
    packages: tuple[str, ...] = ()
    zig_triple: str
    loads: bool = True

    @property
    @abstractmethod
    def code(self) -> "CpuBackend":
        """See above."""

    # -- kernels ----

    @abstractmethod
    def written_kernel(self, op: str) -> "Kernel | None":
        """Return an op's kernel, where it is written by hand."""

    def versions(self, plain: Callable[[], "tirx.PrimFunc"], isa: object) -> Versions:
        """Return the written-down rule for a kernel, ascending in row blocks.

        plain  makes the kernel before scheduling
        """
        return [(None, {})]

    @abstractmethod
    def functions(
        self, kernel: str, versions: Versions, scheduled: Sequence["tirx.PrimFunc"]
    ) -> tuple[dict[str, "tirx.PrimFunc"], list["Launch"]]:
        """Return the functions of a kernel by symbol, and how they are launched, if they are.

        scheduled  one function per version
        """

    @abstractmethod
    def named_for(self, variant: str, module: "tvm.IRModule") -> "tvm.IRModule":
        """Return the kernels under the names that they have in a library."""

    @abstractmethod
    def symbols(self, kernel: str, variant: str, launches: Sequence[Mapping]) -> set[str]:
        """Return the names of a kernel's functions in a library.

        launches  versions of the kernel, as plan.json has them
        """

    # -- code ----

    @abstractmethod
    def listing(self, spec: TargetSpec, module: "tvm.IRModule") -> str:
        """Return the code of scheduled kernels as text, for people."""

    @abstractmethod
    def generate(
        self,
        spec: TargetSpec,
        module: "tvm.IRModule",
        folder: Path,
        cache: "ObjectCache | None",
        tell: Callable[[str], None],
    ) -> "Variant":
        """Return the code of scheduled kernels, without their TIR.

        folder  for files, which must stay until the library is linked
        cache   where code is kept from one compilation to the next; None: nowhere
        tell    called with a line of text for every kernel that is compiled
        """

    @abstractmethod
    def check_variant(self, plan: "Plan", variant: "Variant") -> None:
        """Raise CompileError unless the code has all that the plan calls."""

    def static_fault(self, spec: TargetSpec) -> str | None:
        """Return why there is no static library for a target; None where there is."""
        return "its kernels are launched on a device"

    # -- proof ----

    @abstractmethod
    def vector_shifts(self, features: Sequence[str]) -> bool:
        """Tell whether lanes can be shifted by different amounts without float."""

    def carried_forms(self, variant: Mapping) -> list[CarriedForm]:
        """Return what a library carries as data for a variant of its metadata."""
        return []

    def check_carried(
        self, library: "LibraryFile", variant: Mapping
    ) -> tuple[str, list["Finding"]] | None:
        """Return how much of the carried code was read, and what is wrong; None without any."""
        return None

    # -- this machine ----

    def missing_compiler(self) -> list[str]:
        """Return what this machine lacks to compile kernels, beside Python packages."""
        return []

    @abstractmethod
    def missing(self, features: Sequence[str]) -> list[str]:
        """Return what this machine lacks to run code of the family that needs these features."""

    @abstractmethod
    def needs(self, variant: Mapping) -> str:
        """Return what a variant of a library's metadata needs, for people."""
