"""Libraries for another machine, run by qemu-user: a C program opens them as others do."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from intformer.backends.targets import TARGETS
from intformer.link import build as linker
from intformer.proof.finding import Finding
from intformer.proof.inputs import random_batches
from intformer.proof.results import first_difference
from intformer.runtime import LibraryFile

SOURCE = Path(__file__).parent / "run_library.c"
HERE = {  # elf machine -> emulator, folder with the C library of that machine
    183: ("qemu-aarch64", Path("/usr/aarch64-linux-gnu")),
}


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
    """Compile the C program for a target."""
    made = folder / "run_library"
    command = [*linker.compiler(TARGETS[target].backend), "-O1", "-Wall", "-Werror", "-o", made]
    sources = [SOURCE, linker.SOURCES / "intformer_open.c", f"-I{linker.SOURCES}"]
    env = linker.compiler_files_in(folder)
    subprocess.run([*command, *sources, "-lpthread", "-ldl"], check=True, env=env)
    return made


class Emulated(LibraryFile):
    """A library that runs in an emulator, in a process of its own each time.

    program  what `program` made
    cpu      model of the emulator
    """

    def __init__(self, path: Path, program: Path, cpu: str):
        super().__init__(path)
        self.program, self.cpu, self.threads = program, cpu, 2

    def command(self, batch: Path) -> list[str]:
        """Return the command that runs a batch."""
        emulator, root = HERE[self.image.machine]
        return [emulator, "-cpu", self.cpu, "-L", root, self.program, self.path, batch]

    def run(self, input_ids, cu_seqlens, observer=None, **more) -> np.ndarray:
        """Run one batch, as Library.run does."""
        types, places, rows = (more.get(n) for n in ("token_type_ids", "position_ids", "positions"))
        head = [len(input_ids), len(cu_seqlens) - 1, 0 if rows is None else len(rows)]
        head += [types is not None, places is not None]
        arrays = [a for a in (input_ids, cu_seqlens, types, places, rows) if a is not None]
        file = self.program.parent / "batch"
        file.write_bytes(np.concatenate([np.asarray(a, np.int32) for a in (head, *arrays)]))
        command = [*self.command(file), str(self.threads)]
        done = subprocess.run(command, capture_output=True, timeout=300, env=os.environ)
        assert done.returncode == 0, (done.returncode, done.stderr)
        *shown, (_, result) = values(done.stdout)
        for name, data in shown if observer else ():
            observer(0, name, data)
        return result


def values(text: bytes):
    """Yield name and array of everything that the program wrote."""
    at = 0
    while at < len(text):
        end = text.index(b"\n", at)
        name, rows, width, dtype = text[at:end].decode().split()
        count = int(rows) * int(width)
        data = np.frombuffer(text, dtype, count, end + 1)
        yield name, data.reshape(int(rows), int(width))
        at = end + 1 + data.nbytes


def difference(library: Emulated, model, cases: int = 1) -> tuple[Finding | None, int]:
    """Return the first difference to the NumPy reference, and how many numbers were equal."""
    compared = 0
    for batch in random_batches(model.meta, cases, seed=0):
        finding, equal = first_difference(library, model, batch, model.run(batch))
        compared += equal
        if finding:
            return finding, compared
    return None, compared
