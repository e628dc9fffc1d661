"""GPU kernels on the CPU: generated CUDA source, compiled as C++ with cuda_on_cpu.h, and run."""

import ctypes
import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from intformer.backends.cuda import codegen, kernel
from intformer.ir.constants import BLOCK
from intformer.ir.plan import Launch, grid_size
from intformer.link.build import GPU_TILE
from intformer_testing import fake_cuda

HERE = Path(__file__).parent
GUARD = 4096  # bytes before and after every tensor
VERIFY = """
import sys, intformer
report = intformer.verify(intformer.load(sys.argv[1]), cases=1)
for check in report.checks:
    print(check.name, check.ok, check.detail, check.findings[:3])
sys.exit(not report.ok)
"""
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to run CUDA C with")


def nothing() -> tvm.tirx.PrimFunc:
    """Return a kernel that is never launched."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.buffer_store(kernel.argument(0, (1,), "int32"), 0, [0])
        kernel.launch([["one", 1, 1]] * 3, 1, "token")
    return builder.get()


def emulate(source: str, folder: Path) -> Path:
    """Compile CUDA source for the CPU; return the shared library, see cuda_on_cpu.h."""
    names = re.findall(r"__launch_bounds__\(\d+\) (\w+)\(", source)
    text = source + "".join(f"EMULATE({name})\n" for name in dict.fromkeys(names))
    (folder / "kernels.cc").write_text(text)
    flags = ["-std=c++17", "-O1", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]
    shim = ["-DINTFORMER_ON_CPU", "-include", str(HERE / "cuda_on_cpu.h")]
    output = folder / "kernels.so"
    command = ["g++", *flags, *shim, "kernels.cc", "-o", str(output)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return output


def verified(library, driver: Path, folder: Path) -> None:
    """Verify a library for GPUs with a fake driver, which runs the kernels of its own source.

    driver  what fake_cuda.build returned
    """
    source = lzma.decompress(library.section(f"cuda/{library.metadata['target']}.cu.xz")).decode()
    env = fake_cuda.environment(driver, emulate(source, folder))
    command = [sys.executable, "-c", VERIFY, str(library.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "results True" in done.stdout and "defaults True" in done.stdout


class Kernels:
    """The functions of a scheduled module, on the CPU."""

    def __init__(self, scheduled: tvm.IRModule, folder: Path, arch: str = "sm_75"):
        self.library = ctypes.CDLL(str(emulate(codegen.source(scheduled, arch), folder)))

    def run(self, launches: list[Launch], arguments: list[np.ndarray], counts: dict) -> list:
        """Launch the version for these counts; return the arguments as they are afterwards.

        arguments  buffers [blocks, 8, W] are given room for whole tiles of rows, as on a GPU
        """
        launch = next(one for one in launches if one.limit is None or counts[one.rows] <= one.limit)
        grid = grid_size(launch.grid, counts)
        memory = [_Memory(array) for array in arguments]
        order = ("token", "sequence", "position", "longest")
        memory.append(_Memory(np.array([counts[name] for name in order], np.int32)))
        pointers = [ctypes.c_void_p(one.address) for one in memory]
        params = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
        function = getattr(self.library, f"emulate_{launch.function}")
        function((ctypes.c_uint * 3)(*grid), ctypes.c_uint(launch.threads), params)
        for one in memory:
            one.check()
        return [one.array for one in memory[:-1]]


class _Memory:
    """A tensor with guards around it."""

    def __init__(self, array: np.ndarray):
        size = array.nbytes
        if array.ndim == 3 and array.shape[1] == BLOCK:
            size = -(-len(array) * BLOCK // GPU_TILE) * GPU_TILE * array[0, 0].nbytes
        self.bytes = np.full(GUARD + size + GUARD + 16, 0x5A, np.uint8)
        start = GUARD + -(self.bytes.ctypes.data + GUARD) % 16
        self.address = self.bytes.ctypes.data + start
        self.inside = slice(start, start + size)
        self.array = self.bytes[start : start + array.nbytes].view(array.dtype)
        self.array = self.array.reshape(array.shape)
        self.array[...] = array

    def check(self) -> None:
        outside = np.delete(self.bytes, np.r_[self.inside])
        assert (outside == 0x5A).all(), "a kernel wrote outside its buffer"
