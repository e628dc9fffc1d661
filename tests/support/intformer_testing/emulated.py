"""Libraries and kernels for another machine, run by qemu-user."""

import importlib.util
import shutil
import subprocess
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from intformer.backends.backend import TargetSpec
from intformer.backends.cpu import codegen
from intformer.backends.targets import TARGETS
from intformer.link import build as linker
from intformer.link import program as program_linker
from intformer.link.elf import Elf
from intformer.proof.finding import Finding
from intformer.proof.inputs import random_batches
from intformer.proof.results import first_difference
from intformer.proof.via import Via
from intformer.runtime import LibraryFile

KERNELS = Path(__file__).parent / "run_kernel.c"
PREFIX = "__tvm_ffi_"  # of kernels in object files
HERE = {  # elf machine -> emulator, folder with the C library of that machine
    183: ("qemu-aarch64", Path("/usr/aarch64-linux-gnu")),
    243: ("qemu-riscv64", Path("/usr/riscv64-linux-gnu")),
}


ALL = {  # elf machine -> model of the emulator with all features that there are
    183: "max",
    243: "rv64,v=true,vlen=128,vext_spec=v1.0",
}


def possible(spec: TargetSpec) -> bool:
    """Tell whether a target is of another machine that can be emulated."""
    family = spec.backend
    return family.code is family and family.elf_machine in HERE and not family.runs_here()


def missing(target: str) -> list[str]:
    """Return what this machine lacks to build libraries for a target and to emulate them."""
    emulator, root = HERE[TARGETS[target].backend.elf_machine]
    lacks = [] if importlib.util.find_spec("ziglang") else ["the ziglang package"]
    lacks += [] if shutil.which(emulator) else [f"{emulator} (package qemu-user)"]
    return lacks + ([] if (root / "lib").is_dir() else [f"a C library in {root}"])


def needs(target: str):
    """Return a parameter that is skipped, with its reason, where a target cannot be emulated."""
    lacks = missing(target)
    reason = f"this machine lacks {', '.join(lacks)}"
    return pytest.param(target, marks=pytest.mark.skipif(bool(lacks), reason=reason))


def program(folder: Path, target: str) -> Path:
    """Compile the program that runs libraries of a target."""
    return program_linker.build(folder / "serve", "serve.c", TARGETS[target].backend)


def linked(folder: Path, target: str, sources: list[Path]) -> Path:
    """Compile a program for a target, in a folder; return its path."""
    made = folder / sources[0].stem
    command = [*linker.compiler(TARGETS[target].backend), "-O1", "-Wall", "-Werror", "-o", made]
    more = [*sources, f"-I{linker.SOURCES}", "-lpthread", "-ldl"]
    env = linker.compiler_files_in(folder)
    subprocess.run([*command, *more], check=True, env=env, capture_output=True)
    return made


class Emulated(Via):
    """A library that runs in an emulator.

    cpu  model of the emulator
    env  environment variables beside this process's own
    """

    def __init__(self, path: Path, program: Path, cpu: str, **env: str):
        emulator, root = HERE[LibraryFile(path).image.machine]
        more = " ".join(f"{name}={value}" for name, value in env.items())
        super().__init__(path, f"env {more} {emulator} -cpu {cpu} -L {root}")
        self.made = program

    def program(self, folder: Path) -> Path:
        """Return the program that all libraries of a module share."""
        return self.made


def kernels_c(symbols: list[str]) -> str:
    """Return C source of the table that run_kernel.c searches."""
    kinds = "(void *, const tvm_any *, int32_t, tvm_any *)"
    return "\n".join(
        [
            '#include "plan.h"',
            *(f"extern int32_t {symbol}{kinds};" for symbol in symbols),
            "const struct { const char *name; kernel_fn kernel; } kernels[] = {",
            *(f'  {{"{symbol.removeprefix(PREFIX)}", {symbol}}},' for symbol in symbols),
            "  {0, 0}};\n",
        ]
    )


class Kernels:
    """Kernels of a module by name: what tvm.compile() gives for this machine.

    Those of a process of its own: arrays go in and come back through files.
    """

    def __init__(self, module, target: str):
        self.spec = TARGETS[target]
        self.folder = Path(tempfile.mkdtemp(prefix="kernels"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.built = codegen.built(module, self.spec)
        self.built.write_to_file(str(self.folder / "kernels.o"), "o")

    @cached_property
    def program(self) -> Path:
        """The program that calls them, linked when it is first asked for."""
        symbols = Elf(self.folder / "kernels.o").symbols()
        names = [symbol for symbol in symbols if symbol.startswith(PREFIX)]
        sources = [KERNELS, self.folder / "kernels.c", self.folder / "kernels.o"]
        sources[1].write_text(kernels_c(names))
        return linked(self.folder, self.spec.name, sources)

    def write_to_file(self, path: str, form: str) -> None:
        """Write the object file."""
        self.built.write_to_file(path, form)

    def __getitem__(self, name: str):
        """Return a kernel as a function of arrays of TVM, which it changes."""
        return lambda *arrays: self._call(name, arrays)

    def _call(self, name: str, arrays) -> None:
        parts = [np.int64(len(arrays)).tobytes()]
        held = [a.numpy() for a in arrays]
        for a in held:
            head = [0 if a.dtype.kind == "i" else 1, a.dtype.itemsize * 8, a.ndim, *a.shape]
            parts += [np.array(head, np.int64).tobytes(), np.ascontiguousarray(a).tobytes()]
        file = self.folder / "arguments"
        file.write_bytes(b"".join(parts))
        machine = self.spec.backend.elf_machine
        emulator, root = HERE[machine]
        command = [emulator, "-cpu", ALL[machine], "-L", root, self.program, name, file]
        done = subprocess.run(command, capture_output=True, timeout=1800)
        assert done.returncode == 0, (done.returncode, done.stderr)
        at = 0
        for array, a in zip(arrays, held, strict=True):
            array.copyfrom(np.frombuffer(done.stdout, a.dtype, a.size, at).reshape(a.shape))
            at += a.nbytes


def difference(library: Emulated, model, cases: int = 1) -> tuple[Finding | None, int]:
    """Return the first difference to the NumPy reference, and how many numbers were equal."""
    compared = 0
    for batch in random_batches(model.meta, cases, seed=0):
        finding, equal = first_difference(library, model, batch, model.run(batch))
        compared += equal
        if finding:
            return finding, compared
    return None, compared
