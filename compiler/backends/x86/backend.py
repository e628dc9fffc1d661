"""x86-64 CPUs, from SSE2 to AMX."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from intformer.backends.cpu.backend import CpuBackend, CpuTarget
from intformer.backends.cpu.machine_code import MachineCode
from intformer.backends.x86 import features

HERE = Path(__file__).parent
REQUEST_TILES = (158, 0x1023, 18)  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


class X86(CpuBackend):
    """x86-64 CPUs."""

    name = "x86"
    elf_machine = 62
    imported = frozenset({6, 7})  # GLOB_DAT, JUMP_SLOT
    machines = ("x86_64", "amd64")
    probes = features.CPU_FEATURES
    detect = staticmethod(features.host_features)
    packages = ("iced_x86",)
    cflags = ("-mgeneral-regs-only",)
    looked_for: ClassVar = {"if_crc_instructions": frozenset({"pclmulqdq"})}
    zig_triple = "x86_64-linux-gnu.2.17"
    # CPUID features, as iced-x86 names them, that every x86-64 CPU has
    baseline = frozenset(
        {
            *("INTEL8086", "INTEL8086_ONLY", "INTEL186", "INTEL286", "INTEL386", "INTEL486"),
            *("X64", "CPUID", "CMOV", "CX8", "MMX", "FXSR", "SSE", "SSE2", "MULTIBYTENOP"),
            *("SYSCALL", "TSC", "CET_IBT"),
            *("PAUSE", "XSAVE"),  # hints and what the CPU check itself reads
        }
    )

    def lowering(self):
        """Return pmulhrsw and products of even and odd lanes."""
        from intformer.backends.x86.lowering import LOWERING

        return LOWERING

    def vector_shifts(self, features: Sequence[str]) -> bool:
        """Below AVX2 LLVM turns such shifts into float arithmetic."""
        return "avx2" in features

    def read_code(self, path: Path) -> MachineCode:
        """Decode it by iced-x86."""
        from intformer.backends.x86 import machine_code

        return machine_code.check(path)

    def spelling(self, feature: str) -> str:
        """Return the name in lower case, without punctuation."""
        name = re.sub(r"[._-]", "", feature.lower())
        return "bmi" if name == "bmi1" else name

    def static_fault(self, spec):
        """Return also that tiles must be asked for."""
        if "amx-tile" in spec.features:
            return "AMX tiles are the system's to give, which a static library does not ask"
        return super().static_fault(spec)

    def multiplies_bf16(self) -> bool:
        """Tell whether it has them in AMX or AVX-512."""
        return bool({"amxbf16", "avx512bf16"} & self.host_features())

    def peak_meters(self):
        """Return the meters of vpdpbusd and of tdpbusd."""
        return {
            "vnni": ("avx512vnni", HERE / "vnni_peak.c"),
            "amx": ("amx-int8", HERE / "amx_peak.c"),
        }

    def peak_unit(self, features: Sequence[str]) -> str:
        """Return AMX where the library uses it, else VNNI: of older code it shows what could be."""
        return "amx" if "amx-int8" in features else "vnni"

    def prepare_thread(self) -> None:
        """Ask Linux for AMX tile registers; refused where there are none, as kernels then show."""
        if self.runs_here():
            ctypes.CDLL(None).syscall(*REQUEST_TILES)


BACKEND = X86()

# what LLVM takes for granted on these chips, as far as the kernels can use it
AVX2_FEATURES = ("sse4.1", "sse4.2", "popcnt", "movbe", "lzcnt", "bmi", "bmi2", "avx", "avx2")
VNNI_FEATURES = (
    *AVX2_FEATURES,
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"),
)


@dataclass(frozen=True)
class X86Target(CpuTarget):
    """One chip of the family."""

    backend: X86 = BACKEND


TARGETS = (  # the fastest first
    X86Target(
        name="sapphirerapids",
        title="Xeon with AMX (Sapphire Rapids and newer)",
        features=(*VNNI_FEATURES, "amx-tile", "amx-int8"),
        tvm={"kind": "llvm", "mcpu": "cascadelake", "mattr": ["+amx-tile", "+amx-int8"]},
        chip="AMX",
        rules="amx",
    ),
    X86Target(
        name="cascadelake",
        title="Xeon with AVX512-VNNI (Cascade Lake and newer)",
        features=VNNI_FEATURES,
        tvm={"kind": "llvm", "mcpu": "cascadelake"},
        chip="VNNI",
    ),
    X86Target(
        name="avxvnni",
        title="CPU with AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and newer)",
        features=(*AVX2_FEATURES, "avxvnni"),
        tvm={"kind": "llvm", "mcpu": "haswell", "mattr": ["+avxvnni"]},
        chip="AVX_VNNI",
    ),
    X86Target(
        name="avx2",
        title="CPU with AVX2 (Haswell, Zen and newer)",
        features=AVX2_FEATURES,
        tvm={"kind": "llvm", "mcpu": "haswell"},
        chip="AVX2",
    ),
    X86Target(
        name="x86-64",
        title="any x86-64 CPU (SSE2)",
        tvm={"kind": "llvm", "mcpu": "x86-64"},
        chip="SSE2",
    ),
    X86Target(
        name="x86-auto",
        title="any x86-64 CPU, with kernels for all the others",
        variants=("sapphirerapids", "cascadelake", "avxvnni", "avx2", "x86-64"),
    ),
)
