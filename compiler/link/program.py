"""Programs around a library, for the machine that it is for: compiled from programs/."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from intformer import scratch
from intformer.backends.cpu.backend import CpuBackend
from intformer.errors import CompileError
from intformer.link import build as linker

SOURCES = Path(__file__).parent / "programs"
NEEDED = linker.NEEDED | {"libdl.so.2"}
MUSL = {"libc.so"}
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-s")


def build(
    path: Path,
    main: str,
    backend: CpuBackend,
    more: Sequence[tuple[str, bytes]] = (),
    musl: bool = False,
) -> Path:
    """Write a program and return its path; raise CompileError.

    path     the program
    main     its C source in programs/
    backend  family of the machine that runs it
    more     generated files: C and assembly are compiled, others are there for them
    musl     for a machine with musl in place of glibc
    """
    cc = [*linker.musl_compiler(backend), "-dynamic"] if musl else linker.compiler(backend)
    needed = MUSL if musl else NEEDED | backend.code.needed
    try:
        with scratch.folder(path.parent, path.name) as name:
            folder = Path(name)
            for file in (*SOURCES.iterdir(), *linker.SOURCES.glob("intformer*")):
                shutil.copyfile(file, folder / file.name)
            for file, content in more:
                (folder / file).write_bytes(content)
            made = [file for file, _ in more if file.endswith((".c", ".s"))]
            sources = [main, "intformer_open.c", *made, "-lpthread", "-ldl"]
            linker.call([*cc, *FLAGS, "-o", path.name, *sources], folder, "compiling")
            linker.check_linked(folder / path.name, needed)
            os.replace(folder / path.name, path)
    except OSError as error:
        raise CompileError(f"cannot write program: {error.strerror}", where=str(path)) from error
    return path
