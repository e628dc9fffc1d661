"""Plan, plain kernels and weights -> libNAME.a, NAME.h and NAME_example.c.

For programs without threads, a heap or a C library: the archive has one object, made of C for
checks and steps (static_c.py), the kernels, and the weights as constant data. It is linked by zig,
whatever it is for.
"""

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intformer import scratch
from intformer.backends.backend import TargetSpec
from intformer.backends.cpu.backend import CpuBackend
from intformer.errors import CompileError, require
from intformer.ir.model import IntModel
from intformer.ir.plan import Plan
from intformer.link import build as linker
from intformer.link import static_c
from intformer.link.arena import Arena, Limits
from intformer.link.elf import Elf

if TYPE_CHECKING:
    from intformer.backends.cpu.plain import PlainKernel

IMPORTS = {"memcpy", "memset"}
CFLAGS = (
    *("-std=gnu11", "-O2", "-fPIC", "-ffreestanding", "-fno-strict-aliasing", "-Wall", "-Wextra"),
    *("-ffunction-sections", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
)
WRITABLE, ALLOCATED = 1, 2  # flags of sections
# Nothing is unwound: without the tables of 32-bit ARM nobody calls these, but LLVM names them
UNWINDERS = {f"__aeabi_unwind_cpp_pr{n}" for n in range(3)}
SCRIPT = "SECTIONS { /DISCARD/ : { *(.ARM.exidx* .ARM.extab* .rel.ARM.exidx*) } }\n"
WEAK = 2  # binding of a symbol
WEIGHTS_S = """\
# {digest}
.section .rodata.{name}_weights,"a",%progbits
.balign {align}
.globl {name}_weights
.hidden {name}_weights
{name}_weights:
.incbin "weights"
"""


@dataclass(frozen=True)
class StaticLibrary:
    """A static library and what lies beside it.

    arena_bytes   memory that a run works in
    weight_bytes  constant data of the model
    code_bytes    everything else that is linked: instructions and their constants
    warnings      about the model
    """

    path: Path
    header: Path
    example: Path
    name: str
    target: str
    limits: Limits
    arena_bytes: int
    weight_bytes: int
    code_bytes: int
    warnings: list[str]


def build(
    plan: Plan,
    kernels: "Mapping[str, PlainKernel]",
    model: IntModel,
    path: Path,
    spec: TargetSpec,
    name: str,
    limits: Limits,
) -> StaticLibrary:
    """Write the archive, its header and the example; or nothing.

    kernels  of the plan's steps, by symbol
    path     of the archive; the others lie beside it
    name     C identifier that all names in it start with
    """
    require("ziglang")
    lent = max(kernel.scratch for kernel in kernels.values())
    arena = Arena(plan, limits, lent, spec.backend.align)
    weights, offsets = _weights(plan, spec.backend.align)
    texts = static_c.sources(
        plan, kernels, model, arena, offsets, name=name, target=spec.name, archive=path.name
    )
    beside = [path.parent / f"{name}.h", path.parent / f"{name}_example.c"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.folder(path.parent, path.name) as made:
            folder = Path(made)
            for file, text in texts.items():
                (folder / file).write_text(text)
            (folder / "weights").write_bytes(weights)
            objects = [kernel.object for kernel in kernels.values()]
            linked = _link(folder, path.name, name, objects, spec.backend)
            for file in (*beside, path):
                os.replace(folder / file.name, file)
    except OSError as error:
        raise CompileError(f"cannot write library: {error.strerror}", where=str(path)) from error
    return StaticLibrary(
        path,
        *beside,
        name=name,
        target=spec.name,
        limits=limits,
        arena_bytes=arena.bytes,
        weight_bytes=len(weights),
        code_bytes=linked - len(weights),
        warnings=model.meta.get("warnings", []),
    )


def _weights(plan: Plan, align: int) -> tuple[bytes, dict[str, int]]:
    """Return the constants, one after the other, and where each of them starts."""
    parts, at, end = [], {}, 0
    for name, array in plan.constants.items():
        at[name] = end
        size = -(-array.nbytes // align) * align
        parts.append(np.ascontiguousarray(array).tobytes().ljust(size, b"\0"))
        end += size
    return b"".join(parts), at


def _link(
    folder: Path, archive: str, name: str, objects: Iterable[Path], backend: CpuBackend
) -> int:
    """Compile and link in `folder`, check what came of it, return its bytes in memory."""
    zig = [sys.executable, "-m", "ziglang"]
    cc = [*zig, "cc", "-target", backend.zig_triple, *backend.cflags]
    kernels = []
    for path in objects:
        kernels.append(f"kernel{len(kernels)}.o")
        shutil.copyfile(path, folder / kernels[-1])
    # zig caches objects by the text of their source and does not look into .incbin
    digest = linker.digest([folder / "weights"], "").hex()
    text = WEIGHTS_S.format(digest=digest, name=name, align=backend.align)
    (folder / "weights.s").write_text(text)
    linker.call([*cc, *CFLAGS, "-c", "model.c", "-o", "model.o"], folder, "compiling")
    linker.call([*cc, "-c", "weights.s", "-o", "weights.o"], folder, "assembling")
    made = f"{name}.o"
    keep = [f"--undefined={name}_{function}" for function in static_c.PUBLIC]
    (folder / "script").write_text(SCRIPT)
    link = [*zig, "ld.lld", "-r", "--gc-sections", "--strip-debug", "-T", "script", *keep]
    linker.call([*link, "-o", made, "model.o", "weights.o", *kernels], folder, "linking")
    _weaken(folder / made, UNWINDERS)
    linker.call([*zig, "ar", "rcsD", archive, made], folder, "archiving")
    return _checked(folder / made, backend)


def _weaken(path: Path, names: Collection[str]) -> None:
    """Let an object do without functions that are not defined in it: no library is searched."""
    data = bytearray(path.read_bytes())
    for symbol in Elf(path).table():
        if symbol.name in names and not symbol.index:
            data[symbol.info_at] = WEAK << 4 | symbol.info & 15
    path.write_bytes(data)


def _checked(path: Path, backend: CpuBackend) -> int:
    """Return the bytes of an object in memory.

    Raise CompileError unless it holds integers alone, has no variables, and needs no more than it
    may.
    """
    for finding in backend.read_code(path).findings:
        raise CompileError(f"code is not integer-only: {finding}", where=path.name)
    elf = Elf(path)
    needed = {symbol for symbol, here in elf.symbols().items() if not here} - UNWINDERS
    if extra := needed - IMPORTS - backend.static_imports:
        raise CompileError(f"{path.name} needs {min(extra)}", where="linking")
    kept = [section for section in elf.sections if section.flags & ALLOCATED]
    for section in kept:
        if section.flags & WRITABLE and section.size:
            raise CompileError(f"{path.name} has variables, {section.name}", where="linking")
    return sum(section.size for section in kept)
