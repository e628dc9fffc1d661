"""64-bit RISC-V CPUs (RV64GC and newer), from any machine: zig compiles and links for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from intformer.backends.cpu.backend import CpuBackend, CpuTarget
from intformer.backends.cpu.machine_code import MachineCode
from intformer.backends.riscv import features


class RiscV(CpuBackend):
    """64-bit RISC-V CPUs with the extensions of RV64GC."""

    name = "riscv"
    zero_point = 0  # products of two signed operands
    elf_machine = 243
    imported = frozenset({2, 5})  # R_RISCV_64, R_RISCV_JUMP_SLOT
    machines = ("riscv64",)
    probes = features.CPU_FEATURES
    detect = staticmethod(features.host_features)
    packages = ("capstone",)
    imports = frozenset({"getauxval"})
    looked_for: ClassVar = {}
    zig_triple = "riscv64-linux-gnu.2.27"
    baseline = frozenset()
    loose_sections = frozenset({".riscv.attributes"})

    def lowering(self):
        """Return plain TIR, in which LLVM finds what there is."""
        from intformer.backends.riscv.lowering import LOWERING

        return LOWERING

    def vector_shifts(self, features: Sequence[str]) -> bool:
        """Every lane, or number, is shifted by itself."""
        return True

    def read_code(self, path: Path) -> MachineCode:
        """Decode vectors by their fields, all else by capstone."""
        from intformer.backends.riscv import machine_code

        return machine_code.check(path)


BACKEND = RiscV()


@dataclass(frozen=True)
class RiscVTarget(CpuTarget):
    """One chip of the family."""

    backend: RiscV = BACKEND


TARGETS = (  # the fastest first
    RiscVTarget(
        name="riscv64-v",
        title="64-bit RISC-V CPU with vectors (RVV 1.0, of 128 bits and more)",
        features=("v",),
        tvm={
            "kind": "llvm",
            "mtriple": "riscv64-linux-gnu",
            "mcpu": "generic-rv64",
            "mattr": ["+m", "+a", "+f", "+d", "+c", "+zve64x", "+zvl128b"],
            "mabi": "lp64d",
        },
        chip="RVV",
        rules="rvv",
    ),
    RiscVTarget(
        name="riscv64",
        title="any 64-bit RISC-V CPU (RV64GC)",
        tvm={
            "kind": "llvm",
            "mtriple": "riscv64-linux-gnu",
            "mcpu": "generic-rv64",
            "mattr": ["+m", "+a", "+f", "+d", "+c"],
            "mabi": "lp64d",
        },
        chip="RV64",
    ),
)
