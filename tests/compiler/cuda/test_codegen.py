"""CUDA C comes from TVM whether or not its CUDA runtime loads."""

import os

import pytest
import tvm_ffi
from kernels import Chain, lowered
from tvm import IRModule

from intformer.cuda import codegen

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


@pytest.mark.parametrize("setting", [None, "0"])
def test_source_beside_a_cuda_runtime(runtime_that_compiles, monkeypatch, setting):
    monkeypatch.delenv(codegen.FALLBACK, raising=False)
    if setting is not None:
        monkeypatch.setenv(codegen.FALLBACK, setting)
    module, _, _ = lowered(Chain(("matmul", "rescale"), 60, 60).graph, "t4")
    text = codegen.source(IRModule({"dense_0_v0": module["dense_0_v0"]}), "sm_75")
    assert " dense_0_v0(" in text and "intformer_mma" in text
    assert os.environ.get(codegen.FALLBACK) == setting
