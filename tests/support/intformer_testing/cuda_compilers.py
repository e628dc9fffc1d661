"""The CUDA compilers that this machine has, and skips where it has none."""

import subprocess

import pytest

from intformer.backends.cuda import toolchain
from intformer.errors import CompileError


def any_compiler():
    """Return the compiler that builds use; skip where there is none."""
    try:
        return toolchain.find()
    except CompileError as error:
        pytest.skip(str(error))


def compiler(kind):
    """Return nvcc or NVRTC as a compiler; skip where that one is not usable."""
    if kind == "nvcc":
        program = toolchain.usable_nvcc()
        if not program:
            pytest.skip("no nvcc, or no gcc for it")
        return toolchain.nvcc(program)
    library = toolchain.nvrtc_library()
    if not library:
        pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    return toolchain.nvrtc(library)


def ptxas():
    """Return the path of the program that does what drivers do with PTX; None without it."""
    return toolchain.find_program("ptxas", toolchain.NVCC_PACKAGES)


def assemble(ptx, arch, folder):
    """Assemble PTX for a chip; ptxas must be there."""
    path = folder / f"{arch}.ptx"
    path.write_bytes(ptx)
    command = [ptxas(), f"-arch={arch}", path, "-o", path.with_suffix(".cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


needs_ptxas = pytest.mark.skipif(ptxas() is None, reason="no ptxas")
