"""ARM's microcontrollers, from any machine: zig links static libraries for them.

The code is ARMv7E-M (Thumb-2 with DSP instructions), which ARMv8-M and ARMv8.1-M with the DSP
extension run as well. Its floating-point unit is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from intformer.backends.cpu.backend import CpuBackend, CpuTarget
from intformer.backends.cpu.machine_code import MachineCode


class CortexM(CpuBackend):
    """Cortex-M with DSP instructions."""

    name = "cortex_m"
    zero_point = 0  # products of two signed operands
    elf_machine = 40
    imported = frozenset()
    machines = ("cortex-m",)
    probes = MappingProxyType({})
    detect = staticmethod(set)
    packages = ("capstone", "ziglang")
    cflags = ("-mcpu=cortex_m4",)
    zig_triple = "thumb-freestanding-gnueabi"
    baseline = frozenset()
    loads = False

    def lowering(self):
        """Return plain TIR, in which LLVM finds what there is."""
        from intformer.backends.cortex_m.lowering import LOWERING

        return LOWERING

    def vector_shifts(self, features: Sequence[str]) -> bool:
        """Every number is shifted by itself."""
        return True

    def read_code(self, path: Path) -> MachineCode:
        """Decode it by capstone."""
        from intformer.backends.cortex_m import machine_code

        return machine_code.check(path)


BACKEND = CortexM()


@dataclass(frozen=True)
class CortexMTarget(CpuTarget):
    """One chip of the family."""

    backend: CortexM = BACKEND


TARGETS = (
    CortexMTarget(
        name="cortex-m",
        title="ARM microcontroller with DSP instructions (Cortex-M4, M7, M55); static libraries",
        tvm={
            "kind": "llvm",
            "mtriple": "thumbv7em-none-gnueabi",
            "mcpu": "cortex-m4",
            "mattr": ["+soft-float"],
            "mfloat-abi": "soft",
        },
        chip="CORTEX_M",
    ),
)
