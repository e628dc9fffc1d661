"""Kernels as code for a GPU, before a library carries them."""

import lzma
import re
from dataclasses import dataclass

from intformer.errors import CompileError


@dataclass(frozen=True)
class GpuCode:
    """The kernels of a plan as code for a GPU.

    source  CUDA C
    cubin   machine code for one architecture (an ELF file)
    ptx     what drivers of newer GPUs compile, as text
    """

    source: str
    cubin: bytes
    ptx: bytes

    def carried(self, variant: str) -> dict[str, bytes]:
        """Return the sections of a library that carries it."""
        source = lzma.compress(self.source.encode(), preset=1)
        forms = {"cubin": self.cubin, "ptx": self.ptx, "cu.xz": source}
        return {f"cuda/{variant}.{form}": data for form, data in forms.items()}


def capability(arch: str) -> tuple[int, int]:
    """Return the compute capability (major, minor) of a GPU architecture: "sm_75" -> (7, 5)."""
    if found := re.fullmatch(r"sm_(\d+)(\d)", arch):
        return int(found[1]), int(found[2])
    raise CompileError(f"GPU architecture {arch!r}", hint="such as sm_75")
