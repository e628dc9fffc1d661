"""64-bit ARM CPUs (ARMv8-A and newer), from any machine: zig compiles and links for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from intformer.backends.arm import features
from intformer.backends.cpu.backend import CpuBackend, CpuTarget
from intformer.backends.cpu.machine_code import MachineCode


class Arm(CpuBackend):
    """64-bit ARM CPUs, little-endian."""

    name = "arm"
    zero_point = 0  # dot products of two signed operands
    elf_machine = 183
    imported = frozenset({1025, 1026})  # GLOB_DAT, JUMP_SLOT
    machines = ("aarch64", "arm64")
    probes = features.CPU_FEATURES
    detect = staticmethod(features.host_features)
    packages = ("capstone",)
    imports = frozenset({"getauxval"})
    # outlined atomics would need a constructor, and a library runs nothing when it is loaded
    cflags = ("-mgeneral-regs-only", "-mno-outline-atomics")
    looked_for: ClassVar = {"if_crc_instructions": frozenset({"crc"})}
    zig_triple = "aarch64-linux-gnu.2.17"
    baseline = frozenset({"fp", "neon"})

    def lowering(self):
        """Return sqrdmulh and plain TIR, in which LLVM finds the rest."""
        from intformer.backends.arm.lowering import LOWERING

        return LOWERING

    def vector_shifts(self, features: Sequence[str]) -> bool:
        """Every such CPU has sshl and ushl."""
        return True

    def read_code(self, path: Path) -> MachineCode:
        """Decode it by capstone."""
        from intformer.backends.arm import machine_code

        return machine_code.check(path)


BACKEND = Arm()


@dataclass(frozen=True)
class ArmTarget(CpuTarget):
    """One chip of the family."""

    backend: Arm = BACKEND


TARGETS = (  # the fastest first
    ArmTarget(
        name="aarch64-i8mm",
        title="ARM CPU with smmla (Neoverse V1 and N2, Cortex-A710, Apple M2 and newer)",
        features=("dotprod", "i8mm"),
        tvm={
            "kind": "llvm",
            "mtriple": "aarch64-linux-gnu",
            "mcpu": "generic",
            "mattr": ["+neon", "+dotprod", "+i8mm"],
        },
        chip="NEON_I8MM",
        rules="i8mm",
    ),
    ArmTarget(
        name="aarch64-dotprod",
        title="ARM CPU with sdot (Cortex-A76, Neoverse N1, Apple M1 and newer)",
        features=("dotprod",),
        tvm={
            "kind": "llvm",
            "mtriple": "aarch64-linux-gnu",
            "mcpu": "generic",
            "mattr": ["+neon", "+dotprod"],
        },
        chip="NEON_DOT",
    ),
    ArmTarget(
        name="aarch64",
        title="any 64-bit ARM CPU (NEON)",
        tvm={
            "kind": "llvm",
            "mtriple": "aarch64-linux-gnu",
            "mcpu": "generic",
            "mattr": ["+neon"],
        },
        chip="NEON",
    ),
    ArmTarget(
        name="aarch64-auto",
        title="any 64-bit ARM CPU, with kernels for all the others",
        variants=("aarch64-i8mm", "aarch64-dotprod", "aarch64"),
    ),
)
