"""CUDA C comes from TVM whether or not its CUDA runtime loads; its PTX is as old as it says."""

import os
import re

import pytest
import tvm_ffi
from tvm import IRModule

from intformer.backends.cuda import codegen, toolchain
from intformer_testing import cuda_compilers
from intformer_testing.kernels import Chain, lowered

FALLBACK = "TVM_COMPILE_FORCE_FALLBACK"
RUNTIME = "ffi.Module.create.cuda"  # TVM's own is there where libcuda.so.1 is


@pytest.fixture
def runtime_that_compiles():
    """Stand in for TVM's CUDA runtime, which compiles at once and knows nothing of our prelude."""
    before = tvm_ffi.get_global_func(RUNTIME, allow_missing=True)

    def create(*_):
        raise RuntimeError("compiled by TVM")

    tvm_ffi.register_global_func(RUNTIME, create, override=True)
    yield
    tvm_ffi.remove_global_func(RUNTIME)
    if before:
        tvm_ffi.register_global_func(RUNTIME, before)


@cuda_compilers.needs_ptxas
@pytest.mark.parametrize("kind", ["nvcc", "nvrtc"])
@pytest.mark.parametrize("arch", sorted(toolchain.PTX_VERSIONS))
def test_ptx_is_as_old_as_its_chip(arch, kind, tmp_path):
    """ptxas refuses what came after the version that a text says."""
    module, _, _ = lowered(Chain(("matmul", "rescale"), 64, 64).graph, f"cuda:{arch}")
    text = codegen.source(IRModule({"dense_0_v0": module["dense_0_v0"]}), arch)
    built = toolchain.build(text, arch, compiler=cuda_compilers.compiler(kind))
    assert re.findall(rb"(?m)^\.version.*", built.ptx) == [
        b".version " + toolchain.PTX_VERSIONS[arch].encode()
    ]
    cuda_compilers.assemble(built.ptx, arch, tmp_path)


@pytest.mark.parametrize("setting", [None, "0"])
def test_source_beside_a_cuda_runtime(runtime_that_compiles, monkeypatch, setting):
    monkeypatch.delenv(FALLBACK, raising=False)
    if setting is not None:
        monkeypatch.setenv(FALLBACK, setting)
    module, _, _ = lowered(Chain(("matmul", "rescale"), 60, 60).graph, "t4")
    text = codegen.source(IRModule({"dense_0_v0": module["dense_0_v0"]}), "sm_75")
    assert " dense_0_v0(" in text and "intformer_mma" in text
    assert os.environ.get(FALLBACK) == setting
