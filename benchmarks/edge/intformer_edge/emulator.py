"""Programs under qemu-user with the plugin that counts."""

import os
import subprocess
import sys
from pathlib import Path

from intformer.backends.cpu.backend import CpuBackend
from intformer.link import build as linker
from intformer_edge.pieces import Profile

HERE = Path(__file__).parent
EMULATORS = {  # ELF machine -> emulator, its chip, getppid's number, the folder with its C library
    183: ("qemu-aarch64", "max", 173, "/usr/aarch64-linux-gnu"),
    243: ("qemu-riscv64", "rv64,v=true,vlen=128,vext_spec=v1.0", 173, "/usr/riscv64-linux-gnu"),
    62: ("qemu-x86_64", "max", 110, "/"),
}


def compiled(folder: Path, source: str, backend: CpuBackend, more=()) -> Path:
    """Compile one of our C programs for a machine; return its path."""
    path = folder / f"{Path(source).stem}-{backend.elf_machine}"
    if not path.exists():
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", backend.zig_triple]
        command = [*zig, "-O2", "-std=gnu11", f"-I{linker.SOURCES}", HERE / source, *more]
        subprocess.run([*command, "-o", path, "-ldl", "-lpthread"], check=True)
    return path


def plugin(folder: Path) -> Path:
    """Compile the plugin for this machine."""
    path = folder / "count.so"
    if not path.exists():
        command = ["cc", "-O2", "-shared", "-fPIC", HERE / "count.c", "-o", path]
        subprocess.run(command, check=True)
    return path


def counted(
    out: Path, machine: int, looked_at: Path, command: list, chip: str = "", root: Path | str = ""
) -> Profile:
    """Run a program; return what it executed between its marks. Counts that are there stand.

    out         file of the counts
    looked_at   the library whose pieces are told apart
    chip, root  of the emulator; those of EMULATORS
    """
    emulator, usual, number, libraries = EMULATORS[machine]
    if out.exists() and out.stat().st_mtime > looked_at.stat().st_mtime:
        return Profile(out, looked_at, machine)
    words = [emulator, "-cpu", chip or usual, "-L", root or libraries]
    words += ["-plugin", f"{plugin(out.parent)},syscall={number},out={out}", *command]
    subprocess.run(words, check=True, env={**os.environ, "INTFORMER_VARIANT": ""})
    return Profile(out, looked_at, machine)
