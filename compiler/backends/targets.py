"""The chips a model can be compiled for, and the families they belong to."""

import platform
from collections.abc import Mapping

from intformer.backends.arm import backend as arm
from intformer.backends.backend import Backend, TargetSpec
from intformer.backends.cortex_m import backend as cortex_m
from intformer.backends.cpu.backend import CpuBackend
from intformer.backends.cuda import backend as cuda
from intformer.backends.riscv import backend as riscv
from intformer.backends.x86 import backend as x86
from intformer.errors import CompileError, LibraryError

FAMILIES = (x86, arm, riscv, cortex_m, cuda)  # modules with a BACKEND and its TARGETS
CPUS: tuple[CpuBackend, ...] = tuple(
    family.BACKEND for family in FAMILIES if isinstance(family.BACKEND, CpuBackend)
)
DEVICE: Backend = next(f.BACKEND for f in FAMILIES if f.BACKEND.launched)  # the only family yet
TARGETS: dict[str, TargetSpec] = {
    target.name: target for family in FAMILIES for target in family.TARGETS
}


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


def host() -> CpuBackend | None:
    """Return the family of this machine's CPU; None where there is none for it."""
    return next((backend for backend in CPUS if backend.runs_here()), None)


def host_target() -> str:
    """Return the fastest single target this CPU can run; raise CompileError if none does."""
    family = host()
    for target in TARGETS.values():
        if target.backend is family and not target.variants and not target.missing_here():
            return target.name
    raise CompileError(
        f"no target is for this machine, {platform.machine()}",
        where="--target host",
        hint=f"name the chip the library is for: {', '.join(TARGETS)}",
    )


def find_machine(machine: int) -> CpuBackend | None:
    """Return the family of an e_machine; None for one that is not known here."""
    return next((backend for backend in CPUS if backend.elf_machine == machine), None)


def of_machine(machine: int, where: str) -> CpuBackend:
    """Return the family of the machine code in an ELF file.

    machine  e_machine
    where    names the file in the LibraryError that says it is not known
    """
    if backend := find_machine(machine):
        return backend
    known = ", ".join(f"{backend.elf_machine} {backend.name}" for backend in CPUS)
    raise LibraryError(
        f"code for ELF machine {machine}, which has no back end here",
        where=where,
        hint=f"known: {known}",
    )


def of_variant(variant: Mapping, code: CpuBackend | None) -> Backend | None:
    """Return the family that a variant of a library's metadata is for.

    code  family of the machine code in the library, which a variant without an arch is
    """
    return DEVICE if variant["arch"] else code
